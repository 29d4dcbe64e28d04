/* tools/options.c: every option's value, bounds and default; lists; the words for libfuse; and that
 * the man page describes every option. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/options.h"

static int parse(struct mount_options *o, const char *list, struct silt_err *err)
{
	options_free(o);
	options_init(o);
	return options_parse(o, list, false, err);
}

static void test_defaults(void **state)
{
	struct mount_options o;
	options_init(&o);
	assert_null(o.cache_dir);
	assert_int_equal(o.cache_size, 0);
	assert_int_equal(o.memory_size, 64u << 20);
	assert_int_equal(o.buffer_size, 256u << 20);
	assert_int_equal(o.compress_level, -1);
	assert_int_equal(o.redis_wait, 60);
	assert_true(o.free_ratio > 0.099 && o.free_ratio < 0.101);
	assert_int_equal(o.log_level, SILT_LOG_INFO);
	assert_false(o.read_only);
	options_free(&o);
}

/* Every default in the table is a value that its own option takes. */
static void test_table_is_sound(void **state)
{
	for (size_t i = 0; i < option_count; i++) {
		const struct option_def *d = &option_table[i];
		struct mount_options o;
		struct silt_err err = { 0 };
		char word[128];
		for (size_t k = 0; k < i; k++)
			assert_string_not_equal(d->name, option_table[k].name);
		if (!d->value)
			continue;
		options_init(&o);
		snprintf(word, sizeof(word), "%s=%s", d->name, d->value);
		assert_int_equal(options_parse(&o, word, false, &err), 0);
		options_free(&o);
	}
}

static void test_values(void **state)
{
	struct mount_options o = { 0 };
	struct silt_err err;
	assert_int_equal(parse(&o,
	                       "cache-dir=/a b,cache-size=1.5G,ro,threads=3,attr-timeout=0.5,"
	                       "compress=zstd:7,log-level=debug,cache-writes",
	                       &err),
	                 0);
	assert_string_equal(o.cache_dir, "/a b");
	assert_true(o.cache_size == (uint64_t)3 << 29);
	assert_true(o.read_only && o.cache_writes);
	assert_int_equal(o.threads, 3);
	assert_true(o.attr_timeout == 0.5);
	assert_int_equal(o.compress_level, 7);
	assert_int_equal(o.log_level, SILT_LOG_DEBUG);
	assert_int_equal(parse(&o, "ro,rw,,compress=none", &err), 0);
	assert_false(o.read_only);
	assert_int_equal(o.compress_level, 0);
	/* A comma in a value is escaped; relative paths become absolute, but not the two words. */
	assert_int_equal(parse(&o, "debug=a\\,b,cache-dir=none,log=syslog,credentials=x", &err), 0);
	assert_string_equal(o.debug, "a,b");
	assert_string_equal(o.cache_dir, "none");
	assert_string_equal(o.log, "syslog");
	assert_int_equal(o.credentials[0], '/');
	/* The last one wins. */
	assert_int_equal(parse(&o, "region=a,region=b,memory-size=1M,memory-size=2m", &err), 0);
	assert_string_equal(o.region, "b");
	assert_int_equal(o.memory_size, 2u << 20);
	options_free(&o);
}

static void test_refused(void **state)
{
	static const char *const t[] = {
		"frob",
		"frob=1",
		"cache-size",
		"cache-size=",
		"cache-size=1",
		"cache-size=-1G",
		"cache-size=1X",
		"cache-size=1GG",
		"cache-size=0x100000000",
		"cache-size=nan",
		"cache-size=inf",
		"cache-size=1e400",
		"cache-size= 1G",
		"threads=0",
		"threads=257",
		"threads=1.5",
		"threads=2x",
		"free-space-ratio=1",
		"free-space-ratio=0",
		"attr-timeout=-1",
		"compress=lz4",
		"compress=zstd:",
		"compress=zstd:0",
		"compress=zstd:20",
		"compress=zstd:1.5",
		"log-level=loud",
		"ro=1",
		"region=",
	};
	struct mount_options o = { 0 };
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		struct silt_err err = { 0 };
		if (parse(&o, t[i], &err) != -EINVAL)
			fail_msg("%s was taken", t[i]);
		char name[64];
		snprintf(name, sizeof(name), "%.*s", (int)strcspn(t[i], "="), t[i]);
		assert_non_null(strstr(err.text, name));
		assert_null(strchr(err.text, '\n'));
	}
	options_free(&o);
}

static void test_words_of_mount(void **state)
{
	struct mount_options o = { 0 };
	struct silt_err err;
	char fuse[OPTIONS_FUSE_MAX];
	assert_int_equal(
	        parse(&o, "_netdev,noauto,nofail,user=me,x-systemd.automount,nosuid,noatime", &err),
	        0);
	assert_int_equal(options_fuse(&o, true, fuse, sizeof(fuse)), 0);
	assert_string_equal(fuse, "rw,default_permissions,allow_other,nosuid,noatime");
	assert_int_equal(options_fuse(&o, false, fuse, sizeof(fuse)), 0);
	assert_string_equal(fuse, "rw,default_permissions,nosuid,noatime");
	assert_int_equal(parse(&o, "ro,allow_root,nodefault_permissions", &err), 0);
	assert_int_equal(options_fuse(&o, true, fuse, sizeof(fuse)), 0);
	assert_string_equal(fuse, "ro,allow_root");
	assert_int_equal(options_fuse(&o, true, fuse, 4), -E2BIG);
	assert_int_equal(options_parse(&o, "frob,frob=1,ro", true, &err), 0); /* mount -s */
	options_free(&o);
}

static void test_man_page_names_every_option(void **state)
{
	static char text[1 << 16];
	FILE *f = fopen(SILT_SOURCE "/tools/siltfs.1", "r");
	assert_non_null(f);
	text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
	fclose(f);
	for (size_t i = 0; i < option_count; i++) {
		const struct option_def *d = &option_table[i];
		if (d->help && !strstr(text, d->name))
			fail_msg("siltfs.1 does not name %s", d->name);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_table_is_sound),
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_words_of_mount),
		cmocka_unit_test(test_man_page_names_every_option),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
