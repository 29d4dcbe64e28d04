/* Extents against the store, and the counters of live bytes. See check.h. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cache/check_impl.h"
#include "cache/pack.h"

/* --- the store --- */

static int on_object(void *arg, const char *key, const struct store_object *info)
{
	struct check *c = arg;
	const char *name = strrchr(key, '/');
	uint64_t pack = name ? strtoull(name + 1, NULL, 16) : 0;
	char again[PACK_KEY_MAX];
	pack_key(pack, again);
	if (!pack || strcmp(again, key) != 0)
		return 0; /* gc tells of it */
	if (c->npacks == c->packs_cap) {
		size_t cap = c->packs_cap ? c->packs_cap * 2 : 1024;
		struct check_pack *v = reallocarray(c->packs, cap, sizeof(*v));
		if (!v)
			return -ENOMEM;
		c->packs = v;
		c->packs_cap = cap;
	}
	c->packs[c->npacks++] = (struct check_pack){ pack, info->size };
	c->out->packs++;
	c->out->pack_bytes += info->size;
	return 0;
}

static int by_pack(const void *a, const void *b)
{
	const struct check_pack *x = a, *y = b;
	return x->pack < y->pack ? -1 : x->pack > y->pack;
}

int check_list_packs(struct check *c)
{
	int rc = store_list(c->cfg->store, "packs/", "", on_object, c, c->err);
	if (rc == -ENOMEM)
		return silt_fail(c->err, rc, "out of memory");
	if (!rc && c->npacks)
		qsort(c->packs, c->npacks, sizeof(*c->packs), by_pack);
	return rc;
}

int check_data(struct check *c)
{
	uint8_t *buf = malloc(PACK_MAX);
	if (!buf)
		return silt_fail(c->err, -ENOMEM, "out of memory");
	uint64_t volume = meta_volume(c->cfg->meta)->id;
	for (size_t i = 0; i < c->npacks; i++) {
		int rc = check_hold(c);
		if (rc) {
			free(buf);
			return rc;
		}
		char key[PACK_KEY_MAX], why[160] = "its object is too long";
		struct silt_err err = { 0 };
		pack_key(c->packs[i].pack, key);
		ssize_t n = c->packs[i].size <= PACK_MAX
		                    ? store_get(c->cfg->store, key, 0, PACK_MAX, buf, NULL, &err)
		                    : -EFBIG;
		if (n == -ENOENT)
			continue; /* deleted since it was listed */
		if (n < 0 && n != -EFBIG)
			check_found(c, 1, "pack %016" PRIx64 " can't be read: %s", c->packs[i].pack, err.text);
		else if (n < 0 || pack_verify(buf, (size_t)n, c->packs[i].pack, volume, why))
			check_found(c, 1, "pack %016" PRIx64 " is damaged: %s", c->packs[i].pack, why);
	}
	free(buf);
	return 0;
}

/* --- live bytes --- */

static struct check_sum *sum_of(struct check_shard *s, uint64_t pack, bool make)
{
	if (make && s->nsums * 2 >= s->cap) {
		size_t cap = s->cap ? s->cap * 2 : 1024;
		struct check_sum *v = calloc(cap, sizeof(*v));
		if (!v)
			return NULL;
		for (size_t i = 0; i < s->cap; i++) {
			size_t at = s->sums[i].pack * 0x9e3779b97f4a7c15u % cap;
			if (!s->sums[i].pack)
				continue;
			while (v[at].pack)
				at = (at + 1) % cap;
			v[at] = s->sums[i];
		}
		free(s->sums);
		s->sums = v;
		s->cap = cap;
	}
	if (!s->cap)
		return NULL;
	size_t at = pack * 0x9e3779b97f4a7c15u % s->cap;
	while (s->sums[at].pack && s->sums[at].pack != pack)
		at = (at + 1) % s->cap;
	if (!s->sums[at].pack) {
		if (!make)
			return NULL;
		s->sums[at].pack = pack;
		s->nsums++;
	}
	return &s->sums[at];
}

struct file_pass {
	struct check *c;
	struct check_shard *s;
	silt_ino ino;
	uint64_t missing; /* the pack named last: a file with many extents in it is one finding */
};

static int add_live(void *arg, const struct silt_extent *e)
{
	struct file_pass *p = arg;
	if ((e->flags & EXTENT_HOLE) || !e->pack)
		return 0;
	struct check_sum *sum = sum_of(p->s, e->pack, true);
	if (!sum)
		return -ENOMEM;
	sum->bytes += e->stored;
	return 0;
}

static int on_extent(void *arg, const struct silt_extent *e)
{
	struct file_pass *p = arg;
	struct check *c = p->c;
	c->out->extents++;
	if ((e->flags & EXTENT_HOLE) || !e->pack)
		return 0;
	struct check_pack want = { .pack = e->pack };
	const struct check_pack *pack =
	        c->npacks ? bsearch(&want, c->packs, c->npacks, sizeof(want), by_pack) : NULL;
	if (!pack && p->missing != e->pack)
		check_found(c, 1, "inode %" PRIu64 ": bytes at %" PRIu64 " are in pack %016" PRIx64 ", which is not there",
		            p->ino, e->off, e->pack);
	else if (pack && (uint64_t)e->pack_off + e->stored > pack->size && p->missing != e->pack)
		check_found(c, 1,
		            "inode %" PRIu64 ": bytes at %" PRIu64 " lie behind the end of pack %016" PRIx64
		            ", which was cut",
		            p->ino, e->off, e->pack);
	if (!pack || (uint64_t)e->pack_off + e->stored > pack->size)
		p->missing = e->pack;
	return add_live(arg, e);
}

int check_extents(struct check *c, const struct silt_inode *inode)
{
	silt_ino ino = inode->attr.ino;
	struct file_pass p = { .c = c, .s = &c->s[silt_ino_shard(ino)], .ino = ino };
	int rc = meta_scan_extents(c->cfg->meta, inode, on_extent, &p);
	if (rc != -EBADMSG && rc != -EIO) /* -EIO: Redis can't make sense of it, or is away; then the next call says so */
		return rc;
	c->incomplete = true;
	check_found(c, 1, "inode %" PRIu64 ": its extents are damaged", ino);
	return 0;
}

struct live_pass {
	struct check *c;
	struct check_shard *s;
	unsigned shard;
};

static int on_counter(void *arg, uint64_t pack, int64_t live)
{
	struct live_pass *p = arg;
	struct check *c = p->c;
	struct check_sum *sum = sum_of(p->s, pack, false);
	uint64_t bytes = sum ? sum->bytes : 0;
	if (sum)
		sum->seen = true;
	if (live == META_PACK_BURIED) {
		if (bytes)
			check_found(c, 1,
			            "shard %u: pack %016" PRIx64 " is taken for deleted, but files use %" PRIu64
			            " bytes of it",
			            p->shard, pack, bytes);
		return 0;
	}
	if (live >= 0 && (uint64_t)live == bytes)
		return 0;
	if (c->incomplete && (live == META_PACK_RUBBISH || (uint64_t)live > bytes) && live >= 0)
		return 0; /* it may be right */
	int rc = c->cfg->repair && !c->incomplete && live != META_PACK_RUBBISH
	                 ? meta_fix_live(c->cfg->meta, p->shard, pack, live, bytes)
	                 : 1;
	if (live == META_PACK_RUBBISH)
		check_found(c, rc, "shard %u: the counter of live bytes of pack %016" PRIx64 " is no number", p->shard, pack);
	else
		check_found(c, rc, "shard %u: pack %016" PRIx64 " has %" PRId64 " live bytes by its counter, %" PRIu64 " by the files",
	            p->shard, pack, live, bytes);
	return 0;
}

static int check_usage(struct check *c, unsigned shard)
{
	struct check_shard *s = &c->s[shard];
	struct meta_limits now;
	int rc = meta_limits(c->cfg->meta, shard, &now);
	if (rc || (now.inodes == s->inodes && now.bytes == s->bytes))
		return rc;
	/* It was being changed while the inodes were counted. */
	if (now.inodes != s->limits.inodes || now.bytes != s->limits.bytes || now.last_inode != s->limits.last_inode)
		return 0;
	rc = c->cfg->repair && !c->incomplete ? meta_fix_usage(c->cfg->meta, shard, &now, s->inodes, s->bytes) : 1;
	check_found(c, rc,
	            "shard %u: counts %" PRId64 " inodes and %" PRId64 " bytes, there are %" PRId64 " and %" PRId64,
	            shard, now.inodes, now.bytes, s->inodes, s->bytes);
	return 0;
}

int check_counters(struct check *c)
{
	int rc = 0;
	for (unsigned i = 0; i < c->shards && !rc; i++) {
		struct check_shard *s = &c->s[i];
		struct live_pass p = { c, s, i };
		struct file_pass g = { .c = c, .s = s };
		rc = meta_scan_garbage(c->cfg->meta, i, add_live, &g);
		if (rc == -EBADMSG) {
			check_found(c, 1, "shard %u: freed extents that are to be worked off are damaged", i);
			c->incomplete = true;
			rc = 0;
		}
		if (!rc)
			rc = meta_scan_live(c->cfg->meta, i, c->s[0].limits.last_pack, on_counter, &p);
		for (size_t k = 0; k < s->cap && !rc; k++) {
			struct check_sum *sum = &s->sums[k];
			if (!sum->pack || sum->seen || !sum->bytes)
				continue;
			int fixed = c->cfg->repair && !c->incomplete
			                    ? meta_fix_live(c->cfg->meta, i, sum->pack, INT64_MAX, sum->bytes)
			                    : 1;
			check_found(c, fixed,
			            "shard %u: pack %016" PRIx64 " has no counter, files use %" PRIu64 " bytes of it",
			            i, sum->pack, sum->bytes);
		}
		if (!rc)
			rc = check_usage(c, i);
	}
	return rc;
}
