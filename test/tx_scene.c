#include "test/tx_scene.h"

#include <signal.h>
#include <sys/wait.h>

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
	return rename_(m, s->d[0], "dir", s->d[1], "moved", 0, NULL);
}

static int run_rename_dir_over(struct meta *m, const struct scene *s)
{
	return rename_(m, s->d[0], "dir", s->d[1], "empty", 0, NULL);
}

/* An empty directory of d[1] in a third shard: made elsewhere, moved there. */
static void prepare_empty(struct meta *m, const struct scene *s)
{
	for (int k = 0; k < 64; k++) {
		silt_ino ino = must_make(m, s->d[2], "empty", S_IFDIR | 0755);
		unsigned shard = silt_ino_shard(ino);
		if (shard != silt_ino_shard(s->d[0]) && shard != silt_ino_shard(s->d[1])) {
			assert_int_equal(rename_(m, s->d[2], "empty", s->d[1], "empty", 0, NULL),
			                 0);
			return;
		}
		assert_int_equal(rmdir_(m, s->d[2], "empty"), 0);
	}
	fail_msg("no directory is made in another shard");
}

static int run_rmdir_one(struct meta *m, const struct scene *s)
{
	return rmdir_(m, s->d[1], "empty");
}

static int run_exchange(struct meta *m, const struct scene *s)
{
	return rename_(m, s->d[0], "file", s->d[1], "link", META_RENAME_EXCHANGE, NULL);
}

static int run_exchange_dirs(struct meta *m, const struct scene *s)
{
	return rename_(m, s->d[0], "dir", s->d[1], "dir2", META_RENAME_EXCHANGE, NULL);
}

static int run_exchange_both(struct meta *m, const struct scene *s)
{
	return rename_(m, s->d[0], "file", s->d[1], "dir2", META_RENAME_EXCHANGE, NULL);
}

const struct job mkdir_job = { .run = run_mkdir, .repeats = true };
const struct job rmdir_job = { .run = run_rmdir, .prepare = prepare_rmdir, .repeats = true };
const struct job link_job = { .run = run_link };
const struct job unlink_job = {
	.run = run_unlink, .prepare = prepare_unlink, .unlinks = true, .removes = "link"
};
const struct job rmdir_one_job = { .run = run_rmdir_one,
	                           .prepare = prepare_empty,
	                           .removes = "empty" };
const struct job rename_job = { .run = run_rename, .moves = "file", .to = "moved" };
const struct job rename_over_job = { .run = run_rename_over,
	                             .prepare = prepare_rename_over,
	                             .moves = "file",
	                             .to = "link",
	                             .over = true };
const struct job rename_dir_job = { .run = run_rename_dir, .moves = "dir", .to = "moved" };
const struct job rename_dir_over_job = { .run = run_rename_dir_over,
	                                 .prepare = prepare_empty,
	                                 .moves = "dir",
	                                 .to = "empty",
	                                 .over = true };
const struct job exchange_job = { .run = run_exchange,
	                          .prepare = prepare_rename_over,
	                          .moves = "file",
	                          .to = "link",
	                          .swaps = true };
const struct job exchange_dirs_job = {
	.run = run_exchange_dirs, .moves = "dir", .to = "dir2", .swaps = true
};
const struct job exchange_both_job = {
	.run = run_exchange_both, .moves = "file", .to = "dir2", .swaps = true
};

/* --- the scene --- */

void scene_directories(struct meta *m, struct scene *s)
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

void scene_set(struct meta *m, struct scene *s, const struct job *j)
{
	s->file = must_make(m, s->d[0], "file", S_IFREG | 0644);
	s->dir = must_make(m, s->d[0], "dir", S_IFDIR | 0755);
	must_make(m, s->dir, "in", S_IFREG | 0644);
	must_make(m, s->d[1], "dir2", S_IFDIR | 0755);
	s->file2 = must_make(m, s->d[2], "file2", S_IFREG | 0644);
	if (j->prepare)
		j->prepare(m, s);
}

static void empty_directory(struct meta *m, silt_ino dir)
{
	struct meta_wait w;
	meta_wait_init(&w);
	meta_readdir(m, dir, 0, 100000, false, meta_wait_done, &w);
	assert_int_equal(meta_wait(&w), 0);
	for (size_t k = 0; k < w.page->n; k++) {
		const struct meta_dirent *d = &w.page->v[k];
		char name[SILT_NAME_MAX + 1];
		memcpy(name, d->name, d->len);
		name[d->len] = 0;
		if (d->type == S_IFDIR)
			empty_directory(m, d->ino);
		assert_int_equal(d->type == S_IFDIR ? rmdir_(m, dir, name)
		                                    : unlink_(m, dir, name, false, NULL),
		                 0);
	}
	meta_wait_free(&w);
}

void scene_clear(struct meta *m, const struct scene *s)
{
	for (int k = 0; k < 3; k++) {
		empty_directory(m, s->d[k]);
		assert_int_equal(attr_of(m, s->d[k]).size, 0);
	}
}

silt_ino scene_at(struct meta *m, silt_ino dir, const char *name)
{
	struct silt_inode i;
	int rc = look(m, dir, name, &i);
	assert_true(rc == 0 || rc == -ENOENT);
	return rc ? 0 : i.attr.ino;
}

void scene_check_names(struct meta *m, const struct scene *s, const struct job *j)
{
	bool dir = j->moves && strcmp(j->moves, "dir") == 0, file = j->moves && !dir;
	silt_ino what = dir ? s->dir : s->file;
	if (j->moves) {
		silt_ino from = scene_at(m, s->d[0], j->moves), to = scene_at(m, s->d[1], j->to);
		assert_true((from == what) != (to == what));
		assert_true(j->swaps ? from && to : !from == (to == what));
		assert_true(!j->over || to);
	}
	if (!dir)
		assert_true(scene_at(m, s->d[0], "dir") == s->dir);
	if (!file)
		assert_true(scene_at(m, s->d[0], "file") == s->file);
	if (!j->to || strcmp(j->to, "dir2") != 0)
		assert_true(scene_at(m, s->d[1], "dir2"));
	assert_true(scene_at(m, s->d[2], "file2") == s->file2);
	assert_true(scene_at(m, s->dir, "in"));
}

/* --- the volume --- */

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

void check_volume(struct meta *m)
{
	struct census c = { .n = 0 };
	visit(m, 1, &c);
	for (unsigned k = 0; k < c.n; k++)
		assert_int_equal(c.v[k].names, c.v[k].nlink);
	assert_int_equal(usage_of(m).inodes, c.inodes);
	assert_no_keys(m, "{*}t");
	assert_no_keys(m, "{0}L");
}

/* --- clients --- */

static int child_main(const struct meta_address *address,
                      int (*run)(struct meta *, const struct scene *), const struct scene *s,
                      int go)
{
	char c;
	struct meta *m = NULL;
	struct silt_log *log = NULL;
	const char *path = getenv("SILT_TEST_LOG");
	struct meta_config cfg = {
		.address = address, .session = true, .wait_ms = 20000, .heartbeat_ms = CHILD_BEAT_MS
	};
	if (silt_log_open(path ? path : "/dev/null", SILT_LOG_INFO, NULL, &log))
		return 2;
	cfg.log = log;
	if (read(go, &c, 1) != 1 || meta_open(&cfg, &m, NULL))
		return 3;
	if (run)
		return run(m, s) ? 4 : 0;
	while (read(go, &c, 1) == 1)
		;
	return 0;
}

struct child child_start(const struct meta_address *address,
                         int (*run)(struct meta *, const struct scene *), const struct scene *s)
{
	int go[2];
	assert_int_equal(pipe(go), 0);
	pid_t pid = fork();
	if (pid == 0) {
		close(go[1]);
		_exit(child_main(address, run, s, go[0]));
	}
	assert_true(pid > 0);
	close(go[0]);
	return (struct child){ pid, go[1] };
}

void child_go(struct child *c)
{
	assert_int_equal(write(c->go, "", 1), 1);
}

int child_end(struct child *c)
{
	int status;
	close(c->go);
	assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
	return status;
}

void wait_sessions(struct meta *m, unsigned most)
{
	for (int k = 0; k < 1500; k++) {
		char *text = redis(m, "HLEN", "{0}S", NULL, NULL);
		unsigned n = 0;
		assert_int_equal(sscanf(text, "(integer) %u", &n), 1);
		free(text);
		if (n <= most)
			return;
		usleep(10000);
	}
	fail_msg("the dead session is still there");
}
