/* Compaction: what is still used of packs that are small, or more than half unused, is copied into new packs as it
 * stands there, frame by frame, and the extents are made to name these (meta/compact.c). The old packs die of it, and
 * go as any other that nobody uses (worker.h). Which packs may be worth it Redis notes when they are written and
 * when their live bytes shrink (functions_compact.lua).
 *
 * A pack is taken when it has been noted for `wait_ms`, so that what is being written or removed just now has
 * come to rest, and when
 *
 *	large	less than half of its bytes are live
 *	small	(under COMPACT_SMALL) there are enough of them to make a larger one, or most of them is unused
 *
 * and all of its live bytes can be found by the frames in it: a run that was cloned into another file keeps its pack.
 * So does one that was appended, for a day: who sends an append again knows by its place that it was done. Groups are made in the order of packs, and the runs in
 * one sorted by file, so that what was written together stays together.
 *
 * Frames stay as they are, also compressed without a dictionary. What passes by is sampled: when there is enough of
 * small files, and the volume has no dictionary, one is trained, and used if it saves a tenth.
 *
 * A crash leaves a new pack that nobody names (gc's), or some extents that name the new one and some the old one: both
 * are whole. Two that compact the same packs at once move each extent once; who moved none deletes what it made.
 *
 * Threads: one thread uses a compactor; it blocks, and starts some more for the time of a group to read packs. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "cache/store.h"
#include "meta/meta.h"

#define COMPACT_SMALL (2u << 20)

struct compactor;

struct compactor_config {
	struct store *store; /* not owned */
	struct meta *meta;   /* not owned; with a session */
	struct silt_log *log;
	struct silt_metrics *metrics; /* may be NULL */
	uint64_t rate;		      /* bytes read a second, on average */
	uint64_t wait_ms;
	int level; /* zstd; not 0: a volume without a dictionary gets one, trained from what is compacted (dict.h) */
	uint64_t budget_ms; /* one look takes about so long; what is left is for the next */
	bool (*go_on)(void *arg);    /* is it still the worker? between two groups; may ask Redis */
	bool (*stopping)(void *arg); /* shall it end? any thread, often */
	void *arg;
};

int compactor_open(const struct compactor_config *cfg, struct compactor **out);
void compactor_close(struct compactor *c); /* NULL is allowed */

/* Does what is due. Returns 0, or the negative errno of Redis or the store that ended it; what is left is for the next
 * time. */
int compactor_look(struct compactor *c);

/* Another client looks after the volume: what is remembered of it is old. */
void compactor_forget(struct compactor *c);
