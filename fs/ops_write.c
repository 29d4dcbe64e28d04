/* WRITE. Bytes go into the node's buffer and the answer goes out at once; full segments are handed
 * to the cache on the way. Over the budget a write is parked: its bytes are copied (the kernel
 * allows one for each writing thread, 1 MiB at most) and put into the buffer when uploads have made
 * space; unstored.c says when it fails instead.
 *
 * Hot path: one lock (the node's), one copy, no allocation unless a segment grows; bench/ watches
 * sequential write. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "fs/fs_impl.h"

/* An immutable file may be one that was opened before. Of an append-only one the kernel would let
 * O_APPEND be taken away from the open file. */
static bool forbidden(const struct node *n, bool append, uint64_t off)
{
	if (n->attr.flags & SILT_FLAG_IMMUTABLE)
		return true;
	return (n->attr.flags & SILT_FLAG_APPEND) && !append && off < node_size_locked(n);
}

/* Puts the bytes into the buffer and sends what is full. An append goes behind the end as it is
 * known here, whatever the kernel takes it to be. Returns the number taken or -errno; -EAGAIN: the
 * buffer has appends and this is none, or the other way round. */
static ssize_t put(struct fs *fs, struct node *n, bool append, bool drop_suid, uint64_t off,
                   const void *data, size_t size)
{
	struct segment *chain = NULL;
	size_t taken = 0;
	uint64_t at = off;
	int err;
	silt_lock(&n->lock);
	if (forbidden(n, append, off)) {
		silt_unlock(&n->lock);
		return -EPERM;
	}
	if (write_buffer_empty(&n->buffer) || n->buffer.appends == append)
		write_buffer_note_writer(&n->buffer, drop_suid);
	if (append) {
		at = node_size_locked(n);
		if (at + size > SILT_FILE_MAX)
			err = -EFBIG;
		else
			err = write_buffer_append(&n->buffer, at, data, size, fs_now(), n->held);
		taken = err ? 0 : size;
	} else if (!write_buffer_empty(&n->buffer) && n->buffer.appends) {
		err = -EAGAIN;
	} else {
		err = write_buffer_put(&n->buffer, off, data, size, fs_now(), &taken);
	}
	node_note_dirty_locked(fs, n);
	write_buffer_seal(&n->buffer, SEAL_FULL, n->held ? n->held_epoch : UINT64_MAX, &chain);
	silt_unlock(&n->lock);
	node_submit(fs, chain);
	if (taken && at != off)
		inval_post(fs, n->ino, NULL);
	silt_count(fs->cfg.metrics, M_WRITE_BYTES, taken);
	return taken ? (ssize_t)taken : err;
}

static bool other_kind_buffered(struct node *n, bool append)
{
	silt_lock(&n->lock);
	bool other = !write_buffer_empty(&n->buffer) && n->buffer.appends != append;
	silt_unlock(&n->lock);
	return other;
}

static void write_answer(struct request *r, ssize_t n)
{
	if (n < 0)
		fuse_reply_err(r->req, (int)-n);
	else
		fuse_reply_write(r->req, (size_t)n);
	request_free(r);
}

static void write_go(struct request *r, int err);

static void other_kind_flushed(void *arg, int err)
{
	write_go(arg, err);
}

/* First what is buffered of the other kind, then this. */
static void write_flush(struct request *r)
{
	r->wait = (struct flush_wait){ .done = other_kind_flushed, .arg = r };
	node_flush(r->fs, r->node, &r->wait);
}

static void write_go(struct request *r, int err)
{
	if (!err && !r->claimed && other_kind_buffered(r->node, r->append)) {
		if (request_answered(r))
			request_free(r);
		else
			write_flush(r);
		return;
	}
	/* Before the bytes are taken: an interrupted write must not have happened. */
	if (!r->claimed && !request_claim(r)) {
		request_free(r);
		return;
	}
	r->claimed = true;
	ssize_t n = err ? err : put(r->fs, r->node, r->append, r->drop_suid, r->off, r->buf, r->size);
	if (n == -EAGAIN)
		write_flush(r);
	else
		write_answer(r, n);
}

void fs_write_parked(struct request *r, int err)
{
	write_go(r, err);
}

/* A write that can't be taken at once, with a copy of its bytes. NULL: it was answered. */
static struct request *later(fuse_req_t req, struct handle *h, fuse_ino_t ino, bool append,
                             const char *buf, size_t size, off_t off)
{
	struct request *r = request_begin(req, KIND_WRITE, ino);
	if (!r)
		return NULL;
	r->node = h->node;
	node_ref(r->fs, r->node);
	r->append = append;
	r->drop_suid = transport_kill_suid();
	r->off = (uint64_t)off;
	r->size = size;
	r->buf = malloc(size);
	if (!r->buf) {
		request_end_err(r, -ENOMEM);
		return NULL;
	}
	memcpy(r->buf, buf, size);
	request_arm(r);
	return r;
}

static void park(struct request *r)
{
	struct fs *fs = r->fs;
	struct write_queue *q = &fs->queue;
	r->parked_ns = silt_now_ns();
	silt_lock(&q->lock);
	r->next = NULL;
	*(q->parked_last ? &q->parked_last->next : &q->parked) = r;
	q->parked_last = r;
	atomic_fetch_add(&q->nparked, 1);
	silt_unlock(&q->lock);
	/* Space may have come in between; if nothing is on its way, failed segments are tried
	 * again. */
	fs_relieve(fs, atomic_load(&fs->pool.sent) == 0);
	fs_unpark(fs, 0);
}

void op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
              struct fuse_file_info *fi)
{
	struct fs *fs = fuse_req_userdata(req);
	struct handle *h = (struct handle *)(uintptr_t)fi->fh;
	uint64_t used = atomic_load(&fs->pool.used);
	if (atomic_load_explicit(&h->lock_lost, memory_order_relaxed)) {
		fs_count(fs, KIND_WRITE);
		fuse_reply_err(req, EIO);
		return;
	}
	if (off < 0 || (uint64_t)off + size > SILT_FILE_MAX) {
		fs_count(fs, KIND_WRITE);
		fuse_reply_err(req, EFBIG);
		return;
	}
	bool append =
	        (fi->flags & O_APPEND) && !fi->writepage; /* a page of a mapping has its place */
	bool full = used > 0 && used + size > fs->pool.budget;
	bool wait = atomic_load(&fs->queue.nparked) > 0 || full;
	ssize_t n = 0;
	if (!wait && size)
		n = put(fs, h->node, append, transport_kill_suid(), (uint64_t)off, buf, size);
	if (wait || n == -EAGAIN) {
		struct request *r = later(req, h, ino, append, buf, size, off);
		if (r && wait)
			park(r);
		else if (r)
			write_go(r, 0);
		return;
	}
	fs_count(fs, KIND_WRITE);
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else
		fuse_reply_write(req, (size_t)n);
	if (used > fs->pool.budget / 4 * 3)
		fs_relieve(fs, false);
}
