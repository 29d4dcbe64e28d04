/* The tier's life, and its verbs over the index (tier_index.c), the files (tier_files.c), the ring
 * (tier_ring.c) and the table's order of writes (tier_save.c). */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "cache/tier_parts.h"

#define PIECES_MAX 64u /* of a pack: PACK_MAX / SLOT_SIZE */

static void locks_init(struct tier *t)
{
	for (unsigned i = 0; i < TIER_SHARDS; i++)
		silt_lock_init(&t->shards[i]);
	silt_lock_init(&t->list);
	silt_lock_init(&t->save);
	silt_lock_init(&t->wake);
	silt_cond_init(&t->wake_cond);
}

static void locks_destroy(struct tier *t)
{
	for (unsigned i = 0; i < TIER_SHARDS; i++)
		silt_lock_destroy(&t->shards[i]);
	silt_lock_destroy(&t->list);
	silt_lock_destroy(&t->save);
	silt_lock_destroy(&t->wake);
	silt_cond_destroy(&t->wake_cond);
}

/* Opens table and data files and takes over what they hold. */
static int open_contents(struct tier *t, const struct tier_config *cfg, struct silt_err *err)
{
	bool fresh;
	char why[160];
	uint32_t sound;
	int rc = tier_fit(t, cfg->size, cfg->free_ratio, &t->count, err);
	if (rc < 0)
		return rc;
	rc = slot_table_open(t->dirfd, "table", cfg->volume, t->count, &fresh, why, &t->table, err);
	if (rc < 0)
		return rc;
	if (why[0])
		silt_warn(t->log,
		          "cache: starting with an empty cache in %s, its table can't be "
		          "used: %s",
		          t->dir, why);
	rc = tier_files_open(t, &sound, err);
	if (rc < 0)
		return rc;
	rc = tier_index_init(t);
	if (rc < 0)
		return silt_fail(err, rc, "out of memory for the index of %u slots", t->count);
	tier_index_load(t, sound);
	silt_gauge(t->metrics, M_SSD_SLOTS, t->count);
	return 0;
}

static int start_threads(struct tier *t, const struct tier_config *cfg, struct silt_err *err)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned rings = cfg->rings ? cfg->rings : cores >= 16 ? 4 : cores >= 8 ? 2 : 1;
	if (rings > TIER_MAX_RINGS)
		rings = TIER_MAX_RINGS;
	int rc = 0;
	while (rc == 0 && t->nrings < rings) {
		rc = tier_ring_new(t, cfg->no_uring, &t->rings[t->nrings]);
		t->nrings += rc == 0;
	}
	if (rc == 0) {
		rc = -pthread_create(&t->saver, NULL, tier_saver, t);
		t->saver_runs = rc == 0;
	}
	return rc < 0 ? silt_fail(err, rc, "cannot start the cache's threads: %s", strerror(-rc))
	              : 0;
}

static void tier_free(struct tier *t)
{
	for (unsigned i = 0; i < t->nrings; i++)
		tier_ring_free(t->rings[i]);
	if (t->saver_runs) {
		silt_lock(&t->wake);
		t->stop = true;
		silt_cond_signal(&t->wake_cond);
		silt_unlock(&t->wake);
		pthread_join(t->saver, NULL);
	}
	slot_table_close(&t->table);
	tier_files_close(t);
	tier_index_free(t);
	locks_destroy(t);
	free(t);
}

int tier_open(const struct tier_config *cfg, struct tier **out, struct silt_err *err)
{
	struct tier *t = calloc(1, sizeof(*t));
	if (!t)
		return silt_fail(err, -ENOMEM, "out of memory");
	t->log = cfg->log;
	t->metrics = cfg->metrics;
	t->dirfd = t->lockfd = t->table.fd = -1;
	locks_init(t);
	int rc = tier_dir_open(t, cfg->dir, err);
	if (rc == 0)
		rc = open_contents(t, cfg, err);
	if (rc == 0)
		rc = start_threads(t, cfg, err);
	if (rc < 0) {
		tier_free(t);
		return rc;
	}
	uint64_t used, total;
	tier_space(t, &total, &used);
	silt_info(t->log, "cache: %s: %llu MiB, %llu MiB in use (%s%s)", t->dir,
	          (unsigned long long)(total >> 20), (unsigned long long)(used >> 20),
	          tier_ring_is_uring(t->rings[0]) ? "io_uring" : "threads",
	          t->direct ? ", O_DIRECT" : "");
	*out = t;
	return 0;
}

void tier_close(struct tier *t)
{
	tier_free(t); /* the saver's last round saves the table */
}

static uint32_t align_up(uint32_t n)
{
	return (n + TIER_ALIGN - 1) & ~(TIER_ALIGN - 1);
}

/* Works out the aligned segments of a read: a frame may lie across two pieces. */
static void plan(struct tier_io *io, uint32_t off, uint32_t len)
{
	uint32_t from = off & ~(TIER_ALIGN - 1);
	uint32_t to = align_up(off + len);
	io->skip = off - from;
	io->total = to - from;
	io->at[0] = from % SLOT_SIZE;
	io->segs = from / SLOT_SIZE == (to - 1) / SLOT_SIZE ? 1 : 2;
	io->len[0] = io->segs == 1 ? io->total : SLOT_SIZE - io->at[0];
	io->at[1] = 0;
	io->len[1] = io->total - io->len[0];
}

int tier_read(struct tier *t, uint64_t pack, uint32_t off, uint32_t len, struct tier_io *io)
{
	if (len == 0 || len > TIER_READ_MAX)
		return -EINVAL;
	if ((uint64_t)off + len > (uint64_t)PIECES_MAX * SLOT_SIZE)
		return -ENOENT;
	if (atomic_load_explicit(&t->out, memory_order_relaxed))
		return -ENODEV;
	plan(io, off, len);
	for (unsigned i = 0; i < io->segs; i++) {
		uint32_t end = io->at[i] + io->len[i];
		io->slot[i] =
		        tier_pin(t, pack, off / SLOT_SIZE + i, tier_chunks(io->at[i], end), true);
		if (io->slot[i] != TIER_NIL)
			continue;
		if (i > 0)
			tier_unpin(t, io->slot[0]);
		return -ENOENT;
	}
	tier_ring_push(t->rings[io->slot[0] % t->nrings], io);
	return 0;
}

/* Walks the pieces that a range of a pack touches: `from` and `to` are within the piece. */
struct walk {
	uint64_t at, end; /* of the range, in the pack */
	uint32_t piece, from, to;
};

static struct walk walk_of(uint32_t off, uint32_t len)
{
	return (struct walk){ .at = off, .end = (uint64_t)off + len };
}

static bool walk_next(struct walk *w)
{
	if (w->at >= w->end)
		return false;
	w->piece = (uint32_t)(w->at / SLOT_SIZE);
	w->from = (uint32_t)(w->at % SLOT_SIZE);
	uint64_t left = w->end - w->at;
	w->to = left < SLOT_SIZE - w->from ? w->from + (uint32_t)left : SLOT_SIZE;
	w->at += w->to - w->from;
	return true;
}

int tier_read_wait(struct tier *t, uint64_t pack, uint32_t off, uint32_t len, void *buf)
{
	if (atomic_load(&t->out))
		return -ENODEV;
	char *at = buf;
	for (struct walk w = walk_of(off, len); walk_next(&w); at += w.to - w.from) {
		uint32_t slot = tier_pin(t, pack, w.piece, tier_chunks(w.from, w.to), false);
		if (slot == TIER_NIL)
			return -ENOENT;
		int rc = tier_slot_pread(t, slot, w.from, at, align_up(w.to - w.from));
		tier_unpin(t, slot);
		if (rc < 0)
			return rc;
	}
	return 0;
}

static bool here(struct tier *t, uint64_t pack, uint32_t piece, uint16_t bits)
{
	uint32_t slot = tier_pin(t, pack, piece, bits, false);
	if (slot != TIER_NIL)
		tier_unpin(t, slot);
	return slot != TIER_NIL;
}

int tier_write(struct tier *t, uint64_t pack, uint32_t pack_len, uint32_t off, uint32_t len,
               const void *data, bool verified, uint8_t freq)
{
	if (atomic_load(&t->out))
		return -ENODEV;
	assert(off % SLOT_CHUNK == 0 && (uint64_t)off + len <= pack_len);
	const char *at = data;
	for (struct walk w = walk_of(off, len); walk_next(&w); at += w.to - w.from) {
		uint32_t slot;
		uint16_t bits = tier_chunks(w.from, w.to);
		if (!verified && here(t, pack, w.piece, bits))
			continue;
		int rc = tier_pin_new(t, pack, w.piece, pack_len, freq, &slot);
		if (rc < 0)
			return rc;
		rc = tier_slot_pwrite(t, slot, w.from, at, align_up(w.to - w.from));
		if (rc == 0)
			tier_set_valid(t, slot, bits, verified);
		tier_unpin(t, slot);
		if (rc < 0)
			return rc == -ENOSPC ? -EIO : rc;
	}
	return 0;
}

void tier_invalidate(struct tier *t, uint64_t pack, uint32_t off, uint32_t len)
{
	for (struct walk w = walk_of(off, len); walk_next(&w);) {
		struct silt_lock *l = tier_key_lock(t, pack, w.piece);
		silt_lock(l);
		uint32_t i = tier_find(t, pack, w.piece);
		if (i != TIER_NIL) {
			t->slots[i].valid &= (uint16_t)~tier_chunks(w.from, w.to);
			t->slots[i].flags &= (uint8_t)~SLOT_VERIFIED;
		}
		silt_unlock(l);
		if (i != TIER_NIL)
			tier_mark_dirty(t, i);
	}
}

void tier_drop_pack(struct tier *t, uint64_t pack)
{
	for (uint32_t piece = 0; piece < PIECES_MAX; piece++) {
		struct silt_lock *l = tier_key_lock(t, pack, piece);
		silt_lock(l);
		uint32_t i = tier_find(t, pack, piece);
		if (i != TIER_NIL)
			tier_kill(t, i);
		silt_unlock(l);
	}
}

void tier_look(struct tier *t, uint64_t pack, struct tier_pack *out)
{
	struct tier_pack p = { .full = true, .verified = true };
	uint32_t pieces = PIECES_MAX;
	for (uint32_t piece = 0; piece < pieces; piece++) {
		struct silt_lock *l = tier_key_lock(t, pack, piece);
		silt_lock(l);
		uint32_t i = tier_find(t, pack, piece);
		const struct slot *s = i != TIER_NIL ? &t->slots[i] : NULL;
		p.full = p.full && s && s->valid == slot_full_mask(s->pack_len, piece);
		p.verified = p.verified && s && (s->flags & SLOT_VERIFIED);
		if (s) {
			p.pieces += s->valid != 0;
			p.pack_len = s->pack_len;
			pieces = (s->pack_len + SLOT_SIZE - 1) / SLOT_SIZE;
		}
		silt_unlock(l);
	}
	if (p.pieces == 0 || atomic_load(&t->out))
		p = (struct tier_pack){ 0 };
	p.verified = p.verified && p.full;
	*out = p;
}

void tier_mark_verified(struct tier *t, uint64_t pack)
{
	for (uint32_t piece = 0; piece < PIECES_MAX; piece++) {
		struct silt_lock *l = tier_key_lock(t, pack, piece);
		silt_lock(l);
		uint32_t i = tier_find(t, pack, piece);
		bool full = i != TIER_NIL &&
		            t->slots[i].valid == slot_full_mask(t->slots[i].pack_len, piece);
		if (full)
			t->slots[i].flags |= SLOT_VERIFIED;
		silt_unlock(l);
		if (full)
			tier_mark_dirty(t, i);
	}
}

void tier_space(struct tier *t, uint64_t *total, uint64_t *used)
{
	silt_lock(&t->list);
	uint32_t idle = t->free.n + t->dead.n;
	silt_unlock(&t->list);
	*total = (uint64_t)t->count * SLOT_SIZE;
	*used = (uint64_t)(t->count - idle) * SLOT_SIZE;
}

int tier_each(struct tier *t, int (*each)(void *arg, uint32_t slot, const struct slot_entry *e),
              void *arg)
{
	for (uint32_t i = 0; i < t->count; i++) {
		struct silt_lock *l = tier_slot_lock(t, i);
		if (!l)
			continue;
		const struct slot *s = &t->slots[i];
		struct slot_entry e = { .pack = s->pack,
			                .piece = s->piece,
			                .pack_len = s->pack_len,
			                .valid = s->valid,
			                .freq = s->freq,
			                .flags = s->flags };
		silt_unlock(l);
		int rc = each(arg, i, &e);
		if (rc != 0)
			return rc;
	}
	return 0;
}
