/* Extended attributes: only the two virtual ones of fs.h. Every other name has no value, and
 * setting one is not supported. Listing answers nothing: the virtual ones are for those who know
 * them (tar and cp -a would try to copy them).
 *
 * ENOSYS would make the kernel never ask again, for any name, so it can't be used; that the kernel
 * does not ask for security.capability before every write is arranged at INIT (transport.c). */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "fs/fs_impl.h"

void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	struct fs *fs = fuse_req_userdata(req);
	char number[24];
	const char *value;
	fs_count(fs, KIND_GETXATTR);
	if (!strcmp(name, FS_XATTR_CONTROL)) {
		value = fs->control_path ? fs->control_path : "";
	} else if (!strcmp(name, FS_XATTR_INODE)) {
		snprintf(number, sizeof(number), "%llu", (unsigned long long)ino);
		value = number;
	} else {
		fuse_reply_err(req, ENODATA);
		return;
	}
	size_t len = strlen(value);
	if (size == 0)
		fuse_reply_xattr(req, len);
	else if (size < len)
		fuse_reply_err(req, ERANGE);
	else
		fuse_reply_buf(req, value, len);
}

void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	fs_count(fuse_req_userdata(req), KIND_LISTXATTR);
	if (size == 0)
		fuse_reply_xattr(req, 0);
	else
		fuse_reply_buf(req, NULL, 0);
}

void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
                 int flags)
{
	fs_count(fuse_req_userdata(req), KIND_SETXATTR);
	fuse_reply_err(req, EOPNOTSUPP);
}

void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	fs_count(fuse_req_userdata(req), KIND_REMOVEXATTR);
	fuse_reply_err(req, strncmp(name, "user.siltfs.", 12) ? ENODATA : EOPNOTSUPP);
}
