/* May the inodes go whose names an unlink or rename takes away? An immutable or append-only one may
 * not. The functions look by themselves at inodes in their own shard. Of others they give the
 * entries back, with nothing done; the inodes are looked at here, one after the other, and the
 * operation is sent again with those entries as proof. If a name is another inode's by then, it
 * begins anew. */
#include "meta/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct check {
	struct op *op;
	silt_ino todo[2];
	unsigned n;
};

static void check_next(struct check *c);

static void checked(void *arg, const struct meta_reply *r)
{
	struct check *c = arg;
	struct op *op = c->op;
	int err = r->err == -ENOENT ? 0 : r->err; /* a name without an inode may go */
	if (!r->err && (r->inode.attr.flags & (SILT_FLAG_IMMUTABLE | SILT_FLAG_APPEND)))
		err = -EPERM;
	if (!err) {
		check_next(c);
		return;
	}
	free(c);
	op_fail(op, err);
}

static void check_next(struct check *c)
{
	struct op *op = c->op;
	if (c->n > 0) {
		meta_getattr(op->m, c->todo[--c->n], checked, c);
		return;
	}
	free(c);
	op_resubmit(op);
}

void frozen_check(struct op *op, const redisReply *reply)
{
	struct check *c = calloc(1, sizeof(*c));
	int err = c ? 0 : -ENOMEM;
	op->nchecked = 0;
	for (size_t i = 1; !err && i <= 2; i++) {
		const redisReply *e = reply_at(reply, i);
		uint32_t type;
		bool moving;
		if (!e || e->len == 0)
			continue;
		if (e->len > sizeof(op->checked) / 2 ||
		    record_entry_decode(silt_ino_shard(op->dir), e->str, e->len, &type,
		                        &c->todo[c->n], &moving)) {
			silt_error(op->m->log, "a directory entry in inode %llu is damaged",
			           (unsigned long long)op->dir);
			silt_count(op->m->metrics, M_META_DAMAGED, 1);
			err = -EIO;
			break;
		}
		c->n++;
		memcpy(op->checked + op->nchecked, e->str, e->len);
		op->nchecked += (unsigned)e->len;
	}
	if (!err && op->tries++ > 100)
		err = -EBUSY;
	if (!err) {
		c->op = op;
		check_next(c);
		return;
	}
	free(c);
	op_fail(op, err);
}
