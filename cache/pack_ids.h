/* Pack ids in stock: reserved from Redis in blocks, ahead of need, so that a pack does not wait for
 * a round trip. Blocks grow from 8 to 1,024 as they are used up; what is left at the end is never
 * used.
 *
 * Threads: every function from any thread. */
#pragma once
#include <stdint.h>

#include "cache/upload.h"
#include "meta/lock.h"

struct id_range {
	uint64_t next, end;
};

struct pack_ids {
	const struct uploader_ops *ops;
	struct meta *meta;
	struct silt_lock lock;
	struct silt_cond answered;
	struct id_range now, spare;
	unsigned block;    /* size of the next request */
	unsigned asked;    /* size of the one under way, 0: none */
	unsigned failures; /* requests that failed, ever */
	int err;           /* of the last that failed */
};

void pack_ids_init(struct pack_ids *ids, const struct uploader_ops *ops, struct meta *meta);

/* Waits for a request under way. */
void pack_ids_destroy(struct pack_ids *ids);

/* Asks for the first block if there is none; doesn't wait. */
void pack_ids_prepare(struct pack_ids *ids);

/* The next id; waits for Redis only when the stock is empty. Negative errno: Redis gave none. */
int pack_ids_take(struct pack_ids *ids, uint64_t *out);

/* Throws the stock away: its ids turned out to be used already. */
void pack_ids_discard(struct pack_ids *ids);
