/* Private to compact.h's files: compact.c which packs are taken, compact_group.c how those of a group are moved. */
#pragma once
#include <limits.h>

#include "cache/compact.h"
#include "cache/dict.h"

#define GROUP_PACKS 1000u

/* A pack that was noted. */
struct noted {
	uint64_t pack, since; /* monotonic ns */
	uint64_t size;        /* of the object; 0: not known yet */
	uint64_t live;
	int64_t mtime;        /* of the object, seconds since 1970; 0: the store does not say */
	unsigned tries; /* how often it was in a group; NOTED_DAMAGED */
	bool held;      /* out: something was appended to it less than APPEND_HOLD ago */
};

#define NOTED_DAMAGED UINT_MAX
#define APPEND_HOLD   86400 /* seconds */
/* So many requests that failed in one look, or one group: the store is away. */
#define STORE_FAILURES 4u

/* What became of a group. */
struct group_result {
	uint64_t read, written; /* bytes */
	uint64_t moved;         /* extents */
	bool stored;            /* there is a new pack */
};

/* Moves what is live of `n` packs (GROUP_PACKS at most) into pack `to`. Those that can't be moved, or are damaged, are
 * passed over, with a line in the log for the second and for those that can't be read. `samples` (may be NULL) gets small files. Errors: as
 * compactor_look(). */
int compact_group(const struct compactor_config *cfg, struct noted *v, size_t n, uint64_t to,
                  struct dict_samples *samples, struct group_result *out);
