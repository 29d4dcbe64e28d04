/* What libfuse 3.14 doesn't know of the kernel's protocol, done between libfuse and the device.
 *
 * FUSE_HANDLE_KILLPRIV_V2: without it the kernel asks for the attribute security.capability before
 * every write(2), a round trip to this daemon; with it the daemon promises to drop set-id bits
 * whenever bytes or the owner change, and the kernel says with each request whether the caller's
 * privileges ask for that. The flag is added to the answer to INIT when the kernel offers it; the
 * bits of SETATTR and WRITE, which libfuse drops, are kept for the handler that runs next on the same
 * thread.
 *
 * FUSE_SETXATTR_EXT: SETXATTR gets a word more, which says whether setting an access ACL takes the
 * set-group-ID bit away (the caller is not in the group). The request is made the short one again
 * that libfuse expects, and the word is kept likewise.
 *
 * FUSE_DIRECT_IO_ALLOW_MMAP: files opened with FOPEN_DIRECT_IO (to append; ops_file.c) may be
 * mapped shared as others may.
 *
 * FUSE_TMPFILE: looks like a CREATE and becomes one; that it was one is kept in the same way. */
#include <errno.h>
#include <linux/fuse.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fs/fs_impl.h"

#ifndef FUSE_HANDLE_KILLPRIV_V2
#define FUSE_HANDLE_KILLPRIV_V2 (1 << 28)
#endif
#ifndef FUSE_WRITE_KILL_SUIDGID
#define FUSE_WRITE_KILL_SUIDGID (1 << 2)
#endif
#ifndef FATTR_KILL_SUIDGID
#define FATTR_KILL_SUIDGID (1 << 11)
#endif

#ifndef FUSE_SETXATTR_EXT
#define FUSE_SETXATTR_EXT (1 << 29)
#endif
#define ADDED_FLAGS (FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT)

/* fuse_setxattr_in, whose second half the header of libfuse's time may not have. */
#define SETXATTR_SHORT   8
#define SETXATTR_LONG    16
#define SETXATTR_NO_SGID 1u

#ifndef FUSE_INIT_EXT
#define FUSE_INIT_EXT (1 << 30)
#endif
#define DIRECT_IO_ALLOW_MMAP2 (1u << 4) /* bit 36, in flags2 */
#define OPCODE_TMPFILE        51

/* Of the request being handled by this thread. */
static __thread bool kill_suid, acl_clears_sgid, unnamed;

bool transport_kill_suid(void)
{
	return kill_suid;
}

bool transport_acl_clears_sgid(void)
{
	return acl_clears_sgid;
}

/* Takes the longer half out of a SETXATTR of `n` bytes; returns how many are left. */
static ssize_t shorten_setxattr(struct fuse_in_header *in, ssize_t n)
{
	uint8_t *arg = (uint8_t *)(in + 1);
	uint32_t flags;
	memcpy(&flags, arg + SETXATTR_SHORT, sizeof(flags));
	acl_clears_sgid = flags & SETXATTR_NO_SGID;
	memmove(arg + SETXATTR_SHORT, arg + SETXATTR_LONG, (size_t)n - sizeof(*in) - SETXATTR_LONG);
	in->len -= SETXATTR_LONG - SETXATTR_SHORT;
	return n - (SETXATTR_LONG - SETXATTR_SHORT);
}

bool transport_unnamed(void)
{
	return unnamed;
}

static ssize_t read_request(int fd, void *buf, size_t len, void *userdata)
{
	struct fs *fs = userdata;
	ssize_t n = read(fd, buf, len);
	if (n < (ssize_t)sizeof(struct fuse_in_header))
		return n;
	struct fuse_in_header *in = buf;
	const void *arg = in + 1;
	size_t arg_len = (size_t)n - sizeof(*in);
	kill_suid = acl_clears_sgid = false;
	unnamed = in->opcode == OPCODE_TMPFILE;
	if (unnamed)
		in->opcode = FUSE_CREATE;
	if (in->opcode == FUSE_SETATTR && arg_len >= sizeof(struct fuse_setattr_in)) {
		const struct fuse_setattr_in *set = arg;
		kill_suid = set->valid & FATTR_KILL_SUIDGID;
	} else if (in->opcode == FUSE_WRITE && arg_len >= sizeof(struct fuse_write_in)) {
		const struct fuse_write_in *w = arg;
		kill_suid = w->write_flags & FUSE_WRITE_KILL_SUIDGID;
	} else if (in->opcode == FUSE_SETXATTR && arg_len > SETXATTR_LONG &&
	           atomic_load_explicit(&fs->long_setxattr, memory_order_relaxed)) {
		return shorten_setxattr(in, n);
	} else if (in->opcode == FUSE_INIT && arg_len >= 16) {
		const struct fuse_init_in *init = arg;
		fs->init_unique = in->unique;
		fs->init_flags = init->flags;
		if ((init->flags & FUSE_INIT_EXT) &&
		    arg_len >= offsetof(struct fuse_init_in, flags2) + sizeof(init->flags2))
			fs->init_flags2 = init->flags2;
	}
	return n;
}

static ssize_t write_reply(int fd, struct iovec *iov, int count, void *userdata)
{
	struct fs *fs = userdata;
	const struct fuse_out_header *out = iov[0].iov_base;
	if (fs->init_unique && out->unique == fs->init_unique && out->error == 0) {
		fs->init_unique = 0;
		if (count == 2 && iov[1].iov_len >= offsetof(struct fuse_init_out, max_write)) {
			struct fuse_init_out *init = iov[1].iov_base;
			init->flags |= fs->init_flags & ADDED_FLAGS;
			atomic_store(&fs->long_setxattr, (fs->init_flags & FUSE_SETXATTR_EXT) != 0);
			fs->init_flags2 &= DIRECT_IO_ALLOW_MMAP2;
			if (fs->init_flags2 &&
			    iov[1].iov_len >=
			            offsetof(struct fuse_init_out, flags2) + sizeof(init->flags2)) {
				init->flags |= FUSE_INIT_EXT;
				init->flags2 |= fs->init_flags2;
			}
		}
		janitor_ready(fs->janitor);
	}
	return writev(fd, iov, count);
}

int transport_attach(struct fs *fs)
{
	static const struct fuse_custom_io io = { .read = read_request, .writev = write_reply };
	return fuse_session_custom_io(fs->se, &io, fuse_session_fd(fs->se));
}
