#include "tools/background.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "meta/cleanup.h"
#include "tools/cli.h"

#define STOP_PATIENCE_MS 3000

/* --- Signals ---------------------------------------------------------------------------- */

/* The signals that end this process, but for those that it was told to ignore (nohup). */
static void ending_signals(sigset_t *out)
{
	static const int list[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
	struct sigaction now;

	sigemptyset(out);
	for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++)
		if (sigaction(list[i], NULL, &now) == 0 && now.sa_handler != SIG_IGN)
			sigaddset(out, list[i]);
}

static int take_signal(int signals)
{
	struct signalfd_siginfo info;
	return read(signals, &info, sizeof(info)) == sizeof(info) ? (int)info.ssi_signo : SIGTERM;
}

static int die_of(int sig)
{
	sigset_t set;

	fflush(NULL);
	signal(sig, SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, sig);
	raise(sig);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	return 128 + sig;
}

/* --- The end before the beginning ------------------------------------------------------- */

/* Waits for the daemon's end; false when another signal or the end of the time came first. */
static bool ends(int pidfd, int signals, int timeout_ms)
{
	struct pollfd p[2] = { { .fd = pidfd, .events = POLLIN },
		               { .fd = signals, .events = POLLIN } };

	while (poll(p, 2, timeout_ms) < 0 && errno == EINTR)
		;
	if (p[1].revents)
		take_signal(signals);
	return p[0].revents != 0;
}

static int stop(pid_t pid, int signals)
{
	SILT_CLOSE int pidfd = (int)syscall(SYS_pidfd_open, pid, 0u);
	int sig = take_signal(signals);

	kill(pid, SIGTERM);
	bool ended = ends(pidfd, signals, STOP_PATIENCE_MS);
	if (!ended) { /* it waits for a server */
		kill(pid, SIGTERM);
		ended = ends(pidfd, signals, -1);
	}
	if (ended) {
		waitpid(pid, NULL, 0);
		cli_fail(0, "interrupted, nothing is mounted");
	} else {
		cli_fail(0, "interrupted; the daemon, pid %d, is still ending", (int)pid);
	}
	return die_of(sig);
}

/* --- Waiting ---------------------------------------------------------------------------- */

/* Why the daemon ended without a word. */
static int tell_end(pid_t pid)
{
	int status = 0;

	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status))
		return cli_fail(CLI_FAILED,
		                "the daemon died of signal %d before it served; see its "
		                "log",
		                WTERMSIG(status));
	return cli_fail(CLI_FAILED, "the daemon ended before it served; see its log");
}

static int wait_for_word(int fd, int signals, pid_t pid)
{
	struct pollfd p[2] = { { .fd = fd, .events = POLLIN },
		               { .fd = signals, .events = POLLIN } };
	char text[1024];
	size_t n = 0;

	while (n < sizeof(text) - 1) {
		if (poll(p, 2, -1) < 0)
			continue;
		if (p[1].revents)
			return stop(pid, signals);
		ssize_t got = read(fd, text + n, sizeof(text) - 1 - n);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		n += (size_t)got;
	}
	text[n] = '\0';
	if (strcmp(text, "R") == 0)
		return CLI_OK;
	return n ? cli_fail(CLI_FAILED, "%s", text) : tell_end(pid);
}

int background_start(int (*run)(void *arg, int report_fd, const sigset_t *signals), void *arg)
{
	sigset_t ending, before;
	int fds[2];

	/* Held back until this process ends: a signal is seen by wait_for_word() or by nobody. */
	ending_signals(&ending);
	sigprocmask(SIG_BLOCK, &ending, &before);
	SILT_CLOSE int signals = signalfd(-1, &ending, SFD_CLOEXEC);
	if (signals < 0 || pipe2(fds, O_CLOEXEC) < 0)
		return cli_fail(CLI_FAILED, "can't make a pipe: %s", strerror(errno));
	SILT_CLOSE int in = fds[0];
	fflush(NULL);
	pid_t pid = fork();
	if (pid < 0)
		return cli_fail(CLI_FAILED, "can't fork: %s", strerror(errno));
	if (pid == 0) {
		close(in);
		close(signals);
		setsid();
		if (chdir("/") < 0)
			_exit(CLI_FAILED);
		exit(run(arg, fds[1], &before));
	}
	close(fds[1]);
	return wait_for_word(in, signals, pid);
}
