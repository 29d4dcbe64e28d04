/* Which slot holds which piece of which pack: chains of slot numbers in one array of heads, with a
 * lock for each 64th part of it. A lookup takes one such lock for a few loads; what was found is
 * pinned before the lock is let go, so that nothing can take the slot away under an I/O.
 *
 * A slot's fields belong to the shard of the pack and piece it holds. Whoever comes from the slot's
 * side (eviction, saving) reads pack and piece without a lock, takes the lock they lead to, and
 * looks again. */
#include <errno.h>
#include <stdlib.h>

#include "cache/tier_parts.h"

#define load(p)     __atomic_load_n(&(p), __ATOMIC_RELAXED)
#define store(p, v) __atomic_store_n(&(p), (v), __ATOMIC_RELAXED)

static uint32_t bucket_of(const struct tier *t, uint64_t pack, uint32_t piece)
{
	uint64_t h = (pack * 0x9e3779b97f4a7c15u) ^ ((uint64_t)piece * 0xc2b2ae3d27d4eb4fu);
	h ^= h >> 32;
	h *= 0xd6e8feb86659fd93u;
	return (uint32_t)(h >> 32) & t->mask;
}

struct silt_lock *tier_key_lock(struct tier *t, uint64_t pack, uint32_t piece)
{
	return &t->shards[bucket_of(t, pack, piece) % TIER_SHARDS];
}

static int list_init(struct slot_list *l, uint32_t cap)
{
	l->v = malloc((size_t)cap * sizeof(uint32_t));
	return l->v ? 0 : -ENOMEM;
}

int tier_index_init(struct tier *t)
{
	uint32_t heads = TIER_SHARDS;
	while (heads < t->count)
		heads *= 2;
	t->mask = heads - 1;
	t->slots = calloc(t->count, sizeof(struct slot));
	t->heads = malloc((size_t)heads * sizeof(uint32_t));
	if (!t->slots || !t->heads || list_init(&t->free, t->count) < 0 ||
	    list_init(&t->dead, t->count) < 0 || list_init(&t->dirty, t->count) < 0 ||
	    list_init(&t->saving, t->count) < 0)
		return -ENOMEM;
	memset(t->heads, 0xff, (size_t)heads * sizeof(uint32_t));
	return 0;
}

void tier_index_free(struct tier *t)
{
	free(t->slots);
	free(t->heads);
	free(t->free.v);
	free(t->dead.v);
	free(t->dirty.v);
	free(t->saving.v);
}

static void link_slot(struct tier *t, uint32_t i, uint64_t pack, uint32_t piece, uint32_t pack_len)
{
	struct slot *s = &t->slots[i];
	uint32_t b = bucket_of(t, pack, piece);
	store(s->pack, pack);
	store(s->piece, piece);
	s->pack_len = pack_len;
	s->next = t->heads[b];
	t->heads[b] = i;
	store(s->state, SLOT_USED);
	silt_count(t->metrics, M_SSD_SLOTS_USED, 1);
}

/* Two slots of one piece can be in the table after a crash between an eviction's free entry and the
 * next; the first wins, the other is dead. */
void tier_index_load(struct tier *t, uint32_t sound)
{
	for (uint32_t i = t->count; i-- > 0;) {
		struct slot_entry e;
		struct slot *s = &t->slots[i];
		if (!slot_table_entry(&t->table, i, &e)) {
			t->free.v[t->free.n++] = i;
			continue;
		}
		if (i >= sound || tier_find(t, e.pack, e.piece) != TIER_NIL) {
			s->state = SLOT_DEAD;
			t->dead.v[t->dead.n++] = i;
			continue;
		}
		s->valid = e.valid;
		s->freq = e.freq;
		s->flags = e.flags;
		link_slot(t, i, e.pack, e.piece, e.pack_len);
	}
	slot_table_loaded(&t->table);
}

uint32_t tier_find(struct tier *t, uint64_t pack, uint32_t piece)
{
	uint32_t i = t->heads[bucket_of(t, pack, piece)];
	while (i != TIER_NIL && (t->slots[i].pack != pack || t->slots[i].piece != piece))
		i = t->slots[i].next;
	return i;
}

uint32_t tier_pin(struct tier *t, uint64_t pack, uint32_t piece, uint16_t need, bool hit)
{
	struct silt_lock *l = tier_key_lock(t, pack, piece);
	silt_lock(l);
	uint32_t i = tier_find(t, pack, piece);
	if (i != TIER_NIL && (t->slots[i].valid & need) == need) {
		t->slots[i].pins++;
		if (hit && t->slots[i].freq < 3)
			t->slots[i].freq++;
	} else {
		i = TIER_NIL;
	}
	silt_unlock(l);
	return i;
}

static uint32_t pop_free(struct tier *t)
{
	silt_lock(&t->list);
	uint32_t i = t->free.n ? t->free.v[--t->free.n] : TIER_NIL;
	silt_unlock(&t->list);
	return i;
}

static void push(struct tier *t, struct slot_list *l, uint32_t i)
{
	silt_lock(&t->list);
	assert(l->n < t->count);
	l->v[l->n++] = i;
	silt_unlock(&t->list);
}

int tier_pin_new(struct tier *t, uint64_t pack, uint32_t piece, uint32_t pack_len, uint8_t freq,
                 uint32_t *slot)
{
	*slot = tier_pin(t, pack, piece, 0, false);
	if (*slot != TIER_NIL)
		return 0;
	uint32_t i = pop_free(t);
	while (i == TIER_NIL) {
		if (tier_reclaim(t) == 0)
			return -ENOSPC;
		i = pop_free(t);
	}
	struct silt_lock *l = tier_key_lock(t, pack, piece);
	silt_lock(l);
	*slot = tier_find(t, pack, piece);
	if (*slot == TIER_NIL) {
		struct slot *s = &t->slots[i];
		s->valid = 0;
		s->flags = 0;
		s->freq = freq;
		s->pins = 0;
		link_slot(t, i, pack, piece, pack_len);
		*slot = i;
		i = TIER_NIL;
	}
	t->slots[*slot].pins++;
	silt_unlock(l);
	if (i != TIER_NIL)
		push(t, &t->free, i);
	return 0;
}

void tier_unpin(struct tier *t, uint32_t i)
{
	struct slot *s = &t->slots[i];
	struct silt_lock *l = tier_key_lock(t, s->pack, s->piece); /* pinned: they stay */
	silt_lock(l);
	assert(s->pins > 0);
	bool dead = --s->pins == 0 && s->state == SLOT_DEAD;
	silt_unlock(l);
	if (dead)
		push(t, &t->dead, i);
}

void tier_set_valid(struct tier *t, uint32_t i, uint16_t bits, bool verified)
{
	struct slot *s = &t->slots[i];
	struct silt_lock *l = tier_key_lock(t, s->pack, s->piece);
	silt_lock(l);
	bool used = s->state == SLOT_USED;
	if (used) {
		s->valid |= bits;
		if (verified && bits == slot_full_mask(s->pack_len, s->piece))
			s->flags |= SLOT_VERIFIED;
		else
			s->flags &= (uint8_t)~SLOT_VERIFIED;
	}
	silt_unlock(l);
	if (used)
		tier_mark_dirty(t, i);
}

struct silt_lock *tier_slot_lock(struct tier *t, uint32_t i)
{
	struct slot *s = &t->slots[i];
	if (load(s->state) != SLOT_USED)
		return NULL;
	uint64_t pack = load(s->pack);
	uint32_t piece = load(s->piece);
	struct silt_lock *l = tier_key_lock(t, pack, piece);
	silt_lock(l);
	if (load(s->state) == SLOT_USED && load(s->pack) == pack && load(s->piece) == piece)
		return l;
	silt_unlock(l);
	return NULL;
}

void tier_kill(struct tier *t, uint32_t i)
{
	struct slot *s = &t->slots[i];
	uint32_t *p = &t->heads[bucket_of(t, s->pack, s->piece)];
	while (*p != i)
		p = &t->slots[*p].next;
	*p = s->next;
	store(s->state, SLOT_DEAD);
	silt_uncount(t->metrics, M_SSD_SLOTS_USED, 1);
	if (s->pins == 0)
		push(t, &t->dead, i);
}

void tier_mark_dirty(struct tier *t, uint32_t i)
{
	silt_lock(&t->list);
	if (!t->slots[i].dirty) {
		t->slots[i].dirty = 1;
		t->dirty.v[t->dirty.n++] = i;
	}
	silt_unlock(&t->list);
}
