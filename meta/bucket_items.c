#include <stdlib.h>
#include <string.h>

#include "meta/buckets_impl.h"

#define DATA_MAX     8192
#define ITEMS_ABSENT 512 /* up to which names that are not there are added */
#define WANT_WHOLE   2 /* items of one bucket that make all of it worth fetching */
#define ANSWER_MS 80 /* for so long a doubtful item may still be given out */
#define AGAIN_MS  80 /* a bucket that changes all the time is looked at so often */
#define HOT	  4  /* changes in a row, each less than HOT_MS after the last look at it */
#define HOT_MS	  100

static uint32_t hash_name(const char *name, size_t len)
{
	uint32_t h = 0x811c9dc5u;
	for (size_t i = 0; i < len; i++)
		h = (h ^ (unsigned char)name[i]) * 0x01000193u;
	return h;
}

struct item *bucket_find_item(const struct bucket *b, const char *name, size_t len)
{
	uint32_t h = hash_name(name, len);
	for (unsigned i = 0; i < b->n; i++) {
		struct item *it = &b->items[i];
		if (it->hash == h && it->name_len == len && !memcmp(b->bytes + it->off, name, len))
			return it;
	}
	return NULL;
}

bool bucket_same_data(const struct bucket *b, const struct item *it, const void *data, size_t len)
{
	return !(it->flags & ITEM_EMPTY) && it->len == len &&
	       (len == 0 || !memcmp(b->bytes + it->off + it->name_len, data, len));
}

/* Adds an item that is not there. */
struct item *bucket_add_item(struct buckets *t, struct shelf *s, struct bucket *b, const char *name,
			     size_t name_len, const void *data, size_t len)
{
	if (name_len > SILT_NAME_MAX || len > DATA_MAX || !bucket_make_room(t, s, b, name_len + len))
		return NULL;
	struct item *it = &b->items[b->n++];
	*it = (struct item){ .hash = hash_name(name, name_len), .off = b->used,
			     .name_len = (uint16_t)name_len, .len = (uint16_t)len };
	it->stamp = (uint32_t)atomic_fetch_add(&t->stamps, 1) * 2 + 1; /* never 0 */
	memcpy(b->bytes + b->used, name, name_len);
	if (len)
		memcpy(b->bytes + b->used + name_len, data, len);
	b->used += (uint32_t)(name_len + len);
	return it;
}

void bucket_remove_item(struct bucket *b, struct item *it)
{
	*it = b->items[--b->n]; /* its bytes go with the next make_bytes() */
}

/* Is what is known of the bucket good enough to be given out? */
static bool answers(const struct bucket *b)
{
	return b->tracked || (b->doubted && silt_now_ns() - b->doubted < (uint64_t)ANSWER_MS * BUCKET_NS_PER_MS);
}

/* Takes the items that differ out of the bucket, and hands those that somebody may have to hear of over
 * in a bucket of their own. False: no memory. */
bool bucket_part_with(struct buckets *t, struct bucket *b, struct bucket **gone)
{
	unsigned n = 0, left = 0;
	size_t bytes = 0;
	for (unsigned i = 0; i < b->n; i++) {
		n += (b->items[i].flags & ITEM_DIFFERS) != 0;
		bytes += b->items[i].flags & ITEM_DIFFERS ? b->items[i].name_len : 0;
	}
	struct bucket *part = n ? calloc(1, sizeof(*part)) : NULL;
	if (!n)
		return true;
	if (part) {
		part->items = calloc(n, sizeof(*part->items));
		part->bytes = malloc(bytes + 1);
	}
	if (!part || !part->items || !part->bytes) {
		if (part) {
			free(part->items);
			free(part->bytes);
		}
		free(part);
		return false;
	}
	part->table = t;
	part->id = b->id;
	part->told_ns = b->told_ns;
	part->cap = (uint16_t)n;
	part->room = (uint32_t)bytes + 1;
	for (unsigned i = 0; i < b->n; i++) {
		struct item it = b->items[i];
		if (!(it.flags & ITEM_DIFFERS)) {
			b->items[left++] = it;
			continue;
		}
		memcpy(part->bytes + part->used, b->bytes + it.off, it.name_len);
		it.off = part->used;
		it.len = 0;
		part->used += it.name_len;
		part->items[part->n++] = it;
	}
	b->n = (uint16_t)left;
	atomic_fetch_add(&t->bytes, bucket_bytes(part));
	part->hash_next = *gone;
	*gone = part;
	return true;
}

/* Lock held; *gone gets buckets to hand over. */
static uint32_t put(struct buckets *t, struct shelf *s, const struct bucket_id *id, const char *name,
		    size_t name_len, const void *data, size_t len, bool replaces, struct bucket **gone)
{
	uint8_t told = 0;
	struct bucket *b = bucket_find_or_make(t, s, id);
	struct item *it = b ? bucket_find_item(b, name, name_len) : NULL;
	if (it && !bucket_same_data(b, it, data, len)) {
		if (replaces) { /* the kernel hears of it from this reply */
			told = it->flags & ITEM_TOLD;
			it->flags &= (uint8_t)~ITEM_TOLD;
		}
		if (it->flags & (ITEM_TOLD | ITEM_WATCHED)) {
			it->flags |= ITEM_DIFFERS;
			if (!bucket_part_with(t, b, gone)) {
				bucket_detach(t, s, b, gone);
				b = bucket_find_or_make(t, s, id);
			}
		} else {
			bucket_remove_item(b, it);
		}
		it = NULL;
	}
	if (b && !it)
		it = bucket_add_item(t, s, b, name, name_len, data, len);
	if (!it) {
		if (b)
			b->whole = false;
		return 0;
	}
	it->flags |= told;
	if (b->tracked)
		it->flags |= ITEM_CHECKED;
	if (t->bring_whole && !b->whole && b->n >= WANT_WHOLE)
		b->want_whole = true;
	if (!b->asked && (!b->tracked || b->want_whole))
		bucket_todo_add(s, b, bucket_soon());
	return it->stamp;
}

uint32_t buckets_put(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len,
		     const void *data, size_t len, bool replaces)
{
	struct shelf *s = bucket_shelf(t, id);
	struct bucket *gone = NULL;
	uint32_t stamp = 0;
	if (!atomic_load(&t->up))
		return 0;
	silt_lock(&s->lock);
	if (atomic_load(&t->up)) {
		stamp = put(t, s, id, name, name_len, data, len, replaces, &gone);
		buckets_evict(t, s, &gone);
	}
	silt_unlock(&s->lock);
	buckets_hand_over(t, gone);
	return stamp;
}

void buckets_want(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len)
{
	struct shelf *s = bucket_shelf(t, id);
	silt_lock(&s->lock);
	struct bucket *b = atomic_load(&t->up) ? bucket_find_or_make(t, s, id) : NULL;
	if (b && !name && !b->whole && !b->want_whole) {
		b->want_whole = true;
		if (!b->asked)
			bucket_todo_add(s, b, bucket_soon());
	} else if (b && name && !b->whole && !bucket_find_item(b, name, name_len)) {
		struct item *it = bucket_add_item(t, s, b, name, name_len, NULL, 0);
		if (it) {
			it->flags = ITEM_EMPTY;
			if (!b->asked)
				bucket_todo_add(s, b, bucket_soon());
		}
	}
	silt_unlock(&s->lock);
}

/* Marks the item that still has the stamp. */
static bool mark(struct buckets *t, const struct bucket_id *id, uint32_t stamp, uint8_t flag)
{
	struct shelf *s = bucket_shelf(t, id);
	bool ok = false;
	if (!stamp)
		return false;
	silt_lock(&s->lock);
	struct bucket *b = *bucket_slot(s, id);
	for (unsigned i = 0; b && i < b->n && !ok; i++) {
		ok = b->items[i].stamp == stamp;
		if (ok)
			b->items[i].flags |= flag;
	}
	if (ok && flag == ITEM_TOLD)
		b->told_ns = silt_now_ns();
	silt_unlock(&s->lock);
	return ok;
}

bool buckets_tell(struct buckets *t, const struct bucket_id *id, uint32_t stamp)
{
	return mark(t, id, stamp, ITEM_TOLD);
}

void buckets_watch(struct buckets *t, const struct bucket_id *id, uint32_t stamp)
{
	mark(t, id, stamp, ITEM_WATCHED);
}

bool buckets_is_told(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len)
{
	struct shelf *s = bucket_shelf(t, id);
	silt_lock(&s->lock);
	struct bucket *b = *bucket_slot(s, id);
	struct item *it = b ? bucket_find_item(b, name, name_len) : NULL;
	bool told = it && (it->flags & ITEM_TOLD);
	silt_unlock(&s->lock);
	return told;
}

static bool copy_out(const struct bucket *b, const struct item *it, void *data, size_t cap, size_t *len)
{
	if (it->len > cap)
		return false;
	*len = it->len;
	if (it->len)
		memcpy(data, b->bytes + it->off + it->name_len, it->len);
	return true;
}

enum bucket_answer buckets_get(struct buckets *t, const struct bucket_id *id, const char *name,
			       size_t name_len, void *data, size_t cap, size_t *len, uint32_t *stamp)
{
	struct shelf *s = bucket_shelf(t, id);
	enum bucket_answer answer = BUCKET_UNKNOWN;
	if (stamp)
		*stamp = 0;
	silt_lock(&s->lock);
	struct bucket *b = *bucket_slot(s, id);
	bool good = b && answers(b);
	struct item *it = good ? bucket_find_item(b, name, name_len) : NULL;
	if (good && b->whole && !it) {
		if (b->n < ITEMS_ABSENT)
			it = bucket_add_item(t, s, b, name, name_len, NULL, 0); /* so that it can be told */
		if (it)
			it->flags |= b->tracked ? ITEM_CHECKED : ITEM_OLD;
		else
			answer = BUCKET_ABSENT;
	}
	if (it && (it->flags & (b->tracked ? ITEM_CHECKED : ITEM_OLD)) && copy_out(b, it, data, cap, len)) {
		answer = it->len ? BUCKET_PRESENT : BUCKET_ABSENT;
		if (stamp)
			*stamp = it->stamp;
		bucket_touch(s, b);
	}
	silt_unlock(&s->lock);
	return answer;
}

bool buckets_sure(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len,
		  void *data, size_t cap, size_t *len)
{
	struct shelf *s = bucket_shelf(t, id);
	silt_lock(&s->lock);
	struct bucket *b = *bucket_slot(s, id);
	struct item *it = b && b->tracked ? bucket_find_item(b, name, name_len) : NULL;
	bool sure = it && (it->flags & ITEM_CHECKED) && it->len && copy_out(b, it, data, cap, len);
	silt_unlock(&s->lock);
	return sure;
}

bool buckets_have(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len)
{
	struct shelf *s = bucket_shelf(t, id);
	silt_lock(&s->lock);
	struct bucket *b = *bucket_slot(s, id);
	struct item *it = b ? bucket_find_item(b, name, name_len) : NULL;
	bool found = it && it->len;
	silt_unlock(&s->lock);
	return found;
}

bool buckets_peek(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len,
		  void *data, size_t cap, size_t *len, uint32_t *stamp)
{
	struct shelf *s = bucket_shelf(t, id);
	silt_lock(&s->lock);
	struct bucket *b = *bucket_slot(s, id);
	struct item *it = b ? bucket_find_item(b, name, name_len) : NULL;
	bool found = it && it->len && copy_out(b, it, data, cap, len);
	if (found && stamp)
		*stamp = it->stamp;
	silt_unlock(&s->lock);
	return found;
}

bool buckets_list(struct buckets *t, const struct bucket_id *id, buckets_each each, void *arg)
{
	struct shelf *s = bucket_shelf(t, id);
	silt_lock(&s->lock);
	struct bucket *b = *bucket_slot(s, id);
	bool known = b && b->whole && answers(b);
	for (unsigned i = 0; known && i < b->n; i++)
		known = b->items[i].flags & (b->tracked ? ITEM_CHECKED : ITEM_OLD);
	for (unsigned i = 0; known && i < b->n; i++) {
		const struct item *it = &b->items[i];
		const char *p = b->bytes + it->off;
		if (it->len)
			each(arg, p, it->name_len, p + it->name_len, it->len, it->stamp);
	}
	silt_unlock(&s->lock);
	return known;
}

/* When to look what has changed: at once, unless it changes all the time. */
static uint64_t when_to_look(struct bucket *b, uint64_t now)
{
	uint64_t again = b->covered + (uint64_t)AGAIN_MS * BUCKET_NS_PER_MS;
	b->hot = now - b->covered < (uint64_t)HOT_MS * BUCKET_NS_PER_MS ? b->hot + 1 : 0;
	return b->hot < HOT || again < now ? now : again;
}

bool buckets_invalidate(struct buckets *t, const struct bucket_id *id)
{
	struct shelf *s = bucket_shelf(t, id);
	uint64_t now = silt_now_ns();
	silt_lock(&s->lock);
	struct bucket *b = *bucket_slot(s, id);
	bool known = b && b->n > 0;
	if (b) {
		b->generation = atomic_fetch_add(&t->generations, 1) + 1;
		if (b->tracked)
			b->doubted = now;
		b->tracked = b->asked = false;
		for (unsigned i = 0; i < b->n; i++) {
			uint8_t f = b->items[i].flags;
			b->items[i].flags = (uint8_t)((f & ~ITEM_CHECKED) | (f & ITEM_CHECKED ? ITEM_OLD : 0));
		}
		if (known)
			bucket_todo_add(s, b, when_to_look(b, now));
		else
			b->whole = false; /* it was empty: there is nothing to ask for, and what is in it now? */
	}
	silt_unlock(&s->lock);
	return known;
}

bool buckets_doubt(struct buckets *t, const struct bucket_id *id, const char *name, size_t name_len)
{
	bool known = buckets_invalidate(t, id);
	struct shelf *s = bucket_shelf(t, id);
	silt_lock(&s->lock);
	struct bucket *b = *bucket_slot(s, id);
	struct item *it = b ? bucket_find_item(b, name, name_len) : NULL;
	if (it)
		it->flags &= (uint8_t)~(ITEM_CHECKED | ITEM_OLD);
	if (b && !it)
		b->whole = false;
	silt_unlock(&s->lock);
	return known;
}
