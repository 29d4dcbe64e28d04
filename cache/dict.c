#include "cache/dict.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>
#include <zstd.h>

#include "meta/lock.h"
#include "meta/meta.h"
#include "meta/varint.h"

#define SLOTS	   1024u
#define MAGIC	   "SILTDICT"
#define VERSION	   1u
#define LOAD_MAX   64u /* the last so many */
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
	struct silt_lock lock;	    /* who adds one; writers; what follows */
	uint32_t refused;	    /* logged */
};

/* --- the object --- */

void dict_key(uint32_t number, char out[DICT_KEY_MAX])
{
	snprintf(out, DICT_KEY_MAX, "dicts/%08x", number);
}

static uint64_t checksum(const uint8_t *header, const void *dict, size_t len)
{
	XXH3_state_t state;
	XXH3_64bits_reset(&state);
	XXH3_64bits_update(&state, header, DICT_HEADER - 8);
	XXH3_64bits_update(&state, dict, len);
	return XXH3_64bits_digest(&state);
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

/* --- where it comes from --- */

static bool local_path(const struct dicts *d, uint32_t number, char out[4096])
{
	return d->cfg.dir && snprintf(out, 4096, "%s/dict.%08x", d->cfg.dir, number) < 4096;
}

/* Bytes of the object, from the cache directory. */
static ssize_t read_local(const struct dicts *d, uint32_t number, uint8_t *in, size_t most)
{
	char path[4096];
	int fd = local_path(d, number, path) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	ssize_t n = 0, got = 1;
	while (fd >= 0 && got > 0 && (size_t)n < most) {
		got = read(fd, in + n, most - (size_t)n);
		n += got > 0 ? got : 0;
	}
	if (fd >= 0)
		close(fd);
	return fd < 0 || got < 0 ? -ENOENT : n;
}

/* Who can read the packs that are on the SSD shall have it when the store is away. What can't be written is done
 * without. */
static void write_local(const struct dicts *d, uint32_t number, const uint8_t *object, size_t len)
{
	char path[4096], fresh[4096 + 8];
	if (!local_path(d, number, path))
		return;
	snprintf(fresh, sizeof(fresh), "%s.new", path);
	int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	bool ok = fd >= 0 && write(fd, object, len) == (ssize_t)len && fdatasync(fd) == 0;
	if (fd >= 0)
		close(fd);
	if (fd >= 0 && (!ok || rename(fresh, path) < 0))
		unlink(fresh);
}

static struct dict *dict_new(uint32_t number, const uint8_t *bytes, size_t len)
{
	struct dict *x = calloc(1, sizeof(*x));
	if (!x)
		return NULL;
	x->number = number;
	x->len = len;
	x->bytes = malloc(len + 1);
	if (x->bytes)
		memcpy(x->bytes, bytes, len);
	x->reader = x->bytes ? ZSTD_createDDict(x->bytes, len) : NULL;
	if (x->reader)
		return x;
	dict_free(x);
	return NULL;
}

/* Puts it into the table, unless another thread was first; *out gets the one that is there. True: it is this one. */
static bool insert(struct dicts *d, struct dict *x, struct dict **out)
{
	bool ours = false;
	silt_lock(&d->lock);
	*out = find(d, x->number);
	for (unsigned i = 0; !*out && i < SLOTS; i++) {
		_Atomic(struct dict *) *slot = &d->slots[(x->number + i) % SLOTS];
		if (!atomic_load(slot)) {
			atomic_store_explicit(slot, x, memory_order_release);
			*out = x;
			ours = true;
		}
	}
	silt_unlock(&d->lock);
	if (!ours)
		dict_free(x);
	return ours;
}

static void complain(struct dicts *d, uint32_t number, const char *why)
{
	silt_lock(&d->lock);
	bool again = d->refused == number;
	d->refused = number;
	silt_unlock(&d->lock);
	if (!again)
		silt_error(d->cfg.log, "dictionary dicts/%08x can't be had, and what was compressed with it not be read: %s",
		           number, why);
}

/* Brings one that is not in the table. No lock is held meanwhile: several threads may do it at once. -ENOENT, of which
 * nothing is logged; else as dicts_reader(). */
static int load(struct dicts *d, uint32_t number, bool fetch, struct dict **out)
{
	char key[DICT_KEY_MAX];
	struct silt_err err = { 0 };
	size_t most = DICT_HEADER + DICT_SIZE_MAX + 1, len = 0; /* one more: longer ones are seen to be */
	const uint8_t *dict = NULL;
	uint8_t *in = malloc(most);
	if (!in)
		return -ENOMEM;
	ssize_t n = read_local(d, number, in, most);
	bool local = n >= 0 && dict_decode(in, (size_t)n, number, d->cfg.volume, &dict, &len) == 0;
	if (!local && !fetch) {
		free(in);
		return -EAGAIN;
	}
	int rc = 0;
	if (!local) {
		dict_key(number, key);
		n = store_get(d->cfg.store, key, 0, most, in, NULL, &err);
		rc = n < 0 ? (int)n : dict_decode(in, (size_t)n, number, d->cfg.volume, &dict, &len);
	}
	struct dict *x = rc ? NULL : dict_new(number, dict, len);
	if (rc && rc != -ENOENT)
		complain(d, number, n < 0 && err.text[0] ? err.text : strerror(-rc));
	else if (x && insert(d, x, out) && !local)
		write_local(d, number, in, (size_t)n);
	free(in);
	if (rc)
		return rc == -ENOENT || rc == -ENOMEM ? rc : -EIO;
	return x && *out ? 0 : -ENOMEM;
}

static int get(struct dicts *d, uint32_t number, bool fetch, struct dict **out)
{
	*out = find(d, number);
	return *out ? 0 : load(d, number, fetch, out);
}

int dicts_reader(struct dicts *d, uint32_t number, bool fetch, const void **out)
{
	struct dict *x;
	int rc = get(d, number, fetch, &x);
	*out = rc ? NULL : x->reader;
	if (rc == -ENOENT)
		complain(d, number, "no such object");
	return rc == -ENOENT ? -EIO : rc;
}

int dicts_load(struct dicts *d)
{
	uint32_t last;
	struct dict *x;
	if (!d->cfg.meta)
		return 0;
	int rc = meta_dictionary(d->cfg.meta, &last);
	for (uint32_t k = last > LOAD_MAX ? last - LOAD_MAX : 0; !rc && k < last; k++) {
		rc = get(d, k + 1, true, &x);
		/* Numbers are given out before their objects are stored. The current one's is there. */
		if (rc == -ENOENT && k + 1 == last)
			complain(d, last, "no such object");
		rc = rc != -ENOENT ? rc : k + 1 == last ? -EIO : 0;
	}
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
	if (meta_dictionary(d->cfg.meta, &number) || !number || get(d, number, true, &x))
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
