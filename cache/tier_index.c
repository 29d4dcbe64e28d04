/* Which slot holds which piece of which pack: chains of slot numbers in one array of heads, with a
 * lock for each 64th part of it. A lookup takes one such lock for a few loads; what was found is
 * pinned before the lock is let go, so that nothing can take the slot away under an I/O.
 *
 * The pieces of one megabyte of a pack share a bucket: a read over several small slots needs one
 * lock, and to see that nothing of a pack is here takes one look a megabyte, not one a slot.
 *
 * A slot's fields belong to the shard of the pack and piece it holds. Whoever comes from the slot's
 * side (eviction, saving) reads pack and piece without a lock, takes the lock they lead to, and
 * looks again. */
#include <errno.h>
#include <stdlib.h>

#include "cache/tier_parts.h"

#define FREE_LOOKS 32u /* places looked at for a long enough run of free slots */

#define load(p)     __atomic_load_n(&(p), __ATOMIC_RELAXED)
#define store(p, v) __atomic_store_n(&(p), (v), __ATOMIC_RELAXED)

static uint32_t bucket_of(const struct tier *t, uint64_t pack, uint32_t piece)
{
	uint64_t group = piece >> t->group_shift;
	uint64_t h = (pack * 0x9e3779b97f4a7c15u) ^ (group * 0xc2b2ae3d27d4eb4fu);
	h ^= h >> 32;
	h *= 0xd6e8feb86659fd93u;
	return (uint32_t)(h >> 32) & t->mask;
}

struct silt_lock *tier_key_lock(struct tier *t, uint64_t pack, uint32_t piece)
{
	return &t->shards[bucket_of(t, pack, piece) % TIER_SHARDS];
}

int tier_index_init(struct tier *t)
{
	uint32_t heads = TIER_SHARDS;
	while (heads < t->count)
		heads *= 2;
	t->mask = heads - 1;
	t->slots = calloc(t->count, sizeof(struct slot));
	t->heads = malloc((size_t)heads * sizeof(uint32_t));
	t->entries = calloc(t->save_batch, sizeof(*t->entries));
	t->entry_slots = calloc(t->save_batch, sizeof(*t->entry_slots));
	if (!t->slots || !t->heads || !t->entries || !t->entry_slots ||
	    bits_init(&t->free, t->count) < 0 || bits_init(&t->dead, t->count) < 0 ||
	    bits_init(&t->dirty, t->count) < 0 || bits_init(&t->saving, t->count) < 0)
		return -ENOMEM;
	memset(t->heads, 0xff, (size_t)heads * sizeof(uint32_t));
	return 0;
}

void tier_index_free(struct tier *t)
{
	free(t->slots);
	free(t->heads);
	free(t->entries);
	free(t->entry_slots);
	bits_free(&t->free);
	bits_free(&t->dead);
	bits_free(&t->dirty);
	bits_free(&t->saving);
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
			bits_add(&t->free, i);
			continue;
		}
		if (i >= sound || tier_find(t, e.pack, e.piece) != TIER_NIL) {
			s->state = SLOT_DEAD;
			bits_add(&t->dead, i);
			continue;
		}
		s->valid = e.valid;
		s->freq = e.freq;
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

uint32_t tier_next_of(struct tier *t, uint64_t pack, uint32_t piece, uint32_t after)
{
	uint32_t group = piece >> t->group_shift;
	uint32_t i = after == TIER_NIL ? t->heads[bucket_of(t, pack, piece)] : t->slots[after].next;
	while (i != TIER_NIL &&
	       (t->slots[i].pack != pack || t->slots[i].piece >> t->group_shift != group))
		i = t->slots[i].next;
	return i;
}

static void add_to(struct tier *t, struct slot_bits *set, uint32_t i)
{
	silt_lock(&t->list);
	bits_add(set, i);
	silt_unlock(&t->list);
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

bool tier_pin_range(struct tier *t, uint64_t pack, uint64_t from, uint64_t to, bool hit,
                    uint32_t *slots)
{
	struct silt_lock *held = NULL;
	uint32_t n = 0, i = 0;
	for (uint64_t at = from, end; at < to && i != TIER_NIL; at = end) {
		uint32_t piece = (uint32_t)(at >> t->slot_shift);
		uint64_t start = (uint64_t)piece << t->slot_shift;
		end = start + t->slot_size < to ? start + t->slot_size : to;
		uint16_t need = tier_chunks(t, (uint32_t)(at - start), (uint32_t)(end - start));
		struct silt_lock *l = tier_key_lock(t, pack, piece);
		if (l != held) {
			if (held)
				silt_unlock(held);
			silt_lock(l);
			held = l;
		}
		i = tier_find(t, pack, piece);
		if (i == TIER_NIL || (t->slots[i].valid & need) != need) {
			i = TIER_NIL;
			continue;
		}
		t->slots[i].pins++;
		if (hit && t->slots[i].freq < 3)
			t->slots[i].freq++;
		slots[n++] = i;
	}
	if (held)
		silt_unlock(held);
	if (i == TIER_NIL)
		tier_unpin(t, slots, n);
	return i != TIER_NIL;
}

/* Up to `want` free slots side by side: the first place behind the rover that has so many, or the
 * best of a few. Returns how many. */
static uint32_t take_free(struct tier *t, uint32_t want, uint32_t *first)
{
	uint32_t best = 0;
	silt_lock(&t->list);
	uint32_t at = t->rover;
	for (unsigned look = 0; t->free.n > 0 && look < FREE_LOOKS && best < want; look++) {
		uint32_t i = bits_next(&t->free, at);
		if (i == t->count)
			i = bits_next(&t->free, 0);
		uint32_t n = bits_run(&t->free, i, want);
		if (n > best) {
			best = n;
			*first = i;
		}
		at = i + n;
	}
	for (uint32_t k = 0; k < best; k++)
		bits_remove(&t->free, *first + k);
	if (best > 0)
		t->rover = *first + best < t->count ? *first + best : 0;
	silt_unlock(&t->list);
	return best;
}

static void put_free(struct tier *t, uint32_t first, uint32_t n)
{
	silt_lock(&t->list);
	while (n-- > 0)
		bits_add(&t->free, first + n);
	silt_unlock(&t->list);
}

/* Pins the slot of a piece; if it has none it gets `spare`. */
static uint32_t pin_or_link(struct tier *t, const struct slot_use *use, uint32_t piece,
                            uint32_t spare)
{
	struct silt_lock *l = tier_key_lock(t, use->pack, piece);
	silt_lock(l);
	uint32_t i = tier_find(t, use->pack, piece);
	if (i == TIER_NIL && spare != TIER_NIL) {
		struct slot *s = &t->slots[spare];
		s->valid = 0;
		s->checked = false;
		s->freq = use->freq;
		s->pins = 0;
		link_slot(t, spare, use->pack, piece, use->pack_len);
		i = spare;
	}
	if (i != TIER_NIL)
		t->slots[i].pins++;
	silt_unlock(l);
	return i;
}

int tier_pin_new(struct tier *t, const struct slot_use *use, uint32_t piece, uint32_t n,
                 uint32_t *slots)
{
	uint32_t got = 0, spare = 0, spares = 0;
	while (got < n) {
		uint32_t i = pin_or_link(t, use, piece + got, spares ? spare : TIER_NIL);
		if (i != TIER_NIL) {
			slots[got++] = i;
			if (spares && i == spare) {
				spare++;
				spares--;
			}
			continue;
		}
		spares = take_free(t, n - got, &spare);
		if (spares == 0 && got > 0)
			break;
		if (spares == 0 && tier_reclaim(t) == 0)
			return -ENOSPC;
	}
	put_free(t, spare, spares);
	return (int)got;
}

void tier_unpin(struct tier *t, const uint32_t *slots, uint32_t n)
{
	struct silt_lock *held = NULL;
	for (uint32_t k = 0; k < n; k++) {
		struct slot *s = &t->slots[slots[k]];
		struct silt_lock *l = tier_key_lock(t, s->pack, s->piece); /* pinned: they stay */
		if (l != held) {
			if (held)
				silt_unlock(held);
			silt_lock(l);
			held = l;
		}
		assert(s->pins > 0);
		if (--s->pins == 0 && s->state == SLOT_DEAD)
			add_to(t, &t->dead, slots[k]);
	}
	if (held)
		silt_unlock(held);
}

void tier_set_valid(struct tier *t, uint32_t i, uint16_t bits, bool verified)
{
	struct slot *s = &t->slots[i];
	struct silt_lock *l = tier_key_lock(t, s->pack, s->piece);
	silt_lock(l);
	bool used = s->state == SLOT_USED;
	if (used) {
		s->valid |= bits;
		s->checked =
		        verified && bits == slot_full_mask(t->slot_size, s->pack_len, s->piece);
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
		add_to(t, &t->dead, i);
}

void tier_mark_dirty(struct tier *t, uint32_t i)
{
	add_to(t, &t->dirty, i);
}
