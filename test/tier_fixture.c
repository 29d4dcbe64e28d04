#include "test/tier_fixture.h"

#include "meta/lock.h"

int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->slot_size = (uint32_t)(uintptr_t)*state;
	*state = f;
	return scratch_make(f->dir) < 0 ? -1
	                                : silt_log_open("/dev/null", SILT_LOG_INFO, NULL, &f->log);
}

int setup_threads(void **state)
{
	int rc = setup(state);
	((struct fixture *)*state)->no_uring = true;
	return rc;
}

int teardown(void **state)
{
	struct fixture *f = *state;
	if (f->tier)
		tier_close(f->tier);
	silt_log_close(f->log);
	int rc = scratch_remove(f->dir);
	free(f);
	return rc;
}

int try_open(struct fixture *f, uint64_t size, uint64_t volume, struct tier **out,
             struct silt_err *err)
{
	const struct tier_config cfg = { .dir = f->dir,
		                         .size = size,
		                         .free_ratio = 0.001,
		                         .volume = volume,
		                         .log = f->log,
		                         .metrics = &f->metrics,
		                         .no_uring = f->no_uring,
		                         .slot_size = f->slot_size };
	return tier_open(&cfg, out, err);
}

void open_tier(struct fixture *f, unsigned mib)
{
	struct silt_err err = { 0 };
	int rc = try_open(f, (uint64_t)mib * MIB, 7, &f->tier, &err);
	if (rc < 0)
		print_message("%s\n", err.text);
	assert_int_equal(rc, 0);
}

void close_tier(struct fixture *f)
{
	tier_close(f->tier);
	f->tier = NULL;
}

/* The byte that stands at `off` of `pack`. */
static uint8_t byte_of(uint64_t pack, uint32_t off)
{
	return (uint8_t)(pack * 31 + off / 512 * 7 + off);
}

void fill(uint64_t pack, uint32_t off, uint32_t len, uint8_t *out)
{
	for (uint32_t i = 0; i < len; i++)
		out[i] = byte_of(pack, off + i);
}

int put(struct tier *t, uint64_t pack, uint32_t pack_len, uint32_t off, uint32_t len)
{
	uint8_t *buf = aligned_alloc(TIER_ALIGN, ((size_t)len + TIER_ALIGN - 1) & ~4095ul);
	fill(pack, off, len, buf);
	int rc = tier_write(t, pack, pack_len, off, len, buf, false, 0);
	free(buf);
	return rc;
}

struct get {
	struct tier_io io;
	struct silt_lock lock;
	struct silt_cond cond;
	uint8_t *dst;
	uint32_t len;
	int err; /* 1: under way */
};

static void on_get(struct tier_io *io, const uint8_t *data, int err)
{
	struct get *g = (struct get *)io;
	if (err == 0)
		memcpy(g->dst, data, g->len);
	silt_lock(&g->lock);
	g->err = err;
	silt_cond_signal(&g->cond);
	silt_unlock(&g->lock);
}

int get(struct tier *t, uint64_t pack, uint32_t off, uint32_t len, uint8_t *dst)
{
	struct get g = { .io.done = on_get, .dst = dst, .len = len, .err = 1 };
	silt_lock_init(&g.lock);
	silt_cond_init(&g.cond);
	int rc = tier_read(t, pack, off, len, &g.io);
	silt_lock(&g.lock);
	while (rc == 0 && g.err == 1)
		silt_cond_wait(&g.cond, &g.lock);
	silt_unlock(&g.lock);
	silt_cond_destroy(&g.cond);
	silt_lock_destroy(&g.lock);
	return rc < 0 ? rc : g.err;
}

bool right(uint64_t pack, uint32_t off, uint32_t len, const uint8_t *got)
{
	for (uint32_t i = 0; i < len; i++) {
		if (got[i] != byte_of(pack, off + i))
			return false;
	}
	return true;
}

void check(struct tier *t, uint64_t pack, uint32_t off, uint32_t len)
{
	uint8_t *buf = malloc(len);
	assert_int_equal(get(t, pack, off, len, buf), 0);
	assert_true(right(pack, off, len, buf));
	free(buf);
}
