/* Open addressing over places in a dense vector: growing moves 4-byte places, never the entries'
 * order, so that a fetch under way can be named by its place. */
#include "cache/pack_set.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

void pack_set_init(struct pack_set *s)
{
	memset(s, 0, sizeof(*s));
}

void pack_set_free(struct pack_set *s)
{
	free(s->v);
	free(s->index);
	pack_set_init(s);
}

/* Pack ids are dense; multiply to spread them. */
static size_t home(const struct pack_set *s, uint64_t pack)
{
	return (size_t)((pack * 0x9e3779b97f4a7c15u) >> 20) & (s->index_size - 1);
}

static size_t probe(const struct pack_set *s, uint64_t pack)
{
	size_t at = home(s, pack);
	while (s->index[at] && s->v[s->index[at] - 1].pack != pack)
		at = (at + 1) & (s->index_size - 1);
	return at;
}

struct pack_entry *pack_set_find(const struct pack_set *s, uint64_t pack)
{
	if (s->index_size == 0)
		return NULL;
	uint32_t place = s->index[probe(s, pack)];
	return place ? &s->v[place - 1] : NULL;
}

static bool grow_entries(struct pack_set *s)
{
	size_t cap = s->cap ? s->cap + s->cap / 2 : 256;
	struct pack_entry *v = realloc(s->v, cap * sizeof(*v));
	if (!v)
		return false;
	s->v = v;
	s->cap = cap;
	return true;
}

static bool grow_index(struct pack_set *s)
{
	size_t size = s->index_size ? s->index_size * 2 : 512;
	uint32_t *index = calloc(size, sizeof(*index));
	if (!index)
		return false;
	free(s->index);
	s->index = index;
	s->index_size = size;
	for (size_t i = 0; i < s->n; i++)
		s->index[probe(s, s->v[i].pack)] = (uint32_t)i + 1;
	return true;
}

struct pack_entry *pack_set_add(struct pack_set *s, uint64_t pack, int *added)
{
	struct pack_entry *e = pack_set_find(s, pack);
	*added = !e;
	if (e)
		return e;
	if (s->n >= UINT32_MAX - 1 || (s->n == s->cap && !grow_entries(s)) ||
	    ((s->n + 1) * 2 > s->index_size && !grow_index(s)))
		return NULL;
	s->index[probe(s, pack)] = (uint32_t)s->n + 1;
	e = &s->v[s->n++];
	*e = (struct pack_entry){ .pack = pack, .want = PACK_WANTED };
	return e;
}
