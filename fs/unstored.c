/* Bytes that could not be stored. Where they go from there:
 *
 *	segment fails --- a descriptor is open for writing: it is sent again by itself, 1 s later,
 *then 2, 4, ... up to RETRY_MAX_MS apart, and by every fsync(), close() and truncation, which give
 *the error as long as it lasts
 *	              --- the last such descriptor was closed: one more try, then they are given up
 *
 * close() has told its caller by then, and what came later is nobody's any more: stored an hour
 * after, the bytes would lie over what another node has put in their place. Kept in memory, they
 * would be shown here over that as well, and take the space that other files' writes wait for.
 *
 * The log says once that a file has such bytes and once what became of them.
 *
 * A write that waits for space fails only when waiting is of no use: when its own file has bytes
 * that were refused, or when for STALL_NS nothing at all could be stored while something was
 * refused. Else it waits on: other files' uploads make space, or the files that can't be stored are
 * closed. Every refusal comes within the store's own time limit and is followed by another try, so
 * nobody waits for good. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs/fs_impl.h"

#define RETRY_FIRST_MS  1000u
#define RETRY_MAX_MS    30000u
#define RETRY_WANTED_MS 4000u /* the same while a write waits for the memory */
#define STALL_NS        ((uint64_t)30 * 1000000000u)

/* --- which files have some ---------------------------------------------------------------- */

void node_note_failing_locked(struct fs *fs, struct node *n)
{
	struct write_queue *q = &fs->queue;
	bool failing = n->buffer.failed > 0;
	if (failing == n->failing)
		return;
	n->failing = failing;
	silt_lock(&q->lock);
	if (failing) {
		n->failing_prev = NULL;
		n->failing_next = q->failing;
		if (q->failing)
			q->failing->failing_prev = n;
		q->failing = n;
		n->failing_since = silt_now_ns();
		n->retry_ms = 0;
		n->retry_at = 0;
	} else {
		*(n->failing_prev ? &n->failing_prev->failing_next : &q->failing) = n->failing_next;
		if (n->failing_next)
			n->failing_next->failing_prev = n->failing_prev;
	}
	silt_unlock(&q->lock);
}

void node_failed_locked(struct fs *fs, struct node *n, const struct segment *s)
{
	struct write_queue *q = &fs->queue;
	if (!n->failing)
		silt_error(fs->cfg.log,
		           "inode %llu: %u bytes at %llu not stored: %s; trying again while it is "
		           "open",
		           (unsigned long long)n->ino, s->len, (unsigned long long)s->off,
		           strerror(-s->err));
	node_note_failing_locked(fs, n);
	silt_lock(&q->lock);
	if (n->retry_at == 0) /* of several that fail together, the first */
		n->retry_ms = n->retry_ms ? n->retry_ms * 2 : RETRY_FIRST_MS;
	unsigned most = atomic_load(&q->nparked) ? RETRY_WANTED_MS : RETRY_MAX_MS;
	n->retry_ms = n->retry_ms < most ? n->retry_ms : most;
	uint64_t at = silt_now_ns() + (uint64_t)n->retry_ms * 1000000u;
	if (n->retry_at == 0 || at < n->retry_at) {
		n->retry_at = at;
		if (!q->no_retries)
			janitor_look(fs->janitor);
	}
	silt_unlock(&q->lock);
}

void node_stored_locked(struct fs *fs, struct node *n)
{
	bool before = n->failing;
	if (atomic_load_explicit(&fs->queue.stalled, memory_order_relaxed))
		atomic_store(&fs->queue.stalled, 0);
	node_note_failing_locked(fs, n);
	if (before && !n->failing)
		silt_info(fs->cfg.log, "inode %llu: stored after all, %.1f s later",
		          (unsigned long long)n->ino,
		          (double)(silt_now_ns() - n->failing_since) / 1e9);
}

/* --- trying again ------------------------------------------------------------------------- */

static void retry(struct fs *fs, struct node *n)
{
	struct segment *chain = NULL;
	silt_lock(&n->lock);
	write_buffer_retry(&n->buffer, &chain);
	silt_unlock(&n->lock);
	node_submit(fs, chain);
	node_put(fs, n);
}

int fs_retry_due(struct fs *fs)
{
	struct write_queue *q = &fs->queue;
	struct node *due = NULL;
	uint64_t now = silt_now_ns(), next = UINT64_MAX;
	silt_lock(&q->lock);
	for (struct node *n = q->no_retries ? NULL : q->failing; n; n = n->failing_next) {
		if (n->retry_at > now && n->retry_at < next)
			next = n->retry_at;
		if (n->retry_at == 0 || n->retry_at > now)
			continue;
		n->retry_at = 0;
		node_ref(fs, n); /* alive: it is dirty */
		n->due_next = due;
		due = n;
	}
	silt_unlock(&q->lock);
	while (due) {
		struct node *n = due;
		due = n->due_next;
		retry(fs, n);
	}
	return next == UINT64_MAX ? -1 : (int)((next - now) / 1000000u + 1);
}

void fs_end_retries(struct fs *fs)
{
	silt_lock(&fs->queue.lock);
	fs->queue.no_retries = true;
	silt_unlock(&fs->queue.lock);
}

/* --- giving up ---------------------------------------------------------------------------- */

struct late_flush {
	struct flush_wait wait;
	struct fs *fs;
	struct node *node;
};

/* Drops what failed, unless somebody may still be told of it. True: something newer, which that
 * held back, has not been tried yet. */
static bool give_up(struct fs *fs, struct node *n, int err)
{
	uint64_t bytes = 0;
	silt_lock(&n->lock);
	if (n->writers == 0 && !n->deleted)
		bytes = write_buffer_give_up(&n->buffer);
	if (bytes) {
		n->lost_err = err; /* for fsync() of descriptors that only read */
		atomic_fetch_add(&n->error_seq, 1);
		/* The kernel's pages have these bytes, and the version is what it was. */
		opened_forget(&fs->opened, n->ino);
	}
	bool put = node_note_dirty_locked(fs, n);
	bool more = bytes && !write_buffer_empty(&n->buffer);
	silt_unlock(&n->lock);
	if (bytes)
		silt_error(fs->cfg.log,
		           "inode %llu: %llu written bytes are lost, after its last close: %s",
		           (unsigned long long)n->ino, (unsigned long long)bytes, strerror(-err));
	if (put)
		node_put(fs, n);
	fs_unpark(fs, 0);
	return more;
}

static void late_flushed(void *arg, int err)
{
	struct late_flush *late = arg;
	struct fs *fs = late->fs;
	struct node *n = late->node;
	free(late);
	if (err && give_up(fs, n, err))
		node_flush_late(fs, n);
	node_put(fs, n);
}

void node_flush_late(struct fs *fs, struct node *n)
{
	struct late_flush *late = calloc(1, sizeof(*late));
	if (!late)
		return; /* unmounting tries again */
	node_ref(fs, n);
	late->fs = fs;
	late->node = n;
	late->wait.done = late_flushed;
	late->wait.arg = late;
	node_flush(fs, n, &late->wait);
}

/* --- writes that wait for space ----------------------------------------------------------- */

/* Is it of no use that `r` waits on, after bytes of `n` were refused? Queue's lock held. */
static bool hopeless(struct fs *fs, const struct request *r, const struct node *n, uint64_t now)
{
	uint64_t since = atomic_load(&fs->queue.stalled);
	if (r->node == n)
		return true;
	if (since == 0) /* something was stored just now */
		return false;
	if (atomic_load(&fs->pool.sent) > 0 && r->parked_ns > since)
		since = r->parked_ns; /* what is on its way may fare better */
	return now - since >= STALL_NS;
}

void fs_refused(struct fs *fs, const struct node *n, int err)
{
	struct write_queue *q = &fs->queue;
	struct request *failed = NULL;
	uint64_t now = silt_now_ns(), none = 0;
	atomic_compare_exchange_strong(&q->stalled, &none, now);
	if (atomic_load(&q->nparked) == 0)
		return;
	silt_lock(&q->lock);
	struct request **p = &q->parked, *r;
	q->parked_last = NULL;
	while ((r = *p)) {
		if (!hopeless(fs, r, n, now)) {
			q->parked_last = r;
			p = &r->next;
			continue;
		}
		*p = r->next;
		r->next = failed;
		failed = r;
		atomic_fetch_sub(&q->nparked, 1);
	}
	silt_unlock(&q->lock);
	while ((r = failed)) {
		failed = r->next;
		fs_write_parked(r, err);
	}
}
