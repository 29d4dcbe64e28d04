/* The threads of the write side: build a pack, PUT it, commit its extents, tell the closers.
 *
 * Order is what makes a crash harmless: the object is in the store before Redis points into it, and
 * the closers hear of it after both. A crash between leaves an orphan pack for gc.
 *
 * All upload threads are alike. One that has nothing to do waits on `idle`; when a small pack waits
 * for company (batch.c says until when) exactly one thread, the gatherer, waits on `gather` with
 * that time-out. uploader_write() wakes a thread only when there is something to do for it, and a
 * thread that takes a batch wakes the next one if there is more: a burst of closers costs one
 * wake-up, not one each.
 *
 * The commit is asynchronous: the upload thread goes on with the next pack while Redis answers. A
 * batch that could not be built (no memory) or PUT fails as a whole, with one line in the log.
 *
 * A PUT is exclusive. -EEXIST means that the id was used before: Redis came back from a crash
 * without its last second of ids, or a PUT that looked lost was not. Either way the object is not
 * ours to touch; the ids in stock are thrown away and the pack takes a new one.
 *
 * Draining: pieces carry the epoch (0 or 1, in `version` until the commit fills it) in which they
 * were handed over; a drain begins a new epoch and waits until the old one has no pieces left.
 * Pieces that keep coming can't hold it up. */
#include "cache/upload.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "cache/batch.h"
#include "cache/pack.h"
#include "cache/pack_ids.h"

#define DEFAULT_THREADS   8u
#define DEFAULT_WINDOW_US 10000u
#define COMMIT_ITEMS      256u /* in one meta_commit() */
#define EXISTS_TRIES      32u

struct uploader {
	struct uploader_config cfg;
	struct pack_ids ids;
	atomic_bool primed; /* the first pack ids were asked for */

	struct silt_lock lock; /* protects all below */
	struct silt_cond idle, gather, done;
	struct batcher batcher;
	unsigned idle_threads;
	bool waking;    /* an idle thread was signalled and has not run yet */
	bool gathering; /* a thread waits on `gather` */
	bool closing;
	bool draining; /* one drain at a time */
	unsigned epoch;
	uint64_t open[2]; /* pieces handed over and not done, by epoch */

	unsigned threads;
	pthread_t thread[];
};

/* --- Taking work ----------------------------------------------------------------------------- */

/* Makes sure that some thread sees what is queued; lock held. */
static void wake(struct uploader *u)
{
	const struct batcher *b = &u->batcher;
	bool full = batcher_has_full(b);
	if (u->gathering && (batcher_enough(b) || (full && !u->idle_threads)))
		silt_cond_signal(&u->gather);
	if (!u->idle_threads || u->waking)
		return;
	if (full || (batcher_has_small(b) && !u->gathering)) {
		u->waking = true;
		silt_cond_signal(&u->idle);
	}
}

/* Waits for the next batch. False: the uploader is closing and nothing is left. */
static bool next_batch(struct uploader *u, struct batch *out)
{
	bool got = false;
	silt_lock(&u->lock);
	for (;;) {
		uint64_t until;
		got = batcher_take(&u->batcher, silt_now_ns(), out, &until);
		if (got)
			break;
		if (until && !u->gathering) {
			u->gathering = true;
			silt_cond_wait_until(&u->gather, &u->lock, until);
			u->gathering = false;
			continue;
		}
		if (u->closing)
			break;
		u->idle_threads++;
		silt_cond_wait(&u->idle, &u->lock);
		u->idle_threads--;
		u->waking = false;
	}
	wake(u);
	silt_unlock(&u->lock);
	return got;
}

/* --- Ending pieces --------------------------------------------------------------------------- */

/* Pieces of each epoch whose done() was called. */
struct ended {
	uint64_t n[2];
};

/* Tells the closer; `w` may be gone afterwards. */
static void end_piece(struct cache_write *w, int err, uint64_t version, struct ended *ended)
{
	ended->n[w->version]++;
	w->version = version;
	w->done(w->arg, err);
}

/* Lets drains see what ended: after the done() calls, which they wait for too. */
static void count_ended(struct uploader *u, const struct ended *ended)
{
	silt_lock(&u->lock);
	u->open[0] -= ended->n[0];
	u->open[1] -= ended->n[1];
	if (!u->open[0] || !u->open[1])
		silt_cond_broadcast(&u->done);
	silt_unlock(&u->lock);
}

static void fail_pieces(struct uploader *u, struct cache_write *w, size_t n, int err)
{
	struct ended ended = { { 0, 0 } };
	while (n--) {
		struct cache_write *next = w->next;
		end_piece(w, err, 0, &ended);
		w = next;
	}
	count_ended(u, &ended);
}

/* --- Committing ------------------------------------------------------------------------------ */

struct commit {
	struct uploader *u;
	struct cache_write *head; /* `n` pieces, linked in the order of the items */
	size_t n;
	unsigned files; /* for batcher_committed() */
	uint64_t began;
	struct meta_commit item[];
};

static void queue_piece(struct uploader *u, struct cache_write *w)
{
	silt_lock(&u->lock);
	batcher_add(&u->batcher, w, silt_now_ns());
	wake(u);
	silt_unlock(&u->lock);
}

static void note_committed(struct uploader *u, unsigned files, uint64_t began)
{
	silt_lock(&u->lock);
	batcher_committed(&u->batcher, files, began, silt_now_ns());
	silt_unlock(&u->lock);
}

static void on_commit(void *arg, const struct meta_reply *r)
{
	struct commit *c = arg;
	struct uploader *u = c->u;
	/* Before the closers hear of it: one that comes back at once must not see itself as
	 * company. */
	note_committed(u, c->files, c->began);
	if (r->err)
		silt_error(u->cfg.log, "commit of %zu extents in pack %016llx failed: %s", c->n,
		           (unsigned long long)c->item[0].extent.pack, strerror(-r->err));
	struct ended ended = { { 0, 0 } };
	struct cache_write *w = c->head;
	for (size_t i = 0; i < c->n; i++) {
		struct cache_write *next = w->next;
		w->at = c->item[i].at;
		if (!r->err && c->item[i].err == -ESTALE) { /* so late that the pack was deleted */
			w->extent.pack = 0;
			queue_piece(u, w);
			w = next;
			continue;
		}
		end_piece(w, r->err ? r->err : c->item[i].err, c->item[i].version, &ended);
		w = next;
	}
	free(c);
	if (ended.n[0] || ended.n[1]) /* else those that were queued anew may have ended, and u with them */
		count_ended(u, &ended);
}

/* Starts the commit of the first `n` pieces of a list. `again`: they may have been committed. */
static void commit_some(struct uploader *u, struct cache_write *head, size_t n, unsigned files,
                        bool again)
{
	struct commit *c = calloc(1, sizeof(*c) + n * sizeof(c->item[0]));
	if (!c) {
		note_committed(u, files, silt_now_ns());
		fail_pieces(u, head, n, -ENOMEM);
		return;
	}
	c->u = u;
	c->head = head;
	c->n = n;
	c->files = files;
	c->began = silt_now_ns();
	struct cache_write *w = head;
	for (size_t i = 0; i < n; i++, w = w->next)
		c->item[i] = (struct meta_commit){ .ino = w->ino,
			                           .extent = w->extent,
			                           .mtime = w->mtime,
			                           .append = w->append,
			                           .drop_suid = w->drop_suid,
			                           .again = again };
	u->cfg.ops->commit(u->cfg.meta, c->item, n, on_commit, c);
}

static void commit_batch(struct uploader *u, const struct batch *batch)
{
	struct cache_write *w = batch->pieces.head;
	unsigned files = batch->shared ? batch->files : 0;
	for (size_t left = batch->pieces.n, n; left; left -= n) {
		n = left < COMMIT_ITEMS ? left : COMMIT_ITEMS;
		unsigned share = left == n || files < n ? files : (unsigned)n;
		files -= share;
		/* The pieces may be gone when commit_some() returns. */
		struct cache_write *head = w;
		for (size_t i = 0; i < n; i++)
			w = w->next;
		commit_some(u, head, n, share, false);
	}
}

/* --- Uploading ------------------------------------------------------------------------------- */

static int build(struct pack_builder *builder, const struct batch *batch)
{
	for (struct cache_write *w = batch->pieces.head; w; w = w->next) {
		/* Frames of an append that crosses a window's border are named as if it began at 0. */
		bool crosses = w->off / SILT_WINDOW != (w->off + w->len - 1) / SILT_WINDOW;
		uint64_t off = crosses ? 0 : w->off;
		int err = pack_builder_add(builder, w->ino, off, w->data, w->len, &w->extent);
		if (err)
			return err;
		w->extent.off = w->off;
		w->extent.flags |= crosses ? EXTENT_FOREIGN : 0;
		w->extent.pack = 0; /* until it is stored */
	}
	return 0;
}

/* A finished pack. */
struct object {
	uint64_t id;
	const struct iovec *iov;
	int niov;
	size_t total;
};

/* PUTs the pack under a fresh id. */
static int put_pack(struct uploader *u, struct pack_builder *builder, struct object *o,
                    struct silt_err *why)
{
	for (unsigned i = 0; i < EXISTS_TRIES; i++) {
		int err = pack_ids_take(&u->ids, &o->id);
		if (err)
			return silt_fail(why, err, "no pack id from Redis: %s", strerror(-err));
		pack_builder_renumber(builder, o->id);
		char key[PACK_KEY_MAX];
		pack_key(o->id, key);
		err = u->cfg.ops->put(u->cfg.store, key, o->iov, o->niov, STORE_EXCL, why);
		if (err != -EEXIST)
			return err;
		silt_warn(u->cfg.log, "%s exists already; taking another pack id", key);
		pack_ids_discard(&u->ids);
	}
	return silt_fail(why, -EIO, "%u pack ids in a row were used already", EXISTS_TRIES);
}

static void note_packed(struct uploader *u, struct pack_builder *builder, const struct batch *batch,
                        const struct object *o)
{
	silt_count(u->cfg.metrics, M_PACKS_WRITTEN, 1);
	silt_count(u->cfg.metrics, M_FRAMES_WRITTEN, pack_builder_frames(builder));
	silt_count(u->cfg.metrics, M_PACK_RAW_BYTES, batch->pieces.bytes);
	silt_count(u->cfg.metrics, M_PACK_STORED_BYTES, o->total);
	silt_debugf(u->cfg.log, "cache.upload",
	            "pack %016llx: %zu pieces, %llu bytes, %zu stored%s", (unsigned long long)o->id,
	            batch->pieces.n, (unsigned long long)batch->pieces.bytes, o->total,
	            batch->shared ? ", shared" : "");
}

/* From pieces to an object in the store, with the extents filled in. */
static int store_batch(struct uploader *u, struct pack_builder *builder, const struct batch *batch)
{
	struct silt_err why = { .code = 0 };
	struct object o;
	uint32_t number = 0;
	const void *dict = u->cfg.dict ? u->cfg.dict(u->cfg.dicts, &number) : NULL;
	if (builder)
		pack_builder_use_dict(builder, dict, number);
	int err = builder ? build(builder, batch) : -ENOMEM;
	if (!err)
		err = pack_builder_finish(builder, &o.iov, &o.niov, &o.total);
	if (!err)
		err = put_pack(u, builder, &o, &why);
	if (err) {
		silt_error(u->cfg.log,
		           "upload of %zu pieces (%llu bytes, inode %llu...) failed: %s",
		           batch->pieces.n, (unsigned long long)batch->pieces.bytes,
		           (unsigned long long)batch->pieces.head->ino,
		           why.text[0] ? why.text : strerror(-err));
		return err;
	}
	for (struct cache_write *w = batch->pieces.head; w; w = w->next)
		w->extent.pack = o.id;
	note_packed(u, builder, batch, &o);
	if (u->cfg.on_pack)
		u->cfg.on_pack(u->cfg.arg, o.id, o.iov, o.niov, o.total);
	return 0;
}

static void *upload_main(void *arg)
{
	struct uploader *u = arg;
	struct pack_builder *builder = NULL;
	struct batch batch;
	while (next_batch(u, &batch)) {
		if (builder)
			pack_builder_reset(builder, 0);
		else
			builder = pack_builder_new(0, u->cfg.volume, u->cfg.compress_level);
		int err = store_batch(u, builder, &batch);
		silt_lock(&u->lock);
		batcher_put_ended(&u->batcher, &batch, !err, silt_now_ns());
		silt_unlock(&u->lock);
		if (err)
			fail_pieces(u, batch.pieces.head, batch.pieces.n, err);
		else
			commit_batch(u, &batch);
	}
	pack_builder_free(builder);
	return NULL;
}

/* --- The interface --------------------------------------------------------------------------- */

static void stop_threads(struct uploader *u)
{
	silt_lock(&u->lock);
	u->closing = true;
	silt_cond_broadcast(&u->idle);
	silt_unlock(&u->lock);
	for (unsigned i = 0; i < u->threads; i++)
		pthread_join(u->thread[i], NULL);
}

static void uploader_free(struct uploader *u)
{
	stop_threads(u);
	pack_ids_destroy(&u->ids);
	silt_cond_destroy(&u->idle);
	silt_cond_destroy(&u->gather);
	silt_cond_destroy(&u->done);
	silt_lock_destroy(&u->lock);
	free(u);
}

/* Signals are for the threads of the program that wait for them. */
static int start_threads(struct uploader *u, unsigned n)
{
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int err = 0;
	while (!err && u->threads < n) {
		err = -pthread_create(&u->thread[u->threads], NULL, upload_main, u);
		if (!err)
			pthread_setname_np(u->thread[u->threads++], "silt-upload");
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return err;
}

int uploader_open(const struct uploader_config *cfg, struct uploader **out)
{
	assert(cfg->ops);
	unsigned threads = cfg->upload_threads ? cfg->upload_threads : DEFAULT_THREADS;
	unsigned window_us = cfg->group_window_us ? cfg->group_window_us : DEFAULT_WINDOW_US;
	struct uploader *u = calloc(1, sizeof(*u) + threads * sizeof(u->thread[0]));
	if (!u)
		return -ENOMEM;
	u->cfg = *cfg;
	pack_ids_init(&u->ids, cfg->ops, cfg->meta);
	silt_lock_init(&u->lock);
	silt_cond_init(&u->idle);
	silt_cond_init(&u->gather);
	silt_cond_init(&u->done);
	batcher_init(&u->batcher, threads, (uint64_t)window_us * 1000);
	int err = start_threads(u, threads);
	if (err) {
		uploader_free(u);
		return err;
	}
	*out = u;
	return 0;
}

void uploader_close(struct uploader *u)
{
	if (!u)
		return;
	uploader_drain(u);
	uploader_free(u);
}

void uploader_write(struct uploader *u, struct cache_write *w)
{
	assert(w->len && w->len <= PACK_TARGET && w->off <= SILT_FILE_MAX - w->len);
	assert(w->append || w->off / SILT_WINDOW == (w->off + w->len - 1) / SILT_WINDOW);
	bool stored = w->append && w->extent.pack;
	silt_lock(&u->lock);
	w->version = u->epoch;
	u->open[u->epoch]++;
	if (stored) {
		silt_unlock(&u->lock);
		w->next = NULL;
		w->extent.off = w->off;
		commit_some(u, w, 1, 0, true);
		return;
	}
	batcher_add(&u->batcher, w, silt_now_ns());
	wake(u);
	silt_unlock(&u->lock);
}

void uploader_writers_add(struct uploader *u, int delta)
{
	silt_lock(&u->lock);
	u->batcher.writers += delta;
	silt_unlock(&u->lock);
	/* The first pack's id travels while the first file is being written. */
	if (delta > 0 && !atomic_exchange(&u->primed, true))
		pack_ids_prepare(&u->ids);
}

void uploader_drain(struct uploader *u)
{
	silt_lock(&u->lock);
	while (u->draining)
		silt_cond_wait(&u->done, &u->lock);
	u->draining = true;
	unsigned old = u->epoch;
	u->epoch ^= 1;
	u->batcher.hurry++;
	wake(u);
	while (u->open[old])
		silt_cond_wait(&u->done, &u->lock);
	u->batcher.hurry--;
	u->draining = false;
	silt_cond_broadcast(&u->done);
	silt_unlock(&u->lock);
}
