/* The SSD tier: pieces of packs in fixed slots of large preallocated files.
 *
 *	DIR/lock         flock: one mount a directory
 *	DIR/table        what is in each slot (slot_table.h)
 *	DIR/slots.000    one slot after the other, at most 16 GiB a file
 *	DIR/slots.001 ...
 *
 * A slot belongs to (pack, piece: which slot-sized part of the pack); 16 bits say which sixteenths
 * (chunks) of it are there. How large slots are is chosen when the cache is made (slot_table.h) and
 * kept when its size is changed later, unless that would need too many of them. A pack gets slots
 * side by side where it can, so that it is written and read back with few large requests. The tier
 * knows nothing of frames: readers verify what they get and call tier_invalidate() for what is
 * wrong.
 *
 * Promises: bytes of another pack are never given for this one's, whatever happens to the power (a
 * slot is given to another pack only after its free entry is durable in the table; an entry is
 * written only after its data is durable); a slot is not reused while a read of it is in flight; a
 * crash loses at most the slots of the last second.
 *
 * Threads: all functions from any thread. tier_read() never blocks; the others may wait for the
 *disk. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache/slot_table.h"
#include "meta/error.h"
#include "meta/log.h"
#include "meta/metrics.h"

struct tier;

struct tier_config {
	const char *dir;
	uint64_t size;     /* bytes at most; 0: 25 % of what is free, at most 100 GiB */
	double free_ratio; /* keep at least this share of the disk free; 0: 0.1 */
	uint64_t volume;
	struct silt_log *log;
	struct silt_metrics *metrics; /* may be NULL */
	unsigned rings;     /* io_uring instances, each with its completion thread; 0: by cores */
	bool no_uring;      /* use threads and pread (tests) */
	uint32_t slot_size; /* 0: by slot_size_for(), or as the cache in `dir` has it. Otherwise a
	                     * cache with other slots is lost (tests) */
};

/* Opens or makes the cache in `dir`. Takes less than `size` when the disk has not the room.
 * -EBUSY another mount has it, -EACCES, -ENOSPC, -EEXIST another volume's; `err` says what to do.
 */
int tier_open(const struct tier_config *cfg, struct tier **out, struct silt_err *err);

/* Waits for reads in flight, saves the table, frees. No other call may overlap. */
void tier_close(struct tier *t);

#define TIER_ALIGN    4096u
#define TIER_READ_MAX (132u << 10) /* bytes of one tier_read */
#define TIER_IO_SLOTS 4u           /* slots of SLOT_SIZE_MIN that it may touch */

/* One read. The caller allocates it (in its own request: the tier allocates nothing), sets `done`,
 * and keeps it until `done`. */
struct tier_io {
	/* On a completion thread. err 0: `data` holds the bytes, valid during the call. Must not
	 * block. */
	void (*done)(struct tier_io *io, const uint8_t *data, int err);

	/* private */
	struct tier_io *next;
	void *buf;
	uint32_t skip, total;             /* bytes before the wanted ones; bytes read in all */
	uint32_t slot[TIER_IO_SLOTS], at; /* pinned; `at`: where in the first */
	uint32_t len[TIER_IO_SLOTS];      /* of each segment: neighbours are read as one */
	uint8_t first[TIER_IO_SLOTS];     /* the slot where it begins */
	uint8_t slots, segs, left, large;
	int err;
};

/* Reads [off, off + len) of a pack. 0: `io->done` will be called; -ENOENT: not (all) here;
 * -ENODEV: the tier is out of use; -EINVAL: longer than TIER_READ_MAX. */
int tier_read(struct tier *t, uint64_t pack, uint32_t off, uint32_t len, struct tier_io *io);

/* The same for any length on the calling thread: `buf` and `off` are aligned to TIER_ALIGN, and
 * `buf` has room for `len` rounded up to it. */
int tier_read_wait(struct tier *t, uint64_t pack, uint32_t off, uint32_t len, void *buf);

/* Writes [off, off + len) of a pack of `pack_len` bytes; `off` is a multiple of SLOT_CHUNK_MAX (or
 * at least of this cache's chunk), and so is the end unless it is the pack's. `data` is aligned to
 * TIER_ALIGN and readable up to the next multiple of it. Chunks already here are not written again
 * unless `verified`: checked, or made, just now. `freq` (0 to 3) is how many rounds of eviction the slots will survive unread.
 * Returns when the data is written (durable a moment later). -ENOSPC: all slots are in use by reads
 * and writes; -ENODEV; -EIO. */
int tier_write(struct tier *t, uint64_t pack, uint32_t pack_len, uint32_t off, uint32_t len,
               const void *data, bool verified, uint8_t freq);

/* Forgets the chunks that [off, off + len) touches. */
void tier_invalidate(struct tier *t, uint64_t pack, uint32_t off, uint32_t len);
void tier_drop_pack(struct tier *t, uint64_t pack);

struct tier_pack {
	uint32_t pack_len;   /* 0: nothing of it is here */
	uint32_t pieces;     /* with at least one chunk */
	bool full, verified; /* all chunks are here; and all were checked since tier_open() */
};
void tier_look(struct tier *t, uint64_t pack, struct tier_pack *out);

/* Notes that the whole pack, as it is here, was checked; or that it has to be checked again. This is
 * remembered in memory only: what lay on a disk since an earlier mount may have changed there. */
void tier_mark_verified(struct tier *t, uint64_t pack);
void tier_unverify(struct tier *t, uint64_t pack);

/* Looks whether someone cut the data files short or punched holes into them (cheap: sizes only): what
 * was lost is forgotten, what may be is not verified any more, and the files are made whole again.
 * -ENODEV: the tier is out of use, or a file was deleted or replaced: what is read and written then
 * is still right, but lost at the next mount; `err` says so. */
int tier_check_files(struct tier *t, struct silt_err *err);

/* Bytes of a slot: a pack takes whole slots. */
uint32_t tier_slot_size(const struct tier *t);

/* Bytes of SSD that may be used, and bytes in use. */
void tier_space(struct tier *t, uint64_t *total, uint64_t *used);

/* Calls `each` for every used slot; a non-zero return ends it and is returned. */
int tier_each(struct tier *t, int (*each)(void *arg, uint32_t slot, const struct slot_entry *e),
              void *arg);

/* Makes everything written so far survive a crash. Done by itself about once a second. */
int tier_save(struct tier *t);
