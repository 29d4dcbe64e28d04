/* The order of writes that makes the tier safe, and eviction.
 *
 * A chunk: data written -> valid bit in memory -> ... fdatasync of the data -> entry in the table.
 *
 * Reuse: slot out of the index, unpinned -> free entry in the table -> fdatasync of the table ->
 * free set -> data of another pack.
 *
 * So at no moment does a durable entry name bytes that are not, or no longer, in its slot. Both
 * sides run under `save`, in batches: one flush of the disk is shared by up to 64 MiB of evictions,
 * or by 256 MiB of slots written within a second.
 *
 * Eviction is S3-FIFO's main queue: a hand goes round the slots, a slot that was read since the
 * hand came by loses one of its up to three lives, one without any is taken. New slots come without
 * a life (a miss that is never read again leaves first), those that a warmup asked for with all
 * three. A round that found any slot is the last of its batch: a few idle slots are not followed by
 * many that were read. */
#include <errno.h>
#include <unistd.h>

#include "cache/tier_parts.h"

#define SAVE_EVERY_NS 1000000000u

/* Takes up to `want` slots out of the index. */
static unsigned evict(struct tier *t, unsigned want)
{
	unsigned got = 0;
	for (uint64_t step = 0; step < 4ull * t->count + 1 && got < want; step++) {
		uint32_t i = t->hand;
		if (got > 0 && step % t->count == 0)
			break;
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

static uint32_t set_size(struct tier *t, const struct slot_bits *set)
{
	silt_lock(&t->list);
	uint32_t n = set->n;
	silt_unlock(&t->list);
	return n;
}

/* Writes free entries for all dead slots of a batch, which is in order. */
static int put_free_entries(struct tier *t, const uint32_t *v, uint32_t n)
{
	int rc = 0;
	for (uint32_t i = 0, k; i < n && rc == 0; i = k) {
		for (k = i + 1; k < n && v[k] == v[k - 1] + 1;)
			k++;
		rc = slot_table_put(&t->table, v[i], NULL, k - i);
	}
	return rc == 0 ? slot_table_sync(&t->table) : rc;
}

/* Makes a batch of dead slots free. */
static uint32_t free_dead(struct tier *t)
{
	uint32_t *v = t->entry_slots, n = 0;
	silt_lock(&t->list);
	for (uint32_t i = 0; n < t->reclaim_batch && t->dead.n > 0; n++) {
		i = bits_next(&t->dead, i);
		bits_remove(&t->dead, i);
		v[n] = i;
	}
	silt_unlock(&t->list);
	if (n == 0)
		return 0;
	int rc = put_free_entries(t, v, n);
	if (rc < 0)
		tier_io_error(t, "writing the slot table", rc);
	silt_lock(&t->list);
	for (uint32_t i = 0; i < n; i++) {
		if (rc == 0)
			__atomic_store_n(&t->slots[v[i]].state, SLOT_FREE, __ATOMIC_RELAXED);
		bits_add(rc == 0 ? &t->free : &t->dead, v[i]);
	}
	silt_unlock(&t->list);
	return rc == 0 ? n : 0;
}

unsigned tier_reclaim(struct tier *t)
{
	silt_lock(&t->save);
	unsigned got = set_size(t, &t->free); /* someone else may have been here before us */
	if (got == 0) {
		unsigned want = t->count / 8 < t->reclaim_batch ? t->count / 8 : t->reclaim_batch;
		if (set_size(t, &t->dead) == 0)
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
		                  .freq = s->freq };
	silt_unlock(l);
	return true;
}

/* Flushes the data files, then writes the first `n` entries of t->entries, which are in order. */
static int save_entries(struct tier *t, uint32_t n)
{
	const uint32_t *slot = t->entry_slots;
	int synced = -1; /* the file flushed last */
	for (uint32_t i = 0; i < n; i++) {
		int fd = tier_slot_fd(t, slot[i]);
		if (fd != synced && fdatasync(fd) < 0)
			return -errno;
		synced = fd;
	}
	int rc = 0;
	for (uint32_t i = 0, k; i < n && rc == 0; i = k) {
		for (k = i + 1; k < n && slot[k] == slot[k - 1] + 1;)
			k++;
		rc = slot_table_put(&t->table, slot[i], &t->entries[i], k - i);
	}
	return rc;
}

/* Takes the next batch out of `saving`, from *at on, and writes it. */
static int save_batch(struct tier *t, uint32_t *at)
{
	uint32_t used = 0;
	while (used < t->save_batch && t->saving.n > 0) {
		uint32_t i = bits_next(&t->saving, *at);
		bits_remove(&t->saving, i);
		*at = i + 1;
		if (snapshot(t, i, &t->entries[used]))
			t->entry_slots[used++] = i;
	}
	int rc = save_entries(t, used);
	for (uint32_t i = 0; rc < 0 && i < used; i++)
		tier_mark_dirty(t, t->entry_slots[i]);
	return rc;
}

static void take_dirty(struct tier *t)
{
	silt_lock(&t->list);
	struct slot_bits empty = t->saving;
	t->saving = t->dirty;
	t->dirty = empty;
	silt_unlock(&t->list);
}

/* After an error: they are still to be written. */
static void keep_dirty(struct tier *t)
{
	for (uint32_t i = 0; t->saving.n > 0; i++) {
		i = bits_next(&t->saving, i);
		bits_remove(&t->saving, i);
		tier_mark_dirty(t, i);
	}
}

int tier_save(struct tier *t)
{
	int rc = 0;
	uint32_t at = 0;
	silt_lock(&t->save);
	take_dirty(t);
	bool any = t->saving.n > 0;
	while (rc == 0 && t->saving.n > 0)
		rc = save_batch(t, &at);
	keep_dirty(t);
	while (rc == 0 && free_dead(t) > 0)
		;
	if (rc == 0 && any)
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
		struct silt_err err;
		if (atomic_exchange(&t->cut, false))
			tier_check_files(t, &err);
		if (!atomic_load(&t->out))
			tier_save(t);
		silt_lock(&t->wake);
	} while (!last);
	silt_unlock(&t->wake);
	return NULL;
}
