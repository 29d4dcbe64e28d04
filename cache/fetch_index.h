/* Decoded indexes of packs that hold compressed runs: where frame k of such a run is, only the
 * index knows. A bounded number is kept. Any thread. */
#pragma once
#include <stdatomic.h>

#include "cache/pack.h"
#include "meta/lock.h"

#define INDEX_SETS 16u
#define INDEX_WAYS 8u

struct held_index {
	atomic_uint refs;
	uint64_t pack;
	struct pack_index ix;
};

struct index_set {
	struct silt_lock lock;
	struct held_index *ways[INDEX_WAYS]; /* the last used first */
};

struct index_cache {
	struct index_set sets[INDEX_SETS];
};

void index_cache_init(struct index_cache *c);
void index_cache_free(struct index_cache *c);

/* A reference to the index of `pack`, or NULL; ends with index_unref(). */
struct held_index *index_cache_get(struct index_cache *c, uint64_t pack);

/* Takes over `ix` and gives a reference to it (NULL: out of memory, `ix` was freed). */
struct held_index *index_cache_put(struct index_cache *c, uint64_t pack, struct pack_index *ix);
void index_unref(struct held_index *h);
