/* Requests that are sent again because their reply was lost, while another client changed the same
 * thing after the first execution: they are not executed again, so what the other client was told
 * is so stays so. The proxy (redis_proxy.h) loses the reply and lets no connection through until
 * the other client is done. */
#include "test/meta_fixture.h"

#include <pthread.h>

#include "meta/engine.h"
#include "test/redis_proxy.h"

struct fixture {
	struct server *s;
	struct proxy *x;
	struct meta *m;   /* through the proxy */
	struct meta *see; /* not */
	void (*other)(struct fixture *f);
	silt_ino ino, made;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->s = server_start((unsigned)(uintptr_t)*state);
	f->x = proxy_start(f->s->dir, meta_local_socket(f->s->hold));
	f->m = server_open(f->s, proxy_address(f->x), 30000, 0);
	f->see = server_open(f->s, NULL, 30000, 0);
	f->ino = must_make(f->see, 1, "file", S_IFREG | 0644);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	meta_close(f->m);
	meta_close(f->see);
	proxy_stop(f->x);
	server_stop(f->s);
	free(f);
	return 0;
}

static void *other_main(void *arg)
{
	struct fixture *f = arg;
	bool struck = proxy_wait_struck(f->x);
	if (struck)
		f->other(f);
	proxy_disarm(f->x);
	return struck ? f : NULL;
}

/* `call` loses its reply; `other_` runs before it is sent again. */
#define BETWEEN(f, word, other_, call)                                                             \
	({                                                                                         \
		pthread_t thread_;                                                                 \
		void *struck_;                                                                     \
		(f)->other = other_;                                                               \
		proxy_arm((f)->x, word, 0, CUT_AND_HOLD);                                          \
		assert_int_equal(pthread_create(&thread_, NULL, other_main, f), 0);                \
		int rc__ = (call);                                                                 \
		pthread_join(thread_, &struck_);                                                   \
		assert_non_null(struck_);                                                          \
		rc__;                                                                              \
	})

static struct meta_commit commit_of(silt_ino ino, uint64_t off, uint64_t len, unsigned pack)
{
	return (struct meta_commit){
		.ino = ino,
		.mtime = now(),
		.extent = { .off = off, .len = len, .pack = pack, .pack_off = 48, .stored = 100 }
	};
}

static void must_commit(struct meta *m, silt_ino ino, uint64_t off, uint64_t len, unsigned pack)
{
	struct meta_commit c = commit_of(ino, off, len, pack);
	assert_int_equal(commit_(m, &c, 1), 0);
	assert_int_equal(c.err, 0);
}

static int set_mode(struct meta *m, silt_ino ino, uint32_t mode)
{
	struct silt_attr v = { .mode = mode };
	return DO(meta_setattr(m, ino, META_SET_MODE, &v, now(), meta_wait_done, &w_), NULL);
}

/* Live bytes of a pack in shard 0, where the root's files are. */
static long live(struct meta *m, unsigned pack)
{
	char key[32], field[8];
	snprintf(key, sizeof(key), "{0}l%x", pack / 64);
	snprintf(field, sizeof(field), "%u", pack % 64);
	char *text = redis(m, "HGET", key, field, NULL);
	long n = text[0] == '"' ? strtol(text + 1, NULL, 10) : 0;
	free(text);
	return n;
}

static void write_behind(struct fixture *f)
{
	must_commit(f->see, f->ino, 10, 90, 12);
}

/* A truncation cuts nothing that was written after it. */
static void test_truncation(void **state)
{
	struct fixture *f = *state;
	struct silt_inode i;
	for (uint64_t size = 0; size <= 10; size += 10) {
		must_commit(f->see, f->ino, 0, 200, 11);
		assert_int_equal(
		        BETWEEN(f, "silt1_setattr", write_behind, resize_(f->m, f->ino, size)), 0);
		assert_int_equal(getattr_(f->see, f->ino, &i), 0);
		assert_int_equal(i.attr.size, 100);
		assert_int_equal(usage_of(f->see).bytes, 100);
		assert_int_equal(live(f->see, 12), 100);
		assert_int_equal(resize_(f->see, f->ino, 0), 0);
	}
}

static void cut_all(struct fixture *f)
{
	assert_int_equal(resize_(f->see, f->ino, 0), 0);
}

static void write_over(struct fixture *f)
{
	must_commit(f->see, f->ino, 0, 50, 12);
}

/* Committed bytes come back neither after a truncation nor over what was written since. */
static void test_commit(void **state)
{
	struct fixture *f = *state;
	struct silt_inode i;
	struct meta_commit c[2] = { commit_of(f->ino, 0, 50, 11), commit_of(f->ino, 50, 50, 11) };
	for (size_t n = 1; n <= 2; n++) {
		assert_int_equal(BETWEEN(f, "silt1_commit", cut_all, commit_(f->m, c, n)), 0);
		assert_true(c[0].err == 0 && c[n - 1].err == 0);
		assert_int_equal(c[n - 1].version, c[0].version + n - 1);
		assert_int_equal(getattr_(f->see, f->ino, &i), 0);
		assert_int_equal(i.attr.size, 0);
		assert_int_equal(i.attr.version, c[n - 1].version + 1);
		assert_int_equal(i.map, SILT_MAP_NONE);
		assert_int_equal(usage_of(f->see).bytes, 0);
	}
	assert_int_equal(BETWEEN(f, "silt1_commit", write_over, commit_(f->m, c, 1)), 0);
	assert_int_equal(getattr_(f->see, f->ino, &i), 0);
	assert_int_equal(i.map, SILT_MAP_INLINE);
	assert_int_equal(i.extent.pack, 12);
	assert_int_equal(i.attr.version, c[0].version + 1);
	assert_int_equal(live(f->see, 12), 100);
}

static void open_it(struct fixture *f)
{
	assert_int_equal(set_mode(f->see, f->ino, 0666), 0);
}

static void test_chmod(void **state)
{
	struct fixture *f = *state;
	assert_int_equal(BETWEEN(f, "silt1_setattr", open_it, set_mode(f->m, f->ino, 0600)), 0);
	assert_int_equal(attr_of(f->see, f->ino).mode, S_IFREG | 0666);
}

static void remove_new(struct fixture *f)
{
	assert_int_equal(unlink_(f->see, 1, "new", false, NULL), 0);
}

static void replace_new(struct fixture *f)
{
	remove_new(f);
	f->made = must_make(f->see, 1, "new", S_IFREG | 0600);
}

static void move_new(struct fixture *f)
{
	assert_int_equal(rename_(f->see, 1, "new", 1, "moved", 0, NULL), 0);
	f->made = must_make(f->see, 1, "new", S_IFREG | 0600);
	struct silt_inode i;
	struct silt_attr v = { .atime = { 5, 6 } };
	assert_int_equal(look(f->see, 1, "moved", &i), 0);
	assert_int_equal(
	        DO(meta_setattr(f->see, i.attr.ino, META_SET_ATIME, &v, now(), meta_wait_done, &w_),
	           NULL),
	        0);
}

/* A file that was made, and removed, replaced or moved by another client, is not made again; its
 * maker is told of the one that it made. */
static void test_make(void **state)
{
	struct fixture *f = *state;
	struct silt_inode i;
	silt_ino ino;
	uint64_t inodes = usage_of(f->see).inodes;
	assert_int_equal(
	        BETWEEN(f, "silt1_make", remove_new, make(f->m, 1, "new", S_IFREG | 0644, &ino)),
	        0);
	assert_int_equal(look(f->see, 1, "new", NULL), -ENOENT);
	assert_int_equal(getattr_(f->see, ino, NULL), -ENOENT);
	assert_int_equal(usage_of(f->see).inodes, inodes);

	usleep(600000); /* the lease on the root runs out */
	assert_int_equal(
	        BETWEEN(f, "silt1_make", replace_new, make(f->m, 1, "new", S_IFREG | 0644, &ino)),
	        0);
	assert_int_equal(look(f->see, 1, "new", &i), 0);
	assert_true(i.attr.ino == f->made && ino != f->made);
	assert_int_equal(usage_of(f->see).inodes, inodes + 1);
	remove_new(f);

	usleep(600000);
	assert_int_equal(
	        BETWEEN(f, "silt1_make", move_new, make(f->m, 1, "new", S_IFREG | 0644, &ino)), 0);
	assert_int_equal(look(f->see, 1, "moved", &i), 0);
	assert_true(i.attr.ino == ino && ino != f->made);
	assert_int_equal(usage_of(f->see).inodes, inodes + 2);
}

/* Redis that has lost its last second gives the id of a session that goes on to nobody else. */
static void test_ids_are_given_once(void **state)
{
	struct fixture *f = *state;
	uint64_t id = meta_session(f->see);
	for (int i = 0; i < 2; i++) {
		free(redis(f->see, i ? "DEL" : "HDEL", "{0}c", i ? NULL : "s", NULL));
		struct meta *m = server_open(f->s, NULL, 30000, 0);
		assert_true(meta_session(m) > id);
		id = meta_session(m);
		meta_close(m);
	}
}

/* What another client does when this one's session has expired. */
static void take_for_dead(struct fixture *f)
{
	char session[24];
	redisReply *reply = NULL;
	snprintf(session, sizeof(session), "%llu", (unsigned long long)meta_session(f->m));
	free(redis(f->see, "ZADD", "{0}H", "1", session));
	struct conn_request *r = call_begin(f->see, 0, F_SESSION_CLAIM, 2, 0);
	conn_arg_str(&r, session);
	conn_arg_u64(&r, 25000);
	assert_int_equal(call_checked(f->see, F_SESSION_CLAIM, r, &reply, NULL), 0);
	assert_non_null(reply_at(reply, 1));
	tx_recover(f->see, session, reply_at(reply, 1)->str);
	freeReplyObject(reply);
}

static void take_for_dead_and_make(struct fixture *f)
{
	take_for_dead(f);
	f->made = must_make(f->see, 1, "victim", S_IFREG | 0600);
}

/* A client that was cut off for so long that others took it for dead: what it sends again then is not
 * executed again. */
static void test_taken_for_dead(void **state)
{
	struct fixture *f = *state;
	struct silt_inode i;
	must_make(f->see, 1, "victim", S_IFREG | 0644);
	int rc = BETWEEN(f, "silt1_unlink", take_for_dead_and_make,
	                 unlink_(f->m, 1, "victim", false, NULL));
	assert_int_equal(rc, 0);
	assert_int_equal(look(f->see, 1, "victim", &i), 0);
	assert_true(i.attr.ino == f->made);
}

static void test_append_taken_for_dead(void **state)
{
	struct fixture *f = *state;
	struct meta_commit c = commit_of(f->ino, 0, 100, 11);
	c.append = true;
	int rc = BETWEEN(f, "silt1_append", take_for_dead, commit_(f->m, &c, 1));
	assert_int_equal(rc, 0);
	assert_int_equal(c.err, 0);
	assert_int_equal(attr_of(f->see, f->ino).size, 100);
	assert_int_equal(live(f->see, 11), 100);
}

/* What a session's requests were answered goes with the session. */
static void test_nothing_is_left(void **state)
{
	struct fixture *f = *state;
	struct meta *m = server_open(f->s, NULL, 30000, 0);
	char pattern[40];
	snprintf(pattern, sizeof(pattern), "{*}[rm]%llu", (unsigned long long)meta_session(m));
	silt_ino ino = must_make(m, 1, "name", S_IFREG | 0644);
	must_commit(m, ino, 0, 10, 12);
	assert_int_equal(set_mode(m, ino, 0600), 0);
	char *text = redis(m, "KEYS", pattern, NULL, NULL);
	assert_string_not_equal(text, "(empty)\n");
	free(text);
	meta_close(m);
	assert_no_keys(f->see, pattern);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE_1_AND_8_SHARDS(test_truncation, setup, teardown),
		CASE_1_AND_8_SHARDS(test_commit, setup, teardown),
		CASE_1_AND_8_SHARDS(test_chmod, setup, teardown),
		CASE_1_AND_8_SHARDS(test_make, setup, teardown),
		CASE_1_SHARD(test_ids_are_given_once, setup, teardown),
		CASE_1_AND_8_SHARDS(test_taken_for_dead, setup, teardown),
		CASE_1_AND_8_SHARDS(test_append_taken_for_dead, setup, teardown),
		CASE_1_AND_8_SHARDS(test_nothing_is_left, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
