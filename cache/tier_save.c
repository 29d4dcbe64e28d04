/* The order of writes that makes the tier safe, and eviction.
 *
 *	a chunk	  data written -> valid bit in memory -> ... fdatasync of the data -> entry in the
 *table reuse	  slot out of the index, unpinned -> free entry in the table -> fdatasync of the
 *table -> free list -> data of another pack
 *
 * So at no moment does a durable entry name bytes that are not, or no longer, in its slot. Both
 *sides run under `save`, in batches: one flush of the disk is shared by up to TIER_RECLAIM_BATCH
 *evictions, or by all slots written within a second.
 *
 * Eviction is S3-FIFO's main queue: a hand goes round the slots, a slot that was read since the
 *hand came by loses one of its up to three lives, one without any is taken. New slots come without
 *a life (a miss that is never read again leaves first), those that a warmup asked for with all
 *three. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "cache/tier_parts.h"

#define SAVE_BATCH    256u
#define SAVE_EVERY_NS 1000000000u

/* Takes up to `want` slots out of the index. */
static unsigned evict(struct tier *t, unsigned want)
{
	unsigned got = 0;
	for (uint64_t step = 0; step < 4ull * t->count + 1 && got < want; step++) {
		uint32_t i = t->hand;
		t->hand = i + 1 < t->count ? i + 1 : 0;
		struct silt_lock *l = tier_slot_lock(t, i);
		if (!l)
			continue;
		struct slot *s = &t->slots[i];
		if (s->pins == 0 && s->freq == 0) {
			silt_debugf(t->log, "cache.evict", "slot %u: pack %llx piece %u", i,
			            (unsigned long long)s->pack, s->piece);
			tier_kill(t, i);
			got++;
		} else if (s->pins == 0) {
			s->freq--;
		}
		silt_unlock(l);
	}
	silt_count(t->metrics, M_SSD_EVICTIONS, got);
	return got;
}

static uint32_t list_len(struct tier *t, const struct slot_list *l)
{
	silt_lock(&t->list);
	uint32_t n = l->n;
	silt_unlock(&t->list);
	return n;
}

/* Makes a batch of dead slots free. */
static unsigned free_dead(struct tier *t)
{
	uint32_t v[TIER_RECLAIM_BATCH];
	unsigned n = 0;
	static const struct slot_entry none;
	silt_lock(&t->list);
	while (n < TIER_RECLAIM_BATCH && t->dead.n > 0)
		v[n++] = t->dead.v[--t->dead.n];
	silt_unlock(&t->list);
	if (n == 0)
		return 0;
	int rc = 0;
	for (unsigned i = 0; i < n && rc == 0; i++)
		rc = slot_table_put(&t->table, v[i], &none);
	if (rc == 0)
		rc = slot_table_sync(&t->table);
	if (rc < 0)
		tier_io_error(t, "writing the slot table", rc);
	silt_lock(&t->list);
	struct slot_list *to = rc == 0 ? &t->free : &t->dead;
	for (unsigned i = 0; i < n; i++) {
		if (rc == 0)
			__atomic_store_n(&t->slots[v[i]].state, SLOT_FREE, __ATOMIC_RELAXED);
		to->v[to->n++] = v[i];
	}
	silt_unlock(&t->list);
	return rc == 0 ? n : 0;
}

unsigned tier_reclaim(struct tier *t)
{
	silt_lock(&t->save);
	unsigned got = list_len(t, &t->free); /* someone else may have been here before us */
	if (got == 0) {
		unsigned want =
		        t->count / 8 < TIER_RECLAIM_BATCH ? t->count / 8 : TIER_RECLAIM_BATCH;
		if (list_len(t, &t->dead) == 0)
			evict(t, want ? want : 1);
		got = free_dead(t);
	}
	silt_unlock(&t->save);
	return got;
}

/* Copies the entry that a slot should have now; false: it is not used (its free entry is written
 * when it is reclaimed). */
static bool snapshot(struct tier *t, uint32_t i, struct slot_entry *e)
{
	struct silt_lock *l = tier_slot_lock(t, i);
	if (!l)
		return false;
	const struct slot *s = &t->slots[i];
	*e = (struct slot_entry){ .pack = s->pack,
		                  .piece = s->piece,
		                  .pack_len = s->pack_len,
		                  .valid = s->valid,
		                  .freq = s->freq,
		                  .flags = s->flags };
	silt_unlock(l);
	return true;
}

static int save_batch(struct tier *t, const uint32_t *v, unsigned n)
{
	struct slot_entry e[SAVE_BATCH];
	uint32_t slot[SAVE_BATCH];
	unsigned used = 0;
	int synced = -1; /* the file flushed last; slots of a batch are mostly of one file */
	for (unsigned i = 0; i < n; i++) {
		if (snapshot(t, v[i], &e[used]))
			slot[used++] = v[i];
	}
	for (unsigned i = 0; i < used; i++) {
		int fd = tier_slot_fd(t, slot[i]);
		if (fd != synced && fdatasync(fd) < 0)
			return -errno;
		synced = fd;
	}
	for (unsigned i = 0; i < used; i++) {
		int rc = slot_table_put(&t->table, slot[i], &e[i]);
		if (rc < 0)
			return rc;
	}
	return 0;
}

static int compare_slots(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

static void take_dirty(struct tier *t)
{
	silt_lock(&t->list);
	struct slot_list empty = t->saving;
	t->saving = t->dirty;
	t->dirty = empty;
	t->dirty.n = 0;
	for (uint32_t i = 0; i < t->saving.n; i++)
		t->slots[t->saving.v[i]].dirty = 0;
	silt_unlock(&t->list);
	qsort(t->saving.v, t->saving.n, sizeof(uint32_t), compare_slots);
}

int tier_save(struct tier *t)
{
	int rc = 0;
	silt_lock(&t->save);
	take_dirty(t);
	for (uint32_t i = 0; i < t->saving.n && rc == 0; i += SAVE_BATCH) {
		uint32_t n = t->saving.n - i < SAVE_BATCH ? t->saving.n - i : SAVE_BATCH;
		rc = save_batch(t, t->saving.v + i, n);
	}
	while (rc == 0 && free_dead(t) > 0)
		;
	if (rc == 0 && t->saving.n > 0)
		rc = slot_table_sync(&t->table);
	if (rc < 0)
		tier_io_error(t, "saving the slot table", rc);
	silt_unlock(&t->save);
	return rc;
}

void *tier_saver(void *arg)
{
	struct tier *t = arg;
	bool last;
	silt_lock(&t->wake);
	do {
		uint64_t until = silt_now_ns() + SAVE_EVERY_NS;
		while (!t->stop && silt_cond_wait_until(&t->wake_cond, &t->wake, until))
			;
		last = t->stop;
		silt_unlock(&t->wake);
		if (!atomic_load(&t->out))
			tier_save(t);
		silt_lock(&t->wake);
	} while (!last);
	silt_unlock(&t->wake);
	return NULL;
}
