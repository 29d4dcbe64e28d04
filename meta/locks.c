/* See locks.h. */
#include "meta/locks_impl.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANGE_BYTES 16
enum { MODE_WAIT = 1, MODE_DETECT = 2, MODE_FORCE = 4, MODE_REPORT = 8 };
enum { REPLY_HAD = 1, REPLY_MORE = 2, REPLY_HELD_BACK = 4 };

/* --- texts --- */

void lock_owner_text(const struct meta *m, const struct meta_lock *l, char out[OWNER_TEXT])
{
	snprintf(out, OWNER_TEXT, "%c%s.%" PRIx64, l->flock ? 'F' : 'P', m->session_text, l->owner);
}

void lock_waiter_text(const struct meta *m, uint64_t number, char out[OWNER_TEXT])
{
	snprintf(out, OWNER_TEXT, "%s.%" PRIx64, m->session_text, number);
}

static void arg_owner(struct conn_request **r, const struct meta *m, const struct meta_lock *l)
{
	char text[OWNER_TEXT];
	lock_owner_text(m, l, text);
	conn_arg_str(r, text);
}

static void arg_waiter(struct conn_request **r, const struct meta *m, uint64_t number)
{
	char text[OWNER_TEXT];
	lock_waiter_text(m, number, text);
	conn_arg_str(r, number ? text : "-");
}

static void arg_range(struct conn_request **r, const struct meta_lock *l)
{
	uint8_t b[RANGE_BYTES];
	for (int i = 0; i < 8; i++) {
		b[i] = (uint8_t)(l->start >> (56 - 8 * i));
		b[8 + i] = (uint8_t)(l->end >> (56 - 8 * i));
	}
	conn_arg(r, b, sizeof(b));
}

static bool take_range(const redisReply *s, struct meta_lock *l)
{
	if (!s || s->len != RANGE_BYTES)
		return false;
	l->start = l->end = 0;
	for (int i = 0; i < 8; i++) {
		l->start = l->start << 8 | (uint8_t)s->str[i];
		l->end = l->end << 8 | (uint8_t)s->str[8 + i];
	}
	return l->start <= l->end && l->end <= META_LOCK_LAST;
}

static struct meta_lock normal(const struct meta_lock *l)
{
	struct meta_lock n = *l;
	if (n.flock) {
		n.start = 0;
		n.end = META_LOCK_LAST;
	}
	return n;
}

/* --- the table of those that wait (lock held) --- */

static struct lock_wait **place_of(struct locks *l, uint64_t number)
{
	struct lock_wait **p = &l->table[number % LOCK_BUCKETS];
	while (*p && (*p)->number != number)
		p = &(*p)->next;
	return p;
}

static void table_add(struct locks *l, struct lock_wait *w)
{
	struct lock_wait **p = place_of(l, w->number);
	w->next = NULL;
	*p = w;
	w->refs++;
	l->n++;
}

/* Returns whether the caller must put it (without the lock). */
static bool table_remove(struct locks *l, struct lock_wait *w)
{
	struct lock_wait **p = place_of(l, w->number);
	if (!w->number || *p != w)
		return false;
	*p = w->next;
	l->n--;
	return true;
}

void lock_wait_put(struct lock_wait *w)
{
	struct locks *l = w->m->locks;
	silt_lock(&l->lock);
	bool last = --w->refs == 0;
	silt_unlock(&l->lock);
	if (!last)
		return;
	free(w->blockers);
	free(w);
}

/* --- the end of a request --- */

static void nothing(void *arg, int err, redisReply *reply)
{
}

void lock_unplace(struct lock_wait *w)
{
	struct meta *m = w->m;
	char owner[OWNER_TEXT], waiter[OWNER_TEXT], place[2 * OWNER_TEXT];
	struct conn_request *r = call_begin(m, 0, F_LOCK_UNPLACE, 2, 0);
	lock_owner_text(m, &w->lock, owner);
	lock_waiter_text(m, w->number, waiter);
	snprintf(place, sizeof(place), "%u %" PRIu64 " %s", silt_ino_shard(w->lock.ino),
	         silt_ino_seq(w->lock.ino), waiter);
	conn_arg_str(&r, owner);
	conn_arg_str(&r, place);
	call_send(m, F_LOCK_UNPLACE, r, nothing, NULL);
}

/* Ends a request once; later calls do nothing. `abandon`: Redis may still think it waits. */
static bool end_begin(struct lock_wait *w, bool abandon)
{
	struct locks *l = w->m->locks;
	silt_lock(&l->lock);
	bool first = !w->ended;
	w->ended = true;
	bool put = false;
	if (first && abandon && w->number) {
		w->abandoned = true;
	} else if (!w->abandoned || !abandon) {
		w->abandoned = false;
		put = table_remove(l, w);
	}
	bool placed = w->placed;
	w->placed = false;
	silt_unlock(&l->lock);
	if (placed)
		lock_unplace(w);
	if (put)
		lock_wait_put(w);
	return first;
}

/* The caller has a reference. */
static void end(struct lock_wait *w, int err, const struct silt_inode *inode, bool abandon)
{
	if (!end_begin(w, abandon))
		return;
	struct meta_lock_reply reply = { .err = err, .had = w->had, .gone = w->gone };
	if (inode) {
		reply.has_inode = true;
		reply.inode = *inode;
	}
	w->done(w->arg, &reply);
}

void lock_end(struct lock_wait *w, int err)
{
	end(w, err, NULL, false);
	end_begin(w, false); /* also one that was abandoned before */
}

static void got_inode(void *arg, const struct meta_reply *r)
{
	struct lock_wait *w = arg;
	struct meta_lock_reply reply = { .err = 0,
		                         .had = w->had,
		                         .has_inode = r->err == 0,
		                         .gone = r->err == -ENOENT,
		                         .inode = r->inode };
	w->done(w->arg, &reply);
	lock_wait_put(w);
}

/* Granted while it waited: the caller wants to see what the former holder left. */
static void end_granted(struct lock_wait *w)
{
	struct locks *l = w->m->locks;
	silt_lock(&l->lock);
	bool valid = w->generation == l->generation;
	w->refs++;
	silt_unlock(&l->lock);
	if (!valid)
		end(w, -EIO, NULL, false);
	else if (end_begin(w, false)) {
		meta_getattr(w->m, w->lock.ino, got_inode, w);
		return;
	}
	lock_wait_put(w);
}

/* --- waking others --- */

struct waking {
	struct meta *m;
	silt_ino ino;
	bool flock;
};

static void wake_send(struct waking *k);

static void woken(void *arg, int err, redisReply *reply)
{
	struct waking *k = arg;
	int rc = reply_code(k->m, F_LOCK_WAKE, err, reply, NULL);
	if (!rc && reply->elements > 1 && reply->element[1]->integer == REPLY_MORE)
		wake_send(k);
	else
		free(k);
}

static void wake_send(struct waking *k)
{
	struct conn_request *r = call_begin(k->m, silt_ino_shard(k->ino), F_LOCK_WAKE, 2, 0);
	conn_arg_u64(&r, silt_ino_seq(k->ino));
	conn_arg_str(&r, k->flock ? "F" : "P");
	call_send(k->m, F_LOCK_WAKE, r, woken, k);
}

void lock_wake_others(struct meta *m, silt_ino ino, bool flock)
{
	struct waking *k = malloc(sizeof(*k));
	if (!k)
		return; /* who was granted last goes on */
	*k = (struct waking){ m, ino, flock };
	wake_send(k);
}

/* --- requests and replies --- */

/* Queued: perhaps it has to look for a deadlock over several shards. Takes over the caller's lock.
 */
static void now_queued_locked(struct locks *l, struct lock_wait *w, const redisReply *reply)
{
	bool first = !w->queued;
	w->queued = true;
	if (first)
		w->had = reply->element[1]->integer & REPLY_HAD;
	if (reply->element[1]->integer & REPLY_HELD_BACK)
		w->force_at = silt_now_ns() + (uint64_t)FORCE_MS * 1000000u;
	size_t n = reply->elements - 2;
	if (first && w->detect && n && !w->blockers && (w->blockers = calloc(n, OWNER_TEXT))) {
		for (size_t i = 2; i < reply->elements && w->nblockers < BLOCKERS_MAX; i++)
			if (reply_at(reply, i) && reply_at(reply, i)->len < OWNER_TEXT)
				memcpy(w->blockers[w->nblockers++], reply_at(reply, i)->str,
				       reply_at(reply, i)->len);
		w->next_walk = l->walks;
		l->walks = w;
		w->refs++;
	}
	silt_cond_signal(&l->wake);
}

static void set_granted(struct lock_wait *w, const redisReply *reply)
{
	struct locks *l = w->m->locks;
	struct silt_inode inode;
	const redisReply *s = reply_at(reply, 2);
	silt_lock(&l->lock);
	bool valid = w->generation == l->generation || w->lock.type == META_LOCK_NONE;
	if (!w->queued)
		w->had = reply->element[1]->integer & REPLY_HAD;
	silt_unlock(&l->lock);
	w->gone = s && !s->len && w->lock.type != META_LOCK_NONE;
	bool has = s && s->len && !reply_inode(w->m, w->lock.ino, s, &inode);
	end(w, valid ? 0 : -EIO, valid && has ? &inode : NULL, false);
}

static void off_wire(struct lock_wait *w)
{
	silt_lock(&w->m->locks->lock);
	w->on_wire--;
	silt_unlock(&w->m->locks->lock);
}

static void set_reply(void *arg, int err, redisReply *reply)
{
	struct lock_wait *w = arg;
	struct locks *l = w->m->locks;
	long long code = 0;
	int rc = reply_code(w->m, F_LOCK_SET, err, reply, &code);
	off_wire(w);
	if (!rc && (reply->elements < 3 - (size_t)(code == 1) ||
	            reply->element[1]->type != REDIS_REPLY_INTEGER))
		rc = -EIO;
	if (!rc && code == 1 && !w->number)
		rc = -EIO;
	if (rc == -EAGAIN || rc == -EDEADLK || rc == -ENOLCK) {
		end(w, rc, NULL, false);
	} else if (rc) {
		end(w, -EIO, NULL, w->number != 0);
	} else {
		if (reply->element[1]->integer & REPLY_MORE)
			lock_wake_others(w->m, w->lock.ino, w->lock.flock);
		if (code == 0) {
			set_granted(w, reply);
		} else {
			silt_lock(&l->lock);
			if (!w->ended)
				now_queued_locked(l, w, reply);
			silt_unlock(&l->lock);
		}
	}
	lock_wait_put(w);
}

void lock_send(struct lock_wait *w, bool force)
{
	struct meta *m = w->m;
	struct locks *l = m->locks;
	const struct meta_lock *k = &w->lock;
	unsigned mode = 0;
	if (w->number) {
		mode = MODE_WAIT | (w->detect ? MODE_DETECT : 0) | (force ? MODE_FORCE : 0);
		if (w->detect && m->volume.shards > 1)
			mode |= MODE_REPORT;
	}
	silt_lock(&l->lock);
	w->refs++;
	w->on_wire++;
	silt_unlock(&l->lock);
	struct conn_request *r = call_begin(m, silt_ino_shard(k->ino), F_LOCK_SET, 8, 64);
	conn_arg_u64(&r, silt_ino_seq(k->ino));
	arg_waiter(&r, m, w->number);
	arg_owner(&r, m, k);
	conn_arg_u64(&r, k->type);
	arg_range(&r, k);
	conn_arg_u64(&r, k->pid);
	conn_arg_u64(&r, mode);
	conn_arg_str(&r, l->channel);
	call_send(m, F_LOCK_SET, r, set_reply, w);
}

/* A lock that nobody wants: its request was given up, and Redis granted it. What the owner had in
 * that range before can't be told apart from it, so then it stays until the owner unlocks or
 * closes. */
static void give_back(struct lock_wait *w)
{
	if (w->had)
		return;
	struct meta *m = w->m;
	struct conn_request *r = call_begin(m, silt_ino_shard(w->lock.ino), F_LOCK_SET, 8, 64);
	conn_arg_u64(&r, silt_ino_seq(w->lock.ino));
	conn_arg_str(&r, "-");
	arg_owner(&r, m, &w->lock);
	conn_arg_u64(&r, META_LOCK_NONE);
	arg_range(&r, &w->lock);
	conn_arg_u64(&r, 0);
	conn_arg_u64(&r, 0);
	conn_arg_str(&r, "");
	call_send(m, F_LOCK_SET, r, nothing, NULL);
}

static void cancel_reply(void *arg, int err, redisReply *reply)
{
	struct lock_wait *w = arg;
	struct locks *l = w->m->locks;
	long long granted = 0;
	int rc = reply_code(w->m, F_LOCK_CANCEL, err, reply, &granted);
	off_wire(w);
	silt_lock(&l->lock);
	bool ended = w->ended;
	silt_unlock(&l->lock);
	if (!rc && reply->elements > 1 && reply->element[1]->type == REDIS_REPLY_INTEGER &&
	    reply->element[1]->integer == REPLY_MORE)
		lock_wake_others(w->m, w->lock.ino, w->lock.flock);
	if (rc) {
		end(w, w->cancel_err, NULL, true);
	} else if (!ended && granted) {
		end_granted(w);
	} else if (!ended) {
		end(w, w->cancel_err, NULL, false);
	} else if (w->abandoned) {
		if (granted)
			give_back(w);
		end_begin(w, false);
	}
	lock_wait_put(w);
}

void lock_take_back(struct lock_wait *w, int err)
{
	struct meta *m = w->m;
	struct locks *l = m->locks;
	silt_lock(&l->lock);
	if (!w->cancelling)
		w->cancel_err = err;
	w->cancelling = true;
	w->refs++;
	w->on_wire++;
	silt_unlock(&l->lock);
	struct conn_request *r = call_begin(m, silt_ino_shard(w->lock.ino), F_LOCK_CANCEL, 5, 64);
	conn_arg_u64(&r, silt_ino_seq(w->lock.ino));
	arg_waiter(&r, m, w->number);
	arg_owner(&r, m, &w->lock);
	conn_arg_u64(&r, w->lock.type);
	arg_range(&r, &w->lock);
	call_send(m, F_LOCK_CANCEL, r, cancel_reply, w);
}

/* --- what Redis says unasked --- */

static void on_message(void *arg, const char *text, size_t len)
{
	struct locks *l = arg;
	char copy[OWNER_TEXT] = { 0 };
	uint64_t session, number;
	if (len < 4 || len >= sizeof(copy) || text[0] != 'L')
		return;
	memcpy(copy, text, len);
	if (sscanf(copy + 2, " %" SCNu64 ".%" SCNx64, &session, &number) != 2 ||
	    session != l->m->session)
		return;
	silt_lock(&l->lock);
	struct lock_wait *w = *place_of(l, number);
	if (w)
		w->refs++;
	bool cancelling = w && w->cancelling, abandoned = w && w->abandoned;
	if (w && text[1] == 'f')
		w->force_at = silt_now_ns() + (uint64_t)FORCE_MS * 1000000u;
	silt_cond_signal(&l->wake);
	silt_unlock(&l->lock);
	if (!w)
		return;
	if (text[1] == 'G')
		lock_wake_others(l->m, w->lock.ino, w->lock.flock);
	if (abandoned)
		lock_take_back(w, -EIO);
	else if (!cancelling && (text[1] == 'g' || text[1] == 'G'))
		end_granted(w);
	lock_wait_put(w);
}

static void on_up(void *arg, uint64_t client_id)
{
	struct locks *l = arg;
	silt_lock(&l->lock);
	l->push_up = true;
	silt_cond_signal(&l->wake);
	silt_unlock(&l->lock);
}

static void on_down(void *arg)
{
	struct locks *l = arg;
	silt_lock(&l->lock);
	l->push_up = false;
	silt_cond_signal(&l->wake);
	silt_unlock(&l->lock);
}

void lock_listen(struct locks *l)
{
	struct push_listener ear = {
		.up = on_up, .down = on_down, .message = on_message, .arg = l
	};
	push_listen(l->m->push, &ear);
}

/* --- public --- */

uint64_t meta_lock_id(struct meta *m)
{
	struct locks *l = m->locks;
	if (!l)
		return 0;
	silt_lock(&l->lock);
	uint64_t id = ++l->counter;
	silt_unlock(&l->lock);
	return id;
}

void meta_lock_set(struct meta *m, const struct meta_lock *lock, uint64_t id, bool detect,
                   meta_lock_done done, void *arg)
{
	struct locks *l = m->locks;
	struct lock_wait *w = l ? calloc(1, sizeof(*w)) : NULL;
	int err = !l ? -ENOTSUP : !w ? -ENOMEM : 0;
	if (!err) {
		bool unlock = lock->type == META_LOCK_NONE;
		*w = (struct lock_wait){ .m = m,
			                 .refs = 1,
			                 .number = unlock ? 0 : id,
			                 .lock = normal(lock),
			                 .detect = detect && !lock->flock,
			                 .done = done,
			                 .arg = arg };
		silt_lock(&l->lock);
		w->generation = l->generation;
		if (l->suspended && !unlock)
			err = -EIO;
		else if (l->refusing && w->number)
			err = -EINTR;
		else if (w->number)
			table_add(l, w);
		silt_unlock(&l->lock);
	}
	if (err) {
		free(w);
		struct meta_lock_reply reply = { .err = err };
		done(arg, &reply);
		return;
	}
	lock_send(w, false);
	lock_wait_put(w);
}

void meta_lock_cancel(struct meta *m, uint64_t id)
{
	struct locks *l = m->locks;
	if (!l)
		return;
	silt_lock(&l->lock);
	struct lock_wait *w = *place_of(l, id);
	bool act = w && !w->ended && !w->cancelling;
	if (act)
		w->refs++;
	silt_unlock(&l->lock);
	if (!act)
		return;
	lock_take_back(w, -EINTR);
	lock_wait_put(w);
}

struct get {
	struct meta *m;
	struct meta_lock lock;
	meta_lock_done done;
	void *arg;
};

static int get_result(const struct get *g, const redisReply *reply, struct meta_lock_reply *out)
{
	const redisReply *pid = reply->elements == 5 ? reply->element[3] : NULL;
	const redisReply *owner = reply_at(reply, 4);
	uint64_t session;
	if (!pid || pid->type != REDIS_REPLY_INTEGER ||
	    reply->element[1]->type != REDIS_REPLY_INTEGER || !owner ||
	    !take_range(reply_at(reply, 2), &out->found) ||
	    sscanf(owner->str + 1, "%" SCNu64 ".%" SCNx64, &session, &out->found.owner) != 2)
		return -EIO;
	out->found.ino = g->lock.ino;
	out->found.flock = g->lock.flock;
	out->found.type =
	        reply->element[1]->integer == META_LOCK_READ ? META_LOCK_READ : META_LOCK_WRITE;
	out->found.pid = (uint32_t)pid->integer;
	out->here = session == g->m->session;
	return 0;
}

static void get_reply(void *arg, int err, redisReply *reply)
{
	struct get *g = arg;
	struct meta_lock_reply out = { 0 };
	long long code = 0;
	out.err = reply_code(g->m, F_LOCK_GET, err, reply, &code);
	if (!out.err && code == 1)
		out.err = get_result(g, reply, &out);
	g->done(g->arg, &out);
	free(g);
}

void meta_lock_get(struct meta *m, const struct meta_lock *lock, meta_lock_done done, void *arg)
{
	struct get *g = malloc(sizeof(*g));
	if (!g) {
		struct meta_lock_reply out = { .err = -ENOMEM };
		done(arg, &out);
		return;
	}
	*g = (struct get){ m, normal(lock), done, arg };
	struct conn_request *r = call_begin(m, silt_ino_shard(lock->ino), F_LOCK_GET, 4, 64);
	conn_arg_u64(&r, silt_ino_seq(lock->ino));
	arg_owner(&r, m, &g->lock);
	conn_arg_u64(&r, lock->type);
	arg_range(&r, &g->lock);
	call_send(m, F_LOCK_GET, r, get_reply, g);
}
