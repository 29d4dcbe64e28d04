/* Keeping what is remembered (buckets.h) true: switches the server's CLIENT TRACKING on, sends cover
 * calls, takes invalidations, and drops everything when one of the two connections is lost.
 *
 * A cover call goes out for all buckets that are due: one call for each shard and COVER_KEYS buckets. So
 * many lookups cost one more call now and then, not each.
 *
 * Nothing is believed while the push connection is down, before the server has confirmed the tracking, and
 * when a cover call is not answered for COVER_LATE_MS (then told items would stay unchecked).
 *
 * Own changes come back as invalidations, too: NOLOOP would keep them away, but the server forgets the key
 * all the same, for others' changes as well. A relaxed mount, which answers from its buckets, forgets what
 * it changed by itself before the change is answered: the invalidation may come after that.
 *
 * Threads: a thread of its own sends cover calls; puts are called on the reader thread, all else on any. */
#pragma once
#include <hiredis/hiredis.h>

#include "meta/buckets.h"
#include "meta/meta.h"
#include "meta/types.h"

#define COVER_KEYS    32
#define COVER_LATE_MS 1000

struct op;
struct cover;

int cover_open(struct meta *m); /* nothing when cfg.cache_size is 0 */
int cover_start(struct meta *m); /* listens to m->push, which has not been started yet */
void cover_stop(struct meta *m); /* ends the thread; after push_close() */
void cover_close(struct meta *m); /* after conn_close() */

/* The main connection: a fresh one (blocking calls allowed), and a lost one. Reader thread. */
void cover_connected(struct meta *m, redisContext *c);
void cover_lost(struct meta *m);

/* What a reply said, for buckets_tell(); 0: not remembered. `surely`: also when the bucket was not touched
 * lately. `replaces`: see buckets_put(). */
uint32_t cover_put_inode(struct meta *m, silt_ino ino, const void *data, size_t len, bool surely,
			 bool replaces);
/* buckets_watch() of what cover_put_reply() gave. */
void cover_watch(struct meta *m, silt_ino ino, uint32_t stamp);
/* The record of a reading operation's reply. */
uint32_t cover_put_reply(struct op *op, silt_ino ino, const redisReply *record);
/* A name in a directory that had so many `buckets` when the reply was made (0: not known). Not taken if
 * the directory itself is not remembered: nobody has been in it lately. `len` 0: there is no such name.
 * *start: see struct meta_seen. */
uint32_t cover_put_name(struct meta *m, silt_ino dir, uint64_t buckets, const char *name, size_t name_len,
			const void *data, size_t len, uint32_t *start);
struct buckets *cover_table(struct meta *m); /* NULL: nothing is remembered */
/* buckets_want() and buckets_doubt() that wake the thread. */
void cover_doubt(struct meta *m, const struct bucket_id *id, const char *name, size_t name_len);
void cover_want(struct meta *m, const struct bucket_id *id, const char *name, size_t name_len);

/* --- relaxed.c: a mount with `relaxed` answers from its buckets */

/* True: `op` was answered (and ended) from what is known for sure. */
bool relaxed_lookup(struct op *op);
bool relaxed_getattr(struct op *op);
bool relaxed_readdir(struct op *op);
/* This mount's own operation has changed something: what was remembered of it goes. */
void relaxed_changed(struct op *op, const struct meta_reply *r);
void relaxed_changed_inode(struct meta *m, silt_ino ino);
