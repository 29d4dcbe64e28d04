/* Decoded frames in memory: the first place where a read looks. Bounded, in shards, each with a
 * lock held for a look-up and a copy. Any thread. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "meta/types.h"

struct frame_memory;

struct frame_key {
	uint64_t pack;
	uint32_t pack_off; /* of the frame's header */
};

/* What a reader expects of the frame; `foreign`: any owner will do. */
struct frame_owner {
	silt_ino ino;
	uint64_t off; /* file offset of the frame's first byte */
	bool foreign;
};

/* Keeps at most `bytes` of frames. NULL: out of memory. */
struct frame_memory *frame_memory_new(uint64_t bytes);
void frame_memory_free(struct frame_memory *m);

/* Copies raw bytes [skip, skip + len) of a frame; false when it is not here, is another owner's or
 * is too short. Hot path: one shard lock, no allocation. */
bool frame_memory_get(struct frame_memory *m, struct frame_key k, const struct frame_owner *owner,
                      uint32_t skip, uint32_t len, void *dst);

/* Keeps a copy of a whole frame of `len` raw bytes; may drop others, may do nothing. */
void frame_memory_put(struct frame_memory *m, struct frame_key k, silt_ino ino, uint64_t off,
                      const void *raw, uint32_t len);

void frame_memory_drop(struct frame_memory *m, uint64_t pack);
