#include "test/meta_fixture.h"

int server_format(struct server *s, unsigned shards, struct silt_err *err)
{
	struct meta_volume v = { .version = 1,
		                 .name = (char *)"unit",
		                 .id = 7,
		                 .shards = shards,
		                 .storage = (char *)"file",
		                 .bucket = (char *)"./objects",
		                 .created = 1 };
	struct meta_server_info info;
	return meta_format(&s->address, &v, 0, 0, s->log, &info, err);
}

struct server *server_start(unsigned shards)
{
	struct server *s = calloc(1, sizeof(*s));
	struct silt_err err = { 0 };
	char text[SCRATCH_MAX + 8];
	const char *log = getenv("SILT_TEST_LOG");
	assert_int_equal(scratch_make(s->dir), 0);
	snprintf(text, sizeof(text), "local:%s", s->dir);
	assert_int_equal(silt_log_open(log ? log : "/dev/null", SILT_LOG_INFO, NULL, &s->log), 0);
	assert_int_equal(meta_address_parse(text, &s->address, &err), 0);
	if (meta_local_open(s->dir, 1, s->log, &s->hold, &err))
		fail_msg("local: %s", err.text);
	if (server_format(s, shards, &err))
		fail_msg("format: %s", err.text);
	return s;
}

void server_stop(struct server *s)
{
	meta_local_close(s->hold);
	meta_address_free(&s->address);
	silt_log_close(s->log);
	assert_int_equal(scratch_remove(s->dir), 0);
	free(s);
}

struct meta *server_open_as(struct server *s, struct meta_config cfg)
{
	struct silt_err err = { 0 };
	struct meta *m = NULL;
	if (!cfg.address)
		cfg.address = &s->address;
	if (!cfg.heartbeat_ms)
		cfg.heartbeat_ms = 3600000;
	cfg.log = s->log;
	cfg.metrics = &s->metrics;
	cfg.session = true;
	cfg.session_info = "{\"host\":\"test\"}";
	if (meta_open(&cfg, &m, &err))
		fail_msg("meta_open: %s", err.text);
	return m;
}

struct meta *server_open(struct server *s, const struct meta_address *address, unsigned wait_ms,
                         unsigned heartbeat_ms)
{
	return server_open_as(s, (struct meta_config){ .address = address,
	                                               .wait_ms = wait_ms,
	                                               .heartbeat_ms = heartbeat_ms });
}

struct silt_time now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	return (struct silt_time){ ts.tv_sec, (uint32_t)ts.tv_nsec };
}

int make(struct meta *m, silt_ino dir, const char *name, uint32_t mode, silt_ino *ino)
{
	struct meta_make how = { .mode = mode, .uid = 5, .gid = 6, .now = now() };
	struct meta_reply r;
	int rc = DO(meta_make(m, dir, name, strlen(name), &how, meta_wait_done, &w_), &r);
	if (ino)
		*ino = r.inode.attr.ino;
	return rc;
}

silt_ino must_make(struct meta *m, silt_ino dir, const char *name, uint32_t mode)
{
	silt_ino ino = 0;
	assert_int_equal(make(m, dir, name, mode, &ino), 0);
	assert_true(ino > 1);
	return ino;
}

int look(struct meta *m, silt_ino dir, const char *name, struct silt_inode *out)
{
	struct meta_reply r;
	int rc = DO(meta_lookup(m, dir, name, strlen(name), meta_wait_done, &w_), &r);
	if (!rc && out)
		*out = r.inode;
	return rc;
}

int getattr_(struct meta *m, silt_ino ino, struct silt_inode *out)
{
	struct meta_reply r;
	int rc = DO(meta_getattr(m, ino, meta_wait_done, &w_), &r);
	if (!rc && out)
		*out = r.inode;
	return rc;
}

struct silt_attr attr_of(struct meta *m, silt_ino ino)
{
	struct silt_inode i = { 0 };
	assert_int_equal(getattr_(m, ino, &i), 0);
	return i.attr;
}

int unlink_(struct meta *m, silt_ino dir, const char *name, bool keep, struct meta_reply *r)
{
	return DO(meta_unlink(m, dir, name, strlen(name), keep, now(), meta_wait_done, &w_), r);
}

int rmdir_(struct meta *m, silt_ino dir, const char *name)
{
	return DO(meta_rmdir(m, dir, name, strlen(name), now(), meta_wait_done, &w_), NULL);
}

int rename_(struct meta *m, silt_ino d1, const char *a, silt_ino d2, const char *b, unsigned flags,
            struct meta_reply *r)
{
	return DO(meta_rename(m, d1, a, strlen(a), d2, b, strlen(b), flags, false, now(),
	                      meta_wait_done, &w_),
	          r);
}

int link_(struct meta *m, silt_ino ino, silt_ino dir, const char *name)
{
	return DO(meta_link(m, ino, dir, name, strlen(name), now(), meta_wait_done, &w_), NULL);
}

int commit_(struct meta *m, struct meta_commit *c, size_t n)
{
	return DO(meta_commit(m, c, n, meta_wait_done, &w_), NULL);
}

int resize_(struct meta *m, silt_ino ino, uint64_t size)
{
	struct silt_attr v = { .size = size };
	return DO(meta_setattr(m, ino, META_SET_SIZE, &v, now(), meta_wait_done, &w_), NULL);
}

struct meta_statfs usage_of(struct meta *m)
{
	struct meta_reply r;
	assert_int_equal(DO(meta_statfs(m, meta_wait_done, &w_), &r), 0);
	return r.statfs;
}

char *redis(struct meta *m, const char *a, const char *b, const char *c, const char *d)
{
	const char *argv[] = { a, b, c, d };
	int n = 1 + (b != NULL) + (c != NULL) + (d != NULL);
	char *text = NULL;
	assert_int_equal(meta_debug_command(m, n, argv, NULL, &text), 0);
	return text;
}

void assert_no_keys(struct meta *m, const char *pattern)
{
	char *text = redis(m, "KEYS", pattern, NULL, NULL);
	assert_string_equal(text, "(empty)\n");
	free(text);
}

void burst_begin(struct burst *b, unsigned requests)
{
	silt_lock_init(&b->lock);
	silt_cond_init(&b->cond);
	b->left = requests;
	b->failed = 0;
}

void burst_done(void *arg, const struct meta_reply *r)
{
	struct burst *b = arg;
	silt_lock(&b->lock);
	b->failed += r->err != 0;
	if (--b->left == 0)
		silt_cond_signal(&b->cond);
	silt_unlock(&b->lock);
}

unsigned burst_left(struct burst *b)
{
	silt_lock(&b->lock);
	unsigned left = b->left;
	silt_unlock(&b->lock);
	return left;
}

unsigned burst_end(struct burst *b)
{
	silt_lock(&b->lock);
	while (b->left)
		silt_cond_wait(&b->cond, &b->lock);
	unsigned failed = b->failed;
	silt_unlock(&b->lock);
	silt_cond_destroy(&b->cond);
	silt_lock_destroy(&b->lock);
	return failed;
}
