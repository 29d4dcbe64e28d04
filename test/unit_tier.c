/* The SSD tier with real files: it gives what it was given and nothing else, and never hands a slot
 * on under a reader. Restarts, damage and failing disks: unit_tier_recovery.c. */
#include "test/tier_fixture.h"

#include <pthread.h>

static void test_read_what_was_written(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[16];
	open_tier(f, 8);
	assert_int_equal(get(f->tier, 1, 0, 16, buf), -ENOENT);
	assert_int_equal(put(f->tier, 1, 3 * MIB + 77, 0, 3 * MIB + 77), 0);
	check(f->tier, 1, 0, 100);
	check(f->tier, 1, 4095, 2);
	check(f->tier, 1, MIB - 60000, 130000); /* over the edge of two slots */
	check(f->tier, 1, 3 * MIB, 77);
	assert_int_equal(get(f->tier, 1, 4 * MIB, 16, buf), -ENOENT);
	assert_int_equal(get(f->tier, 1, UINT32_MAX - 8, 16, buf), -ENOENT);
	assert_int_equal(get(f->tier, 2, 0, 16, buf), -ENOENT);
}

static void test_chunks(void **state)
{
	struct fixture *f = *state;
	struct tier_pack p;
	uint8_t buf[16];
	const uint32_t chunk = f->slot_size / SLOT_CHUNKS;
	open_tier(f, 8);
	assert_int_equal(put(f->tier, 1, MIB, 2 * chunk, chunk), 0);
	check(f->tier, 1, 2 * chunk, chunk);
	assert_int_equal(get(f->tier, 1, 2 * chunk - 1, 16, buf), -ENOENT);
	assert_int_equal(get(f->tier, 1, 3 * chunk - 8, 16, buf), -ENOENT);
	tier_look(f->tier, 1, &p);
	assert_int_equal(p.pieces, 1);
	assert_int_equal(p.pack_len, MIB);
	assert_false(p.full);
	assert_int_equal(put(f->tier, 1, MIB, 0, MIB), 0);
	tier_look(f->tier, 1, &p);
	assert_int_equal(p.pieces, MIB / f->slot_size);
	assert_true(p.full);
	assert_false(p.verified);
	tier_mark_verified(f->tier, 1);
	tier_look(f->tier, 1, &p);
	assert_true(p.verified);
	tier_invalidate(f->tier, 1, chunk, 1);
	tier_look(f->tier, 1, &p);
	assert_false(p.full || p.verified);
	assert_int_equal(get(f->tier, 1, chunk, 16, buf), -ENOENT);
	check(f->tier, 1, 0, chunk);
}

/* Every other slot was freed: the pieces of the next pack are nowhere side by side, and a read
 * crosses up to four of them. */
static void test_scattered_slots(void **state)
{
	struct fixture *f = *state;
	const unsigned slots = 8 * MIB / f->slot_size;
	struct tier_pack p;
	uint8_t *buf = aligned_alloc(TIER_ALIGN, 4 * MIB);
	open_tier(f, 8);
	for (unsigned i = 1; i <= slots; i++)
		assert_int_equal(put(f->tier, i, f->slot_size, 0, f->slot_size), 0);
	for (unsigned i = 1; i <= slots; i += 2)
		tier_drop_pack(f->tier, i);
	tier_save(f->tier);
	assert_int_equal(put(f->tier, 1000, 4 * MIB - 99, 0, 4 * MIB - 99), 0);
	tier_look(f->tier, 1000, &p);
	assert_true(p.full);
	for (uint32_t off = 60000; off + 131112 < 4 * MIB - 99; off += 65000)
		check(f->tier, 1000, off, 131112);
	check(f->tier, 1000, 60 * 1024, TIER_READ_MAX);
	assert_int_equal(tier_read_wait(f->tier, 1000, 0, 4 * MIB - 99, buf), 0);
	assert_true(right(1000, 0, 4 * MIB - 99, buf));
	assert_int_equal(silt_metric_get(&f->metrics, M_SSD_EVICTIONS), 0);
	for (unsigned i = 2; i <= slots; i += 2)
		check(f->tier, i, f->slot_size - 500, 500);
	/* One piece is gone: reads that touch it find nothing and leave no pins. */
	tier_invalidate(f->tier, 1000, MIB, 1);
	assert_int_equal(get(f->tier, 1000, MIB - 100, 200, buf), -ENOENT);
	assert_int_equal(put(f->tier, 1000, 4 * MIB - 99, 0, 4 * MIB - 99), 0);
	assert_int_equal(get(f->tier, 1000, MIB - 100, 200, buf), 0);
	for (unsigned i = 1; i <= 4 * slots; i++)
		assert_int_equal(put(f->tier, 2000 + i, f->slot_size, 0, f->slot_size), 0);
	free(buf);
}

/* Small packs take small slots: that is what these are for. */
static void test_small_packs(void **state)
{
	struct fixture *f = *state;
	uint64_t total, used;
	open_tier(f, 16);
	for (uint64_t pack = 1; pack <= 16; pack++)
		assert_int_equal(put(f->tier, pack, 30000, 0, 30000), 0);
	tier_space(f->tier, &total, &used);
	assert_int_equal(total, 16 * MIB);
	assert_int_equal(used, 16 * f->slot_size);
	close_tier(f);
	open_tier(f, 16);
	for (uint64_t pack = 1; pack <= 16; pack++)
		check(f->tier, pack, 0, 30000);
}

/* A pack that warmup keeps, as large as the cache: all that is not kept goes, and none of its own
 * slots goes with it. */
static void test_pack_fills_the_cache(void **state)
{
	struct fixture *f = *state;
	struct tier_pack p;
	uint8_t *buf = aligned_alloc(TIER_ALIGN, 4 * MIB);
	fill(99, 0, 4 * MIB, buf);
	open_tier(f, 4);
	for (uint64_t pack = 1; pack <= 20; pack++)
		assert_int_equal(put(f->tier, pack, 1000, 0, 1000), 0);
	assert_int_equal(tier_write(f->tier, 99, 4 * MIB, 0, 4 * MIB, buf, true, 3), 0);
	tier_look(f->tier, 99, &p);
	assert_true(p.full && p.verified);
	free(buf);
}

static int count_slots(void *arg, uint32_t slot, const struct slot_entry *e)
{
	assert_int_equal(e->pack, 9);
	assert_int_equal(e->valid, 0xffff);
	return ++*(int *)arg == 2 ? 77 : 0; /* of three or more */
}

static void test_each(void **state)
{
	struct fixture *f = *state;
	int n = 0;
	open_tier(f, 8);
	assert_int_equal(put(f->tier, 9, 3 * MIB, 0, 3 * MIB), 0);
	assert_int_equal(tier_each(f->tier, count_slots, &n), 77);
	assert_int_equal(n, 2);
}

static void test_eviction(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[16];
	const unsigned slots = 16 * MIB / f->slot_size, packs = slots * 6;
	open_tier(f, 16);
	for (uint64_t pack = 1; pack <= packs; pack++) {
		assert_int_equal(put(f->tier, pack, f->slot_size, 0, f->slot_size), 0);
		check(f->tier, 1, 0, 16); /* read all the time: it stays */
		check(f->tier, pack, 5000, 16);
	}
	unsigned there = 0;
	for (uint64_t pack = 1; pack <= packs; pack++)
		there += get(f->tier, pack, 0, 16, buf) == 0;
	assert_in_range(there, slots - slots / 8 - 1, slots);
	check(f->tier, 1, 0, 16);
	assert_int_equal(silt_metric_get(&f->metrics, M_SSD_EVICTIONS), packs - there);
}

/* A few slots that nobody wants go before many that have lives left, though more are looked for. */
static void test_eviction_spares_the_kept(void **state)
{
	struct fixture *f = *state;
	const unsigned slots = 16 * MIB / f->slot_size;
	uint8_t *buf = aligned_alloc(TIER_ALIGN, f->slot_size);
	struct tier_pack p;
	open_tier(f, 16);
	for (unsigned i = 1; i <= slots; i++) {
		uint8_t freq = i == slots / 2 ? 0 : 3;
		fill(i, 0, f->slot_size, buf);
		assert_int_equal(
		        tier_write(f->tier, i, f->slot_size, 0, f->slot_size, buf, true, freq), 0);
	}
	assert_int_equal(put(f->tier, slots + 1, f->slot_size, 0, f->slot_size), 0);
	assert_int_equal(silt_metric_get(&f->metrics, M_SSD_EVICTIONS), 1);
	tier_look(f->tier, slots / 2, &p);
	assert_int_equal(p.pieces, 0);
	free(buf);
}

struct load {
	struct tier *tier;
	atomic_uint wrong, hits;
	atomic_bool stop;
};

static void *reader(void *arg)
{
	struct load *l = arg;
	unsigned seed = (unsigned)(uintptr_t)pthread_self();
	uint8_t *buf = malloc(20000);
	while (!atomic_load(&l->stop)) {
		uint64_t pack = 1 + (unsigned)rand_r(&seed) % 40;
		uint32_t len = 1 + (unsigned)rand_r(&seed) % 20000;
		uint32_t off = (unsigned)rand_r(&seed) % (2 * MIB - len);
		int rc = get(l->tier, pack, off, len, buf);
		if (rc == 0 ? !right(pack, off, len, buf) : rc != -ENOENT)
			atomic_fetch_add(&l->wrong, 1);
		atomic_fetch_add(&l->hits, rc == 0);
	}
	free(buf);
	return NULL;
}

static void *writer(void *arg)
{
	struct load *l = arg;
	unsigned seed = (unsigned)(uintptr_t)pthread_self() + 1;
	for (unsigned i = 0; i < 60; i++) {
		uint64_t pack = 1 + (unsigned)rand_r(&seed) % 40;
		uint32_t a = (unsigned)rand_r(&seed) % 32,
		         n = 1 + (unsigned)rand_r(&seed) % (32 - a);
		int rc = put(l->tier, pack, 2 * MIB, a * SLOT_CHUNK_MAX, n * SLOT_CHUNK_MAX);
		if (rc < 0 && rc != -ENOSPC)
			atomic_fetch_add(&l->wrong, 1);
		if (i % 8 == 0)
			tier_drop_pack(l->tier, pack);
		if (i % 8 == 1)
			tier_invalidate(l->tier, pack, a * SLOT_CHUNK_MAX, 1);
	}
	return NULL;
}

static void test_eviction_under_readers(void **state)
{
	struct fixture *f = *state;
	struct load l = { 0 };
	pthread_t r[6], w[2];
	open_tier(f, 24);
	l.tier = f->tier;
	for (unsigned i = 0; i < 6; i++)
		pthread_create(&r[i], NULL, reader, &l);
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&w[i], NULL, writer, &l);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(w[i], NULL);
	atomic_store(&l.stop, true);
	for (unsigned i = 0; i < 6; i++)
		pthread_join(r[i], NULL);
	assert_int_equal(l.wrong, 0);
	assert_true(l.hits > 0);
	/* And all of it is still right after a restart. */
	close_tier(f);
	open_tier(f, 24);
	uint8_t buf[512];
	for (uint64_t pack = 1; pack <= 40; pack++) {
		for (uint32_t off = 0; off < 2 * MIB; off += SLOT_CHUNK_MAX) {
			if (get(f->tier, pack, off, 512, buf) == 0)
				assert_true(right(pack, off, 512, buf));
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_read_what_was_written),
		CASE_WITHOUT_URING(test_read_what_was_written),
		CASE(test_chunks),
		CASE(test_scattered_slots),
		CASE_WITHOUT_URING(test_scattered_slots),
		CASE(test_small_packs),
		CASE(test_pack_fills_the_cache),
		CASE(test_each),
		CASE(test_eviction),
		CASE(test_eviction_spares_the_kept),
		CASE(test_eviction_under_readers),
		CASE_WITHOUT_URING(test_eviction_under_readers),
	};
	return RUN_WITH_SLOT_SIZES(tests);
}
