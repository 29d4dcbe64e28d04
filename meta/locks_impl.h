/* Private to meta/: the client's half of locks. locks.c has requests and waiters, lock_thread.c
 * what needs time or blocks, lock_session.c begin and end. */
#pragma once
#include "meta/engine.h"
#include "meta/locks.h"

#define LOCK_BUCKETS 256
#define RETRY_MS     1000 /* between questions while there is no push connection */
#define FORCE_MS     2000 /* after which a request that was held back for fairness insists */
#define BLOCKERS_MAX 32
#define OWNER_TEXT   48 /* kind, session, ".", owner in hex */

/* A request, from meta_lock_set() to its end. locks->lock guards what changes. References: one of
 * the table (those that wait), one of each request on the wire, one of a walk. */
struct lock_wait {
	struct lock_wait *next;      /* in the table */
	struct lock_wait *next_walk; /* in the queue of walks */
	struct meta *m;
	unsigned refs, on_wire; /* requests without a reply */
	uint64_t number;        /* 0: does not wait */
	struct meta_lock lock;
	bool detect;
	unsigned generation; /* locks->generation when it was sent */
	bool queued;         /* Redis has said so */
	bool ended;          /* `done` was called */
	bool abandoned; /* ended, but Redis may not know: it is in the table to be taken back */
	bool cancelling;
	int cancel_err; /* what a cancelled request ends with */
	bool had;
	bool gone;                    /* the inode, when it was granted at once */
	bool placed;                  /* shard 0 knows where it waits */
	unsigned round;               /* of questions, see lock_thread.c */
	uint64_t force_at;            /* monotonic ns; 0: it was not held back */
	char (*blockers)[OWNER_TEXT]; /* for a walk */
	unsigned nblockers;
	meta_lock_done done;
	void *arg;
};

struct locks {
	struct meta *m;
	struct silt_lock lock;
	struct silt_cond wake;
	struct lock_wait *table[LOCK_BUCKETS];
	size_t n; /* in the table */
	struct lock_wait *walks;
	uint64_t counter;
	unsigned generation;
	bool suspended; /* what was held is being swept: nothing may be granted */
	bool refusing;  /* nobody may wait any more */
	bool stopping;
	bool push_up;
	bool asking; /* everybody that waits, once */
	unsigned round;
	void (*lost)(void *arg);
	void *lost_arg;
	char channel[PUSH_CHANNEL_MAX];
	pthread_t thread;
	bool thread_runs;
};

/* locks.c */
void lock_owner_text(const struct meta *m, const struct meta_lock *l, char out[OWNER_TEXT]);
void lock_waiter_text(const struct meta *m, uint64_t number, char out[OWNER_TEXT]);
void lock_wait_put(struct lock_wait *w); /* no lock held */
/* Sends the request (again); takes a reference. No lock held. */
void lock_send(struct lock_wait *w, bool force);
/* Takes a waiting request back; it ends with `err` unless it was granted. No lock held. */
void lock_take_back(struct lock_wait *w, int err);

/* Shard 0 is told that it waits no more. */
void lock_unplace(struct lock_wait *w);

/* Ends a request, if that was not done, and forgets it. The caller has a reference; no lock held. */
void lock_end(struct lock_wait *w, int err);
/* Some waiters of a file could not be looked at in one call. */
void lock_wake_others(struct meta *m, silt_ino ino, bool flock);
/* Hears of grants from now on. */
void lock_listen(struct locks *l);

/* lock_thread.c */
int lock_thread_start(struct locks *l);
void lock_thread_stop(struct locks *l);
