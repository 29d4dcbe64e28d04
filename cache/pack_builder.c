/* The writing side of the pack format: gathers pieces of files into the iovecs of one object.
 *
 * The builder owns an arena of chunks that never move: frame headers, compressed payloads and small
 * raw payloads go there one behind the other, so a pack of small files is a handful of iovecs.
 * Larger raw payloads stay where the caller has them and become an iovec of their own. The index
 * grows in a buffer beside, so the final size of the pack is known at every moment and PACK_MAX is
 * never passed.
 *
 * Compression is decided frame by frame: zstd gets a buffer an eighth smaller than the frame, and a
 * frame that does not fit is stored raw. Bytes that don't compress cost the most time to find that
 * out, so after RAW_STREAK such frames in a row only each SAMPLE_EVERY-th frame of the piece is
 * tried.
 *
 * An add that fails leaves the pack as it was (only arena space is lost), so that a caller can drop
 * the one piece and go on. A builder can be reset and used again: the zstd context (more than 1
 * MiB) and a little memory stay. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <zstd.h>

#include "cache/dict.h"
#include "cache/pack.h"
#include "cache/pack_impl.h"
#include "meta/lock.h"

#define CHUNK_SIZE   (512u << 10)
#define COPY_MAX     1024u /* raw payloads up to this are copied: cheaper than an iovec */
#define COMPRESS_MIN 64u   /* shorter frames never gain an eighth over zstd's own headers */
#define RAW_STREAK   2u
#define SAMPLE_EVERY 8u

struct chunk {
	struct chunk *next;
	size_t used;
	uint8_t data[CHUNK_SIZE];
};

/* What an add changes; saved before it and put back when it fails. */
struct fill {
	size_t size; /* header and frames */
	size_t frames;
	size_t index_len;
	int niov;
	size_t last_iov_len;
	silt_ino ino; /* of the frame before */
};

struct pack_builder {
	uint64_t pack, volume, nonce;
	int level;
	ZSTD_CCtx *zc;
	ZSTD_CCtx *with_dict; /* refers to `dict`; NULL: there was none so far */
	const void *dict;
	uint32_t dict_number;
	struct chunk *chunks, *current;
	struct iovec *iov;
	int iov_cap;
	uint8_t *index; /* and, in the end, the trailer */
	size_t index_cap;
	struct fill at;
	bool finished;
	uint8_t header[PACK_HEADER];
};

static void header_encode(struct pack_builder *b)
{
	uint8_t *p = b->header;
	memcpy(p, PACK_MAGIC, PACK_MAGIC_LEN);
	p = silt_put_le(p + PACK_MAGIC_LEN, PACK_VERSION, 4);
	p = silt_put_le(p, 0, 4);
	p = silt_put_le(p, b->pack, 8);
	p = silt_put_le(p, b->volume, 8);
	p = silt_put_le(p, b->nonce, 8);
	silt_put_le(p, XXH3_64bits(b->header, PACK_HEADER_SUMMED), 8);
}

/* --- Memory ---------------------------------------------------------------------------------- */

/* Makes `n` (<= CHUNK_SIZE) contiguous bytes available; arena_take() then takes what was used. */
static uint8_t *arena_reserve(struct pack_builder *b, size_t n)
{
	if (b->current && CHUNK_SIZE - b->current->used >= n)
		return b->current->data + b->current->used;
	struct chunk *next = b->current ? b->current->next : b->chunks;
	if (!next) {
		next = malloc(sizeof(*next));
		if (!next)
			return NULL;
		next->next = NULL;
		if (b->current)
			b->current->next = next;
		else
			b->chunks = next;
	}
	next->used = 0;
	b->current = next;
	return next->data;
}

static void arena_take(struct pack_builder *b, size_t n)
{
	b->current->used += n;
}

/* Room for the iovecs and index entries of `frames` more frames. */
static int reserve_lists(struct pack_builder *b, size_t frames)
{
	size_t iovs = (size_t)b->at.niov + 2 * frames + 1; /* one more for the index */
	if (iovs > (size_t)b->iov_cap) {
		size_t cap = iovs + iovs / 2 + 16;
		struct iovec *v = reallocarray(b->iov, cap, sizeof(*v));
		if (!v)
			return -ENOMEM;
		b->iov = v;
		b->iov_cap = (int)cap;
	}
	size_t bytes = b->at.index_len + frames * PACK_INDEX_ENTRY_MAX + PACK_TRAILER;
	if (bytes > b->index_cap) {
		size_t cap = bytes + bytes / 2 + 256;
		uint8_t *v = realloc(b->index, cap);
		if (!v)
			return -ENOMEM;
		b->index = v;
		b->index_cap = cap;
	}
	return 0;
}

static void add_bytes(struct pack_builder *b, const void *p, size_t n)
{
	struct iovec *last = b->at.niov ? &b->iov[b->at.niov - 1] : NULL;
	if (last && (uint8_t *)last->iov_base + last->iov_len == p)
		last->iov_len += n;
	else
		b->iov[b->at.niov++] = (struct iovec){ .iov_base = (void *)p, .iov_len = n };
}

/* --- Life ------------------------------------------------------------------------------------ */

void pack_builder_reset(struct pack_builder *b, uint64_t pack)
{
	/* Two chunks hold nearly every shared pack; keeping more would make each idle upload thread
	 * sit on the memory of its largest pack. */
	struct chunk *keep = b->chunks && b->chunks->next ? b->chunks->next : b->chunks;
	while (keep && keep->next) {
		struct chunk *c = keep->next;
		keep->next = c->next;
		free(c);
	}
	b->current = NULL;
	b->at = (struct fill){ .size = PACK_HEADER };
	b->finished = false;
	if (getrandom(&b->nonce, sizeof(b->nonce), 0) != sizeof(b->nonce))
		b->nonce = silt_now_ns();
	pack_builder_renumber(b, pack);
	add_bytes(b, b->header, PACK_HEADER);
}

int pack_builder_use_dict(struct pack_builder *b, const void *cdict, uint32_t number)
{
	if (cdict == b->dict || !b->level)
		return 0;
	b->dict = NULL;
	if (!cdict)
		return 0;
	if (!b->with_dict)
		b->with_dict = ZSTD_createCCtx();
	/* The frame's header has the number: zstd need not repeat it. */
	if (!b->with_dict || ZSTD_isError(ZSTD_CCtx_refCDict(b->with_dict, cdict)) ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(b->with_dict, ZSTD_c_dictIDFlag, 0)))
		return -ENOMEM;
	b->dict = cdict;
	b->dict_number = number;
	return 0;
}

void pack_builder_renumber(struct pack_builder *b, uint64_t pack)
{
	b->pack = pack;
	header_encode(b);
}

struct pack_builder *pack_builder_new(uint64_t pack, uint64_t volume, int level)
{
	struct pack_builder *b = calloc(1, sizeof(*b));
	if (!b)
		return NULL;
	b->volume = volume;
	b->level = level;
	if (level)
		b->zc = ZSTD_createCCtx();
	if ((level && !b->zc) || reserve_lists(b, 8)) {
		pack_builder_free(b);
		return NULL;
	}
	pack_builder_reset(b, pack);
	return b;
}

void pack_builder_free(struct pack_builder *b)
{
	if (!b)
		return;
	for (struct chunk *c = b->chunks, *next; c; c = next) {
		next = c->next;
		free(c);
	}
	ZSTD_freeCCtx(b->zc);
	ZSTD_freeCCtx(b->with_dict);
	free(b->iov);
	free(b->index);
	free(b);
}

/* --- Frames ---------------------------------------------------------------------------------- */

/* How the frames of one piece did so far. */
struct trial {
	unsigned raw_streak; /* frames in a row that did not pay or were not tried */
	bool any_compressed;
};

static bool worth_trying(const struct trial *t, size_t raw)
{
	if (raw < COMPRESS_MIN)
		return false;
	return t->raw_streak < RAW_STREAK || t->raw_streak % SAMPLE_EVERY == 0;
}

/* Compresses into `to`; returns the payload's length, or 0 when the frame is to be stored raw. */
static uint32_t try_compress(struct pack_builder *b, struct trial *t, const void *data,
                             uint32_t raw, uint8_t *to, uint32_t *dict)
{
	size_t n = 0;
	*dict = 0;
	if (worth_trying(t, raw)) {
		bool use = b->dict && raw <= DICT_FRAME_MAX;
		n = use ? ZSTD_compress2(b->with_dict, to, pack_compressed_max(raw), data, raw)
		        : ZSTD_compressCCtx(b->zc, to, pack_compressed_max(raw), data, raw, b->level);
		if (ZSTD_isError(n))
			n = 0;
		*dict = n && use ? b->dict_number : 0;
	}
	t->raw_streak = n ? 0 : t->raw_streak + 1;
	t->any_compressed |= n != 0;
	return (uint32_t)n;
}

static void frame_header_encode(uint8_t *header, const struct frame_header *h, const void *payload)
{
	uint8_t *p = silt_put_le(header, FRAME_MAGIC, 2);
	p = silt_put_le(p, h->codec, 1);
	p = silt_put_le(p, h->flags, 1);
	p = silt_put_le(p, h->dict, 4);
	p = silt_put_le(p, h->ino, 8);
	p = silt_put_le(p, h->off, 8);
	p = silt_put_le(p, h->raw, 4);
	p = silt_put_le(p, h->stored, 4);
	silt_put_le(p, frame_checksum(header, payload, h->stored), 8);
}

static void add_index_entry(struct pack_builder *b, const struct frame_header *h)
{
	uint8_t *start = b->index + b->at.index_len, *p = start;
	p = silt_put_varint(p, silt_zigzag((int64_t)(h->ino - b->at.ino)));
	p = silt_put_varint(p, h->off);
	p = silt_put_varint(p, h->raw);
	p = silt_put_varint(p, h->stored);
	b->at.index_len += (size_t)(p - start);
	b->at.ino = h->ino;
}

/* Adds one frame. Hot path of every write: one arena reservation, no other allocation
 * (reserve_lists() came before); bench: test/unit_pack.c prints MB/s. */
static int add_frame(struct pack_builder *b, struct frame_header h, const void *data,
                     struct trial *t)
{
	bool copy = h.raw <= COPY_MAX;
	size_t room = b->level ? pack_compressed_max(h.raw) : 0;
	if (copy)
		room = h.raw;
	uint8_t *header = arena_reserve(b, FRAME_HEADER + room);
	if (!header)
		return -ENOMEM;
	uint8_t *owned = header + FRAME_HEADER;
	const void *payload = owned;
	uint32_t packed = b->level ? try_compress(b, t, data, h.raw, owned, &h.dict) : 0;
	h.codec = packed ? PACK_ZSTD : PACK_RAW;
	h.stored = packed ? packed : h.raw;
	if (!packed && copy)
		memcpy(owned, data, h.raw);
	else if (!packed)
		payload = data;
	frame_header_encode(header, &h, payload);
	arena_take(b, FRAME_HEADER + (payload == owned ? h.stored : 0));
	add_bytes(b, header, FRAME_HEADER);
	add_bytes(b, payload, h.stored);
	add_index_entry(b, &h);
	b->at.size += FRAME_HEADER + h.stored;
	b->at.frames++;
	return 0;
}

static void roll_back(struct pack_builder *b, const struct fill *to)
{
	b->at = *to;
	b->iov[b->at.niov - 1].iov_len = to->last_iov_len;
}

int pack_builder_add(struct pack_builder *b, silt_ino ino, uint64_t off, const void *data,
                     size_t len, struct silt_extent *out)
{
	if (b->finished || !len || len > PACK_TARGET || off > SILT_FILE_MAX - len ||
	    off / SILT_WINDOW != (off + len - 1) / SILT_WINDOW)
		return -EINVAL;
	size_t frames = (len + PACK_FRAME_RAW - 1) / PACK_FRAME_RAW;
	size_t most = len + frames * (FRAME_HEADER + PACK_INDEX_ENTRY_MAX);
	if (b->at.size + b->at.index_len + PACK_TRAILER + most > PACK_MAX)
		return -ENOSPC;
	int err = reserve_lists(b, frames);
	if (err)
		return err;
	struct fill before = b->at;
	before.last_iov_len = b->iov[b->at.niov - 1].iov_len;
	struct trial trial = { 0 };
	for (size_t done = 0; done < len; done += PACK_FRAME_RAW) {
		size_t raw = len - done < PACK_FRAME_RAW ? len - done : PACK_FRAME_RAW;
		struct frame_header h = { .ino = ino, .off = off + done, .raw = (uint32_t)raw };
		err = add_frame(b, h, (const uint8_t *)data + done, &trial);
		if (err) {
			roll_back(b, &before);
			return err;
		}
	}
	unsigned run = frames > 1 ? EXTENT_RUN : 0;
	unsigned all_raw = trial.any_compressed ? 0 : EXTENT_RAW_RUN;
	*out = (struct silt_extent){ .off = off,
		                     .len = len,
		                     .pack = b->pack,
		                     .pack_off = (uint32_t)before.size,
		                     .stored = (uint32_t)(b->at.size - before.size),
		                     .flags = (uint8_t)(run | all_raw) };
	return 0;
}

int pack_builder_add_frames(struct pack_builder *b, const struct pack_frame *frames, size_t n, const void *data,
                            uint32_t *pack_off)
{
	size_t bytes = 0;
	if (b->finished || !n)
		return -EINVAL;
	for (size_t i = 0; i < n; i++)
		bytes += FRAME_HEADER + (size_t)frames[i].stored;
	if (b->at.size + b->at.index_len + PACK_TRAILER + bytes + n * PACK_INDEX_ENTRY_MAX > PACK_MAX)
		return -ENOSPC;
	int err = reserve_lists(b, n);
	if (err)
		return err;
	*pack_off = (uint32_t)b->at.size;
	add_bytes(b, data, bytes);
	for (size_t i = 0; i < n; i++) {
		struct frame_header h = {
			.ino = frames[i].ino, .off = frames[i].off, .raw = frames[i].raw, .stored = frames[i].stored
		};
		add_index_entry(b, &h);
	}
	b->at.size += bytes;
	b->at.frames += n;
	return 0;
}

size_t pack_builder_size(const struct pack_builder *b)
{
	return b->at.size;
}

size_t pack_builder_frames(const struct pack_builder *b)
{
	return b->at.frames;
}

int pack_builder_finish(struct pack_builder *b, const struct iovec **iov, int *niov, size_t *total)
{
	if (!b->at.frames)
		return -EINVAL;
	if (!b->finished) {
		uint8_t *trailer = b->index + b->at.index_len;
		uint8_t *p = silt_put_le(trailer, b->at.size, 4);
		p = silt_put_le(p, b->at.index_len, 4);
		p = silt_put_le(p, b->at.frames, 4);
		p = silt_put_le(p, 0, 4);
		p = silt_put_le(p, XXH3_64bits(b->index, b->at.index_len), 8);
		p = silt_put_le(p, XXH3_64bits(trailer, PACK_TRAILER_SUMMED), 8);
		memcpy(p, PACK_END_MAGIC, PACK_MAGIC_LEN);
		add_bytes(b, b->index, b->at.index_len + PACK_TRAILER);
		b->finished = true;
	}
	*iov = b->iov;
	*niov = b->at.niov;
	*total = b->at.size + b->at.index_len + PACK_TRAILER;
	return 0;
}
