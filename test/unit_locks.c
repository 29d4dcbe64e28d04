/* Locks of files in Redis: ranges against a model, who is woken and in which order, deadlocks
 * within and across shards, sessions that end, connections that break. */
#include "test/meta_fixture.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>

#include "meta/lock.h"
#include "meta/locks.h"

enum { NONE = META_LOCK_NONE, RD = META_LOCK_READ, WR = META_LOCK_WRITE };
enum { TRY = 0, WAIT = 1, DETECT = 2, FLOCK = 4 };

/* One request and its answer. */
struct ask {
	struct silt_lock lock;
	struct silt_cond cond;
	bool ready;
	struct meta_lock_reply reply;
	uint64_t id;
	unsigned order; /* of the answer, among all */
};

static atomic_uint answers;

static void answered(void *arg, const struct meta_lock_reply *r)
{
	struct ask *a = arg;
	silt_lock(&a->lock);
	assert(!a->ready);
	a->reply = *r;
	a->order = atomic_fetch_add(&answers, 1);
	a->ready = true;
	silt_cond_broadcast(&a->cond);
	silt_unlock(&a->lock);
}

static void ask_init(struct ask *a)
{
	memset(a, 0, sizeof(*a));
	silt_lock_init(&a->lock);
	silt_cond_init(&a->cond);
}

static struct meta_lock lock_of(silt_ino ino, uint64_t owner, int type, uint64_t start,
                                uint64_t end, int how)
{
	return (struct meta_lock){ .ino = ino,
		                   .flock = how & FLOCK,
		                   .owner = owner,
		                   .pid = (uint32_t)owner + 100,
		                   .type = (enum meta_lock_type)type,
		                   .start = start,
		                   .end = end };
}

static void begin(struct ask *a, struct meta *m, silt_ino ino, uint64_t owner, int type,
                  uint64_t start, uint64_t end, int how)
{
	struct meta_lock l = lock_of(ino, owner, type, start, end, how);
	ask_init(a);
	a->id = how & WAIT ? meta_lock_id(m) : 0;
	meta_lock_set(m, &l, a->id, how & DETECT, answered, a);
}

static bool wait_ms(struct ask *a, unsigned ms)
{
	uint64_t until = silt_now_ns() + (uint64_t)ms * 1000000u;
	silt_lock(&a->lock);
	while (!a->ready && silt_cond_wait_until(&a->cond, &a->lock, until))
		;
	bool ready = a->ready;
	silt_unlock(&a->lock);
	return ready;
}

static int finish(struct ask *a)
{
	if (!wait_ms(a, 20000))
		fail_msg("a lock request was not answered");
	return a->reply.err;
}

static int set(struct meta *m, silt_ino ino, uint64_t owner, int type, uint64_t start, uint64_t end,
               int how)
{
	struct ask a;
	begin(&a, m, ino, owner, type, start, end, how);
	return finish(&a);
}

#define ALL 0, META_LOCK_LAST

static struct meta_lock_reply get(struct meta *m, silt_ino ino, uint64_t owner, int type,
                                  uint64_t start, uint64_t end, int how)
{
	struct meta_lock l = lock_of(ino, owner, type, start, end, how);
	struct ask a;
	ask_init(&a);
	meta_lock_get(m, &l, answered, &a);
	assert_int_equal(finish(&a), 0);
	return a.reply;
}

/* --- ranges against a model --- */

/* Cells between these offsets, where arithmetic could go wrong. */
static const uint64_t edges[] = { 0,
	                          1,
	                          2,
	                          100,
	                          101,
	                          0xffffffff,
	                          0x100000000,
	                          0x100000001,
	                          0x1ffffffff,
	                          0x200000000,
	                          ((uint64_t)1 << 53) - 1,
	                          (uint64_t)1 << 53,
	                          ((uint64_t)1 << 53) + 1,
	                          ((uint64_t)1 << 53) + 2,
	                          INT64_MAX - 0xffffffffLL,
	                          INT64_MAX - 1,
	                          INT64_MAX,
	                          (uint64_t)INT64_MAX + 1 };
#define CELLS    ((int)(sizeof(edges) / sizeof(*edges)) - 1)
#define SESSIONS 3
#define OWNERS   9 /* owner o is of session o % SESSIONS */

struct model {
	uint8_t held[OWNERS][32];
};

static bool model_conflict(const struct model *x, int o, int type, int a, int b)
{
	for (int p = 0; p < OWNERS; p++)
		for (int c = a; p != o && c <= b; c++)
			if (x->held[p][c] && (type == WR || x->held[p][c] == WR))
				return true;
	return false;
}

/* Is `r` one of the model's locks that conflict, and none of them begins before it? */
static void model_check_get(const struct model *x, int o, int type, int a, int b,
                            const struct meta_lock_reply *r, struct meta **m)
{
	int first = CELLS, found = -1;
	for (int p = 0; p < OWNERS; p++)
		for (int c = a; p != o && c <= b; c++) {
			if (!x->held[p][c] || (type != WR && x->held[p][c] != WR))
				continue;
			int s = c, e = c;
			while (s > 0 && x->held[p][s - 1] == x->held[p][c])
				s--;
			while (e < CELLS - 1 && x->held[p][e + 1] == x->held[p][c])
				e++;
			first = s < first ? s : first;
			if (edges[s] == r->found.start && edges[e + 1] - 1 == r->found.end &&
			    x->held[p][c] == r->found.type && r->found.owner == (uint64_t)p + 1)
				found = p;
		}
	if (first == CELLS) {
		assert_int_equal(r->found.type, NONE);
		return;
	}
	assert_true(found >= 0);
	assert_int_equal(r->found.start, edges[first]);
	assert_int_equal(r->here, found % SESSIONS == o % SESSIONS);
	assert_int_equal(r->found.pid, found + 101);
	(void)m;
}

static void test_ranges_model(void **state)
{
	struct server *s = *state;
	struct meta *m[SESSIONS];
	struct model x = { 0 };
	unsigned seed = getenv("SEED") ? (unsigned)atoi(getenv("SEED")) : (unsigned)time(NULL);
	print_message("SEED=%u\n", seed);
	for (int i = 0; i < SESSIONS; i++)
		m[i] = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(m[0], 1, "ranges", S_IFREG | 0644);
	for (int i = 0; i < 12000; i++) {
		int o = (int)(rand_r(&seed) % OWNERS), type = (int)(rand_r(&seed) % 3);
		int a = (int)(rand_r(&seed) % (unsigned)CELLS),
		    b = (int)(rand_r(&seed) % (unsigned)CELLS);
		if (i % 400 == 399) { /* begin anew: else nearly everything conflicts */
			for (o = 0; o < OWNERS; o++)
				assert_int_equal(
				        set(m[o % SESSIONS], ino, (uint64_t)o + 1, NONE, ALL, TRY),
				        0);
			memset(&x, 0, sizeof(x));
			assert_no_keys(m[0], "*}k*");
			continue;
		}
		if (a > b) {
			int t = a;
			a = b;
			b = t;
		}
		if (b - a > 6)
			b = a + 6;
		struct meta *who = m[o % SESSIONS];
		uint64_t start = edges[a], end = edges[b + 1] - 1;
		if (rand_r(&seed) % 4 == 0) {
			type = type ? type : WR;
			struct meta_lock_reply r =
			        get(who, ino, (uint64_t)o + 1, type, start, end, TRY);
			model_check_get(&x, o, type, a, b, &r, m);
			continue;
		}
		bool conflict = type && model_conflict(&x, o, type, a, b);
		int rc = set(who, ino, (uint64_t)o + 1, type, start, end, TRY);
		assert_int_equal(rc, conflict ? -EAGAIN : 0);
		if (!rc)
			memset(&x.held[o][a], type, (size_t)(b - a + 1));
	}
	for (int i = 0; i < SESSIONS; i++)
		meta_close(m[i]);
}

/* The two kinds don't meet; flock replaces, and loses the old lock when it can't have the new one.
 */
static void test_flock(void **state)
{
	struct server *s = *state;
	struct meta *a = server_open(s, NULL, 0, 0), *b = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(a, 1, "flock", S_IFREG | 0644);
	assert_int_equal(set(a, ino, 1, WR, ALL, TRY), 0);
	assert_int_equal(set(b, ino, 1, RD, 5, 5, FLOCK), 0);
	assert_int_equal(set(a, ino, 2, RD, 0, 0, FLOCK), 0);
	assert_int_equal(get(a, ino, 3, WR, 9, 9, FLOCK).found.type, RD);
	assert_int_equal(set(a, ino, 2, WR, 0, 0, FLOCK), -EAGAIN);
	assert_int_equal(set(b, ino, 1, WR, 5, 5, FLOCK), 0); /* owner 2's is gone */
	struct meta_lock_reply r = get(a, ino, 3, RD, 9, 9, FLOCK);
	assert_int_equal(r.found.type, WR);
	assert_false(r.here);
	assert_int_equal(set(b, ino, 1, NONE, 5, 5, FLOCK), 0);
	assert_int_equal(set(b, ino, 1, NONE, 5, 5, FLOCK), 0);
	meta_close(b);
	meta_close(a);
}

/* --- waiting --- */

static void test_order(void **state)
{
	struct server *s = *state;
	struct meta *a = server_open(s, NULL, 0, 0), *b = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(a, 1, "order", S_IFREG | 0644);
	struct ask w[6];
	assert_int_equal(set(a, ino, 100, WR, ALL, TRY), 0);
	for (unsigned i = 0; i < 6; i++) { /* one after the other in the queue */
		begin(&w[i], i % 2 ? a : b, ino, i + 1, WR, 10, 20, WAIT);
		assert_false(wait_ms(&w[i], 30));
	}
	assert_int_equal(set(a, ino, 100, NONE, ALL, TRY), 0);
	for (unsigned i = 0; i < 6; i++) {
		assert_int_equal(finish(&w[i]), 0);
		for (unsigned k = i + 1; k < 6; k++)
			assert_false(w[k].ready);
		assert_true(w[i].reply.has_inode);
		assert_int_equal(set(i % 2 ? a : b, ino, i + 1, NONE, ALL, TRY), 0);
	}
	assert_no_keys(a, "*}k*");
	assert_no_keys(a, "*}w*");
	meta_close(b);
	meta_close(a);
}

/* A downgrade lets readers in, a part of an unlock those of that part, and nobody else. */
static void test_parts(void **state)
{
	struct server *s = *state;
	struct meta *a = server_open(s, NULL, 0, 0), *b = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(a, 1, "parts", S_IFREG | 0644);
	struct ask r, w1, w2;
	assert_int_equal(set(a, ino, 1, WR, 0, 99, TRY), 0);
	begin(&w1, b, ino, 2, WR, 0, 9, WAIT);
	begin(&r, b, ino, 3, RD, 50, 59, WAIT);
	begin(&w2, a, ino, 4, WR, 90, 200, WAIT);
	assert_false(wait_ms(&w2, 100));
	assert_int_equal(set(a, ino, 1, RD, 0, 99, TRY), 0);
	assert_int_equal(finish(&r), 0);
	assert_false(wait_ms(&w1, 50));
	assert_int_equal(set(a, ino, 1, NONE, 0, 20, TRY), 0);
	assert_int_equal(finish(&w1), 0);
	assert_false(wait_ms(&w2, 50));
	assert_int_equal(set(a, ino, 1, NONE, 99, 99, TRY), 0);
	assert_false(wait_ms(&w2, 50));
	assert_int_equal(set(a, ino, 1, NONE, 90, 98, TRY), 0);
	assert_int_equal(finish(&w2), 0);
	meta_close(b);
	meta_close(a);
}

/* More waiters than one call wakes: all are woken, by further calls. */
static void test_many(void **state)
{
	enum { N = 700 };
	struct server *s = *state;
	struct meta *a = server_open(s, NULL, 0, 0), *b = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(a, 1, "many", S_IFREG | 0644);
	struct ask *w = calloc(N, sizeof(*w));
	assert_int_equal(set(a, ino, N + 1, WR, ALL, TRY), 0);
	for (unsigned i = 0; i < N; i++)
		begin(&w[i], i % 3 ? a : b, ino, i + 1, RD, ALL, WAIT);
	assert_int_equal(get(b, ino, 5, RD, ALL, TRY).found.type, WR);
	meta_close(a); /* its session ends: its own waiters end too, the other's get the lock */
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(finish(&w[i]), i % 3 ? -ESHUTDOWN : 0);
	a = server_open(s, NULL, 0, 0);
	for (unsigned i = 0; i < N; i += 3)
		assert_int_equal(set(b, ino, i + 1, NONE, ALL, TRY), 0);
	assert_int_equal(set(a, ino, N + 1, WR, ALL, TRY), 0);
	for (unsigned i = 0; i < N; i++)
		begin(&w[i], i % 3 ? a : b, ino, i + 1, RD, ALL, WAIT);
	assert_false(wait_ms(&w[N - 1], 300));
	assert_int_equal(set(a, ino, N + 1, NONE, ALL, TRY), 0);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(finish(&w[i]), 0);
	free(w);
	meta_close(b);
	meta_close(a);
}

static void test_cancel(void **state)
{
	struct server *s = *state;
	struct meta *a = server_open(s, NULL, 0, 0), *b = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(a, 1, "cancel", S_IFREG | 0644);
	struct ask w, v;
	assert_int_equal(set(a, ino, 1, WR, ALL, TRY), 0);
	begin(&w, b, ino, 2, WR, ALL, WAIT);
	begin(&v, b, ino, 3, WR, ALL, WAIT);
	assert_false(wait_ms(&w, 50));
	meta_lock_cancel(b, w.id);
	assert_int_equal(finish(&w), -EINTR);
	meta_lock_cancel(b, w.id); /* late: nothing */
	assert_int_equal(set(a, ino, 1, NONE, ALL, TRY), 0);
	assert_int_equal(finish(&v), 0);
	/* Races of cancel and grant: either way the answer is true. */
	assert_int_equal(set(b, ino, 3, NONE, ALL, TRY), 0);
	unsigned granted = 0;
	for (unsigned i = 0; i < 300; i++) {
		struct ask u;
		assert_int_equal(set(a, ino, 1, WR, ALL, TRY), 0);
		begin(&w, b, ino, 2, WR, ALL, WAIT);
		begin(&u, a, ino, 1, NONE, ALL, TRY);
		if (i % 3)
			usleep(i % 30 * 10);
		meta_lock_cancel(b, w.id);
		int rc = finish(&w);
		assert_true(rc == 0 || rc == -EINTR);
		assert_int_equal(finish(&u), 0);
		granted += rc == 0;
		assert_int_equal(get(a, ino, 1, WR, ALL, TRY).found.type, rc ? NONE : WR);
		if (!rc)
			assert_int_equal(set(b, ino, 2, NONE, ALL, TRY), 0);
	}
	assert_true(granted > 0);
	begin(&w, b, ino, 2, WR, ALL, WAIT);
	assert_int_equal(finish(&w), 0);
	begin(&v, a, ino, 5, WR, ALL, WAIT);
	assert_false(wait_ms(&v, 30));
	meta_locks_stop(a);
	assert_int_equal(finish(&v), -EINTR);
	assert_int_equal(set(a, ino, 5, WR, ALL, WAIT), -EINTR);
	meta_close(b);
	meta_close(a);
}

/* --- deadlocks --- */

static void deadlocks(struct server *s, unsigned shards)
{
	struct meta *m[3];
	silt_ino f[4];
	struct ask w[4];
	for (int i = 0; i < 3; i++)
		m[i] = server_open(s, NULL, 0, 0);
	for (unsigned i = 0; i < 4; i++) { /* directories go round the shards */
		char name[32];
		snprintf(name, sizeof(name), "dead%u", i);
		silt_ino dir = must_make(m[0], 1, name, S_IFDIR | 0755);
		f[i] = must_make(m[0], dir, "f", S_IFREG | 0644);
	}
	if (shards > 1)
		assert_int_not_equal(silt_ino_shard(f[0]), silt_ino_shard(f[1]));
	/* Two, over two files; the later one hears of it, the other one gets its lock. */
	assert_int_equal(set(m[0], f[0], 1, WR, ALL, TRY), 0);
	assert_int_equal(set(m[1], f[1], 1, WR, ALL, TRY), 0);
	begin(&w[0], m[0], f[1], 1, WR, 5, 5, WAIT | DETECT);
	assert_false(wait_ms(&w[0], 100));
	assert_int_equal(set(m[1], f[0], 1, RD, 7, 9, WAIT | DETECT), -EDEADLK);
	assert_int_equal(set(m[1], f[1], 1, NONE, ALL, TRY), 0);
	assert_int_equal(finish(&w[0]), 0);
	assert_int_equal(set(m[0], f[0], 1, NONE, ALL, TRY), 0);
	assert_int_equal(set(m[0], f[1], 1, NONE, ALL, TRY), 0);
	/* One file: two readers that both want to write. */
	assert_int_equal(set(m[0], f[2], 1, RD, ALL, TRY), 0);
	assert_int_equal(set(m[1], f[2], 2, RD, ALL, TRY), 0);
	begin(&w[0], m[0], f[2], 1, WR, ALL, WAIT | DETECT);
	assert_false(wait_ms(&w[0], 100));
	assert_int_equal(set(m[1], f[2], 2, WR, ALL, WAIT | DETECT), -EDEADLK);
	assert_int_equal(set(m[1], f[2], 2, NONE, ALL, TRY), 0);
	assert_int_equal(finish(&w[0]), 0);
	assert_int_equal(set(m[0], f[2], 1, NONE, ALL, TRY), 0);
	/* A circle of three and one that only waits for it. */
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(set(m[i], f[i], 7, WR, ALL, TRY), 0);
	begin(&w[3], m[2], f[0], 8, WR, ALL, WAIT | DETECT);
	begin(&w[0], m[0], f[1], 7, WR, ALL, WAIT | DETECT);
	begin(&w[1], m[1], f[2], 7, WR, ALL, WAIT | DETECT);
	assert_false(wait_ms(&w[1], 100));
	assert_int_equal(set(m[2], f[0], 7, WR, ALL, WAIT | DETECT), -EDEADLK);
	assert_false(wait_ms(&w[3], 50));
	assert_int_equal(set(m[2], f[2], 7, NONE, ALL, TRY), 0);
	assert_int_equal(finish(&w[1]), 0);
	assert_int_equal(set(m[1], f[2], 7, NONE, ALL, TRY), 0);
	assert_int_equal(set(m[1], f[1], 7, NONE, ALL, TRY), 0);
	assert_int_equal(finish(&w[0]), 0);
	assert_int_equal(set(m[0], f[1], 7, NONE, ALL, TRY), 0);
	assert_int_equal(set(m[0], f[0], 7, NONE, ALL, TRY), 0);
	assert_int_equal(finish(&w[3]), 0);
	assert_int_equal(set(m[2], f[0], 8, NONE, ALL, TRY), 0);
	/* A chain without a circle is none, nor is a circle of those that don't mind. */
	assert_int_equal(set(m[0], f[0], 1, WR, ALL, TRY), 0);
	assert_int_equal(set(m[1], f[1], 1, WR, ALL, TRY), 0);
	begin(&w[0], m[0], f[1], 1, WR, ALL, WAIT);
	begin(&w[1], m[1], f[0], 1, WR, ALL, WAIT | DETECT);
	assert_false(wait_ms(&w[1], 200));
	assert_false(wait_ms(&w[0], 1));
	meta_lock_cancel(m[0], w[0].id);
	assert_int_equal(finish(&w[0]), -EINTR);
	assert_int_equal(set(m[0], f[0], 1, NONE, ALL, TRY), 0);
	assert_int_equal(finish(&w[1]), 0);
	assert_int_equal(set(m[1], f[0], 1, NONE, ALL, TRY), 0);
	assert_int_equal(set(m[1], f[1], 1, NONE, ALL, TRY), 0);
	for (int i = 0; i < 100; i++) { /* the last "waits there no more" is on its way */
		char *text = redis(m[0], "KEYS", "*}[wk][PFrex]*", NULL, NULL);
		bool clean = !strcmp(text, "(empty)\n");
		free(text);
		if (clean)
			break;
		usleep(10000);
	}
	assert_no_keys(m[0], "*}k*");
	assert_no_keys(m[0], "*}w*");
	for (int i = 0; i < 3; i++)
		meta_close(m[i]);
}

static void test_deadlock(void **state)
{
	deadlocks(*state, 1);
}

static void test_deadlock_over_shards(void **state)
{
	struct server *s = server_start(8);
	deadlocks(s, 8);
	server_stop(s);
}

/* --- fairness --- */

static void test_fairness(void **state)
{
	struct server *s = *state;
	struct meta *a = server_open(s, NULL, 0, 0), *b = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(a, 1, "fair", S_IFREG | 0644);
	struct ask w, r, r2;
	/* Readers that overlap without end: the writer gets its turn. */
	assert_int_equal(set(a, ino, 1, RD, ALL, TRY), 0);
	begin(&w, b, ino, 100, WR, ALL, WAIT);
	uint64_t t = silt_now_ns();
	uint64_t owner = 1;
	while (!wait_ms(&w, 20)) {
		struct ask next;
		begin(&next, a, ino, owner + 1, RD, ALL, WAIT);
		bool in = wait_ms(&next, 100);
		assert_int_equal(set(a, ino, owner, NONE, ALL, TRY), 0);
		if (!in) {
			assert_int_equal(finish(&w), 0);
			assert_false(wait_ms(&next, 30));
			assert_int_equal(set(b, ino, 100, NONE, ALL, TRY), 0);
			assert_int_equal(finish(&next), 0);
			w.ready = true;
		}
		owner++;
		assert_true(silt_now_ns() - t < 10000000000u);
	}
	uint64_t took = silt_now_ns() - t;
	assert_true(took > 900000000u && took < 3000000000u);
	/* A reader that holds on: who is held back for the writer's sake gets in after a while, who
	 * does not wait, or reads already, at once. */
	assert_int_equal(set(a, ino, owner, NONE, ALL, TRY), 0);
	assert_int_equal(set(a, ino, 1, RD, 0, 9, TRY), 0);
	begin(&w, b, ino, 100, WR, ALL, WAIT);
	assert_false(wait_ms(&w, 1200));
	begin(&r, a, ino, 2, RD, ALL, WAIT);
	assert_int_equal(set(b, ino, 3, RD, ALL, TRY), 0);
	begin(&r2, a, ino, 1, RD, 0, 99, WAIT);
	assert_true(wait_ms(&r2, 500));
	assert_false(r.ready);
	assert_int_equal(finish(&r), 0);
	assert_false(w.ready);
	meta_lock_cancel(b, w.id);
	assert_int_equal(finish(&w), -EINTR);
	meta_close(b);
	meta_close(a);
}

/* --- sessions --- */

static atomic_int lost_calls;

static void on_lost(void *arg)
{
	atomic_fetch_add(&lost_calls, 1);
}

static long long calls_of(struct meta *m, const char *name)
{
	char key[64];
	const char *argv[] = { "INFO", "commandstats" };
	char *text = NULL;
	assert_int_equal(meta_debug_command(m, 2, argv, NULL, &text), 0);
	snprintf(key, sizeof(key), "cmdstat_%s:calls=", name);
	char *p = strstr(text, key);
	long long n = 0;
	if (p)
		sscanf(p + strlen(key), "%lld", &n);
	free(text);
	return n;
}

/* Nothing is sent while somebody waits, and nothing but the grant when it ends. */
static void test_silence(void **state)
{
	struct server *s = *state;
	struct meta *a = server_open(s, NULL, 0, 0), *b = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(a, 1, "silence", S_IFREG | 0644);
	struct ask w[10];
	assert_int_equal(set(a, ino, 1, WR, ALL, TRY), 0);
	for (unsigned i = 0; i < 10; i++)
		begin(&w[i], b, ino, i + 2, WR, ALL, WAIT | DETECT);
	assert_false(wait_ms(&w[9], 200));
	long long before = calls_of(a, "fcall") + calls_of(a, "fcall_ro");
	assert_false(wait_ms(&w[0], 3000));
	assert_int_equal(calls_of(a, "fcall") + calls_of(a, "fcall_ro"), before);
	assert_int_equal(set(a, ino, 1, NONE, ALL, TRY), 0);
	for (unsigned i = 0; i < 10; i++) {
		assert_int_equal(finish(&w[i]), 0);
		assert_int_equal(set(b, ino, i + 2, NONE, ALL, TRY), 0);
	}
	/* 11 unlocks; each of the 10 looks at the inode when it is woken. */
	assert_int_equal(calls_of(a, "fcall"), before - calls_of(a, "fcall_ro") + 10 + 11);
	meta_close(b);
	meta_close(a);
}

/* A session that ends in order gives up everything at once; one that dies when it has expired, and
 * if it was not dead, it is told. */
static void test_sessions(void **state)
{
	struct server *s = *state;
	struct meta *a = server_open(s, NULL, 0, 0), *b = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(a, 1, "sessions", S_IFREG | 0644);
	struct ask w;
	for (unsigned i = 0; i < 50; i++)
		assert_int_equal(set(b, ino, i + 1, WR, i * 10, i * 10 + 3, TRY), 0);
	assert_int_equal(set(b, ino, 9, WR, ALL, FLOCK), 0);
	begin(&w, a, ino, 1, WR, ALL, WAIT);
	assert_false(wait_ms(&w, 30));
	meta_close(b);
	assert_int_equal(finish(&w), 0);
	assert_int_equal(set(a, ino, 1, WR, ALL, FLOCK), 0);
	assert_int_equal(set(a, ino, 1, NONE, ALL, FLOCK), 0);
	assert_int_equal(set(a, ino, 1, NONE, ALL, TRY), 0);

	/* Expired while it lives: `c` beats every 300 ms and cleans up after `b`, whose heart
	 * stands still. */
	b = server_open(s, NULL, 0, 1500);
	meta_locks_on_lost(b, on_lost, NULL);
	assert_int_equal(set(b, ino, 1, WR, 0, 9, TRY), 0);
	struct ask mine;
	begin(&w, a, ino, 1, WR, 0, 9, WAIT);
	assert_int_equal(set(a, ino, 7, WR, 50, 50, TRY), 0);
	begin(&mine, b, ino, 2, WR, 50, 50, WAIT);
	assert_false(wait_ms(&w, 100));
	char id[32], *text;
	snprintf(id, sizeof(id), "%llu", (unsigned long long)meta_session(b));
	text = redis(a, "ZADD", "{0}H", "1", id); /* as if it had not beaten for long */
	free(text);
	struct meta *c = server_open(s, NULL, 0, 300);
	assert_int_equal(finish(&w), 0);
	assert_int_equal(finish(&mine), -EIO);
	for (int i = 0; i < 500 && !atomic_load(&lost_calls); i++)
		usleep(10000);
	assert_int_equal(atomic_load(&lost_calls), 1);
	/* It goes on. */
	int rc = -EIO;
	for (int i = 0; i < 500 && rc == -EIO; i++) {
		rc = set(b, ino, 1, WR, 100, 109, TRY);
		usleep(10000);
	}
	assert_int_equal(rc, 0);
	assert_int_equal(set(b, ino, 1, WR, 0, 9, TRY), -EAGAIN);
	meta_close(c);
	meta_close(b);
	meta_close(a);
}

/* Time in which nobody's heartbeat came through is nobody's death. */
static void test_time_without_redis(void **state)
{
	struct server *s = *state;
	struct meta *a = server_open(s, NULL, 0, 0), *b = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(a, 1, "away", S_IFREG | 0644);
	assert_int_equal(set(b, ino, 1, WR, ALL, TRY), 0);
	/* What Redis looks like after 100 s in which it was away: all sessions have expired, b's by
	 * 3 s and a's by 95, and the last heartbeat was before that. */
	char id[2][32], score[32];
	snprintf(id[0], sizeof(id[0]), "%llu", (unsigned long long)meta_session(a));
	snprintf(id[1], sizeof(id[1]), "%llu", (unsigned long long)meta_session(b));
	long long ms = (long long)time(NULL) * 1000;
	snprintf(score, sizeof(score), "%lld", ms - 100000);
	free(redis(a, "HSET", "{0}c", "h", score));
	snprintf(score, sizeof(score), "%lld", ms - 3000);
	free(redis(a, "ZADD", "{0}H", score, id[1]));
	snprintf(score, sizeof(score), "%lld", ms - 95000);
	free(redis(a, "ZADD", "{0}H", score, id[0]));
	struct meta *c = server_open(s, NULL, 0, 300); /* beats now, and cleans up after the dead */
	usleep(1500000);
	assert_int_equal(set(c, ino, 2, WR, ALL, TRY), -EAGAIN);
	/* Without the pause it is dead. */
	free(redis(a, "ZADD", "{0}H", "1", id[1]));
	struct ask w;
	begin(&w, c, ino, 2, WR, ALL, WAIT);
	assert_int_equal(finish(&w), 0);
	meta_close(c);
	meta_close(b);
	meta_close(a);
}

/* --- exclusion, while connections break --- */

struct contest {
	struct meta *m;
	silt_ino ino;
	uint64_t owner;
	struct contest_shared *shared;
	pthread_t thread;
};

struct contest_shared {
	atomic_int inside;
	atomic_uint rounds, wrong;
};

#define ROUNDS 60

static void *contestant(void *arg)
{
	struct contest *c = arg;
	for (unsigned i = 0; i < ROUNDS; i++) {
		int how = WAIT | (i % 2 ? DETECT : 0);
		if (set(c->m, c->ino, c->owner, WR, 3, 5, how) ||
		    atomic_fetch_add(&c->shared->inside, 1) != 0)
			atomic_fetch_add(&c->shared->wrong, 1);
		usleep(200);
		atomic_fetch_sub(&c->shared->inside, 1);
		if (set(c->m, c->ino, c->owner, NONE, 3, 5, TRY))
			atomic_fetch_add(&c->shared->wrong, 1);
		atomic_fetch_add(&c->shared->rounds, 1);
	}
	return NULL;
}

static void test_exclusion(void **state)
{
	struct server *s = *state;
	struct meta *m[2] = { server_open(s, NULL, 0, 0), server_open(s, NULL, 0, 0) };
	struct meta *killer = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(killer, 1, "exclusion", S_IFREG | 0644);
	struct contest c[8];
	struct contest_shared shared = { 0 };
	for (unsigned i = 0; i < 8; i++) {
		c[i] = (struct contest){ m[i % 2], ino, i + 1, &shared, 0 };
		assert_int_equal(pthread_create(&c[i].thread, NULL, contestant, &c[i]), 0);
	}
	while (atomic_load(&shared.rounds) < 8 * ROUNDS) {
		usleep(100000);
		/* Requests, replies and messages are lost: all connections but the asker's own go.
		 */
		free(redis(killer, "CLIENT", "KILL", "TYPE", "normal"));
		free(redis(killer, "CLIENT", "KILL", "TYPE", "pubsub"));
	}
	for (unsigned i = 0; i < 8; i++)
		pthread_join(c[i].thread, NULL);
	assert_int_equal(atomic_load(&shared.wrong), 0);
	assert_no_keys(killer, "*}kP*");
	assert_no_keys(killer, "*}wP*");
	for (int i = 0; i < 2; i++)
		meta_close(m[i]);
	meta_close(killer);
}

/* --- bounds --- */

static double redis_seconds(struct meta *m)
{
	const char *argv[] = { "INFO", "cpu" };
	char *text = NULL;
	double user = 0, sys = 0;
	assert_int_equal(meta_debug_command(m, 2, argv, NULL, &text), 0);
	char *p = strstr(text, "used_cpu_user_main_thread:"), *q = strstr(text, "used_cpu_sys_main_thread:");
	assert_true(p && sscanf(p + 26, "%lf", &user) == 1 && q && sscanf(q + 25, "%lf", &sys) == 1);
	free(text);
	return user + sys;
}

static void test_bounds(void **state)
{
	struct server *s = *state;
	struct meta *a = server_open(s, NULL, 0, 0), *b = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(a, 1, "bounds", S_IFREG | 0644);
	enum { N = 4096, WAITERS = 400 };
	struct ask *q = calloc(N, sizeof(*q));
	for (unsigned i = 0; i < N; i++)
		begin(&q[i], a, ino, i % 64 + 1, i % 2 ? RD : WR, i * 10, i * 10 + 4, TRY);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(finish(&q[i]), 0);
	assert_int_equal(set(a, ino, 1, WR, N * 10, N * 10, TRY), -ENOLCK);
	assert_int_equal(set(a, ino, 1, WR, 0, 5, TRY), 0); /* no more than before */
	/* Redis's own time, not the clock's: other programs run here too. */
	double before = redis_seconds(a);
	for (unsigned i = 0; i < 200; i++)
		assert_int_equal(set(a, ino, 1, WR, 1, 4, TRY), 0);
	double each = (redis_seconds(a) - before) / 200;
	print_message("%.2f ms a request\n", each * 1e3);
	assert_true(each < 0.005);
	for (unsigned i = 0; i < WAITERS; i++)
		begin(&q[i], b, ino, i + 1, WR, i * 10, i * 10, WAIT);
	assert_false(wait_ms(&q[WAITERS - 1], 500));
	for (unsigned i = 0; i < 64; i++)
		assert_int_equal(set(a, ino, i + 1, NONE, ALL, TRY), 0);
	for (unsigned i = 0; i < WAITERS; i++)
		assert_int_equal(finish(&q[i]), 0);
	free(q);
	meta_close(b);
	meta_close(a);
}

/* What is there is not what we wrote: an error, not a crash. */
static void test_damaged(void **state)
{
	struct server *s = *state;
	struct meta *a = server_open(s, NULL, 0, 0);
	silt_ino ino = must_make(a, 1, "damaged", S_IFREG | 0644);
	char key[64];
	snprintf(key, sizeof(key), "{0}kP%llx", (unsigned long long)silt_ino_seq(ino));
	free(redis(a, "HSET", key, "P99.1", "short"));
	assert_int_equal(set(a, ino, 1, WR, ALL, TRY), 0); /* 5 bytes: no ranges */
	free(redis(a, "HSET", key, "P99.1", "shorter"));
	assert_int_equal(set(a, ino, 1, WR, ALL, TRY), -EIO);
	free(redis(a, "HSET", key, "nonsense", "12345678901234567890ab"));
	free(redis(a, "HDEL", key, "P99.1", NULL));
	struct meta_lock l = lock_of(ino, 1, WR, ALL, TRY);
	struct ask q;
	ask_init(&q);
	meta_lock_get(a, &l, answered, &q);
	assert_int_equal(finish(&q), -EIO);
	free(redis(a, "DEL", key, NULL, NULL));
	static const char *const messages[] = {
		"L",
		"Lg",
		"Lg ",
		"Lg 1",
		"Lg 1.",
		"Lx 1.1",
		"Lg 1.1",
		"LG 18446744073709551616.1",
		"Lg 1.fffffffffffffffffffffffffffffffffffffffffffff",
		"zz"
	};
	char channel[64];
	snprintf(channel, sizeof(channel), "silt:7:%llu", (unsigned long long)meta_session(a));
	for (size_t i = 0; i < sizeof(messages) / sizeof(*messages); i++)
		free(redis(a, "PUBLISH", channel, messages[i], NULL));
	assert_int_equal(set(a, ino, 1, WR, ALL, WAIT), 0);
	meta_close(a);
}

static int start(void **state)
{
	*state = server_start(1);
	return 0;
}

static int stop(void **state)
{
	server_stop(*state);
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ranges_model), cmocka_unit_test(test_flock),
		cmocka_unit_test(test_order),        cmocka_unit_test(test_parts),
		cmocka_unit_test(test_many),         cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_deadlock),     cmocka_unit_test(test_deadlock_over_shards),
		cmocka_unit_test(test_fairness),     cmocka_unit_test(test_silence),
		cmocka_unit_test(test_sessions),     cmocka_unit_test(test_time_without_redis),
		cmocka_unit_test(test_exclusion),    cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_damaged),
	};
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, start, stop);
}
