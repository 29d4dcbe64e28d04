/* Locks and the session: what others do when one ends, what we do when ours was taken for dead, and the
 * life of `struct locks`. */
#include "meta/locks_impl.h"

#include <errno.h>
#include <stdlib.h>

/* Everybody that waits. Each has a reference; the caller frees the list. */
static struct lock_wait **all_waiters(struct locks *l, size_t *n)
{
	silt_lock(&l->lock);
	struct lock_wait **v = calloc(l->n + 1, sizeof(struct lock_wait *));
	*n = 0;
	for (size_t i = 0; v && i < LOCK_BUCKETS; i++)
		for (struct lock_wait *w = l->table[i]; w; w = w->next) {
			w->refs++;
			v[(*n)++] = w;
		}
	silt_unlock(&l->lock);
	return v;
}

void meta_locks_stop(struct meta *m)
{
	struct locks *l = m->locks;
	if (!l)
		return;
	silt_lock(&l->lock);
	l->refusing = true;
	silt_unlock(&l->lock);
	size_t n;
	struct lock_wait **v = all_waiters(l, &n);
	for (size_t i = 0; i < n; i++) {
		meta_lock_cancel(m, v[i]->number);
		lock_wait_put(v[i]);
	}
	free(v);
}

void meta_locks_on_lost(struct meta *m, void (*lost)(void *arg), void *arg)
{
	struct locks *l = m->locks;
	if (!l)
		return;
	silt_lock(&l->lock);
	l->lost = lost;
	l->lost_arg = arg;
	silt_unlock(&l->lock);
}

int locks_sweep(struct meta *m, unsigned shard, const char *session, const char *died)
{
	long long left;
	do {
		redisReply *reply = NULL;
		struct conn_request *r = call_begin(m, shard, F_LOCK_SWEEP, 2, 0);
		conn_arg_str(&r, session);
		conn_arg_str(&r, died);
		int rc = call_checked(m, F_LOCK_SWEEP, r, &reply, &left);
		for (size_t i = 1; !rc && i < reply->elements; i++) {
			const redisReply *of = reply_at(reply, i);
			if (of && of->len > 1)
				lock_wake_others(m,
				            silt_ino_make(shard, strtoull(of->str + 1, NULL, 10)),
				            of->str[0] == 'F');
		}
		if (reply)
			freeReplyObject(reply);
		if (rc)
			return rc;
	} while (left > 0);
	return 0;
}

void locks_lost(struct meta *m)
{
	struct locks *l = m->locks;
	silt_lock(&l->lock);
	if (l->suspended) {
		silt_unlock(&l->lock);
		return;
	}
	l->generation++;
	l->suspended = true;
	void (*lost)(void *) = l->lost;
	void *arg = l->lost_arg;
	silt_unlock(&l->lock);
	if (lost)
		lost(arg);
	size_t n;
	struct lock_wait **v = all_waiters(l, &n);
	for (size_t i = 0; i < n; i++) {
		lock_end(v[i], -EIO);
		lock_wait_put(v[i]);
	}
	free(v);
}

int locks_start_anew(struct meta *m)
{
	struct locks *l = m->locks;
	int rc = 0;
	for (unsigned s = 0; s < m->volume.shards && !rc; s++)
		rc = locks_sweep(m, s, m->session_text, "");
	silt_lock(&l->lock);
	l->suspended = rc != 0;
	silt_unlock(&l->lock);
	return rc;
}

/* --- life --- */

int locks_open(struct meta *m)
{
	struct locks *l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->m = m;
	silt_lock_init(&l->lock);
	silt_cond_init(&l->wake);
	push_channel(m->volume.id, m->session, l->channel);
	m->locks = l;
	lock_listen(l);
	return lock_thread_start(l);
}

void locks_stop(struct meta *m)
{
	struct locks *l = m->locks;
	if (!l)
		return;
	lock_thread_stop(l);
	size_t n;
	struct lock_wait **v = all_waiters(l, &n);
	for (size_t i = 0; i < n; i++) {
		lock_end(v[i], -ESHUTDOWN);
		lock_wait_put(v[i]);
	}
	free(v);
}

void locks_free(struct meta *m)
{
	struct locks *l = m->locks;
	if (!l)
		return;
	silt_lock_destroy(&l->lock);
	silt_cond_destroy(&l->wake);
	free(l);
	m->locks = NULL;
}
