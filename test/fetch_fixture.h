/* For tests of the read side: a `file` store and an SSD tier in a directory of the test's own,
 * packs in the store whose bytes are known from inode and offset, reads that wait for their end.
 * The functions that assert are for a case's own thread only. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "cache/fetch.h"
#include "cache/pack.h"
#include "meta/lock.h"
#include "test/scratch.h"
#include "test/slot_sizes.h"

#define MIB      (1u << 20)
#define VOLUME   77u
#define SMALL    3900u /* bytes of a small file */
#define FILES    600u  /* small files in a pack */
#define BIG      (3u * MIB + 12345)
#define PATH_LEN 192 /* of paths below the directory */

struct fixture {
	char dir[SCRATCH_MAX], objects[SCRATCH_MAX + 8], ssd[SCRATCH_MAX + 8];
	uint32_t slot_size;
	struct silt_log *log;
	struct silt_metrics metrics;
	struct store *store;
	struct tier *tier;
	struct fetch *fetch;
	struct silt_extent small[FILES]; /* of the last make_small() */
};

/* There is a store after setup, and no cache. */
int setup(void **state);
int teardown(void **state);

/* With `ssd_mib` 0 there is no SSD; `memory` 0: the default. */
void open_cache(struct fixture *f, unsigned ssd_mib, uint64_t memory);
void close_cache(struct fixture *f);

/* Waits for background work by closing and opening again. */
void reopen(struct fixture *f, unsigned ssd_mib, uint64_t memory);

uint64_t metric(struct fixture *f, enum silt_metric m);

/* --- packs --- */

/* A file's bytes: text-like (they compress), or noise. */
void fill(silt_ino ino, uint64_t off, size_t len, bool noise, uint8_t *out);

/* A pack of FILES small files, inodes 1000 + i; noise when `level` is 0. */
void make_small(struct fixture *f, uint64_t pack, int level);

/* A pack of one large piece of inode 5 at file offset `off`; noise when `level` is 0. */
struct silt_extent make_big(struct fixture *f, uint64_t pack, int level, uint64_t off);

/* Puts a pack into the store, and frees the builder. */
void put_pack(struct fixture *f, uint64_t pack, struct pack_builder *b);

void object_path(struct fixture *f, uint64_t pack, char path[PATH_LEN]);
void remove_object(struct fixture *f, uint64_t pack);

/* --- reads --- */

/* The end of something asynchronous: `on_done` and the wait go to it. */
struct wait {
	struct silt_lock lock;
	struct silt_cond cond;
	int err; /* 1: not called */
};

void wait_init(struct wait *w);
void on_done(void *arg, int err);
int wait_end(struct wait *w);

/* fetch_read() begun; wait_end() has its result, in every case. */
void get_begin(struct fixture *f, silt_ino ino, const struct silt_extent *e, uint64_t off,
               uint32_t len, uint8_t *dst, struct wait *w);

/* These two wait, on any thread. */
int get(struct fixture *f, silt_ino ino, const struct silt_extent *e, uint64_t off, uint32_t len,
        uint8_t *dst);
int get_pack(struct fixture *f, uint64_t pack, uint64_t *bytes);

/* Fail unless the bytes come, and are right; of a small file all of them, and a few. */
void check(struct fixture *f, silt_ino ino, const struct silt_extent *e, uint64_t off, uint32_t len,
           bool noise);
void check_small(struct fixture *f, unsigned i, bool noise);

#define CASE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
