/* Credentials: every source, their order, and files that must be refused. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "cache/store.h"

static char path[] = "/tmp/silt-credentials-XXXXXX";
static struct silt_err err;

static void write_file(const char *text, mode_t mode)
{
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
	assert_int_equal(chmod(path, mode), 0);
}

static void expect(const char *file, const char *access, const char *secret, const char *token)
{
	struct store_credentials c;

	if (store_credentials(file, &c, &err) != 0)
		fail_msg("%s", err.text);
	assert_string_equal(c.access_key, access);
	assert_string_equal(c.secret_key, secret);
	if (token)
		assert_string_equal(c.session_token, token);
	else
		assert_null(c.session_token);
	store_credentials_free(&c);
}

static void refuse(const char *file, int code, const char *word)
{
	struct store_credentials c;

	assert_int_equal(store_credentials(file, &c, &err), code);
	assert_non_null(strstr(err.text, word));
}

static int clean_environment(void **state)
{
	static const char *const names[] = {
		"SILTFS_ACCESS_KEY", "SILTFS_SECRET_KEY",           "SILTFS_SESSION_TOKEN",
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",       "AWS_SESSION_TOKEN",
		"AWS_PROFILE",       "AWS_SHARED_CREDENTIALS_FILE",
	};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		unsetenv(names[i]);
	setenv("HOME", "/nonexistent", 1);
	return 0;
}

static void bare_lines(void **state)
{
	write_file("# keys\n\n  access \r\n secret=/+\n", 0600);
	expect(path, "access", "secret=/+", NULL);
	write_file("access\nsecret\ntoken\nmore", 0400);
	expect(path, "access", "secret", "token");
	write_file("access\n", 0600);
	refuse(path, -EINVAL, "lacks");
	write_file("", 0600);
	refuse(path, -EINVAL, "lacks");
}

static void ini(void **state)
{
	write_file("[other]\naws_access_key_id = o\naws_secret_access_key = os\n"
	           "[default]\naws_access_key_id=d\n; c\naws_secret_access_key = ds==\n"
	           "[profile new]\naws_access_key_id=n\naws_secret_access_key=ns\n"
	           "aws_session_token = nt\nregion = x\n",
	           0600);
	expect(path, "d", "ds==", NULL);
	setenv("AWS_PROFILE", "other", 1);
	expect(path, "o", "os", NULL);
	setenv("AWS_PROFILE", "new", 1);
	expect(path, "n", "ns", "nt");
	setenv("AWS_PROFILE", "none", 1);
	refuse(path, -EINVAL, "lacks");
}

static void private_files_only(void **state)
{
	write_file("a\nb\n", 0644);
	refuse(path, -EACCES, "chmod 600");
	write_file("a\nb\n", 0640);
	refuse(path, -EACCES, "chmod 600");
	refuse("/nonexistent/file", -ENOENT, "/nonexistent/file");
}

static void order(void **state)
{
	refuse(NULL, -ENOENT, "SILTFS_ACCESS_KEY");
	write_file("[default]\naws_access_key_id=f\naws_secret_access_key=fs\n", 0644);
	setenv("AWS_SHARED_CREDENTIALS_FILE", path, 1);
	expect(NULL, "f", "fs", NULL);
	setenv("AWS_ACCESS_KEY_ID", "a", 1);
	expect(NULL, "f", "fs", NULL); /* half a pair is none */
	setenv("AWS_SECRET_ACCESS_KEY", "as", 1);
	setenv("AWS_SESSION_TOKEN", "at", 1);
	expect(NULL, "a", "as", "at");
	setenv("SILTFS_ACCESS_KEY", "s", 1);
	setenv("SILTFS_SECRET_KEY", "ss", 1);
	expect(NULL, "s", "ss", NULL); /* the token belongs to the other pair */
	write_file("x\ny\n", 0600);
	expect(path, "x", "y", NULL);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(bare_lines, clean_environment),
		cmocka_unit_test_setup(ini, clean_environment),
		cmocka_unit_test_setup(private_files_only, clean_environment),
		cmocka_unit_test_setup(order, clean_environment),
	};
	close(mkstemp(path));
	int rc = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(path);
	return rc;
}
