/* READ. A read is planned under one hold of the node's lock: bytes that are still in the write
 * buffer are copied, holes are zeroed, and what is left becomes a list of pieces of extents. The
 * pieces then go to the cache, all at once, into one buffer. If everything was in memory the answer
 * goes out on this thread, else with the last completion.
 *
 * When the plan needs a window of the extent log (or the inode record) that is not here, the read
 * waits for it and is planned again from the start, so that the plan is always of one moment.
 *
 * Extents can be out of date: another mount has replaced them and their pack is gone. A read that
 * fails asks for the inode again and tries once more; the second failure is the answer.
 *
 * Sequential reads of large files tell the cache what comes next, the further ahead the longer they
 * go on.
 *
 * Hot path: one allocation (the buffer), one node lock, the request object. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache/pack.h"
#include "fs/fs_impl.h"

#define PREFETCH_AFTER   (512u << 10) /* bytes read in order before it begins */
#define PREFETCH_MAX     ((uint64_t)4 * PACK_TARGET)
#define PREFETCH_EXTENTS 8
#define READ_TRIES       2

static void read_plan(struct request *r);

/* --- planning ----------------------------------------------------------------------------- */

static bool add_piece(struct request *r, const struct silt_extent *e, uint64_t off, uint32_t len)
{
	if (r->npieces == r->cap_pieces) {
		size_t cap = r->cap_pieces * 4;
		struct read_piece *v = malloc(cap * sizeof(*v));
		if (!v)
			return false;
		memcpy(v, r->pieces, r->npieces * sizeof(*v));
		if (r->pieces != r->inline_pieces)
			free(r->pieces);
		r->pieces = v;
		r->cap_pieces = cap;
	}
	r->pieces[r->npieces++] = (struct read_piece){
		.extent = *e, .off = off, .len = len, .dst = r->buf + (off - r->off)
	};
	return true;
}

/* Splits [off, end), of which nothing is buffered, into pieces and holes. */
static bool plan_committed(struct request *r, uint64_t off, uint64_t end)
{
	while (off < end) {
		struct silt_extent e;
		uint64_t stop = file_map_run(&r->node->map, off, end, &e);
		if (e.pack == 0)
			memset(r->buf + (off - r->off), 0, stop - off);
		else if (!add_piece(r, &e, off, (uint32_t)(stop - off)))
			return false;
		off = stop;
	}
	return true;
}

static bool plan_locked(struct request *r, uint64_t end)
{
	r->npieces = 0;
	for (uint64_t off = r->off; off < end;) {
		const uint8_t *data;
		uint64_t stop = write_buffer_run(&r->node->buffer, off, end, &data);
		if (data)
			memcpy(r->buf + (off - r->off), data, stop - off);
		else if (!plan_committed(r, off, stop))
			return false;
		off = stop;
	}
	return true;
}

/* --- prefetch ----------------------------------------------------------------------------- */

struct prefetch {
	struct silt_extent v[PREFETCH_EXTENTS];
	size_t n, most; /* packs there is room for */
	enum map_need need;
	uint64_t window;
	unsigned generation;
};

/* Notes the read in the handle and finds the extents that a sequential reader wants next. */
static void prefetch_locked(struct request *r, uint64_t end, uint64_t size, struct prefetch *p)
{
	struct handle *h = r->handle;
	struct file_map *map = &r->node->map;
	p->n = 0;
	p->need = NEED_NOTHING;
	if (r->noted)
		return;
	r->noted = true;
	/* Read-ahead requests of the kernel may arrive a little out of order. */
	uint64_t next = atomic_load(&h->next_off), streak = atomic_load(&h->streak);
	uint64_t gap = r->off > next ? r->off - next : next - r->off;
	streak = gap <= (1u << 20) && (next > 0 || r->off == 0) ? streak + (end - r->off) : 0;
	atomic_store(&h->streak, streak);
	if (streak == 0)
		atomic_store(&h->prefetched, 0);
	if (end > next || streak == 0)
		atomic_store(&h->next_off, end);
	if (streak < PREFETCH_AFTER || end >= size || !p->most)
		return;
	uint64_t ahead = streak * 2 < PREFETCH_MAX ? streak * 2 : PREFETCH_MAX;
	uint64_t off = atomic_load(&h->prefetched), stop = end + ahead < size ? end + ahead : size;
	off = off > end ? off : end;
	if (off + ahead / 4 > stop && stop < size)
		return; /* enough is on its way */
	while (off < stop && p->n < PREFETCH_EXTENTS && p->n < p->most) {
		uint64_t window = off / SILT_WINDOW;
		if (!file_map_loaded(map, window)) {
			p->window = window;
			p->generation = map->generation;
			if (file_map_want(map, window))
				p->need = NEED_WINDOW;
			break;
		}
		struct silt_extent e;
		uint64_t run = file_map_run(map, off, stop, &e);
		if (e.pack)
			p->v[p->n++] = e;
		off = e.pack ? e.off + e.len : run;
	}
	atomic_store(&h->prefetched, off);
}

/* --- doing it ----------------------------------------------------------------------------- */

static void read_reply(struct request *r)
{
	struct fs *fs = r->fs;
	silt_count(fs->cfg.metrics, M_READ_BYTES, r->size);
	if (request_claim(r))
		fuse_reply_buf(r->req, (char *)r->buf, r->size);
	request_free(r);
}

static void read_retry(struct request *r, int err)
{
	struct node *n = r->node;
	if (++r->tries >= READ_TRIES || request_answered(r) || err == -ENOMEM) {
		if (!request_answered(r))
			silt_error(r->fs->cfg.log, "inode %llu: reading %zu bytes at %llu fails: %s",
			           (unsigned long long)n->ino, r->size, (unsigned long long)r->off, strerror(-err));
		request_end_err(r, err);
		return;
	}
	silt_lock(&n->lock);
	file_map_forget(&n->map);
	silt_unlock(&n->lock);
	read_plan(r);
}

static void piece_done(void *arg, int err)
{
	struct request *r = arg;
	if (err)
		atomic_store(&r->err, err);
	if (atomic_fetch_sub(&r->pending, 1) != 1)
		return;
	err = atomic_load(&r->err);
	if (err)
		read_retry(r, err);
	else
		read_reply(r);
}

/* Hands the pieces to the cache. `pending` counts one for this loop, so that a completion can't end
 * the request under it. */
static void read_pieces(struct request *r)
{
	struct fs *fs = r->fs;
	atomic_store(&r->err, 0);
	atomic_store(&r->pending, (unsigned)r->npieces + 1);
	unsigned here = 1; /* pieces that won't call back, and the loop's own */
	for (size_t i = 0; i < r->npieces; i++) {
		struct read_piece *p = &r->pieces[i];
		int rc = cache_read(fs->cfg.cache, r->node->ino, &p->extent, p->off, p->len, p->dst,
		                    piece_done, r);
		if (rc == -EINPROGRESS)
			continue;
		if (rc)
			atomic_store(&r->err, rc);
		here++;
	}
	if (atomic_fetch_sub(&r->pending, here) != here)
		return;
	int err = atomic_load(&r->err);
	if (err)
		read_retry(r, err);
	else
		read_reply(r);
}

static void read_plan(struct request *r)
{
	struct fs *fs = r->fs;
	struct node *n = r->node;
	/* Asked for without the node's lock, and only by who may prefetch: where there is no room it is a lock. */
	bool may = atomic_load(&r->handle->streak) + r->size >= PREFETCH_AFTER;
	struct prefetch ahead = { .most = may ? cache_prefetch_room(fs->cfg.cache) : 0 };
	uint64_t window = 0;
	silt_lock(&n->lock);
	uint64_t size = node_size_locked(n);
	uint64_t end = r->off + r->size < size ? r->off + r->size : size;
	if (end < r->off)
		end = r->off;
	/* Memory only: a file that was just written needs no map. */
	enum map_need need = NEED_NOTHING;
	const uint8_t *data;
	if (end > r->off && !(write_buffer_run(&n->buffer, r->off, end, &data) == end && data))
		need = fs_map_need_locked(n, r->off, end, &window);
	unsigned generation = n->map.generation;
	if (need != NEED_NOTHING) {
		r->next = n->map_waiters;
		n->map_waiters = r;
		silt_unlock(&n->lock);
		fs_map_ask(fs, n, need, window, generation);
		return;
	}
	bool planned = plan_locked(r, end);
	prefetch_locked(r, end, size, &ahead);
	silt_unlock(&n->lock);
	fs_map_ask(fs, n, ahead.need == NEED_NOTHING ? NEED_WAIT : ahead.need, ahead.window,
	        ahead.generation);
	silt_ino ino = n->ino;
	struct cache *cache = fs->cfg.cache; /* the request may be the last thing that keeps fs */
	if (!planned) {
		request_end_err(r, -ENOMEM);
		return;
	}
	r->size = end - r->off;
	read_pieces(r);
	for (size_t i = 0; i < ahead.n; i++)
		cache_prefetch(cache, ino, &ahead.v[i]);
}

void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct handle *h = (struct handle *)(uintptr_t)fi->fh;
	if (atomic_load_explicit(&h->lock_lost, memory_order_relaxed)) {
		fs_count(fuse_req_userdata(req), KIND_READ);
		fuse_reply_err(req, EIO);
		return;
	}
	struct request *r = request_begin(req, KIND_READ, ino);
	if (!r)
		return;
	handle_is_used(h);
	r->node = h->node;
	node_ref(r->fs, r->node);
	r->handle = handle_ref(h);
	r->off = (uint64_t)off;
	r->size = size;
	r->buf = malloc(size ? size : 1);
	if (!r->buf) {
		request_end_err(r, -ENOMEM);
		return;
	}
	atime_read(r->fs, h);
	r->resume = read_plan;
	request_arm(r);
	read_plan(r);
}
