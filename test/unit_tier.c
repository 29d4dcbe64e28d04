/* The SSD tier with real files: it keeps what it was given over restarts, gives nothing that it was
 * not given, and never hands a slot on under a reader. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cache/tier.h"
#include "meta/lock.h"

#define MIB (1u << 20)

static uint32_t slot_size; /* of this round of all tests */

struct fixture {
	char dir[64];
	struct silt_log *log;
	struct silt_metrics metrics;
	bool no_uring;
	struct tier *tier;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	strcpy(f->dir, "/tmp/silt-unit-XXXXXX");
	*state = f;
	return mkdtemp(f->dir) ? silt_log_open("/dev/null", SILT_LOG_INFO, NULL, &f->log) : -1;
}

static int setup_threads(void **state)
{
	int rc = setup(state);
	((struct fixture *)*state)->no_uring = true;
	return rc;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char cmd[128];
	if (f->tier)
		tier_close(f->tier);
	silt_log_close(f->log);
	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", f->dir);
	free(f);
	return system(cmd);
}

static int try_open(struct fixture *f, uint64_t size, uint64_t volume, struct tier **out,
                    struct silt_err *err)
{
	const struct tier_config cfg = { .dir = f->dir,
		                         .size = size,
		                         .free_ratio = 0.001,
		                         .volume = volume,
		                         .log = f->log,
		                         .metrics = &f->metrics,
		                         .no_uring = f->no_uring,
		                         .slot_size = slot_size };
	return tier_open(&cfg, out, err);
}

static void open_tier(struct fixture *f, unsigned mib)
{
	struct silt_err err = { 0 };
	int rc = try_open(f, (uint64_t)mib * MIB, 7, &f->tier, &err);
	if (rc < 0)
		print_message("%s\n", err.text);
	assert_int_equal(rc, 0);
}

static void close_tier(struct fixture *f)
{
	tier_close(f->tier);
	f->tier = NULL;
}

/* The byte that stands at `off` of `pack`. */
static uint8_t byte_of(uint64_t pack, uint32_t off)
{
	return (uint8_t)(pack * 31 + off / 512 * 7 + off);
}

static void fill(uint64_t pack, uint32_t off, uint32_t len, uint8_t *out)
{
	for (uint32_t i = 0; i < len; i++)
		out[i] = byte_of(pack, off + i);
}

static int put(struct tier *t, uint64_t pack, uint32_t pack_len, uint32_t off, uint32_t len)
{
	uint8_t *buf = aligned_alloc(TIER_ALIGN, ((size_t)len + TIER_ALIGN - 1) & ~4095ul);
	fill(pack, off, len, buf);
	int rc = tier_write(t, pack, pack_len, off, len, buf, false, 0);
	free(buf);
	return rc;
}

struct get {
	struct tier_io io;
	struct silt_lock lock;
	struct silt_cond cond;
	uint8_t *dst;
	uint32_t len;
	int err; /* 1: under way */
};

static void on_get(struct tier_io *io, const uint8_t *data, int err)
{
	struct get *g = (struct get *)io;
	if (err == 0)
		memcpy(g->dst, data, g->len);
	silt_lock(&g->lock);
	g->err = err;
	silt_cond_signal(&g->cond);
	silt_unlock(&g->lock);
}

static int get(struct tier *t, uint64_t pack, uint32_t off, uint32_t len, uint8_t *dst)
{
	struct get g = { .io.done = on_get, .dst = dst, .len = len, .err = 1 };
	silt_lock_init(&g.lock);
	silt_cond_init(&g.cond);
	int rc = tier_read(t, pack, off, len, &g.io);
	silt_lock(&g.lock);
	while (rc == 0 && g.err == 1)
		silt_cond_wait(&g.cond, &g.lock);
	silt_unlock(&g.lock);
	silt_cond_destroy(&g.cond);
	silt_lock_destroy(&g.lock);
	return rc < 0 ? rc : g.err;
}

static bool right(uint64_t pack, uint32_t off, uint32_t len, const uint8_t *got)
{
	for (uint32_t i = 0; i < len; i++) {
		if (got[i] != byte_of(pack, off + i))
			return false;
	}
	return true;
}

static void check(struct tier *t, uint64_t pack, uint32_t off, uint32_t len)
{
	uint8_t *buf = malloc(len);
	assert_int_equal(get(t, pack, off, len, buf), 0);
	assert_true(right(pack, off, len, buf));
	free(buf);
}

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
	const uint32_t chunk = slot_size / SLOT_CHUNKS;
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
	assert_int_equal(p.pieces, MIB / slot_size);
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
	const unsigned slots = 8 * MIB / slot_size;
	struct tier_pack p;
	uint8_t *buf = aligned_alloc(TIER_ALIGN, 4 * MIB);
	open_tier(f, 8);
	for (unsigned i = 1; i <= slots; i++)
		assert_int_equal(put(f->tier, i, slot_size, 0, slot_size), 0);
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
		check(f->tier, i, slot_size - 500, 500);
	/* One piece is gone: reads that touch it find nothing and leave no pins. */
	tier_invalidate(f->tier, 1000, MIB, 1);
	assert_int_equal(get(f->tier, 1000, MIB - 100, 200, buf), -ENOENT);
	assert_int_equal(put(f->tier, 1000, 4 * MIB - 99, 0, 4 * MIB - 99), 0);
	assert_int_equal(get(f->tier, 1000, MIB - 100, 200, buf), 0);
	for (unsigned i = 1; i <= 4 * slots; i++)
		assert_int_equal(put(f->tier, 2000 + i, slot_size, 0, slot_size), 0);
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
	assert_int_equal(used, 16 * slot_size);
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

/* The slot size is the cache's for as long as it fits. */
static void test_slot_size_stays(void **state)
{
	struct fixture *f = *state;
	const uint32_t made = slot_size;
	open_tier(f, 8);
	assert_int_equal(tier_slot_size(f->tier), made);
	assert_int_equal(put(f->tier, 1, MIB, 0, MIB), 0);
	close_tier(f);
	slot_size = 0;
	open_tier(f, 12);
	slot_size = made;
	assert_int_equal(tier_slot_size(f->tier), made);
	check(f->tier, 1, 0, 1000);
	close_tier(f);
	slot_size = 128u << 10; /* another one, by force: the cache is empty */
	open_tier(f, 12);
	slot_size = made;
	struct tier_pack p;
	tier_look(f->tier, 1, &p);
	assert_int_equal(p.pieces, 0);
	assert_int_equal(put(f->tier, 1, MIB, 0, MIB), 0);
	check(f->tier, 1, 5, 131112);
}

static void test_restart(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[16];
	open_tier(f, 16);
	for (uint64_t pack = 1; pack <= 5; pack++)
		assert_int_equal(put(f->tier, pack, 2 * MIB + 5, 0, 2 * MIB + 5), 0);
	tier_drop_pack(f->tier, 3);
	close_tier(f);
	open_tier(f, 16);
	for (uint64_t pack = 1; pack <= 5; pack++) {
		if (pack == 3)
			assert_int_equal(get(f->tier, pack, 0, 16, buf), -ENOENT);
		else
			check(f->tier, pack, 2 * MIB - 100, 105);
	}
	uint64_t total, used;
	tier_space(f->tier, &total, &used);
	assert_int_equal(total, 16 * MIB);
	assert_int_equal(used, 4 * (2 * MIB + slot_size));
}

static void damage(struct fixture *f, const char *file, off_t off, const void *bytes, size_t n)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/%s", f->dir, file);
	int fd = open(path, O_WRONLY);
	assert_int_equal(pwrite(fd, bytes, n, off), (ssize_t)n);
	close(fd);
}

static void test_damaged_entries_are_free_slots(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[16];
	unsigned there = 0;
	const off_t pack_entries = MIB / slot_size * TABLE_ENTRY;
	open_tier(f, 8);
	for (uint64_t pack = 1; pack <= 8; pack++)
		assert_int_equal(put(f->tier, pack, MIB, 0, MIB), 0);
	close_tier(f);
	damage(f, "table", TABLE_HEADER + 1 * pack_entries, "\x5a", 1); /* flipped */
	damage(f, "table", TABLE_HEADER + 2 * pack_entries + 16, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
	       16); /* torn */
	open_tier(f, 8);
	for (uint64_t pack = 1; pack <= 8; pack++) {
		int rc = get(f->tier, pack, 0, 16, buf);
		there += rc == 0;
		assert_true(rc == -ENOENT || (rc == 0 && right(pack, 0, 16, buf)));
	}
	assert_int_equal(there, 6);
	assert_int_equal(put(f->tier, 20, slot_size, 0, slot_size), 0);
	assert_int_equal(put(f->tier, 21, slot_size, 0, slot_size), 0);
	check(f->tier, 20, 5, 500);
	assert_int_equal(silt_metric_get(&f->metrics, M_SSD_EVICTIONS), 0);
}

/* The table outlives its data files: someone deleted or cut them. */
static void test_lost_data_file(void **state)
{
	struct fixture *f = *state;
	char path[128];
	uint8_t buf[16];
	open_tier(f, 8);
	for (uint64_t pack = 1; pack <= 8; pack++)
		assert_int_equal(put(f->tier, pack, MIB, 0, MIB), 0);
	close_tier(f);
	snprintf(path, sizeof(path), "%s/slots.000", f->dir);
	assert_int_equal(truncate(path, 3 * MIB), 0);
	open_tier(f, 8);
	unsigned there = 0;
	for (uint64_t pack = 1; pack <= 8; pack++)
		there += get(f->tier, pack, 0, 16, buf) == 0;
	assert_int_equal(there, 3);
	for (uint64_t pack = 11; pack <= 15; pack++)
		assert_int_equal(put(f->tier, pack, MIB, 0, MIB), 0);
}

static void test_size_changes(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[16];
	struct stat st;
	char path[128];
	open_tier(f, 8);
	for (uint64_t pack = 1; pack <= 8; pack++)
		assert_int_equal(put(f->tier, pack, MIB, 0, MIB), 0);
	close_tier(f);
	open_tier(f, 5);
	snprintf(path, sizeof(path), "%s/slots.000", f->dir);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, 5 * MIB);
	unsigned there = 0;
	for (uint64_t pack = 1; pack <= 8; pack++)
		there += get(f->tier, pack, 0, 16, buf) == 0 && right(pack, 0, 16, buf);
	assert_int_equal(there, 5);
	close_tier(f);
	open_tier(f, 12);
	for (uint64_t pack = 1; pack <= 8; pack++)
		there -= get(f->tier, pack, 0, 16, buf) == 0 && right(pack, 0, 16, buf);
	assert_int_equal(there, 0);
}

static void test_eviction(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[16];
	const unsigned slots = 16 * MIB / slot_size, packs = slots * 6;
	open_tier(f, 16);
	for (uint64_t pack = 1; pack <= packs; pack++) {
		assert_int_equal(put(f->tier, pack, slot_size, 0, slot_size), 0);
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
	const unsigned slots = 16 * MIB / slot_size;
	uint8_t *buf = aligned_alloc(TIER_ALIGN, slot_size);
	struct tier_pack p;
	open_tier(f, 16);
	for (unsigned i = 1; i <= slots; i++) {
		uint8_t freq = i == slots / 2 ? 0 : 3;
		fill(i, 0, slot_size, buf);
		assert_int_equal(tier_write(f->tier, i, slot_size, 0, slot_size, buf, true, freq),
		                 0);
	}
	assert_int_equal(put(f->tier, slots + 1, slot_size, 0, slot_size), 0);
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

static void test_one_mount_a_directory(void **state)
{
	struct fixture *f = *state;
	struct tier *other;
	struct silt_err err;
	open_tier(f, 8);
	assert_int_equal(try_open(f, 8 * MIB, 7, &other, &err), -EBUSY);
	assert_non_null(strstr(err.text, "another mount"));
	close_tier(f);
	assert_int_equal(try_open(f, 8 * MIB, 8, &other, &err), -EEXIST);
}

static void test_no_room(void **state)
{
	struct fixture *f = *state;
	struct tier *other;
	struct silt_err err;
	const struct tier_config cfg = { .dir = f->dir, .size = 8 * MIB, .free_ratio = 1.0 };
	assert_int_equal(tier_open(&cfg, &other, &err), -ENOSPC);
	assert_non_null(strstr(err.text, "free some space"));
	assert_int_equal(try_open(f, 1000, 7, &other, &err), -EINVAL);
	char file[96];
	snprintf(file, sizeof(file), "%s/file/sub", f->dir);
	const struct tier_config bad = { .dir = file, .size = 8 * MIB };
	file[strlen(f->dir) + 5] = 0;
	close(open(file, O_CREAT | O_WRONLY, 0600));
	file[strlen(f->dir) + 5] = '/';
	assert_int_equal(tier_open(&bad, &other, &err), -ENOTDIR);
}

/* A disk that takes no writes: counted, and after some of them the tier is out of use. RLIMIT_FSIZE
 * stands in for the disk. */
static void test_write_errors(void **state)
{
	struct fixture *f = *state;
	struct rlimit old, low;
	uint8_t buf[16];
	open_tier(f, 16);
	assert_int_equal(put(f->tier, 1, MIB, 0, MIB), 0);
	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &old);
	low = old;
	low.rlim_cur = 2 * MIB;
	setrlimit(RLIMIT_FSIZE, &low);
	unsigned failed = 0, out = 0;
	for (uint64_t pack = 2; pack <= 14; pack++) {
		int rc = put(f->tier, pack, MIB, 0, MIB);
		failed += rc < 0 && rc != -ENODEV;
		out += rc == -ENODEV;
		if (rc < 0)
			assert_int_not_equal(get(f->tier, pack, 0, 16, buf), 0);
	}
	setrlimit(RLIMIT_FSIZE, &old);
	assert_int_equal(failed, 8);
	assert_true(out > 0);
	assert_int_equal(get(f->tier, 1, 0, 16, buf), -ENODEV);
	struct tier_pack look;
	tier_look(f->tier, 1, &look);
	assert_false(look.full); /* nothing is served from here any more */
	assert_int_equal(silt_metric_get(&f->metrics, M_SSD_ERRORS), 8);
}

/* Writes and evicts until it is killed; one byte into the pipe a round. */
static void churn(struct fixture *f, int fd)
{
	struct silt_err err;
	if (try_open(f, 8 * MIB, 7, &f->tier, &err) < 0)
		_exit(1);
	for (uint64_t pack = 1;; pack = pack % 30 + 1) {
		put(f->tier, pack, MIB + 4000, 0, MIB + 4000);
		if (pack % 7 == 0)
			tier_drop_pack(f->tier, pack);
		if (pack % 5 == 0)
			tier_save(f->tier);
		if (write(fd, "x", 1) != 1)
			_exit(1);
	}
}

/* kill -9 at any moment: what is found afterwards is right, and not nothing. */
static void test_killed(void **state)
{
	struct fixture *f = *state;
	unsigned found = 0;
	for (unsigned round = 1; round <= 6; round++) {
		int p[2];
		char x;
		assert_int_equal(pipe(p), 0);
		pid_t child = fork();
		if (child == 0)
			churn(f, p[1]);
		close(p[1]);
		for (unsigned i = 0; i < 11 * round; i++)
			assert_int_equal(read(p[0], &x, 1), 1);
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		close(p[0]);
		open_tier(f, 8);
		uint8_t buf[1000];
		for (uint64_t pack = 1; pack <= 30; pack++) {
			for (uint32_t off = 0; off < MIB; off += SLOT_CHUNK_MAX - 1000) {
				int rc = get(f->tier, pack, off, 1000, buf);
				assert_true(rc == -ENOENT ||
				            (rc == 0 && right(pack, off, 1000, buf)));
				found += rc == 0;
			}
		}
		close_tier(f);
	}
	assert_true(found > 0);
}

/* In a child whose io_uring_setup() is refused, as container runtimes do. */
static int without_uring(struct fixture *f)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = 4, .filter = code };
	struct silt_err err;
	uint8_t buf[1000];
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0)
		return 2;
	if (try_open(f, 8 * MIB, 7, &f->tier, &err) < 0)
		return 3;
	bool ok = put(f->tier, 1, MIB, 0, MIB) == 0 && get(f->tier, 1, 5, 1000, buf) == 0 &&
	          right(1, 5, 1000, buf);
	tier_close(f->tier);
	return ok ? 0 : 4;
}

static void test_io_uring_forbidden(void **state)
{
	int status;
	pid_t child = fork();
	if (child == 0)
		_exit(without_uring(*state));
	waitpid(child, &status, 0);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
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

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		T(test_read_what_was_written),
		cmocka_unit_test_setup_teardown(test_read_what_was_written, setup_threads,
		                                teardown),
		T(test_chunks),
		T(test_scattered_slots),
		cmocka_unit_test_setup_teardown(test_scattered_slots, setup_threads, teardown),
		T(test_small_packs),
		T(test_pack_fills_the_cache),
		T(test_slot_size_stays),
		T(test_restart),
		T(test_damaged_entries_are_free_slots),
		T(test_lost_data_file),
		T(test_size_changes),
		T(test_eviction),
		T(test_eviction_spares_the_kept),
		T(test_eviction_under_readers),
		cmocka_unit_test_setup_teardown(test_eviction_under_readers, setup_threads,
		                                teardown),
		T(test_one_mount_a_directory),
		T(test_no_room),
		T(test_write_errors),
		T(test_killed),
		T(test_io_uring_forbidden),
		T(test_each),
	};
	slot_size = SLOT_SIZE_MIN;
	int failed = cmocka_run_group_tests_name("slots of 64 KiB", tests, NULL, NULL);
	slot_size = SLOT_SIZE_MAX;
	return failed + cmocka_run_group_tests_name("slots of 1 MiB", tests, NULL, NULL);
}
