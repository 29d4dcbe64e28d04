/* Locks of files, fcntl's and flock's, that hold between mounts. functions_lock.lua has the state
 * and the rules; this is the client's half: requests, those that wait, and what Redis tells them.
 *
 * A request that must wait is queued in Redis, and nothing is sent until Redis says, over the push
 * connection, that it is granted. What could be lost on the way is asked for: each waiter once
 * after the push connection came back, and every RETRY_MS while there is none. A request whose fate
 * is not known (Redis did not answer for `wait_ms`) ends with -EIO and is taken back as soon as
 * Redis is there again.
 *
 * Locks belong to the session. When that was taken for dead (no heartbeat for its time to live)
 * others may have them: everything held is lost, meta_locks_on_lost() says so, waiters end with
 * -EIO, and so does a request that was under way.
 *
 * Threads: all functions from any thread. `done` runs on the reader, the push or the lock thread
 * and must not block. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "meta/types.h"

struct meta;

enum meta_lock_type { META_LOCK_NONE, META_LOCK_READ, META_LOCK_WRITE };
#define META_LOCK_LAST ((uint64_t)INT64_MAX) /* the last byte a file can have */

struct meta_lock {
	silt_ino ino;
	bool flock;     /* else fcntl; the two don't see each other */
	uint64_t owner; /* the kernel's number of a process or an open file; unique within this
	                   mount */
	uint32_t pid;   /* told to others that ask with meta_lock_get() */
	enum meta_lock_type type;
	uint64_t start, end; /* first and last byte; all for flock */
};

/* Valid during the call of `done`. */
struct meta_lock_reply {
	/* 0, -EAGAIN conflict, -EDEADLK, -ENOLCK too many locks, -EINTR cancelled, -EIO */
	int err;
	bool had; /* the owner held some of the range before */
	/* set: the inode as it was when the lock was held already; `gone`: there is none any more;
	 * neither: it was an unlock, or nobody knows */
	bool has_inode, gone;
	struct silt_inode inode;
	/* get: the lock in the way; type META_LOCK_NONE: none is */
	struct meta_lock found;
	bool here; /* `found` is this mount's: owner and pid mean something */
};
typedef void (*meta_lock_done)(void *arg, const struct meta_lock_reply *r);

/* A number for a request that may wait. */
uint64_t meta_lock_id(struct meta *m);

/* Sets, changes or (META_LOCK_NONE) takes away. `id` 0: a conflict is -EAGAIN; else it waits.
 * `detect`: -EDEADLK instead of waiting for itself, over whatever mounts and shards. One call; one
 * more where a request really waits and the volume has several shards. */
void meta_lock_set(struct meta *m, const struct meta_lock *l, uint64_t id, bool detect,
                   meta_lock_done done, void *arg);

/* Ends a waiting request: its `done` gets -EINTR, or 0 if it was granted meanwhile. */
void meta_lock_cancel(struct meta *m, uint64_t id);

/* Is somebody else's lock in the way of this one? */
void meta_lock_get(struct meta *m, const struct meta_lock *l, meta_lock_done done, void *arg);

/* From now on requests that wait end with -EINTR. For unmounting. */
void meta_locks_stop(struct meta *m);

/* `lost` is called (heartbeat or reader thread; it must not block) when everything held was lost.
 * One such function; NULL: none. */
void meta_locks_on_lost(struct meta *m, void (*lost)(void *arg), void *arg);
