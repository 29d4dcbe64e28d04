/* Telling the kernel that pages it has of a file are wrong: an append went elsewhere than the
 * kernel took the end to be.
 *
 * The kernel waits for locked pages when it drops them, and a page may be locked by a WRITE or READ
 * that waits for this daemon: so it is told on a thread of its own, which answers nothing that such
 * a request could wait for. What it does answer, after the pages are gone, are FLUSH and FSYNC:
 * after close() and fsync() a read sees what is in the file. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "fs/fs_impl.h"

struct inval_item {
	struct inval_item *next;
	silt_ino ino; /* 0: only waiters */
	struct flush_wait *waiters;
};

struct inval {
	struct fs *fs;
	pthread_t thread;
	struct silt_lock lock; /* what follows */
	struct silt_cond wake;
	struct inval_item *first, *last;
	bool stop;
	atomic_uint busy; /* items that are not done */
};

static void answer(struct flush_wait *w)
{
	while (w) {
		struct flush_wait *next = w->next;
		w->done(w->arg, w->err);
		w = next;
	}
}

static void *inval_run(void *arg)
{
	struct inval *v = arg;
	silt_lock(&v->lock);
	for (;;) {
		while (!v->first && !v->stop)
			silt_cond_wait(&v->wake, &v->lock);
		struct inval_item *i = v->first;
		if (!i)
			break;
		v->first = i->next;
		if (!v->first)
			v->last = NULL;
		silt_unlock(&v->lock);
		if (i->ino) /* fails when the kernel knows no such inode, or the mount ended */
			fuse_lowlevel_notify_inval_inode(v->fs->se, i->ino, 0, 0);
		atomic_fetch_sub(&v->busy, 1);
		answer(i->waiters);
		free(i);
		silt_lock(&v->lock);
	}
	silt_unlock(&v->lock);
	return NULL;
}

bool inval_busy(struct fs *fs)
{
	return atomic_load(&fs->inval->busy) > 0;
}

struct flush_wait *inval_post(struct fs *fs, silt_ino ino, struct flush_wait *waiters)
{
	struct inval *v = fs->inval;
	struct inval_item *i = calloc(1, sizeof(*i));
	struct flush_wait *others = NULL;
	if (!i)
		return waiters; /* the kernel's own time-out remains */
	while (waiters) {
		struct flush_wait *w = waiters, **to = w->answers ? &i->waiters : &others;
		waiters = w->next;
		w->next = *to;
		*to = w;
	}
	i->ino = ino;
	atomic_fetch_add(&v->busy, 1);
	silt_lock(&v->lock);
	*(v->last ? &v->last->next : &v->first) = i;
	v->last = i;
	silt_cond_signal(&v->wake);
	silt_unlock(&v->lock);
	return others;
}

int inval_open(struct fs *fs)
{
	struct inval *v = calloc(1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	v->fs = fs;
	silt_lock_init(&v->lock);
	silt_cond_init(&v->wake);
	sigset_t all, old;
	sigfillset(&all); /* signals are for the threads of the daemon's owner */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int rc = pthread_create(&v->thread, NULL, inval_run, v);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc) {
		silt_cond_destroy(&v->wake);
		silt_lock_destroy(&v->lock);
		free(v);
		return -rc;
	}
	fs->inval = v;
	return 0;
}

void inval_close(struct fs *fs)
{
	struct inval *v = fs->inval;
	if (!v)
		return;
	silt_lock(&v->lock);
	v->stop = true;
	silt_cond_signal(&v->wake);
	silt_unlock(&v->lock);
	pthread_join(v->thread, NULL);
	silt_cond_destroy(&v->wake);
	silt_lock_destroy(&v->lock);
	free(v);
	fs->inval = NULL;
}
