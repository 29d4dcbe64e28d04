/* The read side of cache.h: where a frame is (fetch_read.c), memory (fetch_memory.c), the SSD
 * (tier.h), and the store through GETs in flight (fetch_flight.c, fetch_pack.c).
 *
 * Threads: every function from any thread. fetch_read() never blocks. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "cache/cache.h"
#include "cache/tier.h"

struct fetch;

struct fetch_config {
	struct store *store; /* not owned */
	struct tier *tier;   /* not owned; NULL: no SSD */
	/* dicts_reader() (dict.h) and its first argument; NULL: frames that need a dictionary are damaged. */
	int (*dict)(void *dicts, uint32_t number, bool fetch, const void **out);
	void *dicts;
	struct silt_log *log;
	struct silt_metrics *metrics; /* may be NULL */
	uint64_t volume;
	uint64_t memory_size; /* 0: 64 MiB */
	unsigned threads;     /* 0: 16 */
};

int fetch_open(const struct fetch_config *cfg, struct fetch **out, struct silt_err *err);

/* Waits until every read and fetch is answered, ends the threads, frees. NULL is allowed. The tier
 * must still be open: it answers some of them. */
void fetch_close(struct fetch *f);

/* cache_read(), cache_prefetch(), cache_fetch_pack(), cache_check_pack(), cache_drop_pack(),
 * cache_pack_state() and cache_fetch_width() of cache.h. A pack counts as full only when all of its
 * chunks are on the SSD and came from, or were read back as, a pack whose every frame was verified,
 * since the tier was opened. */
int fetch_read(struct fetch *f, silt_ino ino, const struct silt_extent *e, uint64_t off,
               uint32_t len, void *dst, cache_done done, void *arg);
void fetch_prefetch(struct fetch *f, silt_ino ino, const struct silt_extent *e);
unsigned fetch_ahead_room(struct fetch *f);
void fetch_pack(struct fetch *f, uint64_t pack, uint64_t *bytes, cache_done done, void *arg);
void fetch_check_pack(struct fetch *f, uint64_t pack, uint64_t *bytes, cache_done done, void *arg);
void fetch_drop_pack(struct fetch *f, uint64_t pack);
enum cache_pack_state fetch_pack_state(struct fetch *f, uint64_t pack);
unsigned fetch_width(const struct fetch *f);

/* Puts a copy of a pack that was just made and PUT here on the SSD, later, on a fetch thread; does
 * nothing when there is no tier or too much of that is waiting already. */
void fetch_insert_pack(struct fetch *f, uint64_t pack, const struct iovec *iov, int niov,
                       size_t total);
