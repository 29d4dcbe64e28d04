/* Three small memories of what this mount just saw, all bounded and lossy:
 *
 * fresh	the inode that a LOOKUP answered, for the OPEN that follows in the same open(2):
 * same thread, within FRESH_NS, taken once. It saves the second Redis call of an open without
 *		weakening close-to-open, because that LOOKUP was sent by this very open(2); an inode
 *		with several names is not kept.
 *		An OPEN that had to ask by itself leaves its answer here for the GETATTR of the
 *		first read.
 * opened	which version of an inode's bytes the kernel's page cache holds: an open of the same
 *		version keeps the pages. An open of another one makes the kernel drop them, but only
 *		once the opener runs on: until a request of the new handle shows that it does, nobody
 *		may take the pages for those of the version.
 * dirs		attributes of directories that this mount just changed: the kernel forgets them with
 *		every change and asks again before the next one, for the permission check. They are
 * told to the kernel for no longer than it would have kept them itself.
 *
 * Threads: all functions from any thread. */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "meta/lock.h"
#include "meta/types.h"

#define FRESH_NS     100000000u
#define FRESH_SLOTS  1024u
#define OPENED_WAYS  4u
#define OPENED_SETS  16384u
#define RECENT_LOCKS 64u

struct fresh_slot {
	silt_ino ino; /* 0: empty */
	int32_t pid;
	uint64_t when; /* silt_now_ns() */
	struct silt_inode inode;
};

struct fresh_table {
	struct silt_lock locks[RECENT_LOCKS];
	struct fresh_slot *v;
};

int fresh_table_init(struct fresh_table *t);
void fresh_table_free(struct fresh_table *t);
void fresh_put(struct fresh_table *t, int32_t pid, const struct silt_inode *inode);
bool fresh_take(struct fresh_table *t, int32_t pid, silt_ino ino, struct silt_inode *out);
/* The inode was changed here: what LOOKUP answered is old. */
void fresh_drop(struct fresh_table *t, silt_ino ino);

struct opened_set {
	silt_ino ino[OPENED_WAYS];
	uint64_t version[OPENED_WAYS];
	uint32_t token[OPENED_WAYS]; /* of the opens that drop the older pages; 0: they are dropped */
};

struct opened_table {
	struct silt_lock locks[RECENT_LOCKS];
	atomic_uint tokens;
	struct opened_set *v;
};

int opened_table_init(struct opened_table *t);
void opened_table_free(struct opened_table *t);

/* Notes that `ino` is opened in `version`. Returns 0 when the kernel's pages are of that version and may be
 * kept; else they are to be dropped, and opened_sure() wants the token that is returned. */
uint32_t opened_note(struct opened_table *t, silt_ino ino, uint64_t version);
/* An open that got `token` has dropped the older pages. */
void opened_sure(struct opened_table *t, silt_ino ino, uint32_t token);
/* All pages were dropped just now, `version` or a later one is what will be read. */
void opened_dropped(struct opened_table *t, silt_ino ino, uint64_t version);

/* Are the kernel's pages, if any, of that version? Notes nothing. */
bool opened_is(struct opened_table *t, silt_ino ino, uint64_t version);

/* A write of this mount made `to` out of `from`: pages of `from` plus that write are pages of `to`.
 */
void opened_advance(struct opened_table *t, silt_ino ino, uint64_t from, uint64_t to);

/* The pages hold bytes that are in no version. */
void opened_forget(struct opened_table *t, silt_ino ino);

#define DIR_SLOTS 1024u

struct dir_slot {
	struct silt_attr attr; /* ino 0: empty */
	uint64_t when;         /* silt_now_ns() */
};

struct dir_table {
	struct silt_lock locks[RECENT_LOCKS];
	struct dir_slot *v;
};

int dir_table_init(struct dir_table *t);
void dir_table_free(struct dir_table *t);

/* `attr` came with the reply to a change (ino 0: it did not, nothing is noted). Replies come in the
 * order of the changes, so the last one is the newest. */
void dir_put(struct dir_table *t, const struct silt_attr *attr);
void dir_drop(struct dir_table *t, silt_ino ino);
/* Another reply, or a push, brought these attributes: drops what is older. Else the kernel, which has heard of
 * these, would be told the older ones again. */
void dir_seen(struct dir_table *t, const struct silt_attr *attr);

/* Attributes noted less than `max_age` seconds ago; *age gets how long. */
bool dir_get(struct dir_table *t, silt_ino ino, double max_age, struct silt_attr *out, double *age);
