/* Files that lost their last name while others may have them open (functions_deleted.lua has the
 * scheme). In each heartbeat: what was on a shard's list at the last one is looked through and what
 * is open here held; then the shard is told, and some that all mounts have seen goes. */
#include "meta/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE       2000 /* inodes of a list in one call */
#define CALLS_MAX  200  /* that clean up, a shard and heartbeat */
#define LEAVING_NS ((uint64_t)2000000000u)

struct deleted {
	struct silt_lock lock; /* the listener, while it is called */
	struct meta_deleted_listener listener;
	/* the heartbeat thread's */
	struct {
		uint64_t looked,
		        end; /* places: before which we have looked; of its end at the last beat */
	} shards[];
};

void meta_hear_deleted(struct meta *m, const struct meta_deleted_listener *l)
{
	struct deleted *d = m->deleted;
	if (!d)
		return;
	silt_lock(&d->lock);
	d->listener = l ? *l : (struct meta_deleted_listener){ 0 };
	silt_unlock(&d->lock);
}

/* Tells the shard where we are. 1: there is more to be cleaned up. */
static int seen(struct meta *m, unsigned shard, const char *where, uint64_t *end)
{
	struct conn_request *r = call_begin(m, shard, F_SEEN, 2, 0);
	redisReply *reply = NULL;
	long long more = 0;
	conn_arg_str(&r, m->session_text);
	conn_arg_str(&r, where);
	int rc = call_checked(m, F_SEEN, r, &reply, &more);
	const redisReply *stop = rc ? NULL : reply_at(reply, 1);
	if (stop)
		*end = strtoull(stop->str, NULL, 10);
	if (reply)
		freeReplyObject(reply);
	return rc ? rc : (int)more;
}

static int hold(struct meta *m, silt_ino ino)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_HOLD, 2, 0);
	redisReply *reply = NULL;
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg_str(&r, m->session_text);
	int rc = call_checked(m, F_HOLD, r, &reply, NULL);
	if (reply)
		freeReplyObject(reply);
	return rc;
}

/* Holds what of a page is open here. Fails when it may not have been held: the page is looked at
 * again. */
static int hold_open(struct meta *m, unsigned shard, const char *page)
{
	struct meta_deleted_listener *l = &m->deleted->listener;
	int rc = 0;
	while (*page && !rc) {
		char *end;
		uint64_t seq = strtoull(page, &end, 16);
		if (end == page)
			break; /* damaged: fsck finds what it was */
		silt_ino ino = silt_ino_make(shard, seq);
		void *open = l->is_open ? l->is_open(l->arg, ino) : NULL;
		if (open) {
			int err = hold(m, ino);
			l->kept(l->arg, open, err);
			rc = err == -ENOENT ? 0 : err;
		}
		page = end + strspn(end, " ");
	}
	return rc;
}

/* Looks through one page. */
static int look(struct meta *m, unsigned shard)
{
	struct deleted *d = m->deleted;
	struct conn_request *r = call_begin(m, shard, F_DELETED, 2, 0);
	redisReply *reply = NULL;
	uint64_t left = d->shards[shard].end - d->shards[shard].looked;
	conn_arg_u64(&r, d->shards[shard].looked);
	conn_arg_u64(&r, left < PAGE ? left : PAGE);
	int rc = call_checked(m, F_DELETED, r, &reply, NULL);
	const redisReply *stop = rc ? NULL : reply_at(reply, 2),
	                 *page = rc ? NULL : reply_at(reply, 3);
	if (!rc && (!stop || !page))
		rc = -EIO;
	if (!rc)
		rc = hold_open(m, shard, page->str);
	if (!rc) {
		uint64_t to = strtoull(stop->str, NULL, 10), end = d->shards[shard].end;
		d->shards[shard].looked = to < end && page->len ? to : end;
	}
	if (reply)
		freeReplyObject(reply);
	return rc;
}

int deleted_join(struct meta *m, unsigned shard)
{
	if (!m->deleted)
		return 0;
	m->deleted->shards[shard].looked = m->deleted->shards[shard].end = 0;
	int rc = seen(m, shard, "join", &m->deleted->shards[shard].end);
	return rc > 0 ? 0 : rc;
}

void deleted_look(struct meta *m, unsigned shard)
{
	struct deleted *d = m->deleted;
	char where[24];
	int rc = 0;
	if (!d)
		return;
	silt_lock(&d->lock);
	/* With nothing open at all nothing on the list is. */
	if (!d->listener.anything_open || !d->listener.anything_open(d->listener.arg))
		d->shards[shard].looked = d->shards[shard].end;
	while (!rc && d->shards[shard].looked < d->shards[shard].end)
		rc = look(m, shard);
	silt_unlock(&d->lock);
	snprintf(where, sizeof(where), "%llu", (unsigned long long)d->shards[shard].looked);
	for (int i = 0; i < CALLS_MAX && (i == 0 || rc == 1); i++)
		rc = seen(m, shard, where, &d->shards[shard].end);
	if (rc == -ESTALE)
		deleted_join(m, shard);
}

void deleted_leave(struct meta *m)
{
	uint64_t until = silt_now_ns() + LEAVING_NS, end;
	for (unsigned s = 0; m->deleted && s < m->volume.shards; s++)
		while (seen(m, s, "leave", &end) == 1 && silt_now_ns() < until)
			;
}

int deleted_open(struct meta *m)
{
	if (!m->cfg.opens_files)
		return 0;
	m->deleted =
	        calloc(1, sizeof(*m->deleted) + m->volume.shards * sizeof(*m->deleted->shards));
	if (!m->deleted)
		return -ENOMEM;
	silt_lock_init(&m->deleted->lock);
	int rc = 0;
	for (unsigned s = 0; s < m->volume.shards && !rc; s++)
		rc = deleted_join(m, s);
	return rc;
}

void deleted_close(struct meta *m)
{
	if (!m->deleted)
		return;
	silt_lock_destroy(&m->deleted->lock);
	free(m->deleted);
	m->deleted = NULL;
}
