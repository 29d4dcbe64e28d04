/* Operations on an inode by its number, and on the volume: one call each. Each has a submit half,
 * which formats the request from the `struct op`, and a reply half on the reader thread. */
#include "meta/engine.h"

#include <errno.h>
#include <stdlib.h>

/* --- an inode by number --- */

static void got_inode(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	if (!r.err)
		r.err = reply_inode(op->m, op->ino, reply_at(reply, 1), &r.inode);
	if (!r.err && op->fn == F_GETATTR)
		r.seen.inode = cover_put_reply(op, op->ino, reply_at(reply, 1));
	if (op->watch)
		cover_watch(op->m, op->ino, r.seen.inode);
	op_end(op, &r);
}

/* `known`: what is remembered will do, where the mount is relaxed. */
static void getattr(struct meta *m, silt_ino ino, bool known, bool to_kernel, bool watch, meta_done done,
		    void *arg)
{
	struct op *op = op_new(m, F_GETATTR, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return;
	op->ino = ino;
	op->watch = watch;
	op->to_kernel = to_kernel;
	if (known && m->cfg.relaxed && relaxed_getattr(op))
		return;
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_GETATTR, 1, 0);
	conn_arg_u64(&r, silt_ino_seq(ino));
	call_send(m, F_GETATTR, r, got_inode, op);
}

void ask_inode(struct meta *m, silt_ino ino, bool to_kernel, meta_done done, void *arg)
{
	getattr(m, ino, false, to_kernel, false, done, arg);
}

void meta_getattr(struct meta *m, silt_ino ino, meta_done done, void *arg)
{
	getattr(m, ino, false, false, false, done, arg);
}

void meta_getattr_for_kernel(struct meta *m, silt_ino ino, meta_done done, void *arg)
{
	getattr(m, ino, true, true, false, done, arg);
}

void meta_getattr_for_open(struct meta *m, silt_ino ino, meta_done done, void *arg)
{
	getattr(m, ino, true, false, false, done, arg);
}

void meta_watch_inode(struct meta *m, silt_ino ino, meta_done done, void *arg)
{
	getattr(m, ino, false, false, true, done, arg);
}

/* --- setattr --- */

static void submit_setattr(struct op *op);

static void got_setattr(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	long long code = 0;
	r.err = reply_code(op->m, op->fn, err, reply, &code);
	if (!r.err && code == 1) { /* the first part of a truncation that takes several */
		submit_setattr(op);
		return;
	}
	if (!r.err)
		r.err = reply_inode(op->m, op->ino, reply_at(reply, 1), &r.inode);
	op_end(op, &r);
}

static void submit_setattr(struct op *op)
{
	const struct silt_attr *v = &op->values;
	struct conn_request *r =
	        call_begin(op->m, silt_ino_shard(op->ino), F_SETATTR, 11, 64 + sizeof(op->tx));
	next_tx(op->m, op->tx);
	conn_arg_u64(&r, silt_ino_seq(op->ino));
	conn_arg_u64(&r, op->flags);
	conn_arg_u64(&r, v->mode & 07777);
	conn_arg_u64(&r, v->uid);
	conn_arg_u64(&r, v->gid);
	conn_arg_u64(&r, v->size);
	call_arg_time(&r, v->atime);
	call_arg_time(&r, v->mtime);
	call_arg_time(&r, v->ctime);
	call_arg_time(&r, op->now);
	conn_arg_str(&r, op->tx);
	call_send(op->m, F_SETATTR, r, got_setattr, op);
}

void meta_setattr(struct meta *m, silt_ino ino, unsigned set, const struct silt_attr *v,
                  struct silt_time now, meta_done done, void *arg)
{
	struct op *op = op_new(m, F_SETATTR, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return;
	op->ino = ino;
	op->flags = set;
	op->values = *v;
	op->now = now;
	if ((set & META_SET_SIZE) && v->size > SILT_FILE_MAX)
		op_fail(op, -EFBIG);
	else
		submit_setattr(op);
}

/* --- readlink, statfs --- */

static void got_text(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	const redisReply *text = r.err ? NULL : reply_at(reply, 1);
	if (!r.err && !text)
		r.err = -EIO;
	if (text) {
		r.data = text->str;
		r.len = text->len;
	}
	op_end(op, &r);
}

void meta_readlink(struct meta *m, silt_ino ino, meta_done done, void *arg)
{
	struct op *op = op_new(m, F_READLINK, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return;
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_READLINK, 1, 0);
	conn_arg_u64(&r, silt_ino_seq(ino));
	call_send(m, F_READLINK, r, got_text, op);
}

/* The shards are asked one after the other: statfs is rare. */
static void submit_statfs(struct op *op);

static void got_statfs(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	if (r.err) {
		op_end(op, &r);
		return;
	}
	const redisReply *inodes = reply_at(reply, 1), *bytes = reply_at(reply, 2);
	long long i = inodes ? strtoll(inodes->str, NULL, 10) : 0;
	long long b = bytes ? strtoll(bytes->str, NULL, 10) : 0;
	op->number += i > 0 ? (uint64_t)i : 0;
	op->seq += b > 0 ? (uint64_t)b : 0;
	if (++op->want < op->m->volume.shards) {
		submit_statfs(op);
		return;
	}
	r.statfs.inodes = op->number;
	r.statfs.bytes = op->seq;
	op_end(op, &r);
}

static void submit_statfs(struct op *op)
{
	call_send(op->m, F_STATFS, call_begin(op->m, op->want, F_STATFS, 0, 0), got_statfs, op);
}

void meta_statfs(struct meta *m, meta_done done, void *arg)
{
	struct op *op = op_new(m, F_STATFS, NULL, 0, NULL, 0, 0, done, arg);
	if (op)
		submit_statfs(op);
}

/* --- pack ids --- */

static void got_packs(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	const redisReply *first = r.err ? NULL : reply_at(reply, 1);
	if (!r.err && !first)
		r.err = -EIO;
	if (first) {
		r.first = strtoull(first->str, NULL, 10);
		uint_fast64_t top = r.first + op->number - 1,
		              known = atomic_load(&op->m->packs_known);
		while (top > known &&
		       !atomic_compare_exchange_weak(&op->m->packs_known, &known, top))
			;
	}
	op_end(op, &r);
}

void meta_alloc_packs(struct meta *m, unsigned n, meta_done done, void *arg)
{
	struct op *op = op_new(m, F_ALLOC, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return;
	op->number = n;
	struct conn_request *r = call_begin(m, 0, F_ALLOC, 3, 0);
	conn_arg(&r, "p", 1);
	conn_arg_u64(&r, n);
	conn_arg_u64(&r, atomic_load(&m->packs_known));
	call_send(m, F_ALLOC, r, got_packs, op);
}

/* --- release --- */

static void got_nothing(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	op_end(op, &r);
}

void meta_release_deleted(struct meta *m, silt_ino ino, meta_done done, void *arg)
{
	struct op *op = op_new(m, F_RELEASE, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return;
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_RELEASE, 2, 0);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg_str(&r, m->session_text);
	call_send(m, F_RELEASE, r, got_nothing, op);
}
