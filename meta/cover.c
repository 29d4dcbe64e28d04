#include "meta/cover.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "meta/engine.h"

#define TOUCHES 65536

struct cover {
	struct meta *m;
	struct buckets *table;
	pthread_t thread;
	bool runs;
	atomic_bool kicked;		  /* look again */
	atomic_uint_fast64_t waits_until; /* what the thread knows to be due first, monotonic ns */
	/* The bucket that was touched last with each of so many hashes: one that is touched once only,
	 * by a program that opens files at random, is not worth a key that the server watches. */
	atomic_uint_fast32_t *touched;

	struct silt_lock lock; /* what follows */
	struct silt_cond wake;
	bool stopping;
	bool complained;
	struct meta_listener listener;
	uint64_t push_id; /* client id of the push connection; 0: down */
	unsigned calls;	  /* cover calls on their way */
	uint64_t since;	  /* monotonic ns: since then at least one has been */
};

struct covering {
	struct cover *c;
	unsigned n;
	struct bucket_ask asks[COVER_KEYS];
};

/* --- tracking on and off --- */

static void kick(struct cover *c, unsigned ms);

static void drop_all(struct cover *c, const char *why)
{
	bool was_up = buckets_are_up(c->table);
	buckets_down(c->table);
	if (was_up) {
		silt_count(c->m->metrics, M_META_CACHE_DROPS, 1);
		silt_debugf(c->m->log, "meta.cover", "everything remembered is dropped: %s", why);
	}
}

/* The server has answered CLIENT TRACKING for push connection `id`. */
static void tracking(struct cover *c, uint64_t id, int err, const redisReply *reply)
{
	bool ok = !err && reply && reply->type == REDIS_REPLY_STATUS;
	silt_lock(&c->lock);
	bool current = id && id == c->push_id && !c->stopping;
	bool complain = current && !ok && !err && !c->complained;
	c->complained = c->complained || complain;
	/* Under the lock: a push connection that goes down after this look takes it back after us. */
	if (current && ok) {
		buckets_up(c->table);
		if (c->listener.on_up)
			c->listener.on_up(c->listener.arg);
	}
	silt_unlock(&c->lock);
	if (complain)
		silt_warn(c->m->log, "redis does not watch keys for this mount (CLIENT TRACKING: %s): other "
			  "mounts' changes are seen when the kernel's timeouts end", reply ? reply->str : "?");
}

struct tracking_call {
	struct cover *c;
	uint64_t id;
};

static void got_tracking(void *arg, int err, redisReply *reply)
{
	struct tracking_call *t = arg;
	tracking(t->c, t->id, err, reply);
	free(t);
}

static void send_tracking(struct cover *c, uint64_t id)
{
	struct tracking_call *t = malloc(sizeof(*t));
	if (!t)
		return; /* it stays down */
	*t = (struct tracking_call){ c, id };
	struct conn_request *r = conn_begin(5, F_COMMAND, 96);
	conn_arg_str(&r, "CLIENT");
	conn_arg_str(&r, "TRACKING");
	conn_arg_str(&r, "ON");
	conn_arg_str(&r, "REDIRECT");
	conn_arg_u64(&r, id);
	conn_send(c->m->conn, r, false, got_tracking, t);
}

static void push_is_up(void *arg, uint64_t id)
{
	struct cover *c = arg;
	silt_lock(&c->lock);
	c->push_id = id;
	silt_unlock(&c->lock);
	if (id)
		send_tracking(c, id);
}

static void push_is_down(void *arg)
{
	struct cover *c = arg;
	silt_lock(&c->lock);
	c->push_id = 0;
	silt_unlock(&c->lock);
	drop_all(c, "no push connection");
}

static void push_invalidates(void *arg, const char *key, size_t len)
{
	struct cover *c = arg;
	struct bucket_id id;
	if (!key) {
		drop_all(c, "redis says that all keys have changed");
		silt_lock(&c->lock);
		uint64_t push_id = c->push_id;
		silt_unlock(&c->lock);
		if (push_id) /* the answer comes after whatever was read before */
			send_tracking(c, push_id);
		return;
	}
	if (!bucket_parse(key, len, &id))
		return;
	silt_count(c->m->metrics, M_META_INVALIDATIONS, 1);
	if (buckets_invalidate(c->table, &id))
		kick(c, 0);
}

void cover_lost(struct meta *m)
{
	if (m->cover)
		drop_all(m->cover, "no connection");
}

void cover_connected(struct meta *m, redisContext *ctx)
{
	struct cover *c = m->cover;
	if (!c)
		return;
	silt_lock(&c->lock);
	uint64_t id = c->push_id;
	silt_unlock(&c->lock);
	if (!id)
		return;
	redisReply *r = redisCommand(ctx, "CLIENT TRACKING ON REDIRECT %llu", (unsigned long long)id);
	tracking(c, id, r ? 0 : -EIO, r);
	if (r)
		freeReplyObject(r);
}

/* --- cover calls --- */

static void call_over(struct cover *c)
{
	silt_lock(&c->lock);
	c->calls--;
	c->since = silt_now_ns();
	silt_unlock(&c->lock);
}

/* Values of one bucket. False: not as it should be. */
static bool take_bucket(struct cover *c, const struct bucket_ask *a, const redisReply *r)
{
	struct bucket_value *v;
	if (r->type != REDIS_REPLY_ARRAY || (a->lens && r->elements != a->n) ||
	    (!a->lens && r->elements % 2))
		return false;
	v = calloc(r->elements + 1, sizeof(*v));
	for (size_t i = 0; v && i < r->elements; i++) {
		const redisReply *e = r->element[i];
		if (e->type == REDIS_REPLY_STRING)
			v[i] = (struct bucket_value){ e->str, e->len };
	}
	if (v)
		buckets_covered(c->table, a, v, r->elements);
	free(v);
	return v != NULL;
}

static void got_cover(void *arg, int err, redisReply *reply)
{
	struct covering *g = arg;
	struct cover *c = g->c;
	int rc = reply_code(c->m, F_COVER, err, reply, NULL);
	for (unsigned i = 0; i < g->n; i++) {
		struct bucket_ask *a = &g->asks[i];
		if (rc || i + 1 >= reply->elements || !take_bucket(c, a, reply->element[i + 1]))
			buckets_not_covered(c->table, a);
		bucket_ask_free(a);
	}
	call_over(c);
	free(g);
	kick(c, BUCKET_WAIT_MS); /* what came meanwhile */
}

static void send_cover(struct cover *c, struct covering *g)
{
	char key[BUCKET_KEY_MAX];
	int args = 0;
	size_t hint = 0;
	for (unsigned i = 0; i < g->n; i++) {
		args += 1 + (int)g->asks[i].n;
		hint += BUCKET_KEY_MAX + 16 + g->asks[i].n * 48;
	}
	struct conn_request *r = conn_begin(4 + (int)g->n + args, F_COVER, hint);
	conn_arg_str(&r, "FCALL_RO");
	conn_arg_str(&r, "silt1_cover");
	conn_arg_u64(&r, g->n + 1);
	int len = snprintf(key, sizeof(key), "{%u}", g->asks[0].id.shard);
	conn_arg(&r, key, (size_t)len);
	for (unsigned i = 0; i < g->n; i++)
		conn_arg(&r, key, bucket_key(&g->asks[i].id, key));
	for (unsigned i = 0; i < g->n; i++) {
		const struct bucket_ask *a = &g->asks[i];
		const char *name = a->names;
		if (a->lens)
			conn_arg_u64(&r, a->n);
		else
			conn_arg(&r, "*", 1);
		for (unsigned k = 0; k < a->n; name += a->lens[k++])
			conn_arg(&r, name, a->lens[k]);
	}
	silt_lock(&c->lock);
	if (c->calls++ == 0)
		c->since = silt_now_ns();
	silt_unlock(&c->lock);
	conn_send(c->m->conn, r, false, got_cover, g);
}

/* Sends what waits. */
static void cover_todo(struct cover *c, uint64_t now)
{
	for (;;) {
		struct covering *g = malloc(sizeof(*g));
		if (!g)
			return; /* the next kick tries again */
		g->c = c;
		g->n = 0;
		int shard = -1;
		while (g->n < COVER_KEYS && buckets_take_todo(c->table, shard, now, &g->asks[g->n]))
			shard = g->asks[g->n++].id.shard;
		if (g->n == 0) {
			free(g);
			return;
		}
		send_cover(c, g);
	}
}

/* Calls that are not answered: what was told meanwhile must not stay unchecked. */
static void check_late(struct cover *c)
{
	silt_lock(&c->lock);
	bool late = c->calls && silt_now_ns() - c->since > (uint64_t)COVER_LATE_MS * 1000000u;
	uint64_t id = c->push_id;
	silt_unlock(&c->lock);
	if (!late || !buckets_are_up(c->table))
		return;
	drop_all(c, "redis does not answer");
	if (id)
		send_tracking(c, id); /* answered when it does again */
}

static void *cover_main(void *arg)
{
	struct cover *c = arg;
	pthread_setname_np(pthread_self(), "silt-cover");
	for (;;) {
		atomic_store(&c->kicked, false);
		atomic_store(&c->waits_until, UINT64_MAX); /* what comes after the look kicks */
		uint64_t now = silt_now_ns(), due = buckets_due(c->table);
		if (due <= now) { /* what has not waited long goes with it */
			cover_todo(c, now + BUCKET_WAIT_MS * 1000000u);
			due = buckets_due(c->table);
		}
		atomic_store(&c->waits_until, due);
		check_late(c);
		silt_lock(&c->lock);
		if (c->calls && due > now + (uint64_t)COVER_LATE_MS * 250000u)
			due = now + (uint64_t)COVER_LATE_MS * 250000u;
		while (!c->stopping && !atomic_load(&c->kicked) && due > silt_now_ns())
			silt_cond_wait_until(&c->wake, &c->lock, due);
		bool stop = c->stopping;
		silt_unlock(&c->lock);
		if (stop)
			return NULL;
	}
}

/* Something is due in `ms`: does the thread know of something that is due before? */
static void kick(struct cover *c, unsigned ms)
{
	if (atomic_load(&c->waits_until) <= silt_now_ns() + ms * 1000000u || atomic_load(&c->kicked) ||
	    atomic_exchange(&c->kicked, true))
		return;
	silt_lock(&c->lock);
	silt_cond_signal(&c->wake);
	silt_unlock(&c->lock);
}

/* --- what replies bring --- */

static bool worth_it(struct cover *c, const struct bucket_id *id)
{
	if (c->m->cfg.relaxed)
		return true;
	uint64_t h = (id->seq ^ (uint64_t)id->shard << 40 ^ (uint64_t)id->start << 16) * 0x9e3779b97f4a7c15u;
	h = (h ^ h >> 32) * 0xff51afd7ed558ccdu;
	atomic_uint_fast32_t *at = &c->touched[(h >> 48) % TOUCHES];
	uint32_t mark = (uint32_t)(h >> 16) | 1;
	return atomic_exchange_explicit(at, mark, memory_order_relaxed) == mark;
}

uint32_t cover_put_inode(struct meta *m, silt_ino ino, const void *data, size_t len, bool surely,
			 bool replaces)
{
	struct cover *c = m->cover;
	char name[4];
	if (!c || !buckets_are_up(c->table))
		return 0;
	struct bucket_id id = bucket_of_inode(ino);
	if (!worth_it(c, &id) && !surely)
		return 0;
	uint32_t stamp = buckets_put(c->table, &id, name, bucket_inode_name(ino, name), data, len,
				     replaces);
	kick(c, BUCKET_WAIT_MS);
	return stamp;
}

uint32_t cover_put_reply(struct op *op, silt_ino ino, const redisReply *record)
{
	return cover_put_inode(op->m, ino, record->str, record->len, op->watch, op->to_kernel);
}

void cover_watch(struct meta *m, silt_ino ino, uint32_t stamp)
{
	struct bucket_id id = bucket_of_inode(ino);
	if (m->cover)
		buckets_watch(m->cover->table, &id, stamp);
}

uint32_t cover_put_name(struct meta *m, silt_ino dir, uint64_t buckets, const char *name, size_t name_len,
			const void *data, size_t len, uint32_t *start)
{
	struct cover *c = m->cover;
	char field[4];
	struct bucket_id id = bucket_of_inode(dir);
	if (!c || !buckets || !buckets_have(c->table, &id, field, bucket_inode_name(dir, field)))
		return 0;
	id = bucket_of_place(dir, buckets, record_place(name, name_len));
	uint32_t stamp = buckets_put(c->table, &id, name, name_len, data, len, false);
	*start = id.start;
	kick(c, BUCKET_WAIT_MS);
	return stamp;
}

void cover_want(struct meta *m, const struct bucket_id *id, const char *name, size_t name_len)
{
	buckets_want(m->cover->table, id, name, name_len);
	kick(m->cover, BUCKET_WAIT_MS);
}

void cover_doubt(struct meta *m, const struct bucket_id *id, const char *name, size_t name_len)
{
	if (buckets_doubt(m->cover->table, id, name, name_len))
		kick(m->cover, 0);
}

/* --- for fs/ --- */

bool meta_tell_inode(struct meta *m, silt_ino ino, const struct meta_seen *seen)
{
	if (!m->cover || !seen->inode)
		return false;
	struct bucket_id id = bucket_of_inode(ino);
	return buckets_tell(m->cover->table, &id, seen->inode);
}

bool meta_tell_name(struct meta *m, silt_ino dir, const struct meta_seen *seen)
{
	if (!m->cover || !seen->name)
		return false;
	struct bucket_id id = { .seq = silt_ino_seq(dir), .start = seen->start,
				.shard = (uint16_t)silt_ino_shard(dir), .names = true };
	return buckets_tell(m->cover->table, &id, seen->name);
}

bool meta_is_told(struct meta *m, silt_ino ino)
{
	char name[4];
	if (!m->cover)
		return false;
	struct bucket_id id = bucket_of_inode(ino);
	return buckets_is_told(m->cover->table, &id, name, bucket_inode_name(ino, name));
}

bool meta_remembers(struct meta *m, silt_ino ino, struct silt_inode *out, struct meta_seen *seen)
{
	char name[4], record[8192];
	size_t len;
	if (!m->cover)
		return false;
	struct bucket_id id = bucket_of_inode(ino);
	return buckets_peek(m->cover->table, &id, name, bucket_inode_name(ino, name), record, sizeof(record),
			    &len, seen ? &seen->inode : NULL) &&
	       record_decode(ino, record, len, out, NULL, NULL) == 0;
}

bool meta_pushes(struct meta *m)
{
	return m->cover && buckets_are_up(m->cover->table);
}

bool meta_relaxed(struct meta *m)
{
	return m->cfg.relaxed && meta_pushes(m);
}

void meta_listen(struct meta *m, const struct meta_listener *l)
{
	struct cover *c = m->cover;
	if (!c)
		return;
	buckets_listen(c->table, l ? l->on_stale : NULL, l ? l->arg : NULL);
	silt_lock(&c->lock);
	c->listener = l ? *l : (struct meta_listener){ 0 };
	silt_unlock(&c->lock);
}

struct buckets *cover_table(struct meta *m)
{
	return m->cover ? m->cover->table : NULL;
}

/* --- life --- */

int cover_open(struct meta *m)
{
	if (!m->cfg.cache_size || !m->cfg.session)
		return 0;
	struct cover *c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->m = m;
	silt_lock_init(&c->lock);
	silt_cond_init(&c->wake);
	m->cover = c;
	c->touched = calloc(TOUCHES, sizeof(*c->touched));
	if (!c->touched)
		return -ENOMEM;
	return buckets_open(m->cfg.cache_size, m->cfg.relaxed, m->metrics, &c->table);
}

int cover_start(struct meta *m)
{
	struct cover *c = m->cover;
	if (!c)
		return 0;
	struct push_listener l = { .up = push_is_up, .down = push_is_down, .invalidate = push_invalidates,
				   .arg = c };
	push_listen(m->push, &l);
	int rc = -pthread_create(&c->thread, NULL, cover_main, c);
	c->runs = rc == 0;
	return rc;
}

void cover_stop(struct meta *m)
{
	struct cover *c = m->cover;
	if (!c || !c->runs)
		return;
	silt_lock(&c->lock);
	c->stopping = true;
	silt_cond_signal(&c->wake);
	silt_unlock(&c->lock);
	pthread_join(c->thread, NULL);
	c->runs = false;
	drop_all(c, "end");
}

void cover_close(struct meta *m)
{
	struct cover *c = m->cover;
	if (!c)
		return;
	buckets_close(c->table);
	free(c->touched);
	silt_lock_destroy(&c->lock);
	silt_cond_destroy(&c->wake);
	free(c);
	m->cover = NULL;
}
