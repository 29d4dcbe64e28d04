/* Which queued pieces go into the next pack, and when: the policy of group commit, apart from
 * threads and I/O (the essay is in batch.c). Times are monotonic nanoseconds, handed in.
 *
 * Threads: none here; the uploader calls everything under its lock. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache/cache.h"

#define BATCH_LARGE_PIECE                                                                          \
	(1u << 20)              /* bytes from which a piece goes into a pack of its file's own */
#define BATCH_MAX_PIECES 16384u /* a pack with so many counts as full */
#define BATCH_PROBE 8u /* every so many shared packs, one waits for more than it expects */
#define BATCH_RECENT     4u

struct piece_list {
	struct cache_write *head, *last;
	size_t n;
	uint64_t bytes;
};

/* What one upload thread works on. `files` is about how many closers wait for it. */
struct batch {
	struct piece_list pieces;
	unsigned files;
	bool shared; /* counts as the one small pack under way */
	uint64_t taken_ns;
};

struct batcher {
	struct piece_list small, large;
	unsigned files;             /* in `small` */
	uint64_t first_ns, last_ns; /* when the first and last piece of `small` came */
	uint64_t settled_ns;        /* when a shared pack last ended its PUT or its commit */
	uint64_t window_ns;
	uint64_t put_ns; /* how long shared packs take lately, from being taken to the end of the
	                    PUT */
	uint64_t commit_ns; /* how long their commits take lately */
	unsigned recent[BATCH_RECENT], recent_at; /* closers seen by the last shared packs */
	unsigned committing;       /* files of shared packs that were PUT but are not committed */
	unsigned big_out, big_max; /* full packs being PUT, and how many may be */
	bool shared_out;           /* a shared pack is being PUT */
	unsigned hurry;            /* drains waiting: no waiting for company */
	int writers;
};

void batcher_init(struct batcher *b, unsigned threads, uint64_t window_ns);
void batcher_add(struct batcher *b, struct cache_write *w, uint64_t now);

/* Takes the next batch. False: nothing to do now; then *until is 0, or the time until which a small
 * pack waits for company (one thread should come back then, or when batcher_enough()). */
bool batcher_take(struct batcher *b, uint64_t now, struct batch *out, uint64_t *until);

/* True when a thread that calls batcher_take() would get a full pack. */
bool batcher_has_full(const struct batcher *b);

/* True when small pieces are queued and no shared pack is under way; batcher_enough(): and they
 * need not wait any longer. */
bool batcher_has_small(const struct batcher *b);
bool batcher_enough(const struct batcher *b);

/* The PUT of `t` ended; `committing`: its files now wait for their commit, until
 * batcher_committed() was called for all of them; the commit began at `began`. */
void batcher_put_ended(struct batcher *b, const struct batch *t, bool committing, uint64_t now);
void batcher_committed(struct batcher *b, unsigned files, uint64_t began, uint64_t now);

/* Adds at the end of a list; a zeroed list is empty. */
void piece_list_add(struct piece_list *l, struct cache_write *w);
