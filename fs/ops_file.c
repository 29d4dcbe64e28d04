/* Open files: OPEN, CREATE, RELEASE, FLUSH, FSYNC.
 *
 * OPEN uses the inode that the LOOKUP of the same open(2) just brought (recent.h), else asks for
 * it. The kernel keeps the file's pages if they are of the version that is opened. O_TRUNC is part
 * of OPEN (FUSE_CAP_ATOMIC_O_TRUNC). close() of a file opened for reading sends no FLUSH.
 *
 * A file opened to append bypasses the kernel's page cache, so that a record of up to 1 MiB less a
 * page is one request, and ends up in one piece (write_buffer.h).
 *
 * FLUSH (every close) and FSYNC answer when everything written so far is stored, or with the error.
 * A deleted file's bytes need not be stored: nobody can open it again. Those of a file that may get
 * its first name (O_TMPFILE) are stored by FSYNC and before LINK. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "fs/fs_impl.h"

static bool writable(int flags)
{
	return (flags & O_ACCMODE) != O_RDONLY;
}

/* --- handles ------------------------------------------------------------------------------ */

struct handle *handle_ref(struct handle *h)
{
	atomic_fetch_add(&h->refs, 1);
	return h;
}

void handle_put(struct handle *h)
{
	if (atomic_fetch_sub(&h->refs, 1) == 1)
		free(h);
}

struct handle *fs_handle_new(struct fs *fs, const struct silt_inode *inode, int flags)
{
	struct handle *h = calloc(1, sizeof(*h));
	if (!h)
		return NULL;
	struct node *n = node_make(fs, inode);
	if (!n) {
		free(h);
		return NULL;
	}
	atomic_store(&h->refs, 1);
	h->node = n;
	h->flags = flags;
	atomic_store(&h->error_seen, atomic_load(&n->error_seq));
	struct silt_inode copy = *inode;
	silt_lock(&n->lock);
	node_merge_locked(n, &copy);
	if (n->handles++ == 0)
		atomic_fetch_add(&fs->nodes.open_nodes, 1);
	n->writers += writable(flags);
	h->next = n->first_handle;
	if (h->next)
		h->next->prev = h;
	n->first_handle = h;
	silt_unlock(&n->lock);
	silt_count(fs->cfg.metrics, M_OPEN_FILES, 1);
	coherence_opened(fs, n->ino, flags);
	return h;
}

void fs_handle_close(struct fs *fs, struct handle *h)
{
	struct node *n = h->node;
	bool put = false, flush = false;
	silt_lock(&n->lock);
	assert(n->handles > 0);
	*(h->prev ? &h->prev->next : &n->first_handle) = h->next;
	if (h->next)
		h->next->prev = h->prev;
	if (writable(h->flags) && --n->writers == 0 && !n->deleted)
		flush = !write_buffer_empty(&n->buffer);
	if (--n->handles == 0) {
		atomic_fetch_sub(&fs->nodes.open_nodes, 1);
		if (n->deleted) {
			write_buffer_truncate(&n->buffer, 0);
			put = node_note_dirty_locked(fs, n);
		}
	}
	silt_unlock(&n->lock);
	if (flush)
		node_flush_late(fs, n);
	if (put)
		node_put(fs, n);
	node_put(fs, n);
	silt_uncount(fs->cfg.metrics, M_OPEN_FILES, 1);
	handle_put(h);
}

void handle_open_ended(struct handle *h)
{
	uint32_t token = atomic_exchange(&h->dropping, 0);
	if (token)
		opened_sure(&h->node->fs->opened, h->node->ino, token);
}

void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs *fs = fuse_req_userdata(req);
	fs_count(fs, KIND_RELEASE);
	handle_is_used((struct handle *)(uintptr_t)fi->fh);
	fs_locks_release(fs, (struct handle *)(uintptr_t)fi->fh);
	fs_handle_close(fs, (struct handle *)(uintptr_t)fi->fh);
	fuse_reply_err(req, 0);
}

/* --- OPEN --------------------------------------------------------------------------------- */

/* What immutable and append-only files may be opened for. The kernel doesn't know that they are. */
static int check_flags(const struct silt_attr *a, int flags)
{
	bool changes = writable(flags) || (flags & O_TRUNC);
	if ((a->flags & SILT_FLAG_IMMUTABLE) && changes)
		return -EPERM;
	if ((a->flags & SILT_FLAG_APPEND) && changes && (!(flags & O_APPEND) || (flags & O_TRUNC)))
		return -EPERM;
	return 0;
}

/* Answers OPEN or CREATE with a handle on `inode`. */
static void open_with(struct request *r, const struct silt_inode *inode)
{
	struct fs *fs = r->fs;
	struct fuse_file_info fi = { .flags = r->flags };
	struct silt_inode seen = *inode;
	int rc = check_flags(&inode->attr, r->flags);
	struct handle *h = rc ? NULL : fs_handle_new(fs, inode, r->flags);
	if (!h) {
		request_end_err(r, rc ? rc : -ENOMEM);
		return;
	}
	rc = -EINTR;
	if (r->kind == KIND_TMPFILE) {
		silt_lock(&h->node->lock);
		h->node->unnamed = !(r->flags & O_EXCL);
		silt_unlock(&h->node->lock);
	}
	fi.fh = (uintptr_t)h;
	fi.noflush = !writable(r->flags) && !atomic_load(&fs->locks.readers_lock);
	h->noflush = fi.noflush;
	/* Else the kernel cuts a write(2) at its pages: each record is to come as one WRITE. */
	fi.direct_io = (r->flags & O_APPEND) && writable(r->flags);
	/* With pages of its own the kernel would not tell of reads that count. */
	fi.direct_io |= fs->cfg.atime == FS_STRICTATIME;
	fs_overlay(fs, &seen, !r->unsaid);
	silt_lock(&h->node->lock);
	uint64_t version = h->node->whole_version;
	silt_unlock(&h->node->lock);
	uint32_t token = opened_note(&fs->opened, seen.attr.ino, version);
	atomic_store(&h->dropping, token);
	fi.keep_cache = token == 0 && !atime_due(fs, &seen.attr);
	if (request_claim(r)) {
		if (r->kind == KIND_CREATE || r->kind == KIND_TMPFILE) {
			struct fuse_entry_param e;
			fs_fill_entry(fs, r->dir, &seen, false, NULL, &e);
			rc = fuse_reply_create(r->req, &e, &fi);
		} else {
			rc = fuse_reply_open(r->req, &fi);
		}
	}
	if (rc < 0) /* the kernel gave the open up: no RELEASE will come */
		fs_handle_close(fs, h);
	request_free(r);
}

static void open_truncated(struct request *r, const struct silt_inode *inode, int err)
{
	if (err)
		request_end_err(r, err);
	else
		open_with(r, inode);
}

static void open_truncating(struct request *r)
{
	r->now = fs_now();
	r->valid = META_SET_SIZE | (r->uid != 0 ? META_CLEAR_SUID : 0u);
	r->values.size = 0;
	r->then = open_truncated;
	r->node = node_get(r->fs, r->ino);
	fs_setattr_begin(r);
}

/* The inode of a file that is deleted but open here may be gone in Redis: its node knows it. */
static bool node_inode(struct request *r, struct silt_inode *inode)
{
	struct node *n = node_get(r->fs, r->ino);
	if (!n)
		return false;
	silt_lock(&n->lock);
	*inode = (struct silt_inode){ .attr = n->attr };
	silt_unlock(&n->lock);
	node_put(r->fs, n);
	return true;
}

/* An OPEN without a LOOKUP: a listing gave the name. It gave the attributes too, and the kernel
 * would end its reads at that size: it is told to ask. Where an append goes is decided here. */
static void open_listed(struct request *r, const struct silt_inode *inode)
{
	fuse_lowlevel_notify_inval_inode(r->fs->se, r->ino, -1, 0);
	open_with(r, inode);
}

static void open_getattr(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	struct silt_inode inode;
	if (!reply->err)
		flags_note(&r->fs->flags, &reply->inode.attr);
	if (!reply->err && meta_relaxed(r->fs->cfg.meta)) {
		r->unsaid = true; /* what the kernel was told is so, until a push says otherwise */
		open_with(r, &reply->inode);
	} else if (!reply->err)
		open_listed(r, &reply->inode);
	else if (reply->err == -ENOENT && node_inode(r, &inode))
		open_with(r, &inode);
	else
		request_end_err(r, reply->err == -ENOENT ? -ESTALE : reply->err);
}

void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct request *r = request_begin(req, KIND_OPEN, ino);
	if (!r)
		return;
	struct fs *fs = r->fs;
	struct silt_inode inode;
	r->flags = fi->flags;
	bool fresh = fresh_take(&fs->fresh, r->pid, ino, &inode);
	if ((fi->flags & O_TRUNC) && writable(fi->flags)) {
		request_arm(r);
		open_truncating(r);
	} else if (fresh) {
		open_with(r, &inode);
	} else {
		request_arm(r);
		meta_getattr_for_open(fs->cfg.meta, ino, open_getattr, r);
	}
}

/* --- CREATE ------------------------------------------------------------------------------- */

/* The kernel sent CREATE because it knew no such name; somebody made one meanwhile, and the kernel
 * will not check its permissions. Supplementary groups are not known here: they count as "other".
 */
static bool may_open(const struct request *r, const struct silt_attr *a)
{
	unsigned want = 0, have;
	int mode = r->flags & O_ACCMODE;
	if (mode == O_RDONLY || mode == O_RDWR)
		want |= 4;
	if (mode == O_WRONLY || mode == O_RDWR || (r->flags & O_TRUNC))
		want |= 2;
	if (r->uid == 0)
		return true;
	if (r->uid == a->uid)
		have = a->mode >> 6;
	else if (r->gid == a->gid)
		have = a->mode >> 3;
	else
		have = a->mode & (a->mode >> 3); /* maybe a member of the group: both must allow */
	return (want & ~have) == 0;
}

static void create_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	const struct silt_attr *a = &reply->inode.attr;
	dir_put(&r->fs->dirs, &reply->dir);
	if (reply->err) {
		request_end_err(r, reply->err);
		return;
	}
	flags_note(&r->fs->flags, &reply->dir);
	flags_note(&r->fs->flags, a);
	if (!reply->existed) {
		open_with(r, &reply->inode);
		return;
	}
	if (S_ISREG(a->mode) && (a->flags & SILT_FLAG_ACL)) {
		request_end_err(r, -ESTALE); /* the kernel tries again, and checks the ACL */
		return;
	}
	if (!S_ISREG(a->mode) || !may_open(r, a)) {
		int err = S_ISDIR(a->mode) ? -EISDIR : S_ISLNK(a->mode) ? -ELOOP : -EACCES;
		request_end_err(r, err);
		return;
	}
	r->ino = a->ino;
	if (r->flags & O_TRUNC)
		open_truncating(r);
	else
		open_with(r, &reply->inode);
}

void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               struct fuse_file_info *fi)
{
	bool unnamed = transport_unnamed();
	struct request *r = request_begin(req, unnamed ? KIND_TMPFILE : KIND_CREATE, parent);
	if (!r)
		return;
	r->flags = fi->flags;
	struct meta_make how = { .mode = S_IFREG | (mode & 07777),
		                 .uid = r->uid,
		                 .gid = r->gid,
		                 .umask = fuse_req_ctx(req)->umask & 0777,
		                 .open_existing = !(fi->flags & O_EXCL),
		                 .now = fs_now() };
	request_arm(r);
	if (unnamed) {
		meta_make_unnamed(r->fs->cfg.meta, parent, &how, !(fi->flags & O_EXCL), create_done,
		                  r);
		return;
	}
	meta_make(r->fs->cfg.meta, parent, name, strlen(name), &how, create_done, r);
}

/* --- FLUSH, FSYNC ------------------------------------------------------------------------- */

/* The error of bytes that were given up, once for each handle. */
static int lost_error(struct handle *h)
{
	unsigned seq = atomic_load(&h->node->error_seq);
	if (atomic_exchange(&h->error_seen, seq) == seq)
		return 0;
	silt_lock(&h->node->lock);
	int err = h->node->lost_err;
	silt_unlock(&h->node->lock);
	return err;
}

static void flush_end(struct request *r, int err)
{
	if (!request_claim(r)) {
		request_free(r);
		return;
	}
	int lost = lost_error(r->handle);
	fuse_reply_err(r->req, -(err ? err : lost));
	request_free(r);
}

static void flush_unlocked(struct request *r, int err)
{
	flush_end(r, atomic_load(&r->err) ? atomic_load(&r->err) : err);
}

static void flushed(void *arg, int err)
{
	struct request *r = arg;
	if (!r->unlock_all) {
		flush_end(r, err);
		return;
	}
	atomic_store(&r->err, err);
	fs_locks_flush(r, r->lock.owner, flush_unlocked);
}

static void flush(fuse_req_t req, enum fuse_kind kind, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct handle *h = (struct handle *)(uintptr_t)fi->fh;
	struct node *n = h->node;
	handle_is_used(h);
	silt_lock(&n->lock);
	bool lost = n->deleted && !(n->unnamed && kind == KIND_FSYNC);
	bool idle = write_buffer_empty(&n->buffer) || lost;
	bool locks = kind == KIND_FLUSH && fs_locks_at_flush_locked(n, fi->lock_owner);
	silt_unlock(&n->lock);
	if (idle && !locks) {
		fs_count(fuse_req_userdata(req), kind);
		fuse_reply_err(req, -lost_error(h));
		return;
	}
	struct request *r = request_begin(req, kind, ino);
	if (!r)
		return;
	r->handle = handle_ref(h);
	r->node = n;
	node_ref(r->fs, n);
	r->wait.done = flushed;
	r->wait.arg = r;
	r->wait.answers = true;
	r->unlock_all = locks;
	r->lock.owner = fi->lock_owner;
	request_arm(r);
	if (idle)
		flushed(r, 0);
	else
		node_flush(r->fs, n, &r->wait);
}

void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	flush(req, KIND_FLUSH, ino, fi);
}

void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	flush(req, KIND_FSYNC, ino, fi);
}
