/* Making dictionaries: see dict.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zdict.h>
#include <zstd.h>

#include "cache/dict.h"
#include "meta/meta.h"

#define SAMPLES_MIN 50u
#define HELD_BACK   10u /* every tenth is for the judgement */

/* Bytes of the samples that were held back, compressed, with `cd` or (NULL) without. */
static uint64_t measure(ZSTD_CCtx *zc, const ZSTD_CDict *cd, int level, const uint8_t *samples, const size_t *sizes,
                        unsigned n)
{
	uint64_t sum = 0;
	size_t room = ZSTD_compressBound(DICT_FRAME_MAX);
	uint8_t *out = malloc(room);
	for (unsigned i = 0; out && i < n; samples += sizes[i++]) {
		if (i % HELD_BACK || sizes[i] > DICT_FRAME_MAX)
			continue;
		size_t k = cd ? ZSTD_compress_usingCDict(zc, out, room, samples, sizes[i], cd)
		              : ZSTD_compressCCtx(zc, out, room, samples, sizes[i], level);
		sum += ZSTD_isError(k) || k > sizes[i] ? sizes[i] : k;
	}
	free(out);
	return sum;
}

/* The samples that are not held back, end to end. Returns their number. */
static unsigned to_learn(const uint8_t *samples, const size_t *sizes, unsigned n, uint8_t *out, size_t *out_sizes)
{
	unsigned k = 0;
	for (unsigned i = 0; i < n; samples += sizes[i++]) {
		if (i % HELD_BACK == 0)
			continue;
		memcpy(out, samples, sizes[i]);
		out += sizes[i];
		out_sizes[k++] = sizes[i];
	}
	return k;
}

uint8_t *dict_samples_add(struct dict_samples *s, size_t len)
{
	if (!s->data)
		s->data = malloc(DICT_SAMPLE_BYTES);
	if (!s->sizes)
		s->sizes = calloc(DICT_SAMPLES, sizeof(*s->sizes));
	if (!s->data || !s->sizes || s->n == DICT_SAMPLES || len > DICT_FRAME_MAX || len > DICT_SAMPLE_BYTES - s->used)
		return NULL;
	uint8_t *at = s->data + s->used;
	s->sizes[s->n++] = len;
	s->used += len;
	return at;
}

void dict_samples_free(struct dict_samples *s)
{
	free(s->data);
	free(s->sizes);
	*s = (struct dict_samples){ 0 };
}

int dict_train(const struct dict_samples *s, size_t size, int level, void **dict, size_t *len, uint64_t *without,
	       uint64_t *with)
{
	const uint8_t *samples = s->data;
	const size_t *sizes = s->sizes;
	unsigned n = s->n;
	size_t bytes = s->used;
	*dict = NULL;
	if (n < SAMPLES_MIN || size > DICT_SIZE_MAX)
		return -EINVAL;
	uint8_t *learn = malloc(bytes + 1);
	size_t *learn_sizes = calloc(n, sizeof(*learn_sizes));
	ZSTD_CCtx *zc = ZSTD_createCCtx();
	ZSTD_CDict *cd = NULL;
	int rc = -ENOMEM;
	*dict = malloc(size);
	if (learn && learn_sizes && zc && *dict) {
		unsigned k = to_learn(samples, sizes, n, learn, learn_sizes);
		*len = ZDICT_trainFromBuffer(*dict, size, learn, learn_sizes, k);
		rc = ZDICT_isError(*len) ? -EINVAL : 0;
	}
	if (!rc && !(cd = ZSTD_createCDict(*dict, *len, level)))
		rc = -ENOMEM;
	if (!rc) {
		*without = measure(zc, NULL, level, samples, sizes, n);
		*with = measure(zc, cd, level, samples, sizes, n);
	} else {
		free(*dict);
		*dict = NULL;
	}
	ZSTD_freeCDict(cd);
	ZSTD_freeCCtx(zc);
	free(learn);
	free(learn_sizes);
	return rc;
}

int dict_publish(struct store *store, struct meta *meta, uint64_t volume, const void *dict, size_t len,
		 uint32_t *number, struct silt_err *err)
{
	char key[DICT_KEY_MAX];
	uint8_t *object = malloc(DICT_HEADER + len);
	int rc = object ? -EEXIST : -ENOMEM;
	/* Numbers that Redis gives out a second time, after it lost its last second, are passed over. */
	for (unsigned tries = 0; rc == -EEXIST && tries < 100; tries++) {
		rc = meta_dictionary_new(meta, number);
		if (rc) {
			silt_fail(err, rc, "no number from Redis: %s", strerror(-rc));
			break;
		}
		dict_encode(*number, volume, dict, len, object);
		dict_key(*number, key);
		struct iovec iov = { object, DICT_HEADER + len };
		rc = store_put(store, key, &iov, 1, STORE_EXCL, err);
	}
	if (!rc) {
		rc = meta_dictionary_use(meta, *number);
		if (rc)
			silt_fail(err, rc, "Redis does not take it: %s", strerror(-rc));
	}
	free(object);
	return rc;
}
