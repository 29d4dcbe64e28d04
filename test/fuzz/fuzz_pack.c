/* libFuzzer: packs of arbitrary bytes. The first byte says how they are used: as they are, with all
 * checksums made right (else no mutation ever gets past them), as one frame, or as pieces of files
 * that are built into a pack, which then must verify. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "cache/pack.h"
#include "meta/varint.h"

#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x))                                                                          \
			abort();                                                                   \
	} while (0)

static uint64_t get_le(const uint8_t *p, unsigned n)
{
	struct silt_reader r = silt_reader_of(p, n);
	return silt_get_le(&r, n);
}

static void fix_frame(uint8_t *at, size_t left)
{
	size_t stored = get_le(at + 28, 4);
	if (stored > left - FRAME_HEADER)
		return;
	uint8_t *joined = malloc(32 + stored);
	memcpy(joined, at, 32);
	memcpy(joined + 32, at + FRAME_HEADER, stored);
	silt_put_le(at + 32, XXH3_64bits(joined, 32 + stored), 8);
	free(joined);
}

/* Makes magic words and checksums right where the lengths allow it. */
static void fix_sums(uint8_t *p, size_t n)
{
	if (n < PACK_HEADER + PACK_TRAILER)
		return;
	memcpy(p, "SILTPACK\1\0\0\0\0\0\0", 16);
	silt_put_le(p + 40, XXH3_64bits(p, 40), 8);
	for (size_t at = PACK_HEADER; at + FRAME_HEADER <= n - PACK_TRAILER;) {
		silt_put_le(p + at, FRAME_MAGIC, 2);
		fix_frame(p + at, n - PACK_TRAILER - at);
		at += FRAME_HEADER + get_le(p + at + 28, 4);
	}
	uint8_t *t = p + n - PACK_TRAILER;
	memcpy(t + 32, "SILTEND1", 8);
	size_t off = get_le(t, 4), len = get_le(t + 4, 4);
	if (off <= n && len <= n - off)
		silt_put_le(t + 16, XXH3_64bits(p + off, len), 8);
	silt_put_le(t + 24, XXH3_64bits(t, 24), 8);
}

static void fuzz_verify(uint8_t *p, size_t n)
{
	char why[160];
	if (n < PACK_HEADER)
		return;
	pack_verify(p, n, get_le(p + 16, 8), get_le(p + 24, 8), why);
}

static void fuzz_frame(uint8_t *p, size_t n)
{
	static uint8_t dst[PACK_FRAME_RAW], scratch[PACK_FRAME_RAW];
	struct frame_header h;
	if (n < FRAME_HEADER + 8)
		return;
	uint32_t skip = (uint32_t)get_le(p, 4), len = (uint32_t)get_le(p + 4, 4);
	p += 8;
	n -= 8;
	silt_put_le(p, FRAME_MAGIC, 2);
	fix_frame(p, n);
	if (frame_header_decode(p, &h) || h.stored > n - FRAME_HEADER)
		return;
	CHECK(h.raw && h.raw <= PACK_FRAME_RAW && h.stored <= h.raw);
	ZSTD_DCtx *zd = ZSTD_createDCtx();
	frame_extract(p, p + FRAME_HEADER, skip % h.raw, len % h.raw, dst, scratch, zd, &h);
	frame_extract(p, p + FRAME_HEADER, 0, h.raw, dst, scratch, zd, &h);
	frame_extract(p, p + FRAME_HEADER, skip, len, dst, scratch, zd, &h);
	ZSTD_freeDCtx(zd);
}

/* Pieces of lengths that the input chooses; all must come back. */
static void fuzz_build(const uint8_t *p, size_t n)
{
	struct pack_builder *b = pack_builder_new(1, 2, 1);
	struct silt_extent e;
	for (size_t at = 0; at + 2 < n;) {
		size_t len = get_le(p + at, 2), left = n - at - 2;
		len = len > left ? left : len;
		int err =
		        pack_builder_add(b, p[at], (uint64_t)p[at + 1] << 16, p + at + 2, len, &e);
		CHECK(err == (len ? 0 : -EINVAL));
		at += 2 + len;
	}
	const struct iovec *iov;
	int niov;
	size_t total, at = 0;
	if (pack_builder_finish(b, &iov, &niov, &total) == 0) {
		uint8_t *pack = malloc(total);
		for (int i = 0; i < niov; at += iov[i++].iov_len)
			memcpy(pack + at, iov[i].iov_base, iov[i].iov_len);
		char why[160];
		CHECK(at == total && pack_verify(pack, total, 1, 2, why) == 0);
		free(pack);
	}
	pack_builder_free(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;
	size_t n = size - 1;
	uint8_t *copy = malloc(n);
	memcpy(copy, data + 1, n);
	switch (data[0] % 4) {
	case 0: fuzz_verify(copy, n); break;
	case 1:
		fix_sums(copy, n);
		fuzz_verify(copy, n);
		break;
	case 2: fuzz_frame(copy, n); break;
	default: fuzz_build(copy, n); break;
	}
	free(copy);
	return 0;
}
