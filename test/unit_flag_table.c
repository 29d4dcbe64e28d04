/* Unit tests of fs/flag_table.h: what records told of inodes' attributes, and for how long it counts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <cmocka.h>

#include "fs/flag_table.h"

static void note(struct flag_table *t, silt_ino ino, unsigned flags)
{
	struct silt_attr a = { .ino = ino, .flags = (uint8_t)flags };
	flags_note(t, &a);
}

static void the_last_note_counts(void **state)
{
	struct flag_table t;
	unsigned f = 77;
	assert_int_equal(flag_table_init(&t), 0);
	assert_false(flags_get(&t, 5, 60, &f));
	note(&t, 5, SILT_FLAG_ACL);
	assert_true(flags_get(&t, 5, 60, &f));
	assert_int_equal(f, SILT_FLAG_ACL);
	note(&t, 5, 0);
	assert_true(flags_get(&t, 5, 60, &f));
	assert_int_equal(f, 0);
	assert_false(flags_get(&t, 6, 60, &f));
	assert_false(flags_get(&t, 5, 0, &f)); /* the kernel keeps nothing: nothing is known */
	flags_drop(&t, 5);
	assert_false(flags_get(&t, 5, 60, &f));
	note(&t, 0, 3); /* a reply without an inode */
	assert_false(flags_get(&t, 0, 60, &f) && f == 3);
	flag_table_free(&t);
}

static void notes_grow_old(void **state)
{
	struct flag_table t;
	unsigned f;
	struct timespec a_while = { .tv_nsec = 30000000 };
	assert_int_equal(flag_table_init(&t), 0);
	note(&t, 5, 0);
	nanosleep(&a_while, NULL);
	assert_false(flags_get(&t, 5, 0.02, &f));
	assert_true(flags_get(&t, 5, 60, &f));
	note(&t, 5, 0);
	flag_table_free(&t);
}

/* A page of a listing, and what else is in use, must fit; more push each other out, and nothing is
 * claimed of an inode that was not noted of it. */
static void bounded_and_never_wrong(void **state)
{
	struct flag_table t;
	unsigned f, kept = 0, n = FLAG_SETS * FLAG_WAYS * 4;
	assert_int_equal(flag_table_init(&t), 0);
	for (silt_ino ino = 1; ino <= 1000; ino++)
		note(&t, ino, ino % 64);
	for (silt_ino ino = 1; ino <= 1000; ino++)
		assert_true(flags_get(&t, ino, 60, &f) && f == ino % 64);
	for (silt_ino ino = 1; ino <= n; ino++)
		note(&t, ino, ino % 64);
	for (silt_ino ino = 1; ino <= n; ino++)
		if (flags_get(&t, ino, 60, &f)) {
			assert_int_equal(f, ino % 64);
			kept++;
		}
	assert_true(kept > 0 && kept <= FLAG_SETS * FLAG_WAYS);
	assert_true(flags_get(&t, n, 60, &f));
	flag_table_free(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_last_note_counts),
		cmocka_unit_test(notes_grow_old),
		cmocka_unit_test(bounded_and_never_wrong),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
