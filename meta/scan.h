/* One pass over all that Redis holds of a volume, for `siltfs gc` and `siltfs fsck`: by number, so that
 * nothing comes twice, and in calls that keep Redis busy for about a millisecond. What other clients change
 * meanwhile is seen before or after the change; what exists throughout is seen.
 *
 * Threads: all of it blocks; not on a reader thread. `each` returns 0 to go on; another value ends the pass and
 * is its result. Errors: negative errno of the connection; -EIO Redis answers with something unknown. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "meta/meta.h"

struct meta_limits {
	uint64_t last_inode; /* highest sequence that was given out in the shard */
	uint64_t last_pack;  /* shard 0 only */
	int64_t inodes, bytes; /* what the shard counts */
};
int meta_limits(struct meta *m, unsigned shard, struct meta_limits *out);

/* Numbers behind last_inode that are looked at as well: clients reserve them in blocks, and Redis may lose its
 * last second and with it that they were given out. */
#define META_SCAN_BEYOND 65536u

/* All inodes of a shard, in the order of their buckets. `record` as it is: it may be damaged. */
typedef int (*meta_scan_inode_fn)(void *arg, silt_ino ino, const void *record, size_t len);
int meta_scan_inodes(struct meta *m, unsigned shard, meta_scan_inode_fn each, void *arg);

/* All names of a directory with their entries as they are. -ENOENT, -ENOTDIR. */
typedef int (*meta_scan_entry_fn)(void *arg, const char *name, size_t len, const void *entry, size_t entry_len);
int meta_scan_entries(struct meta *m, silt_ino dir, meta_scan_entry_fn each, void *arg);

/* All extents of a file, from its record or its logs, as they stand there: also those that others cover.
 * -EBADMSG: a log is damaged. */
typedef int (*meta_scan_extent_fn)(void *arg, const struct silt_extent *e);
int meta_scan_extents(struct meta *m, const struct silt_inode *inode, meta_scan_extent_fn each, void *arg);

/* All counters of live bytes in a shard; `live` META_PACK_BURIED: the pack is gone. What is no number is
 * told as META_PACK_RUBBISH. `last_pack` of shard 0's limits. */
typedef int (*meta_scan_live_fn)(void *arg, uint64_t pack, int64_t live);
int meta_scan_live(struct meta *m, unsigned shard, uint64_t last_pack, meta_scan_live_fn each, void *arg);

/* The logs that were freed and are counted as live bytes still: the list of a shard's garbage. `extents` as in
 * meta_scan_extents(); -EBADMSG: a log is damaged. */
int meta_scan_garbage(struct meta *m, unsigned shard, meta_scan_extent_fn each, void *arg);

/* No session is opened for `ms` from now on, 0: or again. `token` names the caller, of whom there is one.
 * -EBUSY: another one excludes sessions. Who has a session keeps it. */
int meta_exclude(struct meta *m, const char *token, unsigned ms);

/* --- Repairs. Each changes something only if it is still what was seen, else -EAGAIN. */

/* New counts for an inode whose record decodes; UINT64_MAX: as it is. */
int meta_fix_inode(struct meta *m, silt_ino ino, const void *record, size_t len, uint64_t nlink, uint64_t size);
/* Removes an inode whose record is `record`. Names that lead to it are the caller's. */
int meta_drop_inode(struct meta *m, silt_ino ino, const void *record, size_t len);
int meta_fix_usage(struct meta *m, unsigned shard, const struct meta_limits *seen, int64_t inodes, int64_t bytes);
/* `seen` as meta_scan_live() gave it; INT64_MAX: no counter; not for META_PACK_BURIED or META_PACK_RUBBISH. */
int meta_fix_live(struct meta *m, unsigned shard, uint64_t pack, int64_t seen, uint64_t live);

/* An inode's record as it is (malloced); -ENOENT. */
int meta_get_record(struct meta *m, silt_ino ino, void **record, size_t *len);
