/* Private to buckets.h's files: buckets.c the table and what is detached from it; bucket_id.c ids and keys;
 * bucket_items.c what replies bring and answers need; bucket_cover.c what is asked and answered.
 *
 * Functions that take a shelf want its lock held. */
#pragma once
#include <stdatomic.h>

#include "meta/buckets.h"
#include "meta/lock.h"

#define BUCKET_LOCKS 64
#define BUCKET_NS_PER_MS 1000000u

/* ITEM_CHECKED in a tracked bucket, or ITEM_OLD: it was that when its bucket changed, which may have been
 * for another item. ITEM_EMPTY: wanted, nothing is known yet. ITEM_WATCHED: see buckets_watch(). */
enum {
	ITEM_CHECKED = 1,
	ITEM_TOLD = 2,
	ITEM_EMPTY = 4,
	ITEM_OLD = 8,
	ITEM_DIFFERS = 16,
	ITEM_WATCHED = 32,
};

struct item {
	uint32_t stamp, hash, off; /* name, then data, in bytes[] */
	uint16_t name_len, len;
	uint8_t flags;
};

struct bucket {
	struct bucket *hash_next, *newer, *older, *todo_next;
	struct buckets *table;
	struct bucket_id id;
	uint64_t generation, told_ns;
	uint64_t user;
	uint64_t doubted; /* monotonic ns since when it is not tracked any more; 0: it is, or never was */
	uint64_t covered, due; /* of the last cover call's answer; of the next call */
	unsigned hot;
	bool tracked, asked, todo, evicted;
	bool whole;	 /* every item of the server's is here (and checked, if tracked) */
	bool want_whole; /* the next cover call asks for all */
	uint16_t n, cap;
	uint32_t used, room;
	struct item *items;
	char *bytes;
};

struct shelf {
	struct silt_lock lock;
	struct bucket **v;
	size_t n, mask;
	struct bucket *newest, *oldest;
	struct bucket *todo, **todo_tail;
	uint64_t bytes;	     /* of what is in the table */
};

struct buckets {
	struct shelf shelves[BUCKET_LOCKS];
	struct silt_metrics *metrics;
	uint64_t limit;
	bool bring_whole;
	atomic_bool up;
	atomic_uint_fast64_t generations, bytes, count;
	atomic_uint_fast32_t stamps;
	struct silt_lock listening; /* what follows, and calls of it */
	buckets_stale on_stale;
	void *arg;
};

struct shelf *bucket_shelf(struct buckets *t, const struct bucket_id *id);
uint64_t bucket_id_hash(const struct bucket_id *id);
bool bucket_id_same(const struct bucket_id *a, const struct bucket_id *b);

/* --- buckets.c */
struct bucket **bucket_slot(struct shelf *s, const struct bucket_id *id);
/* The bucket of `id`, made if there is none. NULL: no memory, or too much of it is taken. */
struct bucket *bucket_find_or_make(struct buckets *t, struct shelf *s, const struct bucket_id *id);
void bucket_touch(struct shelf *s, struct bucket *b); /* it was used */
/* Room for one more item of so many bytes. */
bool bucket_make_room(struct buckets *t, struct shelf *s, struct bucket *b, size_t bytes);
uint64_t bucket_bytes(const struct bucket *b);
/* Takes a bucket out of the table; it joins the chain of those to hand over. */
void bucket_detach(struct buckets *t, struct shelf *s, struct bucket *b, struct bucket **gone);
/* Detaches what was used least recently while there is too much. */
void buckets_evict(struct buckets *t, struct shelf *s, struct bucket **gone);
void buckets_hand_over(struct buckets *t, struct bucket *gone); /* lock not held */
void bucket_todo_add(struct shelf *s, struct bucket *b, uint64_t due);
void bucket_todo_drop(struct shelf *s, struct bucket *b);
uint64_t bucket_soon(void); /* when what is put now is due */

/* --- bucket_items.c */
struct item *bucket_find_item(const struct bucket *b, const char *name, size_t len);
bool bucket_same_data(const struct bucket *b, const struct item *it, const void *data, size_t len);
/* Adds an item that is not there. */
struct item *bucket_add_item(struct buckets *t, struct shelf *s, struct bucket *b, const char *name,
			     size_t name_len, const void *data, size_t len);
void bucket_remove_item(struct bucket *b, struct item *it);
/* Takes the items that differ out of the bucket, and hands those that somebody may have to hear of over
 * in a bucket of their own. False: no memory. */
bool bucket_part_with(struct buckets *t, struct bucket *b, struct bucket **gone);
