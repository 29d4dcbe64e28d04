/* IOCTL: the attributes that lsattr and chattr know, of which there are two, immutable and
 * append-only (FS_IOC_GETFLAGS, _SETFLAGS, _FSGETXATTR, _FSSETXATTR). Redis refuses what they
 * forbid; opening and writing are checked by this mount (ops_file.c, ops_write.c), because the
 * kernel doesn't look at them in a FUSE file system. It does check who may change them
 * (since 5.13); the capability is looked at here too, for it decides what even root of a container
 * may not do.
 *
 * Bytes that were written before a file becomes immutable are stored first. */
#include <errno.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>

#include "fs/caller.h"
#include "fs/fs_impl.h"

static void get_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	if (reply->err) {
		request_end_err(r, reply->err);
		return;
	}
	unsigned f = reply->inode.attr.flags;
	bool fixed = f & SILT_FLAG_IMMUTABLE, append = f & SILT_FLAG_APPEND;
	unsigned flags = (fixed ? FS_IMMUTABLE_FL : 0u) | (append ? FS_APPEND_FL : 0u);
	struct fsxattr x = { .fsx_xflags = (fixed ? FS_XFLAG_IMMUTABLE : 0u) |
		                           (append ? FS_XFLAG_APPEND : 0u) };
	flags_note(&r->fs->flags, &reply->inode.attr);
	if (request_claim(r)) {
		if (r->flags == (int)FS_IOC_GETFLAGS)
			fuse_reply_ioctl(r->req, 0, &flags, sizeof(flags));
		else
			fuse_reply_ioctl(r->req, 0, &x, sizeof(x));
	}
	request_free(r);
}

static void set_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	fs_changed(r->fs, r->ino, reply);
	if (reply->err) {
		request_end_err(r, reply->err);
		return;
	}
	/* The change time moved; of an ioctl the kernel doesn't know that. */
	fuse_lowlevel_notify_inval_inode(r->fs->se, r->ino, -1, 0);
	if (request_claim(r))
		fuse_reply_ioctl(r->req, 0, NULL, 0);
	request_free(r);
}

static void set_send(struct request *r)
{
	meta_set_flags(r->fs->cfg.meta, r->ino, r->valid, fs_now(), set_done, r);
}

static void set_flushed(void *arg, int err)
{
	struct request *r = arg;
	if (!err && request_answered(r))
		err = -EINTR;
	if (err)
		request_end_err(r, err);
	else
		set_send(r);
}

/* Reads what is to be set. Returns -EOPNOTSUPP for anything that isn't kept. */
static int take_flags(unsigned cmd, const void *in, size_t size, unsigned *out)
{
	unsigned flags = 0, known = FS_IMMUTABLE_FL | FS_APPEND_FL;
	bool fixed, append;
	if (cmd == FS_IOC_SETFLAGS) {
		if (size < sizeof(flags))
			return -EINVAL;
		memcpy(&flags, in, sizeof(flags));
		fixed = flags & FS_IMMUTABLE_FL;
		append = flags & FS_APPEND_FL;
	} else {
		struct fsxattr x;
		if (size < sizeof(x))
			return -EINVAL;
		memcpy(&x, in, sizeof(x));
		flags = x.fsx_xflags;
		known = FS_XFLAG_IMMUTABLE | FS_XFLAG_APPEND;
		fixed = flags & FS_XFLAG_IMMUTABLE;
		append = flags & FS_XFLAG_APPEND;
		if (x.fsx_extsize || x.fsx_projid || x.fsx_cowextsize)
			return -EOPNOTSUPP;
	}
	*out = (fixed ? SILT_FLAG_IMMUTABLE : 0u) | (append ? SILT_FLAG_APPEND : 0u);
	return flags & ~known ? -EOPNOTSUPP : 0;
}

/* For a caller without the capability: setting what is set already is allowed. */
static void compare_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	unsigned now = reply->inode.attr.flags & (SILT_FLAG_IMMUTABLE | SILT_FLAG_APPEND);
	if (reply->err || now != r->valid)
		request_end_err(r, reply->err ? reply->err : -EPERM);
	else
		set_send(r);
}

static void set(struct request *r, unsigned cmd, const void *in, size_t size)
{
	int err = take_flags(cmd, in, size, &r->valid);
	if (err) {
		request_end_err(r, err);
		return;
	}
	if (!caller_can(r->pid, r->uid, CAP_LINUX_IMMUTABLE)) {
		request_arm(r);
		meta_getattr(r->fs->cfg.meta, r->ino, compare_done, r);
		return;
	}
	if (r->valid & SILT_FLAG_IMMUTABLE)
		r->node = node_get(r->fs, r->ino);
	r->wait.done = set_flushed;
	r->wait.arg = r;
	request_arm(r);
	if (r->node)
		node_flush(r->fs, r->node, &r->wait);
	else
		set_send(r);
}

void op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned cmd, void *arg, struct fuse_file_info *fi,
              unsigned flags, const void *in, size_t in_size, size_t out_size)
{
	struct request *r = request_begin(req, KIND_IOCTL, ino);
	if (!r)
		return;
	r->flags = (int)cmd;
	if (cmd == FS_IOC_GETFLAGS || cmd == FS_IOC_FSGETXATTR) {
		request_arm(r);
		meta_getattr(r->fs->cfg.meta, ino, get_done, r);
	} else if (cmd == FS_IOC_SETFLAGS || cmd == FS_IOC_FSSETXATTR) {
		set(r, cmd, in, in_size);
	} else {
		request_end_err(r, -ENOTTY);
	}
}
