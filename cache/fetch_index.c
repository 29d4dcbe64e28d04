/* See fetch_index.h: 16 sets of 8 ways, least recently used out first. An index of 16 MiB of full
 * frames takes 4 KiB, one of 4 KiB files 128 KiB: at most 16 MiB in all. */
#include "cache/fetch_index.h"

#include <stdlib.h>
#include <string.h>

static struct index_set *set_of(struct index_cache *c, uint64_t pack)
{
	return &c->sets[(pack * 0x9e3779b97f4a7c15u >> 32) % INDEX_SETS];
}

void index_cache_init(struct index_cache *c)
{
	for (unsigned i = 0; i < INDEX_SETS; i++)
		silt_lock_init(&c->sets[i].lock);
}

void index_cache_free(struct index_cache *c)
{
	for (unsigned i = 0; i < INDEX_SETS; i++) {
		for (unsigned w = 0; w < INDEX_WAYS; w++)
			index_unref(c->sets[i].ways[w]);
		silt_lock_destroy(&c->sets[i].lock);
	}
}

void index_unref(struct held_index *h)
{
	if (!h || atomic_fetch_sub(&h->refs, 1) > 1)
		return;
	pack_index_free(&h->ix);
	free(h);
}

/* Moves way `w` to the front. */
static void to_front(struct index_set *s, unsigned w)
{
	struct held_index *h = s->ways[w];
	memmove(s->ways + 1, s->ways, w * sizeof(s->ways[0]));
	s->ways[0] = h;
}

static struct held_index *find(struct index_set *s, uint64_t pack)
{
	for (unsigned w = 0; w < INDEX_WAYS && s->ways[w]; w++) {
		if (s->ways[w]->pack != pack)
			continue;
		to_front(s, w);
		atomic_fetch_add(&s->ways[0]->refs, 1);
		return s->ways[0];
	}
	return NULL;
}

struct held_index *index_cache_get(struct index_cache *c, uint64_t pack)
{
	struct index_set *s = set_of(c, pack);
	silt_lock(&s->lock);
	struct held_index *h = find(s, pack);
	silt_unlock(&s->lock);
	return h;
}

struct held_index *index_cache_put(struct index_cache *c, uint64_t pack, struct pack_index *ix)
{
	struct index_set *s = set_of(c, pack);
	struct held_index *h = calloc(1, sizeof(*h)), *old = NULL;
	if (!h) {
		pack_index_free(ix);
		return NULL;
	}
	h->pack = pack;
	h->ix = *ix;
	atomic_init(&h->refs, 2); /* the cache's and the caller's */
	silt_lock(&s->lock);
	struct held_index *there = find(s, pack);
	if (!there) {
		old = s->ways[INDEX_WAYS - 1];
		s->ways[INDEX_WAYS - 1] = h;
		to_front(s, INDEX_WAYS - 1);
	}
	silt_unlock(&s->lock);
	index_unref(old);
	if (there) {
		atomic_store(&h->refs, 1);
		index_unref(h);
	}
	return there ? there : h;
}
