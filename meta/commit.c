/* Committing extents, in place or at the end (append). The items of one meta_commit() go out as one call for each shard that they touch
 * (at most COMMIT_BATCH items a call, so that no call keeps Redis busy for long), all at once; the
 * caller is told when the last answer is in.
 *
 * An append is not idempotent by itself, as a commit in place is: its call carries a number, and Redis
 * keeps the answer for a retry. When not even the retry brought an answer, the client commits the same run
 * again later (`again`), and Redis looks for it at the end of the file. */
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
	bool append;
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
		if (m->cfg.relaxed)
			relaxed_changed_inode(m, b->items[i]->ino);
	}
	struct group *g = b->group;
	free(b);
	group_unref(g);
}

/* Pairs of version (or errno) and place, behind a 0. */
static void got_appends(void *arg, int err, redisReply *reply)
{
	struct batch *b = arg;
	struct group *g = b->group;
	int rc = reply_code(g->m, F_APPEND, err, reply, NULL);
	if (!rc && reply->elements != 1 + 2 * b->n)
		rc = -EIO;
	for (size_t i = 0; i < b->n; i++) {
		long long v = rc, at = 0;
		if (!rc) {
			const redisReply *ver = reply->element[1 + 2 * i], *where = reply->element[2 + 2 * i];
			bool good = ver->type == REDIS_REPLY_INTEGER && where->type == REDIS_REPLY_INTEGER;
			v = good ? ver->integer : -EIO;
			at = good ? where->integer : 0;
		}
		b->items[i]->err = v < 0 ? (int)v : 0;
		b->items[i]->version = v < 0 ? 0 : (uint64_t)v;
		b->items[i]->at = at < 0 ? 0 : (uint64_t)at;
		if (g->m->cfg.relaxed)
			relaxed_changed_inode(g->m, b->items[i]->ino);
	}
	free(b);
	group_unref(g);
}

static void send_appends(struct meta *m, struct batch *b)
{
	char tx[40];
	struct conn_request *r = call_begin(m, b->shard, F_APPEND, 1 + (int)b->n * 9, b->n * 160);
	next_tx(m, tx);
	conn_arg_str(&r, tx);
	for (size_t i = 0; i < b->n; i++) {
		const struct meta_commit *c = b->items[i];
		conn_arg_u64(&r, silt_ino_seq(c->ino));
		call_arg_write_time(&r, c->mtime, c->drop_suid);
		conn_arg_u64(&r, c->extent.off);
		conn_arg_u64(&r, c->extent.len);
		conn_arg_u64(&r, c->extent.flags & ~(unsigned)EXTENT_SKIP);
		conn_arg_u64(&r, c->extent.pack);
		conn_arg_u64(&r, c->extent.pack_off);
		conn_arg_u64(&r, c->extent.stored);
		conn_arg(&r, c->again ? "1" : "0", 1);
	}
	call_send(m, F_APPEND, r, got_appends, b);
}

static void send_batch(struct meta *m, unsigned shard, struct batch *b)
{
	if (b->append) {
		send_appends(m, b);
		return;
	}
	struct conn_request *r = call_begin(m, shard, F_COMMIT, (int)b->n * 7 + 1, b->n * 160 + 40);
	char tx[40];
	for (size_t i = 0; i < b->n; i++) {
		const struct meta_commit *c = b->items[i];
		uint8_t ext[SILT_EXTENT_ENCODED_MAX];
		conn_arg_u64(&r, silt_ino_seq(c->ino));
		call_arg_write_time(&r, c->mtime, c->drop_suid);
		conn_arg_u64(&r, c->extent.flags & EXTENT_HOLE ? 0 : c->extent.off + c->extent.len);
		conn_arg(&r, ext, extent_encode(&c->extent, ext));
		conn_arg_u64(&r, c->extent.off / SILT_WINDOW);
		conn_arg_u64(&r, c->extent.pack);
		conn_arg_u64(&r, c->extent.stored);
	}
	next_tx(m, tx);
	conn_arg_str(&r, tx);
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
		*b = (struct batch){ .group = g, .shard = silt_ino_shard(items[i].ino),
				     .append = items[i].append };
		for (size_t j = i; j < n && b->n < COMMIT_BATCH; j++) {
			if (items[j].err != -EINPROGRESS || items[j].append != b->append ||
			    silt_ino_shard(items[j].ino) != b->shard)
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
