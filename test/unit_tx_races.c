/* Operations across shards of two clients at the same time, in each other's way. */
#include <pthread.h>

#include "test/tx_scene.h"

#define ROUNDS 30

struct call {
	struct meta *m;
	silt_ino from, to;
	const char *name, *name2;
	unsigned flags;
	int rc;
};

struct fixture {
	struct server *s;
	struct meta *m[2];
	struct scene at; /* three directories */
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->s = server_start(8);
	for (int k = 0; k < 2; k++)
		f->m[k] = server_open(f->s, NULL, 30000, 0);
	scene_directories(f->m[0], &f->at);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	for (int k = 0; k < 2; k++)
		meta_close(f->m[k]);
	server_stop(f->s);
	free(f);
	return 0;
}

static void *call_main(void *arg)
{
	struct call *c = arg;
	c->rc = rename_(c->m, c->from, c->name, c->to, c->name2, c->flags, NULL);
	return NULL;
}

static void both(struct fixture *f, struct call c[2])
{
	pthread_t t[2];
	for (int k = 0; k < 2; k++) {
		c[k].m = f->m[k];
		assert_int_equal(pthread_create(&t[k], NULL, call_main, &c[k]), 0);
	}
	for (int k = 0; k < 2; k++)
		pthread_join(t[k], NULL);
}

static void end_round(struct fixture *f)
{
	check_volume(f->m[0]);
	scene_clear(f->m[0], &f->at);
}

/* Two directories, each moved into the other: the second would make a loop. `flags` exchange: with
 * a directory there. */
static void into_each_other(struct fixture *f, unsigned flags)
{
	struct meta *m = f->m[0];
	for (int k = 0; k < ROUNDS; k++) {
		silt_ino a = must_make(m, f->at.d[0], "a", S_IFDIR | 0755);
		silt_ino b = must_make(m, f->at.d[1], "b", S_IFDIR | 0755);
		silt_ino in_a = must_make(m, a, "in", S_IFDIR | 0755);
		silt_ino in_b = must_make(m, b, "in", S_IFDIR | 0755);
		const char *to = flags ? "to" : "new";
		if (flags) {
			must_make(m, in_a, to, S_IFDIR | 0755);
			must_make(m, in_b, to, S_IFDIR | 0755);
		}
		struct call c[2] = {
			{ .from = f->at.d[0],
			  .to = in_b,
			  .name = "a",
			  .name2 = to,
			  .flags = flags },
			{ .from = f->at.d[1], .to = in_a, .name = "b", .name2 = to, .flags = flags }
		};
		both(f, c);
		assert_true((c[0].rc == 0) != (c[1].rc == 0));
		assert_int_equal(c[0].rc + c[1].rc, -EINVAL);
		assert_true(scene_at(m, c[0].rc ? in_a : in_b, to) == (c[0].rc ? b : a));
		end_round(f);
	}
}

static void test_no_loop(void **state)
{
	into_each_other(*state, 0);
}

static void test_no_loop_by_exchange(void **state)
{
	into_each_other(*state, META_RENAME_EXCHANGE);
}

/* Two names, each renamed to the other: the one after the other, whatever the order. */
static void test_over_each_other(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m[0];
	uint64_t inodes = usage_of(m).inodes;
	for (int k = 0; k < ROUNDS; k++) {
		uint32_t type = k % 2 ? S_IFDIR : S_IFREG;
		silt_ino a = must_make(m, f->at.d[0], "a", type | 0755);
		silt_ino b = must_make(m, f->at.d[1], "b", type | 0755);
		struct call c[2] = {
			{ .from = f->at.d[0], .to = f->at.d[1], .name = "a", .name2 = "b" },
			{ .from = f->at.d[1], .to = f->at.d[0], .name = "b", .name2 = "a" }
		};
		both(f, c);
		assert_int_equal(c[0].rc, 0);
		assert_int_equal(c[1].rc, 0);
		silt_ino at_a = scene_at(m, f->at.d[0], "a"), at_b = scene_at(m, f->at.d[1], "b");
		assert_true((at_a == a && !at_b) || (at_b == b && !at_a));
		assert_int_equal(usage_of(m).inodes, inodes + 1);
		end_round(f);
	}
}

/* One file that two want, one name that two want. */
static void test_one_wins(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m[0];
	for (int k = 0; k < ROUNDS; k++) {
		silt_ino a = must_make(m, f->at.d[0], "a", S_IFREG | 0644);
		struct call c[2] = {
			{ .from = f->at.d[0], .to = f->at.d[1], .name = "a", .name2 = "b" },
			{ .from = f->at.d[0], .to = f->at.d[2], .name = "a", .name2 = "b" }
		};
		both(f, c);
		assert_true((c[0].rc == 0) != (c[1].rc == 0));
		assert_int_equal(c[0].rc + c[1].rc, -ENOENT);
		assert_true(scene_at(m, f->at.d[c[0].rc ? 2 : 1], "b") == a);
		end_round(f);
		must_make(m, f->at.d[0], "a", S_IFREG | 0644);
		must_make(m, f->at.d[1], "b", S_IFREG | 0644);
		struct call n[2] = { { .from = f->at.d[0],
			               .to = f->at.d[2],
			               .name = "a",
			               .name2 = "c",
			               .flags = META_RENAME_NOREPLACE },
			             { .from = f->at.d[1],
			               .to = f->at.d[2],
			               .name = "b",
			               .name2 = "c",
			               .flags = META_RENAME_NOREPLACE } };
		both(f, n);
		assert_true((n[0].rc == 0) != (n[1].rc == 0));
		assert_int_equal(n[0].rc + n[1].rc, -EEXIST);
		end_round(f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_no_loop, setup, teardown),
		cmocka_unit_test_setup_teardown(test_no_loop_by_exchange, setup, teardown),
		cmocka_unit_test_setup_teardown(test_over_each_other, setup, teardown),
		cmocka_unit_test_setup_teardown(test_one_wins, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
