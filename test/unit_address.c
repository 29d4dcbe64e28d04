/* meta/address.c: every form, and text that must be refused without showing a password. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "meta/address.h"

static void clear_environment(void)
{
	unsetenv("SILTFS_META_PASSWORD");
	unsetenv("SILTFS_META_PASSWORD_FILE");
}

static void test_tcp_forms(void **state)
{
	static const struct {
		const char *text, *host, *user, *password, *shown;
		int port, db;
	} t[] = {
		{ "redis://h", "h", NULL, NULL, "redis://h:6379/0", 6379, 0 },
		{ "redis://h/", "h", NULL, NULL, "redis://h:6379/0", 6379, 0 },
		{ "redis://h:7000/3", "h", NULL, NULL, "redis://h:7000/3", 7000, 3 },
		{ "redis://u:p%40%2F:x@h.example", "h.example", "u", "p@/:x",
		  "redis://u@h.example:6379/0", 6379, 0 },
		{ "redis://:secret@10.0.0.1:1", "10.0.0.1", NULL, "secret", "redis://10.0.0.1:1/0",
		  1, 0 },
		{ "redis://u@h", "h", "u", NULL, "redis://u@h:6379/0", 6379, 0 },
		{ "redis://u:a@b@h", "h", "u", "a@b", "redis://u@h:6379/0", 6379, 0 },
		{ "redis://[::1]:6380/1", "::1", NULL, NULL, "redis://[::1]:6380/1", 6380, 1 },
		{ "redis://[fe80::1%25eth0]", "fe80::1%25eth0", NULL, NULL,
		  "redis://[fe80::1%25eth0]:6379/0", 6379, 0 },
	};
	clear_environment();
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct meta_address a;
		struct silt_err err = { 0 };
		assert_int_equal(meta_address_parse(t[i].text, &a, &err), 0);
		assert_int_equal(a.kind, META_ADDRESS_TCP);
		assert_string_equal(a.host, t[i].host);
		assert_int_equal(a.port, t[i].port);
		assert_int_equal(a.db, t[i].db);
		assert_string_equal(a.shown, t[i].shown);
		assert_true(!a.user == !t[i].user && !a.password == !t[i].password);
		if (t[i].user)
			assert_string_equal(a.user, t[i].user);
		if (t[i].password)
			assert_string_equal(a.password, t[i].password);
		meta_address_free(&a);
	}
}

static void test_socket_and_local(void **state)
{
	struct meta_address a;
	clear_environment();
	assert_int_equal(meta_address_parse("redis+socket:///run/r.sock?db=2", &a, NULL), 0);
	assert_int_equal(a.kind, META_ADDRESS_SOCKET);
	assert_string_equal(a.path, "/run/r.sock");
	assert_int_equal(a.db, 2);
	meta_address_free(&a);

	assert_int_equal(meta_address_parse("local:/tmp/v//", &a, NULL), 0);
	assert_int_equal(a.kind, META_ADDRESS_LOCAL);
	assert_string_equal(a.path, "/tmp/v");
	assert_string_equal(a.shown, "local:/tmp/v");
	meta_address_free(&a);

	assert_int_equal(chdir("/tmp"), 0);
	assert_int_equal(meta_address_parse("local:v", &a, NULL), 0);
	assert_string_equal(a.path, "/tmp/v");
	meta_address_free(&a);
	assert_int_equal(meta_address_parse("local:/", &a, NULL), 0);
	assert_string_equal(a.path, "/");
	meta_address_free(&a);
}

static void test_refused(void **state)
{
	static const char *const t[] = {
		"",
		"redis",
		"redis:",
		"redis:/",
		"redis://",
		"redis://@",
		"redis:///0",
		"redis://:6379",
		"redis://h:",
		"redis://h:0",
		"redis://h:65536",
		"redis://h:x",
		"redis://h:99999999999999999",
		"redis://h/x",
		"redis://h/-1",
		"redis://h/0/1",
		"redis://h?db=1",
		"redis://h#1",
		"redis://u:SECRET%@h",
		"redis://u:SECRET%4@h",
		"redis://u:SECRET%zz@h",
		"redis://u:SECRET%00@h",
		"redis://u:SECRET/x@h",
		"redis://u:SECRET@h:y",
		"redis://[::1",
		"redis://[]",
		"redis://[::1]x",
		"redis://h h",
		"redis://h\n",
		"redis+socket://",
		"redis+socket:///",
		"redis+socket://x",
		"redis+socket:///x?y",
		"redis+socket:///x?db=",
		"redis+socket:///x?db=a",
		"local:",
		"rediss://h",
		"http://h",
		"/var/lib",
		"REDIS://h",
	};
	clear_environment();
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct meta_address a = { .port = 77 };
		struct silt_err err = { 0 };
		assert_int_equal(meta_address_parse(t[i], &a, &err), -EINVAL);
		assert_int_equal(a.port, 77); /* written only on success */
		assert_non_null(strstr(err.text, "local:DIR"));
		assert_null(strstr(err.text, "SECRET"));
		assert_null(strchr(err.text, '\n'));
	}
}

static void test_password_from_environment(void **state)
{
	struct meta_address a;
	struct silt_err err;
	char file[] = "/tmp/siltfs-password-XXXXXX";
	int fd = mkstemp(file);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "from file\r\nrest\n", 16), 16);
	close(fd);

	clear_environment();
	setenv("SILTFS_META_PASSWORD_FILE", file, 1);
	assert_int_equal(meta_address_parse("redis://h", &a, NULL), 0);
	assert_string_equal(a.password, "from file");
	meta_address_free(&a);
	setenv("SILTFS_META_PASSWORD", "from env", 1);
	assert_int_equal(meta_address_parse("redis+socket:///s", &a, NULL), 0);
	assert_string_equal(a.password, "from env");
	meta_address_free(&a);
	assert_int_equal(meta_address_parse("redis://:own@h", &a, NULL), 0);
	assert_string_equal(a.password, "own");
	meta_address_free(&a);

	unsetenv("SILTFS_META_PASSWORD");
	unlink(file);
	assert_int_equal(meta_address_parse("redis://h", &a, &err), -ENOENT);
	assert_non_null(strstr(err.text, file));
	clear_environment();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tcp_forms),
		cmocka_unit_test(test_socket_and_local),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_password_from_environment),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
