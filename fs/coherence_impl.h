/* Private to coherence.h's files: coherence.c the threads, names and pages; coherence_inode.c attributes, and
 * the files that are open. */
#pragma once
#include <pthread.h>

#include "fs/coherence.h"
#include "fs/fs_impl.h"
#include "meta/buckets.h"

#define ENTRY_THREADS 3
#define RECENT_NS     1000000000u
#define AGAINS	      3 /* in the low bits of bucket_user(): how often it was done, 1 to 3 */

struct queue {
	struct bucket *first, *last;
};

/* Something that the kernel shall forget: pages of a file, or a name. */
struct drop {
	struct drop *next;
	silt_ino ino;	  /* the file, or the directory that has the name */
	uint64_t version; /* of which the pages are not */
	size_t len;	  /* of the name; 0: pages */
	char name[];
};

/* An open file that Redis is asked about. */
struct check {
	struct check *next;
	struct fs *fs;
	struct node *node;
	bool told; /* the kernel, of what is old now */
	unsigned tries;
	int err; /* the answer: this, or these */
	uint64_t version;
	struct silt_time ctime;
	struct meta_seen seen;
};

/* A file that was opened not long ago. */
struct young {
	struct young *next;
	silt_ino ino;
	uint64_t due;
};

struct coherence {
	struct fs *fs;
	pthread_t threads[1 + ENTRY_THREADS];
	unsigned nthreads;
	struct silt_lock lock; /* what follows */
	struct silt_cond wake, wake_entries;
	bool stop, look_at_all;
	struct queue fresh, names; /* for the first thread, for the others */
	struct queue again[AGAINS]; /* in order of time: bucket_user() says when, and (below) how often */
	struct drop *drops;
	struct check *checks, **checks_tail; /* answered */
	struct young *young, **young_tail;
};

/* --- coherence.c */

/* Of an open file whose bytes are of `version` now, the kernel's pages go, unless it has heard of it. */
void coherence_drop_pages(struct fs *fs, silt_ino ino, uint64_t version);

/* --- coherence_inode.c */

/* What the bucket had of inodes is old. Redis is asked about those that are open here and, the first time,
 * about all that the bucket had; of the others the kernel forgets what it was told. The first thread. */
void coherence_drop_attrs(struct fs *fs, const struct bucket *b, bool first);
/* Asks what Redis says of an inode, if it is open here for reading; false: it is not asked. `told`: the kernel
 * was told what may be old, and forgets it if it is. */
bool coherence_check_inode(struct fs *fs, silt_ino ino, bool told);
/* Redis watches again: all open files have to be watched anew. */
void coherence_check_all(struct fs *fs);
/* The kernel forgets the attributes of a file that was asked about, unless it knows them. Frees `k`. The first
 * thread. */
void coherence_end_check(struct check *k);
/* For meta_hear_deleted(): `arg` of these is the struct coherence. */
bool coherence_anything_open(void *arg);
void *coherence_is_open(void *arg, silt_ino ino);
void coherence_kept(void *arg, void *open, int err);
