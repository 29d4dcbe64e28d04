/* What an open file's map lacks is asked for: the inode record, or a window of the extent log.
 * Requests that need it wait among the node's map_waiters and then go on with r->resume(), which
 * plans anew, so that every plan is of one moment. */
#include <errno.h>
#include <stdlib.h>

#include "fs/fs_impl.h"

struct map_request {
	struct fs *fs;
	struct node *node; /* a reference */
	uint64_t window;
	unsigned generation;
};

/* Lets those that waited go on, or fails them. Drops the reference. */
static void map_answered(struct map_request *q, struct request *waiters, int err)
{
	while (waiters) {
		struct request *r = waiters;
		waiters = r->next;
		if (err || request_answered(r))
			request_end_err(r, err ? err : -EINTR);
		else
			r->resume(r);
	}
	struct fs *fs = q->fs;
	node_put(fs, q->node);
	free(q);
	fs_background_end(fs);
}

static struct request *take_waiters_locked(struct node *n)
{
	struct request *w = n->map_waiters;
	n->map_waiters = NULL;
	return w;
}

static void window_done(void *arg, const struct meta_reply *reply)
{
	struct map_request *q = arg;
	struct node *n = q->node;
	int err = reply->err;
	silt_lock(&n->lock);
	if (!err)
		err = file_map_load(&n->map, q->window, q->generation, reply->data, reply->len);
	if (err == -ESTALE) /* forgotten meanwhile: who waits asks again */
		err = 0;
	if (err)
		file_map_load_failed(&n->map, q->window, q->generation);
	struct request *w = take_waiters_locked(n);
	silt_unlock(&n->lock);
	if (err == -EINVAL) {
		silt_error(q->fs->cfg.log, "inode %llu: the extent log of window %llu is damaged",
		           (unsigned long long)n->ino, (unsigned long long)q->window);
		err = -EIO;
	}
	map_answered(q, w, err);
}

static void inode_done(void *arg, const struct meta_reply *reply)
{
	struct map_request *q = arg;
	struct node *n = q->node;
	struct silt_inode inode = reply->inode;
	silt_lock(&n->lock);
	n->asking = false;
	if (!reply->err) {
		node_merge_locked(n, &inode);
		/* A record older than what this mount knows can't say where the bytes are. */
		if (!n->map.valid && reply->inode.attr.version >= n->attr.version)
			file_map_set(&n->map, &reply->inode);
	}
	struct request *w = take_waiters_locked(n);
	silt_unlock(&n->lock);
	map_answered(q, w, reply->err == -ENOENT ? -ESTALE : reply->err);
}

enum map_need fs_map_need_locked(struct node *n, uint64_t off, uint64_t end, uint64_t *window)
{
	if (!n->map.valid) {
		if (n->asking)
			return NEED_WAIT;
		n->asking = true;
		return NEED_INODE;
	}
	for (uint64_t w = off / SILT_WINDOW; off < end && w <= (end - 1) / SILT_WINDOW; w++) {
		if (file_map_loaded(&n->map, w))
			continue;
		*window = w;
		return file_map_want(&n->map, w) ? NEED_WINDOW : NEED_WAIT;
	}
	return NEED_NOTHING;
}

void fs_map_ask(struct fs *fs, struct node *n, enum map_need need, uint64_t window,
                unsigned generation)
{
	if (need == NEED_WAIT || need == NEED_NOTHING)
		return;
	struct map_request *q = calloc(1, sizeof(*q));
	if (!q) {
		silt_lock(&n->lock);
		if (need == NEED_INODE)
			n->asking = false;
		else
			file_map_load_failed(&n->map, window, generation);
		struct request *w = take_waiters_locked(n);
		silt_unlock(&n->lock);
		while (w) {
			struct request *r = w;
			w = r->next;
			request_end_err(r, -ENOMEM);
		}
		return;
	}
	node_ref(fs, n);
	fs_background_begin(fs);
	*q = (struct map_request){ fs, n, window, generation };
	if (need == NEED_INODE)
		meta_getattr(fs->cfg.meta, n->ino, inode_done, q);
	else
		meta_window(fs->cfg.meta, n->ino, window, window_done, q);
}
