/* Private to meta/: the open volume, how a function is called, and one operation under way.
 *
 * Files: engine.c open, session, heartbeat; volume.c, format_note.c settings and server checks; call.c
 * requests and replies; push.c what Redis says unasked; locks.c, lock_*.c locks of files; names.c
 * operations on names; ops.c on inodes and the volume; windows.c; readdir.c; commit.c; sequence.c inode
 * numbers; tx.c, tx_*.c operations across shards; recover.c; fold.c; deleted.c; xattr.c; frozen.c; wait.c the synchronous face. */
#pragma once
#include <stdatomic.h>

#include "meta/conn.h"
#include "meta/cover.h"
#include "meta/lease.h"
#include "meta/lock.h"
#include "meta/meta.h"
#include "meta/push.h"
#include "meta/record.h"

/*	    id		   name */
#define META_FUNCTIONS(X)                                                                          \
	X(F_LOOKUP, "lookup") X(F_GETATTR, "getattr") X(F_READLINK, "readlink")                    \
	X(F_WINDOW, "window") X(F_WINDOWS, "windows") X(F_READDIR, "readdir") X(F_STATFS, "statfs")                        \
	X(F_MAKE, "make") X(F_SETATTR, "setattr") X(F_LINK, "link") X(F_UNLINK, "unlink")          \
	X(F_RMDIR, "rmdir") X(F_RENAME, "rename") X(F_RELEASE, "release") X(F_COMMIT, "commit")    \
	X(F_TMPFILE, "tmpfile") X(F_ALLOCATE, "allocate") X(F_NEXT_WINDOW, "next_window")          \
	X(F_CLONE, "clone") X(F_APPEND, "append") X(F_TOUCH, "touch")                              \
	X(F_ALLOC, "alloc") X(F_FORMAT, "format") X(F_SESSION_OPEN, "session_open")                \
	X(F_HEARTBEAT, "heartbeat") X(F_SESSION_CLAIM, "session_claim")                            \
	X(F_SESSION_CLOSE, "session_close") X(F_SESSION_LIST, "session_list")                      \
	X(F_SESSION_SWEEP, "session_sweep") X(F_GARBAGE_PEEK, "garbage_peek")                      \
	X(F_GARBAGE_DONE, "garbage_done") X(F_FOLD_LIST, "fold_list") X(F_FOLD, "fold") \
	X(F_WORKER, "worker") X(F_RESIGN, "resign") X(F_DEAD_PACKS, "dead_packs")                  \
	X(F_COUNT_PACKS, "count_packs") X(F_BURY, "bury") X(F_EXHUME, "exhume")                    \
	X(F_FORGET_PACKS, "forget_packs") X(F_LIMITS, "limits") X(F_INODES, "inodes") X(F_LIVE, "live") \
	X(F_NOTED_PACKS, "noted_packs") X(F_EXTENTS, "extents") X(F_MOVE, "move")              \
	X(F_FORGET_NOTED, "forget_noted") X(F_MOVE_LOG, "move_log")                            \
	X(F_DICTIONARY, "dictionary") X(F_DICTIONARY_NEW, "dictionary_new")                    \
	X(F_DICTIONARY_USE, "dictionary_use")                                                  \
	X(F_GARBAGE, "garbage") X(F_FIX_INODE, "fix_inode") X(F_DROP_INODE, "drop_inode")          \
	X(F_FIX_USAGE, "fix_usage") X(F_FIX_LIVE, "fix_live") X(F_EXCLUDE, "exclude")                                     \
	 X(F_X_MAKE_DIR, "x_make_dir") X(F_X_LINK, "x_link")      \
	X(F_X_END, "x_end") X(F_X_ADD_ENTRY, "x_add_entry") X(F_X_DROP, "x_drop")                  \
	X(F_X_FORGET, "x_forget") X(F_X_CLEAR, "x_clear") X(F_X_TAKE, "take")                    \
	X(F_X_AIM, "x_aim") X(F_X_REFUSE, "x_refuse") X(F_X_EXCHANGE, "x_exchange")                \
	X(F_SESSION_BACK, "session_back") X(F_DELETED, "deleted") X(F_SEEN, "seen") X(F_HOLD, "hold") \
	X(F_X_MARK, "x_mark") X(F_X_RMDIR, "x_rmdir") X(F_X_UNMARK, "x_unmark")                    \
	X(F_X_INSERT, "x_insert") X(F_X_MOVED, "x_moved") X(F_X_LOCK, "x_lock")                    \
	X(F_X_UNLOCK, "x_unlock") X(F_GETXATTR, "getxattr")                                        \
	X(F_LISTXATTR, "listxattr") X(F_SETXATTR, "setxattr")                                      \
	X(F_REMOVEXATTR, "removexattr") X(F_SET_FLAGS, "set_flags")                                \
	X(F_LOCK_SET, "lock_set") X(F_LOCK_GET, "lock_get") X(F_LOCK_CANCEL, "lock_cancel")        \
	X(F_LOCK_WAKE, "lock_wake") X(F_LOCK_SWEEP, "lock_sweep") X(F_LOCK_PLACE, "lock_place")    \
	X(F_LOCK_UNPLACE, "lock_unplace") X(F_LOCK_BLOCKERS, "lock_blockers")                      \
	X(F_COVER, "cover") X(F_COMMAND, "(command)")

enum meta_function {
#define X(id, name) id,
	META_FUNCTIONS(X)
#undef X
	F_COUNT
};
_Static_assert(F_COUNT <= SILT_REDIS_KINDS, "silt_metrics.redis is too small");

/* Inode sequences of a shard, reserved in blocks that grow from SEQ_BLOCK_MIN to SEQ_BLOCK_MAX, the
 * next block asked for before the present one runs out. `lock` guards all. */
#define SEQ_BLOCK_MIN 64
#define SEQ_BLOCK_MAX 4096
struct op;
struct sequence {
	struct silt_lock lock;
	uint64_t next, end;   /* the present block */
	uint64_t next2, end2; /* the block after it, when it has come */
	uint64_t known;	      /* the highest that was ever reserved here */
	unsigned block;
	bool asking;
	struct op *waiting; /* operations that need a number */
};

struct tx_pool;
struct leases;
struct locks;
struct cover;
struct deleted;

struct meta {
	struct meta_config cfg;
	struct silt_log *log;
	struct silt_metrics *metrics;
	struct conn *conn;
	struct push *push; /* NULL without a session */
	struct meta_local *local;
	struct meta_volume volume;
	unsigned fill; /* entries a dentry bucket is meant to hold */
	uint64_t session;
	char session_text[24];
	struct sequence *sequences; /* one a shard */
	struct tx_pool *tx;
	struct leases *leases;
	struct locks *locks; /* NULL without a session */
	struct cover *cover; /* NULL: nothing is remembered */
	struct deleted *deleted; /* NULL: this session opens no files */
	atomic_uint_fast64_t tx_counter, packs_known; /* packs_known: the highest id reserved here */
	pthread_t heart;
	bool heart_runs;
	unsigned garbage_shard; /* where tx_collect_garbage() goes on; the heartbeat thread's */
	unsigned back_in; /* heartbeat's: shards that know that the session came back after it was taken for dead */
	struct silt_lock heart_lock; /* guards stopping */
	struct silt_cond heart_wake;
	bool stopping;
};

/* One operation under way: what it was asked for (kept for a second try or a continuation across
 * shards), and whom to tell. Freed after `done`. */
struct op {
	struct meta *m;
	enum meta_function fn;
	silt_ino ino, dir, dir2; /* as the operation needs them */
	const char *name, *name2; /* in `text` */
	uint16_t len, len2;
	unsigned flags, tries, misses;
	bool keep, attrs, watch, to_kernel;
	bool nothing; /* rename of one of a file's names over another: nothing happened */
	uint64_t number, seq; /* position, window, count; the new inode's sequence */
	uint64_t buckets;     /* of the directory, by the reply; 0: not said */
	unsigned want;
	uint64_t sent; /* monotonic ns */
	struct silt_time now;
	struct silt_attr values;
	struct meta_make make;
	char tx[40];
	uint8_t checked[32]; /* frozen.c */
	unsigned nchecked;
	meta_done done;
	void *arg;
	struct op *next;
	char text[];
};

/* call.c */
struct op *op_new(struct meta *m, enum meta_function fn, const char *name, size_t len, const char *name2,
		  size_t len2, size_t extra, meta_done done, void *arg);
void op_end(struct op *op, struct meta_reply *r); /* tells and frees */
void op_fail(struct op *op, int err);
/* Begins FCALL (FCALL_RO for reading functions) with the shard's key; `args` more must follow, the
 * last of a writing function being the retry flag (call_send adds it: it is counted). */
struct conn_request *call_begin(struct meta *m, unsigned shard, enum meta_function fn, int args,
				size_t hint);
void call_send(struct meta *m, enum meta_function fn, struct conn_request *r, conn_done done, void *arg);
void call_arg_time(struct conn_request **r, struct silt_time t);
/* Time of a write, and whether its writer's lack of privilege drops set-id bits: a byte more. */
void call_arg_write_time(struct conn_request **r, struct silt_time t, bool drop_suid);
bool function_writes(enum meta_function fn);
/* Maps a reply to an error: 0 for an array that begins with an integer >= 0 (which goes to *code).
 * Error replies are logged. */
int reply_code(struct meta *m, enum meta_function fn, int err, const redisReply *reply, long long *code);
const redisReply *reply_at(const redisReply *reply, size_t i); /* a string element, or NULL */
uint64_t reply_number(const redisReply *reply, size_t i);      /* 0: there is none that is positive */
int reply_inode(struct meta *m, silt_ino ino, const redisReply *s, struct silt_inode *out);
void next_tx(struct meta *m, char out[40]);
int check_name(const char *name, size_t len);

/* The blocking form, for other than reader threads. Returns the reply (caller frees) in *out. */
int call_wait(struct meta *m, enum meta_function fn, struct conn_request *r, redisReply **out);
/* The same with reply_code(); *out may be set (and must be freed) whatever the result. */
int call_checked(struct meta *m, enum meta_function fn, struct conn_request *r, redisReply **out,
		 long long *code);

/* frozen.c: code 2 of unlink and rename: names inodes in other shards that may have to stay. Looks at
 * them and sends the operation again, or ends it with -EPERM. */
void frozen_check(struct op *op, const redisReply *reply);

/* sequence.c: calls op_with_sequence(op) with op->seq set, now or later. */
void sequence_take(struct meta *m, unsigned shard, struct op *op);
void sequence_forget(struct meta *m, unsigned shard); /* the numbers that are at hand: they are in use */
int sequences_init(struct meta *m);
void sequences_free(struct meta *m);

/* ops.c: meta_getattr(), also for a reply that goes to the kernel, which asks Redis in any case. */
void ask_inode(struct meta *m, silt_ino ino, bool to_kernel, meta_done done, void *arg);

/* data.c */
void submit_tmpfile(struct op *op);

/* names.c */
void op_with_sequence(struct op *op);
void op_other_sequence(struct op *op); /* the one it has is in use */
void op_resubmit(struct op *op); /* sends the operation's first call again */

/* readdir.c: the page of entries that were not asked for just now. `n` of name, entry and record each (of
 * no length: not known); `next` place, 0: none. Ends `op`. False: only entries before the cookie. */
struct found {
	const char *name, *entry, *record;
	size_t name_len, entry_len, record_len;
	uint64_t place;
	struct meta_seen seen;
};
bool readdir_end(struct op *op, struct found *v, size_t n, uint64_t next);

/* tx.c, tx_pool.c: operations across shards, on threads of their own. */
int tx_open(struct meta *m);
void tx_close(struct meta *m);
void tx_make_dir(struct op *op, unsigned shard);
void tx_link(struct op *op);
void tx_rmdir(struct op *op);
void tx_rename(struct op *op);
/* After an unlink or rename left an intent for an inode elsewhere: finish it, then end `op`. */
void tx_drop(struct op *op, unsigned shard, const redisReply *entry, const struct meta_reply *so_far);
void tx_again(struct op *op); /* resubmit after a pause */
/* Completes own operations that lost Redis on their way. Heartbeat thread. */
void tx_finish_stuck(struct meta *m);
/* Completes what a session left in every shard, and forgets the session. `died`: the number that its
 * claim told, under which it died; "": it is our own, which ends. Heartbeat thread. */
void tx_recover(struct meta *m, const char *session, const char *died);
void tx_collect_garbage(struct meta *m);

/* packs.c: a list of packs from `cursor` on, as meta_dead_packs(); calls for up to `n` packs, as many as it takes. */
int list_packs(struct meta *m, unsigned shard, enum meta_function fn, uint64_t *cursor, unsigned want, uint64_t **out,
               size_t *n);
int all_packs(struct meta *m, unsigned shard, enum meta_function fn, const uint64_t *packs, size_t n,
              int64_t *state);

/* fold.c: shortens some of the shard's logs that have grown. True: it did, and there may be more. Blocks. */
bool fold_logs(struct meta *m, unsigned shard);

/* deleted.c. deleted_open() blocks; so do the others, on the heartbeat thread or at the end. */
int deleted_open(struct meta *m);
/* There is something on the shard's list. */
void deleted_look(struct meta *m, unsigned shard);
/* The session came back in this shard after it was taken for dead. */
int deleted_join(struct meta *m, unsigned shard);
void deleted_leave(struct meta *m);
void deleted_close(struct meta *m);

/* locks.c, see locks.h. After the push connection was made and before it is started; stopped when it is
 * closed, freed after the connection. */
int locks_open(struct meta *m);
void locks_stop(struct meta *m);
void locks_free(struct meta *m);
/* Takes away what a session that ended holds and waits for in a shard; `died` as in tx_recover(). Blocks. */
int locks_sweep(struct meta *m, unsigned shard, const char *session, const char *died);
/* Our own session was taken for dead: everything is lost, nothing new is granted. Does not block. */
void locks_lost(struct meta *m);
/* After that: takes away what was granted after others had cleaned up (it would stay, with nobody's
 * knowledge), and goes on. Heartbeat thread. */
int locks_start_anew(struct meta *m);

/* volume.c */
int volume_to_json(const struct meta_volume *v, char **out);
int volume_from_json(const char *text, struct meta_volume *out, struct silt_err *err);
int volume_load(redisContext *c, const char *shown, struct meta_volume *out, struct silt_err *err);
int server_check(redisContext *c, const char *shown, struct meta_server_info *info, struct silt_err *err);
int functions_load(redisContext *c, const char *shown, struct silt_err *err);
