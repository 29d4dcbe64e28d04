/* Loading the index of a pack, for reads of compressed runs: the pack's tail, from the SSD or by a
 * GET (after a HEAD when nothing of the pack is here to tell its length). Reads that want the same
 * index wait for one load. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "cache/fetch_parts.h"

#define TAIL (64u << 10) /* holds the index of most packs */

/* The last `len` bytes of a pack, aligned for the tier. */
struct tail {
	uint32_t size; /* of the pack */
	uint32_t off, len;
	uint8_t *data;
};

static uint32_t down(uint32_t n)
{
	return n - n % SLOT_CHUNK_MAX;
}

static int tail_alloc(struct tail *t, uint32_t off)
{
	t->off = off;
	t->len = t->size - off;
	free(t->data);
	size_t room = ((size_t)t->len + TIER_ALIGN) & ~(size_t)(TIER_ALIGN - 1);
	t->data = aligned_alloc(TIER_ALIGN, room);
	if (!t->data)
		return -ENOMEM;
	memset(t->data + t->len, 0, room - t->len);
	return 0;
}

/* Fills the tail from the store, and puts it on the SSD. */
static int tail_get(struct fetch *f, uint64_t pack, struct tail *t)
{
	char key[PACK_KEY_MAX];
	struct silt_err err = { 0 };
	pack_key(pack, key);
	ssize_t n = store_get(f->store, key, t->off, t->len, t->data, NULL, &err);
	if (n < 0) {
		silt_error(f->log, "read: the index of pack %016" PRIx64 " can't be fetched: %s",
		           pack, err.text);
		return n == -ETIMEDOUT ? -ETIMEDOUT : -EIO;
	}
	return n == (ssize_t)t->len ? 0 : -EBADMSG;
}

static int tail_fill(struct fetch *f, uint64_t pack, struct tail *t, bool from_ssd)
{
	return from_ssd ? tier_read_wait(f->tier, pack, t->off, t->len, t->data)
	                : tail_get(f, pack, t);
}

/* Reads and decodes the index from one source. -EBADMSG: damaged there; -ENOENT: not on the SSD. */
static int load_from(struct fetch *f, uint64_t pack, struct tail *t, bool from_ssd,
                     struct pack_index *out)
{
	uint32_t index_off, index_len, frames;
	uint64_t sum;
	if (t->size < PACK_HEADER + PACK_TRAILER)
		return -EBADMSG;
	int rc = tail_alloc(t, down(t->size > TAIL ? t->size - TAIL : 0));
	if (rc == 0)
		rc = tail_fill(f, pack, t, from_ssd);
	if (rc < 0)
		return rc;
	if (pack_trailer_decode(t->data + t->len - PACK_TRAILER, t->size, &index_off, &index_len,
	                        &frames, &sum) < 0)
		return -EBADMSG;
	if (index_off < t->off) {
		rc = tail_alloc(t, down(index_off));
		if (rc == 0)
			rc = tail_fill(f, pack, t, from_ssd);
		if (rc < 0)
			return rc;
	}
	if ((uint64_t)index_off + index_len > t->size)
		return -EBADMSG;
	rc = pack_index_decode(t->data + (index_off - t->off), index_len, frames, sum, index_off,
	                       out);
	return rc == -ENOMEM ? rc : rc < 0 ? -EBADMSG : 0;
}

static int pack_size(struct fetch *f, uint64_t pack, uint32_t *size)
{
	char key[PACK_KEY_MAX];
	struct store_object info;
	struct silt_err err = { 0 };
	pack_key(pack, key);
	int rc = store_head(f->store, key, &info, &err);
	if (rc == 0 && info.size <= PACK_MAX) {
		*size = (uint32_t)info.size;
		return 0;
	}
	silt_error(f->log, "read: pack %016" PRIx64 ": %s", pack, rc < 0 ? err.text : "too large");
	return rc == -ETIMEDOUT ? rc : -EIO;
}

static int load(struct fetch *f, uint64_t pack, struct pack_index *out)
{
	struct tail t = { 0 };
	struct tier_pack look = { 0 };
	if (f->tier)
		tier_look(f->tier, pack, &look);
	t.size = look.pack_len;
	int rc = t.size ? load_from(f, pack, &t, true, out) : -ENOENT;
	if (rc == -EBADMSG) {
		silt_count(f->metrics, M_SSD_BAD, 1);
		silt_warn(f->log,
		          "cache: damaged index of pack %016" PRIx64 " on the SSD; fetching "
		          "it again",
		          pack);
		tier_invalidate(f->tier, pack, t.off, t.len);
	}
	if (rc < 0 && rc != -ENOMEM) {
		rc = t.size ? 0 : pack_size(f, pack, &t.size);
		for (unsigned try = 0; rc == 0 && try < STORE_TRIES; try++) {
			rc = load_from(f, pack, &t, false, out);
			if (rc != -EBADMSG)
				break;
			silt_count(f->metrics, M_DAMAGED_FRAMES, 1);
			rc = try + 1 < STORE_TRIES ? 0 : -EIO;
		}
		if (rc == -EIO)
			silt_error(f->log,
			           "read: the index of pack %016" PRIx64 " is damaged in the "
			           "store",
			           pack);
		if (rc == 0 && f->tier)
			flight_write(f, pack, t.size, t.off, t.len, t.data);
	}
	free(t.data);
	return rc;
}

static void load_run(struct fetch *f, struct job *j)
{
	struct index_load *l = (struct index_load *)j;
	struct pack_index ix = { 0 };
	int rc = load(f, l->pack, &ix);
	struct held_index *held = rc == 0 ? index_cache_put(&f->indexes, l->pack, &ix) : NULL;
	if (rc == 0 && !held)
		rc = -ENOMEM;
	silt_lock(&f->load_lock);
	struct index_load **p = &f->loads;
	while (*p != l)
		p = &(*p)->next;
	*p = l->next;
	silt_unlock(&f->load_lock);
	for (struct read_op *op = l->waiting, *next; op; op = next) {
		next = op->next;
		if (rc == 0)
			read_with_index(op, &held->ix);
		else
			read_fail(op, rc);
	}
	index_unref(held);
	free(l);
}

void index_wanted(struct read_op *op)
{
	struct fetch *f = op->f;
	struct index_load *made = calloc(1, sizeof(*made));
	silt_lock(&f->load_lock);
	struct index_load *l = f->loads;
	while (l && l->pack != op->e.pack)
		l = l->next;
	bool joined = l != NULL;
	if (!l && made) {
		l = made;
		made = NULL;
		l->job.run = load_run;
		l->pack = op->e.pack;
		l->next = f->loads;
		f->loads = l;
		fetch_enter(f);
	}
	if (l) {
		op->next = l->waiting;
		l->waiting = op;
	}
	silt_unlock(&f->load_lock);
	free(made);
	if (l && !joined)
		fetch_submit(f, &l->job, true);
	if (!l)
		read_fail(op, -ENOMEM);
}
