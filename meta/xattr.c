/* Extended attributes, ACLs and inode flags: one call each. */
#include "meta/engine.h"

#include <errno.h>
#include <string.h>

/* Replies: code, [data,] record. Code 1: the inode has no such attribute. */
static void got_xattr(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	long long code = 0;
	size_t record = op->attrs ? 2 : 1;
	r.err = reply_code(op->m, op->fn, err, reply, &code);
	if (!r.err)
		r.err = reply_inode(op->m, op->ino, reply_at(reply, record), &r.inode);
	/* What a relaxed mount remembers must not be older than what it has told. */
	if (!r.err && op->m->cfg.relaxed && !function_writes(op->fn))
		cover_put_reply(op, op->ino, reply_at(reply, record));
	const redisReply *data = !r.err && op->attrs ? reply_at(reply, 1) : NULL;
	if (!r.err && op->attrs && (!data || data->len > META_XATTR_VALUE_MAX)) {
		silt_error(op->m->log, "an extended attribute of inode %llu is damaged",
		           (unsigned long long)op->ino);
		silt_count(op->m->metrics, M_META_DAMAGED, 1);
		r.err = -EIO;
	}
	if (!r.err && code == 1)
		r.err = -ENODATA;
	if (!r.err && data) {
		r.data = data->str;
		r.len = data->len;
	}
	op_end(op, &r);
}

/* `attrs` of the operation: the reply has data. */
static struct op *begin(struct meta *m, enum meta_function fn, silt_ino ino, const char *name,
                        bool data, meta_done done, void *arg)
{
	struct op *op = op_new(m, fn, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return NULL;
	op->ino = ino;
	op->attrs = data;
	if (name && (name[0] == '\0' || strlen(name) > META_XATTR_NAME_MAX)) {
		op_fail(op, -ERANGE);
		return NULL;
	}
	return op;
}

void meta_getxattr(struct meta *m, silt_ino ino, const char *name, meta_done done, void *arg)
{
	struct op *op = begin(m, F_GETXATTR, ino, name, true, done, arg);
	if (!op)
		return;
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_GETXATTR, 2, 0);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg_str(&r, name);
	call_send(m, F_GETXATTR, r, got_xattr, op);
}

void meta_listxattr(struct meta *m, silt_ino ino, meta_done done, void *arg)
{
	struct op *op = begin(m, F_LISTXATTR, ino, NULL, true, done, arg);
	if (!op)
		return;
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_LISTXATTR, 1, 0);
	conn_arg_u64(&r, silt_ino_seq(ino));
	call_send(m, F_LISTXATTR, r, got_xattr, op);
}

void meta_setxattr(struct meta *m, silt_ino ino, const char *name, const void *value, size_t len,
                   unsigned how, struct silt_time now, meta_done done, void *arg)
{
	struct op *op = begin(m, F_SETXATTR, ino, name, false, done, arg);
	if (!op)
		return;
	if (len > META_XATTR_VALUE_MAX) {
		op_fail(op, -E2BIG);
		return;
	}
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_SETXATTR, 6, len + 128);
	next_tx(m, op->tx);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg_str(&r, name);
	conn_arg(&r, value, len);
	conn_arg_u64(&r, how);
	call_arg_time(&r, now);
	conn_arg_str(&r, op->tx);
	call_send(m, F_SETXATTR, r, got_xattr, op);
}

void meta_removexattr(struct meta *m, silt_ino ino, const char *name, struct silt_time now,
                      meta_done done, void *arg)
{
	struct op *op = begin(m, F_REMOVEXATTR, ino, name, false, done, arg);
	if (!op)
		return;
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_REMOVEXATTR, 4, 128);
	next_tx(m, op->tx);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg_str(&r, name);
	call_arg_time(&r, now);
	conn_arg_str(&r, op->tx);
	call_send(m, F_REMOVEXATTR, r, got_xattr, op);
}

void meta_set_flags(struct meta *m, silt_ino ino, unsigned flags, struct silt_time now,
                    meta_done done, void *arg)
{
	struct op *op = begin(m, F_SET_FLAGS, ino, NULL, false, done, arg);
	if (!op)
		return;
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_SET_FLAGS, 3, 0);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg_u64(&r, flags & (SILT_FLAG_IMMUTABLE | SILT_FLAG_APPEND));
	call_arg_time(&r, now);
	call_send(m, F_SET_FLAGS, r, got_xattr, op);
}
