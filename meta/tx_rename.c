/* rename across shards, and of directories to another parent, as a list of steps (see tx.c):
 *
 *	rename    [L lock]  A mark + intent  [B mark the target directory  R gone if empty]
 *	          B IN PLACE  [drop a file that was replaced]  S parent and time
 *	          A entry gone (or unmark)  clear  [L unlock]
 *	exchange  [L lock]  A mark + intent  B IN PLACE, takes the other out  S, O parents and times
 *	          A the other in place (or unmark)  clear  [L unlock]
 *
 * A, B: shards of the directories that it goes from and to; S, R, O: of the inodes that move, are
 *removed, move back; L: shard 0. What can't happen is refused in B first, which decides for
 *everybody who runs the list; only then the mark goes. From where the target directory is gone
 *until it has been replaced nothing can be refused: its name is marked, so it stays, and nothing
 *forbids to replace it. */
#include "meta/tx.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define TX_MAX     64 /* a transaction's name and what is appended for its parts */
#define TRIES_HERE 6  /* a tenth of a second; then both names are let go and it begins anew */

struct move {
	struct meta *m;
	const struct rename_args *a;
	struct meta_reply *r;
	struct entry moved;
	struct entry back;    /* exchange: what goes the other way */
	struct entry gone;    /* a directory that was removed, to be replaced; len 0: none */
	silt_ino target;      /* that, or one that had to stay; 0: none */
	silt_ino dropped;     /* a file that was replaced elsewhere; 0: none */
	bool locked, nothing; /* nothing: two names of one file */
	bool seen;            /* others may have seen an intent of it */
	char drop_tx[TX_MAX], rmdir_tx[TX_MAX], moved_tx[TX_MAX], back_tx[TX_MAX];
};

static bool exchanges(const struct move *v)
{
	return v->a->flags & META_RENAME_EXCHANGE;
}

/* Decides that it does not happen, because of `rc`. Returns what was decided, maybe before: 0: it
 * happens; then the step that decides says more. */
static int refuse(struct move *v, int rc, bool target_stays)
{
	const struct rename_args *a = v->a;
	struct place p = { a->dir2, a->name2, a->len2, target_stays };
	long long code = 0;
	return step_refuse(v->m, silt_ino_shard(a->dir2), a->tx, rc, &p, NULL, &code);
}

/* May directory `ino` become one of `dir`? */
static int check_dir(struct move *v, silt_ino ino, silt_ino dir)
{
	int rc = v->locked ? 0 : tx_lock(v->m, v->a->tx, false);
	if (rc == -ENOTCONN)
		return rc;
	v->locked = !rc;
	/* It was none when we looked whether the lock is needed: all anew. */
	return rc ? -ESTALE : tx_check_not_below(v->m, dir, ino);
}

/* Before it is decided: may the inode move? */
static int check(struct move *v, const struct entry *e, silt_ino from, silt_ino to)
{
	int rc = 0;
	if (S_ISDIR(e->type) && from != to)
		rc = check_dir(v, e->ino, to);
	if (!rc && !v->a->resume && silt_ino_shard(e->ino) != silt_ino_shard(from))
		rc = step_may_go(v->m, e->ino);
	return rc == 0 || rc == -ENOTCONN ? rc : refuse(v, rc, false);
}

/* Removes the directory that the target name is, if it is one and may go. */
static int clear_target(struct move *v)
{
	const struct rename_args *a = v->a;
	struct entry there;
	int rc = step_aim(v->m, a->tx, a->dir2, a->name2, a->len2, &v->moved, &there);
	if (rc == -EAGAIN)
		return 0;
	if (rc && rc != -ENOTCONN)
		return refuse(v, rc, false);
	if (rc || there.len == 0)
		return rc;
	rc = step_rmdir(v->m, v->rmdir_tx, there.ino);
	v->target = there.ino;
	if (!rc)
		v->gone = there;
	return rc == 0 || rc == -ENOTCONN ? rc : refuse(v, rc, true);
}

/* Puts the entry in place. */
static int insert(struct move *v)
{
	const struct rename_args *a = v->a;
	struct entry old = { 0 }, checked = { 0 };
	struct silt_inode old_inode = { 0 };
	int rc, code = 0;
	struct insert_args ia = { .tx = a->tx,
		                  .drop_tx = v->drop_tx,
		                  .dir = a->dir2,
		                  .name = a->name2,
		                  .len = a->len2,
		                  .moved = &v->moved,
		                  .gone = &v->gone,
		                  .checked = &checked,
		                  .noreplace = a->flags & META_RENAME_NOREPLACE,
		                  .keep = a->keep,
		                  .now = a->now };
	for (unsigned tries = 0;;) {
		rc = step_insert(v->m, &ia, &code, &old, &old_inode);
		if (!rc && code == 3) {
			checked = old;
			rc = step_may_go(v->m, old.ino);
			if (rc && rc != -ENOTCONN)
				rc = refuse(v, rc, false);
			if (!rc)
				continue;
		}
		if (rc != -EAGAIN)
			break;
		rc = S_ISDIR(v->moved.type) ? clear_target(v) : 0;
		if (!rc && v->gone.len == 0 && (tries >= TRIES_HERE || !tx_pause(&tries)))
			rc = refuse(v, -ESTALE, false);
		if (rc)
			break;
	}
	if (rc)
		return rc;
	v->nothing = code == 2;
	if (S_ISDIR(old.type))
		v->target = old.ino;
	else
		v->r->replaced = old.ino;
	if (code == 1) {
		v->dropped = old.ino;
		rc = run_drop(v->m, v->drop_tx, silt_ino_shard(a->dir2), old.ino, a->keep, a->now,
		              &v->seen, &old_inode);
	}
	v->r->replaced_nlink = old_inode.attr.nlink;
	return rc == -ENOTCONN ? rc : 0;
}

/* Puts the entry in the other's place, and the other into v->back. */
static int exchange(struct move *v)
{
	const struct rename_args *a = v->a;
	struct entry there = { 0 };
	int rc, code = 0;
	for (unsigned tries = 0;;) {
		rc = step_exchange(v->m, a, &v->moved, &there, &code, &v->back);
		if (!rc && code == 3) {
			there = v->back;
			rc = check(v, &there, a->dir2, a->dir);
			if (!rc)
				continue;
		}
		if (rc == -EAGAIN && (tries >= TRIES_HERE || !tx_pause(&tries)))
			rc = refuse(v, -ESTALE, false);
		if (rc != -EAGAIN && (rc || code != 3))
			break;
	}
	v->nothing = !rc && code == 2;
	return rc;
}

static int tell_moved(struct move *v, const char *tx, const struct entry *e, silt_ino parent,
                      struct silt_inode *inode)
{
	int rc = step_moved(v->m, S_ISDIR(e->type) ? tx : "", e->ino, parent, v->a->now, inode);
	if (rc && rc != -ENOTCONN) {
		silt_warn(v->m->log, "rename: inode %llu has no record",
		          (unsigned long long)e->ino);
		rc = 0;
	}
	return rc;
}

static void clear(struct move *v)
{
	const struct rename_args *a = v->a;
	struct meta *m = v->m;
	step_clear(m, silt_ino_shard(a->dir2), a->tx, v->seen);
	if (v->dropped)
		step_clear(m, silt_ino_shard(v->dropped), v->drop_tx, v->seen);
	if (v->target)
		step_clear(m, silt_ino_shard(v->target), v->rmdir_tx, v->seen);
	if (S_ISDIR(v->moved.type))
		step_clear(m, silt_ino_shard(v->moved.ino), v->moved_tx, v->seen);
	if (v->back.len && S_ISDIR(v->back.type))
		step_clear(m, silt_ino_shard(v->back.ino), v->back_tx, v->seen);
}

/* After the mark: everything else. */
static int rename_marked(struct move *v)
{
	const struct rename_args *a = v->a;
	enum entry_end end = ENTRY_STAYS;
	int rc = check(v, &v->moved, a->dir, a->dir2);
	if (!rc)
		rc = exchanges(v) ? exchange(v) : insert(v);
	if (!rc && !v->nothing) {
		end = exchanges(v) ? ENTRY_REPLACED : ENTRY_GOES;
		rc = tell_moved(v, v->moved_tx, &v->moved, a->dir2, &v->r->inode);
		if (!rc && exchanges(v))
			rc = tell_moved(v, v->back_tx, &v->back, a->dir, NULL);
	}
	if (rc == -ENOTCONN)
		return rc;
	int rc2 =
	        step_unmark(v->m, a->tx, a->dir, a->name, a->len, end, &v->back, a->now, &v->seen);
	if (rc2 == -ENOTCONN)
		return rc2;
	clear(v);
	return rc ? rc : rc2;
}

static void intent_for_rename(struct intent *i, const struct rename_args *a)
{
	intent_begin(i, 'V');
	intent_add_u64(i, a->dir);
	intent_add(i, a->name, a->len);
	intent_add_u64(i, a->dir2);
	intent_add(i, a->name2, a->len2);
	intent_add_u64(i, a->flags);
}

/* Is a directory among what moves? Who completes what another began finds the lock taken if it is.
 */
static int lock_if_needed(struct move *v)
{
	const struct rename_args *a = v->a;
	struct entry e, other = { 0 };
	int rc = a->dir == a->dir2 || a->resume ? -ENOENT
	                                        : step_entry(v->m, a->dir, a->name, a->len, &e);
	if (rc)
		return a->dir == a->dir2 || a->resume ? 0 : rc;
	if (exchanges(v))
		rc = step_entry(v->m, a->dir2, a->name2, a->len2, &other);
	if (!rc && (S_ISDIR(e.type) || S_ISDIR(other.type))) {
		rc = tx_lock(v->m, a->tx, true);
		v->locked = !rc;
	}
	return rc;
}

int run_rename(struct meta *m, const struct rename_args *a, struct meta_reply *r)
{
	struct move v = { .m = m, .a = a, .r = r };
	struct intent i;
	snprintf(v.drop_tx, TX_MAX, "%s.d", a->tx);
	snprintf(v.rmdir_tx, TX_MAX, "%s.r", a->tx);
	snprintf(v.moved_tx, TX_MAX, "%s.m", a->tx);
	snprintf(v.back_tx, TX_MAX, "%s.b", a->tx);
	intent_for_rename(&i, a);
	int rc = lock_if_needed(&v);
	if (!rc)
		rc = step_mark(m, a->tx, a->resume ? NULL : &i, a->dir, a->name, a->len, &v.moved);
	if (!rc)
		rc = rename_marked(&v);
	if (v.locked && rc != -ENOTCONN) /* else it belongs to what is left */
		tx_unlock(m, a->tx);
	return rc == -ESTALE ? -EAGAIN : rc;
}

static void run_rename_job(struct tx_job *j)
{
	struct op *op = j->op;
	struct meta_reply r = { 0 };
	next_tx(op->m, op->tx);
	struct rename_args a = { .tx = op->tx,
		                 .dir = op->dir,
		                 .dir2 = op->dir2,
		                 .name = op->name,
		                 .name2 = op->name2,
		                 .len = op->len,
		                 .len2 = op->len2,
		                 .flags = op->flags,
		                 .keep = op->keep,
		                 .now = op->now };
	r.err = run_rename(op->m, &a, &r);
	if (r.err != -EAGAIN || !tx_anew(op))
		tx_end(op, &r);
}

void tx_rename(struct op *op)
{
	tx_submit(op, run_rename_job, NULL);
}
