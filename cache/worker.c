/* See worker.h. Each look takes the lists of dead packs of all shards; `waiting` remembers since when each
 * has been there. What is due is buried, a thousand at a time, their objects are deleted, and then they are
 * taken off the lists. A crash in between leaves it there, for the next worker to do all of it again.
 *
 * A pack that turns out to be in use in another shard stays on the list, as that shard may not add it
 * to its own a second time; it is looked at again less and less often. */
#include "cache/worker.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "cache/compact.h"
#include "cache/pack.h"
#include "meta/lock.h"

#define INTERVAL_MS  5000u
#define BATCH        1000u /* packs buried and deleted together */
#define WAITING_MAX  (1u << 18) /* remembered; more have to wait until some are gone */
#define USED_WAIT_NS ((uint64_t)3600 * 1000000000u)

struct dead_pack {
	uint64_t pack, due, wait; /* monotonic ns */
};

struct worker {
	struct worker_config cfg;
	struct dead_pack *waiting; /* by pack; the thread's */
	size_t n, cap;
	unsigned first; /* shard */
	bool elected;
	bool refused; /* the store would not delete; said once */
	struct compactor *compactor; /* the thread's; NULL: nothing is compacted */
	pthread_t thread;
	struct silt_lock lock; /* guards stop */
	struct silt_cond wake;
	bool stop;
};

static bool stopping(struct worker *w)
{
	silt_lock(&w->lock);
	bool stop = w->stop;
	silt_unlock(&w->lock);
	return stop;
}

static int by_pack(const void *a, const void *b)
{
	const struct dead_pack *x = a, *y = b;
	return x->pack < y->pack ? -1 : x->pack > y->pack;
}

static bool note(struct worker *w, struct dead_pack d)
{
	if (w->n == w->cap) {
		size_t cap = w->cap ? w->cap * 2 : 64;
		struct dead_pack *v = reallocarray(w->waiting, cap, sizeof(*v));
		if (!v)
			return false;
		w->waiting = v;
		w->cap = cap;
	}
	w->waiting[w->n++] = d;
	return true;
}

/* Takes a shard's list into `waiting`; what was there already keeps its time. */
static int take_list(struct worker *w, unsigned shard, const struct dead_pack *old, size_t nold)
{
	uint64_t cursor = 0, now = silt_now_ns();
	int rc = 0;
	do {
		uint64_t *packs;
		size_t n;
		rc = meta_dead_packs(w->cfg.meta, shard, &cursor, BATCH, &packs, &n);
		for (size_t i = 0; i < n && !rc && w->n < WAITING_MAX; i++) {
			struct dead_pack d = { .pack = packs[i],
				               .due = now + w->cfg.grace_ms * 1000000u,
				               .wait = w->cfg.grace_ms * 1000000u };
			const struct dead_pack *known =
			        nold ? bsearch(&d, old, nold, sizeof(*old), by_pack) : NULL;
			rc = note(w, known ? *known : d) ? 0 : -ENOMEM;
		}
		free(packs);
	} while (!rc && cursor && w->n < WAITING_MAX && !stopping(w));
	return rc;
}

static int take_lists(struct worker *w)
{
	struct dead_pack *old = w->waiting;
	size_t nold = w->n;
	int rc = 0;
	w->waiting = NULL;
	w->n = w->cap = 0;
	/* Another one first each time: there may be more than are remembered. */
	unsigned shards = meta_volume(w->cfg.meta)->shards;
	w->first = (w->first + 1) % shards;
	for (unsigned i = 0; i < shards && !rc; i++)
		rc = take_list(w, (w->first + i) % shards, old, nold);
	if (rc) { /* the times are kept for the next look */
		free(w->waiting);
		w->waiting = old;
		w->n = w->cap = nold;
		return rc;
	}
	free(old);
	size_t n = 0;
	if (w->n)
		qsort(w->waiting, w->n, sizeof(*w->waiting), by_pack);
	for (size_t i = 0; i < w->n; i++) /* several shards may have used it */
		if (!n || by_pack(&w->waiting[n - 1], &w->waiting[i]))
			w->waiting[n++] = w->waiting[i];
	w->n = n;
	return 0;
}

/* Deletes the objects of packs that are buried. */
static int delete_objects(struct worker *w, const uint64_t *packs, size_t n)
{
	char(*text)[PACK_KEY_MAX] = calloc(n, sizeof(*text));
	const char **keys = calloc(n, sizeof(*keys));
	struct silt_err err = { 0 };
	int rc = text && keys ? 0 : -ENOMEM;
	for (size_t i = 0; i < n && !rc; i++) {
		pack_key(packs[i], text[i]);
		keys[i] = text[i];
	}
	if (!rc)
		rc = store_delete_many(w->cfg.store, keys, n, &err);
	if (rc && !w->refused)
		silt_warn(w->cfg.log, "deleting %zu packs that nobody uses any more: %s; trying again later", n,
		          err.text[0] ? err.text : strerror(-rc));
	w->refused = rc != 0;
	free(text);
	free(keys);
	return rc;
}

static void put_off(struct dead_pack *d)
{
	d->wait = d->wait < USED_WAIT_NS / 2 ? d->wait * 2 : USED_WAIT_NS;
	d->due = silt_now_ns() + d->wait;
}

/* Buries and deletes what is dead of v[0..n). */
static int bury(struct worker *w, struct dead_pack **v, size_t n)
{
	uint64_t packs[BATCH] = { 0 };
	bool dead[BATCH];
	size_t k = 0;
	for (size_t i = 0; i < n; i++)
		packs[i] = v[i]->pack;
	int rc = meta_packs_bury(w->cfg.meta, packs, n, dead);
	if (rc)
		return rc;
	for (size_t i = 0; i < n; i++) {
		if (dead[i])
			packs[k++] = v[i]->pack;
		else
			put_off(v[i]);
	}
	if (!k)
		return 0;
	if (delete_objects(w, packs, k)) { /* others may go better */
		for (size_t i = 0; i < n; i++)
			put_off(v[i]);
		return 0;
	}
	for (unsigned s = 0; s < meta_volume(w->cfg.meta)->shards && !rc; s++)
		rc = meta_packs_forget(w->cfg.meta, s, packs, k);
	if (!rc) {
		silt_count(w->cfg.metrics, M_PACKS_DELETED, k);
		silt_debugf(w->cfg.log, "cache.worker", "%zu packs deleted", k);
	}
	return rc;
}

static int bury_due(struct worker *w)
{
	struct dead_pack *due[BATCH];
	size_t n = 0;
	uint64_t now = silt_now_ns();
	for (size_t i = 0; i < w->n && !stopping(w); i++) {
		struct dead_pack *d = &w->waiting[i];
		if (n == BATCH) {
			int rc = bury(w, due, n);
			if (rc)
				return rc;
			n = 0;
		}
		if (d->due <= now)
			due[n++] = d;
	}
	return n && !stopping(w) ? bury(w, due, n) : 0;
}

static int elect(struct worker *w)
{
	/* Whoever fails to say so three times is not the worker any more. */
	int rc = meta_worker_elect(w->cfg.meta, 3 * w->cfg.interval_ms);
	w->elected = rc == 1;
	return rc;
}

static bool go_on(void *arg)
{
	return elect(arg) == 1;
}

static bool shall_stop(void *arg)
{
	return stopping(arg);
}

static void look(struct worker *w)
{
	int rc = elect(w);
	if (rc == 1) {
		rc = take_lists(w);
		if (!rc)
			rc = bury_due(w);
		if (!rc && w->compactor)
			rc = compactor_look(w->compactor);
	} else if (rc == 0) {
		w->n = 0; /* another one looks after them */
		if (w->compactor)
			compactor_forget(w->compactor);
	}
	if (rc < 0)
		silt_debugf(w->cfg.log, "cache.worker", "background work: %s", strerror(-rc));
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	silt_lock(&w->lock);
	while (!w->stop) {
		uint64_t until = silt_now_ns() + (uint64_t)w->cfg.interval_ms * 1000000u;
		while (!w->stop && silt_cond_wait_until(&w->wake, &w->lock, until))
			;
		if (w->stop)
			break;
		silt_unlock(&w->lock);
		look(w);
		silt_lock(&w->lock);
	}
	silt_unlock(&w->lock);
	if (w->elected)
		meta_worker_resign(w->cfg.meta);
	return NULL;
}

static void worker_free(struct worker *w)
{
	silt_cond_destroy(&w->wake);
	silt_lock_destroy(&w->lock);
	compactor_close(w->compactor);
	free(w->waiting);
	free(w);
}

int worker_open(const struct worker_config *cfg, struct worker **out)
{
	struct worker *w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	w->cfg = *cfg;
	if (!w->cfg.interval_ms)
		w->cfg.interval_ms = INTERVAL_MS;
	silt_lock_init(&w->lock);
	silt_cond_init(&w->wake);
	struct compactor_config cc = { .store = cfg->store,
		                       .meta = cfg->meta,
		                       .log = cfg->log,
		                       .metrics = cfg->metrics,
		                       .rate = cfg->compact_rate,
		                       .wait_ms = cfg->compact_wait_ms,
		                       .level = cfg->compress_level,
		                       .budget_ms = w->cfg.interval_ms,
		                       .go_on = go_on,
		                       .stopping = shall_stop,
		                       .arg = w };
	int rc = cfg->compact_rate ? compactor_open(&cc, &w->compactor) : 0;
	if (rc) {
		worker_free(w);
		return rc;
	}
	/* Signals are for the threads of the program that wait for them. */
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = -pthread_create(&w->thread, NULL, worker_main, w);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc) {
		worker_free(w);
		return rc;
	}
	pthread_setname_np(w->thread, "silt-worker");
	*out = w;
	return 0;
}

void worker_close(struct worker *w)
{
	if (!w)
		return;
	silt_lock(&w->lock);
	w->stop = true;
	silt_cond_signal(&w->wake);
	silt_unlock(&w->lock);
	pthread_join(w->thread, NULL);
	worker_free(w);
}
