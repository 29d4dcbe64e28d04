/* Packs that nobody uses any more (meta/packs.c, cache/worker.c): their objects go, once and only when
 * no shard uses them; what names them later is refused; a client that was late stores its bytes
 * anew. Real Redis, a real directory as store. */
#include <pthread.h>
#include <stdatomic.h>

#include "cache/pack.h"
#include "cache/worker.h"
#include "test/meta_fixture.h"

#define SHARDS 4u

struct fixture {
	struct server *s;
	struct meta *m;
	struct store *store;
	char dir[SCRATCH_MAX];
	silt_ino file[8]; /* in several shards */
	char name[8][8];
	silt_ino home[8];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct silt_err err;
	f->s = server_start(SHARDS);
	f->m = server_open(f->s, NULL, 0, 0);
	scratch_make(f->dir);
	struct store_config cfg = { .kind = "file", .bucket = f->dir };
	assert_int_equal(store_open(&cfg, &f->store, &err), 0);
	assert_int_equal(store_create_bucket(f->store, &err), 0);
	for (unsigned i = 0; i < 8; i++) {
		snprintf(f->name[i], sizeof(f->name[i]), "d%u", i);
		f->home[i] = must_make(f->m, SILT_ROOT_INO, f->name[i], S_IFDIR | 0755);
		f->file[i] = must_make(f->m, f->home[i], "f", S_IFREG | 0644);
	}
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	store_close(f->store);
	meta_close(f->m);
	server_stop(f->s);
	scratch_remove(f->dir);
	free(f);
	return 0;
}

static void put(struct fixture *f, uint64_t pack)
{
	char key[PACK_KEY_MAX];
	struct iovec iov = { "bytes", 5 };
	struct silt_err err;
	pack_key(pack, key);
	assert_int_equal(store_put(f->store, key, &iov, 1, STORE_EXCL, &err), 0);
}

static bool there(struct fixture *f, uint64_t pack)
{
	char key[PACK_KEY_MAX];
	struct silt_err err;
	pack_key(pack, key);
	int rc = store_head(f->store, key, NULL, &err);
	assert_true(rc == 0 || rc == -ENOENT);
	return rc == 0;
}

/* Puts one extent of `pack` into file `i`, instead of what it has. */
static int commit_into(struct meta *m, silt_ino ino, uint64_t pack)
{
	struct meta_commit c = { .ino = ino,
		                 .mtime = now(),
		                 .extent = { .len = 4096, .pack = pack, .pack_off = 48, .stored = 4136 } };
	assert_int_equal(commit_(m, &c, 1), 0);
	return c.err;
}

static bool bury_one(struct fixture *f, uint64_t pack)
{
	bool dead;
	assert_int_equal(meta_packs_bury(f->m, &pack, 1, &dead), 0);
	return dead;
}

static size_t listed(struct fixture *f)
{
	size_t all = 0;
	for (unsigned s = 0; s < SHARDS; s++) {
		uint64_t cursor = 0, *packs;
		size_t n;
		do {
			assert_int_equal(meta_dead_packs(f->m, s, &cursor, 10, &packs, &n), 0);
			all += n;
			free(packs);
		} while (cursor);
	}
	return all;
}

static void test_burial(void **state)
{
	struct fixture *f = *state;
	assert_int_equal(commit_into(f->m, f->file[0], 7), 0);
	assert_int_equal(commit_into(f->m, f->file[1], 7), 0);
	assert_int_equal(commit_into(f->m, f->file[2], 8), 0);
	assert_int_equal(listed(f), 0);
	assert_false(bury_one(f, 7));
	assert_int_equal(commit_into(f->m, f->file[0], 9), 0); /* 7 is used once now */
	assert_false(bury_one(f, 7));
	assert_int_equal(commit_into(f->m, f->file[3], 7), 0); /* a burial that failed leaves nothing behind */
	assert_int_equal(commit_into(f->m, f->file[3], 9), 0);
	assert_int_equal(commit_into(f->m, f->file[1], 9), 0);
	assert_true(listed(f) > 0);
	assert_true(bury_one(f, 7));
	assert_true(bury_one(f, 7)); /* again */

	/* From now on nobody may name it. */
	for (unsigned i = 0; i < 8; i++) {
		assert_int_equal(commit_into(f->m, f->file[i], 7), -ESTALE);
		struct silt_extent e = { .len = 4096, .pack = 7, .pack_off = 48, .stored = 4136 };
		assert_int_equal(DO(meta_clone(f->m, f->file[i], &e, 1, 4096, false, now(), meta_wait_done, &w_),
		                    NULL),
		                 -ESTALE);
		struct meta_commit c = { .ino = f->file[i], .mtime = now(), .append = true, .extent = e };
		assert_int_equal(commit_(f->m, &c, 1), 0);
		assert_int_equal(c.err, -ESTALE);
	}
	/* In a call with others it is refused alone. */
	struct meta_commit c[3];
	for (unsigned i = 0; i < 3; i++)
		c[i] = (struct meta_commit){ .ino = f->file[5],
			                     .mtime = now(),
			                     .extent = { .off = i * 4096, .len = 4096, .pack = 6 + i,
			                                 .pack_off = 48, .stored = 4136 } };
	assert_int_equal(commit_(f->m, c, 3), 0);
	assert_int_equal(c[0].err, 0);
	assert_int_equal(c[1].err, -ESTALE);
	assert_int_equal(c[2].err, 0);

	/* An id that never had an object or an extent: an orphan. */
	assert_true(bury_one(f, 12345));
	assert_false(bury_one(f, 8));
}

static void wait_gone(struct fixture *f, uint64_t pack)
{
	for (int i = 0; i < 500 && there(f, pack); i++)
		usleep(20000);
	assert_false(there(f, pack));
}

static void test_worker(void **state)
{
	struct fixture *f = *state;
	struct silt_metrics metrics = { 0 };
	struct worker *w, *w2;
	struct meta *other = server_open(f->s, NULL, 0, 0);
	for (uint64_t p = 1; p <= 40; p++)
		put(f, p);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(commit_into(f->m, f->file[i], 1 + i / 2), 0); /* 1 to 4, twice each */
	for (uint64_t p = 10; p < 40; p++)
		assert_int_equal(commit_into(f->m, f->file[7], p), 0); /* all but 39 die */

	struct worker_config cfg = { .store = f->store, .meta = f->m, .log = f->s->log, .metrics = &metrics,
		                     .grace_ms = 300, .interval_ms = 50 };
	assert_int_equal(worker_open(&cfg, &w), 0);
	cfg.meta = other;
	assert_int_equal(worker_open(&cfg, &w2), 0);
	uint64_t start = silt_now_ns();
	wait_gone(f, 38);
	assert_true(silt_now_ns() - start > 250000000u);
	for (uint64_t p = 10; p < 39; p++)
		wait_gone(f, p);
	assert_true(there(f, 39) && there(f, 1) && there(f, 2) && there(f, 3));
	/* 4 lost one of its two files; 40 was never named: both stay. */
	assert_true(there(f, 4) && there(f, 40));

	/* A pack that two shards used goes when the second lets it go, also after it was looked at. */
	assert_int_equal(unlink_(f->m, f->home[0], "f", false, NULL), 0);
	usleep(800000);
	assert_true(there(f, 1));
	assert_int_equal(unlink_(f->m, f->home[1], "f", false, NULL), 0);
	wait_gone(f, 1);

	/* Whoever is the worker ends: the other one goes on. */
	worker_close(w);
	assert_int_equal(unlink_(f->m, f->home[2], "f", false, NULL), 0);
	assert_int_equal(unlink_(f->m, f->home[3], "f", false, NULL), 0);
	wait_gone(f, 2);
	for (int i = 0; i < 500 && silt_metric_get(&metrics, M_PACKS_DELETED) < 31; i++)
		usleep(10000); /* counted when they are off the lists, too */
	assert_int_equal(silt_metric_get(&metrics, M_PACKS_DELETED), 31);
	worker_close(w2);
	meta_close(other);
	assert_int_equal(commit_into(f->m, f->file[4], 20), -ESTALE);
}

/* The store refuses for a while: nothing is taken off the lists that is still there. */
static void test_store_away(void **state)
{
	struct fixture *f = *state;
	struct silt_metrics metrics = { 0 };
	struct worker *w;
	char aside[SCRATCH_MAX + 8];
	put(f, 5);
	assert_int_equal(commit_into(f->m, f->file[0], 5), 0);
	assert_int_equal(commit_into(f->m, f->file[0], 6), 0);
	snprintf(aside, sizeof(aside), "%s.aside", f->dir);
	assert_int_equal(rename(f->dir, aside), 0);
	struct worker_config cfg = { .store = f->store, .meta = f->m, .log = f->s->log, .metrics = &metrics,
		                     .grace_ms = 1, .interval_ms = 20 };
	assert_int_equal(worker_open(&cfg, &w), 0);
	usleep(300000);
	assert_int_equal(silt_metric_get(&metrics, M_PACKS_DELETED), 0);
	assert_int_equal(listed(f), 1);
	assert_int_equal(rename(aside, f->dir), 0);
	assert_true(there(f, 5));
	wait_gone(f, 5);
	for (int i = 0; i < 500 && listed(f); i++)
		usleep(10000);
	assert_int_equal(listed(f), 0);
	worker_close(w);
}

/* Files come to share a pack while it dies and is buried: either the sharing is refused, or the object
 * stays. */
struct race {
	struct fixture *f;
	atomic_bool stop;
	atomic_uint_fast64_t pack;
	unsigned shared, refused;
};

static void *share(void *arg)
{
	struct race *r = arg;
	struct meta *m = server_open(r->f->s, NULL, 0, 0);
	uint64_t last = 0;
	while (!atomic_load(&r->stop)) {
		uint64_t pack = atomic_load(&r->pack);
		if (pack == last)
			continue;
		last = pack;
		int err = commit_into(m, r->f->file[1 + pack % 7], pack);
		assert_true(err == 0 || err == -ESTALE);
		r->shared += err == 0;
		r->refused += err != 0;
	}
	meta_close(m);
	return NULL;
}

static void test_sharing_races(void **state)
{
	struct fixture *f = *state;
	struct race r = { .f = f };
	pthread_t t;
	unsigned seed = 1, dead = 0, alive = 0;
	assert_int_equal(pthread_create(&t, NULL, share, &r), 0);
	for (uint64_t pack = 1; pack <= 400; pack++) {
		assert_int_equal(commit_into(f->m, f->file[0], pack), 0);
		assert_int_equal(commit_into(f->m, f->file[0], 100000 + pack), 0); /* it dies */
		atomic_store(&r.pack, pack);
		usleep((unsigned)rand_r(&seed) % 500);
		if (bury_one(f, pack))
			dead++;
		else
			alive++;
	}
	usleep(100000);
	atomic_store(&r.stop, true);
	pthread_join(t, NULL);
	print_message("# %u buried, %u in use; sharing: %u went well, %u were refused\n", dead, alive, r.shared,
	              r.refused);
	/* What a file names is not buried anywhere. */
	for (unsigned i = 1; i < 8; i++) {
		struct silt_inode inode;
		assert_int_equal(getattr_(f->m, f->file[i], &inode), 0);
		if (inode.map != SILT_MAP_INLINE)
			continue;
		for (unsigned s = 0; s < SHARDS; s++) {
			int64_t n;
			assert_int_equal(meta_packs_count(f->m, s, &inode.extent.pack, 1, &n), 0);
			assert_int_not_equal(n, META_PACK_BURIED);
		}
	}
	assert_true(dead > 0 && r.shared > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_burial, setup, teardown),
		cmocka_unit_test_setup_teardown(test_worker, setup, teardown),
		cmocka_unit_test_setup_teardown(test_store_away, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sharing_races, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
