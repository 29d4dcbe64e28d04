/* Extents: the encoding of one entry, and the arithmetic of maps.
 *
 * A map is a sorted array. Adding an entry cuts out the range it covers: of the extents that
 * overlap it, all but the first and the last disappear; the first may leave a left part, the last a
 * right part (one extent may be both and leave two). An entry that is a hole leaves nothing in the
 * middle, which is why a resolved map holds none.
 *
 * Cutting the front of an extent moves `skip`, never `pack_off` or `stored`: the run of frames
 * stays whole, because where a compressed frame begins can't be known from here. Extents that touch
 * are not merged; writers that append produce long runs by themselves.
 *
 * A log grows at its end nearly always, so adding behind the last extent is O(1); elsewhere it
 * costs a binary search and a memmove of a window's extents. */
#include "meta/extent.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "meta/cleanup.h"
#include "meta/types.h"
#include "meta/varint.h"

static uint64_t extent_end(const struct silt_extent *e)
{
	return e->off + e->len;
}

size_t extent_encode(const struct silt_extent *e, uint8_t *out)
{
	uint8_t *p = out;
	bool hole = !e->pack || (e->flags & EXTENT_HOLE);
	if (hole) {
		*p++ = EXTENT_HOLE;
	} else {
		unsigned flags = e->flags & ~(unsigned)EXTENT_SKIP;
		*p++ = (uint8_t)(flags | (e->skip ? EXTENT_SKIP : 0));
	}
	p = silt_put_varint(p, e->off);
	p = silt_put_varint(p, e->len);
	if (hole)
		return (size_t)(p - out);
	p = silt_put_varint(p, e->pack);
	p = silt_put_varint(p, e->pack_off);
	p = silt_put_varint(p, e->stored);
	if (e->skip)
		p = silt_put_varint(p, e->skip);
	return (size_t)(p - out);
}

/* The range of file bytes: inside the largest file and inside one window. */
static bool range_valid(const struct silt_extent *e)
{
	if (!e->len || e->len > SILT_WINDOW || e->off > SILT_FILE_MAX - e->len)
		return false;
	return e->off / SILT_WINDOW == (extent_end(e) - 1) / SILT_WINDOW;
}

static uint32_t get_u32(struct silt_reader *r)
{
	uint64_t v = silt_get_varint(r);
	if (v > UINT32_MAX)
		r->bad = true;
	return (uint32_t)v;
}

/* Where the bytes are in the pack. Sums that stay below 2^32 let the map cut without overflow. */
static bool decode_place(struct silt_reader *r, struct silt_extent *e)
{
	bool has_skip = e->flags & EXTENT_SKIP;
	e->pack = silt_get_varint(r);
	e->pack_off = get_u32(r);
	e->stored = get_u32(r);
	if (has_skip)
		e->skip = get_u32(r);
	e->flags &= (uint8_t)~EXTENT_SKIP;
	if (r->bad || !e->pack || !e->stored || has_skip != (e->skip != 0))
		return false;
	return e->stored <= UINT32_MAX - e->pack_off && e->len <= UINT32_MAX - e->skip;
}

int extent_decode(const void *data, size_t len, struct silt_extent *out)
{
	struct silt_reader r = silt_reader_of(data, len);
	struct silt_extent e = { .flags = 0 };
	uint64_t flags = silt_get_varint(&r);
	if (flags & ~(uint64_t)EXTENT_FLAGS_KNOWN)
		return -EINVAL;
	e.flags = (uint8_t)flags;
	e.off = silt_get_varint(&r);
	e.len = silt_get_varint(&r);
	if (r.bad || !range_valid(&e))
		return -EINVAL;
	if (e.flags & EXTENT_HOLE) {
		if (e.flags != EXTENT_HOLE)
			return -EINVAL;
	} else if (!decode_place(&r, &e)) {
		return -EINVAL;
	}
	*out = e;
	return (int)(r.p - (const uint8_t *)data);
}

void extent_map_init(struct extent_map *m)
{
	*m = (struct extent_map){ .v = NULL };
}

void extent_map_free(struct extent_map *m)
{
	free(m->v);
	extent_map_init(m);
}

/* Index of the first extent that ends after `off`; m->n when there is none. */
static size_t first_ending_after(const struct extent_map *m, uint64_t off)
{
	size_t lo = 0, hi = m->n;
	if (!hi || extent_end(&m->v[hi - 1]) <= off)
		return hi;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (extent_end(&m->v[mid]) <= off)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* Index past the last extent that begins before `end`, from `lo` on. */
static size_t past_beginning_before(const struct extent_map *m, size_t lo, uint64_t end)
{
	size_t hi = m->n;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (m->v[mid].off < end)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static int reserve(struct extent_map *m, size_t n)
{
	if (n <= m->cap)
		return 0;
	size_t cap = m->cap ? m->cap * 2 : 4;
	if (cap < n)
		cap = n;
	struct silt_extent *v = reallocarray(m->v, cap, sizeof(*v));
	if (!v)
		return -ENOMEM;
	m->v = v;
	m->cap = cap;
	return 0;
}

/* What stays of `e` before `end`. */
static struct silt_extent left_part(const struct silt_extent *e, uint64_t end)
{
	struct silt_extent part = *e;
	part.len = end - e->off;
	return part;
}

/* What stays of `e` from `off` on. */
static struct silt_extent right_part(const struct silt_extent *e, uint64_t off)
{
	struct silt_extent part = *e;
	uint64_t cut = off - e->off;
	assert(cut < UINT32_MAX - e->skip);
	part.off = off;
	part.len -= cut;
	part.skip += (uint32_t)cut;
	return part;
}

int extent_map_add(struct extent_map *m, const struct silt_extent *e)
{
	assert(e->len > 0 && e->off <= UINT64_MAX - e->len);
	uint64_t end = extent_end(e);
	size_t from = first_ending_after(m, e->off);
	size_t to = past_beginning_before(m, from, end);

	struct silt_extent parts[3];
	size_t n = 0;
	if (from < to && m->v[from].off < e->off)
		parts[n++] = left_part(&m->v[from], e->off);
	if (e->pack && !(e->flags & EXTENT_HOLE))
		parts[n++] = *e;
	if (from < to && extent_end(&m->v[to - 1]) > end)
		parts[n++] = right_part(&m->v[to - 1], end);

	size_t grown = m->n - (to - from) + n;
	int err = reserve(m, grown);
	if (err)
		return err;
	if (to < m->n)
		memmove(&m->v[from + n], &m->v[to], (m->n - to) * sizeof(*m->v));
	if (n)
		memcpy(&m->v[from], parts, n * sizeof(*parts));
	m->n = grown;
	return 0;
}

int extent_map_add_log(struct extent_map *m, const void *log, size_t len)
{
	const uint8_t *p = log;
	while (len) {
		struct silt_extent e;
		int used = extent_decode(p, len, &e);
		if (used < 0)
			return used;
		int err = extent_map_add(m, &e);
		if (err)
			return err;
		p += used;
		len -= (size_t)used;
	}
	return 0;
}

void extent_map_truncate(struct extent_map *m, uint64_t size)
{
	size_t i = first_ending_after(m, size);
	if (i < m->n && m->v[i].off < size) {
		m->v[i] = left_part(&m->v[i], size);
		i++;
	}
	m->n = i;
}

const struct silt_extent *extent_map_find(const struct extent_map *m, uint64_t off)
{
	size_t i = first_ending_after(m, off);
	return i < m->n ? &m->v[i] : NULL;
}

int extent_map_encode(const struct extent_map *m, uint8_t **out, size_t *len)
{
	if (!m->n) {
		*out = NULL;
		*len = 0;
		return 0;
	}
	SILT_FREE uint8_t *buf = reallocarray(NULL, m->n, SILT_EXTENT_ENCODED_MAX);
	if (!buf)
		return -ENOMEM;
	size_t used = 0;
	for (size_t i = 0; i < m->n; i++)
		used += extent_encode(&m->v[i], buf + used);
	/* Encoded extents take a third of the worst case. */
	uint8_t *fit = realloc(buf, used);
	if (fit)
		buf = fit;
	*len = used;
	*out = silt_steal(buf);
	return 0;
}

size_t extent_logs_put(uint8_t *out, uint64_t window, const void *log, size_t len)
{
	uint64_t head[2] = { window, len };
	_Static_assert(sizeof(head) == EXTENT_LOGS_HEAD, "extent.h says so");
	memcpy(out, head, sizeof(head));
	memcpy(out + sizeof(head), log, len);
	return sizeof(head) + len;
}

bool extent_logs_next(const uint8_t **p, size_t *left, struct extent_log *out)
{
	uint64_t head[2];
	if (*left < sizeof(head))
		return false;
	memcpy(head, *p, sizeof(head));
	if (head[1] > *left - sizeof(head))
		return false;
	*out = (struct extent_log){ head[0], *p + sizeof(head), head[1] };
	*p += sizeof(head) + head[1];
	*left -= sizeof(head) + head[1];
	return true;
}
