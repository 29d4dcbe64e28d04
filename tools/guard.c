#include "tools/guard.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE_MS 1000
#define STEP_MS	    50

/* Has the main thread of process `pid` ended? *others: are threads of it left? */
static bool is_dead(pid_t pid, bool *others)
{
	char path[64], line[512], state = 'X';
	unsigned n = 0;
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	FILE *f = fopen(path, "re");
	if (f && fgets(line, sizeof(line), f) && strrchr(line, ')')) /* "pid (name) state ..." */
		sscanf(strrchr(line, ')') + 1, " %c", &state);
	if (f)
		fclose(f);
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	DIR *d = opendir(path);
	for (struct dirent *e; d && (e = readdir(d));)
		n += e->d_name[0] != '.';
	if (d)
		closedir(d);
	*others = n > 1;
	return state == 'Z' || state == 'X';
}

/* The minor number of the mount's device: the connection's name. 0: it is not mounted. */
static unsigned connection_of(const char *mountpoint)
{
	char *line = NULL, at[4096];
	size_t room = 0;
	unsigned minor = 0, found = 0;
	FILE *f = fopen("/proc/self/mountinfo", "re");
	while (f && getline(&line, &room, f) > 0) {
		/* Names with blanks are written in another way, and are not found. */
		if (sscanf(line, "%*d %*d %*u:%u %*s %4095s", &minor, at) == 2 && !strcmp(at, mountpoint) &&
		    strstr(line, " fuse"))
			found = minor; /* the last one is on top */
	}
	free(line);
	if (f)
		fclose(f);
	return found;
}

static void end_connection(const char *mountpoint)
{
	char path[96];
	snprintf(path, sizeof(path), "/sys/fs/fuse/connections/%u/abort", connection_of(mountpoint));
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done = fd >= 0 && write(fd, "1", 1) == 1;
	if (fd >= 0)
		close(fd);
	if (done)
		return;
	/* Being in use keeps it mounted: a folder that looked empty would be worse than one with an error. */
	int busy = open(mountpoint, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (busy >= 0)
		umount2(mountpoint, MNT_FORCE);
}

static void pause_ms(unsigned ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };
	nanosleep(&ts, NULL);
}

static void guard(pid_t daemon, const char *mountpoint)
{
	sigset_t set;
	int sig;
	bool others = false;
	sigfillset(&set);
	sigprocmask(SIG_SETMASK, &set, NULL);
	prctl(PR_SET_NAME, "silt-guard");
	setsid(); /* what ends the daemon's group is for the daemon */
	if (chdir("/") < 0)
		return;
	int null = open("/dev/null", O_RDWR);
	for (int fd = 0; fd < 3 && null >= 0; fd++)
		dup2(null, fd);
	close_range(3, ~0u, 0);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	while (!is_dead(daemon, &others)) /* it may have died before; others may send the signal, too */
		sigwait(&set, &sig);
	for (unsigned ms = 0; others && ms < PATIENCE_MS; ms += STEP_MS) {
		pause_ms(STEP_MS);
		is_dead(daemon, &others);
	}
	if (others)
		end_connection(mountpoint);
}

void guard_start(const char *mountpoint)
{
	pid_t daemon = getpid();
	if (fork() == 0) {
		guard(daemon, mountpoint);
		_exit(0);
	}
}
