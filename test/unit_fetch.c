/* The read side over a real `file` store and a real SSD tier: right bytes from wherever they are,
 * each range asked for once. Missing and damaged bytes: unit_fetch_damage.c. */
#include "test/fetch_fixture.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>

#include "cache/fetch_parts.h"

/* Waits until nothing is under way, in the background either. */
static void settle(struct fixture *f)
{
	uint64_t until = silt_now_ns() + 60 * 1000000000ull;
	while (atomic_load(&f->fetch->busy) > 1) { /* 1: the open cache */
		assert_true(silt_now_ns() < until);
		usleep(1000);
	}
}

static void test_small_files(void **state)
{
	struct fixture *f = *state;
	open_cache(f, 16, 0);
	for (int level = 0; level <= 3; level += 3) {
		make_small(f, 10 + (unsigned)level, level);
		for (unsigned i = 0; i < FILES; i++)
			check_small(f, i, level == 0);
		assert_in_range(metric(f, M_HIT_MEMORY), FILES, 2 * FILES * 2);
	}
	assert_int_equal(metric(f, M_DAMAGED_FRAMES), 0);
	/* 2.4 MB in 256 KiB ranges, and 0.1 MB: not one GET a file */
	assert_in_range(metric(f, M_STORE_GETS), 1, 20);
}

static void test_runs(void **state)
{
	struct fixture *f = *state;
	for (int level = 0; level <= 3; level += 3) {
		struct silt_extent e = make_big(f, 20 + (unsigned)level, level, 7 * MIB);
		assert_true(e.flags & EXTENT_RUN);
		open_cache(f, 32, 0);
		bool noise = level == 0;
		check(f, 5, &e, e.off + 2 * MIB + 5, 9, noise);
		check(f, 5, &e, e.off, BIG, noise);
		check(f, 5, &e, e.off + PACK_FRAME_RAW - 1, 2, noise);
		check(f, 5, &e, e.off + BIG - 1, 1, noise);
		/* an extent trimmed on both sides by a later write */
		struct silt_extent cut = e;
		cut.off += 300000;
		cut.skip += 300000;
		cut.len = 1000000;
		check(f, 5, &cut, cut.off, (uint32_t)cut.len, noise);
		uint8_t b[2];
		assert_int_equal(get(f, 5, &cut, cut.off - 1, 2, b), -EINVAL);
		assert_int_equal(get(f, 5, &cut, cut.off + cut.len - 1, 2, b), -EINVAL);
		reopen(f, 32, 0);
		uint64_t gets = metric(f, M_STORE_GETS);
		check(f, 5, &e, e.off, BIG, noise); /* all of it from the SSD */
		assert_int_equal(metric(f, M_STORE_GETS), gets);
		close_cache(f);
	}
}

static void test_restart_keeps_the_cache(void **state)
{
	struct fixture *f = *state;
	open_cache(f, 16, 0);
	make_small(f, 10, 0);
	for (unsigned i = 0; i < FILES; i++)
		check_small(f, i, true);
	uint64_t gets = metric(f, M_STORE_GETS);
	reopen(f, 16, 0);
	remove_object(f, 10);
	for (unsigned i = 0; i < FILES; i++)
		check_small(f, i, true);
	assert_int_equal(metric(f, M_STORE_GETS), gets);
	assert_true(metric(f, M_HIT_SSD) >= FILES);
}

static void test_no_ssd(void **state)
{
	struct fixture *f = *state;
	open_cache(f, 0, 8 * MIB);
	make_small(f, 10, 0);
	struct silt_extent e = make_big(f, 20, 3, 0);
	for (unsigned i = 0; i < FILES; i++)
		check_small(f, i, true);
	assert_in_range(metric(f, M_STORE_GETS), 1, 20);
	check(f, 5, &e, 0, BIG, false);
	assert_int_equal(get_pack(f, 10, NULL), -ENODEV);
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_ABSENT);
	/* a prefetch brings it to memory, if that has room */
	reopen(f, 0, 64 * MIB);
	e = make_big(f, 21, 0, 0);
	uint64_t gets = metric(f, M_STORE_GETS);
	fetch_prefetch(f->fetch, 5, &e);
	settle(f);
	assert_int_equal(metric(f, M_STORE_GETS), gets + 1);
	check(f, 5, &e, 0, BIG, true);
	assert_int_equal(metric(f, M_STORE_GETS), gets + 1);
}

static void test_fetch_pack(void **state)
{
	struct fixture *f = *state;
	open_cache(f, 16, 0);
	make_small(f, 10, 0);
	uint64_t bytes = 0;
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_ABSENT);
	check_small(f, 0, true);
	assert_int_not_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_FULL);
	assert_int_equal(get_pack(f, 10, &bytes), 0);
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_FULL);
	uint64_t gets = metric(f, M_STORE_GETS);
	assert_int_equal(get_pack(f, 10, &bytes), 0);
	for (unsigned i = 0; i < FILES; i++)
		check_small(f, i, true);
	assert_int_equal(metric(f, M_STORE_GETS), gets);
	reopen(f, 16, 0);
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_UNCHECKED);
	fetch_drop_pack(f->fetch, 10);
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_ABSENT);
	check_small(f, 0, true);
	assert_int_equal(metric(f, M_STORE_GETS), gets + 1);
}

static void test_fetch_pack_that_does_not_fit(void **state)
{
	struct fixture *f = *state;
	make_big(f, 20, 0, 0);
	struct silt_extent e = make_big(f, 21, 0, 0);
	open_cache(f, 4, 0);
	assert_int_equal(get_pack(f, 20, NULL), 0);
	check(f, 5, &e, 0, BIG, true);
	close_cache(f);
	uint8_t *data = malloc(6 * MIB);
	fill(5, 0, 6 * MIB, true, data);
	struct pack_builder *b = pack_builder_new(30, VOLUME, 0);
	assert_int_equal(pack_builder_add(b, 5, 0, data, 6 * MIB, &e), 0);
	put_pack(f, 30, b);
	free(data);
	open_cache(f, 4, 0);
	assert_int_equal(get_pack(f, 30, NULL), -ENOSPC);
	check(f, 5, &e, 0, 6 * MIB, true);
}

static void test_misses_of_one_range_share_a_get(void **state)
{
	struct fixture *f = *state;
	struct wait w[40];
	uint8_t *got = malloc(sizeof(w) / sizeof(w[0]) * SMALL);
	uint8_t want[SMALL];
	make_small(f, 10, 0);
	open_cache(f, 16, 0);
	for (unsigned i = 0; i < 40; i++) {
		get_begin(f, 1000 + i, &f->small[i], 0, SMALL, got + i * SMALL, &w[i]);
	}
	for (unsigned i = 0; i < 40; i++) {
		assert_int_equal(wait_end(&w[i]), 0);
		fill(1000 + i, 0, SMALL, true, want);
		assert_memory_equal(got + i * SMALL, want, SMALL);
	}
	assert_int_equal(metric(f, M_STORE_GETS), 1);
	free(got);
}

static void test_fetches_of_one_pack_share_a_get(void **state)
{
	struct fixture *f = *state;
	struct wait w[20];
	uint64_t bytes[20] = { 0 };
	make_small(f, 10, 3);
	open_cache(f, 16, 0);
	for (unsigned i = 0; i < 20; i++) {
		wait_init(&w[i]);
		fetch_pack(f->fetch, 10, &bytes[i], on_done, &w[i]);
	}
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(wait_end(&w[i]), 0);
		assert_true(bytes[i] > 0 && bytes[i] == bytes[0]);
	}
	assert_int_equal(metric(f, M_STORE_GETS), 1);
}

/* Scattered misses of one pack bring the whole pack. */
static void test_hot_pack_comes_whole(void **state)
{
	struct fixture *f = *state;
	open_cache(f, 80, 0);
	make_small(f, 10, 0);
	for (unsigned i = 0; i < FILES; i += 100)
		check_small(f, i, true);
	reopen(f, 80, 0);
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_UNCHECKED);
}

/* A reader that comes while the pack is fetched ahead of it waits for that. Of a compressed pack it
 * needs the index first, which may bring the pack's tail by a GET of its own; that must not take
 * the place of the checked bytes on the SSD. */
static void test_reading_what_is_being_prefetched(void **state)
{
	struct fixture *f = *state;
	open_cache(f, 64, 0);
	for (unsigned i = 0; i < 8; i++) {
		bool noise = i % 2 == 0;
		struct silt_extent e = make_big(f, 40 + i, noise ? 0 : 3, i * (uint64_t)BIG);
		uint64_t gets = metric(f, M_STORE_GETS);
		fetch_prefetch(f->fetch, 5, &e);
		check(f, 5, &e, e.off, BIG, noise);
		settle(f);
		assert_in_range(metric(f, M_STORE_GETS) - gets, 1, noise ? 1 : 2);
		assert_int_equal(fetch_pack_state(f->fetch, 40 + i), CACHE_PACK_FULL);
	}
}

/* A pack that was fetched ahead of a reader is read from memory: neither the store nor the SSD is
 * asked again; later ones push it out and it still comes right, from the SSD. */
static void test_prefetched_packs_linger(void **state)
{
	struct fixture *f = *state;
	struct silt_extent e[8];
	open_cache(f, 64, 0);
	for (unsigned i = 0; i < 8; i++) {
		e[i] = make_big(f, 50 + i, i % 2, i * (uint64_t)BIG);
		fetch_prefetch(f->fetch, 5, &e[i]);
		settle(f);
		assert_int_equal(fetch_pack_state(f->fetch, 50 + i), CACHE_PACK_FULL);
		uint64_t gets = metric(f, M_STORE_GETS), ssd = metric(f, M_HIT_SSD);
		check(f, 5, &e[i], e[i].off, BIG, i % 2 == 0);
		assert_int_equal(metric(f, M_STORE_GETS), gets);
		assert_int_equal(metric(f, M_HIT_SSD), ssd);
	}
	uint64_t gets = metric(f, M_STORE_GETS);
	for (unsigned i = 0; i < 8; i++)
		check(f, 5, &e[i], e[i].off, BIG, i % 2 == 0);
	assert_int_equal(metric(f, M_STORE_GETS), gets);
	assert_true(metric(f, M_HIT_SSD) > 0);
}

/* Only so many packs are fetched ahead of readers; what has been read makes room, and so does what nobody
 * has read from for a second. */
static void test_room_for_prefetched_packs(void **state)
{
	struct fixture *f = *state;
	struct silt_extent e[32];
	unsigned n = 0;
	open_cache(f, 200, 0);
	uint64_t start = silt_now_ns(); /* on a busy machine they are idle before all are there */
	for (unsigned room; n < 32 && (room = fetch_ahead_room(f->fetch)) > 0; n++) {
		e[n] = make_big(f, 50 + n, 0, n * (uint64_t)BIG);
		fetch_prefetch(f->fetch, 5, &e[n]);
		if (room > 1)
			assert_int_equal(fetch_ahead_room(f->fetch), room - 1);
		settle(f);
		if (silt_now_ns() - start > 500000000u)
			break;
	}
	if (fetch_ahead_room(f->fetch) == 0) {
		check(f, 5, &e[1], e[1].off, BIG, true);
		assert_int_equal(fetch_ahead_room(f->fetch), 1);
		fetch_prefetch(f->fetch, 5, &(struct silt_extent){ 0 }); /* nothing to do: takes no room */
		assert_int_equal(fetch_ahead_room(f->fetch), 1);
		struct silt_extent last = make_big(f, 50 + n, 0, n * (uint64_t)BIG);
		fetch_prefetch(f->fetch, 5, &last);
		settle(f);
		/* One that was read from in part goes soon. */
		check(f, 5, &e[2], e[2].off, 300000, true);
		usleep(60000);
		assert_int_equal(fetch_ahead_room(f->fetch), 1);
		pack_wanted(f->fetch, 999, NULL, false, true); /* there is none such: takes its place, and leaves it */
		settle(f);
		usleep(1100000);
		assert_true(fetch_ahead_room(f->fetch) > 0);
		n++;
	}
	/* All still come right, from memory or the SSD. */
	uint64_t gets = metric(f, M_STORE_GETS);
	for (unsigned i = 0; i + 1 < n; i++)
		check(f, 5, &e[i], e[i].off, BIG, true);
	assert_int_equal(metric(f, M_STORE_GETS), gets);
	/* In the end nothing is kept for readers that don't come. */
	for (unsigned i = 0; i < 200 && f->fetch->ahead; i++)
		usleep(100000);
	assert_int_equal(f->fetch->ahead, 0);
}

/* A prefetch that finds the pack on its way for another reason counts it, too. */
static void test_a_prefetch_joins_a_fetch(void **state)
{
	struct fixture *f = *state;
	struct wait w;
	open_cache(f, 64, 0);
	struct silt_extent e = make_big(f, 70, 0, 0);
	for (unsigned i = 0; i < 20; i++) {
		fetch_drop_pack(f->fetch, 70);
		wait_init(&w);
		fetch_pack(f->fetch, 70, NULL, on_done, &w);
		fetch_prefetch(f->fetch, 5, &e);
		settle(f);
		check(f, 5, &e, e.off, BIG, true);
		settle(f);
		assert_int_equal(f->fetch->ahead, 0);
		assert_null(f->fetch->linger_first);
	}
}

struct block {
	struct job job; /* first */
	sem_t *go;
};

static void block_run(struct fetch *f, struct job *j)
{
	(void)f;
	sem_wait(((struct block *)j)->go);
}

/* A reader waits for a whole pack in the queue; before its turn comes the pack gets on the SSD by
 * another way, so that the job finds nothing to fetch: the reader must be answered all the same. */
static void test_waiting_for_a_pack_that_is_here(void **state)
{
	struct fixture *f = *state;
	struct block blocks[16];
	struct wait w;
	sem_t go;
	char path[PATH_LEN];
	uint8_t *got = malloc(BIG), *want = malloc(BIG);
	open_cache(f, 64, 0);
	struct silt_extent e = make_big(f, 60, 0, 0);
	sem_init(&go, 0, 0);
	for (unsigned i = 0; i < 16; i++) { /* all threads that background work may have */
		blocks[i] = (struct block){ .job.run = block_run, .go = &go };
		fetch_enter(f->fetch);
		fetch_submit(f->fetch, &blocks[i].job, false);
	}
	pack_wanted(f->fetch, 60, NULL, false, true);
	wait_init(&w);
	assert_int_equal(fetch_read(f->fetch, 5, &e, 0, BIG, got, on_done, &w), -EINPROGRESS);

	object_path(f, 60, path);
	FILE *file = fopen(path, "rb");
	uint8_t *data = aligned_alloc(4096, 8 * MIB);
	memset(data, 0, 8 * MIB);
	uint32_t len = (uint32_t)fread(data, 1, 8 * MIB, file);
	fclose(file);
	assert_int_equal(tier_write(f->fetch->tier, 60, len, 0, len, data, true, 0), 0);
	for (unsigned i = 0; i < 16; i++)
		sem_post(&go);
	assert_int_equal(wait_end(&w), 0);
	fill(5, 0, BIG, true, want);
	assert_memory_equal(got, want, BIG);
	close_cache(f);
	sem_destroy(&go);
	free(data);
	free(got);
	free(want);
}

static void test_prefetch_and_insert(void **state)
{
	struct fixture *f = *state;
	struct silt_extent e = make_big(f, 20, 0, 0);
	char path[PATH_LEN];
	open_cache(f, 32, 0);
	fetch_prefetch(f->fetch, 5, &e);
	reopen(f, 32, 0);
	assert_int_equal(fetch_pack_state(f->fetch, 20), CACHE_PACK_UNCHECKED);

	/* what was just written here is on the SSD without a GET */
	const struct iovec *iov;
	int n;
	size_t total;
	uint8_t data[SMALL];
	struct pack_builder *b = pack_builder_new(30, VOLUME, 0);
	fill(8, 0, SMALL, true, data);
	assert_int_equal(pack_builder_add(b, 8, 0, data, SMALL, &e), 0);
	assert_int_equal(pack_builder_finish(b, &iov, &n, &total), 0);
	uint64_t gets = metric(f, M_STORE_GETS);
	fetch_insert_pack(f->fetch, 30, iov, n, total);
	pack_builder_free(b);
	reopen(f, 32, 0);
	check(f, 8, &e, 0, SMALL, true);
	assert_int_equal(metric(f, M_STORE_GETS), gets);
	object_path(f, 30, path);
	assert_int_not_equal(access(path, F_OK), 0);
}

struct load {
	struct fixture *f;
	struct silt_extent big[4];
	atomic_bool failed;
};

/* Random reads from a set larger than memory and SSD together. */
static void *reader(void *arg)
{
	struct load *l = arg;
	unsigned seed = (unsigned)(uintptr_t)pthread_self();
	uint8_t *got = malloc(300000), *want = malloc(300000);
	for (unsigned i = 0; i < 150; i++) {
		unsigned k = (unsigned)rand_r(&seed) % 5;
		bool small = k == 4;
		unsigned file = (unsigned)rand_r(&seed) % FILES;
		uint32_t len = small ? SMALL : 1 + (unsigned)rand_r(&seed) % 300000;
		uint64_t off = small ? 0 : (unsigned)rand_r(&seed) % (BIG - len);
		silt_ino ino = small ? 1000 + file : 5;
		const struct silt_extent *e = small ? &l->f->small[file] : &l->big[k];
		fill(ino, off, len, small || k < 2, want);
		if (get(l->f, ino, e, off, len, got) != 0 || memcmp(got, want, len) != 0)
			atomic_store(&l->failed, true);
	}
	free(got);
	free(want);
	return NULL;
}

static void test_cache_smaller_than_the_data(void **state)
{
	struct fixture *f = *state;
	struct load l = { .f = f };
	pthread_t t[4];
	make_small(f, 10, 0);
	for (unsigned i = 0; i < 4; i++)
		l.big[i] = make_big(f, 20 + i, i < 2 ? 0 : 3, 0);
	open_cache(f, 5, 600 << 10);
	for (unsigned i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, reader, &l);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	assert_false(atomic_load(&l.failed));
	assert_int_equal(metric(f, M_DAMAGED_FRAMES), 0);
	assert_int_equal(metric(f, M_SSD_BAD), 0);
	assert_true(metric(f, M_SSD_EVICTIONS) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_small_files),
		CASE(test_runs),
		CASE(test_restart_keeps_the_cache),
		CASE(test_no_ssd),
		CASE(test_fetch_pack),
		CASE(test_fetch_pack_that_does_not_fit),
		CASE(test_misses_of_one_range_share_a_get),
		CASE(test_fetches_of_one_pack_share_a_get),
		CASE(test_hot_pack_comes_whole),
		CASE(test_prefetch_and_insert),
		CASE(test_waiting_for_a_pack_that_is_here),
		CASE(test_reading_what_is_being_prefetched),
		CASE(test_prefetched_packs_linger),
		CASE(test_room_for_prefetched_packs),
		CASE(test_a_prefetch_joins_a_fetch),
		CASE(test_cache_smaller_than_the_data),
	};
	return RUN_WITH_SLOT_SIZES(tests);
}
