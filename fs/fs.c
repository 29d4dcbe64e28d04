/* The session: mounting, INIT, threads, the end.
 *
 * Life of a mount: fs_mount() makes the session and mounts; fs_serve() runs libfuse's threads until
 * the file system is unmounted or fs_stop(), then stores what is dirty; fs_close() unmounts, waits
 * until the last request has been answered by Redis and the cache, and frees.
 *
 * Features are asked for here only (on_init). Left out on purpose: the kernel's writeback cache
 * (breaks close-to-open and appends of several writers), splice (slower than a copy here), caching
 * of listings (relaxed mounts answer them from memory). */
#include "fs/fs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fs/control.h"
#include "fs/fs_impl.h"
#include "meta/cleanup.h"

#define MAX_IO          (1u << 20)
#define DEFAULT_BUFFER  ((uint64_t)256 << 20)
#define DEFAULT_THREADS 10
#define BACKGROUND      64 /* readahead requests the kernel may have in flight */

static const char *const kind_names[] = {
#define X(id, name) name,
	FUSE_KINDS(X)
#undef X
};

const char *fs_fuse_kind_name(unsigned kind)
{
	return kind < KIND_COUNT ? kind_names[kind] : NULL;
}

static void on_init(void *userdata, struct fuse_conn_info *conn)
{
	struct fs *fs = userdata;
	static const struct {
		unsigned cap;
		const char *name;
	} wanted[] = {
		{ FUSE_CAP_ASYNC_READ, "async_read" },
		{ FUSE_CAP_ATOMIC_O_TRUNC, "atomic_o_trunc" },
		{ FUSE_CAP_EXPORT_SUPPORT, NULL },
		{ FUSE_CAP_IOCTL_DIR, NULL },
		{ FUSE_CAP_AUTO_INVAL_DATA, "auto_inval_data" },
		{ FUSE_CAP_READDIRPLUS, "readdirplus" },
		{ FUSE_CAP_READDIRPLUS_AUTO, NULL },
		{ FUSE_CAP_ASYNC_DIO, "async_dio" },
		{ FUSE_CAP_PARALLEL_DIROPS, "parallel_dirops" },
		{ FUSE_CAP_CACHE_SYMLINKS, "cache_symlinks" },
		{ FUSE_CAP_POSIX_ACL, "posix_acl" },
		{ FUSE_CAP_DONT_MASK, NULL }, /* a default ACL counts instead of the umask */
		{ FUSE_CAP_POSIX_LOCKS, "posix_locks" },
		{ FUSE_CAP_FLOCK_LOCKS, "flock_locks" },
	};
	fs_count(fs, KIND_INIT);
	conn->want = 0;
	size_t n = 0;
	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
		if (!(conn->capable & wanted[i].cap))
			continue;
		conn->want |= wanted[i].cap;
		if (wanted[i].name)
			n += (size_t)snprintf(fs->features + n, sizeof(fs->features) - n, "%s%s",
			                      n ? " " : "", wanted[i].name);
	}
	conn->max_write = MAX_IO;
	conn->max_readahead = MAX_IO;
	conn->max_background = BACKGROUND;
	conn->congestion_threshold = BACKGROUND * 3 / 4;
	conn->time_gran = 1;
}

static void on_destroy(void *userdata)
{
	fs_count(userdata, KIND_DESTROY);
}

static const struct fuse_lowlevel_ops operations = {
	.init = on_init,
	.destroy = on_destroy,
	.lookup = op_lookup,
	.forget = op_forget,
	.forget_multi = op_forget_multi,
	.getattr = op_getattr,
	.setattr = op_setattr,
	.readlink = op_readlink,
	.mknod = op_mknod,
	.mkdir = op_mkdir,
	.unlink = op_unlink,
	.rmdir = op_rmdir,
	.symlink = op_symlink,
	.rename = op_rename,
	.link = op_link,
	.open = op_open,
	.create = op_create,
	.read = op_read,
	.write = op_write,
	.flush = op_flush,
	.release = op_release,
	.fsync = op_fsync,
	.fallocate = op_fallocate,
	.lseek = op_lseek,
	.copy_file_range = op_copy_file_range,
	.getlk = op_getlk,
	.setlk = op_setlk,
	.flock = op_flock,
	.opendir = op_opendir,
	.readdir = op_readdir,
	.readdirplus = op_readdirplus,
	.releasedir = op_releasedir,
	.fsyncdir = op_fsyncdir,
	.statfs = op_statfs,
	.setxattr = op_setxattr,
	.getxattr = op_getxattr,
	.listxattr = op_listxattr,
	.removexattr = op_removexattr,
	.ioctl = op_ioctl,
};

/* --- mounting ----------------------------------------------------------------------------- */

/* libfuse says what went wrong on a log without context; the last line is kept for fs_mount(). */
static __thread char fuse_said[256];

static void on_fuse_log(enum fuse_log_level level, const char *fmt, va_list ap)
{
	vsnprintf(fuse_said, sizeof(fuse_said), fmt, ap);
	fuse_said[strcspn(fuse_said, "\n")] = '\0';
	if (!strncmp(fuse_said, "fuse: ", 6))
		memmove(fuse_said, fuse_said + 6, strlen(fuse_said + 6) + 1);
}

static bool option_has(const char *options, const char *name)
{
	size_t n = strlen(name);
	for (const char *p = options; p && *p;) {
		size_t len = strcspn(p, ",");
		if (len == n && !strncmp(p, name, n))
			return true;
		p += len;
		p += *p == ',';
	}
	return false;
}

static bool user_allow_other(void)
{
	SILT_FCLOSE FILE *f = fopen("/etc/fuse.conf", "re");
	char line[256];
	while (f && fgets(line, sizeof(line), f)) {
		char word[64];
		if (sscanf(line, " %63[a-z_]", word) == 1 && !strcmp(word, "user_allow_other"))
			return true;
	}
	return false;
}

static bool in_path(const char *program)
{
	const char *path = getenv("PATH");
	char file[4096];
	for (const char *p = path ? path : "/usr/bin:/bin"; *p;) {
		size_t len = strcspn(p, ":");
		snprintf(file, sizeof(file), "%.*s/%s", (int)len, p, program);
		if (access(file, X_OK) == 0)
			return true;
		p += len;
		p += *p == ':';
	}
	return false;
}

/* Finds the usual reasons before libfuse fails for them with less to say. */
static int check_mount(const struct fs_config *cfg, struct silt_err *err)
{
	const char *where = cfg->mountpoint;
	struct stat st;
	if (!strncmp(where, "/dev/fd/", 8))
		return 0; /* already mounted by whoever gave us the descriptor */
	if (access("/dev/fuse", F_OK) != 0)
		return silt_fail(
		        err, -ENODEV,
		        "/dev/fuse is missing; load the kernel module (modprobe fuse), or give "
		        "the container the device (--device /dev/fuse)");
	if (access("/dev/fuse", R_OK | W_OK) != 0)
		return silt_fail(err, -errno,
		                 "/dev/fuse may not be opened: %s; it needs mode 0666 or "
		                 "your group, and containers need the device allowed",
		                 strerror(errno));
	if (stat(where, &st) != 0) {
		if (errno == ENOTCONN)
			return silt_fail(err, -ENOTCONN,
			                 "%s is the mount point of a dead daemon; run "
			                 "'fusermount3 -u -z %s' first",
			                 where, where);
		return silt_fail(err, -errno, "mount point %s: %s%s", where, strerror(errno),
		                 errno == ENOENT ? "; create the directory first" : "");
	}
	if (!S_ISDIR(st.st_mode))
		return silt_fail(err, -ENOTDIR, "mount point %s is not a directory", where);
	if (geteuid() != 0 && !in_path("fusermount3"))
		return silt_fail(err, -ENOENT,
		                 "fusermount3 is not on the PATH and only root can mount "
		                 "without it; install the package fuse3");
	bool others = option_has(cfg->fuse_options, "allow_other") ||
	              option_has(cfg->fuse_options, "allow_root");
	if (geteuid() != 0 && others && !user_allow_other())
		return silt_fail(err, -EPERM,
		                 "allow_other is not permitted for users; add the line "
		                 "user_allow_other to /etc/fuse.conf, or mount without it");
	return 0;
}

/* A value of a mount option: libfuse splits options at commas. */
static void escape_option(const char *in, char *out, size_t size)
{
	size_t n = 0;
	for (; *in && n + 3 < size; in++) {
		if (*in == ',' || *in == '\\')
			out[n++] = '\\';
		out[n++] = *in;
	}
	out[n] = '\0';
}

static int session_new(struct fs *fs, struct silt_err *err)
{
	const struct fs_config *cfg = &fs->cfg;
	char source[512], options[2048];
	escape_option(fs->source, source, sizeof(source));
	int n = snprintf(options, sizeof(options),
	                 "fsname=%s,subtype=siltfs,default_permissions%s%s%s", source,
	                 cfg->read_only ? ",ro" : "",
	                 cfg->fuse_options && *cfg->fuse_options ? "," : "",
	                 cfg->fuse_options ? cfg->fuse_options : "");
	if (n >= (int)sizeof(options))
		return silt_fail(err, -E2BIG, "mount options are too long");
	char *argv[] = { "siltfs", "-o", options, NULL };
	struct fuse_args args = FUSE_ARGS_INIT(3, argv);
	fuse_said[0] = '\0';
	fuse_set_log_func(on_fuse_log);
	fs->se = fuse_session_new(&args, &operations, sizeof(operations), fs);
	fuse_opt_free_args(&args);
	if (!fs->se)
		return silt_fail(err, -EINVAL, "mount options '%s': %s", options,
		                 fuse_said[0] ? fuse_said : "not accepted");
	if (fuse_session_mount(fs->se, fs->mountpoint) != 0)
		return silt_fail(err, -EPERM, "mounting on %s failed: %s", fs->mountpoint,
		                 fuse_said[0] ? fuse_said
		                              : "see the message of fusermount3 above; is the "
		                                "directory yours, and may "
		                                "this container mount FUSE?");
	fs->mounted = true;
	if (coherence_open(fs, &fs->coherence) != 0)
		return silt_fail(err, -EAGAIN, "cannot start threads");
	if (transport_attach(fs) != 0)
		return silt_fail(err, -ENOMEM, "no memory");
	return 0;
}

static int parts_open(struct fs *fs, const struct fs_config *cfg)
{
	fs->cfg = *cfg;
	request_pool_init(&fs->requests);
	silt_lock_init(&fs->queue.lock);
	silt_lock_init(&fs->open_dirs.lock);
	silt_cond_init(&fs->queue.clean);
	atime_init(&fs->atimes);
	big_buffers_init(&fs->big_buffers);
	fs->pool.big = &fs->big_buffers;
	fs->pool.budget = cfg->buffer_size ? cfg->buffer_size : DEFAULT_BUFFER;
	fs->mountpoint = strdup(cfg->mountpoint);
	fs->source = strdup(cfg->source ? cfg->source : "siltfs");
	fs->control_path = cfg->control_path ? strdup(cfg->control_path) : NULL;
	if (!fs->mountpoint || !fs->source || (cfg->control_path && !fs->control_path))
		return -ENOMEM;
	int err = node_table_init(&fs->nodes);
	if (!err)
		err = fresh_table_init(&fs->fresh);
	if (!err)
		err = opened_table_init(&fs->opened);
	if (!err)
		err = dir_table_init(&fs->dirs);
	if (!err)
		err = flag_table_init(&fs->flags);
	if (!err)
		err = inval_open(fs);
	if (!err)
		err = janitor_open(fs, &fs->janitor);
	if (!err)
		err = fs_locks_open(fs);
	return err;
}

int fs_mount(const struct fs_config *cfg, struct fs **out, struct silt_err *err)
{
	int rc = check_mount(cfg, err);
	if (rc)
		return rc;
	struct fs *fs = calloc(1, sizeof(*fs));
	rc = fs ? parts_open(fs, cfg) : -ENOMEM;
	if (rc)
		silt_fail(err, rc, "starting the daemon failed: %s", strerror(-rc));
	else
		rc = session_new(fs, err);
	if (!rc && cfg->control_path) {
		struct control_config cc = { .path = fs->control_path,
			                     .meta = cfg->meta,
			                     .cache = cfg->cache,
			                     .store = cfg->store,
			                     .log = cfg->log,
			                     .metrics = cfg->metrics,
			                     .mountpoint = fs->mountpoint,
			                     .source = fs->source,
			                     .slot_size = cache_slot_size(cfg->cache) };
		rc = control_open(&cc, &fs->control, err);
	}
	if (rc) {
		fs_close(fs);
		return rc;
	}
	*out = fs;
	return 0;
}

/* --- serving ------------------------------------------------------------------------------ */

int fs_serve(struct fs *fs)
{
	struct fuse_loop_config *loop = fuse_loop_cfg_create();
	if (!loop)
		return -ENOMEM;
	unsigned threads = fs->cfg.max_threads ? fs->cfg.max_threads : DEFAULT_THREADS;
	fuse_loop_cfg_set_clone_fd(loop, 1);
	fuse_loop_cfg_set_max_threads(loop, threads);
	fuse_loop_cfg_set_idle_threads(loop, threads); /* never ended and started anew */
	int rc = fuse_session_loop_mt(fs->se, loop);
	fuse_loop_cfg_destroy(loop);
	if (rc > 0) /* a signal's number */
		rc = 0;
	if (rc < 0)
		silt_error(fs->cfg.log, "the FUSE loop ended with an error: %s", strerror(-rc));
	fs_unpark(fs, -EIO);
	atime_send(fs, 0);
	int err = fs_flush_all(fs);
	return err ? err : rc;
}

void fs_stop(struct fs *fs)
{
	fuse_session_exit(fs->se);
	janitor_stop(fs->janitor);
}

static size_t unfinished(struct fs *fs)
{
	return request_pool_live(&fs->requests) + atomic_load(&fs->background);
}

static void wait_for_requests(struct fs *fs)
{
	struct timespec tick = { .tv_nsec = 1000000 };
	size_t n;
	for (unsigned ms = 1; (n = unfinished(fs)) > 0; ms++) {
		nanosleep(&tick, NULL);
		if (ms % 5000 == 0)
			silt_warn(fs->cfg.log,
			          "unmounting waits for %zu requests to Redis or the store", n);
	}
}

void fs_close(struct fs *fs)
{
	if (!fs)
		return;
	if (fs->control)
		control_close(fs->control);
	fs_end_retries(fs);
	janitor_end(fs->janitor);
	if (fs->se) {
		fuse_session_exit(fs->se); /* late answers find no device; that is no error */
		if (fs->mounted)
			fuse_session_unmount(fs->se);
	}
	fs_locks_stop(fs);
	janitor_close(fs->janitor);
	coherence_stop(fs->coherence);
	wait_for_requests(fs);
	inval_close(fs);
	fs_locks_close(fs);
	if (fs->se)
		fuse_session_destroy(fs->se);
	coherence_close(fs->coherence);
	fs_close_dirs(fs);
	node_table_free(fs);
	fresh_table_free(&fs->fresh);
	opened_table_free(&fs->opened);
	dir_table_free(&fs->dirs);
	flag_table_free(&fs->flags);
	request_pool_free(&fs->requests);
	big_buffers_free(&fs->big_buffers);
	silt_cond_destroy(&fs->queue.clean);
	atime_destroy(&fs->atimes);
	silt_lock_destroy(&fs->queue.lock);
	silt_lock_destroy(&fs->open_dirs.lock);
	free(fs->mountpoint);
	free(fs->source);
	free(fs->control_path);
	free(fs);
}
