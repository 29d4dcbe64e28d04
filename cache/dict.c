#include "cache/dict.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "meta/lock.h"
#include "meta/meta.h"
#include "meta/varint.h"

#define SLOTS	   1024u
#define MAGIC	   "SILTDICT"
#define VERSION	   1u
#define REFRESH_NS ((uint64_t)10 * 1000000000u)

struct dict {
	uint32_t number;
	void *bytes;
	size_t len;
	ZSTD_DDict *reader;
	_Atomic(ZSTD_CDict *) writer; /* made when it is first the current one; under dicts.lock */
};

struct dicts {
	struct dicts_config cfg;
	_Atomic(struct dict *) slots[SLOTS]; /* by number, the next free one where it is taken; never emptied */
	_Atomic(struct dict *) current;
	atomic_uint_fast64_t asked; /* when Redis was asked for it last, monotonic ns; 0: never */
	struct silt_lock lock;	    /* who fetches one */
	uint32_t refused;	    /* logged; under the lock */
};

/* --- the object --- */

void dict_key(uint32_t number, char out[DICT_KEY_MAX])
{
	snprintf(out, DICT_KEY_MAX, "dicts/%08x", number);
}

static uint64_t checksum(const uint8_t *header, const void *dict, size_t len)
{
	XXH3_state_t *state = XXH3_createState();
	uint64_t sum = 0;
	if (state) {
		XXH3_64bits_reset(state);
		XXH3_64bits_update(state, header, DICT_HEADER - 8);
		XXH3_64bits_update(state, dict, len);
		sum = XXH3_64bits_digest(state);
	}
	XXH3_freeState(state);
	return sum;
}

void dict_encode(uint32_t number, uint64_t volume, const void *dict, size_t len, uint8_t *out)
{
	memcpy(out, MAGIC, 8);
	uint8_t *p = silt_put_le(out + 8, VERSION, 4);
	p = silt_put_le(p, number, 4);
	p = silt_put_le(p, volume, 8);
	p = silt_put_le(p, len, 4);
	p = silt_put_le(p, 0, 4);
	memcpy(p + 8, dict, len);
	silt_put_le(p, checksum(out, dict, len), 8);
}

int dict_decode(const uint8_t *in, size_t size, uint32_t number, uint64_t volume, const uint8_t **dict, size_t *len)
{
	struct silt_reader r = silt_reader_of(in, size);
	if (size < DICT_HEADER || size > DICT_HEADER + DICT_SIZE_MAX || memcmp(silt_get_bytes(&r, 8), MAGIC, 8) != 0)
		return -EBADMSG;
	uint64_t version = silt_get_le(&r, 4), n = silt_get_le(&r, 4), v = silt_get_le(&r, 8), l = silt_get_le(&r, 4);
	uint64_t zero = silt_get_le(&r, 4), sum = silt_get_le(&r, 8);
	if (version != VERSION || n != number || v != volume || zero || l != size - DICT_HEADER ||
	    sum != checksum(in, in + DICT_HEADER, l))
		return -EBADMSG;
	*dict = in + DICT_HEADER;
	*len = l;
	return 0;
}

/* --- the table --- */

static struct dict *find(struct dicts *d, uint32_t number)
{
	for (unsigned i = 0; i < SLOTS; i++) {
		struct dict *x = atomic_load_explicit(&d->slots[(number + i) % SLOTS], memory_order_acquire);
		if (!x || x->number == number)
			return x;
	}
	return NULL;
}

static void dict_free(struct dict *x)
{
	if (!x)
		return;
	ZSTD_freeDDict(x->reader);
	ZSTD_freeCDict(atomic_load(&x->writer));
	free(x->bytes);
	free(x);
}

/* Fetches one. Lock held. */
static int load_locked(struct dicts *d, uint32_t number, struct dict **out)
{
	char key[DICT_KEY_MAX];
	struct silt_err err = { 0 };
	size_t most = DICT_HEADER + DICT_SIZE_MAX, len = 0;
	const uint8_t *dict = NULL;
	uint8_t *in = malloc(most);
	struct dict *x = calloc(1, sizeof(*x));
	dict_key(number, key);
	ssize_t n = in && x ? store_get(d->cfg.store, key, 0, most, in, NULL, &err) : -ENOMEM;
	int rc = n < 0 ? (int)n : dict_decode(in, (size_t)n, number, d->cfg.volume, &dict, &len);
	if (!rc) {
		x->number = number;
		x->len = len;
		x->bytes = malloc(len + 1);
		if (x->bytes)
			memcpy(x->bytes, dict, len);
		x->reader = x->bytes ? ZSTD_createDDict(x->bytes, len) : NULL;
		rc = x->reader ? 0 : -ENOMEM;
	} else if (rc != -ENOMEM && d->refused != number) {
		d->refused = number;
		silt_error(d->cfg.log, "dictionary %s can't be had, and what was compressed with it not be read: %s", key,
		           n < 0 && err.text[0] ? err.text : strerror(-rc));
	}
	free(in);
	for (unsigned i = 0; !rc && i < SLOTS; i++) {
		_Atomic(struct dict *) *slot = &d->slots[(number + i) % SLOTS];
		if (!atomic_load(slot)) {
			atomic_store_explicit(slot, x, memory_order_release);
			*out = x;
			return 0;
		}
	}
	dict_free(x);
	return rc == -ENOMEM || !rc ? -ENOMEM : -EIO;
}

static int get(struct dicts *d, uint32_t number, struct dict **out)
{
	int rc = 0;
	*out = find(d, number);
	if (*out)
		return 0;
	silt_lock(&d->lock);
	*out = find(d, number);
	if (!*out)
		rc = load_locked(d, number, out);
	silt_unlock(&d->lock);
	return rc;
}

int dicts_reader(struct dicts *d, uint32_t number, const void **out)
{
	struct dict *x;
	int rc = get(d, number, &x);
	*out = rc ? NULL : x->reader;
	return rc;
}

/* Finds out which one is the current one, if it was asked long ago. */
static void refresh(struct dicts *d)
{
	uint64_t now = silt_now_ns(), asked = atomic_load(&d->asked);
	uint32_t number;
	struct dict *x;
	if ((asked && now - asked < REFRESH_NS) || !atomic_compare_exchange_strong(&d->asked, &asked, now))
		return;
	if (meta_dictionary(d->cfg.meta, &number) || !number || get(d, number, &x))
		return;
	silt_lock(&d->lock);
	if (!atomic_load(&x->writer))
		atomic_store(&x->writer, ZSTD_createCDict(x->bytes, x->len, d->cfg.level));
	if (atomic_load(&x->writer))
		atomic_store_explicit(&d->current, x, memory_order_release);
	silt_unlock(&d->lock);
}

const void *dicts_writer(struct dicts *d, uint32_t *number)
{
	if (!d->cfg.meta || !d->cfg.level)
		return NULL;
	refresh(d);
	struct dict *x = atomic_load_explicit(&d->current, memory_order_acquire);
	if (!x)
		return NULL;
	*number = x->number;
	return atomic_load(&x->writer);
}

int dicts_open(const struct dicts_config *cfg, struct dicts **out)
{
	struct dicts *d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	d->cfg = *cfg;
	silt_lock_init(&d->lock);
	*out = d;
	return 0;
}

void dicts_close(struct dicts *d)
{
	if (!d)
		return;
	for (unsigned i = 0; i < SLOTS; i++)
		dict_free(atomic_load(&d->slots[i]));
	silt_lock_destroy(&d->lock);
	free(d);
}
