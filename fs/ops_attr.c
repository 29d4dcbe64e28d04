/* GETATTR, SETATTR, STATFS, and how attributes look to the kernel.
 *
 * SETATTR on a file with bytes that are not stored yet: a commit sets mtime, drops set-id bits and
 * enlarges the size, so whatever changes one of these has to come after it. The bytes are stored
 * first, then the change is made. A change of size also holds newer writes back until it is done.
 */
#include <errno.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>

#include "fs/fs_impl.h"

#define BLOCK_SIZE    (128u << 10) /* st_blksize: what cp and dd read and write at once */
#define STATFS_BYTES  ((uint64_t)1 << 50)
#define STATFS_INODES ((uint64_t)1 << 40)

struct silt_time fs_now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	return (struct silt_time){ .sec = ts.tv_sec, .nsec = (uint32_t)ts.tv_nsec };
}

void fs_fill_stat(const struct silt_attr *a, struct stat *st)
{
	memset(st, 0, sizeof(*st));
	st->st_ino = a->ino;
	st->st_mode = a->mode;
	st->st_nlink = a->nlink;
	st->st_uid = a->uid;
	st->st_gid = a->gid;
	st->st_rdev = a->rdev;
	st->st_size = (off_t)a->size;
	if (S_ISDIR(a->mode)) /* entries, as if 32 bytes each, in whole blocks */
		st->st_size = (off_t)((a->size * 32 / 4096 + 1) * 4096);
	st->st_blksize = BLOCK_SIZE;
	st->st_blocks = (st->st_size + 511) / 512;
	st->st_atim = (struct timespec){ a->atime.sec, a->atime.nsec };
	st->st_mtim = (struct timespec){ a->mtime.sec, a->mtime.nsec };
	st->st_ctim = (struct timespec){ a->ctime.sec, a->ctime.nsec };
}

void fs_fill_entry(struct fs *fs, silt_ino dir, const struct silt_inode *inode, bool listed,
                   const struct meta_seen *seen, struct fuse_entry_param *e)
{
	memset(e, 0, sizeof(*e));
	e->ino = inode->attr.ino;
	e->attr_timeout = coherence_attr_timeout(fs, e->ino, seen);
	e->entry_timeout =
	        coherence_entry_timeout(fs, dir, inode->attr.mode & S_IFMT, listed, seen);
	/* An open of a listed name sends none: what an earlier one brought must not stand for it.
	 */
	if (e->entry_timeout > 0)
		fresh_drop(&fs->fresh, e->ino);
	fs_fill_stat(&inode->attr, &e->attr);
}

/* --- GETATTR ------------------------------------------------------------------------------ */

static void reply_attr_for(struct request *r, const struct silt_inode *inode, double seconds)
{
	struct stat st;
	struct silt_inode seen = *inode;
	fs_overlay(r->fs, &seen, true);
	fs_fill_stat(&seen.attr, &st);
	if (request_claim(r))
		fuse_reply_attr(r->req, &st, seconds);
	else
		coherence_not_given(r->fs, seen.attr.ino);
	request_free(r);
}

static void reply_attr(struct request *r, const struct silt_inode *inode,
                       const struct meta_seen *seen)
{
	reply_attr_for(r, inode, coherence_attr_timeout(r->fs, inode->attr.ino, seen));
}

/* An inode whose record is gone but which is open here: a file that another mount deleted, or a
 * removed directory, of which nothing else is known any more. */
static bool open_here(struct request *r, struct silt_inode *inode)
{
	struct node *n = node_get(r->fs, r->ino);
	*inode = (struct silt_inode){ .attr = { .ino = r->ino, .mode = S_IFDIR | 0700 } };
	inode->attr.uid = r->uid;
	inode->attr.gid = r->gid;
	inode->attr.mtime = inode->attr.ctime = inode->attr.atime = fs_now();
	if (!n)
		return fs_dir_is_open(r->fs, r->ino);
	silt_lock(&n->lock);
	inode->attr = n->attr;
	inode->attr.nlink = 0;
	silt_unlock(&n->lock);
	node_put(r->fs, n);
	return true;
}

static void getattr_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	struct silt_inode inode;
	if (!reply->err)
		flags_note(&r->fs->flags, &reply->inode.attr);
	if (reply->err == -ENOENT && open_here(r, &inode))
		reply_attr(r, &inode, NULL);
	else if (reply->err)
		request_end_err(r, reply->err);
	else
		reply_attr(r, &reply->inode, &reply->seen);
}

void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct request *r = request_begin(req, KIND_GETATTR, ino);
	if (!r)
		return;
	atime_send(r->fs, ino);
	struct silt_inode seen = { 0 };
	double age, keep = coherence_untold(r->fs, r->fs->cfg.attr_timeout);
	if (dir_get(&r->fs->dirs, ino, keep, &seen.attr, &age)) {
		reply_attr_for(r, &seen, keep - age);
		return;
	}
	r->node = node_get(r->fs, ino);
	if (r->node)
		atomic_fetch_add(&r->node->getattrs, 1);
	request_arm(r);
	meta_getattr_for_kernel(r->fs->cfg.meta, ino, getattr_done, r);
}

/* --- SETATTR ------------------------------------------------------------------------------ */

/* The inode after the change. Its size changed by this mount: the map follows instead of being read
 * anew. */
static void take_result(struct request *r, const struct silt_inode *inode)
{
	struct node *n = r->node;
	if (!n)
		return;
	silt_lock(&n->lock);
	if ((r->valid & META_SET_SIZE) && n->gaps == 0 && n->map.valid &&
	    inode->attr.version == n->attr.version + 1) {
		file_map_truncate(&n->map, inode->attr.size);
		opened_advance(&r->fs->opened, n->ino, n->whole_version, inode->attr.version);
		n->attr.version = n->whole_version = inode->attr.version;
	}
	struct silt_inode copy = *inode;
	node_merge_locked(n, &copy);
	silt_unlock(&n->lock);
}

static void setattr_end(struct request *r, const struct silt_inode *inode, int err)
{
	dir_drop(&r->fs->dirs, r->ino);
	if (r->then)
		r->then(r, inode, err);
	else if (err)
		request_end_err(r, err);
	else
		reply_attr(r, inode, NULL);
}

static void setattr_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	if (!reply->err)
		take_result(r, &reply->inode);
	if (!reply->err && S_ISDIR(reply->inode.attr.mode))
		dir_put(&r->fs->dirs,
		        &reply->inode.attr); /* over what an older reply noted meanwhile */
	if (!reply->err)
		flags_note(&r->fs->flags, &reply->inode.attr);
	if (r->node && (r->valid & META_SET_SIZE)) {
		if (reply->err)
			node_cut_in_vain(r->fs, r->node);
		node_unhold(r->fs, r->node);
	}
	setattr_end(r, &reply->inode, reply->err);
}

static void setattr_send(struct request *r)
{
	fresh_drop(&r->fs->fresh, r->ino);
	meta_setattr(r->fs->cfg.meta, r->ino, r->valid, &r->values, r->now, setattr_done, r);
}

/* flush_wait of a setattr: everything older is stored. */
static void setattr_flushed(void *arg, int err)
{
	struct request *r = arg;
	if (!err && request_answered(r))
		err = -EINTR;
	if (!err) {
		setattr_send(r);
		return;
	}
	if (r->valid & META_SET_SIZE) {
		node_cut_in_vain(r->fs, r->node);
		node_unhold(r->fs, r->node);
	}
	setattr_end(r, NULL, err);
}

void fs_setattr_begin(struct request *r)
{
	if (!r->node) {
		setattr_send(r);
		return;
	}
	r->wait.done = setattr_flushed;
	r->wait.arg = r;
	r->held = fs_setattr_begin;
	/* Bytes behind the cut are dropped unstored; that their writer took the set-id bits stays so. */
	silt_lock(&r->node->lock);
	if ((r->valid & META_SET_SIZE) && !(r->valid & META_SET_MODE) &&
	    write_buffer_drops_suid(&r->node->buffer))
		r->valid |= META_CLEAR_SUID;
	silt_unlock(&r->node->lock);
	if (r->valid & META_SET_SIZE)
		node_flush_and_hold(r->fs, r->node, r->values.size, &r->wait, r);
	else
		node_flush(r->fs, r->node, &r->wait);
}

static struct silt_time time_of(const struct timespec *ts)
{
	return (struct silt_time){ .sec = ts->tv_sec, .nsec = (uint32_t)ts->tv_nsec };
}

static void take_values(struct request *r, const struct stat *st, int to_set)
{
	struct silt_attr *v = &r->values;
	v->mode = st->st_mode;
	v->uid = st->st_uid;
	v->gid = st->st_gid;
	v->size = (uint64_t)st->st_size;
	v->atime = to_set & FUSE_SET_ATTR_ATIME_NOW ? r->now : time_of(&st->st_atim);
	v->mtime = to_set & FUSE_SET_ATTR_MTIME_NOW ? r->now : time_of(&st->st_mtim);
	v->ctime = time_of(&st->st_ctim);
	static const struct {
		int fuse;
		unsigned meta;
	} bits[] = {
		{ FUSE_SET_ATTR_MODE, META_SET_MODE },
		{ FUSE_SET_ATTR_UID, META_SET_UID },
		{ FUSE_SET_ATTR_GID, META_SET_GID },
		{ FUSE_SET_ATTR_SIZE, META_SET_SIZE },
		{ FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW, META_SET_ATIME },
		{ FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW, META_SET_MTIME },
		{ FUSE_SET_ATTR_CTIME, META_SET_CTIME },
	};
	for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++)
		if (to_set & bits[i].fuse)
			r->valid |= bits[i].meta;
}

/* Must the bytes written so far be stored before this change? */
static bool needs_flush(const struct request *r)
{
	if (r->valid & (META_SET_SIZE | META_SET_MTIME | META_SET_CTIME))
		return true;
	return (r->valid & META_SET_MODE) && (r->values.mode & (S_ISUID | S_ISGID));
}

void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st, int to_set,
                struct fuse_file_info *fi)
{
	struct request *r = request_begin(req, KIND_SETATTR, ino);
	if (!r)
		return;
	r->now = fs_now();
	take_values(r, st, to_set);
	if ((r->valid & META_SET_SIZE) && (uint64_t)st->st_size > SILT_FILE_MAX) {
		request_end_err(r, -EFBIG);
		return;
	}
	if ((r->valid & META_SET_SIZE) && transport_kill_suid())
		r->valid |= META_CLEAR_SUID;
	if (needs_flush(r))
		r->node = node_get(r->fs, ino);
	atime_send(r->fs, ino);
	if (r->valid & (META_SET_UID | META_SET_GID)) /* whoever does it, as Linux does */
		r->valid |= META_CLEAR_SUID;
	request_arm(r);
	fs_setattr_begin(r);
}

/* --- STATFS ------------------------------------------------------------------------------- */

static void statfs_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	if (reply->err) {
		request_end_err(r, reply->err);
		return;
	}
	const struct meta_statfs *s = &reply->statfs;
	uint64_t used = (s->bytes + 4095) / 4096, blocks = STATFS_BYTES / 4096;
	while (blocks < used * 2)
		blocks *= 2;
	struct statvfs v = { .f_bsize = 4096,
		             .f_frsize = 4096,
		             .f_blocks = blocks,
		             .f_bfree = blocks - used,
		             .f_bavail = blocks - used,
		             .f_files = STATFS_INODES,
		             .f_ffree = STATFS_INODES - s->inodes,
		             .f_favail = STATFS_INODES - s->inodes,
		             .f_namemax = SILT_NAME_MAX };
	if (request_claim(r))
		fuse_reply_statfs(r->req, &v);
	request_free(r);
}

void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct request *r = request_begin(req, KIND_STATFS, ino);
	if (!r)
		return;
	request_arm(r);
	meta_statfs(r->fs->cfg.meta, statfs_done, r);
}
