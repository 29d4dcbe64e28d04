/* A client that is only stopped in the middle of an operation across shards, until others have
 * taken it for dead and have completed the operation or taken it back; and then goes on. Meanwhile
 * the names have been moved away and given to other things, so that any step that is done a second
 * time does harm. The same with the client that does the completing: it is stopped too, a third
 * does it all, and it goes on.
 *
 * Stopped by the proxy (redis_proxy.h) after the server has executed the step; the reply waits for
 * it when it goes on, or is lost with its connection, and it sends the step again. */
#include "test/tx_scene.h"

#include <signal.h>
#include <sys/wait.h>

#include "test/redis_proxy.h"

struct stop {
	const struct job *job;
	enum fault how;
	bool healer; /* who completes it is stopped as well */
};

struct fixture {
	struct server *s;
	struct proxy *x, *x2;
	struct meta *see, *healer;
	const struct stop *stop;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	char dir2[SCRATCH_MAX + 8];
	f->stop = *state;
	f->s = server_start(8);
	f->x = proxy_start(f->s->dir, meta_local_socket(f->s->hold));
	snprintf(dir2, sizeof(dir2), "%s/2", f->s->dir);
	assert_int_equal(mkdir(dir2, 0700), 0);
	f->x2 = proxy_start(dir2, meta_local_socket(f->s->hold));
	f->see = server_open(f->s, NULL, 30000, 0);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	meta_close(f->see);
	proxy_stop(f->x2);
	proxy_stop(f->x);
	server_stop(f->s);
	free(f);
	return 0;
}

/* --- others, meanwhile --- */

/* What a directory holds: names and inodes. */
struct held {
	struct {
		silt_ino dir, ino;
		char name[16];
	} v[64];
	unsigned n;
};

static void hold(struct held *h, struct meta *m, silt_ino dir)
{
	struct meta_wait w;
	meta_wait_init(&w);
	meta_readdir(m, dir, 0, 1000, false, meta_wait_done, &w);
	assert_int_equal(meta_wait(&w), 0);
	for (size_t k = 0; k < w.page->n; k++) {
		assert_true(h->n < 64 && w.page->v[k].len < 16);
		h->v[h->n].dir = dir;
		h->v[h->n].ino = w.page->v[k].ino;
		snprintf(h->v[h->n++].name, 16, "%.*s", w.page->v[k].len, w.page->v[k].name);
	}
	meta_wait_free(&w);
}

/* Gives every name to something new of the same kind; what had it goes to another of the
 * directories. Removes what is called `gone`. */
static void meddle(struct meta *m, const struct scene *s, const char *gone)
{
	struct held h = { .n = 0 };
	for (int k = 0; k < 3; k++)
		hold(&h, m, s->d[k]);
	for (unsigned k = 0; k < h.n; k++) {
		char name[32];
		uint32_t type = attr_of(m, h.v[k].ino).mode & S_IFMT;
		silt_ino to = s->d[(h.v[k].dir == s->d[0]) + 2 * (h.v[k].dir == s->d[1])];
		snprintf(name, sizeof(name), "%s~%u", h.v[k].name, k);
		int rc = -ENOTEMPTY;
		if (strcmp(h.v[k].name, gone) == 0)
			rc = type == S_IFDIR ? rmdir_(m, h.v[k].dir, gone)
			                     : unlink_(m, h.v[k].dir, gone, false, NULL);
		assert_true(rc == 0 || rc == -ENOTEMPTY);
		if (rc)
			assert_int_equal(rename_(m, h.v[k].dir, h.v[k].name, to, name, 0, NULL), 0);
		must_make(m, h.v[k].dir, h.v[k].name, type | 0700);
	}
}

static bool has_happened(struct meta *m, const struct scene *s, const struct job *j)
{
	if (j->removes)
		return scene_at(m, s->d[1], j->removes) == 0;
	silt_ino what = j->moves && strcmp(j->moves, "dir") == 0 ? s->dir : s->file;
	return !j->moves || scene_at(m, s->d[1], j->to) == what;
}

/* An operation that was taken back, or had not begun, may be done later, with the names as they are
 * then. */
static void check_late(struct meta *m, const struct scene *s, const struct job *j, struct held *h)
{
	silt_ino from = 0, to = 0;
	for (unsigned k = 0; k < h->n; k++) {
		if (j->moves && h->v[k].dir == s->d[0] && strcmp(h->v[k].name, j->moves) == 0)
			from = h->v[k].ino;
		if (h->v[k].dir == s->d[1] &&
		    strcmp(h->v[k].name, j->removes ? j->removes : j->to) == 0)
			to = h->v[k].ino;
	}
	const char *there = j->removes ? j->removes : j->to;
	if (scene_at(m, s->d[1], there) == to)
		return; /* it was not done */
	assert_true(scene_at(m, s->d[1], there) == from);
	assert_true(!j->moves || scene_at(m, s->d[0], j->moves) == (j->swaps ? to : 0));
	for (unsigned k = 0; k < h->n;) {
		if (h->v[k].ino == from || h->v[k].ino == to)
			h->v[k] = h->v[--h->n];
		else
			k++;
	}
}

static void check_held(struct meta *m, const struct held *h)
{
	for (unsigned k = 0; k < h->n; k++)
		assert_true(scene_at(m, h->v[k].dir, h->v[k].name) == h->v[k].ino);
}

/* --- the stop --- */

/* Until the child is stopped at its step (true), or ends without having so many. */
static bool wait_stopped(struct proxy *x, struct child *c)
{
	siginfo_t info = { 0 };
	while (proxy_struck(x) == 0) {
		assert_int_equal(waitid(P_PID, (id_t)c->pid, &info, WEXITED | WNOHANG | WNOWAIT),
		                 0);
		if (info.si_pid)
			return proxy_struck(x) > 0;
		usleep(1000);
	}
	return true;
}

static struct child start_and_stop(struct fixture *f, const struct scene *s, int step,
                                   bool *stopped)
{
	const struct job *job = f->stop->job;
	struct child c = child_start(proxy_address(f->x), job->run, s);
	bool first = job->unlinks && step == 0;
	proxy_arm_at(f->x, first ? "silt1_unlink" : "silt1_x_",
	             job->unlinks && !first ? step - 1 : step, f->stop->how, c.pid);
	child_go(&c);
	*stopped = wait_stopped(f->x, &c);
	if (!*stopped)
		proxy_disarm(f->x);
	return c;
}

/* A client that completes what `c` left is stopped at step `step` of that; false: it has not so
 * many. */
static bool stop_healer(struct fixture *f, int step, struct child *h)
{
	*h = child_start(proxy_address(f->x2), NULL, NULL);
	proxy_arm_at(f->x2, "silt1_x_", step, f->stop->how, h->pid);
	child_go(h);
	for (int k = 0; k < 3000; k++) {
		char *text = redis(f->see, "HLEN", "{0}S", NULL, NULL);
		unsigned n = 0;
		assert_int_equal(sscanf(text, "(integer) %u", &n), 1);
		free(text);
		if (proxy_struck(f->x2))
			return true;
		if (k > 20 && n <= 2) { /* ours and its own */
			proxy_disarm(f->x2);
			return proxy_struck(f->x2) > 0;
		}
		usleep(2000);
	}
	fail_msg("nobody cleans up");
	return false;
}

/* Only of one that was stopped: it may have ended with an error. */
static void go_on(struct child *c)
{
	kill(c->pid, SIGCONT);
	int status = child_end(c);
	assert_true(WIFEXITED(status));
	assert_true(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 4);
}

/* False: the step does not exist. *healed: the healer's step did not. */
static bool round_of(struct fixture *f, struct scene *s, int step, int healer_step, bool *healed)
{
	struct child h = { 0 };
	struct held held = { .n = 0 };
	bool stopped;
	scene_set(f->see, s, f->stop->job);
	struct child c = start_and_stop(f, s, step, &stopped);
	*healed = stopped && f->stop->healer && !stop_healer(f, healer_step, &h);
	f->healer = server_open(f->s, NULL, 30000, CHILD_BEAT_MS);
	if (*healed)
		child_end(&h); /* its own way */
	else if (!stopped)
		child_end(&c);
	wait_sessions(f->see, 2);
	check_volume(f->see);
	if (stopped) {
		scene_check_names(f->see, s, f->stop->job);
		bool happened = has_happened(f->see, s, f->stop->job);
		meddle(f->see, s, step % 2 ? "empty" : "link");
		for (int k = 0; k < 3; k++)
			hold(&held, f->see, s->d[k]);
		go_on(&c);
		if (f->stop->healer && !*healed) {
			kill(h.pid, SIGCONT);
			child_end(&h);
		}
		wait_sessions(f->see, 2);
		if (!happened)
			check_late(f->see, s, f->stop->job, &held);
		check_held(f->see, &held);
		check_volume(f->see);
	}
	scene_clear(f->see, s);
	meta_close(f->healer);
	return stopped;
}

static void test_stops(void **state)
{
	struct fixture *f = *state;
	struct scene s;
#ifdef __SANITIZE_THREAD__
	skip(); /* it knows no threads after fork() */
#endif
	scene_directories(f->see, &s);
	bool more = true;
	for (int step = 0; step < STEPS && more; step++) {
		bool healed = false;
		for (int at = 0; at < STEPS && more && !healed; at += 2) {
			more = round_of(f, &s, step, at, &healed);
			healed |= !f->stop->healer;
		}
		assert_true(more || step > 0);
	}
	assert_true(!more || f->stop->job->repeats);
}

#define STOPS_IN(job, how)                                                                         \
	{                                                                                          \
#job " " #how, test_stops, setup, teardown, (void *)&(const struct stop)           \
		{                                                                                  \
			&job##_job, how, false                                                     \
		}                                                                                  \
	}
#define TWO_IN(job, how)                                                                           \
	{                                                                                          \
#job " " #how " two", test_stops, setup, teardown, (void *)&(const struct stop)    \
		{                                                                                  \
			&job##_job, how, true                                                      \
		}                                                                                  \
	}
#define ALL(X, how)                                                                                \
	X(link, how), X(unlink, how), X(rename, how), X(rename_over, how), X(rename_dir, how),     \
	        X(rename_dir_over, how), X(exchange, how), X(exchange_dirs, how)

int main(void)
{
	const struct CMUnitTest tests[] = {
		ALL(STOPS_IN, STOP),
		STOPS_IN(mkdir, STOP),
		STOPS_IN(rmdir_one, STOP),
		ALL(STOPS_IN, STOP_AND_CUT),
		STOPS_IN(mkdir, STOP_AND_CUT),
		STOPS_IN(rmdir_one, STOP_AND_CUT),
		TWO_IN(link, STOP),
		TWO_IN(rename_over, STOP_AND_CUT),
		TWO_IN(rename_dir_over, STOP),
		TWO_IN(exchange_dirs, STOP),
	};
	const char *only = getenv("SILT_TEST_ONLY");
	if (only)
		cmocka_set_test_filter(only);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
