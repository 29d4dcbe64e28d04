/* Whole packs: for warmup, prefetch, packs read often, and packs just written here.
 *
 * One GET brings the pack; pack_verify() checks every frame of it before anyone gets a byte; then
 * it is written to the SSD and only then reported. A pack that is on the SSD already, but came
 * there in ranges or in an earlier mount, is read back and verified instead of fetched.
 *
 * A check only reads back. It stands in the bucket like a GET of the whole pack, so that nothing is
 * written under it, but nobody waits for its bytes. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "cache/fetch_parts.h"

#define INSERTING_MAX                                                                              \
	((size_t)64 << 20)      /* bytes of packs just written that may wait for the SSD           \
	                         */
#define PREFETCH_MAX (4u << 20) /* bytes that a prefetch brings where there is no SSD */

static size_t up(size_t n)
{
	return (n + TIER_ALIGN - 1) & ~(size_t)(TIER_ALIGN - 1);
}

/* Verifies the copy on the SSD; a bad one is dropped. */
static int read_back(struct fetch *f, uint64_t pack, uint32_t len)
{
	char why[160] = "";
	bool usual = up(len) <= BIG_BUFFER;
	uint8_t *buf = usual ? big_buffer_get(&f->buffers) : aligned_alloc(TIER_ALIGN, up(len));
	if (!buf)
		return -ENOMEM;
	int rc = tier_read_wait(f->tier, pack, 0, len, buf);
	if (rc == 0)
		rc = pack_verify(buf, len, pack, f->volume, why);
	if (rc == -EBADMSG) {
		silt_count(f->metrics, M_SSD_BAD, 1);
		silt_warn(f->log,
		          "cache: damaged copy of pack %016" PRIx64 " on the SSD (%s): dropped",
		          pack, why);
		tier_drop_pack(f->tier, pack);
	}
	if (usual)
		big_buffer_put(&f->buffers, buf);
	else
		free(buf);
	if (rc == 0)
		tier_mark_verified(f->tier, pack);
	return rc;
}

static void found_sound(struct flight *fl)
{
	uint32_t index_off, len, frames;
	uint64_t sum;
	fl->sound = pack_trailer_decode(fl->data + fl->got - PACK_TRAILER, fl->got, &index_off, &len, &frames,
					&sum) == 0;
	fl->frames = fl->sound ? index_off - PACK_HEADER : UINT32_MAX;
}

/* GETs the pack and verifies it, twice if need be. -EBADMSG: the bytes are there, but damaged. */
static int get_verified(struct fetch *f, struct flight *fl)
{
	int rc = 0;
	for (unsigned try = 0; try < STORE_TRIES; try++) {
		char why[160] = "";
		rc = flight_get(f, fl);
		if (rc < 0)
			return rc;
		rc = fl->got == fl->pack_len
		             ? pack_verify(fl->data, fl->got, fl->pack, f->volume, why)
		             : -EBADMSG;
		if (rc == 0) {
			found_sound(fl);
			return 0;
		}
		silt_count(f->metrics, M_DAMAGED_FRAMES, 1);
		silt_error(f->log, "fetch: pack %016" PRIx64 " is damaged in the store: %s",
		           fl->pack, why);
	}
	return -EBADMSG;
}

static int fetch_whole(struct fetch *f, struct flight *fl)
{
	struct tier_pack look;
	flight_wait_for_ranges(f, fl->pack);
	tier_look(f->tier, fl->pack, &look);
	if (fl->check) {
		fl->pack_len = look.pack_len;
		if (!look.full)
			return -ENOENT;
		return look.verified ? 0 : read_back(f, fl->pack, look.pack_len);
	}
	if (look.full && (look.verified || read_back(f, fl->pack, look.pack_len) == 0)) {
		fl->pack_len = look.pack_len;
		return 0;
	}
	int rc = get_verified(f, fl);
	if (rc < 0 && rc != -EBADMSG)
		return rc;
	if (rc == -EBADMSG)
		flight_spoil(f, fl);
	flight_serve(f, fl); /* each frame by itself: most of a damaged pack may be sound */
	if (rc < 0)
		return -EIO;
	uint64_t total, used;
	tier_space(f->tier, &total, &used);
	if (up(fl->got) > total)
		return -ENOSPC;
	return tier_write(f->tier, fl->pack, fl->pack_len, 0, fl->got, fl->data, true,
	                  fl->keep ? 3 : 0);
}

static void whole_run(struct fetch *f, struct job *j)
{
	struct flight *fl = (struct flight *)j;
	int rc = fetch_whole(f, fl);
	/* Readers can't fail with a check: they get their bytes from elsewhere. */
	struct pack_waiter *w = flight_land(f, fl, fl->check ? 0 : rc);
	while (w) {
		struct pack_waiter *next = w->next;
		if (rc < 0 && fl->check && w->fetch) {
			pack_wanted(f, fl->pack, w, true, false);
			w = next;
			continue;
		}
		if (w->bytes && rc == 0)
			*w->bytes = fl->pack_len;
		w->done(w->arg, rc);
		free(w);
		w = next;
	}
	if (fl->lingers)
		linger_add(f, fl);
	else
		flight_unref(f, fl);
}

/* Joins a flight for the whole of a pack, or starts one like `like`; `w` is answered at its end. */
static void join_whole(struct fetch *f, const struct flight *like, struct pack_waiter *w)
{
	uint64_t pack = like->pack;
	struct flight_bucket *b = flight_bucket_of(f, pack);
	struct flight *made = calloc(1, sizeof(*made));
	bool ahead = like->ahead && ahead_count(f);
	if (like->ahead && !ahead) {
		free(made);
		return; /* a hint, which nobody waits for */
	}
	silt_lock(&b->lock);
	struct flight *fl = b->first;
	while (fl && (fl->pack != pack || !fl->whole || fl->bad || fl->lingers))
		fl = fl->next;
	bool joined = fl != NULL;
	if (!fl && made) {
		fl = made;
		made = NULL;
		*fl = (struct flight){ .job.run = whole_run,
			               .pack = pack,
			               .len = PACK_MAX,
			               .whole = true,
			               .check = like->check,
			               .ahead = like->ahead,
			               .refs = 1,
			               .next = b->first };
		b->first = fl;
		fetch_enter(f);
	}
	if (fl && w) {
		w->next = fl->packs;
		fl->packs = w;
	}
	if (fl)
		fl->keep |= like->keep;
	/* Not of one that readers are served from already: who reads that looks without the lock. */
	if (fl && ahead && !fl->counted && !fl->check && fl->state != FLIGHT_READY) {
		fl->ahead = fl->counted = true;
		ahead = false;
	}
	silt_unlock(&b->lock);
	if (ahead) /* it is counted already */
		atomic_fetch_sub(&f->ahead, 1);
	free(made);
	if (fl && !joined)
		fetch_submit(f, &fl->job, false);
	if (!fl && w) {
		w->done(w->arg, -ENOMEM);
		free(w);
	}
}

void pack_wanted(struct fetch *f, uint64_t pack, struct pack_waiter *w, bool keep, bool ahead)
{
	join_whole(f, &(struct flight){ .pack = pack, .keep = keep, .ahead = ahead }, w);
}

/* Answers if there is nothing to do for a pack; else makes who waits for it. */
static struct pack_waiter *waiter_new(struct fetch *f, uint64_t pack, uint64_t *bytes,
                                      cache_done done, void *arg)
{
	struct tier_pack look = { 0 };
	struct pack_waiter *w = NULL;
	if (f->tier)
		tier_look(f->tier, pack, &look);
	if (look.verified) {
		if (bytes)
			*bytes = look.pack_len;
		done(arg, 0);
		return NULL;
	}
	if (f->tier)
		w = malloc(sizeof(*w));
	if (w)
		*w = (struct pack_waiter){ .bytes = bytes, .done = done, .arg = arg };
	else
		done(arg, f->tier ? -ENOMEM : -ENODEV);
	return w;
}

void fetch_check_pack(struct fetch *f, uint64_t pack, uint64_t *bytes, cache_done done, void *arg)
{
	struct pack_waiter *w = waiter_new(f, pack, bytes, done, arg);
	if (w)
		join_whole(f, &(struct flight){ .pack = pack, .check = true }, w);
}

void fetch_pack(struct fetch *f, uint64_t pack, uint64_t *bytes, cache_done done, void *arg)
{
	struct pack_waiter *w = waiter_new(f, pack, bytes, done, arg);
	if (!w)
		return;
	w->fetch = true;
	pack_wanted(f, pack, w, true, false);
}

enum cache_pack_state fetch_pack_state(struct fetch *f, uint64_t pack)
{
	struct tier_pack look = { 0 };
	if (f->tier)
		tier_look(f->tier, pack, &look);
	if (look.pieces == 0)
		return CACHE_PACK_ABSENT;
	if (look.verified)
		return CACHE_PACK_FULL;
	return look.full ? CACHE_PACK_UNCHECKED : CACHE_PACK_PARTIAL;
}

void fetch_drop_pack(struct fetch *f, uint64_t pack)
{
	if (f->tier)
		tier_drop_pack(f->tier, pack);
	frame_memory_drop(f->memory, pack);
	linger_free(f);
}

/* --- Prefetch ------------------------------------------------------------------------------------
 */

static void memory_run(struct fetch *f, struct job *j)
{
	struct flight *fl = (struct flight *)j;
	int rc = flight_get(f, fl);
	if (rc == 0) {
		flight_serve(f, fl);
		flight_remember(f, fl, 0);
	}
	flight_land(f, fl, rc);
	flight_unref(f, fl);
}

/* Without an SSD: the extent's bytes, or the first of them, to memory. */
static void prefetch_memory(struct fetch *f, const struct silt_extent *e)
{
	uint32_t len = e->stored < PREFETCH_MAX ? e->stored : PREFETCH_MAX;
	struct flight *fl = calloc(1, sizeof(*fl));
	if (!fl)
		return;
	*fl = (struct flight){
		.job.run = memory_run, .pack = e->pack, .off = e->pack_off, .len = len, .refs = 1
	};
	struct flight_bucket *b = flight_bucket_of(f, e->pack);
	silt_lock(&b->lock);
	struct flight *same = b->first;
	while (same && (same->pack != fl->pack || same->off > fl->off ||
	                (uint64_t)same->off + same->len < (uint64_t)fl->off + len))
		same = same->next;
	if (!same) {
		fl->next = b->first;
		b->first = fl;
		fetch_enter(f);
	}
	silt_unlock(&b->lock);
	if (same)
		free(fl);
	else
		fetch_submit(f, &fl->job, false);
}

void fetch_prefetch(struct fetch *f, silt_ino ino, const struct silt_extent *e)
{
	if (e->pack == 0 || (e->flags & EXTENT_HOLE) || e->stored <= FRAME_HEADER ||
	    fetch_background_waiting(f) > 2 * f->nthreads)
		return;
	if (!f->tier) {
		prefetch_memory(f, e);
		return;
	}
	struct tier_pack look;
	tier_look(f->tier, e->pack, &look);
	if (!look.full)
		pack_wanted(f, e->pack, NULL, false, true);
}

/* --- Packs just written here ---------------------------------------------------------------------
 */

struct insert {
	struct job job; /* first */
	uint64_t pack;
	uint32_t len;
	uint8_t *data;
};

static void insert_run(struct fetch *f, struct job *j)
{
	struct insert *in = (struct insert *)j;
	tier_write(f->tier, in->pack, in->len, 0, in->len, in->data, true, 0);
	atomic_fetch_sub(&f->inserting, in->len);
	free(in->data);
	free(in);
}

void fetch_insert_pack(struct fetch *f, uint64_t pack, const struct iovec *iov, int niov,
                       size_t total)
{
	if (!f->tier || total > PACK_MAX)
		return;
	if (atomic_fetch_add(&f->inserting, total) + total > INSERTING_MAX) {
		atomic_fetch_sub(&f->inserting, total);
		return;
	}
	struct insert *in = malloc(sizeof(*in));
	uint8_t *data = aligned_alloc(TIER_ALIGN, up(total));
	if (!in || !data) {
		atomic_fetch_sub(&f->inserting, total);
		free(in);
		free(data);
		return;
	}
	size_t at = 0;
	for (int i = 0; i < niov; at += iov[i++].iov_len)
		memcpy(data + at, iov[i].iov_base, iov[i].iov_len);
	assert(at == total);
	memset(data + total, 0, up(total) - total);
	*in = (struct insert){
		.job.run = insert_run, .pack = pack, .len = (uint32_t)total, .data = data
	};
	fetch_enter(f);
	fetch_submit(f, &in->job, false);
}
