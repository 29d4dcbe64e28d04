/* One set of tests for every object store, over the store that the environment names (store_env.h).
 * Every run works below a random prefix and removes what it wrote. test/integration/test_store.py
 * runs it over all kinds and faults. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "cache/store.h"
#include "cache/store_impl.h"
#include "meta/cleanup.h"
#include "meta/lock.h"
#include "test/store_env.h"

static struct store *store;
static struct silt_log *logger;
static struct silt_metrics metrics;
static struct silt_err err;
static char root[40]; /* prefix of this run */

#define assert_ok(call)                                                                            \
	do {                                                                                       \
		long long rc_ = (call);                                                            \
		if (rc_ < 0)                                                                       \
			fail_msg("%s: %lld: %s", #call, rc_, err.text);                            \
	} while (0)

static bool is_kind(const char *kind)
{
	return strcmp(store_kind(store), kind) == 0;
}

static const char *key_of(char *out, const char *name)
{
	snprintf(out, STORE_KEY_MAX, "%s%s", root, name);
	return out;
}

/* Bytes that tell their place: damage, shifts and repeats show. */
static void fill(void *buf, size_t len, uint64_t seed)
{
	uint8_t *p = buf;
	uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
	for (size_t i = 0; i < len; i++) {
		x = x * 6364136223846793005u + 1442695040888963407u;
		p[i] = (uint8_t)(x >> 56);
	}
}

static int put(const char *key, const void *data, size_t len, unsigned flags)
{
	struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
	return store_put(store, key, &iov, 1, flags, &err);
}

static void put_get_delete(void **state)
{
	char key[STORE_KEY_MAX], back[32];
	struct iovec iov[] = { { "hello", 5 }, { "", 0 }, { NULL, 0 }, { ", world", 7 } };
	struct store_object info;

	key_of(key, "dir/with.dots_and-more/a");
	assert_ok(store_put(store, key, iov, 4, 0, &err));
	assert_int_equal(store_get(store, key, 0, sizeof(back), back, &info, &err), 12);
	assert_memory_equal(back, "hello, world", 12);
	assert_int_equal(info.size, 12);
	if (!is_kind("file"))
		assert_string_equal(info.etag, "e4d7f1b4ed2e42d15898f4b27b019da4");
	/* the same key again, other bytes: the interface allows it, siltfs does not use it */
	assert_ok(put(key, "bye", 3, 0));
	assert_int_equal(store_get(store, key, 0, sizeof(back), back, &info, &err), 3);
	assert_ok(store_delete(store, key, &err));
	assert_int_equal(store_get(store, key, 0, sizeof(back), back, &info, &err), -ENOENT);
	assert_non_null(strstr(err.text, key));
	assert_ok(store_delete(store, key, &err));
}

static void ranges(void **state)
{
	enum { SIZE = 100000 };
	static uint8_t data[SIZE], back[SIZE + 100];
	static const struct {
		uint64_t off;
		size_t len, want;
	} cases[] = { { 0, SIZE, SIZE },          { 0, SIZE + 100, SIZE }, { 0, 1, 1 },
		      { SIZE - 1, 1, 1 },         { SIZE - 1, 100, 1 },    { SIZE, 1, 0 },
		      { SIZE + 5, 10, 0 },        { 4096, 65536, 65536 },  { 99990, 100, 10 },
		      { UINT64_C(1) << 40, 1, 0 } };
	struct store_object info;
	char key[STORE_KEY_MAX];

	fill(data, SIZE, 1);
	assert_ok(put(key_of(key, "ranges"), data, SIZE, 0));
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		memset(back, 0xee, sizeof(back));
		assert_int_equal(
		        store_get(store, key, cases[i].off, cases[i].len, back, &info, &err),
		        cases[i].want);
		if (cases[i].want) {
			assert_memory_equal(back, data + cases[i].off, cases[i].want);
			assert_int_equal(info.size, SIZE);
		}
		assert_true(back[cases[i].want] == 0xee || cases[i].want == sizeof(back));
	}
	assert_int_equal(store_get(store, key, 7, 0, back, &info, &err), 0);
	assert_int_equal(info.size, SIZE);
	assert_int_equal(store_get(store, key, UINT64_MAX, 1, back, &info, &err), -EINVAL);
	assert_ok(store_delete(store, key, &err));
	assert_int_equal(store_get(store, key, 7, 0, back, &info, &err), -ENOENT);
}

static void empty_object(void **state)
{
	struct store_object info;
	char key[STORE_KEY_MAX], back[4];

	key_of(key, "empty");
	assert_ok(store_put(store, key, NULL, 0, 0, &err));
	assert_ok(store_head(store, key, &info, &err));
	assert_int_equal(info.size, 0);
	assert_int_equal(store_get(store, key, 0, 4, back, &info, &err), 0);
	assert_ok(store_delete(store, key, &err));
}

static void head(void **state)
{
	struct store_object info;
	char key[STORE_KEY_MAX];

	key_of(key, "head");
	assert_int_equal(store_head(store, key, &info, &err), -ENOENT);
	assert_ok(put(key, "12345", 5, 0));
	assert_ok(store_head(store, key, &info, &err));
	assert_int_equal(info.size, 5);
	assert_in_range(info.mtime, time(NULL) - 600, time(NULL) + 600);
	if (!is_kind("file"))
		assert_string_equal(info.etag, "827ccb0eea8a706c4c34a16891f84e7b");
	assert_ok(store_delete(store, key, &err));
}

static void exclusive(void **state)
{
	char key[STORE_KEY_MAX], back[8];

	key_of(key, "excl/once");
	assert_ok(put(key, "first", 5, STORE_EXCL));
	assert_int_equal(put(key, "second", 6, STORE_EXCL), -EEXIST);
	/* equal bytes are no proof that it was us */
	assert_int_equal(put(key, "first", 5, STORE_EXCL), -EEXIST);
	assert_int_equal(store_get(store, key, 0, 8, back, NULL, &err), 5);
	assert_memory_equal(back, "first", 5);
	assert_ok(store_delete(store, key, &err));
	assert_ok(put(key, "third", 5, STORE_EXCL));
	assert_ok(store_delete(store, key, &err));
}

struct seen {
	size_t n, stop_after;
	char last[STORE_KEY_MAX + 1];
	uint64_t bytes;
};

static int see(void *arg, const char *key, const struct store_object *info)
{
	struct seen *seen = arg;
	assert_true(strcmp(key, seen->last) > 0);
	snprintf(seen->last, sizeof(seen->last), "%s", key);
	seen->bytes += info->size;
	seen->n++;
	return seen->n == seen->stop_after ? 42 : 0;
}

static size_t count(const char *prefix, const char *after)
{
	struct seen seen = { 0 };
	assert_ok(store_list(store, prefix, after, see, &seen, &err));
	return seen.n;
}

static atomic_int failures;

static void put_numbered(void *arg, size_t i)
{
	char key[STORE_KEY_MAX];
	struct silt_err e = { 0 };
	struct iovec iov = { .iov_base = "x", .iov_len = 1 };

	/* three directories, so that sorting across them is tested ('-' < '/' < '0') */
	snprintf(key, sizeof(key), "%slist/%s/k%06zu", root,
	         (const char *[]){ "a", "a-", "a0" }[i % 3], i);
	if (store_put(store, key, &iov, 1, 0, &e) < 0) {
		atomic_fetch_add(&failures, 1);
		fprintf(stderr, "%s\n", e.text);
	}
}

static void listing(void **state)
{
	size_t n = store_env_setting("LIST", 1100);
	char prefix[STORE_KEY_MAX], after[STORE_KEY_MAX], other[STORE_KEY_MAX];
	SILT_FREE const char **keys = calloc(n + 1, sizeof(*keys));
	SILT_FREE char *room = malloc((n + 1) * 80);
	struct seen seen = { 0 };

	atomic_store(&failures, 0);
	store_env_spread(8, put_numbered, NULL, n);
	assert_int_equal(atomic_load(&failures), 0);
	key_of(prefix, "list/");
	assert_ok(store_list(store, prefix, "", see, &seen, &err));
	assert_int_equal(seen.n, n);
	assert_int_equal(seen.bytes, n);
	assert_int_equal(count(key_of(after, "list/a/"), ""), (n + 2) / 3);
	assert_int_equal(count(key_of(after, "list/a"), ""), n);
	assert_int_equal(count(key_of(after, "list/a/k00000"), ""), n < 10 ? (n + 2) / 3 : 4);
	assert_int_equal(count(key_of(after, "list/nothing"), ""), 0);
	assert_int_equal(count(key_of(after, "nothing/"), ""), 0);
	/* after: a key, one between keys, a directory, the end */
	key_of(after, "list/a/k000003");
	assert_int_equal(count(prefix, after), n / 3 + (n + 2) / 3 - 2); /* a0, a without 0 and 3 */
	key_of(after, "list/a0/");
	key_of(other, "list/a0");
	assert_int_equal(count(prefix, after), n / 3);
	assert_int_equal(count(prefix, other), n / 3);
	assert_int_equal(count(prefix, key_of(after, "list/z")), 0);
	seen = (struct seen){ .stop_after = 5 };
	assert_int_equal(store_list(store, prefix, "", see, &seen, &err), 42);
	assert_int_equal(seen.n, 5);

	for (size_t i = 0; i < n; i++) {
		keys[i] = room + 80 * i;
		snprintf(room + 80 * i, 80, "%slist/%s/k%06zu", root,
		         (const char *[]){ "a", "a-", "a0" }[i % 3], i);
	}
	snprintf(room + 80 * n, 80, "%slist/was/never/there", root);
	keys[n] = room + 80 * n;
	assert_ok(store_delete_many(store, keys, n + 1, &err));
	assert_int_equal(count(prefix, ""), 0);
	assert_ok(store_delete_many(store, keys, 3, &err));
	assert_ok(store_delete_many(store, keys, 0, &err));
}

static void large_object(void **state)
{
	size_t len = (size_t)store_env_setting("LARGE_MIB", 64) << 20;
	SILT_FREE uint8_t *data = malloc(len), *back = malloc(len + 1);
	struct iovec iov[] = { { data, 1 },
		               { data + 1, len / 2 },
		               { data + 1 + len / 2, len - 1 - len / 2 } };
	struct store_object info;
	char key[STORE_KEY_MAX];

	assert_true(data && back);
	fill(data, len, 7);
	key_of(key, "large");
	assert_ok(store_put(store, key, iov, 3, STORE_EXCL, &err));
	assert_ok(store_head(store, key, &info, &err));
	assert_int_equal(info.size, len);
	long long n = store_get(store, key, 0, len + 1, back, &info, &err);
	assert_ok(n);
	assert_int_equal(n, len);
	assert_true(memcmp(data, back, len) == 0);
	assert_ok(store_delete(store, key, &err));
}

static void work(void *arg, size_t i)
{
	enum { MAX = 70000 };
	SILT_FREE uint8_t *data = malloc(MAX), *back = malloc(MAX);
	struct silt_err e = { 0 };
	size_t len = (i * 7919) % MAX;
	char key[STORE_KEY_MAX], name[64];
	struct iovec iov = { .iov_base = data, .iov_len = len };
	bool ok;

	fill(data, len, i);
	snprintf(name, sizeof(name), "many/%02zx/%zu", i % 16, i);
	key_of(key, name);
	ok = store_put(store, key, &iov, 1, i % 2 ? STORE_EXCL : 0, &e) == 0 &&
	     store_get(store, key, 0, MAX, back, NULL, &e) == (ssize_t)len &&
	     memcmp(data, back, len) == 0 && store_head(store, key, NULL, &e) == 0 &&
	     store_delete(store, key, &e) == 0;
	if (!ok) {
		atomic_fetch_add(&failures, 1);
		fprintf(stderr, "object %zu: %s\n", i, e.text);
	}
}

static void many_threads(void **state)
{
	unsigned n = store_env_setting("THREADS", 32);

	atomic_store(&failures, 0);
	store_env_spread(n, work, NULL, (size_t)n * store_env_setting("OPS", 40));
	assert_int_equal(atomic_load(&failures), 0);
}

static struct {
	atomic_int winners, losers;
} race;

static void race_for_one(void *arg, size_t i)
{
	struct silt_err e = { 0 };
	char key[STORE_KEY_MAX], name[32];
	struct iovec iov = { .iov_base = "same", .iov_len = 4 };

	snprintf(name, sizeof(name), "race/%zu", i / 8);
	int rc = store_put(store, key_of(key, name), &iov, 1, STORE_EXCL, &e);
	if (rc == 0)
		atomic_fetch_add(&race.winners, 1);
	else if (rc == -EEXIST)
		atomic_fetch_add(&race.losers, 1);
	else
		fprintf(stderr, "%s\n", e.text);
}

/* One of eight that write the same key at once wins. s3v2 cannot promise that. */
static void exclusive_race(void **state)
{
	enum { KEYS = 12 };
	char key[STORE_KEY_MAX], name[32];

	if (is_kind("s3v2"))
		skip();
	store_env_spread(8, race_for_one, NULL, KEYS * 8);
	assert_int_equal(atomic_load(&race.winners), KEYS);
	assert_int_equal(atomic_load(&race.losers), KEYS * 7);
	for (int i = 0; i < KEYS; i++) {
		snprintf(name, sizeof(name), "race/%d", i);
		assert_ok(store_delete(store, key_of(key, name), &err));
	}
}

static void bad_keys(void **state)
{
	static const char *const bad[] = { "",       "/a",     "a//b", ".",    "..",  "a/.",
		                           "a/../b", "a b",    "a\n",  "a%41", "a?b", "\xc3",
		                           "a/",     "~tmp/a", "./a",  "../a" };
	static const char *const good[] = { "a..b", "...", "-", "_", "a/..b", "a.", "0/.b" };
	char *long_key = malloc(STORE_KEY_MAX + 2), b[4], key[STORE_KEY_MAX];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(put(bad[i], "x", 1, 0), -EINVAL);
		assert_int_equal(store_get(store, bad[i], 0, 1, b, NULL, &err), -EINVAL);
		assert_int_equal(store_head(store, bad[i], NULL, &err), -EINVAL);
		assert_int_equal(store_delete(store, bad[i], &err), -EINVAL);
		assert_int_equal(store_delete_many(store, &bad[i], 1, &err), -EINVAL);
	}
	memset(long_key, 'k', STORE_KEY_MAX + 1);
	long_key[STORE_KEY_MAX + 1] = '\0';
	assert_int_equal(put(long_key, "x", 1, 0), -EINVAL);
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_ok(put(key_of(key, good[i]), "x", 1, 0));
		assert_ok(store_delete(store, key, &err));
	}
	for (int i = 100; i < STORE_KEY_MAX; i += 100)
		long_key[i] = '/'; /* file names have at most 255 bytes */
	long_key[STORE_KEY_MAX] = '\0';
	assert_ok(put(long_key, "x", 1, 0));
	assert_int_equal(store_get(store, long_key, 0, 4, b, NULL, &err), 1);
	assert_ok(store_delete(store, long_key, &err));
	free(long_key);
}

static void check_and_text(void **state)
{
	assert_ok(store_check(store, root, &err));
	assert_int_equal(count(root, ""), 0);
	assert_true(strlen(store_where(store)) > 0);
}

/* Opens a store that differs in one way, makes a PUT there and expects an error that says `word`.
 */
static void expect_refusal(const struct store_config *cfg, int code, const char *word)
{
	struct store *other;
	struct iovec iov = { .iov_base = "x", .iov_len = 1 };
	char key[STORE_KEY_MAX], b[1];

	assert_ok(store_open(cfg, &other, &err));
	assert_int_equal(store_put(other, key_of(key, "refused"), &iov, 1, 0, &err), code);
	if (!strstr(err.text, word))
		fail_msg("\"%s\" does not say \"%s\"", err.text, word);
	assert_int_equal(store_get(other, key, 0, 1, b, NULL, &err), code);
	store_close(other);
}

static void wrong_credentials(void **state)
{
	struct store_config cfg = store_env_config(logger, &metrics);
	struct store_credentials keys;

	if (is_kind("file"))
		skip();
	assert_ok(store_credentials(NULL, &keys, &err));
	cfg.access_key = keys.access_key;
	cfg.secret_key = "wrong";
	expect_refusal(&cfg, -EACCES, "secret key");
	cfg.access_key = "nobody";
	expect_refusal(&cfg, -EACCES, "access key");
	store_credentials_free(&keys);
}

static void missing_bucket(void **state)
{
	struct store_config cfg = store_env_config(logger, &metrics);
	char place[1024];

	snprintf(place, sizeof(place), "%s", cfg.bucket);
	if (is_kind("file")) {
		strcat(place, "-not-there");
	} else {
		char *p = strstr(place, "://") + 3;
		strcpy(strchr(p, '/'), "/silt-no-such-bucket");
	}
	cfg.bucket = place;
	expect_refusal(&cfg, -ENOENT, is_kind("file") ? "does not exist" : "no such bucket");
}

static void create_bucket(void **state)
{
	struct store_config cfg = store_env_config(logger, &metrics);
	char place[1024], id[9];
	struct store *other;

	store_random_hex(id, 4);
	if (is_kind("file")) {
		snprintf(place, sizeof(place), "%s/deep/new-%s", cfg.bucket, id);
	} else {
		snprintf(place, sizeof(place), "%s", cfg.bucket);
		char *p = strchr(strstr(place, "://") + 3, '/');
		snprintf(p, sizeof(place) - (size_t)(p - place), "/silt-new-%s/pre/fix/", id);
	}
	cfg.bucket = place;
	assert_ok(store_open(&cfg, &other, &err));
	assert_int_equal(store_check(other, "", &err), -ENOENT);
	assert_ok(store_create_bucket(other, &err));
	assert_ok(store_create_bucket(other, &err));
	assert_ok(store_check(other, "x/", &err));
	store_close(other);
}

static void bad_addresses(void **state)
{
	static const char *const bad[] = { "",
		                           "bucket",
		                           "ftp://h/b",
		                           "http://h",
		                           "http:///b",
		                           "http://h//b",
		                           "http://k:s@h/b",
		                           "http://h/b/a b",
		                           "http://h/b/../c",
		                           "http://h?x/b",
		                           "http://h/b/..",
		                           "https://h/b?c" };
	struct store_config cfg = store_env_config(logger, &metrics);
	struct store *other;

	if (is_kind("file"))
		skip();
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cfg.bucket = bad[i];
		assert_int_equal(store_open(&cfg, &other, &err), -EINVAL);
	}
}

static void nobody_listens(void **state)
{
	struct store_config cfg = store_env_config(logger, &metrics);
	struct store *other;

	if (is_kind("file"))
		skip();
	cfg.bucket = "http://127.0.0.1:9/bucket"; /* discard: nobody runs it */
	cfg.retries = 2;
	assert_ok(store_open(&cfg, &other, &err));
	assert_int_equal(store_check(other, "", &err), -EIO);
	assert_non_null(strstr(err.text, "after 2 tries"));
	store_close(other);
	cfg.bucket = "http://no-such-host.invalid/bucket";
	assert_ok(store_open(&cfg, &other, &err));
	assert_int_equal(store_check(other, "", &err), -EIO);
	store_close(other);
}

static int set_up(void **state)
{
	struct store_config cfg = store_env_config(logger, &metrics);
	char id[9];

	if (silt_log_open(NULL, SILT_LOG_WARN, NULL, &logger) < 0)
		return -1;
	cfg.log = logger;
	store_random_hex(id, 4);
	snprintf(root, sizeof(root), "t-%s/", id);
	if (store_open(&cfg, &store, &err) < 0 || store_create_bucket(store, &err) < 0) {
		fprintf(stderr, "%s\n", err.text);
		return -1;
	}
	return 0;
}

static int tear_down(void **state)
{
	store_close(store);
	fprintf(stderr, "retries %llu, errors %llu\n",
	        (unsigned long long)silt_metric_get(&metrics, M_STORE_RETRIES),
	        (unsigned long long)silt_metric_get(&metrics, M_STORE_ERRORS));
	silt_log_close(logger);
	return 0;
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(put_get_delete), cmocka_unit_test(ranges),
		cmocka_unit_test(empty_object),   cmocka_unit_test(head),
		cmocka_unit_test(exclusive),      cmocka_unit_test(exclusive_race),
		cmocka_unit_test(listing),        cmocka_unit_test(large_object),
		cmocka_unit_test(many_threads),   cmocka_unit_test(bad_keys),
		cmocka_unit_test(check_and_text), cmocka_unit_test(wrong_credentials),
		cmocka_unit_test(missing_bucket), cmocka_unit_test(create_bucket),
		cmocka_unit_test(bad_addresses),  cmocka_unit_test(nobody_listens),
	};

	if (!getenv("SILT_TEST_STORE_KIND") || !getenv("SILT_TEST_STORE_BUCKET")) {
		fprintf(stderr, "set SILT_TEST_STORE_KIND and SILT_TEST_STORE_BUCKET\n");
		return 77; /* skipped, for meson */
	}
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
