/* One group of packs becomes one: see compact.h.
 *
 *	read and verify the packs -> places of their frames' files -> runs that are named there
 *	-> new pack -> PUT -> places name it
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zstd.h>

#include "cache/compact_impl.h"
#include "cache/pack.h"
#include "meta/extent.h"
#include "meta/lock.h"

#define READERS        8u
#define SAMPLES_A_PACK 500u
#define PLACES_AT_ONCE 1000u
#define ENTRIES_MAX    (32u << 20) /* bytes of logs that a group looks at; packs that need more stay */

/* A pack of the group. */
struct source {
	struct noted *noted;
	uint8_t *data; /* NULL: it is left out */
	struct pack_index index;
	uint64_t found; /* live bytes that places name */
};

/* A run that is named. */
struct run {
	struct source *s;
	uint32_t pack_off, stored, to_off;
	silt_ino ino;
	uint64_t off; /* of its first frame, for the order */
	size_t first, n; /* frames in the index */
};

struct group {
	const struct compactor_config *cfg;
	struct source *sources;
	size_t nsources;
	atomic_size_t next; /* to be read */
	atomic_int err;
	atomic_uint failed; /* GETs */
	struct meta_place *places; /* by shard, inode, window */
	size_t nplaces, cap_places;
	size_t entry_bytes; /* of places */
	struct run *runs;
	size_t nruns, cap_runs;
	bool hidden; /* logs have entries of these packs that others cover */
	struct group_result *out;
};

static void leave_out(struct source *s)
{
	free(s->data);
	s->data = NULL;
	pack_index_free(&s->index);
	s->index = (struct pack_index){ 0 };
}

/* --- reading ------------------------------------------------------------------------------ */

static int decode_index(struct source *s)
{
	uint32_t off, len, frames;
	uint64_t xxh3, size = s->noted->size;
	int rc = pack_trailer_decode(s->data + size - PACK_TRAILER, size, &off, &len, &frames, &xxh3);
	return rc ? rc : pack_index_decode(s->data + off, len, frames, xxh3, off, &s->index);
}

static int read_source(struct group *g, struct source *s)
{
	char key[PACK_KEY_MAX], why[160] = "cut short";
	struct silt_err err = { 0 };
	uint64_t size = s->noted->size;
	pack_key(s->noted->pack, key);
	s->data = size > PACK_HEADER + PACK_TRAILER && size <= PACK_MAX ? malloc(size) : NULL;
	if (!s->data)
		return size <= PACK_MAX && size > PACK_HEADER + PACK_TRAILER ? -ENOMEM : 0;
	ssize_t got = store_get(g->cfg->store, key, 0, size, s->data, NULL, &err);
	if (got == -ENOENT) { /* it died, and is deleted */
		leave_out(s);
		return 0;
	}
	if (got < 0) {
		silt_warn(g->cfg->log, "compaction: %s", err.text[0] ? err.text : strerror((int)-got));
		s->noted->tries++;
		leave_out(s);
		/* One bad object holds nothing up; a store that is away ends it. */
		bool away = atomic_fetch_add(&g->failed, 1) + 1 >= STORE_FAILURES;
		return got == -ENOMEM ? -ENOMEM : away ? -ETIMEDOUT : 0;
	}
	if ((uint64_t)got != size ||
	    pack_verify(s->data, size, s->noted->pack, meta_volume(g->cfg->meta)->id, why) || decode_index(s)) {
		silt_error(g->cfg->log, "pack %016" PRIx64 " is damaged and can't be compacted: %s", s->noted->pack,
		           why);
		s->noted->tries = NOTED_DAMAGED;
		leave_out(s);
	}
	return 0;
}

static void *reader_main(void *arg)
{
	struct group *g = arg;
	size_t i;
	while (!atomic_load(&g->err) && !g->cfg->stopping(g->cfg->arg) && (i = atomic_fetch_add(&g->next, 1)) < g->nsources) {
		int rc = read_source(g, &g->sources[i]);
		if (rc)
			atomic_store(&g->err, rc);
	}
	return NULL;
}

static int read_sources(struct group *g)
{
	pthread_t threads[READERS];
	unsigned n = 0, want = g->nsources < READERS ? (unsigned)g->nsources : READERS;
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (n + 1 < want && !pthread_create(&threads[n], NULL, reader_main, g))
		n++;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	reader_main(g);
	while (n)
		pthread_join(threads[--n], NULL);
	for (size_t i = 0; i < g->nsources; i++)
		g->out->read += g->sources[i].data ? g->sources[i].noted->size : 0;
	int rc = atomic_load(&g->err);
	return !rc && g->cfg->stopping(g->cfg->arg) ? -ECANCELED : rc;
}

/* --- samples ------------------------------------------------------------------------------ */

/* Files of one small frame, not written with a dictionary; some of each pack. */
static void take_samples(struct group *g, struct dict_samples *out)
{
	ZSTD_DCtx *zd = ZSTD_createDCtx();
	for (size_t i = 0; zd && i < g->nsources; i++) {
		const struct source *s = &g->sources[i];
		size_t step = s->data ? 1 + s->index.n / SAMPLES_A_PACK : 1;
		for (size_t k = 0; s->data && k < s->index.n; k += step) {
			const uint8_t *at = s->data + s->index.v[k].pack_off;
			struct frame_header h;
			bool small = frame_header_decode(at, &h) == 0 && !h.off && !h.dict && h.raw <= DICT_FRAME_MAX;
			uint8_t *to = small ? dict_samples_add(out, h.raw) : NULL;
			if (to && frame_extract_sound(at, at + FRAME_HEADER, 0, h.raw, to, NULL, zd))
				memset(to, 0, h.raw); /* whose checksum was right: hardly possible */
		}
	}
	ZSTD_freeDCtx(zd);
}

/* --- where their bytes are used ----------------------------------------------------------- */

static int by_place(const void *a, const void *b)
{
	const struct meta_place *x = a, *y = b;
	if (x->ino != y->ino) /* an inode number begins with its shard */
		return x->ino < y->ino ? -1 : 1;
	return x->window < y->window ? -1 : x->window > y->window;
}

static int add_place(struct group *g, silt_ino ino, uint64_t window)
{
	const struct meta_place *last = g->nplaces ? &g->places[g->nplaces - 1] : NULL;
	if (last && last->ino == ino && last->window == window)
		return 0;
	if (silt_ino_shard(ino) >= meta_volume(g->cfg->meta)->shards)
		return 0;
	if (g->nplaces == g->cap_places) {
		size_t cap = g->cap_places ? g->cap_places * 2 : 1024;
		struct meta_place *v = reallocarray(g->places, cap, sizeof(*v));
		if (!v)
			return -ENOMEM;
		g->places = v;
		g->cap_places = cap;
	}
	g->places[g->nplaces++] = (struct meta_place){ .ino = ino, .window = window };
	return 0;
}

/* Calls `each` for the parts of places[] that lie in one shard. */
static int by_shard(struct group *g, int (*each)(struct group *g, unsigned shard, struct meta_place *v, size_t n))
{
	int rc = 0;
	for (size_t i = 0, n; i < g->nplaces && !rc; i += n) {
		unsigned shard = silt_ino_shard(g->places[i].ino);
		for (n = 1; i + n < g->nplaces && silt_ino_shard(g->places[i + n].ino) == shard;)
			n++;
		rc = each(g, shard, g->places + i, n);
	}
	return rc;
}

static int read_places(struct group *g, unsigned shard, struct meta_place *v, size_t n)
{
	int rc = 0;
	for (size_t i = 0, some; i < n && !rc && g->entry_bytes <= ENTRIES_MAX; i += some) {
		some = n - i < PLACES_AT_ONCE ? n - i : PLACES_AT_ONCE;
		rc = g->cfg->stopping(g->cfg->arg) ? -ECANCELED : meta_read_places(g->cfg->meta, shard, v + i, some);
		for (size_t k = 0; k < some; k++)
			g->entry_bytes += v[i + k].len;
	}
	return rc;
}

static int find_places(struct group *g)
{
	int rc = 0;
	for (size_t i = 0; i < g->nsources && !rc; i++) {
		const struct pack_index *ix = &g->sources[i].index;
		for (size_t k = 0; k < ix->n && !rc; k++)
			rc = add_place(g, ix->v[k].ino, ix->v[k].off / SILT_WINDOW);
	}
	if (rc || !g->nplaces)
		return rc;
	qsort(g->places, g->nplaces, sizeof(*g->places), by_place);
	size_t n = 1;
	for (size_t i = 1; i < g->nplaces; i++)
		if (by_place(&g->places[n - 1], &g->places[i]))
			g->places[n++] = g->places[i];
	g->nplaces = n;
	return by_shard(g, read_places);
}

/* --- runs --------------------------------------------------------------------------------- */

static struct source *source_of(struct group *g, uint64_t pack)
{
	size_t lo = 0, hi = g->nsources;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (g->sources[mid].noted->pack < pack)
			lo = mid + 1;
		else
			hi = mid;
	}
	struct source *s = lo < g->nsources ? &g->sources[lo] : NULL;
	return s && s->noted->pack == pack && s->data ? s : NULL;
}

/* The frames of a run; false: it does not end where one of them does. */
static bool frames_of(struct run *r)
{
	const struct pack_index *ix = &r->s->index;
	ssize_t at = pack_index_find(ix, r->pack_off);
	uint64_t bytes = 0;
	if (at < 0)
		return false;
	r->first = (size_t)at;
	for (r->n = 0; bytes < r->stored && r->first + r->n < ix->n; r->n++)
		bytes += FRAME_HEADER + (uint64_t)ix->v[r->first + r->n].stored;
	r->ino = ix->v[r->first].ino;
	r->off = ix->v[r->first].off;
	return bytes == r->stored && r->n > 0;
}

/* An entry as it stands: its bytes are live, whether they show or not. */
static void note_entry(struct group *g, const struct silt_extent *e)
{
	struct source *s = e->flags & EXTENT_HOLE ? NULL : source_of(g, e->pack);
	if (!s)
		return;
	s->found += e->stored;
	if ((e->flags & EXTENT_APPENDED) && (!s->noted->mtime || time(NULL) - s->noted->mtime < APPEND_HOLD)) {
		s->noted->held = true;
		leave_out(s);
	}
}

/* One that shows: its run is copied. */
static int add_run(struct group *g, const struct silt_extent *e)
{
	struct source *s = e->flags & EXTENT_HOLE ? NULL : source_of(g, e->pack);
	struct run r = { .s = s, .pack_off = e->pack_off, .stored = e->stored };
	if (!s)
		return 0;
	if (!frames_of(&r)) {
		silt_error(g->cfg->log, "pack %016" PRIx64 ": an extent names %u bytes at %u, which are no whole frames",
		           e->pack, e->stored, e->pack_off);
		s->noted->tries = NOTED_DAMAGED;
		leave_out(s);
		return 0;
	}
	if (g->nruns == g->cap_runs) {
		size_t cap = g->cap_runs ? g->cap_runs * 2 : 1024;
		struct run *v = reallocarray(g->runs, cap, sizeof(*v));
		if (!v)
			return -ENOMEM;
		g->runs = v;
		g->cap_runs = cap;
	}
	g->runs[g->nruns++] = r;
	return 0;
}

static int by_file(const void *a, const void *b)
{
	const struct run *x = a, *y = b;
	if (x->ino != y->ino)
		return x->ino < y->ino ? -1 : 1;
	if (x->off != y->off)
		return x->off < y->off ? -1 : 1;
	if (x->s != y->s)
		return x->s < y->s ? -1 : 1;
	if (x->pack_off != y->pack_off)
		return x->pack_off < y->pack_off ? -1 : 1;
	return x->stored < y->stored ? -1 : x->stored > y->stored;
}

static bool same_run(const struct run *a, const struct run *b)
{
	return a->s == b->s && a->pack_off == b->pack_off;
}

/* Which runs are named, each once, in the order in which they go into the new pack. */
static int find_runs(struct group *g)
{
	int rc = 0;
	for (size_t i = 0; i < g->nplaces && !rc; i++) {
		const struct meta_place *p = &g->places[i];
		/* The extent of a record comes with each window that was asked for. */
		if (!p->log && i && g->places[i - 1].ino == p->ino)
			continue;
		struct extent_map map;
		extent_map_init(&map);
		size_t entries = 0;
		for (size_t at = 0; at < p->len && !rc; entries++) {
			struct silt_extent e;
			int used = extent_decode(p->entries + at, p->len - at, &e);
			if (used < 0)
				break;
			note_entry(g, &e);
			rc = extent_map_add(&map, &e);
			at += (size_t)used;
		}
		g->hidden = g->hidden || map.n < entries;
		for (size_t k = 0; k < map.n && !rc; k++)
			rc = add_run(g, &map.v[k]);
		extent_map_free(&map);
	}
	/* Bytes that something else names would have to stay, and now be there twice. */
	for (size_t i = 0; i < g->nsources; i++)
		if (g->sources[i].data && g->sources[i].found < g->sources[i].noted->live)
			leave_out(&g->sources[i]);
	if (rc || !g->nruns)
		return rc;
	qsort(g->runs, g->nruns, sizeof(*g->runs), by_file);
	size_t n = 0;
	for (size_t i = 0; i < g->nruns; i++) {
		if (!g->runs[i].s->data)
			continue;
		if (n && same_run(&g->runs[n - 1], &g->runs[i])) /* the longer one is the last */
			g->runs[n - 1] = g->runs[i];
		else
			g->runs[n++] = g->runs[i];
	}
	g->nruns = n;
	return 0;
}

/* --- the new pack ------------------------------------------------------------------------- */

static int store_pack(struct group *g, uint64_t to)
{
	const struct iovec *iov;
	struct silt_err err = { 0 };
	char key[PACK_KEY_MAX];
	int niov;
	size_t total, n = 0;
	struct pack_builder *b = pack_builder_new(to, meta_volume(g->cfg->meta)->id, 0);
	int rc = b ? 0 : -ENOMEM;
	for (size_t i = 0; i < g->nruns && !rc; i++) {
		struct run *r = &g->runs[i];
		rc = pack_builder_add_frames(b, r->s->index.v + r->first, r->n, r->s->data + r->pack_off, &r->to_off);
		if (rc == -ENOSPC) { /* it keeps its pack */
			rc = 0;
			break;
		}
		n += !rc;
	}
	g->nruns = n;
	if (!rc)
		rc = pack_builder_finish(b, &iov, &niov, &total);
	if (!rc) {
		pack_key(to, key);
		rc = store_put(g->cfg->store, key, iov, niov, STORE_EXCL, &err);
		if (rc)
			silt_warn(g->cfg->log, "compaction: %s", err.text);
	}
	if (!rc) {
		g->out->written = total;
		g->out->stored = true;
	}
	pack_builder_free(b);
	return rc;
}

static int by_old_place(const void *a, const void *b)
{
	const struct meta_move *x = a, *y = b;
	if (x->pack != y->pack)
		return x->pack < y->pack ? -1 : 1;
	return x->pack_off < y->pack_off ? -1 : x->pack_off > y->pack_off;
}

static int move_all(struct group *g, uint64_t to)
{
	struct meta_move *moves = calloc(g->nruns + 1, sizeof(*moves));
	int rc = moves ? 0 : -ENOMEM;
	for (size_t i = 0; i < g->nruns && !rc; i++)
		moves[i] = (struct meta_move){ g->runs[i].s->noted->pack, g->runs[i].pack_off, g->runs[i].to_off };
	if (!rc && g->nruns)
		qsort(moves, g->nruns, sizeof(*moves), by_old_place);
	for (size_t i = 0, n; i < g->nplaces && !rc; i += n) {
		unsigned shard = silt_ino_shard(g->places[i].ino);
		uint64_t moved = 0;
		for (n = 1; i + n < g->nplaces && silt_ino_shard(g->places[i + n].ino) == shard;)
			n++;
		rc = meta_move_places(g->cfg->meta, shard, g->places + i, n, moves, g->nruns, to, &moved);
		g->out->moved += moved;
	}
	free(moves);
	return rc;
}

int compact_group(const struct compactor_config *cfg, struct noted *v, size_t n, uint64_t to,
                  struct dict_samples *samples, struct group_result *out)
{
	struct group g = { .cfg = cfg, .nsources = n, .out = out };
	*out = (struct group_result){ 0 };
	g.sources = calloc(n, sizeof(*g.sources));
	if (!g.sources)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		g.sources[i].noted = &v[i];
	int rc = read_sources(&g);
	if (!rc && samples)
		take_samples(&g, samples);
	if (!rc)
		rc = find_places(&g);
	if (!rc)
		rc = find_runs(&g);
	if (!rc && g.nruns)
		rc = g.cfg->stopping(g.cfg->arg) ? -ECANCELED : store_pack(&g, to);
	if (!rc && (out->stored || g.hidden))
		rc = move_all(&g, to);
	for (size_t i = 0; i < n; i++)
		leave_out(&g.sources[i]);
	for (size_t i = 0; i < g.nplaces; i++)
		free(g.places[i].entries);
	free(g.sources);
	free(g.places);
	free(g.runs);
	return rc;
}
