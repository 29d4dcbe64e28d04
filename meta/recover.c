/* What is done for sessions that ended or died, and the garbage lists. */
#include "meta/tx.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define GARBAGE_ITEMS 64 /* a shard and heartbeat */
#define PACKS_MAX     1024 /* a call: it changes a counter for each */

static struct silt_time wall_clock(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	return (struct silt_time){ ts.tv_sec, (uint32_t)ts.tv_nsec };
}

/* --- intents --- */

static int resume_rename(struct meta *m, const char *tx, const struct intent_field *f)
{
	struct meta_reply r = { 0 };
	struct rename_args a = { .tx = tx, .dir = intent_u64(&f[0]), .name = f[1].p, .len = f[1].len,
				 .dir2 = intent_u64(&f[2]), .name2 = f[3].p, .len2 = f[3].len,
				 .flags = (unsigned)intent_u64(&f[4]), .resume = true,
				 .now = wall_clock() };
	return run_rename(m, &a, &r);
}

static int resume_drop(struct meta *m, const char *tx, unsigned shard, const char *entry, size_t len)
{
	uint32_t type;
	silt_ino ino;
	bool moving, seen = true;
	int rc = record_entry_decode(shard, entry, len, &type, &ino, &moving);
	if (!rc)
		rc = run_drop(m, tx, shard, ino, false, wall_clock(), &seen, NULL);
	if (!rc)
		step_clear(m, silt_ino_shard(ino), tx, true);
	return rc;
}

static int resume(struct meta *m, unsigned shard, const char *tx, const redisReply *intent)
{
	struct intent_field f[INTENT_FIELDS];
	int n = intent->len ? 0 : -EUCLEAN, rc = -EUCLEAN;
	char kind = intent->len ? intent->str[0] : 0;
	if (kind == 'T') /* part of a rename's, which lies elsewhere */
		return 0;
	if (!n && kind != 'U')
		n = intent_split(intent->str, intent->len, f);
	if (kind == 'U')
		rc = resume_drop(m, tx, shard, intent->str + 1, intent->len - 1);
	else if ((kind == 'D' || kind == 'L') && n == 4)
		rc = run_add(m, tx, intent_u64(&f[0]), f[1].p, f[1].len, (uint32_t)intent_u64(&f[3]),
			     intent_u64(&f[2]), wall_clock(), NULL);
	else if (kind == 'R' && n == 2)
		rc = run_rmdir(m, tx, intent_u64(&f[0]), f[1].p, f[1].len, wall_clock(), true);
	else if (kind == 'V' && n == 5)
		rc = resume_rename(m, tx, f);
	/* An operation that ended with an error of its own (ENOTEMPTY...) is complete as well. */
	if (rc == -EUCLEAN || rc == -EIO || rc == -ENOTCONN)
		silt_error(m->log, "transaction %s (%c) in shard %u could not be completed: %s", tx, kind,
			   shard, strerror(-rc));
	else
		silt_info(m->log, "completed transaction %s (%c) in shard %u: %s", tx, kind, shard,
			  rc ? strerror(-rc) : "ok");
	return rc == -ENOTCONN ? rc : 0;
}

/* The intents of a shard of `session`, or of its transaction `of`. -ENOTCONN: not all could be completed. */
static int resume_all(struct meta *m, unsigned shard, const char *session, const char *died, const char *of)
{
	redisReply *reply = NULL;
	int rc = step_take(m, shard, session, died, of, &reply);
	for (size_t i = 1; !rc && i + 1 < reply->elements; i += 2) {
		const redisReply *tx = reply_at(reply, i), *intent = reply_at(reply, i + 1);
		if (tx && intent && tx->len < 60)
			rc = resume(m, shard, tx->str, intent);
	}
	if (reply)
		freeReplyObject(reply);
	return rc;
}

int tx_resume(struct meta *m, const char *tx)
{
	int rc = 0;
	for (unsigned s = 0; s < m->volume.shards && rc != -ENOTCONN; s++)
		rc = resume_all(m, s, m->session_text, "", tx);
	if (rc != -ENOTCONN)
		tx_unlock(m, tx);
	return rc;
}

/* --- open-but-deleted files --- */

static int sweep(struct meta *m, unsigned shard, const char *session, const char *died)
{
	char cursor[24] = "0";
	int err = locks_sweep(m, shard, session, died);
	if (err)
		return err;
	do {
		redisReply *reply = NULL;
		struct conn_request *r = call_begin(m, shard, F_SESSION_SWEEP, 3, 0);
		conn_arg_str(&r, session);
		conn_arg_str(&r, died);
		conn_arg_str(&r, cursor);
		int rc = call_checked(m, F_SESSION_SWEEP, r, &reply, NULL);
		const redisReply *next = rc ? NULL : reply_at(reply, 1);
		snprintf(cursor, sizeof(cursor), "%s", next ? next->str : "0");
		if (reply)
			freeReplyObject(reply);
		if (rc)
			return rc;
	} while (strcmp(cursor, "0") != 0);
	return 0;
}

void tx_recover(struct meta *m, const char *session, const char *died)
{
	int rc = 0;
	/* All shards know of the death before anything is done: nothing new is begun anywhere then. And all
	 * intents before any sweep: completing one may leave something for another shard's sweep. */
	for (unsigned s = 0; s < m->volume.shards && *died && !rc; s++) {
		redisReply *reply = NULL;
		rc = step_take(m, s, session, died, "", &reply);
		if (reply)
			freeReplyObject(reply);
	}
	for (unsigned s = 0; s < m->volume.shards && m->volume.shards > 1 && !rc; s++)
		rc = resume_all(m, s, session, died, "");
	for (unsigned s = 0; s < m->volume.shards && !rc; s++)
		rc = sweep(m, s, session, died);
	if (rc)
		return; /* somebody's next claim tries again */
	redisReply *reply = NULL;
	struct conn_request *r = call_begin(m, 0, F_SESSION_CLOSE, 2, 0);
	conn_arg_str(&r, session);
	conn_arg_str(&r, died);
	call_wait(m, F_SESSION_CLOSE, r, &reply);
	if (reply)
		freeReplyObject(reply);
}

/* --- garbage --- */

struct pack_sum {
	uint64_t pack, stored;
};

struct pack_sums {
	struct pack_sum v[PACKS_MAX];
	size_t n;
};

/* Adds up a log. Returns how much of it is in the sums: less than `len` when they are full, or where
 * it is damaged (*good becomes false). */
static size_t sum_log(struct pack_sums *sums, const char *log, size_t len, bool *good)
{
	size_t p = 0;
	while (p < len) {
		struct silt_extent e;
		int used = extent_decode(log + p, len - p, &e);
		if (used < 0) {
			*good = false;
			return len; /* the rest can't be read: it goes */
		}
		size_t i = 0;
		while (!(e.flags & EXTENT_HOLE) && i < sums->n && sums->v[i].pack != e.pack)
			i++;
		if (i == PACKS_MAX)
			break;
		if (!(e.flags & EXTENT_HOLE)) {
			if (i == sums->n)
				sums->v[sums->n++] = (struct pack_sum){ .pack = e.pack };
			sums->v[i].stored += e.stored;
		}
		p += (size_t)used;
	}
	return p;
}

/* What was worked off of a reply of garbage_peek. */
struct worked {
	size_t item;	/* bytes of a "B" item */
	size_t windows; /* of an "X" item: all of them in whole but the last */
	size_t last;	/* bytes of the last one */
};

static int finish_garbage(struct meta *m, unsigned shard, const redisReply *peeked,
			  const struct pack_sums *sums, const struct worked *w)
{
	const redisReply *item = reply_at(peeked, 1);
	struct conn_request *r = call_begin(m, shard, F_GARBAGE_DONE, (int)(3 + 3 * w->windows + 2 * sums->n),
					    item->len + 96 * (w->windows + sums->n));
	redisReply *reply = NULL;
	conn_arg(&r, item->str, item->len);
	conn_arg_u64(&r, w->item);
	conn_arg_u64(&r, w->windows);
	for (size_t i = 0; i < w->windows; i++) {
		const redisReply *name = peeked->element[2 + 2 * i], *log = peeked->element[3 + 2 * i];
		conn_arg(&r, name->str, name->len);
		conn_arg_u64(&r, log->len);
		conn_arg_u64(&r, i + 1 < w->windows ? log->len : w->last);
	}
	for (size_t i = 0; i < sums->n; i++) {
		conn_arg_u64(&r, sums->v[i].pack);
		conn_arg_u64(&r, sums->v[i].stored);
	}
	int rc = call_checked(m, F_GARBAGE_DONE, r, &reply, NULL);
	if (reply)
		freeReplyObject(reply);
	return rc;
}

/* Works one item off, or a part of it that has not too many packs. False: nothing left, or trouble.
 * *deleted: there are deleted files to be looked at. */
static bool collect_one(struct meta *m, unsigned shard, struct pack_sums *sums, bool *deleted)
{
	redisReply *reply = NULL;
	long long code = 0;
	struct conn_request *r = call_begin(m, shard, F_GARBAGE_PEEK, 0, 0);
	int rc = call_checked(m, F_GARBAGE_PEEK, r, &reply, &code);
	*deleted = code == 1;
	const redisReply *item = rc ? NULL : reply_at(reply, 1);
	bool more = false;
	if (item && item->len) {
		bool good = true;
		struct worked w = { 0 };
		size_t windows = item->str[0] == 'X' ? (reply->elements - 2) / 2 : 0;
		sums->n = 0;
		if (item->str[0] == 'B')
			w.item = sum_log(sums, item->str + 1, item->len - 1, &good);
		while (w.windows < windows) {
			const redisReply *log = reply->element[3 + 2 * w.windows++];
			w.last = sum_log(sums, log->str, log->len, &good);
			if (w.last < log->len)
				break;
		}
		if (!good)
			silt_error(m->log, "freed extents in shard %u are damaged: their space is found by gc",
				   shard);
		more = finish_garbage(m, shard, reply, sums, &w) == 0;
	}
	if (reply)
		freeReplyObject(reply);
	return more;
}

void tx_collect_garbage(struct meta *m)
{
	struct pack_sums *sums = malloc(sizeof(*sums));
	if (!sums)
		return;
	/* The next heartbeat must not wait for thousands of shards; they get their turn after it. */
	uint64_t until = silt_now_ns() + (uint64_t)m->cfg.heartbeat_ms * 1000000u;
	unsigned n = m->volume.shards;
	for (unsigned k = 0; k < n && conn_up(m->conn) && silt_now_ns() < until; k++) {
		unsigned s = m->garbage_shard++ % n;
		bool deleted = false;
		for (int i = 0; i < GARBAGE_ITEMS && silt_now_ns() < until && collect_one(m, s, sums, &deleted);
		     i++)
			;
		while (silt_now_ns() < until && fold_logs(m, s))
			;
		if (deleted)
			deleted_look(m, s);
	}
	free(sums);
}
