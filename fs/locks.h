/* Locks that programs take through this mount: fcntl (of a process, or of an open file description:
 * the kernel does not say which) and flock. Their truth is in Redis (meta/locks.h); here is which
 * owners may hold something through which handles, so that
 *
 * - a close asks Redis for nothing unless it has locks to give up;
 * - what nobody unlocks is unlocked all the same. fcntl locks of a process go with its first close
 * of the file: FLUSH names their owner. For locks of an open file description and flock the kernel
 * sends nothing but the RELEASE of their handle, so each owner remembers the handles it locked
 * through. An owner is forgotten when it unlocks everything or at its FLUSH; who is left at the
 * RELEASE of its handle is unlocked then. A late RELEASE of one handle does not touch what the
 * process has locked through another one since.
 * - a handle that was opened for reading sends no FLUSH (FOPEN_NOFLUSH saves a request). Its
 * RELEASE stands for it, which is later only where several processes share the descriptor or the
 * process has opened the file twice. From the first fcntl lock through such a handle on, handles of
 * this mount send FLUSH.
 *
 * Programs use locks to see each other's bytes: before a lock is given up or made weaker everything
 * written is stored; when a lock is granted, the file's attributes are those of that moment, and
 * the kernel's pages go if other mounts have changed it. They go on a thread of their own, because
 * the kernel may wait for a read of such a page, which other threads answer.
 *
 * If Redis took our session for dead, others may hold what we held (meta/locks.h). Every handle
 * that somebody locked through then answers EIO to reads, writes and locks until it is closed, and
 * what was written through the file and not stored yet is dropped: it might overwrite what the new
 * holder wrote.
 *
 * Locks: node.lock guards a node's owners; lock_table.lock the list of nodes that have some and the
 * thread's queue (taken inside node.lock or alone). */
#pragma once
#define FUSE_USE_VERSION 314
#include <fuse3/fuse_lowlevel.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "meta/lock.h"

struct fs;
struct handle;
struct node;
struct request;
struct lost_pages;

/* Somebody who holds, wants or may hold locks of a file. */
struct lock_owner {
	struct lock_owner *next;
	uint64_t owner;
	bool flock;
	bool held;     /* some request succeeded, or nobody knows */
	unsigned busy; /* requests on their way */
	unsigned nvia;
	struct handle **via; /* locked through these; not references */
};

struct lock_table {
	struct silt_lock lock;
	struct silt_cond wake;
	struct node *first;                     /* nodes with owners */
	struct request *granted, *granted_last; /* to be answered by the thread */
	struct lost_pages *lost;                /* to be dropped by it */
	pthread_t thread;
	bool runs, stopping;
	atomic_bool ending;       /* unmounting: nothing is tried again */
	atomic_bool readers_lock; /* fcntl was used through a handle without FLUSH */
};

int fs_locks_open(struct fs *fs);
/* Ends all waiting; what is asked for later fails. Before the requests are waited for. */
void fs_locks_stop(struct fs *fs);
void fs_locks_close(struct fs *fs);

/* Does `owner` (of FLUSH) have fcntl locks here that this close must give up? Node's lock held. */
bool fs_locks_at_flush_locked(const struct node *n, uint64_t owner);
/* Gives them up, then calls then(r, err). */
void fs_locks_flush(struct request *r, uint64_t owner, void (*then)(struct request *r, int err));

/* RELEASE: gives up what was locked through the handle. Before fs_handle_close(). */
void fs_locks_release(struct fs *fs, struct handle *h);

/* Frees what is left of a node's owners. */
void fs_locks_free(struct node *n);

/* The caller of a waiting request got a signal. Any thread, no lock held. */
void fs_lock_interrupted(struct fs *fs, uint64_t id);

void op_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock);
void op_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock,
              int sleep);
void op_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int op);
