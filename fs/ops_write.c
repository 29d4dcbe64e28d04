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
static bool forbidden(const struct node *n, uint64_t off, int flags)
{
	if (n->attr.flags & SILT_FLAG_IMMUTABLE)
		return true;
	return (n->attr.flags & SILT_FLAG_APPEND) && !(flags & O_APPEND) &&
	       off < node_size_locked(n);
}

/* Puts the bytes into the buffer and sends what is full. Returns the number taken or -errno. */
static ssize_t put(struct fs *fs, struct node *n, uint64_t off, const void *data, size_t size,
                   int flags)
{
	struct segment *chain = NULL;
	size_t taken;
	silt_lock(&n->lock);
	if (forbidden(n, off, flags)) {
		silt_unlock(&n->lock);
		return -EPERM;
	}
	int err = write_buffer_put(&n->buffer, off, data, size, fs_now(), &taken);
	node_note_dirty_locked(fs, n);
	write_buffer_seal(&n->buffer, SEAL_FULL, n->held ? n->held_epoch : UINT64_MAX, &chain);
	silt_unlock(&n->lock);
	node_submit(fs, chain);
	silt_count(fs->cfg.metrics, M_WRITE_BYTES, taken);
	return taken ? (ssize_t)taken : err;
}

void fs_write_parked(struct request *r, int err)
{
	/* Before the bytes are taken: an interrupted write must not have happened. */
	if (!request_claim(r)) {
		request_free(r);
		return;
	}
	ssize_t n = err ? err : put(r->fs, r->node, r->off, r->buf, r->size, r->flags);
	if (n < 0)
		fuse_reply_err(r->req, (int)-n);
	else
		fuse_reply_write(r->req, (size_t)n);
	request_free(r);
}

static void park(fuse_req_t req, struct handle *h, fuse_ino_t ino, const char *buf, size_t size,
                 off_t off, int flags)
{
	struct request *r = request_begin(req, KIND_WRITE, ino);
	if (!r)
		return;
	struct fs *fs = r->fs;
	struct write_queue *q = &fs->queue;
	r->node = h->node;
	node_ref(fs, r->node);
	r->off = (uint64_t)off;
	r->flags = flags;
	r->size = size;
	r->buf = malloc(size);
	if (!r->buf) {
		request_end_err(r, -ENOMEM);
		return;
	}
	memcpy(r->buf, buf, size);
	request_arm(r);
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
	if (off < 0 || (uint64_t)off + size > SILT_FILE_MAX) {
		fs_count(fs, KIND_WRITE);
		fuse_reply_err(req, EFBIG);
		return;
	}
	if (atomic_load(&fs->queue.nparked) > 0 || (used > 0 && used + size > fs->pool.budget)) {
		park(req, h, ino, buf, size, off, fi->flags);
		return;
	}
	fs_count(fs, KIND_WRITE);
	ssize_t n = size ? put(fs, h->node, (uint64_t)off, buf, size, fi->flags) : 0;
	if (n < 0)
		fuse_reply_err(req, (int)-n);
	else
		fuse_reply_write(req, (size_t)n);
	if (used > fs->pool.budget / 4 * 3)
		fs_relieve(fs, false);
}
