/* Extended attributes: GETXATTR, SETXATTR, LISTXATTR, REMOVEXATTR.
 *
 * Namespaces are user, trusted, security and the two ACLs; every other name gets EOPNOTSUPP. The
 * kernel has checked who may use which, with one exception: it lists trusted ones to everybody, so
 * they are left out here. What inodes have no attributes of a kind is answered without Redis
 * (flag_table.h).
 *
 * user.siltfs.* are virtual, those of fs.h; they are not listed (tar and cp -a would try to copy
 * them).
 *
 * A program's capabilities (security.capability) go when its bytes change, which Redis learns with
 * the commit: so bytes written before they are set are stored first.
 *
 * ENOSYS would make the kernel never ask again, for any name, so it can't be used. */
#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "fs/caller.h"
#include "fs/fs_impl.h"

#define VIRTUAL    "user.siltfs."
#define CAPABILITY "security.capability"

/* Which flag of an inode says that it may have the attribute; 0: such names aren't supported. */
static unsigned flag_of(const char *name)
{
	static const char *const prefixes[] = { "user.", "trusted.", "security." };
	if (!strcmp(name, META_XATTR_ACL))
		return SILT_FLAG_ACL;
	if (!strcmp(name, META_XATTR_DEFAULT_ACL))
		return SILT_FLAG_DEFAULT_ACL;
	for (size_t i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++)
		if (!strncmp(name, prefixes[i], strlen(prefixes[i])))
			return SILT_FLAG_XATTRS;
	return 0;
}

static int check_name(const char *name)
{
	const char *dot = strchr(name, '.');
	if (!flag_of(name))
		return -EOPNOTSUPP;
	return dot[1] ? 0 : -EINVAL;
}

static bool is_virtual(const char *name)
{
	return !strncmp(name, VIRTUAL, strlen(VIRTUAL));
}

static void reply_value(fuse_req_t req, const void *value, size_t len, size_t size)
{
	if (size == 0)
		fuse_reply_xattr(req, len);
	else if (size < len)
		fuse_reply_err(req, ERANGE);
	else
		fuse_reply_buf(req, value, len);
}

/* --- reading ------------------------------------------------------------------------------ */

static void reply_virtual(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	struct fs *fs = fuse_req_userdata(req);
	char number[24];
	const char *value = NULL;
	if (!strcmp(name, FS_XATTR_CONTROL)) {
		value = fs->control_path ? fs->control_path : "";
	} else if (!strcmp(name, FS_XATTR_INODE)) {
		snprintf(number, sizeof(number), "%llu", (unsigned long long)ino);
		value = number;
	}
	if (value)
		reply_value(req, value, strlen(value), size);
	else
		fuse_reply_err(req, ENODATA);
}

/* An inode that is open here but gone in Redis has nothing any more. */
static int read_error(struct request *r, const struct meta_reply *reply, int none)
{
	if (!reply->err || reply->err == -ENODATA)
		flags_note(&r->fs->flags, &reply->inode.attr);
	return reply->err == -ENOENT ? none : reply->err;
}

static void getxattr_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	int err = read_error(r, reply, -ENODATA);
	if (err) {
		request_end_err(r, err);
		return;
	}
	if (request_claim(r))
		reply_value(r->req, reply->data, reply->len, r->size);
	request_free(r);
}

/* What attributes it has, as was heard lately, and no longer ago than the kernel may keep the inode's attributes:
 * a moment, or longer if Redis will say when they change. A relaxed mount's answers from memory are noted by
 * the thread that asked, perhaps after a push has said that they are no longer so; what is remembered then was
 * heard since. */
static bool known_flags(struct fs *fs, silt_ino ino, unsigned *flags)
{
	struct silt_inode now;
	double keep = fs->cfg.attr_timeout;
	bool told = meta_is_told(fs->cfg.meta, ino), remembered = meta_remembers(fs->cfg.meta, ino, &now, NULL);
	if (!flags_get(&fs->flags, ino, told && remembered ? keep : coherence_untold(fs, keep), flags))
		return false;
	if (remembered)
		*flags |= now.attr.flags;
	return true;
}

void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	struct fs *fs = fuse_req_userdata(req);
	unsigned flags;
	int err = check_name(name);
	if (is_virtual(name)) {
		fs_count(fs, KIND_GETXATTR);
		reply_virtual(req, ino, name, size);
		return;
	}
	if (!err && known_flags(fs, ino, &flags) &&
	    !(flags & flag_of(name)))
		err = -ENODATA;
	if (err) {
		fs_count(fs, KIND_GETXATTR);
		fuse_reply_err(req, -err);
		return;
	}
	struct request *r = request_begin(req, KIND_GETXATTR, ino);
	if (!r)
		return;
	r->size = size;
	request_arm(r);
	meta_getxattr(fs->cfg.meta, ino, name, getxattr_done, r);
}

/* Copies the names that the caller may see; returns their length. */
static size_t visible(const struct request *r, const char *names, size_t len, char *out)
{
	static const char hidden[] = "trusted.";
	bool asked = false, admin = false;
	size_t used = 0;
	for (size_t at = 0; at < len;) {
		size_t n = strnlen(names + at, len - at) + 1;
		bool show = at + n <= len;
		if (show && n >= sizeof(hidden) &&
		    !memcmp(names + at, hidden, sizeof(hidden) - 1)) {
			if (!asked)
				admin = caller_can(r->pid, r->uid, CAP_SYS_ADMIN);
			asked = true;
			show = admin;
		}
		if (show) {
			memcpy(out + used, names + at, n);
			used += n;
		}
		at += n;
	}
	return used;
}

static void listxattr_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	int err = read_error(r, reply, 0);
	size_t len = err || reply->err ? 0 : reply->len;
	r->buf = malloc(len + 1);
	if (!err && !r->buf)
		err = -ENOMEM;
	if (err) {
		request_end_err(r, err);
		return;
	}
	if (request_claim(r)) {
		len = visible(r, reply->data, len, (char *)r->buf);
		reply_value(r->req, r->buf, len, r->size);
	}
	request_free(r);
}

void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	struct fs *fs = fuse_req_userdata(req);
	unsigned flags, any = SILT_FLAG_XATTRS | SILT_FLAG_ACL | SILT_FLAG_DEFAULT_ACL;
	if (known_flags(fs, ino, &flags) && !(flags & any)) {
		fs_count(fs, KIND_LISTXATTR);
		reply_value(req, "", 0, size);
		return;
	}
	struct request *r = request_begin(req, KIND_LISTXATTR, ino);
	if (!r)
		return;
	r->size = size;
	request_arm(r);
	meta_listxattr(fs->cfg.meta, ino, listxattr_done, r);
}

/* --- changing ----------------------------------------------------------------------------- */

void fs_changed(struct fs *fs, silt_ino ino, const struct meta_reply *reply)
{
	fresh_drop(&fs->fresh, ino);
	if (reply->err) { /* perhaps it was done: nothing is certain */
		flags_drop(&fs->flags, ino);
		dir_drop(&fs->dirs, ino);
		return;
	}
	struct silt_inode inode = reply->inode;
	flags_note(&fs->flags, &inode.attr);
	if (S_ISDIR(inode.attr.mode))
		dir_put(&fs->dirs, &inode.attr);
	else
		fs_overlay(fs, &inode, false);
}

static void change_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	fs_changed(r->fs, r->ino, reply);
	request_end_err(r, reply->err);
}

/* r->buf: the name, a NUL, the value. */
static void set_send(struct request *r)
{
	const char *name = (const char *)r->buf;
	size_t n = strlen(name) + 1;
	meta_setxattr(r->fs->cfg.meta, r->ino, name, r->buf + n, r->size - n, r->valid, fs_now(),
	              change_done, r);
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

void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
                 int flags)
{
	struct request *r = request_begin(req, KIND_SETXATTR, ino);
	if (!r)
		return;
	size_t n = strlen(name) + 1;
	int err = is_virtual(name) ? -EOPNOTSUPP : check_name(name);
	r->size = n + size;
	r->buf = err ? NULL : malloc(r->size);
	if (!err && !r->buf)
		err = -ENOMEM;
	if (err) {
		request_end_err(r, err);
		return;
	}
	memcpy(r->buf, name, n);
	memcpy(r->buf + n, value, size);
	r->valid = (flags & XATTR_CREATE ? META_XATTR_CREATE : 0) |
	           (flags & XATTR_REPLACE ? META_XATTR_REPLACE : 0) |
	           (transport_acl_clears_sgid() ? META_XATTR_CLEAR_SGID : 0);
	if (!strcmp(name, CAPABILITY))
		r->node = node_get(r->fs, ino);
	r->wait.done = set_flushed;
	r->wait.arg = r;
	request_arm(r);
	if (r->node)
		node_flush(r->fs, r->node, &r->wait);
	else
		set_send(r);
}

void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	struct request *r = request_begin(req, KIND_REMOVEXATTR, ino);
	if (!r)
		return;
	int err = is_virtual(name) ? -EOPNOTSUPP : check_name(name);
	if (err) {
		request_end_err(r, err);
		return;
	}
	request_arm(r);
	meta_removexattr(r->fs->cfg.meta, ino, name, fs_now(), change_done, r);
}
