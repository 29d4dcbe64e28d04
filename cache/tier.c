/* The tier's life, and its verbs over the index (tier_index.c), the files (tier_files.c), the ring
 * (tier_ring.c) and the table's order of writes (tier_save.c). */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "cache/tier_parts.h"

#define GROUPS          (PACK_MAX / TIER_GROUP)
#define KEPT_SLOTS_MOST (4u << 20) /* a cache that grows keeps its slot size up to here */

_Static_assert((TIER_READ_MAX + 2 * TIER_ALIGN - 1) / SLOT_SIZE_MIN + 2 <= TIER_IO_SLOTS,
               "a read must not touch more slots");
_Static_assert(SLOT_SIZE_MIN / SLOT_CHUNKS % TIER_ALIGN == 0, "chunks are written with O_DIRECT");

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

/* `bytes` may be used: chooses how large the slots are, and what follows from it. */
static void choose_slots(struct tier *t, const struct tier_config *cfg, uint64_t bytes)
{
	uint32_t size = cfg->slot_size;
	if (size == 0) {
		size = slot_table_slot_size(t->dirfd, "table");
		if (size == 0 || bytes / size > KEPT_SLOTS_MOST)
			size = slot_size_for(bytes);
	}
	assert(slot_size_valid(size));
	t->slot_size = size;
	t->slot_shift = (uint32_t)__builtin_ctz(size);
	t->group_shift = (uint32_t)__builtin_ctz(TIER_GROUP / size);
	t->count = (uint32_t)(bytes / size);
	t->file_slots = (uint32_t)(TIER_FILE_SIZE / size);
	t->reclaim_batch = (64u << 20) / size;
	t->save_batch = (256u << 20) / size;
	/* A megabyte even in a tiny cache, else 1 / 64 of it: many may write at once. */
	t->run = t->count / 64 < TIER_RUN ? t->count / 64 : TIER_RUN;
	t->run = t->run > TIER_GROUP / size ? t->run : TIER_GROUP / size;
}

/* Opens table and data files and takes over what they hold. */
static int open_contents(struct tier *t, const struct tier_config *cfg, struct silt_err *err)
{
	bool fresh;
	char why[160];
	uint32_t sound;
	uint64_t bytes;
	int rc = tier_fit(t, cfg->size, cfg->free_ratio, &bytes, err);
	if (rc < 0)
		return rc;
	choose_slots(t, cfg, bytes);
	const struct slot_want want = { .volume = cfg->volume,
		                        .slot_size = t->slot_size,
		                        .slots = t->count };
	rc = slot_table_open(t->dirfd, "table", &want, &fresh, why, &t->table, err);
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
	silt_info(t->log, "cache: %s: %llu MiB, %llu MiB in use, slots of %u KiB (%s%s)", t->dir,
	          (unsigned long long)(total >> 20), (unsigned long long)(used >> 20),
	          t->slot_size >> 10, tier_ring_is_uring(t->rings[0]) ? "io_uring" : "threads",
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

/* The end of the piece in which byte `at` of a pack is. */
static uint64_t piece_end(const struct tier *t, uint64_t at)
{
	return ((at >> t->slot_shift) + 1) << t->slot_shift;
}

/* How many pieces bytes [from, to) of a pack touch. */
static uint32_t pieces_of(const struct tier *t, uint64_t from, uint64_t to)
{
	return (uint32_t)(((to - 1) >> t->slot_shift) - (from >> t->slot_shift) + 1);
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Works out the segments of a read from its slots: a frame may lie across several, and those that
 * are neighbours are read as one. */
static void plan(const struct tier *t, struct tier_io *io, uint64_t from)
{
	uint64_t to = from + io->total;
	io->at = (uint32_t)(from & (t->slot_size - 1));
	io->slots = io->segs = 0;
	for (uint64_t at = from, end; at < to; at = end) {
		uint8_t i = io->slots++;
		end = least(piece_end(t, at), to);
		if (i == 0 || !tier_adjacent(t, io->slot[i - 1], io->slot[i])) {
			io->first[io->segs] = i;
			io->len[io->segs++] = 0;
		}
		io->len[io->segs - 1] += (uint32_t)(end - at);
	}
}

int tier_read(struct tier *t, uint64_t pack, uint32_t off, uint32_t len, struct tier_io *io)
{
	if (len == 0 || len > TIER_READ_MAX)
		return -EINVAL;
	if ((uint64_t)off + len > PACK_MAX)
		return -ENOENT;
	if (atomic_load_explicit(&t->out, memory_order_relaxed))
		return -ENODEV;
	uint32_t from = off & ~(TIER_ALIGN - 1);
	io->skip = off - from;
	io->total = align_up(off + len) - from;
	if (!tier_pin_range(t, pack, from, (uint64_t)from + io->total, true, io->slot))
		return -ENOENT;
	plan(t, io, from);
	tier_ring_push(t->rings[io->slot[0] % t->nrings], io);
	return 0;
}

/* Reads or writes bytes [from, to) of a pack whose pinned slots these are, neighbours at once. */
static int transfer(struct tier *t, const uint32_t *slots, uint64_t from, uint64_t to, char *buf,
                    bool write)
{
	for (uint64_t at = from, end; at < to; buf += end - at, at = end) {
		uint32_t first = *slots;
		end = piece_end(t, at);
		while (end < to && tier_adjacent(t, slots[0], slots[1])) {
			end += t->slot_size;
			slots++;
		}
		slots++;
		end = least(end, to);
		uint32_t in = (uint32_t)(at & (t->slot_size - 1));
		uint32_t len = align_up((uint32_t)(end - at));
		int rc = write ? tier_slot_pwrite(t, first, in, buf, len)
		               : tier_slot_pread(t, first, in, buf, len);
		if (rc < 0)
			return rc;
	}
	return 0;
}

int tier_read_wait(struct tier *t, uint64_t pack, uint32_t off, uint32_t len, void *buf)
{
	if (atomic_load(&t->out))
		return -ENODEV;
	uint64_t to = (uint64_t)off + len;
	for (uint64_t at = off, end; at < to; at = end) {
		uint32_t slots[TIER_RUN];
		end = least(piece_end(t, at) + (uint64_t)(TIER_RUN - 1) * t->slot_size, to);
		if (!tier_pin_range(t, pack, at, end, false, slots))
			return -ENOENT;
		int rc = transfer(t, slots, at, end, (char *)buf + (at - off), false);
		tier_unpin(t, slots, pieces_of(t, at, end));
		if (rc < 0)
			return rc;
	}
	return 0;
}

/* Whether the part of [at, end) in the piece of `at` is here. */
static bool here(struct tier *t, uint64_t pack, uint64_t at, uint64_t end)
{
	uint32_t slot;
	bool yes = tier_pin_range(t, pack, at, least(piece_end(t, at), end), false, &slot);
	if (yes)
		tier_unpin(t, &slot, 1);
	return yes;
}

/* How far a write from `at` on may go at once: over pieces that are not here, if that matters. */
static uint64_t run_end(struct tier *t, uint64_t pack, uint64_t at, uint64_t end, bool all)
{
	uint64_t stop = at;
	for (uint32_t n = 0; n < t->run && stop < end; n++) {
		if (!all && here(t, pack, stop, end))
			break;
		stop = least(piece_end(t, stop), end);
	}
	return stop;
}

/* Writes [from, to) of a pack, or less, and returns how much. `data` is for `from`. */
static int64_t write_run(struct tier *t, const struct slot_use *use, uint64_t from, uint64_t to,
                         const char *data, bool verified)
{
	uint32_t slots[TIER_RUN];
	int got = tier_pin_new(t, use, (uint32_t)(from >> t->slot_shift), pieces_of(t, from, to),
	                       slots);
	if (got < 0)
		return got;
	to = least(piece_end(t, from) + (uint64_t)(got - 1) * t->slot_size, to);
	int rc = transfer(t, slots, from, to, (char *)data, true);
	uint64_t at = from;
	for (int i = 0; rc == 0 && i < got; i++) {
		uint64_t end = least(piece_end(t, at), to);
		uint32_t in = (uint32_t)(at & (t->slot_size - 1));
		uint16_t bits = tier_chunks(t, in, in + (uint32_t)(end - at));
		tier_set_valid(t, slots[i], bits, verified);
		at = end;
	}
	tier_unpin(t, slots, (uint32_t)got);
	if (rc < 0)
		return rc == -ENOSPC ? -EIO : rc;
	return (int64_t)(to - from);
}

int tier_write(struct tier *t, uint64_t pack, uint32_t pack_len, uint32_t off, uint32_t len,
               const void *data, bool verified, uint8_t freq)
{
	if (atomic_load(&t->out))
		return -ENODEV;
	uint64_t at = off, end = at + len;
	assert(off % (t->slot_size / SLOT_CHUNKS) == 0 && end <= pack_len);
	const struct slot_use use = { .pack = pack, .pack_len = pack_len, .freq = freq };
	while (at < end) {
		uint64_t stop = run_end(t, pack, at, end, verified);
		if (stop == at) { /* is here */
			at = least(piece_end(t, at), end);
			continue;
		}
		int64_t n = write_run(t, &use, at, stop, (const char *)data + (at - off), verified);
		if (n < 0)
			return (int)n;
		at += (uint64_t)n;
	}
	return 0;
}

void tier_invalidate(struct tier *t, uint64_t pack, uint32_t off, uint32_t len)
{
	uint64_t to = (uint64_t)off + len;
	for (uint64_t at = off, end; at < to; at = end) {
		uint32_t piece = (uint32_t)(at >> t->slot_shift);
		uint32_t in = (uint32_t)(at & (t->slot_size - 1));
		end = least(piece_end(t, at), to);
		struct silt_lock *l = tier_key_lock(t, pack, piece);
		silt_lock(l);
		uint32_t i = tier_find(t, pack, piece);
		if (i != TIER_NIL) {
			t->slots[i].valid &=
			        (uint16_t)~tier_chunks(t, in, in + (uint32_t)(end - at));
			t->slots[i].checked = false;
		}
		silt_unlock(l);
		if (i != TIER_NIL)
			tier_mark_dirty(t, i);
	}
}

/* Where groups of pieces begin: group `g` of a pack. */
static uint32_t group_piece(const struct tier *t, uint32_t g)
{
	return g << t->group_shift;
}

void tier_drop_pack(struct tier *t, uint64_t pack)
{
	for (uint32_t g = 0; g < GROUPS; g++) {
		uint32_t piece = group_piece(t, g);
		struct silt_lock *l = tier_key_lock(t, pack, piece);
		silt_lock(l);
		for (uint32_t i; (i = tier_next_of(t, pack, piece, TIER_NIL)) != TIER_NIL;)
			tier_kill(t, i);
		silt_unlock(l);
	}
}

static bool slot_is_full(const struct tier *t, const struct slot *s)
{
	return s->valid == slot_full_mask(t->slot_size, s->pack_len, s->piece);
}

void tier_look(struct tier *t, uint64_t pack, struct tier_pack *out)
{
	struct tier_pack p = { 0 };
	uint32_t full = 0, verified = 0, groups = GROUPS;
	for (uint32_t g = 0; g < groups; g++) {
		uint32_t piece = group_piece(t, g);
		struct silt_lock *l = tier_key_lock(t, pack, piece);
		silt_lock(l);
		for (uint32_t i = TIER_NIL; (i = tier_next_of(t, pack, piece, i)) != TIER_NIL;) {
			const struct slot *s = &t->slots[i];
			full += slot_is_full(t, s);
			verified += slot_is_full(t, s) && s->checked;
			p.pieces += s->valid != 0;
			p.pack_len = s->pack_len;
			groups = (p.pack_len + TIER_GROUP - 1) / TIER_GROUP;
		}
		silt_unlock(l);
	}
	if (p.pieces == 0 || atomic_load(&t->out)) {
		*out = (struct tier_pack){ 0 };
		return;
	}
	uint32_t all = pieces_of(t, 0, p.pack_len);
	p.full = full == all;
	p.verified = verified == all;
	*out = p;
}

/* What is whole of the pack counts as checked, or as not checked. */
static void set_checked(struct tier *t, uint64_t pack, bool checked)
{
	for (uint32_t g = 0; g < GROUPS; g++) {
		uint32_t piece = group_piece(t, g);
		struct silt_lock *l = tier_key_lock(t, pack, piece);
		silt_lock(l);
		for (uint32_t i = TIER_NIL; (i = tier_next_of(t, pack, piece, i)) != TIER_NIL;) {
			struct slot *s = &t->slots[i];
			s->checked = checked && slot_is_full(t, s);
		}
		silt_unlock(l);
	}
}

void tier_mark_verified(struct tier *t, uint64_t pack)
{
	set_checked(t, pack, true);
}

void tier_unverify(struct tier *t, uint64_t pack)
{
	set_checked(t, pack, false);
}

uint32_t tier_slot_size(const struct tier *t)
{
	return t->slot_size;
}

void tier_space(struct tier *t, uint64_t *total, uint64_t *used)
{
	silt_lock(&t->list);
	uint32_t idle = t->free.n + t->dead.n;
	silt_unlock(&t->list);
	*total = (uint64_t)t->count * t->slot_size;
	*used = (uint64_t)(t->count - idle) * t->slot_size;
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
			                .freq = s->freq };
		silt_unlock(l);
		int rc = each(arg, i, &e);
		if (rc != 0)
			return rc;
	}
	return 0;
}
