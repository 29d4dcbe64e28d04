/* The reading side of the pack format: decoders of its records and the check of a whole pack.
 *
 * Input is whatever an object store or an SSD gave back, so nothing in it is believed before it was
 * checked: fixed records by their own checksum, the index by the checksum in the trailer, a frame
 * by the checksum in its header. A frame header alone (frame_header_decode) is only plausible, not
 * proven; its lengths are bounded so that a reader can size a buffer by them, and frame_extract()
 * proves it together with its payload.
 *
 * Every byte of a pack is under exactly one checksum or magic word, and the parts must meet without
 * gaps; hence a pack with any single damaged byte fails pack_verify(). */
#include "cache/pack.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "cache/pack_impl.h"
#include "meta/cleanup.h"

void pack_key(uint64_t pack, char out[PACK_KEY_MAX])
{
	snprintf(out, PACK_KEY_MAX, "packs/%02x/%016llx", (unsigned)(pack & 0xff),
	         (unsigned long long)pack);
}

/* Lengths that a frame may have: what the index and the frame headers both promise. */
static bool frame_lengths_valid(uint64_t off, uint64_t raw, uint64_t stored)
{
	return raw && raw <= PACK_FRAME_RAW && stored && stored <= raw &&
	       off <= SILT_FILE_MAX - raw;
}

int frame_header_decode(const uint8_t in[FRAME_HEADER], struct frame_header *out)
{
	struct silt_reader r = silt_reader_of(in, FRAME_HEADER);
	if (silt_get_le(&r, 2) != FRAME_MAGIC)
		return -EBADMSG;
	unsigned codec = (unsigned)silt_get_le(&r, 1);
	struct frame_header h = { .codec = (enum pack_codec)codec };
	h.flags = (uint8_t)silt_get_le(&r, 1);
	h.dict = (uint32_t)silt_get_le(&r, 4);
	h.ino = silt_get_le(&r, 8);
	h.off = silt_get_le(&r, 8);
	h.raw = (uint32_t)silt_get_le(&r, 4);
	h.stored = (uint32_t)silt_get_le(&r, 4);
	h.xxh3 = silt_get_le(&r, 8);
	/* Version 1 has no frame flags. */
	if (codec > PACK_ZSTD || h.flags || (h.dict && codec != PACK_ZSTD))
		return -EBADMSG;
	if (!frame_lengths_valid(h.off, h.raw, h.stored))
		return -EBADMSG;
	if (codec == PACK_RAW ? h.stored != h.raw : h.stored > pack_compressed_max(h.raw))
		return -EBADMSG;
	*out = h;
	return 0;
}

static int extract(const struct frame_header *h, const uint8_t *payload, uint32_t skip, uint32_t len,
		   uint8_t *dst, uint8_t *scratch, void *zd)
{
	/* The caller's range came from an extent; an extent that disagrees is damage as well. */
	if (skip > h->raw || len > h->raw - skip)
		return -EBADMSG;
	if (h->codec == PACK_RAW) {
		memcpy(dst, payload + skip, len);
		return 0;
	}
	bool whole = skip == 0 && len == h->raw;
	uint8_t *to = whole ? dst : scratch;
	size_t n = ZSTD_decompressDCtx(zd, to, h->raw, payload, h->stored);
	if (ZSTD_isError(n) || n != h->raw)
		return -EBADMSG;
	if (!whole)
		memcpy(dst, scratch + skip, len);
	return 0;
}

int frame_extract(const uint8_t header[FRAME_HEADER], const uint8_t *payload, uint32_t skip,
                  uint32_t len, uint8_t *dst, uint8_t *scratch, void *zd, struct frame_header *out)
{
	struct frame_header h;
	int err = frame_header_decode(header, &h);
	if (!err && frame_checksum(header, payload, h.stored) != h.xxh3)
		err = -EBADMSG;
	if (!err)
		err = extract(&h, payload, skip, len, dst, scratch, zd);
	if (!err && out)
		*out = h;
	return err;
}

int frame_extract_sound(const uint8_t header[FRAME_HEADER], const uint8_t *payload, uint32_t skip,
			uint32_t len, uint8_t *dst, uint8_t *scratch, void *zd)
{
	struct frame_header h;
	int err = frame_header_decode(header, &h);
	return err ? err : extract(&h, payload, skip, len, dst, scratch, zd);
}

int pack_header_decode(const uint8_t in[PACK_HEADER], struct pack_info *out)
{
	struct silt_reader r = silt_reader_of(in, PACK_HEADER);
	if (memcmp(silt_get_bytes(&r, PACK_MAGIC_LEN), PACK_MAGIC, PACK_MAGIC_LEN) != 0)
		return -EBADMSG;
	unsigned version = (unsigned)silt_get_le(&r, 4);
	unsigned flags = (unsigned)silt_get_le(&r, 4);
	struct pack_info info;
	info.pack = silt_get_le(&r, 8);
	info.volume = silt_get_le(&r, 8);
	info.nonce = silt_get_le(&r, 8);
	if (silt_get_le(&r, 8) != XXH3_64bits(in, PACK_HEADER_SUMMED))
		return -EBADMSG;
	if (version != PACK_VERSION || flags || !info.pack)
		return -EBADMSG;
	*out = info;
	return 0;
}

int pack_trailer_decode(const uint8_t in[PACK_TRAILER], uint64_t size, uint32_t *index_off,
                        uint32_t *index_len, uint32_t *frames, uint64_t *xxh3)
{
	struct silt_reader r = silt_reader_of(in, PACK_TRAILER);
	uint32_t ioff = (uint32_t)silt_get_le(&r, 4);
	uint32_t ilen = (uint32_t)silt_get_le(&r, 4);
	uint32_t n = (uint32_t)silt_get_le(&r, 4);
	uint32_t flags = (uint32_t)silt_get_le(&r, 4);
	uint64_t sum = silt_get_le(&r, 8);
	if (silt_get_le(&r, 8) != XXH3_64bits(in, PACK_TRAILER_SUMMED))
		return -EBADMSG;
	if (memcmp(silt_get_bytes(&r, PACK_MAGIC_LEN), PACK_END_MAGIC, PACK_MAGIC_LEN) != 0)
		return -EBADMSG;
	if (flags || !n || size > PACK_MAX || (uint64_t)ioff + ilen + PACK_TRAILER != size)
		return -EBADMSG;
	if (ilen / PACK_INDEX_ENTRY_MIN < n || ioff <= PACK_HEADER ||
	    (ioff - PACK_HEADER) / (FRAME_HEADER + 1) < n)
		return -EBADMSG;
	*index_off = ioff;
	*index_len = ilen;
	*frames = n;
	*xxh3 = sum;
	return 0;
}

int pack_index_decode(const uint8_t *in, size_t len, uint32_t frames, uint64_t xxh3,
                      uint32_t index_off, struct pack_index *out)
{
	/* Memory is asked for by a count that the bytes at hand bear out. */
	if (!frames || len > PACK_MAX || len / PACK_INDEX_ENTRY_MIN < frames)
		return -EBADMSG;
	if (XXH3_64bits(in, len) != xxh3)
		return -EBADMSG;
	SILT_FREE struct pack_frame *v = reallocarray(NULL, frames, sizeof(*v));
	if (!v)
		return -ENOMEM;
	struct silt_reader r = silt_reader_of(in, len);
	uint64_t pos = PACK_HEADER, ino = 0;
	for (uint32_t i = 0; i < frames; i++) {
		ino += (uint64_t)silt_unzigzag(silt_get_varint(&r));
		uint64_t off = silt_get_varint(&r);
		uint64_t raw = silt_get_varint(&r), stored = silt_get_varint(&r);
		if (r.bad || !frame_lengths_valid(off, raw, stored) || pos >= index_off)
			return -EBADMSG;
		v[i] = (struct pack_frame){ .ino = ino,
			                    .off = off,
			                    .raw = (uint32_t)raw,
			                    .stored = (uint32_t)stored,
			                    .pack_off = (uint32_t)pos };
		pos += FRAME_HEADER + stored;
	}
	if (silt_left(&r) || pos != index_off)
		return -EBADMSG;
	out->v = silt_steal(v);
	out->n = frames;
	return 0;
}

void pack_index_free(struct pack_index *ix)
{
	free(ix->v);
	*ix = (struct pack_index){ .v = NULL };
}

ssize_t pack_index_find(const struct pack_index *ix, uint32_t pack_off)
{
	size_t lo = 0, hi = ix->n;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (ix->v[mid].pack_off < pack_off)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < ix->n && ix->v[lo].pack_off == pack_off ? (ssize_t)lo : -1;
}

#define WHY(...) (snprintf(why, 160, __VA_ARGS__), -EBADMSG)

/* A frame of a pack in memory against its index entry. */
static int verify_frame(const uint8_t *data, const struct pack_frame *f, char why[160])
{
	const uint8_t *at = data + f->pack_off;
	struct frame_header h;
	if (frame_header_decode(at, &h))
		return WHY("frame at %u: bad header", f->pack_off);
	if (h.ino != f->ino || h.off != f->off || h.raw != f->raw || h.stored != f->stored)
		return WHY("frame at %u: header and index disagree", f->pack_off);
	if (frame_checksum(at, at + FRAME_HEADER, h.stored) != h.xxh3)
		return WHY("frame at %u (inode %llu, offset %llu): wrong checksum", f->pack_off,
		           (unsigned long long)h.ino, (unsigned long long)h.off);
	return 0;
}

int pack_verify(const uint8_t *data, size_t len, uint64_t expect, uint64_t volume, char why[160])
{
	struct pack_info info;
	if (len < PACK_HEADER + PACK_TRAILER || len > PACK_MAX)
		return WHY("%zu bytes is no length of a pack", len);
	if (pack_header_decode(data, &info))
		return WHY("bad pack header");
	if (info.pack != expect || info.volume != volume)
		return WHY("is pack %016llx of volume %016llx", (unsigned long long)info.pack,
		           (unsigned long long)info.volume);
	uint32_t index_off, index_len, frames;
	uint64_t sum;
	if (pack_trailer_decode(data + len - PACK_TRAILER, len, &index_off, &index_len, &frames,
	                        &sum))
		return WHY("bad trailer (cut short?)");
	struct pack_index ix;
	int err = pack_index_decode(data + index_off, index_len, frames, sum, index_off, &ix);
	if (err == -ENOMEM) {
		snprintf(why, 160, "no memory for an index of %u frames", frames);
		return err;
	}
	if (err)
		return WHY("bad index");
	for (size_t i = 0; i < ix.n && !err; i++)
		err = verify_frame(data, &ix.v[i], why);
	pack_index_free(&ix);
	return err;
}
