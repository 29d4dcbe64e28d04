/* Warmup: one thread walks, keeps the set of packs, feeds the fetch threads and reports.
 *
 * Resolve: walk every root; every extent's pack goes into the set, with its length if some of it is
 * on the SSD, else the least that it must have (the furthest end of an extent seen in it) until it
 * has been fetched. As soon as the whole slots for these lengths together pass the size of the
 * cache, the run is refused (-ENOSPC). That is never wrong; but where only the indexes at the ends
 * of packs make the difference, it comes late: when these have been fetched.
 *
 * Fetch: begins while the walk goes on, but until the end of the walk only with what fits into free
 * space: a run that is going to be refused evicts nothing.
 *
 * Check: a pack that lies on the SSD since an earlier mount is read back first, every frame of it,
 * and fetched only if it is damaged. The cache remembers for as long as it is mounted what was
 * checked, so this is done once.
 *
 * Verify: at the end every pack of the set is looked up once more: one that was evicted meanwhile
 * counts as missing, whatever its fetch said; one that someone made doubtful meanwhile (another
 * warmup that verifies all, a data file that was cut) is checked again. If any is not whole and
 * right on the SSD, the trees are walked again to count and name the files that need it.
 *
 * A pack whose fetch fails is tried again up to MAX_TRIES times with growing pauses.
 *
 * Callbacks (metadata engine, fetch threads) only queue under `wake` and signal it; all state
 * belongs to the thread in warmup_run(), which therefore needs no other lock. */
#include "cache/warmup.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/pack.h"
#include "cache/pack_set.h"
#include "cache/warmup_walk.h"
#include "meta/cleanup.h"

#define MAX_TRIES         4 /* the first and three more */
#define PROGRESS_NS       200000000u
#define RETRY_FIRST_NS    500000000u
#define MAX_REFUSED_PACKS 8 /* -ENOSPC answers after which fetching ends */
#define MORE_ROUNDS       3 /* over packs that became doubtful meanwhile */
#define EXTENT_DAMAGED    "its extents are damaged"

/* One fetch, or check, under way. */
struct fetch {
	struct warmup *run;
	size_t place; /* in the set */
	bool check;
	uint64_t bytes;
	int err;
	struct fetch *next;
};

/* A failed pack and when it is tried again. */
struct retry {
	size_t place;
	uint64_t due_ns;
};

struct warmup {
	const struct warmup_config *cfg;
	struct warmup_result *result;
	struct warmup_progress p;
	struct wake wake;
	struct walk *walk;
	struct pack_set set;
	uint64_t begun_ns, next_progress_ns;
	uint64_t total, free_space, needed; /* bytes of SSD */
	uint32_t slot_size;
	bool no_memory;
	bool ending; /* nothing new is begun */
	/* fetching */
	struct fetch *fetches, *idle; /* all of them; those not in use */
	struct fetch *done;           /* under wake.lock */
	unsigned width, in_flight;
	size_t next; /* place of the first pack not looked at */
	struct retry *retries;
	size_t n_retries, cap_retries;
	unsigned refused;
};

static int fail(struct warmup *r, int code, const char *text)
{
	return silt_fail(&r->result->err, code, "%s", text);
}

static bool cancelled(const struct warmup *r)
{
	return r->cfg->cancel && atomic_load(r->cfg->cancel);
}

/* --- Resolving -----------------------------------------------------------------------------------
 */

static void on_dir(void *arg)
{
	struct warmup *r = arg;
	r->p.dirs++;
}

static void on_file(void *arg, uint64_t size)
{
	struct warmup *r = arg;
	r->p.files++;
	r->p.bytes += size;
}

static uint64_t whole_slots(const struct warmup *r, uint64_t bytes)
{
	return (bytes + r->slot_size - 1) / r->slot_size * r->slot_size;
}

/* The pack is at least so long. */
static void pack_reaches(struct warmup *r, struct pack_entry *p, uint64_t end)
{
	if (end <= p->end || end > UINT32_MAX)
		return;
	r->needed += whole_slots(r, end) - whole_slots(r, p->end);
	p->end = (uint32_t)end;
}

/* Where a pack that is seen for the first time stands. */
static void classify(struct warmup *r, struct pack_entry *p)
{
	struct cache *c = r->cfg->cache;
	if (r->cfg->drop)
		return;
	enum cache_pack_state state = cache_pack_state(c, p->pack);
	if (state != CACHE_PACK_ABSENT)
		pack_reaches(r, p, cache_pack_length(c, p->pack));
	if (state == CACHE_PACK_FULL && r->cfg->verify) {
		cache_uncheck_pack(c, p->pack);
		state = CACHE_PACK_UNCHECKED;
	}
	if (state == CACHE_PACK_UNCHECKED)
		p->want = PACK_UNCHECKED;
	if (state != CACHE_PACK_FULL)
		return;
	p->want = PACK_CACHED;
	r->p.packs_cached++;
	r->p.packs_done++;
}

/* How far the pack must reach; 0: no pack does, the record is damaged. It must not make the whole run
 * seem too large. */
static uint64_t pack_end(const struct silt_extent *e)
{
	uint64_t end = (uint64_t)e->pack_off + e->stored + PACK_TRAILER;
	return end <= PACK_MAX ? end : 0;
}

static const char *on_extent(void *arg, const struct silt_extent *e)
{
	struct warmup *r = arg;
	uint64_t end = pack_end(e);
	int added;
	if (!end)
		return EXTENT_DAMAGED;
	struct pack_entry *p = pack_set_add(&r->set, e->pack, &added);

	if (!p) {
		r->no_memory = true;
		return NULL;
	}
	if (added) {
		r->p.packs++;
		classify(r, p);
	}
	pack_reaches(r, p, end);
	return NULL;
}

/* While resolving: something that can't be read is missing whatever the packs say. The second walk
 * counts it again, so only note that there has to be one. */
static void on_unreadable(void *arg, size_t root, const char *path, const char *why)
{
	struct warmup *r = arg;
	r->p.missing_files++;
}

static const struct walk_ops resolve_ops = {
	.dir = on_dir,
	.file = on_file,
	.extent = on_extent,
	.missing = on_unreadable,
};

/* --- Fetching ------------------------------------------------------------------------------------
 */

/* On a fetch thread, or at once on ours. */
static void on_fetched(void *arg, int err)
{
	struct fetch *f = arg;
	struct wake *wake = &f->run->wake;

	silt_lock(&wake->lock);
	f->err = err;
	f->next = f->run->done;
	f->run->done = f;
	wake->events++;
	silt_cond_signal(&wake->cond);
	silt_unlock(&wake->lock);
}

static struct fetch *take_idle(struct warmup *r, size_t place, bool check)
{
	struct fetch *f = r->idle;

	r->idle = f->next;
	f->place = place;
	f->check = check;
	f->bytes = 0;
	r->in_flight++;
	return f;
}

static void start_fetch(struct warmup *r, size_t place)
{
	struct fetch *f = take_idle(r, place, false);

	r->set.v[place].want = PACK_FETCHING;
	r->set.v[place].tries++;
	cache_fetch_pack(r->cfg->cache, r->set.v[place].pack, &f->bytes, on_fetched, f);
}

static void start_check(struct warmup *r, size_t place)
{
	struct fetch *f = take_idle(r, place, true);

	r->set.v[place].want = PACK_CHECKING;
	cache_check_pack(r->cfg->cache, r->set.v[place].pack, &f->bytes, on_fetched, f);
}

static void retry_later(struct warmup *r, size_t place)
{
	struct pack_entry *p = &r->set.v[place];
	if (r->n_retries == r->cap_retries) {
		size_t cap = r->cap_retries ? r->cap_retries * 2 : 64;
		struct retry *v = realloc(r->retries, cap * sizeof(*v));
		if (!v) {
			r->no_memory = true;
			return;
		}
		r->retries = v;
		r->cap_retries = cap;
	}
	p->want = PACK_WAITING;
	r->retries[r->n_retries++] = (struct retry){
		.place = place,
		.due_ns = silt_now_ns() + ((uint64_t)RETRY_FIRST_NS << (2 * (p->tries - 1))),
	};
}

static void check_ended(struct warmup *r, struct fetch *f)
{
	struct pack_entry *p = &r->set.v[f->place];

	if (f->err == 0) {
		p->want = PACK_CACHED;
		r->p.packs_done++;
		r->p.packs_cached++;
		r->p.checked_packs++;
		r->p.checked_bytes += f->bytes;
		return;
	}
	bool damaged = f->err == -EBADMSG || f->err == -EIO; /* else it was evicted */
	r->p.damaged_packs += damaged;
	if (!r->cfg->check)
		p->want = PACK_WANTED; /* handle_ended() fetches it */
	else
		p->want = damaged ? PACK_DAMAGED : PACK_FAILED;
}

static void fetch_ended(struct warmup *r, struct fetch *f)
{
	struct pack_entry *p = &r->set.v[f->place];

	if (f->err == 0) {
		p->want = PACK_FETCHED;
		r->p.packs_done++;
		r->p.fetched_packs++;
		r->p.fetched_bytes += f->bytes;
		pack_reaches(r, p, f->bytes);
		return;
	}
	r->refused += f->err == -ENOSPC;
	if (p->tries < MAX_TRIES && f->err != -ENOSPC && f->err != -ENODEV) {
		retry_later(r, f->place);
		return;
	}
	p->want = PACK_FAILED;
	r->p.failed_packs++;
	silt_warn(r->cfg->log, "warmup: pack %016" PRIx64 " could not be fetched: %s", p->pack,
	          strerror(-f->err));
}

static void handle_fetched(struct warmup *r)
{
	silt_lock(&r->wake.lock);
	struct fetch *list = silt_steal(r->done);
	silt_unlock(&r->wake.lock);
	while (list) {
		struct fetch *f = list;
		list = f->next;
		r->in_flight--;
		if (f->check)
			check_ended(r, f);
		else
			fetch_ended(r, f);
		f->next = r->idle;
		r->idle = f;
		if (f->check && r->set.v[f->place].want == PACK_WANTED && !r->ending)
			start_fetch(r, f->place);
	}
}

static void start_due_retries(struct warmup *r)
{
	uint64_t now = silt_now_ns();
	for (size_t i = 0; i < r->n_retries && r->idle;) {
		if (r->retries[i].due_ns > now) {
			i++;
			continue;
		}
		size_t place = r->retries[i].place;
		r->retries[i] = r->retries[--r->n_retries];
		start_fetch(r, place);
	}
}

/* Starts what a pack needs. False: it may not be fetched yet. */
static bool start_next(struct warmup *r, size_t place, bool allowed)
{
	struct pack_entry *p = &r->set.v[place];

	if (p->want == PACK_UNCHECKED)
		start_check(r, place);
	else if (p->want == PACK_WANTED && r->cfg->check)
		p->want = PACK_FAILED;
	else if (p->want == PACK_WANTED && !allowed)
		return false;
	else if (p->want == PACK_WANTED)
		start_fetch(r, place);
	return true;
}

/* Checks and fetches what may be now. Returns whether there is more to come. */
static bool fetch_pump(struct warmup *r)
{
	handle_fetched(r);
	bool allowed = r->p.resolved || r->needed <= r->free_space;
	bool give_up = r->refused >= MAX_REFUSED_PACKS;

	if (give_up)
		r->n_retries = 0;
	else
		start_due_retries(r);
	while (!give_up && r->idle && r->next < r->set.n && start_next(r, r->next, allowed))
		r->next++;
	return r->in_flight || r->n_retries || (!give_up && r->next < r->set.n);
}

static int prepare_fetches(struct warmup *r)
{
	r->width = 2 * cache_fetch_width(r->cfg->cache);
	if (r->width == 0)
		r->width = 2;
	r->fetches = calloc(r->width, sizeof(*r->fetches));
	if (!r->fetches)
		return fail(r, -ENOMEM, "out of memory");
	for (unsigned i = 0; i < r->width; i++) {
		r->fetches[i].run = r;
		r->fetches[i].next = r->idle;
		r->idle = &r->fetches[i];
	}
	return 0;
}

/* Callbacks hold pointers into the run: let them come. */
static void wait_for_fetches(struct warmup *r)
{
	r->ending = true;
	handle_fetched(r);
	while (r->in_flight) {
		silt_lock(&r->wake.lock);
		while (!r->done)
			silt_cond_wait(&r->wake.cond, &r->wake.lock);
		silt_unlock(&r->wake.lock);
		handle_fetched(r);
	}
}

/* --- The loop ------------------------------------------------------------------------------------
 */

static void report(struct warmup *r, bool now)
{
	uint64_t t = silt_now_ns();
	if (!now && t < r->next_progress_ns)
		return;
	r->next_progress_ns = t + PROGRESS_NS;
	r->p.seconds = (double)(t - r->begun_ns) / 1e9;
	if (r->cfg->progress)
		r->cfg->progress(r->cfg->arg, &r->p);
}

/* Sleeps until a reply came since `seen`, or it is time to report. */
static void doze(struct warmup *r, uint64_t seen)
{
	silt_lock(&r->wake.lock);
	while (r->wake.events == seen &&
	       silt_cond_wait_until(&r->wake.cond, &r->wake.lock, r->next_progress_ns))
		;
	silt_unlock(&r->wake.lock);
}

static uint64_t events_seen(struct warmup *r)
{
	silt_lock(&r->wake.lock);
	uint64_t seen = r->wake.events;
	silt_unlock(&r->wake.lock);
	return seen;
}

static int refuse_too_big(struct warmup *r)
{
	return silt_fail(&r->result->err, -ENOSPC,
	                 "does not fit: needs at least %.1f GiB, the cache has %.1f GiB; "
	                 "mount with a larger -o cache-size or warm up less",
	                 (double)r->needed / (1 << 30), (double)r->total / (1 << 30));
}

/* What a turn of the walk came to: what walk_pump() said, unless the warmup has to end. */
static int judge_turn(struct warmup *r, int walking)
{
	if (walking < 0)
		return walking;
	if (r->no_memory)
		return fail(r, -ENOMEM, "out of memory");
	if (cancelled(r))
		return fail(r, -ECANCELED, "cancelled");
	return walking;
}

/* Walks, checks and fetches, until nothing is left of these. */
static int run_loop(struct warmup *r)
{
	bool work = !r->cfg->drop;
	for (;;) {
		uint64_t seen = events_seen(r);
		int walking = r->p.resolved ? 0 : walk_pump(r->walk, &r->result->err);
		if ((walking = judge_turn(r, walking)) < 0)
			return walking;
		if (work && !r->cfg->check && r->needed > r->total)
			return refuse_too_big(r);
		r->p.resolved = !walking;
		bool fetching = work && fetch_pump(r);
		if (!walking && !fetching)
			return 0;
		report(r, false);
		doze(r, seen);
	}
}

/* --- Verifying and naming --------------------------------------------------------------- */

/* What is wrong with a pack, or NULL. */
static const char *lack_of(struct warmup *r, uint64_t pack)
{
	const struct pack_entry *p = pack_set_find(&r->set, pack);
	if (p && p->want == PACK_DAMAGED)
		return "damaged on the SSD";
	bool full = p ? p->want == PACK_CACHED
	              : cache_pack_state(r->cfg->cache, pack) == CACHE_PACK_FULL;
	return full ? NULL : "not cached";
}

/* Lines the packs up that are on the SSD, but not known to be right any more. */
static bool line_up_doubtful(struct warmup *r)
{
	bool any = false;
	for (size_t i = 0; i < r->set.n; i++) {
		struct pack_entry *p = &r->set.v[i];
		if (p->want != PACK_CACHED && p->want != PACK_FETCHED)
			continue;
		if (cache_pack_state(r->cfg->cache, p->pack) != CACHE_PACK_UNCHECKED)
			continue;
		p->want = PACK_UNCHECKED;
		r->p.packs_done--;
		any = true;
	}
	r->next = 0;
	return any;
}

/* After all was done: is it still so? */
static int settle(struct warmup *r)
{
	int rc = cache_check_files(r->cfg->cache, &r->result->err);
	for (unsigned i = 0; rc == 0 && i < MORE_ROUNDS && line_up_doubtful(r); i++)
		rc = run_loop(r);
	return rc;
}

/* Looks every pack up once more; returns how many are not whole on the SSD. */
static size_t verify_packs(struct warmup *r)
{
	size_t missing = 0;
	r->p.packs_done = 0;
	for (size_t i = 0; i < r->set.n; i++) {
		struct pack_entry *p = &r->set.v[i];
		bool full = cache_pack_state(r->cfg->cache, p->pack) == CACHE_PACK_FULL;
		if (full)
			p->want = PACK_CACHED;
		else if (p->want != PACK_DAMAGED)
			p->want = PACK_FAILED;
		missing += !full;
		r->p.packs_done += full;
	}
	return missing;
}

static void skip_dir(void *arg)
{
}

static void skip_file(void *arg, uint64_t size)
{
}

static const char *lack_of_extent(void *arg, const struct silt_extent *e)
{
	return pack_end(e) ? lack_of(arg, e->pack) : EXTENT_DAMAGED;
}

static void note_missing(void *arg, size_t root, const char *path, const char *why)
{
	struct warmup *r = arg;

	r->p.missing_files++;
	if (r->cfg->missing)
		r->cfg->missing(r->cfg->arg, root, path, why);
}

static const struct walk_ops name_ops = {
	.dir = skip_dir,
	.file = skip_file,
	.extent = lack_of_extent,
	.missing = note_missing,
	.paths = true,
};

static int name_missing(struct warmup *r)
{
	walk_free(r->walk);
	r->walk = walk_new(r->cfg->meta, r->cfg->roots, r->cfg->n_roots, &name_ops, r, &r->wake);
	if (!r->walk)
		return fail(r, -ENOMEM, "out of memory");
	r->p.missing_files = 0;
	for (;;) {
		uint64_t seen = events_seen(r);
		int walking = judge_turn(r, walk_pump(r->walk, &r->result->err));
		if (walking < 0)
			return walking;
		if (!walking)
			return r->p.missing_files ? 1 : 0;
		report(r, false);
		doze(r, seen);
	}
}

/* --- Public --------------------------------------------------------------------------------------
 */

static int drop_packs(struct warmup *r)
{
	for (size_t i = 0; i < r->set.n; i++)
		cache_drop_pack(r->cfg->cache, r->set.v[i].pack);
	r->p.packs_done = r->set.n;
	return 0;
}

static int run(struct warmup *r)
{
	uint64_t used = 0;
	int rc;

	cache_space(r->cfg->cache, &r->total, &used);
	r->slot_size = cache_slot_size(r->cfg->cache);
	if (r->total == 0 && !r->cfg->drop)
		return fail(r, -ENODEV,
		            "this mount has no cache directory; mount with "
		            "-o cache-dir=DIR");
	if (!r->cfg->drop && (rc = cache_check_files(r->cfg->cache, &r->result->err)) < 0)
		return rc;
	r->free_space = r->total > used ? r->total - used : 0;
	r->walk = walk_new(r->cfg->meta, r->cfg->roots, r->cfg->n_roots, &resolve_ops, r, &r->wake);
	if (!r->walk)
		return fail(r, -ENOMEM, "out of memory");
	if (!r->cfg->drop && (rc = prepare_fetches(r)) < 0)
		return rc;
	if ((rc = run_loop(r)) < 0)
		return rc;
	if (r->cfg->drop)
		return drop_packs(r);
	if ((rc = settle(r)) < 0)
		return rc;
	if (r->refused && r->p.fetched_packs == 0)
		return fail(r, -ENOSPC,
		            "the cache has no room for these packs; mount with a larger "
		            "-o cache-size or free space on its disk");
	/* Of what was compressed with one the packs alone are of no use. */
	if ((rc = cache_load_dictionaries(r->cfg->cache)) < 0)
		return fail(r, rc, "a dictionary that files may need can't be had; the mount's log says which");
	return verify_packs(r) || r->p.missing_files ? name_missing(r) : 0;
}

int warmup_run(const struct warmup_config *cfg, struct warmup_result *out)
{
	struct warmup r = { .cfg = cfg, .result = out, .begun_ns = silt_now_ns() };
	int rc;

	memset(out, 0, sizeof(*out));
	silt_lock_init(&r.wake.lock);
	silt_cond_init(&r.wake.cond);
	pack_set_init(&r.set);
	r.next_progress_ns = r.begun_ns + PROGRESS_NS;
	rc = run(&r);
	wait_for_fetches(&r);
	walk_free(r.walk);
	report(&r, true);
	out->progress = r.p;
	pack_set_free(&r.set);
	free(r.fetches);
	free(r.retries);
	silt_cond_destroy(&r.wake.cond);
	silt_lock_destroy(&r.wake.lock);
	return rc;
}
