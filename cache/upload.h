/* The write side of cache.h: pieces of files become packs, packs become objects, and then the
 * extents of all pieces are committed in Redis. The essay on group commit is at the head of
 * upload.c; which pieces go into the next pack is decided in batch.c.
 *
 *	uploader_write -> queue -> upload thread: build the pack, PUT it -> on_pack
 *	                           -> commit (asynchronous) -> done() of each piece
 *
 * There is no packer thread: an idle upload thread takes the next batch itself, so that a close
 * costs one wake-up and compression runs on as many cores as there are packs.
 *
 * Threads: every function from any thread. done() runs on a Redis reader thread or an upload thread
 * and must not block. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "cache/cache.h"
#include "meta/meta.h"

struct uploader;

/* What the uploader needs of the layers beside and below, so that its tests run without them. The
 * signatures and contracts are those of store.h and meta.h. */
struct uploader_ops {
	int (*put)(struct store *s, const char *key, const struct iovec *iov, int niov,
	           unsigned flags, struct silt_err *err);
	void (*alloc_packs)(struct meta *m, unsigned n, meta_done done, void *arg);
	void (*commit)(struct meta *m, struct meta_commit *items, size_t n, meta_done done,
	               void *arg);
};

/* store_put, meta_alloc_packs, meta_commit. In a file of its own (upload_ops.c): who brings other
 * ops need not link the engine. */
extern const struct uploader_ops uploader_ops;

struct uploader_config {
	const struct uploader_ops *ops; /* &uploader_ops */
	struct store *store;            /* not owned */
	struct meta *meta;              /* not owned */
	/* dicts_writer() (dict.h) and its first argument; may be NULL. */
	const void *(*dict)(void *dicts, uint32_t *number);
	void *dicts;
	struct silt_log *log;           /* may be NULL */
	struct silt_metrics *metrics;   /* may be NULL */
	uint64_t volume;
	int compress_level;       /* zstd, 0: off */
	unsigned upload_threads;  /* 0: 8 */
	unsigned group_window_us; /* 0: 10,000 */

	/* Called after a PUT succeeded and before the extents are committed, on the upload thread;
	 * the bytes are valid during the call only. The closers wait meanwhile: copy and return.
	 * May be NULL. */
	void (*on_pack)(void *arg, uint64_t pack, const struct iovec *iov, int niov, size_t total);
	void *arg;
};

/* Starts the threads. Returns 0 or a negative errno; uploader_close() ends it. */
int uploader_open(const struct uploader_config *cfg, struct uploader **out);

/* Waits until all that was handed over is done, ends the threads, frees. NULL is allowed. */
void uploader_close(struct uploader *u);

/* cache_write(), cache_writers_add() and cache_drain() of cache.h. */
void uploader_write(struct uploader *u, struct cache_write *w);
void uploader_writers_add(struct uploader *u, int delta);
void uploader_drain(struct uploader *u);
