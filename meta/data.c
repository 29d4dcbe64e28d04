/* Operations on a file's bytes other than commit and truncation; functions_data.lua has the
 * server's side. Each is one call in the file's shard. */
#include "meta/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* --- a file without a name --- */

static void got_tmpfile(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	if (r.err == -ESTALE && op->tries++ < 20) {
		op_other_sequence(op);
		return;
	}
	if (!r.err) {
		silt_ino ino = silt_ino_make(silt_ino_shard(op->dir), op->seq);
		r.err = reply_inode(op->m, ino, reply_at(reply, 1), &r.inode);
	}
	op_end(op, &r);
}

void submit_tmpfile(struct op *op)
{
	struct meta *m = op->m;
	struct conn_request *r = call_begin(m, silt_ino_shard(op->dir), F_TMPFILE, 8, 64);
	conn_arg_u64(&r, silt_ino_seq(op->dir));
	conn_arg_u64(&r, op->seq);
	conn_arg_u64(&r, op->make.mode | (uint64_t)op->make.umask << 16);
	conn_arg_u64(&r, op->make.uid);
	conn_arg_u64(&r, op->make.gid);
	call_arg_time(&r, op->make.now);
	conn_arg_str(&r, m->session_text);
	conn_arg(&r, op->keep ? "1" : "0", 1);
	call_send(m, F_TMPFILE, r, got_tmpfile, op);
}

void meta_make_unnamed(struct meta *m, silt_ino dir, const struct meta_make *how, bool linkable,
                       meta_done done, void *arg)
{
	struct op *op = op_new(m, F_TMPFILE, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return;
	if (!m->session || !S_ISREG(how->mode)) {
		op_fail(op, m->session ? -EINVAL : -ENOTSUP);
		return;
	}
	op->dir = dir;
	op->make = *how;
	op->keep = linkable;
	sequence_take(m, silt_ino_shard(dir), op);
}

/* --- holes --- */

static uint64_t number_at(const redisReply *reply, size_t i, uint64_t none)
{
	const redisReply *s = reply_at(reply, i);
	return s && s->len ? strtoull(s->str, NULL, 10) : none;
}

static void got_allocate(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	if (!r.err)
		r.err = reply_inode(op->m, op->ino, reply_at(reply, 1), &r.inode);
	if (!r.err)
		r.first = number_at(reply, 2, 0);
	op_end(op, &r);
}

void meta_allocate(struct meta *m, silt_ino ino, const struct meta_allocate *how, meta_done done,
                   void *arg)
{
	struct op *op = op_new(m, F_ALLOCATE, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return;
	op->ino = ino;
	if (how->stop > SILT_FILE_MAX || how->size > SILT_FILE_MAX || how->off > how->stop) {
		op_fail(op, -EFBIG);
		return;
	}
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_ALLOCATE, 6, 64);
	conn_arg_u64(&r, silt_ino_seq(ino));
	call_arg_time(&r, how->now);
	conn_arg_u64(&r, how->off);
	conn_arg_u64(&r, how->stop);
	conn_arg_u64(&r, how->size);
	conn_arg(&r, how->drop_suid ? "1" : "0", 1);
	call_send(m, F_ALLOCATE, r, got_allocate, op);
}

static void got_next_window(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	if (!r.err) {
		r.first = number_at(reply, 1, UINT64_MAX);
		r.next = number_at(reply, 2, 0);
	}
	op_end(op, &r);
}

void meta_next_window(struct meta *m, silt_ino ino, uint64_t first, uint64_t last, meta_done done,
                      void *arg)
{
	struct op *op = op_new(m, F_NEXT_WINDOW, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return;
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_NEXT_WINDOW, 3, 0);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg_u64(&r, first);
	conn_arg_u64(&r, last);
	call_send(m, F_NEXT_WINDOW, r, got_next_window, op);
}

/* --- sharing --- */

static void got_clone(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	if (!r.err)
		r.err = reply_inode(op->m, op->ino, reply_at(reply, 1), &r.inode);
	op_end(op, &r);
}

void meta_clone(struct meta *m, silt_ino ino, const struct silt_extent *v, size_t n, uint64_t stop,
                bool drop_suid, struct silt_time now, meta_done done, void *arg)
{
	struct op *op = op_new(m, F_CLONE, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return;
	op->ino = ino;
	if (stop > SILT_FILE_MAX || n > META_CLONE_MAX) {
		op_fail(op, n > META_CLONE_MAX ? -EINVAL : -EFBIG);
		return;
	}
	struct conn_request *r =
	        call_begin(m, silt_ino_shard(ino), F_CLONE, 5 + 4 * (int)n, 96 + 96 * n);
	next_tx(m, op->tx);
	conn_arg_u64(&r, silt_ino_seq(ino));
	call_arg_time(&r, now);
	conn_arg_u64(&r, stop);
	conn_arg_str(&r, op->tx);
	conn_arg(&r, drop_suid ? "1" : "0", 1);
	for (size_t i = 0; i < n; i++) {
		uint8_t ext[SILT_EXTENT_ENCODED_MAX];
		conn_arg(&r, ext, extent_encode(&v[i], ext));
		conn_arg_u64(&r, v[i].off / SILT_WINDOW);
		conn_arg_u64(&r, v[i].pack);
		conn_arg_u64(&r, v[i].stored);
	}
	call_send(m, F_CLONE, r, got_clone, op);
}

/* --- access times --- */

struct touch {
	struct meta *m;
	atomic_size_t left; /* calls under way, and one while they are being sent */
	atomic_int err;
	meta_done done;
	void *arg;
};

static void touch_unref(struct touch *t)
{
	if (atomic_fetch_sub(&t->left, 1) != 1)
		return;
	struct meta_reply r = { .err = atomic_load(&t->err) };
	t->done(t->arg, &r);
	free(t);
}

static void got_touch(void *arg, int err, redisReply *reply)
{
	struct touch *t = arg;
	int rc = reply_code(t->m, F_TOUCH, err, reply, NULL);
	if (rc)
		atomic_store(&t->err, rc);
	touch_unref(t);
}

void meta_touch(struct meta *m, const struct meta_touch *items, size_t n, bool relative,
                meta_done done, void *arg)
{
	struct touch *t = n <= META_TOUCH_MAX ? malloc(sizeof(*t)) : NULL;
	if (!t) {
		struct meta_reply r = { .err = n > META_TOUCH_MAX ? -EINVAL : -ENOMEM };
		done(arg, &r);
		return;
	}
	*t = (struct touch){ .m = m, .done = done, .arg = arg };
	atomic_init(&t->left, 1);
	bool sent[META_TOUCH_MAX] = { false };
	for (size_t i = 0; i < n; i++) {
		unsigned shard = silt_ino_shard(items[i].ino);
		size_t count = 0;
		for (size_t k = i; k < n; k++)
			count += !sent[k] && silt_ino_shard(items[k].ino) == shard;
		if (sent[i])
			continue;
		struct conn_request *r =
		        call_begin(m, shard, F_TOUCH, 1 + 2 * (int)count, 40 * count);
		for (size_t k = i; k < n; k++) {
			if (sent[k] || silt_ino_shard(items[k].ino) != shard)
				continue;
			sent[k] = true;
			conn_arg_u64(&r, silt_ino_seq(items[k].ino));
			call_arg_time(&r, items[k].atime);
		}
		conn_arg(&r, relative ? "1" : "0", 1);
		atomic_fetch_add(&t->left, 1);
		call_send(m, F_TOUCH, r, got_touch, t);
	}
	touch_unref(t);
}
