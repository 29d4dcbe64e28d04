/* READDIR and READDIRPLUS, served from one page of the directory that the handle keeps.
 *
 * An offset of the kernel is a cookie of meta_readdir(), "after this entry"; 1 and 2 stand for
 * "after
 * ." and "after ..". A request whose offset lies in the page is answered from it without a round
 * trip; any other (first, next page, seekdir) gets a new page, which replaces the old one: one page
 * a handle, whatever the directory's size. A request takes the page out of the handle while it
 * works, so that two that run at once don't share one.
 *
 * Entries in another shard carry no attributes. READDIRPLUS names them with node id 0, which tells
 * the kernel to look them up when it needs more than name and type. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs/fs_impl.h"

#define PAGE_WANT    512
#define AFTER_DOT    1
#define AFTER_DOTDOT 2

struct dir_page {
	uint64_t from; /* the cookie it was asked for */
	const struct meta_dirpage *page;
	bool attrs;
	uint64_t when; /* silt_now_ns() of the reply */
};

struct dir_handle {
	silt_ino ino;
	struct dir_handle *prev, *next; /* open_dirs.lock */
	struct silt_lock lock;          /* what follows */
	struct dir_page kept;           /* page NULL: none */
};

static void handle_free(struct fs *fs, struct dir_handle *h)
{
	struct open_dirs *d = &fs->open_dirs;
	silt_lock(&d->lock);
	*(h->prev ? &h->prev->next : &d->first) = h->next;
	if (h->next)
		h->next->prev = h->prev;
	silt_unlock(&d->lock);
	free((void *)h->kept.page);
	silt_lock_destroy(&h->lock);
	free(h);
}

bool fs_dir_is_open(struct fs *fs, silt_ino ino)
{
	struct open_dirs *d = &fs->open_dirs;
	silt_lock(&d->lock);
	const struct dir_handle *h = d->first;
	while (h && h->ino != ino)
		h = h->next;
	silt_unlock(&d->lock);
	return h != NULL;
}

void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs *fs = fuse_req_userdata(req);
	fs_count(fs, KIND_OPENDIR);
	struct dir_handle *h = calloc(1, sizeof(*h));
	if (!h) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	silt_lock_init(&h->lock);
	h->ino = ino;
	silt_lock(&fs->open_dirs.lock);
	h->next = fs->open_dirs.first;
	if (h->next)
		h->next->prev = h;
	fs->open_dirs.first = h;
	silt_unlock(&fs->open_dirs.lock);
	fi->fh = (uintptr_t)h;
	if (fuse_reply_open(req, fi) < 0)
		handle_free(fs, h);
}

void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs *fs = fuse_req_userdata(req);
	fs_count(fs, KIND_RELEASEDIR);
	handle_free(fs, (struct dir_handle *)(uintptr_t)fi->fh);
	fuse_reply_err(req, 0);
}

void fs_close_dirs(struct fs *fs)
{
	while (fs->open_dirs.first)
		handle_free(fs, fs->open_dirs.first);
}

/* Names are durable when their operation was answered. */
void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	fs_count(fuse_req_userdata(req), KIND_FSYNCDIR);
	fuse_reply_err(req, 0);
}

static struct dir_page page_take(struct dir_handle *h)
{
	silt_lock(&h->lock);
	struct dir_page p = h->kept;
	h->kept.page = NULL;
	silt_unlock(&h->lock);
	return p;
}

static void page_keep(struct dir_handle *h, struct dir_page p)
{
	silt_lock(&h->lock);
	struct dir_page old = h->kept;
	h->kept = p;
	silt_unlock(&h->lock);
	free((void *)old.page);
}

/* Index of the first entry after cookie `off`, or -1 if the page doesn't tell; *ask is then the
 * cookie from which to get another page. */
static ssize_t page_find(const struct dir_page *p, uint64_t off, bool attrs, uint64_t *ask)
{
	const struct meta_dirpage *page = p->page;
	*ask = off <= AFTER_DOTDOT ? 0 : off;
	if (!page || off <= AFTER_DOTDOT || off < p->from || (attrs && !p->attrs))
		return -1;
	size_t lo = 0, hi = page->n;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (page->v[mid].pos > off)
			hi = mid;
		else
			lo = mid + 1;
	}
	if (lo == page->n && page->next != 0) {
		*ask = page->next; /* the page's last bucket need not be read again */
		return -1;
	}
	return (ssize_t)lo;
}

static bool fits(struct request *r, size_t used, const char *name)
{
	size_t need = r->plus ? fuse_add_direntry_plus(r->req, NULL, 0, name, NULL, 0)
	                      : fuse_add_direntry(r->req, NULL, 0, name, NULL, 0);
	return need <= r->size - used;
}

/* Adds one entry to the reply; false: it does not fit. */
static bool add(struct request *r, size_t *used, const char *name, uint64_t off,
                struct fuse_entry_param *e)
{
	char *at = (char *)r->buf + *used;
	size_t room = r->size - *used, need;
	if (r->plus)
		need = fuse_add_direntry_plus(r->req, at, room, name, e, (off_t)off);
	else
		need = fuse_add_direntry(r->req, at, room, name, &e->attr, (off_t)off);
	if (need > room)
		return false;
	*used += need;
	return true;
}

static bool add_dots(struct request *r, size_t *used)
{
	struct fuse_entry_param e = { .attr = { .st_ino = r->ino, .st_mode = S_IFDIR } };
	if (r->off < AFTER_DOT && !add(r, used, ".", AFTER_DOT, &e))
		return false;
	return r->off >= AFTER_DOTDOT || add(r, used, "..", AFTER_DOTDOT, &e);
}

/* The attributes of an entry. Not those of a page that was kept for a while, unless a push would have come
 * for them: the kernel may have heard of newer ones. */
static void fill_attrs(struct request *r, const struct meta_dirent *d, bool old, struct fuse_entry_param *e)
{
	struct fs *fs = r->fs;
	struct fuse_entry_param plus;
	struct silt_inode inode = d->inode;
	fs_fill_entry(fs, r->ino, &inode, true, &d->seen, &plus);
	if (old && plus.attr_timeout <= coherence_untold(fs, fs->cfg.attr_timeout))
		return;
	fs_overlay(fs, &inode, true);
	fs_fill_stat(&inode.attr, &plus.attr);
	*e = plus;
}

static void fill_from(struct request *r, const struct dir_page *p, size_t i, size_t *used)
{
	bool old = silt_now_ns() - p->when > (uint64_t)META_UNTOLD_MS * 1000000u;
	for (; i < p->page->n; i++) {
		const struct meta_dirent *d = &p->page->v[i];
		struct fuse_entry_param e = { .attr = { .st_ino = d->ino, .st_mode = d->type } };
		char name[SILT_NAME_MAX + 1];
		memcpy(name, d->name, d->len);
		name[d->len] = '\0';
		if (!fits(r, *used, name)) /* before it counts as told */
			return;
		if (r->plus && d->has_inode)
			fill_attrs(r, d, old, &e);
		if (!add(r, used, name, d->pos, &e))
			return;
	}
}

/* Answers from entry `i` of the page on, and keeps the page. */
static void answer(struct request *r, struct dir_page p, size_t i)
{
	size_t used = 0;
	bool claimed = request_claim(r);
	if (claimed && add_dots(r, &used))
		fill_from(r, &p, i, &used);
	/* Before the answer: the next request may come at once, and RELEASEDIR after it. An
	 * interrupted request must not touch the handle: it may be closed already. */
	if (claimed)
		page_keep(r->dir_handle, p);
	else
		free((void *)p.page);
	if (claimed)
		fuse_reply_buf(r->req, (char *)r->buf, used);
	request_free(r);
}

static void page_done(void *arg, const struct meta_reply *reply)
{
	struct request *r = arg;
	if (reply->err) {
		request_end_err(r, reply->err);
		return;
	}
	*reply->keep_page = true;
	for (size_t k = 0; k < reply->page->n; k++) /* now: the kernel may come for them later */
		if (reply->page->v[k].has_inode)
			flags_note(&r->fs->flags, &reply->page->v[k].inode.attr);
	struct dir_page p = {
		.from = r->off, .page = reply->page, .attrs = r->plus, .when = silt_now_ns()
	};
	/* Pages begin at a bucket's start or after the cookie: find the place in any case. */
	size_t i = 0;
	while (i < p.page->n && p.page->v[i].pos <= r->off)
		i++;
	if (i == p.page->n && p.page->next != 0 && !request_answered(r)) {
		/* Nothing after the cookie here: an empty answer would be the end. */
		uint64_t next = p.page->next;
		free((void *)p.page);
		meta_readdir_for_kernel(r->fs->cfg.meta, r->ino, next, PAGE_WANT, r->plus, page_done, r);
		return;
	}
	answer(r, p, i);
}

static void readdir(fuse_req_t req, enum fuse_kind kind, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
	struct request *r = request_begin(req, kind, ino);
	if (!r)
		return;
	r->plus = kind == KIND_READDIRPLUS;
	if (off == 0 && r->fs->cfg.atime != FS_NOATIME) {
		dir_drop(&r->fs->dirs, ino);
		atime_note(r->fs, ino, fs_now());
	}
	r->dir_handle = (struct dir_handle *)(uintptr_t)fi->fh;
	r->off = (uint64_t)off;
	r->size = size;
	r->buf = malloc(size);
	if (!r->buf) {
		request_end_err(r, -ENOMEM);
		return;
	}
	struct dir_page p = page_take(r->dir_handle);
	uint64_t ask;
	ssize_t i = page_find(&p, r->off, r->plus, &ask);
	if (i >= 0) {
		answer(r, p, (size_t)i);
		return;
	}
	free((void *)p.page);
	request_arm(r);
	meta_readdir_for_kernel(r->fs->cfg.meta, ino, ask, PAGE_WANT, r->plus, page_done, r);
}

void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	readdir(req, KIND_READDIR, ino, size, off, fi);
}

void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
	readdir(req, KIND_READDIRPLUS, ino, size, off, fi);
}
