/* The insides of the SSD tier, for cache/tier*.c only.
 *
 * Locks, in the order in which they may be taken:
 *	save	one at a time: writing entries to the table, reclaiming slots
 *	shard	its buckets of the index, and the slots whose (pack, piece) hash there
 *	list	the free, dead and dirty sets
 *
 * Life of a slot:
 *	FREE	in the free set; its entry on disk is free, durably
 *	USED	in the index; readers and writers pin it
 *	DEAD	out of the index (evicted, dropped); in the dead set once unpinned, and when its
 *		free entry is durable it is FREE again
 *
 * Memory: 32 bytes a slot, 4 to 8 of index, and 4 bits: 40 MB for the million slots of 64 GiB. */
#pragma once
#include <stdatomic.h>

#include "cache/pack.h"
#include "cache/tier.h"
#include "cache/tier_bits.h"
#include "meta/lock.h"

#define TIER_SHARDS         64u
#define TIER_FILE_SIZE      ((uint64_t)16 << 30)
#define TIER_MAX_FILES      1024u
#define TIER_MAX_RINGS      8u
#define TIER_GROUP          (1u << 20) /* bytes of a pack that share a bucket of the index */
#define TIER_RUN            256u       /* slots pinned at once for one write or read */
#define TIER_ERRORS_ALLOWED 8u
#define TIER_NIL            UINT32_MAX

enum slot_state { SLOT_FREE, SLOT_USED, SLOT_DEAD };

struct slot {
	uint64_t pack; /* pack, piece and state are also read without the lock, to find the lock */
	uint32_t piece, pack_len;
	uint32_t next; /* in its chain */
	uint16_t valid;
	uint8_t freq;
	bool checked; /* its bytes, since the tier was opened */
	uint32_t pins;
	uint8_t state;
};
_Static_assert(sizeof(struct slot) == 32, "a million of them");

struct tier_ring;

struct tier {
	struct silt_log *log;
	struct silt_metrics *metrics;
	char *dir;
	int dirfd, lockfd;
	int fds[TIER_MAX_FILES];
	uint64_t blocks[TIER_MAX_FILES]; /* of 512 bytes that each has on the disk; under `save` */
	unsigned files;
	bool direct;

	uint32_t count; /* slots */
	uint32_t slot_size, slot_shift;
	uint32_t file_slots;    /* in each data file but the last */
	uint32_t group_shift;   /* pieces of a TIER_GROUP, as a shift */
	uint32_t run;           /* slots that one write may pin at once */
	uint32_t reclaim_batch; /* slots that one flush of the table makes free */
	uint32_t save_batch;    /* entries that one flush of the data lets be written */

	struct slot *slots;
	uint32_t *heads;
	uint32_t mask; /* number of heads - 1 */
	struct silt_lock shards[TIER_SHARDS];

	struct silt_lock list;
	struct slot_bits free, dead, dirty;
	uint32_t rover; /* where to look for free slots */

	struct silt_lock save;
	struct slot_bits saving;    /* what was dirty; empty but during a save */
	struct slot_entry *entries; /* save_batch of them, for a save */
	uint32_t *entry_slots;
	struct slot_table table;
	uint32_t hand; /* next slot to look at for eviction; under `save` */

	struct silt_lock wake; /* the saver's */
	struct silt_cond wake_cond;
	bool stop;
	pthread_t saver;
	bool saver_runs;

	atomic_uint errors;
	atomic_bool out; /* of use */
	atomic_bool cut; /* a read found the end of a data file: the saver looks at the files */

	struct tier_ring *rings[TIER_MAX_RINGS];
	unsigned nrings;
};

/* --- tier_files.c: the directory, its lock, sizes, data files, raw I/O
 * ---------------------------- */
int tier_dir_open(struct tier *t, const char *dir, struct silt_err *err);

/* How many bytes fit: `size` wanted (0: choose), the reserve kept. */
int tier_fit(struct tier *t, uint64_t size, double free_ratio, uint64_t *bytes,
             struct silt_err *err);

/* Opens, makes and sizes the data files for t->count slots. *sound: slots below it lie in parts of
 * the files that were there before. */
int tier_files_open(struct tier *t, uint32_t *sound, struct silt_err *err);
void tier_files_close(struct tier *t);

/* Whole-buffer I/O at byte `at` of a slot, and on into the slots after it; errors are counted and
 * may take the tier out of use. */
int tier_slot_pread(struct tier *t, uint32_t slot, uint32_t at, void *buf, uint32_t len);
int tier_slot_pwrite(struct tier *t, uint32_t slot, uint32_t at, const void *buf, uint32_t len);
void tier_io_error(struct tier *t, const char *what, int err);

/* A read found less than it should: no fault of the disk, someone cut the file. */
void tier_cut_short(struct tier *t);

static inline int tier_slot_fd(const struct tier *t, uint32_t slot)
{
	return t->fds[slot / t->file_slots];
}

static inline uint64_t tier_slot_offset(const struct tier *t, uint32_t slot)
{
	return (uint64_t)(slot % t->file_slots) << t->slot_shift;
}

/* Whether `b` lies right behind `a`, so that one I/O can cover both. */
static inline bool tier_adjacent(const struct tier *t, uint32_t a, uint32_t b)
{
	return b == a + 1 && b % t->file_slots != 0;
}

/* --- tier_index.c: which slot holds what, pins ---------------------------------------------------
 */
int tier_index_init(struct tier *t);
void tier_index_free(struct tier *t);

/* Takes the entries of the table over at open; those of slots >= sound are dropped. */
void tier_index_load(struct tier *t, uint32_t sound);

/* Pins the slot of (pack, piece) if it is here and has all bits of `need`; else TIER_NIL. A `hit`
 * counts for eviction. */
uint32_t tier_pin(struct tier *t, uint64_t pack, uint32_t piece, uint16_t need, bool hit);

/* Pins the slots of all pieces that bytes [from, to) of a pack touch, if every chunk of these is
 * here; else none. */
bool tier_pin_range(struct tier *t, uint64_t pack, uint64_t from, uint64_t to, bool hit,
                    uint32_t *slots);

/* What a slot is wanted for. */
struct slot_use {
	uint64_t pack;
	uint32_t pack_len;
	uint8_t freq;
};

/* Pins the slots of up to `n` pieces from `piece` on, giving slots to those that have none: side by
 * side where there are such. May evict and wait for the disk, but never with pins held: then it
 * returns less than `n`. Returns how many (at least 1). -ENOSPC: every slot is pinned. */
int tier_pin_new(struct tier *t, const struct slot_use *use, uint32_t piece, uint32_t n,
                 uint32_t *slots);

void tier_unpin(struct tier *t, const uint32_t *slots, uint32_t n);

/* After a write of a pinned slot: the chunks in `bits` are here. */
void tier_set_valid(struct tier *t, uint32_t slot, uint16_t bits, bool verified);

/* Locks the shard of a used slot and copies what it holds; false when it is not used. */
struct silt_lock *tier_slot_lock(struct tier *t, uint32_t slot);
struct silt_lock *tier_key_lock(struct tier *t, uint64_t pack, uint32_t piece);

/* Takes a used slot out of the index; its shard is locked. It is dead when unpinned. */
void tier_kill(struct tier *t, uint32_t slot);
uint32_t tier_find(struct tier *t, uint64_t pack, uint32_t piece);

/* Goes along the slots of one pack whose pieces are in the group of `piece`, in no order: the first
 * with after == TIER_NIL, TIER_NIL at the end. The group's lock (tier_key_lock) is held. */
uint32_t tier_next_of(struct tier *t, uint64_t pack, uint32_t piece, uint32_t after);

/* The entry of this slot must be written. */
void tier_mark_dirty(struct tier *t, uint32_t slot);

/* The chunks of one piece that bytes [from, to) of it touch. */
static inline uint16_t tier_chunks(const struct tier *t, uint32_t from, uint32_t to)
{
	uint32_t chunk = t->slot_size / SLOT_CHUNKS;
	uint32_t a = from / chunk, b = (to + chunk - 1) / chunk;
	return (uint16_t)(((1u << b) - 1) & ~((1u << a) - 1));
}

/* --- tier_save.c: the table on disk, eviction
 * ------------------------------------------------------*/

/* Makes up to reclaim_batch slots free, evicting if none are dead. Returns how many. */
unsigned tier_reclaim(struct tier *t);
void *tier_saver(void *tier);

/* --- tier_ring.c: reads in flight ----------------------------------------------------------------
 */
int tier_ring_new(struct tier *t, bool no_uring, struct tier_ring **out);

/* Waits for all reads, ends the threads. */
void tier_ring_free(struct tier_ring *r);
void tier_ring_push(struct tier_ring *r, struct tier_io *io);

/* Whether reads go through io_uring; false: through threads and pread. */
bool tier_ring_is_uring(const struct tier_ring *r);
