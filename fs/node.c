/* See node.h. */
#include "fs/node.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs/fs_impl.h"

static size_t hash_of(silt_ino ino)
{
	return (size_t)((ino * 0x9e3779b97f4a7c15ULL) >> 20);
}

int node_table_init(struct node_table *t)
{
	for (int i = 0; i < NODE_SHARDS; i++) {
		silt_lock_init(&t->shards[i].lock);
		t->shards[i].mask = 15;
		t->shards[i].v = calloc(16, sizeof(struct node *));
		if (!t->shards[i].v)
			return -ENOMEM;
	}
	return 0;
}

static void node_free(struct node *n)
{
	struct handle *h;
	while ((h = n->first_handle)) { /* the kernel sent no RELEASE: the mount has ended */
		n->first_handle = h->next;
		handle_put(h);
	}
	fs_locks_free(n);
	write_buffer_free(&n->buffer);
	file_map_free(&n->map);
	silt_lock_destroy(&n->lock);
	free(n);
}

/* At the end of a mount: nodes may be left when the kernel did not send RELEASE. */
void node_table_free(struct fs *fs)
{
	struct node_table *t = &fs->nodes;
	for (int i = 0; i < NODE_SHARDS; i++) {
		for (size_t k = 0; t->shards[i].v && k <= t->shards[i].mask; k++) {
			struct node *n;
			while ((n = t->shards[i].v[k])) {
				t->shards[i].v[k] = n->hash_next;
				node_free(n);
			}
		}
		free(t->shards[i].v);
		silt_lock_destroy(&t->shards[i].lock);
	}
}

static unsigned shard_of(silt_ino ino)
{
	return (unsigned)(hash_of(ino) % NODE_SHARDS);
}

static struct node **slot_of(struct node_table *t, silt_ino ino)
{
	unsigned s = shard_of(ino);
	struct node **p = &t->shards[s].v[(hash_of(ino) / NODE_SHARDS) & t->shards[s].mask];
	while (*p && (*p)->ino != ino)
		p = &(*p)->hash_next;
	return p;
}

/* Doubles a shard's buckets; without memory the chains just get longer. */
static void grow(struct node_table *t, unsigned s)
{
	size_t size = (t->shards[s].mask + 1) * 2;
	struct node **v = calloc(size, sizeof(*v));
	if (!v)
		return;
	for (size_t k = 0; k <= t->shards[s].mask; k++) {
		struct node *n;
		while ((n = t->shards[s].v[k])) {
			t->shards[s].v[k] = n->hash_next;
			struct node **to = &v[(hash_of(n->ino) / NODE_SHARDS) & (size - 1)];
			n->hash_next = *to;
			*to = n;
		}
	}
	free(t->shards[s].v);
	t->shards[s].v = v;
	t->shards[s].mask = size - 1;
}

struct node *node_get(struct fs *fs, silt_ino ino)
{
	struct node_table *t = &fs->nodes;
	struct silt_lock *lock = &t->shards[shard_of(ino)].lock;
	silt_lock(lock);
	struct node *n = *slot_of(t, ino);
	if (n)
		n->refs++;
	silt_unlock(lock);
	return n;
}

struct node *node_make(struct fs *fs, const struct silt_inode *inode)
{
	silt_ino ino = inode->attr.ino;
	struct node *n = node_get(fs, ino);
	if (n)
		return n;
	struct node *made = calloc(1, sizeof(*made));
	if (!made)
		return NULL;
	made->ino = ino;
	made->fs = fs;
	made->whole_version = inode->attr.version;
	made->refs = 1;
	made->attr = inode->attr;
	silt_lock_init(&made->lock);
	file_map_init(&made->map);
	file_map_set(&made->map, inode);
	write_buffer_init(&made->buffer, &fs->pool, ino, made);

	struct node_table *t = &fs->nodes;
	unsigned s = shard_of(ino);
	silt_lock(&t->shards[s].lock);
	struct node **p = slot_of(t, ino);
	n = *p;
	if (n) {
		n->refs++;
	} else {
		n = *p = made;
		if (++t->shards[s].n > t->shards[s].mask * 2)
			grow(t, s);
		silt_count(fs->cfg.metrics, M_NODES, 1);
	}
	silt_unlock(&t->shards[s].lock);
	if (n != made)
		node_free(made);
	return n;
}

void node_ref(struct fs *fs, struct node *n)
{
	struct silt_lock *lock = &fs->nodes.shards[shard_of(n->ino)].lock;
	silt_lock(lock);
	n->refs++;
	silt_unlock(lock);
}

static void released(void *arg, const struct meta_reply *r)
{
}

void node_put(struct fs *fs, struct node *n)
{
	unsigned s = shard_of(n->ino);
	struct node_table *t = &fs->nodes;
	silt_lock(&t->shards[s].lock);
	assert(n->refs > 0);
	bool last = --n->refs == 0;
	if (last) {
		*slot_of(t, n->ino) = n->hash_next;
		t->shards[s].n--;
	}
	silt_unlock(&t->shards[s].lock);
	if (!last)
		return;
	silt_uncount(fs->cfg.metrics, M_NODES, 1);
	if (n->deleted)
		meta_release_deleted(fs->cfg.meta, n->ino, released, NULL);
	node_free(n);
}

size_t node_walk(struct fs *fs, struct node_walk *w, silt_ino *out, size_t max)
{
	struct node_table *t = &fs->nodes;
	size_t n = 0;
	while (w->shard < NODE_SHARDS && n < max / 2) {
		silt_lock(&t->shards[w->shard].lock);
		for (; w->slot <= t->shards[w->shard].mask && n < max / 2; w->slot++)
			for (struct node *p = t->shards[w->shard].v[w->slot]; p && n < max; p = p->hash_next)
				out[n++] = p->ino;
		bool end = w->slot > t->shards[w->shard].mask;
		silt_unlock(&t->shards[w->shard].lock);
		if (end) {
			w->shard++;
			w->slot = 0;
		}
	}
	return n;
}

uint64_t node_size_locked(const struct node *n)
{
	uint64_t end = write_buffer_end(&n->buffer);
	return end > n->attr.size ? end : n->attr.size;
}

static bool later(const struct silt_time *a, const struct silt_time *b)
{
	return a->sec > b->sec || (a->sec == b->sec && a->nsec > b->nsec);
}

static void drop_suid(uint32_t *mode)
{
	*mode &= ~(uint32_t)S_ISUID;
	if (*mode & S_IXGRP)
		*mode &= ~(uint32_t)S_ISGID;
}

/* Have the bytes of a file of one extent been moved to another pack? That makes no new version. */
static bool was_moved(const struct node *n, const struct silt_inode *inode)
{
	struct silt_extent e;
	if (inode->map != SILT_MAP_INLINE || !n->map.valid)
		return false;
	return file_map_run(&n->map, inode->extent.off, inode->extent.off + 1, &e) &&
	       (e.pack != inode->extent.pack || e.pack_off != inode->extent.pack_off);
}

void node_merge_locked(struct node *n, struct silt_inode *inode)
{
	struct silt_attr *a = &n->attr;
	/* A version that is still to come may be another mount's, and in this record: the open that
	 * brought it must see those bytes. */
	bool unsure = n->gaps > 0;
	if (inode->attr.version > a->version) {
		n->gaps = 0;
		n->whole_version = inode->attr.version;
		*a = inode->attr;
		file_map_set(&n->map, inode);
	} else if (inode->attr.version == a->version) {
		*a = inode->attr;
		n->gaps = 0;
		if (!n->map.valid || unsure || was_moved(n, inode))
			file_map_set(&n->map, inode);
	} else {
		if (!later(&a->ctime, &inode->attr.ctime)) {
			a->mode = inode->attr.mode;
			a->uid = inode->attr.uid;
			a->gid = inode->attr.gid;
			a->nlink = inode->attr.nlink;
			a->flags = inode->attr.flags;
		}
		if (unsure)
			file_map_forget(&n->map);
	}
	if (unsure)
		n->whole_version = a->version;
	if (a->nlink == 0)
		n->deleted = true;
	inode->attr = *a;
	if (!write_buffer_empty(&n->buffer)) {
		inode->attr.size = node_size_locked(n);
		inode->attr.mtime = n->buffer.mtime;
		if (later(&n->buffer.mtime, &a->ctime))
			inode->attr.ctime = n->buffer.mtime;
		if (write_buffer_drops_suid(&n->buffer))
			drop_suid(&inode->attr.mode);
	}
}

void node_kernel_knows_locked(struct node *n)
{
	if (n->attr.version < n->kernel_version)
		return;
	n->kernel_version = n->attr.version;
	n->kernel_ctime = n->attr.ctime;
}

void fs_overlay(struct fs *fs, struct silt_inode *inode, bool to_kernel)
{
	atime_overlay(fs, &inode->attr);
	if (S_ISDIR(inode->attr.mode))
		dir_seen(&fs->dirs, &inode->attr);
	if (!S_ISREG(inode->attr.mode))
		return;
	struct node *n = node_get(fs, inode->attr.ino);
	if (!n)
		return;
	silt_lock(&n->lock);
	node_merge_locked(n, inode);
	if (to_kernel)
		node_kernel_knows_locked(n);
	silt_unlock(&n->lock);
	node_put(fs, n);
}
