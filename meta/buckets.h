/* What this mount remembers of the metadata, and what its kernel was told of it: whole or part of the
 * buckets of functions.lua, each watched by the server (CLIENT TRACKING), which says when one changes.
 *
 * A bucket here holds items: of an inode bucket "0" to "63" -> inode record, of a dentry bucket name ->
 * entry; an item of no bytes says that there is none. An item is put when a reply brings it, and marked as
 * told when the kernel was given it for longer than a moment. The life of a bucket:
 *
 *	 put		   take_todo	      covered
 *	------>  [todo]  -------------> [asked] ----------> [tracked]  answers relaxed lookups
 *		    ^			   |		     |
 *		    +--------------- invalidate -------------+
 *
 * An invalidation says that something of the bucket has changed, not what. So the bucket's items are
 * doubtful, and asked for at once; those that differ are detached, in a bucket of their own, and handed to
 * on_stale(). (Else a directory in which files are made all the time would take 63 other inodes with it.)
 * A bucket that keeps changing is asked for every AGAIN_MS. Eviction and a lost connection detach whole
 * buckets.
 *
 * Replies and invalidations come on two connections, in no order. What makes it right:
 *
 * 1. A reading function is not watched by itself (Redis before 7.2 watches the keys that a caller names,
 *    and who asks for a name doesn't know yet which inode bucket the answer is in). So what a reply
 *    brought is unchecked at first. After BUCKET_WAIT_MS a "cover" call names the bucket's key, which makes the
 *    server watch it, and reads the items again, in one atomic step. An item that is the same is checked:
 *    from the moment it was read until now nothing has changed it for good, and from now on a change is
 *    told. An item that differs goes to on_stale().
 * 2. An invalidation that arrives while a cover call is on its way may be for a change before or after the
 *    server ran it. So every bucket has a generation, and an invalidation gives it another one: the reply
 *    finds no bucket of its generation, is not believed, and the bucket is asked for again.
 * 3. What is put in a tracked bucket is checked at once: replies come in order, so its call was run after
 *    the cover call. If a change came between, its invalidation is still on its way, and makes it doubtful.
 * 4. tell() asks whether the item is still the one that was put (its stamp): then whatever comes later
 *    finds it marked, and the kernel is told to forget it. Otherwise the kernel may keep the answer for a
 *    moment only.
 *
 * Who gets a detached bucket sees its told items, does what must be done, and frees it; until then its
 * bytes count. When the limit is reached the buckets used least recently are detached; when what is
 * detached alone fills it, nothing new is put, so nothing grows if the kernel is slow.
 *
 * Threads: all functions from any thread; puts in the order of replies (reader thread). One of
 * BUCKET_LOCKS locks, by the bucket's id, guards it; on_stale() is called without it. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "meta/metrics.h"
#include "meta/types.h"

#define BUCKET_KEY_MAX 64
#define BUCKET_WAIT_MS 30 /* what was put waits so long for others to be asked for with it */
#define BUCKET_FIELDS  24 /* items that a cover call names one by one; more: all of the bucket */

struct buckets;
struct bucket;

struct bucket_id {
	uint64_t seq;	/* inode bucket: sequence / 64; dentry bucket: the directory's sequence */
	uint32_t start; /* dentry bucket: where it begins */
	uint16_t shard;
	bool names; /* a dentry bucket */
};

struct bucket_id bucket_of_inode(silt_ino ino);
/* The dentry bucket of a name at `place` in a directory that has `n` of them. */
struct bucket_id bucket_of_place(silt_ino dir, uint64_t n, uint64_t place);
/* Where the bucket after it begins; 0: it is the last. `n` as above. */
uint64_t bucket_next_place(uint64_t n, uint64_t place);
/* The item of an inode in its bucket; returns the length. */
size_t bucket_inode_name(silt_ino ino, char out[4]);

/* The key in Redis; returns its length. */
size_t bucket_key(const struct bucket_id *id, char out[BUCKET_KEY_MAX]);
bool bucket_parse(const char *key, size_t len, struct bucket_id *out); /* false: no bucket's key */

/* `on_stale` owns the bucket then and calls bucket_free(), before buckets_close(). It must not block or
 * call back. */
typedef void (*buckets_stale)(void *arg, struct bucket *b);

/* `limit` bytes at most. `whole`: cover calls bring all of a bucket where that pays (relaxed). */
int buckets_open(uint64_t limit, bool whole, struct silt_metrics *metrics, struct buckets **out);
void buckets_close(struct buckets *t);
void buckets_listen(struct buckets *t, buckets_stale on_stale, void *arg);

/* The server watches for us, or it does not any more: then everything is detached, and nothing is put. */
void buckets_up(struct buckets *t);
void buckets_down(struct buckets *t);
bool buckets_are_up(struct buckets *t);

/* --- items */

/* A reply brought an item (`len` 0: there is none such). Returns its stamp; 0: not taken. If the kernel was
 * told something else, that is handed over; not if this reply is on its way to the kernel (`replaces`). */
uint32_t buckets_put(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len,
		     const void *data, size_t len, bool replaces);

/* Something here would be useful (`name` NULL: all of it): the next cover call brings it. */
void buckets_want(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len);

/* True: the kernel may be given the item for long; it will be told when it changes. */
bool buckets_tell(struct buckets *t, const struct bucket_id *id, uint32_t stamp);

/* The kernel is not told the item, but on_stale() is to hear when another value is put for it, too. */
void buckets_watch(struct buckets *t, const struct bucket_id *id, uint32_t stamp);

/* Has the kernel been told the item as it was put last? */
bool buckets_is_told(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len);

enum bucket_answer { BUCKET_UNKNOWN, BUCKET_ABSENT, BUCKET_PRESENT };

/* What is known (checked, in a bucket that is tracked or was so a moment ago). `data` gets *len bytes (at most `cap`, else
 * unknown); *stamp (may be NULL) is for tell(). */
enum bucket_answer buckets_get(struct buckets *t, const struct bucket_id *id, const char *name,
			       size_t name_len, void *data, size_t cap, size_t *len, uint32_t *stamp);

/* As buckets_get(), but not what was so only a moment ago. False: not known, or there is none. */
bool buckets_sure(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len,
		  void *data, size_t cap, size_t *len);

/* Has a value been put, checked or not? */
bool buckets_have(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len);

/* What was put last, checked or not: for reading that is verified later. *stamp (may be NULL) is for tell(). */
bool buckets_peek(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len,
		  void *data, size_t cap, size_t *len, uint32_t *stamp);

/* All entries of a dentry bucket, if all are known. `each` is called under the lock. */
typedef void (*buckets_each)(void *arg, const char *name, size_t name_len, const void *data, size_t len,
			     uint32_t stamp);
bool buckets_list(struct buckets *t, const struct bucket_id *id, buckets_each each, void *arg);

/* The server says that it changed. True: there is something to ask for now. */
bool buckets_invalidate(struct buckets *t, const struct bucket_id *id);
/* This mount has changed one item: from now on what was known of that is not given out. */
bool buckets_doubt(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len);

/* --- cover calls */

/* A bucket that has unchecked items: what to ask. `fields` NULL: everything. */
struct bucket_ask {
	struct bucket_id id;
	uint64_t generation;
	unsigned n;	   /* fields */
	uint16_t *lens;	   /* of the names */
	char *names;	   /* back to back */
};
/* When the next one is due (monotonic ns); UINT64_MAX: none waits. */
uint64_t buckets_due(struct buckets *t);
/* One bucket of `shard` (-1: any) that is due; false: none is. bucket_ask_free() afterwards. */
bool buckets_take_todo(struct buckets *t, int shard, uint64_t now, struct bucket_ask *out);
void bucket_ask_free(struct bucket_ask *a);

/* The answer: `n` values for the fields asked (or names and values, when all was asked); NULL data with
 * length 0 for a field that is not there. */
struct bucket_value {
	const char *data;
	size_t len;
};
void buckets_covered(struct buckets *t, const struct bucket_ask *a, const struct bucket_value *v,
		     size_t n);
/* No answer came: it will be asked again. */
void buckets_not_covered(struct buckets *t, const struct bucket_ask *a);

/* --- detached buckets */

const struct bucket_id *bucket_id_of(const struct bucket *b);
/* Its items: *at from 0; false: that was the last. A part of a bucket has those that differ. */
bool bucket_item(const struct bucket *b, unsigned *at, const char **name, size_t *name_len, bool *told);
/* Told items: *at from 0; false: that was the last. */
bool bucket_told(const struct bucket *b, unsigned *at, const char **name, size_t *name_len);
/* When an item was told last (monotonic ns); 0: never. */
uint64_t bucket_told_ns(const struct bucket *b);
/* It was not changed: there was no room for it. */
bool bucket_evicted(const struct bucket *b);
/* A word for whoever holds it; 0 at first. */
uint64_t *bucket_user(struct bucket *b);
void bucket_free(struct bucket *b);

/* A queue of detached buckets needs no memory. */
struct bucket *bucket_chain(struct bucket *b, struct bucket *next); /* sets next, returns b */
struct bucket *bucket_chained(const struct bucket *b);

/* Bytes held, detached buckets included, and buckets in the table. */
uint64_t buckets_bytes(struct buckets *t);
uint64_t buckets_count(struct buckets *t);
