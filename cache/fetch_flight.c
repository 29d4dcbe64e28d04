/* GETs of ranges of packs, each shared by all who want bytes inside it.
 *
 * A flight stands in its bucket from the moment someone decides on the GET until its bytes are on
 * the SSD. Who comes before the bytes waits on it; who comes after reads from its buffer on his own
 * thread; so a range is asked for once, however many readers miss it, and readers don't wait for
 * the SSD.
 *
 * What range: 256 KiB around a frame of a small file; for a frame of a long run the rest of its 1
 * MiB of the pack; and after PACK_MISSES misses of one pack within a second the whole pack, in the
 * background. Slots of the SSD may be much smaller than that; ranges begin and end where chunks of
 * slots of any size do.
 *
 * Every frame is verified before it answers someone. Bytes that fail are believed wrong only when a
 * second GET brought them too. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "cache/fetch_parts.h"

#define ALIGN       SLOT_CHUNK_MAX
#define RANGE       (256u << 10)
#define RUN_RANGE   (1u << 20)
#define PACK_MISSES 4u
#define HOT_NS      1000000000u
#define WHOLE_MIN_TIER                                                                             \
	((uint64_t)4 * PACK_TARGET) /* smaller SSD tiers get no whole packs by guess */

struct flight_bucket *flight_bucket_of(struct fetch *f, uint64_t pack)
{
	return &f->buckets[(pack * 0x9e3779b97f4a7c15u >> 32) % FLIGHT_BUCKETS];
}

static uint32_t down(uint64_t n, uint32_t to)
{
	return (uint32_t)(n - n % to);
}

static uint32_t up(uint64_t n, uint32_t to)
{
	return down(n + to - 1, to);
}

/* Chooses the range to fetch for a want. */
static void choose_range(const struct frame_want *w, uint32_t *off, uint32_t *len)
{
	const struct silt_extent *e = &w->op->e;
	uint64_t begin = w->key.pack_off, end = begin + w->stored;
	bool tier = w->op->f->tier != NULL;
	if (w->tries > 0) { /* again, because the bytes were bad: no more than needed */
		*off = tier ? down(begin, ALIGN) : (uint32_t)begin;
		*len = up(end, ALIGN) - *off;
		return;
	}
	if (e->flags & EXTENT_RUN) {
		uint64_t run_end = up((uint64_t)e->pack_off + e->stored, ALIGN);
		uint64_t range_end = up(begin + 1, RUN_RANGE);
		uint64_t most = run_end < range_end ? run_end : range_end;
		*off = tier ? down(begin, ALIGN) : (uint32_t)begin;
		*len = (uint32_t)(most > end ? most : up(end, ALIGN)) - *off;
		return;
	}
	*off = tier ? down(begin, RANGE) : (uint32_t)begin;
	*len = up(end, ALIGN) - *off;
	if (*len < RANGE)
		*len = RANGE;
}

/* Counts a miss of `pack`; true when it is time to fetch all of it. The bucket is locked. */
static bool getting_hot(struct fetch *f, struct flight_bucket *b, uint64_t pack)
{
	uint64_t total, used, now = silt_now_ns();
	if (b->hot_pack != pack || now - b->hot_since > HOT_NS) {
		b->hot_pack = pack;
		b->hot_since = now;
		b->hot_misses = 0;
	}
	if (!f->tier || ++b->hot_misses < PACK_MISSES)
		return false;
	b->hot_misses = 0;
	tier_space(f->tier, &total, &used);
	return total >= WHOLE_MIN_TIER;
}

bool flight_covers(const struct flight *fl, const struct frame_want *w)
{
	if (fl->pack != w->key.pack || fl->bad)
		return false;
	/* A whole pack may stand in the queue for long. Who reads in order waits for it all the
	 * same: it is what he needs next, and he would only fetch it twice. */
	if (fl->whole && fl->state == FLIGHT_QUEUED && !fl->ahead)
		return false;
	return fl->off <= w->key.pack_off &&
	       (uint64_t)w->key.pack_off + w->stored <= (uint64_t)fl->off + fl->len;
}

/* The second GET of a pack that is larger than the first's buffer. The new length, or an error. */
static ssize_t get_rest(struct fetch *f, struct flight *fl, const char *key, ssize_t have,
                        uint64_t size, struct silt_err *err)
{
	size_t room = up(size, TIER_ALIGN);
	uint8_t *data = aligned_alloc(TIER_ALIGN, room);
	if (!data)
		return -ENOMEM;
	memcpy(data, fl->data, (size_t)have);
	if (fl->room == BIG_BUFFER)
		big_buffer_put(&f->buffers, fl->data);
	else
		free(fl->data);
	fl->data = data;
	fl->room = room;
	ssize_t n = store_get(f->store, key, (uint64_t)have, size - (uint64_t)have, data + have,
	                      NULL, err);
	return n < 0 ? n : have + n;
}

int flight_get(struct fetch *f, struct flight *fl)
{
	char key[PACK_KEY_MAX];
	struct store_object info = { 0 };
	struct silt_err err = { 0 };
	struct flight_bucket *b = flight_bucket_of(f, fl->pack);
	silt_lock(&b->lock);
	fl->state = FLIGHT_GETTING;
	silt_unlock(&b->lock);
	if (!fl->data) {
		fl->room = fl->whole ? BIG_BUFFER : up((uint64_t)fl->len, TIER_ALIGN);
		fl->data = fl->whole ? big_buffer_get(&f->buffers) : aligned_alloc(TIER_ALIGN, fl->room);
	}
	if (!fl->data)
		return -ENOMEM;
	pack_key(fl->pack, key);
	size_t most = fl->whole && fl->len > fl->room ? fl->room : fl->len;
	ssize_t n = store_get(f->store, key, fl->off, most, fl->data, &info, &err);
	if (n == (ssize_t)most && most < fl->len && info.size > most && info.size <= PACK_MAX)
		n = get_rest(f, fl, key, n, info.size, &err);
	if (n == -ENOENT) { /* perhaps its bytes were moved: who reads asks again where they are */
		silt_warn(f->log, "read: pack %016" PRIx64 " is not in the store any more: %s", fl->pack, err.text);
		return (int)n;
	}
	if (n < 0) {
		silt_error(f->log, "read: pack %016" PRIx64 " at %u can't be fetched: %s", fl->pack,
		           fl->off, err.text[0] ? err.text : strerror((int)-n));
		return (int)n;
	}
	if (n == 0 || info.size < (uint64_t)fl->off + (uint64_t)n || info.size > PACK_MAX) {
		silt_error(f->log,
		           "read: pack %016" PRIx64 " has %" PRIu64 " bytes in the store: "
		           "cut short or no pack",
		           fl->pack, info.size);
		silt_count(f->metrics, M_DAMAGED_FRAMES, 1);
		return -EIO;
	}
	fl->got = (uint32_t)n;
	fl->pack_len = (uint32_t)info.size;
	memset(fl->data + n, 0, up((uint64_t)n, TIER_ALIGN) - (size_t)n);
	return 0;
}

void flight_spoil(struct fetch *f, struct flight *fl)
{
	struct flight_bucket *b = flight_bucket_of(f, fl->pack);
	silt_lock(&b->lock);
	fl->bad = true;
	silt_unlock(&b->lock);
}

/* Bytes from the store that are not the frame: once more, then it is damage. */
static int want_bad(struct frame_want *w)
{
	struct fetch *f = w->op->f;
	bool last = ++w->tries >= STORE_TRIES;
	silt_count(f->metrics, M_DAMAGED_FRAMES, 1);
	silt_logf(f->log, last ? SILT_LOG_ERROR : SILT_LOG_WARN,
	          "read: damaged frame in pack %016" PRIx64 " at %u in the store (inode %" PRIu64
	          ", offset %" PRIu64 ")%s",
	          w->key.pack, w->key.pack_off, w->owner.ino, w->owner.off,
	          last ? "; the read fails" : "; fetching it again");
	return last ? -EIO : flight_join(w);
}

/* Answers a want from a flight's buffer; result as of flight_join(). */
static int want_from(struct frame_want *w, struct flight *fl)
{
	uint64_t at = w->key.pack_off - fl->off;
	size_t n = at < fl->got ? fl->got - (size_t)at : 0;
	int rc = want_decode(w, fl->data + at, n, fl->sound, true);
	if (rc == 0 && flight_served(fl, w))
		flight_done(w->op->f, fl);
	if (rc != -EBADMSG)
		return rc;
	flight_spoil(w->op->f, fl);
	return want_bad(w);
}

void flight_serve(struct fetch *f, struct flight *fl)
{
	struct flight_bucket *b = flight_bucket_of(f, fl->pack);
	silt_lock(&b->lock);
	fl->state = FLIGHT_READY;
	struct frame_want *w = fl->wants;
	fl->wants = NULL;
	silt_unlock(&b->lock);
	while (w) {
		struct frame_want *next = w->next;
		int rc = want_from(w, fl);
		if (rc != -EINPROGRESS)
			want_answer(w, rc);
		w = next;
	}
}

/* A failed GET's error, as a reader gets it. */
static int reader_error(int err)
{
	return err == 0 || err == -ETIMEDOUT || err == -ENOMEM ? err : -EIO;
}

struct pack_waiter *flight_land(struct fetch *f, struct flight *fl, int err)
{
	struct flight_bucket *b = flight_bucket_of(f, fl->pack);
	silt_lock(&b->lock);
	fl->lingers = fl->counted && err == 0 && !fl->bad && fl->state == FLIGHT_READY;
	if (!fl->lingers) {
		struct flight **p = &b->first;
		while (*p != fl)
			p = &(*p)->next;
		*p = fl->next;
	}
	struct frame_want *w = fl->wants;
	struct pack_waiter *packs = fl->packs;
	fl->packs = NULL;
	silt_unlock(&b->lock);
	while (w) {
		struct frame_want *next = w->next;
		/* Wants are left without an error when the pack was on the SSD all the time. */
		int rc = err < 0 ? reader_error(err) : want_start(w);
		if (rc != -EINPROGRESS)
			want_answer(w, rc);
		w = next;
	}
	return packs;
}

void flight_unref(struct fetch *f, struct flight *fl)
{
	struct flight_bucket *b = flight_bucket_of(f, fl->pack);
	silt_lock(&b->lock);
	bool last = --fl->refs == 0;
	silt_unlock(&b->lock);
	if (!last)
		return;
	if (fl->counted)
		atomic_fetch_sub(&f->ahead, 1);
	if (fl->whole && fl->room == BIG_BUFFER && fl->data)
		big_buffer_put(&f->buffers, fl->data);
	else
		free(fl->data);
	free(fl);
}

void flight_remember(struct fetch *f, struct flight *fl, uint32_t at)
{
	struct decoder *d = decoder_get(f);
	while (d && (uint64_t)at + FRAME_HEADER < fl->got) {
		const uint8_t *p = fl->data + at;
		struct frame_header h;
		if (frame_header_decode(p, &h) < 0 || h.raw > PACK_FRAME_RAW ||
		    (uint64_t)at + FRAME_HEADER + h.stored > fl->got)
			break;
		if (decoder_use(f, d, h.dict, true) || frame_extract(p, p + FRAME_HEADER, 0, h.raw, d->raw, NULL, d->zd, &h) < 0)
			break;
		struct frame_key k = { .pack = fl->pack, .pack_off = fl->off + at };
		frame_memory_put(f->memory, k, h.ino, h.off, d->raw, h.raw);
		at += FRAME_HEADER + h.stored;
	}
	if (d)
		decoder_put(f, d);
}

/* Puts the whole chunks of what came on the SSD. */
static int to_tier(struct fetch *f, struct flight *fl)
{
	uint32_t end = fl->off + fl->got;
	if (!f->tier)
		return -ENODEV;
	if (end < fl->pack_len)
		end = down(end, ALIGN);
	if (end <= fl->off)
		return 0;
	return tier_write(f->tier, fl->pack, fl->pack_len, fl->off, end - fl->off, fl->data, false,
	                  0);
}

/* Whether a range's bytes should go to the SSD: not if the whole pack is about to, verified; a
 * range, of which only the wanted frames were, must not be written over that. */
static bool may_write(struct fetch *f, struct flight *fl)
{
	struct flight_bucket *b = flight_bucket_of(f, fl->pack);
	silt_lock(&b->lock);
	bool may = !fl->bad;
	for (struct flight *o = b->first; o && may; o = o->next)
		may = o->pack != fl->pack || !o->whole || o->lingers;
	fl->writing = may;
	silt_unlock(&b->lock);
	return may;
}

void flight_wait_for_ranges(struct fetch *f, uint64_t pack)
{
	struct flight_bucket *b = flight_bucket_of(f, pack);
	for (bool busy = true; busy;) {
		silt_lock(&b->lock);
		busy = false;
		for (struct flight *o = b->first; o; o = o->next)
			busy |= o->pack == pack && o->writing;
		silt_unlock(&b->lock);
		if (busy)
			usleep(200); /* one write of at most 1 MiB, seldom met */
	}
}

static void range_run(struct fetch *f, struct job *j)
{
	struct flight *fl = (struct flight *)j;
	int rc = flight_get(f, fl);
	if (rc == 0) {
		flight_serve(f, fl);
		/* Frames are end to end from the first wanted one on: where the SSD can't keep its
		 * neighbours, memory does. */
		if (may_write(f, fl) && to_tier(f, fl) < 0)
			flight_remember(f, fl, fl->first);
	}
	flight_land(f, fl, rc);
	flight_unref(f, fl);
}

/* A new flight for `w`, in the (locked) bucket. */
static struct flight *range_new(struct fetch *f, struct flight_bucket *b, struct frame_want *w)
{
	struct flight *fl = calloc(1, sizeof(*fl));
	if (!fl)
		return NULL;
	fl->job.run = range_run;
	fl->pack = w->key.pack;
	choose_range(w, &fl->off, &fl->len);
	fl->first = w->key.pack_off - fl->off;
	fl->refs = 1;
	w->next = NULL;
	fl->wants = w;
	fl->next = b->first;
	b->first = fl;
	fetch_enter(f);
	return fl;
}

void flight_write(struct fetch *f, uint64_t pack, uint32_t pack_len, uint32_t off, uint32_t len,
                  uint8_t *data)
{
	struct flight_bucket *b = flight_bucket_of(f, pack);
	/* `len` 0: nobody can wait for it or read from it. */
	struct flight fl = {
		.pack = pack, .off = off, .got = len, .pack_len = pack_len, .data = data, .refs = 1
	};
	silt_lock(&b->lock);
	fl.next = b->first;
	b->first = &fl;
	silt_unlock(&b->lock);
	if (may_write(f, &fl))
		to_tier(f, &fl);
	flight_land(f, &fl, 0);
}

int flight_join(struct frame_want *w)
{
	struct fetch *f = w->op->f;
	uint64_t pack = w->key.pack;
	struct flight_bucket *b = flight_bucket_of(f, pack);
	bool hot = false;
	silt_count(f->metrics, M_MISS, w->tries == 0);
	silt_lock(&b->lock);
	struct flight *fl = b->first;
	while (fl && !flight_covers(fl, w))
		fl = fl->next;
	if (fl && fl->state == FLIGHT_READY) {
		fl->refs++;
		silt_unlock(&b->lock);
		int rc = want_from(w, fl);
		flight_unref(f, fl);
		return rc;
	}
	if (fl) {
		silt_count(f->metrics, M_MISS_SHARED, 1);
		w->next = fl->wants;
		fl->wants = w;
		silt_unlock(&b->lock); /* and from here nothing keeps f */
		return -EINPROGRESS;
	}
	fl = range_new(f, b, w);
	if (fl && w->tries == 0)
		hot = getting_hot(f, b, pack);
	silt_unlock(&b->lock);
	if (!fl)
		return -ENOMEM;
	if (!hot) {
		fetch_submit(f, &fl->job, true);
		return -EINPROGRESS;
	}
	fetch_enter(f); /* once submitted it may land, and then nothing else keeps f */
	fetch_submit(f, &fl->job, true);
	if (fetch_background_waiting(f) < 4 * f->nthreads)
		pack_wanted(f, pack, NULL, false, false);
	fetch_leave(f);
	return -EINPROGRESS;
}
