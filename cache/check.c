/* Inodes and names. See check.h.
 *
 * One pass over the inodes fills three bytes for each number; one over the directories' names counts
 * what leads to each; then the two are compared. */
#include "cache/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/check_impl.h"
#include "meta/lock.h"
#include "meta/record.h"

#define MANY	     255u /* a count that may be more */
#define KIND_DAMAGED 255u /* there is a record, which does not decode */
#define HOLD_NS	     ((uint64_t)5 * 1000000000u)

void check_found(struct check *c, int rc, const char *fmt, ...)
{
	struct check_result *r = c->out;
	if (r->n == r->cap) {
		size_t cap = r->cap ? r->cap * 2 : 16;
		struct check_finding *v = reallocarray(r->v, cap, sizeof(*v));
		if (!v)
			return; /* what was noted so far says enough */
		r->v = v;
		r->cap = cap;
	}
	va_list ap;
	char *text = NULL;
	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	char *full = NULL;
	if (text && rc < 0 && asprintf(&full, "%s; correcting it failed: %s", text, strerror(-rc)) > 0) {
		free(text);
		text = full;
	}
	if (text)
		r->v[r->n++] = (struct check_finding){ text, rc == 0 };
}

void check_free(struct check_result *r)
{
	for (size_t i = 0; i < r->n; i++)
		free(r->v[i].text);
	free(r->v);
	*r = (struct check_result){ 0 };
}

int check_hold(struct check *c)
{
	uint64_t now = silt_now_ns();
	if (!c->cfg->hold || now - c->held_ns < HOLD_NS)
		return 0;
	c->held_ns = now;
	return c->cfg->hold(c->cfg->arg);
}

static void count_up(uint8_t *n)
{
	*n += *n < MANY;
}

/* NULL: a number that was never given out. */
static struct check_shard *shard_of(struct check *c, silt_ino ino)
{
	unsigned s = silt_ino_shard(ino);
	return s < c->shards && silt_ino_seq(ino) < c->s[s].n ? &c->s[s] : NULL;
}

/* --- inodes --- */

static int add_dir(struct check *c, const struct silt_attr *a)
{
	if (c->ndirs == c->dirs_cap) {
		size_t cap = c->dirs_cap ? c->dirs_cap * 2 : 256;
		struct check_dir *v = reallocarray(c->dirs, cap, sizeof(*v));
		if (!v)
			return -ENOMEM;
		c->dirs = v;
		c->dirs_cap = cap;
	}
	c->dirs[c->ndirs++] = (struct check_dir){ a->ino, a->parent, a->size, a->nlink, false };
	c->out->directories++;
	return 0;
}

static int check_target(struct check *c, silt_ino ino)
{
	struct meta_wait w;
	meta_wait_init(&w);
	meta_readlink(c->cfg->meta, ino, meta_wait_done, &w);
	int rc = meta_wait(&w);
	meta_wait_free(&w);
	if (rc == -EIO)
		check_found(c, 1, "inode %" PRIu64 ": the target of this symbolic link is lost", ino);
	return rc == -EIO || rc == -ENOENT ? 0 : rc;
}

/* A file whose record can't be read is removed when a repair is asked for. What may be a directory is not: all below
 * it would lose its name; nor what a later siltfs may have written. */
static bool may_drop(silt_ino ino, const void *record, size_t len)
{
	const uint8_t *r = record;
	return ino != SILT_ROOT_INO && (len < 1 || r[0] >> 4 == 1) && !(len >= 3 && r[2] >> 4 == S_IFDIR >> 12);
}

static int on_inode(void *arg, silt_ino ino, const void *record, size_t len)
{
	struct check *c = arg;
	struct check_shard *s = shard_of(c, ino);
	struct silt_inode inode;
	const char *target = NULL;
	size_t target_len = 0;
	int held = check_hold(c);
	if (held)
		return held;
	if (!s || record_decode(ino, record, len, &inode, &target, &target_len)) {
		c->incomplete = true;
		if (s)
			s->kind[silt_ino_seq(ino)] = KIND_DAMAGED;
		int rc = c->cfg->repair && may_drop(ino, record, len) ? meta_drop_inode(c->cfg->meta, ino, record, len) : 1;
		if (s && !rc)
			s->kind[silt_ino_seq(ino)] = 0;
		check_found(c, rc, "inode %" PRIu64 ": its record is damaged%s", ino, rc ? "" : " and was removed");
		return 0;
	}
	const struct silt_attr *a = &inode.attr;
	uint64_t q = silt_ino_seq(ino);
	s->kind[q] = (uint8_t)(a->mode >> 12);
	s->links[q] = (uint8_t)(a->nlink < MANY ? a->nlink : MANY);
	s->inodes++;
	s->bytes += S_ISREG(a->mode) ? (int64_t)a->size : 0;
	c->out->inodes++;
	if (S_ISREG(a->mode))
		return check_extents(c, &inode);
	if (S_ISDIR(a->mode))
		return add_dir(c, a);
	return S_ISLNK(a->mode) && !target ? check_target(c, ino) : 0;
}

static int by_number(const void *a, const void *b)
{
	const struct check_dir *x = a, *y = b;
	return x->ino < y->ino ? -1 : x->ino > y->ino;
}

static int make_arrays(struct check *c, unsigned shard)
{
	struct check_shard *s = &c->s[shard];
	int rc = meta_limits(c->cfg->meta, shard, &s->limits);
	if (rc)
		return rc;
	s->n = ((s->limits.last_inode + META_SCAN_BEYOND) / 64 + 1) * 64;
	s->kind = calloc(s->n, 1);
	s->links = calloc(s->n, 1);
	s->names = calloc(s->n, 1);
	return s->kind && s->links && s->names ? 0 : -ENOMEM;
}

/* --- names --- */

struct dir_pass {
	struct check *c;
	struct check_dir *d;
	uint64_t names, dirs, unknown; /* unknown: entries that come or go, or don't decode */
};

static int remove_name(struct check *c, silt_ino dir, const char *name, size_t len, bool is_dir)
{
	struct timespec ts;
	struct meta_wait w;
	clock_gettime(CLOCK_REALTIME, &ts);
	meta_wait_init(&w);
	struct silt_time now = { ts.tv_sec, (uint32_t)ts.tv_nsec };
	if (is_dir)
		meta_rmdir(c->cfg->meta, dir, name, len, now, meta_wait_done, &w);
	else
		meta_unlink(c->cfg->meta, dir, name, len, false, now, meta_wait_done, &w);
	int rc = meta_wait(&w);
	meta_wait_free(&w);
	return rc;
}

/* For messages: what could do harm on a terminal is left out. */
static const char *shown(const char *name, size_t len, char out[300])
{
	size_t n = len < 255 ? len : 255;
	for (size_t i = 0; i < n; i++)
		out[i] = (unsigned char)name[i] < ' ' || name[i] == 0x7f ? '?' : name[i];
	out[n] = '\0';
	return out;
}

static void check_parent(struct dir_pass *p, silt_ino ino, const char *text)
{
	struct check *c = p->c;
	struct check_dir want = { .ino = ino };
	struct check_dir *d = c->ndirs ? bsearch(&want, c->dirs, c->ndirs, sizeof(want), by_number) : NULL;
	if (!d)
		return;
	if (d->named)
		check_found(c, 1, "directory %" PRIu64 " has a second name, \"%s\" in %" PRIu64, ino, text, p->d->ino);
	else if (d->parent != p->d->ino)
		check_found(c, 1, "directory %" PRIu64 ", \"%s\" in %" PRIu64 ", says that it is in %" PRIu64, ino, text,
		            p->d->ino, d->parent);
	d->named = true;
}

static int on_entry(void *arg, const char *name, size_t len, const void *entry, size_t entry_len)
{
	struct dir_pass *p = arg;
	struct check *c = p->c;
	uint32_t type;
	silt_ino ino;
	bool moving = false;
	char text[300];
	c->out->names++;
	shown(name, len, text);
	if (record_entry_decode(silt_ino_shard(p->d->ino), entry, entry_len, &type, &ino, &moving)) {
		int rc = c->cfg->repair ? remove_name(c, p->d->ino, name, len, false) : 1;
		check_found(c, rc, "\"%s\" in directory %" PRIu64 " is damaged%s", text, p->d->ino,
		            rc ? "" : " and was removed");
		p->unknown++;
		return 0;
	}
	struct check_shard *s = shard_of(c, ino);
	uint8_t kind = s ? s->kind[silt_ino_seq(ino)] : 0;
	p->unknown += moving;
	if (kind == KIND_DAMAGED) { /* that was told */
		p->unknown++;
		return 0;
	}
	if (!kind) {
		void *record = NULL;
		size_t record_len;
		p->unknown++;
		int there = meta_get_record(c->cfg->meta, ino, &record, &record_len);
		free(record);
		if (there != -ENOENT) { /* made since, or its number is one that was never given out */
			c->incomplete = true;
			if (there == 0 && !s)
				check_found(c, 1, "inode %" PRIu64 ": shard %u says that it has given out numbers up to %" PRIu64,
				            ino, silt_ino_shard(ino), c->s[silt_ino_shard(ino) % c->shards].limits.last_inode);
			return there == 0 ? 0 : there;
		}
		int rc = c->cfg->repair && !moving ? remove_name(c, p->d->ino, name, len, S_ISDIR(type)) : 1;
		check_found(c, rc, "\"%s\" in directory %" PRIu64 " leads to inode %" PRIu64 ", which is not there%s", text,
		            p->d->ino, ino, rc ? "" : "; the name was removed");
		return 0;
	}
	p->names++;
	count_up(&s->names[silt_ino_seq(ino)]);
	if (kind != type >> 12)
		check_found(c, 1, "\"%s\" in directory %" PRIu64 ": the type is not that of inode %" PRIu64, text,
		            p->d->ino, ino);
	if (S_ISDIR(type)) {
		p->dirs++;
		check_parent(p, ino, text);
	}
	return 0;
}

static int fix_counts(struct check *c, silt_ino ino, uint64_t nlink, uint64_t size)
{
	void *record = NULL;
	size_t len;
	if (!c->cfg->repair)
		return 1;
	int rc = meta_get_record(c->cfg->meta, ino, &record, &len);
	if (!rc)
		rc = meta_fix_inode(c->cfg->meta, ino, record, len, nlink, size);
	free(record);
	return rc;
}

static int check_dir(struct check *c, struct check_dir *d)
{
	struct dir_pass p = { .c = c, .d = d };
	int rc = check_hold(c);
	if (rc)
		return rc;
	rc = meta_scan_entries(c->cfg->meta, d->ino, on_entry, &p);
	if (rc == -ENOENT || d->nlink == 0)
		return 0; /* removed */
	if (rc == -EIO) {
		c->incomplete = true;
		check_found(c, 1, "directory %" PRIu64 ": its names can't be listed", d->ino);
		return 0;
	}
	if (rc)
		return rc;
	if (p.unknown || (p.names == d->size && p.dirs + 2 == d->nlink))
		return 0; /* after a repair the next pass looks */
	int fixed = fix_counts(c, d->ino, p.dirs + 2, p.names);
	check_found(c, fixed,
	            "directory %" PRIu64 " counts %" PRIu64 " names and %u links, there are %" PRIu64 " and %" PRIu64,
	            d->ino, d->size, d->nlink, p.names, p.dirs + 2);
	return 0;
}

/* --- names against links --- */

/* lost+found in the root, made if it is missing. */
static int lost_and_found(struct check *c, silt_ino *out)
{
	struct meta_make how = { .mode = S_IFDIR | 0700 };
	struct meta_wait w;
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	how.now = (struct silt_time){ ts.tv_sec, (uint32_t)ts.tv_nsec };
	meta_wait_init(&w);
	meta_make(c->cfg->meta, SILT_ROOT_INO, "lost+found", 10, &how, meta_wait_done, &w);
	int rc = meta_wait(&w);
	*out = w.reply.inode.attr.ino;
	meta_wait_free(&w);
	if (rc == -EEXIST) {
		meta_wait_init(&w);
		meta_lookup(c->cfg->meta, SILT_ROOT_INO, "lost+found", 10, meta_wait_done, &w);
		rc = meta_wait(&w);
		*out = w.reply.inode.attr.ino;
		meta_wait_free(&w);
	}
	return rc;
}

/* A file without a name gets one. */
static int give_name(struct check *c, silt_ino ino)
{
	silt_ino dir;
	char name[32];
	struct timespec ts;
	struct meta_wait w;
	if (!c->cfg->repair)
		return 1;
	int rc = lost_and_found(c, &dir);
	if (rc)
		return rc;
	clock_gettime(CLOCK_REALTIME, &ts);
	int n = snprintf(name, sizeof(name), "%" PRIu64, ino);
	meta_wait_init(&w);
	meta_link(c->cfg->meta, ino, dir, name, (size_t)n, (struct silt_time){ ts.tv_sec, (uint32_t)ts.tv_nsec },
	          meta_wait_done, &w);
	rc = meta_wait(&w);
	meta_wait_free(&w);
	return rc ? rc : fix_counts(c, ino, 1, UINT64_MAX);
}

static void compare(struct check *c, silt_ino ino, const struct check_shard *s)
{
	uint64_t q = silt_ino_seq(ino);
	unsigned links = s->links[q], names = s->names[q];
	bool dir = s->kind[q] == S_IFDIR >> 12;
	if (ino == SILT_ROOT_INO || links == 0 || (dir && names)) /* deleted, and open somewhere */
		return;
	if (names == 0 && dir) {
		check_found(c, 1, "directory %" PRIu64 " has no name", ino);
	} else if (names == 0) {
		int rc = give_name(c, ino);
		check_found(c, rc, "inode %" PRIu64 " has no name%s", ino, rc ? "" : "; it is in lost+found now");
	} else if (links != names && links < MANY && names < MANY) {
		int rc = fix_counts(c, ino, names, UINT64_MAX);
		check_found(c, rc, "inode %" PRIu64 " counts %u links, there are %u", ino, links, names);
	}
}

/* --- all of it --- */

static int run(struct check *c)
{
	int rc = check_list_packs(c);
	for (unsigned i = 0; i < c->shards && !rc; i++)
		rc = make_arrays(c, i);
	for (unsigned i = 0; i < c->shards && !rc; i++)
		rc = meta_scan_inodes(c->cfg->meta, i, on_inode, c);
	if (!rc && c->ndirs)
		qsort(c->dirs, c->ndirs, sizeof(*c->dirs), by_number);
	for (size_t i = 0; i < c->ndirs && !rc; i++)
		rc = check_dir(c, &c->dirs[i]);
	for (unsigned i = 0; i < c->shards && !rc; i++)
		for (uint64_t q = 0; q < c->s[i].n; q++)
			if (c->s[i].kind[q] && c->s[i].kind[q] != KIND_DAMAGED && !c->incomplete)
				compare(c, silt_ino_make(i, q), &c->s[i]);
	/* What was repaired changed them; the next pass looks. */
	bool repaired = false;
	for (size_t i = 0; i < c->out->n; i++)
		repaired = repaired || c->out->v[i].repaired;
	if (!rc && !repaired)
		rc = check_counters(c);
	if (!rc && c->cfg->data)
		rc = check_data(c);
	return rc;
}

int check_run(const struct check_config *cfg, struct check_result *out, struct silt_err *err)
{
	struct check c = { .cfg = cfg, .out = out, .err = err, .shards = meta_volume(cfg->meta)->shards };
	c.s = calloc(c.shards, sizeof(*c.s));
	int rc = c.s ? run(&c) : -ENOMEM;
	if (rc && !err->text[0])
		silt_fail(err, rc, "reading the metadata: %s", strerror(rc < 0 ? -rc : EIO));
	for (unsigned i = 0; c.s && i < c.shards; i++) {
		free(c.s[i].kind);
		free(c.s[i].links);
		free(c.s[i].names);
		free(c.s[i].sums);
	}
	free(c.s);
	free(c.dirs);
	free(c.packs);
	return rc < 0 ? rc : 0;
}
