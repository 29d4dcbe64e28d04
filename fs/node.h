/* The inodes in use: open, or with bytes that are not stored yet. A node is the one place where
 * this mount's view of a file's bytes comes together:
 *
 *	attr		what Redis said last, and what our own commits made of it
 *	map		where the committed bytes are
 *	buffer		written bytes on top of that
 *
 * A read takes what it finds in `buffer` and the rest from `map`, both under one hold of the lock;
 * a commit puts its extent into `map` and takes the segment from `buffer` under one hold. So a byte
 * is always in one of the two.
 *
 * Versions of a regular file only grow, by one for each commit or truncation. Replies of Redis come
 * in order, but a commit is learned on another thread: of two records the one with the higher
 * version is newer. A commit that did not make exactly attr.version + 1 shows that another mount
 * wrote too: the map is forgotten.
 *
 * Locks: a shard of the table (references) is taken alone or inside others, never around them;
 * order: node.lock, then write_queue.lock, then table shard. Nothing is submitted to meta/ or
 * cache/ with any of them held. */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>

#include "fs/file_map.h"
#include "fs/write_buffer.h"
#include "meta/lock.h"
#include "meta/types.h"

struct fs;
struct request;

#define NODE_SHARDS 64

/* Somebody waits until everything written before a point is stored. */
struct flush_wait {
	struct flush_wait *next;
	uint64_t epoch;
	int err;
	bool answers; /* done() answers a FLUSH or FSYNC: after the kernel dropped pages that are wrong */
	void (*done)(void *arg, int err); /* on any thread, no lock held */
	void *arg;
};

struct node {
	struct node *hash_next; /* table shard's lock */
	unsigned refs;          /* table shard's lock */
	struct fs *fs;
	silt_ino ino;

	struct silt_lock lock;     /* everything below */
	unsigned handles, writers; /* writers: handles that may write */
	struct handle *first_handle;
	struct silt_attr attr;
	struct file_map map;
	/* Commits of several segments may be learned out of order: how many versions below
	 * attr.version are still to come, and the last version without such gaps. */
	uint64_t gaps, whole_version;
	/* Of the inode that the kernel was told, or told to ask for, last (coherence.h). */
	uint64_t kernel_version;
	struct silt_time kernel_ctime;
	bool asking;                 /* a meta_getattr for the map is on its way */
	struct request *map_waiters; /* reads that wait for the map or a window */
	struct write_buffer buffer;
	struct flush_wait *waiters;
	bool dirty; /* buffer is not empty: a reference, a writer, a place in the queue */
	struct node *dirty_prev, *dirty_next; /* write_queue.lock */
	bool failing;                         /* buffer.failed > 0: among write_queue.failing */
	uint64_t failing_since;               /* silt_now_ns() */
	/* write_queue.lock: when failed segments are sent again (0: they were, and no answer came
	 * yet) and how long that was put off. */
	struct node *failing_prev, *failing_next, *due_next;
	uint64_t retry_at;
	unsigned retry_ms;
	bool held; /* a truncation is under way: nothing newer than held_epoch is sent */
	uint64_t held_epoch;
	uint64_t held_cut; /* bytes that were dropped for it */
	struct request *held_waiters;
	bool deleted; /* no name is left: goes with the last handle */
	bool unnamed; /* deleted, but may get its first name (O_TMPFILE) */
	/* Data that could not be stored and was given up: every handle reports it once. */
	int lost_err;
	atomic_uint error_seq;
	/* GETATTR requests under way, and silt_now_ns() of the last reply to one: coherence.c. */
	atomic_uint getattrs;
	atomic_uint_fast64_t getattr_ns;
	atomic_uint dropping; /* notifications under way that drop pages: coherence_settled() */
	struct lock_owner *lock_owners; /* locks.h */
	struct node *locked_prev, *locked_next; /* lock_table.lock */
};

struct node_table {
	struct {
		struct silt_lock lock;
		struct node **v;
		size_t n, mask;
	} shards[NODE_SHARDS];
	atomic_uint open_nodes; /* with at least one handle */
	atomic_uint opening;	/* OPEN requests under way: they may have handles soon */
};

/* Written bytes of all nodes: who is dirty, whose could not be stored, which writes wait for space.
 */
struct write_queue {
	struct silt_lock lock;
	struct silt_cond clean;    /* signalled when a node becomes clean */
	struct node *first, *last; /* dirty nodes, the one not sealed for longest first */
	atomic_size_t nodes;
	struct node *failing;
	bool no_retries; /* the mount ends */
	struct request *parked, *parked_last;
	atomic_uint nparked;
	/* silt_now_ns() of the first refusal after the last segment that was stored; 0: none. */
	atomic_uint_fast64_t stalled;
};

int node_table_init(struct node_table *t);
void node_table_free(struct fs *fs);

/* The node of `ino` with a new reference, or NULL. */
struct node *node_get(struct fs *fs, silt_ino ino);
/* The same, made if there is none. NULL: no memory. */
struct node *node_make(struct fs *fs, const struct silt_inode *inode);
void node_ref(struct fs *fs, struct node *n);
/* The last reference frees the node, and a deleted inode with it. */
void node_put(struct fs *fs, struct node *n);

/* Walks over the inodes that have nodes, up to `max` a call; 0: that was the end. Nodes that come or go
 * meanwhile may be missed. */
struct node_walk {
	unsigned shard;
	size_t slot;
};
size_t node_walk(struct fs *fs, struct node_walk *w, silt_ino *out, size_t max);

/* The kernel is being told the node's attributes, or will ask for them. Lock held. */
void node_kernel_knows_locked(struct node *n);

/* Takes a record that Redis gave; *inode becomes what this mount sees. Call with the lock held. */
void node_merge_locked(struct node *n, struct silt_inode *inode);

/* The file's size with what is not stored yet. Lock held. */
uint64_t node_size_locked(const struct node *n);

/* --- flush.c ------------------------------------------------------------------------------ */

/* Submits segments that were sealed under the lock. No lock held. */
void node_submit(struct fs *fs, struct segment *chain);

/* After any change of the buffer, lock held: keeps `dirty` true to it. Returns true when the caller
 * must node_put() after it has let go of the lock. */
bool node_note_dirty_locked(struct fs *fs, struct node *n);

/* Stores everything written so far, then calls w->done. */
void node_flush(struct fs *fs, struct node *n, struct flush_wait *w);

/* The same for a truncation to `size`: bytes past it are dropped, and nothing newer is sent until
 * node_unhold(). Of a file whose flags forbid it nothing is dropped: Redis will refuse. Holes and shared extents are truncations to UINT64_MAX. false: another truncation is
 * under way; `r` was queued, node_unhold() calls r->held(r). */
bool node_flush_and_hold(struct fs *fs, struct node *n, uint64_t size, struct flush_wait *w,
                         struct request *r);

/* Forgets what was written and is not on its way yet; every handle reports `err` once. */
void node_drop_dirty(struct fs *fs, struct node *n, int err);

/* A truncation came to nothing, but bytes were dropped for it: every handle reports that once. Before
 * node_unhold(). */
void node_cut_in_vain(struct fs *fs, struct node *n);

/* Ends a truncation: sends what was held back and starts operations that waited. */
void node_unhold(struct fs *fs, struct node *n);

/* Seals dirty segments, longest waiting first, while more than half of the budget is dirty. */
void fs_relieve(struct fs *fs, bool retry);

/* Lets parked writes go on while there is space; err != 0: fails them all. */
void fs_unpark(struct fs *fs, int err);

/* At unmount: stores everything, waits. Returns 0 or the last error; logs each file that is lost.
 */
int fs_flush_all(struct fs *fs);

/* --- unstored.c --------------------------------------------------------------------------- */

/* After any change of the buffer, lock held: keeps `failing` true to it. */
void node_note_failing_locked(struct fs *fs, struct node *n);

/* A segment was stored, or refused and is in the buffer again; lock held. */
void node_stored_locked(struct fs *fs, struct node *n);
void node_failed_locked(struct fs *fs, struct node *n, const struct segment *s);

/* The last handle that may write is gone and bytes are left (written through a mapping after the
 * last close, or a close that failed): one more try, then what fails is given up. */
void node_flush_late(struct fs *fs, struct node *n);

/* Janitor: sends what is to be tried again. Returns ms until there is more, -1: nothing. */
int fs_retry_due(struct fs *fs);
/* No more of these, and nothing wakes the janitor for them. */
void fs_end_retries(struct fs *fs);

/* Bytes of `n` were refused: fails the parked writes that wait in vain. No lock held. */
void fs_refused(struct fs *fs, const struct node *n, int err);
