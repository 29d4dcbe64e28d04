/* The insides of the SSD tier, for cache/tier*.c only.
 *
 * Locks, in the order in which they may be taken:
 *	save	one at a time: writing entries to the table, reclaiming slots
 *	shard	the index chains of its buckets, and the fields of slots whose (pack, piece) hashes
 *there list	the free, dead and dirty lists
 *
 * Life of a slot:
 *	FREE	on the free list; its entry on disk is free, durably
 *	USED	in the index; readers and writers pin it
 *	DEAD	out of the index (evicted, dropped); once unpinned it is on the dead list, and when
 *its free entry is durable it is FREE again */
#pragma once
#include <stdatomic.h>

#include "cache/tier.h"
#include "meta/lock.h"

#define TIER_SHARDS         64u
#define TIER_FILE_SLOTS     (16u << 10)
#define TIER_MAX_FILES      1024u
#define TIER_MAX_RINGS      8u
#define TIER_RECLAIM_BATCH  64u
#define TIER_ERRORS_ALLOWED 8u
#define TIER_NIL            UINT32_MAX

enum slot_state { SLOT_FREE, SLOT_USED, SLOT_DEAD };

struct slot {
	uint64_t pack; /* pack, piece and state are also read without the lock, to find the lock */
	uint32_t piece, pack_len;
	uint32_t next; /* in its chain */
	uint16_t valid;
	uint8_t freq, flags;
	uint32_t pins;
	uint8_t state;
	uint8_t dirty; /* on the dirty list; under `list` */
};

/* A stack of slot numbers. */
struct slot_list {
	uint32_t *v;
	uint32_t n;
};

struct tier_ring;

struct tier {
	struct silt_log *log;
	struct silt_metrics *metrics;
	char *dir;
	int dirfd, lockfd;
	int fds[TIER_MAX_FILES];
	unsigned files;
	bool direct;

	uint32_t count; /* slots */
	struct slot *slots;
	uint32_t *heads;
	uint32_t mask; /* number of heads - 1 */
	struct silt_lock shards[TIER_SHARDS];

	struct silt_lock list;
	struct slot_list free, dead, dirty;
	struct slot_list saving; /* under `save` */

	struct silt_lock save;
	struct slot_table table;
	uint32_t hand; /* next slot to look at for eviction; under `save` */

	struct silt_lock wake; /* the saver's */
	struct silt_cond wake_cond;
	bool stop;
	pthread_t saver;
	bool saver_runs;

	atomic_uint errors;
	atomic_bool out; /* of use */

	struct tier_ring *rings[TIER_MAX_RINGS];
	unsigned nrings;
};

/* --- tier_files.c: the directory, its lock, sizes, data files, raw I/O
 * ---------------------------- */
int tier_dir_open(struct tier *t, const char *dir, struct silt_err *err);

/* How many slots fit: `size` bytes wanted (0: choose), the reserve kept. */
int tier_fit(struct tier *t, uint64_t size, double free_ratio, uint32_t *slots,
             struct silt_err *err);

/* Opens, makes and sizes the data files for t->count slots. *sound: slots below it lie in parts of
 * the files that were there before. */
int tier_files_open(struct tier *t, uint32_t *sound, struct silt_err *err);
void tier_files_close(struct tier *t);

/* Whole-buffer I/O at byte `at` of a slot; errors are counted and may take the tier out of use. */
int tier_slot_pread(struct tier *t, uint32_t slot, uint32_t at, void *buf, uint32_t len);
int tier_slot_pwrite(struct tier *t, uint32_t slot, uint32_t at, const void *buf, uint32_t len);
void tier_io_error(struct tier *t, const char *what, int err);

static inline int tier_slot_fd(const struct tier *t, uint32_t slot)
{
	return t->fds[slot / TIER_FILE_SLOTS];
}

static inline uint64_t tier_slot_offset(uint32_t slot)
{
	return (uint64_t)(slot % TIER_FILE_SLOTS) * SLOT_SIZE;
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

/* Pins the slot of (pack, piece), giving it one when it has none (may evict, may wait for the
 * disk). -ENOSPC: every slot is pinned. */
int tier_pin_new(struct tier *t, uint64_t pack, uint32_t piece, uint32_t pack_len, uint8_t freq,
                 uint32_t *slot);

void tier_unpin(struct tier *t, uint32_t slot);

/* After a write of a pinned slot: the chunks in `bits` are here. */
void tier_set_valid(struct tier *t, uint32_t slot, uint16_t bits, bool verified);

/* Locks the shard of a used slot and copies what it holds; false when it is not used. */
struct silt_lock *tier_slot_lock(struct tier *t, uint32_t slot);
struct silt_lock *tier_key_lock(struct tier *t, uint64_t pack, uint32_t piece);

/* Takes a used slot out of the index; its shard is locked. It comes on the dead list when unpinned.
 */
void tier_kill(struct tier *t, uint32_t slot);
uint32_t tier_find(struct tier *t, uint64_t pack, uint32_t piece);

/* Puts a slot on the dirty list (once). */
void tier_mark_dirty(struct tier *t, uint32_t slot);

/* The chunks of one piece that bytes [from, to) of it touch. */
static inline uint16_t tier_chunks(uint32_t from, uint32_t to)
{
	uint32_t a = from / SLOT_CHUNK, b = (to + SLOT_CHUNK - 1) / SLOT_CHUNK;
	return (uint16_t)(((1u << b) - 1) & ~((1u << a) - 1));
}

/* --- tier_save.c: the table on disk, eviction
 * ------------------------------------------------------*/

/* Makes up to TIER_RECLAIM_BATCH slots free, evicting if none are dead. Returns how many. */
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
