/* A page of a listing: entries, and their keys in one buffer, so that a page costs a few
 * allocations. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache/store_impl.h"

void store_page_free(struct store_page *p)
{
	free(p->v);
	free(p->keys);
	*p = (struct store_page){ 0 };
}

void store_page_clear(struct store_page *p)
{
	p->n = 0;
	p->keys_len = 0;
	p->more = false;
}

int store_page_add(struct store_page *p, const char *key, size_t key_len,
                   const struct store_object *info)
{
	if (p->n == p->cap) {
		size_t cap = p->cap ? p->cap * 2 : 64;
		void *v = reallocarray(p->v, cap, sizeof(*p->v));
		if (!v)
			return -ENOMEM;
		p->v = v;
		p->cap = cap;
	}
	if (p->keys_cap - p->keys_len < key_len + 1) {
		size_t cap = (p->keys_len + key_len + 1) * 2;
		char *keys = realloc(p->keys, cap);
		if (!keys)
			return -ENOMEM;
		p->keys = keys;
		p->keys_cap = cap;
	}
	p->v[p->n++] = (struct store_page_entry){ .key = p->keys_len, .info = *info };
	memcpy(p->keys + p->keys_len, key, key_len);
	p->keys[p->keys_len + key_len] = '\0';
	p->keys_len += key_len + 1;
	return 0;
}
