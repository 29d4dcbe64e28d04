/* zstd dictionaries (cache/dict.h): their objects, a table that many threads use, packs whose frames need one. Real
 * Redis, a real directory as store. */
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
#include <zstd.h>

#include "cache/dict.h"
#include "cache/pack.h"
#include "test/meta_fixture.h"

#define VOLUME 77u

struct fixture {
	struct server *s;
	struct meta *m;
	struct store *store;
	char dir[SCRATCH_MAX];
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct silt_err err;
	f->s = server_start(1);
	f->m = server_open(f->s, NULL, 0, 0);
	scratch_make(f->dir);
	struct store_config cfg = { .kind = "file", .bucket = f->dir };
	assert_int_equal(store_open(&cfg, &f->store, &err), 0);
	assert_int_equal(store_create_bucket(f->store, &err), 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	store_close(f->store);
	meta_close(f->m);
	server_stop(f->s);
	scratch_remove(f->dir);
	free(f);
	return 0;
}

/* What a small file may look like. */
static size_t text_of(unsigned i, char *out, size_t room)
{
	size_t n = 0;
	n += (size_t)snprintf(out, room, "{\"ligand\": \"ZINC%08u\", \"receptor\": \"6LU7 main protease\", \"rows\": [\n",
	                      i * 7919);
	for (unsigned k = 0; k < 12; k++)
		n += (size_t)snprintf(out + n, room - n, "  {\"atom\": %u, \"charge\": 0.%04u, \"kind\": \"aromatic\"},\n", k,
		                      (i * 31 + k * 17) % 9973);
	return n;
}

static void *train(size_t *len)
{
	struct dict_samples s = { 0 };
	uint64_t without, with;
	void *dict;
	for (unsigned i = 0; i < 400; i++) {
		char text[2048];
		size_t n = text_of(i, text, sizeof(text));
		uint8_t *to = dict_samples_add(&s, n);
		assert_non_null(to);
		memcpy(to, text, n);
	}
	assert_int_equal(dict_train(&s, 8192, 3, &dict, len, &without, &with), 0);
	assert_true(with < without / 10 * 7);
	dict_samples_free(&s);
	return dict;
}

static void test_object(void **state)
{
	(void)state;
	uint8_t dict[100], object[DICT_HEADER + 100 + 1];
	const uint8_t *out;
	size_t len, size = DICT_HEADER + sizeof(dict);
	memset(dict, 7, sizeof(dict));
	dict_encode(5, VOLUME, dict, sizeof(dict), object);
	object[size] = 0;
	assert_int_equal(dict_decode(object, size, 5, VOLUME, &out, &len), 0);
	assert_int_equal(len, sizeof(dict));
	assert_memory_equal(out, dict, len);
	assert_int_equal(dict_decode(object, size, 6, VOLUME, &out, &len), -EBADMSG);
	assert_int_equal(dict_decode(object, size, 5, VOLUME + 1, &out, &len), -EBADMSG);
	assert_int_equal(dict_decode(object, size + 1, 5, VOLUME, &out, &len), -EBADMSG);
	for (size_t n = 0; n < size; n++)
		assert_int_equal(dict_decode(object, n, 5, VOLUME, &out, &len), -EBADMSG);
	for (size_t bit = 0; bit < size * 8; bit++) {
		object[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(dict_decode(object, size, 5, VOLUME, &out, &len), -EBADMSG);
		object[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
}

static void test_samples(void **state)
{
	(void)state;
	struct dict_samples s = { 0 };
	uint64_t without, with;
	void *dict;
	size_t len;
	assert_null(dict_samples_add(&s, DICT_FRAME_MAX + 1));
	unsigned n = 0;
	for (uint8_t *to; (to = dict_samples_add(&s, DICT_FRAME_MAX)); n++)
		memset(to, (int)n, DICT_FRAME_MAX);
	assert_int_equal(n, DICT_SAMPLE_BYTES / DICT_FRAME_MAX);
	dict_samples_free(&s);
	for (n = 0; dict_samples_add(&s, 0); n++)
		;
	assert_int_equal(n, DICT_SAMPLES);
	assert_int_equal(dict_train(&s, 8192, 3, &dict, &len, &without, &with), -EINVAL); /* nothing in it */
	dict_samples_free(&s);
	assert_int_equal(dict_train(&s, 8192, 3, &dict, &len, &without, &with), -EINVAL);
}

/* A pack of small files written with a dictionary, and what reading them takes. */
static void test_frames(void **state)
{
	struct fixture *f = *state;
	struct silt_err err = { 0 };
	struct dicts *d;
	uint32_t number = 0, found = 0;
	size_t len;
	void *dict = train(&len);
	struct dicts_config cfg = { .store = f->store, .meta = f->m, .log = f->s->log, .volume = VOLUME, .level = 3 };
	assert_int_equal(dicts_open(&cfg, &d), 0);
	assert_null(dicts_writer(d, &found)); /* there is none, and it is not asked again for a while */
	assert_int_equal(dict_publish(f->store, f->m, VOLUME, dict, len, &number, &err), 0);
	assert_int_equal(number, 1);
	assert_null(dicts_writer(d, &found));
	dicts_close(d);
	assert_int_equal(dicts_open(&cfg, &d), 0);
	const void *cdict = dicts_writer(d, &found), *ddict;
	assert_non_null(cdict);
	assert_int_equal(found, 1);

	struct pack_builder *b = pack_builder_new(9, VOLUME, 3), *plain = pack_builder_new(10, VOLUME, 3);
	char text[20][2048], large[100000];
	struct silt_extent e[21], x;
	const struct iovec *iov;
	int niov;
	size_t total, n[20], at = 0;
	assert_int_equal(pack_builder_use_dict(b, cdict, found), 0);
	for (unsigned i = 0; i < 20; i++) {
		n[i] = text_of(1000 + i, text[i], sizeof(text[i]));
		assert_int_equal(pack_builder_add(b, 100 + i, 0, text[i], n[i], &e[i]), 0);
		assert_int_equal(pack_builder_add(plain, 100 + i, 0, text[i], n[i], &x), 0);
	}
	assert_true(pack_builder_size(b) < pack_builder_size(plain) / 10 * 8);
	/* Large frames are written without, and so is what follows when there is none any more. */
	memset(large, 'a', sizeof(large));
	assert_int_equal(pack_builder_add(b, 200, 0, large, sizeof(large), &e[20]), 0);
	assert_int_equal(pack_builder_use_dict(b, NULL, 0), 0);
	assert_int_equal(pack_builder_add(b, 201, 0, text[0], n[0], &x), 0);
	assert_int_equal(pack_builder_finish(b, &iov, &niov, &total), 0);
	uint8_t *pack = malloc(total), raw[PACK_FRAME_RAW], scratch[PACK_FRAME_RAW];
	for (int i = 0; i < niov; i++) {
		memcpy(pack + at, iov[i].iov_base, iov[i].iov_len);
		at += iov[i].iov_len;
	}
	char why[160];
	assert_int_equal(pack_verify(pack, total, 9, VOLUME, why), 0);

	ZSTD_DCtx *zd = ZSTD_createDCtx();
	struct frame_header h;
	assert_int_equal(dicts_reader(d, 1, true, &ddict), 0);
	for (unsigned i = 0; i < 21; i++) {
		const uint8_t *p = pack + e[i].pack_off;
		assert_int_equal(frame_header_decode(p, &h), 0);
		assert_int_equal(h.dict, i < 20 ? 1 : 0);
		assert_false(ZSTD_isError(ZSTD_DCtx_refDDict(zd, NULL)));
		int rc = frame_extract(p, p + FRAME_HEADER, 0, h.raw, raw, scratch, zd, &h);
		assert_true(i == 20 ? rc == 0 : rc == -EBADMSG || memcmp(raw, text[i], n[i]) != 0);
		if (i == 20)
			continue;
		assert_false(ZSTD_isError(ZSTD_DCtx_refDDict(zd, ddict)));
		assert_int_equal(frame_extract(p, p + FRAME_HEADER, 0, h.raw, raw, scratch, zd, &h), 0);
		assert_memory_equal(raw, text[i], n[i]);
		assert_int_equal(frame_extract(p, p + FRAME_HEADER, 5, 10, raw, scratch, zd, &h), 0);
		assert_memory_equal(raw, text[i] + 5, 10);
	}
	/* A raw frame names none. */
	uint8_t bad[FRAME_HEADER];
	memcpy(bad, pack + e[0].pack_off, sizeof(bad));
	bad[2] = PACK_RAW;
	assert_int_equal(frame_header_decode(bad, &h), -EBADMSG);
	ZSTD_freeDCtx(zd);
	pack_builder_free(b);
	pack_builder_free(plain);
	free(pack);
	dicts_close(d);
	free(dict);
}

struct many {
	struct dicts *d;
	atomic_uint wrong;
};

static void *use_many(void *arg)
{
	struct many *m = arg;
	const void *before[40] = { NULL };
	for (unsigned round = 0; round < 300; round++) {
		const void *out;
		uint32_t number = 1 + round % 30, found = 0;
		int rc = dicts_reader(m->d, number, true, &out);
		if (rc || !out || (before[number] && before[number] != out))
			atomic_fetch_add(&m->wrong, 1);
		before[number] = out;
		if (dicts_writer(m->d, &found) && found != 30)
			atomic_fetch_add(&m->wrong, 1);
		if (dicts_reader(m->d, 31, true, &out) != -EIO)
			atomic_fetch_add(&m->wrong, 1);
	}
	return NULL;
}

/* Many threads come to need the same ones at once; numbers that Redis gives out again are passed over. */
static void test_many(void **state)
{
	struct fixture *f = *state;
	struct silt_err err = { 0 };
	struct many m = { 0 };
	pthread_t threads[6];
	uint32_t number = 0;
	size_t len;
	void *dict = train(&len);
	for (unsigned i = 0; i < 15; i++)
		assert_int_equal(dict_publish(f->store, f->m, VOLUME, dict, len, &number, &err), 0);
	free(redis(f->m, "HSET", "{0}c", "k", "3")); /* a last second is lost */
	for (unsigned i = 0; i < 15; i++)
		assert_int_equal(dict_publish(f->store, f->m, VOLUME, dict, len, &number, &err), 0);
	assert_int_equal(number, 30);
	assert_int_equal(meta_dictionary(f->m, &number), 0);
	assert_int_equal(number, 30);
	struct dicts_config cfg = { .store = f->store, .meta = f->m, .log = f->s->log, .volume = VOLUME, .level = 1 };
	assert_int_equal(dicts_open(&cfg, &m.d), 0);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, use_many, &m), 0);
	for (unsigned i = 0; i < 6; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(atomic_load(&m.wrong), 0);
	dicts_close(m.d);
	free(dict);
}

/* A copy lies in the cache directory: the store is not needed a second time, and a damaged copy is made anew. */
static void test_local_copy(void **state)
{
	struct fixture *f = *state;
	struct silt_err err = { 0 };
	struct dicts *d;
	uint32_t number;
	size_t len;
	const void *out;
	void *dict = train(&len);
	char dir[SCRATCH_MAX], path[SCRATCH_MAX + 32], key[DICT_KEY_MAX];
	scratch_make(dir);
	assert_int_equal(dict_publish(f->store, f->m, VOLUME, dict, len, &number, &err), 0);
	snprintf(path, sizeof(path), "%s/dict.%08x", dir, number);
	dict_key(number, key);
	struct dicts_config cfg = { .store = f->store, .meta = f->m, .log = f->s->log, .volume = VOLUME, .dir = dir };
	for (int round = 0; round < 3; round++) {
		assert_int_equal(dicts_open(&cfg, &d), 0);
		assert_int_equal(dicts_reader(d, number, false, &out), round == 1 ? 0 : -EAGAIN);
		assert_int_equal(dicts_reader(d, number, true, &out), 0);
		assert_int_equal(dicts_reader(d, number, false, &out), 0);
		dicts_close(d);
		assert_int_equal(access(path, R_OK), 0);
		if (round == 1)
			assert_int_equal(truncate(path, (off_t)len), 0); /* the copy is cut short */
	}
	assert_int_equal(store_delete(f->store, key, NULL), 0);
	assert_int_equal(dicts_open(&cfg, &d), 0);
	assert_int_equal(dicts_load(d), 0);
	assert_int_equal(dicts_reader(d, number, false, &out), 0);
	dicts_close(d);
	/* Neither there nor here; and one whose number was given out and that was never stored. */
	assert_int_equal(unlink(path), 0);
	assert_int_equal(dicts_open(&cfg, &d), 0);
	assert_int_equal(dicts_load(d), -EIO);
	assert_int_equal(dict_publish(f->store, f->m, VOLUME, dict, len, &number, &err), 0);
	assert_int_equal(dicts_load(d), 0);
	dicts_close(d);
	scratch_remove(dir);
	free(dict);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_object),
		cmocka_unit_test(test_samples),
		cmocka_unit_test_setup_teardown(test_frames, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many, setup, teardown),
		cmocka_unit_test_setup_teardown(test_local_copy, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
