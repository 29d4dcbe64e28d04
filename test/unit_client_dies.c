/* A client that is killed between the steps of an operation across shards. Another one finishes
 * what it left or takes it back: whatever the step was, every name then leads to an inode, none is
 * lost or there twice, link counts and counters are right, and no directory stays closed to
 * changes.
 *
 * The client is a process of its own whose connection goes through a proxy (redis_proxy.h), which
 * kills it after the server has executed the step. */
#include "test/tx_scene.h"

#include <signal.h>
#include <sys/wait.h>

#include "test/redis_proxy.h"

struct fixture {
	struct server *s;
	struct proxy *x;
	struct meta *see, *healer; /* not through the proxy; heartbeats often enough to heal */
	const struct job *job;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->job = *state;
	f->s = server_start(8);
	f->x = proxy_start(f->s->dir, meta_local_socket(f->s->hold));
	f->see = server_open(f->s, NULL, 30000, 0);
	f->healer = server_open(f->s, NULL, 30000, CHILD_BEAT_MS);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	meta_close(f->healer);
	meta_close(f->see);
	proxy_stop(f->x);
	server_stop(f->s);
	free(f);
	return 0;
}

/* Runs the job in a process that is killed at its step `step`; false when it has not so many, and
 * ended well. */
static bool die_at(struct fixture *f, const struct scene *s, int step)
{
	struct child c = child_start(proxy_address(f->x), f->job->run, s);
	bool first = f->job->unlinks && step == 0;
	proxy_arm_at(f->x, first ? "silt1_unlink" : "silt1_x_",
	             f->job->unlinks && !first ? step - 1 : step, KILL, c.pid);
	child_go(&c);
	int status = child_end(&c);
	if (proxy_disarm(f->x) > 0) {
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		return true;
	}
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	return false;
}

static void test_client_dies(void **state)
{
	struct fixture *f = *state;
	struct scene s;
#ifdef __SANITIZE_THREAD__
	skip(); /* it knows no threads after fork() */
#endif
	scene_directories(f->see, &s);
	for (int step = 0; step < STEPS; step++) {
		scene_set(f->see, &s, f->job);
		bool died = die_at(f, &s, step);
		wait_sessions(f->see, 2);
		check_volume(f->see);
		scene_check_names(f->see, &s, f->job);
		scene_clear(f->see, &s);
		if (!died) {
			assert_true(step > 0);
			return;
		}
	}
	assert_true(f->job->repeats);
}

#define DIES_IN(job)                                                                               \
	((struct CMUnitTest){ "dies_in_" #job, test_client_dies, setup, teardown,                  \
	                      (void *)&job##_job })

int main(void)
{
	const struct CMUnitTest tests[] = {
		DIES_IN(mkdir),         DIES_IN(link),
		DIES_IN(unlink),        DIES_IN(rmdir),
		DIES_IN(rename),        DIES_IN(rename_over),
		DIES_IN(rename_dir),    DIES_IN(rename_dir_over),
		DIES_IN(exchange),      DIES_IN(exchange_dirs),
		DIES_IN(exchange_both),
	};
	const char *only = getenv("SILT_TEST_ONLY");
	if (only)
		cmocka_set_test_filter(only);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
