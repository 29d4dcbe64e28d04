/* Extents are made to name another pack (meta/compact.c), and packs are merged (cache/compact.c): what has changed
 * meanwhile stays, live bytes are right throughout, calls that are sent again change nothing, whoever comes second
 * leaves nothing behind. Real Redis, a real directory as store. */
#include <zstd.h>

#include "cache/compact_impl.h"
#include "cache/pack.h"
#include "meta/extent.h"
#include "meta/scan.h"
#include "test/meta_fixture.h"

#define SHARDS 4u
#define FILES  12u

struct fixture {
	struct server *s;
	struct meta *m;
	struct store *store;
	struct silt_metrics metrics;
	char dir[SCRATCH_MAX];
	silt_ino home[FILES], file[FILES];
	bool stop;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct silt_err err;
	char name[8];
	f->s = server_start(SHARDS);
	f->m = server_open(f->s, NULL, 0, 0);
	scratch_make(f->dir);
	struct store_config cfg = { .kind = "file", .bucket = f->dir };
	assert_int_equal(store_open(&cfg, &f->store, &err), 0);
	assert_int_equal(store_create_bucket(f->store, &err), 0);
	for (unsigned i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "d%u", i);
		f->home[i] = must_make(f->m, SILT_ROOT_INO, name, S_IFDIR | 0755);
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

static void commit_extent(struct meta *m, silt_ino ino, const struct silt_extent *e)
{
	struct meta_commit c = { .ino = ino, .mtime = now(), .extent = *e };
	assert_int_equal(commit_(m, &c, 1), 0);
	assert_int_equal(c.err, 0);
}

static int64_t live_of(struct fixture *f, uint64_t pack)
{
	int64_t sum = 0, one;
	for (unsigned s = 0; s < SHARDS; s++) {
		assert_int_equal(meta_packs_count(f->m, s, &pack, 1, &one), 0);
		assert_true(one >= 0);
		sum += one;
	}
	return sum;
}

static bool is_noted(struct fixture *f, uint64_t pack)
{
	bool found = false;
	for (unsigned s = 0; s < SHARDS; s++) {
		uint64_t cursor = 0, *packs;
		size_t n;
		do {
			assert_int_equal(meta_noted_packs(f->m, s, &cursor, 10, &packs, &n), 0);
			for (size_t i = 0; i < n; i++)
				found = found || packs[i] == pack;
			free(packs);
		} while (cursor);
	}
	return found;
}

/* The extent at the file's beginning, as it stands. */
static struct silt_extent first_of(struct fixture *f, silt_ino ino)
{
	struct meta_place p = { .ino = ino };
	struct silt_extent e;
	assert_int_equal(meta_read_places(f->m, silt_ino_shard(ino), &p, 1), 0);
	assert_true(p.entries && extent_decode(p.entries, p.len, &e) > 0);
	free(p.entries);
	return e;
}

static void free_places(struct meta_place *v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(v[i].entries);
}

/* --- meta/ -------------------------------------------------------------------------------- */

static void test_move_one(void **state)
{
	struct fixture *f = *state;
	silt_ino ino = f->file[0];
	unsigned shard = silt_ino_shard(ino);
	uint64_t moved;
	struct silt_extent e = { .len = 4096, .pack = 7, .pack_off = 48, .stored = 100 };
	commit_extent(f->m, ino, &e);
	assert_true(is_noted(f, 7));
	struct silt_inode before, after;
	assert_int_equal(getattr_(f->m, ino, &before), 0);

	struct meta_place p = { .ino = ino }, old = { .ino = ino };
	assert_int_equal(meta_read_places(f->m, shard, &p, 1), 0);
	assert_int_equal(meta_read_places(f->m, shard, &old, 1), 0);
	assert_false(p.log);
	struct meta_move other = { 7, 49, 500 }, move = { 7, 48, 500 };
	assert_int_equal(meta_move_places(f->m, shard, &p, 1, &other, 1, 9, &moved), 0);
	assert_int_equal(moved, 0);
	assert_int_equal(meta_move_places(f->m, shard, &p, 1, &move, 1, 9, &moved), 0);
	assert_int_equal(moved, 1);
	e = first_of(f, ino);
	assert_int_equal(e.pack, 9);
	assert_int_equal(e.pack_off, 500);
	assert_int_equal(e.stored, 100);
	assert_int_equal(live_of(f, 7), 0);
	assert_int_equal(live_of(f, 9), 100);
	assert_int_equal(getattr_(f->m, ino, &after), 0);
	assert_int_equal(after.attr.version, before.attr.version);
	assert_int_equal(after.attr.ctime.nsec, before.attr.ctime.nsec);

	/* The same call again, as after a lost connection: counted, and nothing changes. */
	assert_int_equal(meta_move_places(f->m, shard, &old, 1, &move, 1, 9, &moved), 0);
	assert_int_equal(moved, 1);
	assert_int_equal(live_of(f, 9), 100);
	/* By another worker, to another pack: too late. */
	assert_int_equal(meta_move_places(f->m, shard, &old, 1, &move, 1, 10, &moved), 0);
	assert_int_equal(moved, 0);
	assert_int_equal(live_of(f, 10), 0);

	/* Written over meanwhile. */
	struct silt_extent newer = { .len = 4096, .pack = 8, .pack_off = 48, .stored = 90 };
	free_places(&p, 1);
	assert_int_equal(meta_read_places(f->m, shard, &p, 1), 0);
	commit_extent(f->m, ino, &newer);
	struct meta_move late = { 9, 500, 48 };
	assert_int_equal(meta_move_places(f->m, shard, &p, 1, &late, 1, 11, &moved), 0);
	assert_int_equal(moved, 0);
	assert_int_equal(first_of(f, ino).pack, 8);
	assert_int_equal(live_of(f, 11), 0);

	/* The new pack was taken for an orphan, and buried. */
	uint64_t orphan = 12;
	bool dead;
	free_places(&p, 1);
	assert_int_equal(meta_read_places(f->m, shard, &p, 1), 0);
	assert_int_equal(meta_packs_bury(f->m, &orphan, 1, &dead), 0);
	assert_true(dead);
	move = (struct meta_move){ 8, 48, 48 };
	assert_int_equal(meta_move_places(f->m, shard, &p, 1, &move, 1, orphan, &moved), -ESTALE);
	assert_int_equal(first_of(f, ino).pack, 8);
	assert_int_equal(live_of(f, 8), 90);
	free_places(&p, 1);
	free_places(&old, 1);
	/* Gone altogether. */
	assert_int_equal(unlink_(f->m, f->home[0], "f", false, NULL), 0);
	struct meta_place none = { .ino = ino };
	assert_int_equal(meta_read_places(f->m, shard, &none, 1), 0);
	assert_null(none.entries);
}

static void test_move_log(void **state)
{
	struct fixture *f = *state;
	silt_ino ino = f->file[0];
	unsigned shard = silt_ino_shard(ino);
	uint64_t moved;
	for (unsigned i = 0; i < 10; i++) {
		struct silt_extent e = { .off = i * 4096, .len = 4096, .pack = 20 + i % 2, .pack_off = 48 + i,
			                 .stored = 100 };
		commit_extent(f->m, ino, &e);
	}
	struct meta_place p = { .ino = ino };
	assert_int_equal(meta_read_places(f->m, shard, &p, 1), 0);
	assert_true(p.log);
	/* What comes while it is being moved stays, behind what was read. */
	struct silt_extent late = { .off = 4096, .len = 4096, .pack = 30, .pack_off = 48, .stored = 70 };
	commit_extent(f->m, ino, &late);
	struct meta_move moves[5];
	for (unsigned i = 0; i < 5; i++)
		moves[i] = (struct meta_move){ 20, 48 + 2 * i, 1000 + i };
	assert_int_equal(meta_move_places(f->m, shard, &p, 1, moves, 5, 25, &moved), 0);
	assert_int_equal(moved, 5);
	assert_int_equal(live_of(f, 20), 0);
	assert_int_equal(live_of(f, 21), 500);
	assert_int_equal(live_of(f, 25), 500);
	assert_int_equal(live_of(f, 30), 70);
	struct meta_place q = { .ino = ino };
	assert_int_equal(meta_read_places(f->m, shard, &q, 1), 0);
	struct extent_map map;
	extent_map_init(&map);
	assert_int_equal(extent_map_add_log(&map, q.entries, q.len), 0);
	for (unsigned i = 0; i < 10; i++) {
		const struct silt_extent *e = extent_map_find(&map, i * 4096);
		assert_non_null(e);
		assert_int_equal(e->pack, i == 1 ? 30 : i % 2 ? 21 : 25);
		assert_int_equal(e->pack_off, i == 1 ? 48 : i % 2 ? 48 + i : 1000 + i / 2);
	}
	extent_map_free(&map);
	/* The log that was read is not what stands there any more. */
	moves[0] = (struct meta_move){ 21, 48 + 3, 7 };
	assert_int_equal(meta_move_places(f->m, shard, &p, 1, moves, 1, 26, &moved), 0);
	assert_int_equal(moved, 0);
	assert_int_equal(live_of(f, 26), 0);
	free_places(&p, 1);
	free_places(&q, 1);
}

/* --- cache/ ------------------------------------------------------------------------------- */

/* A pack with a piece of each of files [first, first + n). */
static void store_pack(struct fixture *f, uint64_t pack, unsigned first, unsigned n, size_t len)
{
	struct pack_builder *b = pack_builder_new(pack, meta_volume(f->m)->id, 3);
	struct silt_extent e[FILES];
	const struct iovec *iov;
	int niov;
	size_t total;
	char key[PACK_KEY_MAX];
	uint8_t *data = malloc(len);
	for (unsigned i = 0; i < n; i++) {
		for (size_t k = 0; k < len; k++)
			data[k] = (uint8_t)((first + i) * 31 + k * (k >> 8) + k % 7);
		assert_int_equal(pack_builder_add(b, f->file[first + i], 0, data, len, &e[i]), 0);
	}
	assert_int_equal(pack_builder_finish(b, &iov, &niov, &total), 0);
	pack_key(pack, key);
	struct silt_err err;
	assert_int_equal(store_put(f->store, key, iov, niov, STORE_EXCL, &err), 0);
	for (unsigned i = 0; i < n; i++)
		commit_extent(f->m, f->file[first + i], &e[i]);
	pack_builder_free(b);
	free(data);
}

static void check_file(struct fixture *f, unsigned i, size_t len)
{
	struct silt_extent e = first_of(f, f->file[i]);
	uint8_t *run = malloc(e.stored), *out = malloc(len), *scratch = malloc(PACK_FRAME_RAW);
	char key[PACK_KEY_MAX];
	pack_key(e.pack, key);
	assert_int_equal(store_get(f->store, key, e.pack_off, e.stored, run, NULL, NULL), e.stored);
	ZSTD_DCtx *zd = ZSTD_createDCtx();
	size_t done = 0, at = 0;
	while (done < len) {
		struct frame_header h;
		assert_true(at + FRAME_HEADER <= e.stored);
		assert_int_equal(frame_header_decode(run + at, &h), 0);
		assert_int_equal(h.ino, f->file[i]);
		assert_int_equal(frame_extract(run + at, run + at + FRAME_HEADER, 0, h.raw, out + done, scratch, zd,
		                               &h),
		                 0);
		at += FRAME_HEADER + h.stored;
		done += h.raw;
	}
	assert_int_equal(at, e.stored);
	for (size_t k = 0; k < len; k++)
		assert_int_equal(out[k], (uint8_t)(i * 31 + k * (k >> 8) + k % 7));
	ZSTD_freeDCtx(zd);
	free(run);
	free(out);
	free(scratch);
}

static bool go_on(void *arg)
{
	(void)arg;
	return true;
}

static bool stopping(void *arg)
{
	const struct fixture *f = arg;
	return f->stop;
}

static struct compactor_config config(struct fixture *f)
{
	return (struct compactor_config){ .store = f->store, .meta = f->m, .log = f->s->log, .metrics = &f->metrics,
		                          .rate = 1u << 30, .budget_ms = 60000, .go_on = go_on, .stopping = stopping, .arg = f };
}

static size_t objects(struct fixture *f)
{
	size_t n = 0;
	for (uint64_t p = 1; p < 3000; p++) {
		char key[PACK_KEY_MAX];
		pack_key(p, key);
		n += store_head(f->store, key, NULL, NULL) == 0;
	}
	return n;
}

/* Numbers of packs that nobody has given out: the tests' own. */
#define OURS 2000u

static void test_group(void **state)
{
	struct fixture *f = *state;
	struct compactor_config cfg = config(f);
	struct group_result r;
	struct noted v[FILES];
	size_t len = 300000; /* runs of three frames */
	for (unsigned i = 0; i < FILES; i++) {
		struct store_object o;
		char key[PACK_KEY_MAX];
		store_pack(f, OURS + i, i, 1, len);
		pack_key(OURS + i, key);
		assert_int_equal(store_head(f->store, key, &o, NULL), 0);
		v[i] = (struct noted){ .pack = OURS + i, .size = o.size, .live = (uint64_t)live_of(f, OURS + i) };
	}
	/* One is written over before, one is shared by a file that has no frame, one is not as long as it was. */
	struct silt_extent other = { .len = len, .pack = 5, .pack_off = 48, .stored = 10 };
	commit_extent(f->m, f->file[1], &other);
	struct silt_extent shared = first_of(f, f->file[2]);
	silt_ino clone = must_make(f->m, f->home[2], "clone", S_IFREG | 0644);
	assert_int_equal(DO(meta_clone(f->m, clone, &shared, 1, len, false, now(), meta_wait_done, &w_), NULL), 0);
	v[2].live = (uint64_t)live_of(f, OURS + 2);
	v[3].size -= 1;
	assert_int_equal(compact_group(&cfg, v, FILES, OURS + 100, NULL, &r), 0);
	assert_true(r.stored);
	assert_int_equal(r.moved, FILES - 3);
	assert_int_equal(v[3].tries, NOTED_DAMAGED);
	for (unsigned i = 0; i < FILES; i++) {
		bool stays = i == 2 || i == 3;
		if (i == 1)
			continue;
		assert_int_equal(first_of(f, f->file[i]).pack, stays ? OURS + i : OURS + 100);
		assert_true((live_of(f, OURS + i) > 0) == stays);
		check_file(f, i, len);
	}
	/* The same packs by another worker, that has read them before: nothing is left to be moved. */
	assert_int_equal(compact_group(&cfg, v + 4, FILES - 4, OURS + 101, NULL, &r), 0);
	assert_int_equal(r.moved, 0);
	assert_int_equal(live_of(f, OURS + 101), 0);
}

/* Notes what is there, and looks again when it has waited for long enough. */
static void look_twice(struct compactor *c)
{
	assert_int_equal(compactor_look(c), 0);
	usleep(210000);
	assert_int_equal(compactor_look(c), 0);
}

static void test_look(void **state)
{
	struct fixture *f = *state;
	struct compactor_config cfg = config(f);
	struct compactor *c;
	cfg.wait_ms = 200; /* two small ones lose their patience after ten times that */
	assert_int_equal(compactor_open(&cfg, &c), 0);
	for (unsigned i = 0; i < 5; i++)
		store_pack(f, OURS + i, i, 1, 3000);
	/* Too few to be worth it; then enough. */
	look_twice(c);
	assert_int_equal(silt_metric_get(&f->metrics, M_PACKS_COMPACTED), 0);
	for (unsigned i = 5; i < FILES; i++)
		store_pack(f, OURS + i, i, 1, 3000);
	look_twice(c);
	assert_int_equal(silt_metric_get(&f->metrics, M_PACKS_COMPACTED), FILES);
	uint64_t merged = first_of(f, f->file[0]).pack;
	for (unsigned i = 0; i < FILES; i++) {
		assert_int_equal(first_of(f, f->file[i]).pack, merged);
		assert_int_equal(live_of(f, OURS + i), 0);
		assert_false(is_noted(f, OURS + i));
		check_file(f, i, 3000);
	}
	assert_int_equal(objects(f), FILES + 1); /* the old ones are the worker's to delete */
	/* What is lost in the store holds nothing up. */
	char key[PACK_KEY_MAX];
	pack_key(merged, key);
	assert_int_equal(store_delete(f->store, key, NULL), 0);
	for (unsigned i = 0; i < FILES; i++)
		store_pack(f, OURS + 50 + i, i, 1, 2000);
	look_twice(c);
	assert_int_equal(silt_metric_get(&f->metrics, M_PACKS_COMPACTED), 2 * FILES);
	compactor_close(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_move_one, setup, teardown),
		cmocka_unit_test_setup_teardown(test_move_log, setup, teardown),
		cmocka_unit_test_setup_teardown(test_group, setup, teardown),
		cmocka_unit_test_setup_teardown(test_look, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
