/* What the writer and the reader of packs share: magic words, the layout of the fixed records and
 * the frame checksum. Private to cache/pack_*.c. */
#pragma once
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#include "cache/pack.h"
#include "meta/varint.h"

#define PACK_MAGIC     "SILTPACK"
#define PACK_END_MAGIC "SILTEND1"
#define PACK_MAGIC_LEN 8u
#define PACK_VERSION   1u

/* Bytes of a header, a frame header and a trailer that their checksums cover. */
#define PACK_HEADER_SUMMED  40u
#define FRAME_HEADER_SUMMED 32u
#define PACK_TRAILER_SUMMED 24u

/* An index entry: four varints of 10, 9, 3 and 3 bytes at most; one byte each at least. */
#define PACK_INDEX_ENTRY_MAX 28u
#define PACK_INDEX_ENTRY_MIN 4u

/* Compression must save this share of a frame, else it is stored raw. */
#define PACK_GAIN_SHIFT 3

/* The largest payload of a compressed frame of `raw` bytes. */
static inline uint32_t pack_compressed_max(uint32_t raw)
{
	return raw - (raw >> PACK_GAIN_SHIFT);
}

static inline uint64_t frame_checksum(const uint8_t *header, const void *payload, size_t stored)
{
	XXH3_state_t state;
	XXH3_64bits_reset(&state);
	XXH3_64bits_update(&state, header, FRAME_HEADER_SUMMED);
	XXH3_64bits_update(&state, payload, stored);
	return XXH3_64bits_digest(&state);
}
