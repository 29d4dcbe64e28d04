/* The cache directory: who may use it, how much of the disk, and the files of slots.
 *
 * The files are preallocated (fallocate), so that a write into a slot never finds the disk full and
 * their blocks lie together; where the file system can't do that they are sparse. They are opened
 * with O_DIRECT: what is on the SSD is cached decoded, once, in memory, not again in the page
 * cache. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "cache/tier_parts.h"
#include "meta/cleanup.h"

#define MIN_SIZE     ((uint64_t)4 << 20)
#define DEFAULT_SIZE ((uint64_t)100 << 30)

static int make_dirs(const char *dir)
{
	SILT_FREE char *path = strdup(dir);
	if (!path)
		return -ENOMEM;
	for (char *p = path + 1; *p; p++) {
		if (*p != '/')
			continue;
		*p = 0;
		if (mkdir(path, 0755) < 0 && errno != EEXIST)
			return -errno;
		*p = '/';
	}
	return mkdir(path, 0700) < 0 && errno != EEXIST ? -errno : 0;
}

int tier_dir_open(struct tier *t, const char *dir, struct silt_err *err)
{
	int rc = make_dirs(dir);
	if (rc < 0)
		return silt_fail(err, rc,
		                 "cannot make cache directory %s: %s; name one that can "
		                 "be written",
		                 dir, strerror(-rc));
	t->dir = strdup(dir);
	if (!t->dir)
		return silt_fail(err, -ENOMEM, "out of memory");
	t->dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (t->dirfd < 0)
		return silt_fail(err, -errno, "cannot open cache directory %s: %s", dir,
		                 strerror(errno));
	t->lockfd = openat(t->dirfd, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (t->lockfd < 0)
		return silt_fail(err, -errno,
		                 "cannot write to cache directory %s: %s; check its "
		                 "owner and mode, or name another",
		                 dir, strerror(errno));
	if (flock(t->lockfd, LOCK_EX | LOCK_NB) < 0) {
		rc = errno == EWOULDBLOCK ? -EBUSY : -errno;
		return silt_fail(err, rc,
		                 "cache directory %s is in use by another mount; give "
		                 "each mount its own",
		                 dir);
	}
	return 0;
}

static void file_name(unsigned i, char out[24])
{
	snprintf(out, 24, "slots.%03u", i);
}

/* Bytes of disk that the cache's files have now: they are ours to use again. */
static uint64_t own_bytes(struct tier *t)
{
	uint64_t sum = 0;
	for (unsigned i = 0; i < TIER_MAX_FILES; i++) {
		char name[24];
		struct stat st;
		file_name(i, name);
		if (fstatat(t->dirfd, name, &st, 0) < 0)
			break;
		sum += (uint64_t)st.st_blocks * 512;
	}
	return sum;
}

int tier_fit(struct tier *t, uint64_t size, double free_ratio, uint64_t *bytes,
             struct silt_err *err)
{
	struct statvfs v;
	if (fstatvfs(t->dirfd, &v) < 0)
		return silt_fail(err, -errno, "cannot tell the free space of %s: %s", t->dir,
		                 strerror(errno));
	if (free_ratio <= 0)
		free_ratio = 0.1;
	uint64_t have = (uint64_t)v.f_bavail * v.f_frsize + own_bytes(t);
	uint64_t keep = (uint64_t)((double)v.f_blocks * (double)v.f_frsize * free_ratio);
	uint64_t room = have > keep ? have - keep : 0;
	room -= room / 1024; /* the table, block maps */
	uint64_t want = size;
	if (want == 0)
		want = have / 4 < DEFAULT_SIZE ? have / 4 : DEFAULT_SIZE; /* it is allocated at once */
	uint64_t n = want < room ? want : room;
	if (n > TIER_MAX_FILES * TIER_FILE_SIZE)
		n = TIER_MAX_FILES * TIER_FILE_SIZE;
	if (want < MIN_SIZE)
		return silt_fail(err, -EINVAL,
		                 "a cache of %llu bytes is too small; give it at "
		                 "least %u MiB",
		                 (unsigned long long)want, (unsigned)(MIN_SIZE >> 20));
	if (n < MIN_SIZE)
		return silt_fail(
		        err, -ENOSPC,
		        "no room for a cache in %s: %llu MiB free, %llu MiB must stay free "
		        "(free-space ratio %.2f); free some space, lower the ratio, or name "
		        "another directory",
		        t->dir, (unsigned long long)(have >> 20), (unsigned long long)(keep >> 20),
		        free_ratio);
	if (size != 0 && n < size)
		silt_warn(t->log, "cache: %s has room for %llu MiB of the %llu MiB asked for",
		          t->dir, (unsigned long long)(n >> 20), (unsigned long long)(size >> 20));
	*bytes = n;
	return 0;
}

static int open_data(struct tier *t, const char *name)
{
	int fd = -1;
	if (t->direct)
		fd = openat(t->dirfd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT, 0600);
	if (fd < 0 && (!t->direct || errno == EINVAL)) {
		if (t->direct)
			silt_info(t->log,
			          "cache: %s does not support O_DIRECT; using the page cache",
			          t->dir);
		t->direct = false;
		fd = openat(t->dirfd, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	}
	return fd < 0 ? -errno : fd;
}

static int size_data(int fd, uint64_t old, uint64_t size)
{
	if (old > size && ftruncate(fd, (off_t)size) < 0)
		return -errno;
	if (fallocate(fd, 0, 0, (off_t)size) == 0)
		return 0;
	if (errno != EOPNOTSUPP && errno != ENOSYS)
		return -errno;
	return ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
}

int tier_files_open(struct tier *t, uint32_t *sound, struct silt_err *err)
{
	unsigned want = (t->count + t->file_slots - 1) / t->file_slots;
	char name[24];
	t->direct = true;
	*sound = t->count;
	for (unsigned i = want; i < TIER_MAX_FILES; i++) {
		file_name(i, name);
		if (unlinkat(t->dirfd, name, 0) < 0)
			break;
	}
	for (unsigned i = 0; i < want; i++) {
		struct stat st = { 0 };
		uint32_t first = i * t->file_slots;
		uint32_t n = t->count - first < t->file_slots ? t->count - first : t->file_slots;
		uint64_t size = (uint64_t)n * t->slot_size;
		file_name(i, name);
		int fd = open_data(t, name);
		if (fd < 0)
			return silt_fail(err, fd, "cannot open %s/%s: %s", t->dir, name,
			                 strerror(-fd));
		t->fds[t->files++] = fd;
		fstat(fd, &st);
		if ((uint64_t)st.st_size < size) {
			uint32_t whole = first + (uint32_t)(st.st_size / t->slot_size);
			*sound = whole < *sound ? whole : *sound;
		}
		int rc = size_data(fd, (uint64_t)st.st_size, size);
		if (rc < 0)
			return silt_fail(err, rc,
			                 "cannot reserve %u MiB for %s/%s: %s; free some "
			                 "space or choose a smaller cache",
			                 (unsigned)(size >> 20), t->dir, name, strerror(-rc));
	}
	return 0;
}

void tier_files_close(struct tier *t)
{
	for (unsigned i = 0; i < t->files; i++)
		close(t->fds[i]);
	t->files = 0;
	if (t->lockfd >= 0)
		close(t->lockfd);
	if (t->dirfd >= 0)
		close(t->dirfd);
	free(t->dir);
}

void tier_io_error(struct tier *t, const char *what, int err)
{
	unsigned n = atomic_fetch_add(&t->errors, 1) + 1;
	silt_count(t->metrics, M_SSD_ERRORS, 1);
	if (n == 1)
		silt_warn(t->log, "cache: %s in %s failed: %s; reads go on from the object store",
		          what, t->dir, strerror(-err));
	if (n >= TIER_ERRORS_ALLOWED && !atomic_exchange(&t->out, true))
		silt_error(t->log,
		           "cache: %u errors in %s: the SSD cache is out of use until the "
		           "next mount; check the disk",
		           n, t->dir);
}

int tier_slot_pread(struct tier *t, uint32_t slot, uint32_t at, void *buf, uint32_t len)
{
	off_t off = (off_t)(tier_slot_offset(t, slot) + at);
	for (uint32_t got = 0; got < len;) {
		ssize_t n = pread(tier_slot_fd(t, slot), (char *)buf + got, len - got, off + got);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			int err = n < 0 ? -errno : -EIO;
			tier_io_error(t, "a read", err);
			return err;
		}
		got += (uint32_t)n;
	}
	silt_count(t->metrics, M_SSD_READ_BYTES, len);
	return 0;
}

int tier_slot_pwrite(struct tier *t, uint32_t slot, uint32_t at, const void *buf, uint32_t len)
{
	off_t off = (off_t)(tier_slot_offset(t, slot) + at);
	for (uint32_t put = 0; put < len;) {
		ssize_t n = pwrite(tier_slot_fd(t, slot), (const char *)buf + put, len - put,
		                   off + put);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			int err = n < 0 ? -errno : -EIO;
			tier_io_error(t, "a write", err);
			return err;
		}
		put += (uint32_t)n;
	}
	silt_count(t->metrics, M_SSD_WRITE_BYTES, len);
	return 0;
}
