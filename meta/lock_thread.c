/* The lock thread of a mount: what about locks needs time or blocks. It sleeps unless somebody
 * waits and
 *
 * - was held back for fairness and may insist after FORCE_MS;
 * - there is no push connection: then everybody that waits asks, once when it is up again, and
 * every RETRY_MS until then;
 * - just began to wait in a volume of several shards and minds deadlocks: the walk below. Within
 * one shard the function that queues a request has looked already.
 *
 * The walk. Shard 0 knows where each owner waits ("place"); the shard of a place knows who blocks
 * it now. A request that waits first notes its place, in the call that also tells the places of
 * those that block it; so of two that close a circle the later one sees the earlier. From there on
 * it goes from place to blockers to their places until nobody is left (nearly always at once) or it
 * meets its own owner. Edges are looked up when they are needed, so they are never stale; places
 * may be, and lead nowhere then. */
#include "meta/locks_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WALK_MAX  64 /* owners that a walk looks at */
#define PLACE_MAX (2 * OWNER_TEXT)

struct walk {
	struct lock_wait *w;
	char me[OWNER_TEXT];
	char owners[WALK_MAX + BLOCKERS_MAX][OWNER_TEXT]; /* each once */
	unsigned n, asked;                                /* the first `asked` were looked at */
	char places[WALK_MAX][PLACE_MAX];
	unsigned nplaces;
};

static void add_owner(struct walk *k, const char *text, size_t len)
{
	if (len >= OWNER_TEXT || k->n >= WALK_MAX)
		return;
	for (unsigned i = 0; i < k->n; i++)
		if (strlen(k->owners[i]) == len && !memcmp(k->owners[i], text, len))
			return;
	memcpy(k->owners[k->n], text, len);
	k->owners[k->n++][len] = '\0';
}

/* Where do the owners wait that were not asked about yet? `place`: and note this one of ours. */
static int ask_places(struct walk *k, const char *place)
{
	struct meta *m = k->w->m;
	redisReply *reply = NULL;
	unsigned n = k->n - k->asked;
	struct conn_request *r = call_begin(m, 0, F_LOCK_PLACE, 2 + (int)n, n * OWNER_TEXT);
	conn_arg_str(&r, k->me);
	conn_arg_str(&r, place);
	for (unsigned i = k->asked; i < k->n; i++)
		conn_arg_str(&r, k->owners[i]);
	k->asked = k->n;
	int rc = call_checked(m, F_LOCK_PLACE, r, &reply, NULL);
	k->nplaces = 0;
	for (size_t i = 1; !rc && i < reply->elements && i <= n; i++) {
		const redisReply *s = reply_at(reply, i);
		if (s && s->len && s->len < PLACE_MAX)
			memcpy(k->places[k->nplaces++], s->str, s->len + 1);
	}
	if (reply)
		freeReplyObject(reply);
	return rc;
}

/* Who blocks the request at `place`? True: its own owner. */
static bool ask_blockers(struct walk *k, const char *place)
{
	struct meta *m = k->w->m;
	char waiter[OWNER_TEXT];
	unsigned shard;
	uint64_t q;
	bool found = false;
	redisReply *reply = NULL;
	if (sscanf(place, "%u %" SCNu64 " %47s", &shard, &q, waiter) != 3 ||
	    shard >= m->volume.shards)
		return false;
	struct conn_request *r = call_begin(m, shard, F_LOCK_BLOCKERS, 2, OWNER_TEXT);
	conn_arg_u64(&r, q);
	conn_arg_str(&r, waiter);
	int rc = call_checked(m, F_LOCK_BLOCKERS, r, &reply, NULL);
	for (size_t i = 1; !rc && i < reply->elements; i++) {
		const redisReply *s = reply_at(reply, i);
		if (!s)
			continue;
		found = found || !strcmp(s->str, k->me);
		add_owner(k, s->str, s->len);
	}
	if (reply)
		freeReplyObject(reply);
	return found;
}

static bool walk_finds_circle(struct walk *k)
{
	struct lock_wait *w = k->w;
	char waiter[OWNER_TEXT], place[PLACE_MAX];
	lock_owner_text(w->m, &w->lock, k->me);
	lock_waiter_text(w->m, w->number, waiter);
	snprintf(place, sizeof(place), "%u %" PRIu64 " %s", silt_ino_shard(w->lock.ino),
	         silt_ino_seq(w->lock.ino), waiter);
	for (unsigned i = 0; i < w->nblockers; i++)
		add_owner(k, w->blockers[i], strlen(w->blockers[i]));
	for (const char *mine = place; k->asked < k->n; mine = "") {
		char places[WALK_MAX][PLACE_MAX];
		if (ask_places(k, mine))
			return false;
		unsigned n = k->nplaces;
		memcpy(places, k->places, n * PLACE_MAX);
		for (unsigned i = 0; i < n; i++)
			if (ask_blockers(k, places[i]))
				return true;
	}
	return false;
}

static void walk(struct locks *l, struct lock_wait *w)
{
	struct walk *k = calloc(1, sizeof(*k));
	silt_lock(&l->lock);
	bool go = k && !w->ended;
	w->placed = w->placed || go;
	silt_unlock(&l->lock);
	if (go) {
		k->w = w;
		bool circle = walk_finds_circle(k);
		silt_lock(&l->lock);
		bool ended =
		        w->ended; /* and its place was taken away, perhaps before it was noted */
		silt_unlock(&l->lock);
		if (circle && !ended)
			lock_take_back(w, -EDEADLK);
		else if (ended)
			lock_unplace(w);
	}
	free(k);
	lock_wait_put(w);
}

/* Somebody to ask about, with a reference, or NULL; *until becomes earlier when somebody is due
 * later. Lock held. `all`: everybody, once. */
static struct lock_wait *next_due(struct locks *l, bool all, uint64_t *until, bool *force)
{
	uint64_t now = silt_now_ns();
	for (size_t i = 0; i < LOCK_BUCKETS; i++)
		for (struct lock_wait *w = l->table[i]; w; w = w->next) {
			*force = w->force_at && w->force_at <= now;
			if ((all && w->round != l->round) || *force) {
				w->round = l->round;
				w->force_at = 0;
				w->refs++;
				return w;
			}
			if (w->force_at && w->force_at < *until)
				*until = w->force_at;
		}
	return NULL;
}

static void ask(struct lock_wait *w, bool force)
{
	struct locks *l = w->m->locks;
	silt_lock(&l->lock);
	bool abandoned = w->abandoned, idle = w->queued && !w->cancelling && !w->ended;
	bool under_way = w->on_wire > 0; /* that answers as well */
	silt_unlock(&l->lock);
	if (under_way)
		;
	else if (abandoned)
		lock_take_back(w, -EIO);
	else if (idle)
		lock_send(w, force);
	lock_wait_put(w);
}

static void *lock_main(void *arg)
{
	struct locks *l = arg;
	bool was_up = false;
	uint64_t retry = 0;
	pthread_setname_np(pthread_self(), "silt-lock");
	silt_lock(&l->lock);
	while (!l->stopping) {
		uint64_t now = silt_now_ns(), until = now + (uint64_t)3600 * 1000000000u;
		bool came_up = l->push_up && !was_up;
		if (came_up || (!l->push_up && l->n && now >= retry)) {
			l->round++;
			l->asking = true;
			retry = now + (uint64_t)RETRY_MS * 1000000u;
		}
		was_up = l->push_up;
		if (!l->push_up && l->n && retry < until)
			until = retry;
		bool force = false;
		struct lock_wait *w = l->walks;
		if (w) {
			l->walks = w->next_walk;
			silt_unlock(&l->lock);
			walk(l, w);
			silt_lock(&l->lock);
			continue;
		}
		w = next_due(l, l->asking, &until, &force);
		if (w) {
			silt_unlock(&l->lock);
			ask(w, force);
			silt_lock(&l->lock);
			continue;
		}
		l->asking = false;
		if (!l->stopping)
			silt_cond_wait_until(&l->wake, &l->lock, until);
	}
	silt_unlock(&l->lock);
	return NULL;
}

int lock_thread_start(struct locks *l)
{
	int rc = -pthread_create(&l->thread, NULL, lock_main, l);
	l->thread_runs = rc == 0;
	return rc;
}

void lock_thread_stop(struct locks *l)
{
	if (!l->thread_runs)
		return;
	silt_lock(&l->lock);
	l->stopping = true;
	silt_cond_signal(&l->wake);
	silt_unlock(&l->lock);
	pthread_join(l->thread, NULL);
	l->thread_runs = false;
	while (l->walks) {
		struct lock_wait *w = l->walks;
		l->walks = w->next_walk;
		lock_wait_put(w);
	}
}
