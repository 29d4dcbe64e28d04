/* Operations across shards, as lists of steps (functions_tx.lua says how such a list survives the
 * death of its client). They block, so they run on threads of their own (tx_pool.c); with one shard
 * there are none of them and one thread idles.
 *
 *	mkdir    C inode + intent        P entry            C end (or take back)      P clear
 *	link     C link count + intent   P entry            C end (or take back)      P clear
 *	unlink   P entry gone + intent   C link count       P forget the intent       C clear
 *	rmdir    P mark + intent         C gone if empty    P entry gone (or unmark)  C clear
 *	rename   A mark + intent  [R target directory gone if empty]  B put in place
 *	         [drop a file that was replaced]  S parent and time  A entry gone (or unmark)  clear
 *
 * P, A, B: shards of directories; C, S, R: of inodes. A directory that moves to another parent
 * takes the volume's rename lock first, so that two renames can't make a loop; its new ancestors
 * are checked under the lock. A name that is marked can be looked up but not changed: who meets it
 * tries again. */
#include "meta/tx.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LOCK_MS   30000
#define DEPTH_MAX 10000
#define TX_MAX    64 /* a transaction's name and what is appended for its parts */

/* --- mkdir, link --- */

int run_add(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len,
            uint32_t type, silt_ino ino, struct silt_time now, bool resume,
            struct silt_inode *inode)
{
	unsigned tries = 0;
	int rc;
	do
		rc = step_add_entry(m, tx, dir, name, len, type, ino, now);
	while (rc == -EAGAIN && tx_pause(&tries));
	if (rc == -EAGAIN)
		rc = -EBUSY;
	if (rc == -ENOTCONN)
		return rc;
	int rc2 = step_end(m, tx, ino, rc == 0, now, inode);
	if (rc2 == -ENOTCONN)
		return rc2;
	if (!resume)
		step_by_tx(m, F_X_CLEAR, silt_ino_shard(dir), tx);
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

static void intent_for_add(struct intent *i, char kind, const struct op *op, silt_ino ino)
{
	intent_begin(i, kind);
	intent_add_u64(i, op->dir);
	intent_add(i, op->name, op->len);
	intent_add_u64(i, ino);
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
	intent_for_add(&i, 'D', op, ino);
	r.err = make_dir(op->m, op, ino, &i);
	if (!r.err)
		r.err = run_add(op->m, op->tx, op->dir, op->name, op->len, S_IFDIR, ino,
		                op->make.now, false, &r.inode);
	if (r.err == -ESTALE && op->tries++ < TX_TRIES)
		op_other_sequence(op);
	else
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
	intent_for_add(&i, 'L', op, op->ino);
	r.err = step_getattr(m, op->ino, &r.inode);
	if (!r.err) {
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
		                op->ino, op->now, false, &r.inode);
	tx_end(op, &r);
}

void tx_link(struct op *op)
{
	tx_submit(op, run_link, NULL);
}

/* --- a link count elsewhere --- */

int run_drop(struct meta *m, const char *tx, unsigned shard, silt_ino ino, bool keep,
             struct silt_time now, bool resume, struct silt_inode *inode)
{
	int rc = step_drop(m, tx, ino, keep, now, inode);
	if (rc)
		return rc;
	rc = step_by_tx(m, F_X_FORGET, shard, tx);
	if (!rc && !resume)
		step_by_tx(m, F_X_CLEAR, silt_ino_shard(ino), tx);
	return rc;
}

static void run_drop_job(struct tx_job *j)
{
	struct op *op = j->op;
	struct silt_inode inode = { 0 };
	int rc = run_drop(op->m, op->tx, j->shard, j->entry.ino, op->keep, op->now, false, &inode);
	if (op->fn == F_UNLINK) {
		j->so_far.inode = inode;
		j->so_far.err = rc;
	} else { /* rename: it happened, whatever became of the file it replaced */
		j->so_far.replaced_nlink = inode.attr.nlink;
		if (!j->so_far.inode.attr.mode)
			step_getattr(op->m, j->so_far.inode.attr.ino, &j->so_far.inode);
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
	intent_begin(&i, 'R');
	intent_add_u64(&i, dir);
	intent_add(&i, name, len);
	int rc = step_mark(m, tx, &i, dir, name, len, &e);
	if (rc)
		return rc;
	rc = S_ISDIR(e.type) ? step_rmdir(m, tx, e.ino) : -ENOTDIR;
	if (rc == -ENOTCONN)
		return rc;
	int rc2 = step_unmark(m, tx, dir, name, len, rc == 0, now);
	if (rc2 == -ENOTCONN)
		return rc2;
	if (!resume && S_ISDIR(e.type))
		step_by_tx(m, F_X_CLEAR, silt_ino_shard(e.ino), tx);
	return rc ? rc : rc2;
}

static void run_rmdir_job(struct tx_job *j)
{
	struct op *op = j->op;
	next_tx(op->m, op->tx);
	int rc = run_rmdir(op->m, op->tx, op->dir, op->name, op->len, op->now, false);
	if (rc == -EAGAIN && tx_pause(&op->tries)) {
		op_resubmit(op);
		return;
	}
	struct meta_reply r = { .err = rc == -EAGAIN ? -EBUSY : rc };
	tx_end(op, &r);
}

void tx_rmdir(struct op *op)
{
	tx_submit(op, run_rmdir_job, NULL);
}

/* --- rename --- */

static int rename_lock(struct meta *m, bool take)
{
	unsigned tries = 0;
	for (;;) {
		enum meta_function fn = take ? F_X_LOCK : F_X_UNLOCK;
		struct conn_request *r = call_begin(m, 0, fn, take ? 2 : 1, 0);
		redisReply *reply = NULL;
		char holder[64];
		/* Threads of one session are kept apart too. */
		snprintf(holder, sizeof(holder), "%s/%lx", m->session_text,
		         (unsigned long)pthread_self());
		conn_arg_str(&r, holder);
		if (take)
			conn_arg_u64(&r, LOCK_MS);
		int rc = call_checked(m, fn, r, &reply, NULL);
		rc = rc && !reply ? -ENOTCONN : rc;
		if (reply)
			freeReplyObject(reply);
		if (rc != -EAGAIN)
			return rc;
		if (!tx_pause(&tries))
			return -EBUSY;
	}
}

/* -EINVAL if directory `dir` is `top` or lies below it. Under the rename lock. */
static int check_not_below(struct meta *m, silt_ino dir, silt_ino top)
{
	for (int depth = 0; depth < DEPTH_MAX; depth++) {
		struct silt_inode i;
		if (dir == top)
			return -EINVAL;
		if (dir == SILT_ROOT_INO)
			return 0;
		int rc = step_getattr(m, dir, &i);
		if (rc)
			return rc;
		dir = i.attr.parent;
	}
	return -ELOOP;
}

/* The transaction that removes directory `ino` in the way of a rename: each has its own, else the
 * result of one would be taken for that of another. */
static void remove_tx(const struct rename_args *a, silt_ino ino, char out[TX_MAX])
{
	snprintf(out, TX_MAX, "%s.r%llx", a->tx, (unsigned long long)ino);
}

/* Removes the directory that the target name is, if it is one and may go. */
static int clear_target(struct meta *m, const struct rename_args *a, const struct entry *moved,
                        struct entry *gone)
{
	char tx[TX_MAX];
	struct entry there;
	int rc = step_entry(m, a->dir2, a->name2, a->len2, &there);
	if (rc == -ENOENT)
		return 0;
	if (rc)
		return rc;
	if (there.ino == moved->ino || !S_ISDIR(there.type) || !S_ISDIR(moved->type))
		return 0; /* step_insert knows what to do or say */
	remove_tx(a, there.ino, tx);
	rc = step_rmdir(m, tx, there.ino);
	if (!rc)
		*gone = there;
	else if (!a->resume && rc != -ENOTCONN)
		step_by_tx(m, F_X_CLEAR, silt_ino_shard(there.ino), tx);
	return rc;
}

/* What a rename did under transactions of their own. Their results are cleared when its own intent
 * is gone, not before: who completes it runs them again. */
struct parts {
	struct entry gone; /* a directory; len 0: none */
	silt_ino dropped;  /* a file; 0: none */
	char drop_tx[TX_MAX];
};

static void clear_parts(struct meta *m, const struct rename_args *a, const struct parts *p)
{
	char rm_tx[TX_MAX];
	step_by_tx(m, F_X_CLEAR, silt_ino_shard(a->dir2), a->tx);
	if (p->dropped)
		step_by_tx(m, F_X_CLEAR, silt_ino_shard(p->dropped), p->drop_tx);
	if (!p->gone.len)
		return;
	remove_tx(a, p->gone.ino, rm_tx);
	step_by_tx(m, F_X_CLEAR, silt_ino_shard(p->gone.ino), rm_tx);
}

/* Puts the entry in place. A directory in its way is removed only when the first try has shown that
 * it is in the way: when a dead client's rename is completed and had come that far, the name may be
 * somebody else's by now. */
static int insert_moved(struct meta *m, const struct rename_args *a, const struct entry *moved,
                        int *code, struct meta_reply *r, struct parts *p)
{
	struct entry old = { 0 }, checked = { 0 };
	struct silt_inode old_inode = { 0 };
	unsigned tries = 0;
	snprintf(p->drop_tx, sizeof(p->drop_tx), "%s.d", a->tx);
	struct insert_args ia = { .tx = a->tx,
		                  .drop_tx = p->drop_tx,
		                  .dir = a->dir2,
		                  .name = a->name2,
		                  .len = a->len2,
		                  .moved = moved,
		                  .gone = &p->gone,
		                  .checked = &checked,
		                  .noreplace = a->noreplace,
		                  .keep = a->keep,
		                  .now = a->now };
	int rc;
	for (;;) {
		rc = step_insert(m, &ia, code, &old, &old_inode);
		if (!rc && *code == 3) {
			rc = step_may_go(m, old.ino);
			checked = old;
			if (!rc)
				continue;
		}
		if (rc != -EAGAIN)
			break;
		rc = S_ISDIR(moved->type) ? clear_target(m, a, moved, &p->gone) : 0;
		if (rc)
			break;
		if (tries++ && !tx_pause(&tries)) {
			rc = -EBUSY;
			break;
		}
	}
	if (rc)
		return rc;
	r->replaced = S_ISDIR(old.type) ? 0 : old.ino;
	if (*code == 1) {
		p->dropped = old.ino;
		rc = run_drop(m, p->drop_tx, silt_ino_shard(a->dir2), old.ino, a->keep, a->now,
		              true, &old_inode);
	}
	r->replaced_nlink = old_inode.attr.nlink;
	return rc == -ENOTCONN ? rc : 0;
}

/* After the mark: everything else. Returns what becomes of the source entry in *moved_away. */
static int rename_marked(struct meta *m, const struct rename_args *a, const struct entry *e,
                         struct meta_reply *r, bool *moved_away, struct parts *p)
{
	int code = 0, rc = 0;
	if (S_ISDIR(e->type) && a->dir != a->dir2)
		rc = check_not_below(m, a->dir2, e->ino);
	if (!rc && !a->resume && silt_ino_shard(e->ino) != silt_ino_shard(a->dir))
		rc = step_may_go(m, e->ino);
	if (!rc)
		rc = insert_moved(m, a, e, &code, r, p);
	if (rc || code == 2)
		return rc;
	*moved_away = true;
	rc = step_moved(m, e->ino, a->dir2, a->now, &r->inode);
	if (rc && rc != -ENOTCONN) {
		silt_warn(m->log, "rename: inode %llu has no record", (unsigned long long)e->ino);
		rc = 0;
	}
	return rc;
}

static void intent_for_rename(struct intent *i, const struct rename_args *a)
{
	intent_begin(i, 'V');
	intent_add_u64(i, a->dir);
	intent_add(i, a->name, a->len);
	intent_add_u64(i, a->dir2);
	intent_add(i, a->name2, a->len2);
	intent_add_u64(i, a->noreplace);
}

int run_rename(struct meta *m, const struct rename_args *a, struct meta_reply *r)
{
	struct intent i;
	struct entry e;
	struct parts parts = { .dropped = 0 };
	bool moved_away = false, locked = false;
	intent_for_rename(&i, a);
	int rc = step_entry(m, a->dir, a->name, a->len, &e);
	if (!rc && S_ISDIR(e.type) && a->dir != a->dir2) {
		rc = rename_lock(m, true);
		locked = !rc;
	}
	if (!rc)
		rc = step_mark(m, a->tx, &i, a->dir, a->name, a->len, &e);
	if (!rc && S_ISDIR(e.type) && a->dir != a->dir2 && !locked) {
		/* The name became a directory in between: begin again, with the lock. */
		step_unmark(m, a->tx, a->dir, a->name, a->len, false, a->now);
		return -EAGAIN;
	}
	if (!rc) {
		rc = rename_marked(m, a, &e, r, &moved_away, &parts);
		if (rc != -ENOTCONN) {
			int rc2 =
			        step_unmark(m, a->tx, a->dir, a->name, a->len, moved_away, a->now);
			rc = rc && rc2 != -ENOTCONN ? rc : rc2;
		}
		if (!a->resume && rc != -ENOTCONN)
			clear_parts(m, a, &parts);
	}
	if (locked && rc != -ENOTCONN) /* else it runs out */
		rename_lock(m, false);
	return rc;
}

static void run_rename_job(struct tx_job *j)
{
	struct op *op = j->op;
	struct meta_reply r = { 0 };
	if (op->flags & META_RENAME_EXCHANGE) {
		op_fail(op, -ENOTSUP);
		return;
	}
	next_tx(op->m, op->tx);
	struct rename_args a = { .tx = op->tx,
		                 .dir = op->dir,
		                 .dir2 = op->dir2,
		                 .name = op->name,
		                 .name2 = op->name2,
		                 .len = op->len,
		                 .len2 = op->len2,
		                 .noreplace = op->flags & META_RENAME_NOREPLACE,
		                 .keep = op->keep,
		                 .now = op->now };
	r.err = run_rename(op->m, &a, &r);
	if (r.err == -EAGAIN && tx_pause(&op->tries)) {
		op_resubmit(op);
		return;
	}
	if (r.err == -EAGAIN)
		r.err = -EBUSY;
	tx_end(op, &r);
}

void tx_rename(struct op *op)
{
	tx_submit(op, run_rename_job, NULL);
}
