/* cache/batch.c: the policy of group commit by a hand-driven clock: who waits, how long, and what
 * is put together. The same policy between threads is in unit_upload.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "cache/batch.h"
#include "cache/pack.h"

#define MS     UINT64_C(1000000)
#define WINDOW (4 * MS)

static struct cache_write *piece(silt_ino ino, size_t len)
{
	struct cache_write *w = calloc(1, sizeof(*w));
	w->ino = ino;
	w->len = len;
	return w;
}

static void drop(struct batch *t)
{
	for (struct cache_write *w = t->pieces.head, *next; w; w = next) {
		next = w->next;
		free(w);
	}
}

/* `n` files of 4 KB that come at `now`. */
static void add_files(struct batcher *b, unsigned n, uint64_t now)
{
	static silt_ino ino;
	while (n--)
		batcher_add(b, piece(++ino, 4096), now);
}

/* Takes a shared batch that must be there, of `n` files. */
static void take_shared(struct batcher *b, uint64_t now, unsigned n, struct batch *t)
{
	uint64_t until;
	assert_true(batcher_take(b, now, t, &until));
	assert_true(t->shared && t->files == n && t->pieces.n == n);
	drop(t);
}

/* Nothing is to be taken at `now`; returns until when. */
static uint64_t waits(struct batcher *b, uint64_t now)
{
	struct batch t;
	uint64_t until;
	assert_false(batcher_take(b, now, &t, &until));
	return until;
}

static void put_and_commit(struct batcher *b, struct batch *t, uint64_t now)
{
	batcher_put_ended(b, t, true, now);
	batcher_committed(b, t->files, now, now);
}

static void test_alone_never_waits(void **state)
{
	struct batcher b;
	struct batch t;
	batcher_init(&b, 8, WINDOW);
	b.writers = 1;
	for (uint64_t now = 1; now < 1000 * MS; now += 20 * MS) {
		add_files(&b, 1, now);
		assert_true(batcher_enough(&b));
		take_shared(&b, now, 1, &t);
		put_and_commit(&b, &t, now + 10 * MS);
	}
	/* Not even beside a file that stays dirty for ever. */
	b.writers = 2;
	add_files(&b, 1, 2000 * MS);
	take_shared(&b, 2000 * MS, 1, &t);
}

static void test_one_shared_pack_at_a_time(void **state)
{
	struct batcher b;
	struct batch t, t2;
	batcher_init(&b, 8, WINDOW);
	add_files(&b, 1, 1);
	take_shared(&b, 1, 1, &t);
	add_files(&b, 15, 2);
	assert_false(batcher_has_small(&b));
	assert_int_equal(waits(&b, 100 * MS), 0);
	batcher_put_ended(&b, &t, true, 100 * MS);
	take_shared(&b, 100 * MS, 15, &t2);
}

/* The phases of the essay: 8 wait while 8 queue. The next pack waits for the first 8 to come back.
 */
static void test_phases_merge(void **state)
{
	struct batcher b;
	struct batch t;
	batcher_init(&b, 8, WINDOW);
	uint64_t now = 10 * MS;
	add_files(&b, 8, now);
	take_shared(&b, now, 8, &t);
	add_files(&b, 8, now);
	now += 30 * MS;
	batcher_put_ended(&b, &t, true, now);
	struct batch second;
	take_shared(&b, now, 8, &second); /* sees 8 committing beside its own 8 */
	batcher_committed(&b, t.files, now, now);
	add_files(&b, 8, now + 1);
	now += 30 * MS;
	batcher_put_ended(&b, &second, true, now);
	batcher_committed(&b, second.files, now, now);
	b.writers = 16;
	assert_int_equal(waits(&b, now), now + WINDOW); /* 14 wanted, others are dirty */
	add_files(&b, 6, now + MS);
	take_shared(&b, now + MS, 14, &t);
}

/* Redis is far: who was answered takes longer to come back. Never waits longer than three windows. */
static void test_slow_commits_lengthen_the_window(void **state)
{
	struct batcher b;
	struct batch t;
	batcher_init(&b, 8, WINDOW);
	uint64_t now = 10 * MS;
	add_files(&b, 16, now);
	take_shared(&b, now, 16, &t);
	now += 10 * MS;
	batcher_put_ended(&b, &t, true, now);
	batcher_committed(&b, t.files, now, now + 3 * MS);
	now += 3 * MS;
	b.writers = 16;
	add_files(&b, 1, now);
	assert_int_equal(waits(&b, now), now + WINDOW + 6 * MS);
	b.writers = 1; /* nobody else is dirty */
	assert_int_equal(waits(&b, now), now + WINDOW / 2 + 6 * MS);
	take_shared(&b, now + WINDOW / 2 + 6 * MS, 1, &t);
	now += 100 * MS;
	batcher_put_ended(&b, &t, true, now);
	batcher_committed(&b, t.files, now, now + 60000 * MS); /* it was away for a minute */
	now += 60000 * MS;
	b.writers = 16;
	add_files(&b, 1, now);
	assert_int_equal(waits(&b, now), now + 3 * WINDOW);
	take_shared(&b, now + 3 * WINDOW, 1, &t);
}

static void test_writers_that_left_are_forgotten(void **state)
{
	struct batcher b;
	struct batch t;
	batcher_init(&b, 8, WINDOW);
	add_files(&b, 16, 1);
	take_shared(&b, 1, 16, &t);
	put_and_commit(&b, &t, 2 * MS);
	uint64_t now = 100 * MS;
	for (unsigned i = 0; i < BATCH_RECENT; i++, now += 100 * MS) {
		if (i) {
			add_files(&b, 1, now);
			uint64_t until = waits(&b, now);
			assert_int_equal(until, now + WINDOW / 2); /* nobody else is dirty */
			take_shared(&b, until, 1, &t);
		} else {
			add_files(&b, 16, now);
			take_shared(&b, now, 16, &t);
		}
		put_and_commit(&b, &t, now + 10 * MS);
	}
	add_files(&b, 1, now);
	waits(&b, now);
	take_shared(&b, now + WINDOW, 1, &t);
	put_and_commit(&b, &t, now + 10 * MS);
	add_files(&b, 1, now + 50 * MS);
	take_shared(&b, now + 50 * MS, 1, &t);
}

/* The bound on the company rises again though each pack would leave with just what it expects. */
static void test_a_low_bound_is_probed(void **state)
{
	struct batcher b;
	struct batch t;
	unsigned waited = 0;
	batcher_init(&b, 8, WINDOW);
	uint64_t now = 100 * MS;
	for (unsigned i = 0; i < 2 * BATCH_PROBE; i++, now += 100 * MS) {
		uint64_t until = 0;
		add_files(&b, 8, now);
		if (!batcher_take(&b, now, &t, &until)) {
			assert_true(until > now && until <= now + WINDOW);
			waited++;
			assert_true(batcher_take(&b, until, &t, &until));
		}
		drop(&t);
		put_and_commit(&b, &t, now + 10 * MS);
	}
	assert_int_equal(waited, 2);
}

static void test_a_drain_is_not_kept_waiting(void **state)
{
	struct batcher b;
	struct batch t;
	batcher_init(&b, 8, WINDOW);
	add_files(&b, 16, 1);
	take_shared(&b, 1, 16, &t);
	put_and_commit(&b, &t, 2);
	add_files(&b, 1, 3);
	assert_true(waits(&b, 3) != 0);
	b.hurry = 1;
	assert_true(batcher_enough(&b));
	take_shared(&b, 3, 1, &t);
}

static void test_pieces_of_one_file_count_once(void **state)
{
	struct batcher b;
	struct batch t;
	uint64_t until;
	batcher_init(&b, 8, WINDOW);
	for (unsigned i = 0; i < 5; i++)
		batcher_add(&b, piece(7, 4096), 1);
	assert_int_equal(b.files, 1);
	assert_true(batcher_take(&b, 1, &t, &until));
	assert_true(t.files == 1 && t.pieces.n == 5);
	drop(&t);
}

static void test_large_pieces_have_packs_of_their_own(void **state)
{
	struct batcher b;
	struct batch t;
	uint64_t until;
	batcher_init(&b, 3, WINDOW);
	batcher_add(&b, piece(1, 9u << 20), 1);
	batcher_add(&b, piece(2, 2u << 20), 1);
	batcher_add(&b, piece(1, 4u << 20), 1);
	batcher_add(&b, piece(1, 4u << 20), 1);
	add_files(&b, 1, 1);
	assert_true(batcher_take(&b, 1, &t, &until)); /* 9 + 4 of file 1; 4 more would pass 16 */
	assert_true(!t.shared && t.pieces.n == 2 && t.pieces.bytes == 13u << 20);
	drop(&t);
	assert_true(batcher_take(&b, 1, &t, &until));
	assert_true(!t.shared && t.pieces.n == 1 && t.pieces.head->ino == 2);
	drop(&t);
	assert_false(batcher_has_full(&b)); /* the third thread is for small files */
	struct batch small;
	take_shared(&b, 1, 1, &small);
	batcher_put_ended(&b, &t, true, 2);
	assert_true(batcher_take(&b, 2, &t, &until));
	assert_true(!t.shared && t.pieces.n == 1 && t.pieces.head->ino == 1);
	drop(&t);
	assert_true(!b.large.n && !b.large.head && !b.large.last && !b.large.bytes);
}

static void test_full_packs_do_not_wait_for_the_shared_one(void **state)
{
	struct batcher b;
	struct batch shared, t;
	uint64_t until;
	batcher_init(&b, 8, WINDOW);
	add_files(&b, 1, 1);
	take_shared(&b, 1, 1, &shared);
	for (unsigned i = 0; i < 40; i++)
		batcher_add(&b, piece(100 + i, 1000000), 1);
	for (unsigned i = 0; i < 2; i++) {
		assert_true(batcher_take(&b, 1, &t, &until));
		assert_true(!t.shared && t.pieces.n == 17 && t.pieces.bytes >= PACK_TARGET);
		drop(&t);
	}
	assert_int_equal(waits(&b, 1), 0);
	assert_int_equal(b.small.n, 6);
	assert_int_equal(b.files, 6);
	batcher_put_ended(&b, &shared, false, 2);
	take_shared(&b, 2, 6, &t);
}

/* Much of one file among others: its pieces go together, the others' stay in order. */
static void test_a_file_that_fills_a_pack_gets_its_own(void **state)
{
	struct batcher b;
	struct batch t;
	uint64_t until;
	batcher_init(&b, 8, WINDOW);
	for (unsigned i = 0; i < 20; i++) {
		batcher_add(&b, piece(1, 1000000), 1);
		batcher_add(&b, piece(100 + i, 10), 1);
	}
	assert_true(batcher_take(&b, 1, &t, &until));
	assert_int_equal(t.pieces.n, 17);
	for (struct cache_write *w = t.pieces.head; w; w = w->next)
		assert_int_equal(w->ino, 1);
	drop(&t);
	assert_true(batcher_take(&b, 1, &t, &until));
	assert_true(t.shared && t.pieces.n == 23);
	silt_ino last = 99;
	for (struct cache_write *w = t.pieces.head; w; w = w->next) {
		assert_true(w->ino == 1 || w->ino == last + 1);
		last = w->ino == 1 ? last : w->ino;
	}
	drop(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_alone_never_waits),
		cmocka_unit_test(test_one_shared_pack_at_a_time),
		cmocka_unit_test(test_phases_merge),
		cmocka_unit_test(test_slow_commits_lengthen_the_window),
		cmocka_unit_test(test_writers_that_left_are_forgotten),
		cmocka_unit_test(test_a_low_bound_is_probed),
		cmocka_unit_test(test_a_drain_is_not_kept_waiting),
		cmocka_unit_test(test_pieces_of_one_file_count_once),
		cmocka_unit_test(test_large_pieces_have_packs_of_their_own),
		cmocka_unit_test(test_full_packs_do_not_wait_for_the_shared_one),
		cmocka_unit_test(test_a_file_that_fills_a_pack_gets_its_own),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
