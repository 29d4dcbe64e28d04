/* Background work of a volume, done by one of its mounts at a time: the objects of packs that nobody uses any
 * more are deleted (meta.h has the burial, functions_packs.lua the scheme).
 *
 * A pack waits `grace` first: who reads by a map that is out of date finds its object for so long, and asks
 * anew after that. And packs are compacted (compact.h).
 *
 * Threads: one of its own, which makes calls that block. worker_open() and worker_close() from any other. */
#pragma once
#include <stdint.h>

#include "cache/store.h"
#include "meta/meta.h"

struct worker;

struct worker_config {
	struct store *store; /* not owned */
	struct meta *meta;   /* not owned; with a session */
	struct silt_log *log;
	struct silt_metrics *metrics; /* may be NULL */
	uint64_t grace_ms;	      /* from when a pack is first seen to be dead */
	unsigned interval_ms;	      /* between two looks; 0: 5,000 */
	uint64_t compact_rate;	      /* bytes read a second; 0: nothing is compacted */
	int compress_level;	      /* zstd; 0: no dictionary is trained */
	uint64_t compact_wait_ms;     /* from when a pack is first seen to be noted */
};

int worker_open(const struct worker_config *cfg, struct worker **out);

/* Ends what is under way after the present call to the store or Redis, or the present group of packs. NULL is
 * allowed. */
void worker_close(struct worker *w);
