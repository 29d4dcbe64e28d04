/* Folds logs of windows (functions_fold.lua): of the entries of a log those parts stay that still show.
 * Done by the heartbeat thread of any mount; two that fold the same log don't harm each other. */
#include "meta/engine.h"

#include <errno.h>
#include <inttypes.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/cleanup.h"

#define LOGS_MAX 16 /* in one call */

/* By how much a pack's live bytes change. */
struct change {
	uint64_t pack;
	int64_t stored;
};

static int by_pack(const void *a, const void *b)
{
	const struct change *x = a, *y = b;
	return x->pack < y->pack ? -1 : x->pack > y->pack;
}

/* Adds up the changes of each pack. Returns how many are left; those of 0 are not. */
static size_t add_up(struct change *v, size_t n)
{
	size_t out = 0;
	qsort(v, n, sizeof(*v), by_pack);
	for (size_t i = 0; i < n;) {
		struct change sum = v[i];
		while (++i < n && v[i].pack == sum.pack)
			sum.stored += v[i].stored;
		if (sum.stored)
			v[out++] = sum;
	}
	return out;
}

/* A log and what becomes of it. */
struct folded {
	uint8_t *log; /* malloced; NULL: empty */
	size_t len;
	struct change *v; /* malloced */
	size_t n;
};

static int fold(const redisReply *log, struct folded *out)
{
	struct extent_map map;
	extent_map_init(&map);
	const uint8_t *p = (const uint8_t *)log->str;
	size_t left = log->len, n = 0;
	/* An entry is 3 bytes at least, and leaves two more in the map at most. */
	struct change *v = reallocarray(NULL, log->len + 1, sizeof(*v));
	int err = v ? 0 : -ENOMEM;
	while (left && !err) {
		struct silt_extent e;
		int used = extent_decode(p, left, &e);
		err = used < 0 ? used : extent_map_add(&map, &e);
		if (err)
			break;
		if (!(e.flags & EXTENT_HOLE))
			v[n++] = (struct change){ e.pack, -(int64_t)e.stored };
		p += used;
		left -= (size_t)used;
	}
	if (!err) {
		for (size_t i = 0; i < map.n; i++)
			v[n++] = (struct change){ map.v[i].pack, map.v[i].stored };
		err = extent_map_encode(&map, &out->log, &out->len);
	}
	extent_map_free(&map);
	if (err) {
		free(v);
		return err;
	}
	out->v = v;
	out->n = n ? add_up(v, n) : 0;
	return 0;
}

/* Puts `f` in the place of a log that was read; NULL: it stays as it is, and is off the list. */
static int apply(struct meta *m, unsigned shard, const redisReply *name, const redisReply *log,
                 const struct folded *f)
{
	size_t n = f ? f->n : 0;
	unsigned char h[SHA_DIGEST_LENGTH];
	char hex[2 * SHA_DIGEST_LENGTH + 1];
	SHA1((const unsigned char *)log->str, log->len, h);
	for (size_t i = 0; i < sizeof(h); i++)
		snprintf(hex + 2 * i, 3, "%02x", h[i]);
	struct conn_request *r =
	        call_begin(m, shard, F_FOLD, (int)(4 + 2 * n), name->len + 96 + (f ? f->len : 0) + 48 * n);
	conn_arg(&r, name->str, name->len);
	conn_arg_u64(&r, f ? log->len : 0);
	conn_arg_str(&r, hex);
	conn_arg(&r, f && f->log ? (const void *)f->log : "", f ? f->len : 0);
	for (size_t i = 0; i < n; i++) {
		char text[24];
		snprintf(text, sizeof(text), "%" PRId64, f->v[i].stored);
		conn_arg_u64(&r, f->v[i].pack);
		conn_arg_str(&r, text);
	}
	redisReply *reply = NULL;
	long long done = 0;
	int rc = call_checked(m, F_FOLD, r, &reply, &done);
	if (reply)
		freeReplyObject(reply);
	if (!rc && done)
		silt_count(m->metrics, M_LOGS_FOLDED, 1);
	return rc;
}

static int fold_one(struct meta *m, unsigned shard, const redisReply *name, const redisReply *log)
{
	struct folded f = { 0 };
	int err = log->len ? fold(log, &f) : 0;
	if (err == -EINVAL)
		silt_error(m->log, "the extent log %s in shard %u is damaged and stays as it is", name->str,
		           shard);
	else if (err)
		return err; /* no memory: the next beat tries again */
	/* What is hardly any shorter is not worth the writing; it is looked at again when it has doubled. */
	bool worth = !err && log->len && f.len <= log->len / 4 * 3;
	err = apply(m, shard, name, log, worth ? &f : NULL);
	free(f.log);
	free(f.v);
	return err;
}

bool fold_logs(struct meta *m, unsigned shard)
{
	redisReply *reply = NULL;
	struct conn_request *r = call_begin(m, shard, F_FOLD_LIST, 1, 0);
	conn_arg_u64(&r, LOGS_MAX);
	int rc = call_checked(m, F_FOLD_LIST, r, &reply, NULL);
	size_t n = 0;
	for (size_t i = 1; !rc && i + 1 < reply->elements; i += 2, n++) {
		const redisReply *name = reply_at(reply, i), *log = reply_at(reply, i + 1);
		rc = name && log ? fold_one(m, shard, name, log) : -EIO;
	}
	if (reply)
		freeReplyObject(reply);
	return !rc && n > 0;
}
