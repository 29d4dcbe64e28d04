/* See gc.h. */
#include "cache/gc.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/pack.h"
#include "meta/record.h"
#include "meta/scan.h"

#define BATCH	       1000u
#define PROGRESS_EVERY 10000u

struct object {
	uint64_t pack;
	uint64_t size;
	bool marked;
};

struct gc {
	const struct gc_config *cfg;
	struct gc_result *out;
	struct silt_err *err;
	struct object *v; /* old enough; by pack */
	size_t n, cap;
	int64_t youngest; /* an object's time from which on it is too young */
	silt_ino damaged;
};

static void add(struct gc_count *c, uint64_t bytes)
{
	c->packs++;
	c->bytes += bytes;
}

static void progress(struct gc *g)
{
	if (g->cfg->on_progress)
		g->cfg->on_progress(g->cfg->arg, g->out->all.packs, g->out->inodes);
}

/* --- what is in the store --- */

/* The id in a key as pack_key() makes it; 0: it is none. */
static uint64_t pack_of(const char *key)
{
	const char *name = strrchr(key, '/');
	char *end, again[PACK_KEY_MAX];
	if (!name)
		return 0;
	uint64_t pack = strtoull(name + 1, &end, 16);
	if (end == name + 1 || *end || !pack)
		return 0;
	pack_key(pack, again);
	return strcmp(again, key) ? 0 : pack;
}

static int on_object(void *arg, const char *key, const struct store_object *info)
{
	struct gc *g = arg;
	uint64_t pack = pack_of(key);
	if (!pack) {
		g->out->foreign++;
		return 0;
	}
	add(&g->out->all, info->size);
	if (g->out->all.packs % PROGRESS_EVERY == 0)
		progress(g);
	/* A store that tells no time: 0 would be very old. */
	if (!info->mtime || info->mtime > g->youngest) {
		add(&g->out->young, info->size);
		return 0;
	}
	if (g->n == g->cap) {
		size_t cap = g->cap ? g->cap * 2 : 1024;
		struct object *v = reallocarray(g->v, cap, sizeof(*v));
		if (!v)
			return -ENOMEM;
		g->v = v;
		g->cap = cap;
	}
	g->v[g->n++] = (struct object){ pack, info->size, false };
	return 0;
}

static int by_pack(const void *a, const void *b)
{
	const struct object *x = a, *y = b;
	return x->pack < y->pack ? -1 : x->pack > y->pack;
}

/* --- what is used --- */

static int mark(void *arg, const struct silt_extent *e)
{
	struct gc *g = arg;
	struct object want = { .pack = e->pack };
	struct object *o = g->n && e->pack ? bsearch(&want, g->v, g->n, sizeof(want), by_pack) : NULL;
	if (o)
		o->marked = true;
	return 0;
}

static int on_inode(void *arg, silt_ino ino, const void *record, size_t len)
{
	struct gc *g = arg;
	struct silt_inode inode;
	if (++g->out->inodes % PROGRESS_EVERY == 0)
		progress(g);
	if (record_decode(ino, record, len, &inode, NULL, NULL)) {
		g->damaged = ino;
		return -EBADMSG;
	}
	int rc = S_ISREG(inode.attr.mode) ? meta_scan_extents(g->cfg->meta, &inode, mark, g) : 0;
	if (rc == -EIO) /* Redis can't make sense of it */
		rc = -EBADMSG;
	if (rc == -EBADMSG)
		g->damaged = ino;
	return rc;
}

static int mark_all(struct gc *g)
{
	unsigned shards = meta_volume(g->cfg->meta)->shards;
	int rc = 0;
	for (unsigned s = 0; s < shards && !rc; s++)
		rc = meta_scan_inodes(g->cfg->meta, s, on_inode, g);
	if (rc == -EBADMSG)
		return silt_fail(g->err, rc,
		                 "the metadata of inode %" PRIu64
		                 " is damaged, so it is not known which objects it needs; nothing was "
		                 "deleted. siltfs fsck tells more",
		                 g->damaged);
	return rc ? silt_fail(g->err, rc, "reading the metadata: %s", strerror(-rc)) : 0;
}

/* --- what goes --- */

static int delete_packs(struct gc *g, const struct object *const *v, size_t n)
{
	uint64_t packs[BATCH], sizes[BATCH];
	bool dead[BATCH];
	char text[BATCH][PACK_KEY_MAX];
	const char *keys[BATCH];
	size_t k = 0;
	int rc = 0;
	unsigned shards = meta_volume(g->cfg->meta)->shards;
	for (size_t i = 0; i < n; i++) {
		packs[i] = v[i]->pack;
		dead[i] = true;
	}
	if (g->cfg->dry_run) {
		int64_t live[BATCH];
		for (unsigned s = 0; s < shards && !rc; s++) {
			rc = meta_packs_count(g->cfg->meta, s, packs, n, live);
			for (size_t i = 0; i < n && !rc; i++)
				dead[i] = dead[i] && (live[i] == 0 || live[i] == META_PACK_BURIED);
		}
	} else {
		rc = meta_packs_bury(g->cfg->meta, packs, n, dead);
	}
	if (rc)
		return silt_fail(g->err, rc, "asking Redis for live bytes: %s", strerror(-rc));
	for (size_t i = 0; i < n; i++) {
		add(dead[i] ? &g->out->deleted : &g->out->counted, v[i]->size);
		if (!dead[i])
			continue;
		sizes[k] = v[i]->size;
		packs[k] = v[i]->pack;
		pack_key(v[i]->pack, text[k]);
		keys[k] = text[k];
		k++;
	}
	if (!g->cfg->dry_run && k)
		rc = store_delete_many(g->cfg->store, keys, k, g->err);
	for (size_t i = 0; i < k && !rc && g->cfg->on_pack; i++)
		g->cfg->on_pack(g->cfg->arg, packs[i], sizes[i]);
	if (g->cfg->dry_run)
		return 0;
	for (unsigned s = 0; s < shards && !rc; s++) {
		rc = meta_packs_forget(g->cfg->meta, s, packs, k);
		if (rc)
			silt_fail(g->err, rc, "telling Redis what was deleted: %s", strerror(-rc));
	}
	return rc;
}

static int sweep(struct gc *g)
{
	const struct object *due[BATCH];
	size_t n = 0;
	int rc = 0;
	for (size_t i = 0; i < g->n && !rc; i++) {
		if (g->v[i].marked) {
			add(&g->out->used, g->v[i].size);
			continue;
		}
		due[n++] = &g->v[i];
		if (n == BATCH) {
			rc = delete_packs(g, due, n);
			n = 0;
		}
	}
	return n && !rc ? delete_packs(g, due, n) : rc;
}

int gc_run(const struct gc_config *cfg, struct gc_result *out, struct silt_err *err)
{
	*out = (struct gc_result){ 0 };
	struct gc g = { .cfg = cfg, .out = out, .err = err };
	g.youngest = (int64_t)time(NULL) - (int64_t)cfg->grace_s;
	/* The store first: what is stored after it was listed is nobody's concern. */
	int rc = store_list(cfg->store, "packs/", "", on_object, &g, err);
	if (rc == -ENOMEM)
		silt_fail(err, rc, "out of memory");
	if (!rc && g.n)
		qsort(g.v, g.n, sizeof(*g.v), by_pack);
	if (!rc)
		rc = mark_all(&g);
	if (!rc)
		rc = sweep(&g);
	free(g.v);
	return rc;
}
