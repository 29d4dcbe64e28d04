/* Folding the logs of windows (meta/fold.c): that logs of files which are written over again and again
 * stay short by themselves, what is committed while one is folded stays, and a damaged one is left
 * alone. That folding changes neither maps nor live counters: test_random_live of unit_data.c. */
#include "meta/engine.h"
#include "test/meta_fixture.h"

#define BLOCK 4096u

struct fixture {
	struct server *s;
	struct meta *m;
	silt_ino ino;
	uint64_t pack;
};

/* A client's first heartbeat comes at once and folds too; then it is an hour to the next. */
static void wait_for_first_beat(struct fixture *f)
{
	unsigned kind = 0;
	while (strcmp(meta_function_name(kind), "fold_list") != 0)
		kind++;
	while (atomic_load(&f->s->metrics.redis[kind]) < meta_volume(f->m)->shards)
		usleep(1000);
	usleep(20000); /* the last of them is answered */
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->s = server_start((unsigned)(uintptr_t)*state);
	f->m = server_open(f->s, NULL, 30000, 0);
	wait_for_first_beat(f);
	f->ino = must_make(f->m, 1, "file", S_IFREG | 0644);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	meta_close(f->m);
	server_stop(f->s);
	free(f);
	return 0;
}

/* Writes `n` blocks over the first `span` of window 1, a commit each. */
static void write_over(struct fixture *f, unsigned n, unsigned span)
{
	struct meta_commit *c = calloc(n, sizeof(*c));
	for (unsigned i = 0; i < n; i++)
		c[i] = (struct meta_commit){ .ino = f->ino,
			                     .mtime = now(),
			                     .extent = { .off = SILT_WINDOW + i % span * BLOCK,
			                                 .len = BLOCK,
			                                 .pack = ++f->pack,
			                                 .pack_off = 48,
			                                 .stored = BLOCK + 40 } };
	assert_int_equal(commit_(f->m, c, n), 0);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(c[i].err, 0);
	free(c);
}

static char *read_log(struct fixture *f, size_t *len)
{
	struct meta_wait w;
	meta_wait_init(&w);
	meta_window(f->m, f->ino, 1, meta_wait_done, &w);
	assert_int_equal(meta_wait(&w), 0);
	*len = w.reply.len;
	char *log = malloc(*len + 1);
	memcpy(log, w.data, *len);
	meta_wait_free(&w);
	return log;
}

static size_t log_len(struct fixture *f)
{
	size_t len;
	free(read_log(f, &len));
	return len;
}

/* The map of window 1: `span` blocks, each from one of the last `span` packs, that and no more. */
static void assert_last(struct fixture *f, unsigned span)
{
	struct extent_map map;
	size_t len;
	char *log = read_log(f, &len);
	extent_map_init(&map);
	assert_int_equal(extent_map_add_log(&map, log, len), 0);
	assert_int_equal(map.n, span);
	for (size_t i = 0; i < map.n; i++) {
		assert_int_equal(map.v[i].off, SILT_WINDOW + i * BLOCK);
		assert_in_range(map.v[i].pack, f->pack - span + 1, f->pack);
	}
	extent_map_free(&map);
	free(log);
}

static void fold_all(struct fixture *f)
{
	for (unsigned s = 0; s < meta_volume(f->m)->shards; s++)
		while (fold_logs(f->m, s))
			;
}

static uint64_t folded(struct fixture *f)
{
	return silt_metric_get(&f->s->metrics, M_LOGS_FOLDED);
}

static void test_written_over(void **state)
{
	struct fixture *f = *state;
	write_over(f, 10, 8);
	fold_all(f);
	assert_int_equal(folded(f), 0); /* short ones are left alone */
	write_over(f, 990, 8);
	assert_true(log_len(f) > 10000);
	fold_all(f);
	assert_int_equal(folded(f), 1);
	assert_true(log_len(f) < 200);
	assert_last(f, 8);
	fold_all(f);
	assert_int_equal(folded(f), 1); /* and off the list */
	for (int i = 0; i < 20; i++) {
		write_over(f, 200, 8);
		fold_all(f);
		assert_true(log_len(f) < 200);
	}
	assert_last(f, 8);
	/* What was written over is given free. */
	char *text;
	const char *argv[] = { "EVAL",
		               "local n = 0 for _, k in ipairs(redis.call('KEYS', '*l*')) do for _, v in "
		               "ipairs(redis.call('HVALS', k)) do n = n + v end end return tostring(n)",
		               "0" };
	assert_int_equal(meta_debug_command(f->m, 3, argv, NULL, &text), 0);
	char want[32];
	snprintf(want, sizeof(want), "\"%u\"\n", 8 * (BLOCK + 40));
	assert_string_equal(text, want);
	free(text);
}

/* A heartbeat does it. */
static void test_by_itself(void **state)
{
	struct fixture *f = *state;
	struct meta *beats = server_open(f->s, NULL, 0, 50);
	write_over(f, 1000, 8);
	/* It may be folded while it is written; what comes after that is short. */
	for (int i = 0; i < 500 && log_len(f) > 2048; i++)
		usleep(20000);
	assert_true(log_len(f) <= 2048);
	assert_true(folded(f) > 0);
	assert_last(f, 8);
	meta_close(beats);
}

/* Where everything shows nothing is written; it is looked at again when it has grown to the double. */
static void test_nothing_to_fold(void **state)
{
	struct fixture *f = *state;
	write_over(f, 300, 300);
	size_t len = log_len(f);
	fold_all(f);
	assert_int_equal(folded(f), 0);
	assert_int_equal(log_len(f), len);
	assert_last(f, 300);
}

/* Two mounts fold what a third one writes. */
struct writer {
	struct fixture *f;
	atomic_bool stop;
	unsigned rounds;
};

static void *write_on(void *arg)
{
	struct writer *w = arg;
	while (!atomic_load(&w->stop) && w->rounds < 400) {
		write_over(w->f, 50, 16);
		w->rounds++;
	}
	return NULL;
}

static void *fold_on(void *arg)
{
	struct writer *w = arg;
	struct meta *m = server_open(w->f->s, NULL, 0, 0);
	while (!atomic_load(&w->stop))
		for (unsigned s = 0; s < meta_volume(m)->shards; s++)
			fold_logs(m, s);
	meta_close(m);
	return NULL;
}

static void test_while_it_is_written(void **state)
{
	struct fixture *f = *state;
	struct writer w = { .f = f };
	pthread_t writer, folder[2];
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&folder[i], NULL, fold_on, &w), 0);
	assert_int_equal(pthread_create(&writer, NULL, write_on, &w), 0);
	pthread_join(writer, NULL);
	atomic_store(&w.stop, true);
	for (int i = 0; i < 2; i++)
		pthread_join(folder[i], NULL);
	assert_true(folded(f) > 0);
	assert_last(f, 16);
	fold_all(f);
	assert_last(f, 16);
}

static void test_damaged_log(void **state)
{
	struct fixture *f = *state;
	write_over(f, 1000, 8);
	size_t len = log_len(f);
	char *text;
	const char *argv[] = { "EVAL",
		               "for _, k in ipairs(redis.call('KEYS', '*x*')) do "
		               "local s = redis.call('HGET', k, '1') "
		               "redis.call('HSET', k, '1', string.sub(s, 1, 500) .. string.rep('\\255', 20) .. string.sub(s, 521)) "
		               "end return 'done'",
		               "0" };
	assert_int_equal(meta_debug_command(f->m, 3, argv, NULL, &text), 0);
	assert_string_equal(text, "\"done\"\n");
	free(text);
	size_t before, after;
	char *a = read_log(f, &before);
	assert_int_equal(before, len);
	fold_all(f);
	char *b = read_log(f, &after);
	assert_int_equal(after, before);
	assert_memory_equal(a, b, after);
	free(a);
	free(b);
	assert_int_equal(folded(f), 0);
}

/* The file goes, or is cut, between growing and folding. */
static void test_gone(void **state)
{
	struct fixture *f = *state;
	write_over(f, 1000, 8);
	assert_int_equal(resize_(f->m, f->ino, 0), 0);
	fold_all(f);
	write_over(f, 300, 8);
	assert_int_equal(unlink_(f->m, 1, "file", false, NULL), 0);
	fold_all(f);
	char *text;
	const char *argv[] = { "KEYS", "*q" };
	assert_int_equal(meta_debug_command(f->m, 2, argv, NULL, &text), 0);
	assert_string_equal(text, "(empty)\n");
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE_1_AND_8_SHARDS(test_written_over, setup, teardown),
		CASE_1_SHARD(test_by_itself, setup, teardown),
		CASE_1_SHARD(test_nothing_to_fold, setup, teardown),
		CASE_1_SHARD(test_while_it_is_written, setup, teardown),
		CASE_1_SHARD(test_damaged_log, setup, teardown),
		CASE_1_SHARD(test_gone, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
