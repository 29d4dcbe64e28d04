/* See file_map.h. */
#include "fs/file_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void file_map_init(struct file_map *m)
{
	memset(m, 0, sizeof(*m));
}

static void drop_windows(struct file_map *m)
{
	for (size_t i = 0; i < m->n; i++)
		extent_map_free(&m->v[i].map);
	m->n = 0;
}

void file_map_free(struct file_map *m)
{
	drop_windows(m);
	free(m->v);
	memset(m, 0, sizeof(*m));
}

void file_map_forget(struct file_map *m)
{
	drop_windows(m);
	m->valid = m->complete = false;
	m->generation++;
}

/* Place of window `index`, or where it would be. */
static size_t place(const struct file_map *m, uint64_t index)
{
	size_t lo = 0, hi = m->n;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (m->v[mid].index < index)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static struct map_window *find(const struct file_map *m, uint64_t index)
{
	size_t at = place(m, index);
	return at < m->n && m->v[at].index == index ? &m->v[at] : NULL;
}

static struct map_window *insert(struct file_map *m, uint64_t index)
{
	if (m->n == m->cap) {
		size_t cap = m->cap ? m->cap * 2 : 2;
		struct map_window *v = realloc(m->v, cap * sizeof(*v));
		if (!v)
			return NULL;
		m->v = v;
		m->cap = cap;
	}
	size_t at = place(m, index);
	memmove(m->v + at + 1, m->v + at, (m->n - at) * sizeof(*m->v));
	m->n++;
	m->v[at] = (struct map_window){ .index = index };
	extent_map_init(&m->v[at].map);
	return &m->v[at];
}

int file_map_set(struct file_map *m, const struct silt_inode *inode)
{
	file_map_forget(m);
	m->valid = true;
	m->complete = inode->map != SILT_MAP_EXTERNAL;
	if (inode->map != SILT_MAP_INLINE)
		return 0;
	int err = file_map_add(m, &inode->extent);
	if (err)
		file_map_forget(m);
	return err;
}

int file_map_add(struct file_map *m, const struct silt_extent *e)
{
	if (!m->valid)
		return 0;
	uint64_t index = e->off / SILT_WINDOW;
	struct map_window *w = find(m, index);
	if (!w) {
		if (!m->complete)
			return 0;
		w = insert(m, index);
		if (!w)
			return -ENOMEM;
		w->loaded = true;
	}
	/* A window on its way: what was on the wire may be older than this extent. It is added here
	 * and kept over what arrives, see file_map_load(). */
	return extent_map_add(&w->map, e);
}

void file_map_punch(struct file_map *m, uint64_t off, uint64_t stop)
{
	if (!m->valid || off >= stop)
		return;
	for (size_t i = place(m, off / SILT_WINDOW); i < m->n; i++) {
		struct map_window *w = &m->v[i];
		uint64_t begin = w->index * SILT_WINDOW, end = begin + SILT_WINDOW;
		if (begin >= stop)
			break;
		struct silt_extent hole = { .off = off > begin ? off : begin,
			                    .flags = EXTENT_HOLE };
		hole.len = (stop < end ? stop : end) - hole.off;
		/* What is on the wire for a window may be older than the hole. */
		if (!w->loaded || extent_map_add(&w->map, &hole)) {
			file_map_forget(m);
			return;
		}
	}
}

void file_map_truncate(struct file_map *m, uint64_t size)
{
	if (size == 0 && m->valid) {
		/* Nothing is left, here or there: the next extent will stand in the inode record,
		 * not in a window, so windows must not be asked for any more. */
		file_map_forget(m);
		m->valid = m->complete = true;
		return;
	}
	for (size_t i = place(m, size / SILT_WINDOW); i < m->n; i++)
		extent_map_truncate(&m->v[i].map, size);
}

bool file_map_loaded(const struct file_map *m, uint64_t index)
{
	const struct map_window *w = find(m, index);
	return w ? w->loaded : m->complete;
}

bool file_map_want(struct file_map *m, uint64_t index)
{
	if (m->complete || find(m, index))
		return false;
	return insert(m, index) != NULL;
}

int file_map_load(struct file_map *m, uint64_t index, unsigned generation, const void *log,
                  size_t len)
{
	if (generation != m->generation)
		return -ESTALE;
	struct map_window *w = find(m, index);
	if (!w || w->loaded)
		return 0;
	struct extent_map newer = w->map;
	extent_map_init(&w->map);
	int err = len ? extent_map_add_log(&w->map, log, len) : 0;
	for (size_t i = 0; i < newer.n && !err; i++)
		err = extent_map_add(&w->map, &newer.v[i]);
	extent_map_free(&newer);
	w->loaded = !err;
	return err;
}

void file_map_load_failed(struct file_map *m, uint64_t index, unsigned generation)
{
	struct map_window *w = generation == m->generation ? find(m, index) : NULL;
	if (!w || w->loaded)
		return;
	extent_map_free(&w->map);
	size_t at = (size_t)(w - m->v);
	m->n--;
	memmove(m->v + at, m->v + at + 1, (m->n - at) * sizeof(*m->v));
}

uint64_t file_map_run(const struct file_map *m, uint64_t off, uint64_t end, struct silt_extent *e)
{
	uint64_t index = off / SILT_WINDOW;
	if ((index + 1) * SILT_WINDOW < end)
		end = (index + 1) * SILT_WINDOW;
	memset(e, 0, sizeof(*e));
	const struct map_window *w = find(m, index);
	if (!w || !w->loaded)
		return m->complete && !w ? end : 0;
	const struct silt_extent *x = extent_map_find(&w->map, off);
	if (!x)
		return end;
	if (x->off > off)
		return x->off < end ? x->off : end;
	*e = *x;
	return x->off + x->len < end ? x->off + x->len : end;
}
