#include "fs/coherence_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#ifndef FUSE_EXPIRE_ONLY
#define FUSE_EXPIRE_ONLY (1 << 0)
#endif

/* How long after the last time what was told just before is dropped once more: an answer that the
 * notification overtook was given by then, also by a thread that a busy machine stopped in between. */
static const uint64_t again_ns[AGAINS] = { 100000000u, 1000000000u, 5000000000u };

static void push(struct queue *q, struct bucket *b)
{
	bucket_chain(b, NULL);
	if (q->last)
		bucket_chain(q->last, b);
	else
		q->first = b;
	q->last = b;
}

static struct bucket *pop(struct queue *q)
{
	struct bucket *b = q->first;
	if (b && !(q->first = bucket_chained(b)))
		q->last = NULL;
	return b;
}

/* --- telling the kernel ------------------------------------------------------------------- */

/* libfuse 3.14 has no call for FUSE_EXPIRE_ONLY. Older kernels drop the name instead of letting it
 * expire, which does as well. */
static void expire_name(struct fs *fs, silt_ino dir, const char *name, size_t len)
{
	char text[SILT_NAME_MAX + 1];
	struct fuse_notify_inval_entry_out out = { .parent = dir, .namelen = (uint32_t)len };
	uint32_t flags = FUSE_EXPIRE_ONLY;
	memcpy((char *)&out + 12, &flags, sizeof(flags)); /* named padding in older headers */
	struct fuse_out_header head = {
		.len = (uint32_t)(sizeof(head) + sizeof(out) + len + 1),
		.error = FUSE_NOTIFY_INVAL_ENTRY,
	};
	memcpy(text, name, len);
	text[len] = '\0';
	struct iovec iov[3] = { { &head, sizeof(head) }, { &out, sizeof(out) }, { text, len + 1 } };
	ssize_t n = writev(fuse_session_fd(fs->se), iov, 3);
	(void)n; /* ENOENT: the kernel doesn't have it; ENODEV: unmounted */
	silt_count(fs->cfg.metrics, M_KERNEL_INVALIDATIONS, 1);
}

static void drop_names(struct fs *fs, const struct bucket *b)
{
	const struct bucket_id *id = bucket_id_of(b);
	silt_ino dir = silt_ino_make(id->shard, id->seq);
	const char *name;
	size_t len;
	for (unsigned at = 0; bucket_told(b, &at, &name, &len);)
		if (len <= SILT_NAME_MAX)
			expire_name(fs, dir, name, len);
}

/* --- what the kernel shall forget, said on another thread ----------------------------------- */

static void queue_drop(struct coherence *c, struct drop *d)
{
	silt_lock(&c->lock);
	d->next = c->drops;
	c->drops = d;
	silt_cond_signal(&c->wake_entries);
	silt_unlock(&c->lock);
}

void coherence_drop_pages(struct fs *fs, silt_ino ino, uint64_t version)
{
	struct drop *d = malloc(sizeof(*d));
	if (!d)
		return; /* the next open compares versions */
	*d = (struct drop){ .ino = ino, .version = version };
	queue_drop(fs->coherence, d);
}

struct drop *coherence_moving(silt_ino dir, const char *name, size_t len)
{
	struct drop *d = malloc(sizeof(*d) + len);
	if (!d)
		return NULL;
	*d = (struct drop){ .ino = dir, .len = len };
	memcpy(d->name, name, len);
	return d;
}

void coherence_moved(struct fs *fs, struct drop *d)
{
	queue_drop(fs->coherence, d);
}

void coherence_not_given(struct fs *fs, silt_ino ino)
{
	coherence_drop_pages(fs, ino, UINT64_MAX);
}

static void on_up(void *arg)
{
	struct coherence *c = arg;
	silt_lock(&c->lock);
	c->look_at_all = true;
	silt_cond_signal(&c->wake);
	silt_unlock(&c->lock);
}

/* --- threads ------------------------------------------------------------------------------ */

static void on_stale(void *arg, struct bucket *b)
{
	struct coherence *c = arg;
	silt_lock(&c->lock);
	push(&c->fresh, b);
	silt_cond_signal(&c->wake);
	silt_unlock(&c->lock);
}

/* The kernel was told: frees the bucket, or keeps it for another time. Lock held. */
static void done_locked(struct coherence *c, struct bucket *b)
{
	uint64_t now = silt_now_ns(), *user = bucket_user(b), told = bucket_told_ns(b);
	unsigned times = *user & AGAINS;
	bool recent = told && now - told <= RECENT_NS;
	/* Evicted: nothing has changed, and the table is short of room. */
	bool enough = times == AGAINS || (times > 0 && bucket_evicted(b));
	if (enough || (times == 0 && !recent) || c->stop) {
		bucket_free(b);
		return;
	}
	*user = ((now + again_ns[times]) & ~(uint64_t)AGAINS) + times + 1;
	push(&c->again[times], b);
	silt_cond_signal(&c->wake);
}

static void work_on(struct coherence *c, struct bucket *b)
{
	bool names = bucket_id_of(b)->names;
	if (!names) {
		coherence_drop_attrs(c->fs, b, *bucket_user(b) == 0);
	}
	silt_lock(&c->lock);
	if (names) {
		push(&c->names, b);
		silt_cond_signal(&c->wake_entries);
	} else {
		done_locked(c, b);
	}
}

/* Lock held; returns with it held. False: nothing was due; *until gets when something will be. */
static bool work(struct coherence *c, uint64_t *until)
{
	struct check *k = c->checks;
	if (k) {
		if (!(c->checks = k->next))
			c->checks_tail = &c->checks;
		silt_unlock(&c->lock);
		coherence_end_check(k);
		silt_lock(&c->lock);
		return true;
	}
	uint64_t now = silt_now_ns();
	struct bucket *b = pop(&c->fresh);
	for (int i = 0; i < AGAINS && !b; i++)
		if (c->again[i].first && *bucket_user(c->again[i].first) <= now)
			b = pop(&c->again[i]);
	if (b) {
		silt_unlock(&c->lock);
		work_on(c, b); /* takes the lock */
		return true;
	}
	struct young *y = c->young;
	if (y && y->due <= now) {
		if (!(c->young = y->next))
			c->young_tail = &c->young;
		silt_unlock(&c->lock);
		if (meta_pushes(c->fs->cfg.meta))
			coherence_check_inode(c->fs, y->ino, false);
		free(y);
		silt_lock(&c->lock);
		return true;
	}
	if (c->look_at_all) {
		c->look_at_all = false;
		silt_unlock(&c->lock);
		coherence_check_all(c->fs);
		silt_lock(&c->lock);
		return true;
	}
	*until = y ? y->due : UINT64_MAX;
	for (int i = 0; i < AGAINS; i++)
		if (c->again[i].first && *bucket_user(c->again[i].first) < *until)
			*until = *bucket_user(c->again[i].first);
	return false;
}

static void *first_main(void *arg)
{
	struct coherence *c = arg;
	pthread_setname_np(pthread_self(), "silt-coherence");
	silt_lock(&c->lock);
	while (!c->stop) {
		uint64_t until;
		if (work(c, &until))
			continue;
		if (until == UINT64_MAX)
			silt_cond_wait(&c->wake, &c->lock);
		else
			silt_cond_wait_until(&c->wake, &c->lock, until);
	}
	silt_unlock(&c->lock);
	return NULL;
}

/* Not under the node's lock: the kernel waits for pages that are being read. So a lock that is granted
 * meanwhile has to wait for it: coherence_settled(). */
static void forget_pages(struct fs *fs, const struct drop *d)
{
	struct node *n = node_get(fs, d->ino);
	bool knows = false;
	if (n) {
		silt_lock(&n->lock);
		knows = n->kernel_version >= d->version;
		if (!knows)
			atomic_fetch_add(&n->dropping, 1);
		silt_unlock(&n->lock);
	}
	if (!knows)
		fuse_lowlevel_notify_inval_inode(fs->se, d->ino, 0, 0);
	if (n) {
		if (!knows)
			atomic_fetch_sub(&n->dropping, 1);
		node_put(fs, n);
	}
}

bool coherence_settled(struct node *n, bool wait)
{
	struct timespec ts = { .tv_nsec = 200000 };
	while (atomic_load(&n->dropping)) {
		if (!wait)
			return false;
		nanosleep(&ts, NULL);
	}
	return true;
}

static void *entries_main(void *arg)
{
	struct coherence *c = arg;
	pthread_setname_np(pthread_self(), "silt-entries");
	silt_lock(&c->lock);
	while (!c->stop) {
		struct bucket *b = pop(&c->names);
		struct drop *d = b ? NULL : c->drops;
		if (!b && !d) {
			silt_cond_wait(&c->wake_entries, &c->lock);
			continue;
		}
		if (d)
			c->drops = d->next;
		silt_unlock(&c->lock);
		if (b)
			drop_names(c->fs, b);
		if (d && d->len)
			expire_name(c->fs, d->ino, d->name, d->len);
		else if (d)
			forget_pages(c->fs, d);
		free(d);
		silt_lock(&c->lock);
		if (b)
			done_locked(c, b);
	}
	silt_unlock(&c->lock);
	return NULL;
}

/* --- timeouts ----------------------------------------------------------------------------- */

static double at_least(double option, double told)
{
	return option > told || option <= 0 ? option : told;
}

double coherence_untold(struct fs *fs, double option)
{
	double most = META_UNTOLD_MS / 1000.0;
	return option > most && meta_pushes(fs->cfg.meta) ? most : option;
}

double coherence_attr_timeout(struct fs *fs, silt_ino ino, const struct meta_seen *seen)
{
	double option = fs->cfg.attr_timeout;
	if (option <= 0 || !seen || !meta_tell_inode(fs->cfg.meta, ino, seen))
		return coherence_untold(fs, option);
	return at_least(option, meta_relaxed(fs->cfg.meta) ? COHERENCE_RELAXED : COHERENCE_LONG);
}

double coherence_entry_timeout(struct fs *fs, silt_ino dir, unsigned type, bool listed,
                               const struct meta_seen *seen)
{
	bool relaxed = meta_relaxed(fs->cfg.meta), file = type == S_IFREG || type == 0;
	double option = file ? fs->cfg.entry_timeout : fs->cfg.dir_entry_timeout;
	if (option <= 0)
		return 0;
	bool told = seen && (relaxed || !file || listed) && meta_tell_name(fs->cfg.meta, dir, seen);
	if (told && relaxed)
		return at_least(option, COHERENCE_RELAXED);
	if (told)
		return file ? option : at_least(option, COHERENCE_LONG);
	/* An open(2) by path must send a LOOKUP: it is what makes close-to-open true. */
	return file && !listed ? 0 : coherence_untold(fs, option);
}

/* --- life --------------------------------------------------------------------------------- */

int coherence_open(struct fs *fs, struct coherence **out)
{
	struct coherence *c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->fs = fs;
	c->young_tail = &c->young;
	c->checks_tail = &c->checks;
	silt_lock_init(&c->lock);
	silt_cond_init(&c->wake);
	silt_cond_init(&c->wake_entries);
	sigset_t all, old;
	int rc = 0;
	sigfillset(&all); /* signals are for the threads of the daemon's owner */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (unsigned i = 0; i <= ENTRY_THREADS && !rc; i++) {
		rc = pthread_create(&c->threads[i], NULL, i ? entries_main : first_main, c);
		c->nthreads += rc == 0;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	*out = c;
	struct meta_listener l = { .on_stale = on_stale, .on_up = on_up, .arg = c };
	struct meta_deleted_listener d = {
		.anything_open = coherence_anything_open, .is_open = coherence_is_open, .kept = coherence_kept, .arg = c
	};
	if (!rc) {
		meta_listen(fs->cfg.meta, &l);
		meta_hear_deleted(fs->cfg.meta, &d);
	}
	return -rc;
}

void coherence_stop(struct coherence *c)
{
	if (!c || c->nthreads == 0)
		return;
	meta_listen(c->fs->cfg.meta, NULL);
	meta_hear_deleted(c->fs->cfg.meta, NULL);
	silt_lock(&c->lock);
	c->stop = true;
	silt_cond_broadcast(&c->wake);
	silt_cond_broadcast(&c->wake_entries);
	silt_unlock(&c->lock);
	while (c->nthreads)
		pthread_join(c->threads[--c->nthreads], NULL);
	struct young *y;
	while ((y = c->young)) {
		c->young = y->next;
		free(y);
	}
}

void coherence_close(struct coherence *c)
{
	struct bucket *b;
	struct drop *d;
	struct check *k;
	if (!c)
		return;
	coherence_stop(c);
	while ((k = c->checks)) {
		c->checks = k->next;
		node_put(k->fs, k->node);
		free(k);
	}
	while ((b = pop(&c->fresh)) || (b = pop(&c->names)) || (b = pop(&c->again[0])) ||
	       (b = pop(&c->again[1])) || (b = pop(&c->again[2])))
		bucket_free(b);
	while ((d = c->drops)) {
		c->drops = d->next;
		free(d);
	}
	silt_lock_destroy(&c->lock);
	silt_cond_destroy(&c->wake);
	silt_cond_destroy(&c->wake_entries);
	free(c);
}
