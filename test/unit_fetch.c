/* The read side over a real `file` store and a real SSD tier: right bytes from wherever they are,
 * each range asked for once, and damage healed where it can be and reported where it can't. */
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/fetch.h"
#include "cache/fetch_parts.h"
#include "cache/pack.h"
#include "meta/lock.h"

#define MIB    (1u << 20)
#define VOLUME 77u
#define SMALL  3900u /* bytes of a small file */
#define FILES  600u  /* small files in a pack */
#define BIG    (3u * MIB + 12345)

static uint32_t slot_size; /* of this round of all tests */

struct fixture {
	char dir[64], objects[96], ssd[96];
	struct silt_log *log;
	struct silt_metrics metrics;
	struct store *store;
	struct tier *tier;
	struct fetch *fetch;
	struct silt_extent small[FILES];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct silt_err err;
	*state = f;
	strcpy(f->dir, "/tmp/silt-unit-XXXXXX");
	if (!mkdtemp(f->dir))
		return -1;
	snprintf(f->objects, sizeof(f->objects), "%s/objects", f->dir);
	snprintf(f->ssd, sizeof(f->ssd), "%s/ssd", f->dir);
	const struct store_config cfg = { .kind = "file",
		                          .bucket = f->objects,
		                          .metrics = &f->metrics };
	silt_log_open("/dev/null", SILT_LOG_INFO, NULL, &f->log);
	return store_open(&cfg, &f->store, &err) < 0 || store_create_bucket(f->store, &err) < 0;
}

static void open_cache(struct fixture *f, unsigned ssd_mib, uint64_t memory)
{
	struct silt_err err = { 0 };
	const struct tier_config t = { .dir = f->ssd,
		                       .size = (uint64_t)ssd_mib * MIB,
		                       .free_ratio = 0.001,
		                       .volume = VOLUME,
		                       .log = f->log,
		                       .metrics = &f->metrics,
		                       .slot_size = slot_size };
	f->tier = NULL;
	if (ssd_mib)
		assert_int_equal(tier_open(&t, &f->tier, &err), 0);
	const struct fetch_config cfg = { .store = f->store,
		                          .tier = f->tier,
		                          .log = f->log,
		                          .metrics = &f->metrics,
		                          .volume = VOLUME,
		                          .memory_size = memory,
		                          .threads = 4 };
	assert_int_equal(fetch_open(&cfg, &f->fetch, &err), 0);
}

static void close_cache(struct fixture *f)
{
	fetch_close(f->fetch);
	if (f->tier)
		tier_close(f->tier);
	f->fetch = NULL;
	f->tier = NULL;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char cmd[128];
	close_cache(f);
	store_close(f->store);
	silt_log_close(f->log);
	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", f->dir);
	free(f);
	return system(cmd);
}

static uint64_t metric(struct fixture *f, enum silt_metric m)
{
	return silt_metric_get(&f->metrics, m);
}

/* Text-like bytes (they compress) or noise. */
static void fill(silt_ino ino, uint64_t off, size_t len, bool noise, uint8_t *out)
{
	for (size_t i = 0; i < len; i++) {
		uint64_t x = (ino * 1000003 + off + i) * 0x9e3779b97f4a7c15u;
		x ^= x >> 29;
		out[i] = noise ? (uint8_t)((x * 0xbf58476d1ce4e5b9u) >> 56)
		               : (uint8_t)('a' + (ino + (off + i) / 100) % 16);
	}
}

static void put_pack(struct fixture *f, uint64_t pack, struct pack_builder *b)
{
	const struct iovec *iov;
	int n;
	size_t total;
	char key[PACK_KEY_MAX];
	struct silt_err err = { 0 };
	assert_int_equal(pack_builder_finish(b, &iov, &n, &total), 0);
	pack_key(pack, key);
	int rc = store_put(f->store, key, iov, n, 0, &err);
	if (rc < 0)
		print_message("%s\n", err.text);
	assert_int_equal(rc, 0);
	pack_builder_free(b);
}

/* A pack of FILES small files, inodes 1000 + i. */
static void make_small(struct fixture *f, uint64_t pack, int level)
{
	struct pack_builder *b = pack_builder_new(pack, VOLUME, level);
	uint8_t *data = malloc((size_t)FILES * SMALL);
	for (unsigned i = 0; i < FILES; i++) {
		uint8_t *d = data + (size_t)i * SMALL;
		fill(1000 + i, 0, SMALL, level == 0, d);
		assert_int_equal(pack_builder_add(b, 1000 + i, 0, d, SMALL, &f->small[i]), 0);
	}
	put_pack(f, pack, b);
	free(data);
}

/* A pack of one large piece of inode 5 at file offset `off`. */
static struct silt_extent make_big(struct fixture *f, uint64_t pack, int level, uint64_t off)
{
	struct silt_extent e;
	struct pack_builder *b = pack_builder_new(pack, VOLUME, level);
	uint8_t *data = malloc(BIG);
	fill(5, off, BIG, level == 0, data);
	assert_int_equal(pack_builder_add(b, 5, off, data, BIG, &e), 0);
	put_pack(f, pack, b);
	free(data);
	return e;
}

static void object_path(struct fixture *f, uint64_t pack, char path[192])
{
	char key[PACK_KEY_MAX];
	pack_key(pack, key);
	snprintf(path, 192, "%s/%s", f->objects, key);
}

static void flip(const char *path, off_t off)
{
	uint8_t x;
	chmod(path, 0600);
	int fd = open(path, O_RDWR);
	assert_int_equal(pread(fd, &x, 1, off), 1);
	x ^= 0x10;
	assert_int_equal(pwrite(fd, &x, 1, off), 1);
	close(fd);
}

/* --- Waiting -------------------------------------------------------------------------------------
 */

struct wait {
	struct silt_lock lock;
	struct silt_cond cond;
	int err; /* 1: not called */
};

static void on_done(void *arg, int err)
{
	struct wait *w = arg;
	silt_lock(&w->lock);
	assert_int_equal(w->err, 1);
	w->err = err;
	silt_cond_signal(&w->cond);
	silt_unlock(&w->lock);
}

static void wait_init(struct wait *w)
{
	silt_lock_init(&w->lock);
	silt_cond_init(&w->cond);
	w->err = 1;
}

static int wait_end(struct wait *w)
{
	silt_lock(&w->lock);
	while (w->err == 1)
		silt_cond_wait(&w->cond, &w->lock);
	silt_unlock(&w->lock);
	silt_cond_destroy(&w->cond);
	silt_lock_destroy(&w->lock);
	return w->err;
}

static int get(struct fixture *f, silt_ino ino, const struct silt_extent *e, uint64_t off,
               uint32_t len, uint8_t *dst)
{
	struct wait w;
	wait_init(&w);
	int rc = fetch_read(f->fetch, ino, e, off, len, dst, on_done, &w);
	if (rc != -EINPROGRESS)
		w.err = rc;
	return wait_end(&w);
}

static int get_pack(struct fixture *f, uint64_t pack, uint64_t *bytes)
{
	struct wait w;
	wait_init(&w);
	fetch_pack(f->fetch, pack, bytes, on_done, &w);
	return wait_end(&w);
}

static void check(struct fixture *f, silt_ino ino, const struct silt_extent *e, uint64_t off,
                  uint32_t len, bool noise)
{
	uint8_t *got = malloc(len), *want = malloc(len);
	fill(ino, off, len, noise, want);
	memset(got, 0, len);
	assert_int_equal(get(f, ino, e, off, len, got), 0);
	assert_memory_equal(got, want, len);
	free(got);
	free(want);
}

static void check_small(struct fixture *f, unsigned i, bool noise)
{
	check(f, 1000 + i, &f->small[i], 0, SMALL, noise);
	check(f, 1000 + i, &f->small[i], 100, 7, noise);
}

/* Waits for background work by opening and closing again. */
static void reopen(struct fixture *f, unsigned ssd_mib, uint64_t memory)
{
	close_cache(f);
	open_cache(f, ssd_mib, memory);
}

/* --- Tests ---------------------------------------------------------------------------------------
 */

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
	char path[192];
	object_path(f, 10, path);
	unlink(path);
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
	fetch_prefetch(f->fetch, 5, &e);
}

static void test_missing_object(void **state)
{
	struct fixture *f = *state;
	char path[192];
	uint8_t b[SMALL];
	open_cache(f, 16, 0);
	make_small(f, 10, 0);
	struct silt_extent e = make_big(f, 20, 3, 0);
	object_path(f, 10, path);
	unlink(path);
	object_path(f, 20, path);
	unlink(path);
	assert_int_equal(get(f, 1000, &f->small[0], 0, SMALL, b), -EIO);
	assert_int_equal(get(f, 5, &e, 0, 100, b), -EIO);
	assert_int_equal(get_pack(f, 10, NULL), -ENOENT);
	/* it comes back (a store that lagged): reads work again */
	make_small(f, 10, 0);
	check_small(f, 0, true);
}

static void test_damaged_object(void **state)
{
	struct fixture *f = *state;
	char path[192];
	uint8_t b[SMALL];
	open_cache(f, 128, 0);
	make_small(f, 10, 0);
	object_path(f, 10, path);
	flip(path, f->small[3].pack_off + FRAME_HEADER + 100);
	assert_int_equal(get(f, 1003, &f->small[3], 0, SMALL, b), -EIO);
	assert_int_equal(metric(f, M_DAMAGED_FRAMES), 2); /* asked twice before it was believed */
	check_small(f, 2, true);
	check_small(f, 4, true);
	assert_int_equal(get_pack(f, 10, NULL), -EIO);
	assert_int_not_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_FULL);
	assert_int_equal(get(f, 1003, &f->small[3], 0, SMALL, b), -EIO);
	flip(path, f->small[3].pack_off + FRAME_HEADER + 100); /* repaired */
	check_small(f, 3, true);
	assert_int_equal(get_pack(f, 10, NULL), 0);
}

static void test_cut_object(void **state)
{
	struct fixture *f = *state;
	char path[192];
	uint8_t b[SMALL];
	open_cache(f, 16, 0);
	make_small(f, 10, 0);
	object_path(f, 10, path);
	chmod(path, 0600);
	assert_int_equal(truncate(path, f->small[300].pack_off + 50), 0);
	assert_int_equal(get(f, 1300, &f->small[300], 0, SMALL, b), -EIO);
	assert_int_equal(get(f, 1500, &f->small[500], 0, SMALL, b), -EIO);
	check_small(f, 5, true);
	assert_int_equal(get_pack(f, 10, NULL), -EIO);
}

static void test_wrong_owner(void **state)
{
	struct fixture *f = *state;
	uint8_t b[SMALL];
	open_cache(f, 16, 0);
	make_small(f, 10, 0);
	check_small(f, 1, true);
	assert_int_equal(get(f, 999, &f->small[1], 0, SMALL, b), -EIO);
	assert_int_equal(get(f, 999, &f->small[2], 0, SMALL, b), -EIO);
	struct silt_extent e = f->small[1];
	e.flags |= EXTENT_FOREIGN; /* a file that shares another's bytes */
	assert_int_equal(get(f, 999, &e, 0, SMALL, b), 0);
	e = f->small[2];
	e.stored += 8; /* metadata that disagrees with the pack */
	assert_int_equal(get(f, 1002, &e, 0, SMALL, b), -EIO);
}

/* Finds where on the SSD byte `off` of `pack` is. */
struct place {
	uint64_t pack;
	uint32_t off;
	off_t at;
};

static int look_for(void *arg, uint32_t slot, const struct slot_entry *e)
{
	struct place *p = arg;
	if (e->pack == p->pack && e->piece == p->off / slot_size)
		p->at = (off_t)slot * slot_size + p->off % slot_size;
	return 0;
}

static void flip_on_ssd(struct fixture *f, uint64_t pack, uint32_t off)
{
	struct place p = { .pack = pack, .off = off, .at = -1 };
	char path[128];
	tier_each(f->tier, look_for, &p);
	assert_true(p.at >= 0);
	snprintf(path, sizeof(path), "%s/slots.000", f->ssd);
	flip(path, p.at);
}

static void test_damaged_ssd_is_healed(void **state)
{
	struct fixture *f = *state;
	open_cache(f, 16, 0);
	make_small(f, 10, 0);
	uint64_t bytes = 0;
	assert_int_equal(get_pack(f, 10, &bytes), 0);
	assert_true(bytes > FILES * SMALL);
	reopen(f, 16, 0);
	flip_on_ssd(f, 10, f->small[7].pack_off + 1000);
	uint64_t gets = metric(f, M_STORE_GETS);
	check_small(f, 7, true);
	assert_int_equal(metric(f, M_SSD_BAD), 1);
	assert_int_equal(metric(f, M_STORE_GETS), gets + 1);
	reopen(f, 16, 0);
	check_small(f, 7, true); /* written anew */
	assert_int_equal(metric(f, M_SSD_BAD), 1);
	assert_int_equal(metric(f, M_STORE_GETS), gets + 1);
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_PARTIAL);
	assert_int_equal(get_pack(f, 10, NULL), 0); /* read back and verified, not fetched */
	assert_int_equal(metric(f, M_STORE_GETS), gets + 1);
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_FULL);
}

/* The index of a compressed run is damaged on the SSD. */
static void test_damaged_index_is_healed(void **state)
{
	struct fixture *f = *state;
	struct silt_extent e = make_big(f, 20, 3, 0);
	uint64_t bytes = 0;
	open_cache(f, 16, 0);
	assert_int_equal(get_pack(f, 20, &bytes), 0);
	reopen(f, 16, 0);
	flip_on_ssd(f, 20, (uint32_t)bytes - 60);
	check(f, 5, &e, MIB, 5000, false);
	assert_int_equal(metric(f, M_SSD_BAD), 1);
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
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_FULL);
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
		wait_init(&w[i]);
		int rc = fetch_read(f->fetch, 1000 + i, &f->small[i], 0, SMALL, got + i * SMALL,
		                    on_done, &w[i]);
		if (rc != -EINPROGRESS)
			w[i].err = rc;
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
		assert_int_equal(bytes[i], bytes[0]);
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
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_FULL);
}

/* A pack that was fetched ahead of a reader is read from memory: neither the store nor the SSD is asked
 * again; a later one pushes it out and it still comes right, from the SSD. */
static void test_prefetched_packs_linger(void **state)
{
	struct fixture *f = *state;
	struct silt_extent e[8];
	open_cache(f, 64, 0);
	for (unsigned i = 0; i < 8; i++) {
		e[i] = make_big(f, 50 + i, i % 2, i * (uint64_t)BIG);
		fetch_prefetch(f->fetch, 5, &e[i]);
		check(f, 5, &e[i], e[i].off, BIG, i % 2 == 0);
		while (fetch_pack_state(f->fetch, 50 + i) != CACHE_PACK_FULL)
			usleep(1000);
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

struct block {
	struct job job; /* first */
	sem_t *go;
};

static void block_run(struct fetch *f, struct job *j)
{
	(void)f;
	sem_wait(((struct block *)j)->go);
}

/* A reader waits for a whole pack in the queue; before its turn comes the pack gets on the SSD by another
 * way, so that the job finds nothing to fetch: the reader must be answered all the same. */
static void test_waiting_for_a_pack_that_is_here(void **state)
{
	struct fixture *f = *state;
	struct block blocks[16];
	struct wait w;
	sem_t go;
	char path[192];
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
	char path[192];
	open_cache(f, 32, 0);
	fetch_prefetch(f->fetch, 5, &e);
	reopen(f, 32, 0);
	assert_int_equal(fetch_pack_state(f->fetch, 20), CACHE_PACK_FULL);

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

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_small_files),
		T(test_runs),
		T(test_restart_keeps_the_cache),
		T(test_no_ssd),
		T(test_missing_object),
		T(test_damaged_object),
		T(test_cut_object),
		T(test_wrong_owner),
		T(test_damaged_ssd_is_healed),
		T(test_damaged_index_is_healed),
		T(test_fetch_pack),
		T(test_fetch_pack_that_does_not_fit),
		T(test_misses_of_one_range_share_a_get),
		T(test_fetches_of_one_pack_share_a_get),
		T(test_hot_pack_comes_whole),
		T(test_prefetch_and_insert),
		T(test_waiting_for_a_pack_that_is_here),
		T(test_prefetched_packs_linger),
		T(test_cache_smaller_than_the_data),
	};
	slot_size = SLOT_SIZE_MIN;
	int failed = cmocka_run_group_tests_name("slots of 64 KiB", tests, NULL, NULL);
	slot_size = SLOT_SIZE_MAX;
	return failed + cmocka_run_group_tests_name("slots of 1 MiB", tests, NULL, NULL);
}
