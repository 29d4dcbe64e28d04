#include "tools/mount_paths.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "meta/cleanup.h"

#define SOCKET_IS_NEW_S 60

int make_folders(const char *path, unsigned mode)
{
	char copy[PATH_MAX];
	if (snprintf(copy, sizeof(copy), "%s", path) >= (int)sizeof(copy))
		return -ENAMETOOLONG;
	for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		if (mkdir(copy, mode) < 0 && errno != EEXIST)
			return -errno;
		*slash = '/';
	}
	return mkdir(copy, mode) < 0 && errno != EEXIST ? -errno : 0;
}

/* The folder for one kind of thing: `root_dir` for root, else $`xdg`/siltfs or ~/`home_dir`/siltfs.
 */
static int base_folder(const char *root_dir, const char *xdg, const char *home_dir, char *out,
                       size_t size)
{
	const char *value = getenv(xdg), *home = getenv("HOME");
	int n;
	if (geteuid() == 0)
		n = snprintf(out, size, "%s", root_dir);
	else if (value && value[0] == '/')
		n = snprintf(out, size, "%s/siltfs", value);
	else if (home && home[0] == '/')
		n = snprintf(out, size, "%s/%s/siltfs", home, home_dir);
	else
		return -ENOENT;
	return n < (int)size ? 0 : -ENAMETOOLONG;
}

int default_cache_dir(uint64_t volume_id, char *out, size_t size, struct silt_err *err)
{
	char base[PATH_MAX - 32];
	int rc = base_folder("/var/cache/siltfs", "XDG_CACHE_HOME", ".cache", base, sizeof(base));
	if (rc < 0)
		return silt_fail(err, rc,
		                 "no place for the cache (HOME is not set); give "
		                 "-o cache-dir=DIR or -o cache-dir=none");
	if (snprintf(out, size, "%s/%016" PRIx64, base, volume_id) >= (int)size)
		return silt_fail(err, -ENAMETOOLONG,
		                 "the path of the cache is too long; give "
		                 "-o cache-dir=DIR");
	rc = make_folders(out, 0700);
	return rc < 0 ? silt_fail(err, rc,
	                          "can't make the cache directory %s: %s; give "
	                          "-o cache-dir=DIR or -o cache-dir=none",
	                          out, strerror(-rc))
	              : 0;
}

int default_log(const char *cache_dir, const char *mountpoint, char *out, size_t size,
                struct silt_err *err)
{
	char base[PATH_MAX - 300], name[256];
	size_t n = 0;
	int rc;

	if (cache_dir) {
		rc = make_folders(cache_dir, 0700);
		snprintf(out, size, "%s/siltfs.log", cache_dir);
		return rc < 0 ? silt_fail(err, rc, "can't make the cache directory %s: %s",
		                          cache_dir, strerror(-rc))
		              : 0;
	}
	for (const char *p = mountpoint + 1; *p && n + 1 < sizeof(name); p++)
		name[n++] = *p == '/' ? '-' : *p;
	name[n] = '\0';
	rc = base_folder("/var/log/siltfs", "XDG_STATE_HOME", ".local/state", base, sizeof(base));
	if (rc == 0)
		rc = make_folders(base, 0755);
	if (rc < 0)
		return silt_fail(err, rc,
		                 "no place for the log: %s; give -o log=FILE or -o log=syslog",
		                 strerror(-rc));
	if (snprintf(out, size, "%s/%s.log", base, n ? name : "root") >= (int)size)
		return silt_fail(err, -ENAMETOOLONG,
		                 "the log's path is too long; give -o log=FILE");
	return 0;
}

/* A folder that only its owner, the caller, can enter; so nobody else can plant a socket there. */
static int private_folder(const char *path, struct silt_err *err)
{
	struct stat st;
	int rc = make_folders(path, 0700);
	if (rc < 0 || lstat(path, &st) < 0) {
		rc = rc < 0 ? rc : -errno;
		return silt_fail(err, rc,
		                 "can't make %s for the control socket: %s; set "
		                 "SILTFS_RUN_DIR",
		                 path, strerror(-rc));
	}
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022))
		return silt_fail(err, -EPERM,
		                 "%s is not a private folder of this user; remove it or "
		                 "set SILTFS_RUN_DIR",
		                 path);
	return 0;
}

/* Removes the socket of a daemon that was killed. One that is younger may just not listen yet. */
static void remove_if_dead(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct stat st;

	if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode) ||
	    time(NULL) - st.st_mtime < SOCKET_IS_NEW_S || strlen(path) >= sizeof(sa.sun_path))
		return;
	strcpy(sa.sun_path, path);
	SILT_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 && errno == ECONNREFUSED)
		unlink(path);
}

/* Removes what a daemon left of its reason for lost data when nobody read it: it was ended by umount(8),
 * fusermount3 or a signal, and said the same in its log. `siltfs umount` reads a new one at once. */
static void remove_if_old(const char *path)
{
	struct stat st;
	if (lstat(path, &st) == 0 && S_ISREG(st.st_mode) && time(NULL) - st.st_mtime >= SOCKET_IS_NEW_S)
		unlink(path);
}

static bool ends_with(const char *name, const char *end)
{
	size_t n = strlen(name), k = strlen(end);
	return n > k && strcmp(name + n - k, end) == 0;
}

static void remove_dead_sockets(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	char path[PATH_MAX];

	while (d && (e = readdir(d))) {
		if (snprintf(path, sizeof(path), "%s/%s", dir, e->d_name) >= (int)sizeof(path))
			continue;
		if (ends_with(e->d_name, ".sock"))
			remove_if_dead(path);
		else if (ends_with(e->d_name, ".sock.failed"))
			remove_if_old(path);
	}
	if (d)
		closedir(d);
}

int control_socket_path(char *out, size_t size, struct silt_err *err)
{
	const char *own = getenv("SILTFS_RUN_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
	char dir[PATH_MAX];
	unsigned unique;
	int rc;

	if (own && own[0] == '/')
		snprintf(dir, sizeof(dir), "%s", own);
	else if (geteuid() == 0)
		snprintf(dir, sizeof(dir), "/run/siltfs");
	else if (xdg && xdg[0] == '/')
		snprintf(dir, sizeof(dir), "%s/siltfs", xdg);
	else
		snprintf(dir, sizeof(dir), "/tmp/siltfs-%u", (unsigned)geteuid());
	if ((rc = private_folder(dir, err)) < 0)
		return rc;
	remove_dead_sockets(dir);
	/* Containers that share the folder may have the same pids. */
	if (getrandom(&unique, sizeof(unique), 0) != sizeof(unique))
		return silt_fail(err, -errno, "no random numbers: %s", strerror(errno));
	if (snprintf(out, size, "%s/%d-%08x.sock", dir, (int)getpid(), unique) >= (int)size)
		return silt_fail(err, -ENAMETOOLONG,
		                 "%s is too long for a socket; set SILTFS_RUN_DIR "
		                 "to a shorter path",
		                 dir);
	return 0;
}

/* --- Mount points ----------------------------------------------------------------------- */

/* Undoes the \ooo of mountinfo in place. */
static void unescape(char *s)
{
	char *out = s;
	while (*s) {
		if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] && s[3]) {
			*out++ = (char)((s[1] - '0') * 64 + (s[2] - '0') * 8 + (s[3] - '0'));
			s += 4;
		} else {
			*out++ = *s++;
		}
	}
	*out = '\0';
}

int find_mount(const char *path, char *type, size_t type_size, char *source, size_t source_size)
{
	SILT_FCLOSE FILE *f = fopen("/proc/self/mountinfo", "re");
	SILT_FREE char *line = NULL;
	size_t cap = 0;
	int rc = -ENOENT;

	if (!f)
		return -errno;
	while (getline(&line, &cap, f) > 0) {
		char *rest = line, *at = NULL;
		for (int i = 0; i < 5 && rest; i++)
			at = strsep(&rest, " ");
		char *tail = rest ? strstr(rest, " - ") : NULL;
		if (!at || !tail)
			continue;
		unescape(at);
		if (strcmp(at, path) != 0)
			continue;
		tail += 3;
		snprintf(type, type_size, "%s", strsep(&tail, " "));
		snprintf(source, source_size, "%s", tail ? strsep(&tail, " \n") : "");
		unescape(source);
		rc = 0; /* the last line is the topmost mount */
	}
	return rc;
}

int check_mountpoint(const char *path, char *out, size_t size, struct silt_err *err)
{
	SILT_FREE char *real = NULL;
	char type[64], source[512];
	struct stat st;

	if (strncmp(path, "/dev/fd/", 8) == 0) {
		snprintf(out, size, "%s", path);
		return 0;
	}
	if (stat(path, &st) < 0 && (errno == ENOTCONN || errno == EIO))
		return silt_fail(err, -ENOTCONN,
		                 "the mount point %s is held by a daemon that died; "
		                 "run siltfs umount --lazy %s first",
		                 path, path);
	if (stat(path, &st) < 0)
		return silt_fail(err, -errno, "the mount point %s: %s%s", path, strerror(errno),
		                 errno == ENOENT ? "; make it first (mkdir)" : "");
	if (!S_ISDIR(st.st_mode))
		return silt_fail(err, -ENOTDIR, "the mount point %s is not a directory", path);
	if (!(real = realpath(path, NULL)) || snprintf(out, size, "%s", real) >= (int)size)
		return silt_fail(err, -errno, "the mount point %s: %s", path, strerror(errno));
	if (find_mount(out, type, sizeof(type), source, sizeof(source)) == 0)
		return silt_fail(err, -EBUSY,
		                 "the mount point %s is busy: %s (%s) is mounted there; "
		                 "unmount it or choose another directory",
		                 path, source, type);
	return 0;
}
