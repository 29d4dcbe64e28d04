/* FALLOCATE and LSEEK (SEEK_DATA, SEEK_HOLE): where a file has bytes.
 *
 * FALLOCATE makes holes or extends a file. It reserves nothing: space in the object store is taken
 * when bytes are stored. Like a truncation it comes after the bytes written before it and holds
 * newer ones back. The kernel has dropped its pages of a hole when the call returns. A hole over
 * many windows takes several calls, some windows each.
 *
 * LSEEK looks at what is buffered and at the map, as a read would, to the byte. A sparse file's
 * empty windows are not asked for one by one: Redis says which window is the next with extents. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#include "fs/fs_impl.h"

/* --- FALLOCATE ---------------------------------------------------------------------------- */

static void allocate_send(struct request *r);

static void allocate_end(struct request *r, int err)
{
	node_unhold(r->fs, r->node);
	request_end_err(r, err == -ENOENT ? -ESTALE : err);
}

static void allocate_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	struct node *n = r->node;
	if (reply->err) {
		allocate_end(r, reply->err);
		return;
	}
	struct silt_inode inode = reply->inode;
	silt_lock(&n->lock);
	if (n->gaps == 0 && n->map.valid && inode.attr.version == n->attr.version + 1) {
		file_map_punch(&n->map, r->off, reply->first ? reply->first : r->stop);
		opened_advance(&r->fs->opened, n->ino, n->whole_version, inode.attr.version);
		n->attr.version = n->whole_version = inode.attr.version;
	}
	node_merge_locked(n, &inode);
	silt_unlock(&n->lock);
	if (reply->first && !request_answered(r)) {
		r->off = reply->first;
		allocate_send(r);
	} else {
		allocate_end(r, 0);
	}
}

static void allocate_send(struct request *r)
{
	struct meta_allocate how = { .off = r->off,
		                     .stop = r->stop,
		                     .size = r->values.size,
		                     .drop_suid = r->uid != 0,
		                     .now = r->now };
	fresh_drop(&r->fs->fresh, r->ino);
	meta_allocate(r->fs->cfg.meta, r->ino, &how, allocate_done, r);
}

static void allocate_flushed(void *arg, int err)
{
	struct request *r = arg;
	if (!err && request_answered(r))
		err = -EINTR;
	if (err)
		allocate_end(r, err);
	else
		allocate_send(r);
}

static void allocate_begin(struct request *r)
{
	r->wait.done = allocate_flushed;
	r->wait.arg = r;
	r->held = allocate_begin;
	node_flush_and_hold(r->fs, r->node, UINT64_MAX, &r->wait, r);
}

void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
                  struct fuse_file_info *fi)
{
	struct handle *h = (struct handle *)(uintptr_t)fi->fh;
	struct request *r = request_begin(req, KIND_FALLOCATE, ino);
	if (!r)
		return;
	bool keep = mode & FALLOC_FL_KEEP_SIZE;
	bool hole = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
	bool known = mode == 0 || mode == FALLOC_FL_KEEP_SIZE ||
	             mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) ||
	             (mode & ~FALLOC_FL_KEEP_SIZE) == FALLOC_FL_ZERO_RANGE;
	int err = 0;
	if (!known)
		err = -EOPNOTSUPP;
	else if (off < 0 || len <= 0)
		err = -EINVAL;
	else if ((uint64_t)off > SILT_FILE_MAX || (uint64_t)len > SILT_FILE_MAX - (uint64_t)off)
		err = -EFBIG;
	/* Space is not reserved. The set-id bits go all the same, unless root asked. */
	if (err || (keep && !hole && r->uid == 0)) {
		request_end_err(r, err);
		return;
	}
	r->now = fs_now();
	r->node = h->node;
	node_ref(r->fs, r->node);
	r->stop = (uint64_t)off + (uint64_t)len;
	r->off = hole ? (uint64_t)off : r->stop;
	r->values.size = keep ? 0 : r->stop;
	request_arm(r);
	allocate_begin(r);
}

/* --- LSEEK -------------------------------------------------------------------------------- */

#define SEEK_TRIES 8

enum seek_result { SEEK_FOUND, SEEK_NOT_FOUND, SEEK_NEED_MAP, SEEK_NEED_NEXT };

static void seek(struct request *r);

static void seek_next_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	if (reply->err || request_answered(r)) {
		request_end_err(r, reply->err ? reply->err : -EINTR);
		return;
	}
	bool found = reply->first != UINT64_MAX;
	r->found = reply->first;
	if (found || reply->next)
		r->empty = (found ? reply->first : reply->next) * SILT_WINDOW;
	else
		r->empty = UINT64_MAX;
	seek(r);
}

/* From *at on. Lock held. */
static enum seek_result seek_locked(struct request *r, uint64_t *at, uint64_t size)
{
	struct node *n = r->node;
	bool want_data = r->flags == SEEK_DATA;
	while (*at < size) {
		const uint8_t *data;
		struct silt_extent e = { .pack = 0 };
		uint64_t stop = write_buffer_run(&n->buffer, *at, size, &data);
		uint64_t window = *at / SILT_WINDOW;
		if (!data && *at < r->empty) {
			stop = stop < r->empty ? stop : r->empty;
		} else if (!data) {
			if (!n->map.valid)
				return SEEK_NEED_MAP;
			if (!file_map_loaded(&n->map, window))
				return want_data && window != r->off / SILT_WINDOW &&
				                       window != r->found
				               ? SEEK_NEED_NEXT
				               : SEEK_NEED_MAP;
			stop = file_map_run(&n->map, *at, stop, &e);
		}
		if ((data || e.pack) == want_data)
			return SEEK_FOUND;
		*at = stop;
	}
	return SEEK_NOT_FOUND;
}

static void seek_answer(struct request *r, uint64_t at)
{
	if (request_claim(r))
		fuse_reply_lseek(r->req, (off_t)at);
	request_free(r);
}

static void seek(struct request *r)
{
	struct fs *fs = r->fs;
	struct node *n = r->node;
	silt_lock(&n->lock);
	uint64_t size = node_size_locked(n), at = r->off, window = 0;
	/* Bytes of ours may have gone from the buffer into a window that was said to be empty. */
	if (r->version != n->attr.version && r->tries++ < SEEK_TRIES) {
		r->empty = 0;
		r->found = UINT64_MAX;
	}
	r->version = n->attr.version;
	enum seek_result what = SEEK_NOT_FOUND;
	if (at < size)
		what = seek_locked(r, &at, size);
	enum map_need need = NEED_NOTHING;
	unsigned generation = n->map.generation;
	if (what == SEEK_NEED_MAP) {
		need = fs_map_need_locked(n, at, at + 1, &window);
		r->next = n->map_waiters;
		n->map_waiters = r;
	}
	silt_unlock(&n->lock);
	if (what == SEEK_NEED_MAP)
		fs_map_ask(fs, n, need, window, generation);
	else if (what == SEEK_NEED_NEXT)
		meta_next_window(fs->cfg.meta, r->ino, at / SILT_WINDOW, (size - 1) / SILT_WINDOW,
		                 seek_next_done, r);
	else if (what == SEEK_FOUND)
		seek_answer(r, at);
	else if (r->flags == SEEK_HOLE && r->off < size)
		seek_answer(r, size);
	else
		request_end_err(r, -ENXIO);
}

void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	struct handle *h = (struct handle *)(uintptr_t)fi->fh;
	struct request *r = request_begin(req, KIND_LSEEK, ino);
	if (!r)
		return;
	if ((whence != SEEK_DATA && whence != SEEK_HOLE) || off < 0) {
		request_end_err(r, off < 0 ? -ENXIO : -EINVAL);
		return;
	}
	r->node = h->node;
	node_ref(r->fs, r->node);
	r->off = (uint64_t)off;
	r->flags = whence;
	r->found = UINT64_MAX;
	r->resume = seek;
	request_arm(r);
	seek(r);
}
