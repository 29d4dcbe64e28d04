#include "cache/big_buffers.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)

void big_buffers_init(struct big_buffers *b)
{
	memset(b, 0, sizeof(*b));
	silt_lock_init(&b->lock);
}

void big_buffers_free(struct big_buffers *b)
{
	while (b->kept)
		free(b->v[--b->kept]);
	silt_lock_destroy(&b->lock);
}

uint8_t *big_buffer_get(struct big_buffers *b)
{
	silt_lock(&b->lock);
	uint8_t *buf = b->kept ? b->v[--b->kept] : NULL;
	b->used++;
	silt_unlock(&b->lock);
	if (buf)
		return buf;
	buf = aligned_alloc(HUGE_PAGE, BIG_BUFFER);
	if (buf) {
		madvise(buf, BIG_BUFFER, MADV_HUGEPAGE); /* a few faults instead of 4,096; no matter if not */
		return buf;
	}
	silt_lock(&b->lock);
	b->used--;
	silt_unlock(&b->lock);
	return NULL;
}

void big_buffer_put(struct big_buffers *b, uint8_t *buf)
{
	uint8_t *more = NULL;
	if (!buf)
		return;
	silt_lock(&b->lock);
	unsigned most = --b->used + BIG_BUFFERS_IDLE;
	most = most < BIG_BUFFERS_MAX ? most : BIG_BUFFERS_MAX;
	if (b->kept < most)
		b->v[b->kept++] = buf;
	else
		more = buf;
	/* One that came back, and one that was kept for others: so it shrinks as the use does. */
	uint8_t *other = b->kept > most ? b->v[--b->kept] : NULL;
	silt_unlock(&b->lock);
	free(more);
	free(other);
}
