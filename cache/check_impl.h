/* What the two halves of the check share: check.c (inodes, names), check_packs.c (extents, packs, counters). */
#pragma once
#include "cache/check.h"
#include "meta/scan.h"

struct check_dir {
	silt_ino ino, parent;
	uint64_t size;
	uint32_t nlink;
	bool named; /* seen in its parent */
};

struct check_pack {
	uint64_t pack, size;
};

/* Bytes that a shard's extents use of a pack, as counted here; open addressing, pack 0: free. */
struct check_sum {
	uint64_t pack, bytes;
	bool seen; /* there is a counter */
};

struct check_shard {
	struct meta_limits limits;
	uint64_t n;			 /* inode numbers below this have a place in the arrays */
	uint8_t *kind, *links, *names;	 /* type in d_type's bits, 0: none; 255 counts: that or more */
	int64_t inodes, bytes;
	struct check_sum *sums;
	size_t nsums, cap;
};

struct check {
	const struct check_config *cfg;
	struct check_result *out;
	struct silt_err *err;
	unsigned shards;
	struct check_shard *s;
	struct check_dir *dirs; /* by number */
	size_t ndirs, dirs_cap;
	struct check_pack *packs; /* by id */
	size_t npacks, packs_cap;
	/* Not all that files use is known: something does not decode. Sums are too low, so no counter is corrected. */
	bool incomplete;
	uint64_t held_ns; /* when cfg->hold was called last */
};

/* Says now and then that the check goes on. */
int check_hold(struct check *c);

/* Notes what was found; `rc` is the result of repairing it: 0, or what stopped that; 1: not tried. */
void check_found(struct check *c, int rc, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* check_packs.c */
int check_list_packs(struct check *c);
/* The extents of a regular file. */
int check_extents(struct check *c, const struct silt_inode *inode);
/* After all inodes: the garbage that is counted still, and the counters themselves. */
int check_counters(struct check *c);
int check_data(struct check *c);
