/* cache/upload.c between a fake object store (a sleep, and a check of every pack) and a fake Redis
 * (a thread that answers in order): what arrives, what fails and how, and how many PUTs the group
 * commit makes when 16 writers create small files in a loop. The policy alone is tested in
 * unit_batch.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cache/pack.h"
#include "cache/upload.h"
#include "meta/lock.h"

#define VOLUME 42u

static void sleep_us(unsigned us)
{
	struct timespec ts = { .tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000L };
	nanosleep(&ts, NULL);
}

/* --- The fakes ------------------------------------------------------------------------------- */

struct store {
	struct silt_lock lock;
	unsigned put_us;
	unsigned puts, now, most_at_once;
	unsigned big_packs;  /* of more than 1 MiB */
	uint64_t used_below; /* ids below exist already */
	int fail;
	bool held; /* PUTs wait until it goes */
};

/* One request to the fake Redis. */
struct call {
	struct call *next;
	meta_done done;
	void *arg;
	unsigned ids; /* to allocate; 0: a commit */
	struct meta_commit *items;
	size_t n;
};

struct meta {
	struct silt_lock lock;
	struct silt_cond cond;
	pthread_t thread;
	struct call *head, *last;
	bool stop;
	unsigned reply_us;
	uint64_t next_id;
	unsigned fail_allocs;
	unsigned commits;
	size_t committed, most_items;
	silt_ino gone; /* an inode whose commit is -ENOENT */
	uint64_t buried; /* packs up to this one can't be named any more */
};

static int fake_put(struct store *s, const char *key, const struct iovec *iov, int niov,
                    unsigned flags, struct silt_err *err)
{
	unsigned long long id = strtoull(strrchr(key, '/') + 1, NULL, 16);
	size_t total = 0;
	for (int i = 0; i < niov; i++)
		total += iov[i].iov_len;
	uint8_t *data = malloc(total), *p = data;
	for (int i = 0; i < niov; i++)
		p = (uint8_t *)memcpy(p, iov[i].iov_base, iov[i].iov_len) + iov[i].iov_len;
	char why[160];
	assert_int_equal(pack_verify(data, total, id, VOLUME, why), 0);
	free(data);
	assert_int_equal(flags, STORE_EXCL);
	silt_lock(&s->lock);
	s->puts++;
	s->big_packs += total > 1u << 20;
	if (++s->now > s->most_at_once)
		s->most_at_once = s->now;
	int rc = s->fail ? s->fail : id < s->used_below ? -EEXIST : 0;
	while (s->held) {
		silt_unlock(&s->lock);
		sleep_us(1000);
		silt_lock(&s->lock);
	}
	silt_unlock(&s->lock);
	if (s->put_us)
		sleep_us(s->put_us);
	silt_lock(&s->lock);
	s->now--;
	silt_unlock(&s->lock);
	return rc ? silt_fail(err, rc, "the fake store said no") : 0;
}

static void fake_call(struct meta *m, struct call call)
{
	struct call *c = malloc(sizeof(*c));
	*c = call;
	silt_lock(&m->lock);
	if (m->last)
		m->last->next = c;
	else
		m->head = c;
	m->last = c;
	silt_cond_signal(&m->cond);
	silt_unlock(&m->lock);
}

static void fake_alloc(struct meta *m, unsigned n, meta_done done, void *arg)
{
	fake_call(m, (struct call){ .done = done, .arg = arg, .ids = n });
}

static void fake_commit(struct meta *m, struct meta_commit *items, size_t n, meta_done done,
                        void *arg)
{
	fake_call(m, (struct call){ .done = done, .arg = arg, .items = items, .n = n });
}

static const struct uploader_ops fake_ops = { fake_put, fake_alloc, fake_commit };

static void answer(struct meta *m, struct call *c)
{
	struct meta_reply r = { .err = 0 };
	silt_lock(&m->lock);
	if (c->ids && m->fail_allocs) {
		m->fail_allocs--;
		r.err = -EIO;
	} else if (c->ids) {
		r.first = m->next_id;
		m->next_id += c->ids;
	}
	for (size_t i = 0; i < c->n; i++) {
		struct meta_commit *item = &c->items[i];
		assert_true(item->extent.pack && item->extent.len);
		item->err = item->ino == m->gone ? -ENOENT : item->extent.pack <= m->buried ? -ESTALE : 0;
		item->version = item->ino + 1;
	}
	m->commits += !c->ids;
	m->committed += c->n;
	if (c->n > m->most_items)
		m->most_items = c->n;
	silt_unlock(&m->lock);
	c->done(c->arg, &r);
}

static void *fake_redis(void *arg)
{
	struct meta *m = arg;
	silt_lock(&m->lock);
	while (!m->stop || m->head) {
		struct call *c = m->head;
		if (!c) {
			silt_cond_wait(&m->cond, &m->lock);
			continue;
		}
		m->head = c->next;
		if (!m->head)
			m->last = NULL;
		silt_unlock(&m->lock);
		if (m->reply_us)
			sleep_us(m->reply_us);
		answer(m, c);
		free(c);
		silt_lock(&m->lock);
	}
	silt_unlock(&m->lock);
	return NULL;
}

/* --- A stage: fakes, uploader, and pieces to wait for ---------------------------------------- */

struct stage {
	struct store store;
	struct meta meta;
	struct silt_metrics metrics;
	struct uploader *u;
	unsigned on_packs;
	struct silt_log *log;
	char log_path[32];
};

static void count_pack(void *arg, uint64_t pack, const struct iovec *iov, int niov, size_t total)
{
	struct stage *s = arg;
	assert_true(pack && niov > 0 && total > PACK_HEADER + PACK_TRAILER);
	__atomic_add_fetch(&s->on_packs, 1, __ATOMIC_RELAXED);
}

static struct stage *stage_new(unsigned put_us, unsigned threads, unsigned window_us)
{
	struct stage *s = calloc(1, sizeof(*s));
	silt_lock_init(&s->store.lock);
	s->store.put_us = put_us;
	silt_lock_init(&s->meta.lock);
	silt_cond_init(&s->meta.cond);
	s->meta.next_id = 1;
	assert_int_equal(pthread_create(&s->meta.thread, NULL, fake_redis, &s->meta), 0);
	strcpy(s->log_path, "/tmp/siltfs-unit-XXXXXX");
	close(mkstemp(s->log_path));
	assert_int_equal(silt_log_open(s->log_path, SILT_LOG_WARN, NULL, &s->log), 0);
	struct uploader_config cfg = { .ops = &fake_ops,
		                       .log = s->log,
		                       .store = &s->store,
		                       .meta = &s->meta,
		                       .metrics = &s->metrics,
		                       .volume = VOLUME,
		                       .compress_level = 3,
		                       .upload_threads = threads,
		                       .group_window_us = window_us,
		                       .on_pack = count_pack,
		                       .arg = s };
	assert_int_equal(uploader_open(&cfg, &s->u), 0);
	return s;
}

static void stage_free(struct stage *s)
{
	uploader_close(s->u);
	silt_lock(&s->meta.lock);
	s->meta.stop = true;
	silt_cond_signal(&s->meta.cond);
	silt_unlock(&s->meta.lock);
	pthread_join(s->meta.thread, NULL);
	silt_cond_destroy(&s->meta.cond);
	silt_lock_destroy(&s->meta.lock);
	silt_lock_destroy(&s->store.lock);
	silt_log_close(s->log);
	unlink(s->log_path);
	free(s);
}

static unsigned log_lines(const struct stage *s)
{
	FILE *f = fopen(s->log_path, "r");
	unsigned lines = 0;
	for (int c; (c = getc(f)) != EOF;)
		lines += c == '\n';
	fclose(f);
	return lines;
}

/* A piece and the news of its end. */
struct piece {
	struct cache_write w;
	struct silt_lock lock;
	struct silt_cond cond;
	bool ended;
	int err;
};

static void on_done(void *arg, int err)
{
	struct piece *p = arg;
	silt_lock(&p->lock);
	p->ended = true;
	p->err = err;
	silt_cond_signal(&p->cond);
	silt_unlock(&p->lock);
}

static void piece_start(struct stage *s, struct piece *p, silt_ino ino, uint64_t off,
                        const void *data, size_t len)
{
	silt_lock_init(&p->lock);
	silt_cond_init(&p->cond);
	p->ended = false;
	p->w = (struct cache_write){
		.ino = ino, .off = off, .data = data, .len = len, .done = on_done, .arg = p
	};
	uploader_write(s->u, &p->w);
}

static int piece_wait(struct piece *p)
{
	silt_lock(&p->lock);
	while (!p->ended)
		silt_cond_wait(&p->cond, &p->lock);
	silt_unlock(&p->lock);
	silt_cond_destroy(&p->cond);
	silt_lock_destroy(&p->lock);
	return p->err;
}

/* --- Simulation of writers ------------------------------------------------------------------- */

struct writer {
	struct stage *s;
	pthread_t thread;
	unsigned id, files;
	uint64_t slowest_ns, total_ns;
};

static void *write_files(void *arg)
{
	struct writer *me = arg;
	uint8_t data[4096];
	memset(data, (int)me->id, sizeof(data));
	for (unsigned i = 0; i < me->files; i++) {
		sleep_us(200); /* create: a round trip to Redis */
		silt_ino ino = (silt_ino)me->id << 32 | (i + 1);
		struct piece p;
		uploader_writers_add(me->s->u, 1);
		uint64_t start = silt_now_ns();
		piece_start(me->s, &p, ino, 0, data, sizeof(data));
		assert_int_equal(piece_wait(&p), 0);
		uint64_t took = silt_now_ns() - start;
		uploader_writers_add(me->s->u, -1);
		assert_true(p.w.version == ino + 1 && p.w.extent.pack && p.w.extent.len == 4096);
		me->total_ns += took;
		me->slowest_ns = took > me->slowest_ns ? took : me->slowest_ns;
	}
	return NULL;
}

/* `n` writers of `files` files each; returns PUTs per 1,000 files. */
static double simulate(unsigned n, unsigned files, unsigned put_us, double *close_ms)
{
	struct stage *s = stage_new(put_us, 8, 0);
	s->meta.reply_us = 100;
	struct writer w[64] = { { NULL } };
	uint64_t start = silt_now_ns(), total = 0;
	for (unsigned i = 0; i < n; i++) {
		w[i] = (struct writer){ .s = s, .id = i + 1, .files = files };
		assert_int_equal(pthread_create(&w[i].thread, NULL, write_files, &w[i]), 0);
	}
	for (unsigned i = 0; i < n; i++) {
		pthread_join(w[i].thread, NULL);
		total += w[i].total_ns;
	}
	double seconds = (double)(silt_now_ns() - start) / 1e9;
	double per_1000 = 1000.0 * s->store.puts / (n * files);
	*close_ms = (double)total / (n * files) / 1e6;
	assert_int_equal(s->meta.committed, n * files);
	assert_int_equal(s->on_packs, s->store.puts);
	assert_int_equal(silt_metric_get(&s->metrics, M_PACKS_WRITTEN), s->store.puts);
	assert_int_equal(silt_metric_get(&s->metrics, M_FRAMES_WRITTEN), n * files);
	print_message(
	        "%2u writers, PUT %4.1f ms: %6.1f PUTs per 1,000 files, close %5.2f ms, %6.0f "
	        "files/s\n",
	        n, put_us / 1000.0, per_1000, *close_ms, n * files / seconds);
	stage_free(s);
	return per_1000;
}

static void test_sixteen_writers_share_puts(void **state)
{
	double ms;
	assert_true(simulate(16, 125, 500, &ms) <= 100);
	assert_true(simulate(16, 125, 3000, &ms) <= 100);
	assert_true(simulate(16, 40, 30000, &ms) <= 100);
}

static void test_few_writers(void **state)
{
	double ms;
	assert_true(simulate(2, 100, 3000, &ms) <= 700);
	assert_true(simulate(4, 100, 3000, &ms) <= 400);
}

static void test_one_writer_never_waits(void **state)
{
	/* A window that would be seen at once. */
	struct stage *s = stage_new(500, 8, 400000);
	struct writer w = { .s = s, .id = 1, .files = 100 };
	write_files(&w);
	assert_int_equal(s->store.puts, 100);
	assert_true(w.total_ns / w.files < 50000000);
	print_message("1 writer, PUT 0.5 ms: close %.2f ms on average\n",
	              (double)w.total_ns / w.files / 1e6);
	stage_free(s);
}

/* --- What arrives, what fails ---------------------------------------------------------------- */

static void test_large_files_upload_in_parallel(void **state)
{
	enum { N = 6, LEN = 3 << 20 };
	struct stage *s = stage_new(0, 4, 0);
	uint8_t *data = malloc(LEN);
	for (size_t i = 0; i < LEN; i++)
		data[i] = (uint8_t)(random() >> 7);
	struct piece p[N], small;
	s->store.held = true;
	for (unsigned i = 0; i < N; i++)
		piece_start(s, &p[i], 10 + i, 0, data, LEN);
	piece_start(s, &small, 99, 0, data, 100);
	unsigned now = 0;
	for (unsigned i = 0; i < 60000 && now < 4; i++) {
		sleep_us(1000);
		silt_lock(&s->store.lock);
		now = s->store.now;
		silt_unlock(&s->store.lock);
	}
	assert_int_equal(now, 4);
	silt_lock(&s->store.lock);
	s->store.held = false;
	silt_unlock(&s->store.lock);
	assert_int_equal(piece_wait(&small), 0);
	/* One thread was kept for it: it was among the first four, not behind the six. */
	assert_true(small.w.extent.pack <= 4);
	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(piece_wait(&p[i]), 0);
		for (unsigned j = 0; j < i; j++)
			assert_true(p[i].w.extent.pack != p[j].w.extent.pack);
		assert_int_equal(p[i].w.extent.flags, EXTENT_RUN | EXTENT_RAW_RUN);
	}
	assert_int_equal(s->store.puts, N + 1);
	assert_int_equal(s->store.most_at_once, 4);
	stage_free(s);
	free(data);
}

/* The pack was deleted before its commit came through: the bytes are stored once more. */
static void test_commit_that_came_too_late(void **state)
{
	struct stage *s = stage_new(0, 2, 0);
	struct piece p[3];
	s->meta.buried = 2;
	for (unsigned i = 0; i < 3; i++)
		piece_start(s, &p[i], 10 + i, 0, "some bytes", 10);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(piece_wait(&p[i]), 0);
		assert_true(p[i].w.extent.pack > 2);
		assert_int_equal(p[i].w.version, 10 + i + 1);
	}
	struct piece a;
	silt_lock_init(&a.lock);
	silt_cond_init(&a.cond);
	a.ended = false;
	a.w = (struct cache_write){ .ino = 20, .off = 5, .data = "a record", .len = 8, .append = true,
		                    .done = on_done, .arg = &a,
		                    .extent = { .pack = 1, .pack_off = 48, .stored = 48, .len = 8 } };
	uploader_write(s->u, &a.w);
	assert_int_equal(piece_wait(&a), 0);
	assert_true(a.w.extent.pack > 2);
	stage_free(s);
}

static void test_many_small_pieces_fill_packs_and_commits(void **state)
{
	enum { N = 9000, LEN = 4000 };
	struct stage *s = stage_new(20000, 4, 0);
	uint8_t *data = malloc(LEN);
	for (size_t i = 0; i < LEN; i++)
		data[i] = (uint8_t)(random() >> 7);
	struct piece *p = calloc(N, sizeof(*p));
	s->meta.gone = 77;
	for (unsigned i = 0; i < N; i++)
		piece_start(s, &p[i], i + 1, 0, data, LEN);
	uploader_drain(s->u);
	for (unsigned i = 0; i < N; i++) {
		assert_true(p[i].ended);
		assert_int_equal(piece_wait(&p[i]), i + 1 == 77 ? -ENOENT : 0);
	}
	assert_int_equal(s->meta.committed, N);
	assert_true(s->meta.most_items <= 256);
	assert_true(s->store.puts <= 5 && s->store.big_packs >= 2);
	stage_free(s);
	free(p);
	free(data);
}

static void test_failed_put_fails_its_pieces(void **state)
{
	struct stage *s = stage_new(1000, 4, 0);
	s->store.fail = -EACCES;
	struct piece p[20];
	for (unsigned i = 0; i < 20; i++)
		piece_start(s, &p[i], i + 1, 0, "x", 1);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(piece_wait(&p[i]), -EACCES);
	assert_int_equal(s->meta.committed, 0);
	assert_int_equal(s->on_packs, 0);
	assert_int_equal(log_lines(s), s->store.puts); /* a line a pack, not a file */
	silt_lock(&s->store.lock);
	s->store.fail = 0;
	silt_unlock(&s->store.lock);
	piece_start(s, &p[0], 1, 0, "x", 1);
	assert_int_equal(piece_wait(&p[0]), 0);
	stage_free(s);
}

static void test_used_pack_ids_are_passed_over(void **state)
{
	struct stage *s = stage_new(0, 4, 0);
	s->store.used_below = 100; /* 8 + 16 + 32 + 64 ids until there is a free one */
	struct piece p;
	piece_start(s, &p, 1, 0, "x", 1);
	assert_int_equal(piece_wait(&p), 0);
	assert_true(p.w.extent.pack >= 100);
	assert_true(s->store.puts <= 6);
	stage_free(s);
}

static void test_no_pack_id(void **state)
{
	struct stage *s = stage_new(0, 4, 0);
	s->meta.fail_allocs = 1;
	struct piece p;
	piece_start(s, &p, 1, 0, "x", 1);
	assert_int_equal(piece_wait(&p), -EIO);
	piece_start(s, &p, 1, 0, "x", 1);
	assert_int_equal(piece_wait(&p), 0);
	stage_free(s);
}

/* Ids are handed out once each, over several block sizes. */
static void test_pack_ids_differ(void **state)
{
	struct stage *s = stage_new(0, 8, 0);
	uint64_t last = 0;
	for (unsigned i = 0; i < 300; i++) {
		struct piece p;
		piece_start(s, &p, 1, 0, "x", 1);
		assert_int_equal(piece_wait(&p), 0);
		assert_true(p.w.extent.pack > last);
		last = p.w.extent.pack;
	}
	assert_int_equal(last, 300);
	stage_free(s);
}

static void test_drain_ends_while_others_write(void **state)
{
	struct stage *s = stage_new(1000, 4, 0);
	struct writer w[4] = { { NULL } };
	for (unsigned i = 0; i < 4; i++) {
		w[i] = (struct writer){ .s = s, .id = i + 1, .files = 60 };
		pthread_create(&w[i].thread, NULL, write_files, &w[i]);
	}
	for (unsigned i = 0; i < 10; i++) {
		struct piece p;
		piece_start(s, &p, 1000 + i, 0, "x", 1);
		uploader_drain(s->u);
		silt_lock(&p.lock);
		assert_true(p.ended);
		silt_unlock(&p.lock);
		piece_wait(&p);
	}
	for (unsigned i = 0; i < 4; i++)
		pthread_join(w[i].thread, NULL);
	stage_free(s);
}

static void test_close_waits_for_all(void **state)
{
	struct stage *s = stage_new(5000, 1, 0);
	struct piece p[50];
	for (unsigned i = 0; i < 50; i++)
		piece_start(s, &p[i], i + 1, 0, "x", 1);
	stage_free(s);
	for (unsigned i = 0; i < 50; i++) {
		assert_true(p[i].ended);
		assert_int_equal(piece_wait(&p[i]), 0);
	}
	stage_free(stage_new(0, 3, 0));
	uploader_close(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_writer_never_waits),
		cmocka_unit_test(test_sixteen_writers_share_puts),
		cmocka_unit_test(test_few_writers),
		cmocka_unit_test(test_large_files_upload_in_parallel),
		cmocka_unit_test(test_commit_that_came_too_late),
		cmocka_unit_test(test_many_small_pieces_fill_packs_and_commits),
		cmocka_unit_test(test_failed_put_fails_its_pieces),
		cmocka_unit_test(test_used_pack_ids_are_passed_over),
		cmocka_unit_test(test_no_pack_id),
		cmocka_unit_test(test_pack_ids_differ),
		cmocka_unit_test(test_drain_ends_while_others_write),
		cmocka_unit_test(test_close_waits_for_all),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
