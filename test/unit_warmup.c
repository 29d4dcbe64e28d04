/* cache/warmup.c over a made-up volume and a made-up cache: what is fetched, retried, refused,
 * counted and named. Replies come from another thread, as they do in life.
 *
 * The volume: directory 1 holds directories 10 .. 10+DIRS-1 and the entries of `extra`. Directory
 * 10+d holds files f0 .. of inode 1000*(d+1)+i, 100 KiB each, ten files a pack of 1 MiB. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/warmup.h"
#include "meta/lock.h"

#define DIRS       3
#define FILES      700 /* a directory: more than one page */
#define PACKS      (DIRS * FILES / 10)
#define FIRST_PACK 100
#define BIG_INO    5 /* external map, two windows, packs 1 and 2 */
#define FAR_INO    6 /* in another shard: no inode in the listing; pack 3 */
#define GONE_INO   7 /* a directory that is removed while we walk */
#define BAD_INO    8 /* a directory whose record is damaged */
#define FILE_SIZE  (100u << 10)

struct cache {
	uint64_t total, used;
	unsigned char full[FIRST_PACK + PACKS];
	unsigned char fails[FIRST_PACK + PACKS]; /* how many fetches of a pack fail */
	unsigned fetches, checks;
	int files;                                  /* what cache_check_files() says */
	unsigned char doubtful[FIRST_PACK + PACKS]; /* on the SSD since an earlier mount */
	unsigned char rotten[FIRST_PACK + PACKS];
	uint64_t disturb; /* becomes doubtful when another pack was checked */
	uint64_t evict;   /* is dropped when the last pack was fetched */
	uint32_t length;  /* of packs, as it turns out when they are fetched */
};

static struct cache fake;
static char names[FILES][8];
static bool with_bad, with_lie;

/* --- A thread that answers -------------------------------------------------------------- */

struct answer {
	void (*run)(struct answer *a);
	meta_done done;
	cache_done fetched;
	void *arg;
	silt_ino ino;
	uint64_t at;
	uint64_t *bytes;
	struct answer *next;
};

static struct silt_lock lock;
static struct silt_cond cond;
static struct answer *answers;
static bool stop;
static pthread_t thread;

static void *answerer(void *arg)
{
	silt_lock(&lock);
	while (!stop || answers) {
		struct answer *a = answers;
		if (!a) {
			silt_cond_wait(&cond, &lock);
			continue;
		}
		answers = a->next;
		silt_unlock(&lock);
		a->run(a);
		free(a);
		silt_lock(&lock);
	}
	silt_unlock(&lock);
	return NULL;
}

static void post(struct answer a)
{
	struct answer *copy = malloc(sizeof(a));
	*copy = a;
	silt_lock(&lock);
	copy->next = answers;
	answers = copy;
	silt_cond_signal(&cond);
	silt_unlock(&lock);
}

/* --- The volume ------------------------------------------------------------------------- */

static void reply(struct answer *a, struct meta_reply r)
{
	a->done(a->arg, &r);
}

static struct silt_inode file_inode(silt_ino ino)
{
	struct silt_inode n = { .attr = { .ino = ino, .mode = S_IFREG | 0644, .nlink = 1 } };
	n.attr.size = FILE_SIZE;
	n.map = SILT_MAP_INLINE;
	n.extent = (struct silt_extent){
		.len = FILE_SIZE, .pack = 3, .pack_off = 48, .stored = FILE_SIZE
	};
	if (ino >= 1000) {
		unsigned i = (unsigned)(ino % 1000) + (unsigned)(ino / 1000 - 1) * FILES;
		n.extent.pack = FIRST_PACK + i / 10;
		n.extent.pack_off = 48 + i % 10 * FILE_SIZE;
	}
	if (with_lie && ino == 1005)
		n.extent.stored = UINT32_MAX - n.extent.pack_off;
	if (ino == BIG_INO) {
		n.map = SILT_MAP_EXTERNAL;
		n.attr.size = SILT_WINDOW + 10;
	}
	return n;
}

static void add_entry(struct meta_dirpage *p, const char *name, uint32_t type, silt_ino ino)
{
	struct meta_dirent *d = &p->v[p->n++];
	*d = (struct meta_dirent){ .name = name,
		                   .len = (uint16_t)strlen(name),
		                   .type = type,
		                   .ino = ino,
		                   .has_inode = type == S_IFREG && ino != FAR_INO };
	if (d->has_inode)
		d->inode = file_inode(ino);
}

static void run_readdir(struct answer *a)
{
	static const char *const dirs[] = { "a", "b", "c" };
	struct meta_dirpage *p = calloc(1, sizeof(*p) + 600 * sizeof(p->v[0]));
	bool keep = false;

	if (a->ino == GONE_INO || a->ino == BAD_INO) {
		free(p);
		reply(a, (struct meta_reply){ .err = a->ino == BAD_INO ? -EIO : -ENOENT });
		return;
	}
	if (a->ino == 1) {
		for (int i = 0; i < DIRS; i++)
			add_entry(p, dirs[i], S_IFDIR, 10 + (silt_ino)i);
		add_entry(p, "big", S_IFREG, BIG_INO);
		add_entry(p, "far", S_IFREG, FAR_INO);
		add_entry(p, "gone", S_IFDIR, GONE_INO);
		add_entry(p, "link", S_IFLNK, 9);
		if (with_bad)
			add_entry(p, "bad", S_IFDIR, BAD_INO);
	} else {
		uint64_t i = a->at;
		for (; i < FILES && p->n < 512; i++) {
			add_entry(p, names[i], S_IFREG, (a->ino - 9) * 1000 + i);
		}
		p->next = i < FILES ? i : 0;
	}
	reply(a, (struct meta_reply){ .page = p, .keep_page = &keep });
	if (!keep)
		free(p);
}

void meta_readdir(struct meta *m, silt_ino dir, uint64_t pos, unsigned want, bool attrs,
                  meta_done done, void *arg)
{
	post((struct answer){
	        .run = run_readdir, .done = done, .arg = arg, .ino = dir, .at = pos });
}

static void run_getattr(struct answer *a)
{
	struct silt_inode n = file_inode(a->ino);
	if (a->ino == 1 || (a->ino >= 10 && a->ino < 10 + DIRS))
		n.attr.mode = S_IFDIR | 0755;
	reply(a, (struct meta_reply){ .err = a->ino == 77 ? -ENOENT : 0, .inode = n });
}

void meta_getattr(struct meta *m, silt_ino ino, meta_done done, void *arg)
{
	post((struct answer){ .run = run_getattr, .done = done, .arg = arg, .ino = ino });
}

static size_t put_window(uint8_t *out, uint64_t window)
{
	uint8_t log[2 * SILT_EXTENT_ENCODED_MAX];
	/* Pack 9 was overwritten as a whole: nobody needs it. */
	struct silt_extent old = {
		.off = window * SILT_WINDOW, .len = 10, .pack = 9, .stored = 50
	};
	struct silt_extent e = old;
	e.pack = window + 1;
	size_t n = extent_encode(&old, log);
	n += extent_encode(&e, log + n);
	return extent_logs_put(out, window, log, n);
}

/* The second window, then the first, and the second once more. */
static void run_windows(struct answer *a)
{
	uint8_t logs[2 * (EXTENT_LOGS_HEAD + 2 * SILT_EXTENT_ENCODED_MAX)];
	size_t n = a->at ? put_window(logs, 0) : 0;
	n += put_window(logs + n, 1);
	reply(a, (struct meta_reply){ .data = logs, .len = n, .next = a->at ? 0 : 7 });
}

void meta_windows(struct meta *m, silt_ino ino, uint64_t from, meta_done done, void *arg)
{
	post((struct answer){
	        .run = run_windows, .done = done, .arg = arg, .ino = ino, .at = from });
}

/* --- The cache -------------------------------------------------------------------------- */

static void run_fetch(struct answer *a)
{
	uint64_t pack = a->ino;
	int err = 0;
	silt_lock(&lock);
	fake.fetches++;
	if (fake.fails[pack]) {
		fake.fails[pack] -= fake.fails[pack] != 255;
		err = -EIO;
	} else {
		fake.full[pack] = 1;
		fake.doubtful[pack] = fake.rotten[pack] = 0;
		*a->bytes = fake.length;
	}
	if (fake.evict && pack != fake.evict)
		fake.full[fake.evict] = 0;
	silt_unlock(&lock);
	a->fetched(a->arg, err);
}

void cache_fetch_pack(struct cache *c, uint64_t pack, uint64_t *bytes, cache_done done, void *arg)
{
	post((struct answer){
	        .run = run_fetch, .fetched = done, .arg = arg, .ino = pack, .bytes = bytes });
}

enum cache_pack_state cache_pack_state(struct cache *c, uint64_t pack)
{
	silt_lock(&lock);
	enum cache_pack_state s = !fake.full[pack]      ? CACHE_PACK_ABSENT
	                          : fake.doubtful[pack] ? CACHE_PACK_UNCHECKED
	                                                : CACHE_PACK_FULL;
	silt_unlock(&lock);
	return s;
}

static void run_check(struct answer *a)
{
	uint64_t pack = a->ino;
	int err = 0;
	silt_lock(&lock);
	fake.checks++;
	if (!fake.full[pack])
		err = -ENOENT;
	else if (fake.rotten[pack])
		err = -EBADMSG;
	if (err < 0)
		fake.full[pack] = 0;
	fake.doubtful[pack] = 0;
	*a->bytes = fake.length;
	if (fake.disturb && pack != fake.disturb) {
		fake.doubtful[fake.disturb] = 1;
		fake.disturb = 0;
	}
	silt_unlock(&lock);
	a->fetched(a->arg, err);
}

void cache_check_pack(struct cache *c, uint64_t pack, uint64_t *bytes, cache_done done, void *arg)
{
	post((struct answer){
	        .run = run_check, .fetched = done, .arg = arg, .ino = pack, .bytes = bytes });
}

void cache_uncheck_pack(struct cache *c, uint64_t pack)
{
	silt_lock(&lock);
	fake.doubtful[pack] = 1;
	silt_unlock(&lock);
}

int cache_check_files(struct cache *c, struct silt_err *err)
{
	return fake.files < 0 ? silt_fail(err, fake.files, "no disk") : 0;
}

int cache_load_dictionaries(struct cache *c)
{
	return 0;
}

unsigned cache_fetch_width(const struct cache *c)
{
	return 4;
}

void cache_drop_pack(struct cache *c, uint64_t pack)
{
	fake.full[pack] = 0;
}

uint32_t cache_pack_length(struct cache *c, uint64_t pack)
{
	return fake.length;
}

uint32_t cache_slot_size(const struct cache *c)
{
	return 1u << 20;
}

void cache_space(struct cache *c, uint64_t *total, uint64_t *used)
{
	*total = fake.total;
	*used = fake.used;
}

/* --- Tests ------------------------------------------------------------------------------ */

static int setup(void **state)
{
	memset(&fake, 0, sizeof(fake));
	for (unsigned i = 0; i < FILES; i++)
		snprintf(names[i], sizeof(names[i]), "f%u", i % 1000);
	fake.total = (uint64_t)1 << 40;
	fake.length = 1u << 20;
	with_bad = with_lie = false;
	stop = false;
	silt_lock_init(&lock);
	silt_cond_init(&cond);
	return pthread_create(&thread, NULL, answerer, NULL);
}

static int teardown(void **state)
{
	silt_lock(&lock);
	stop = true;
	silt_cond_signal(&cond);
	silt_unlock(&lock);
	pthread_join(thread, NULL);
	silt_lock_destroy(&lock);
	silt_cond_destroy(&cond);
	return 0;
}

/* What the last warmup called missing: "PATH: WHY". */
static char missing[256][64];
static size_t missing_root[256], n_missing;

static void note_missing(void *arg, size_t root, const char *path, const char *why)
{
	assert_true(n_missing < 256);
	missing_root[n_missing] = root;
	snprintf(missing[n_missing++], sizeof(missing[0]), "%s: %s", path, why);
}

static int warm(struct warmup_config cfg, struct warmup_result *r)
{
	static const silt_ino root = 1;
	n_missing = 0;
	cfg.missing = note_missing;
	if (!cfg.roots) {
		cfg.roots = &root;
		cfg.n_roots = 1;
	}
	cfg.cache = &fake;
	return warmup_run(&cfg, r);
}

static void test_all_is_fetched_once(void **state)
{
	struct warmup_result r;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 0);
	assert_true(r.progress.resolved);
	assert_int_equal(r.progress.dirs, 1 + DIRS);
	assert_int_equal(r.progress.files, DIRS * FILES + 2);
	assert_true(r.progress.bytes ==
	            (uint64_t)(DIRS * FILES + 1) * FILE_SIZE + SILT_WINDOW + 10);
	assert_int_equal(r.progress.packs, PACKS + 3);
	assert_int_equal(r.progress.packs_done, PACKS + 3);
	assert_int_equal(r.progress.fetched_packs, PACKS + 3);
	assert_int_equal(fake.fetches, PACKS + 3);
	assert_int_equal(fake.full[9], 0);
	/* Again: all is there. */
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 0);
	assert_int_equal(r.progress.packs_cached, PACKS + 3);
	assert_int_equal(fake.fetches, PACKS + 3);
}

/* The next mount: what is on the SSD is read back before it is believed, once. */
static void test_checked_once_a_mount(void **state)
{
	struct warmup_result r;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 0);
	assert_int_equal(fake.checks, 0);
	memset(fake.doubtful, 1, sizeof(fake.doubtful));
	fake.used = fake.total; /* checking takes no room */
	assert_int_equal(warm((struct warmup_config){ .check = true }, &r), 0);
	assert_int_equal(fake.checks, PACKS + 3);
	assert_int_equal(r.progress.checked_packs, PACKS + 3);
	assert_int_equal(r.progress.checked_bytes, (PACKS + 3ul) << 20);
	assert_int_equal(r.progress.packs_done, PACKS + 3);
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 0);
	assert_int_equal(fake.checks, PACKS + 3);
	/* All over again for who asks for it. */
	assert_int_equal(warm((struct warmup_config){ .verify = true }, &r), 0);
	assert_int_equal(fake.checks, 2 * (PACKS + 3));
	assert_int_equal(r.progress.packs_cached, PACKS + 3);
	assert_int_equal(fake.fetches, PACKS + 3);
}

static void test_rot_is_named_and_healed(void **state)
{
	struct warmup_result r;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 0);
	memset(fake.doubtful, 1, sizeof(fake.doubtful));
	fake.rotten[FIRST_PACK + 70] = 1; /* b/f0 .. b/f9 */
	assert_int_equal(warm((struct warmup_config){ .check = true }, &r), 1);
	assert_int_equal(r.progress.damaged_packs, 1);
	assert_int_equal(r.progress.missing_files, 10);
	assert_int_equal(n_missing, 10);
	assert_non_null(strstr(missing[0], "b/f"));
	assert_non_null(strstr(missing[0], "damaged on the SSD"));
	assert_int_equal(fake.fetches, PACKS + 3);
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 0);
	assert_int_equal(fake.fetches, PACKS + 4);
	/* Rot under a live mount: only --verify looks. */
	fake.rotten[2] = 1;
	assert_int_equal(warm((struct warmup_config){ .check = true }, &r), 0);
	assert_int_equal(warm((struct warmup_config){ .verify = true }, &r), 0);
	assert_int_equal(r.progress.damaged_packs, 1);
	assert_int_equal(r.progress.fetched_packs, 1);
	assert_int_equal(fake.fetches, PACKS + 5);
	/* Damaged here and lost there. */
	memset(fake.doubtful, 1, sizeof(fake.doubtful));
	fake.rotten[2] = 1;
	fake.fails[2] = 255;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 1);
	assert_int_equal(r.progress.missing_files, 1);
}

/* Something that was right becomes doubtful while the rest is looked at: checked again. */
static void test_doubtful_meanwhile(void **state)
{
	struct warmup_result r;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 0);
	memset(fake.doubtful, 1, sizeof(fake.doubtful));
	fake.doubtful[3] = 0;
	fake.disturb = 3;
	assert_int_equal(warm((struct warmup_config){ .check = true }, &r), 0);
	assert_int_equal(fake.checks, PACKS + 3);
	assert_int_equal(fake.doubtful[3], 0);
	fake.files = -ENODEV;
	assert_int_equal(warm((struct warmup_config){ .check = true }, &r), -ENODEV);
	assert_string_equal(r.err.text, "no disk");
}

static void test_check_names_what_is_missing(void **state)
{
	struct warmup_result r;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 0);
	fake.full[2] = 0;               /* the second window of big */
	fake.full[FIRST_PACK + 70] = 0; /* b/f0 .. b/f9 */
	assert_int_equal(warm((struct warmup_config){ .check = true }, &r), 1);
	assert_int_equal(r.progress.missing_files, 11);
	assert_int_equal(n_missing, 11);
	for (size_t i = 0; i < n_missing; i++)
		assert_true(strncmp(missing[i], "b/f", 3) == 0 ||
		            strcmp(missing[i], "big: not cached") == 0);
	assert_int_equal(fake.fetches, PACKS + 3);
	/* A root that is a file has no name below itself. */
	silt_ino roots[] = { 11, BIG_INO };
	assert_int_equal(
	        warm((struct warmup_config){ .check = true, .roots = roots, .n_roots = 2 }, &r), 1);
	assert_int_equal(n_missing, 11);
	for (size_t i = 0; i < n_missing; i++)
		assert_int_equal(missing_root[i], strcmp(missing[i], ": not cached") == 0);
}

static void test_failed_pack_is_retried_then_missing(void **state)
{
	struct warmup_result r;
	fake.fails[1] = 2;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 0);
	assert_int_equal(fake.fetches, PACKS + 3 + 2);
	assert_int_equal(r.progress.failed_packs, 0);
}

static void test_evicted_meanwhile_is_missing(void **state)
{
	struct warmup_result r;
	fake.evict = FIRST_PACK;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 1);
	assert_int_equal(r.progress.missing_files, 10);
	assert_int_equal(r.progress.packs_done, PACKS + 2);
}

static void test_damaged_directory_is_missing(void **state)
{
	struct warmup_result r;
	with_bad = true;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 1);
	assert_int_equal(r.progress.missing_files, 1);
	assert_string_equal(missing[0], "bad: its metadata can't be read");
	assert_int_equal(r.progress.packs_done, PACKS + 3);
}

/* A record that decodes but names more bytes than any pack has. */
static void test_damaged_extent_is_missing(void **state)
{
	struct warmup_result r;
	with_lie = true;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 1);
	assert_int_equal(r.progress.missing_files, 1);
	assert_non_null(strstr(missing[0], ": its extents are damaged"));
	assert_int_equal(r.progress.packs_done, PACKS + 3);
}

/* What extents tell of the packs fits; that the packs are longer is known when they are here. */
static void test_longer_than_it_seemed(void **state)
{
	struct warmup_result r;
	fake.total = (uint64_t)500 << 30;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 0);
	memset(fake.full, 0, sizeof(fake.full));
	fake.fetches = 0;
	fake.length = UINT32_MAX;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), -ENOSPC);
	assert_non_null(strstr(r.err.text, "does not fit"));
	assert_in_range(fake.fetches, 100, PACKS);
}

static void test_refusals(void **state)
{
	struct warmup_result r;
	silt_ino gone = 77;
	fake.total = 50u << 20;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), -ENOSPC);
	assert_non_null(strstr(r.err.text, "does not fit"));
	assert_true(fake.fetches * (1u << 20) <= fake.total); /* into free space only */
	fake.used = fake.total;
	fake.fetches = 0;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), -ENOSPC);
	assert_int_equal(fake.fetches, 0); /* nothing was evicted for a run that is refused */
	fake.total = 0;
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), -ENODEV);
	fake.total = (uint64_t)1 << 40;
	assert_int_equal(warm((struct warmup_config){ .roots = &gone, .n_roots = 1 }, &r), -ENOENT);
}

static void test_cancel_and_drop(void **state)
{
	struct warmup_result r;
	atomic_bool cancel = true;
	assert_int_equal(warm((struct warmup_config){ .cancel = &cancel }, &r), -ECANCELED);
	assert_int_equal(warm((struct warmup_config){ 0 }, &r), 0);
	assert_int_equal(warm((struct warmup_config){ .drop = true }, &r), 0);
	for (int i = 0; i < FIRST_PACK + PACKS; i++)
		assert_int_equal(fake.full[i], 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_all_is_fetched_once, setup, teardown),
		cmocka_unit_test_setup_teardown(test_check_names_what_is_missing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_checked_once_a_mount, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rot_is_named_and_healed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_doubtful_meanwhile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_failed_pack_is_retried_then_missing, setup,
		                                teardown),
		cmocka_unit_test_setup_teardown(test_evicted_meanwhile_is_missing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_damaged_directory_is_missing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_damaged_extent_is_missing, setup, teardown),
		cmocka_unit_test_setup_teardown(test_longer_than_it_seemed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cancel_and_drop, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
