/* Private to meta/: steps of operations across shards, each one blocking call (tx_steps.c), the lists of
 * steps (tx.c), their threads (tx_pool.c), and what is done for dead sessions (recover.c). */
#pragma once
#include "meta/engine.h"

/* Bytes that travel in a reply and must outlive it. */
struct entry {
	uint8_t v[16];
	size_t len;
	uint32_t type;
	silt_ino ino;
};

/* An intent: kind, then fields, each a varint length and bytes; 'U' is followed by an entry alone. */
#define INTENT_MAX   700
#define INTENT_FIELDS 8
struct intent {
	uint8_t v[INTENT_MAX];
	size_t len;
};
void intent_begin(struct intent *i, char kind);
void intent_add(struct intent *i, const void *data, size_t len);
void intent_add_u64(struct intent *i, uint64_t v);

struct intent_field {
	const char *p;
	size_t len;
};
/* Splits an intent; returns the number of fields, or -EUCLEAN. */
int intent_split(const char *text, size_t len, struct intent_field f[INTENT_FIELDS]);
uint64_t intent_u64(const struct intent_field *f);

/* Steps. Each returns 0 or a negative errno; `inode` and `entry` results may be NULL. -ENOTCONN: Redis was
 * away for too long, nobody knows whether the step was done; the list ends there and its intent stays.
 * An error of a step that decides (functions_tx.lua) is the decision, but for -EAGAIN and -ENOTCONN.
 * *seen becomes true if others may have seen the intent that the step ends. */
int step_getattr(struct meta *m, silt_ino ino, struct silt_inode *out);
/* -EPERM: the inode is immutable or append-only. One that is gone may go. */
int step_may_go(struct meta *m, silt_ino ino);
/* The reply of getxattr for a directory's default ACL. */
int step_default_acl(struct meta *m, silt_ino dir, redisReply **out);
int step_entry(struct meta *m, silt_ino dir, const char *name, size_t len, struct entry *out);
/* `i` NULL: it was begun. -ESTALE: and has ended. */
int step_mark(struct meta *m, const char *tx, const struct intent *i, silt_ino dir, const char *name,
	      size_t len, struct entry *out);
enum entry_end { ENTRY_STAYS, ENTRY_GOES, ENTRY_REPLACED };
int step_unmark(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len,
		enum entry_end end, const struct entry *instead, struct silt_time now, bool *seen);
int step_add_entry(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len,
		   uint32_t type, silt_ino ino, struct silt_time now);
int step_end(struct meta *m, const char *tx, silt_ino ino, bool ok, struct silt_time now, bool *seen,
	     struct silt_inode *inode);
int step_rmdir(struct meta *m, const char *tx, silt_ino ino);
int step_drop(struct meta *m, const char *tx, silt_ino ino, bool keep, struct silt_time now,
	      struct silt_inode *inode);
/* `tx` "": a file, which has no parent to be told. */
int step_moved(struct meta *m, const char *tx, silt_ino ino, silt_ino parent, struct silt_time now,
	       struct silt_inode *inode);
int step_by_tx(struct meta *m, enum meta_function fn, unsigned shard, const char *tx);
int step_forget(struct meta *m, unsigned shard, const char *tx, bool *seen);
/* The result of a step in `shard` is not needed any more. */
void step_clear(struct meta *m, unsigned shard, const char *tx, bool seen);

/* Where a rename puts its entry. `stays`: a directory that is there will not be removed, for certain. */
struct place {
	silt_ino dir;
	const char *name;
	size_t len;
	bool stays;
};
/* Decides that it does not happen because of `err`, if nothing is decided. Returns the decision: 0 and the
 * step's reply, its error, or `err`. *code 4: can't be said yet, it goes on. `p`, `out`, `code` may be NULL. */
int step_refuse(struct meta *m, unsigned shard, const char *tx, int err, const struct place *p,
		redisReply **out, long long *code);
/* The intents of a session or of its transaction `tx` are this client's to complete. `died`: see
 * tx_recover(); -ESTALE: the session came back. */
int step_take(struct meta *m, unsigned shard, const char *session, const char *died, const char *tx,
	      redisReply **out);

/* A directory at the target name is marked, to be removed. out->len 0: there is none to be removed. */
int step_aim(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len,
	     const struct entry *moved, struct entry *out);
struct insert_args {
	const char *tx, *drop_tx;
	silt_ino dir;
	const char *name;
	size_t len;
	const struct entry *moved;
	const struct entry *checked; /* file elsewhere that may be replaced; len 0: none */
	const struct entry *gone; /* directory this transaction removed there; len 0: none */
	bool noreplace, keep;
	struct silt_time now;
};
/* *code: 0 done, 1 an intent for `old` was left, 2 nothing to do (two names of one file), 3 `old`
 * is elsewhere: see whether it may go, and try again with it as `checked`. */
int step_insert(struct meta *m, const struct insert_args *a, int *code, struct entry *old,
		struct silt_inode *old_inode);

/* The lists of steps; `resume` when another has begun it. */
int run_add(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len, uint32_t type,
	    silt_ino ino, struct silt_time now, struct silt_inode *inode);
int run_rmdir(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len,
	      struct silt_time now, bool resume);
struct rename_args {
	const char *tx;
	silt_ino dir, dir2;
	const char *name, *name2;
	size_t len, len2;
	unsigned flags;
	bool keep, resume;
	struct silt_time now;
};
/* *code as for step_insert(), with the entry there in *other. */
int step_exchange(struct meta *m, const struct rename_args *a, const struct entry *moved,
		  const struct entry *checked, int *code, struct entry *other);
/* -EAGAIN: nothing happened, it can be tried under another name. */
int run_rename(struct meta *m, const struct rename_args *a, struct meta_reply *r);
int run_drop(struct meta *m, const char *tx, unsigned shard, silt_ino ino, bool keep,
	     struct silt_time now, bool *seen, struct silt_inode *inode);
/* Completes the transaction `tx` of ours if there is an intent of it, or of a part of it. */
int tx_resume(struct meta *m, const char *tx);

/* tx_lock.c. -EBUSY: another has it (for 40 s, if `wait`). -EAGAIN: we were taken for dead. */
int tx_lock(struct meta *m, const char *tx, bool wait);
void tx_unlock(struct meta *m, const char *tx);
/* -EINVAL if directory `dir` is `top` or lies below it. Under the lock. */
int tx_check_not_below(struct meta *m, silt_ino dir, silt_ino top);

/* The threads. A job runs a list of steps; tx_submit() copies `with` (NULL: nothing more) and queues it. */
struct tx_job {
	void (*run)(struct tx_job *j);
	struct op *op;
	unsigned shard;	    /* make_dir: of the new inode; drop: of the intent */
	uint64_t due;	    /* again: monotonic ns */
	struct entry entry; /* drop */
	struct meta_reply so_far;
	struct tx_job *next;
};
void tx_submit(struct op *op, void (*run)(struct tx_job *), const struct tx_job *with);
/* Sleeps before another try; false when there were TX_TRIES. */
#define TX_TRIES 600 /* about 40 s: longer than a dead session takes to be cleaned up */
bool tx_pause(unsigned *tries);
/* Pauses and begins the operation anew; false when there were TX_TRIES. */
bool tx_anew(struct op *op);
/* Ends an operation after its list of steps; one that ended in the middle is gone on with later. */
void tx_end(struct op *op, struct meta_reply *r);
void tx_note_stuck(struct op *op);
