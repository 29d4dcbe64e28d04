/* Sets of slots as bitmaps: three bits a slot for free, dead and dirty, and neighbours are found as
 * neighbours. No locks: the tier holds `list`. */
#pragma once
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

struct slot_bits {
	uint64_t *words;
	uint32_t cap, n; /* slots; how many of them are in the set */
};

static inline int bits_init(struct slot_bits *b, uint32_t cap)
{
	*b = (struct slot_bits){ .cap = cap };
	b->words = calloc((size_t)cap / 64 + 1, sizeof(uint64_t));
	return b->words ? 0 : -ENOMEM;
}

static inline void bits_free(struct slot_bits *b)
{
	free(b->words);
	b->words = NULL;
}

static inline bool bits_has(const struct slot_bits *b, uint32_t i)
{
	return b->words[i / 64] >> (i % 64) & 1;
}

static inline void bits_add(struct slot_bits *b, uint32_t i)
{
	b->n += !bits_has(b, i);
	b->words[i / 64] |= (uint64_t)1 << (i % 64);
}

static inline void bits_remove(struct slot_bits *b, uint32_t i)
{
	b->n -= bits_has(b, i);
	b->words[i / 64] &= ~((uint64_t)1 << (i % 64));
}

/* The first member >= `from`, or `cap`. */
static inline uint32_t bits_next(const struct slot_bits *b, uint32_t from)
{
	if (from >= b->cap)
		return b->cap;
	uint32_t k = from / 64, last = b->cap / 64;
	uint64_t w = b->words[k] & ~(uint64_t)0 << (from % 64);
	while (w == 0 && k < last)
		w = b->words[++k];
	return w ? k * 64 + (uint32_t)__builtin_ctzll(w) : b->cap;
}

/* How many members stand side by side from `from` on; no more than `most` are counted. */
static inline uint32_t bits_run(const struct slot_bits *b, uint32_t from, uint32_t most)
{
	uint32_t n = 0;
	while (n < most && from + n < b->cap && bits_has(b, from + n))
		n++;
	return n;
}
