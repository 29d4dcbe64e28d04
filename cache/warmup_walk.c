/* The walk is a stack of items: a directory at a place, a file whose inode is not known yet, a file
 * with an external map at some of its windows. An item is taken off, sent, and when its reply was
 * handled it is pushed again with where to go on, or freed. Only the driving thread touches items
 * and the stack; the reply callback moves the item to `replies` under the wake lock.
 *
 * What vanishes during the walk is skipped. What can't be read (a damaged record) is shown as
 * missing and the walk goes on, unless nothing at all gets through any more. */
#include "cache/warmup_walk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "meta/cleanup.h"

#define FAILURES_IN_A_ROW 16

enum item_kind { ITEM_INODE, ITEM_DIR, ITEM_WINDOWS };

struct item {
	enum item_kind kind;
	bool is_root, counted; /* counted: walk_ops.dir was told */
	uint32_t root;
	silt_ino ino;
	uint64_t at;   /* where to go on: place in the directory, or cursor of the windows */
	uint64_t size; /* of the file */
	struct item *next;
	struct walk *walk;
	/* the reply */
	int err;
	struct silt_inode inode;
	struct meta_dirpage *page;
	uint8_t *logs;
	size_t logs_len;
	uint64_t go_on; /* of the windows */
	char path[];    /* below the root; "" when paths are not wanted */
};

struct walk {
	struct meta *meta;
	const struct walk_ops *ops;
	void *arg;
	struct wake *wake;
	struct item *stack;
	struct item *replies; /* under wake->lock */
	unsigned in_flight;
	unsigned failures; /* in a row */
	bool no_memory;
	silt_ino *roots;
	size_t n_roots, next_root;
};

static void item_free(struct item *it)
{
	free(it->page);
	free(it->logs);
	free(it);
}

static void push(struct walk *w, struct item *it)
{
	it->next = w->stack;
	w->stack = it;
}

/* A new item below `parent` (NULL: a root). */
static struct item *item_new(struct walk *w, enum item_kind kind, silt_ino ino,
                             const struct item *parent, const char *name, size_t len)
{
	size_t above = parent && w->ops->paths ? strlen(parent->path) : 0;
	size_t slash = above ? 1 : 0;
	struct item *it;

	if (!w->ops->paths)
		len = 0;
	it = calloc(1, sizeof(*it) + above + slash + len + 1);
	if (!it) {
		w->no_memory = true;
		return NULL;
	}
	it->kind = kind;
	it->ino = ino;
	it->walk = w;
	it->root = parent ? parent->root : 0;
	if (above)
		memcpy(it->path, parent->path, above);
	if (len) {
		if (slash)
			it->path[above] = '/';
		memcpy(it->path + above + slash, name, len);
	}
	return it;
}

static void tell_missing(struct walk *w, const struct item *it, const char *why)
{
	w->ops->missing(w->arg, it->root, w->ops->paths ? it->path : NULL, why);
}

/* On a reader thread (or, for an early failure, on the driving one): never blocks. */
static void on_reply(void *arg, const struct meta_reply *r)
{
	struct item *it = arg;
	struct wake *wake = it->walk->wake;

	it->err = r->err;
	if (r->err == 0 && it->kind == ITEM_INODE) {
		it->inode = r->inode;
	} else if (r->err == 0 && it->kind == ITEM_DIR) {
		it->page = (struct meta_dirpage *)r->page;
		*r->keep_page = true;
	} else if (r->err == 0) {
		it->go_on = r->next;
		it->logs_len = r->len;
		it->logs = malloc(r->len + 1);
		it->err = it->logs ? 0 : -ENOMEM;
		if (it->logs && r->len)
			memcpy(it->logs, r->data, r->len);
	}
	silt_lock(&wake->lock);
	it->next = it->walk->replies;
	it->walk->replies = it;
	wake->events++;
	silt_cond_signal(&wake->cond);
	silt_unlock(&wake->lock);
}

static void send_item(struct walk *w, struct item *it)
{
	w->in_flight++;
	if (it->kind == ITEM_DIR)
		meta_readdir(w->meta, it->ino, it->at, WALK_PAGE, true, on_reply, it);
	else if (it->kind == ITEM_WINDOWS)
		meta_windows(w->meta, it->ino, it->at, on_reply, it);
	else
		meta_getattr(w->meta, it->ino, on_reply, it);
}

/* Shows a file whose inode is known; `it` (its item, or NULL) and `name` below `dir` say who it is.
 * Files with an external map get an item of their own. */
static void show_file(struct walk *w, const struct item *dir, const char *name, size_t len,
                      const struct silt_inode *inode)
{
	const struct silt_extent *e = &inode->extent;
	uint64_t size = inode->attr.size;
	const char *why;
	struct item *it;

	w->ops->file(w->arg, size);
	if (inode->map == SILT_MAP_NONE || size == 0)
		return;
	if (inode->map == SILT_MAP_INLINE) {
		if (e->pack == 0 || (e->flags & EXTENT_HOLE) || e->off >= size ||
		    !(why = w->ops->extent(w->arg, e)))
			return;
		if ((it = item_new(w, ITEM_WINDOWS, inode->attr.ino, dir, name, len))) {
			tell_missing(w, it, why);
			item_free(it);
		}
		return;
	}
	if ((it = item_new(w, ITEM_WINDOWS, inode->attr.ino, dir, name, len))) {
		it->size = size;
		push(w, it);
	}
}

/* Turns the item itself into what its inode says (roots, and inodes of other shards). */
static void handle_inode(struct walk *w, struct item *it)
{
	uint32_t type = it->inode.attr.mode & S_IFMT;

	if (type == S_IFDIR) {
		it->kind = ITEM_DIR;
		it->at = 0;
		push(w, it);
		return;
	}
	/* An item's path is its own here, not its parent's: show it below itself, without a name.
	 */
	if (type == S_IFREG)
		show_file(w, it, "", 0, &it->inode);
	item_free(it);
}

static void handle_entry(struct walk *w, struct item *dir, const struct meta_dirent *d)
{
	struct item *it = NULL;

	if (d->type == S_IFREG && d->has_inode) {
		show_file(w, dir, d->name, d->len, &d->inode);
		return;
	}
	if (d->type == S_IFREG)
		it = item_new(w, ITEM_INODE, d->ino, dir, d->name, d->len);
	else if (d->type == S_IFDIR)
		it = item_new(w, ITEM_DIR, d->ino, dir, d->name, d->len);
	if (it)
		push(w, it);
}

static void handle_page(struct walk *w, struct item *it)
{
	SILT_FREE struct meta_dirpage *page = silt_steal(it->page);

	if (!it->counted)
		w->ops->dir(w->arg);
	it->counted = true;
	/* The rest of this directory goes below its children on the stack: depth first. */
	it->at = page->next;
	if (page->next)
		push(w, it);
	for (size_t i = 0; i < page->n && !w->no_memory; i++)
		handle_entry(w, it, &page->v[i]);
	if (!page->next)
		item_free(it);
}

/* Shows the extents of one window. Returns what is wrong with the file, or NULL. */
static const char *show_window(struct walk *w, const struct extent_log *log, uint64_t size)
{
	struct extent_map map;
	const char *why = NULL;

	extent_map_init(&map);
	int rc = extent_map_add_log(&map, log->log, log->len);
	extent_map_truncate(&map, size);
	for (size_t i = 0; rc == 0 && !why && i < map.n; i++)
		if (map.v[i].pack)
			why = w->ops->extent(w->arg, &map.v[i]);
	extent_map_free(&map);
	return rc < 0 ? "its extents are damaged" : why;
}

static void handle_windows(struct walk *w, struct item *it)
{
	SILT_FREE uint8_t *logs = silt_steal(it->logs);
	const uint8_t *p = logs;
	struct extent_log log;
	const char *why = NULL;

	while (!why && extent_logs_next(&p, &it->logs_len, &log))
		why = show_window(w, &log, it->size);
	if (why)
		tell_missing(w, it, why);
	it->at = it->go_on;
	if (why || it->go_on == 0)
		item_free(it);
	else
		push(w, it);
}

/* An item that could not be read. */
static int handle_failure(struct walk *w, struct item *it, struct silt_err *err)
{
	int rc = it->err;
	bool gone = rc == -ENOENT || rc == -ENOTDIR || rc == -ESTALE;

	if (it->is_root || rc == -ENOMEM) {
		silt_fail(err, rc,
		          rc == -ENOMEM ? "out of memory"
		          : gone        ? "inode %llu is gone"
		                        : "can't read inode %llu: %s",
		          (unsigned long long)it->ino, strerror(-rc));
	} else if (gone) {
		w->failures = 0;
		rc = 0;
	} else {
		tell_missing(w, it, "its metadata can't be read");
		if (++w->failures < FAILURES_IN_A_ROW)
			rc = 0;
		else
			silt_fail(err, rc, "metadata can't be read: %s; see the mount's log",
			          strerror(-rc));
	}
	item_free(it);
	return rc;
}

static int handle_reply(struct walk *w, struct item *it, struct silt_err *err)
{
	if (it->err)
		return handle_failure(w, it, err);
	w->failures = 0;
	if (it->kind == ITEM_INODE)
		handle_inode(w, it);
	else if (it->kind == ITEM_DIR)
		handle_page(w, it);
	else
		handle_windows(w, it);
	return w->no_memory ? silt_fail(err, -ENOMEM, "out of memory") : 0;
}

static struct item *take_replies(struct walk *w)
{
	silt_lock(&w->wake->lock);
	struct item *list = silt_steal(w->replies);
	silt_unlock(&w->wake->lock);
	return list;
}

static bool push_next_root(struct walk *w)
{
	if (w->next_root >= w->n_roots)
		return false;
	struct item *it = item_new(w, ITEM_INODE, w->roots[w->next_root], NULL, "", 0);
	if (!it)
		return false;
	it->is_root = true;
	it->root = (uint32_t)w->next_root++;
	push(w, it);
	return true;
}

int walk_pump(struct walk *w, struct silt_err *err)
{
	struct item *list = take_replies(w);
	int rc = 0;

	while (list) {
		struct item *it = list;
		list = it->next;
		w->in_flight--;
		if (rc < 0)
			item_free(it);
		else
			rc = handle_reply(w, it, err);
	}
	while (rc == 0 && w->in_flight < WALK_IN_FLIGHT && (w->stack || push_next_root(w))) {
		struct item *it = w->stack;
		w->stack = it->next;
		send_item(w, it);
	}
	if (rc == 0 && w->no_memory)
		rc = silt_fail(err, -ENOMEM, "out of memory");
	return rc < 0 ? rc : w->in_flight > 0;
}

struct walk *walk_new(struct meta *meta, const silt_ino *roots, size_t n,
                      const struct walk_ops *ops, void *arg, struct wake *wake)
{
	struct walk *w = calloc(1, sizeof(*w));
	if (!w || !(w->roots = calloc(n + 1, sizeof(*roots)))) {
		free(w);
		return NULL;
	}
	memcpy(w->roots, roots, n * sizeof(*roots));
	w->n_roots = n;
	w->meta = meta;
	w->ops = ops;
	w->arg = arg;
	w->wake = wake;
	return w;
}

static void free_list(struct walk *w, struct item *list, bool replies)
{
	while (list) {
		struct item *it = list;
		list = it->next;
		if (replies)
			w->in_flight--;
		item_free(it);
	}
}

void walk_free(struct walk *w)
{
	if (!w)
		return;
	free_list(w, take_replies(w), true);
	while (w->in_flight) {
		silt_lock(&w->wake->lock);
		while (!w->replies)
			silt_cond_wait(&w->wake->cond, &w->wake->lock);
		silt_unlock(&w->wake->lock);
		free_list(w, take_replies(w), true);
	}
	free_list(w, w->stack, false);
	free(w->roots);
	free(w);
}
