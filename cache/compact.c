/* Which packs are compacted, and when: see compact.h. `noted` follows the lists of all shards; what is judged not to be
 * worth it is taken off them, and comes back when its live bytes shrink further. */
#include "cache/compact.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/compact_impl.h"
#include "cache/pack.h"
#include "cache/pack_ids.h"
#include "meta/lock.h"

#define NOTED_MAX    (1u << 18)
#define COUNT_BATCH  1000u
#define SMALL_ENOUGH 8u		      /* small packs that are worth a group */
#define RECLAIM_ENOUGH (256u << 10)   /* bytes that a group of half-used small ones gives back */
#define GROUP_LIVE   PACK_TARGET      /* live bytes after which a group is closed */
#define GROUP_BYTES  (4u * PACK_TARGET) /* and bytes to be read for it */
#define SAMPLES_ENOUGH	     1000u
#define SAMPLE_BYTES_ENOUGH  (512u << 10)
#define PATIENCE     10u	      /* times wait_ms, then two are worth it */
#define JUDGED	     UINT64_MAX	      /* as size: off the lists */
#define TRIES	     4u		      /* of a pack that something else uses too */

struct compactor {
	struct compactor_config cfg;
	struct pack_ids ids;
	struct noted *noted; /* by pack */
	size_t n, cap;
	struct dict_samples samples;
	uint64_t paused; /* until then nothing is read, monotonic ns */
	unsigned first;  /* shard */
	bool trained; /* there is a dictionary, or nothing that files have in common */
};

static int by_pack(const void *a, const void *b)
{
	const struct noted *x = a, *y = b;
	return x->pack < y->pack ? -1 : x->pack > y->pack;
}

/* --- the lists ---------------------------------------------------------------------------- */

static int note(struct compactor *c, struct noted d)
{
	if (c->n == c->cap) {
		size_t cap = c->cap ? c->cap * 2 : 256;
		struct noted *v = reallocarray(c->noted, cap, sizeof(*v));
		if (!v)
			return -ENOMEM;
		c->noted = v;
		c->cap = cap;
	}
	c->noted[c->n++] = d;
	return 0;
}

static int take_list(struct compactor *c, unsigned shard, const struct noted *old, size_t nold)
{
	uint64_t cursor = 0, now = silt_now_ns();
	int rc = 0;
	do {
		uint64_t *packs;
		size_t n;
		rc = meta_noted_packs(c->cfg.meta, shard, &cursor, COUNT_BATCH, &packs, &n);
		for (size_t i = 0; i < n && !rc && c->n < NOTED_MAX; i++) {
			struct noted d = { .pack = packs[i], .since = now };
			const struct noted *known = nold ? bsearch(&d, old, nold, sizeof(*old), by_pack) : NULL;
			rc = note(c, known && known->size != JUDGED ? *known : d);
		}
		free(packs);
	} while (!rc && cursor && c->n < NOTED_MAX && !c->cfg.stopping(c->cfg.arg));
	return rc;
}

static void sort_noted(struct compactor *c)
{
	size_t n = 0;
	if (c->n)
		qsort(c->noted, c->n, sizeof(*c->noted), by_pack);
	for (size_t i = 0; i < c->n; i++) /* several shards may have noted it */
		if (!n || by_pack(&c->noted[n - 1], &c->noted[i]))
			c->noted[n++] = c->noted[i];
	c->n = n;
}

static int take_lists(struct compactor *c)
{
	struct noted *old = c->noted;
	size_t nold = c->n;
	int rc = 0;
	c->noted = NULL;
	c->n = c->cap = 0;
	/* Another one first each time: there may be more than are remembered. */
	unsigned shards = meta_volume(c->cfg.meta)->shards;
	c->first = (c->first + 1) % shards;
	for (unsigned s = 0; s < shards && !rc; s++)
		rc = take_list(c, (c->first + s) % shards, old, nold);
	if (rc) { /* what was known is kept for the next look */
		free(c->noted);
		c->noted = old;
		c->n = c->cap = nold;
		return rc;
	}
	free(old);
	sort_noted(c);
	return 0;
}

/* Takes packs off all lists. */
static int forget(struct compactor *c, struct noted **v, size_t n)
{
	uint64_t packs[GROUP_PACKS];
	int rc = 0;
	for (size_t i = 0; i < n; i++)
		packs[i] = v[i]->pack;
	for (unsigned s = 0; s < meta_volume(c->cfg.meta)->shards && n && !rc; s++)
		rc = meta_noted_forget(c->cfg.meta, s, packs, n);
	for (size_t i = 0; i < n && !rc; i++)
		v[i]->size = JUDGED; /* it keeps its place until the next look */
	return rc;
}

/* --- judging ------------------------------------------------------------------------------ */

/* Live bytes over all shards; UINT64_MAX: nobody can say. */
static int count_live(struct compactor *c, struct noted **v, size_t n)
{
	uint64_t packs[GROUP_PACKS];
	int64_t state[GROUP_PACKS];
	int rc = 0;
	for (size_t i = 0; i < n; i++) {
		packs[i] = v[i]->pack;
		v[i]->live = 0;
	}
	for (unsigned s = 0; s < meta_volume(c->cfg.meta)->shards && !rc; s++) {
		rc = meta_packs_count(c->cfg.meta, s, packs, n, state);
		for (size_t i = 0; i < n && !rc; i++) {
			if (state[i] < 0 || v[i]->live == UINT64_MAX)
				v[i]->live = UINT64_MAX;
			else
				v[i]->live += (uint64_t)state[i];
		}
	}
	return rc;
}

static int find_size(struct compactor *c, struct noted *d)
{
	struct store_object info;
	char key[PACK_KEY_MAX];
	struct silt_err err = { 0 };
	if (d->size)
		return 0;
	pack_key(d->pack, key);
	int rc = store_head(c->cfg.store, key, &info, &err);
	if (rc == -ENOENT) {
		info.size = UINT64_MAX - 1; /* it died */
	} else if (rc) {
		silt_warn(c->cfg.log, "compaction: %s", err.text);
		return rc;
	}
	d->mtime = info.mtime;
	d->size = info.size ? info.size : 1;
	return 0;
}

static bool worth_it(const struct noted *d)
{
	if (d->size > PACK_MAX || !d->live || d->live == UINT64_MAX)
		return false;
	return d->size < COMPACT_SMALL || d->live < d->size / 2;
}

/* Looks at up to GROUP_PACKS packs that are due. *out gets those worth it; the others are taken off the lists. */
static int judge(struct compactor *c, struct noted **v, size_t n, struct noted **out, size_t *nout)
{
	struct noted *off[GROUP_PACKS];
	size_t noff = 0;
	unsigned failed = 0;
	int rc = count_live(c, v, n);
	*nout = 0;
	for (size_t i = 0; i < n && !rc; i++) {
		if (c->cfg.stopping(c->cfg.arg))
			return -ECANCELED;
		int bad = find_size(c, v[i]);
		if (bad) { /* others may go better, unless the store is away */
			if (++failed >= STORE_FAILURES)
				return bad;
			v[i]->since = silt_now_ns();
			if (++v[i]->tries >= TRIES)
				off[noff++] = v[i];
			continue;
		}
		if (worth_it(v[i]))
			out[(*nout)++] = v[i];
		else
			off[noff++] = v[i];
	}
	return rc ? rc : forget(c, off, noff);
}

/* --- groups ------------------------------------------------------------------------------- */

static int cmp_noted(const void *a, const void *b)
{
	return by_pack(*(struct noted *const *)a, *(struct noted *const *)b);
}

/* How many of v[0..n) make a group; 0: they are not worth it yet. */
static size_t group_of(const struct compactor *c, struct noted **v, size_t n)
{
	uint64_t live = 0, bytes = 0, now = silt_now_ns();
	bool large = false, patient = false;
	size_t k = 0;
	for (; k < n && k < GROUP_PACKS; k++) {
		if (k && (live + v[k]->live > GROUP_LIVE || bytes + v[k]->size > GROUP_BYTES))
			break;
		live += v[k]->live;
		bytes += v[k]->size;
		large = large || v[k]->size >= COMPACT_SMALL;
		patient = patient || now - v[k]->since > PATIENCE * c->cfg.wait_ms * 1000000u;
	}
	bool full = k < n || live >= GROUP_LIVE / 2;
	bool wasteful = live <= bytes / 2 && bytes - live >= RECLAIM_ENOUGH;
	return large || wasteful || k >= SMALL_ENOUGH || (k > 1 && (full || patient)) ? k : 0;
}

/* What was moved away is dead now, and off the lists; what something else uses as well is looked at a few times. */
static int after_group(struct compactor *c, struct noted **v, size_t n)
{
	struct noted *off[GROUP_PACKS];
	size_t noff = 0;
	int rc = count_live(c, v, n);
	for (size_t i = 0; i < n && !rc; i++) {
		v[i]->since = silt_now_ns();
		if (v[i]->live && v[i]->held && v[i]->mtime) {
			int64_t left = v[i]->mtime + APPEND_HOLD - time(NULL);
			v[i]->since += left > 0 ? (uint64_t)left * 1000000000u : 0;
			v[i]->held = false;
			continue;
		}
		if (!v[i]->live || v[i]->tries == NOTED_DAMAGED || ++v[i]->tries >= TRIES)
			off[noff++] = v[i];
	}
	return rc ? rc : forget(c, off, noff);
}

/* Makes the volume's first dictionary, when there are enough samples. */
static void train(struct compactor *c)
{
	uint32_t number;
	uint64_t without, with;
	void *dict;
	size_t len;
	struct silt_err err = { 0 };
	if (c->trained || c->samples.n < SAMPLES_ENOUGH || c->samples.used < SAMPLE_BYTES_ENOUGH ||
	    meta_dictionary(c->cfg.meta, &number))
		return;
	c->trained = true;
	int rc = number ? -EEXIST : dict_train(&c->samples, DICT_SIZE, c->cfg.level, &dict, &len, &without, &with);
	dict_samples_free(&c->samples);
	if (rc)
		return;
	if (with >= without / 10 * 9)
		silt_debugf(c->cfg.log, "cache.compact", "no dictionary: %" PRIu64 " bytes with one, %" PRIu64 " without",
		            with, without);
	else if (dict_publish(c->cfg.store, c->cfg.meta, meta_volume(c->cfg.meta)->id, dict, len, &number, &err))
		silt_warn(c->cfg.log, "a dictionary can't be stored: %s", err.text);
	else
		silt_info(c->cfg.log, "small files are compressed with dictionary %u from now on: samples take %.0f %% of what "
		          "they took", number, (double)with * 100 / (double)without);
	free(dict);
}

/* What may be named by now is asked of the counters, whatever the replies were: one may have been lost, and the
 * answer to the call that was sent again may not know. From the burial on nobody can name it. */
static void drop_unused(struct compactor *c, uint64_t to)
{
	char key[PACK_KEY_MAX];
	bool dead = false;
	pack_key(to, key);
	if (!meta_packs_bury(c->cfg.meta, &to, 1, &dead) && dead)
		store_delete(c->cfg.store, key, NULL);
}

/* Only what concerns all packs ends a look. (A store that is away: -ETIMEDOUT.) */
static bool ends_look(int rc)
{
	return rc == -ENOTCONN || rc == -ETIMEDOUT || rc == -ENOMEM || rc == -ECANCELED || rc == -EEXIST;
}

static int compact(struct compactor *c, struct noted **v, size_t n)
{
	struct noted copies[GROUP_PACKS];
	struct group_result r;
	uint64_t to;
	for (size_t i = 0; i < n; i++)
		copies[i] = *v[i];
	int rc = pack_ids_take(&c->ids, &to);
	if (rc)
		return rc;
	rc = compact_group(&c->cfg, copies, n, to, c->trained || !c->cfg.level ? NULL : &c->samples, &r);
	for (size_t i = 0; i < n; i++) {
		v[i]->tries = copies[i].tries;
		v[i]->held = copies[i].held;
	}
	c->paused = silt_now_ns() + r.read * 1000 / c->cfg.rate * 1000000u;
	if (rc == -EEXIST) { /* Redis has lost its last second, and gives out numbers again */
		pack_ids_discard(&c->ids);
		return rc;
	}
	if (!rc && r.stored)
		drop_unused(c, to); /* another one was first, or it all has changed */
	if (rc && !ends_look(rc)) {
		silt_warn(c->cfg.log, "compaction of %zu packs: %s", n, strerror(-rc));
		rc = 0;
	}
	if (!rc && r.moved) {
		silt_count(c->cfg.metrics, M_PACKS_COMPACTED, n);
		silt_count(c->cfg.metrics, M_COMPACTED_BYTES, r.written);
		silt_debugf(c->cfg.log, "cache.compact", "%zu packs, %" PRIu64 " bytes: %" PRIu64 " in pack %016" PRIx64,
		            n, r.read, r.written, to);
	}
	if (!rc)
		rc = after_group(c, v, n);
	if (!rc)
		train(c);
	return rc;
}

/* Is there time for another group? */
static bool more(struct compactor *c, uint64_t began)
{
	uint64_t now = silt_now_ns();
	return now >= c->paused && now - began < c->cfg.budget_ms * 1000000u && !c->cfg.stopping(c->cfg.arg) &&
	       c->cfg.go_on(c->cfg.arg);
}

int compactor_look(struct compactor *c)
{
	struct noted *due[GROUP_PACKS], *good[GROUP_PACKS];
	uint64_t now = silt_now_ns();
	if (now < c->paused)
		return 0;
	int rc = take_lists(c);
	for (size_t i = 0; i < c->n && !rc;) {
		size_t n = 0, ngood, k;
		for (; i < c->n && n < GROUP_PACKS; i++)
			if (now > c->noted[i].since && now - c->noted[i].since >= c->cfg.wait_ms * 1000000u)
				due[n++] = &c->noted[i];
		if (!n || !more(c, now))
			break;
		rc = judge(c, due, n, good, &ngood);
		if (rc)
			break;
		qsort(good, ngood, sizeof(*good), cmp_noted);
		for (size_t at = 0; at < ngood && !rc && more(c, now); at += k) {
			k = group_of(c, good + at, ngood - at);
			if (!k)
				break;
			rc = compact(c, good + at, k);
		}
	}
	return rc == -ECANCELED ? 0 : rc;
}

void compactor_forget(struct compactor *c)
{
	c->n = 0;
}

int compactor_open(const struct compactor_config *cfg, struct compactor **out)
{
	struct compactor *c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->cfg = *cfg;
	pack_ids_init(&c->ids, &uploader_ops, cfg->meta);
	*out = c;
	return 0;
}

void compactor_close(struct compactor *c)
{
	if (!c)
		return;
	pack_ids_destroy(&c->ids);
	dict_samples_free(&c->samples);
	free(c->noted);
	free(c);
}
