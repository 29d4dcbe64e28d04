/* Unit tests of fs/write_buffer.h and fs/file_map.h: random writes, seals, completions, failures
 * and truncations beside a plain array of bytes, with this file in the place of the cache. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cache/pack.h"
#include "fs/file_map.h"
#include "fs/write_buffer.h"

#define SPAN    (SILT_WINDOW * 2 + (4u << 20)) /* the file: crosses two window borders */
#define CENTRES 5
#define FLIGHT  64

/* The model: what a reader must see, and what is in the "store". */
struct model {
	struct write_pool pool;
	struct write_buffer b;
	uint8_t *want, *stored;
	uint64_t size; /* as a reader sees it */
	struct segment *flight[FLIGHT];
	size_t nflight;
	uint64_t seed;
};

static uint32_t draw(struct model *m, uint32_t below)
{
	m->seed = m->seed * 6364136223846793005ULL + 1442695040888963407ULL;
	return (uint32_t)(m->seed >> 33) % below;
}

/* Offsets near pack and window borders, where segments are cut. */
static uint64_t draw_offset(struct model *m)
{
	static const uint64_t centres[CENTRES] = { 0, PACK_TARGET, SILT_WINDOW, SILT_WINDOW * 2,
		                                   SILT_WINDOW - PACK_TARGET };
	uint64_t c = centres[draw(m, CENTRES)];
	int64_t off = (int64_t)c - 300000 + (int64_t)draw(m, 600000);
	return off < 0 ? 0 : (uint64_t)off;
}

static void check(struct model *m, uint64_t off, uint64_t end)
{
	while (off < end) {
		const uint8_t *data;
		uint64_t stop = write_buffer_run(&m->b, off, end, &data);
		assert_true(stop > off && stop <= end);
		assert_memory_equal(data ? data : m->stored + off, m->want + off, stop - off);
		off = stop;
	}
}

static void take_flight(struct model *m, struct segment *chain)
{
	for (; chain; chain = chain->chain) {
		const struct cache_write *w = &chain->write;
		assert_true(w->len > 0 && w->len <= PACK_TARGET);
		assert_int_equal(w->off / SILT_WINDOW, (w->off + w->len - 1) / SILT_WINDOW);
		for (size_t i = 0; i < m->nflight; i++) {
			const struct cache_write *o = &m->flight[i]->write;
			assert_true(w->off + w->len <= o->off || o->off + o->len <= w->off);
		}
		assert_true(m->nflight < FLIGHT);
		m->flight[m->nflight++] = chain;
	}
}

static void complete_one(struct model *m, bool fail)
{
	size_t i = draw(m, (uint32_t)m->nflight);
	struct segment *s = m->flight[i];
	m->flight[i] = m->flight[--m->nflight];
	if (!fail)
		memcpy(m->stored + s->off, s->data, s->len);
	write_buffer_complete(&m->b, s, fail ? -5 : 0, false);
}

static void write_some(struct model *m)
{
	uint64_t off = draw_offset(m);
	size_t len = 1 + draw(m, draw(m, 3) ? 9000 : 900000), taken;
	uint8_t *data = malloc(len);
	memset(data, (int)draw(m, 256), len);
	data[0] = (uint8_t)draw(m, 256);
	struct silt_time now = { 1, 2 };
	assert_int_equal(write_buffer_put(&m->b, off, data, len, now, &taken), 0);
	assert_int_equal(taken, len);
	memcpy(m->want + off, data, len);
	free(data);
	if (off + len > m->size)
		m->size = off + len;
}

/* As node_flush_and_hold() does it: drop, wait for what is on its way, then cut what is stored. */
static void truncate_some(struct model *m)
{
	uint64_t size = draw_offset(m);
	struct segment *chain = NULL;
	write_buffer_truncate(&m->b, size);
	while (!write_buffer_empty(&m->b)) {
		write_buffer_retry(&m->b, &chain);
		write_buffer_seal(&m->b, SEAL_ALL, UINT64_MAX, &chain);
		take_flight(m, chain);
		chain = NULL;
		while (m->nflight)
			complete_one(m, false);
	}
	memset(m->want + size, 0, SPAN - size);
	memset(m->stored + size, 0, SPAN - size);
	m->size = size;
}

static void step(struct model *m)
{
	struct segment *chain = NULL;
	uint32_t what = draw(m, 100);
	if (what < 60) {
		write_some(m);
	} else if (what < 68 && m->nflight < FLIGHT / 2) {
		write_buffer_seal(&m->b, SEAL_FULL, UINT64_MAX, &chain);
	} else if (what < 74 && m->nflight == 0) {
		write_buffer_retry(&m->b, &chain);
		write_buffer_seal(&m->b, SEAL_ALL, UINT64_MAX, &chain);
	} else if (what < 95 && m->nflight > 0) {
		complete_one(m, draw(m, 8) == 0);
	} else if (what == 99 && draw(m, 4) == 0) {
		truncate_some(m);
	}
	take_flight(m, chain);
	uint64_t off = draw_offset(m), end = off + 1 + draw(m, 200000);
	check(m, off, end < SPAN ? end : SPAN);
	assert_true(write_buffer_end(&m->b) <= (m->size ? m->size : 0));
	size_t failed = 0;
	for (size_t i = 0; i < m->b.sent.n; i++)
		failed += m->b.sent.v[i]->err != 0;
	assert_int_equal(m->b.failed, failed);
}

static void random_beside_model(void **state)
{
	for (uint64_t seed = 1; seed <= 6; seed++) {
		struct big_buffers big;
		big_buffers_init(&big);
		struct model m = { .pool = { .budget = 1 << 30, .big = seed % 2 ? &big : NULL }, .seed = seed };
		m.want = calloc(1, SPAN);
		m.stored = calloc(1, SPAN);
		write_buffer_init(&m.b, &m.pool, 7, &m);
		for (int i = 0; i < 2500; i++)
			step(&m);
		check(&m, 0, SPAN);
		while (!write_buffer_empty(&m.b)) {
			struct segment *chain = NULL;
			write_buffer_retry(&m.b, &chain);
			write_buffer_seal(&m.b, SEAL_ALL, UINT64_MAX, &chain);
			take_flight(&m, chain);
			while (m.nflight)
				complete_one(&m, false);
		}
		assert_memory_equal(m.want, m.stored, SPAN);
		assert_int_equal(m.pool.used, 0);
		assert_int_equal(m.pool.sent, 0);
		write_buffer_free(&m.b);
		assert_int_equal(big.used, 0);
		assert_true(big.kept <= BIG_BUFFERS_IDLE);
		big_buffers_free(&big);
		free(m.want);
		free(m.stored);
	}
}

/* A flush waits for what was written before it and not for what came after. */
static void status_by_epoch(void **state)
{
	struct write_pool pool = { .budget = 1 << 20 };
	struct write_buffer b;
	struct segment *chain = NULL;
	struct silt_time now = { 0 };
	size_t taken;
	write_buffer_init(&b, &pool, 7, NULL);
	assert_int_equal(write_buffer_put(&b, 0, "old", 3, now, &taken), 0);
	uint64_t epoch = b.epoch++;
	assert_int_equal(write_buffer_put(&b, 100, "new", 3, now, &taken), 0);
	assert_int_equal(write_buffer_status(&b, epoch), -EINPROGRESS);
	write_buffer_seal(&b, SEAL_ALL, epoch, &chain);
	assert_non_null(chain);
	assert_null(chain->chain);
	/* Newer bytes over the sent ones wait for them. */
	struct segment *first = chain, *none = NULL;
	assert_int_equal(write_buffer_put(&b, 1, "x", 1, now, &taken), 0);
	write_buffer_seal(&b, SEAL_ALL, epoch + 1, &none);
	assert_non_null(none); /* the one at 100 */
	assert_null(none->chain);
	write_buffer_complete(&b, first, -28, false);
	assert_int_equal(write_buffer_status(&b, epoch), -28);
	chain = NULL;
	write_buffer_retry(&b, &chain);
	assert_ptr_equal(chain, first);
	write_buffer_complete(&b, first, 0, false);
	assert_int_equal(write_buffer_status(&b, epoch), 0);
	write_buffer_complete(&b, none, 0, false);
	assert_int_equal(write_buffer_end(&b), 2);
	write_buffer_free(&b);
	assert_int_equal(pool.used, 0);
}

/* Giving up frees what failed, not what is on its way again, and lets newer bytes go. */
static void give_up(void **state)
{
	struct write_pool pool = { .budget = 1 << 20 };
	struct write_buffer b;
	struct segment *chain = NULL, *newer = NULL;
	struct silt_time now = { 0 };
	size_t taken;
	const uint8_t *data;
	write_buffer_init(&b, &pool, 7, NULL);
	assert_int_equal(write_buffer_put(&b, 0, "0123456789", 10, now, &taken), 0);
	write_buffer_seal(&b, SEAL_ALL, UINT64_MAX, &chain);
	assert_int_equal(write_buffer_give_up(&b), 0); /* it has not failed */
	write_buffer_complete(&b, chain, -5, false);
	assert_int_equal(b.failed, 1);
	assert_int_equal(write_buffer_put(&b, 4, "xy", 2, now, &taken), 0);
	write_buffer_seal(&b, SEAL_ALL, UINT64_MAX, &newer);
	assert_null(newer);
	chain = NULL;
	write_buffer_retry(&b, &chain);
	assert_int_equal(b.failed, 1);
	assert_int_equal(write_buffer_give_up(&b), 0);
	write_buffer_complete(&b, chain, -28, false);
	assert_int_equal(b.failed, 1);
	assert_int_equal(write_buffer_give_up(&b), 10);
	assert_int_equal(b.failed, 0);
	assert_int_equal(write_buffer_run(&b, 0, 10, &data), 4);
	assert_null(data);
	assert_int_equal(write_buffer_run(&b, 4, 10, &data), 6);
	assert_memory_equal(data, "xy", 2);
	write_buffer_seal(&b, SEAL_ALL, UINT64_MAX, &newer);
	assert_non_null(newer);
	write_buffer_complete(&b, newer, 0, false);
	assert_true(write_buffer_empty(&b));
	write_buffer_free(&b);
	assert_int_equal(pool.used, 0);
	assert_int_equal(pool.sent, 0);
}

/* A window that arrives after this mount committed to it keeps the commit on top. */
static void map_window_late(void **state)
{
	struct file_map m;
	struct silt_inode inode = { .map = SILT_MAP_EXTERNAL };
	struct silt_extent old = { .off = 0, .len = 100, .pack = 1, .stored = 140 };
	struct silt_extent ours = { .off = 10, .len = 20, .pack = 2, .stored = 60 }, e;
	uint8_t log[SILT_EXTENT_ENCODED_MAX];
	size_t n = extent_encode(&old, log);
	file_map_init(&m);
	assert_int_equal(file_map_set(&m, &inode), 0);
	assert_int_equal(file_map_run(&m, 0, 50, &e), 0);
	assert_true(file_map_want(&m, 0));
	assert_false(file_map_want(&m, 0));
	unsigned generation = m.generation;
	assert_int_equal(file_map_add(&m, &ours), 0);
	assert_int_equal(file_map_load(&m, 0, generation, log, n), 0);
	assert_int_equal(file_map_run(&m, 0, 50, &e), 10);
	assert_int_equal(e.pack, 1);
	assert_int_equal(file_map_run(&m, 10, 50, &e), 30);
	assert_int_equal(e.pack, 2);
	file_map_truncate(&m, 15);
	assert_int_equal(file_map_run(&m, 10, 50, &e), 15);
	assert_int_equal(file_map_run(&m, 15, 50, &e), 50);
	assert_int_equal(e.pack, 0);
	file_map_forget(&m);
	assert_int_equal(file_map_load(&m, 0, generation, log, n), -ESTALE);
	file_map_free(&m);
}

/* A file emptied by this mount has no windows any more: its next extent is in the inode record, and
 * the answer to a window asked for before is stale. Once, reads found a hole there. */
static void map_emptied_knows_all(void **state)
{
	struct file_map m;
	struct silt_inode inode = { .map = SILT_MAP_EXTERNAL };
	struct silt_extent ours = { .off = 10, .len = 20, .pack = 2, .stored = 60 }, e;
	file_map_init(&m);
	assert_int_equal(file_map_set(&m, &inode), 0);
	assert_true(file_map_want(&m, 0));
	unsigned generation = m.generation;
	file_map_truncate(&m, 0);
	assert_int_equal(file_map_load(&m, 0, generation, NULL, 0), -ESTALE);
	assert_int_equal(file_map_add(&m, &ours), 0);
	assert_false(file_map_want(&m, 0));
	assert_int_equal(file_map_run(&m, 10, 50, &e), 30);
	assert_int_equal(e.pack, 2);
	assert_int_equal(file_map_run(&m, SILT_WINDOW, SILT_WINDOW + 9, &e), SILT_WINDOW + 9);
	file_map_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_beside_model),
		cmocka_unit_test(status_by_epoch),
		cmocka_unit_test(give_up),
		cmocka_unit_test(map_window_late),
		cmocka_unit_test(map_emptied_knows_all),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
