/* meta/varint.h and meta/extent.c: encodings at their limits, damaged entries, and extent maps
 * against a model that keeps one value for every byte of a small file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "meta/extent.h"
#include "meta/types.h"
#include "meta/varint.h"

static void test_varint_round_trip(void **state)
{
	for (unsigned shift = 0; shift < 64; shift++) {
		for (int d = -1; d <= 1; d++) {
			uint64_t v = ((uint64_t)1 << shift) + (uint64_t)(int64_t)d;
			uint8_t buf[10];
			size_t n = (size_t)(silt_put_varint(buf, v) - buf);
			assert_true(n <= sizeof(buf));
			struct silt_reader r = silt_reader_of(buf, n);
			assert_true(silt_get_varint(&r) == v && !r.bad && silt_left(&r) == 0);
			for (size_t cut = 0; cut < n; cut++) {
				r = silt_reader_of(buf, cut);
				assert_true(silt_get_varint(&r) == 0 && r.bad);
			}
			assert_true(silt_unzigzag(silt_zigzag((int64_t)v)) == (int64_t)v);
		}
	}
}

static void test_varint_overflow(void **state)
{
	static const uint8_t too_big[] = { 0xff, 0xff, 0xff, 0xff, 0xff,
		                           0xff, 0xff, 0xff, 0xff, 0x02 };
	static const uint8_t endless[] = { 0x80, 0x80, 0x80, 0x80, 0x80, 0x80,
		                           0x80, 0x80, 0x80, 0x80, 0x80, 0x00 };
	struct silt_reader r = silt_reader_of(too_big, sizeof(too_big));
	assert_true(silt_get_varint(&r) == 0 && r.bad);
	r = silt_reader_of(endless, sizeof(endless));
	assert_true(silt_get_varint(&r) == 0 && r.bad);
	assert_true(silt_left(&r) == 0 && silt_get_bytes(&r, 1) == NULL);
}

static void test_little_endian(void **state)
{
	uint8_t buf[8];
	for (unsigned n = 1; n <= 8; n++) {
		uint64_t v = UINT64_C(0x8877665544332211) & (UINT64_MAX >> (64 - 8 * n));
		assert_ptr_equal(silt_put_le(buf, v, n), buf + n);
		assert_int_equal(buf[0], 0x11);
		struct silt_reader r = silt_reader_of(buf, n);
		assert_true(silt_get_le(&r, n) == v && !r.bad);
		r = silt_reader_of(buf, n - 1);
		assert_true(silt_get_le(&r, n) == 0 && r.bad);
	}
}

static bool same(const struct silt_extent *a, const struct silt_extent *b)
{
	return a->off == b->off && a->len == b->len && a->pack == b->pack &&
	       a->pack_off == b->pack_off && a->stored == b->stored && a->skip == b->skip &&
	       a->flags == b->flags;
}

static void test_extent_round_trip(void **state)
{
	static const struct silt_extent t[] = {
		{ .len = 1, .pack = 1, .stored = 1 },
		{ .off = 4096, .len = 4096, .pack = 77, .pack_off = 48, .stored = 4136 },
		{ .off = SILT_FILE_MAX - SILT_WINDOW,
		  .len = SILT_WINDOW,
		  .pack = UINT64_MAX,
		  .pack_off = UINT32_MAX - 7,
		  .stored = 7,
		  .skip = UINT32_MAX - (uint32_t)SILT_WINDOW,
		  .flags = EXTENT_RUN | EXTENT_RAW_RUN | EXTENT_FOREIGN },
		{ .off = 5, .len = 9, .flags = EXTENT_HOLE },
	};
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		uint8_t buf[SILT_EXTENT_ENCODED_MAX];
		size_t n = extent_encode(&t[i], buf);
		assert_true(n <= sizeof(buf));
		struct silt_extent e;
		assert_int_equal(extent_decode(buf, n, &e), n);
		assert_true(same(&e, &t[i]));
		for (size_t cut = 0; cut < n; cut++)
			assert_int_equal(extent_decode(buf, cut, &e), -EINVAL);
	}
}

/* A fixed vector: the encoding is on disk and must not drift. */
static void test_extent_vector(void **state)
{
	static const struct silt_extent e = { .off = 300,
		                              .len = 4096,
		                              .pack = 513,
		                              .pack_off = 48,
		                              .stored = 1000,
		                              .skip = 5,
		                              .flags = EXTENT_RUN };
	static const uint8_t want[] = { 0x06, 0xac, 0x02, 0x80, 0x20, 0x81,
		                        0x04, 0x30, 0xe8, 0x07, 0x05 };
	uint8_t buf[SILT_EXTENT_ENCODED_MAX];
	assert_int_equal(extent_encode(&e, buf), sizeof(want));
	assert_memory_equal(buf, want, sizeof(want));
}

static int decode_fields(const uint64_t *v, size_t n)
{
	uint8_t buf[80], *p = buf;
	for (size_t i = 0; i < n; i++)
		p = silt_put_varint(p, v[i]);
	struct silt_extent e;
	return extent_decode(buf, (size_t)(p - buf), &e);
}

static void test_extent_refused(void **state)
{
	static const struct {
		size_t n;
		uint64_t v[7];
	} t[] = {
		{ 6, { 64, 0, 1, 1, 0, 1 } }, /* unknown flag */
		{ 6, { UINT64_MAX, 0, 1, 1, 0, 1 } },
		{ 6, { 0, 0, 0, 1, 0, 1 } },          /* no length */
		{ 6, { 0, UINT64_MAX, 2, 1, 0, 1 } }, /* wraps */
		{ 6, { 0, 0, UINT64_MAX, 1, 0, 1 } },
		{ 6, { 0, SILT_FILE_MAX, 1, 1, 0, 1 } },
		{ 6, { 0, SILT_WINDOW - 1, 2, 1, 0, 1 } }, /* crosses a window */
		{ 6, { 0, 0, 1, 0, 0, 1 } },               /* pack 0 and no hole */
		{ 6, { 0, 0, 1, 1, 0, 0 } },               /* nothing stored */
		{ 6, { 0, 0, 1, 1, UINT32_MAX, 1 } },      /* past 4 GiB */
		{ 6, { 0, 0, 1, 1, (uint64_t)1 << 32, 1 } },
		{ 7, { EXTENT_SKIP, 0, 1, 1, 0, 1, 0 } }, /* skip flag without skip */
		{ 7, { EXTENT_SKIP, 0, 2, 1, 0, 1, UINT32_MAX } },
		{ 3, { EXTENT_HOLE | EXTENT_RUN, 0, 1 } },
		{ 3, { EXTENT_HOLE, SILT_WINDOW - 1, 2 } },
	};
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++)
		assert_int_equal(decode_fields(t[i].v, t[i].n), -EINVAL);
}

/* --- Maps against a model ----------------------------------------------------------------- */

#define FILE_BYTES 400u

/* Which byte of which pack's run a file byte is: 0 for a hole. */
struct model {
	uint64_t byte[FILE_BYTES];
};

static uint64_t byte_id(uint64_t pack, uint64_t run_pos)
{
	return pack << 20 | (run_pos + 1);
}

static void model_add(struct model *m, const struct silt_extent *e)
{
	for (uint64_t i = 0; i < e->len; i++)
		m->byte[e->off + i] = e->pack ? byte_id(e->pack, e->skip + i) : 0;
}

static void check_map(const struct extent_map *map, const struct model *m)
{
	uint64_t at = 0;
	for (size_t i = 0; i < map->n; i++) {
		const struct silt_extent *e = &map->v[i];
		assert_true(e->len && e->pack && e->off >= at);
		assert_int_equal(e->stored, 1000 + e->pack % 1000);
		for (; at < e->off; at++)
			assert_int_equal(m->byte[at], 0);
		for (; at < e->off + e->len; at++)
			assert_true(m->byte[at] == byte_id(e->pack, e->skip + at - e->off));
	}
	for (; at < FILE_BYTES; at++)
		assert_int_equal(m->byte[at], 0);
	for (uint64_t off = 0; off < FILE_BYTES; off++) {
		const struct silt_extent *e = extent_map_find(map, off);
		bool inside = e && e->off <= off;
		assert_true(inside == (m->byte[off] != 0));
		assert_true(!e || e->off + e->len > off);
	}
}

static void check_encoded(const struct extent_map *map, const struct model *m)
{
	uint8_t *log;
	size_t len;
	assert_int_equal(extent_map_encode(map, &log, &len), 0);
	struct extent_map again;
	extent_map_init(&again);
	assert_int_equal(extent_map_add_log(&again, log, len), 0);
	assert_int_equal(again.n, map->n);
	check_map(&again, m);
	extent_map_free(&again);
	free(log);
}

static void test_map_against_model(void **state)
{
	srandom(20240607);
	for (unsigned round = 0; round < 300; round++) {
		struct model m = { { 0 } };
		struct extent_map map;
		extent_map_init(&map);
		for (unsigned step = 1; step <= 60; step++) {
			uint64_t off = (uint64_t)random() % FILE_BYTES;
			uint64_t most = FILE_BYTES - off;
			uint64_t len = 1 + (uint64_t)random() % (random() % 4 ? 20 : FILE_BYTES);
			struct silt_extent e = { .off = off, .len = len < most ? len : most };
			unsigned what = (unsigned)random() % 16;
			if (what == 0) {
				extent_map_truncate(&map, off);
				memset(&m.byte[off], 0, most * sizeof(m.byte[0]));
				continue;
			}
			if (what < 4) {
				e.flags = EXTENT_HOLE;
			} else {
				e.pack = step;
				e.stored = 1000 + step % 1000;
				e.skip = (uint32_t)random() % 50;
			}
			assert_int_equal(extent_map_add(&map, &e), 0);
			model_add(&m, &e);
		}
		check_map(&map, &m);
		check_encoded(&map, &m);
		extent_map_free(&map);
	}
}

static void test_damaged_log_keeps_what_came_before(void **state)
{
	struct silt_extent a = { .len = 10, .pack = 1, .stored = 50 };
	struct silt_extent b = { .off = 20, .len = 10, .pack = 2, .stored = 50 };
	uint8_t log[2 * SILT_EXTENT_ENCODED_MAX];
	size_t n = extent_encode(&a, log);
	size_t total = n + extent_encode(&b, log + n);
	for (size_t cut = 0; cut <= total; cut++) {
		struct extent_map map;
		extent_map_init(&map);
		int err = extent_map_add_log(&map, log, cut);
		bool whole = cut == 0 || cut == n || cut == total;
		assert_int_equal(err, whole ? 0 : -EINVAL);
		assert_int_equal(map.n, cut < n ? 0 : cut < total ? 1 : 2);
		extent_map_free(&map);
	}
}

static void test_empty_map(void **state)
{
	struct extent_map map;
	extent_map_init(&map);
	assert_null(extent_map_find(&map, 0));
	extent_map_truncate(&map, 0);
	uint8_t *log = (uint8_t *)1;
	size_t len = 1;
	assert_int_equal(extent_map_encode(&map, &log, &len), 0);
	assert_null(log);
	assert_int_equal(len, 0);
	extent_map_free(&map);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_varint_round_trip),
		cmocka_unit_test(test_varint_overflow),
		cmocka_unit_test(test_little_endian),
		cmocka_unit_test(test_extent_round_trip),
		cmocka_unit_test(test_extent_vector),
		cmocka_unit_test(test_extent_refused),
		cmocka_unit_test(test_map_against_model),
		cmocka_unit_test(test_damaged_log_keeps_what_came_before),
		cmocka_unit_test(test_empty_map),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
