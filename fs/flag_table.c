/* See flag_table.h. */
#include "fs/flag_table.h"

#include <errno.h>
#include <stdlib.h>

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	return x;
}

int flag_table_init(struct flag_table *t)
{
	t->v = calloc(FLAG_SETS, sizeof(*t->v));
	if (!t->v)
		return -ENOMEM;
	for (unsigned i = 0; i < FLAG_LOCKS; i++)
		silt_lock_init(&t->locks[i]);
	return 0;
}

void flag_table_free(struct flag_table *t)
{
	for (unsigned i = 0; t->v && i < FLAG_LOCKS; i++)
		silt_lock_destroy(&t->locks[i]);
	free(t->v);
	t->v = NULL;
}

/* Puts an inode into the first way; what is in `w` and before it moves one back. */
static void to_front(struct flag_set *s, unsigned w, silt_ino ino, uint64_t seen)
{
	for (; w > 0; w--) {
		s->ino[w] = s->ino[w - 1];
		s->seen[w] = s->seen[w - 1];
	}
	s->ino[0] = ino;
	s->seen[0] = seen;
}

static unsigned way_of(const struct flag_set *s, silt_ino ino)
{
	unsigned w = 0;
	while (w < FLAG_WAYS && s->ino[w] != ino)
		w++;
	return w;
}

void flags_note(struct flag_table *t, const struct silt_attr *attr)
{
	unsigned at = (unsigned)(mix(attr->ino) % FLAG_SETS);
	struct silt_lock *lock = &t->locks[at % FLAG_LOCKS];
	uint64_t seen = silt_now_ns() / 1000000 << 8 | attr->flags;
	if (attr->ino == 0)
		return;
	silt_lock(lock);
	unsigned w = way_of(&t->v[at], attr->ino);
	to_front(&t->v[at], w < FLAG_WAYS ? w : FLAG_WAYS - 1, attr->ino, seen);
	silt_unlock(lock);
}

void flags_drop(struct flag_table *t, silt_ino ino)
{
	unsigned at = (unsigned)(mix(ino) % FLAG_SETS);
	struct silt_lock *lock = &t->locks[at % FLAG_LOCKS];
	silt_lock(lock);
	unsigned w = way_of(&t->v[at], ino);
	if (w < FLAG_WAYS)
		t->v[at].ino[w] = 0;
	silt_unlock(lock);
}

bool flags_get(struct flag_table *t, silt_ino ino, double max_age, unsigned *flags)
{
	unsigned at = (unsigned)(mix(ino) % FLAG_SETS);
	struct silt_lock *lock = &t->locks[at % FLAG_LOCKS];
	uint64_t now = silt_now_ns() / 1000000;
	bool found = false;
	silt_lock(lock);
	unsigned w = way_of(&t->v[at], ino);
	if (w < FLAG_WAYS) {
		uint64_t seen = t->v[at].seen[w];
		found = (double)(now - (seen >> 8)) < max_age * 1000;
		*flags = seen & 255;
	}
	silt_unlock(lock);
	return found;
}
