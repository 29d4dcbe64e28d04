/* The cache's life, and the way from its public face to its parts: tier.h (SSD), fetch.h (reads),
 * upload.h (writes). Nothing is decided here but the order of opening and closing: the uploader
 * goes first, because it hands packs to the reader's threads; the tier goes last, because they
 * write to it. */
#include "cache/cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache/dict.h"
#include "cache/fetch.h"
#include "cache/tier.h"
#include "cache/upload.h"

struct cache {
	struct tier *tier; /* NULL: no SSD */
	char *dir; /* of the SSD, or NULL */
	struct dicts *dicts;
	struct fetch *fetch;
	struct uploader *uploader; /* NULL: read-only */
};

static void on_pack(void *arg, uint64_t pack, const struct iovec *iov, int niov, size_t total)
{
	struct cache *c = arg;
	fetch_insert_pack(c->fetch, pack, iov, niov, total);
}

static int read_dict(void *dicts, uint32_t number, bool fetch, const void **out)
{
	return dicts_reader(dicts, number, fetch, out);
}

static const void *write_dict(void *dicts, uint32_t *number)
{
	return dicts_writer(dicts, number);
}

static int open_tier(const struct cache_config *cfg, struct cache *c, struct silt_err *err)
{
	const struct tier_config t = { .dir = cfg->cache_dir,
		                       .size = cfg->cache_size,
		                       .free_ratio = cfg->free_ratio,
		                       .volume = cfg->volume,
		                       .log = cfg->log,
		                       .metrics = cfg->metrics };
	return cfg->cache_dir ? tier_open(&t, &c->tier, err) : 0;
}

static int open_fetch(const struct cache_config *cfg, struct cache *c, struct silt_err *err)
{
	const struct fetch_config f = { .store = cfg->store,
		                        .tier = c->tier,
		                        .dict = read_dict,
		                        .dicts = c->dicts,
		                        .log = cfg->log,
		                        .metrics = cfg->metrics,
		                        .volume = cfg->volume,
		                        .memory_size = cfg->memory_size,
		                        .threads = cfg->fetch_threads };
	return fetch_open(&f, &c->fetch, err);
}

static int open_uploader(const struct cache_config *cfg, struct cache *c, struct silt_err *err)
{
	const struct uploader_config u = { .ops = &uploader_ops,
		                           .store = cfg->store,
		                           .meta = cfg->meta,
		                           .dict = write_dict,
		                           .dicts = c->dicts,
		                           .log = cfg->log,
		                           .metrics = cfg->metrics,
		                           .volume = cfg->volume,
		                           .compress_level = cfg->compress_level,
		                           .upload_threads = cfg->upload_threads,
		                           .group_window_us = cfg->group_window_us,
		                           .on_pack = cfg->cache_writes && c->tier ? on_pack : NULL,
		                           .arg = c };
	int rc = cfg->meta ? uploader_open(&u, &c->uploader) : 0;
	return rc < 0 ? silt_fail(err, rc, "cannot start the upload threads: %s", strerror(-rc))
	              : 0;
}

int cache_open(const struct cache_config *cfg, struct cache **out, struct silt_err *err)
{
	struct cache *c = calloc(1, sizeof(*c));
	if (!c)
		return silt_fail(err, -ENOMEM, "out of memory");
	if (cfg->cache_dir && !(c->dir = strdup(cfg->cache_dir))) {
		cache_close(c);
		return silt_fail(err, -ENOMEM, "out of memory");
	}
	const struct dicts_config dc = { .store = cfg->store,
		                         .meta = cfg->meta,
		                         .log = cfg->log,
		                         .dir = c->dir,
		                         .volume = cfg->volume,
		                         .level = cfg->compress_level };
	int rc = dicts_open(&dc, &c->dicts);
	if (rc == 0)
		rc = open_tier(cfg, c, err);
	if (rc == 0)
		rc = open_fetch(cfg, c, err);
	if (rc == 0)
		rc = open_uploader(cfg, c, err);
	if (rc < 0) {
		cache_close(c);
		return rc;
	}
	dicts_load(c->dicts); /* what is not had now is asked for when it is needed */
	*out = c;
	return 0;
}

int cache_load_dictionaries(struct cache *c)
{
	return dicts_load(c->dicts);
}

void cache_close(struct cache *c)
{
	uploader_close(c->uploader);
	fetch_close(c->fetch);
	if (c->tier)
		tier_close(c->tier);
	dicts_close(c->dicts);
	free(c->dir);
	free(c);
}

int cache_read(struct cache *c, silt_ino ino, const struct silt_extent *e, uint64_t off,
               uint32_t len, void *dst, cache_done done, void *arg)
{
	return fetch_read(c->fetch, ino, e, off, len, dst, done, arg);
}

void cache_prefetch(struct cache *c, silt_ino ino, const struct silt_extent *e)
{
	fetch_prefetch(c->fetch, ino, e);
}

unsigned cache_prefetch_room(struct cache *c)
{
	return fetch_ahead_room(c->fetch);
}

void cache_write(struct cache *c, struct cache_write *w)
{
	if (c->uploader)
		uploader_write(c->uploader, w);
	else
		w->done(w->arg, -EROFS);
}

void cache_writers_add(struct cache *c, int delta)
{
	if (c->uploader)
		uploader_writers_add(c->uploader, delta);
}

void cache_drain(struct cache *c)
{
	if (c->uploader)
		uploader_drain(c->uploader);
}

enum cache_pack_state cache_pack_state(struct cache *c, uint64_t pack)
{
	return fetch_pack_state(c->fetch, pack);
}

void cache_fetch_pack(struct cache *c, uint64_t pack, uint64_t *bytes, cache_done done, void *arg)
{
	fetch_pack(c->fetch, pack, bytes, done, arg);
}

void cache_check_pack(struct cache *c, uint64_t pack, uint64_t *bytes, cache_done done, void *arg)
{
	fetch_check_pack(c->fetch, pack, bytes, done, arg);
}

void cache_uncheck_pack(struct cache *c, uint64_t pack)
{
	if (c->tier)
		tier_unverify(c->tier, pack);
}

int cache_check_files(struct cache *c, struct silt_err *err)
{
	return c->tier ? tier_check_files(c->tier, err) : 0;
}

unsigned cache_fetch_width(const struct cache *c)
{
	return fetch_width(c->fetch);
}

void cache_drop_pack(struct cache *c, uint64_t pack)
{
	fetch_drop_pack(c->fetch, pack);
}

uint32_t cache_pack_length(struct cache *c, uint64_t pack)
{
	struct tier_pack look = { 0 };
	if (c->tier)
		tier_look(c->tier, pack, &look);
	return look.pack_len;
}

uint32_t cache_slot_size(const struct cache *c)
{
	return c->tier ? tier_slot_size(c->tier) : 1;
}

void cache_space(struct cache *c, uint64_t *total, uint64_t *used)
{
	*total = *used = 0;
	if (c->tier)
		tier_space(c->tier, total, used);
}

struct each_slot {
	int (*each)(void *arg, const struct cache_slot_info *s);
	void *arg;
};

static int one_slot(void *arg, uint32_t slot, const struct slot_entry *e)
{
	const struct each_slot *to = arg;
	const struct cache_slot_info s = { .slot = slot,
		                           .piece = e->piece,
		                           .pack = e->pack,
		                           .pack_len = e->pack_len,
		                           .valid_mask = e->valid,
		                           .freq = e->freq };
	return to->each(to->arg, &s);
}

int cache_each_slot(struct cache *c, int (*each)(void *arg, const struct cache_slot_info *s),
                    void *arg)
{
	struct each_slot to = { .each = each, .arg = arg };
	return c->tier ? tier_each(c->tier, one_slot, &to) : 0;
}
