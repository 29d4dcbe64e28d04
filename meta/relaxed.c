/* Answers of a mount with `relaxed` from what it remembers, without asking Redis: names and inodes whose
 * buckets the server watches. A name is looked for in the bucket that the directory's own record says, so
 * that record must be known for sure too; it changes with every name of the directory.
 *
 * What could not be answered is asked for, and remembered; a second miss in a dentry bucket asks for all
 * of it. So opening files at random costs little more than without, and a directory that is used is soon
 * here whole. */
#include "meta/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RECORD_MAX 8192
#define ENTRY_MAX  16
#define LEVELS	   24 /* directories of up to 2^24 buckets */

static struct buckets *table(struct op *op)
{
	return meta_relaxed(op->m) ? cover_table(op->m) : NULL;
}

static bool known_record(struct op *op, silt_ino ino, char *record, size_t *len, uint32_t *stamp)
{
	char name[4];
	struct bucket_id id = bucket_of_inode(ino);
	size_t n = bucket_inode_name(ino, name);
	if (buckets_get(table(op), &id, name, n, record, RECORD_MAX, len, stamp) == BUCKET_PRESENT)
		return true;
	cover_want(op->m, &id, name, n);
	return false;
}

static bool known_inode(struct op *op, silt_ino ino, struct silt_inode *out, uint32_t *stamp)
{
	char record[RECORD_MAX];
	size_t len;
	return known_record(op, ino, record, &len, stamp) &&
	       record_decode(ino, record, len, out, NULL, NULL) == 0;
}

/* Number of the directory's dentry buckets; 0: not known for sure. */
static uint64_t known_buckets(struct op *op)
{
	char record[RECORD_MAX];
	size_t len;
	return known_record(op, op->dir, record, &len, NULL) ? record_buckets(record, len) : 0;
}

/* Has the directory just so many buckets, and not only until a moment ago? Looked at after its buckets: one that
 * was split meanwhile, and asked for again, lacks names that are not gone. */
static bool still_buckets(struct op *op, uint64_t n)
{
	char record[RECORD_MAX], name[4];
	size_t len;
	struct bucket_id id = bucket_of_inode(op->dir);
	return buckets_sure(table(op), &id, name, bucket_inode_name(op->dir, name), record, RECORD_MAX, &len) &&
	       record_buckets(record, len) == n;
}

static bool counted(struct op *op, bool hit)
{
	silt_count(op->m->metrics, hit ? M_META_CACHE_HITS : M_META_CACHE_MISSES, 1);
	return hit;
}

bool relaxed_getattr(struct op *op)
{
	struct meta_reply r = { 0 };
	if (!table(op))
		return false;
	if (!counted(op, known_inode(op, op->ino, &r.inode, &r.seen.inode)))
		return false;
	op_end(op, &r);
	return true;
}

bool relaxed_lookup(struct op *op)
{
	struct meta_reply r = { 0 };
	char entry[ENTRY_MAX];
	size_t len;
	uint32_t type;
	silt_ino ino;
	bool moving = false;
	if (!table(op))
		return false;
	uint64_t n = known_buckets(op);
	if (!n)
		return counted(op, false);
	struct bucket_id id = bucket_of_place(op->dir, n, record_place(op->name, op->len));
	r.seen.start = id.start;
	enum bucket_answer a =
		buckets_get(table(op), &id, op->name, op->len, entry, sizeof(entry), &len, &r.seen.name);
	if (a == BUCKET_ABSENT) {
		if (!still_buckets(op, n))
			return counted(op, false);
		r.err = -ENOENT;
	} else if (a == BUCKET_UNKNOWN ||
		   record_entry_decode(silt_ino_shard(op->dir), entry, len, &type, &ino, &moving) ||
		   moving || !known_inode(op, ino, &r.inode, &r.seen.inode)) {
		return counted(op, false);
	}
	counted(op, true);
	op_end(op, &r);
	return true;
}

/* --- listings --- */

struct gather {
	struct found *v;
	size_t n, cap;
	char *text;
	size_t used, room;
	bool failed;
};

/* Offsets at first: `text` moves as it grows. */
static size_t keep(struct gather *g, const void *data, size_t len)
{
	size_t at = g->used;
	if (g->used + len > g->room) {
		size_t room = (g->used + len) * 2 + 4096;
		char *text = realloc(g->text, room);
		if (!text) {
			g->failed = true;
			return 0;
		}
		g->text = text;
		g->room = room;
	}
	if (len)
		memcpy(g->text + at, data, len);
	g->used += len;
	return at;
}

static void add_entry(void *arg, const char *name, size_t name_len, const void *data, size_t len,
		      uint32_t stamp)
{
	struct gather *g = arg;
	if (g->n == g->cap) {
		size_t cap = g->cap ? g->cap * 2 : 256;
		struct found *v = realloc(g->v, cap * sizeof(*v));
		if (!v) {
			g->failed = true;
			return;
		}
		g->v = v;
		g->cap = cap;
	}
	size_t at = keep(g, name, name_len);
	keep(g, data, len);
	g->v[g->n++] = (struct found){ .name_len = name_len, .entry_len = len, .place = at,
				       .seen = { .name = stamp } };
}

/* The record of an entry's inode. */
static void add_record(struct op *op, struct gather *g, struct found *f)
{
	char record[RECORD_MAX];
	uint32_t type;
	silt_ino ino;
	bool moving;
	if (record_entry_decode(silt_ino_shard(op->dir), g->text + f->place + f->name_len, f->entry_len,
				&type, &ino, &moving))
		return;
	if (known_record(op, ino, record, &f->record_len, &f->seen.inode))
		f->record = (const char *)(uintptr_t)keep(g, record, f->record_len);
	else if (silt_ino_shard(ino) == silt_ino_shard(op->dir))
		g->failed = true; /* one call brings them all */
}

bool relaxed_readdir(struct op *op)
{
	struct gather g = { 0 };
	uint64_t n = table(op) ? known_buckets(op) : 0, place = op->seq;
	bool ended = false;
	if (!n)
		return false;
	do {
		struct bucket_id id = bucket_of_place(op->dir, n, place);
		size_t first = g.n;
		if (!buckets_list(table(op), &id, add_entry, &g)) {
			cover_want(op->m, &id, NULL, 0);
			g.failed = true;
		}
		for (size_t i = first; i < g.n && !g.failed; i++) {
			g.v[i].seen.start = id.start;
			if (op->attrs)
				add_record(op, &g, &g.v[i]);
		}
		place = bucket_next_place(n, place);
	} while (!g.failed && place && g.n < op->want);
	g.failed = g.failed || !still_buckets(op, n);
	for (size_t i = 0; i < g.n && !g.failed; i++) {
		struct found *f = &g.v[i];
		f->name = g.text + f->place;
		f->entry = f->name + f->name_len;
		f->record = f->record_len ? g.text + (uintptr_t)f->record : NULL;
		f->place = record_place(f->name, f->name_len);
	}
	if (counted(op, !g.failed))
		ended = readdir_end(op, g.v, g.n, place);
	free(g.v);
	free(g.text);
	return ended;
}

/* --- own changes --- */

void relaxed_changed_inode(struct meta *m, silt_ino ino)
{
	char name[4];
	struct bucket_id id = bucket_of_inode(ino);
	if (ino && cover_table(m))
		cover_doubt(m, &id, name, bucket_inode_name(ino, name));
}

/* How many buckets the directory had is not known any more: its name may be in one of these. */
static void changed_name(struct meta *m, silt_ino dir, const char *name, size_t len)
{
	if (!dir || !len)
		return;
	uint64_t place = record_place(name, len);
	struct bucket_id id, before = { 0 };
	for (unsigned level = 0; level <= LEVELS; level++, before = id) {
		id = bucket_of_place(dir, (uint64_t)1 << level, place);
		if (level == 0 || id.start != before.start)
			cover_doubt(m, &id, name, len);
	}
}

void relaxed_changed(struct op *op, const struct meta_reply *r)
{
	struct meta *m = op->m;
	if (!cover_table(m))
		return;
	relaxed_changed_inode(m, op->ino);
	relaxed_changed_inode(m, op->dir);
	relaxed_changed_inode(m, op->dir2);
	relaxed_changed_inode(m, r->inode.attr.ino);
	relaxed_changed_inode(m, r->replaced);
	changed_name(m, op->dir, op->name, op->len);
	changed_name(m, op->dir2, op->name2, op->len2);
}
