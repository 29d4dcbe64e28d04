#include "meta/record.h"

#include <errno.h>
#include <openssl/sha.h>
#include <string.h>

#include "meta/varint.h"

#define SEC_OFFSET ((int64_t)1 << 39)
#define NS_PER_S   1000000000

enum { F_CTIME = 1, F_ATIME_DELTA = 2, F_ATIME_FULL = 4, F_FLAGS = 8 };

void record_time_encode(struct silt_time t, uint8_t out[RECORD_TIME])
{
	int64_t sec = t.sec < -SEC_OFFSET ? -SEC_OFFSET : t.sec >= SEC_OFFSET ? SEC_OFFSET - 1 : t.sec;
	silt_put_le(out, t.nsec, 4);
	silt_put_le(out + 4, (uint64_t)(sec + SEC_OFFSET), 5);
}

struct silt_time record_time_decode(const uint8_t in[RECORD_TIME])
{
	struct silt_reader r = silt_reader_of(in, RECORD_TIME);
	uint32_t nsec = (uint32_t)silt_get_le(&r, 4);
	int64_t sec = (int64_t)silt_get_le(&r, 5) - SEC_OFFSET;
	return (struct silt_time){ .sec = sec, .nsec = nsec };
}

static struct silt_time get_time(struct silt_reader *r)
{
	const uint8_t *p = silt_get_bytes(r, RECORD_TIME);
	struct silt_time t = p ? record_time_decode(p) : (struct silt_time){ 0 };
	if (t.nsec >= NS_PER_S)
		r->bad = true;
	return t;
}

static struct silt_time before(struct silt_time t, uint64_t ns)
{
	int64_t n = (int64_t)t.nsec - (int64_t)(ns % NS_PER_S);
	t.sec -= (int64_t)(ns / NS_PER_S);
	if (n < 0) {
		n += NS_PER_S;
		t.sec--;
	}
	t.nsec = (uint32_t)n;
	return t;
}

static void get_times(struct silt_reader *r, unsigned flags, struct silt_attr *a)
{
	a->mtime = get_time(r);
	a->ctime = flags & F_CTIME ? get_time(r) : a->mtime;
	a->atime = a->mtime;
	if (flags & F_ATIME_FULL) {
		a->atime = get_time(r);
	} else if (flags & F_ATIME_DELTA) {
		uint64_t ns = silt_get_varint(r);
		if (ns >= (uint64_t)1 << 40)
			r->bad = true;
		else
			a->atime = before(a->mtime, ns);
	}
}

static uint32_t get_u32(struct silt_reader *r)
{
	uint64_t v = silt_get_varint(r);
	if (v > UINT32_MAX)
		r->bad = true;
	return (uint32_t)v;
}

static void get_regular(struct silt_reader *r, struct silt_inode *out)
{
	unsigned map = (unsigned)silt_get_le(r, 1);
	if (map == SILT_MAP_INLINE) {
		int n = extent_decode(r->p, silt_left(r), &out->extent);
		if (n < 0 || (size_t)n != silt_left(r))
			r->bad = true;
	} else if (map > SILT_MAP_EXTERNAL || silt_left(r)) {
		r->bad = true;
	}
	out->map = r->bad ? SILT_MAP_NONE : (enum silt_map)map;
	if (out->attr.size > SILT_FILE_MAX)
		r->bad = true;
}

static void get_tail(struct silt_reader *r, struct silt_inode *out, const char **target, size_t *target_len)
{
	struct silt_attr *a = &out->attr;
	switch (a->mode & S_IFMT) {
	case S_IFREG: get_regular(r, out); break;
	case S_IFDIR: {
		unsigned shard = (unsigned)silt_get_le(r, 2);
		uint64_t seq = silt_get_le(r, 6);
		a->parent = silt_ino_make(shard, seq);
		if (shard >= SILT_MAX_SHARDS)
			r->bad = true;
		break;
	}
	case S_IFLNK: {
		bool elsewhere = silt_get_le(r, 1) == 1;
		if (target) {
			*target = elsewhere || r->bad ? NULL : (const char *)r->p;
			*target_len = silt_left(r);
		}
		break;
	}
	default: a->rdev = silt_left(r) ? get_u32(r) : 0;
	}
}

int record_decode(silt_ino ino, const void *data, size_t len, struct silt_inode *out,
		  const char **target, size_t *target_len)
{
	struct silt_reader r = silt_reader_of(data, len);
	struct silt_inode i = { .attr = { .ino = ino } };
	struct silt_attr *a = &i.attr;
	if (target)
		*target = NULL;
	unsigned flags = (unsigned)silt_get_le(&r, 1);
	if (flags >> 4 != 1)
		return -EUCLEAN;
	a->mode = (uint32_t)silt_get_le(&r, 2);
	if (!record_kind(a->mode))
		return -EUCLEAN;
	if (flags & F_FLAGS)
		a->flags = (uint8_t)silt_get_le(&r, 1);
	if ((a->flags & ~SILT_FLAGS_KNOWN) || (!S_ISDIR(a->mode) && (a->flags & SILT_FLAGS_DIRECTORY)))
		return -EUCLEAN;
	if (S_ISDIR(a->mode) && silt_get_varint(&r) == 0)
		return -EUCLEAN;
	get_times(&r, flags, a);
	a->uid = get_u32(&r);
	a->gid = get_u32(&r);
	a->nlink = get_u32(&r);
	a->size = silt_get_varint(&r);
	a->version = silt_get_varint(&r);
	get_tail(&r, &i, target, target_len);
	if (r.bad)
		return -EUCLEAN;
	*out = i;
	return 0;
}

int record_entry_decode(unsigned shard, const void *data, size_t len, uint32_t *type, silt_ino *ino,
			bool *moving)
{
	struct silt_reader r = silt_reader_of(data, len);
	unsigned b = (unsigned)silt_get_le(&r, 1);
	if (b & 0x40)
		shard = (unsigned)silt_get_le(&r, 2);
	size_t n = silt_left(&r);
	if (r.bad || (b & 0x30) || n == 0 || n > 6 || shard >= SILT_MAX_SHARDS || !record_kind((b & 15) << 12))
		return -EUCLEAN;
	*type = (b & 15) << 12;
	*ino = silt_ino_make(shard, silt_get_le(&r, (unsigned)n));
	*moving = b & 0x80;
	return 0;
}

unsigned record_kind(uint32_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG:
	case S_IFDIR:
	case S_IFLNK:
	case S_IFCHR:
	case S_IFBLK:
	case S_IFIFO:
	case S_IFSOCK: return (mode & S_IFMT) >> 12;
	default: return 0;
	}
}

uint64_t record_buckets(const void *data, size_t len)
{
	struct silt_reader r = silt_reader_of(data, len);
	unsigned flags = (unsigned)silt_get_le(&r, 1);
	uint32_t mode = (uint32_t)silt_get_le(&r, 2);
	if (flags & F_FLAGS)
		silt_get_le(&r, 1);
	return !r.bad && S_ISDIR(mode) ? silt_get_varint(&r) : 0;
}

uint64_t record_place(const char *name, size_t len)
{
	uint8_t h[SHA_DIGEST_LENGTH];
	uint64_t v = 0;
	SHA1((const unsigned char *)name, len, h);
	for (int i = 0; i < 7; i++)
		v = v << 8 | h[i];
	return v >> 4;
}
