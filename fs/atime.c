/* Access times, for mounts with relatime or strictatime; with noatime nothing here does anything.
 *
 * Reads are noted in a small table and go to Redis in one call, a second after the first of them or
 * when the table is full. Until then this mount shows them by itself (atime_overlay()); afterwards
 * every request follows on the same connection. A change of attributes of a file sends what is
 * noted of it first. Other mounts see access times a second late; a mount that is killed loses a
 * second of them.
 *
 * relatime is Linux's: a read counts when the last one is not after mtime and ctime, or a day old.
 * Of files that is decided here, of directories and links by Redis, which knows their times.
 *
 * What the kernel serves from its pages it doesn't tell. With relatime, an open whose first read
 * would count begins without pages; with strictatime there are none (ops_file.c). */
#include <fcntl.h>
#include <string.h>

#include "fs/fs_impl.h"

#define DELAY_NS ((uint64_t)1000000000u)
#define DAY_S    86400

static bool after(struct silt_time a, struct silt_time b)
{
	return a.sec > b.sec || (a.sec == b.sec && a.nsec > b.nsec);
}

void atime_init(struct atime_table *t)
{
	memset(t, 0, sizeof(*t));
	silt_lock_init(&t->lock);
}

void atime_destroy(struct atime_table *t)
{
	silt_lock_destroy(&t->lock);
}

bool atime_due(const struct fs *fs, const struct silt_attr *a)
{
	if (fs->cfg.atime == FS_NOATIME || fs->cfg.read_only)
		return false;
	return fs->cfg.atime == FS_STRICTATIME || !after(a->atime, a->mtime) ||
	       !after(a->atime, a->ctime) || fs_now().sec - a->atime.sec >= DAY_S;
}

static void touched(void *arg, const struct meta_reply *reply)
{
	fs_background_end(arg); /* what failed is lost: only a time */
}

/* Takes everything out; lock held. The caller sends it when it has let go of the lock. */
static size_t take_locked(struct atime_table *t, struct meta_touch *out)
{
	size_t n = t->n;
	memcpy(out, t->v, n * sizeof(*out));
	t->n = 0;
	t->since = 0;
	return n;
}

static void send(struct fs *fs, const struct meta_touch *v, size_t n)
{
	if (n == 0)
		return;
	fs_background_begin(fs);
	meta_touch(fs->cfg.meta, v, n, fs->cfg.atime == FS_RELATIME, touched, fs);
}

static struct meta_touch *find_locked(struct atime_table *t, silt_ino ino)
{
	for (size_t i = 0; i < t->n; i++)
		if (t->v[i].ino == ino)
			return &t->v[i];
	return NULL;
}

void atime_note(struct fs *fs, silt_ino ino, struct silt_time now)
{
	struct atime_table *t = &fs->atimes;
	struct meta_touch full[META_TOUCH_MAX];
	size_t n = 0;
	if (fs->cfg.atime == FS_NOATIME || fs->cfg.read_only)
		return;
	silt_lock(&t->lock);
	struct meta_touch *i = find_locked(t, ino);
	if (!i) {
		if (t->n == META_TOUCH_MAX)
			n = take_locked(t, full);
		i = &t->v[t->n++];
		*i = (struct meta_touch){ .ino = ino };
	}
	if (after(now, i->atime))
		i->atime = now;
	bool first = t->since == 0;
	if (first)
		t->since = silt_now_ns();
	silt_unlock(&t->lock);
	send(fs, full, n);
	if (first)
		janitor_look(fs->janitor);
}

void atime_read(struct fs *fs, struct handle *h)
{
	if (fs->cfg.atime == FS_NOATIME || fs->cfg.read_only || (h->flags & O_NOATIME))
		return;
	struct node *n = h->node;
	struct silt_time now = fs_now();
	silt_lock(&n->lock);
	bool due = atime_due(fs, &n->attr);
	if (due && after(now, n->attr.atime))
		n->attr.atime = now;
	silt_unlock(&n->lock);
	if (due)
		atime_note(fs, n->ino, now);
}

void atime_overlay(struct fs *fs, struct silt_attr *a)
{
	struct atime_table *t = &fs->atimes;
	if (fs->cfg.atime == FS_NOATIME)
		return;
	silt_lock(&t->lock);
	const struct meta_touch *i = find_locked(t, a->ino);
	if (i && after(i->atime, a->atime))
		a->atime = i->atime;
	silt_unlock(&t->lock);
}

void atime_send(struct fs *fs, silt_ino ino)
{
	struct atime_table *t = &fs->atimes;
	struct meta_touch v[META_TOUCH_MAX];
	size_t n = 0;
	if (fs->cfg.atime == FS_NOATIME)
		return;
	silt_lock(&t->lock);
	if (!ino || find_locked(t, ino))
		n = take_locked(t, v);
	silt_unlock(&t->lock);
	send(fs, v, n);
}

int atime_send_due(struct fs *fs)
{
	struct atime_table *t = &fs->atimes;
	uint64_t now = silt_now_ns();
	silt_lock(&t->lock);
	uint64_t since = t->since;
	silt_unlock(&t->lock);
	if (since == 0)
		return -1;
	if (now - since < DELAY_NS)
		return (int)((since + DELAY_NS - now) / 1000000u + 1);
	atime_send(fs, 0);
	return -1;
}
