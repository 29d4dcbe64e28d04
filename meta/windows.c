/* Reading the extent logs of files that have more than one extent. */
#include "meta/engine.h"

#include <errno.h>
#include <stdlib.h>

static void got_window(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	const redisReply *log = r.err ? NULL : reply_at(reply, 1);
	if (!r.err && !log)
		r.err = -EIO;
	if (log) {
		r.data = log->str;
		r.len = log->len;
	}
	op_end(op, &r);
}

void meta_window(struct meta *m, silt_ino ino, uint64_t window, meta_done done, void *arg)
{
	struct op *op = op_new(m, F_WINDOW, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return;
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_WINDOW, 2, 0);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg_u64(&r, window);
	call_send(m, F_WINDOW, r, got_window, op);
}

/* Packs the pairs of the reply into one buffer (malloced). A field that is no number is damage. */
static int pack_logs(const redisReply *reply, uint8_t **out, size_t *len)
{
	size_t size = 1, at = 0;
	for (size_t i = 3; i < reply->elements; i += 2)
		size += EXTENT_LOGS_HEAD + (reply_at(reply, i) ? reply_at(reply, i)->len : 0);
	uint8_t *buf = malloc(size);
	if (!buf)
		return -ENOMEM;
	for (size_t i = 2; i + 1 < reply->elements; i += 2) {
		const redisReply *name = reply_at(reply, i), *log = reply_at(reply, i + 1);
		char *end = NULL;
		uint64_t window = name ? strtoull(name->str, &end, 10) : 0;
		if (!log || !end || end == name->str || *end ||
		    window > SILT_FILE_MAX / SILT_WINDOW) {
			free(buf);
			return -EIO;
		}
		at += extent_logs_put(buf + at, window, log->str, log->len);
	}
	*out = buf;
	*len = at;
	return 0;
}

static void got_windows(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	uint8_t *buf = NULL;
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	const redisReply *next = r.err ? NULL : reply_at(reply, 1);
	if (!r.err)
		r.err = next ? pack_logs(reply, &buf, &r.len) : -EIO;
	if (r.err == -EIO && next) {
		silt_error(op->m->log, "the extent logs of inode %llu are damaged",
		           (unsigned long long)op->ino);
		silt_count(op->m->metrics, M_META_DAMAGED, 1);
	}
	if (!r.err)
		r.next = strtoull(next->str, NULL, 10);
	r.data = buf;
	op_end(op, &r);
	free(buf);
}

void meta_windows(struct meta *m, silt_ino ino, uint64_t from, meta_done done, void *arg)
{
	struct op *op = op_new(m, F_WINDOWS, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return;
	op->ino = ino;
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_WINDOWS, 2, 0);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg_u64(&r, from);
	call_send(m, F_WINDOWS, r, got_windows, op);
}
