/* The insides of the read side, for cache/fetch*.c only.
 *
 * A read (`read_op`) wants parts of one or more frames (`frame_want`). Each want goes down the same
 * stairs by itself: memory, SSD, a flight (one GET of a range of a pack, shared by all wants that
 * lie inside it). The last want to be answered answers the read.
 *
 * Locks: one for each bucket of flights, one for the job queue, one for idle decoders, one for
 * index loads. None of them is held while another of them is taken, nor during I/O or callbacks. */
#pragma once
#include <stdatomic.h>
#include <zstd.h>

#include "cache/fetch.h"
#include "cache/fetch_index.h"
#include "cache/fetch_memory.h"
#include "cache/pack.h"
#include "cache/big_buffers.h"
#include "meta/lock.h"

#define FLIGHT_BUCKETS   64u
#define MEMORY_FRAME_MAX (32u << 10) /* larger frames are kept only when read in part */
#define STORE_TRIES      2u          /* GETs of a frame before its damage is believed */

struct read_op {
	struct fetch *f;
	struct read_op *next; /* waiting for an index */
	silt_ino ino;
	struct silt_extent e;
	uint64_t off;
	uint32_t len;
	uint8_t *dst;
	cache_done done;
	void *arg;
	atomic_uint left; /* wants not answered yet, and one for whoever starts them */
	atomic_int err;
	uint32_t n;
	struct frame_want *wants; /* n of them, in the same allocation */
};

struct frame_want {
	struct tier_io io; /* first: the tier hands it back */
	struct read_op *op;
	struct frame_want *next; /* waiting for a flight */
	struct frame_key key;
	struct frame_owner owner;
	uint32_t stored; /* bytes in the pack, header included */
	uint32_t skip, len;
	uint8_t *dst;
	uint8_t tries; /* GETs whose bytes for this frame were bad */
};

/* Work for a fetch thread. */
struct job {
	struct job *next;
	void (*run)(struct fetch *f, struct job *j);
};

struct job_list {
	struct job *first, **last;
	unsigned n;
};

/* Someone who waits for a whole pack on the SSD. */
struct pack_waiter {
	struct pack_waiter *next;
	uint64_t *bytes;
	bool fetch; /* not content with a check that fails */
	cache_done done;
	void *arg;
};

enum flight_state { FLIGHT_QUEUED, FLIGHT_GETTING, FLIGHT_READY };

/* One GET. In its bucket from the decision to make it until its bytes are on the SSD. */
struct flight {
	struct job job;      /* first */
	struct flight *next; /* in the bucket */
	uint64_t pack;
	uint32_t off, len; /* asked for */
	uint32_t first;    /* byte of the range at which a frame is known to begin */
	bool whole;
	bool check; /* only reads what is on the SSD back (and is in the bucket meanwhile) */
	bool keep;  /* someone asked for the whole pack: it gets all lives on the SSD */
	bool ahead; /* a sequential reader will come for it: stays in memory for a while */
	/* under the bucket's lock */
	enum flight_state state;
	bool bad;     /* its bytes were wrong: don't join, don't write to the SSD */
	bool writing; /* a range on its way to the SSD */
	bool lingers; /* landed, but still here to be read from (fetch_linger.c) */
	struct flight *linger_next;
	unsigned refs;
	struct frame_want *wants;
	struct pack_waiter *packs;
	/* set before FLIGHT_READY, then constant */
	uint8_t *data;
	size_t room;
	uint32_t got, pack_len;
	bool sound;      /* pack_verify() has found all of it so */
	uint32_t frames; /* bytes of these in it, then */
	bool counted; /* in fetch.ahead: a sequential reader will come for it, so it lingers */
	atomic_uint_fast64_t served, read_ns; /* counted: stored bytes read from it; when last */
};

struct flight_bucket {
	struct silt_lock lock;
	struct flight *first;
	uint64_t hot_pack; /* the pack of the last miss here */
	uint64_t hot_since;
	unsigned hot_misses;
};

struct decoder {
	struct decoder *next;
	ZSTD_DCtx *zd;
	uint32_t dict; /* it refers to this one */
	uint8_t raw[PACK_FRAME_RAW];
};

struct index_load {
	struct job job; /* first */
	struct index_load *next;
	uint64_t pack;
	struct read_op *waiting;
};

struct fetch {
	struct store *store;
	struct tier *tier;
	int (*dict)(void *dicts, uint32_t number, bool fetch, const void **out);
	void *dicts;
	struct silt_log *log;
	struct silt_metrics *metrics;
	uint64_t volume;
	struct frame_memory *memory;
	struct index_cache indexes;
	struct flight_bucket buckets[FLIGHT_BUCKETS];

	struct silt_lock load_lock;
	struct index_load *loads;

	struct silt_lock decoder_lock;
	struct decoder *decoders;

	struct silt_lock queue_lock;
	struct silt_cond queue_cond;
	struct job_list urgent, background;
	unsigned running_background, background_most;
	bool stop;
	pthread_t *threads;
	unsigned nthreads;

	struct silt_lock linger_lock;
	struct flight *linger_first, **linger_last;
	atomic_uint ahead; /* flights ahead of sequential readers, on their way or lingering */
	struct big_buffers buffers; /* of flights of whole packs */

	atomic_ulong inserting; /* bytes of packs waiting for the SSD */

	/* Reads and jobs not finished; fetch_close() waits for none. */
	atomic_ulong busy;
	bool idle; /* under idle_lock */
	struct silt_lock idle_lock;
	struct silt_cond idle_cond;
};

/* --- fetch.c: life, jobs, decoders ---------------------------------------------------------------
 */
void fetch_enter(struct fetch *f);
void fetch_leave(struct fetch *f);
/* Hands over a job whose owner called fetch_enter() for it. */
void fetch_submit(struct fetch *f, struct job *j, bool urgent);
unsigned fetch_background_waiting(struct fetch *f);
/* Makes it refer to a dictionary (0: none). `fetch` and errors as dicts_reader(); -EBADMSG: there are none. */
int decoder_use(struct fetch *f, struct decoder *d, uint32_t dict, bool fetch);
struct decoder *decoder_get(struct fetch *f); /* NULL: out of memory */
void decoder_put(struct fetch *f, struct decoder *d);

/* --- fetch_read.c --------------------------------------------------------------------------------
 */

/* Checks the frame that `n` bytes at `data` should begin with, and answers the want from it: copies
 * its part to dst, maybe keeps the frame in memory. `sound`: its checksum has been looked at, and it stays
 * where it is for a while. -EBADMSG: it is not that frame, sound. -EAGAIN: it needs a dictionary that is not here, and
 * not `fetch`: the caller must not wait for the store. */
int want_decode(struct frame_want *w, const uint8_t *data, size_t n, bool sound, bool fetch);
void want_answer(struct frame_want *w, int err);

/* Looks for a want's frame in memory, on the SSD, in the store. 0: answered into dst already;
 * -EINPROGRESS; or an error. */
int want_start(struct frame_want *w);

/* Starts (or starts again) a read whose pack's index is here now; answers it. */
void read_with_index(struct read_op *op, const struct pack_index *ix);
void read_fail(struct read_op *op, int err);

/* --- fetch_load.c: indexes -----------------------------------------------------------------------
 */
void index_wanted(struct read_op *op);

/* --- fetch_flight.c ------------------------------------------------------------------------------
 */

/* Brings a want's bytes from the store. 0: answered into dst already; -EINPROGRESS; or an error
 * (logged). */
int flight_join(struct frame_want *w);
struct flight_bucket *flight_bucket_of(struct fetch *f, uint64_t pack);

/* GETs fl's range. 0 or a negative errno, logged. */
int flight_get(struct fetch *f, struct flight *fl);

/* The bytes are here: lets readers have them, answers those that waited. */
void flight_serve(struct fetch *f, struct flight *fl);

/* Marks the bytes as wrong; waiting frames get a flight of their own. */
void flight_spoil(struct fetch *f, struct flight *fl);

/* Out of the bucket; fails wants that still wait with `err`. Gives the pack_wants. */
struct pack_waiter *flight_land(struct fetch *f, struct flight *fl, int err);
void flight_unref(struct fetch *f, struct flight *fl);

/* Verified frames from byte `at` of the flight's data on go to memory. */
void flight_remember(struct fetch *f, struct flight *fl, uint32_t at);

/* Puts a range that no flight brought (a pack's index) on the SSD, unless the whole pack is about
 * to come there: unchecked bytes must not be written over checked ones. Aligned as for
 * tier_write(). */
void flight_write(struct fetch *f, uint64_t pack, uint32_t pack_len, uint32_t off, uint32_t len,
                  uint8_t *data);

/* Waits until no range of the pack is being written to the SSD. None begins while a whole flight of
 * it is in its bucket. */
void flight_wait_for_ranges(struct fetch *f, uint64_t pack);

/* Whether `w` lies in the flight's range and may wait for it or read from it. Bucket locked. */
bool flight_covers(const struct flight *fl, const struct frame_want *w);

/* --- fetch_linger.c ------------------------------------------------------------------------------
 */

/* Answers a want from bytes that came from the store and are still in memory. -ENOENT: there are
 * none. */
int flight_borrow(struct frame_want *w);

/* Notes that a want was answered from a flight. True: now all of it has been read once. */
bool flight_served(struct flight *fl, const struct frame_want *w);

/* Keeps a flight (and its reference) that is still in its bucket, with `lingers` set. */
void linger_add(struct fetch *f, struct flight *fl);
void linger_free(struct fetch *f); /* lets all go */
/* Lets those go that nobody has come for in a long time. When to look again, in ns; 0: there is none. */
uint64_t linger_rest(struct fetch *f);
/* It was read to the end: it need not linger any more, if it does. */
void flight_done(struct fetch *f, struct flight *fl);
/* Counts a flight ahead of a reader; false: there are enough. */
bool ahead_count(struct fetch *f);

/* --- fetch_pack.c --------------------------------------------------------------------------------
 */

/* Wants the whole pack on the SSD; `w` (may be NULL) is answered then. */
void pack_wanted(struct fetch *f, uint64_t pack, struct pack_waiter *w, bool keep, bool ahead);
