/* GETLK, SETLK, SETLKW and flock. See locks.h.
 *
 *	unlock	[store what is written]  Redis  answer
 *	lock	[store what is written, if the owner may hold a stronger one]  Redis ... granted
 *		[pages go]  answer
 *
 * A request that waits holds no thread and no FUSE queue. A signal to its caller takes it back:
 *Redis says whether it still waited (EINTR) or was granted just before (then the lock is taken, and
 *that is the answer). Only who is being killed, or when Redis does not answer, is answered before
 *that; what is granted then is given back. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>

#include "fs/fs_impl.h"
#include "fs/locks_impl.h"
#include "meta/cleanup.h"

static struct handle *handle_of(const struct fuse_file_info *fi)
{
	return (struct handle *)(uintptr_t)fi->fh;
}

static enum meta_lock_type type_of(int type)
{
	return type == F_RDLCK   ? META_LOCK_READ
	       : type == F_WRLCK ? META_LOCK_WRITE
	                         : META_LOCK_NONE;
}

static struct meta_lock lock_of(fuse_ino_t ino, const struct fuse_file_info *fi,
                                const struct flock *l)
{
	return (struct meta_lock){
		.ino = ino,
		.owner = fi->lock_owner,
		.pid = (uint32_t)l->l_pid,
		.type = type_of(l->l_type),
		.start = (uint64_t)l->l_start,
		.end = l->l_len ? (uint64_t)l->l_start + (uint64_t)l->l_len - 1 : META_LOCK_LAST,
	};
}

/* Does the caller, who waits in fcntl(2) for our answer, use a lock of an open file description?
 * Those look for no deadlock. The kernel does not tell; its arguments do, where we may see them. */
static bool waits_for_ofd(pid_t tid)
{
	char path[64];
	unsigned long long fd, cmd;
	long nr;
	snprintf(path, sizeof(path), "/proc/%d/syscall", (int)tid);
	SILT_FCLOSE FILE *f = tid > 0 ? fopen(path, "re") : NULL;
	return f && fscanf(f, "%ld %llx %llx", &nr, &fd, &cmd) == 3 && cmd == F_OFD_SETLKW;
}

/* --- after the answer of Redis ------------------------------------------------------------ */

static void nothing(void *arg, const struct meta_lock_reply *reply)
{
	struct fs *fs = arg;
	fs_background_end(fs);
}

/* Granted, but its caller was told EINTR. What it held before stays its own: it can't be told
 * apart. */
static void give_back(struct request *r)
{
	if (r->lock_had)
		return;
	struct meta_lock l = r->lock;
	l.type = META_LOCK_NONE;
	fs_background_begin(r->fs);
	meta_lock_set(r->fs->cfg.meta, &l, 0, false, nothing, r->fs);
}

void lock_answer(struct request *r)
{
	if (request_claim(r))
		fuse_reply_err(atomic_load(&r->req), 0);
	else
		give_back(r);
	request_free(r);
}

/* The inode as it is with the lock held. True: the kernel's pages are of another version, or being
 * dropped. */
static bool see_inode(struct request *r, const struct meta_lock_reply *reply)
{
	struct node *n = r->node;
	if (reply->gone)
		return false;
	silt_lock(&n->lock);
	if (reply->has_inode) {
		struct silt_inode inode = reply->inode;
		node_merge_locked(n, &inode);
	} else {
		file_map_forget(&n->map); /* nobody knows: whoever reads asks */
	}
	r->off = n->whole_version;
	if (reply->has_inode)
		node_kernel_knows_locked(n);
	silt_unlock(&n->lock);
	return !reply->has_inode || !opened_is(&r->fs->opened, r->ino, r->off) ||
	       !coherence_settled(n, false);
}

/* Notes what the owner may hold after a request of its. */
static void settle(struct request *r, int err)
{
	struct node *n = r->node;
	bool unlock = r->lock.type == META_LOCK_NONE;
	bool all = r->lock.flock || (r->lock.start == 0 && r->lock.end == META_LOCK_LAST);
	silt_lock(&n->lock);
	struct lock_owner *o = lock_owner_find(n, r->lock.owner, r->lock.flock);
	if (o) {
		o->busy--;
		if (unlock && all && !err && !o->busy)
			o->held = false;
		else if (!unlock && (!err || err == -EIO))
			o->held = true;
		if (!o->held && !o->busy)
			lock_owner_forget(n, o);
	}
	silt_unlock(&n->lock);
}

static void lock_done(void *arg, const struct meta_lock_reply *reply)
{
	struct request *r = arg;
	int err = reply->err;
	r->lock_had = reply->had;
	settle(r, err);
	if (r->lock.type == META_LOCK_NONE)
		request_end_err(r, err ? err : atomic_load(&r->err));
	else if (err)
		request_end_err(r, err);
	else if (!request_answered(r) && see_inode(r, reply))
		lock_answer_later(r);
	else
		lock_answer(r);
}

/* --- before it ---------------------------------------------------------------------------- */

static void send(struct request *r)
{
	meta_lock_set(r->fs->cfg.meta, &r->lock, r->lock_id, r->lock_detect, lock_done, r);
}

/* Bytes that could not be stored don't keep a lock: others would wait for ever. The caller hears of
 * it, and its fsync or close will say so too. */
static void flushed(void *arg, int err)
{
	struct request *r = arg;
	atomic_store(&r->err, err);
	send(r);
}

/* `wait`: may be queued. */
static void begin(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi,
                  const struct meta_lock *l, bool wait)
{
	struct handle *h = handle_of(fi);
	struct node *n = h->node;
	struct fs *fs = n->fs;
	bool unlock = l->type == META_LOCK_NONE, held, dirty;
	enum fuse_kind kind = wait ? KIND_SETLKW : KIND_SETLK;
	handle_is_used(h);
	if (!unlock && atomic_load(&h->lock_lost)) {
		fs_count(fs, kind);
		fuse_reply_err(req, EIO);
		return;
	}
	silt_lock(&n->lock);
	struct lock_owner *o = unlock ? lock_owner_find(n, l->owner, l->flock)
	                              : lock_owner_make(n, l->owner, l->flock, h);
	held = o && o->held;
	dirty = !write_buffer_empty(&n->buffer) && !n->deleted;
	if (o)
		o->busy++;
	silt_unlock(&n->lock);
	struct request *r = o ? request_begin(req, kind, ino) : NULL;
	if (!r) {
		if (!o) {
			fs_count(fs, kind);
			fuse_reply_err(req, unlock ? 0 : ENOMEM); /* it holds nothing */
			return;
		}
		silt_lock(&n->lock);
		o->busy--;
		silt_unlock(&n->lock);
		return;
	}
	if (!l->flock && h->noflush)
		atomic_store(&fs->locks.readers_lock, true);
	r->lock = *l;
	r->handle = handle_ref(h);
	r->node = n;
	node_ref(fs, n);
	if (wait && !unlock) {
		r->lock_detect = !l->flock && !waits_for_ofd(r->pid);
		r->lock_id = meta_lock_id(fs->cfg.meta);
	}
	r->wait.done = flushed;
	r->wait.arg = r;
	r->wait.answers = true;
	request_arm(r);
	if (held && dirty)
		node_flush(fs, n, &r->wait);
	else
		send(r);
}

void fs_lock_interrupted(struct fs *fs, uint64_t id)
{
	if (id)
		meta_lock_cancel(fs->cfg.meta, id);
}

/* --- the operations ----------------------------------------------------------------------- */

void op_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock,
              int sleep)
{
	struct meta_lock l = lock_of(ino, fi, lock);
	if (l.end < l.start || l.end > META_LOCK_LAST) {
		fs_count(fuse_req_userdata(req), KIND_SETLK);
		fuse_reply_err(req, EINVAL);
		return;
	}
	begin(req, ino, fi, &l, sleep);
}

void op_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int op)
{
	int what = op & ~LOCK_NB;
	struct meta_lock l = { .ino = ino,
		               .flock = true,
		               .owner = fi->lock_owner,
		               .pid = (uint32_t)fuse_req_ctx(req)->pid,
		               .type = what == LOCK_SH   ? META_LOCK_READ
		                       : what == LOCK_EX ? META_LOCK_WRITE
		                                         : META_LOCK_NONE,
		               .end = META_LOCK_LAST };
	begin(req, ino, fi, &l, !(op & LOCK_NB));
}

static void got_lock(void *arg, const struct meta_lock_reply *reply)
{
	struct request *r = arg;
	if (reply->err) {
		request_end_err(r, reply->err);
		return;
	}
	const struct meta_lock *f = &reply->found;
	struct flock l = { .l_type = F_UNLCK, .l_whence = SEEK_SET };
	if (f->type != META_LOCK_NONE) {
		l.l_type = f->type == META_LOCK_READ ? F_RDLCK : F_WRLCK;
		l.l_start = (off_t)f->start;
		l.l_len = f->end == META_LOCK_LAST ? 0 : (off_t)(f->end - f->start + 1);
		/* A process of another node has no number here; the kernel shows 0. */
		l.l_pid = reply->here ? (pid_t)f->pid : 0;
	}
	if (request_claim(r))
		fuse_reply_lock(atomic_load(&r->req), &l);
	request_free(r);
}

void op_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock)
{
	struct request *r = request_begin(req, KIND_GETLK, ino);
	if (!r)
		return;
	r->lock = lock_of(ino, fi, lock);
	if (r->lock.type == META_LOCK_NONE || r->lock.end < r->lock.start ||
	    r->lock.end > META_LOCK_LAST) {
		request_end_err(r, -EINVAL);
		return;
	}
	request_arm(r);
	meta_lock_get(r->fs->cfg.meta, &r->lock, got_lock, r);
}
