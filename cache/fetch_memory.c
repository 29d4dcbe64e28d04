/* See fetch_memory.h. Eviction in each shard is a FIFO with second chances: a frame that was read
 * while it waited goes round again (up to three times), one that was not leaves. That keeps a hit
 * free of list surgery: it only raises a counter. */
#include "cache/fetch_memory.h"

#include <stdlib.h>
#include <string.h>

#include "meta/lock.h"

#define SHARDS_MAX 64u
#define SHARD_MIN  ((uint64_t)512 << 10) /* bytes: a shard must hold a few full frames */

struct entry {
	struct entry *chain; /* in its hash bucket */
	struct entry *queue; /* next to be looked at for eviction */
	struct frame_key key;
	uint32_t len;
	silt_ino ino;
	uint64_t off;
	uint8_t freq;
	uint8_t data[];
};

struct shard {
	struct silt_lock lock;
	struct entry **heads;
	uint32_t mask;
	struct entry *first, **last;
	uint64_t bytes, most;
} __attribute__((aligned(64)));

struct frame_memory {
	unsigned nshards;
	struct shard shards[SHARDS_MAX];
};

static uint64_t hash(struct frame_key k)
{
	uint64_t h = k.pack * 0x9e3779b97f4a7c15u ^ k.pack_off * 0xc2b2ae3d27d4eb4fu;
	h ^= h >> 32;
	h *= 0xd6e8feb86659fd93u;
	return h ^ h >> 32;
}

static int shard_init(struct shard *s, uint64_t bytes)
{
	uint32_t heads = 16;
	while (heads < bytes / 4096)
		heads *= 2;
	silt_lock_init(&s->lock);
	s->most = bytes;
	s->mask = heads - 1;
	s->last = &s->first;
	s->heads = calloc(heads, sizeof(*s->heads));
	return s->heads ? 0 : -ENOMEM;
}

struct frame_memory *frame_memory_new(uint64_t bytes)
{
	struct frame_memory *m = aligned_alloc(64, sizeof(*m));
	if (!m)
		return NULL;
	memset(m, 0, sizeof(*m));
	uint64_t n = bytes / SHARD_MIN;
	n = n < 1 ? 1 : n > SHARDS_MAX ? SHARDS_MAX : n;
	for (uint64_t i = 0; i < n; i++) {
		m->nshards++;
		if (shard_init(&m->shards[i], bytes / n) < 0) {
			frame_memory_free(m);
			return NULL;
		}
	}
	return m;
}

void frame_memory_free(struct frame_memory *m)
{
	if (!m)
		return;
	for (unsigned i = 0; i < m->nshards; i++) {
		struct shard *s = &m->shards[i];
		for (struct entry *e = s->first, *next; e; e = next) {
			next = e->queue;
			free(e);
		}
		free(s->heads);
		silt_lock_destroy(&s->lock);
	}
	free(m);
}

static struct entry **find(struct shard *s, struct frame_key k, uint64_t h)
{
	struct entry **p = &s->heads[(h >> 8) & s->mask];
	while (*p && ((*p)->key.pack != k.pack || (*p)->key.pack_off != k.pack_off))
		p = &(*p)->chain;
	return p;
}

bool frame_memory_get(struct frame_memory *m, struct frame_key k, const struct frame_owner *owner,
                      uint32_t skip, uint32_t len, void *dst)
{
	uint64_t h = hash(k);
	struct shard *s = &m->shards[(h & 0xff) % m->nshards];
	silt_lock(&s->lock);
	struct entry *e = *find(s, k, h);
	bool ok = e && (uint64_t)skip + len <= e->len &&
	          (owner->foreign || (e->ino == owner->ino && e->off == owner->off));
	if (ok) {
		memcpy(dst, e->data + skip, len);
		if (e->freq < 3)
			e->freq++;
	}
	silt_unlock(&s->lock);
	return ok;
}

static uint64_t weight(uint32_t len)
{
	return len + sizeof(struct entry) + 16;
}

/* Takes the oldest unread frames out until `room` bytes fit. */
static void make_room(struct shard *s, uint64_t room)
{
	while (s->bytes + room > s->most && s->first) {
		struct entry *e = s->first;
		s->first = e->queue;
		if (!s->first)
			s->last = &s->first;
		if (e->freq > 0) {
			e->freq--;
			e->queue = NULL;
			*s->last = e;
			s->last = &e->queue;
			continue;
		}
		*find(s, e->key, hash(e->key)) = e->chain;
		s->bytes -= weight(e->len);
		free(e);
	}
}

void frame_memory_put(struct frame_memory *m, struct frame_key k, silt_ino ino, uint64_t off,
                      const void *raw, uint32_t len)
{
	uint64_t h = hash(k);
	struct shard *s = &m->shards[(h & 0xff) % m->nshards];
	if (weight(len) > s->most)
		return;
	struct entry *e = malloc(sizeof(*e) + len);
	if (!e)
		return;
	*e = (struct entry){ .key = k, .len = len, .ino = ino, .off = off };
	memcpy(e->data, raw, len);
	silt_lock(&s->lock);
	bool there = *find(s, k, h) != NULL;
	if (!there) {
		make_room(s, weight(len));
		e->chain = s->heads[(h >> 8) & s->mask];
		s->heads[(h >> 8) & s->mask] = e;
		*s->last = e;
		s->last = &e->queue;
		s->bytes += weight(len);
	}
	silt_unlock(&s->lock);
	if (there)
		free(e);
}

static void drop_in(struct shard *s, uint64_t pack)
{
	struct entry **p = &s->first;
	while (*p) {
		struct entry *e = *p;
		if (e->key.pack != pack) {
			p = &e->queue;
			continue;
		}
		*p = e->queue;
		*find(s, e->key, hash(e->key)) = e->chain;
		s->bytes -= weight(e->len);
		free(e);
	}
	s->last = p;
}

void frame_memory_drop(struct frame_memory *m, uint64_t pack)
{
	for (unsigned i = 0; i < m->nshards; i++) {
		silt_lock(&m->shards[i].lock);
		drop_in(&m->shards[i], pack);
		silt_unlock(&m->shards[i].lock);
	}
}
