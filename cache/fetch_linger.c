/* Packs that stay in memory for a while after they came from the store.
 *
 * A sequential reader's next packs are fetched ahead of it. Their bytes are in memory then, verified;
 * to drop them as soon as they are on the SSD would make the reader bring them back from there a moment
 * later. So such a flight stays in its bucket, ready to be read from, until all of it has been read once.
 *
 * AHEAD_MAX of them may be there or on their way: a reader asks for no more while there is no room, and
 * gets along with fewer when there are many readers. Not all are read to the end: parts may be of other
 * files, or overwritten, or answered from elsewhere. So where there is no room, one goes that was read from,
 * but not in the last DONE_NS, or that nobody has come for in IDLE_NS; after REST_NS they go in any case. */
#include <errno.h>
#include <stdlib.h>

#include "cache/fetch_parts.h"

#define AHEAD_MAX 12
#define DONE_NS	  50000000u
#define IDLE_NS	  1000000000u
#define REST_NS	  5000000000u

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

/* Lock held; `p` points to it in the list. */
static void unlink_locked(struct fetch *f, struct flight **p)
{
	struct flight *fl = *p;
	*p = fl->linger_next;
	if (!*p)
		f->linger_last = p;
	fl->linger_next = NULL;
}

/* How long ago it was put here, or read from. */
static uint64_t rests(const struct flight *fl, uint64_t now)
{
	uint64_t since = atomic_load(&fl->read_ns);
	return since < now ? now - since : 0;
}

/* Takes one out of the list: `which`, or the first that rests for so long; `done`: or for less, if it was read
 * from. */
static bool let_go(struct fetch *f, const struct flight *which, uint64_t idle, bool done)
{
	struct flight **p = &f->linger_first, *fl = NULL;
	uint64_t now = silt_now_ns();
	silt_lock(&f->linger_lock);
	for (; (fl = *p) != NULL; p = &fl->linger_next) {
		uint64_t most = done && atomic_load(&fl->served) ? DONE_NS : idle;
		if (which ? fl == which : rests(fl, now) >= most)
			break;
	}
	if (fl)
		unlink_locked(f, p);
	silt_unlock(&f->linger_lock);
	if (fl)
		leave_bucket(f, fl);
	return fl != NULL;
}

void linger_free(struct fetch *f)
{
	while (let_go(f, NULL, 0, false))
		;
}

uint64_t linger_rest(struct fetch *f)
{
	while (let_go(f, NULL, REST_NS, false))
		;
	return atomic_load(&f->ahead) ? REST_NS : 0;
}

bool ahead_count(struct fetch *f)
{
	if (atomic_fetch_add(&f->ahead, 1) < AHEAD_MAX)
		return true;
	atomic_fetch_sub(&f->ahead, 1);
	return false;
}

/* All frames; the pack's index is never asked for. Shares of frames are rounded down, so who reads in small
 * parts may never get there. */
static bool all_read(const struct flight *fl)
{
	return atomic_load(&fl->served) >= fl->frames;
}

void linger_add(struct fetch *f, struct flight *fl)
{
	atomic_store(&fl->read_ns, silt_now_ns());
	silt_lock(&f->linger_lock);
	bool over = all_read(fl); /* under the lock: who reads the rest now finds it in the list */
	if (!over) {
		fl->linger_next = NULL;
		*f->linger_last = fl;
		f->linger_last = &fl->linger_next;
	}
	silt_unlock(&f->linger_lock);
	if (over)
		leave_bucket(f, fl);
}

unsigned fetch_ahead_room(struct fetch *f)
{
	unsigned n = atomic_load_explicit(&f->ahead, memory_order_relaxed);
	if (n < AHEAD_MAX)
		return AHEAD_MAX - n;
	return let_go(f, NULL, IDLE_NS, true);
}

void flight_done(struct fetch *f, struct flight *fl)
{
	let_go(f, fl, 0, false);
}

bool flight_served(struct flight *fl, const struct frame_want *w)
{
	struct frame_header h;
	if (!fl->counted || !fl->sound ||
	    frame_header_decode(fl->data + (w->key.pack_off - fl->off), &h) < 0)
		return false;
	atomic_store(&fl->read_ns, silt_now_ns());
	atomic_fetch_add(&fl->served, h.raw ? (uint64_t)w->len * w->stored / h.raw : 0);
	return all_read(fl);
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
	int rc = at < fl->got ? want_decode(w, fl->data + at, fl->got - at, fl->sound, false) : -EBADMSG;
	if (rc == 0 && flight_served(fl, w))
		let_go(f, fl, 0, false);
	flight_unref(f, fl);
	if (rc == 0)
		silt_count(f->metrics, M_HIT_MEMORY, 1);
	return rc;
}
