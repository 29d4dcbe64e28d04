/* The metadata engine against a real Redis (a private one, local:DIR): every operation, with 1 and with
 * 8 shards; bucket splits and merges; listing while the directory changes; damaged records. */
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "meta/local.h"
#include "meta/meta.h"

struct fixture {
	char dir[64];
	struct meta_address address;
	struct meta_local *hold; /* keeps the server between opens */
	struct meta *m;
	struct silt_metrics metrics;
	struct silt_log *log;
};

static struct silt_time now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	return (struct silt_time){ ts.tv_sec, (uint32_t)ts.tv_nsec };
}

static struct meta *open_meta(struct fixture *f)
{
	struct silt_err err = { 0 };
	struct meta_config cfg = { .address = &f->address, .log = f->log, .metrics = &f->metrics,
				   .session = true, .session_info = "{\"host\":\"test\"}" };
	struct meta *m = NULL;
	int rc = meta_open(&cfg, &m, &err);
	if (rc)
		fail_msg("meta_open: %s", err.text);
	return m;
}

static int setup(void **state, unsigned shards)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct silt_err err = { 0 };
	char text[128];
	snprintf(f->dir, sizeof(f->dir), "/tmp/silt-unit-meta-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(text, sizeof(text), "local:%s", f->dir);
	assert_int_equal(silt_log_open("/dev/null", SILT_LOG_ERROR, NULL, &f->log), 0);
	assert_int_equal(meta_address_parse(text, &f->address, &err), 0);
	if (meta_local_open(f->dir, 1, f->log, &f->hold, &err))
		fail_msg("local: %s", err.text);
	struct meta_volume v = { .version = 1, .name = (char *)"unit", .id = 7, .shards = shards,
				 .storage = (char *)"file", .bucket = (char *)"./objects", .created = 1 };
	struct meta_server_info info;
	if (meta_format(&f->address, &v, 0, 0, f->log, &info, &err))
		fail_msg("format: %s", err.text);
	assert_int_equal(meta_format(&f->address, &v, 0, 0, f->log, &info, &err), -EEXIST);
	f->m = open_meta(f);
	*state = f;
	return 0;
}

static int setup1(void **state)
{
	return setup(state, 1);
}

static int setup8(void **state)
{
	return setup(state, 8);
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char cmd[128];
	meta_close(f->m);
	meta_local_close(f->hold);
	meta_address_free(&f->address);
	silt_log_close(f->log);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", f->dir);
	assert_int_equal(system(cmd), 0);
	free(f);
	return 0;
}

/* --- one line an operation --- */

#define DO(call, out)                                                                              \
	({                                                                                         \
		struct meta_wait w_;                                                               \
		meta_wait_init(&w_);                                                               \
		call;                                                                              \
		int rc_ = meta_wait(&w_);                                                          \
		struct meta_reply *o_ = (out);                                                     \
		if (o_)                                                                            \
			*o_ = w_.reply;                                                            \
		meta_wait_free(&w_);                                                               \
		rc_;                                                                               \
	})

static int make(struct meta *m, silt_ino dir, const char *name, uint32_t mode, silt_ino *ino)
{
	struct meta_make how = { .mode = mode, .uid = 5, .gid = 6, .now = now() };
	struct meta_reply r;
	int rc = DO(meta_make(m, dir, name, strlen(name), &how, meta_wait_done, &w_), &r);
	if (ino)
		*ino = r.inode.attr.ino;
	return rc;
}

static silt_ino must_make(struct meta *m, silt_ino dir, const char *name, uint32_t mode)
{
	silt_ino ino = 0;
	assert_int_equal(make(m, dir, name, mode, &ino), 0);
	assert_true(ino > 1);
	return ino;
}

static int look(struct meta *m, silt_ino dir, const char *name, struct silt_inode *out)
{
	struct meta_reply r;
	int rc = DO(meta_lookup(m, dir, name, strlen(name), meta_wait_done, &w_), &r);
	if (!rc && out)
		*out = r.inode;
	return rc;
}

static struct silt_attr attr_of(struct meta *m, silt_ino ino)
{
	struct meta_reply r;
	assert_int_equal(DO(meta_getattr(m, ino, meta_wait_done, &w_), &r), 0);
	return r.inode.attr;
}

static int unlink_(struct meta *m, silt_ino dir, const char *name, bool keep, struct meta_reply *r)
{
	return DO(meta_unlink(m, dir, name, strlen(name), keep, now(), meta_wait_done, &w_), r);
}

static int rmdir_(struct meta *m, silt_ino dir, const char *name)
{
	return DO(meta_rmdir(m, dir, name, strlen(name), now(), meta_wait_done, &w_), NULL);
}

static int rename_(struct meta *m, silt_ino d1, const char *a, silt_ino d2, const char *b, unsigned flags,
		   struct meta_reply *r)
{
	return DO(meta_rename(m, d1, a, strlen(a), d2, b, strlen(b), flags, false, now(), meta_wait_done,
			      &w_), r);
}

static int link_(struct meta *m, silt_ino ino, silt_ino dir, const char *name)
{
	return DO(meta_link(m, ino, dir, name, strlen(name), now(), meta_wait_done, &w_), NULL);
}

static int commit1(struct meta *m, silt_ino ino, struct silt_extent e)
{
	struct meta_commit c = { .ino = ino, .extent = e, .mtime = now() };
	assert_int_equal(DO(meta_commit(m, &c, 1, meta_wait_done, &w_), NULL), 0);
	return c.err;
}

/* --- tests --- */

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
		struct meta_make how = { .mode = S_IFLNK | 0777, .target = target, .target_len = (size_t)n,
					 .now = now() };
		struct meta_reply r;
		const char *name = n == 10 ? "short" : "long";
		assert_int_equal(DO(meta_make(m, 1, name, strlen(name), &how, meta_wait_done, &w_), &r), 0);
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
	must_make(m, 1, "fifo", S_IFIFO | 0600);
}

static void test_attributes(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	silt_ino ino = must_make(m, 1, "f", S_IFREG | 0644);
	struct silt_attr v = { .mode = 04755, .uid = 4000000000u, .gid = 1, .size = 1ull << 44,
			       .atime = { -5, 999999999 }, .mtime = { 1ll << 33, 7 } };
	struct meta_reply r;
	unsigned all = META_SET_MODE | META_SET_UID | META_SET_GID | META_SET_SIZE | META_SET_ATIME |
		       META_SET_MTIME;
	assert_int_equal(DO(meta_setattr(m, ino, all, &v, now(), meta_wait_done, &w_), &r), 0);
	struct silt_attr a = attr_of(m, ino);
	assert_int_equal(a.mode, S_IFREG | 04755);
	assert_true(a.uid == 4000000000u && a.gid == 1 && a.size == 1ull << 44);
	assert_true(a.atime.sec == -5 && a.atime.nsec == 999999999);
	assert_true(a.mtime.sec == 1ll << 33 && a.mtime.nsec == 7);
	assert_int_equal(DO(meta_setattr(m, ino, META_CLEAR_SUID, &v, now(), meta_wait_done, &w_), &r), 0);
	assert_int_equal(attr_of(m, ino).mode, S_IFREG | 0755);
	assert_int_equal(DO(meta_setattr(m, 1, META_SET_SIZE, &v, now(), meta_wait_done, &w_), &r), -EISDIR);
	assert_int_equal(DO(meta_getattr(m, 999999, meta_wait_done, &w_), &r), -ENOENT);
	/* atime a little before mtime takes the short form: it must come back exactly. */
	v.mtime = (struct silt_time){ 1700000000, 5 };
	v.atime = (struct silt_time){ 1699999999, 999999990 };
	DO(meta_setattr(m, ino, META_SET_ATIME | META_SET_MTIME, &v, v.mtime, meta_wait_done, &w_), &r);
	a = attr_of(m, ino);
	assert_true(a.atime.sec == 1699999999 && a.atime.nsec == 999999990);
	assert_true(a.ctime.sec == 1700000000 && a.ctime.nsec == 5);
}

static void test_extents(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	silt_ino ino = must_make(m, 1, "f", S_IFREG | 0644);
	struct silt_extent e = { .off = 0, .len = 4096, .pack = 9, .pack_off = 48, .stored = 1000 };
	assert_int_equal(commit1(m, ino, e), 0);
	struct silt_inode i;
	look(m, 1, "f", &i);
	assert_int_equal(i.map, SILT_MAP_INLINE);
	assert_memory_equal(&i.extent, &e, sizeof(e));
	assert_int_equal(i.attr.size, 4096);
	assert_true(i.attr.version > 0);
	/* a second extent behind it: the map moves out of the record */
	e.off = 4096;
	e.pack = 10;
	assert_int_equal(commit1(m, ino, e), 0);
	e.off = SILT_WINDOW * 3;
	assert_int_equal(commit1(m, ino, e), 0);
	look(m, 1, "f", &i);
	assert_int_equal(i.map, SILT_MAP_EXTERNAL);
	assert_true(i.attr.size == SILT_WINDOW * 3 + 4096);
	struct meta_wait w;
	meta_wait_init(&w);
	meta_window(m, ino, 0, meta_wait_done, &w);
	assert_int_equal(meta_wait(&w), 0);
	struct extent_map map;
	extent_map_init(&map);
	assert_int_equal(extent_map_add_log(&map, w.data, w.reply.len), 0);
	assert_int_equal(map.n, 2);
	meta_wait_free(&w);
	/* cut in the middle of the first window */
	struct silt_attr v = { .size = 5000 };
	struct meta_reply r;
	assert_int_equal(DO(meta_setattr(m, ino, META_SET_SIZE, &v, now(), meta_wait_done, &w_), &r), 0);
	meta_wait_init(&w);
	meta_window(m, ino, 3, meta_wait_done, &w);
	assert_int_equal(meta_wait(&w), 0);
	assert_int_equal(w.reply.len, 0);
	meta_wait_free(&w);
	extent_map_free(&map);
	extent_map_init(&map);
	meta_wait_init(&w);
	meta_window(m, ino, 0, meta_wait_done, &w);
	assert_int_equal(meta_wait(&w), 0);
	assert_int_equal(extent_map_add_log(&map, w.data, w.reply.len), 0);
	meta_wait_free(&w);
	const struct silt_extent *last = extent_map_find(&map, 4999);
	assert_non_null(last);
	assert_true(last->off == 4096 && last->len == 904);
	assert_null(extent_map_find(&map, 5000));
	extent_map_free(&map);
	assert_int_equal(commit1(m, 12345678, e), -ENOENT);
	/* a whole overwrite of a small file stays in the record */
	silt_ino small = must_make(m, 1, "g", S_IFREG | 04755);
	e = (struct silt_extent){ .off = 0, .len = 100, .pack = 3, .pack_off = 48, .stored = 140 };
	assert_int_equal(commit1(m, small, e), 0);
	assert_int_equal(attr_of(m, small).mode, S_IFREG | 0755);
	e.len = 200;
	assert_int_equal(commit1(m, small, e), 0);
	look(m, 1, "g", &i);
	assert_int_equal(i.map, SILT_MAP_INLINE);
	assert_int_equal(i.extent.len, 200);
	v.size = 50;
	DO(meta_setattr(m, small, META_SET_SIZE, &v, now(), meta_wait_done, &w_), &r);
	assert_int_equal(r.inode.extent.len, 50);
	v.size = 0;
	DO(meta_setattr(m, small, META_SET_SIZE, &v, now(), meta_wait_done, &w_), &r);
	assert_int_equal(r.inode.map, SILT_MAP_NONE);
	DO(meta_statfs(m, meta_wait_done, &w_), &r);
	assert_int_equal(r.statfs.bytes, 5000);
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
	assert_int_equal(commit1(m, ino, (struct silt_extent){ .len = 5, .pack = 1, .pack_off = 48, .stored = 45 }), 0);
	assert_int_equal(DO(meta_release_deleted(m, ino, meta_wait_done, &w_), NULL), 0);
	assert_int_equal(DO(meta_getattr(m, ino, meta_wait_done, &w_), &r), -ENOENT);
	/* what a closed session held goes with it */
	ino = must_make(m, d[1], "x", S_IFREG | 0644);
	assert_int_equal(unlink_(m, d[1], "x", true, &r), 0);
	meta_close(f->m);
	f->m = m = open_meta(f);
	assert_int_equal(DO(meta_getattr(m, ino, meta_wait_done, &w_), &r), -ENOENT);
}

static void test_rename(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	struct meta_reply r;
	struct silt_inode i;
	silt_ino d[6];
	char name[16];
	for (int k = 0; k < 6; k++) {
		snprintf(name, sizeof(name), "d%d", k);
		d[k] = must_make(m, 1, name, S_IFDIR | 0755);
	}
	for (int a = 0; a < 6; a++) {
		for (int b = 0; b < 6; b++) {
			silt_ino src = must_make(m, d[a], "src", S_IFREG | 0644);
			assert_int_equal(rename_(m, d[a], "src", d[b], "dst", 0, &r), 0);
			assert_true(r.inode.attr.ino == src);
			assert_int_equal(look(m, d[a], "src", &i), -ENOENT);
			assert_int_equal(look(m, d[b], "dst", &i), 0);
			assert_true(i.attr.ino == src);
			/* over an existing file */
			silt_ino src2 = must_make(m, d[a], "src", S_IFREG | 0644);
			assert_int_equal(rename_(m, d[a], "src", d[b], "dst", META_RENAME_NOREPLACE, &r), -EEXIST);
			assert_int_equal(rename_(m, d[a], "src", d[b], "dst", 0, &r), 0);
			assert_true(r.replaced == src && r.replaced_nlink == 0);
			assert_int_equal(DO(meta_getattr(m, src, meta_wait_done, &w_), NULL), -ENOENT);
			assert_int_equal(look(m, d[b], "dst", &i), 0);
			assert_true(i.attr.ino == src2);
			assert_int_equal(unlink_(m, d[b], "dst", false, NULL), 0);
			/* directories: parent pointer, link counts, over empty and non-empty ones */
			silt_ino sub = must_make(m, d[a], "sub", S_IFDIR | 0755);
			assert_int_equal(rename_(m, d[a], "sub", d[b], "sub2", 0, &r), 0);
			assert_true(attr_of(m, sub).parent == d[b]);
			assert_int_equal(attr_of(m, d[b]).nlink, 3);
			silt_ino sub3 = must_make(m, d[a], "sub3", S_IFDIR | 0755);
			must_make(m, sub, "full", S_IFREG | 0644);
			assert_int_equal(rename_(m, d[a], "sub3", d[b], "sub2", 0, &r), -ENOTEMPTY);
			assert_int_equal(unlink_(m, sub, "full", false, NULL), 0);
			assert_int_equal(rename_(m, d[a], "sub3", d[b], "sub2", 0, &r), 0);
			assert_int_equal(look(m, d[b], "sub2", &i), 0);
			assert_true(i.attr.ino == sub3);
			silt_ino file = must_make(m, d[a], "file", S_IFREG | 0644);
			(void)file;
			assert_int_equal(rename_(m, d[a], "file", d[b], "sub2", 0, &r), -EISDIR);
			assert_int_equal(rename_(m, d[b], "sub2", d[a], "file", 0, &r), -ENOTDIR);
			assert_int_equal(unlink_(m, d[a], "file", false, NULL), 0);
			/* no loops */
			assert_int_equal(rename_(m, 1, "d0", d[0], "x", 0, &r), -EINVAL);
			if (a != b) {
				assert_int_equal(rename_(m, d[b], "sub2", sub3, "x", 0, &r), -EINVAL);
			}
			assert_int_equal(rmdir_(m, d[b], "sub2"), 0);
			assert_int_equal(rename_(m, d[a], "none", d[b], "x", 0, &r), -ENOENT);
			for (int k = 0; k < 6; k++) {
				struct silt_attr at = attr_of(m, d[k]);
				assert_int_equal(at.size, 0);
				assert_int_equal(at.nlink, 2);
			}
		}
	}
	DO(meta_statfs(m, meta_wait_done, &w_), &r);
	assert_int_equal(r.statfs.inodes, 7);
}

/* Makes `n` files with many requests in flight. */
struct many {
	struct silt_lock *lock;
	atomic_int left, bad;
};

static void many_done(void *arg, const struct meta_reply *r)
{
	struct many *y = arg;
	if (r->err)
		atomic_fetch_add(&y->bad, 1);
	atomic_fetch_sub(&y->left, 1);
}

static void wait_many(struct many *y)
{
	while (atomic_load(&y->left) > 0)
		usleep(200);
	assert_int_equal(atomic_load(&y->bad), 0);
}

static unsigned list_all(struct meta *m, silt_ino dir, unsigned want, unsigned char *seen, unsigned n)
{
	uint64_t pos = 0;
	unsigned calls = 0;
	memset(seen, 0, n);
	do {
		struct meta_wait w;
		meta_wait_init(&w);
		meta_readdir(m, dir, pos, want, true, meta_wait_done, &w);
		assert_int_equal(meta_wait(&w), 0);
		for (size_t i = 0; i < w.page->n; i++) {
			const struct meta_dirent *d = &w.page->v[i];
			unsigned k = (unsigned)strtoul(d->name + 1, NULL, 10);
			assert_true(k < n);
			assert_int_equal(seen[k], 0);
			seen[k] = 1;
			assert_true(d->has_inode);
			assert_true(d->inode.attr.ino == d->ino);
			if (i == w.page->n / 2 && calls % 3 == 0) { /* go on from the middle of a page */
				pos = d->pos;
				goto next;
			}
		}
		pos = w.page->next;
	next:
		meta_wait_free(&w);
		calls++;
	} while (pos);
	return calls;
}

static void test_big_directory(void **state)
{
	struct fixture *f = *state;
	struct meta *m = f->m;
	enum { N = 20000 };
	static unsigned char seen[N];
	silt_ino dir = must_make(m, 1, "big", S_IFDIR | 0755);
	struct many y = { 0 };
	struct meta_make how = { .mode = S_IFREG | 0644, .now = now() };
	char name[32];
	atomic_store(&y.left, N);
	for (int i = 0; i < N; i++) {
		int len = snprintf(name, sizeof(name), "f%d", i);
		meta_make(m, dir, name, (size_t)len, &how, many_done, &y);
	}
	wait_many(&y);
	assert_int_equal(attr_of(m, dir).size, N);
	unsigned calls = list_all(m, dir, 256, seen, N);
	assert_true(calls < N / 100);
	for (int i = 0; i < N; i++)
		assert_int_equal(seen[i], 1);
	/* A listing under way while three quarters go: the rest is seen exactly once. */
	uint64_t pos = 0;
	unsigned deleted = 0;
	memset(seen, 0, sizeof(seen));
	do {
		struct meta_wait w;
		meta_wait_init(&w);
		meta_readdir(m, dir, pos, 128, false, meta_wait_done, &w);
		assert_int_equal(meta_wait(&w), 0);
		for (size_t i = 0; i < w.page->n; i++)
			seen[strtoul(w.page->v[i].name + 1, NULL, 10)]++;
		pos = w.page->next;
		meta_wait_free(&w);
		unsigned stop = deleted + 400 < N ? deleted + 400 : N;
		atomic_store(&y.left, 0);
		for (; deleted < stop; deleted++) {
			if (deleted % 4 == 0)
				continue;
			int len = snprintf(name, sizeof(name), "f%u", deleted);
			atomic_fetch_add(&y.left, 1);
			meta_unlink(m, dir, name, (size_t)len, false, now(), many_done, &y);
		}
		wait_many(&y);
	} while (pos);
	for (int i = 0; i < N; i += 4)
		assert_int_equal(seen[i], 1);
	for (int i = 0; i < N; i++)
		assert_true(seen[i] <= 1);
	for (int i = 0; i < N; i++) {
		int len = snprintf(name, sizeof(name), "f%d", i);
		if (i % 4 == 0 || i >= (int)deleted)
			assert_int_equal(DO(meta_unlink(m, dir, name, (size_t)len, false, now(),
							meta_wait_done, &w_), NULL), 0);
	}
	assert_int_equal(attr_of(m, dir).size, 0);
	assert_int_equal(rmdir_(m, 1, "big"), 0);
	char *text = NULL;
	const char *argv[] = { "KEYS", "*d*:*" };
	assert_int_equal(meta_debug_command(m, 2, argv, NULL, &text), 0);
	assert_string_equal(text, "(empty)\n");
	free(text);
}

static uint64_t calls(struct fixture *f)
{
	return silt_metric_get(&f->metrics, M_REDIS_CALLS);
}

/* A client that creates in a directory learns that names are absent without asking, and never wrongly
 * so: not for names that it or another client adds, in whatever way, however the two alternate. */
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
		assert_int_equal(commit1(m, ino, (struct silt_extent){ .len = 1, .pack = 1, .pack_off = 48, .stored = 41 }), -EIO);
		assert_int_equal(look(m, 1, "good", &i), 0);
		/* in one batch with others it fails alone */
		struct meta_commit two[2] = { { .ino = ino }, { .ino = i.attr.ino } };
		two[0].extent = two[1].extent =
			(struct silt_extent){ .len = 1, .pack = 1, .pack_off = 48, .stored = 41 };
		assert_int_equal(DO(meta_commit(m, two, 2, meta_wait_done, &w_), NULL), 0);
		assert_int_equal(two[0].err, -EIO);
		assert_int_equal(two[1].err, 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define BOTH(t) cmocka_unit_test_setup_teardown(t, setup1, teardown), \
		{ #t "_8_shards", t, setup8, teardown, NULL }
		BOTH(test_names),
		BOTH(test_symlinks_and_devices),
		BOTH(test_attributes),
		BOTH(test_extents),
		BOTH(test_links_and_deleted_open),
		BOTH(test_rename),
		BOTH(test_big_directory),
		BOTH(test_leases),
		cmocka_unit_test_setup_teardown(test_damaged_records, setup1, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
