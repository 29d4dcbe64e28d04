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

static void opened_knows_the_version(void **state)
{
	struct opened_table t;
	assert_int_equal(opened_table_init(&t), 0);
	assert_false(opened_note(&t, 5, 1));
	assert_true(opened_note(&t, 5, 1));
	assert_false(opened_note(&t, 5, 2)); /* changed elsewhere */
	opened_advance(&t, 5, 2, 3);         /* changed here */
	assert_true(opened_note(&t, 5, 3));
	opened_advance(&t, 5, 2, 9); /* on top of something else */
	assert_false(opened_note(&t, 5, 9));
	opened_forget(&t, 5); /* pages with bytes that were lost */
	assert_false(opened_note(&t, 5, 9));
	/* Bounded: many others push it out, and nothing is ever claimed that was not noted. */
	for (silt_ino ino = 1000; ino < 1000 + 20 * (silt_ino)OPENED_SETS; ino++)
		assert_false(opened_note(&t, ino, 1));
	assert_false(opened_note(&t, 5, 9));
	opened_table_free(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fresh_is_for_one_open),
		cmocka_unit_test(opened_knows_the_version),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
