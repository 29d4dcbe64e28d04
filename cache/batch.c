/* Group commit: which pieces share a pack.
 *
 * A PUT costs the same for 4 KB and for 400 KB, so closers that come at about the same time should
 * share one. Three kinds of packs leave here:
 *
 *	large	pieces of 1 MiB and more, or PACK_TARGET bytes of small pieces of one file:
 *		a pack of that file alone, at once, many in parallel
 *	full	small pieces of many files that fill a pack: at once, many in parallel
 *	shared	fewer small pieces: one such pack at a time. Who comes while it is being PUT
 *		makes up the next; this alone groups well when the PUT is slow
 *
 * It is not enough when the PUT is fast, nor against phases: of 16 writers in a loop, 8 wait for a
 * PUT while the other 8 queue, and so on for ever, half as well grouped as they could be. So a
 * shared pack waits a moment for the closers that must be about to come. How many there are is seen
 * in the past: at each start of a shared pack, its closers plus those of the pack before that still
 * wait for their commit are a lower bound for how many take part. The largest of the last
 * BATCH_RECENT such numbers, less an eighth for stragglers, is what the next pack waits for.
 * Writers that went away are forgotten after BATCH_RECENT packs, and one writer alone never waits,
 * because all it ever sees is itself. A bound can stay too low for ever, each pack leaving just before
 * those that it did not expect; so every BATCH_PROBE-th pack expects twice as many, and what it sees
 * raises the bound.
 *
 * The wait is at most the window, counted from the first piece or from the end of the pack before
 * (PUT or commit), whatever was later: before that end its closers could not come. They have to create
 * their next files first, which takes them round trips to Redis: so where commits take long, because Redis
 * is far, the window is longer by twice as much (three windows at most). When no other
 * file is dirty (cache_writers_add), the others would first have to create one, and the wait ends
 * after a quiet time without a newcomer: an eighth of what a PUT takes lately, since to miss them
 * costs them a whole PUT, but at least half the window.
 *
 * One thread is kept free of large and full packs, so that small files don't queue behind them. */
#include "cache/batch.h"

#include "cache/pack.h"

void piece_list_add(struct piece_list *l, struct cache_write *w)
{
	w->next = NULL;
	if (l->last)
		l->last->next = w;
	else
		l->head = w;
	l->last = w;
	l->n++;
	l->bytes += w->len;
}

/* Moves pieces from `l` to `out` (empty), in order: those of `ino` (0: of any), as long as
 * `out` has less than PACK_TARGET bytes and BATCH_MAX_PIECES; `strict`: never past PACK_TARGET. */
static void move_pieces(struct piece_list *l, silt_ino ino, bool strict, struct piece_list *out)
{
	struct piece_list rest = { .head = NULL };
	struct cache_write *w = l->head;
	while (w && out->bytes < PACK_TARGET && out->n < BATCH_MAX_PIECES) {
		struct cache_write *next = w->next;
		bool fits = !strict || !out->n || out->bytes + w->len <= PACK_TARGET;
		if (!fits)
			break;
		piece_list_add(!ino || w->ino == ino ? out : &rest, w);
		w = next;
	}
	/* What was passed over comes before what was not looked at. */
	if (w) {
		if (rest.last)
			rest.last->next = w;
		else
			rest.head = w;
		rest.last = l->last;
	}
	rest.n = l->n - out->n;
	rest.bytes = l->bytes - out->bytes;
	*l = rest;
}

void batcher_init(struct batcher *b, unsigned threads, uint64_t window_ns)
{
	*b = (struct batcher){ .window_ns = window_ns, .big_max = threads > 1 ? threads - 1 : 1 };
}

void batcher_add(struct batcher *b, struct cache_write *w, uint64_t now)
{
	if (w->len >= BATCH_LARGE_PIECE) {
		piece_list_add(&b->large, w);
		return;
	}
	/* Pieces of one file that come together have one closer. */
	const struct cache_write *last = b->small.last;
	if (!last)
		b->first_ns = now;
	if (!last || last->ino != w->ino)
		b->files++;
	b->last_ns = now;
	piece_list_add(&b->small, w);
}

static bool small_is_full(const struct batcher *b)
{
	return b->small.bytes >= PACK_TARGET || b->small.n >= BATCH_MAX_PIECES;
}

bool batcher_has_full(const struct batcher *b)
{
	return b->big_out < b->big_max && (b->large.n || small_is_full(b));
}

bool batcher_has_small(const struct batcher *b)
{
	return b->small.n && !b->shared_out;
}

/* How many closers the next shared pack waits for. */
static unsigned wanted(const struct batcher *b)
{
	unsigned most = 1;
	for (unsigned i = 0; i < BATCH_RECENT; i++)
		most = b->recent[i] > most ? b->recent[i] : most;
	if (most > 1 && b->recent_at % BATCH_PROBE == BATCH_PROBE - 1)
		return most * 2;
	return most - most / 8;
}

bool batcher_enough(const struct batcher *b)
{
	return batcher_has_small(b) && (b->hurry || b->files >= wanted(b) || small_is_full(b));
}

static uint64_t later(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* Until who was answered just now may come with the next file. */
static uint64_t return_time(const struct batcher *b)
{
	uint64_t ns = b->commit_ns * 2;
	return ns < b->window_ns * 2 ? ns : b->window_ns * 2;
}

static uint64_t quiet_time(const struct batcher *b)
{
	uint64_t quiet = later(b->put_ns / 8, b->window_ns / 2);
	return (quiet < b->window_ns ? quiet : b->window_ns) + return_time(b);
}

static uint64_t wait_until(const struct batcher *b)
{
	uint64_t window_end = later(b->first_ns, b->settled_ns) + b->window_ns + return_time(b);
	if (b->writers > (int)(b->files + b->committing))
		return window_end;
	uint64_t quiet_end = later(b->last_ns, b->settled_ns) + quiet_time(b);
	return quiet_end < window_end ? quiet_end : window_end;
}

static unsigned count_files(const struct piece_list *l)
{
	unsigned files = 0;
	silt_ino last = 0;
	for (const struct cache_write *w = l->head; w; w = w->next) {
		files += !files || w->ino != last;
		last = w->ino;
	}
	return files;
}

static uint64_t bytes_of(const struct piece_list *l, silt_ino ino)
{
	uint64_t bytes = 0;
	for (const struct cache_write *w = l->head; w; w = w->next)
		bytes += w->ino == ino ? w->len : 0;
	return bytes;
}

/* Takes small pieces: all of them, or the first that fill a pack. */
static void take_small(struct batcher *b, uint64_t now, struct batch *out)
{
	silt_ino own = 0;
	if (small_is_full(b) && bytes_of(&b->small, b->small.head->ino) >= PACK_TARGET)
		own = b->small.head->ino;
	move_pieces(&b->small, own, false, &out->pieces);
	b->files = count_files(&b->small);
	b->first_ns = now;
	out->files = count_files(&out->pieces);
}

bool batcher_take(struct batcher *b, uint64_t now, struct batch *out, uint64_t *until)
{
	*until = 0;
	*out = (struct batch){ .taken_ns = now };
	if (batcher_has_full(b)) {
		if (b->large.n)
			move_pieces(&b->large, b->large.head->ino, true, &out->pieces);
		else
			take_small(b, now, out);
		b->big_out++;
		return true;
	}
	if (!batcher_has_small(b))
		return false;
	if (!batcher_enough(b)) {
		uint64_t end = wait_until(b);
		if (now < end) {
			*until = end;
			return false;
		}
	}
	take_small(b, now, out);
	out->shared = true;
	b->shared_out = true;
	b->recent[b->recent_at++ % BATCH_RECENT] = out->files + b->committing;
	return true;
}

void batcher_put_ended(struct batcher *b, const struct batch *t, bool committing, uint64_t now)
{
	if (!t->shared) {
		b->big_out--;
		return;
	}
	uint64_t took = now - t->taken_ns;
	b->put_ns = b->put_ns ? (3 * b->put_ns + took) / 4 : took;
	b->shared_out = false;
	b->settled_ns = now;
	if (committing)
		b->committing += t->files;
}

void batcher_committed(struct batcher *b, unsigned files, uint64_t began, uint64_t now)
{
	b->committing -= files;
	if (!files)
		return;
	b->settled_ns = now;
	b->commit_ns = b->commit_ns ? (7 * b->commit_ns + (now - began)) / 8 : now - began;
}
