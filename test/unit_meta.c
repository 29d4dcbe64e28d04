/* The metadata engine against a real Redis (a private one, local:DIR): every operation, with 1 and
 * with 8 shards; bucket splits and merges; listing while the directory changes; damaged records. */
#include "test/meta_fixture.h"

struct fixture {
	struct server *s;
	struct meta *m;
};

/* A client with heartbeats, as mounts have them. */
static struct meta *open_meta(struct fixture *f)
{
	return server_open(f->s, NULL, 0, 5000);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->s = server_start((unsigned)(uintptr_t)*state);
	f->m = open_meta(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	meta_close(f->m);
	server_stop(f->s);
	free(f);
	return 0;
}

static int commit1(struct meta *m, silt_ino ino, struct silt_extent e)
{
	struct meta_commit c = { .ino = ino, .extent = e, .mtime = now() };
	assert_int_equal(commit_(m, &c, 1), 0);
	return c.err;
}

static void test_format_twice(void **state)
{
	struct fixture *f = *state;
	struct silt_err err = { 0 };
	assert_int_equal(server_format(f->s, meta_volume(f->m)->shards, &err), -EEXIST);
}

static void test_names(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	struct silt_inode i;
	char long_name[257];
	silt_ino file = must_make(m, 1, "file", S_IFREG | 0644);
	assert_int_equal(make(m, 1, "file", S_IFREG | 0644, NULL), -EEXIST);
	assert_int_equal(look(m, 1, "file", &i), 0);
	assert_true(i.attr.ino == file);
	assert_int_equal(i.attr.mode, S_IFREG | 0644);
	assert_int_equal(i.attr.uid, 5);
	assert_int_equal(i.attr.gid, 6);
	assert_int_equal(i.attr.nlink, 1);
	assert_int_equal(look(m, 1, "none", &i), -ENOENT);
	memset(long_name, 'n', 256);
	long_name[256] = '\0';
	assert_int_equal(make(m, 1, long_name, S_IFREG, NULL), -ENAMETOOLONG);
	long_name[255] = '\0';
	must_make(m, 1, long_name, S_IFREG | 0600);
	assert_int_equal(look(m, 1, long_name, &i), 0);
	assert_int_equal(make(m, 1, "a/b", S_IFREG, NULL), -EINVAL);
	assert_int_equal(make(m, file, "x", S_IFREG, NULL), -ENOTDIR);
	assert_int_equal(attr_of(m, 1).size, 2);

	silt_ino dir = must_make(m, 1, "dir", S_IFDIR | 0755);
	assert_int_equal(attr_of(m, 1).nlink, 3);
	assert_true(attr_of(m, dir).parent == 1);
	assert_int_equal(unlink_(m, 1, "dir", false, NULL), -EISDIR);
	assert_int_equal(rmdir_(m, 1, "file"), -ENOTDIR);
	must_make(m, dir, "in", S_IFREG | 0644);
	assert_int_equal(rmdir_(m, 1, "dir"), -ENOTEMPTY);
	assert_int_equal(unlink_(m, dir, "in", false, NULL), 0);
	assert_int_equal(unlink_(m, dir, "in", false, NULL), -ENOENT);
	assert_int_equal(rmdir_(m, 1, "dir"), 0);
	assert_int_equal(attr_of(m, 1).nlink, 2);
	assert_int_equal(make(m, dir, "in", S_IFREG | 0644, NULL), -ENOENT);

	struct meta_make how = { .mode = S_IFREG | 0600, .open_existing = true, .now = now() };
	struct meta_reply r;
	assert_int_equal(DO(meta_make(m, 1, "file", 4, &how, meta_wait_done, &w_), &r), 0);
	assert_true(r.existed && r.inode.attr.ino == file);
}

static void test_symlinks_and_devices(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	char target[4001];
	memset(target, 't', 4000);
	target[4000] = '\0';
	for (int n = 10; n <= 4000; n += 3990) {
		struct meta_make how = { .mode = S_IFLNK | 0777,
			                 .target = target,
			                 .target_len = (size_t)n,
			                 .now = now() };
		struct meta_reply r;
		const char *name = n == 10 ? "short" : "long";
		assert_int_equal(
		        DO(meta_make(m, 1, name, strlen(name), &how, meta_wait_done, &w_), &r), 0);
		assert_int_equal(r.inode.attr.size, n);
		struct meta_wait w;
		meta_wait_init(&w);
		meta_readlink(m, r.inode.attr.ino, meta_wait_done, &w);
		assert_int_equal(meta_wait(&w), 0);
		assert_int_equal(w.reply.len, n);
		assert_memory_equal(w.data, target, n);
		meta_wait_free(&w);
		assert_int_equal(unlink_(m, 1, name, false, NULL), 0);
	}
	struct meta_make dev = { .mode = S_IFCHR | 0600, .rdev = 0x12345, .now = now() };
	struct meta_reply r;
	assert_int_equal(DO(meta_make(m, 1, "dev", 3, &dev, meta_wait_done, &w_), &r), 0);
	assert_int_equal(r.inode.attr.rdev, 0x12345);
	silt_ino fifo = must_make(m, 1, "fifo", S_IFIFO | 0600);
	assert_int_equal(attr_of(m, fifo).mode, S_IFIFO | 0600);
}

static void test_attributes(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	silt_ino ino = must_make(m, 1, "f", S_IFREG | 0644);
	struct silt_attr v = { .mode = 04755,
		               .uid = 4000000000u,
		               .gid = 1,
		               .size = 1ull << 44,
		               .atime = { -5, 999999999 },
		               .mtime = { 1ll << 33, 7 } };
	struct meta_reply r;
	unsigned all = META_SET_MODE | META_SET_UID | META_SET_GID | META_SET_SIZE |
	               META_SET_ATIME | META_SET_MTIME;
	assert_int_equal(DO(meta_setattr(m, ino, all, &v, now(), meta_wait_done, &w_), &r), 0);
	struct silt_attr a = attr_of(m, ino);
	assert_int_equal(a.mode, S_IFREG | 04755);
	assert_true(a.uid == 4000000000u && a.gid == 1 && a.size == 1ull << 44);
	assert_true(a.atime.sec == -5 && a.atime.nsec == 999999999);
	assert_true(a.mtime.sec == 1ll << 33 && a.mtime.nsec == 7);
	assert_int_equal(
	        DO(meta_setattr(m, ino, META_CLEAR_SUID, &v, now(), meta_wait_done, &w_), &r), 0);
	assert_int_equal(attr_of(m, ino).mode, S_IFREG | 0755);
	assert_int_equal(DO(meta_setattr(m, 1, META_SET_SIZE, &v, now(), meta_wait_done, &w_), &r),
	                 -EISDIR);
	assert_int_equal(getattr_(m, 999999, NULL), -ENOENT);
	/* atime a little before mtime takes the short form: it must come back exactly. */
	v.mtime = (struct silt_time){ 1700000000, 5 };
	v.atime = (struct silt_time){ 1699999999, 999999990 };
	unsigned times = META_SET_ATIME | META_SET_MTIME;
	assert_int_equal(DO(meta_setattr(m, ino, times, &v, v.mtime, meta_wait_done, &w_), &r), 0);
	a = attr_of(m, ino);
	assert_true(a.atime.sec == 1699999999 && a.atime.nsec == 999999990);
	assert_true(a.ctime.sec == 1700000000 && a.ctime.nsec == 5);
}

/* The extents of a window, from its log; the caller frees the map. */
static void read_window(struct meta *m, silt_ino ino, uint64_t window, struct extent_map *map)
{
	struct meta_wait w;
	meta_wait_init(&w);
	meta_window(m, ino, window, meta_wait_done, &w);
	assert_int_equal(meta_wait(&w), 0);
	extent_map_init(map);
	assert_int_equal(extent_map_add_log(map, w.data, w.reply.len), 0);
	meta_wait_free(&w);
}

/* A second extent moves the map out of the record; a truncation cuts it. */
static void test_extents(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	struct silt_inode i;
	struct extent_map map;
	silt_ino ino = must_make(m, 1, "f", S_IFREG | 0644);
	struct silt_extent e = { .off = 0, .len = 4096, .pack = 9, .pack_off = 48, .stored = 1000 };
	assert_int_equal(commit1(m, ino, e), 0);
	assert_int_equal(look(m, 1, "f", &i), 0);
	assert_int_equal(i.map, SILT_MAP_INLINE);
	assert_memory_equal(&i.extent, &e, sizeof(e));
	assert_int_equal(i.attr.size, 4096);
	assert_true(i.attr.version > 0);
	e.off = 4096;
	e.pack = 10;
	assert_int_equal(commit1(m, ino, e), 0);
	e.off = SILT_WINDOW * 3;
	assert_int_equal(commit1(m, ino, e), 0);
	assert_int_equal(look(m, 1, "f", &i), 0);
	assert_int_equal(i.map, SILT_MAP_EXTERNAL);
	assert_true(i.attr.size == SILT_WINDOW * 3 + 4096);
	read_window(m, ino, 0, &map);
	assert_int_equal(map.n, 2);
	extent_map_free(&map);
	read_window(m, ino, 3, &map);
	assert_int_equal(map.n, 1);
	extent_map_free(&map);
	/* cut in the middle of the first window */
	assert_int_equal(resize_(m, ino, 5000), 0);
	read_window(m, ino, 3, &map);
	assert_int_equal(map.n, 0);
	extent_map_free(&map);
	read_window(m, ino, 0, &map);
	const struct silt_extent *last = extent_map_find(&map, 4999);
	assert_non_null(last);
	assert_true(last->off == 4096 && last->len == 904);
	assert_null(extent_map_find(&map, 5000));
	extent_map_free(&map);
	assert_int_equal(usage_of(m).bytes, 5000);
	assert_int_equal(commit1(m, 12345678, e), -ENOENT);
}

/* A whole overwrite of a small file stays in the record. */
static void test_small_file(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	struct silt_inode i;
	silt_ino ino = must_make(m, 1, "g", S_IFREG | 04755);
	struct silt_extent e = { .off = 0, .len = 100, .pack = 3, .pack_off = 48, .stored = 140 };
	assert_int_equal(commit1(m, ino, e), 0);
	assert_int_equal(attr_of(m, ino).mode, S_IFREG | 04755); /* root's write */
	struct meta_commit other = { .ino = ino, .extent = e, .mtime = now(), .drop_suid = true };
	other.extent.pack_off = 480;
	assert_int_equal(commit_(m, &other, 1), 0);
	assert_int_equal(other.err, 0);
	assert_int_equal(attr_of(m, ino).mode, S_IFREG | 0755);
	e.len = 200;
	assert_int_equal(commit1(m, ino, e), 0);
	assert_int_equal(look(m, 1, "g", &i), 0);
	assert_int_equal(i.map, SILT_MAP_INLINE);
	assert_int_equal(i.extent.len, 200);
	struct silt_attr v = { .size = 50 };
	struct meta_reply r;
	assert_int_equal(
	        DO(meta_setattr(m, ino, META_SET_SIZE, &v, now(), meta_wait_done, &w_), &r), 0);
	assert_int_equal(r.inode.extent.len, 50);
	assert_int_equal(usage_of(m).bytes, 50);
	v.size = 0;
	assert_int_equal(
	        DO(meta_setattr(m, ino, META_SET_SIZE, &v, now(), meta_wait_done, &w_), &r), 0);
	assert_int_equal(r.inode.map, SILT_MAP_NONE);
	assert_int_equal(usage_of(m).bytes, 0);
}

static void test_links_and_deleted_open(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	silt_ino d[4];
	char name[16];
	for (int i = 0; i < 4; i++) {
		snprintf(name, sizeof(name), "d%d", i);
		d[i] = must_make(m, 1, name, S_IFDIR | 0755);
	}
	silt_ino ino = must_make(m, d[0], "a", S_IFREG | 0644);
	for (int i = 0; i < 4; i++)
		assert_int_equal(link_(m, ino, d[i], "b"), 0);
	assert_int_equal(link_(m, ino, d[1], "b"), -EEXIST);
	assert_int_equal(link_(m, d[1], d[2], "dir"), -EPERM);
	assert_int_equal(attr_of(m, ino).nlink, 5);
	struct meta_reply r;
	for (int i = 0; i < 4; i++) {
		assert_int_equal(unlink_(m, d[i], "b", false, &r), 0);
		assert_int_equal(r.inode.attr.nlink, 4 - i);
		assert_true(r.inode.attr.ino == ino);
	}
	assert_int_equal(unlink_(m, d[0], "a", true, &r), 0);
	assert_int_equal(r.inode.attr.nlink, 0);
	assert_int_equal(attr_of(m, ino).nlink, 0);
	const struct silt_extent e = { .len = 5, .pack = 1, .pack_off = 48, .stored = 45 };
	assert_int_equal(commit1(m, ino, e), 0);
	assert_int_equal(DO(meta_release_deleted(m, ino, meta_wait_done, &w_), NULL), 0);
	assert_int_equal(getattr_(m, ino, NULL), -ENOENT);
	/* what a closed session held goes with it */
	ino = must_make(m, d[1], "x", S_IFREG | 0644);
	assert_int_equal(unlink_(m, d[1], "x", true, &r), 0);
	meta_close(f->m);
	f->m = m = open_meta(f);
	assert_int_equal(getattr_(m, ino, NULL), -ENOENT);
}

static void rename_files(struct meta *m, silt_ino from, silt_ino to)
{
	struct meta_reply r;
	struct silt_inode i;
	silt_ino src = must_make(m, from, "src", S_IFREG | 0644);
	assert_int_equal(rename_(m, from, "src", to, "dst", 0, &r), 0);
	assert_true(r.inode.attr.ino == src);
	assert_int_equal(look(m, from, "src", &i), -ENOENT);
	assert_int_equal(look(m, to, "dst", &i), 0);
	assert_true(i.attr.ino == src);
	/* over an existing file */
	silt_ino src2 = must_make(m, from, "src", S_IFREG | 0644);
	assert_int_equal(rename_(m, from, "src", to, "dst", META_RENAME_NOREPLACE, &r), -EEXIST);
	assert_int_equal(rename_(m, from, "src", to, "dst", 0, &r), 0);
	assert_true(r.replaced == src && r.replaced_nlink == 0);
	assert_int_equal(getattr_(m, src, NULL), -ENOENT);
	assert_int_equal(look(m, to, "dst", &i), 0);
	assert_true(i.attr.ino == src2);
	assert_int_equal(unlink_(m, to, "dst", false, NULL), 0);
	assert_int_equal(rename_(m, from, "none", to, "x", 0, &r), -ENOENT);
}

/* Parent pointer, link counts, over empty and non-empty ones, no loops. `top` is the directory d0
 * of the root, above neither of the others. */
static void rename_directories(struct meta *m, silt_ino top, silt_ino from, silt_ino to)
{
	struct meta_reply r;
	struct silt_inode i;
	silt_ino sub = must_make(m, from, "sub", S_IFDIR | 0755);
	assert_int_equal(rename_(m, from, "sub", to, "sub2", 0, &r), 0);
	assert_true(attr_of(m, sub).parent == to);
	assert_int_equal(attr_of(m, to).nlink, 3);
	silt_ino sub3 = must_make(m, from, "sub3", S_IFDIR | 0755);
	must_make(m, sub, "full", S_IFREG | 0644);
	assert_int_equal(rename_(m, from, "sub3", to, "sub2", 0, &r), -ENOTEMPTY);
	assert_int_equal(unlink_(m, sub, "full", false, NULL), 0);
	assert_int_equal(rename_(m, from, "sub3", to, "sub2", 0, &r), 0);
	assert_int_equal(look(m, to, "sub2", &i), 0);
	assert_true(i.attr.ino == sub3);
	must_make(m, from, "file", S_IFREG | 0644);
	assert_int_equal(rename_(m, from, "file", to, "sub2", 0, &r), -EISDIR);
	assert_int_equal(rename_(m, to, "sub2", from, "file", 0, &r), -ENOTDIR);
	assert_int_equal(unlink_(m, from, "file", false, NULL), 0);
	assert_int_equal(rename_(m, 1, "d0", top, "x", 0, &r), -EINVAL);
	if (from != to)
		assert_int_equal(rename_(m, to, "sub2", sub3, "x", 0, &r), -EINVAL);
	assert_int_equal(rmdir_(m, to, "sub2"), 0);
}

static void test_rename(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	silt_ino d[6];
	char name[16];
	for (int k = 0; k < 6; k++) {
		snprintf(name, sizeof(name), "d%d", k);
		d[k] = must_make(m, 1, name, S_IFDIR | 0755);
	}
	for (int pair = 0; pair < 36; pair++) {
		rename_files(m, d[pair / 6], d[pair % 6]);
		rename_directories(m, d[0], d[pair / 6], d[pair % 6]);
		for (int k = 0; k < 6; k++) {
			struct silt_attr at = attr_of(m, d[k]);
			assert_int_equal(at.size, 0);
			assert_int_equal(at.nlink, 2);
		}
	}
	assert_int_equal(usage_of(m).inodes, 7);
}

enum { BIG = 20000 }; /* files of the big directory, f0 ... */

static void make_big(struct meta *m, silt_ino dir)
{
	struct burst b;
	struct meta_make how = { .mode = S_IFREG | 0644, .now = now() };
	char name[32];
	burst_begin(&b, BIG);
	for (unsigned i = 0; i < BIG; i++) {
		int len = snprintf(name, sizeof(name), "f%u", i);
		meta_make(m, dir, name, (size_t)len, &how, burst_done, &b);
	}
	assert_int_equal(burst_end(&b), 0);
}

/* Removes files [from, to), or of them only each fourth, or only the others. */
static void remove_some(struct meta *m, silt_ino dir, unsigned from, unsigned to, bool each_fourth)
{
	struct burst b;
	char name[32];
	unsigned n = 0;
	for (unsigned i = from; i < to; i++)
		n += (i % 4 == 0) == each_fourth;
	burst_begin(&b, n);
	for (unsigned i = from; i < to; i++) {
		if ((i % 4 == 0) != each_fourth)
			continue;
		int len = snprintf(name, sizeof(name), "f%u", i);
		meta_unlink(m, dir, name, (size_t)len, false, now(), burst_done, &b);
	}
	assert_int_equal(burst_end(&b), 0);
}

/* Counts in `seen` the files of a page that begins at *pos, and moves *pos: after every third page
 * the next begins in the middle of this one, else at its end. */
static void list_page(struct meta *m, silt_ino dir, unsigned most, bool inodes, bool half,
                      unsigned char seen[BIG], uint64_t *pos)
{
	struct meta_wait w;
	meta_wait_init(&w);
	meta_readdir(m, dir, *pos, most, inodes, meta_wait_done, &w);
	assert_int_equal(meta_wait(&w), 0);
	size_t n = w.page->n;
	*pos = w.page->next;
	if (half && n > 0) {
		n = n / 2 + 1;
		*pos = w.page->v[n - 1].pos;
	}
	for (size_t i = 0; i < n; i++) {
		const struct meta_dirent *d = &w.page->v[i];
		unsigned k = (unsigned)strtoul(d->name + 1, NULL, 10);
		assert_true(k < BIG);
		assert_int_equal(seen[k]++, 0);
		assert_true(!inodes || (d->has_inode && d->inode.attr.ino == d->ino));
	}
	meta_wait_free(&w);
}

static void test_big_directory(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	static unsigned char seen[BIG];
	silt_ino dir = must_make(m, 1, "big", S_IFDIR | 0755);
	make_big(m, dir);
	assert_int_equal(attr_of(m, dir).size, BIG);
	uint64_t pos = 0;
	unsigned pages = 0;
	memset(seen, 0, sizeof(seen));
	do
		list_page(m, dir, 256, true, pages % 3 == 0, seen, &pos);
	while (pages++, pos);
	assert_true(pages < BIG / 100);
	for (unsigned i = 0; i < BIG; i++)
		assert_int_equal(seen[i], 1);
	/* A listing under way while three quarters go: the rest is seen exactly once. */
	unsigned removed = 0;
	memset(seen, 0, sizeof(seen));
	do {
		unsigned stop = removed + 400 < BIG ? removed + 400 : BIG;
		list_page(m, dir, 128, false, false, seen, &pos);
		remove_some(m, dir, removed, stop, false);
		removed = stop;
	} while (pos);
	for (unsigned i = 0; i < BIG; i += 4)
		assert_int_equal(seen[i], 1);
	remove_some(m, dir, removed, BIG, false);
	remove_some(m, dir, 0, BIG, true);
	assert_int_equal(attr_of(m, dir).size, 0);
	assert_int_equal(rmdir_(m, 1, "big"), 0);
	assert_no_keys(m, "*d*:*");
}

static uint64_t calls(struct fixture *f)
{
	return silt_metric_get(&f->s->metrics, M_REDIS_CALLS);
}

/* A client that creates in a directory learns that names are absent without asking, and never
 * wrongly so: not for names that it or another client adds, in whatever way, however the two
 * alternate. */
static void test_leases(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m, *m2 = open_meta(f);
	char name[32];
	struct silt_inode i;
	silt_ino dir = must_make(m, 1, "dir", S_IFDIR | 0755);
	silt_ino other = must_make(m, 1, "other", S_IFDIR | 0755);
	for (int k = 0; k < 5; k++) {
		snprintf(name, sizeof(name), "pre%d", k);
		must_make(m2, dir, name, S_IFREG | 0644);
	}
	must_make(m, other, "from", S_IFREG | 0644);
	usleep(600000); /* the lease that the other side got for its creates runs out */
	for (int k = 0; k < 20; k++) {
		snprintf(name, sizeof(name), "a%d", k);
		must_make(m, dir, name, S_IFREG | 0644);
	}
	uint64_t before = calls(f);
	for (int k = 0; k < 50; k++) {
		snprintf(name, sizeof(name), "absent%d", k);
		assert_int_equal(look(m, dir, name, &i), -ENOENT);
	}
	assert_true(calls(f) - before <= 2); /* a heartbeat may fall in */
	assert_int_equal(look(m, dir, "pre3", &i), 0);
	assert_int_equal(rename_(m, other, "from", dir, "moved", 0, NULL), 0);
	assert_int_equal(look(m, dir, "moved", &i), 0);
	assert_int_equal(link_(m, i.attr.ino, dir, "linked"), 0);
	assert_int_equal(look(m, dir, "linked", &i), 0);
	/* the other side adds while the lease runs: it waits, then is seen at once */
	for (int k = 0; k < 60; k++) {
		snprintf(name, sizeof(name), "x%d", k);
		assert_int_equal(look(m, dir, name, &i), -ENOENT);
		assert_int_equal(look(m2, dir, name, &i), -ENOENT);
		struct meta *maker = k % 3 ? m : m2;
		silt_ino made = must_make(maker, dir, name, S_IFREG | 0644);
		assert_int_equal(look(m, dir, name, &i), 0);
		assert_true(i.attr.ino == made);
		assert_int_equal(look(m2, dir, name, &i), 0);
		snprintf(name, sizeof(name), "y%d", k);
		if (k % 5 == 0)
			assert_int_equal(link_(k % 2 ? m : m2, made, dir, name), 0);
		assert_int_equal(look(m, dir, name, &i), k % 5 ? -ENOENT : 0);
		assert_int_equal(look(m2, dir, name, &i), k % 5 ? -ENOENT : 0);
	}
	/* left alone, a lease runs out */
	for (int k = 0; k < 5; k++) {
		snprintf(name, sizeof(name), "b%d", k);
		must_make(m, other, name, S_IFREG | 0644);
	}
	usleep(700000);
	must_make(m2, other, "late", S_IFREG | 0644);
	assert_int_equal(look(m, other, "late", &i), 0);
	meta_close(m2);
}

static void test_damaged_records(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	silt_ino ino = must_make(m, 1, "bad", S_IFREG | 0644);
	must_make(m, 1, "good", S_IFREG | 0644);
	const struct silt_extent e = { .len = 1, .pack = 1, .pack_off = 48, .stored = 41 };
	char key[32], field[8], *text = NULL;
	unsigned long long seq = silt_ino_seq(ino);
	snprintf(key, sizeof(key), "{%u}i%llx", silt_ino_shard(ino), seq / 64);
	snprintf(field, sizeof(field), "%llu", seq % 64);
	for (int len = 0; len < 24; len++) {
		char junk[24];
		memset(junk, 0x9d, sizeof(junk));
		const char *argv[] = { "HSET", key, field, junk };
		size_t lens[] = { 4, strlen(key), strlen(field), (size_t)len };
		assert_int_equal(meta_debug_command(m, 4, argv, lens, &text), 0);
		free(text);
		struct silt_inode i;
		assert_int_equal(look(m, 1, "bad", &i), -EIO);
		assert_int_equal(commit1(m, ino, e), -EIO);
		assert_int_equal(look(m, 1, "good", &i), 0);
		/* in one batch with others it fails alone */
		struct meta_commit two[2] = { { .ino = ino, .extent = e },
			                      { .ino = i.attr.ino, .extent = e } };
		assert_int_equal(commit_(m, two, 2), 0);
		assert_int_equal(two[0].err, -EIO);
		assert_int_equal(two[1].err, 0);
	}
}

#define ONE(test)  CASE_1_SHARD(test, setup, teardown)
#define BOTH(test) CASE_1_AND_8_SHARDS(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH(test_format_twice),
		BOTH(test_names),
		BOTH(test_symlinks_and_devices),
		BOTH(test_attributes),
		BOTH(test_extents),
		BOTH(test_small_file),
		BOTH(test_links_and_deleted_open),
		BOTH(test_rename),
		BOTH(test_big_directory),
		BOTH(test_leases),
		ONE(test_damaged_records),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
