/* See recent.h. The tables are set-associative arrays that never grow; a collision costs a Redis
 * call or a page cache, never correctness. */
#include "fs/recent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	return x;
}

int fresh_table_init(struct fresh_table *t)
{
	t->v = calloc(FRESH_SLOTS, sizeof(*t->v));
	if (!t->v)
		return -ENOMEM;
	for (unsigned i = 0; i < RECENT_LOCKS; i++)
		silt_lock_init(&t->locks[i]);
	return 0;
}

void fresh_table_free(struct fresh_table *t)
{
	free(t->v);
	t->v = NULL;
}

void fresh_put(struct fresh_table *t, int32_t pid, const struct silt_inode *inode)
{
	unsigned at = (unsigned)(mix(inode->attr.ino) % FRESH_SLOTS);
	struct silt_lock *lock = &t->locks[at % RECENT_LOCKS];
	uint64_t now = silt_now_ns();
	silt_lock(lock);
	t->v[at] = (struct fresh_slot){ inode->attr.ino, pid, now, *inode };
	silt_unlock(lock);
}

bool fresh_take(struct fresh_table *t, int32_t pid, silt_ino ino, struct silt_inode *out)
{
	unsigned at = (unsigned)(mix(ino) % FRESH_SLOTS);
	struct silt_lock *lock = &t->locks[at % RECENT_LOCKS];
	struct fresh_slot *s = &t->v[at];
	uint64_t now = silt_now_ns();
	silt_lock(lock);
	bool found = s->ino == ino && s->pid == pid;
	if (found) {
		s->ino = 0;
		found = now - s->when < FRESH_NS;
		*out = s->inode;
	}
	silt_unlock(lock);
	return found;
}

void fresh_drop(struct fresh_table *t, silt_ino ino)
{
	unsigned at = (unsigned)(mix(ino) % FRESH_SLOTS);
	struct silt_lock *lock = &t->locks[at % RECENT_LOCKS];
	silt_lock(lock);
	if (t->v[at].ino == ino)
		t->v[at].ino = 0;
	silt_unlock(lock);
}

int opened_table_init(struct opened_table *t)
{
	t->v = calloc(OPENED_SETS, sizeof(*t->v));
	if (!t->v)
		return -ENOMEM;
	for (unsigned i = 0; i < RECENT_LOCKS; i++)
		silt_lock_init(&t->locks[i]);
	return 0;
}

void opened_table_free(struct opened_table *t)
{
	free(t->v);
	t->v = NULL;
}

/* Moves way `w` to the front, so that the last way is the one used least recently. */
static void to_front(struct opened_set *s, unsigned w, silt_ino ino, uint64_t version, uint32_t token)
{
	memmove(s->ino + 1, s->ino, w * sizeof(s->ino[0]));
	memmove(s->version + 1, s->version, w * sizeof(s->version[0]));
	memmove(s->token + 1, s->token, w * sizeof(s->token[0]));
	s->ino[0] = ino;
	s->version[0] = version;
	s->token[0] = token;
}

static uint32_t note(struct opened_table *t, silt_ino ino, uint64_t version, bool dropped)
{
	unsigned at = (unsigned)(mix(ino) % OPENED_SETS), w = 0;
	struct silt_lock *lock = &t->locks[at % RECENT_LOCKS];
	struct opened_set *s = &t->v[at];
	silt_lock(lock);
	while (w < OPENED_WAYS - 1 && s->ino[w] != ino)
		w++;
	uint32_t token = 0;
	if (!dropped && s->ino[w] == ino && s->version[w] == version)
		token = s->token[w];
	else
		while (!dropped && token == 0)
			token = atomic_fetch_add(&t->tokens, 1);
	to_front(s, w, ino, version, token);
	silt_unlock(lock);
	return token;
}

uint32_t opened_note(struct opened_table *t, silt_ino ino, uint64_t version)
{
	return note(t, ino, version, false);
}

void opened_dropped(struct opened_table *t, silt_ino ino, uint64_t version)
{
	note(t, ino, version, true);
}

void opened_sure(struct opened_table *t, silt_ino ino, uint32_t token)
{
	unsigned at = (unsigned)(mix(ino) % OPENED_SETS);
	struct silt_lock *lock = &t->locks[at % RECENT_LOCKS];
	struct opened_set *s = &t->v[at];
	silt_lock(lock);
	for (unsigned w = 0; w < OPENED_WAYS; w++)
		if (s->ino[w] == ino && s->token[w] == token)
			s->token[w] = 0;
	silt_unlock(lock);
}

bool opened_is(struct opened_table *t, silt_ino ino, uint64_t version)
{
	unsigned at = (unsigned)(mix(ino) % OPENED_SETS);
	struct silt_lock *lock = &t->locks[at % RECENT_LOCKS];
	bool same = false;
	silt_lock(lock);
	for (unsigned w = 0; w < OPENED_WAYS; w++)
		same = same || (t->v[at].ino[w] == ino && t->v[at].version[w] == version &&
		                t->v[at].token[w] == 0);
	silt_unlock(lock);
	return same;
}

void opened_advance(struct opened_table *t, silt_ino ino, uint64_t from, uint64_t to)
{
	unsigned at = (unsigned)(mix(ino) % OPENED_SETS);
	struct silt_lock *lock = &t->locks[at % RECENT_LOCKS];
	struct opened_set *s = &t->v[at];
	silt_lock(lock);
	for (unsigned w = 0; w < OPENED_WAYS; w++)
		if (s->ino[w] == ino && s->version[w] == from)
			s->version[w] = to;
	silt_unlock(lock);
}

void opened_forget(struct opened_table *t, silt_ino ino)
{
	unsigned at = (unsigned)(mix(ino) % OPENED_SETS);
	struct silt_lock *lock = &t->locks[at % RECENT_LOCKS];
	struct opened_set *s = &t->v[at];
	silt_lock(lock);
	for (unsigned w = 0; w < OPENED_WAYS; w++)
		if (s->ino[w] == ino)
			s->ino[w] = 0;
	silt_unlock(lock);
}

int dir_table_init(struct dir_table *t)
{
	t->v = calloc(DIR_SLOTS, sizeof(*t->v));
	if (!t->v)
		return -ENOMEM;
	for (unsigned i = 0; i < RECENT_LOCKS; i++)
		silt_lock_init(&t->locks[i]);
	return 0;
}

void dir_table_free(struct dir_table *t)
{
	free(t->v);
	t->v = NULL;
}

void dir_put(struct dir_table *t, const struct silt_attr *attr)
{
	unsigned at = (unsigned)(mix(attr->ino) % DIR_SLOTS);
	struct silt_lock *lock = &t->locks[at % RECENT_LOCKS];
	if (attr->ino == 0)
		return;
	uint64_t now = silt_now_ns();
	silt_lock(lock);
	t->v[at] = (struct dir_slot){ *attr, now };
	silt_unlock(lock);
}

void dir_drop(struct dir_table *t, silt_ino ino)
{
	unsigned at = (unsigned)(mix(ino) % DIR_SLOTS);
	struct silt_lock *lock = &t->locks[at % RECENT_LOCKS];
	silt_lock(lock);
	if (t->v[at].attr.ino == ino)
		t->v[at].attr.ino = 0;
	silt_unlock(lock);
}

static bool is_later(const struct silt_attr *a, const struct silt_attr *b)
{
	if (a->version != b->version)
		return a->version > b->version;
	if (a->ctime.sec != b->ctime.sec)
		return a->ctime.sec > b->ctime.sec;
	return a->ctime.nsec > b->ctime.nsec;
}

void dir_seen(struct dir_table *t, const struct silt_attr *attr)
{
	unsigned at = (unsigned)(mix(attr->ino) % DIR_SLOTS);
	struct silt_lock *lock = &t->locks[at % RECENT_LOCKS];
	silt_lock(lock);
	if (t->v[at].attr.ino == attr->ino && is_later(attr, &t->v[at].attr))
		t->v[at].attr.ino = 0;
	silt_unlock(lock);
}

bool dir_get(struct dir_table *t, silt_ino ino, double max_age, struct silt_attr *out, double *age)
{
	unsigned at = (unsigned)(mix(ino) % DIR_SLOTS);
	struct silt_lock *lock = &t->locks[at % RECENT_LOCKS];
	uint64_t now = silt_now_ns();
	bool found = false;
	silt_lock(lock);
	if (t->v[at].attr.ino == ino) {
		*age = (double)(now - t->v[at].when) / 1e9;
		*out = t->v[at].attr;
		found = *age < max_age;
	}
	silt_unlock(lock);
	return found;
}
