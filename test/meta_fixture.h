/* For tests of the metadata engine: a private Redis in a directory of its own, a volume on it, and
 * one line an operation.
 *
 *	struct server *s = server_start(8);
 *	struct meta *m = server_open(s, NULL, 0, 0);
 *	silt_ino ino = must_make(m, 1, "name", S_IFREG | 0644);
 *	meta_close(m);
 *	server_stop(s);
 *
 * Operations return what the engine answered, 0 or a negative errno; must_make(), attr_of(),
 * usage_of() and the assert_ functions end the case when that is an error, so they are for its own
 * thread only. SILT_TEST_LOG=FILE takes the engine's log. */
#pragma once
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "meta/local.h"
#include "meta/lock.h"
#include "meta/meta.h"
#include "test/scratch.h"

struct server {
	char dir[SCRATCH_MAX];
	struct meta_address address; /* local:DIR */
	struct meta_local *hold;     /* keeps the server between opens */
	struct silt_metrics metrics; /* of all that server_open() gave */
	struct silt_log *log;
};

/* Starts Redis and formats a volume of `shards` shards on it. */
struct server *server_start(unsigned shards);
void server_stop(struct server *s);

/* What formats it: -EEXIST when asked again. */
int server_format(struct server *s, unsigned shards, struct silt_err *err);

/* A client. `address` NULL: the server itself; `wait_ms` 0: the engine's default; `heartbeat_ms` 0:
 * an hour, so that no heartbeat falls into what a test counts. The caller closes it. */
struct meta *server_open(struct server *s, const struct meta_address *address, unsigned wait_ms,
                         unsigned heartbeat_ms);

/* Cases for one shard, for eight, for both: their setup finds the number in *state. */
#define CASE_1_SHARD(test, setup, teardown)                                                        \
	cmocka_unit_test_prestate_setup_teardown(test, setup, teardown, (void *)1)
#define CASE_8_SHARDS(test, setup, teardown)                                                       \
	((struct CMUnitTest){ #test "_8_shards", test, setup, teardown, (void *)8 })
#define CASE_1_AND_8_SHARDS(test, setup, teardown)                                                 \
	CASE_1_SHARD(test, setup, teardown), CASE_8_SHARDS(test, setup, teardown)

/* --- operations --- */

/* Calls `call`, which ends in `meta_wait_done, &w_)`, waits for its end, and gives its result; what
 * it answered goes to *out unless that is NULL. */
#define DO(call, out)                                                                              \
	({                                                                                         \
		struct meta_wait w_;                                                               \
		meta_wait_init(&w_);                                                               \
		call;                                                                              \
		int rc_ = meta_wait(&w_);                                                          \
		struct meta_reply *o_ = (out);                                                     \
		if (o_)                                                                            \
			*o_ = w_.reply;                                                            \
		meta_wait_free(&w_);                                                               \
		rc_;                                                                               \
	})

/* The same with settings of its own; what is 0 in `cfg` is as above. */
struct meta *server_open_as(struct server *s, struct meta_config cfg);

struct silt_time now(void);
int make(struct meta *m, silt_ino dir, const char *name, uint32_t mode, silt_ino *ino);
silt_ino must_make(struct meta *m, silt_ino dir, const char *name, uint32_t mode);
int look(struct meta *m, silt_ino dir, const char *name, struct silt_inode *out);
int getattr_(struct meta *m, silt_ino ino, struct silt_inode *out);
struct silt_attr attr_of(struct meta *m, silt_ino ino);
int unlink_(struct meta *m, silt_ino dir, const char *name, bool keep, struct meta_reply *r);
int rmdir_(struct meta *m, silt_ino dir, const char *name);
int rename_(struct meta *m, silt_ino d1, const char *a, silt_ino d2, const char *b, unsigned flags,
            struct meta_reply *r);
int link_(struct meta *m, silt_ino ino, silt_ino dir, const char *name);
int commit_(struct meta *m, struct meta_commit *c, size_t n);
int resize_(struct meta *m, silt_ino ino, uint64_t size);
struct meta_statfs usage_of(struct meta *m);

/* A raw command's reply as text; the caller frees it. */
char *redis(struct meta *m, const char *a, const char *b, const char *c, const char *d);

/* Fails unless no key matches. */
void assert_no_keys(struct meta *m, const char *pattern);

/* --- many at once --- */

/* Requests under way together: `burst_done` and the burst go to each of them. */
struct burst {
	struct silt_lock lock;
	struct silt_cond cond;
	unsigned left, failed;
};

void burst_begin(struct burst *b, unsigned requests);
void burst_done(void *arg, const struct meta_reply *r);

/* How many are not answered yet. */
unsigned burst_left(struct burst *b);

/* Waits until all are answered; how many of them failed. */
unsigned burst_end(struct burst *b);
