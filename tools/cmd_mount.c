/* siltfs mount: checks what can be checked at once, forks the daemon, waits until it serves.
 *
 *	parent                          child (or the same process with -f)
 *	parse, check the mount point
 *	fork ---------------------->	setsid, log, Redis, store, cache, FUSE
 *	read the pipe  <-----------	one byte 'R' when the kernel was answered, or the reason
 *	exit 0 or 1			serve, flush, close in order
 *
 * A signal that ends the parent before that ends the daemon too (background.h).
 *
 * Everything that has threads is opened after the fork. The status of a daemon's end has no parent
 * to go to: when data could not be stored it is left in CONTROL_SOCKET.failed, where `siltfs
 * umount`, which waits for the end, finds it. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/worker.h"
#include "fs/fs.h"
#include "meta/cleanup.h"
#include "tools/background.h"
#include "tools/cli.h"
#include "tools/guard.h"
#include "tools/mount_paths.h"
#include "tools/options.h"
#include "tools/volume.h"

enum { MOUNT_USAGE = 1, MOUNT_FAILED = 32 }; /* exit statuses of mount(8) */

struct mount {
	const char *address;
	const char *mountpoint; /* as given */
	char real[PATH_MAX];
	char control[108];
	char log_path[PATH_MAX];
	char cache_dir[PATH_MAX]; /* "": none */
	char fuse[OPTIONS_FUSE_MAX + 128];
	struct mount_options options;
	bool foreground;
	int report_fd; /* the daemon's end of the pipe, -1: none */
	bool reported;
	struct silt_log *log;
	struct silt_metrics metrics;
	struct volume *volume;
	struct cache *cache;
	struct worker *worker; /* NULL: read-only */
	struct fs *fs;
};

/* --- Signals ---------------------------------------------------------------------------- */

/* A signal handler gets no context, so these are shared by the process. */
static struct fs *_Atomic signalled_fs;
static atomic_bool stop_early; /* a signal came before there was a mount */
static atomic_bool mounting;   /* from here on a mount may be left behind */

static void on_signal(int sig)
{
	struct fs *fs = atomic_load(&signalled_fs);
	if (fs)
		fs_stop(fs);
	else if (atomic_exchange(&stop_early, true) && !atomic_load(&mounting))
		_exit(128 + sig); /* the second: Redis or the store don't answer */
}

static void catch_signals(void)
{
	/* No SA_RESTART: the thread that waits in fs_serve() has to notice. */
	struct sigaction sa = { .sa_handler = on_signal };
	struct sigaction ignore = { .sa_handler = SIG_IGN };
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
	sigaction(SIGPIPE, &ignore, NULL);
}

/* Between the steps of opening. */
static int check_stopped(struct silt_err *err)
{
	return atomic_load(&stop_early)
	               ? silt_fail(err, -EINTR, "ended by a signal before it was mounted")
	               : 0;
}

/* --- Telling the parent ----------------------------------------------------------------- */

static void report(struct mount *m, const char *text)
{
	ssize_t n = -1;
	if (m->report_fd >= 0) {
		n = write(m->report_fd, text, strlen(text));
		close(m->report_fd);
		m->report_fd = -1;
	}
	if (n < 0 && m->foreground && strcmp(text, "R") != 0)
		cli_fail(0, "%s", text);
	m->reported = true;
}

static void leave_terminal(void)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int i = 0; i < 3 && fd >= 0; i++)
		dup2(fd, i);
	if (fd > 2)
		close(fd);
}

static void on_ready(void *arg, const char *features)
{
	struct mount *m = arg;
	report(m, "R");
	if (!m->foreground)
		leave_terminal();
}

/* --- The daemon ------------------------------------------------------------------------- */

static int open_log(struct mount *m, struct silt_err *err)
{
	const struct mount_options *o = &m->options;
	const char *cache_dir = o->cache_dir && strcmp(o->cache_dir, "none") ? o->cache_dir : NULL;
	const char *path = o->log;
	int rc = 0;

	if (!path && !m->foreground) {
		rc = default_log(cache_dir, m->real, m->log_path, sizeof(m->log_path), err);
		path = m->log_path;
	}
	if (rc < 0)
		return rc;
	rc = silt_log_open(path, o->log_level, o->debug, &m->log);
	return rc < 0 ? silt_fail(err, rc,
	                          "can't open the log %s: %s; give -o log=FILE or "
	                          "-o log=syslog",
	                          path ? path : "(stderr)", strerror(-rc))
	              : 0;
}

static int open_volume(struct mount *m, struct silt_err *err)
{
	const struct mount_options *o = &m->options;
	char host[256] = "", info[PATH_MAX + 512], escaped[PATH_MAX * 2];
	size_t n = 0;
	int rc;

	gethostname(host, sizeof(host) - 1);
	for (const char *p = m->real; *p && n + 2 < sizeof(escaped); p++) {
		if (*p == '"' || *p == '\\')
			escaped[n++] = '\\';
		escaped[n++] = (unsigned char)*p < ' ' ? '?' : *p;
	}
	escaped[n] = '\0';
	snprintf(
	        info, sizeof(info),
	        "{\"host\":\"%s\",\"pid\":%d,\"mountpoint\":\"%.4096s\",\"version\":\"" SILT_VERSION
	        "\"}",
	        host, (int)getpid(), escaped);
	struct volume_config vc = {
		.address = m->address,
		.log = m->log,
		.metrics = &m->metrics,
		.want_store = true,
		.credentials = o->credentials,
		.ca_file = o->ca_file,
		.region = o->region,
		.session = true,
		.session_info = info,
		.meta_cache = o->meta_cache,
		.relaxed = o->relaxed,
		.wait_ms = (unsigned)o->redis_wait * 1000,
		.heartbeat_ms = (unsigned)(o->heartbeat * 1000),
	};
	if ((rc = volume_open(&vc, &m->volume, err)) < 0)
		return rc;
	silt_info(m->log, "siltfs " SILT_VERSION ": volume %s at %s",
	          meta_volume(m->volume->meta)->name, m->volume->address.shown);
	rc = o->read_only ? 0 : store_check(m->volume->store, "check/", err);
	/* The counters tell of the mount's work, not of the checks before it. */
	for (int i = M_STORE_PUTS; i <= M_STORE_ERRORS; i++)
		silt_gauge(&m->metrics, (enum silt_metric)i, 0);
	return rc;
}

static int open_cache(struct mount *m, struct silt_err *err)
{
	const struct mount_options *o = &m->options;
	const struct meta_volume *mv = meta_volume(m->volume->meta);
	int rc = 0;

	if (!o->cache_dir)
		rc = default_cache_dir(mv->id, m->cache_dir, sizeof(m->cache_dir), err);
	else if (strcmp(o->cache_dir, "none") != 0)
		snprintf(m->cache_dir, sizeof(m->cache_dir), "%s", o->cache_dir);
	if (rc == 0 && m->cache_dir[0] && (rc = make_folders(m->cache_dir, 0700)) < 0)
		silt_fail(err, rc, "can't make the cache directory %s: %s", m->cache_dir,
		          strerror(-rc));
	if (rc < 0)
		return rc;
	struct cache_config cc = {
		.store = m->volume->store,
		.meta = m->volume->meta,
		.log = m->log,
		.metrics = &m->metrics,
		.volume = mv->id,
		.cache_dir = m->cache_dir[0] ? m->cache_dir : NULL,
		.cache_size = o->cache_size,
		.free_ratio = o->free_ratio,
		.memory_size = o->memory_size,
		.compress_level = o->compress_level >= 0 ? o->compress_level : mv->compress_level,
		.upload_threads = (unsigned)o->upload_threads,
		.fetch_threads = (unsigned)o->fetch_threads,
		.group_window_us = (unsigned)o->group_window_us,
		.cache_writes = o->cache_writes,
	};
	return cache_open(&cc, &m->cache, err);
}

static int open_worker(struct mount *m, struct silt_err *err)
{
	struct worker_config wc = {
		.store = m->volume->store,
		.meta = m->volume->meta,
		.log = m->log,
		.metrics = &m->metrics,
		.grace_ms = (uint64_t)(m->options.delete_grace * 1000),
		.compact_rate = m->options.compact_rate,
		.compress_level = m->options.compress_level >= 0 ? m->options.compress_level
		                                                 : meta_volume(m->volume->meta)->compress_level,
		.compact_wait_ms = (uint64_t)(m->options.compact_wait * 1000),
	};
	if (m->options.read_only)
		return 0;
	uint64_t soonest = wc.grace_ms < wc.compact_wait_ms ? wc.grace_ms : wc.compact_wait_ms;
	if (soonest < 10000)
		wc.interval_ms = (unsigned)soonest / 2;
	int rc = worker_open(&wc, &m->worker);
	return rc < 0 ? silt_fail(err, rc, "can't start a thread: %s", strerror(-rc)) : 0;
}

static int open_fs(struct mount *m, struct silt_err *err)
{
	const struct mount_options *o = &m->options;
	struct fs_config fc = {
		.meta = m->volume->meta,
		.cache = m->cache,
		.store = m->volume->store,
		.log = m->log,
		.metrics = &m->metrics,
		.source = m->volume->address.shown,
		.mountpoint = m->real,
		.control_path = m->control,
		.fuse_options = m->fuse,
		.attr_timeout = o->attr_timeout,
		.entry_timeout = o->entry_timeout,
		.dir_entry_timeout = o->dir_entry_timeout,
		.buffer_size = o->buffer_size,
		.max_threads = (unsigned)o->threads,
		.read_only = o->read_only,
		.atime = o->strictatime ? FS_STRICTATIME : o->relatime ? FS_RELATIME : FS_NOATIME,
		.ready = on_ready,
		.ready_arg = m,
	};
	int rc = control_socket_path(m->control, sizeof(m->control), err);
	atomic_store(&mounting, true);
	if (rc < 0 || (rc = check_stopped(err)) < 0)
		return rc;
	if ((rc = fs_mount(&fc, &m->fs, err)) < 0)
		return rc;
	atomic_store(&signalled_fs, m->fs);
	if (atomic_load(&stop_early))
		fs_stop(m->fs);
	return 0;
}

/* Leaves word for `siltfs umount` that data was lost. */
static void leave_word(struct mount *m)
{
	char path[128];
	snprintf(path, sizeof(path), "%s.failed", m->control);
	SILT_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	dprintf(fd, "some written data could not be stored; see %s\n",
	        m->options.log   ? m->options.log
	        : m->log_path[0] ? m->log_path
	                         : "the daemon's stderr");
}

static int open_parts(struct mount *m, struct silt_err *err)
{
	int rc = open_log(m, err);

	if (rc == 0)
		rc = open_volume(m, err);
	if (rc == 0)
		rc = check_stopped(err);
	if (rc == 0)
		rc = open_cache(m, err);
	if (rc == 0)
		rc = open_worker(m, err);
	if (rc == 0)
		rc = open_fs(m, err);
	/* What failed because a signal interrupted it would be told as something else. */
	return rc < 0 && check_stopped(err) < 0 ? -EINTR : rc;
}

static int serve(struct mount *m)
{
	struct silt_err err = { 0 };
	guard_start(m->real);
	int rc = open_parts(m, &err);

	if (rc < 0) {
		const char *why = err.text[0] ? err.text : strerror(-rc);
		if (rc == -EINTR)
			silt_info(m->log, "%s", why);
		else if (m->options.log || !m->foreground)
			silt_error(m->log, "mount failed: %s", why);
		report(m, why);
	} else {
		rc = fs_serve(m->fs);
		if (rc < 0 && m->reported)
			leave_word(m);
		else if (rc < 0)
			report(m, "the mount ended before it served; see the log");
	}
	atomic_store(&signalled_fs, NULL);
	if (m->fs)
		fs_close(m->fs);
	if (m->cache)
		cache_close(m->cache);
	worker_close(m->worker);
	volume_close(m->volume);
	if (!m->reported)
		report(m, "the mount was ended before it served");
	if (m->log)
		silt_info(m->log, "ended");
	silt_log_close(m->log);
	return rc < 0 ? CLI_FAILED : CLI_OK;
}

/* In the background: `signals` may come when they are caught. */
static int be_daemon(void *arg, int report_fd, const sigset_t *signals)
{
	struct mount *m = arg;
	m->report_fd = report_fd;
	catch_signals();
	sigprocmask(SIG_SETMASK, signals, NULL);
	return serve(m);
}

/* --- Arguments -------------------------------------------------------------------------- */

static void help(void)
{
	fputs("Usage: siltfs mount ADDRESS MOUNTPOINT [-f] [-o OPTION[,OPTION...]]\n"
	      "Mount the volume whose metadata is at ADDRESS (see siltfs format --help). Returns 0 "
	      "when\n"
	      "the mount serves requests; otherwise says why not. Interrupted before, it mounts "
	      "nothing.\n"
	      "\n"
	      "  -f, --foreground   stay in the foreground; log to stderr\n"
	      "  -o OPTIONS         comma-separated:\n"
	      "\n",
	      stdout);
	options_help(stdout);
	fputs("\nfstab: ADDRESS MOUNTPOINT siltfs _netdev,OPTIONS 0 0\n", stdout);
}

/* The command line of a daemon is there for everybody to read: take a password out of it. */
static void hide_password(char *text, const struct meta_address *a)
{
	size_t len = strlen(text);
	if (a->kind != META_ADDRESS_TCP || !strchr(text, '@'))
		return;
	explicit_bzero(text, len);
	strncpy(text, a->shown, len);
}

static int run(struct mount *m, char **names, int count)
{
	struct silt_err err = { 0 };
	struct meta_address address;

	if (count != 2)
		return cli_usage("mount", "mount takes an ADDRESS and a MOUNTPOINT");
	if (meta_address_parse(names[0], &address, &err) < 0)
		return cli_fail(CLI_USAGE, "%s", err.text);
	/* A daemon's current directory is /, so local: has to be absolute. */
	SILT_FREE char *own = strdup(address.kind == META_ADDRESS_LOCAL ? address.shown : names[0]);
	if (own)
		hide_password(names[0], &address);
	meta_address_free(&address);
	if (!own)
		return cli_fail(CLI_FAILED, "out of memory");
	m->address = own;
	m->mountpoint = names[1];
	if (check_mountpoint(m->mountpoint, m->real, sizeof(m->real), &err) < 0)
		return cli_fail(CLI_FAILED, "%s", err.text);
	if (options_fuse(&m->options, geteuid() == 0, m->fuse, sizeof(m->fuse)) < 0)
		return cli_fail(CLI_USAGE, "too many mount options");
	if (!m->foreground)
		return background_start(be_daemon, m);
	catch_signals();
	return serve(m);
}

int cmd_mount(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "foreground", no_argument, NULL, 'f' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	SILT_FREE struct mount *m = calloc(1, sizeof(*m));
	struct silt_err err = { 0 };
	int opt, rc;

	/* Buffers of a megabyte come and go with every large read and write: fresh pages for each
	 * cost more than the copy into them. */
	mallopt(M_MMAP_THRESHOLD, 8 << 20);
	mallopt(M_TRIM_THRESHOLD, 64 << 20);
	if (!m)
		return cli_fail(CLI_FAILED, "out of memory");
	m->report_fd = -1;
	options_init(&m->options);
	opterr = 0;
	while ((opt = getopt_long(argc, argv, "fo:h", longs, NULL)) != -1) {
		if (opt == 'f') {
			m->foreground = true;
		} else if (opt == 'o' && options_parse(&m->options, optarg, false, &err) < 0) {
			options_free(&m->options);
			return cli_fail(CLI_USAGE, "%s", err.text);
		} else if (opt != 'o') {
			options_free(&m->options);
			if (opt == '?')
				return cli_usage("mount", "unknown option or no value: %s",
				                 argv[optind - 1]);
			help();
			return CLI_OK;
		}
	}
	rc = run(m, argv + optind, argc - optind);
	options_free(&m->options);
	return rc;
}

/* mount(8) calls mount.siltfs ADDRESS MOUNTPOINT [-sfnv] [-o OPTIONS]; its -f means "fake". */
int cmd_mount_helper(int argc, char **argv)
{
	SILT_FREE struct mount *m = calloc(1, sizeof(*m));
	const char *lists[16];
	struct silt_err err = { 0 };
	bool fake = false, sloppy = false;
	int opt, rc = 0, n = 0;

	if (!m)
		return cli_fail(CLI_FAILED, "out of memory");
	m->report_fd = -1;
	options_init(&m->options);
	opterr = 0;
	while ((opt = getopt(argc, argv, "sfnvt:o:")) != -1) {
		fake |= opt == 'f';
		sloppy |= opt == 's';
		if (opt == 'o' && n < 16)
			lists[n++] = optarg;
		else if (opt == '?' || opt == 'o')
			rc = cli_fail(CLI_USAGE, "usage: mount.siltfs ADDRESS MOUNTPOINT [-sfnv] "
			                         "[-o OPTIONS]");
	}
	for (int i = 0; i < n && rc == 0; i++)
		if (options_parse(&m->options, lists[i], sloppy, &err) < 0)
			rc = cli_fail(CLI_USAGE, "%s", err.text);
	if (rc == 0 && !fake)
		rc = run(m, argv + optind, argc - optind);
	options_free(&m->options);
	return rc == CLI_OK ? 0 : rc == CLI_USAGE ? MOUNT_USAGE : MOUNT_FAILED;
}
