/* Folds logs of windows (functions_fold.lua): of the entries of a log those parts stay that still show.
 * Done by the heartbeat thread of any mount; two that fold the same log don't harm each other. */
#include <errno.h>
#include <inttypes.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/cleanup.h"
#include "meta/fold.h"

#define LOGS_MAX 16 /* in one call */

static int by_pack(const void *a, const void *b)
{
	const struct live_change *x = a, *y = b;
	return x->pack < y->pack ? -1 : x->pack > y->pack;
}

/* Adds up the changes of each pack. Returns how many are left; those of 0 are not. */
static size_t add_up(struct live_change *v, size_t n)
{
	size_t out = 0;
	qsort(v, n, sizeof(*v), by_pack);
	for (size_t i = 0; i < n;) {
		struct live_change sum = v[i];
		while (++i < n && v[i].pack == sum.pack)
			sum.stored += v[i].stored;
		if (sum.stored)
			v[out++] = sum;
	}
	return out;
}

int log_fold(const void *log, size_t len, fold_entry_fn entry, void *arg, struct folded *out)
{
	struct extent_map map;
	extent_map_init(&map);
	const uint8_t *p = log;
	size_t left = len, n = 0;
	*out = (struct folded){ 0 };
	/* An entry is 3 bytes at least, and leaves two more in the map at most. */
	struct live_change *v = reallocarray(NULL, len + 1, sizeof(*v));
	int err = v ? 0 : -ENOMEM;
	while (left && !err) {
		struct silt_extent e = { 0 };
		int used = extent_decode(p, left, &e);
		uint64_t pack = e.pack;
		if (used > 0 && entry)
			entry(arg, &e);
		err = used < 0 ? used : extent_map_add(&map, &e);
		if (err)
			break;
		if (!(e.flags & EXTENT_HOLE))
			v[n++] = (struct live_change){ pack, -(int64_t)e.stored };
		p += used;
		left -= (size_t)used;
	}
	if (!err) {
		for (size_t i = 0; i < map.n; i++)
			v[n++] = (struct live_change){ map.v[i].pack, map.v[i].stored };
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

void folded_free(struct folded *f)
{
	free(f->log);
	free(f->v);
}

int log_replace(struct meta *m, unsigned shard, const char *name, const void *log, size_t len,
                const struct folded *f, uint64_t to)
{
	enum meta_function fn = to ? F_MOVE_LOG : F_FOLD;
	size_t n = f ? f->n : 0;
	unsigned char h[SHA_DIGEST_LENGTH];
	char hex[2 * SHA_DIGEST_LENGTH + 1];
	SHA1(log, len, h);
	for (size_t i = 0; i < sizeof(h); i++)
		snprintf(hex + 2 * i, 3, "%02x", h[i]);
	struct conn_request *r =
	        call_begin(m, shard, fn, (int)(4 + 2 * n) + (to != 0), 160 + (f ? f->len : 0) + 48 * n);
	if (to)
		conn_arg_u64(&r, to);
	conn_arg_str(&r, name);
	conn_arg_u64(&r, f ? len : 0);
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
	int rc = call_checked(m, fn, r, &reply, &done);
	if (reply)
		freeReplyObject(reply);
	return rc ? rc : done == 1;
}

static int fold_one(struct meta *m, unsigned shard, const redisReply *name, const redisReply *log)
{
	struct folded f = { 0 };
	int err = log->len ? log_fold(log->str, log->len, NULL, NULL, &f) : 0;
	if (err == -EINVAL)
		silt_error(m->log, "the extent log %s in shard %u is damaged and stays as it is", name->str,
		           shard);
	else if (err)
		return err; /* no memory: the next beat tries again */
	/* What is hardly any shorter is not worth the writing; it is looked at again when it has doubled. */
	bool worth = !err && log->len && f.len <= log->len / 4 * 3;
	int rc = log_replace(m, shard, name->str, log->str, log->len, worth ? &f : NULL, 0);
	if (rc == 1)
		silt_count(m->metrics, M_LOGS_FOLDED, 1);
	folded_free(&f);
	return rc < 0 ? rc : 0;
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
