/* Compaction when Redis is lost in the middle, and what it must not touch: replies that don't come, calls that are sent
 * again when others have changed the file meanwhile, bytes that were appended, bytes that don't show. Real Redis behind
 * a proxy, a real directory as store. */
#include <pthread.h>
#include <time.h>

#include "cache/compact_impl.h"
#include "cache/pack.h"
#include "meta/extent.h"
#include "test/meta_fixture.h"
#include "test/redis_proxy.h"

#define OLD  2000u /* the pack that is half used */
#define PART ((size_t)512 << 10)
#define REST ((size_t)3 << 20)

struct fixture {
	struct server *s;
	struct proxy *x;
	struct meta *m, *other; /* through the proxy, and past it */
	struct store *store;
	struct silt_metrics metrics;
	char dir[SCRATCH_MAX];
	silt_ino file, rest;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct silt_err err;
	f->s = server_start(1);
	f->x = proxy_start(f->s->dir, meta_local_socket(f->s->hold));
	f->m = server_open(f->s, proxy_address(f->x), 30000, 0);
	f->other = server_open(f->s, NULL, 30000, 0);
	scratch_make(f->dir);
	struct store_config cfg = { .kind = "file", .bucket = f->dir };
	assert_int_equal(store_open(&cfg, &f->store, &err), 0);
	assert_int_equal(store_create_bucket(f->store, &err), 0);
	f->file = must_make(f->other, SILT_ROOT_INO, "file", S_IFREG | 0644);
	f->rest = must_make(f->other, SILT_ROOT_INO, "rest", S_IFREG | 0644);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	store_close(f->store);
	meta_close(f->m);
	meta_close(f->other);
	proxy_stop(f->x);
	server_stop(f->s);
	scratch_remove(f->dir);
	free(f);
	return 0;
}

static int commit_extent(struct fixture *f, silt_ino ino, const struct silt_extent *e, bool append)
{
	struct meta_commit c = { .ino = ino, .mtime = now(), .extent = *e, .append = append };
	assert_int_equal(commit_(f->other, &c, 1), 0);
	return c.err;
}

static bool there(struct fixture *f, uint64_t pack)
{
	char key[PACK_KEY_MAX];
	pack_key(pack, key);
	return store_head(f->store, key, NULL, NULL) == 0;
}

static int64_t live_of(struct fixture *f, uint64_t pack)
{
	int64_t n;
	assert_int_equal(meta_packs_count(f->other, 0, &pack, 1, &n), 0);
	return n;
}

/* The pack of the file's beginning, as it stands. */
static uint64_t pack_of(struct fixture *f)
{
	struct meta_place p = { .ino = f->file };
	struct silt_extent e;
	assert_int_equal(meta_read_places(f->other, 0, &p, 1), 0);
	assert_true(p.entries && extent_decode(p.entries, p.len, &e) > 0);
	free(p.entries);
	return e.pack;
}

/* A pack with `parts` extents of the file, and most of it of one that is removed. */
static void half_used(struct fixture *f, unsigned parts, bool append)
{
	struct pack_builder *b = pack_builder_new(OLD, meta_volume(f->m)->id, 0);
	uint8_t *data = malloc(REST);
	struct silt_extent e[4];
	const struct iovec *iov;
	struct silt_err err;
	int niov;
	size_t total;
	char key[PACK_KEY_MAX];
	for (size_t i = 0; i < REST; i++)
		data[i] = (uint8_t)(i * 2654435761u >> 13);
	for (unsigned i = 0; i < parts; i++)
		assert_int_equal(pack_builder_add(b, f->file, i * PART, data, PART, &e[i]), 0);
	assert_int_equal(pack_builder_add(b, f->rest, 0, data, REST, &e[parts]), 0);
	assert_int_equal(pack_builder_finish(b, &iov, &niov, &total), 0);
	pack_key(OLD, key);
	assert_int_equal(store_put(f->store, key, iov, niov, STORE_EXCL, &err), 0);
	for (unsigned i = 0; i < parts; i++)
		assert_int_equal(commit_extent(f, f->file, &e[i], append), 0);
	assert_int_equal(commit_extent(f, f->rest, &e[parts], false), 0);
	assert_int_equal(unlink_(f->other, SILT_ROOT_INO, "rest", false, NULL), 0);
	pack_builder_free(b);
	free(data);
}

static bool go_on(void *arg)
{
	(void)arg;
	return true;
}

static bool stopping(void *arg)
{
	(void)arg;
	return false;
}

static void compact_all(struct fixture *f)
{
	struct compactor_config cfg = { .store = f->store, .meta = f->m, .log = f->s->log, .metrics = &f->metrics,
		                        .rate = 1u << 30, .wait_ms = 50, .budget_ms = 60000, .go_on = go_on,
		                        .stopping = stopping, .arg = f };
	struct compactor *c;
	assert_int_equal(compactor_open(&cfg, &c), 0);
	assert_int_equal(compactor_look(c), 0);
	usleep(60000);
	assert_int_equal(compactor_look(c), 0);
	compactor_close(c);
}

/* No object that nobody names is left, but the old one, and all that is named is there. */
static void check_objects(struct fixture *f)
{
	assert_true(there(f, pack_of(f)));
	for (uint64_t p = 1; p < 100; p++)
		assert_int_equal(there(f, p), live_of(f, p) > 0);
}

static void test_log_reply_lost(void **state)
{
	struct fixture *f = *state;
	half_used(f, 2, false);
	proxy_arm(f->x, "silt1_move_log", 0, CUT_REPLY);
	compact_all(f);
	assert_true(proxy_disarm(f->x) > 0);
	assert_int_not_equal(pack_of(f), OLD); /* it was done */
	assert_int_equal(live_of(f, OLD), 0);
	check_objects(f);
}

static void *change_meanwhile(void *arg)
{
	struct fixture *f = arg;
	struct silt_extent e = { .off = 2 * PART, .len = 4096, .pack = 1000, .pack_off = 48, .stored = 70 };
	if (proxy_wait_struck(f->x))
		assert_int_equal(commit_extent(f, f->file, &e, false), 0);
	proxy_disarm(f->x);
	return NULL;
}

static void test_reply_lost_and_changed(void **state)
{
	struct fixture *f = *state;
	pthread_t t;
	half_used(f, 1, false);
	proxy_arm(f->x, "silt1_move", 0, CUT_AND_HOLD);
	assert_int_equal(pthread_create(&t, NULL, change_meanwhile, f), 0);
	compact_all(f);
	pthread_join(t, NULL);
	assert_int_not_equal(pack_of(f), OLD);
	check_objects(f);
}

/* What was appended keeps its pack, by which an append that is sent again is known, for a day. */
static void test_appended(void **state)
{
	struct fixture *f = *state;
	struct store_object o;
	struct group_result r;
	char key[PACK_KEY_MAX];
	half_used(f, 2, true);
	compact_all(f);
	assert_int_equal(pack_of(f), OLD);
	check_objects(f);

	pack_key(OLD, key);
	assert_int_equal(store_head(f->store, key, &o, NULL), 0);
	struct compactor_config cfg = { .store = f->store, .meta = f->m, .log = f->s->log, .go_on = go_on,
		                        .stopping = stopping, .arg = f };
	struct noted v = { .pack = OLD, .size = o.size, .live = (uint64_t)live_of(f, OLD), .mtime = time(NULL) };
	assert_int_equal(compact_group(&cfg, &v, 1, 50, NULL, &r), 0);
	assert_true(v.held && !r.stored);
	v.mtime -= APPEND_HOLD + 1;
	v.held = false;
	assert_int_equal(compact_group(&cfg, &v, 1, 50, NULL, &r), 0);
	assert_true(!v.held && r.stored);
	assert_int_equal(r.moved, 2);
	assert_int_equal(pack_of(f), 50);
}

/* What later writes cover is not copied, and does not keep the old pack. */
static void test_hidden(void **state)
{
	struct fixture *f = *state;
	half_used(f, 2, false);
	struct silt_extent over = { .len = 2 * PART, .pack = 1000, .pack_off = 48, .stored = 2 * PART };
	assert_int_equal(commit_extent(f, f->file, &over, false), 0);
	assert_true(live_of(f, OLD) > 0);
	compact_all(f);
	assert_int_equal(live_of(f, OLD), 0);
	assert_int_equal(pack_of(f), 1000);
	for (uint64_t p = 1; p < 100; p++)
		assert_false(there(f, p));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_log_reply_lost, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reply_lost_and_changed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_appended, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hidden, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
