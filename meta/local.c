/* The embedded Redis of `local:DIR` (life and files: local.h).
 *
 * Who may do what is decided by three file locks, never by files that a crash leaves behind:
 *
 *	start.lock	whoever starts or stops the server holds it exclusively; so starts and stops
 *			never overlap
 *	users.lock	every user holds it shared; who gets it exclusively is the last one
 *	server.lock	the server itself holds it: it inherits the locked descriptor, so the kernel
 *lets go of it exactly when the server's last process is gone
 *
 * So a free server.lock means: nothing writes the append-only file, start a server (it replaces a
 * stale socket). A held one means: a server lives, wait until it answers. A pid file or socket of a
 * crashed server changes nothing. On a shared file system the locks also keep a second host from
 * starting a second server over the same append-only file.
 *
 * The server runs in DIR with relative names, so the length of DIR does not matter to it; clients
 * reach a socket whose name is too long for sockaddr_un through a descriptor of DIR in
 * /proc/self/fd, which stays open until meta_local_close(). */
#include "meta/local.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "meta/cleanup.h"
#include "meta/lock.h"

#define LOCK_WAIT_MS  120000 /* for another starter or stopper */
#define START_WAIT_MS 600000 /* for a server that loads a large append-only file */
#define MUTE_WAIT_MS  60000  /* for a server that holds its lock but answers nothing */
#define STOP_WAIT_MS  60000
#define REVIVE_MS     5000 /* between two attempts */

struct meta_local {
	char *dir;
	char *socket_path;
	int dir_fd;
	int users_fd;
	uint64_t revived; /* silt_now_ns() of the last attempt */
	struct silt_log *log;
};

static const char redis_conf[] =
        "# Written by siltfs each time it starts this server; changes are lost.\n"
        "port 0\n"
        "unixsocket redis.sock\n"
        "unixsocketperm 700\n"
        "daemonize no\n"
        "supervised no\n"
        "pidfile redis.pid\n"
        "logfile redis.log\n"
        "dir .\n"
        "appendonly yes\n"
        "appendfsync everysec\n"
        "aof-load-truncated yes\n"
        "save \"\"\n"
        "stop-writes-on-bgsave-error no\n"
        "maxmemory-policy noeviction\n"
        "hash-max-listpack-entries 256\n"
        "hash-max-listpack-value 512\n"
        "enable-debug-command no\n"
        "enable-module-command no\n"
        "enable-protected-configs no\n";

static void pause_ms(int ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };
	nanosleep(&ts, NULL);
}

static uint64_t deadline_after(int ms)
{
	return silt_now_ns() + (uint64_t)ms * 1000000u;
}

/* --- Locks ---------------------------------------------------------------------------------------
 */

static int open_lock(struct meta_local *l, const char *name, struct silt_err *err)
{
	int fd = openat(l->dir_fd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return silt_fail(err, -errno,
		                 "can't open %s/%s: %s; local: needs a directory you own", l->dir,
		                 name, strerror(errno));
	return fd;
}

/* Takes a lock within `wait_ms`; -EWOULDBLOCK when others kept it. */
static int take_lock(int fd, int how, int wait_ms)
{
	uint64_t end = deadline_after(wait_ms);
	for (;;) {
		if (flock(fd, how | LOCK_NB) == 0)
			return 0;
		if (errno != EWOULDBLOCK && errno != EINTR)
			return -errno;
		if (silt_now_ns() >= end)
			return -EWOULDBLOCK;
		pause_ms(10);
	}
}

/* --- Talking to the server -----------------------------------------------------------------------
 */

static int dial(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	SILT_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct timeval limit = { .tv_sec = 5 };

	if (fd < 0)
		return -errno;
	if (strlen(path) >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	strcpy(sa.sun_path, path);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return -errno;
	int out = fd;
	fd = -1;
	return out;
}

/* Sends an inline command and puts the first line of the reply into `reply`. */
static int ask(int fd, const char *command, char *reply, size_t size)
{
	size_t n = 0;
	if (send(fd, command, strlen(command), MSG_NOSIGNAL) != (ssize_t)strlen(command))
		return -EPIPE;
	while (n + 1 < size) {
		ssize_t got = recv(fd, reply + n, 1, 0);
		if (got <= 0)
			return got == 0 ? -EPIPE : -errno;
		if (reply[n] == '\n')
			break;
		n++;
	}
	reply[n] = '\0';
	return 0;
}

/* 0: the server serves; -EAGAIN: it lives but is not ready; another error: nobody answers. */
static int ping(const struct meta_local *l)
{
	char reply[128];
	SILT_CLOSE int fd = dial(l->socket_path);
	if (fd < 0)
		return fd;
	int rc = ask(fd, "PING\r\n", reply, sizeof(reply));
	if (rc < 0)
		return rc;
	return strncmp(reply, "+PONG", 5) == 0 ? 0 : -EAGAIN;
}

/* --- Starting ------------------------------------------------------------------------------------
 */

static char *find_program(const char *name)
{
	const char *path = getenv("PATH");
	SILT_FREE char *copy = strdup(path && *path ? path : "/usr/local/bin:/usr/bin:/bin");
	char *rest = copy, *out, *dir;

	while (copy && (dir = strsep(&rest, ":"))) {
		if (asprintf(&out, "%s/%s", *dir ? dir : ".", name) < 0)
			return NULL;
		if (access(out, X_OK) == 0)
			return out;
		free(out);
	}
	return NULL;
}

static int write_conf(struct meta_local *l, struct silt_err *err)
{
	static const char temp[] = "redis.conf.new";
	ssize_t len = (ssize_t)sizeof(redis_conf) - 1;
	SILT_CLOSE int fd = openat(l->dir_fd, temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, redis_conf, (size_t)len) != len ||
	    renameat(l->dir_fd, temp, l->dir_fd, "redis.conf") < 0) {
		int rc = errno ? -errno : -EIO;
		return silt_fail(err, rc, "can't write %s/redis.conf: %s", l->dir, strerror(-rc));
	}
	return 0;
}

/* Becomes the server; async-signal-safe calls only. The server keeps descriptor 3, its lock. */
static void become_server(int dir_fd, int lock_fd, int log_fd, int status_fd, char *program)
{
	char *argv[] = { program, (char *)"redis.conf", NULL };
	struct sigaction deflt = { .sa_handler = SIG_DFL };
	sigset_t none;
	int null_fd = open("/dev/null", O_RDWR);

	/* Above 9, so that the dup2() calls below overwrite nothing that is still needed. */
	lock_fd = fcntl(lock_fd, F_DUPFD, 10);
	status_fd = fcntl(status_fd, F_DUPFD, 10);
	log_fd = fcntl(log_fd, F_DUPFD, 10);
	setsid();
	for (int s = 1; s < 32; s++)
		sigaction(s, &deflt, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	umask(077);
	if (null_fd >= 0 && fchdir(dir_fd) == 0 && dup2(null_fd, 0) == 0 && dup2(log_fd, 1) == 1 &&
	    dup2(log_fd, 2) == 2 && dup2(lock_fd, 3) == 3 && dup2(status_fd, 4) == 4) {
		fcntl(4, F_SETFD, FD_CLOEXEC);
		if (syscall(SYS_close_range, 5u, ~0u, 0u) < 0)
			for (int fd = 5; fd < 1024; fd++)
				close(fd);
		execv(program, argv);
		status_fd = 4;
	}
	int code = -errno;
	if (write(status_fd, &code, sizeof(code)) < 0)
		code = 0;
	_exit(127);
}

struct start_report {
	pid_t pid;
	int code; /* errno of the exec, 0: it went well */
};

/* Starts the server as a grandchild, so that nobody has to reap it. */
static int spawn(struct meta_local *l, char *program, int lock_fd, struct start_report *report)
{
	int pipe_fd[2];
	if (pipe2(pipe_fd, O_CLOEXEC) < 0)
		return -errno;
	SILT_CLOSE int in = pipe_fd[0];
	int out = pipe_fd[1];
	SILT_CLOSE int log_fd =
	        openat(l->dir_fd, "redis.log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	pid_t pid = log_fd < 0 ? -1 : fork();
	if (pid < 0) {
		int rc = -errno;
		close(out);
		return rc;
	}
	if (pid == 0) {
		pid_t server = fork();
		if (server == 0)
			become_server(l->dir_fd, lock_fd, log_fd, out, program);
		int word = server > 0 ? server : -errno;
		_exit(write(out, &word, sizeof(word)) == sizeof(word) ? 0 : 1);
	}
	close(out);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	/* At most two words, in any order: the server's pid, and the negated errno of what failed.
	 */
	int words[2] = { 0, 0 };
	size_t n = 0;
	while (n < sizeof(words)) {
		ssize_t got = read(in, (char *)words + n, sizeof(words) - n);
		if (got == 0 || (got < 0 && errno != EINTR))
			break;
		n += got > 0 ? (size_t)got : 0;
	}
	for (int i = 0; i < 2; i++) {
		if (words[i] > 0)
			report->pid = words[i];
		else if (words[i] < 0)
			report->code = -words[i];
	}
	if (report->pid == 0)
		return report->code ? -report->code : -EAGAIN;
	return 0;
}

/* The last line of the server's log, for messages. */
static void last_log_line(struct meta_local *l, char *out, size_t size)
{
	char tail[2048];
	SILT_CLOSE int fd = openat(l->dir_fd, "redis.log", O_RDONLY | O_CLOEXEC);
	struct stat st;
	out[0] = '\0';
	if (fd < 0 || fstat(fd, &st) < 0)
		return;
	off_t at = st.st_size > (off_t)sizeof(tail) - 1 ? st.st_size - (off_t)sizeof(tail) + 1 : 0;
	ssize_t n = pread(fd, tail, sizeof(tail) - 1, at);
	while (n > 0 && tail[n - 1] == '\n')
		n--;
	if (n <= 0)
		return;
	tail[n] = '\0';
	const char *line = strrchr(tail, '\n');
	snprintf(out, size, "%.*s", (int)size - 1, line ? line + 1 : tail);
}

/* Waits until the server answers or its process is gone. */
static int wait_until_serving(struct meta_local *l, pid_t pid, struct silt_err *err)
{
	SILT_CLOSE int pidfd = (int)syscall(SYS_pidfd_open, pid, 0u);
	uint64_t end = deadline_after(START_WAIT_MS), begin = silt_now_ns();
	bool gone = pidfd < 0 && errno == ESRCH, said = false;
	char line[256];

	while (!gone && silt_now_ns() < end) {
		if (ping(l) == 0)
			return 0;
		if (!said && silt_now_ns() - begin > 5000000000u) {
			silt_info(l->log, "waiting for the redis-server in %s to load its data",
			          l->dir);
			said = true;
		}
		if (pidfd >= 0) {
			struct pollfd p = { .fd = pidfd, .events = POLLIN };
			gone = poll(&p, 1, 10) > 0;
		} else {
			pause_ms(10);
			gone = kill(pid, 0) < 0 && errno == ESRCH;
		}
	}
	last_log_line(l, line, sizeof(line));
	if (!gone)
		return silt_fail(err, -ETIMEDOUT,
		                 "the redis-server in %s loads its data for more "
		                 "than %d s; see redis.log there",
		                 l->dir, START_WAIT_MS / 1000);
	return silt_fail(err, -EIO, "the redis-server in %s ended at once; see redis.log there%s%s",
	                 l->dir, *line ? ": " : "", line);
}

/* Starts the program; who wants to know whether it serves has to wait for that. */
static int launch(struct meta_local *l, int lock_fd, struct start_report *report,
                  struct silt_err *err)
{
	SILT_FREE char *program = find_program("redis-server");
	int rc;

	if (!program)
		return silt_fail(err, -ENOEXEC,
		                 "local: needs redis-server, which is not on the PATH; "
		                 "install the package redis-server (Debian) or valkey");
	if ((rc = write_conf(l, err)) < 0)
		return rc;
	if ((rc = spawn(l, program, lock_fd, report)) < 0)
		return silt_fail(err, rc, "can't start %s: %s", program, strerror(-rc));
	if (report->code)
		return silt_fail(err, -ENOEXEC, "can't run %s: %s", program,
		                 strerror(report->code));
	return 0;
}

static int start_server(struct meta_local *l, int lock_fd, struct silt_err *err)
{
	struct start_report report = { 0 };
	int rc = launch(l, lock_fd, &report, err);

	if (rc < 0)
		return rc;
	if ((rc = wait_until_serving(l, report.pid, err)) < 0)
		return rc;
	silt_info(l->log, "started redis-server (pid %d) in %s", (int)report.pid, l->dir);
	return 0;
}

/* Makes sure that a server runs; the caller holds start.lock. */
static int ensure_server(struct meta_local *l, struct silt_err *err)
{
	SILT_CLOSE int lock_fd = open_lock(l, "server.lock", err);
	uint64_t mute_end = deadline_after(MUTE_WAIT_MS), end = deadline_after(START_WAIT_MS);

	if (lock_fd < 0)
		return lock_fd;
	for (;;) {
		int rc = ping(l);
		if (rc == 0)
			return 0;
		if (flock(lock_fd, LOCK_EX | LOCK_NB) == 0)
			return start_server(l, lock_fd, err);
		if (errno != EWOULDBLOCK)
			return silt_fail(err, -errno, "can't lock %s/server.lock: %s", l->dir,
			                 strerror(errno));
		if (rc == -EACCES || rc == -EPERM)
			return silt_fail(err, rc,
			                 "may not connect to %s/redis.sock: the server there "
			                 "belongs to another user",
			                 l->dir);
		if (silt_now_ns() > (rc == -EAGAIN ? end : mute_end))
			return silt_fail(
			        err, -ETIMEDOUT,
			        "a redis-server holds %s/server.lock but "
			        "does not answer on redis.sock: it runs on another host or "
			        "hangs; stop it (pid in redis.pid)",
			        l->dir);
		pause_ms(10);
	}
}

/* --- Stopping ------------------------------------------------------------------------------------
 */

static void stop_server(struct meta_local *l)
{
	char reply[256];
	SILT_CLOSE int fd = dial(l->socket_path);
	SILT_CLOSE int lock_fd = openat(l->dir_fd, "server.lock", O_RDWR | O_CLOEXEC);

	if (fd < 0 || lock_fd < 0)
		return; /* it crashed, or is gone with its directory */
	/* A success is the end of the connection; only a refusal is answered. */
	if (ask(fd, "SHUTDOWN\r\n", reply, sizeof(reply)) == 0)
		silt_warn(l->log, "the redis-server in %s refused to stop: %s", l->dir, reply);
	else if (take_lock(lock_fd, LOCK_EX, STOP_WAIT_MS) < 0)
		silt_warn(l->log, "the redis-server in %s still runs %d s after SHUTDOWN", l->dir,
		          STOP_WAIT_MS / 1000);
	else
		silt_info(l->log, "stopped the redis-server in %s", l->dir);
}

/* --- The public calls ----------------------------------------------------------------------------
 */

static void free_local(struct meta_local *l)
{
	if (!l)
		return;
	silt_cleanup_fd(&l->users_fd);
	silt_cleanup_fd(&l->dir_fd);
	free(l->dir);
	free(l->socket_path);
	free(l);
}

static void cleanup_local(struct meta_local **l)
{
	free_local(*l);
}

/* mkdir -p, the last component for the owner alone. */
static int make_dirs(char *path)
{
	for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		int rc = mkdir(path, 0755) < 0 && errno != EEXIST ? -errno : 0;
		*slash = '/';
		if (rc < 0)
			return rc;
	}
	return mkdir(path, 0700) < 0 && errno != EEXIST ? -errno : 0;
}

static int open_dir(struct meta_local *l, int create, struct silt_err *err)
{
	int rc = create ? make_dirs(l->dir) : 0;
	if (rc < 0)
		return silt_fail(err, rc, "can't make the directory %s: %s", l->dir, strerror(-rc));
	l->dir_fd = open(l->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (l->dir_fd < 0 && errno == ENOENT)
		return silt_fail(err, -ENOENT,
		                 "no directory %s; make a volume first: siltfs format "
		                 "local:%s NAME",
		                 l->dir, l->dir);
	if (l->dir_fd < 0)
		return silt_fail(err, -errno, "can't open the directory %s: %s", l->dir,
		                 strerror(errno));
	if (asprintf(&l->socket_path, "%s/redis.sock", l->dir) < 0)
		l->socket_path = NULL;
	if (l->socket_path &&
	    strlen(l->socket_path) >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
		free(l->socket_path);
		if (asprintf(&l->socket_path, "/proc/self/fd/%d/redis.sock", l->dir_fd) < 0)
			l->socket_path = NULL;
	}
	return l->socket_path ? 0 : silt_fail(err, -ENOMEM, "out of memory");
}

int meta_local_open(const char *dir, int create, struct silt_log *log, struct meta_local **out,
                    struct silt_err *err)
{
	__attribute__((cleanup(cleanup_local))) struct meta_local *l = calloc(1, sizeof(*l));
	int rc;

	if (!l)
		return silt_fail(err, -ENOMEM, "out of memory");
	l->dir_fd = l->users_fd = -1;
	l->log = log;
	if (!(l->dir = strdup(dir)))
		return silt_fail(err, -ENOMEM, "out of memory");
	if ((rc = open_dir(l, create, err)) < 0)
		return rc;
	SILT_CLOSE int start_fd = open_lock(l, "start.lock", err);
	if (start_fd < 0)
		return start_fd;
	rc = take_lock(start_fd, LOCK_EX, LOCK_WAIT_MS);
	if (rc < 0)
		return silt_fail(
		        err, rc == -EWOULDBLOCK ? -EBUSY : rc,
		        "%s/start.lock is held for long: another siltfs starts or stops the "
		        "server there; see redis.log",
		        l->dir);
	l->users_fd = open_lock(l, "users.lock", err);
	if (l->users_fd < 0)
		return l->users_fd;
	if (flock(l->users_fd, LOCK_SH) < 0)
		return silt_fail(err, -errno, "can't lock %s/users.lock: %s", l->dir,
		                 strerror(errno));
	if ((rc = ensure_server(l, err)) < 0)
		return rc;
	*out = silt_steal(l);
	return 0;
}

const char *meta_local_socket(const struct meta_local *l)
{
	return l->socket_path;
}

void meta_local_revive(struct meta_local *l)
{
	struct start_report report = { 0 };
	struct silt_err err = { 0 };
	uint64_t now = silt_now_ns();

	if (l->revived && now - l->revived < (uint64_t)REVIVE_MS * 1000000u)
		return;
	SILT_CLOSE int start_fd = open_lock(l, "start.lock", &err);
	if (start_fd < 0 || flock(start_fd, LOCK_EX | LOCK_NB) < 0)
		return; /* somebody is at it */
	SILT_CLOSE int lock_fd = open_lock(l, "server.lock", &err);
	if (lock_fd < 0 || flock(lock_fd, LOCK_EX | LOCK_NB) < 0)
		return; /* it lives */
	l->revived = now;
	if (launch(l, lock_fd, &report, &err) < 0)
		silt_error(l->log, "the redis-server in %s is gone and can't be started: %s",
		           l->dir, err.text);
	else
		silt_warn(l->log, "the redis-server in %s was gone: started it again (pid %d)",
		          l->dir, (int)report.pid);
}

void meta_local_close(struct meta_local *l)
{
	struct silt_err err;

	if (!l)
		return;
	SILT_CLOSE int start_fd = open_lock(l, "start.lock", &err);
	/* Without start.lock somebody else is at work, who sees to the end of the server. */
	if (start_fd >= 0 && take_lock(start_fd, LOCK_EX, LOCK_WAIT_MS) == 0 &&
	    flock(l->users_fd, LOCK_EX | LOCK_NB) == 0)
		stop_server(l);
	free_local(l);
}
