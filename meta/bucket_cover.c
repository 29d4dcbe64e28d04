#include <stdlib.h>
#include <string.h>

#include "meta/buckets_impl.h"

uint64_t buckets_due(struct buckets *t)
{
	uint64_t first = UINT64_MAX;
	for (int i = 0; i < BUCKET_LOCKS; i++) {
		struct shelf *s = &t->shelves[i];
		silt_lock(&s->lock);
		for (const struct bucket *b = s->todo; b; b = b->todo_next)
			first = b->due < first ? b->due : first;
		silt_unlock(&s->lock);
	}
	return first;
}

static bool fill_ask(struct buckets *t, struct bucket *b, struct bucket_ask *out)
{
	unsigned n = 0;
	size_t bytes = 0;
	*out = (struct bucket_ask){ .id = b->id, .generation = b->generation };
	for (unsigned i = 0; i < b->n; i++) {
		if (b->items[i].flags & ITEM_CHECKED)
			continue;
		n++;
		bytes += b->items[i].name_len;
	}
	if (n == 0 && !b->want_whole)
		return false;
	if (b->want_whole || b->whole || n > BUCKET_FIELDS)
		return true;
	out->lens = malloc(n * sizeof(*out->lens));
	out->names = malloc(bytes + 1);
	if (!out->lens || !out->names) {
		bucket_ask_free(out);
		return true; /* everything needs no memory */
	}
	size_t at = 0;
	for (unsigned i = 0; i < b->n; i++) {
		const struct item *it = &b->items[i];
		if (it->flags & ITEM_CHECKED)
			continue;
		out->lens[out->n++] = it->name_len;
		memcpy(out->names + at, b->bytes + it->off, it->name_len);
		at += it->name_len;
	}
	return true;
}

bool buckets_take_todo(struct buckets *t, int shard, uint64_t now, struct bucket_ask *out)
{
	for (int i = 0; i < BUCKET_LOCKS; i++) {
		struct shelf *s = &t->shelves[i];
		bool found = false;
		silt_lock(&s->lock);
		for (struct bucket *b = s->todo, *next; b && !found; b = next) {
			next = b->todo_next;
			if (b->due > now || (shard >= 0 && b->id.shard != shard))
				continue;
			bucket_todo_drop(s, b);
			found = fill_ask(t, b, out);
			b->asked = found;
		}
		silt_unlock(&s->lock);
		if (found)
			return true;
	}
	return false;
}

void bucket_ask_free(struct bucket_ask *a)
{
	free(a->lens);
	free(a->names);
	a->lens = NULL;
	a->names = NULL;
	a->n = 0;
}

/* The value of an item in an answer; false: it was not asked for. */
static bool value_of(const struct bucket *b, const struct item *it, const struct bucket_ask *a,
		     const struct bucket_value *v, size_t n, struct bucket_value *out)
{
	const char *name = b->bytes + it->off, *asked = a->names;
	*out = (struct bucket_value){ 0 };
	for (size_t i = 0; !a->lens && i + 1 < n; i += 2) {
		if (v[i].len == it->name_len && !memcmp(v[i].data, name, it->name_len)) {
			*out = v[i + 1];
			return true;
		}
	}
	for (unsigned i = 0; a->lens && i < a->n && i < n; asked += a->lens[i++]) {
		if (a->lens[i] == it->name_len && !memcmp(asked, name, it->name_len)) {
			*out = v[i];
			return true;
		}
	}
	return !a->lens; /* all was asked: then there is none such */
}

/* Marks the items that differ from what the server has. */
static void compare(struct bucket *b, const struct bucket_ask *a, const struct bucket_value *v, size_t n)
{
	for (unsigned i = 0; i < b->n; i++) {
		struct item *it = &b->items[i];
		struct bucket_value have;
		if (!(it->flags & ITEM_EMPTY) && value_of(b, it, a, v, n, &have) &&
		    !bucket_same_data(b, it, have.data, have.len))
			it->flags |= ITEM_DIFFERS;
	}
}

/* Takes one field that the server has; it is checked. */
static bool take_value(struct buckets *t, struct shelf *s, struct bucket *b, const char *name,
		       size_t name_len, const struct bucket_value *v)
{
	struct item *it = bucket_find_item(b, name, name_len);
	if (it && !bucket_same_data(b, it, v->data, v->len)) {
		bucket_remove_item(b, it);
		it = NULL;
	}
	if (!it)
		it = bucket_add_item(t, s, b, name, name_len, v->data, v->len);
	if (it)
		it->flags = (uint8_t)((it->flags | ITEM_CHECKED) & ~(ITEM_OLD | ITEM_EMPTY));
	return it != NULL;
}

static void take_values(struct buckets *t, struct shelf *s, struct bucket *b, const struct bucket_ask *a,
			const struct bucket_value *v, size_t n)
{
	const char *name = a->names;
	bool all = !a->lens;
	for (unsigned i = 0; a->lens && i < a->n && i < n; name += a->lens[i++])
		take_value(t, s, b, name, a->lens[i], &v[i]);
	for (size_t i = 0; !a->lens && i + 1 < n; i += 2)
		if (t->bring_whole || bucket_find_item(b, v[i].data, v[i].len))
			all = take_value(t, s, b, v[i].data, v[i].len, &v[i + 1]) && all;
	if (a->lens)
		return;
	for (unsigned i = 0; i < b->n; i++)
		b->items[i].flags = (uint8_t)((b->items[i].flags | ITEM_CHECKED) & ~(ITEM_EMPTY | ITEM_OLD));
	b->whole = t->bring_whole && all;
	b->want_whole = false;
}

void buckets_covered(struct buckets *t, const struct bucket_ask *a, const struct bucket_value *v,
		     size_t n)
{
	struct shelf *s = bucket_shelf(t, &a->id);
	struct bucket *gone = NULL;
	silt_lock(&s->lock);
	struct bucket *b = *bucket_slot(s, &a->id);
	bool current = b && b->generation == a->generation;
	if (b) {
		compare(b, a, v, n);
		if (!bucket_part_with(t, b, &gone)) {
			bucket_detach(t, s, b, &gone);
			b = current ? bucket_find_or_make(t, s, &a->id) : NULL;
		}
		if (b && gone && !current)
			b->whole = false; /* what was handed over is missing here until it is asked for */
	}
	if (current && b) { /* the server watches: what it says is true */
		b->asked = false;
		b->tracked = true;
		b->doubted = 0;
		b->covered = silt_now_ns();
		take_values(t, s, b, a, v, n);
		for (unsigned i = 0; i < b->n && !b->todo; i++)
			if (!(b->items[i].flags & ITEM_CHECKED)) /* it came meanwhile */
				bucket_todo_add(s, b, bucket_soon());
		buckets_evict(t, s, &gone);
	}
	silt_unlock(&s->lock);
	buckets_hand_over(t, gone);
}

void buckets_not_covered(struct buckets *t, const struct bucket_ask *a)
{
	struct shelf *s = bucket_shelf(t, &a->id);
	struct bucket *gone = NULL;
	silt_lock(&s->lock);
	struct bucket *b = *bucket_slot(s, &a->id);
	if (b && b->generation == a->generation)
		bucket_detach(t, s, b, &gone);
	silt_unlock(&s->lock);
	buckets_hand_over(t, gone);
}
