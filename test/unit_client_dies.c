/* A client that is killed between the steps of an operation across shards. Another one finishes
 * what it left or takes it back: whatever the step was, every name then leads to an inode, none is
 * lost or there twice, link counts and counters are right, and no directory stays closed to
 * changes.
 *
 * The client is a process of its own whose connection goes through a proxy (redis_proxy.h), which
 * kills it after the server has executed the step. */
#include "test/meta_fixture.h"

#include <signal.h>
#include <sys/wait.h>

#include "test/redis_proxy.h"

#define STEPS 16 /* more than any operation has */

struct scene;

struct job {
	int (*run)(struct meta *m, const struct scene *s); /* in the client that dies */
	void (*prepare)(struct meta *m, const struct scene *s);
	bool unlinks; /* its first step is an ordinary unlink */
	bool repeats; /* several operations, of which the first STEPS steps will do */
};

struct fixture {
	struct server *s;
	struct proxy *x;
	struct meta *see, *healer; /* not through the proxy; heartbeats often enough to heal */
	const struct job *job;
};

/* Directories of the root in three shards, none of them the root's, and what is in them:
 *
 *	d[0]  file dir/    d[1]  dir2/    d[2]  file2
 */
struct scene {
	silt_ino d[3], file, dir, file2;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->job = *state;
	f->s = server_start(8);
	f->x = proxy_start(f->s->dir, meta_local_socket(f->s->hold));
	f->see = server_open(f->s, NULL, 30000, 0);
	f->healer = server_open(f->s, NULL, 30000, 60);
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

/* --- the jobs --- */

static int for_s0_to_s7(struct meta *m, silt_ino dir, bool remove)
{
	int rc = 0;
	for (int k = 0; k < 8 && rc == 0; k++) {
		char name[16];
		snprintf(name, sizeof(name), "s%d", k);
		rc = remove ? rmdir_(m, dir, name) : make(m, dir, name, S_IFDIR | 0755, NULL);
	}
	return rc;
}

static int run_mkdir(struct meta *m, const struct scene *s)
{
	return for_s0_to_s7(m, s->d[0], false);
}

static int run_rmdir(struct meta *m, const struct scene *s)
{
	return for_s0_to_s7(m, s->d[0], true);
}

static void prepare_rmdir(struct meta *m, const struct scene *s)
{
	assert_int_equal(for_s0_to_s7(m, s->d[0], false), 0);
}

static int run_link(struct meta *m, const struct scene *s)
{
	return link_(m, s->file, s->d[1], "link");
}

static int run_unlink(struct meta *m, const struct scene *s)
{
	return unlink_(m, s->d[1], "link", false, NULL);
}

static void prepare_unlink(struct meta *m, const struct scene *s)
{
	assert_int_equal(link_(m, s->file, s->d[1], "link"), 0);
}

static int run_rename(struct meta *m, const struct scene *s)
{
	return rename_(m, s->d[0], "file", s->d[1], "moved", 0, NULL);
}

static int run_rename_over(struct meta *m, const struct scene *s)
{
	return rename_(m, s->d[0], "file", s->d[1], "link", 0, NULL);
}

static void prepare_rename_over(struct meta *m, const struct scene *s)
{
	assert_int_equal(link_(m, s->file2, s->d[1], "link"), 0);
}

static int run_rename_dir(struct meta *m, const struct scene *s)
{
	return rename_(m, s->d[0], "dir", s->d[1], "dir2", 0, NULL);
}

static const struct job mkdir_job = { .run = run_mkdir, .repeats = true };
static const struct job rmdir_job = { .run = run_rmdir, .prepare = prepare_rmdir, .repeats = true };
static const struct job link_job = { .run = run_link };
static const struct job unlink_job = { .run = run_unlink,
	                               .prepare = prepare_unlink,
	                               .unlinks = true };
static const struct job rename_job = { .run = run_rename };
static const struct job rename_over_job = { .run = run_rename_over,
	                                    .prepare = prepare_rename_over };
static const struct job rename_dir_job = { .run = run_rename_dir };

/* --- the scene --- */

static void make_directories(struct meta *m, struct scene *s)
{
	int n = 0;
	for (int k = 0; k < 64 && n < 3; k++) {
		char name[16];
		snprintf(name, sizeof(name), "d%d", k);
		silt_ino ino = must_make(m, 1, name, S_IFDIR | 0755);
		bool other = silt_ino_shard(ino) != 0;
		for (int j = 0; j < n; j++)
			other = other && silt_ino_shard(ino) != silt_ino_shard(s->d[j]);
		if (other)
			s->d[n++] = ino;
		else
			assert_int_equal(rmdir_(m, 1, name), 0);
	}
	assert_int_equal(n, 3);
}

static void set_scene(struct fixture *f, struct scene *s)
{
	s->file = must_make(f->see, s->d[0], "file", S_IFREG | 0644);
	s->dir = must_make(f->see, s->d[0], "dir", S_IFDIR | 0755);
	must_make(f->see, s->d[1], "dir2", S_IFDIR | 0755);
	s->file2 = must_make(f->see, s->d[2], "file2", S_IFREG | 0644);
	if (f->job->prepare)
		f->job->prepare(f->see, s);
}

/* Empties the directories; a mark that was left in one would make this fail. */
static void clear_scene(struct fixture *f, const struct scene *s)
{
	static const char *const files[] = { "file", "moved", "link", "file2" };
	for (int k = 0; k < 3; k++) {
		for (int n = 0; n < 4; n++)
			unlink_(f->see, s->d[k], files[n], false, NULL);
		for (int n = 0; n < 8; n++) {
			char name[16];
			snprintf(name, sizeof(name), "s%d", n);
			rmdir_(f->see, s->d[k], name);
		}
		rmdir_(f->see, s->d[k], "dir");
		rmdir_(f->see, s->d[k], "dir2");
		assert_int_equal(attr_of(f->see, s->d[k]).size, 0);
	}
}

/* --- the death --- */

/* In the child: a session that expires soon, and the job. */
static int child_main(struct fixture *f, const struct scene *s, int go)
{
	char c;
	struct meta *m = NULL;
	struct silt_log *log = NULL;
	struct meta_config cfg = { .address = proxy_address(f->x),
		                   .session = true,
		                   .wait_ms = 10000,
		                   .heartbeat_ms = 60 };
	if (silt_log_open("/dev/null", SILT_LOG_INFO, NULL, &log))
		return 2;
	cfg.log = log;
	if (read(go, &c, 1) != 1 || meta_open(&cfg, &m, NULL))
		return 3;
	return f->job->run(m, s) ? 4 : 0;
}

/* Who moves a directory holds a lock, which after his death runs out in 30 s: this is after that.
 */
static void end_rename_lock(struct fixture *f)
{
	free(redis(f->see, "DEL", "{0}L", NULL, NULL));
}

/* Runs the job in a process that is killed at its step `step`; false when it has not so many, and
 * ended well. */
static bool die_at(struct fixture *f, const struct scene *s, int step)
{
	int go[2], status;
	assert_int_equal(pipe(go), 0);
	pid_t pid = fork();
	if (pid == 0)
		_exit(child_main(f, s, go[0]));
	bool first = f->job->unlinks && step == 0;
	proxy_arm_kill(f->x, first ? "silt1_unlink" : "silt1_x_",
	               f->job->unlinks && !first ? step - 1 : step, pid);
	assert_int_equal(write(go[1], "", 1), 1);
	close(go[0]);
	close(go[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	end_rename_lock(f);
	if (proxy_disarm(f->x) > 0) {
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		return true;
	}
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	return false;
}

/* Waits until the dead one's session is gone: its work is done by then. */
static void wait_healed(struct fixture *f)
{
	for (int k = 0; k < 1000; k++) {
		char *text = redis(f->see, "HLEN", "{0}S", NULL, NULL);
		unsigned n = 0;
		assert_int_equal(sscanf(text, "(integer) %u", &n), 1);
		free(text);
		if (n <= 2)
			return;
		usleep(10000);
	}
	fail_msg("the dead session is still there");
}

/* --- what is found --- */

/* The files under a directory, each once, and how many inodes there are. */
struct census {
	struct {
		silt_ino ino;
		unsigned names, nlink;
	} v[256];
	unsigned n;
	uint64_t inodes;
};

static void count_file(struct census *c, const struct silt_attr *a)
{
	unsigned j = 0;
	while (j < c->n && c->v[j].ino != a->ino)
		j++;
	if (j == c->n) {
		assert_true(c->n < 256);
		c->v[c->n].ino = a->ino;
		c->v[c->n].names = 0;
		c->v[c->n++].nlink = a->nlink;
		c->inodes++;
	}
	c->v[j].names++;
}

static void visit(struct meta *m, silt_ino dir, struct census *c)
{
	struct meta_wait w;
	meta_wait_init(&w);
	meta_readdir(m, dir, 0, 100000, false, meta_wait_done, &w);
	assert_int_equal(meta_wait(&w), 0);
	struct silt_attr a = attr_of(m, dir);
	unsigned dirs = 0;
	assert_int_equal(a.size, w.page->n);
	c->inodes++;
	for (size_t k = 0; k < w.page->n; k++) {
		const struct meta_dirent *d = &w.page->v[k];
		struct silt_attr b = attr_of(m, d->ino);
		assert_int_equal(b.mode & S_IFMT, d->type);
		if (d->type != S_IFDIR) {
			count_file(c, &b);
			continue;
		}
		assert_true(b.parent == dir);
		dirs++;
		visit(m, d->ino, c);
	}
	assert_int_equal(a.nlink, 2 + dirs);
	meta_wait_free(&w);
}

static void check_tree(struct meta *m)
{
	struct census c = { .n = 0 };
	visit(m, 1, &c);
	for (unsigned k = 0; k < c.n; k++)
		assert_int_equal(c.v[k].names, c.v[k].nlink);
	assert_int_equal(usage_of(m).inodes, c.inodes);
	assert_no_keys(m, "{*}t");
}

/* What is renamed is at its old name or at its new one; what is not is where it was. */
static void check_names(struct fixture *f, const struct scene *s)
{
	struct silt_inode i;
	bool file = look(f->see, s->d[0], "file", &i) == 0;
	bool moved = look(f->see, s->d[1], "moved", &i) == 0;
	bool link = look(f->see, s->d[1], "link", &i) == 0;
	bool over = link && i.attr.ino == s->file;
	if (f->job == &rename_job)
		assert_true(file != moved);
	else if (f->job == &rename_over_job)
		assert_true(link && file != over);
	else
		assert_true(file);
	bool dir = look(f->see, s->d[0], "dir", &i) == 0;
	assert_int_equal(look(f->see, s->d[1], "dir2", &i), 0);
	assert_true(dir != (i.attr.ino == s->dir));
	assert_int_equal(look(f->see, s->d[2], "file2", NULL), 0);
}

static void test_client_dies(void **state)
{
	struct fixture *f = *state;
	struct scene s;
#ifdef __SANITIZE_THREAD__
	skip(); /* it knows no threads after fork() */
#endif
	make_directories(f->see, &s);
	for (int step = 0; step < STEPS; step++) {
		set_scene(f, &s);
		bool died = die_at(f, &s, step);
		wait_healed(f);
		check_tree(f->see);
		check_names(f, &s);
		clear_scene(f, &s);
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
		DIES_IN(mkdir),  DIES_IN(link),        DIES_IN(unlink),     DIES_IN(rmdir),
		DIES_IN(rename), DIES_IN(rename_over), DIES_IN(rename_dir),
	};
	const char *only = getenv("SILT_TEST_ONLY");
	if (only)
		cmocka_set_test_filter(only);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
