/* cache/pack_*.c: what a builder writes comes back, and every kind of damage is found. Prints the
 * building speed at the end (not checked: the machine may be busy). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "cache/pack.h"
#include "meta/lock.h"
#include "meta/varint.h"

#define PACK   UINT64_C(0x1234)
#define VOLUME UINT64_C(0xfeedfacecafebeef)

struct bytes {
	uint8_t *p;
	size_t n;
};

/* Bytes like a docking log: they compress about 3:1. */
static struct bytes text(size_t n, unsigned seed)
{
	struct bytes b = { malloc(n + 64), n };
	for (size_t at = 0; at < n;) {
		seed = seed * 1103515245u + 12345u;
		at += (size_t)sprintf((char *)b.p + at, "ATOM %5u  C  %7.3f %7.3f\n", seed >> 20,
		                      (seed >> 8 & 0xffff) / 100.0, (seed & 0xff) / 7.0);
	}
	return b;
}

static struct bytes noise(size_t n, unsigned seed)
{
	struct bytes b = { malloc(n), n };
	uint64_t x = seed * 2654435761u + 1;
	for (size_t i = 0; i < n; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		b.p[i] = (uint8_t)(x >> 32);
	}
	return b;
}

/* Ends the pack and copies it into one buffer of exactly its size, so that ASan sees a step too
 * far. */
static struct bytes finish(struct pack_builder *b)
{
	const struct iovec *iov;
	int niov;
	size_t total, at = 0;
	assert_int_equal(pack_builder_finish(b, &iov, &niov, &total), 0);
	struct bytes out = { malloc(total), total };
	for (int i = 0; i < niov; i++) {
		assert_true(at + iov[i].iov_len <= total);
		memcpy(out.p + at, iov[i].iov_base, iov[i].iov_len);
		at += iov[i].iov_len;
	}
	assert_int_equal(at, total);
	return out;
}

static void assert_verifies(const struct bytes *pack)
{
	char why[160] = "";
	int err = pack_verify(pack->p, pack->n, PACK, VOLUME, why);
	if (err)
		fail_msg("pack_verify: %s", why);
}

/* Reads all frames of an extent's run and compares them with `want`; then parts of each frame. */
static void check_run(const struct bytes *pack, const struct silt_extent *e, silt_ino ino,
                      const uint8_t *want)
{
	static uint8_t dst[PACK_FRAME_RAW], scratch[PACK_FRAME_RAW];
	ZSTD_DCtx *zd = ZSTD_createDCtx();
	uint32_t at = e->pack_off, end = e->pack_off + e->stored;
	uint64_t got = 0;
	bool all_raw = true;
	while (at < end) {
		const uint8_t *header = pack->p + at;
		struct frame_header h;
		assert_int_equal(frame_header_decode(header, &h), 0);
		assert_true(h.ino == ino && h.off == e->off + got);
		assert_int_equal(frame_extract(header, header + FRAME_HEADER, 0, h.raw, dst,
		                               scratch, zd, &h),
		                 0);
		assert_memory_equal(dst, want + got, h.raw);
		uint32_t skip = h.raw / 3, len = h.raw - skip - h.raw / 4;
		assert_int_equal(frame_extract(header, header + FRAME_HEADER, skip, len, dst,
		                               scratch, zd, NULL),
		                 0);
		assert_memory_equal(dst, want + got + skip, len);
		assert_int_equal(frame_extract(header, header + FRAME_HEADER, 1, h.raw, dst,
		                               scratch, zd, NULL),
		                 -EBADMSG);
		all_raw &= h.codec == PACK_RAW;
		got += h.raw;
		at += FRAME_HEADER + h.stored;
		assert_true(at == end || h.raw == PACK_FRAME_RAW);
	}
	assert_int_equal(got, e->len);
	assert_true(all_raw == !!(e->flags & EXTENT_RAW_RUN));
	assert_true(!(e->flags & EXTENT_RUN) == (e->len <= PACK_FRAME_RAW));
	ZSTD_freeDCtx(zd);
}

static void check_index(const struct bytes *pack, size_t frames)
{
	uint32_t off, len, n;
	uint64_t sum;
	assert_int_equal(pack_trailer_decode(pack->p + pack->n - PACK_TRAILER, pack->n, &off, &len,
	                                     &n, &sum),
	                 0);
	assert_int_equal(n, frames);
	struct pack_index ix;
	assert_int_equal(pack_index_decode(pack->p + off, len, n, sum, off, &ix), 0);
	for (size_t i = 0; i < ix.n; i++) {
		assert_int_equal(pack_index_find(&ix, ix.v[i].pack_off), i);
		assert_int_equal(pack_index_find(&ix, ix.v[i].pack_off + 1), -1);
	}
	assert_int_equal(pack_index_find(&ix, 0), -1);
	assert_int_equal(pack_index_find(&ix, off), -1);
	pack_index_free(&ix);
}

#define PIECES 40

static void round_trip(int level)
{
	static const size_t sizes[] = { 1,
		                        63,
		                        64,
		                        900,
		                        1024,
		                        1025,
		                        4096,
		                        100000,
		                        PACK_FRAME_RAW,
		                        PACK_FRAME_RAW + 1,
		                        3 * PACK_FRAME_RAW,
		                        1500000 };
	struct pack_builder *b = pack_builder_new(PACK, VOLUME, level);
	struct bytes piece[PIECES];
	struct silt_extent e[PIECES];
	for (unsigned i = 0; i < PIECES; i++) {
		size_t n = sizes[i % (sizeof(sizes) / sizeof(sizes[0]))];
		piece[i] = i % 3 ? text(n, i) : noise(n, i);
		assert_int_equal(pack_builder_add(b, 1000 - 7 * i, 4096 * i, piece[i].p, n, &e[i]),
		                 0);
		assert_true(e[i].pack == PACK && e[i].off == 4096 * i && e[i].len == n);
		assert_int_equal(e[i].pack_off + e[i].stored, pack_builder_size(b));
	}
	size_t frames = pack_builder_frames(b);
	struct bytes pack = finish(b);
	assert_verifies(&pack);
	check_index(&pack, frames);
	for (unsigned i = 0; i < PIECES; i++) {
		check_run(&pack, &e[i], 1000 - 7 * i, piece[i].p);
		free(piece[i].p);
	}
	free(pack.p);
	pack_builder_free(b);
}

static void test_round_trip(void **state)
{
	round_trip(0);
	round_trip(3);
	round_trip(1);
}

static void test_compression_pays_or_is_off(void **state)
{
	struct bytes good = text(1 << 20, 1), bad = noise(1 << 20, 2);
	struct pack_builder *b = pack_builder_new(PACK, VOLUME, 3);
	struct silt_extent e;
	assert_int_equal(pack_builder_add(b, 5, 0, good.p, good.n, &e), 0);
	assert_true(e.stored < good.n / 2);
	assert_int_equal(e.flags, EXTENT_RUN);
	assert_int_equal(pack_builder_add(b, 5, 1 << 20, bad.p, bad.n, &e), 0);
	assert_int_equal(e.stored, bad.n + 8 * FRAME_HEADER);
	assert_int_equal(e.flags, EXTENT_RUN | EXTENT_RAW_RUN);
	pack_builder_free(b);
	free(good.p);
	free(bad.p);
}

static void test_reset_and_renumber(void **state)
{
	struct bytes t = text(700000, 1);
	struct pack_builder *b = pack_builder_new(1, VOLUME, 3);
	struct silt_extent e;
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(pack_builder_add(b, 5, 0, t.p, t.n, &e), 0);
	pack_builder_reset(b, 2);
	assert_int_equal(pack_builder_size(b), PACK_HEADER);
	assert_int_equal(pack_builder_add(b, 5, 0, t.p, t.n, &e), 0);
	assert_true(e.pack == 2 && e.pack_off == PACK_HEADER);
	struct bytes before = finish(b);
	assert_int_equal(pack_builder_add(b, 5, 0, t.p, t.n, &e), -EINVAL);
	pack_builder_renumber(b, PACK);
	struct bytes after = finish(b);
	assert_verifies(&after);
	check_run(&after, &e, 5, t.p);
	assert_memory_equal(before.p + PACK_HEADER, after.p + PACK_HEADER, before.n - PACK_HEADER);
	free(before.p);
	free(after.p);
	free(t.p);
	pack_builder_free(b);
}

static void test_limits(void **state)
{
	struct bytes t = noise(PACK_TARGET, 1);
	struct pack_builder *b = pack_builder_new(PACK, VOLUME, 0);
	struct silt_extent e;
	const struct iovec *iov;
	int niov;
	size_t total;
	assert_int_equal(pack_builder_finish(b, &iov, &niov, &total), -EINVAL);
	assert_int_equal(pack_builder_add(b, 1, 0, t.p, 0, &e), -EINVAL);
	assert_int_equal(pack_builder_add(b, 1, 0, t.p, (size_t)PACK_TARGET + 1, &e), -EINVAL);
	assert_int_equal(pack_builder_add(b, 1, SILT_WINDOW - 1, t.p, 2, &e), -EINVAL);
	assert_int_equal(pack_builder_add(b, 1, UINT64_MAX, t.p, 2, &e), -EINVAL);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(pack_builder_add(b, 1, (uint64_t)i * PACK_TARGET, t.p, t.n, &e),
		                 0);
	assert_int_equal(pack_builder_add(b, 1, 3ull * PACK_TARGET, t.p, t.n, &e), -ENOSPC);
	struct bytes pack = finish(b);
	assert_true(pack.n <= PACK_MAX);
	assert_verifies(&pack);
	free(pack.p);
	free(t.p);
	pack_builder_free(b);
}

static void test_key(void **state)
{
	char key[PACK_KEY_MAX];
	pack_key(0x1a2b, key);
	assert_string_equal(key, "packs/2b/0000000000001a2b");
	pack_key(UINT64_MAX, key);
	assert_string_equal(key, "packs/ff/ffffffffffffffff");
}

/* --- Damage ---------------------------------------------------------------------------------- */

static struct bytes small_pack(void)
{
	struct pack_builder *b = pack_builder_new(PACK, VOLUME, 3);
	struct bytes t = text(1500, 1), n = noise(200, 2);
	struct silt_extent e;
	assert_int_equal(pack_builder_add(b, 7, 0, t.p, t.n, &e), 0);
	assert_int_equal(pack_builder_add(b, 3, 99, n.p, n.n, &e), 0);
	assert_int_equal(pack_builder_add(b, 3, 5000, t.p, 20, &e), 0);
	struct bytes pack = finish(b);
	pack_builder_free(b);
	free(t.p);
	free(n.p);
	return pack;
}

static void test_every_flipped_byte_is_found(void **state)
{
	static const uint8_t flips[] = { 0x01, 0x80, 0xff };
	struct bytes pack = small_pack();
	char why[160];
	for (size_t i = 0; i < pack.n; i++) {
		for (size_t f = 0; f < sizeof(flips); f++) {
			pack.p[i] ^= flips[f];
			if (pack_verify(pack.p, pack.n, PACK, VOLUME, why) != -EBADMSG)
				fail_msg("byte %zu of %zu changed by %02x: not found", i, pack.n,
				         flips[f]);
			assert_true(why[0]);
			pack.p[i] ^= flips[f];
		}
	}
	assert_verifies(&pack);
	assert_int_equal(pack_verify(pack.p, pack.n, PACK + 1, VOLUME, why), -EBADMSG);
	assert_int_equal(pack_verify(pack.p, pack.n, PACK, VOLUME + 1, why), -EBADMSG);
	free(pack.p);
}

static void test_every_truncation_is_found(void **state)
{
	struct bytes pack = small_pack();
	char why[160];
	for (size_t n = 0; n < pack.n; n++) {
		uint8_t *cut = malloc(n + 1);
		memcpy(cut, pack.p, n);
		assert_int_equal(pack_verify(cut, n, PACK, VOLUME, why), -EBADMSG);
		free(cut);
	}
	uint8_t *longer = calloc(1, pack.n + 1);
	memcpy(longer, pack.p, pack.n);
	assert_int_equal(pack_verify(longer, pack.n + 1, PACK, VOLUME, why), -EBADMSG);
	free(longer);
	free(pack.p);
}

/* One frame read alone, as from the SSD: every changed byte must make frame_extract() refuse. */
static void test_every_flipped_byte_of_a_frame_is_found(void **state)
{
	static uint8_t dst[PACK_FRAME_RAW], scratch[PACK_FRAME_RAW];
	ZSTD_DCtx *zd = ZSTD_createDCtx();
	struct bytes pack = small_pack();
	struct frame_header h;
	uint8_t *frame = pack.p + PACK_HEADER;
	assert_int_equal(frame_header_decode(frame, &h), 0);
	uint32_t n = FRAME_HEADER + h.stored;
	for (uint32_t i = 0; i < n; i++) {
		frame[i] ^= 0x10;
		/* A reader has read as many bytes as the header said when it was good. */
		struct frame_header now;
		if (frame_header_decode(frame, &now) == 0 && now.stored <= h.stored)
			assert_int_equal(frame_extract(frame, frame + FRAME_HEADER, 0, 1500, dst,
			                               scratch, zd, NULL),
			                 -EBADMSG);
		frame[i] ^= 0x10;
	}
	assert_int_equal(
	        frame_extract(frame, frame + FRAME_HEADER, 0, 1500, dst, scratch, zd, NULL), 0);
	static uint8_t again[PACK_FRAME_RAW];
	assert_int_equal(frame_extract_sound(frame, frame + FRAME_HEADER, 0, 1500, again, scratch, zd), 0);
	assert_memory_equal(again, dst, 1500);
	free(pack.p);
	ZSTD_freeDCtx(zd);
}

static void test_hostile_frame_headers(void **state)
{
	static const struct {
		unsigned at, bytes;
		uint64_t value;
	} t[] = {
		{ 0, 2, 0 },           /* magic */
		{ 2, 1, 2 },           /* codec */
		{ 3, 1, 1 },           /* flags */
		{ 16, 8, UINT64_MAX }, /* offset + length wraps */
		{ 16, 8, SILT_FILE_MAX },
		{ 24, 4, 0 }, /* raw */
		{ 24, 4, UINT32_MAX },
		{ 24, 4, PACK_FRAME_RAW + 1 },
		{ 28, 4, 0 }, /* stored */
		{ 28, 4, UINT32_MAX },
		{ 28, 4, 1500 }, /* compressed without gain */
	};
	struct bytes pack = small_pack();
	struct frame_header h;
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		uint8_t header[FRAME_HEADER];
		memcpy(header, pack.p + PACK_HEADER, FRAME_HEADER);
		silt_put_le(header + t[i].at, t[i].value, t[i].bytes);
		assert_int_equal(frame_header_decode(header, &h), -EBADMSG);
	}
	free(pack.p);
}

/* Lengths and counts that lie, under checksums that are right: what a hostile writer could store.
 */
static void test_hostile_trailers_and_indexes(void **state)
{
	static const uint32_t values[] = { 0, 1, 4, 47, 48, 89, 1000, 1u << 20, UINT32_MAX };
	struct bytes pack = small_pack();
	uint8_t *trailer = pack.p + pack.n - PACK_TRAILER;
	char why[160];
	for (unsigned field = 0; field < 4; field++) {
		uint8_t saved[PACK_TRAILER];
		memcpy(saved, trailer, sizeof(saved));
		uint32_t good = saved[4 * field] | (uint32_t)saved[4 * field + 1] << 8;
		for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
			if (values[i] == good)
				continue;
			silt_put_le(trailer + 4 * field, values[i], 4);
			silt_put_le(trailer + 24, XXH3_64bits(trailer, 24), 8);
			assert_int_equal(pack_verify(pack.p, pack.n, PACK, VOLUME, why), -EBADMSG);
		}
		memcpy(trailer, saved, sizeof(saved));
	}
	assert_verifies(&pack);
	free(pack.p);
}

/* --- Speed ----------------------------------------------------------------------------------- */

static void print_speed(const char *what, const struct bytes *data, size_t piece, int level)
{
	struct pack_builder *b = pack_builder_new(PACK, VOLUME, level);
	const struct iovec *iov;
	int niov = 0;
	size_t total = 0, bytes = 0;
	uint64_t start = silt_now_ns(), end = start;
	while (end - start < 200000000u) {
		pack_builder_reset(b, PACK);
		for (size_t at = 0; at + piece <= data->n; at += piece) {
			struct silt_extent e;
			assert_int_equal(pack_builder_add(b, at, 0, data->p + at, piece, &e), 0);
			bytes += piece;
		}
		assert_int_equal(pack_builder_finish(b, &iov, &niov, &total), 0);
		end = silt_now_ns();
	}
	print_message("build %-22s level %d: %6.0f MB/s, %5d iovecs, ratio %.2f\n", what, level,
	              (double)bytes * 1000.0 / (double)(end - start), niov,
	              (double)data->n / (double)total);
	pack_builder_free(b);
}

static void test_print_speed(void **state)
{
	struct bytes t = text(PACK_TARGET, 1), n = noise(PACK_TARGET, 1);
	print_speed("4 KB pieces of text", &t, 4096, 0);
	print_speed("4 KB pieces of text", &t, 4096, 3);
	print_speed("4 KB pieces of noise", &n, 4096, 3);
	print_speed("16 MB piece of text", &t, PACK_TARGET, 0);
	print_speed("16 MB piece of text", &t, PACK_TARGET, 3);
	print_speed("16 MB piece of noise", &n, PACK_TARGET, 3);
	free(t.p);
	free(n.p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_compression_pays_or_is_off),
		cmocka_unit_test(test_reset_and_renumber),
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_key),
		cmocka_unit_test(test_every_flipped_byte_is_found),
		cmocka_unit_test(test_every_truncation_is_found),
		cmocka_unit_test(test_every_flipped_byte_of_a_frame_is_found),
		cmocka_unit_test(test_hostile_frame_headers),
		cmocka_unit_test(test_hostile_trailers_and_indexes),
		cmocka_unit_test(test_print_speed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
