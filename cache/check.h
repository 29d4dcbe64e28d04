/* Is a volume consistent? For `siltfs fsck`: what Redis holds, in itself and against what is in the store.
 *
 *	inodes     every record decodes; extents and link targets are there
 *	names      every name leads to an inode of its type; counts of names, links, sub-directories are right
 *	packs      every extent lies in an object that is there; with `data`, every object is what it was
 *	counters   inodes, bytes, and the live bytes of every pack are what a recount gives
 *
 * Memory: 3 bytes an inode number ever given out, 24 a directory, 16 a pack.
 *
 * Clients may go on; what they change between two looks can be reported then, so check_run() must be called
 * again and only what was found each time be believed (findings are texts that compare equal). Repairs are for
 * a volume that nobody uses. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache/store.h"
#include "meta/meta.h"

struct check_config {
	struct store *store;
	struct meta *meta;
	bool data;   /* read all objects */
	bool repair; /* correct what can be */
	/* Called every few seconds; not 0: the check ends with that. NULL: nobody. */
	int (*hold)(void *arg);
	void *arg;
};

struct check_finding {
	char *text;
	bool repaired;
};

struct check_result {
	struct check_finding *v;
	size_t n, cap;
	uint64_t inodes, directories, names, extents, packs, pack_bytes;
};

/* 0 when everything could be looked at, whatever was found. *out must be zeroed, check_free() frees. */
int check_run(const struct check_config *cfg, struct check_result *out, struct silt_err *err);
void check_free(struct check_result *r);
