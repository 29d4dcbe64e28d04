/* A FUSE request that is waiting for Redis, the cache or space in the write buffers.
 *
 * Handlers don't block: one that can't answer at once makes a request, hands it as `arg` to meta_*
 * or cache_*, and returns to its queue; the completion (on another thread) answers and frees it.
 *
 * Who answers. A completion and an interrupt may both want to. Answering needs the claim: a word
 * with the request's serial number and a bit, changed by compare-and-swap; who changes it answers.
 * Requests live in slabs that are freed with the mount only, so a late interrupt that looks at one
 * which was used again finds another serial number and does nothing. An interrupted request that
 * was answered with EINTR is still freed by its completion: every meta_* and cache_* call ends
 * sometime.
 *
 * An interrupt (any signal to the caller) answers EINTR at once only if the caller is being killed;
 * programs don't expect EINTR of unlink(2), so for other signals the request gets a grace period
 * first (janitor.c). */
#pragma once
#define FUSE_USE_VERSION 314
#include <fuse3/fuse_lowlevel.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "fs/node.h"
#include "meta/lock.h"
#include "meta/locks.h"
#include "meta/metrics.h"

struct fs;
struct handle;
struct dir_page;
struct dir_handle;

/* Kinds of FUSE requests, by index into silt_metrics.fuse. */
/* clang-format off */
#define FUSE_KINDS(X)                                                                              \
	X(INIT, "init") X(DESTROY, "destroy") X(LOOKUP, "lookup") X(FORGET, "forget")              \
	X(GETATTR, "getattr") X(SETATTR, "setattr") X(READLINK, "readlink") X(MKNOD, "mknod")      \
	X(MKDIR, "mkdir") X(UNLINK, "unlink") X(RMDIR, "rmdir") X(SYMLINK, "symlink")              \
	X(RENAME, "rename") X(LINK, "link") X(OPEN, "open") X(READ, "read") X(WRITE, "write")      \
	X(FLUSH, "flush") X(RELEASE, "release") X(FSYNC, "fsync") X(OPENDIR, "opendir")            \
	X(READDIR, "readdir") X(READDIRPLUS, "readdirplus") X(RELEASEDIR, "releasedir")            \
	X(FSYNCDIR, "fsyncdir") X(STATFS, "statfs") X(SETXATTR, "setxattr")                        \
	X(GETXATTR, "getxattr") X(LISTXATTR, "listxattr") X(REMOVEXATTR, "removexattr")            \
	X(CREATE, "create") X(IOCTL, "ioctl") X(TMPFILE, "tmpfile") X(FALLOCATE, "fallocate")      \
	X(LSEEK, "lseek") X(COPY_FILE_RANGE, "copy_file_range") X(GETLK, "getlk")            \
	X(SETLK, "setlk") X(SETLKW, "setlkw")
/* clang-format on */

enum fuse_kind {
#define X(id, name) KIND_##id,
	FUSE_KINDS(X)
#undef X
	        KIND_COUNT
};
_Static_assert(KIND_COUNT <= SILT_FUSE_KINDS, "silt_metrics.fuse is too small");

#define REQUEST_INLINE_PIECES 4

struct read_piece {
	struct silt_extent extent;
	uint64_t off;
	uint32_t len;
	uint8_t *dst;
};

struct request {
	atomic_uint_fast64_t claim; /* serial * 2 + (answered) */
	_Atomic(fuse_req_t) req;
	atomic_bool arming, interrupted;
	struct request *next; /* free list, or the queue it stands in */
	struct fs *fs;
	enum fuse_kind kind;
	pid_t pid;
	uint32_t uid, gid;
	fuse_ino_t ino;
	fuse_ino_t dir, dir2;  /* directories whose names change */
	struct node *node;     /* a reference, put by the operation */
	struct handle *handle; /* a reference, put by request_free() */
	struct flush_wait wait;
	struct silt_time now;
	int flags;

	/* setattr, create */
	unsigned valid;
	struct silt_attr values;
	void (*then)(struct request *r, const struct silt_inode *inode, int err);

	/* What node_unhold() calls when this waited for another operation that held the node, and
	 * what goes on when a part of the map has come. */
	void (*held)(struct request *r);
	void (*resume)(struct request *r);

	/* fallocate, lseek, copy */
	uint64_t stop, off2;   /* end of the range; place in the destination */
	uint64_t empty, found; /* lseek: no committed bytes before, but in this window */
	uint64_t version;      /* lseek: of the node when `empty` was asked for */
	struct node *node2;    /* copy: the source; a reference */
	struct silt_extent *extents; /* copy; owned */
	size_t nextents;

	struct drop *moved[2]; /* rename: names that get another file; owned */

	/* read, write, readdir: `buf` is owned */
	uint64_t off;
	size_t size;
	uint8_t *buf;
	uint64_t parked_ns; /* silt_now_ns() */
	unsigned tries;
	bool append, claimed; /* write: to the end; the claim is won */
	bool drop_suid;	      /* write: by somebody without CAP_FSETID */
	bool noted; /* in the handle's guess about sequential reading */
	bool unsaid; /* open: of attributes that the kernel may not have */
	atomic_uint pending;
	atomic_int err;
	struct read_piece *pieces, inline_pieces[REQUEST_INLINE_PIECES];
	size_t npieces, cap_pieces;

	/* locks; their `err` is of the flush before an unlock, `off` the version seen */
	struct meta_lock lock;
	uint64_t lock_id; /* may wait; 0: does not */
	bool lock_detect, lock_had;
	bool unlock_all; /* FLUSH */

	/* readdir */
	struct dir_handle *dir_handle;
	struct dir_page *page; /* owned */
	bool plus;
};

struct request_slab;
struct request_pool {
	struct silt_lock lock;
	struct request *free;
	struct request_slab *slabs;
	size_t live; /* given out */
};

void request_pool_init(struct request_pool *p);
void request_pool_free(struct request_pool *p);
/* Requests that are not finished. */
size_t request_pool_live(struct request_pool *p);

/* Counts a request of `kind`. Handlers that answer at once call only this. */
void fs_count(struct fs *fs, enum fuse_kind kind);

/* Makes a request and counts it. NULL: no memory; it was answered. */
struct request *request_begin(fuse_req_t req, enum fuse_kind kind, fuse_ino_t ino);

/* From here on the request may be interrupted. Call it before the operation is handed on. */
void request_arm(struct request *r);

/* Wins the right to answer. At most one caller gets true. */
bool request_claim(struct request *r);
/* The same for a request that may be another one by now. */
bool request_claim_serial(struct request *r, uint64_t serial);
bool request_answered(const struct request *r);

/* Puts the node, frees what the request owns, and gives it back. */
void request_free(struct request *r);

/* Claim, answer, free. `err` is 0 or a negative errno. */
void request_end_err(struct request *r, int err);

/* janitor.c: an armed request's caller got a signal. */
void janitor_interrupted(struct fs *fs, struct request *r, uint64_t serial);
