/* Extents are made to name another pack, which has the same bytes (functions_compact.lua). All of it blocks. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/fold.h"

#define PLACES_A_CALL 400
#define MOVES_A_CALL  200

int meta_noted_packs(struct meta *m, unsigned shard, uint64_t *cursor, unsigned want, uint64_t **out, size_t *n)
{
	return list_packs(m, shard, F_NOTED_PACKS, cursor, want, out, n);
}

int meta_noted_forget(struct meta *m, unsigned shard, const uint64_t *packs, size_t n)
{
	return all_packs(m, shard, F_FORGET_NOTED, packs, n, NULL);
}

/* --- reading --- */

static int take_place(struct meta_place *p, const redisReply *r)
{
	uint8_t kind = r && r->len ? (uint8_t)r->str[0] : 0;
	p->log = kind == 2;
	if (kind != 1 && kind != 2)
		return 0;
	p->len = r->len - 1;
	p->entries = malloc(p->len + 1);
	if (!p->entries)
		return -ENOMEM;
	memcpy(p->entries, r->str + 1, p->len);
	return 0;
}

/* One call; *done gets how many of them it answered. */
static int read_some(struct meta *m, unsigned shard, struct meta_place *v, size_t n, size_t *done)
{
	redisReply *reply = NULL;
	struct conn_request *r = call_begin(m, shard, F_EXTENTS, (int)(2 * n), 48 * n);
	for (size_t i = 0; i < n; i++) {
		conn_arg_u64(&r, silt_ino_seq(v[i].ino));
		conn_arg_u64(&r, v[i].window);
	}
	int rc = call_checked(m, F_EXTENTS, r, &reply, NULL);
	*done = 0;
	if (!rc && (reply->elements < 2 || reply->elements > n + 1))
		rc = -EIO;
	for (size_t i = 1; !rc && i < reply->elements; i++, (*done)++)
		rc = take_place(&v[i - 1], reply_at(reply, i));
	if (reply)
		freeReplyObject(reply);
	return rc;
}

int meta_read_places(struct meta *m, unsigned shard, struct meta_place *v, size_t n)
{
	int rc = 0;
	for (size_t i = 0; i < n; i++) {
		v[i].entries = NULL;
		v[i].len = 0;
		v[i].log = false;
	}
	for (size_t at = 0, done; at < n && !rc; at += done)
		rc = conn_up(m->conn) ? read_some(m, shard, v + at, n - at < PLACES_A_CALL ? n - at : PLACES_A_CALL,
						  &done)
				      : -ENOTCONN;
	return rc;
}

/* --- moving --- */

struct moving {
	const struct meta_move *v;
	size_t n;
	uint64_t to, moved;
};

static const struct meta_move *move_of(const struct moving *g, const struct silt_extent *e)
{
	size_t lo = 0, hi = g->n;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		const struct meta_move *x = &g->v[mid];
		if (x->pack < e->pack || (x->pack == e->pack && x->pack_off < e->pack_off))
			lo = mid + 1;
		else
			hi = mid;
	}
	bool found = lo < g->n && g->v[lo].pack == e->pack && g->v[lo].pack_off == e->pack_off;
	return found ? &g->v[lo] : NULL;
}

static void move_entry(void *arg, struct silt_extent *e)
{
	struct moving *g = arg;
	const struct meta_move *x = e->flags & EXTENT_HOLE ? NULL : move_of(g, e);
	if (!x)
		return;
	e->pack = g->to;
	e->pack_off = x->to_off;
	g->moved++;
}

static int move_log(struct meta *m, unsigned shard, const struct meta_place *p, struct moving *g)
{
	char name[48];
	struct folded f;
	struct moving one = *g;
	one.moved = 0;
	int rc = log_fold(p->entries, p->len, move_entry, &one, &f);
	if (rc == -EINVAL)
		return 0; /* damaged: fsck's */
	if (rc)
		return rc;
	snprintf(name, sizeof(name), "%" PRIx64 ":%" PRIu64, (uint64_t)silt_ino_seq(p->ino), p->window);
	/* Also when only what does not show goes. */
	if (one.moved || f.len < p->len)
		rc = log_replace(m, shard, name, p->entries, p->len, &f, g->to);
	if (rc == 1)
		g->moved += one.moved;
	folded_free(&f);
	return rc < 0 ? rc : 0;
}

/* The one extent of a record, decoded; false: it is none that moves. */
static bool inline_moves(const struct meta_place *p, const struct moving *g, struct silt_extent *from)
{
	return p->entries && !p->log && extent_decode(p->entries, p->len, from) == (int)p->len &&
	       !(from->flags & EXTENT_HOLE) && move_of(g, from);
}

static int move_inlines(struct meta *m, unsigned shard, const struct meta_place *const *v, size_t n,
			struct moving *g)
{
	redisReply *reply = NULL;
	struct conn_request *r = call_begin(m, shard, F_MOVE, (int)(1 + 5 * n), 160 * n);
	conn_arg_u64(&r, g->to);
	for (size_t i = 0; i < n; i++) {
		uint8_t text[SILT_EXTENT_ENCODED_MAX];
		struct silt_extent e;
		extent_decode(v[i]->entries, v[i]->len, &e);
		struct silt_extent now = e;
		const struct meta_move *x = move_of(g, &e);
		now.pack = g->to;
		now.pack_off = x->to_off;
		conn_arg_u64(&r, silt_ino_seq(v[i]->ino));
		conn_arg(&r, v[i]->entries, v[i]->len);
		conn_arg(&r, text, extent_encode(&now, text));
		conn_arg_u64(&r, e.pack);
		conn_arg_u64(&r, e.stored);
	}
	int rc = call_checked(m, F_MOVE, r, &reply, NULL);
	if (!rc)
		g->moved += reply_number(reply, 1);
	if (reply)
		freeReplyObject(reply);
	return rc;
}

int meta_move_places(struct meta *m, unsigned shard, const struct meta_place *v, size_t n,
		     const struct meta_move *moves, size_t nmoves, uint64_t to, uint64_t *moved)
{
	struct moving g = { .v = moves, .n = nmoves, .to = to };
	const struct meta_place *some[MOVES_A_CALL];
	size_t k = 0;
	int rc = 0;
	for (size_t i = 0; i < n && !rc; i++) {
		struct silt_extent e;
		if (v[i].log)
			rc = conn_up(m->conn) ? move_log(m, shard, &v[i], &g) : -ENOTCONN;
		else if (inline_moves(&v[i], &g, &e))
			some[k++] = &v[i];
		if (!rc && k && (k == MOVES_A_CALL || i + 1 == n)) {
			rc = conn_up(m->conn) ? move_inlines(m, shard, some, k, &g) : -ENOTCONN;
			k = 0;
		}
	}
	*moved = g.moved;
	return rc;
}

/* --- dictionaries --- */

static int number_call(struct meta *m, enum meta_function fn, uint32_t give, uint32_t *number)
{
	redisReply *reply = NULL;
	if (!conn_up(m->conn))
		return -ENOTCONN;
	struct conn_request *r = call_begin(m, 0, fn, give != 0, 0);
	if (give)
		conn_arg_u64(&r, give);
	int rc = call_checked(m, fn, r, &reply, NULL);
	const redisReply *s = rc || !number ? NULL : reply_at(reply, 1);
	uint64_t v = s ? strtoull(s->str, NULL, 10) : 0;
	if (!rc && number && (!s || v > UINT32_MAX))
		rc = -EIO;
	if (!rc && number)
		*number = (uint32_t)v;
	if (reply)
		freeReplyObject(reply);
	return rc;
}

int meta_dictionary(struct meta *m, uint32_t *number)
{
	return number_call(m, F_DICTIONARY, 0, number);
}

int meta_dictionary_new(struct meta *m, uint32_t *number)
{
	return number_call(m, F_DICTIONARY_NEW, 0, number);
}

int meta_dictionary_use(struct meta *m, uint32_t number)
{
	return number_call(m, F_DICTIONARY_USE, number, NULL);
}
