/* Files that lose their last name while several mounts are there: they stay until all mounts have
 * looked, and until who has them open lets go of them (functions_deleted.lua). */
#include "test/meta_fixture.h"

#include <stdatomic.h>

#define BEAT_MS 600 /* a session lives five of them: enough for a busy machine */

/* A mount; it has at most one file open. */
struct mount {
	struct meta *m;
	atomic_uint_fast64_t open;
	atomic_int kept, looks;
};

struct fixture {
	struct server *s;
	struct mount a, b, c;
	struct meta *see; /* no mount */
	silt_ino ino;
	struct meta_statfs base;
};

static bool anything_open(void *arg)
{
	struct mount *x = arg;
	atomic_fetch_add(&x->looks, 1);
	return atomic_load(&x->open) != 0;
}

static void *is_open(void *arg, silt_ino ino)
{
	struct mount *x = arg;
	return atomic_load(&x->open) == ino ? x : NULL;
}

static void kept(void *arg, void *open, int err)
{
	struct mount *x = arg;
	assert_ptr_equal(open, x);
	assert_int_equal(err, 0);
	atomic_fetch_add(&x->kept, 1);
}

static void start(struct fixture *f, struct mount *x, unsigned heartbeat_ms)
{
	struct meta_deleted_listener l = {
		.anything_open = anything_open, .is_open = is_open, .kept = kept, .arg = x
	};
	x->m = server_open_as(f->s, (struct meta_config){ .wait_ms = 30000,
	                                                  .heartbeat_ms = heartbeat_ms,
	                                                  .opens_files = true });
	meta_hear_deleted(x->m, &l);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->s = server_start((unsigned)(uintptr_t)*state);
	f->see = server_open(f->s, NULL, 30000, 0);
	start(f, &f->a, BEAT_MS);
	start(f, &f->b, BEAT_MS);
	silt_ino d = 1;
	for (int k = 0; k < 64 && silt_ino_shard(d) == 0; k++) { /* not in the root's shard */
		char name[16];
		snprintf(name, sizeof(name), "d%d", k);
		d = must_make(f->see, 1, name, S_IFDIR | 0755);
		if (*state == (void *)1)
			break;
	}
	f->base = usage_of(f->see);
	f->ino = must_make(f->see, d, "f", S_IFREG | 0644);
	struct meta_commit c = {
		.ino = f->ino,
		.mtime = now(),
		.extent = { .off = 0, .len = 50, .pack = 11, .pack_off = 48, .stored = 100 }
	};
	assert_int_equal(commit_(f->see, &c, 1), 0);
	assert_int_equal(rename_(f->see, d, "f", 1, "f", 0, NULL), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	struct mount *v[] = { &f->a, &f->b, &f->c };
	for (int k = 0; k < 3; k++)
		if (v[k]->m)
			meta_close(v[k]->m);
	assert_no_keys(f->see, "{*}o");
	assert_no_keys(f->see, "{*}D");
	assert_no_keys(f->see, "{*}V");
	meta_close(f->see);
	server_stop(f->s);
	free(f);
	return 0;
}

static bool is_there(struct fixture *f)
{
	struct silt_inode i;
	int rc = getattr_(f->see, f->ino, &i);
	assert_true(rc == -ENOENT || (rc == 0 && i.attr.nlink == 0));
	return rc == 0;
}

static void wait_gone(struct fixture *f)
{
	for (int k = 0; k < 1000 && is_there(f); k++)
		usleep(5000);
	assert_false(is_there(f));
	struct meta_statfs u = usage_of(f->see);
	assert_int_equal(u.inodes, f->base.inodes);
	assert_int_equal(u.bytes, f->base.bytes);
	assert_no_keys(f->see, "{*}l*"); /* its bytes in the pack are dead */
}

static unsigned keys(struct fixture *f, const char *pattern)
{
	char *text = redis(f->see, "KEYS", pattern, NULL, NULL);
	unsigned n = text[0] == '(' ? 0 : 1;
	free(text);
	return n;
}

static void wait_seen(struct fixture *f)
{
	for (int k = 0; k < 1000 && keys(f, "{*}D"); k++)
		usleep(5000);
	assert_no_keys(f->see, "{*}D");
}

/* Several heartbeats of those that have any. */
static void let_beat(void)
{
	usleep(4 * BEAT_MS * 1000);
}

static void let_go(struct mount *x, silt_ino ino)
{
	atomic_store(&x->open, 0);
	assert_int_equal(DO(meta_release_deleted(x->m, ino, meta_wait_done, &w_), NULL), 0);
}

static void test_nobody_has_it(void **state)
{
	struct fixture *f = *state;
	assert_int_equal(unlink_(f->a.m, 1, "f", false, NULL), 0);
	wait_gone(f);
}

static void test_several_holders(void **state)
{
	struct fixture *f = *state;
	start(f, &f->c, BEAT_MS);
	atomic_store(&f->b.open, f->ino);
	atomic_store(&f->c.open, f->ino);
	assert_int_equal(unlink_(f->a.m, 1, "f", false, NULL), 0);
	wait_seen(f);
	assert_int_equal(atomic_load(&f->b.kept), 1);
	assert_int_equal(atomic_load(&f->c.kept), 1);
	assert_true(is_there(f));
	let_go(&f->b, f->ino);
	let_go(&f->b, f->ino); /* again: no harm */
	let_beat();
	assert_true(is_there(f));
	let_go(&f->c, f->ino);
	wait_gone(f);
}

/* The remover has it open too, and closes it before others have looked. */
static void test_closed_before_others_looked(void **state)
{
	struct fixture *f = *state;
	start(f, &f->c, 0); /* never looks */
	atomic_store(&f->a.open, f->ino);
	assert_int_equal(unlink_(f->a.m, 1, "f", true, NULL), 0);
	let_go(&f->a, f->ino);
	let_beat();
	assert_true(is_there(f));
	assert_true(keys(f, "{*}D"));
	meta_close(f->c.m);
	f->c.m = NULL;
	wait_gone(f);
}

/* A rename over it, from a directory of another shard if there is one. */
static void test_replaced(void **state)
{
	struct fixture *f = *state;
	must_make(f->see, 1, "new", S_IFREG | 0644);
	f->base.inodes++;
	atomic_store(&f->b.open, f->ino);
	assert_int_equal(rename_(f->a.m, 1, "new", 1, "f", 0, NULL), 0);
	wait_seen(f);
	assert_true(is_there(f));
	let_go(&f->b, f->ino);
	wait_gone(f);
}

/* One that does not look holds everything up, until its session is taken for dead: then nothing of
 * what it had open is kept for it. */
static void test_holder_dies(void **state)
{
	struct fixture *f = *state;
	char session[24];
	start(f, &f->c, 0);
	atomic_store(&f->c.open, f->ino);
	assert_int_equal(unlink_(f->a.m, 1, "f", false, NULL), 0);
	let_beat();
	assert_true(is_there(f));
	snprintf(session, sizeof(session), "%llu", (unsigned long long)meta_session(f->c.m));
	free(redis(f->see, "ZADD", "{0}H", "1", session));
	wait_gone(f);
}

/* An unnamed file that was refused a name, which is a link across shards, keeps its holder. */
static void test_unnamed(void **state)
{
	struct fixture *f = *state;
	struct meta_make how = { .mode = S_IFREG | 0600, .now = now() };
	struct meta_reply r;
	char name[16];
	assert_int_equal(DO(meta_make_unnamed(f->a.m, 1, &how, true, meta_wait_done, &w_), &r), 0);
	silt_ino ino = r.inode.attr.ino;
	for (int k = 0; k < 8; k++) {
		snprintf(name, sizeof(name), "e%d", k);
		silt_ino d = must_make(f->see, 1, name, S_IFDIR | 0755);
		must_make(f->see, d, "taken", S_IFREG | 0644);
		assert_int_equal(link_(f->a.m, ino, d, "taken"), -EEXIST);
		if (k % 4 == 3)
			let_beat();
		assert_int_equal(attr_of(f->see, ino).nlink, 0);
		if (k == 7)
			assert_int_equal(link_(f->a.m, ino, d, "name"), 0);
	}
	assert_int_equal(attr_of(f->see, ino).nlink, 1);
	assert_int_equal(unlink_(f->see, 1, "f", false, NULL), 0);
	wait_seen(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE_1_AND_8_SHARDS(test_nobody_has_it, setup, teardown),
		CASE_1_AND_8_SHARDS(test_several_holders, setup, teardown),
		CASE_1_AND_8_SHARDS(test_closed_before_others_looked, setup, teardown),
		CASE_1_AND_8_SHARDS(test_replaced, setup, teardown),
		CASE_1_AND_8_SHARDS(test_holder_dies, setup, teardown),
		CASE_1_AND_8_SHARDS(test_unnamed, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
