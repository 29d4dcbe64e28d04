/* The one helper thread of a mount. It answers interrupted requests, sends bytes that could not be
 * stored again, starts and ends the service:
 *
 * - A request whose caller got a signal is watched every TICK_MS. It is answered with EINTR when
 * its caller is being killed (SIGKILL is pending), or after a grace period that a healthy Redis or
 * object store never needs: programs that get SIGALRM, SIGCHLD or a profiler's signals don't expect
 * EINTR of stat(2) or unlink(2), but nothing may hang for good. Flushes get longer: an EINTR there
 * makes the caller wonder about its data. Who waits for a lock expects it: the wait is taken back at
 * once, and ends with EINTR as soon as Redis has confirmed that.
 * - fs_retry_due() says when it wants to run (unstored.c).
 * - After INIT: raises the mount's read-ahead (root only) and calls the owner's ready().
 * - fs_stop(): libfuse's loop looks at its exit flag only when it is woken; a request of our own
 * wakes it. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fs/fs_impl.h"
#include "meta/cleanup.h"

#define TICK_MS        50
#define GRACE_NS       ((uint64_t)2 * 1000000000u)
#define GRACE_FLUSH_NS ((uint64_t)30 * 1000000000u)
#define READAHEAD_KB   "1024"

struct watched {
	struct request *r;
	uint64_t serial, since;
	bool told; /* SETLKW: it is being taken back */
};

struct janitor {
	struct fs *fs;
	pthread_t thread;
	int wake; /* eventfd */
	atomic_bool stop, ready, quit;
	atomic_bool knocking; /* a request to our own mount is on its way */
	struct silt_lock lock; /* what follows */
	struct watched *v;
	size_t n, cap;
};

static void wake(struct janitor *j)
{
	uint64_t one = 1;
	ssize_t n = write(j->wake, &one, sizeof(one));
	(void)n;
}

void janitor_stop(struct janitor *j)
{
	atomic_store(&j->stop, true);
	wake(j);
}

void janitor_ready(struct janitor *j)
{
	atomic_store(&j->ready, true);
	wake(j);
}

void janitor_look(struct janitor *j)
{
	wake(j);
}

void janitor_interrupted(struct fs *fs, struct request *r, uint64_t serial)
{
	struct janitor *j = fs->janitor;
	silt_lock(&j->lock);
	if (j->n == j->cap) {
		size_t cap = j->cap ? j->cap * 2 : 64;
		struct watched *v = realloc(j->v, cap * sizeof(*v));
		if (v) {
			j->v = v;
			j->cap = cap;
		}
	}
	if (j->n < j->cap)
		j->v[j->n++] = (struct watched){ r, serial, silt_now_ns() };
	silt_unlock(&j->lock);
	wake(j);
}

/* Is SIGKILL on its way to this thread? A fatal signal with default action counts: the kernel turns
 * it into SIGKILL for every thread. */
static bool being_killed(pid_t tid)
{
	char path[64], line[256];
	snprintf(path, sizeof(path), "/proc/%d/status", (int)tid);
	SILT_FCLOSE FILE *f = tid > 0 ? fopen(path, "re") : NULL;
	if (!f)
		return false;
	while (fgets(line, sizeof(line), f)) {
		uint64_t mask;
		if (sscanf(line, "SigPnd: %" SCNx64, &mask) == 1 ||
		    sscanf(line, "ShdPnd: %" SCNx64, &mask) == 1)
			if (mask & ((uint64_t)1 << (SIGKILL - 1)))
				return true;
	}
	return false;
}

static bool is_over(const struct watched *w, uint64_t now)
{
	bool flush = w->r->kind == KIND_FLUSH || w->r->kind == KIND_FSYNC;
	return now - w->since > (flush ? GRACE_FLUSH_NS : GRACE_NS) || being_killed(w->r->pid);
}

/* Looks at every watched request once; returns how many are left. */
static size_t tick(struct janitor *j)
{
	struct watched todo[32];
	uint64_t waits[32];
	size_t ntodo = 0, nwaits = 0, left;
	uint64_t now = silt_now_ns();
	silt_lock(&j->lock);
	for (size_t i = 0; i < j->n;) {
		struct watched *w = &j->v[i];
		bool open = atomic_load(&w->r->claim) == w->serial * 2;
		if (open && w->r->kind == KIND_SETLKW && !w->told && nwaits < 32) {
			w->told = true;
			waits[nwaits++] = w->r->lock_id;
		}
		if (open && (ntodo == 32 || !is_over(w, now))) {
			i++;
			continue;
		}
		if (open)
			todo[ntodo++] = *w;
		*w = j->v[--j->n];
	}
	left = j->n;
	silt_unlock(&j->lock);
	/* Not under the lock: libfuse holds its own when it calls janitor_interrupted(). */
	for (size_t i = 0; i < nwaits; i++)
		fs_lock_interrupted(j->fs, waits[i]);
	for (size_t i = 0; i < ntodo; i++) {
		struct request *r = todo[i].r;
		fuse_req_t req = atomic_load(&r->req);
		if (req && request_claim_serial(r, todo[i].serial))
			fuse_reply_err(req, EINTR);
	}
	return left;
}

/* The device number of the mount, from mountinfo: a stat() would be a request to ourselves. */
static bool mount_device(const char *mountpoint, char dev[32])
{
	SILT_FCLOSE FILE *f = fopen("/proc/self/mountinfo", "re");
	SILT_FREE char *line = NULL;
	size_t cap = 0;
	bool found = false;
	while (f && getline(&line, &cap, f) > 0) {
		char d[32], where[4096];
		if (sscanf(line, "%*d %*d %31s %*s %4095s", d, where) == 2 &&
		    !strcmp(where, mountpoint)) {
			memcpy(dev, d, sizeof(d)); /* the last one is on top */
			found = true;
		}
	}
	return found;
}

/* The kernel caps read-ahead at 128 KiB for FUSE unless it is raised from outside. */
static void raise_readahead(struct fs *fs)
{
	char dev[32], path[96];
	if (!mount_device(fs->mountpoint, dev))
		return;
	snprintf(path, sizeof(path), "/sys/class/bdi/%s/read_ahead_kb", dev);
	SILT_FCLOSE FILE *f = fopen(path, "we");
	if (f && fputs(READAHEAD_KB, f) >= 0 && fflush(f) == 0) {
		size_t n = strlen(fs->features);
		snprintf(fs->features + n, sizeof(fs->features) - n,
		         " readahead=" READAHEAD_KB "k");
	}
}

/* Makes a thread of the FUSE loop return from its read, so that it sees that the session has ended. */
static void knock(struct janitor *j)
{
	char value[8];
	atomic_store(&j->knocking, true);
	if (!atomic_load(&j->quit)) {
		ssize_t rc = lgetxattr(j->fs->mountpoint, FS_XATTR_INODE, value, sizeof(value));
		(void)rc;
	}
	atomic_store(&j->knocking, false);
}

/* The loop may have ended by itself when we knock: then nobody would answer, and who joins the janitor's
 * thread would wait for ever. */
static void answer_knock(struct janitor *j)
{
	struct fuse_session *se = j->fs->se;
	struct fuse_buf buf = { 0 };
	while (atomic_load(&j->knocking)) {
		struct pollfd p = { .fd = fuse_session_fd(se), .events = POLLIN };
		if (poll(&p, 1, 10) > 0 && fuse_session_receive_buf(se, &buf) > 0)
			fuse_session_process_buf(se, &buf);
	}
	free(buf.mem);
}

static void *janitor_run(void *arg)
{
	struct janitor *j = arg;
	struct fs *fs = j->fs;
	int timeout = -1;
	while (!atomic_load(&j->quit)) {
		struct pollfd p = { .fd = j->wake, .events = POLLIN };
		uint64_t n;
		if (poll(&p, 1, timeout) > 0 && read(j->wake, &n, sizeof(n)) < 0)
			continue;
		timeout = fs_retry_due(fs);
		int due = atime_send_due(fs);
		if (due >= 0 && (timeout < 0 || timeout > due))
			timeout = due;
		if (tick(j) > 0 && (timeout < 0 || timeout > TICK_MS))
			timeout = TICK_MS;
		if (atomic_exchange(&j->ready, false)) {
			raise_readahead(fs);
			silt_info(fs->cfg.log, "serving %s: %s", fs->mountpoint, fs->features);
			if (fs->cfg.ready)
				fs->cfg.ready(fs->cfg.ready_arg, fs->features);
		}
		if (atomic_exchange(&j->stop, false))
			knock(j);
	}
	return NULL;
}

int janitor_open(struct fs *fs, struct janitor **out)
{
	struct janitor *j = calloc(1, sizeof(*j));
	if (!j)
		return -ENOMEM;
	j->fs = fs;
	silt_lock_init(&j->lock);
	j->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int rc = j->wake < 0 ? errno : 0;
	if (!rc) {
		/* Signals are for the threads of the daemon's owner. */
		sigset_t all, old;
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &old);
		rc = pthread_create(&j->thread, NULL, janitor_run, j);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
	if (rc) {
		if (j->wake >= 0)
			close(j->wake);
		free(j);
		return -rc;
	}
	*out = j;
	return 0;
}

void janitor_end(struct janitor *j)
{
	if (!j)
		return;
	atomic_store(&j->quit, true);
	answer_knock(j);
	wake(j);
}

void janitor_close(struct janitor *j)
{
	if (!j)
		return;
	pthread_join(j->thread, NULL);
	close(j->wake);
	silt_lock_destroy(&j->lock);
	free(j->v);
	free(j);
}
