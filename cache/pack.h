/* The pack format, version 1. A pack is an immutable object of frames of one or many files.
 *
 *	0                 PACK_HEADER bytes   header
 *	PACK_HEADER       frame               FRAME_HEADER bytes + stored payload, no padding
 *	                  frame ...
 *	index_off         index               what the frames are, in order (see below)
 *	end - PACK_TRAILER trailer            where the index is
 *
 *	header   "SILTPACK" | u32 version | u32 flags | u64 pack id | u64 volume id | u64 nonce |
 *	         u64 xxh3 of the 40 bytes before                                          48 bytes
 *	frame    u16 magic | u8 codec | u8 flags | u32 dictionary id | u64 ino | u64 file offset |
 *	         u32 raw length | u32 stored length | u64 xxh3                             40 bytes
 *	         xxh3 is over the 32 bytes before it and then the stored payload
 *	index    per frame, varints: zigzag(ino - ino of the frame before) | file offset | raw length |
 *	         stored length; frame offsets follow from the lengths
 *	trailer  u32 index_off | u32 index length | u32 frame count | u32 flags | u64 xxh3 of index |
 *	         u64 xxh3 of the 24 bytes before | "SILTEND1"                              40 bytes
 *
 * All integers little-endian. xxh3 is XXH3_64bits, seed 0. A frame holds at most PACK_FRAME_RAW raw
 * bytes; a longer piece of a file is a run of frames end to end, all but the last full (one extent,
 * EXTENT_RUN). A pack is at most PACK_MAX bytes.
 *
 * Everything here is pure: no I/O, no locks; any thread may call with its own objects. Decoders trust
 * nothing: every length is checked and a wrong checksum is -EBADMSG. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "meta/types.h"

#define PACK_HEADER    48u
#define FRAME_HEADER   40u
#define PACK_TRAILER   40u
#define PACK_FRAME_RAW (128u << 10)
#define PACK_TARGET    (16u << 20) /* file bytes after which a pack is closed */
#define PACK_MAX       (64u << 20)
#define FRAME_MAGIC    0x4653u /* "SF" */

enum pack_codec { PACK_RAW = 0, PACK_ZSTD = 1 };

struct frame_header {
	enum pack_codec codec;
	uint8_t flags;
	uint32_t dict;
	silt_ino ino;
	uint64_t off;	 /* in the file */
	uint32_t raw;	 /* bytes of file */
	uint32_t stored; /* bytes of payload in the pack */
	uint64_t xxh3;
};

/* Checks and decodes a frame header; -EBADMSG when it can't be one. Checks no checksum. */
int frame_header_decode(const uint8_t in[FRAME_HEADER], struct frame_header *out);

/* Checks the checksum over header and payload (`stored` bytes at `payload`), then puts the raw bytes
 * [skip, skip + len) of the frame into `dst`. `scratch` needs PACK_FRAME_RAW bytes and is used only
 * for a part of a compressed frame; `zd` is a ZSTD_DCtx of the calling thread, which must refer to the dictionary that
 * the header names (ZSTD_DCtx_refDDict()). -EBADMSG: damaged. */
int frame_extract(const uint8_t header[FRAME_HEADER], const uint8_t *payload, uint32_t skip,
		  uint32_t len, uint8_t *dst, uint8_t *scratch, void *zd, struct frame_header *out);
/* The same without the checksum: for a frame of a pack in memory that pack_verify() found sound. */
int frame_extract_sound(const uint8_t header[FRAME_HEADER], const uint8_t *payload, uint32_t skip,
			uint32_t len, uint8_t *dst, uint8_t *scratch, void *zd);

/* The index of a pack, decoded. */
struct pack_frame {
	silt_ino ino;
	uint64_t off;
	uint32_t raw, stored; /* stored: payload without header */
	uint32_t pack_off;    /* of the header */
};

struct pack_index {
	struct pack_frame *v; /* in pack order */
	size_t n;
};

struct pack_info {
	uint64_t pack, volume, nonce;
};

int pack_header_decode(const uint8_t in[PACK_HEADER], struct pack_info *out);

/* Finds out from the last PACK_TRAILER bytes of a pack of `size` bytes where its index is. */
int pack_trailer_decode(const uint8_t in[PACK_TRAILER], uint64_t size, uint32_t *index_off,
			uint32_t *index_len, uint32_t *frames, uint64_t *xxh3);

/* Decodes an index; free with pack_index_free(). */
int pack_index_decode(const uint8_t *in, size_t len, uint32_t frames, uint64_t xxh3,
		      uint32_t index_off, struct pack_index *out);
void pack_index_free(struct pack_index *ix);

/* Finds the frame whose header is at `pack_off`: its place in ix->v, or -1. O(log n). */
ssize_t pack_index_find(const struct pack_index *ix, uint32_t pack_off);

/* Checks a whole pack in memory: header, every frame's checksum, index, trailer. 0 or -EBADMSG with
 * one line in `why` (at least 160 bytes). `expect` is the pack id it must have. */
int pack_verify(const uint8_t *data, size_t len, uint64_t expect, uint64_t volume, char why[160]);

/* --- Writing --------------------------------------------------------------------------------------
 * A builder gathers pieces of files into one pack. Raw payloads are referenced, not copied: the
 * caller's data must stay until the pack is dropped. Compressed payloads, headers and the index are
 * owned by the builder. One thread at a time. */
struct pack_builder;

/* `level`: zstd level, 0 switches compression off. A frame is stored raw when compression gains less
 * than an eighth; after frames of a piece that did not pay, the rest of the piece is only sampled. */
struct pack_builder *pack_builder_new(uint64_t pack, uint64_t volume, int level);
void pack_builder_free(struct pack_builder *b);

/* Drops what was added and begins another pack with the builder's memory. */
void pack_builder_reset(struct pack_builder *b, uint64_t pack);

/* Small frames are compressed with a dictionary from now on: `cdict` is a ZSTD_CDict that outlives the builder; NULL:
 * without. -ENOMEM: without, too. */
int pack_builder_use_dict(struct pack_builder *b, const void *cdict, uint32_t number);

/* Gives the pack another id, at any time before it is dropped (also after finish: the iovecs stay
 * good). Extents that were handed out before name the old one. */
void pack_builder_renumber(struct pack_builder *b, uint64_t pack);

/* Appends bytes [off, off + len) of `ino` (len <= PACK_TARGET, not crossing a window of
 * SILT_WINDOW) as a run of frames and fills `*out` with the extent. -ENOSPC: would pass PACK_MAX. */
int pack_builder_add(struct pack_builder *b, silt_ino ino, uint64_t off, const void *data, size_t len,
		     struct silt_extent *out);

/* Appends `n` frames of another pack as they are: `data` is where they stand there, headers and payloads end to end, and
 * `frames` what that pack's index says of them. *pack_off gets where the first one begins. -ENOSPC as above. */
int pack_builder_add_frames(struct pack_builder *b, const struct pack_frame *frames, size_t n, const void *data,
			    uint32_t *pack_off);

/* Bytes of the pack so far, without index and trailer; and the number of frames. */
size_t pack_builder_size(const struct pack_builder *b);
size_t pack_builder_frames(const struct pack_builder *b);

/* Ends the pack. The pieces of its bytes, in order, are *iov (owned by the builder). */
int pack_builder_finish(struct pack_builder *b, const struct iovec **iov, int *niov, size_t *total);

/* The object key of a pack: "packs/<low byte in hex>/<id in 16 hex digits>". */
#define PACK_KEY_MAX 40
void pack_key(uint64_t pack, char out[PACK_KEY_MAX]);
