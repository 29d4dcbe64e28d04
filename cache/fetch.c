/* The read side's life, its threads, and what they share.
 *
 * Fetch threads block in store GETs; there are as many as GETs may run at once. Two queues:
 * `urgent` (a reader waits) is always taken first, and `background` (whole packs for warmup and
 * prefetch, packs just written) never holds all threads, so that a miss does not wait behind a
 * warmup. */
#include <errno.h>
#include <stdlib.h>

#include "cache/fetch_parts.h"

#define DEFAULT_MEMORY  ((uint64_t)64 << 20)
#define DEFAULT_THREADS 16u

void fetch_enter(struct fetch *f)
{
	atomic_fetch_add(&f->busy, 1);
}

/* Only who brings the count to 0 touches `f` after that, and fetch_close() waits for it. */
void fetch_leave(struct fetch *f)
{
	if (atomic_fetch_sub(&f->busy, 1) > 1)
		return;
	silt_lock(&f->idle_lock);
	f->idle = true;
	silt_cond_signal(&f->idle_cond);
	silt_unlock(&f->idle_lock);
}

static void job_push(struct job_list *l, struct job *j)
{
	j->next = NULL;
	if (!l->first)
		l->last = &l->first;
	*l->last = j;
	l->last = &j->next;
	l->n++;
}

static struct job *job_pop(struct job_list *l)
{
	struct job *j = l->first;
	if (j) {
		l->first = j->next;
		l->n--;
	}
	return j;
}

void fetch_submit(struct fetch *f, struct job *j, bool urgent)
{
	silt_lock(&f->queue_lock);
	job_push(urgent ? &f->urgent : &f->background, j);
	silt_cond_signal(&f->queue_cond);
	silt_unlock(&f->queue_lock);
}

unsigned fetch_background_waiting(struct fetch *f)
{
	silt_lock(&f->queue_lock);
	unsigned n = f->background.n;
	silt_unlock(&f->queue_lock);
	return n;
}

/* Waits for a job, and lets go meanwhile what was fetched for readers that don't come. Lock held. */
static void rest(struct fetch *f)
{
	silt_unlock(&f->queue_lock);
	uint64_t again = linger_rest(f);
	silt_lock(&f->queue_lock);
	if (f->urgent.first || (f->background.first && f->running_background < f->background_most) || f->stop)
		return;
	if (again)
		silt_cond_wait_until(&f->queue_cond, &f->queue_lock, silt_now_ns() + again);
	else
		silt_cond_wait(&f->queue_cond, &f->queue_lock);
}

static void *fetch_main(void *arg)
{
	struct fetch *f = arg;
	silt_lock(&f->queue_lock);
	for (;;) {
		bool urgent = f->urgent.first != NULL;
		struct job *j = job_pop(&f->urgent);
		if (!j && f->running_background < f->background_most)
			j = job_pop(&f->background);
		if (!j) {
			if (f->stop)
				break;
			rest(f);
			continue;
		}
		f->running_background += !urgent;
		silt_unlock(&f->queue_lock);
		j->run(f, j);
		silt_lock(&f->queue_lock);
		f->running_background -= !urgent;
		fetch_leave(f); /* the job's fetch_enter() */
	}
	silt_unlock(&f->queue_lock);
	return NULL;
}

struct decoder *decoder_get(struct fetch *f)
{
	silt_lock(&f->decoder_lock);
	struct decoder *d = f->decoders;
	if (d)
		f->decoders = d->next;
	silt_unlock(&f->decoder_lock);
	if (d)
		return d;
	d = malloc(sizeof(*d));
	if (d) {
		d->zd = ZSTD_createDCtx();
		d->dict = 0;
	}
	if (d && !d->zd) {
		free(d);
		d = NULL;
	}
	return d;
}

int decoder_use(struct fetch *f, struct decoder *d, uint32_t dict, bool fetch)
{
	const void *reader = NULL;
	if (dict == d->dict)
		return 0;
	if (dict && !f->dict)
		return -EBADMSG;
	int rc = dict ? f->dict(f->dicts, dict, fetch, &reader) : 0;
	if (!rc && ZSTD_isError(ZSTD_DCtx_refDDict(d->zd, reader)))
		rc = -ENOMEM;
	if (!rc)
		d->dict = dict;
	return rc;
}

void decoder_put(struct fetch *f, struct decoder *d)
{
	silt_lock(&f->decoder_lock);
	d->next = f->decoders;
	f->decoders = d;
	silt_unlock(&f->decoder_lock);
}

static void locks_init(struct fetch *f)
{
	for (unsigned i = 0; i < FLIGHT_BUCKETS; i++)
		silt_lock_init(&f->buckets[i].lock);
	silt_lock_init(&f->load_lock);
	silt_lock_init(&f->linger_lock);
	big_buffers_init(&f->buffers);
	f->linger_last = &f->linger_first;
	silt_lock_init(&f->decoder_lock);
	silt_lock_init(&f->queue_lock);
	silt_cond_init(&f->queue_cond);
	silt_lock_init(&f->idle_lock);
	silt_cond_init(&f->idle_cond);
	index_cache_init(&f->indexes);
}

static int start_threads(struct fetch *f, unsigned n)
{
	f->threads = calloc(n, sizeof(*f->threads));
	if (!f->threads)
		return -ENOMEM;
	f->background_most = n - (n + 3) / 4 > 0 ? n - (n + 3) / 4 : 1;
	for (; f->nthreads < n; f->nthreads++) {
		int rc = pthread_create(&f->threads[f->nthreads], NULL, fetch_main, f);
		if (rc != 0)
			return -rc;
	}
	return 0;
}

int fetch_open(const struct fetch_config *cfg, struct fetch **out, struct silt_err *err)
{
	struct fetch *f = calloc(1, sizeof(*f));
	if (!f)
		return silt_fail(err, -ENOMEM, "out of memory");
	f->store = cfg->store;
	f->tier = cfg->tier;
	f->dict = cfg->dict;
	f->dicts = cfg->dicts;
	f->log = cfg->log;
	f->metrics = cfg->metrics;
	f->volume = cfg->volume;
	atomic_init(&f->busy, 1); /* fetch_close()'s */
	locks_init(f);
	f->memory = frame_memory_new(cfg->memory_size ? cfg->memory_size : DEFAULT_MEMORY);
	int rc = f->memory ? 0 : -ENOMEM;
	if (rc == 0)
		rc = start_threads(f, cfg->threads ? cfg->threads : DEFAULT_THREADS);
	if (rc < 0) {
		fetch_close(f);
		return silt_fail(err, rc, "cannot start the fetch threads: %s", strerror(-rc));
	}
	*out = f;
	return 0;
}

static void stop_threads(struct fetch *f)
{
	silt_lock(&f->queue_lock);
	f->stop = true;
	silt_cond_broadcast(&f->queue_cond);
	silt_unlock(&f->queue_lock);
	for (unsigned i = 0; i < f->nthreads; i++)
		pthread_join(f->threads[i], NULL);
}

static void free_all(struct fetch *f)
{
	linger_free(f);
	silt_lock_destroy(&f->linger_lock);
	big_buffers_free(&f->buffers);
	for (struct decoder *d = f->decoders, *next; d; d = next) {
		next = d->next;
		ZSTD_freeDCtx(d->zd);
		free(d);
	}
	for (unsigned i = 0; i < FLIGHT_BUCKETS; i++)
		silt_lock_destroy(&f->buckets[i].lock);
	silt_lock_destroy(&f->load_lock);
	silt_lock_destroy(&f->decoder_lock);
	silt_lock_destroy(&f->queue_lock);
	silt_cond_destroy(&f->queue_cond);
	silt_lock_destroy(&f->idle_lock);
	silt_cond_destroy(&f->idle_cond);
	index_cache_free(&f->indexes);
	frame_memory_free(f->memory);
	free(f->threads);
	free(f);
}

void fetch_close(struct fetch *f)
{
	if (!f)
		return;
	fetch_leave(f);
	silt_lock(&f->idle_lock);
	while (!f->idle)
		silt_cond_wait(&f->idle_cond, &f->idle_lock);
	silt_unlock(&f->idle_lock);
	stop_threads(f);
	free_all(f);
}

unsigned fetch_width(const struct fetch *f)
{
	return f->nthreads;
}
