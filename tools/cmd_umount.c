/* siltfs umount: unmounts and waits until the daemon has stored everything and ended.
 *
 * The daemon's pid comes from its control socket before the unmount; afterwards a pidfd says when
 * it has ended. What it could not store it leaves in CONTROL_SOCKET.failed (see cmd_mount.c). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "meta/cleanup.h"
#include "tools/cli.h"
#include "tools/control_client.h"
#include "tools/mount_paths.h"

static const char help[] =
        "Usage: siltfs umount [-l|--lazy] MOUNTPOINT\n"
        "Unmount, and wait until the daemon has stored everything and ended. Exit status 1 when\n"
        "something could not be stored.\n"
        "\n"
        "  -l, --lazy   unmount although it is in use; returns at once, the daemon goes on until\n"
        "               the last file is closed\n";

/* The mount point as the kernel knows it; a dead mount can't be resolved, its parent can. */
static int resolve(const char *path, char out[PATH_MAX])
{
	char copy[PATH_MAX], parent[PATH_MAX];
	size_t len = strlen(path);

	if (realpath(path, out))
		return 0;
	if ((errno != ENOTCONN && errno != EIO) || len >= sizeof(copy))
		return -errno;
	while (len > 1 && path[len - 1] == '/')
		len--;
	snprintf(copy, sizeof(copy), "%.*s", (int)len, path);
	char *slash = strrchr(copy, '/');
	const char *name = slash ? slash + 1 : copy;
	if (slash)
		*slash = '\0';
	if (!realpath(!slash ? "." : *copy ? copy : "/", parent))
		return -errno;
	return snprintf(out, PATH_MAX, "%s/%s", strcmp(parent, "/") ? parent : "", name) < PATH_MAX
	               ? 0
	               : -ENAMETOOLONG;
}

/* fusermount3 -u, which may unmount what the user mounted; it says itself what is wrong. */
static int run_fusermount(const char *path, bool lazy)
{
	const char *argv[] = { "fusermount3", lazy ? "-uz" : "-u", "--", path, NULL };
	int status;
	pid_t pid = fork();

	if (pid < 0)
		return cli_fail(CLI_FAILED, "can't fork: %s", strerror(errno));
	if (pid == 0) {
		execvp(argv[0], (char **)argv);
		_exit(cli_fail(127, "can't run fusermount3: %s; install the package fuse3",
		               strerror(errno)));
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? CLI_OK : CLI_FAILED;
}

static int unmount(const char *path, bool lazy)
{
	if (geteuid() != 0)
		return run_fusermount(path, lazy);
	if (umount2(path, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
		return CLI_OK;
	if (errno == EBUSY)
		return cli_fail(CLI_FAILED,
		                "%s is in use; end what uses it (fuser -m %s) or unmount "
		                "with --lazy",
		                path, path);
	return cli_fail(CLI_FAILED, "can't unmount %s: %s", path, strerror(errno));
}

static bool has_mounted(const char *process, dev_t dev)
{
	char path[64], line[PATH_MAX + 1024];
	unsigned ids, parent, major_id, minor_id;
	bool found = false;
	snprintf(path, sizeof(path), "/proc/%.20s/mountinfo", process);
	FILE *f = fopen(path, "re");
	while (f && !found && fgets(line, sizeof(line), f))
		found = sscanf(line, "%u %u %u:%u ", &ids, &parent, &major_id, &minor_id) == 4 &&
		        makedev(major_id, minor_id) == dev;
	if (f)
		fclose(f);
	return found;
}

/* A process of another mount namespace, as containers have one, that has the file system mounted; 0: none is
 * seen. */
static pid_t who_has_mounted(dev_t dev)
{
	pid_t pid = 0;
	struct stat own, its;
	char path[64];
	DIR *d = stat("/proc/self/ns/mnt", &own) == 0 ? opendir("/proc") : NULL;
	for (struct dirent *e; d && !pid && (e = readdir(d));) {
		if (e->d_name[0] < '1' || e->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%.20s/ns/mnt", e->d_name);
		if (stat(path, &its) == 0 && its.st_ino != own.st_ino && has_mounted(e->d_name, dev))
			pid = (pid_t)strtol(e->d_name, NULL, 10);
	}
	if (d)
		closedir(d);
	return pid;
}

/* Waits for the daemon's end, and says every now and then what it does. */
static void wait_for_end(int pidfd, pid_t pid, dev_t dev)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	for (int ms = 3000; poll(&p, 1, ms) == 0; ms = 10000) {
		pid_t user = who_has_mounted(dev);
		if (user)
			fprintf(stderr,
			        "siltfs: unmounted here; the daemon (pid %d) goes on until process %d, of "
			        "another mount namespace, has unmounted it or ended\n",
			        (int)pid, (int)user);
		else
			fprintf(stderr,
			        "siltfs: waiting for the daemon (pid %d) to store what was written\n",
			        (int)pid);
	}
}

/* The path comes from the mount's options, which any user who may mount chooses: only a file that the
 * daemon itself can have left there is read and removed. */
static int last_word(const char *socket, uid_t daemon)
{
	char path[128], line[512];
	struct stat st;
	snprintf(path, sizeof(path), "%s.failed", socket);
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return CLI_OK;
	SILT_FCLOSE FILE *f = fdopen(fd, "r");
	if (!f || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_uid != daemon)
		return CLI_OK;
	unlink(path);
	if (!fgets(line, sizeof(line), f))
		strcpy(line, "some written data could not be stored; see the mount's log");
	line[strcspn(line, "\n")] = '\0';
	return cli_fail(CLI_FAILED, "%s", line);
}

static int umount_and_wait(const char *given, bool lazy)
{
	char path[PATH_MAX], type[64], source[1024], socket[108];
	struct silt_err err;
	pid_t pid = 0;
	int rc = resolve(given, path);

	if (rc < 0)
		return cli_fail(CLI_FAILED, "%s: %s", given, strerror(-rc));
	rc = find_mount(path, type, sizeof(type), source, sizeof(source));
	if (rc < 0)
		return cli_fail(CLI_FAILED, "%s is not a mount point", given);
	if (strncmp(type, "fuse", 4) != 0 || (strcmp(type, "fuse") && strcmp(type, "fuse.siltfs")))
		return cli_fail(CLI_FAILED, "%s is not a siltfs mount but %s; use umount(8)", given,
		                type);
	struct stat st;
	bool alive = control_find(path, socket, NULL, &err) == 0 && lstat(socket, &st) == 0 &&
	             S_ISSOCK(st.st_mode);
	SILT_CLOSE int fd = alive ? control_connect(socket, &pid, &err) : -1;
	SILT_CLOSE int pidfd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0u) : -1;
	struct stat root = { 0 };
	if (alive && lstat(path, &root) != 0)
		root.st_dev = 0;
	if (fd >= 0) { /* the server would wait for us otherwise */
		close(fd);
		fd = -1;
	}
	if ((rc = unmount(path, lazy)) != CLI_OK || !alive || lazy)
		return rc;
	if (pidfd >= 0)
		wait_for_end(pidfd, pid, root.st_dev);
	return last_word(socket, st.st_uid);
}

int cmd_umount(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "lazy", no_argument, NULL, 'l' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool lazy = false;
	int opt;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, "lh", longs, NULL)) != -1) {
		if (opt == 'h')
			return cli_help(help);
		if (opt == '?')
			return cli_usage("umount", "unknown option: %s", argv[optind - 1]);
		lazy = true;
	}
	if (argc - optind != 1)
		return cli_usage("umount", "umount takes one MOUNTPOINT");
	return umount_and_wait(argv[optind], lazy);
}
