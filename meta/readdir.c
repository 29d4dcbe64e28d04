/* Listing a directory. A page is whole dentry buckets from the one that holds the cookie's place on;
 * the client sorts the entries by place and drops those before the cookie. Places never change and a
 * bucket is read atomically, so an entry that is there throughout is seen exactly once.
 *
 * Cookie: place << 10 | rank among names of the same place, plus 3 (0 to 2 are for the beginning, "."
 * and ".."); the cookie given with an entry is one more, so that it means "after this entry". */
#include "meta/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define COOKIE_BASE 3
#define RANK_BITS   10
#define PAGE_HEAD   3 /* elements of a reply before the entries */
#define LISTED_BUCKETS 64 /* of a directory whose files are remembered when they are listed */

static int by_place(const void *a, const void *b)
{
	const struct found *x = a, *y = b;
	if (x->place != y->place)
		return x->place < y->place ? -1 : 1;
	size_t n = x->name_len < y->name_len ? x->name_len : y->name_len;
	int c = memcmp(x->name, y->name, n);
	return c ? c : (x->name_len > y->name_len) - (x->name_len < y->name_len);
}

/* Collects the entries of the reply. Returns their number, or a negative errno. */
static ssize_t collect(const redisReply *reply, struct found **out)
{
	size_t n = (reply->elements - PAGE_HEAD) / 3;
	struct found *v = calloc(n ? n : 1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		size_t at = PAGE_HEAD + 3 * i;
		const redisReply *name = reply_at(reply, at), *entry = reply_at(reply, at + 1);
		const redisReply *record = reply_at(reply, at + 2);
		if (!name || !entry || !record) {
			free(v);
			return -EIO;
		}
		v[i] = (struct found){ .name = name->str, .name_len = name->len, .entry = entry->str,
				       .entry_len = entry->len, .record = record->str,
				       .record_len = record->len,
				       .place = record_place(name->str, name->len) };
	}
	*out = v;
	return (ssize_t)n;
}

/* Can it be the name of anything? If not, the kernel would refuse the whole listing. */
static bool name_valid(const struct found *f)
{
	return f->name_len > 0 && f->name_len <= SILT_NAME_MAX && !memchr(f->name, '/', f->name_len) &&
	       !memchr(f->name, '\0', f->name_len);
}

/* Turns one entry into a dirent whose name is copied to `text`. False: damaged, left out (logged). */
static bool fill_dirent(struct op *op, const struct found *f, struct meta_dirent *d, char *text)
{
	struct meta *m = op->m;
	bool moving;
	if (!name_valid(f) ||
	    record_entry_decode(silt_ino_shard(op->dir), f->entry, f->entry_len, &d->type, &d->ino,
				&moving) ||
	    silt_ino_shard(d->ino) >= m->volume.shards) {
		silt_error(m->log, "entry \"%.*s\" of directory %llu is damaged",
			   (int)(f->name_len < SILT_NAME_MAX ? f->name_len : SILT_NAME_MAX), f->name,
			   (unsigned long long)op->dir);
		silt_count(m->metrics, M_META_DAMAGED, 1);
		return false;
	}
	memcpy(text, f->name, f->name_len);
	d->name = text;
	d->len = (uint16_t)f->name_len;
	d->seen = f->seen;
	/* An entry without a readable record is still listed; looking it up tells what is wrong. */
	d->has_inode = f->record_len &&
		       !record_decode(d->ino, f->record, f->record_len, &d->inode, NULL, NULL);
	return true;
}

/* Remembers an entry that is given out. The files of a big directory are not: it costs a kernel little to
 * ask for them again after META_UNTOLD_MS. */
static void put_found(struct op *op, struct found *f)
{
	uint32_t type;
	silt_ino ino;
	bool moving;
	if (!name_valid(f) ||
	    record_entry_decode(silt_ino_shard(op->dir), f->entry, f->entry_len, &type, &ino, &moving))
		return;
	if (op->buckets > LISTED_BUCKETS && S_ISREG(type) && !op->m->cfg.relaxed)
		return;
	f->seen.name = cover_put_name(op->m, op->dir, op->buckets, f->name, f->name_len, f->entry,
				      f->entry_len, &f->seen.start);
	/* The kernel may never come for the later entries of a page: what it was told before is not replaced. */
	if (f->record_len)
		f->seen.inode = cover_put_inode(op->m, ino, f->record, f->record_len, false, false);
}

static struct meta_dirpage *make_page(struct op *op, struct found *v, size_t n, uint64_t next, bool put)
{
	size_t text_len = 0;
	for (size_t i = 0; i < n; i++)
		text_len += v[i].name_len <= SILT_NAME_MAX ? v[i].name_len : 0;
	struct meta_dirpage *page = malloc(sizeof(*page) + n * sizeof(page->v[0]) + text_len + 1);
	if (!page)
		return NULL;
	char *text = (char *)&page->v[n];
	unsigned rank = 0;
	put = put && (op->attrs || op->m->cfg.relaxed);
	page->n = 0;
	page->next = next;
	for (size_t i = 0; i < n; i++) {
		rank = i && v[i].place == v[i - 1].place ? rank + 1 : 0;
		uint64_t cookie = (v[i].place << RANK_BITS | (rank & ((1u << RANK_BITS) - 1))) + COOKIE_BASE;
		struct meta_dirent *d = &page->v[page->n];
		if (put)
			put_found(op, &v[i]);
		if (cookie < op->number || !fill_dirent(op, &v[i], d, text))
			continue;
		d->pos = cookie + 1;
		text += d->len;
		page->n++;
	}
	*text = '\0'; /* so that a debugger's or a test's reading stops */
	return page;
}

static bool end_with(struct op *op, struct found *v, size_t n, uint64_t next_place, bool put)
{
	if (n > 1) /* v may be NULL when n is 0 */
		qsort(v, n, sizeof(*v), by_place);
	struct meta_dirpage *page =
		make_page(op, v, n, next_place ? (next_place << RANK_BITS) + COOKIE_BASE : 0, put);
	if (page && page->n == 0 && page->next) { /* only entries before the cookie */
		free(page);
		return false;
	}
	bool keep = false;
	struct meta_reply r = { .err = page ? 0 : -ENOMEM, .page = page, .keep_page = &keep };
	op->done(op->arg, &r);
	free(op);
	if (!keep)
		free(page);
	return true;
}

bool readdir_end(struct op *op, struct found *v, size_t n, uint64_t next_place)
{
	return end_with(op, v, n, next_place, false);
}

static void submit_readdir(struct op *op, uint64_t place);

static void got_page(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	const redisReply *next = r.err ? NULL : reply_at(reply, 1);
	op->buckets = r.err ? 0 : reply_number(reply, 2);
	if (!r.err && (!next || reply->elements < PAGE_HEAD))
		r.err = -EIO;
	if (r.err) {
		op_end(op, &r);
		return;
	}
	uint64_t next_place = next->len ? strtoull(next->str, NULL, 10) : 0;
	struct found *v = NULL;
	ssize_t n = collect(reply, &v);
	if (n < 0)
		op_fail(op, (int)n);
	else if (!end_with(op, v, (size_t)n, next_place, true)) {
		op->number = (next_place << RANK_BITS) + COOKIE_BASE;
		submit_readdir(op, next_place);
	}
	free(v);
}

static void submit_readdir(struct op *op, uint64_t place)
{
	struct conn_request *r = call_begin(op->m, silt_ino_shard(op->dir), F_READDIR, 4, 0);
	conn_arg_u64(&r, silt_ino_seq(op->dir));
	conn_arg_u64(&r, place);
	conn_arg_u64(&r, op->want);
	conn_arg(&r, op->attrs ? "1" : "0", 1);
	call_send(op->m, F_READDIR, r, got_page, op);
}

static void list(struct meta *m, silt_ino dir, uint64_t pos, unsigned want, bool attrs, bool to_kernel,
		 meta_done done, void *arg)
{
	struct op *op = op_new(m, F_READDIR, NULL, 0, NULL, 0, 0, done, arg);
	if (!op)
		return;
	op->dir = dir;
	op->number = pos;
	op->want = want;
	op->attrs = attrs;
	uint64_t place = pos < COOKIE_BASE ? 0 : (pos - COOKIE_BASE) >> RANK_BITS;
	if (place >> 52) {
		op_fail(op, -EINVAL);
		return;
	}
	op->seq = place;
	op->to_kernel = to_kernel;
	if (!to_kernel || !m->cfg.relaxed || !relaxed_readdir(op))
		submit_readdir(op, place);
}

void meta_readdir(struct meta *m, silt_ino dir, uint64_t pos, unsigned want, bool attrs, meta_done done,
		  void *arg)
{
	list(m, dir, pos, want, attrs, false, done, arg);
}

void meta_readdir_for_kernel(struct meta *m, silt_ino dir, uint64_t pos, unsigned want, bool attrs,
			  meta_done done, void *arg)
{
	list(m, dir, pos, want, attrs, true, done, arg);
}
