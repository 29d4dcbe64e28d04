#include "meta/buckets.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "meta/buckets_impl.h"

#define BYTES_MAX    (1u << 20) /* a bucket's names and data */

/* --- memory --- */

uint64_t bucket_bytes(const struct bucket *b)
{
	return sizeof(*b) + b->cap * sizeof(*b->items) + b->room;
}

static void buckets_gauge(struct buckets *t)
{
	silt_gauge(t->metrics, M_META_CACHE_BYTES, atomic_load(&t->bytes));
	silt_gauge(t->metrics, M_META_CACHE_BUCKETS, atomic_load(&t->count));
}

void bucket_free(struct bucket *b)
{
	if (!b)
		return;
	atomic_fetch_sub(&b->table->bytes, bucket_bytes(b));
	buckets_gauge(b->table);
	free(b->items);
	free(b->bytes);
	free(b);
}

/* Counts what a bucket grew by. Lock held. */
static void grew(struct buckets *t, struct shelf *s, uint64_t before, const struct bucket *b)
{
	uint64_t more = bucket_bytes(b) - before; /* wraps around when it is less */
	s->bytes += more;
	atomic_fetch_add(&t->bytes, more);
}

/* Detached buckets take the room: the kernel is slow. */
static bool crowded(const struct buckets *t)
{
	return atomic_load(&t->bytes) > t->limit + t->limit / 4;
}

/* A bigger place for names and data, without those of items that are gone. */
static bool make_bytes(struct bucket *b, size_t more)
{
	size_t live = 0, at = 0;
	for (unsigned i = 0; i < b->n; i++)
		live += b->items[i].name_len + b->items[i].len;
	size_t room = (live + more) * 3 / 2 + 32;
	char *p = room <= BYTES_MAX ? malloc(room) : NULL;
	if (!p)
		return false;
	for (unsigned i = 0; i < b->n; i++) {
		struct item *it = &b->items[i];
		memcpy(p + at, b->bytes + it->off, (size_t)it->name_len + it->len);
		it->off = (uint32_t)at;
		at += (size_t)it->name_len + it->len;
	}
	free(b->bytes);
	b->bytes = p;
	b->used = (uint32_t)at;
	b->room = (uint32_t)room;
	return true;
}

bool bucket_make_room(struct buckets *t, struct shelf *s, struct bucket *b, size_t bytes)
{
	uint64_t before = bucket_bytes(b);
	bool ok = true;
	if ((b->n == b->cap || b->used + bytes > b->room) && crowded(t))
		return false;
	if (b->n == b->cap) {
		uint16_t cap = b->cap ? (uint16_t)(b->cap * 2) : 4;
		struct item *items = cap < 16384 ? realloc(b->items, cap * sizeof(*items)) : NULL;
		ok = items != NULL;
		if (ok) {
			b->items = items;
			b->cap = cap;
		}
	}
	if (ok && b->used + bytes > b->room) {
		ok = make_bytes(b, bytes);
	}
	grew(t, s, before, b);
	return ok;
}

/* --- the table --- */

struct shelf *bucket_shelf(struct buckets *t, const struct bucket_id *id)
{
	return &t->shelves[bucket_id_hash(id) % BUCKET_LOCKS];
}

struct bucket **bucket_slot(struct shelf *s, const struct bucket_id *id)
{
	struct bucket **p = &s->v[(bucket_id_hash(id) / BUCKET_LOCKS) & s->mask];
	while (*p && !bucket_id_same(&(*p)->id, id))
		p = &(*p)->hash_next;
	return p;
}

static void list_drop(struct shelf *s, struct bucket *b)
{
	*(b->newer ? &b->newer->older : &s->newest) = b->older;
	*(b->older ? &b->older->newer : &s->oldest) = b->newer;
}

static void list_add(struct shelf *s, struct bucket *b)
{
	b->newer = NULL;
	b->older = s->newest;
	*(s->newest ? &s->newest->newer : &s->oldest) = b;
	s->newest = b;
}

void bucket_touch(struct shelf *s, struct bucket *b)
{
	if (s->newest == b)
		return;
	list_drop(s, b);
	list_add(s, b);
}

void bucket_todo_add(struct shelf *s, struct bucket *b, uint64_t due)
{
	if (b->todo) {
		b->due = due < b->due ? due : b->due;
		return;
	}
	b->todo = true;
	b->due = due;
	b->todo_next = NULL;
	*s->todo_tail = b;
	s->todo_tail = &b->todo_next;
}

uint64_t bucket_soon(void)
{
	return silt_now_ns() + (uint64_t)BUCKET_WAIT_MS * BUCKET_NS_PER_MS;
}

void bucket_todo_drop(struct shelf *s, struct bucket *b)
{
	if (!b->todo)
		return;
	struct bucket **p = &s->todo;
	while (*p != b)
		p = &(*p)->todo_next;
	*p = b->todo_next;
	if (s->todo_tail == &b->todo_next)
		s->todo_tail = p;
	b->todo = false;
}

/* Takes a bucket out of the table; it joins the chain of those to hand over. Lock held. */
void bucket_detach(struct buckets *t, struct shelf *s, struct bucket *b, struct bucket **gone)
{
	*bucket_slot(s, &b->id) = b->hash_next;
	list_drop(s, b);
	bucket_todo_drop(s, b);
	s->n--;
	s->bytes -= bucket_bytes(b);
	atomic_fetch_sub(&t->count, 1);
	b->hash_next = *gone;
	*gone = b;
}

/* Lock not held. */
void buckets_hand_over(struct buckets *t, struct bucket *gone)
{
	while (gone) {
		struct bucket *next = gone->hash_next;
		gone->hash_next = NULL;
		silt_lock(&t->listening);
		buckets_stale on_stale = t->on_stale;
		if (on_stale)
			on_stale(t->arg, gone);
		silt_unlock(&t->listening);
		if (!on_stale)
			bucket_free(gone);
		gone = next;
	}
	buckets_gauge(t);
}

static void grow(struct shelf *s)
{
	size_t size = (s->mask + 1) * 2;
	struct bucket **v = calloc(size, sizeof(*v));
	if (!v)
		return;
	for (size_t k = 0; k <= s->mask; k++) {
		struct bucket *b;
		while ((b = s->v[k])) {
			s->v[k] = b->hash_next;
			struct bucket **to = &v[(bucket_id_hash(&b->id) / BUCKET_LOCKS) & (size - 1)];
			b->hash_next = *to;
			*to = b;
		}
	}
	free(s->v);
	s->v = v;
	s->mask = size - 1;
}

/* The bucket of `id`, made if there is none. NULL: no memory, or too much of it is taken. */
struct bucket *bucket_find_or_make(struct buckets *t, struct shelf *s, const struct bucket_id *id)
{
	struct bucket **p = bucket_slot(s, id), *b = *p;
	if (b) {
		bucket_touch(s, b);
		return b;
	}
	if (crowded(t))
		return NULL;
	b = calloc(1, sizeof(*b));
	if (!b)
		return NULL;
	b->table = t;
	b->id = *id;
	b->generation = atomic_fetch_add(&t->generations, 1) + 1;
	*p = b;
	list_add(s, b);
	grew(t, s, 0, b);
	atomic_fetch_add(&t->count, 1);
	if (++s->n > s->mask * 2)
		grow(s);
	return b;
}

void buckets_evict(struct buckets *t, struct shelf *s, struct bucket **gone)
{
	while (s->bytes > t->limit / BUCKET_LOCKS && s->oldest && s->oldest != s->newest) {
		s->oldest->evicted = true;
		bucket_detach(t, s, s->oldest, gone);
	}
}

int buckets_open(uint64_t limit, bool whole, struct silt_metrics *metrics, struct buckets **out)
{
	struct buckets *t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->limit = limit;
	t->bring_whole = whole;
	t->metrics = metrics;
	silt_lock_init(&t->listening);
	bool ok = true;
	for (int i = 0; i < BUCKET_LOCKS; i++) {
		struct shelf *s = &t->shelves[i];
		silt_lock_init(&s->lock);
		s->todo_tail = &s->todo;
		s->mask = 15;
		s->v = calloc(16, sizeof(*s->v));
		ok = ok && s->v;
	}
	if (!ok) {
		buckets_close(t);
		return -ENOMEM;
	}
	*out = t;
	return 0;
}

void buckets_listen(struct buckets *t, buckets_stale on_stale, void *arg)
{
	silt_lock(&t->listening);
	t->arg = arg;
	t->on_stale = on_stale;
	silt_unlock(&t->listening);
}

void buckets_close(struct buckets *t)
{
	if (!t)
		return;
	buckets_listen(t, NULL, NULL);
	buckets_down(t);
	for (int i = 0; i < BUCKET_LOCKS; i++) {
		free(t->shelves[i].v);
		silt_lock_destroy(&t->shelves[i].lock);
	}
	silt_lock_destroy(&t->listening);
	free(t);
}

void buckets_up(struct buckets *t)
{
	atomic_store(&t->up, true);
}

bool buckets_are_up(struct buckets *t)
{
	return atomic_load(&t->up);
}

void buckets_down(struct buckets *t)
{
	atomic_store(&t->up, false);
	for (int i = 0; i < BUCKET_LOCKS; i++) {
		struct shelf *s = &t->shelves[i];
		struct bucket *gone = NULL;
		silt_lock(&s->lock); /* who saw `up` under the lock has put before this */
		while (s->oldest)
			bucket_detach(t, s, s->oldest, &gone);
		silt_unlock(&s->lock);
		buckets_hand_over(t, gone);
	}
}

/* --- detached buckets --- */

const struct bucket_id *bucket_id_of(const struct bucket *b)
{
	return &b->id;
}

bool bucket_item(const struct bucket *b, unsigned *at, const char **name, size_t *name_len, bool *told)
{
	if (*at >= b->n)
		return false;
	const struct item *it = &b->items[(*at)++];
	*name = b->bytes + it->off;
	*name_len = it->name_len;
	*told = it->flags & ITEM_TOLD;
	return true;
}

bool bucket_told(const struct bucket *b, unsigned *at, const char **name, size_t *name_len)
{
	bool told;
	while (bucket_item(b, at, name, name_len, &told))
		if (told)
			return true;
	return false;
}

uint64_t bucket_told_ns(const struct bucket *b)
{
	return b->told_ns;
}

bool bucket_evicted(const struct bucket *b)
{
	return b->evicted;
}

uint64_t *bucket_user(struct bucket *b)
{
	return &b->user;
}

struct bucket *bucket_chain(struct bucket *b, struct bucket *next)
{
	b->hash_next = next;
	return b;
}

struct bucket *bucket_chained(const struct bucket *b)
{
	return b->hash_next;
}

uint64_t buckets_bytes(struct buckets *t)
{
	return atomic_load(&t->bytes);
}

uint64_t buckets_count(struct buckets *t)
{
	return atomic_load(&t->count);
}
