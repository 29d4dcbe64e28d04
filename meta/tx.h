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
 * away for too long, nobody knows whether the step was done; the list ends there and its intent stays. */
int step_getattr(struct meta *m, silt_ino ino, struct silt_inode *out);
/* -EPERM: the inode is immutable or append-only. One that is gone may go. */
int step_may_go(struct meta *m, silt_ino ino);
/* The reply of getxattr for a directory's default ACL. */
int step_default_acl(struct meta *m, silt_ino dir, redisReply **out);
int step_entry(struct meta *m, silt_ino dir, const char *name, size_t len, struct entry *out);
int step_mark(struct meta *m, const char *tx, const struct intent *i, silt_ino dir, const char *name,
	      size_t len, struct entry *out);
int step_unmark(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len, bool remove,
		struct silt_time now);
int step_add_entry(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len,
		   uint32_t type, silt_ino ino, struct silt_time now);
int step_end(struct meta *m, const char *tx, silt_ino ino, bool ok, struct silt_time now,
	     struct silt_inode *inode);
int step_rmdir(struct meta *m, const char *tx, silt_ino ino);
int step_drop(struct meta *m, const char *tx, silt_ino ino, bool keep, struct silt_time now,
	      struct silt_inode *inode);
int step_moved(struct meta *m, silt_ino ino, silt_ino parent, struct silt_time now,
	       struct silt_inode *inode);
int step_intents(struct meta *m, unsigned shard, redisReply **out);
int step_by_tx(struct meta *m, enum meta_function fn, unsigned shard, const char *tx);

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

/* The lists of steps; `resume` when they are run for a dead session's intent. */
int run_add(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len, uint32_t type,
	    silt_ino ino, struct silt_time now, bool resume, struct silt_inode *inode);
int run_rmdir(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len,
	      struct silt_time now, bool resume);
struct rename_args {
	const char *tx;
	silt_ino dir, dir2;
	const char *name, *name2;
	size_t len, len2;
	bool noreplace, keep, resume;
	struct silt_time now;
};
int run_rename(struct meta *m, const struct rename_args *a, struct meta_reply *r);
/* Completes the transaction `tx` if there is an intent of it, or of a part of it. */
int tx_resume(struct meta *m, const char *tx);
int run_drop(struct meta *m, const char *tx, unsigned shard, silt_ino ino, bool keep,
	     struct silt_time now, bool resume, struct silt_inode *inode);

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
#define TX_TRIES 400 /* about 40 s: longer than a dead session takes to be cleaned up */
bool tx_pause(unsigned *tries);
/* Ends an operation after its list of steps; one that ended in the middle is gone on with later. */
void tx_end(struct op *op, struct meta_reply *r);
void tx_note_stuck(struct op *op);
