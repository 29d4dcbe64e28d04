/* Unit tests of meta/buckets.h: what is believed and what is not, under every order of replies and
 * invalidations that a seed makes, and from several threads. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#include "meta/buckets.h"
#include "meta/lock.h"

static void keys(void **state)
{
	char key[BUCKET_KEY_MAX];
	struct bucket_id id = bucket_of_inode(silt_ino_make(5, 64 * 300 + 7)), back;
	size_t len = bucket_key(&id, key);
	assert_string_equal(key, "{5}i12c");
	assert_true(bucket_parse(key, len, &back));
	assert_memory_equal(&back.seq, &id.seq, sizeof(id.seq));
	assert_false(back.names);
	id = bucket_of_place(silt_ino_make(11, 0xabc), 3, (uint64_t)3 << 50); /* two parts, the first cut */
	len = bucket_key(&id, key);
	assert_string_equal(key, "{11}dabc:80000000");
	assert_true(bucket_parse(key, len, &back));
	assert_true(back.names && back.start == 0x80000000u && back.seq == 0xabc && back.shard == 11);
	id = bucket_of_place(1, 3, (uint64_t)1 << 50);
	assert_int_equal(id.start, 0x40000000u);
	assert_true(bucket_next_place(3, 0) == (uint64_t)1 << 50);
	assert_true(bucket_next_place(3, (uint64_t)1 << 50) == (uint64_t)1 << 51);
	assert_true(bucket_next_place(3, (uint64_t)1 << 51) == 0);
	const char *bad[] = { "", "{", "{}i1", "{1}", "{1}i", "{1}ix", "{1}d1", "{1}d1:", "{1}d1:100000000",
			      "{9999}i1", "{1}c", "{1}i1000000000000", "{1}i1 ", "x{1}i1", "{1i1" };
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		if (bucket_parse(bad[i], strlen(bad[i]), &back))
			fail_msg("%s was taken for a key", bad[i]);
}

/* --- one thing after the other --- */

struct heard {
	struct silt_lock lock;
	unsigned buckets, told;
	char last[64];
	struct bucket *kept; /* `keep`: not freed */
	bool keep;
};

static void hear(void *arg, struct bucket *b)
{
	struct heard *h = arg;
	const char *name;
	size_t len;
	silt_lock(&h->lock);
	h->buckets++;
	for (unsigned at = 0; bucket_told(b, &at, &name, &len);) {
		h->told++;
		snprintf(h->last, sizeof(h->last), "%.*s", (int)len, name);
	}
	if (h->keep)
		h->kept = bucket_chain(b, h->kept);
	silt_unlock(&h->lock);
	if (!h->keep)
		bucket_free(b);
}

static struct buckets *table(uint64_t limit, bool whole, struct heard *h)
{
	struct buckets *t = NULL;
	memset(h, 0, sizeof(*h));
	silt_lock_init(&h->lock);
	assert_int_equal(buckets_open(limit, whole, NULL, &t), 0);
	buckets_listen(t, hear, h);
	buckets_up(t);
	return t;
}

static const struct bucket_id DIR_1 = { .seq = 1, .names = true };

static uint32_t put(struct buckets *t, const char *name, const char *data)
{
	return buckets_put(t, &DIR_1, name, strlen(name), data, strlen(data), false);
}

static enum bucket_answer get(struct buckets *t, const char *name, char out[16])
{
	size_t len = 0;
	enum bucket_answer a = buckets_get(t, &DIR_1, name, strlen(name), out, 15, &len, NULL);
	out[len] = '\0';
	return a;
}

#define VALUE(text) { (text), sizeof(text) - 1 }

static void an_item_is_believed_when_it_was_covered(void **state)
{
	struct heard h;
	struct buckets *t = table(1 << 20, false, &h);
	struct bucket_ask a;
	char out[16];
	assert_int_equal(put(t, "a", "1") & 1, 1);
	assert_int_equal(get(t, "a", out), BUCKET_UNKNOWN);
	assert_true(buckets_take_todo(t, -1, UINT64_MAX, &a));
	assert_int_equal(a.n, 1);
	put(t, "b", "2"); /* while the call is on its way: not covered by it */
	struct bucket_value v = VALUE("1");
	buckets_covered(t, &a, &v, 1);
	bucket_ask_free(&a);
	assert_int_equal(get(t, "a", out), BUCKET_PRESENT);
	assert_string_equal(out, "1");
	assert_int_equal(get(t, "b", out), BUCKET_UNKNOWN);
	assert_true(buckets_take_todo(t, -1, UINT64_MAX, &a)); /* so it is asked for on its own */
	assert_true(a.n == 1 && a.names[0] == 'b');
	v = (struct bucket_value)VALUE("2");
	buckets_covered(t, &a, &v, 1);
	bucket_ask_free(&a);
	assert_int_equal(get(t, "b", out), BUCKET_PRESENT);
	put(t, "c", ""); /* watched by now: believed at once */
	assert_int_equal(get(t, "c", out), BUCKET_ABSENT);
	assert_int_equal(get(t, "d", out), BUCKET_UNKNOWN);
	assert_false(buckets_take_todo(t, -1, UINT64_MAX, &a));
	assert_int_equal(h.buckets, 0);
	buckets_close(t);
}

static void an_invalidation_beats_the_answer(void **state)
{
	struct heard h;
	struct buckets *t = table(1 << 20, false, &h);
	struct bucket_ask a;
	char out[16];
	uint32_t stamp = put(t, "a", "1");
	assert_true(buckets_tell(t, &DIR_1, stamp));
	assert_true(buckets_take_todo(t, -1, UINT64_MAX, &a));
	assert_true(buckets_invalidate(t, &DIR_1));
	struct bucket_value v = VALUE("1");
	buckets_covered(t, &a, &v, 1); /* from before the change, or from after it: who knows */
	bucket_ask_free(&a);
	assert_int_equal(get(t, "a", out), BUCKET_UNKNOWN);
	assert_true(buckets_take_todo(t, -1, silt_now_ns(), &a)); /* so it is asked for again, at once */
	v = (struct bucket_value)VALUE("2");
	buckets_covered(t, &a, &v, 1);
	bucket_ask_free(&a);
	assert_int_equal(h.told, 1);
	assert_string_equal(h.last, "a");
	assert_false(buckets_tell(t, &DIR_1, stamp));
	buckets_close(t);
}

/* An invalidation says of a bucket that something in it has changed: what has not stays as it was told. */
static void what_has_not_changed_stays(void **state)
{
	struct heard h;
	struct buckets *t = table(1 << 20, true, &h);
	struct bucket_ask a;
	char out[16];
	uint32_t sa = put(t, "a", "1"), sb = put(t, "b", "1");
	assert_true(buckets_tell(t, &DIR_1, sa) && buckets_tell(t, &DIR_1, sb));
	struct bucket_value v[] = { VALUE("a"), VALUE("1"), VALUE("b"), VALUE("1") };
	for (int i = 0; i < 50; i++) { /* its memory does not grow with each time */
		assert_true(buckets_take_todo(t, -1, UINT64_MAX, &a));
		v[3] = i % 2 ? (struct bucket_value)VALUE("1") : (struct bucket_value)VALUE("two");
		buckets_covered(t, &a, v, 4);
		bucket_ask_free(&a);
		assert_int_equal(get(t, "b", out), BUCKET_PRESENT);
		assert_string_equal(out, i % 2 ? "1" : "two");
		assert_true(buckets_invalidate(t, &DIR_1));
		assert_int_equal(get(t, "a", out), BUCKET_PRESENT); /* for a moment */
	}
	assert_int_equal(h.told, 1);
	assert_string_equal(h.last, "b");
	assert_true(buckets_tell(t, &DIR_1, sa));
	assert_true(buckets_bytes(t) < 2000);
	buckets_doubt(t, &DIR_1, "a", 1); /* changed here: not even that */
	assert_int_equal(get(t, "a", out), BUCKET_UNKNOWN);
	struct timespec late = { .tv_nsec = 120000000 };
	nanosleep(&late, NULL);
	assert_int_equal(get(t, "b", out), BUCKET_UNKNOWN);
	buckets_close(t);
}

static void what_differs_is_told(void **state)
{
	struct heard h;
	struct buckets *t = table(1 << 20, false, &h);
	struct bucket_ask a;
	char out[16];
	assert_true(buckets_tell(t, &DIR_1, put(t, "a", "1")));
	assert_true(buckets_take_todo(t, -1, UINT64_MAX, &a));
	struct bucket_value v = VALUE("2");
	buckets_covered(t, &a, &v, 1);
	bucket_ask_free(&a);
	assert_int_equal(h.told, 1);
	assert_int_equal(get(t, "a", out), BUCKET_PRESENT); /* what the server said last */
	assert_string_equal(out, "2");
	uint32_t old = put(t, "a", "2");
	assert_true(buckets_tell(t, &DIR_1, old));
	put(t, "a", "3"); /* the kernel was told something else */
	assert_int_equal(h.told, 2);
	assert_false(buckets_tell(t, &DIR_1, old));
	buckets_close(t);
	t = table(1 << 20, false, &h); /* no answer at all: nothing stays unchecked */
	assert_true(buckets_tell(t, &DIR_1, put(t, "a", "1")));
	assert_true(buckets_take_todo(t, -1, UINT64_MAX, &a));
	buckets_not_covered(t, &a);
	bucket_ask_free(&a);
	assert_int_equal(h.told, 1);
	buckets_close(t);
}

static void whole_buckets_know_what_is_not_there(void **state)
{
	struct heard h;
	struct buckets *t = table(1 << 20, true, &h);
	struct bucket_ask a;
	char out[16];
	unsigned n = 0;
	put(t, "a", "1");
	put(t, "b", "2");
	assert_true(buckets_take_todo(t, 0, UINT64_MAX, &a));
	assert_null(a.lens);
	struct bucket_value v[] = { VALUE("c"), VALUE("3"), VALUE("a"), VALUE("1"), VALUE("b"), VALUE("2") };
	buckets_covered(t, &a, v, 6);
	bucket_ask_free(&a);
	assert_int_equal(get(t, "c", out), BUCKET_PRESENT);
	assert_int_equal(get(t, "nobody", out), BUCKET_ABSENT);
	size_t len;
	uint32_t stamp;
	assert_int_equal(buckets_get(t, &DIR_1, "nobody", 6, out, 16, &len, &stamp), BUCKET_ABSENT);
	assert_true(buckets_tell(t, &DIR_1, stamp));
	for (unsigned i = 0; i < 100000; i++) { /* names that are not there take no room without end */
		char name[32];
		snprintf(name, sizeof(name), "no-%u", i);
		assert_int_equal(get(t, name, out), BUCKET_ABSENT);
	}
	assert_true(buckets_bytes(t) < 100000);
	buckets_down(t);
	assert_int_equal(h.told, 1);
	assert_string_equal(h.last, "nobody");
	assert_int_equal(put(t, "a", "1"), 0);
	assert_int_equal(n, 0);
	buckets_close(t);
}

/* Files of 200,000 names and inodes in a table of 4 MiB, with the kernel quick and slow. */
static void memory_is_bounded(void **state)
{
	struct heard h;
	const uint64_t limit = 4 << 20;
	struct buckets *t = table(limit, false, &h);
	uint64_t most = 0, all = 0;
	for (int slow = 0; slow < 2; slow++) {
		h.keep = slow;
		for (uint64_t i = 0; i < 200000; i++) {
			char name[32], record[40];
			int len = snprintf(name, sizeof(name), "ligand-%010u-pose.sdf", (unsigned)i);
			memset(record, (int)i, sizeof(record));
			struct bucket_id dir = bucket_of_place(77, 4096, (i * 0x9e3779b97f4a7c15u) >> 12);
			struct bucket_id ino = bucket_of_inode(1000 + i);
			uint32_t s = buckets_put(t, &dir, name, (size_t)len, record, 5, false);
			if (s)
				assert_true(buckets_tell(t, &dir, s));
			char index[4];
			size_t n = bucket_inode_name(1000 + i, index);
			s = buckets_put(t, &ino, index, n, record, sizeof(record), false);
			all += s && buckets_tell(t, &ino, s);
			most = buckets_bytes(t) > most ? buckets_bytes(t) : most;
		}
	}
	assert_true(most < limit + limit / 4 + 65536);
	assert_true(all < 400000); /* the slow kernel made it refuse */
	assert_int_equal(put(t, "x", "1"), 0);
	for (struct bucket *b = h.kept, *next; b; b = next) {
		next = bucket_chained(b);
		bucket_free(b);
	}
	h.kept = NULL;
	h.keep = false;
	assert_int_equal(put(t, "x", "1") & 1, 1);
	buckets_down(t);
	assert_int_equal(buckets_bytes(t), 0);
	assert_int_equal(buckets_count(t), 0);
	buckets_close(t);
	/* What one file costs when there is room. */
	t = table(1 << 30, false, &h);
	for (uint64_t i = 0; i < 200000; i++) {
		char name[32], record[36] = { 0 }, index[4];
		int len = snprintf(name, sizeof(name), "ligand-%010u-pose.sdf", (unsigned)i);
		struct bucket_id dir = bucket_of_place(77, 4096, (i * 0x9e3779b97f4a7c15u) >> 12);
		struct bucket_id ino = bucket_of_inode(1000 + i);
		buckets_put(t, &dir, name, (size_t)len, record, 5, false);
		buckets_put(t, &ino, index, bucket_inode_name(1000 + i, index), record, sizeof(record),
			    false);
	}
	print_message("200,000 files: %.1f bytes each\n", (double)buckets_bytes(t) / 200000);
	assert_true(buckets_bytes(t) < 200000 * 200);
	buckets_close(t);
}

/* --- every order ---
 *
 * A server with values that change and keys that are watched once; requests, replies and invalidations
 * in queues of their own, moved on in random order; a kernel that keeps what it was told until it is told
 * to forget. When all has come to rest, the kernel must hold nothing but what the server has; and an
 * answer from the table must never be older than the oldest invalidation on its way. */

#define NB 3
#define NI 4
#define QUEUE 4096

struct message {
	int bucket, item; /* item -1: a cover call */
	int value[NI];
	unsigned at; /* a cover call: when it was asked for */
	bool to_kernel, watch;
	struct bucket_ask ask;
};

struct tell {
	int bucket, item, value;
	uint32_t stamp;
	bool to_kernel; /* it is given to the kernel, for long or not */
};

struct world {
	struct buckets *t;
	int server[NB][NI]; /* 0: not there */
	bool watched[NB];
	int kernel[NB][NI]; /* -1: not told */
	int seen[NB][NI];   /* by who watches; -1: nobody does */
	struct message requests[QUEUE], replies[QUEUE];
	int pushes[QUEUE];
	struct tell tells[QUEUE];
	unsigned nrequests, nreplies, npushes, ntells;
	unsigned believed, forgotten, step, doubted[NB]; /* doubted: step of the last invalidation */
	uint64_t rng;
};

static unsigned draw(struct world *w, unsigned n)
{
	w->rng = w->rng * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(w->rng >> 33) % n;
}

static struct bucket_id bucket_id(int b)
{
	return (struct bucket_id){ .seq = (uint64_t)b, .names = true };
}

static void world_hear(void *arg, struct bucket *b)
{
	struct world *w = arg;
	const char *name;
	size_t len;
	bool told;
	for (unsigned at = 0; bucket_item(b, &at, &name, &len, &told);)
		w->seen[bucket_id_of(b)->seq][name[0] - 'a'] = -1;
	for (unsigned at = 0; bucket_told(b, &at, &name, &len); w->forgotten++)
		w->kernel[bucket_id_of(b)->seq][name[0] - 'a'] = -1;
	bucket_free(b);
}

static void execute(struct world *w)
{
	struct message *m = &w->requests[0], *r = &w->replies[w->nreplies++];
	*r = *m;
	memcpy(r->value, w->server[m->bucket], sizeof(r->value));
	if (m->item < 0)
		w->watched[m->bucket] = true;
	memmove(w->requests, w->requests + 1, --w->nrequests * sizeof(*m));
}

static size_t text_of(int value, char out[8])
{
	return value ? (size_t)snprintf(out, 8, "%d", value) : 0;
}

static void handle(struct world *w)
{
	struct message m = w->replies[0];
	memmove(w->replies, w->replies + 1, --w->nreplies * sizeof(m));
	struct bucket_id id = bucket_id(m.bucket);
	if (m.item >= 0) {
		char name = (char)('a' + m.item), data[8];
		uint32_t stamp = buckets_put(w->t, &id, &name, 1, data, text_of(m.value[m.item], data),
					     m.to_kernel);
		if (m.watch) {
			buckets_watch(w->t, &id, stamp);
			w->seen[m.bucket][m.item] = stamp ? m.value[m.item] : -1;
		} else if (stamp)
			w->tells[w->ntells++] = (struct tell){ m.bucket, m.item, m.value[m.item], stamp,
							       m.to_kernel };
		else if (m.to_kernel)
			w->kernel[m.bucket][m.item] = -1;
		return;
	}
	struct bucket_value v[2 * NI];
	static const char names[] = "abcd";
	char text[NI][8];
	size_t n = 0;
	for (int i = 0; i < NI; i++)
		text_of(m.value[i], text[i]);
	for (unsigned i = 0; m.ask.lens && i < m.ask.n; i++) {
		int k = m.ask.names[i] - 'a';
		v[n++] = (struct bucket_value){ text[k], text_of(m.value[k], text[k]) };
	}
	for (int i = 0; !m.ask.lens && i < NI; i++) {
		if (!m.value[i])
			continue;
		v[n++] = (struct bucket_value){ &names[i], 1 };
		v[n++] = (struct bucket_value){ text[i], text_of(m.value[i], text[i]) };
	}
	buckets_covered(w->t, &m.ask, v, n);
	bucket_ask_free(&m.ask);
	if (m.at >= w->doubted[m.bucket])
		w->doubted[m.bucket] = 0;
}

static void tell(struct world *w)
{
	unsigned i = draw(w, w->ntells);
	struct tell m = w->tells[i];
	w->tells[i] = w->tells[--w->ntells];
	struct bucket_id id = bucket_id(m.bucket);
	if (buckets_tell(w->t, &id, m.stamp))
		w->kernel[m.bucket][m.item] = m.value;
	else if (m.to_kernel)
		w->kernel[m.bucket][m.item] = -1;
}

static void hear_push(struct world *w)
{
	struct bucket_id id = bucket_id(w->pushes[0]);
	w->doubted[w->pushes[0]] = w->step + 1;
	memmove(w->pushes, w->pushes + 1, --w->npushes * sizeof(w->pushes[0]));
	buckets_invalidate(w->t, &id);
}

static bool cover(struct world *w)
{
	struct bucket_ask a;
	if (!buckets_take_todo(w->t, -1, UINT64_MAX, &a))
		return false;
	w->requests[w->nrequests++] = (struct message){ .bucket = (int)a.id.seq, .item = -1, .at = w->step + 1, .ask = a };
	return true;
}

static void change(struct world *w)
{
	int b = (int)draw(w, NB), i = (int)draw(w, NI);
	/* Few values: they come back. The first item is always there. */
	w->server[b][i] = i ? (int)draw(w, 4) : 1 + (int)draw(w, 3);
	if (w->watched[b])
		w->pushes[w->npushes++] = b;
	w->watched[b] = false;
}

static void ask_table(struct world *w)
{
	int b = (int)draw(w, NB), i = (int)draw(w, NI);
	struct bucket_id id = bucket_id(b);
	char name = (char)('a' + i), data[8] = { 0 };
	size_t len = 0;
	uint32_t stamp;
	enum bucket_answer a = buckets_get(w->t, &id, &name, 1, data, 7, &len, &stamp);
	if (a == BUCKET_UNKNOWN)
		return;
	bool due = w->doubted[b] != 0; /* then an old answer is allowed for a moment */
	for (unsigned k = 0; k < w->npushes; k++)
		due = due || w->pushes[k] == b;
	int value = a == BUCKET_ABSENT ? 0 : atoi(data);
	if (i == 0 && value == 0)
		fail_msg("bucket %d: what is always there is not there", b);
	if (value != w->server[b][i] && !due)
		fail_msg("bucket %d item %d: answered %d, the server has %d", b, i, value, w->server[b][i]);
	w->believed++;
	if (stamp)
		w->tells[w->ntells++] = (struct tell){ b, i, value, stamp };
}

/* The connection is lost and made again: requests are sent again, the server forgets whom to tell. */
static void reconnect(struct world *w)
{
	buckets_down(w->t);
	for (unsigned i = 0; i < w->nreplies; i++) { /* replies on their way are lost: asked again */
		memmove(w->requests + 1, w->requests, w->nrequests++ * sizeof(w->requests[0]));
		w->requests[0] = w->replies[w->nreplies - 1 - i];
	}
	w->nreplies = w->npushes = 0;
	memset(w->doubted, 0, sizeof(w->doubted));
	memset(w->watched, 0, sizeof(w->watched));
	buckets_up(w->t);
}

static void one_world(uint64_t seed, bool whole, unsigned *believed, unsigned *forgotten)
{
	struct world *w = calloc(1, sizeof(*w));
	w->rng = seed * 0x9e3779b97f4a7c15u + 1;
	memset(w->kernel, -1, sizeof(w->kernel));
	memset(w->seen, -1, sizeof(w->seen));
	for (int b = 0; b < NB; b++)
		w->server[b][0] = 1;
	assert_int_equal(buckets_open(1 << 20, whole, NULL, &w->t), 0);
	buckets_listen(w->t, world_hear, w);
	buckets_up(w->t);
	for (w->step = 0; w->step < 600; w->step++) {
		unsigned what = draw(w, 100);
		if (what < 20) {
			unsigned kind = draw(w, 3);
			w->requests[w->nrequests++] =
				(struct message){ .bucket = (int)draw(w, NB), .item = (int)draw(w, NI),
						  .to_kernel = kind == 1, .watch = kind == 2 };
		}
		else if (what < 38 && w->nrequests)
			execute(w);
		else if (what < 56 && w->nreplies)
			handle(w);
		else if (what < 66 && w->npushes)
			hear_push(w);
		else if (what < 78 && w->ntells)
			tell(w);
		else if (what < 86)
			cover(w);
		else if (what < 92)
			change(w);
		else if (what < 99)
			ask_table(w);
		else
			reconnect(w);
	}
	do {
		while (w->nrequests)
			execute(w);
		while (w->nreplies)
			handle(w);
		while (w->ntells)
			tell(w);
		while (w->npushes)
			hear_push(w);
	} while (cover(w));
	for (int b = 0; b < NB; b++)
		for (int i = 0; i < NI; i++)
			if (w->kernel[b][i] >= 0 && w->kernel[b][i] != w->server[b][i])
				fail_msg("seed %llu: the kernel holds %d of %d/%d, the server has %d",
					 (unsigned long long)seed, w->kernel[b][i], b, i, w->server[b][i]);
			else if (w->seen[b][i] >= 0 && w->seen[b][i] != w->server[b][i])
				fail_msg("seed %llu: who watches has seen %d of %d/%d, the server has %d",
					 (unsigned long long)seed, w->seen[b][i], b, i, w->server[b][i]);
	*believed += w->believed;
	*forgotten += w->forgotten;
	buckets_close(w->t);
	free(w);
}

static void every_order(void **state)
{
	unsigned believed = 0, forgotten = 0;
	for (uint64_t seed = 0; seed < 4000; seed++)
		one_world(seed, seed % 2, &believed, &forgotten);
	print_message("%u answers, %u things told were to be forgotten\n", believed, forgotten);
	assert_true(believed > 3000 && forgotten > 10000); /* it was worth looking */
}

/* --- threads --- */

struct crowd {
	struct buckets *t;
	atomic_bool stop;
	atomic_uint seed;
};

static void *mix(void *arg)
{
	struct crowd *c = arg;
	unsigned x = atomic_fetch_add(&c->seed, 1) * 7919 + 1;
	for (unsigned i = 0; i < 20000; i++) {
		x = x * 1664525 + 1013904223;
		struct bucket_id id = { .seq = x >> 16 & 63, .names = true };
		char name[4] = { (char)('a' + (x >> 24) % 8) }, data[8] = "v", out[8];
		size_t len;
		uint32_t stamp;
		struct bucket_ask a;
		switch ((x >> 8) % 7) {
		case 0:
		case 1: stamp = buckets_put(c->t, &id, name, 1, data, 1 + x % 2, x & 8);
			buckets_tell(c->t, &id, stamp);
			break;
		case 2: buckets_invalidate(c->t, &id); break;
		case 3: buckets_get(c->t, &id, name, 1, out, sizeof(out), &len, &stamp); break;
		case 4: buckets_want(c->t, &id, x & 4 ? name : NULL, 1); break;
		case 5:
			if (buckets_take_todo(c->t, -1, UINT64_MAX, &a)) {
				struct bucket_value v[2] = { { name, 1 }, VALUE("v") };
				struct bucket_value f[BUCKET_FIELDS] = { VALUE("v") };
				buckets_covered(c->t, &a, a.lens ? f : v, a.lens ? a.n : 2);
				bucket_ask_free(&a);
			}
			break;
		default:
			if (i % 50 == 1)
				buckets_doubt(c->t, &id, name, 1);
			if (i % 1000 == 0) {
				buckets_down(c->t);
				buckets_up(c->t);
			}
		}
	}
	return NULL;
}

static void from_many_threads(void **state)
{
	struct heard h;
	struct crowd c = { .t = table(64 << 10, true, &h) };
	pthread_t threads[4];
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, mix, &c), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	assert_true(h.told > 0);
	buckets_down(c.t);
	assert_int_equal(buckets_bytes(c.t), 0);
	buckets_close(c.t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(keys),
		cmocka_unit_test(an_item_is_believed_when_it_was_covered),
		cmocka_unit_test(an_invalidation_beats_the_answer),
		cmocka_unit_test(what_has_not_changed_stays),
		cmocka_unit_test(what_differs_is_told),
		cmocka_unit_test(whole_buckets_know_what_is_not_there),
		cmocka_unit_test(memory_is_bounded),
		cmocka_unit_test(every_order),
		cmocka_unit_test(from_many_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
