/* Packs that nobody uses any more, and who looks after them (functions_packs.lua). All of it blocks. */
#include "meta/engine.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define PACKS_A_CALL 500

int meta_worker_elect(struct meta *m, unsigned ms)
{
	if (!m->session)
		return 0;
	if (!conn_up(m->conn)) /* who ends the caller's thread need not wait for Redis */
		return -ENOTCONN;
	redisReply *reply = NULL;
	long long mine = 0;
	struct conn_request *r = call_begin(m, 0, F_WORKER, 2, 0);
	conn_arg_str(&r, m->session_text);
	conn_arg_u64(&r, ms);
	int rc = call_checked(m, F_WORKER, r, &reply, &mine);
	if (reply)
		freeReplyObject(reply);
	return rc ? rc : mine == 1;
}

void meta_worker_resign(struct meta *m)
{
	redisReply *reply = NULL;
	if (!conn_up(m->conn)) /* it runs out by itself */
		return;
	struct conn_request *r = call_begin(m, 0, F_RESIGN, 1, 0);
	conn_arg_str(&r, m->session_text);
	call_checked(m, F_RESIGN, r, &reply, NULL);
	if (reply)
		freeReplyObject(reply);
}

int list_packs(struct meta *m, unsigned shard, enum meta_function fn, uint64_t *cursor, unsigned want, uint64_t **out,
               size_t *n)
{
	redisReply *reply = NULL;
	*n = 0;
	*out = NULL;
	if (!conn_up(m->conn))
		return -ENOTCONN;
	struct conn_request *r = call_begin(m, shard, fn, 2, 0);
	conn_arg_u64(&r, *cursor);
	conn_arg_u64(&r, want);
	int rc = call_checked(m, fn, r, &reply, NULL);
	const redisReply *next = rc ? NULL : reply_at(reply, 1);
	if (!rc && !next)
		rc = -EIO;
	if (!rc && !(*out = calloc(reply->elements, sizeof(**out))))
		rc = -ENOMEM;
	for (size_t i = 2; !rc && i < reply->elements; i++) {
		const redisReply *s = reply_at(reply, i);
		uint64_t pack = s ? strtoull(s->str, NULL, 10) : 0;
		if (pack)
			(*out)[(*n)++] = pack;
	}
	if (!rc)
		*cursor = strtoull(next->str, NULL, 10);
	if (reply)
		freeReplyObject(reply);
	return rc;
}

int meta_dead_packs(struct meta *m, unsigned shard, uint64_t *cursor, unsigned want, uint64_t **out,
                    size_t *n)
{
	return list_packs(m, shard, F_DEAD_PACKS, cursor, want, out, n);
}

static int64_t number_of(const char *text)
{
	char *end;
	long long n = strtoll(text, &end, 10);
	return end == text || *end ? META_PACK_RUBBISH : n;
}

/* One call for some packs; `state` NULL: the reply says nothing. */
static int call_packs(struct meta *m, unsigned shard, enum meta_function fn, const uint64_t *packs, size_t n,
                      int64_t *state)
{
	redisReply *reply = NULL;
	if (!conn_up(m->conn))
		return -ENOTCONN;
	struct conn_request *r = call_begin(m, shard, fn, (int)n, 24 * n);
	for (size_t i = 0; i < n; i++)
		conn_arg_u64(&r, packs[i]);
	int rc = call_checked(m, fn, r, &reply, NULL);
	if (!rc && state && reply->elements != n + 1)
		rc = -EIO;
	for (size_t i = 0; !rc && state && i < n; i++) {
		const redisReply *s = reply_at(reply, i + 1);
		if (!s)
			rc = -EIO;
		else if (!strcmp(s->str, "-"))
			state[i] = META_PACK_BURIED;
		else
			state[i] = s->len ? number_of(s->str) : 0;
	}
	if (reply)
		freeReplyObject(reply);
	return rc;
}

int all_packs(struct meta *m, unsigned shard, enum meta_function fn, const uint64_t *packs, size_t n,
                     int64_t *state)
{
	int rc = 0;
	for (size_t i = 0; i < n && !rc; i += PACKS_A_CALL) {
		size_t some = n - i < PACKS_A_CALL ? n - i : PACKS_A_CALL;
		rc = call_packs(m, shard, fn, packs + i, some, state ? state + i : NULL);
	}
	return rc;
}

int meta_packs_count(struct meta *m, unsigned shard, const uint64_t *packs, size_t n, int64_t *state)
{
	return all_packs(m, shard, F_COUNT_PACKS, packs, n, state);
}

int meta_packs_forget(struct meta *m, unsigned shard, const uint64_t *packs, size_t n)
{
	return all_packs(m, shard, F_FORGET_PACKS, packs, n, NULL);
}

/* What is left of `packs` after a round of calls to all shards: those whose state is "gone" in each of them.
 * Returns their number; they come first, in the order that they had, and at[] follows. */
static int round_of(struct meta *m, enum meta_function fn, uint64_t *packs, size_t *at, size_t n, bool *good)
{
	int64_t *state = calloc(n + 1, sizeof(*state));
	uint64_t *alive = calloc(n + 1, sizeof(*alive));
	bool *buried = calloc(n + 1, sizeof(*buried));
	int rc = state && alive && buried ? 0 : -ENOMEM;
	for (size_t i = 0; i < n; i++)
		good[i] = true;
	for (unsigned s = 0; s < m->volume.shards && !rc; s++) {
		rc = all_packs(m, s, fn, packs, n, state);
		for (size_t i = 0; i < n && !rc; i++) {
			buried[i] = buried[i] || state[i] == META_PACK_BURIED;
			good[i] = good[i] && (state[i] == META_PACK_BURIED || (fn != F_BURY && !state[i]));
		}
	}
	free(state);
	/* What one shard buried and another uses comes back, also what an earlier burial left that was broken off. */
	size_t left = 0, back = 0;
	for (size_t i = 0; i < n && !rc; i++) {
		if (good[i]) {
			packs[left] = packs[i];
			at[left++] = at[i];
		} else if (buried[i]) {
			alive[back++] = packs[i];
		}
	}
	free(buried);
	for (unsigned s = 0; back && s < m->volume.shards && !rc; s++)
		rc = all_packs(m, s, F_EXHUME, alive, back, NULL);
	free(alive);
	return rc ? rc : (int)left;
}

int meta_packs_bury(struct meta *m, const uint64_t *packs, size_t n, bool *dead)
{
	uint64_t *some = calloc(n + 1, sizeof(*some));
	size_t *at = calloc(n + 1, sizeof(*at));
	bool *good = calloc(n + 1, sizeof(*good));
	int rc = some && at && good && n < INT_MAX ? (int)n : -ENOMEM;
	for (size_t i = 0; i < n && rc >= 0; i++) {
		some[i] = packs[i];
		at[i] = i;
		dead[i] = false;
	}
	/* Looked at first: what is alive need not be buried anywhere. */
	if (rc > 0)
		rc = round_of(m, F_COUNT_PACKS, some, at, (size_t)rc, good);
	if (rc > 0)
		rc = round_of(m, F_BURY, some, at, (size_t)rc, good);
	for (int i = 0; i < rc; i++)
		dead[at[i]] = true;
	free(some);
	free(at);
	free(good);
	return rc < 0 ? rc : 0;
}
