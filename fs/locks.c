/* See locks.h: owners, closes, the loss of everything. ops_lock.c has the requests. */
#include "fs/locks.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs/fs_impl.h"
#include "fs/locks_impl.h"

/* --- owners (node's lock held) ------------------------------------------------------------ */

struct lock_owner *lock_owner_find(const struct node *n, uint64_t owner, bool flock)
{
	struct lock_owner *o = n->lock_owners;
	while (o && (o->owner != owner || o->flock != flock))
		o = o->next;
	return o;
}

static void listed(struct node *n, bool add)
{
	struct lock_table *t = &n->fs->locks;
	silt_lock(&t->lock);
	if (add) {
		n->locked_prev = NULL;
		n->locked_next = t->first;
		if (t->first)
			t->first->locked_prev = n;
		t->first = n;
	} else {
		*(n->locked_prev ? &n->locked_prev->locked_next : &t->first) = n->locked_next;
		if (n->locked_next)
			n->locked_next->locked_prev = n->locked_prev;
	}
	silt_unlock(&t->lock);
}

struct lock_owner *lock_owner_make(struct node *n, uint64_t owner, bool flock, struct handle *h)
{
	struct lock_owner *o = lock_owner_find(n, owner, flock);
	if (!o) {
		o = calloc(1, sizeof(*o));
		if (!o)
			return NULL;
		o->owner = owner;
		o->flock = flock;
	}
	bool known = false;
	for (unsigned i = 0; i < o->nvia; i++)
		known = known || o->via[i] == h;
	if (!known) {
		struct handle **via = realloc(o->via, (o->nvia + 1) * sizeof(struct handle *));
		if (!via) {
			if (!o->nvia)
				free(o);
			return NULL;
		}
		o->via = via;
		o->via[o->nvia++] = h;
	}
	if (!lock_owner_find(n, owner, flock)) {
		if (!n->lock_owners)
			listed(n, true);
		o->next = n->lock_owners;
		n->lock_owners = o;
	}
	return o;
}

void lock_owner_forget(struct node *n, struct lock_owner *o)
{
	struct lock_owner **p = &n->lock_owners;
	while (*p != o)
		p = &(*p)->next;
	*p = o->next;
	if (!n->lock_owners)
		listed(n, false);
	free(o->via);
	free(o);
}

void fs_locks_free(struct node *n)
{
	while (n->lock_owners)
		lock_owner_forget(n, n->lock_owners);
}

/* --- giving everything up ----------------------------------------------------------------- */

/* All locks of an owner of a kind go. */
struct giving_up {
	struct fs *fs;
	struct node *node; /* a reference */
	struct meta_lock lock;
	struct request *r; /* FLUSH: to be answered */
	unsigned tries;
	void (*then)(struct request *r, int err);
};

#define TRIES 10 /* each as long as a request waits for Redis */

static void give_up(struct giving_up *g);

static void gave_up(void *arg, const struct meta_lock_reply *reply)
{
	struct giving_up *g = arg;
	struct fs *fs = g->fs;
	int err = reply->err;
	if (g->r)
		g->then(g->r, err);
	g->r = NULL;
	silt_lock(&g->node->lock);
	/* One that came back unlocks with its own end; ours would take its new locks too. */
	bool again = err == -EIO && lock_owner_find(g->node, g->lock.owner, g->lock.flock) == NULL;
	silt_unlock(&g->node->lock);
	if (err)
		silt_warn(fs->cfg.log, "inode %llu: a lock could not be given up: %s",
		          (unsigned long long)g->node->ino, strerror(-err));
	if (again && ++g->tries < TRIES && !atomic_load(&fs->locks.ending)) {
		give_up(g);
		return;
	}
	node_put(fs, g->node);
	free(g);
	fs_background_end(fs);
}

static void give_up(struct giving_up *g)
{
	meta_lock_set(g->fs->cfg.meta, &g->lock, 0, false, gave_up, g);
}

static struct giving_up *giving_up_new(struct fs *fs, struct node *n, uint64_t owner, bool flock)
{
	struct giving_up *g = calloc(1, sizeof(*g));
	if (!g)
		return NULL; /* they stay until the session ends */
	g->fs = fs;
	g->node = n;
	g->lock = (struct meta_lock){ .ino = n->ino,
		                      .flock = flock,
		                      .owner = owner,
		                      .type = META_LOCK_NONE,
		                      .end = META_LOCK_LAST };
	node_ref(fs, n);
	fs_background_begin(fs);
	return g;
}

bool fs_locks_at_flush_locked(const struct node *n, uint64_t owner)
{
	return n->lock_owners && lock_owner_find(n, owner, false);
}

void fs_locks_flush(struct request *r, uint64_t owner, void (*then)(struct request *r, int err))
{
	struct node *n = r->node;
	struct giving_up *g = giving_up_new(r->fs, n, owner, false);
	if (!g) {
		then(r, -ENOMEM);
		return;
	}
	silt_lock(&n->lock);
	struct lock_owner *o = lock_owner_find(n, owner, false);
	if (o && o->busy)
		o->held = false; /* a request on its way comes after this */
	else if (o)
		lock_owner_forget(n, o);
	silt_unlock(&n->lock);
	g->r = r;
	g->then = then;
	give_up(g);
}

/* Takes the handle out of an owner; true: the owner has nothing to stand on any more. */
static bool leave(struct lock_owner *o, const struct handle *h)
{
	for (unsigned i = 0; i < o->nvia; i++) {
		if (o->via[i] != h)
			continue;
		o->via[i] = o->via[--o->nvia];
		return o->nvia == 0 || h->noflush;
	}
	return false;
}

void fs_locks_release(struct fs *fs, struct handle *h)
{
	struct node *n = h->node;
	struct giving_up *list[16];
	unsigned k;
	do {
		k = 0;
		silt_lock(&n->lock);
		for (struct lock_owner *o = n->lock_owners, *next; o && k < 16; o = next) {
			next = o->next;
			if (!leave(o, h))
				continue;
			struct giving_up *g = giving_up_new(fs, n, o->owner, o->flock);
			if (g)
				list[k++] = g;
			if (o->busy)
				o->held = false; /* another of its requests comes after this */
			else
				lock_owner_forget(n, o);
		}
		silt_unlock(&n->lock);
		for (unsigned i = 0; i < k; i++)
			give_up(list[i]);
	} while (k == 16);
}

/* --- the loss of everything --------------------------------------------------------------- */

struct lost_pages {
	struct lost_pages *next;
	silt_ino ino;
};

/* Reads are answered from the kernel's pages, and must not be. */
static void drop_pages(struct fs *fs, silt_ino ino)
{
	struct lock_table *t = &fs->locks;
	struct lost_pages *p = malloc(sizeof(*p));
	if (!p)
		return;
	p->ino = ino;
	silt_lock(&t->lock);
	p->next = t->lost;
	t->lost = p;
	silt_cond_signal(&t->wake);
	silt_unlock(&t->lock);
}

static void lose(struct fs *fs, struct node *n)
{
	unsigned handles = 0;
	silt_lock(&n->lock);
	for (struct lock_owner *o = n->lock_owners; o; o = o->next)
		for (unsigned i = 0; o->held && i < o->nvia; i++)
			handles += !atomic_exchange(&o->via[i]->lock_lost, true);
	silt_unlock(&n->lock);
	if (!handles)
		return;
	silt_error(fs->cfg.log,
	           "inode %llu: locks held here are lost; %u open descriptors answer EIO until "
	           "they are "
	           "closed",
	           (unsigned long long)n->ino, handles);
	node_drop_dirty(fs, n, -EIO);
	drop_pages(fs, n->ino);
}

/* Heartbeat or reader thread. */
static void on_lost(void *arg)
{
	struct fs *fs = arg;
	struct lock_table *t = &fs->locks;
	size_t n = 0;
	silt_lock(&t->lock);
	for (struct node *x = t->first; x; x = x->locked_next)
		n++;
	silt_ino *v = calloc(n ? n : 1, sizeof(*v));
	n = 0;
	for (struct node *x = t->first; v && x; x = x->locked_next)
		v[n++] = x->ino;
	silt_unlock(&t->lock);
	for (size_t i = 0; v && i < n; i++) {
		struct node *x = node_get(fs, v[i]);
		if (!x)
			continue;
		lose(fs, x);
		node_put(fs, x);
	}
	free(v);
}

/* --- the thread --------------------------------------------------------------------------- */

void lock_answer_later(struct request *r)
{
	struct lock_table *t = &r->fs->locks;
	silt_lock(&t->lock);
	r->next = NULL;
	*(t->granted_last ? &t->granted_last->next : &t->granted) = r;
	t->granted_last = r;
	silt_cond_signal(&t->wake);
	silt_unlock(&t->lock);
}

static void *lock_thread(void *arg)
{
	struct fs *fs = arg;
	struct lock_table *t = &fs->locks;
	pthread_setname_np(pthread_self(), "silt-relock");
	silt_lock(&t->lock);
	for (;;) {
		while (!t->granted && !t->lost && !t->stopping)
			silt_cond_wait(&t->wake, &t->lock);
		struct lost_pages *p = t->lost;
		if (p) {
			t->lost = p->next;
			silt_unlock(&t->lock);
			fuse_lowlevel_notify_inval_inode(fs->se, p->ino, 0, 0);
			free(p);
			silt_lock(&t->lock);
			continue;
		}
		struct request *r = t->granted;
		if (!r)
			break;
		t->granted = r->next;
		if (!t->granted)
			t->granted_last = NULL;
		silt_unlock(&t->lock);
		fuse_lowlevel_notify_inval_inode(fs->se, r->ino, 0, 0);
		coherence_settled(r->node, true);
		opened_dropped(&fs->opened, r->ino, r->off);
		lock_answer(r);
		silt_lock(&t->lock);
	}
	silt_unlock(&t->lock);
	return NULL;
}

/* --- life --------------------------------------------------------------------------------- */

int fs_locks_open(struct fs *fs)
{
	struct lock_table *t = &fs->locks;
	silt_lock_init(&t->lock);
	silt_cond_init(&t->wake);
	int rc = -pthread_create(&t->thread, NULL, lock_thread, fs);
	t->runs = rc == 0;
	meta_locks_on_lost(fs->cfg.meta, on_lost, fs);
	return rc;
}

void fs_locks_stop(struct fs *fs)
{
	atomic_store(&fs->locks.ending, true);
	meta_locks_on_lost(fs->cfg.meta, NULL, NULL);
	meta_locks_stop(fs->cfg.meta);
}

void fs_locks_close(struct fs *fs)
{
	struct lock_table *t = &fs->locks;
	if (t->runs) {
		silt_lock(&t->lock);
		t->stopping = true;
		silt_cond_signal(&t->wake);
		silt_unlock(&t->lock);
		pthread_join(t->thread, NULL);
		t->runs = false;
	}
}
