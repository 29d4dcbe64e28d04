/* Files with many windows, and with few that lie far apart: listing them, and cutting them off.
 * What one call does on the server is bounded, and how many there are does not depend on the size.
 */
#include "test/meta_fixture.h"

#define MANY 5000u /* more than the server lists in one call */
#define PETA ((uint64_t)1 << 50)

struct fixture {
	struct server *s;
	struct meta *m;
	silt_ino ino;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->s = server_start((unsigned)(uintptr_t)*state);
	f->m = server_open(f->s, NULL, 30000, 0);
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

static uint64_t calls(struct fixture *f, const char *name)
{
	for (unsigned i = 0; meta_function_name(i); i++)
		if (!strcmp(meta_function_name(i), name))
			return atomic_load(&f->s->metrics.redis[i]);
	fail_msg("no function %s", name);
	return 0;
}

/* Gives the file 100 bytes in each of `n` windows, `step` apart. */
static void fill(struct fixture *f, unsigned n, uint64_t step)
{
	struct meta_commit *c = calloc(n, sizeof(*c));
	for (unsigned i = 0; i < n; i++)
		c[i] = (struct meta_commit){ .ino = f->ino,
			                     .mtime = now(),
			                     .extent = { .off = i * step * SILT_WINDOW + 50,
			                                 .len = 100,
			                                 .pack = 1 + i % 50,
			                                 .pack_off = 48 + i * 128,
			                                 .stored = 100 } };
	assert_int_equal(commit_(f->m, c, n), 0);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(c[i].err, 0);
	free(c);
}

/* Lists the windows; they must be the multiples of `step`, `n` of them, the extents in them as
 * fill() made them. */
static void assert_windows(struct fixture *f, unsigned n, uint64_t step)
{
	bool *seen = calloc(n ? n : 1, sizeof(*seen));
	unsigned found = 0;
	uint64_t from = 0;
	do {
		struct meta_wait w;
		struct extent_log log;
		meta_wait_init(&w);
		meta_windows(f->m, f->ino, from, meta_wait_done, &w);
		assert_int_equal(meta_wait(&w), 0);
		const uint8_t *p = w.reply.data;
		size_t left = w.reply.len;
		while (extent_logs_next(&p, &left, &log)) {
			struct extent_map map;
			assert_true(log.window % step == 0 && log.window / step < n);
			extent_map_init(&map);
			assert_int_equal(extent_map_add_log(&map, log.log, log.len), 0);
			assert_true(map.n > 0 && map.v[0].off == log.window * SILT_WINDOW + 50);
			extent_map_free(&map);
			found += !seen[log.window / step];
			seen[log.window / step] = true;
		}
		assert_int_equal(left, 0);
		from = w.reply.next;
		meta_wait_free(&w);
	} while (from);
	assert_int_equal(found, n);
	free(seen);
}

/* Cuts in `least` to `most` calls. */
static void assert_cut(struct fixture *f, uint64_t size, unsigned least, unsigned most)
{
	uint64_t before = calls(f, "setattr");
	struct silt_attr v = { .size = size };
	struct meta_reply r;
	int rc = DO(meta_setattr(f->m, f->ino, META_SET_SIZE, &v, now(), meta_wait_done, &w_), &r);
	assert_int_equal(rc, 0);
	assert_int_equal(r.inode.attr.size, size);
	assert_in_range(calls(f, "setattr") - before, least, most);
	assert_int_equal(attr_of(f->m, f->ino).size, size);
	assert_int_equal(usage_of(f->m).bytes, size);
}

/* A few windows in a petabyte: one call lists them, one cuts them. */
static void test_sparse(void **state)
{
	struct fixture *f = *state;
	uint64_t step = PETA / SILT_WINDOW / 4;
	fill(f, 4, step);
	assert_cut(f, PETA, 1, 1);
	uint64_t before = calls(f, "windows");
	assert_windows(f, 4, step);
	assert_int_equal(calls(f, "windows"), before + 1);
	assert_cut(f, 2 * step * SILT_WINDOW + 100, 1, 1); /* through an extent */
	assert_windows(f, 3, step);
	assert_cut(f, 2 * step * SILT_WINDOW, 1, 1);
	assert_windows(f, 2, step);
	assert_cut(f, PETA, 1, 1);
	assert_windows(f, 2, step);
	assert_cut(f, 51, 1, 1);
	assert_windows(f, 1, step);
}

/* Many windows next to each other: a partial truncation takes several calls, and takes all. */
static void test_dense(void **state)
{
	struct fixture *f = *state;
	fill(f, MANY, 1);
	uint64_t before = calls(f, "windows");
	assert_windows(f, MANY, 1);
	assert_true(calls(f, "windows") - before <= MANY / 20);
	assert_cut(f, (MANY - 1) * SILT_WINDOW + 100, 1, 1);
	assert_windows(f, MANY, 1);
	assert_cut(f, 300 * SILT_WINDOW, 9, 11);
	assert_windows(f, 300, 1);
	assert_cut(f, MANY * SILT_WINDOW, 1, 1); /* what was cut off does not come back */
	assert_windows(f, 300, 1);
	assert_cut(f, 51, 1, 1);
	assert_windows(f, 1, 1);
	assert_cut(f, 0, 1, 1);
	assert_windows(f, 0, 1);
}

/* Many windows far apart: so many places are looked at in a call; fewer windows are listed. */
static void test_sparse_and_many(void **state)
{
	struct fixture *f = *state;
	fill(f, MANY, 7);
	assert_cut(f, 2000 * 7 * SILT_WINDOW, 9, 12);
	assert_windows(f, 2000, 7);
	assert_cut(f, 51, 3, 5);
	assert_windows(f, 1, 7);
}

/* A field that is no window: listing says so, a truncation leaves it alone. */
static void test_damaged_window(void **state)
{
	struct fixture *f = *state;
	char key[40];
	fill(f, 3, 1);
	snprintf(key, sizeof(key), "{0}x%llx", (unsigned long long)silt_ino_seq(f->ino));
	free(redis(f->m, "HSET", key, "nonsense", "x"));
	assert_int_equal(DO(meta_windows(f->m, f->ino, 0, meta_wait_done, &w_), NULL), -EIO);
	assert_cut(f, SILT_WINDOW, 1, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE_1_AND_8_SHARDS(test_sparse, setup, teardown),
		CASE_1_SHARD(test_dense, setup, teardown),
		CASE_1_SHARD(test_sparse_and_many, setup, teardown),
		CASE_1_SHARD(test_damaged_window, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
