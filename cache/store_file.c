/* Object store `file`: a directory. Key "a/b" is the file DIR/a/b.
 *
 * An object appears whole or not at all: it is written to DIR/~tmp/NAME, fsynced, renamed into
 * place, and the directory it then stands in is fsynced before the PUT is reported. STORE_EXCL
 * renames with RENAME_NOREPLACE, or by link() where the file system below does not know that. '~'
 * is in no key, so what lies in ~tmp is no object; files that a crash left there are removed after
 * a day, by the first PUT of a later process.
 *
 * Directories are made when the first object needs them, and never removed: a writer never has to
 * race a remover, and the fan-out of siltfs's keys is fixed. DIR itself is made only by
 * store_create_bucket(): a disk that is not mounted must not fill the one below it.
 *
 * There are no retries: a local disk's errors don't pass by themselves. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cache/store_impl.h"
#include "meta/cleanup.h"
#include "meta/lock.h"

#define TEMP_DIR      "~tmp"
#define TEMP_LIFE_SEC (24 * 3600)
#define PATH_ROOM     (STORE_WHERE_MAX + STORE_KEY_MAX + 64)

struct file_store {
	struct silt_lock lock;
	bool swept; /* old temporary files were looked for; under lock */
};

static void make_path(const struct store *s, const char *key, char *path)
{
	int n = snprintf(path, PATH_ROOM, "%s/%s", s->where, key);
	assert(n < PATH_ROOM);
	(void)n;
}

static int file_fail(struct store_try *t, int err, const char *what)
{
	const char *hint = "";

	if (err == ENOENT && access(t->store->where, F_OK) != 0)
		return silt_fail(t->err, -ENOENT,
		                 "%s %s: the directory %s does not exist (is its disk "
		                 "mounted?)",
		                 t->verb, t->key, t->store->where);
	switch (err) {
	case ENOENT:
	case ENOTDIR:
	case EISDIR:
		if (what)
			break;
		return silt_fail(t->err, -ENOENT, "%s %s: no such object in %s", t->verb, t->key,
		                 t->store->where);
	case EDQUOT: err = ENOSPC; break;
	case EPERM:
	case EROFS: err = EACCES; break;
	}
	if (err == ENOSPC)
		hint = "; free some space there";
	else if (err == EACCES)
		hint = "; check its owner and mode";
	int code = err == ENOSPC || err == EACCES || err == EEXIST ? -err : -EIO;
	return silt_fail(t->err, code, "%s %s: %s in %s: %s%s", t->verb, t->key,
	                 what ? what : "cannot open", t->store->where, strerror(err), hint);
}

static int file_open(struct store *s, struct silt_err *err)
{
	const char *dir = s->cfg.bucket;
	SILT_FREE char *cwd = dir[0] == '/' ? strdup("") : getcwd(NULL, 0);
	struct file_store *f;
	int n;

	if (!cwd)
		return silt_fail(err, -errno, "cannot tell the current directory: %s",
		                 strerror(errno));
	n = snprintf(s->where, sizeof(s->where), "%s%s%s", cwd, *cwd ? "/" : "", dir);
	if (n >= (int)sizeof(s->where))
		return silt_fail(err, -EINVAL, "the store's directory name is too long: %.100s...",
		                 dir);
	while (n > 1 && s->where[n - 1] == '/')
		s->where[--n] = '\0';
	f = calloc(1, sizeof(*f));
	if (!f)
		return silt_fail(err, -ENOMEM, "out of memory");
	silt_lock_init(&f->lock);
	s->impl = f;
	return 0;
}

static void file_close(struct store *s)
{
	struct file_store *f = s->impl;
	silt_lock_destroy(&f->lock);
	free(f);
}

/* --- PUT ------------------------------------------------------------------------------------- */

static int write_pieces(int fd, const struct iovec *iov, int niov)
{
	for (int i = 0; i < niov; i++) {
		const char *p = iov[i].iov_base;
		size_t left = iov[i].iov_len;
		while (left > 0) {
			ssize_t n = write(fd, p, left);
			if (n < 0 && errno == EINTR)
				continue;
			if (n < 0)
				return -errno;
			p += n;
			left -= (size_t)n;
		}
	}
	return 0;
}

static int sync_dir(const char *path)
{
	SILT_CLOSE int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd) != 0)
		return -errno;
	return 0;
}

/* Makes the directories of `path` below `root` and makes each entry durable, also one that another
 * thread made a moment ago and may not have synced yet. */
static int make_parents(const char *root, char *path)
{
	for (char *p = path + strlen(root) + 1; (p = strchr(p, '/')); p++) {
		char *parent;
		int rc = 0;

		*p = '\0';
		if (mkdir(path, 0777) != 0 && errno != EEXIST)
			rc = -errno;
		if (rc == 0) {
			parent = strrchr(path, '/');
			*parent = '\0';
			rc = sync_dir(*path ? path : "/");
			*parent = '/';
		}
		*p = '/';
		if (rc < 0)
			return rc;
	}
	return 0;
}

static void sweep_temps(struct store *s)
{
	struct file_store *f = s->impl;
	char path[PATH_ROOM];
	bool swept;

	silt_lock(&f->lock);
	swept = f->swept;
	f->swept = true;
	silt_unlock(&f->lock);
	if (swept)
		return;
	make_path(s, TEMP_DIR, path);
	SILT_CLOSEDIR DIR *d = opendir(path);
	for (struct dirent *e; d && (e = readdir(d));) {
		struct stat st;
		if (e->d_name[0] != '.' &&
		    fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
		    S_ISREG(st.st_mode) && st.st_mtime + TEMP_LIFE_SEC < time(NULL))
			unlinkat(dirfd(d), e->d_name, 0);
	}
}

static int open_temp(struct store *s, char *path)
{
	char name[64], id[17];
	int fd;

	store_random_hex(id, 8);
	snprintf(name, sizeof(name), TEMP_DIR "/%d-%s", (int)getpid(), id);
	make_path(s, name, path);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (fd < 0 && errno == ENOENT) {
		char dir[PATH_ROOM];
		make_path(s, TEMP_DIR, dir);
		if (mkdir(dir, 0777) != 0 && errno != EEXIST)
			return -errno;
		fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	}
	return fd < 0 ? -errno : fd;
}

/* Gives the temporary file its name. */
static int move_into_place(const char *temp, const char *path, bool excl)
{
	if (!excl)
		return rename(temp, path) == 0 ? 0 : -errno;
	if (renameat2(AT_FDCWD, temp, AT_FDCWD, path, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -errno;
	if (link(temp, path) != 0)
		return -errno;
	unlink(temp);
	return 0;
}

static int place_temp(struct store *s, struct store_try *t, const char *temp, bool excl)
{
	char path[PATH_ROOM];
	int rc;

	make_path(s, t->key, path);
	rc = move_into_place(temp, path, excl);
	if (rc == -ENOENT) {
		rc = make_parents(s->where, path);
		if (rc == 0)
			rc = move_into_place(temp, path, excl);
	}
	if (rc == -EEXIST)
		return silt_fail(t->err, -EEXIST, "PUT %s: the object is there already in %s",
		                 t->key, s->where);
	if (rc < 0)
		return file_fail(t, -rc, "cannot put the object in place");
	*strrchr(path, '/') = '\0';
	rc = sync_dir(path);
	return rc < 0 ? file_fail(t, -rc, "cannot sync the directory") : 0;
}

static int file_put(struct store *s, struct store_try *t, struct store_put *put)
{
	char temp[PATH_ROOM];
	int rc;

	sweep_temps(s);
	SILT_CLOSE int fd = open_temp(s, temp);
	if (fd < 0)
		return file_fail(t, -fd, "cannot make a temporary file");
	rc = write_pieces(fd, put->iov, put->niov);
	if (rc == 0 && fsync(fd) != 0)
		rc = -errno;
	if (rc < 0)
		rc = file_fail(t, -rc, "cannot write");
	else
		rc = place_temp(s, t, temp, put->flags & STORE_EXCL);
	if (rc < 0)
		unlink(temp);
	return rc;
}

/* --- GET, HEAD, DELETE ----------------------------------------------------------------------- */

static void fill_info(const struct stat *st, struct store_object *info)
{
	*info = (struct store_object){ .size = (uint64_t)st->st_size, .mtime = st->st_mtime };
}

static ssize_t file_get(struct store *s, struct store_try *t, uint64_t off, size_t len, void *buf,
                        struct store_object *info)
{
	char path[PATH_ROOM];
	struct stat st;
	size_t got = 0;

	make_path(s, t->key, path);
	SILT_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return file_fail(t, errno, NULL);
	if (fstat(fd, &st) != 0)
		return file_fail(t, errno, "cannot stat");
	if (!S_ISREG(st.st_mode))
		return file_fail(t, ENOENT, NULL);
	fill_info(&st, info);
	while (got < len) {
		ssize_t n = pread(fd, (char *)buf + got, len - got, (off_t)(off + got));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return file_fail(t, errno, "cannot read");
		if (n == 0)
			break;
		got += (size_t)n;
	}
	return (ssize_t)got;
}

static int file_head(struct store *s, struct store_try *t, struct store_object *info)
{
	char path[PATH_ROOM];
	struct stat st;

	make_path(s, t->key, path);
	if (stat(path, &st) != 0)
		return file_fail(t, errno, NULL);
	if (!S_ISREG(st.st_mode))
		return file_fail(t, ENOENT, NULL);
	fill_info(&st, info);
	return 0;
}

static int file_delete(struct store *s, struct store_try *t)
{
	char path[PATH_ROOM];
	struct stat st;

	make_path(s, t->key, path);
	if (unlink(path) == 0)
		return 0;
	if (errno == EISDIR || (errno == ENOTDIR && access(s->where, F_OK) == 0))
		return 0;
	if (errno == ENOENT && access(s->where, F_OK) == 0)
		return 0;
	if (errno == EPERM && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
		return 0;
	return file_fail(t, errno, "cannot delete");
}

static int file_create(struct store *s, struct store_try *t)
{
	char path[PATH_ROOM];
	int rc = 0;

	/* make_parents() makes what stands before a '/'. */
	snprintf(path, sizeof(path), "%s/", s->where);
	if (access(s->where, F_OK) != 0)
		rc = make_parents("", path);
	return rc < 0 ? file_fail(t, -rc, "cannot make the directory") : 0;
}

/* --- Listing --------------------------------------------------------------------------------- */

struct listing {
	struct store_try *t;
	const char *prefix, *after;
	store_list_fn each;
	void *arg;
};

struct names {
	char **v; /* directories' names end with '/', so that byte order is key order */
	size_t n, cap;
};

static void free_names(struct names *names)
{
	for (size_t i = 0; i < names->n; i++)
		free(names->v[i]);
	free(names->v);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Could the listing hold `key`, or, for a directory ("a/b/"), something below it? */
static bool wanted(const struct listing *l, const char *key)
{
	size_t len = strlen(key), plen = strlen(l->prefix);
	bool dir = len > 0 && key[len - 1] == '/';

	if (strncmp(key, l->prefix, len < plen ? len : plen) != 0 || (!dir && len < plen))
		return false;
	if (dir && strncmp(l->after, key, len) == 0)
		return true;
	return strcmp(key, l->after) > 0;
}

static int add_name(struct names *names, const char *name, bool dir)
{
	if (names->n == names->cap) {
		size_t cap = names->cap ? names->cap * 2 : 64;
		void *v = reallocarray(names->v, cap, sizeof(*names->v));
		if (!v)
			return -ENOMEM;
		names->v = v;
		names->cap = cap;
	}
	if (asprintf(&names->v[names->n], "%s%s", name, dir ? "/" : "") < 0)
		return -ENOMEM;
	names->n++;
	return 0;
}

/* Reads the names of directory `dir` ("" or "a/b/") that the listing may want. */
static int read_names(const struct listing *l, DIR *d, const char *dir, struct names *names)
{
	char key[STORE_KEY_MAX + 2];
	struct dirent *e;
	int rc = 0;

	while (rc == 0 && (errno = 0, e = readdir(d))) {
		struct stat st;
		bool is_dir = e->d_type == DT_DIR;
		int n = snprintf(key, sizeof(key) - 1, "%s%s", dir, e->d_name);
		if (n > STORE_KEY_MAX || store_key_check(key, (size_t)n) < 0)
			continue;
		if (e->d_type == DT_UNKNOWN || e->d_type == DT_LNK)
			is_dir = fstatat(dirfd(d), e->d_name, &st, 0) == 0 && S_ISDIR(st.st_mode);
		if (is_dir)
			strcpy(key + n, "/");
		if (wanted(l, key))
			rc = add_name(names, e->d_name, is_dir);
	}
	if (rc == 0)
		rc = -errno;
	if (names->n > 0)
		qsort(names->v, names->n, sizeof(*names->v), by_name);
	return rc;
}

/* Lists below `dir` ("" or "a/b/"). Keys are at most STORE_KEY_MAX long, so recursion has an end.
 */
static int list_dir(const struct listing *l, const char *dir)
{
	char path[PATH_ROOM], key[STORE_KEY_MAX + 2];
	struct names names = { 0 };
	int rc;

	make_path(l->t->store, dir, path);
	SILT_CLOSEDIR DIR *d = opendir(path);
	if (!d && *dir && errno == ENOENT)
		return 0;
	if (!d)
		return file_fail(l->t, errno, "cannot list");
	rc = read_names(l, d, dir, &names);
	if (rc < 0)
		rc = file_fail(l->t, -rc, "cannot list");
	for (size_t i = 0; rc == 0 && i < names.n; i++) {
		struct stat st;
		struct store_object info;
		int n = snprintf(key, sizeof(key), "%s%s", dir, names.v[i]);
		if (key[n - 1] == '/') {
			rc = list_dir(l, key);
		} else if (fstatat(dirfd(d), names.v[i], &st, 0) == 0 && S_ISREG(st.st_mode)) {
			fill_info(&st, &info);
			rc = l->each(l->arg, key, &info);
		}
	}
	free_names(&names);
	return rc;
}

static int file_list(struct store *s, struct store_try *t, const char *prefix, const char *after,
                     store_list_fn each, void *arg)
{
	struct listing l = { .t = t, .prefix = prefix, .after = after, .each = each, .arg = arg };
	(void)s;
	return list_dir(&l, "");
}

const struct store_ops store_file_ops = {
	.kind = "file",
	.open = file_open,
	.close = file_close,
	.put = file_put,
	.get = file_get,
	.head = file_head,
	.list = file_list,
	.del = file_delete,
	.create_bucket = file_create,
};
