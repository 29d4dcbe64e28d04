/* Where bytes are: packs in an object store, slots of packs on the node's SSD, decoded frames in
 * memory. Read this first, then pack.h (format), store.h (object stores), tier.h (SSD), fetch.h
 * (reads) and upload.h (writes).
 *
 * One `struct cache` a mount. It owns its threads:
 *
 *	upload   N            takes pieces of files, builds packs (compression, checksums), PUTs them,
 *	                      then commits their extents through meta/, then calls back
 *	fetch    N            GETs ranges or whole packs, verifies, writes them to the SSD
 *	reaper   1            io_uring completions: verifies and decodes frames read from the SSD
 *
 * Completion callbacks run on those threads (or on a Redis reader thread) and must not block.
 *
 * Threads: every function may be called from any thread unless it says otherwise. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache/store.h"
#include "meta/types.h"

struct meta;
struct cache;

struct cache_config {
	struct store *store;	  /* not owned */
	struct meta *meta;	  /* not owned; pack ids and commits. NULL: a read-only cache */
	struct silt_log *log;
	struct silt_metrics *metrics;
	uint64_t volume;	  /* volume id, in every pack header and in the slot table */
	const char *cache_dir;	  /* NULL: no SSD tier */
	uint64_t cache_size;	  /* bytes of SSD at most; 0: 25 % of what is free, at most 100 GiB */
	double free_ratio;	  /* keep at least this share of the disk free; 0: 0.1 */
	uint64_t memory_size;	  /* bytes of decoded frames kept in memory; 0: 64 MiB */
	int compress_level;	  /* zstd; 0: off */
	unsigned upload_threads;  /* 0: 8 */
	unsigned fetch_threads;	  /* 0: 16 */
	unsigned group_window_us; /* longest wait of a lone pack for company; 0: 10,000 */
	bool cache_writes;	  /* put packs that were just written on the SSD too */
};

/* Opens the tier (creating or checking its files; a second mount on the same directory is -EBUSY) and
 * starts the threads. On failure `err` says what to do. */
int cache_open(const struct cache_config *cfg, struct cache **out, struct silt_err *err);

/* Waits for everything in flight, saves the slot table, frees. */
void cache_close(struct cache *c);

typedef void (*cache_done)(void *arg, int err);

/* --- Reading --------------------------------------------------------------------------------------
 * Brings file bytes [off, off + len) of `ino`, which must lie inside `e` (no hole), into `dst`.
 * Returns 0 when they were in memory (`done` is then not called), -EINPROGRESS when `done` will be
 * called, or a negative errno. Errors: -EIO the object is damaged or missing (logged, naming pack,
 * inode and offset), -ETIMEDOUT, -ENOMEM. `dst` must stay until `done`; `e` is copied. Never gives
 * wrong bytes: every frame's checksum is verified; a bad SSD copy is dropped and fetched again.
 * Hot path: a memory hit takes no lock shared by all readers and allocates nothing. */
int cache_read(struct cache *c, silt_ino ino, const struct silt_extent *e, uint64_t off, uint32_t len,
	       void *dst, cache_done done, void *arg);

/* A hint that these bytes will be wanted soon: starts to bring their packs to the SSD (or to memory
 * when there is no SSD tier). Never fails, may do nothing. */
void cache_prefetch(struct cache *c, silt_ino ino, const struct silt_extent *e);

/* How many packs may be asked for so at present: who asks for more pushes out what others will read. One
 * atomic load; a lock when there is no room. */
unsigned cache_prefetch_room(struct cache *c);

/* --- Writing --------------------------------------------------------------------------------------
 * Puts a piece of a file into a pack: pieces of all callers are grouped (group commit), an upload
 * thread PUTs the pack, commits the extents of all its pieces in Redis (meta_commit), and then
 * calls `done(arg, err)` for each. `err` 0 means: in the store and committed. */
struct cache_write {
	silt_ino ino;
	uint64_t off;	  /* file offset */
	const void *data; /* stays until done */
	size_t len;	  /* 1 to PACK_TARGET, not crossing a SILT_WINDOW boundary */
	struct silt_time mtime; /* the file's modification time to commit */
	cache_done done;
	void *arg;
	/* To be appended: `off` is where the end is taken to be and the range may cross a window's border.
	 * If `extent` names a pack (it is as done() left it), the bytes are in the store: they are only
	 * committed, unless that was done before. */
	bool append;
	bool drop_suid;	  /* as in struct meta_commit */
	uint64_t at;	  /* out: where an append was put */
	uint64_t version; /* out: the file's version after the commit */
	struct cache_write *next; /* the cache's */
	struct silt_extent extent; /* out: valid in done() when err is 0 */
};

/* Hands over `w` (owned by the caller again when its done is called). Pieces of one file that overlap
 * must not be in flight together: their commits may come in either order. */
void cache_write(struct cache *c, struct cache_write *w);

/* How many files are being written now; the group commit waits a moment for company only when there
 * may be some. Called by fs/ when a file is first dirtied and when it becomes clean. */
void cache_writers_add(struct cache *c, int delta);

/* Waits until everything handed over before the call is done. */
void cache_drain(struct cache *c);

/* --- Whole packs (warmup, status, debug) -----------------------------------------------------------*/
/* FULL: all of the pack is on the SSD and every frame of it was verified by this mount. UNCHECKED: all
 * of it is there, but it came in ranges, by reads, or in an earlier mount; cache_check_pack() and
 * cache_fetch_pack() read it back then. */
enum cache_pack_state {
	CACHE_PACK_ABSENT,
	CACHE_PACK_PARTIAL,
	CACHE_PACK_UNCHECKED,
	CACHE_PACK_FULL
};
enum cache_pack_state cache_pack_state(struct cache *c, uint64_t pack);

/* Brings a whole pack to the SSD with one GET (per PACK_MAX bytes), verifies every frame, and calls
 * done(arg, 0) when all of it is on the SSD. Already there: done is called at once. -ENOSPC: it does
 * not fit beside what must stay; -ENODEV: no SSD tier. `bytes` (may be NULL) gets the pack's length. */
void cache_fetch_pack(struct cache *c, uint64_t pack, uint64_t *bytes, cache_done done, void *arg);

/* Reads a pack that is on the SSD back and verifies every frame, unless this mount did so before; it is
 * FULL then. Errors: -EBADMSG it was damaged and is dropped, -EIO it can't be read, -ENOENT not all of
 * it is there. Nothing is fetched. */
void cache_check_pack(struct cache *c, uint64_t pack, uint64_t *bytes, cache_done done, void *arg);

/* Makes a FULL pack UNCHECKED, for who wants to see with his own eyes. */
void cache_uncheck_pack(struct cache *c, uint64_t pack);

/* Looks whether someone cut the SSD's files under the mount; packs that lost something are no longer
 * FULL then. -ENODEV with a text: the SSD is out of use, or its files were deleted or replaced. */
int cache_check_files(struct cache *c, struct silt_err *err);

/* Brings what is needed to decode packs, and is no part of them, to this node (dict.h). Blocks. -EIO, or an error of
 * Redis: not all of it could be had; the log says what. */
int cache_load_dictionaries(struct cache *c);

/* Number of fetch threads: more requests in flight than twice that only wait. */
unsigned cache_fetch_width(const struct cache *c);

/* Drops a pack from the SSD and memory. */
void cache_drop_pack(struct cache *c, uint64_t pack);

/* The length of a pack of which something is on the SSD, else 0. */
uint32_t cache_pack_length(struct cache *c, uint64_t pack);

/* Bytes of a slot of the SSD: a pack takes whole slots. 1 when there is no SSD tier. */
uint32_t cache_slot_size(const struct cache *c);

/* Bytes of SSD that may be used, and bytes in use. */
void cache_space(struct cache *c, uint64_t *total, uint64_t *used);

/* Calls `each` for every used slot (for `siltfs debug slots`). */
struct cache_slot_info {
	uint32_t slot, piece; /* piece: which slot-sized part of the pack */
	uint64_t pack;
	uint32_t pack_len, valid_mask;
	uint8_t freq;
};
int cache_each_slot(struct cache *c, int (*each)(void *arg, const struct cache_slot_info *s), void *arg);
