/* See scan.h and functions_scan.lua. */
#include "meta/scan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/engine.h"

static uint64_t number_at(const redisReply *reply, size_t i)
{
	const redisReply *s = reply_at(reply, i);
	return s ? strtoull(s->str, NULL, 10) : 0;
}

int meta_limits(struct meta *m, unsigned shard, struct meta_limits *out)
{
	redisReply *reply = NULL;
	int rc = call_checked(m, F_LIMITS, call_begin(m, shard, F_LIMITS, 0, 0), &reply, NULL);
	if (!rc && (number_at(reply, 1) > SILT_SEQ_MASK / 2 || number_at(reply, 2) > SILT_SEQ_MASK / 2)) {
		silt_error(m->log, "the counters of shard %u are damaged", shard);
		rc = -EUCLEAN;
	}
	if (!rc)
		*out = (struct meta_limits){ number_at(reply, 1), number_at(reply, 2),
			                     (int64_t)number_at(reply, 3), (int64_t)number_at(reply, 4) };
	if (reply)
		freeReplyObject(reply);
	return rc;
}

/* Pages of number and value, from bucket 0 to that of `last`. */
typedef int (*pair_fn)(void *arg, uint64_t number, const redisReply *value);

static int scan_pairs(struct meta *m, unsigned shard, enum meta_function fn, uint64_t last, pair_fn each, void *arg)
{
	uint64_t next = 0;
	int rc = 0;
	bool more = true;
	while (more && !rc) {
		redisReply *reply = NULL;
		struct conn_request *r = call_begin(m, shard, fn, 2, 0);
		conn_arg_u64(&r, next);
		conn_arg_u64(&r, last / 64);
		rc = call_checked(m, fn, r, &reply, NULL);
		const redisReply *n = rc ? NULL : reply_at(reply, 1);
		if (!rc && !n)
			rc = -EIO;
		for (size_t i = 2; !rc && i + 1 < reply->elements; i += 2) {
			const redisReply *value = reply_at(reply, i + 1);
			rc = value ? each(arg, number_at(reply, i), value) : -EIO;
		}
		more = n && n->len;
		if (more && !rc) {
			uint64_t to = strtoull(n->str, NULL, 10);
			rc = to > next ? 0 : -EIO;
			next = to;
		}
		if (reply)
			freeReplyObject(reply);
	}
	return rc;
}

struct inode_pass {
	unsigned shard;
	meta_scan_inode_fn each;
	void *arg;
};

static int on_inode(void *arg, uint64_t number, const redisReply *value)
{
	struct inode_pass *p = arg;
	return p->each(p->arg, silt_ino_make(p->shard, number & SILT_SEQ_MASK), value->str, value->len);
}

int meta_scan_inodes(struct meta *m, unsigned shard, meta_scan_inode_fn each, void *arg)
{
	struct inode_pass p = { shard, each, arg };
	struct meta_limits limits;
	int rc = meta_limits(m, shard, &limits);
	return rc ? rc : scan_pairs(m, shard, F_INODES, limits.last_inode + META_SCAN_BEYOND, on_inode, &p);
}

struct live_pass {
	meta_scan_live_fn each;
	void *arg;
};

static int on_live(void *arg, uint64_t number, const redisReply *value)
{
	struct live_pass *p = arg;
	char *end;
	long long live = strtoll(value->str, &end, 10);
	if (!strcmp(value->str, "-"))
		live = META_PACK_BURIED;
	else if (end == value->str || *end)
		live = META_PACK_RUBBISH;
	return p->each(p->arg, number, live);
}

int meta_scan_live(struct meta *m, unsigned shard, uint64_t last_pack, meta_scan_live_fn each, void *arg)
{
	struct live_pass p = { each, arg };
	return scan_pairs(m, shard, F_LIVE, last_pack, on_live, &p);
}

int meta_scan_entries(struct meta *m, silt_ino dir, meta_scan_entry_fn each, void *arg)
{
	uint64_t place = 0;
	int rc = 0;
	bool more = true;
	while (more && !rc) {
		redisReply *reply = NULL;
		struct conn_request *r = call_begin(m, silt_ino_shard(dir), F_READDIR, 4, 0);
		conn_arg_u64(&r, silt_ino_seq(dir));
		conn_arg_u64(&r, place);
		conn_arg_u64(&r, 1000);
		conn_arg(&r, "0", 1);
		rc = call_checked(m, F_READDIR, r, &reply, NULL);
		const redisReply *next = rc ? NULL : reply_at(reply, 1);
		if (!rc && !next)
			rc = -EIO;
		for (size_t i = 3; !rc && i + 2 < reply->elements; i += 3) {
			const redisReply *name = reply_at(reply, i), *entry = reply_at(reply, i + 1);
			rc = name && entry ? each(arg, name->str, name->len, entry->str, entry->len) : -EIO;
		}
		more = next && next->len;
		if (more && !rc) {
			uint64_t to = strtoull(next->str, NULL, 10);
			rc = to > place ? 0 : -EIO;
			place = to;
		}
		if (reply)
			freeReplyObject(reply);
	}
	return rc;
}

static int scan_log(const struct extent_log *log, meta_scan_extent_fn each, void *arg)
{
	for (size_t at = 0; at < log->len;) {
		struct silt_extent e;
		int used = extent_decode(log->log + at, log->len - at, &e);
		if (used < 0 || e.off / SILT_WINDOW != log->window)
			return -EBADMSG;
		int rc = each(arg, &e);
		if (rc)
			return rc;
		at += (size_t)used;
	}
	return 0;
}

int meta_scan_extents(struct meta *m, const struct silt_inode *inode, meta_scan_extent_fn each, void *arg)
{
	if (inode->map == SILT_MAP_INLINE)
		return each(arg, &inode->extent);
	if (inode->map != SILT_MAP_EXTERNAL)
		return 0;
	uint64_t from = 0;
	int rc = 0;
	do {
		struct meta_wait w;
		meta_wait_init(&w);
		meta_windows(m, inode->attr.ino, from, meta_wait_done, &w);
		rc = meta_wait(&w);
		const uint8_t *p = (const uint8_t *)w.data;
		size_t left = rc ? 0 : w.reply.len;
		struct extent_log log;
		while (!rc && extent_logs_next(&p, &left, &log))
			rc = scan_log(&log, each, arg);
		from = w.reply.next;
		meta_wait_free(&w);
	} while (from && !rc);
	return rc;
}

/* --- garbage --- */

static int scan_item(struct meta *m, unsigned shard, const redisReply *item, meta_scan_extent_fn each, void *arg)
{
	if (item->len && item->str[0] == 'B') {
		const uint8_t *p = (const uint8_t *)item->str + 1;
		for (size_t left = item->len - 1; left;) {
			struct silt_extent e;
			int used = extent_decode(p, left, &e);
			if (used < 0)
				return -EBADMSG;
			int rc = each(arg, &e);
			if (rc)
				return rc;
			p += used;
			left -= (size_t)used;
		}
		return 0;
	}
	/* A whole file's windows, in a hash of their own. */
	char key[64];
	snprintf(key, sizeof(key), "{%u}x%.*s", shard, (int)(item->len ? item->len - 1 : 0), item->str + 1);
	struct conn_request *r = conn_begin(2, F_COMMAND, 64);
	redisReply *reply = NULL;
	conn_arg_str(&r, "HVALS");
	conn_arg_str(&r, key);
	int rc = call_wait(m, F_COMMAND, r, &reply);
	if (!rc && reply->type != REDIS_REPLY_ARRAY)
		rc = -EIO;
	for (size_t i = 0; !rc && i < reply->elements; i++) {
		const redisReply *log = reply_at(reply, i);
		for (size_t at = 0; log && at < log->len && !rc;) {
			struct silt_extent e;
			int used = extent_decode(log->str + at, log->len - at, &e);
			rc = used < 0 ? -EBADMSG : each(arg, &e);
			at += used > 0 ? (size_t)used : 0;
		}
	}
	if (reply)
		freeReplyObject(reply);
	return rc;
}

int meta_scan_garbage(struct meta *m, unsigned shard, meta_scan_extent_fn each, void *arg)
{
	uint64_t from = 0;
	size_t n = 1;
	int rc = 0;
	while (n && !rc) {
		redisReply *reply = NULL;
		struct conn_request *r = call_begin(m, shard, F_GARBAGE, 2, 0);
		conn_arg_u64(&r, from);
		conn_arg_u64(&r, 100);
		rc = call_checked(m, F_GARBAGE, r, &reply, NULL);
		n = rc ? 0 : reply->elements - 1;
		for (size_t i = 0; i < n && !rc; i++)
			rc = reply_at(reply, i + 1) ? scan_item(m, shard, reply_at(reply, i + 1), each, arg) : -EIO;
		from += n;
		if (reply)
			freeReplyObject(reply);
	}
	return rc;
}

/* --- repairs --- */

static int send_fix(struct meta *m, enum meta_function fn, struct conn_request *r)
{
	redisReply *reply = NULL;
	int rc = call_checked(m, fn, r, &reply, NULL);
	if (reply)
		freeReplyObject(reply);
	return rc;
}

static void arg_or_none(struct conn_request **r, uint64_t v)
{
	if (v == UINT64_MAX)
		conn_arg(r, "", 0);
	else
		conn_arg_u64(r, v);
}

int meta_fix_inode(struct meta *m, silt_ino ino, const void *record, size_t len, uint64_t nlink, uint64_t size)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_FIX_INODE, 4, len + 64);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg(&r, record, len);
	arg_or_none(&r, nlink);
	arg_or_none(&r, size);
	return send_fix(m, F_FIX_INODE, r);
}

int meta_drop_inode(struct meta *m, silt_ino ino, const void *record, size_t len)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_DROP_INODE, 2, len + 32);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg(&r, record, len);
	return send_fix(m, F_DROP_INODE, r);
}

static void arg_i64(struct conn_request **r, int64_t v)
{
	char text[24];
	snprintf(text, sizeof(text), "%lld", (long long)v);
	conn_arg_str(r, text);
}

int meta_fix_usage(struct meta *m, unsigned shard, const struct meta_limits *seen, int64_t inodes, int64_t bytes)
{
	struct conn_request *r = call_begin(m, shard, F_FIX_USAGE, 4, 64);
	arg_i64(&r, seen->inodes);
	arg_i64(&r, seen->bytes);
	arg_i64(&r, inodes);
	arg_i64(&r, bytes);
	return send_fix(m, F_FIX_USAGE, r);
}

int meta_fix_live(struct meta *m, unsigned shard, uint64_t pack, int64_t seen, uint64_t live)
{
	struct conn_request *r = call_begin(m, shard, F_FIX_LIVE, 3, 64);
	conn_arg_u64(&r, pack);
	if (seen == INT64_MAX)
		conn_arg(&r, "", 0);
	else
		arg_i64(&r, seen);
	conn_arg_u64(&r, live);
	return send_fix(m, F_FIX_LIVE, r);
}

int meta_get_record(struct meta *m, silt_ino ino, void **record, size_t *len)
{
	redisReply *reply = NULL;
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_GETATTR, 1, 0);
	conn_arg_u64(&r, silt_ino_seq(ino));
	int rc = call_checked(m, F_GETATTR, r, &reply, NULL);
	const redisReply *s = rc ? NULL : reply_at(reply, 1);
	if (!rc && !s)
		rc = -EIO;
	if (s) {
		*record = malloc(s->len + 1);
		*len = s->len;
		if (*record)
			memcpy(*record, s->str, s->len);
		else
			rc = -ENOMEM;
	}
	if (reply)
		freeReplyObject(reply);
	return rc;
}

int meta_exclude(struct meta *m, const char *token, unsigned ms)
{
	struct conn_request *r = call_begin(m, 0, F_EXCLUDE, 2, 64);
	conn_arg_str(&r, token);
	conn_arg_u64(&r, ms);
	return send_fix(m, F_EXCLUDE, r);
}
