/* Unit tests of fs/recent.h: what LOOKUP leaves for OPEN, and which version the page cache holds.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <cmocka.h>

#include "fs/recent.h"

static void fresh_is_for_one_open(void **state)
{
	struct fresh_table t;
	struct silt_inode in = { .attr = { .ino = 42, .size = 7 } }, out;
	assert_int_equal(fresh_table_init(&t), 0);
	fresh_put(&t, 100, &in);
	assert_false(fresh_take(&t, 101, 42, &out)); /* another thread */
	assert_false(fresh_take(&t, 100, 43, &out));
	assert_true(fresh_take(&t, 100, 42, &out));
	assert_int_equal(out.attr.size, 7);
	assert_false(fresh_take(&t, 100, 42, &out)); /* once */
	fresh_put(&t, 100, &in);
	fresh_drop(&t, 42);
	assert_false(fresh_take(&t, 100, 42, &out));
	fresh_put(&t, 100, &in);
	struct timespec late = { .tv_nsec = FRESH_NS + 1000000 };
	nanosleep(&late, NULL);
	assert_false(fresh_take(&t, 100, 42, &out)); /* too late */
	fresh_table_free(&t);
}

/* An open that ends at once. Does it drop the kernel's pages? */
static bool drops(struct opened_table *t, silt_ino ino, uint64_t version)
{
	uint32_t token = opened_note(t, ino, version);
	if (token)
		opened_sure(t, ino, token);
	return token != 0;
}

/* The pages are of a version when an open of it has ended, not when it was answered. */
static void pages_are_dropped_by_the_opener(void **state)
{
	struct opened_table t;
	assert_int_equal(opened_table_init(&t), 0);
	uint32_t a = opened_note(&t, 5, 1);
	assert_int_not_equal(a, 0);
	assert_false(opened_is(&t, 5, 1));
	assert_int_not_equal(opened_note(&t, 5, 1), 0); /* another opener, before the first went on */
	opened_sure(&t, 5, a);
	assert_true(opened_is(&t, 5, 1));
	assert_int_equal(opened_note(&t, 5, 1), 0);
	/* The one of before says nothing of what came then. */
	uint32_t b = opened_note(&t, 5, 2), c = opened_note(&t, 5, 3);
	assert_int_not_equal(b, c);
	opened_sure(&t, 5, b);
	assert_false(opened_is(&t, 5, 3));
	/* A write of this mount's on pages that are still to be dropped. */
	opened_advance(&t, 5, 3, 4);
	assert_false(opened_is(&t, 5, 4));
	opened_sure(&t, 5, c);
	assert_true(opened_is(&t, 5, 4));
	/* A lock was granted and all pages dropped for it. */
	c = opened_note(&t, 5, 5);
	opened_dropped(&t, 5, 5);
	assert_true(opened_is(&t, 5, 5));
	opened_sure(&t, 5, c);
	assert_true(opened_is(&t, 5, 5));
	opened_table_free(&t);
}

static void opened_knows_the_version(void **state)
{
	struct opened_table t;
	assert_int_equal(opened_table_init(&t), 0);
	assert_true(drops(&t, 5, 1));
	assert_false(drops(&t, 5, 1));
	assert_true(drops(&t, 5, 2));        /* changed elsewhere */
	opened_advance(&t, 5, 2, 3);         /* changed here */
	assert_false(drops(&t, 5, 3));
	opened_advance(&t, 5, 2, 9); /* on top of something else */
	assert_true(drops(&t, 5, 9));
	opened_forget(&t, 5); /* pages with bytes that were lost */
	assert_true(drops(&t, 5, 9));
	/* Bounded: many others push it out, and nothing is ever claimed that was not noted. */
	for (silt_ino ino = 1000; ino < 1000 + 20 * (silt_ino)OPENED_SETS; ino++)
		assert_true(drops(&t, ino, 1));
	assert_true(drops(&t, 5, 9));
	opened_table_free(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fresh_is_for_one_open),
		cmocka_unit_test(opened_knows_the_version),
		cmocka_unit_test(pages_are_dropped_by_the_opener),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
