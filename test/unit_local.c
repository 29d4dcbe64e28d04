/* meta/local.c with real redis-servers: start, sharing, the last one stops it, races, crashes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "meta/local.h"

static char base[64];

static int setup(void **state)
{
	strcpy(base, "/tmp/siltfs-local-XXXXXX");
	return mkdtemp(base) ? 0 : -1;
}

static int teardown(void **state)
{
	char command[128];
	snprintf(command, sizeof(command), "rm -rf '%s'", base);
	return system(command);
}

static int dial(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(strlen(path) < sizeof(sa.sun_path));
	strcpy(sa.sun_path, path);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		close(fd);
		return -errno;
	}
	return fd;
}

/* Sends an inline command and compares the beginning of the reply. */
static void expect(const char *path, const char *command, const char *reply)
{
	char line[256] = "";
	int fd = dial(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, command, strlen(command)), strlen(command));
	assert_true(read(fd, line, sizeof(line) - 1) > 0);
	close(fd);
	line[strlen(reply)] = '\0';
	assert_string_equal(line, reply);
}

static pid_t server_pid(const char *path)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	int fd = dial(path);
	assert_true(fd >= 0);
	assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len), 0);
	close(fd);
	return cred.pid;
}

static bool server_lock_is_free(const char *dir)
{
	char path[512];
	snprintf(path, sizeof(path), "%s/server.lock", dir);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	bool is_free = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0;
	close(fd);
	return is_free;
}

static void test_start_share_stop(void **state)
{
	struct meta_local *a, *b;
	struct silt_err err;
	struct stat st;
	char dir[128];

	snprintf(dir, sizeof(dir), "%s/x/v", base);
	assert_int_equal(meta_local_open(dir, 0, NULL, &a, &err), -ENOENT);
	assert_non_null(strstr(err.text, "siltfs format"));
	assert_int_equal(meta_local_open(dir, 1, NULL, &a, &err), 0);
	assert_int_equal(stat(dir, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	assert_int_equal(stat(meta_local_socket(a), &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	expect(meta_local_socket(a), "SET k kept\r\n", "+OK");
	expect(meta_local_socket(a), "CONFIG GET hash-max-listpack-value\r\n",
	       "*2\r\n$23\r\nhash-max-listpack-value\r\n$3\r\n512");

	assert_int_equal(meta_local_open(dir, 0, NULL, &b, &err), 0);
	pid_t pid = server_pid(meta_local_socket(a));
	assert_int_equal(pid, server_pid(meta_local_socket(b)));
	assert_int_not_equal(getsid(pid), getsid(0));
	meta_local_close(a);
	expect(meta_local_socket(b), "GET k\r\n", "$4\r\nkept");
	assert_false(server_lock_is_free(dir));
	meta_local_close(b);
	assert_true(server_lock_is_free(dir));

	assert_int_equal(meta_local_open(dir, 0, NULL, &a, &err), 0);
	expect(meta_local_socket(a), "GET k\r\n", "$4\r\nkept");
	meta_local_close(a);
}

static void test_long_path(void **state)
{
	struct meta_local *l;
	struct silt_err err;
	char dir[400];
	int n = snprintf(dir, sizeof(dir), "%s", base);
	for (int i = 0; i < 5; i++)
		n += snprintf(dir + n, sizeof(dir) - (size_t)n, "/%040d", i);
	assert_int_equal(meta_local_open(dir, 1, NULL, &l, &err), 0);
	assert_true(strlen(meta_local_socket(l)) < 108);
	expect(meta_local_socket(l), "PING\r\n", "+PONG");
	meta_local_close(l);
	assert_true(server_lock_is_free(dir));
}

static void test_crashed_server_and_stale_files(void **state)
{
	struct meta_local *a, *b;
	struct silt_err err;
	assert_int_equal(meta_local_open(base, 1, NULL, &a, &err), 0);
	pid_t pid = server_pid(meta_local_socket(a));
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0u);
	kill(pid, SIGKILL);
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	assert_int_equal(poll(&p, 1, 10000), 1);
	close(pidfd);
	/* redis.sock and redis.pid are still there; another user starts a new server. */
	assert_int_equal(meta_local_open(base, 0, NULL, &b, &err), 0);
	assert_int_not_equal(pid, server_pid(meta_local_socket(b)));
	meta_local_close(b);
	expect(meta_local_socket(a), "PING\r\n", "+PONG");
	meta_local_close(a);
	assert_true(server_lock_is_free(base));
}

/* Many processes open and close at once: never two servers, none left at the end. */
static void test_races(void **state)
{
	pid_t pids[6];
	for (int i = 0; i < 6; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			struct silt_err err;
			for (int k = 0; k < 5; k++) {
				struct meta_local *l;
				if (meta_local_open(base, 1, NULL, &l, &err) < 0) {
					fprintf(stderr, "%s\n", err.text);
					_exit(1);
				}
				int fd = dial(meta_local_socket(l));
				if (fd < 0)
					_exit(2);
				close(fd);
				meta_local_close(l);
			}
			_exit(0);
		}
	}
	for (int i = 0; i < 6; i++) {
		int status;
		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_int_equal(status, 0);
	}
	assert_true(server_lock_is_free(base));
}

static void test_failures_have_a_line(void **state)
{
	struct meta_local *l;
	struct silt_err err;
	char *path = strdup(getenv("PATH")), file[128];

	setenv("PATH", "/nowhere", 1);
	assert_int_equal(meta_local_open(base, 1, NULL, &l, &err), -ENOEXEC);
	assert_non_null(strstr(err.text, "redis-server"));
	setenv("PATH", path, 1);
	free(path);

	/* Damaged data: the server ends at once, and its last words are shown. */
	assert_int_equal(meta_local_open(base, 1, NULL, &l, &err), 0);
	expect(meta_local_socket(l), "SET a b\r\n", "+OK");
	meta_local_close(l);
	snprintf(file, sizeof(file), "%s/appendonlydir/appendonly.aof.manifest", base);
	FILE *f = fopen(file, "w");
	assert_non_null(f);
	fputs("rubbish\n", f);
	fclose(f);
	assert_int_equal(meta_local_open(base, 1, NULL, &l, &err), -EIO);
	assert_non_null(strstr(err.text, "redis.log"));
	assert_true(server_lock_is_free(base));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_start_share_stop, setup, teardown),
		cmocka_unit_test_setup_teardown(test_long_path, setup, teardown),
		cmocka_unit_test_setup_teardown(test_crashed_server_and_stale_files, setup,
		                                teardown),
		cmocka_unit_test_setup_teardown(test_races, setup, teardown),
		cmocka_unit_test_setup_teardown(test_failures_have_a_line, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
