/* The synchronous face of the asynchronous operations, for tools and tests. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "meta/lock.h"
#include "meta/meta.h"

struct sync {
	struct silt_lock lock;
	struct silt_cond cond;
	bool ready;
};

void meta_wait_init(struct meta_wait *w)
{
	memset(w, 0, sizeof(*w));
	struct sync *s = malloc(sizeof(*s));
	assert(s);
	silt_lock_init(&s->lock);
	silt_cond_init(&s->cond);
	s->ready = false;
	w->sync = s;
}

void meta_wait_done(void *arg, const struct meta_reply *r)
{
	struct meta_wait *w = arg;
	struct sync *s = w->sync;
	w->reply = *r;
	if (r->page && r->keep_page) {
		w->page = (struct meta_dirpage *)r->page;
		*r->keep_page = true;
	}
	if (r->data && (w->data = malloc(r->len + 1))) {
		memcpy(w->data, r->data, r->len);
		w->data[r->len] = '\0';
	}
	w->reply.page = w->page;
	w->reply.data = w->data;
	w->reply.keep_page = NULL;
	silt_lock(&s->lock);
	s->ready = true;
	silt_cond_signal(&s->cond);
	silt_unlock(&s->lock);
}

int meta_wait(struct meta_wait *w)
{
	struct sync *s = w->sync;
	silt_lock(&s->lock);
	while (!s->ready)
		silt_cond_wait(&s->cond, &s->lock);
	silt_unlock(&s->lock);
	return w->reply.err;
}

void meta_wait_free(struct meta_wait *w)
{
	struct sync *s = w->sync;
	if (s) {
		silt_lock_destroy(&s->lock);
		silt_cond_destroy(&s->cond);
		free(s);
	}
	free(w->page);
	free(w->data);
	memset(w, 0, sizeof(*w));
}
