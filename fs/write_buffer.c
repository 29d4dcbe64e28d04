/* See write_buffer.h. The lists are sorted arrays of pointers: binary search for every lookup, one
 * short memmove for an insertion. The sent list always has room for every dirty segment, so that
 * sealing can't fail. */
#include "fs/write_buffer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache/pack.h"

#define SEGMENT_MIN 4096u
#define SEGMENT_BIG (4u << 20)	/* beyond it a buffer for all that it may become */
#define MAY_STREAM  (64u << 10) /* a write by a program that writes much */
#define MERGE_SMALL (32u << 10) /* a neighbour up to this size is always worth copying */
#define DIRTY_MANY  4096u       /* scattered pieces of one file: they are sealed beyond this */

static uint64_t segment_end(const struct segment *s)
{
	return s->off + s->len;
}

static uint64_t window_end(uint64_t off)
{
	return (off / SILT_WINDOW + 1) * SILT_WINDOW;
}

/* Index of the first segment that ends after `off`; l->n when there is none. */
static size_t list_find(const struct segment_list *l, uint64_t off)
{
	size_t lo = 0, hi = l->n;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (segment_end(l->v[mid]) > off)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

static int list_reserve(struct segment_list *l, size_t n)
{
	if (n <= l->cap)
		return 0;
	size_t cap = l->cap ? l->cap * 2 : 4;
	while (cap < n)
		cap *= 2;
	struct segment **v = realloc(l->v, cap * sizeof(*v));
	if (!v)
		return -ENOMEM;
	l->v = v;
	l->cap = cap;
	return 0;
}

static void list_insert(struct segment_list *l, struct segment *s)
{
	assert(l->n < l->cap);
	size_t at = list_find(l, s->off);
	memmove(l->v + at + 1, l->v + at, (l->n - at) * sizeof(*l->v));
	l->v[at] = s;
	l->n++;
}

static void list_remove(struct segment_list *l, size_t at)
{
	l->n--;
	memmove(l->v + at, l->v + at + 1, (l->n - at) * sizeof(*l->v));
}

void write_buffer_init(struct write_buffer *b, struct write_pool *pool, silt_ino ino, void *owner)
{
	memset(b, 0, sizeof(*b));
	b->pool = pool;
	b->ino = ino;
	b->owner = owner;
}

static void segment_free(struct write_buffer *b, struct segment *s)
{
	atomic_fetch_sub(&b->pool->used, s->cap);
	b->failed -= s->err != 0;
	if (s->big)
		big_buffer_put(b->pool->big, s->data);
	else
		free(s->data);
	free(s);
}

void write_buffer_free(struct write_buffer *b)
{
	for (size_t i = 0; i < b->dirty.n; i++)
		segment_free(b, b->dirty.v[i]);
	for (size_t i = 0; i < b->sent.n; i++) {
		assert(b->sent.v[i]->state == SEGMENT_FAILED);
		segment_free(b, b->sent.v[i]);
	}
	free(b->dirty.v);
	free(b->sent.v);
	memset(&b->dirty, 0, sizeof(b->dirty));
	memset(&b->sent, 0, sizeof(b->sent));
}

/* Is it behind a segment that became as long as they do? Then its writer goes on for longer. Not where memory
 * is short: a buffer counts whole against the budget, and many writers would have their beginnings sent. */
static bool follows_whole(const struct write_buffer *b, const struct segment *s)
{
	if (atomic_load(&b->pool->used) > b->pool->budget / 4)
		return false;
	const struct segment_list *lists[2] = { &b->dirty, &b->sent };
	for (int i = 0; i < 2; i++) {
		size_t at = list_find(lists[i], s->off);
		const struct segment *p = at > 0 ? lists[i]->v[at - 1] : NULL;
		if (p && segment_end(p) == s->off && p->len == PACK_TARGET)
			return true;
	}
	return false;
}

static int segment_grow(struct write_buffer *b, struct segment *s, uint32_t need)
{
	if (need <= s->cap)
		return 0;
	uint32_t cap = s->cap ? s->cap : SEGMENT_MIN;
	while (cap < need)
		cap *= 2;
	/* What is growing fast is likely to become whole. */
	if (cap > SEGMENT_BIG || (cap >= MAY_STREAM && follows_whole(b, s)))
		cap = PACK_TARGET;
	bool big = cap == PACK_TARGET && b->pool->big;
	uint8_t *data = big ? big_buffer_get(b->pool->big) : realloc(s->data, cap);
	if (!data)
		return -ENOMEM;
	if (big && s->len)
		memcpy(data, s->data, s->len);
	if (big)
		free(s->data);
	s->big = big;
	atomic_fetch_add(&b->pool->used, cap - s->cap);
	s->data = data;
	s->cap = cap;
	return 0;
}

static struct segment *segment_new(struct write_buffer *b, uint64_t off)
{
	if (list_reserve(&b->dirty, b->dirty.n + 1) ||
	    list_reserve(&b->sent, b->sent.n + b->dirty.n + 1))
		return NULL;
	struct segment *s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	s->owner = b->owner;
	s->off = off;
	s->epoch = b->epoch;
	return s;
}

/* Joins the dirty segment at `at` with the one after it when they touch and copying pays: the later
 * one is not the larger, so every byte is copied a few times at most. */
static void merge_next(struct write_buffer *b, size_t at)
{
	if (at + 1 >= b->dirty.n)
		return;
	struct segment *s = b->dirty.v[at], *t = b->dirty.v[at + 1];
	bool touch = segment_end(s) == t->off && t->off < window_end(s->off);
	if (!touch || s->len + t->len > PACK_TARGET)
		return;
	if (t->len > s->len && t->len > MERGE_SMALL)
		return;
	if (segment_grow(b, s, s->len + t->len))
		return; /* no memory: two segments are right too */
	memcpy(s->data + s->len, t->data, t->len);
	s->len += t->len;
	if (t->epoch < s->epoch)
		s->epoch = t->epoch;
	list_remove(&b->dirty, at + 1);
	segment_free(b, t);
}

/* Puts the first part of the bytes into one segment; returns how much, or -ENOMEM. */
static ssize_t put_some(struct write_buffer *b, uint64_t off, const void *data, size_t len)
{
	size_t at = list_find(&b->dirty, off);
	/* A segment that ends just here is extended, if there is room. */
	if (at > 0 && (at == b->dirty.n || b->dirty.v[at]->off > off)) {
		const struct segment *p = b->dirty.v[at - 1];
		if (segment_end(p) == off && p->len < PACK_TARGET && off < window_end(p->off))
			at--;
	}
	struct segment *s = at < b->dirty.n ? b->dirty.v[at] : NULL;
	bool fresh = !s || s->off > off;
	uint64_t room = window_end(off) - off;
	const struct segment *next = NULL;
	if (fresh) {
		next = s;
		room = room < PACK_TARGET ? room : PACK_TARGET;
		s = segment_new(b, off);
		if (!s)
			return -ENOMEM;
	} else {
		next = at + 1 < b->dirty.n ? b->dirty.v[at + 1] : NULL;
		uint64_t left = PACK_TARGET - (off - s->off);
		room = room < left ? room : left;
	}
	if (next && next->off - off < room)
		room = next->off - off;
	uint32_t n = (uint32_t)(len < room ? len : room);
	uint32_t begin = (uint32_t)(off - s->off);
	if (segment_grow(b, s, begin + n)) {
		if (fresh)
			free(s);
		return -ENOMEM;
	}
	memcpy(s->data + begin, data, n);
	if (begin + n > s->len)
		s->len = begin + n;
	if (fresh)
		list_insert(&b->dirty, s);
	merge_next(b, at);
	if (fresh && at > 0)
		merge_next(b, at - 1);
	return n;
}

int write_buffer_put(struct write_buffer *b, uint64_t off, const void *data, size_t len,
                     struct silt_time now, size_t *taken)
{
	size_t done = 0;
	int err = 0;
	if (write_buffer_empty(b))
		b->appends = false;
	assert(!b->appends);
	while (done < len) {
		ssize_t n = put_some(b, off + done, (const uint8_t *)data + done, len - done);
		if (n < 0) {
			err = (int)n;
			break;
		}
		done += (size_t)n;
	}
	if (done)
		b->mtime = now;
	*taken = done;
	return err;
}

int write_buffer_append(struct write_buffer *b, uint64_t off, const void *data, size_t len,
                        struct silt_time now, bool fresh)
{
	assert(len > 0 && len <= PACK_TARGET);
	if (write_buffer_empty(b))
		b->appends = true;
	if (!b->appends)
		return -EAGAIN;
	struct segment *s = b->dirty.n ? b->dirty.v[b->dirty.n - 1] : NULL;
	if (s && (segment_end(s) != off || s->len + len > PACK_TARGET ||
	          (fresh && s->epoch != b->epoch)))
		s = NULL;
	bool made = !s;
	if (made)
		s = segment_new(b, off);
	if (!s)
		return -ENOMEM;
	if (segment_grow(b, s, s->len + (uint32_t)len)) {
		if (made)
			free(s);
		return -ENOMEM;
	}
	memcpy(s->data + s->len, data, len);
	s->len += (uint32_t)len;
	if (made)
		list_insert(&b->dirty, s);
	b->mtime = now;
	return 0;
}

void write_buffer_note_writer(struct write_buffer *b, bool drop_suid)
{
	b->drop_suid = drop_suid || (b->dirty.n > 0 && b->drop_suid);
}

bool write_buffer_drops_suid(const struct write_buffer *b)
{
	if (b->dirty.n > 0 && b->drop_suid)
		return true;
	for (size_t i = 0; i < b->sent.n; i++)
		if (b->sent.v[i]->write.drop_suid)
			return true;
	return false;
}

void write_buffer_shift(struct write_buffer *b, int64_t delta)
{
	for (size_t i = 0; i < b->dirty.n; i++)
		b->dirty.v[i]->off += (uint64_t)delta;
	for (size_t i = 0; i < b->sent.n; i++)
		b->sent.v[i]->off += (uint64_t)delta;
}

uint64_t write_buffer_run(const struct write_buffer *b, uint64_t off, uint64_t end,
                          const uint8_t **data)
{
	const struct segment_list *lists[] = { &b->dirty, &b->sent };
	*data = NULL;
	for (int i = 0; i < 2; i++) {
		size_t at = list_find(lists[i], off);
		if (at == lists[i]->n)
			continue;
		const struct segment *s = lists[i]->v[at];
		if (s->off <= off) {
			*data = s->data + (off - s->off);
			return segment_end(s) < end ? segment_end(s) : end;
		}
		if (s->off < end)
			end = s->off;
	}
	return end;
}

uint64_t write_buffer_end(const struct write_buffer *b)
{
	uint64_t d = b->dirty.n ? segment_end(b->dirty.v[b->dirty.n - 1]) : 0;
	uint64_t s = b->sent.n ? segment_end(b->sent.v[b->sent.n - 1]) : 0;
	return d > s ? d : s;
}

static bool overlaps_sent(const struct write_buffer *b, const struct segment *s)
{
	size_t at = list_find(&b->sent, s->off);
	return at < b->sent.n && b->sent.v[at]->off < segment_end(s);
}

static void send_segment(struct write_buffer *b, struct segment *s, struct segment **chain)
{
	struct silt_extent before = s->write.extent;
	bool drop_suid = s->state == SEGMENT_DIRTY ? b->drop_suid : s->write.drop_suid;
	s->state = SEGMENT_SENT;
	s->write = (struct cache_write){
		.ino = b->ino, .off = s->off, .data = s->data, .len = s->len, .mtime = b->mtime
	};
	s->write.drop_suid = drop_suid;
	if (b->appends) {
		s->write.append = true;
		s->write.extent = before; /* of a try that stored it and may have committed it */
	}
	s->chain = *chain;
	*chain = s;
	atomic_fetch_add(&b->pool->sent, s->cap);
}

void write_buffer_seal(struct write_buffer *b, enum seal_mode mode, uint64_t epoch,
                       struct segment **chain)
{
	if (b->appends && !write_buffer_empty(b)) {
		struct segment *s = b->dirty.n ? b->dirty.v[0] : NULL;
		bool full = s && (b->dirty.n > 1 || s->len == PACK_TARGET);
		if (!s || b->sent.n || s->epoch > epoch || (mode == SEAL_FULL && !full))
			return;
		list_remove(&b->dirty, 0);
		list_insert(&b->sent, s);
		send_segment(b, s, chain);
		return;
	}
	if (b->dirty.n > DIRTY_MANY)
		mode = SEAL_ALL;
	size_t kept = 0;
	for (size_t i = 0; i < b->dirty.n; i++) {
		struct segment *s = b->dirty.v[i];
		bool full = s->len == PACK_TARGET || segment_end(s) == window_end(s->off);
		if ((mode == SEAL_FULL && !full) || s->epoch > epoch || overlaps_sent(b, s)) {
			b->dirty.v[kept++] = s;
			continue;
		}
		list_insert(&b->sent, s);
		send_segment(b, s, chain);
	}
	b->dirty.n = kept;
}

void write_buffer_retry(struct write_buffer *b, struct segment **chain)
{
	for (size_t i = 0; i < b->sent.n; i++)
		if (b->sent.v[i]->state == SEGMENT_FAILED)
			send_segment(b, b->sent.v[i], chain);
}

void write_buffer_complete(struct write_buffer *b, struct segment *s, int err, bool drop)
{
	assert(s->state == SEGMENT_SENT);
	atomic_fetch_sub(&b->pool->sent, s->cap);
	if (err && !drop) {
		b->failed += !s->err;
		s->state = SEGMENT_FAILED;
		s->err = err;
		return;
	}
	size_t at = list_find(&b->sent, s->off);
	assert(at < b->sent.n && b->sent.v[at] == s);
	list_remove(&b->sent, at);
	segment_free(b, s);
}

uint64_t write_buffer_give_up(struct write_buffer *b)
{
	uint64_t bytes = 0;
	size_t kept = 0;
	for (size_t i = 0; i < b->sent.n; i++) {
		struct segment *s = b->sent.v[i];
		if (s->state != SEGMENT_FAILED) {
			b->sent.v[kept++] = s;
			continue;
		}
		bytes += s->len;
		segment_free(b, s);
	}
	b->sent.n = kept;
	return bytes;
}

static uint64_t list_truncate(struct write_buffer *b, struct segment_list *l, uint64_t size)
{
	size_t at = list_find(l, size), kept = at;
	uint64_t gone = 0;
	for (size_t i = at; i < l->n; i++) {
		struct segment *s = l->v[i];
		if (s->state == SEGMENT_SENT) {
			l->v[kept++] = s;
		} else if (s->off < size) {
			gone += segment_end(s) - size;
			s->len = (uint32_t)(size - s->off);
			l->v[kept++] = s;
		} else {
			gone += s->len;
			segment_free(b, s);
		}
	}
	l->n = kept;
	return gone;
}

uint64_t write_buffer_truncate(struct write_buffer *b, uint64_t size)
{
	uint64_t gone = list_truncate(b, &b->dirty, size);
	return gone + list_truncate(b, &b->sent, size);
}

int write_buffer_status(const struct write_buffer *b, uint64_t epoch)
{
	int err = 0;
	for (size_t i = 0; i < b->sent.n; i++) {
		const struct segment *s = b->sent.v[i];
		if (s->epoch > epoch)
			continue;
		if (s->state == SEGMENT_SENT)
			return -EINPROGRESS;
		err = s->err;
	}
	if (err)
		return err;
	for (size_t i = 0; i < b->dirty.n; i++)
		if (b->dirty.v[i]->epoch <= epoch)
			return -EINPROGRESS;
	return 0;
}
