/* For tests of the metadata engine: a private Redis in a directory of its own, volumes on it, and one
 * line an operation. */
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
#include "meta/meta.h"

#define UNUSED_OK __attribute__((unused))

struct server {
	char dir[64];
	struct meta_address address; /* local:DIR */
	struct meta_local *hold;     /* keeps the server between opens */
	struct silt_metrics metrics;
	struct silt_log *log;
};

UNUSED_OK static struct silt_time now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	return (struct silt_time){ ts.tv_sec, (uint32_t)ts.tv_nsec };
}

UNUSED_OK static struct server *server_start(unsigned shards)
{
	struct server *s = calloc(1, sizeof(*s));
	struct silt_err err = { 0 };
	char text[128];
	const char *log = getenv("SILT_TEST_LOG");
	snprintf(s->dir, sizeof(s->dir), "/tmp/silt-meta-fx-XXXXXX");
	assert_non_null(mkdtemp(s->dir));
	snprintf(text, sizeof(text), "local:%s", s->dir);
	assert_int_equal(silt_log_open(log ? log : "/dev/null", SILT_LOG_INFO, NULL, &s->log), 0);
	assert_int_equal(meta_address_parse(text, &s->address, &err), 0);
	if (meta_local_open(s->dir, 1, s->log, &s->hold, &err))
		fail_msg("local: %s", err.text);
	struct meta_volume v = { .version = 1, .name = (char *)"unit", .id = 7, .shards = shards,
				 .storage = (char *)"file", .bucket = (char *)"./objects", .created = 1 };
	struct meta_server_info info;
	if (meta_format(&s->address, &v, 0, 0, s->log, &info, &err))
		fail_msg("format: %s", err.text);
	return s;
}

UNUSED_OK static void server_stop(struct server *s)
{
	char cmd[128];
	meta_local_close(s->hold);
	meta_address_free(&s->address);
	silt_log_close(s->log);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", s->dir);
	assert_int_equal(system(cmd), 0);
	free(s);
}

/* `address` NULL: the server itself. Heartbeats an hour apart when `heartbeat_ms` is 0. */
UNUSED_OK static struct meta *server_open(struct server *s, const struct meta_address *address,
					  unsigned wait_ms, unsigned heartbeat_ms)
{
	struct silt_err err = { 0 };
	struct meta_config cfg = { .address = address ? address : &s->address, .log = s->log,
				   .metrics = &s->metrics, .session = true, .wait_ms = wait_ms,
				   .heartbeat_ms = heartbeat_ms ? heartbeat_ms : 3600000,
				   .session_info = "{\"host\":\"test\"}" };
	struct meta *m = NULL;
	int rc = meta_open(&cfg, &m, &err);
	if (rc)
		fail_msg("meta_open: %s", err.text);
	return m;
}

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

UNUSED_OK static int make(struct meta *m, silt_ino dir, const char *name, uint32_t mode, silt_ino *ino)
{
	struct meta_make how = { .mode = mode, .uid = 5, .gid = 6, .now = now() };
	struct meta_reply r;
	int rc = DO(meta_make(m, dir, name, strlen(name), &how, meta_wait_done, &w_), &r);
	if (ino)
		*ino = r.inode.attr.ino;
	return rc;
}

UNUSED_OK static silt_ino must_make(struct meta *m, silt_ino dir, const char *name, uint32_t mode)
{
	silt_ino ino = 0;
	assert_int_equal(make(m, dir, name, mode, &ino), 0);
	assert_true(ino > 1);
	return ino;
}

UNUSED_OK static int look(struct meta *m, silt_ino dir, const char *name, struct silt_inode *out)
{
	struct meta_reply r;
	int rc = DO(meta_lookup(m, dir, name, strlen(name), meta_wait_done, &w_), &r);
	if (!rc && out)
		*out = r.inode;
	return rc;
}

UNUSED_OK static int getattr_(struct meta *m, silt_ino ino, struct silt_inode *out)
{
	struct meta_reply r;
	int rc = DO(meta_getattr(m, ino, meta_wait_done, &w_), &r);
	if (!rc && out)
		*out = r.inode;
	return rc;
}

UNUSED_OK static struct silt_attr attr_of(struct meta *m, silt_ino ino)
{
	struct silt_inode i = { 0 };
	assert_int_equal(getattr_(m, ino, &i), 0);
	return i.attr;
}

UNUSED_OK static int unlink_(struct meta *m, silt_ino dir, const char *name, bool keep, struct meta_reply *r)
{
	return DO(meta_unlink(m, dir, name, strlen(name), keep, now(), meta_wait_done, &w_), r);
}

UNUSED_OK static int rmdir_(struct meta *m, silt_ino dir, const char *name)
{
	return DO(meta_rmdir(m, dir, name, strlen(name), now(), meta_wait_done, &w_), NULL);
}

UNUSED_OK static int rename_(struct meta *m, silt_ino d1, const char *a, silt_ino d2, const char *b,
			     unsigned flags, struct meta_reply *r)
{
	return DO(meta_rename(m, d1, a, strlen(a), d2, b, strlen(b), flags, false, now(), meta_wait_done,
			      &w_), r);
}

UNUSED_OK static int link_(struct meta *m, silt_ino ino, silt_ino dir, const char *name)
{
	return DO(meta_link(m, ino, dir, name, strlen(name), now(), meta_wait_done, &w_), NULL);
}

UNUSED_OK static int commit_(struct meta *m, struct meta_commit *c, size_t n)
{
	return DO(meta_commit(m, c, n, meta_wait_done, &w_), NULL);
}

UNUSED_OK static int resize_(struct meta *m, silt_ino ino, uint64_t size)
{
	struct silt_attr v = { .size = size };
	return DO(meta_setattr(m, ino, META_SET_SIZE, &v, now(), meta_wait_done, &w_), NULL);
}

/* A raw command's reply as text; the caller frees it. */
UNUSED_OK static char *redis(struct meta *m, const char *a, const char *b, const char *c, const char *d)
{
	const char *argv[] = { a, b, c, d };
	int n = 1 + (b != NULL) + (c != NULL) + (d != NULL);
	char *text = NULL;
	assert_int_equal(meta_debug_command(m, n, argv, NULL, &text), 0);
	return text;
}

/* Fails unless no key matches. */
UNUSED_OK static void assert_no_keys(struct meta *m, const char *pattern)
{
	char *text = redis(m, "KEYS", pattern, NULL, NULL);
	assert_string_equal(text, "(empty)\n");
	free(text);
}
