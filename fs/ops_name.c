/* Operations on names: LOOKUP, MKNOD, MKDIR, SYMLINK, LINK, UNLINK, RMDIR, RENAME, READLINK,
 * FORGET.
 *
 * Each is one Redis call. A name's last removal deletes the inode, unless it is open: the functions
 * keep the inode when they are told that it may be open here (`keep_open`: anything is open on this
 * mount), and the reply says whether the name was the last one. Then either the inode has a node
 * here and goes with its last handle, or it is released at once. */
#include <errno.h>
#include <string.h>

#include "fs/fs_impl.h"

static bool anything_open(struct fs *fs)
{
	return atomic_load(&fs->nodes.open_nodes) > 0 || atomic_load(&fs->nodes.opening) > 0;
}

static void released(void *arg, const struct meta_reply *reply)
{
}

void fs_deleted(struct fs *fs, silt_ino ino)
{
	struct node *n = node_get(fs, ino);
	fresh_drop(&fs->fresh, ino);
	if (!n) {
		meta_release_deleted(fs->cfg.meta, ino, released, NULL);
		return;
	}
	silt_lock(&n->lock);
	n->deleted = true;
	n->attr.nlink = 0;
	silt_unlock(&n->lock);
	node_put(fs, n);
}

/* After a change of names in r->dir: what is known of that directory. */
static void note_parent(struct request *r, const struct meta_reply *reply)
{
	if (r->kind == KIND_LOOKUP)
		return;
	if (reply->dir.ino) {
		dir_put(&r->fs->dirs, &reply->dir);
		flags_note(&r->fs->flags, &reply->dir);
	} else {
		dir_drop(&r->fs->dirs, r->dir);
	}
}

/* What kinds of attributes the inode has. A link across shards is told on a thread of its own,
 * perhaps after a change that came later. */
static void note_flags(struct request *r, const struct silt_inode *inode)
{
	if (r->kind == KIND_LINK)
		flags_drop(&r->fs->flags, inode->attr.ino);
	else
		flags_note(&r->fs->flags, &inode->attr);
}

/* There is no such name: a relaxed mount's kernel may remember that. */
static void absent(struct request *r, const struct meta_seen *seen)
{
	struct fuse_entry_param e = { 0 };
	e.entry_timeout = coherence_entry_timeout(r->fs, r->ino, 0, false, seen);
	if (e.entry_timeout <= 0) {
		request_end_err(r, -ENOENT);
		return;
	}
	if (request_claim(r))
		fuse_reply_entry(r->req, &e);
	request_free(r);
}

/* A name that is there but damaged: the kernel unlinks only what a LOOKUP finds. So it gets a node of
 * its own, which it may not keep, and whatever else is asked about that is EIO (request_begin()). */
static void answer_damaged(struct request *r, uint32_t mode, uint64_t place)
{
	struct fuse_entry_param e = { .attr.st_mode = mode & S_IFMT, .attr.st_nlink = 1 };
	e.ino = FS_DAMAGED_NODES | ((uint64_t)(mode & S_IFMT) << 28) |
	        (place ^ r->ino) % ((uint64_t)1 << 40);
	e.attr.st_ino = e.ino;
	if (request_claim(r))
		fuse_reply_entry(r->req, &e);
	request_free(r);
}

/* Answers with the entry of the reply's inode. */
static void entry_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	struct fs *fs = r->fs;
	note_parent(r, reply);
	if (reply->err == -ENOENT && r->kind == KIND_LOOKUP && reply->seen.name) {
		absent(r, &reply->seen);
		return;
	}
	if (reply->err == -EIO && reply->damaged && r->kind == KIND_LOOKUP) {
		answer_damaged(r, reply->inode.attr.mode, reply->first);
		return;
	}
	if (reply->err) {
		request_end_err(r, reply->err);
		return;
	}
	struct silt_inode inode = reply->inode;
	struct fuse_entry_param e;
	note_flags(r, &inode);
	if (r->kind == KIND_LINK)
		fresh_drop(&fs->fresh, r->ino);
	if (r->kind == KIND_LINK && r->node && inode.attr.nlink > 0) {
		silt_lock(&r->node->lock);
		r->node->unnamed = r->node->deleted = false;
		silt_unlock(&r->node->lock);
	}
	/* Not of one with several names: the next open may be of another, of which the kernel has been told for
	 * longer, so that it sends no LOOKUP. */
	if (r->kind == KIND_LOOKUP && S_ISREG(inode.attr.mode) && inode.attr.nlink == 1)
		fresh_put(&fs->fresh, r->pid, &inode);
	else if (r->kind == KIND_LOOKUP)
		fresh_drop(&fs->fresh, inode.attr.ino); /* from when it had one */
	fs_overlay(fs, &inode, true);
	/* A lookup has its directory in `ino`. */
	fs_fill_entry(fs, r->kind == KIND_LOOKUP ? r->ino : r->dir, &inode, false,
	              r->kind == KIND_LOOKUP ? &reply->seen : NULL, &e);
	if (request_claim(r))
		fuse_reply_entry(r->req, &e);
	else
		coherence_not_given(fs, e.ino);
	request_free(r);
}

void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct request *r = request_begin(req, KIND_LOOKUP, parent);
	if (!r)
		return;
	request_arm(r);
	meta_lookup_for_kernel(r->fs->cfg.meta, parent, name, strlen(name), entry_done, r);
}

/* Node ids are inode numbers: there is nothing to forget. */
void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t n)
{
	fs_count(fuse_req_userdata(req), KIND_FORGET);
	fuse_reply_none(req);
}

void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *v)
{
	fs_count(fuse_req_userdata(req), KIND_FORGET);
	fuse_reply_none(req);
}

static void make(fuse_req_t req, enum fuse_kind kind, fuse_ino_t parent, const char *name,
                 mode_t mode, dev_t rdev, const char *target)
{
	struct request *r = request_begin(req, kind, parent);
	if (!r)
		return;
	struct meta_make how = { .mode = mode,
		                 .uid = r->uid,
		                 .gid = r->gid,
		                 .umask = fuse_req_ctx(req)->umask & 0777,
		                 .rdev = (uint32_t)rdev,
		                 .target = target,
		                 .target_len = target ? strlen(target) : 0,
		                 .now = fs_now() };
	if (how.target_len > SILT_SYMLINK_MAX) {
		request_end_err(r, -ENAMETOOLONG);
		return;
	}
	r->dir = parent;
	request_arm(r);
	meta_make(r->fs->cfg.meta, parent, name, strlen(name), &how, entry_done, r);
}

void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	make(req, KIND_MKNOD, parent, name, mode, rdev, NULL);
}

void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	make(req, KIND_MKDIR, parent, name, S_IFDIR | (mode & 07777), 0, NULL);
}

void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	make(req, KIND_SYMLINK, parent, name, S_IFLNK | 0777, 0, target);
}

static void link_flushed(void *arg, int err)
{
	struct request *r = arg;
	if (!err && request_answered(r))
		err = -EINTR;
	if (err) {
		request_end_err(r, err);
		return;
	}
	const char *name = (const char *)r->buf;
	meta_link(r->fs->cfg.meta, r->ino, r->dir, name, strlen(name), fs_now(), entry_done, r);
}

void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
	struct request *r = request_begin(req, KIND_LINK, ino);
	if (!r)
		return;
	r->dir = parent;
	struct node *n = node_get(r->fs, ino);
	bool first = false;
	if (n) {
		silt_lock(&n->lock);
		first = n->unnamed;
		silt_unlock(&n->lock);
	}
	r->node = n;
	r->buf = first ? (uint8_t *)strdup(name) : NULL;
	if (first && !r->buf) {
		request_end_err(r, -ENOMEM);
		return;
	}
	request_arm(r);
	if (first) { /* what was written is there when the name is */
		r->wait.done = link_flushed;
		r->wait.arg = r;
		node_flush(r->fs, n, &r->wait);
		return;
	}
	meta_link(r->fs->cfg.meta, ino, parent, name, strlen(name), fs_now(), entry_done, r);
}

/* --- removal ------------------------------------------------------------------------------ */

static void plain_done(void *arg, const struct meta_reply *reply)
{
	note_parent(arg, reply);
	request_end_err(arg, reply->err);
}

static void unlink_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	struct fs *fs = r->fs;
	const struct silt_inode *inode = &reply->inode;
	note_parent(r, reply);
	bool known = !reply->err && inode->attr.ino != 0;
	if (known && inode->attr.nlink == 0 && r->flags) {
		fs_deleted(fs, inode->attr.ino);
	} else if (known) {
		struct silt_inode copy = *inode; /* other names see the new link count */
		fresh_drop(&fs->fresh, inode->attr.ino);
		fs_overlay(fs, &copy, false);
	}
	request_end_err(r, reply->err);
}

void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct request *r = request_begin(req, KIND_UNLINK, parent);
	if (!r)
		return;
	bool keep = anything_open(r->fs);
	r->flags = keep;
	r->dir = parent;
	request_arm(r);
	meta_unlink(r->fs->cfg.meta, parent, name, strlen(name), keep, fs_now(), unlink_done, r);
}

void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct request *r = request_begin(req, KIND_RMDIR, parent);
	if (!r)
		return;
	r->dir = parent;
	request_arm(r);
	meta_rmdir(r->fs->cfg.meta, parent, name, strlen(name), fs_now(), plain_done, r);
}

/* --- rename ------------------------------------------------------------------------------- */

static void rename_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	dir_drop(&r->fs->dirs, r->dir);
	dir_drop(&r->fs->dirs, r->dir2);
	dir_drop(&r->fs->dirs, reply->inode.attr.ino); /* a directory that moved: its change time */
	if (!reply->err && reply->replaced)
		fresh_drop(&r->fs->fresh, reply->replaced);
	if (!reply->err && reply->replaced && reply->replaced_nlink == 0 && r->flags)
		fs_deleted(r->fs, reply->replaced);
	for (int i = 0; i < 2 && !reply->err; i++) {
		if (r->moved[i])
			coherence_moved(r->fs, r->moved[i]);
		r->moved[i] = NULL;
	}
	request_end_err(r, reply->err);
}

void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
               const char *newname, unsigned flags)
{
	struct request *r = request_begin(req, KIND_RENAME, parent);
	if (!r)
		return;
	if (flags & ~(unsigned)(META_RENAME_NOREPLACE | META_RENAME_EXCHANGE)) {
		request_end_err(r, -EINVAL);
		return;
	}
	bool keep = anything_open(r->fs);
	r->flags = keep;
	r->dir = parent;
	r->dir2 = newparent;
	r->moved[0] = coherence_moving(newparent, newname, strlen(newname));
	if (r->moved[0] && flags & META_RENAME_EXCHANGE)
		r->moved[1] = coherence_moving(parent, name, strlen(name));
	if (!r->moved[0] || (flags & META_RENAME_EXCHANGE && !r->moved[1])) {
		request_end_err(r, -ENOMEM);
		return;
	}
	request_arm(r);
	meta_rename(r->fs->cfg.meta, parent, name, strlen(name), newparent, newname,
	            strlen(newname), flags, keep, fs_now(), rename_done, r);
}

/* --- symbolic links ----------------------------------------------------------------------- */

static void readlink_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	if (reply->err) {
		request_end_err(r, reply->err);
		return;
	}
	char target[SILT_SYMLINK_MAX + 1];
	size_t len = reply->len < sizeof(target) ? reply->len : sizeof(target) - 1;
	memcpy(target, reply->data, len);
	target[len] = '\0';
	if (request_claim(r))
		fuse_reply_readlink(r->req, target);
	request_free(r);
}

void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
	struct request *r = request_begin(req, KIND_READLINK, ino);
	if (!r)
		return;
	atime_note(r->fs, ino, fs_now());
	request_arm(r);
	meta_readlink(r->fs->cfg.meta, ino, readlink_done, r);
}
