/* COPY_FILE_RANGE: the destination gets extents that point where the source's point; no byte is
 *copied.
 *
 *	flush the source -> ask for its record -> windows of its map -> extents, cut and moved
 *	-> hold the destination (as for a truncation) -> commit them there
 *
 * The source's record is asked for each time: a map that is out of date may name packs that nobody
 *uses any more, and what shares them would outlive them. Source and destination may be one file,
 *and in different shards. A call does so much as fits into one commit and says how much that was;
 *the caller comes again. The kernel has seen to it that ranges of one file don't overlap, and drops
 *its pages of the destination. */
#include <errno.h>
#include <stdlib.h>

#include "fs/fs_impl.h"

#define COPY_MAX   ((uint64_t)1 << 30) /* bytes a call */
#define COPY_TRIES 3u

static void copy_fail(struct request *r, int err)
{
	request_end_err(r, err == -ENOENT ? -ESTALE : err);
}

static void copy_answer(struct request *r, uint64_t n)
{
	if (request_claim(r))
		fuse_reply_write(r->req, n);
	request_free(r);
}

static void source_flushed(void *arg, int err);

/* --- committing --------------------------------------------------------------------------- */

static void clone_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	struct node *n = r->node;
	if (reply->err) {
		node_unhold(r->fs, n);
		/* Of a pack: the source was changed, and that deleted meanwhile. */
		if (reply->err == -ESTALE && r->tries++ < COPY_TRIES) {
			silt_lock(&r->node2->lock);
			file_map_forget(&r->node2->map);
			silt_unlock(&r->node2->lock);
			source_flushed(r, 0);
			return;
		}
		copy_fail(r, reply->err == -ESTALE ? -EIO : reply->err);
		return;
	}
	struct silt_inode inode = reply->inode;
	silt_lock(&n->lock);
	if (n->gaps == 0 && n->map.valid && inode.attr.version == n->attr.version + 1) {
		int err = 0;
		for (size_t i = 0; i < r->nextents && !err; i++) {
			const struct silt_extent *e = &r->extents[i];
			if (e->pack)
				err = file_map_add(&n->map, e);
			else
				file_map_punch(&n->map, e->off, e->off + e->len);
		}
		if (err)
			file_map_forget(&n->map);
		opened_advance(&r->fs->opened, n->ino, n->whole_version, inode.attr.version);
		n->attr.version = n->whole_version = inode.attr.version;
	}
	node_merge_locked(n, &inode);
	silt_unlock(&n->lock);
	node_unhold(r->fs, n);
	copy_answer(r, r->size);
}

static void copy_flushed(void *arg, int err)
{
	struct request *r = arg;
	if (!err && request_answered(r))
		err = -EINTR;
	if (err) {
		node_unhold(r->fs, r->node);
		copy_fail(r, err);
		return;
	}
	fresh_drop(&r->fs->fresh, r->node->ino);
	meta_clone(r->fs->cfg.meta, r->node->ino, r->extents, r->nextents, r->off2 + r->size,
	           r->uid != 0, fs_now(), clone_done, r);
}

static void copy_hold(struct request *r)
{
	r->wait.done = copy_flushed;
	r->wait.arg = r;
	r->held = copy_hold;
	node_flush_and_hold(r->fs, r->node, UINT64_MAX, &r->wait, r);
}

/* --- planning ----------------------------------------------------------------------------- */

/* Adds what is at [off, off + len) of the source, cut at the destination's windows. False: no more
 * fits. */
static bool add_run(struct request *r, const struct silt_extent *e, uint64_t off, uint64_t len)
{
	while (len > 0) {
		uint64_t to = r->off2 + r->size, room = SILT_WINDOW - to % SILT_WINDOW;
		uint64_t n = len < room ? len : room;
		if (r->nextents == META_CLONE_MAX)
			return false;
		struct silt_extent x = { .off = to, .len = n, .flags = EXTENT_HOLE };
		if (e->pack) {
			x = *e;
			x.off = to;
			x.len = n;
			x.skip = e->skip + (uint32_t)(off - e->off);
			x.flags |= EXTENT_FOREIGN;
		}
		r->extents[r->nextents++] = x;
		r->size += n;
		off += n;
		len -= n;
	}
	return true;
}

static void copy_plan(struct request *r)
{
	struct fs *fs = r->fs;
	struct node *in = r->node2;
	enum map_need need = NEED_NOTHING;
	uint64_t window = 0;
	silt_lock(&in->lock);
	uint64_t size = in->attr.size, stop = r->stop < size ? r->stop : size;
	unsigned generation = in->map.generation;
	if (r->off < stop)
		need = fs_map_need_locked(in, r->off, stop, &window);
	if (need != NEED_NOTHING) {
		r->next = in->map_waiters;
		in->map_waiters = r;
		silt_unlock(&in->lock);
		fs_map_ask(fs, in, need, window, generation);
		return;
	}
	r->size = 0;
	r->nextents = 0;
	bool more = true;
	for (uint64_t off = r->off; off < stop && more;) {
		struct silt_extent e;
		uint64_t end = file_map_run(&in->map, off, stop, &e);
		more = add_run(r, &e, off, end - off);
		off = end;
	}
	silt_unlock(&in->lock);
	if (r->size == 0)
		copy_answer(r, 0);
	else
		copy_hold(r);
}

static void source_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	if (reply->err || request_answered(r)) {
		copy_fail(r, reply->err ? reply->err : -EINTR);
		return;
	}
	struct silt_inode inode = reply->inode;
	silt_lock(&r->node2->lock);
	node_merge_locked(r->node2, &inode);
	silt_unlock(&r->node2->lock);
	copy_plan(r);
}

static void source_flushed(void *arg, int err)
{
	struct request *r = arg;
	if (!err && request_answered(r))
		err = -EINTR;
	if (err)
		copy_fail(r, err);
	else
		meta_getattr(r->fs->cfg.meta, r->node2->ino, source_done, r);
}

void op_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
                        struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
                        struct fuse_file_info *fi_out, size_t len, int flags)
{
	struct request *r = request_begin(req, KIND_COPY_FILE_RANGE, ino_out);
	if (!r)
		return;
	uint64_t n = len < COPY_MAX ? len : COPY_MAX;
	uint64_t from = (uint64_t)off_in, to = (uint64_t)off_out;
	int err = 0;
	if (flags != 0 || off_in < 0 || off_out < 0)
		err = -EINVAL;
	else if (to > SILT_FILE_MAX || n > SILT_FILE_MAX - to)
		err = -EFBIG;
	else if (ino_in == ino_out && from < to + n && to < from + n)
		err = -EINVAL;
	r->extents = err ? NULL : malloc(META_CLONE_MAX * sizeof(*r->extents));
	if (!r->extents) {
		request_end_err(r, err ? err : -ENOMEM);
		return;
	}
	r->node2 = ((struct handle *)(uintptr_t)fi_in->fh)->node;
	r->node = ((struct handle *)(uintptr_t)fi_out->fh)->node;
	node_ref(r->fs, r->node2);
	node_ref(r->fs, r->node);
	r->off = from;
	r->stop = from > UINT64_MAX - n ? UINT64_MAX : from + n;
	r->off2 = to;
	r->resume = copy_plan;
	r->wait.done = source_flushed;
	r->wait.arg = r;
	request_arm(r);
	node_flush(r->fs, r->node2, &r->wait);
}
