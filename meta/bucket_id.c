#include <inttypes.h>
#include <stdio.h>

#include "meta/buckets_impl.h"

#define INODES	     64 /* of an inode bucket */
#define PLACES	     ((uint64_t)1 << 52)

struct bucket_id bucket_of_inode(silt_ino ino)
{
	return (struct bucket_id){ .seq = silt_ino_seq(ino) / INODES,
				   .shard = (uint16_t)silt_ino_shard(ino) };
}

size_t bucket_inode_name(silt_ino ino, char out[4])
{
	return (size_t)snprintf(out, 4, "%u", (unsigned)(silt_ino_seq(ino) % INODES));
}

/* As functions.lua's bucket_of(). */
static uint64_t part_of(uint64_t n, uint64_t place, uint64_t *width)
{
	unsigned level = 0;
	while (n >> (level + 1) && level < 40)
		level++;
	uint64_t parts = (uint64_t)1 << level;
	uint64_t w = PLACES >> level, part = place / w;
	if (part < n - parts) {
		w /= 2;
		part = place / w;
	}
	*width = w;
	return part * w;
}

struct bucket_id bucket_of_place(silt_ino dir, uint64_t n, uint64_t place)
{
	uint64_t width, start = part_of(n ? n : 1, place, &width);
	return (struct bucket_id){ .seq = silt_ino_seq(dir),
				   .start = (uint32_t)(start >> 20),
				   .shard = (uint16_t)silt_ino_shard(dir),
				   .names = true };
}

uint64_t bucket_next_place(uint64_t n, uint64_t place)
{
	uint64_t width, start = part_of(n ? n : 1, place, &width);
	return start + width >= PLACES ? 0 : start + width;
}

size_t bucket_key(const struct bucket_id *id, char out[BUCKET_KEY_MAX])
{
	int n = id->names ? snprintf(out, BUCKET_KEY_MAX, "{%u}d%" PRIx64 ":%" PRIx32, id->shard, id->seq,
				     id->start)
			  : snprintf(out, BUCKET_KEY_MAX, "{%u}i%" PRIx64, id->shard, id->seq);
	return (size_t)n;
}

static bool take_hex(const char **p, const char *end, uint64_t max, uint64_t *out)
{
	uint64_t v = 0;
	const char *from = *p;
	for (; *p < end; (*p)++) {
		char c = **p;
		unsigned digit = c >= '0' && c <= '9' ? (unsigned)(c - '0')
				 : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a' + 10) : 16;
		if (digit == 16)
			break;
		if (v > (max >> 4))
			return false;
		v = v << 4 | digit;
	}
	*out = v;
	return *p > from && v <= max;
}

bool bucket_parse(const char *key, size_t len, struct bucket_id *out)
{
	const char *p = key, *end = key + len;
	uint64_t shard = 0, seq, start = 0;
	if (p == end || *p++ != '{' || p == end || *p == '}')
		return false;
	for (; p < end && *p >= '0' && *p <= '9' && shard < SILT_MAX_SHARDS; p++)
		shard = shard * 10 + (unsigned)(*p - '0');
	if (end - p < 3 || *p++ != '}' || shard >= SILT_MAX_SHARDS)
		return false;
	bool names = *p == 'd';
	if (!names && *p != 'i')
		return false;
	p++;
	if (!take_hex(&p, end, SILT_SEQ_MASK, &seq))
		return false;
	if (names && (p == end || *p++ != ':' || !take_hex(&p, end, UINT32_MAX, &start)))
		return false;
	if (p != end)
		return false;
	*out = (struct bucket_id){ .seq = seq, .start = (uint32_t)start, .shard = (uint16_t)shard,
				   .names = names };
	return true;
}

uint64_t bucket_id_hash(const struct bucket_id *id)
{
	uint64_t x = id->seq * 0x9e3779b97f4a7c15u ^ ((uint64_t)id->start << 17 | id->shard) * 2 ^ id->names;
	x ^= x >> 31;
	x *= 0xff51afd7ed558ccdu;
	return x ^ x >> 33;
}

bool bucket_id_same(const struct bucket_id *a, const struct bucket_id *b)
{
	return a->seq == b->seq && a->start == b->start && a->shard == b->shard && a->names == b->names;
}
