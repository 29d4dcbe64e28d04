/* From dirty to stored: seals segments, hands them to the cache, applies their commits to the node,
 * and answers who waits. Also the budget: writes that find no space are parked here and go on when
 * uploads have made some. What could not be stored: unstored.c.
 *
 *	WRITE -> buffer -> seal -> cache_write() ... done -> node.map, node.attr -> waiters, parked
 *
 * A flush waits for the segments of its epoch and older ones. When one of them fails it stays in
 * the buffer (readers still see its bytes), the flush reports the error, and the next flush tries
 * again. Appends (write_buffer.h) may have been put elsewhere than this mount took the end to be:
 * what is still buffered moves along, and the kernel drops its pages (inval.c) before a flush is
 * answered. Data is given up at once when its file is gone (-ENOENT of the commit: deleted by
 * another mount) or may not be changed any more (-EPERM: made immutable by another mount). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs/fs_impl.h"

bool node_note_dirty_locked(struct fs *fs, struct node *n)
{
	struct write_queue *q = &fs->queue;
	bool dirty = !write_buffer_empty(&n->buffer);
	node_note_failing_locked(fs, n);
	silt_gauge(fs->cfg.metrics, M_DIRTY_BYTES, atomic_load(&fs->pool.used));
	if (dirty == n->dirty)
		return false;
	n->dirty = dirty;
	if (dirty)
		node_ref(fs, n);
	silt_lock(&q->lock);
	if (dirty) {
		n->dirty_prev = q->last;
		n->dirty_next = NULL;
		*(q->last ? &q->last->dirty_next : &q->first) = n;
		q->last = n;
		q->nodes++;
	} else {
		*(n->dirty_prev ? &n->dirty_prev->dirty_next : &q->first) = n->dirty_next;
		*(n->dirty_next ? &n->dirty_next->dirty_prev : &q->last) = n->dirty_prev;
		q->nodes--;
		silt_cond_broadcast(&q->clean);
	}
	silt_unlock(&q->lock);
	cache_writers_add(fs->cfg.cache, dirty ? 1 : -1);
	return !dirty;
}

/* Adds what was committed to the map: an append in pieces where it was put. */
static int add_to_map(struct node *n, const struct segment *s)
{
	if (!s->write.append)
		return file_map_add(&n->map, &s->write.extent);
	int err = 0;
	for (uint64_t done = 0; done < s->len && !err;) {
		struct silt_extent e = s->write.extent;
		e.off = s->write.at + done;
		e.len = SILT_WINDOW - e.off % SILT_WINDOW;
		e.len = e.len < s->len - done ? e.len : s->len - done;
		e.skip = (uint32_t)done;
		if (s->write.at != s->off)
			e.flags |= EXTENT_FOREIGN;
		err = file_map_add(&n->map, &e);
		done += e.len;
	}
	return err;
}

/* Takes the commit of one of our extents into the node's view (see node.h on versions). */
static void commit_locked(struct fs *fs, struct node *n, const struct segment *s)
{
	struct silt_attr *a = &n->attr;
	uint64_t version = s->write.version;
	uint64_t end = (s->write.append ? s->write.at : s->off) + s->len;
	if (version <= a->version && n->gaps == 0)
		return; /* a record newer than this commit came first */
	if (version > a->version) {
		n->gaps += version - a->version - 1;
		a->version = version;
		a->mtime = s->write.mtime;
		bool later = a->mtime.sec > a->ctime.sec ||
		             (a->mtime.sec == a->ctime.sec && a->mtime.nsec > a->ctime.nsec);
		if (later)
			a->ctime = a->mtime;
		if (s->write.drop_suid)
			a->mode &= ~(uint32_t)(S_ISUID | (a->mode & S_IXGRP ? S_ISGID : 0));
	} else {
		n->gaps--;
	}
	if (end > a->size || (s->write.append && version == a->version))
		a->size = end; /* an append knows the end */
	size_t sent = 0;       /* others on their way, which may fill gaps */
	for (size_t i = 0; i < n->buffer.sent.n; i++)
		sent += n->buffer.sent.v[i] != s && n->buffer.sent.v[i]->state == SEGMENT_SENT;
	if (n->gaps > sent || add_to_map(n, s)) {
		file_map_forget(&n->map); /* another mount wrote too, or no memory */
		n->gaps = 0;
		n->whole_version = a->version;
	} else if (n->gaps == 0) {
		opened_advance(&fs->opened, n->ino, n->whole_version, a->version);
		n->whole_version = a->version;
	}
}

/* Seals what waiters want, and what is full. */
static void seal_locked(struct node *n, struct segment **chain)
{
	uint64_t limit = n->held ? n->held_epoch : UINT64_MAX;
	uint64_t wanted = 0;
	for (const struct flush_wait *w = n->waiters; w; w = w->next)
		wanted = w->epoch > wanted ? w->epoch : wanted;
	if (n->waiters)
		write_buffer_seal(&n->buffer, SEAL_ALL, wanted < limit ? wanted : limit, chain);
	write_buffer_seal(&n->buffer, SEAL_FULL, limit, chain);
}

/* Takes the waiters off whose flush has ended. */
static struct flush_wait *take_ready_locked(struct node *n)
{
	struct flush_wait *ready = NULL, **p = &n->waiters;
	while (*p) {
		struct flush_wait *w = *p;
		int err = write_buffer_status(&n->buffer, w->epoch);
		if (err == -EINPROGRESS) {
			p = &w->next;
			continue;
		}
		*p = w->next;
		w->err = err;
		w->next = ready;
		ready = w;
	}
	return ready;
}

static void run_waiters(struct flush_wait *w)
{
	while (w) {
		struct flush_wait *next = w->next;
		w->done(w->arg, w->err);
		w = next;
	}
}

/* The file of a segment is immutable (-EPERM) or deleted, elsewhere unless we know of it. */
static void note_gone_locked(struct node *n, const struct segment *s, int err)
{
	if (n->deleted)
		return;
	silt_warn(n->fs->cfg.log, "inode %llu: %s elsewhere, %u written bytes dropped",
	          (unsigned long long)n->ino, err == -EPERM ? "made immutable" : "deleted", s->len);
	n->lost_err = err == -EPERM ? -EPERM : -ESTALE;
	atomic_fetch_add(&n->error_seq, 1);
}

/* A segment has come to its end: stored (err 0), failed, or its file is gone or immutable. */
static void segment_end(struct segment *s, int err, bool gone)
{
	struct segment *chain = NULL;
	struct node *n = s->owner;
	struct fs *fs = n->fs;
	node_ref(fs, n);
	silt_lock(&n->lock);
	int64_t moved = 0;
	if (!err && s->write.append)
		moved = (int64_t)(s->write.at - s->off);
	if (!err)
		commit_locked(fs, n, s);
	else if (gone)
		note_gone_locked(n, s, err);
	write_buffer_complete(&n->buffer, s, err, gone);
	if (moved)
		write_buffer_shift(&n->buffer, moved);
	if (!err)
		node_stored_locked(fs, n);
	else if (!gone)
		node_failed_locked(fs, n, s);
	seal_locked(n, &chain);
	struct flush_wait *ready = take_ready_locked(n);
	bool put = node_note_dirty_locked(fs, n);
	silt_unlock(&n->lock);
	node_submit(fs, chain);
	if (moved || inval_busy(fs))
		ready = inval_post(fs, moved ? n->ino : 0, ready);
	run_waiters(ready);
	if (put)
		node_put(fs, n);
	if (err && !gone)
		fs_refused(fs, n, err);
	node_put(fs, n);
	fs_unpark(fs, 0);
	fs_background_end(fs);
}

static void gone_checked(void *arg, const struct meta_reply *reply)
{
	bool immutable = !reply->err && (reply->inode.attr.flags & SILT_FLAG_IMMUTABLE);
	bool gone = reply->err == -ENOENT || immutable;
	segment_end(arg, immutable ? -EPERM : gone ? -ENOENT : -EIO, gone);
}

/* cache_done of a segment. -ENOENT may be the file's (somebody deleted it) or a missing bucket's,
 * -EPERM likewise: only the first is a reason to give bytes up, so it is asked. */
static void segment_done(void *arg, int err)
{
	struct segment *s = arg;
	struct node *n = s->owner;
	if (err == -ENOENT || err == -EPERM)
		meta_getattr(n->fs->cfg.meta, n->ino, gone_checked, s);
	else
		segment_end(s, err, false);
}

void node_submit(struct fs *fs, struct segment *chain)
{
	while (chain) {
		struct segment *s = chain;
		chain = s->chain; /* `s` may be gone when cache_write() returns */
		s->write.done = segment_done;
		s->write.arg = s;
		fs_background_begin(fs);
		cache_write(fs->cfg.cache, &s->write);
	}
}

/* Queues a waiter for everything up to now. Lock held; false: there is nothing to wait for. */
static bool flush_locked(struct node *n, struct flush_wait *w, struct segment **chain)
{
	w->epoch = n->buffer.epoch++;
	if (write_buffer_empty(&n->buffer))
		return false;
	w->next = n->waiters;
	n->waiters = w;
	write_buffer_retry(&n->buffer, chain);
	seal_locked(n, chain);
	return true;
}

void node_flush(struct fs *fs, struct node *n, struct flush_wait *w)
{
	struct segment *chain = NULL;
	silt_lock(&n->lock);
	bool wait = flush_locked(n, w, &chain);
	silt_unlock(&n->lock);
	node_submit(fs, chain);
	if (!wait)
		w->done(w->arg, 0);
}

bool node_flush_and_hold(struct fs *fs, struct node *n, uint64_t size, struct flush_wait *w,
                         struct request *r)
{
	struct segment *chain = NULL;
	silt_lock(&n->lock);
	if (n->held) {
		r->next = n->held_waiters;
		n->held_waiters = r;
		silt_unlock(&n->lock);
		return false;
	}
	bool forbidden = n->attr.flags & (SILT_FLAG_IMMUTABLE | SILT_FLAG_APPEND);
	n->held_cut = forbidden ? 0 : write_buffer_truncate(&n->buffer, size);
	bool put = node_note_dirty_locked(fs, n);
	n->held = true;
	n->held_epoch = n->buffer.epoch;
	bool wait = flush_locked(n, w, &chain);
	silt_unlock(&n->lock);
	node_submit(fs, chain);
	if (put)
		node_put(fs, n);
	if (!wait)
		w->done(w->arg, 0);
	return true;
}

void node_cut_in_vain(struct fs *fs, struct node *n)
{
	silt_lock(&n->lock);
	uint64_t bytes = n->held_cut;
	n->held_cut = 0;
	if (bytes) {
		n->lost_err = -EIO;
		atomic_fetch_add(&n->error_seq, 1);
		opened_forget(&fs->opened, n->ino);
	}
	silt_unlock(&n->lock);
	if (bytes)
		silt_error(fs->cfg.log,
		           "inode %llu: %llu written bytes are lost: they were dropped for a "
		           "truncation that then failed",
		           (unsigned long long)n->ino, (unsigned long long)bytes);
}

void node_drop_dirty(struct fs *fs, struct node *n, int err)
{
	silt_lock(&n->lock);
	if (!write_buffer_empty(&n->buffer)) {
		n->lost_err = err;
		atomic_fetch_add(&n->error_seq, 1);
	}
	write_buffer_truncate(&n->buffer, 0);
	opened_forget(&fs->opened, n->ino);
	struct flush_wait *ready = take_ready_locked(n);
	bool put = node_note_dirty_locked(fs, n);
	silt_unlock(&n->lock);
	run_waiters(ready);
	if (put)
		node_put(fs, n);
}

void node_unhold(struct fs *fs, struct node *n)
{
	struct segment *chain = NULL;
	silt_lock(&n->lock);
	n->held = false;
	struct request *r = n->held_waiters;
	n->held_waiters = NULL;
	seal_locked(n, &chain);
	struct flush_wait *ready = take_ready_locked(n);
	silt_unlock(&n->lock);
	node_submit(fs, chain);
	run_waiters(ready);
	while (r) {
		struct request *next = r->next;
		r->held(r);
		r = next;
	}
}

/* --- the budget --------------------------------------------------------------------------- */

static struct node *take_oldest(struct fs *fs)
{
	struct write_queue *q = &fs->queue;
	silt_lock(&q->lock);
	struct node *n = q->first;
	if (n) {
		node_ref(fs, n); /* alive: being in the queue is a reference */
		if (n != q->last) {
			q->first = n->dirty_next;
			q->first->dirty_prev = NULL;
			n->dirty_prev = q->last;
			n->dirty_next = NULL;
			q->last->dirty_next = n;
			q->last = n;
		}
	}
	silt_unlock(&q->lock);
	return n;
}

void fs_relieve(struct fs *fs, bool retry)
{
	for (size_t i = 0; i < 64 && i <= fs->queue.nodes; i++) {
		uint64_t used = atomic_load(&fs->pool.used), sent = atomic_load(&fs->pool.sent);
		if (used < sent || used - sent <= fs->pool.budget / 2)
			return;
		struct node *n = take_oldest(fs);
		if (!n)
			return;
		struct segment *chain = NULL;
		silt_lock(&n->lock);
		if (retry)
			write_buffer_retry(&n->buffer, &chain);
		write_buffer_seal(&n->buffer, SEAL_ALL, n->held ? n->held_epoch : UINT64_MAX,
		                  &chain);
		silt_unlock(&n->lock);
		node_submit(fs, chain);
		node_put(fs, n);
	}
}

void fs_unpark(struct fs *fs, int err)
{
	struct write_queue *q = &fs->queue;
	while (atomic_load(&q->nparked) > 0) {
		silt_lock(&q->lock);
		struct request *r = q->parked;
		uint64_t used = atomic_load(&fs->pool.used);
		if (!r || (!err && used > 0 && used + r->size > fs->pool.budget)) {
			silt_unlock(&q->lock);
			return;
		}
		q->parked = r->next;
		if (!q->parked)
			q->parked_last = NULL;
		atomic_fetch_sub(&q->nparked, 1);
		silt_unlock(&q->lock);
		fs_write_parked(r, err);
	}
}

/* --- unmount ------------------------------------------------------------------------------ */

struct drain {
	struct silt_lock lock;
	struct silt_cond cond;
	size_t pending;
	int err;
};

struct drain_one {
	struct flush_wait wait;
	struct drain *drain;
	struct node *node;
};

static void drained(void *arg, int err)
{
	struct drain_one *one = arg;
	struct drain *d = one->drain;
	silt_lock(&d->lock);
	if (err)
		d->err = err;
	d->pending--;
	silt_cond_broadcast(&d->cond);
	silt_unlock(&d->lock);
}

/* One pass over the nodes that are dirty now. */
static int drain_pass(struct fs *fs)
{
	struct write_queue *q = &fs->queue;
	silt_lock(&q->lock);
	size_t n = 0, max = q->nodes;
	struct drain_one *v = calloc(max ? max : 1, sizeof(*v));
	for (struct node *x = q->first; v && x && n < max; x = x->dirty_next) {
		node_ref(fs, x);
		v[n++].node = x;
	}
	silt_unlock(&q->lock);
	if (!v)
		return -ENOMEM;
	struct drain d = { .pending = n };
	silt_lock_init(&d.lock);
	silt_cond_init(&d.cond);
	for (size_t i = 0; i < n; i++) {
		v[i].drain = &d;
		v[i].wait.done = drained;
		v[i].wait.arg = &v[i];
		node_flush(fs, v[i].node, &v[i].wait);
	}
	silt_lock(&d.lock);
	while (d.pending > 0)
		silt_cond_wait(&d.cond, &d.lock);
	silt_unlock(&d.lock);
	for (size_t i = 0; i < n; i++)
		node_put(fs, v[i].node);
	silt_cond_destroy(&d.cond);
	silt_lock_destroy(&d.lock);
	free(v);
	return d.err;
}

int fs_flush_all(struct fs *fs)
{
	int err = drain_pass(fs);
	if (err)
		err = drain_pass(fs);
	struct write_queue *q = &fs->queue;
	if (err) {
		silt_lock(&q->lock);
		for (struct node *n = q->first; n; n = n->dirty_next)
			silt_error(fs->cfg.log,
			           "inode %llu: written data is lost at unmount (up to offset "
			           "%llu): %s",
			           (unsigned long long)n->ino,
			           (unsigned long long)write_buffer_end(&n->buffer),
			           strerror(-err));
		silt_unlock(&q->lock);
	}
	cache_drain(fs->cfg.cache);
	/* What a deleted or damaged node left behind is still to be answered for. */
	return err;
}
