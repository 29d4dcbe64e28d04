/* Committing extents. The items of one meta_commit() go out as one call for each shard that they touch
 * (at most COMMIT_BATCH items a call, so that no call keeps Redis busy for long), all at once; the
 * caller is told when the last answer is in. */
#include "meta/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COMMIT_BATCH 128

struct group {
	struct meta *m;
	atomic_size_t left; /* calls under way, plus one while they are being sent */
	meta_done done;
	void *arg;
};

struct batch {
	struct batch *next; /* until it is sent */
	unsigned shard;
	struct group *group;
	size_t n;
	struct meta_commit *items[COMMIT_BATCH];
};

static void group_unref(struct group *g)
{
	if (atomic_fetch_sub(&g->left, 1) != 1)
		return;
	struct meta_reply r = { 0 };
	g->done(g->arg, &r);
	free(g);
}

static void got_batch(void *arg, int err, redisReply *reply)
{
	struct batch *b = arg;
	struct meta *m = b->group->m;
	int rc = reply_code(m, F_COMMIT, err, reply, NULL);
	if (!rc && reply->elements != b->n)
		rc = -EIO;
	for (size_t i = 0; i < b->n; i++) {
		long long v = rc ? rc : reply->element[i]->type == REDIS_REPLY_INTEGER
						? reply->element[i]->integer : -EIO;
		b->items[i]->err = v < 0 ? (int)v : 0;
		b->items[i]->version = v < 0 ? 0 : (uint64_t)v;
	}
	struct group *g = b->group;
	free(b);
	group_unref(g);
}

static void send_batch(struct meta *m, unsigned shard, struct batch *b)
{
	struct conn_request *r = call_begin(m, shard, F_COMMIT, (int)b->n * 7, b->n * 160);
	for (size_t i = 0; i < b->n; i++) {
		const struct meta_commit *c = b->items[i];
		uint8_t ext[SILT_EXTENT_ENCODED_MAX];
		conn_arg_u64(&r, silt_ino_seq(c->ino));
		call_arg_time(&r, c->mtime);
		conn_arg_u64(&r, c->extent.flags & EXTENT_HOLE ? 0 : c->extent.off + c->extent.len);
		conn_arg(&r, ext, extent_encode(&c->extent, ext));
		conn_arg_u64(&r, c->extent.off / SILT_WINDOW);
		conn_arg_u64(&r, c->extent.pack);
		conn_arg_u64(&r, c->extent.stored);
	}
	call_send(m, F_COMMIT, r, got_batch, b);
}

/* Puts the items into batches, in order within each shard. Items that find no memory get -ENOMEM. */
static struct batch *sort_out(struct group *g, struct meta_commit *items, size_t n)
{
	struct batch *first = NULL, **tail = &first;
	for (size_t i = 0; i < n; i++)
		items[i].err = -EINPROGRESS;
	for (size_t i = 0; i < n; i++) {
		if (items[i].err != -EINPROGRESS)
			continue;
		struct batch *b = malloc(sizeof(*b));
		if (!b) {
			items[i].err = -ENOMEM;
			continue;
		}
		*b = (struct batch){ .group = g, .shard = silt_ino_shard(items[i].ino) };
		for (size_t j = i; j < n && b->n < COMMIT_BATCH; j++) {
			if (items[j].err != -EINPROGRESS || silt_ino_shard(items[j].ino) != b->shard)
				continue;
			items[j].err = -EALREADY;
			b->items[b->n++] = &items[j];
		}
		*tail = b;
		tail = &b->next;
	}
	return first;
}

void meta_commit(struct meta *m, struct meta_commit *items, size_t n, meta_done done, void *arg)
{
	struct group *g = malloc(sizeof(*g));
	if (!g) {
		struct meta_reply r = { .err = -ENOMEM };
		done(arg, &r);
		return;
	}
	*g = (struct group){ .m = m, .done = done, .arg = arg };
	atomic_init(&g->left, 1);
	/* All batches are made before the first is sent: from then on the items belong to the replies. */
	struct batch *batches = sort_out(g, items, n);
	while (batches) {
		struct batch *b = batches;
		batches = b->next;
		atomic_fetch_add(&g->left, 1);
		send_batch(m, b->shard, b);
	}
	group_unref(g);
}
