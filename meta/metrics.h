/* Every counter and gauge of a mount, in one table: name, type, unit, meaning. `siltfs status`
 * prints from it, tests and bench/ read it. Counters are relaxed atomics; any thread may add. */
#pragma once
#include <stdatomic.h>
#include <stdint.h>

/*	    id                      name                         kind     unit       meaning */
#define SILT_METRICS(X)                                                                            \
	X(M_REDIS_CALLS, "redis.calls", counter, calls, "commands sent to Redis")                  \
	X(M_REDIS_RETRIES, "redis.retries", counter, calls, "commands sent again after a reconnect") \
	X(M_REDIS_RECONNECTS, "redis.reconnects", counter, events, "connections made anew")        \
	X(M_REDIS_SENT, "redis.sent_bytes", counter, bytes, "bytes written to Redis")              \
	X(M_REDIS_RECEIVED, "redis.received_bytes", counter, bytes, "bytes read from Redis")       \
	X(M_REDIS_FLUSHES, "redis.writes", counter, calls, "write system calls (pipelined batches)") \
	X(M_LOGS_FOLDED, "meta.logs_folded", counter, events, "extent logs that were shortened")     \
	X(M_META_DAMAGED, "meta.damaged_records", counter, events, "records that did not decode")  \
	X(M_META_CACHE_BUCKETS, "meta.cache_buckets", gauge, buckets, "buckets of metadata remembered") \
	X(M_META_CACHE_BYTES, "meta.cache_bytes", gauge, bytes, "memory they take")                \
	X(M_META_CACHE_HITS, "meta.cache_hits", counter, calls, "lookups, getattrs, listings answered by them") \
	X(M_META_CACHE_MISSES, "meta.cache_misses", counter, calls, "the same that had to ask (relaxed)") \
	X(M_META_INVALIDATIONS, "meta.invalidations", counter, keys, "changed buckets that Redis told of") \
	X(M_META_CACHE_DROPS, "meta.cache_drops", counter, events, "times that everything was dropped") \
	X(M_STORE_PUTS, "store.puts", counter, requests, "objects written")                        \
	X(M_STORE_GETS, "store.gets", counter, requests, "GET requests answered with data")        \
	X(M_STORE_HEADS, "store.heads", counter, requests, "HEAD requests")                        \
	X(M_STORE_LISTS, "store.lists", counter, requests, "list pages")                           \
	X(M_STORE_DELETES, "store.deletes", counter, requests, "delete requests")                  \
	X(M_STORE_PUT_BYTES, "store.put_bytes", counter, bytes, "object bytes written")            \
	X(M_STORE_GET_BYTES, "store.get_bytes", counter, bytes, "object bytes read")               \
	X(M_STORE_RETRIES, "store.retries", counter, requests, "requests repeated after a fault")  \
	X(M_STORE_ERRORS, "store.errors", counter, requests, "requests given up")                  \
	X(M_PACKS_DELETED, "pack.deleted", counter, packs, "packs deleted that nobody used any more") \
	X(M_PACKS_COMPACTED, "pack.compacted", counter, packs, "packs whose live bytes were moved") \
	X(M_COMPACTED_BYTES, "pack.compacted_bytes", counter, bytes, "written by compaction") \
	X(M_PACKS_WRITTEN, "pack.written", counter, packs, "packs put into the store")             \
	X(M_FRAMES_WRITTEN, "pack.frames", counter, frames, "frames put into packs")               \
	X(M_PACK_RAW_BYTES, "pack.raw_bytes", counter, bytes, "file bytes that went into packs")   \
	X(M_PACK_STORED_BYTES, "pack.stored_bytes", counter, bytes, "bytes of packs, all included") \
	X(M_DAMAGED_FRAMES, "pack.damaged_frames", counter, events,                                \
	  "frames whose checksum or header was wrong in the store")                                \
	X(M_HIT_MEMORY, "cache.hits_memory", counter, reads, "frames served from memory")          \
	X(M_HIT_SSD, "cache.hits_ssd", counter, reads, "frames served from the SSD")               \
	X(M_MISS, "cache.misses", counter, reads, "frames that had to come from the store")        \
	X(M_MISS_SHARED, "cache.misses_shared", counter, reads,                                    \
	  "misses that waited for a GET already under way")                                        \
	X(M_SSD_BAD, "cache.ssd_bad", counter, events, "SSD copies dropped for a wrong checksum")  \
	X(M_SSD_ERRORS, "cache.ssd_errors", counter, events, "SSD reads and writes that failed")   \
	X(M_SSD_READ_BYTES, "cache.ssd_read_bytes", counter, bytes, "bytes read from the SSD")     \
	X(M_SSD_WRITE_BYTES, "cache.ssd_write_bytes", counter, bytes, "bytes written to the SSD")  \
	X(M_SSD_EVICTIONS, "cache.evictions", counter, slots, "slots given to other packs")        \
	X(M_SSD_SLOTS, "cache.slots", gauge, slots, "slots of the SSD cache")                      \
	X(M_SSD_SLOTS_USED, "cache.slots_used", gauge, slots, "slots that hold pack data")         \
	X(M_FUSE_REQUESTS, "fuse.requests", counter, requests, "FUSE requests of all kinds")       \
	X(M_READ_BYTES, "fs.read_bytes", counter, bytes, "bytes given to readers")                 \
	X(M_WRITE_BYTES, "fs.write_bytes", counter, bytes, "bytes taken from writers")             \
	X(M_OPEN_FILES, "fs.open_handles", gauge, handles, "open file handles")                    \
	X(M_NODES, "fs.nodes", gauge, inodes, "inodes the daemon keeps in memory")                 \
	X(M_KERNEL_INVALIDATIONS, "fs.kernel_invalidations", counter, notes,                       \
	  "names, attributes and files that the kernel was told to forget")                        \
	X(M_DIRTY_BYTES, "fs.dirty_bytes", gauge, bytes, "bytes written but not yet in the store")

enum silt_metric {
#define X(id, name, kind, unit, help) id,
	SILT_METRICS(X)
#undef X
	SILT_METRIC_COUNT
};

/* Counters by kind, one table each, beside the single ones: FUSE requests by opcode name and Redis
 * calls by function. The tables of names live with their owners (fs/, meta/). */
#define SILT_FUSE_KINDS	 64
#define SILT_REDIS_KINDS 96

struct silt_metrics {
	atomic_uint_fast64_t v[SILT_METRIC_COUNT];
	atomic_uint_fast64_t fuse[SILT_FUSE_KINDS];
	atomic_uint_fast64_t redis[SILT_REDIS_KINDS];
};

struct silt_metric_info {
	const char *name, *kind, *unit, *help;
};
extern const struct silt_metric_info silt_metric_table[SILT_METRIC_COUNT];

/* A NULL `m` counts nothing. */
static inline void silt_count(struct silt_metrics *m, enum silt_metric id, uint64_t n)
{
	if (m)
		atomic_fetch_add_explicit(&m->v[id], n, memory_order_relaxed);
}

static inline void silt_uncount(struct silt_metrics *m, enum silt_metric id, uint64_t n)
{
	if (m)
		atomic_fetch_sub_explicit(&m->v[id], n, memory_order_relaxed);
}

static inline void silt_gauge(struct silt_metrics *m, enum silt_metric id, uint64_t v)
{
	if (m)
		atomic_store_explicit(&m->v[id], v, memory_order_relaxed);
}

static inline uint64_t silt_metric_get(struct silt_metrics *m, enum silt_metric id)
{
	return atomic_load_explicit(&m->v[id], memory_order_relaxed);
}
