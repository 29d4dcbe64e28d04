/* Buffers that hold a whole pack, used again: fresh pages for 16 MiB cost more than filling them.
 *
 * How many are kept follows how many are in use: as many, and BIG_BUFFERS_IDLE more, so that a mount that
 * does nothing has next to none, and one that streams never asks the kernel for memory.
 *
 * Threads: any; `lock` guards all. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "meta/lock.h"

#define BIG_BUFFER	 ((size_t)20 << 20) /* bytes: holds any pack of ordinary size */
#define BIG_BUFFERS_MAX	 32		    /* kept */
#define BIG_BUFFERS_IDLE 2

struct big_buffers {
	struct silt_lock lock;
	unsigned used, kept;
	uint8_t *v[BIG_BUFFERS_MAX];
};

void big_buffers_init(struct big_buffers *b);
/* All have been given back. */
void big_buffers_free(struct big_buffers *b);

/* BIG_BUFFER bytes, aligned for O_DIRECT, of whatever content; NULL: no memory. */
uint8_t *big_buffer_get(struct big_buffers *b);
void big_buffer_put(struct big_buffers *b, uint8_t *buf); /* NULL is ignored */
