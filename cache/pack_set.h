/* A set of pack ids with what warmup knows about each: 16 bytes a pack and 4 to 8 of index. Entries
 * keep their place (0 .. n-1) in the order in which they were added. One thread at a time. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum pack_want {
	PACK_WANTED,    /* not on the SSD, not asked for yet */
	PACK_UNCHECKED, /* on the SSD, but this mount has not seen whether it is right */
	PACK_CACHED,    /* is there, and right */
	PACK_CHECKING,
	PACK_FETCHING,
	PACK_WAITING, /* failed, will be tried again */
	PACK_FETCHED,
	PACK_FAILED,
	PACK_DAMAGED, /* was there, and wrong */
};

struct pack_entry {
	uint64_t pack;
	uint32_t end; /* the pack is at least so long, as far as extents told */
	uint8_t want; /* enum pack_want */
	uint8_t tries;
};

struct pack_set {
	struct pack_entry *v;
	size_t n, cap;
	uint32_t *index;   /* place + 1 in v; 0: free. Linear probing. */
	size_t index_size; /* a power of two, at least twice n */
};

void pack_set_init(struct pack_set *s);
void pack_set_free(struct pack_set *s);

/* The entry of `pack`, or NULL. */
struct pack_entry *pack_set_find(const struct pack_set *s, uint64_t pack);

/* Finds or adds `pack`; *added says which. NULL: out of memory (or 2^32 packs). The pointer is
 * valid until the next add. */
struct pack_entry *pack_set_add(struct pack_set *s, uint64_t pack, int *added);
