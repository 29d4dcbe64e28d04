/* Packs that stay in memory for a while after they came from the store, and the buffers of packs.
 *
 * A sequential reader's next packs are fetched ahead of it. Their bytes are in memory then, verified;
 * to drop them as soon as they are on the SSD would make the reader bring them back from there a moment
 * later. So such a flight stays in its bucket, ready to be read from, until LINGER_MAX bytes of younger
 * ones push it out.
 *
 * Buffers for whole packs are used again: 16 MiB of fresh pages cost more than filling them. */
#include <errno.h>
#include <stdlib.h>

#include "cache/fetch_parts.h"

#define LINGER_MAX   ((uint64_t)96 << 20)
#define BUFFERS_KEPT 4u

uint8_t *buffer_get(struct fetch *f)
{
	uint8_t *b = NULL;
	silt_lock(&f->linger_lock);
	if (f->nbuffers)
		b = f->buffers[--f->nbuffers];
	silt_unlock(&f->linger_lock);
	return b ? b : aligned_alloc(TIER_ALIGN, WHOLE_ROOM);
}

void buffer_put(struct fetch *f, uint8_t *b)
{
	silt_lock(&f->linger_lock);
	if (f->nbuffers < BUFFERS_KEPT) {
		f->buffers[f->nbuffers++] = b;
		b = NULL;
	}
	silt_unlock(&f->linger_lock);
	free(b);
}

/* Takes a flight that lingered out of its bucket. */
static void leave_bucket(struct fetch *f, struct flight *fl)
{
	struct flight_bucket *b = flight_bucket_of(f, fl->pack);
	silt_lock(&b->lock);
	struct flight **p = &b->first;
	while (*p != fl)
		p = &(*p)->next;
	*p = fl->next;
	silt_unlock(&b->lock);
	flight_unref(f, fl);
}

/* The oldest if more than `most` bytes linger, else NULL. */
static struct flight *too_many(struct fetch *f, uint64_t most)
{
	struct flight *fl = NULL;
	silt_lock(&f->linger_lock);
	if (f->linger_first && f->linger_bytes > most) {
		fl = f->linger_first;
		f->linger_first = fl->linger_next;
		if (!f->linger_first)
			f->linger_last = &f->linger_first;
		f->linger_bytes -= fl->room;
	}
	silt_unlock(&f->linger_lock);
	return fl;
}

void linger_trim(struct fetch *f, uint64_t most)
{
	for (struct flight *fl; (fl = too_many(f, most)) != NULL;)
		leave_bucket(f, fl);
}

void linger_add(struct fetch *f, struct flight *fl)
{
	silt_lock(&f->linger_lock);
	fl->linger_next = NULL;
	*f->linger_last = fl;
	f->linger_last = &fl->linger_next;
	f->linger_bytes += fl->room;
	silt_unlock(&f->linger_lock);
	linger_trim(f, LINGER_MAX);
}

void linger_free(struct fetch *f)
{
	linger_trim(f, 0);
	while (f->nbuffers)
		free(f->buffers[--f->nbuffers]);
}

int flight_borrow(struct frame_want *w)
{
	struct fetch *f = w->op->f;
	struct flight_bucket *b = flight_bucket_of(f, w->key.pack);
	silt_lock(&b->lock);
	struct flight *fl = b->first;
	while (fl && !(fl->state == FLIGHT_READY && flight_covers(fl, w)))
		fl = fl->next;
	if (fl)
		fl->refs++;
	silt_unlock(&b->lock);
	if (!fl)
		return -ENOENT;
	/* A damaged extent may point past the pack's end. */
	uint32_t at = w->key.pack_off - fl->off;
	int rc = at < fl->got ? want_decode(w, fl->data + at, fl->got - at) : -EBADMSG;
	flight_unref(f, fl);
	if (rc == 0)
		silt_count(f->metrics, M_HIT_MEMORY, 1);
	return rc;
}
