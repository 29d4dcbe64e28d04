/* From an extent to frames, and down the stairs: memory, SSD, store.
 *
 * Hot path (fetch_read with everything in memory): for each frame one shard lock of the frame
 * memory and a copy; no allocation, no system call. bench: cache_read. SSD hit: one allocation for
 * the read, one hop to the ring's thread, which verifies, decodes and answers. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "cache/fetch_parts.h"

#define FULL_FRAME (FRAME_HEADER + PACK_FRAME_RAW)

/* Goes along the frames of a run. */
struct cursor {
	const struct silt_extent *e;
	const struct pack_index *ix; /* of compressed runs */
	silt_ino ino;
	uint64_t pos; /* raw byte of the run */
	uint64_t left;
	uint8_t *dst;
};

static bool needs_index(const struct silt_extent *e)
{
	return (e->flags & (EXTENT_RUN | EXTENT_RAW_RUN)) == EXTENT_RUN;
}

static bool is_run(const struct silt_extent *e)
{
	return e->flags & (EXTENT_RUN | EXTENT_RAW_RUN);
}

/* Where frame `k` of the run is. -EBADMSG: not in this run, or not in the index. */
static int frame_place(const struct cursor *c, uint64_t k, struct frame_want *w)
{
	const struct silt_extent *e = c->e;
	uint64_t at = e->pack_off, end = at + e->stored, stored = e->stored;
	if (needs_index(e)) {
		ssize_t i = pack_index_find(c->ix, e->pack_off);
		if (i < 0 || (uint64_t)i + k >= c->ix->n)
			return -EBADMSG;
		at = c->ix->v[(uint64_t)i + k].pack_off;
		stored = (uint64_t)c->ix->v[(uint64_t)i + k].stored + FRAME_HEADER;
	} else if (is_run(e)) {
		at += k * FULL_FRAME;
		stored = end > at && end - at < FULL_FRAME ? end - at : FULL_FRAME;
	}
	if (stored <= FRAME_HEADER || stored > FULL_FRAME || at + stored > end)
		return -EBADMSG;
	w->key = (struct frame_key){ .pack = e->pack, .pack_off = (uint32_t)at };
	w->stored = (uint32_t)stored;
	return 0;
}

/* The next frame's part of the read. */
static int cursor_next(struct cursor *c, struct frame_want *w)
{
	const struct silt_extent *e = c->e;
	uint64_t k = is_run(e) ? c->pos / PACK_FRAME_RAW : 0;
	uint64_t skip = c->pos - k * PACK_FRAME_RAW;
	uint64_t room = skip < PACK_FRAME_RAW ? PACK_FRAME_RAW - skip : 0;
	int rc = frame_place(c, k, w);
	if (rc < 0 || room == 0)
		return -EBADMSG;
	w->owner = (struct frame_owner){ .ino = c->ino,
		                         .off = e->off - e->skip + k * PACK_FRAME_RAW,
		                         .foreign = e->flags & EXTENT_FOREIGN };
	w->skip = (uint32_t)skip;
	w->len = (uint32_t)(c->left < room ? c->left : room);
	w->dst = c->dst;
	c->pos += w->len;
	c->left -= w->len;
	c->dst += w->len;
	return 0;
}

static bool in_memory(struct fetch *f, const struct frame_want *w)
{
	if (!frame_memory_get(f->memory, w->key, &w->owner, w->skip, w->len, w->dst))
		return false;
	silt_count(f->metrics, M_HIT_MEMORY, 1);
	return true;
}

/* --- Answers -------------------------------------------------------------------------------------
 */

static int extract(const uint8_t *data, uint32_t skip, uint32_t len, uint8_t *dst, struct decoder *d,
		   bool sound)
{
	const uint8_t *payload = data + FRAME_HEADER;
	if (sound)
		return frame_extract_sound(data, payload, skip, len, dst, d->raw, d->zd);
	return frame_extract(data, payload, skip, len, dst, d->raw, d->zd, NULL);
}

int want_decode(struct frame_want *w, const uint8_t *data, size_t n, bool sound, bool fetch)
{
	struct fetch *f = w->op->f;
	struct frame_header h;
	if (n < w->stored || frame_header_decode(data, &h) < 0 ||
	    h.stored + FRAME_HEADER != w->stored || (uint64_t)w->skip + w->len > h.raw)
		return -EBADMSG;
	if (!w->owner.foreign && (h.ino != w->owner.ino || h.off != w->owner.off))
		return -EBADMSG;
	struct decoder *d = decoder_get(f);
	if (!d)
		return -ENOMEM;
	bool whole = w->len == h.raw;
	bool keep = h.raw <= MEMORY_FRAME_MAX || (!whole && !(sound && h.codec == PACK_RAW));
	const uint8_t *raw = whole ? w->dst : d->raw;
	int rc = decoder_use(f, d, h.dict, fetch);
	if (rc) {
		decoder_put(f, d);
		return rc;
	}
	if (whole || !keep) {
		rc = extract(data, w->skip, w->len, w->dst, d, sound);
	} else {
		rc = extract(data, 0, h.raw, d->raw, d, sound);
		if (rc == 0)
			memcpy(w->dst, d->raw + w->skip, w->len);
	}
	if (rc == 0 && keep)
		frame_memory_put(f->memory, w->key, h.ino, h.off, raw, h.raw);
	decoder_put(f, d);
	return rc < 0 ? -EBADMSG : 0;
}

static void op_finish(struct read_op *op)
{
	struct fetch *f = op->f;
	op->done(op->arg, atomic_load(&op->err));
	free(op);
	fetch_leave(f);
}

static void op_error(struct read_op *op, int err)
{
	int none = 0;
	if (err < 0)
		atomic_compare_exchange_strong(&op->err, &none, err);
}

void want_answer(struct frame_want *w, int err)
{
	struct read_op *op = w->op;
	op_error(op, err);
	if (atomic_fetch_sub(&op->left, 1) == 1)
		op_finish(op);
}

void read_fail(struct read_op *op, int err)
{
	op_error(op, err);
	op_finish(op);
}

/* --- Down the stairs
 * ------------------------------------------------------------------------------*/

static void on_ssd(struct tier_io *io, const uint8_t *data, int err)
{
	struct frame_want *w = (struct frame_want *)io;
	struct fetch *f = w->op->f;
	int rc = err == 0 ? want_decode(w, data, w->stored, false, false) : -EIO;
	if (rc == -EBADMSG) {
		silt_count(f->metrics, M_SSD_BAD, 1);
		silt_warn(f->log,
		          "cache: damaged copy of pack %016" PRIx64
		          " at %u on the SSD (inode %" PRIu64 ", offset %" PRIu64
		          "); fetching it again",
		          w->key.pack, w->key.pack_off, w->owner.ino, w->owner.off);
	}
	if (rc == -EBADMSG || rc == -EIO) {
		tier_invalidate(f->tier, w->key.pack, w->key.pack_off, w->stored);
		rc = flight_join(w);
	} else if (rc == -EAGAIN) { /* for a dictionary this thread does not wait; the copy is good */
		rc = flight_join(w);
	} else if (rc == 0) {
		silt_count(f->metrics, M_HIT_SSD, 1);
	}
	if (rc != -EINPROGRESS)
		want_answer(w, rc);
}

int want_start(struct frame_want *w)
{
	struct fetch *f = w->op->f;
	if (in_memory(f, w) || flight_borrow(w) == 0)
		return 0;
	w->io.done = on_ssd;
	w->tries = 0;
	if (f->tier && tier_read(f->tier, w->key.pack, w->key.pack_off, w->stored, &w->io) == 0)
		return -EINPROGRESS;
	return flight_join(w);
}

/* Starts all wants of `op`; afterwards the caller drops its own count. */
static void start_wants(struct read_op *op, struct cursor c)
{
	int rc = 0;
	uint32_t n = 0;
	while (c.left > 0 && rc == 0) {
		/* A damaged extent may be longer than the one frame that it says it is. */
		if (n == op->n) {
			rc = -EBADMSG;
			break;
		}
		op->wants[n].op = op;
		rc = cursor_next(&c, &op->wants[n]);
		n += rc == 0;
	}
	atomic_init(&op->left, 1);
	if (rc < 0) {
		silt_error(op->f->log,
		           "read: the extent of inode %" PRIu64 " at %" PRIu64 " does not fit pack "
		           "%016" PRIx64,
		           op->ino, op->e.off, op->e.pack);
		op_error(op, -EIO);
		return;
	}
	atomic_store(&op->left, n + 1);
	for (uint32_t i = 0; i < n; i++) {
		rc = want_start(&op->wants[i]);
		if (rc != -EINPROGRESS)
			want_answer(&op->wants[i], rc);
	}
}

static struct cursor cursor_of(const struct read_op *op, const struct pack_index *ix)
{
	return (struct cursor){ .e = &op->e,
		                .ix = ix,
		                .ino = op->ino,
		                .pos = op->e.skip + (op->off - op->e.off),
		                .left = op->len,
		                .dst = op->dst };
}

void read_with_index(struct read_op *op, const struct pack_index *ix)
{
	start_wants(op, cursor_of(op, ix));
	if (atomic_fetch_sub(&op->left, 1) == 1)
		op_finish(op);
}

static struct read_op *op_new(struct fetch *f, silt_ino ino, const struct silt_extent *e,
                              const struct cursor *c)
{
	uint64_t n = 1;
	if (is_run(e))
		n = (c->pos + c->left - 1) / PACK_FRAME_RAW - c->pos / PACK_FRAME_RAW + 1;
	size_t head = (sizeof(struct read_op) + 15) & ~15ul;
	struct read_op *op = malloc(head + n * sizeof(struct frame_want));
	if (!op)
		return NULL;
	memset(op, 0, sizeof(*op));
	op->f = f;
	op->ino = ino;
	op->e = *e;
	op->off = e->off + (c->pos - e->skip);
	op->len = (uint32_t)c->left;
	op->dst = c->dst;
	op->n = (uint32_t)n;
	op->wants = (struct frame_want *)((char *)op + head);
	return op;
}

/* Copies frames from memory as far as they are there, and moves `c` on. 0: all were. */
static int read_memory(struct fetch *f, struct cursor *c)
{
	while (c->left > 0) {
		struct cursor before = *c;
		struct frame_want w;
		int rc = cursor_next(c, &w);
		if (rc < 0 || !in_memory(f, &w)) {
			*c = before;
			return -ENOENT;
		}
	}
	return 0;
}

/* The part of a read that was not in memory. */
static int read_slow(struct fetch *f, const struct cursor *c, struct held_index *ix,
                     cache_done done, void *arg)
{
	struct read_op *op = op_new(f, c->ino, c->e, c);
	if (!op)
		return -ENOMEM;
	op->done = done;
	op->arg = arg;
	fetch_enter(f);
	if (needs_index(c->e) && !ix) {
		index_wanted(op);
		return -EINPROGRESS;
	}
	start_wants(op, cursor_of(op, ix ? &ix->ix : NULL));
	if (atomic_fetch_sub(&op->left, 1) > 1)
		return -EINPROGRESS;
	int err = atomic_load(&op->err); /* all answered meanwhile: nobody else knows of op */
	free(op);
	fetch_leave(f);
	return err;
}

int fetch_read(struct fetch *f, silt_ino ino, const struct silt_extent *e, uint64_t off,
               uint32_t len, void *dst, cache_done done, void *arg)
{
	if (off < e->off || off - e->off > e->len || len > e->len - (off - e->off) ||
	    e->pack == 0 || (e->flags & EXTENT_HOLE))
		return -EINVAL;
	struct held_index *ix = needs_index(e) ? index_cache_get(&f->indexes, e->pack) : NULL;
	struct cursor c = { .e = e,
		            .ix = ix ? &ix->ix : NULL,
		            .ino = ino,
		            .pos = e->skip + (off - e->off),
		            .left = len,
		            .dst = dst };
	int rc = -ENOENT;
	if (ix || !needs_index(e))
		rc = read_memory(f, &c);
	if (rc < 0)
		rc = read_slow(f, &c, ix, done, arg);
	index_unref(ix);
	return rc;
}
