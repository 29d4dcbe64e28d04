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
		want = have / 4 < DEFAULT_SIZE ? have / 4
		                               : DEFAULT_SIZE; /* it is allocated at once */
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

/* How long a data file has to be. */
static uint64_t file_size(const struct tier *t, unsigned i)
{
	uint32_t first = i * t->file_slots;
	uint32_t n = t->count - first < t->file_slots ? t->count - first : t->file_slots;
	return (uint64_t)n * t->slot_size;
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
		uint64_t size = file_size(t, i);
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
		fstat(fd, &st);
		t->blocks[i] = (uint64_t)st.st_blocks;
	}
	return 0;
}

/* Forgets the slots of a file from `lost` on; those before have to be checked again. */
static void forget_slots(struct tier *t, unsigned file, uint32_t lost)
{
	uint32_t end =
	        (file + 1) * t->file_slots < t->count ? (file + 1) * t->file_slots : t->count;
	for (uint32_t i = file * t->file_slots; i < end; i++) {
		struct silt_lock *l = tier_slot_lock(t, i);
		if (!l)
			continue;
		t->slots[i].checked = false;
		if (i >= lost)
			tier_kill(t, i);
		silt_unlock(l);
	}
}

/* After holes were made in it: whole again, and nothing in it is believed unseen. `save` is held.
 */
static void mend_file(struct tier *t, unsigned i, const struct stat *st)
{
	uint64_t size = file_size(t, i);
	uint32_t lost = UINT32_MAX;
	char name[24];
	file_name(i, name);
	silt_warn(t->log,
	          "cache: someone cut %s/%s (%llu of %llu bytes); what is lost is fetched again",
	          t->dir, name, (unsigned long long)st->st_size, (unsigned long long)size);
	if ((uint64_t)st->st_size < size)
		lost = i * t->file_slots + (uint32_t)(st->st_size / t->slot_size);
	int rc = size_data(t->fds[i], (uint64_t)st->st_size, size);
	if (rc < 0)
		tier_io_error(t, "making a file whole again", rc);
	forget_slots(t, i, lost);
}

static int check_file(struct tier *t, unsigned i, struct silt_err *err)
{
	struct stat st, named;
	char name[24];
	file_name(i, name);
	if (fstat(t->fds[i], &st) < 0)
		return silt_fail(err, -errno, "cannot look at %s/%s: %s", t->dir, name,
		                 strerror(errno));
	if ((uint64_t)st.st_size < file_size(t, i) || (uint64_t)st.st_blocks < t->blocks[i]) {
		mend_file(t, i, &st);
		fstat(t->fds[i], &st);
		t->blocks[i] = (uint64_t)st.st_blocks;
	}
	if (fstatat(t->dirfd, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
	    named.st_dev == st.st_dev && named.st_ino == st.st_ino)
		return 0;
	return silt_fail(err, -ENODEV,
	                 "%s/%s was deleted or replaced under the mount; unmount and mount again",
	                 t->dir, name);
}

int tier_check_files(struct tier *t, struct silt_err *err)
{
	int rc = 0;
	silt_lock(&t->save);
	for (unsigned i = 0; i < t->files && rc == 0; i++)
		rc = check_file(t, i, err);
	silt_unlock(&t->save);
	if (rc == 0 && atomic_load(&t->out))
		rc = silt_fail(
		        err, -ENODEV,
		        "the SSD cache in %s is out of use after errors of its disk; check the "
		        "disk and mount again",
		        t->dir);
	return rc;
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

void tier_cut_short(struct tier *t)
{
	silt_count(t->metrics, M_SSD_ERRORS, 1);
	atomic_store(&t->cut, true);
}

int tier_slot_pread(struct tier *t, uint32_t slot, uint32_t at, void *buf, uint32_t len)
{
	off_t off = (off_t)(tier_slot_offset(t, slot) + at);
	for (uint32_t got = 0; got < len;) {
		ssize_t n = pread(tier_slot_fd(t, slot), (char *)buf + got, len - got, off + got);
		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0) {
			tier_cut_short(t);
			return -EIO;
		}
		if (n < 0) {
			int err = -errno;
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
