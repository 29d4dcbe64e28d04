#include "test/fetch_fixture.h"

#include <stdio.h>

int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct silt_err err;
	f->slot_size = (uint32_t)(uintptr_t)*state;
	*state = f;
	if (scratch_make(f->dir) < 0)
		return -1;
	snprintf(f->objects, sizeof(f->objects), "%s/objects", f->dir);
	snprintf(f->ssd, sizeof(f->ssd), "%s/ssd", f->dir);
	const struct store_config cfg = { .kind = "file",
		                          .bucket = f->objects,
		                          .metrics = &f->metrics };
	silt_log_open("/dev/null", SILT_LOG_INFO, NULL, &f->log);
	return store_open(&cfg, &f->store, &err) < 0 || store_create_bucket(f->store, &err) < 0;
}

void open_cache(struct fixture *f, unsigned ssd_mib, uint64_t memory)
{
	struct silt_err err = { 0 };
	const struct tier_config t = { .dir = f->ssd,
		                       .size = (uint64_t)ssd_mib * MIB,
		                       .free_ratio = 0.001,
		                       .volume = VOLUME,
		                       .log = f->log,
		                       .metrics = &f->metrics,
		                       .slot_size = f->slot_size };
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

void close_cache(struct fixture *f)
{
	fetch_close(f->fetch);
	if (f->tier)
		tier_close(f->tier);
	f->fetch = NULL;
	f->tier = NULL;
}

void reopen(struct fixture *f, unsigned ssd_mib, uint64_t memory)
{
	close_cache(f);
	open_cache(f, ssd_mib, memory);
}

int teardown(void **state)
{
	struct fixture *f = *state;
	close_cache(f);
	store_close(f->store);
	silt_log_close(f->log);
	int rc = scratch_remove(f->dir);
	free(f);
	return rc;
}

uint64_t metric(struct fixture *f, enum silt_metric m)
{
	return silt_metric_get(&f->metrics, m);
}

void fill(silt_ino ino, uint64_t off, size_t len, bool noise, uint8_t *out)
{
	for (size_t i = 0; i < len; i++) {
		uint64_t x = (ino * 1000003 + off + i) * 0x9e3779b97f4a7c15u;
		x ^= x >> 29;
		out[i] = noise ? (uint8_t)((x * 0xbf58476d1ce4e5b9u) >> 56)
		               : (uint8_t)('a' + (ino + (off + i) / 100) % 16);
	}
}

void put_pack(struct fixture *f, uint64_t pack, struct pack_builder *b)
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

void make_small(struct fixture *f, uint64_t pack, int level)
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

struct silt_extent make_big(struct fixture *f, uint64_t pack, int level, uint64_t off)
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

void object_path(struct fixture *f, uint64_t pack, char path[PATH_LEN])
{
	char key[PACK_KEY_MAX];
	pack_key(pack, key);
	snprintf(path, PATH_LEN, "%s/%s", f->objects, key);
}

void remove_object(struct fixture *f, uint64_t pack)
{
	char path[PATH_LEN];
	object_path(f, pack, path);
	assert_int_equal(unlink(path), 0);
}

void on_done(void *arg, int err)
{
	struct wait *w = arg;
	silt_lock(&w->lock);
	assert(w->err == 1); /* called once */
	w->err = err;
	silt_cond_signal(&w->cond);
	silt_unlock(&w->lock);
}

void wait_init(struct wait *w)
{
	silt_lock_init(&w->lock);
	silt_cond_init(&w->cond);
	w->err = 1;
}

int wait_end(struct wait *w)
{
	silt_lock(&w->lock);
	while (w->err == 1)
		silt_cond_wait(&w->cond, &w->lock);
	silt_unlock(&w->lock);
	silt_cond_destroy(&w->cond);
	silt_lock_destroy(&w->lock);
	return w->err;
}

void get_begin(struct fixture *f, silt_ino ino, const struct silt_extent *e, uint64_t off,
               uint32_t len, uint8_t *dst, struct wait *w)
{
	wait_init(w);
	int rc = fetch_read(f->fetch, ino, e, off, len, dst, on_done, w);
	if (rc != -EINPROGRESS)
		w->err = rc;
}

int get(struct fixture *f, silt_ino ino, const struct silt_extent *e, uint64_t off, uint32_t len,
        uint8_t *dst)
{
	struct wait w;
	get_begin(f, ino, e, off, len, dst, &w);
	return wait_end(&w);
}

int get_pack(struct fixture *f, uint64_t pack, uint64_t *bytes)
{
	struct wait w;
	wait_init(&w);
	fetch_pack(f->fetch, pack, bytes, on_done, &w);
	return wait_end(&w);
}

void check(struct fixture *f, silt_ino ino, const struct silt_extent *e, uint64_t off, uint32_t len,
           bool noise)
{
	uint8_t *got = malloc(len), *want = malloc(len);
	fill(ino, off, len, noise, want);
	memset(got, 0, len);
	assert_int_equal(get(f, ino, e, off, len, got), 0);
	assert_memory_equal(got, want, len);
	free(got);
	free(want);
}

void check_small(struct fixture *f, unsigned i, bool noise)
{
	check(f, 1000 + i, &f->small[i], 0, SMALL, noise);
	check(f, 1000 + i, &f->small[i], 100, 7, noise);
}
