/* zstd dictionaries: what small files of a volume have in common, so that each of them compresses as if it stood
 * in a large one. Trained from samples (by `siltfs train`, and by the worker from what it compacts), stored as an object,
 * and named by number in the header of each frame that was compressed with it (pack.h). One of them is the volume's
 * current one (Redis says which); frames of up to DICT_FRAME_MAX bytes are written with it. None is ever deleted: a frame
 * that names it may be copied from pack to pack for ever.
 *
 *	object "dicts/<number in 8 hex digits>"
 *	"SILTDICT" | u32 version | u32 number | u64 volume id | u32 length | u32 0 | u64 xxh3 | dictionary
 *	xxh3 is over the 32 bytes before it and then the dictionary; integers little-endian
 *
 * A copy of each that was used lies in the cache directory, as the object is: what is on the SSD is read without the
 * store.
 *
 * Threads: every function from any thread. A dictionary is prepared once and stays until dicts_close(); looking one up
 * that is here takes no lock. The first use of one that is not here brings it, on the calling thread; no lock is held
 * meanwhile. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache/store.h"
#include "meta/log.h"

#define DICT_FRAME_MAX (32u << 10) /* larger frames have enough of their own */
#define DICT_SIZE      (64u << 10) /* of a dictionary that is trained */
#define DICT_SIZE_MAX  (1u << 20)
#define DICT_KEY_MAX   20

struct meta;
struct dicts;

struct dicts_config {
	struct store *store; /* not owned */
	struct meta *meta;   /* not owned; NULL: nothing is written with a dictionary */
	struct silt_log *log;
	const char *dir; /* the cache directory; must stay; NULL: none */
	uint64_t volume;
	int level; /* zstd, for writing; 0: none */
};

int dicts_open(const struct dicts_config *cfg, struct dicts **out);
void dicts_close(struct dicts *d); /* NULL is allowed */

/* The current dictionary, for writing: a ZSTD_CDict and its number; NULL: there is none. Asks Redis every ten seconds,
 * and blocks then. A dictionary that can't be had is done without. */
const void *dicts_writer(struct dicts *d, uint32_t *number);

/* Dictionary `number`, for reading: *out gets a ZSTD_DDict. `fetch`: the store may be asked, which may take long; else
 * -EAGAIN when it is not here. -EIO: it can't be had (logged); -ENOMEM. */
int dicts_reader(struct dicts *d, uint32_t number, bool fetch, const void **out);

/* Brings the volume's dictionaries that are not here yet (the last 64). Blocks. -EIO: not all can be had (logged);
 * errors of Redis. */
int dicts_load(struct dicts *d);

/* --- making one --- */

/* Small files for training, end to end. */
#define DICT_SAMPLES	  4000u
#define DICT_SAMPLE_BYTES (8u << 20)
struct dict_samples {
	uint8_t *data;
	size_t *sizes;
	size_t used;
	unsigned n;
};
/* Makes room for one of `len` bytes (DICT_FRAME_MAX at most), which the caller fills; NULL: there are enough, or no
 * memory. */
uint8_t *dict_samples_add(struct dict_samples *s, size_t len);
void dict_samples_free(struct dict_samples *s);

/* Trains a dictionary of up to `size` bytes. *dict is malloced. *without and
 * *with get the bytes of every tenth sample, which it has not seen, compressed at `level`. -EINVAL: too few samples, or
 * nothing that they have in common; -ENOMEM. */
int dict_train(const struct dict_samples *s, size_t size, int level, void **dict, size_t *len, uint64_t *without,
	       uint64_t *with);

/* Stores it and makes it the volume's current one. Blocks. */
int dict_publish(struct store *store, struct meta *meta, uint64_t volume, const void *dict, size_t len,
		 uint32_t *number, struct silt_err *err);

/* The object's name, and its format. dict_encode(): `out` has room for DICT_HEADER + len bytes. dict_decode() gives
 * the dictionary in `in`; -EBADMSG: damaged, or another one. */
#define DICT_HEADER 40u
void dict_key(uint32_t number, char out[DICT_KEY_MAX]);
void dict_encode(uint32_t number, uint64_t volume, const void *dict, size_t len, uint8_t *out);
int dict_decode(const uint8_t *in, size_t size, uint32_t number, uint64_t volume, const uint8_t **dict, size_t *len);
