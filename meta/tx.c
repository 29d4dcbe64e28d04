/* Operations across shards, as lists of steps (functions_tx.lua says how such a list survives the
 * death of its client, and several clients at it). They block, so they run on threads of their own
 * (tx_pool.c); with one shard there are none of them and one thread idles. Each list is run by the
 * client that began it, and by those that find its intent (recover.c): the same code, which may
 * find every step done. The step that decides is in capitals.
 *
 *	mkdir    C inode + intent        P ENTRY            C end (or take back)      P clear
 *	link     C link count + intent   P ENTRY            C end (or take back)      P clear
 *	unlink   P ENTRY GONE + intent   C link count       P forget the intent       C clear
 *	rmdir    P mark + intent         C GONE IF EMPTY    P entry gone (or unmark)  C clear
 *	rename   see tx_rename.c
 *
 * P: shard of the directory; C: of the inode. A name that is marked can be looked up but not
 *changed: who meets it tries again. */
#include "meta/tx.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* --- mkdir, link --- */

int run_add(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len,
            uint32_t type, silt_ino ino, struct silt_time now, struct silt_inode *inode)
{
	unsigned tries = 0;
	bool seen = false;
	int rc;
	do
		rc = step_add_entry(m, tx, dir, name, len, type, ino, now);
	while (rc == -EAGAIN && tx_pause(&tries));
	if (rc == -EAGAIN)
		rc = step_refuse(m, silt_ino_shard(dir), tx, -EBUSY, NULL, NULL, NULL);
	if (rc == -ENOTCONN)
		return rc;
	int rc2 = step_end(m, tx, ino, rc == 0, now, &seen, inode);
	if (rc2 == -ENOTCONN)
		return rc2;
	step_clear(m, silt_ino_shard(dir), tx, seen);
	return rc ? rc : rc2;
}

static int make_dir(struct meta *m, struct op *op, silt_ino ino, const struct intent *i)
{
	struct silt_inode parent;
	int rc = step_getattr(m, op->dir, &parent);
	if (rc)
		return rc;
	uint32_t mode = op->make.mode, gid = op->make.gid;
	if (!S_ISDIR(parent.attr.mode))
		return -ENOTDIR;
	if (parent.attr.flags & SILT_FLAG_IMMUTABLE)
		return -EPERM;
	redisReply *acl = NULL;
	rc = parent.attr.flags & SILT_FLAG_DEFAULT_ACL ? step_default_acl(m, op->dir, &acl) : 0;
	if (rc)
		return rc;
	const redisReply *value = acl ? reply_at(acl, 1) : NULL;
	if (parent.attr.mode & S_ISGID) {
		gid = parent.attr.gid;
		mode |= S_ISGID;
	}
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_X_MAKE_DIR, 10, i->len + 256);
	redisReply *reply = NULL;
	conn_arg_str(&r, op->tx);
	conn_arg(&r, i->v, i->len);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg_u64(&r, mode | (uint64_t)op->make.umask << 16);
	conn_arg_u64(&r, op->make.uid);
	conn_arg_u64(&r, gid);
	conn_arg_u64(&r, silt_ino_shard(op->dir));
	conn_arg_u64(&r, silt_ino_seq(op->dir));
	call_arg_time(&r, op->make.now);
	conn_arg(&r, value ? value->str : "", value ? value->len : 0);
	if (acl)
		freeReplyObject(acl);
	rc = call_checked(m, F_X_MAKE_DIR, r, &reply, NULL);
	rc = rc && !reply ? -ENOTCONN : rc;
	if (reply)
		freeReplyObject(reply);
	return rc;
}

static void intent_for_add(struct intent *i, char kind, const struct op *op, silt_ino ino,
                           uint32_t type)
{
	intent_begin(i, kind);
	intent_add_u64(i, op->dir);
	intent_add(i, op->name, op->len);
	intent_add_u64(i, ino);
	intent_add_u64(i, type);
}

static void run_make_dir(struct tx_job *j)
{
	struct op *op = j->op;
	silt_ino ino = silt_ino_make(j->shard, op->seq);
	struct meta_reply r = { 0 };
	struct intent i;
	struct entry there;
	/* mkdir over something that exists is common (mkdir -p): don't build anything for it. */
	if (step_entry(op->m, op->dir, op->name, op->len, &there) == 0) {
		op_fail(op, -EEXIST);
		return;
	}
	next_tx(op->m, op->tx);
	intent_for_add(&i, 'D', op, ino, S_IFDIR);
	r.err = make_dir(op->m, op, ino, &i);
	if (!r.err)
		r.err = run_add(op->m, op->tx, op->dir, op->name, op->len, S_IFDIR, ino,
		                op->make.now, &r.inode);
	if (r.err == -ESTALE && op->tries++ < TX_TRIES)
		op_other_sequence(op);
	else if (r.err != -EAGAIN || !tx_anew(op))
		tx_end(op, &r);
}

void tx_make_dir(struct op *op, unsigned shard)
{
	tx_submit(op, run_make_dir, &(struct tx_job){ .shard = shard });
}

static void run_link(struct tx_job *j)
{
	struct op *op = j->op;
	struct meta *m = op->m;
	struct meta_reply r = { 0 };
	struct intent i;
	next_tx(m, op->tx);
	r.err = step_getattr(m, op->ino, &r.inode);
	if (!r.err) {
		intent_for_add(&i, 'L', op, op->ino, r.inode.attr.mode & S_IFMT);
		struct conn_request *q =
		        call_begin(m, silt_ino_shard(op->ino), F_X_LINK, 5, i.len + 64);
		redisReply *reply = NULL;
		conn_arg_str(&q, op->tx);
		conn_arg(&q, i.v, i.len);
		conn_arg_u64(&q, silt_ino_seq(op->ino));
		call_arg_time(&q, op->now);
		conn_arg_str(&q, m->session_text);
		r.err = call_checked(m, F_X_LINK, q, &reply, NULL);
		r.err = r.err && !reply ? -ENOTCONN : r.err;
		if (reply)
			freeReplyObject(reply);
	}
	if (!r.err)
		r.err = run_add(m, op->tx, op->dir, op->name, op->len, r.inode.attr.mode & S_IFMT,
		                op->ino, op->now, &r.inode);
	if (r.err != -EAGAIN || !tx_anew(op))
		tx_end(op, &r);
}

void tx_link(struct op *op)
{
	tx_submit(op, run_link, NULL);
}

/* --- a link count elsewhere --- */

int run_drop(struct meta *m, const char *tx, unsigned shard, silt_ino ino, bool keep,
             struct silt_time now, bool *seen, struct silt_inode *inode)
{
	int rc = step_drop(m, tx, ino, keep, now, inode);
	if (!rc)
		rc = step_forget(m, shard, tx, seen);
	return rc;
}

static void run_drop_job(struct tx_job *j)
{
	struct op *op = j->op;
	struct silt_inode inode = { 0 };
	bool seen = false;
	int rc = run_drop(op->m, op->tx, j->shard, j->entry.ino, op->keep, op->now, &seen, &inode);
	if (!rc)
		step_clear(op->m, silt_ino_shard(j->entry.ino), op->tx, seen);
	if (op->fn == F_UNLINK) {
		j->so_far.inode = inode;
		j->so_far.err = rc;
	} else { /* rename: it happened, whatever became of the file it replaced */
		j->so_far.replaced_nlink = inode.attr.nlink;
		if (!j->so_far.inode.attr.mode) /* elsewhere: so is its change time */
			step_moved(op->m, "", j->so_far.inode.attr.ino, op->dir2, op->now, &j->so_far.inode);
		if (rc == -ENOTCONN)
			tx_note_stuck(op);
	}
	tx_end(op, &j->so_far);
}

void tx_drop(struct op *op, unsigned shard, const redisReply *entry,
             const struct meta_reply *so_far)
{
	struct tx_job with = { .shard = shard, .so_far = *so_far };
	bool moving;
	if (!entry || record_entry_decode(shard, entry->str, entry->len, &with.entry.type,
	                                  &with.entry.ino, &moving)) {
		op_fail(op, -EIO);
		return;
	}
	tx_submit(op, run_drop_job, &with);
}

/* --- rmdir --- */

int run_rmdir(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len,
              struct silt_time now, bool resume)
{
	struct intent i;
	struct entry e;
	bool seen = false;
	intent_begin(&i, 'R');
	intent_add_u64(&i, dir);
	intent_add(&i, name, len);
	int rc = step_mark(m, tx, resume ? NULL : &i, dir, name, len, &e);
	if (rc)
		return rc;
	rc = S_ISDIR(e.type) ? step_rmdir(m, tx, e.ino) : -ENOTDIR;
	if (rc == -ENOTCONN)
		return rc;
	int rc2 =
	        step_unmark(m, tx, dir, name, len, rc ? ENTRY_STAYS : ENTRY_GOES, NULL, now, &seen);
	if (rc2 == -ENOTCONN)
		return rc2;
	if (S_ISDIR(e.type))
		step_clear(m, silt_ino_shard(e.ino), tx, seen);
	return rc ? rc : rc2;
}

static void run_rmdir_job(struct tx_job *j)
{
	struct op *op = j->op;
	next_tx(op->m, op->tx);
	int rc = run_rmdir(op->m, op->tx, op->dir, op->name, op->len, op->now, false);
	struct meta_reply r = { .err = rc };
	if (rc != -EAGAIN || !tx_anew(op))
		tx_end(op, &r);
}

void tx_rmdir(struct op *op)
{
	tx_submit(op, run_rmdir_job, NULL);
}
