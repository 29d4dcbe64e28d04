#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "fs/coherence_impl.h"

#define YOUNG_NS      100000000u
#define INODES        64 /* of a bucket */

static silt_ino inode_of(const struct bucket *b, const char *name, size_t len)
{
	const struct bucket_id *id = bucket_id_of(b);
	unsigned index = 0;
	for (size_t i = 0; i < len; i++)
		index = index * 10 + (unsigned)(name[i] - '0');
	return silt_ino_make(id->shard, id->seq * INODES + index % INODES);
}

/* The kernel throws the reply to a GETATTR away when an invalidation comes before the process that waits for it has
 * taken it in, and a read() then goes by the size of before, that of the last time. Of files that are open such
 * a reply is let through first; which takes its process a moment to wake. */
#define GETATTR_WAIT_NS ((uint64_t)2000000u)
#define GETATTR_WAITS	5u
#define CHECK_TRIES	3u /* an inode that changes all the time is forgotten then */

static void let_getattr_through(struct node *n)
{
	for (unsigned i = 0; i < GETATTR_WAITS; i++) {
		uint64_t last = atomic_load(&n->getattr_ns);
		if (!atomic_load(&n->getattrs) && silt_now_ns() - last > GETATTR_WAIT_NS)
			return;
		struct timespec ts = { .tv_nsec = 1000000 };
		nanosleep(&ts, NULL);
	}
}

/* With the node's lock, if it has a node. */
static void forget_locked(struct fs *fs, silt_ino ino)
{
	flags_drop(&fs->flags, ino);
	fuse_lowlevel_notify_inval_inode(fs->se, ino, -1, 0);
	silt_count(fs->cfg.metrics, M_KERNEL_INVALIDATIONS, 1);
}

static bool kernel_knows_locked(const struct node *n, uint64_t version, struct silt_time ctime)
{
	return version < n->kernel_version ||
	       (version == n->kernel_version && ctime.sec == n->kernel_ctime.sec &&
	        ctime.nsec == n->kernel_ctime.nsec);
}

/* Tells the kernel to forget the attributes, unless it has heard of the change. Under the node's
 * lock: a lock that is granted meanwhile waits for it (ops_lock.c). */
static void forget_inode(struct fs *fs, silt_ino ino)
{
	struct silt_inode now;
	struct node *n = node_get(fs, ino);
	if (n) {
		let_getattr_through(n);
		silt_lock(&n->lock);
	}
	struct meta_seen seen = { 0 };
	bool remembers = meta_remembers(fs->cfg.meta, ino, &now, &seen);
	/* Also of a change that the kernel does not see (bytes that were moved to another pack): the next one has to
	 * be told again. */
	bool knows = meta_is_told(fs->cfg.meta, ino) ||
	             (n && remembers && kernel_knows_locked(n, now.attr.version, now.attr.ctime) &&
	              meta_tell_inode(fs->cfg.meta, ino, &seen));
	if (remembers)
		dir_seen(&fs->dirs, &now.attr);
	if (!knows)
		forget_locked(fs, ino);
	if (n) {
		silt_unlock(&n->lock);
		node_put(fs, n);
	}
}

/* --- open files --------------------------------------------------------------------------- */

void fs_inode_changed(struct fs *fs, struct node *n, bool gone)
{
	silt_debugf(fs->cfg.log, "fs.coherence", "inode %llu, open here, was %s",
	            (unsigned long long)n->ino, gone ? "deleted" : "changed");
}

bool coherence_anything_open(void *arg)
{
	struct coherence *c = arg;
	return atomic_load(&c->fs->nodes.open_nodes) > 0;
}

void *coherence_is_open(void *arg, silt_ino ino)
{
	struct coherence *c = arg;
	struct node *n = node_get(c->fs, ino);
	if (!n)
		return NULL;
	silt_lock(&n->lock);
	bool open = n->handles > 0;
	if (open) {
		n->deleted = true; /* released with the last reference */
		n->attr.nlink = 0;
	}
	silt_unlock(&n->lock);
	if (open)
		return n;
	node_put(c->fs, n);
	return NULL;
}

void coherence_kept(void *arg, void *open, int err)
{
	struct coherence *c = arg;
	struct node *n = open;
	if (err == -ENOENT)
		silt_warn(c->fs->cfg.log,
		          "inode %llu was deleted elsewhere and is gone, though it is open here",
		          (unsigned long long)n->ino);
	node_put(c->fs, n);
}

static void checked(void *arg, const struct meta_reply *reply)
{
	struct check *k = arg;
	struct fs *fs = k->fs;
	struct node *n = k->node;
	bool gone = reply->err == -ENOENT, changed = gone, pages = false;
	uint64_t version = reply->inode.attr.version;
	if (!reply->err) {
		struct silt_inode inode = reply->inode;
		silt_lock(&n->lock);
		changed = inode.attr.version > n->attr.version || inode.attr.nlink == 0 ||
		          inode.attr.ctime.sec != n->attr.ctime.sec ||
		          inode.attr.ctime.nsec != n->attr.ctime.nsec;
		/* Bytes of ours that are on their way make versions of their own. */
		pages = inode.attr.version > n->attr.version && write_buffer_empty(&n->buffer);
		gone = inode.attr.nlink == 0;
		node_merge_locked(n, &inode);
		silt_unlock(&n->lock);
	}
	if (pages)
		coherence_drop_pages(fs, n->ino, version);
	if (changed)
		fs_inode_changed(fs, n, gone);
	/* The kernel must not be told on this thread. */
	k->err = reply->err;
	k->version = version;
	k->ctime = reply->inode.attr.ctime;
	k->seen = reply->seen;
	k->next = NULL;
	struct coherence *c = fs->coherence;
	silt_lock(&c->lock);
	*c->checks_tail = k;
	c->checks_tail = &k->next;
	silt_cond_signal(&c->wake);
	silt_unlock(&c->lock);
	fs_background_end(fs);
}

/* Is it open for reading? What is only written here is known here. */
static bool is_read(struct node *n)
{
	bool reads = false;
	if (!n)
		return false;
	silt_lock(&n->lock);
	for (const struct handle *h = n->first_handle; h && !reads; h = h->next)
		reads = (h->flags & O_ACCMODE) != O_WRONLY;
	silt_unlock(&n->lock);
	return reads;
}

/* Asks what Redis says of an inode, if it is open here for reading; false: it is not asked. */
static bool ask(struct fs *fs, silt_ino ino, bool told, unsigned tries)
{
	struct node *n = node_get(fs, ino);
	struct check *k = is_read(n) ? malloc(sizeof(*k)) : NULL;
	if (!k) {
		if (n)
			node_put(fs, n);
		return false;
	}
	*k = (struct check){ .fs = fs, .node = n, .told = told, .tries = tries };
	fs_background_begin(fs);
	meta_watch_inode(fs->cfg.meta, n->ino, checked, k);
	return true;
}

bool coherence_check_inode(struct fs *fs, silt_ino ino, bool told)
{
	return ask(fs, ino, told, 0);
}

/* The kernel forgets the attributes of a file that was asked about, unless it knows them. */
void coherence_end_check(struct check *k)
{
	struct fs *fs = k->fs;
	struct node *n = k->node;
	if (k->told)
		let_getattr_through(n);
	silt_lock(&n->lock);
	bool knows = !k->err && kernel_knows_locked(n, k->version, k->ctime);
	/* What it knows has to be marked as told again: the next change is to be heard of. That fails when the answer is
	 * old already. */
	bool marked = k->told && knows &&
	              (meta_is_told(fs->cfg.meta, n->ino) || meta_tell_inode(fs->cfg.meta, n->ino, &k->seen));
	silt_unlock(&n->lock);
	bool again = k->told && knows && !marked && k->tries < CHECK_TRIES && ask(fs, n->ino, true, k->tries + 1);
	if (k->told && !marked && !again) {
		silt_lock(&n->lock);
		forget_locked(fs, n->ino);
		silt_unlock(&n->lock);
	}
	node_put(fs, n);
	free(k);
}

/* What the bucket had of inodes is old. Redis is asked about those that are open here and, the first time,
 * about all that the bucket had; of the others the kernel forgets what it was told. */
void coherence_drop_attrs(struct fs *fs, const struct bucket *b, bool first)
{
	const char *name;
	size_t len;
	bool told, ask = atomic_load(&fs->nodes.open_nodes) > 0 && !bucket_evicted(b) &&
	                 meta_pushes(fs->cfg.meta);
	struct silt_inode now;
	for (unsigned at = 0; bucket_item(b, &at, &name, &len, &told);) {
		silt_ino ino = inode_of(b, name, len);
		bool asked = ask && (first || (told && !meta_remembers(fs->cfg.meta, ino, &now, NULL))) &&
		             coherence_check_inode(fs, ino, told);
		if (told && !asked)
			forget_inode(fs, ino);
	}
}

/* Redis watches again: all open files have to be watched anew. */
void coherence_check_all(struct fs *fs)
{
	silt_ino v[256];
	size_t n;
	for (struct node_walk walk = { 0 }; (n = node_walk(fs, &walk, v, 256)) > 0;)
		for (size_t i = 0; i < n; i++)
			coherence_check_inode(fs, v[i], false);
}

void coherence_opened(struct fs *fs, silt_ino ino, int flags)
{
	struct coherence *c = fs->coherence;
	if ((flags & O_ACCMODE) == O_WRONLY || !meta_pushes(fs->cfg.meta))
		return;
	struct young *y = malloc(sizeof(*y));
	if (!y)
		return;
	*y = (struct young){ .ino = ino, .due = silt_now_ns() + YOUNG_NS };
	silt_lock(&c->lock);
	bool first = c->young == NULL;
	*c->young_tail = y;
	c->young_tail = &y->next;
	if (first)
		silt_cond_signal(&c->wake);
	silt_unlock(&c->lock);
}
