/* Little-endian base-128 variable-length integers (LEB128) over a bounded cursor. A decoder reads
 * past no end: the first fault makes the cursor bad and all later reads give 0. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct silt_reader {
	const uint8_t *p, *end;
	bool bad;
};

static inline struct silt_reader silt_reader_of(const void *data, size_t len)
{
	const uint8_t *p = data;
	return (struct silt_reader){ .p = p, .end = p + len };
}

static inline size_t silt_left(const struct silt_reader *r)
{
	return r->bad ? 0 : (size_t)(r->end - r->p);
}

static inline uint64_t silt_get_varint(struct silt_reader *r)
{
	uint64_t v = 0;
	for (unsigned shift = 0; shift < 64; shift += 7) {
		if (r->bad || r->p == r->end)
			break;
		uint8_t b = *r->p++;
		if (shift == 63 && b > 1)
			break;
		v |= (uint64_t)(b & 0x7f) << shift;
		if (!(b & 0x80))
			return v;
	}
	r->bad = true;
	return 0;
}

/* Little-endian integer of `n` (1 to 8) bytes. */
static inline uint64_t silt_get_le(struct silt_reader *r, unsigned n)
{
	uint64_t v = 0;
	if (silt_left(r) < n) {
		r->bad = true;
		return 0;
	}
	for (unsigned i = 0; i < n; i++)
		v |= (uint64_t)r->p[i] << (8 * i);
	r->p += n;
	return v;
}

static inline const uint8_t *silt_get_bytes(struct silt_reader *r, size_t n)
{
	if (silt_left(r) < n) {
		r->bad = true;
		return NULL;
	}
	const uint8_t *p = r->p;
	r->p += n;
	return p;
}

/* Writers need room: 10 bytes a varint. They return the byte after what they wrote. */
static inline uint8_t *silt_put_varint(uint8_t *p, uint64_t v)
{
	while (v >= 0x80) {
		*p++ = (uint8_t)(v | 0x80);
		v >>= 7;
	}
	*p++ = (uint8_t)v;
	return p;
}

static inline uint8_t *silt_put_le(uint8_t *p, uint64_t v, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		*p++ = (uint8_t)(v >> (8 * i));
	return p;
}

static inline uint64_t silt_zigzag(int64_t v)
{
	return ((uint64_t)v << 1) ^ (uint64_t)(v >> 63);
}

static inline int64_t silt_unzigzag(uint64_t v)
{
	return (int64_t)(v >> 1) ^ -(int64_t)(v & 1);
}
