/* The connection to Redis when it breaks, through a proxy that breaks it (redis_proxy.h). Whatever
 * happens, an operation is seen to be done exactly once, by its caller and in the tree. */
#include "test/meta_fixture.h"

#include <pthread.h>

#include "test/redis_proxy.h"

struct fixture {
	struct server *s;
	struct proxy *x;
	struct meta *m;   /* through the proxy */
	struct meta *see; /* not */
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->s = server_start((unsigned)(uintptr_t)*state);
	f->x = proxy_start(f->s->dir, meta_local_socket(f->s->hold));
	f->m = server_open(f->s, proxy_address(f->x), 30000, 0);
	f->see = server_open(f->s, NULL, 30000, 0);
	usleep(50000); /* the first heartbeats are over: what is struck is what is meant */
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	meta_close(f->m);
	meta_close(f->see);
	proxy_stop(f->x);
	server_stop(f->s);
	free(f);
	return 0;
}

/* Live bytes of a pack, in all shards. */
static long live(struct meta *m, unsigned pack)
{
	long sum = 0;
	for (unsigned s = 0; s < meta_volume(m)->shards; s++) {
		char key[32], field[8];
		snprintf(key, sizeof(key), "{%u}l%x", s, pack / 64);
		snprintf(field, sizeof(field), "%u", pack % 64);
		char *text = redis(m, "HGET", key, field, NULL);
		if (text[0] == '"')
			sum += strtol(text + 1, NULL, 10);
		free(text);
	}
	return sum;
}

static struct silt_extent extent(uint64_t off, uint64_t len, unsigned pack)
{
	return (struct silt_extent){
		.off = off, .len = len, .pack = pack, .pack_off = 48, .stored = 100
	};
}

/* One round over all writing operations, each of which loses its connection in the same way. In 8
 * shards the directories are in different ones, so that most operations go over two; `word` is then
 * any function call, and a round for each `skip` strikes each of them once. */
struct round {
	struct fixture *f;
	const char *word;
	int skip;
	enum fault how;
	int struck;
	silt_ino d1, d2, ino; /* two directories of the root; the file that is passed around */
	struct meta_statfs base;
};

#define STRIKE(t, call)                                                                            \
	({                                                                                         \
		proxy_arm((t)->f->x, (t)->word, (t)->skip, (t)->how);                              \
		int rc__ = (call);                                                                 \
		(t)->struck += proxy_disarm((t)->f->x);                                            \
		rc__;                                                                              \
	})

/* Leaves the file "f" and the directory "sub" in d1, more links to the file at "g" in both. */
static void strike_makes_and_links(struct round *t)
{
	struct meta *m = t->f->m, *see = t->f->see;
	struct silt_inode i;
	silt_ino sub;
	assert_int_equal(STRIKE(t, make(m, t->d1, "f", S_IFREG | 0644, &t->ino)), 0);
	assert_int_equal(look(see, t->d1, "f", &i), 0);
	assert_true(i.attr.ino == t->ino && i.attr.nlink == 1);
	assert_int_equal(attr_of(see, t->d1).size, 1);
	assert_int_equal(usage_of(see).inodes, t->base.inodes + 1);
	assert_int_equal(STRIKE(t, make(m, t->d1, "f", S_IFREG | 0644, NULL)), -EEXIST);
	assert_int_equal(STRIKE(t, make(m, t->d1, "sub", S_IFDIR | 0755, &sub)), 0);
	assert_int_equal(look(see, t->d1, "sub", &i), 0);
	assert_true(i.attr.ino == sub && i.attr.nlink == 2);
	assert_int_equal(attr_of(see, t->d1).nlink, 3);
	assert_int_equal(usage_of(see).inodes, t->base.inodes + 2);
	/* link: in the directory, and elsewhere */
	assert_int_equal(STRIKE(t, link_(m, t->ino, t->d1, "g")), 0);
	assert_int_equal(attr_of(see, t->ino).nlink, 2);
	assert_int_equal(STRIKE(t, link_(m, t->ino, t->d2, "g")), 0);
	assert_int_equal(attr_of(see, t->ino).nlink, 3);
	assert_int_equal(STRIKE(t, link_(m, t->ino, t->d2, "g")), -EEXIST);
	assert_int_equal(attr_of(see, t->ino).nlink, 3);
}

/* Two extents of the file in one call, then a truncation. */
static void strike_writes(struct round *t)
{
	struct meta *m = t->f->m, *see = t->f->see;
	long live11 = live(see, 11), live12 = live(see, 12);
	struct meta_commit c[2] = {
		{ .ino = t->ino, .extent = extent(0, 50, 11), .mtime = now() },
		{ .ino = t->ino, .extent = extent(50, 50, 12), .mtime = now() },
	};
	assert_int_equal(STRIKE(t, commit_(m, c, 2)), 0);
	assert_int_equal(c[0].err, 0);
	assert_int_equal(c[1].err, 0);
	assert_int_equal(live(see, 11), live11 + 100);
	assert_int_equal(live(see, 12), live12 + 100);
	assert_int_equal(usage_of(see).bytes, t->base.bytes + 100);
	assert_int_equal(STRIKE(t, resize_(m, t->ino, 60)), 0);
	assert_int_equal(attr_of(see, t->ino).size, 60);
	assert_int_equal(usage_of(see).bytes, t->base.bytes + 60);
}

static int setxattr_(struct meta *m, silt_ino ino, const char *name, unsigned how)
{
	return DO(meta_setxattr(m, ino, name, "v", 1, how, now(), meta_wait_done, &w_), NULL);
}

static int removexattr_(struct meta *m, silt_ino ino, const char *name)
{
	return DO(meta_removexattr(m, ino, name, now(), meta_wait_done, &w_), NULL);
}

static int set_flags_(struct meta *m, silt_ino ino, unsigned flags)
{
	return DO(meta_set_flags(m, ino, flags, now(), meta_wait_done, &w_), NULL);
}

/* An attribute that must be new, then must be there, then goes; what fails, fails. A file that was
 * made immutable may not go. */
static void strike_attributes(struct round *t)
{
	struct meta *m = t->f->m, *see = t->f->see;
	struct meta_reply r;
	assert_int_equal(STRIKE(t, setxattr_(m, t->ino, "user.a", META_XATTR_CREATE)), 0);
	assert_int_equal(attr_of(see, t->ino).flags, SILT_FLAG_XATTRS);
	assert_int_equal(STRIKE(t, setxattr_(m, t->ino, "user.a", META_XATTR_CREATE)), -EEXIST);
	assert_int_equal(STRIKE(t, setxattr_(m, t->ino, "user.b", META_XATTR_REPLACE)), -ENODATA);
	assert_int_equal(STRIKE(t, removexattr_(m, t->ino, "user.a")), 0);
	assert_int_equal(STRIKE(t, removexattr_(m, t->ino, "user.a")), -ENODATA);
	assert_int_equal(attr_of(see, t->ino).flags, 0);
	assert_int_equal(STRIKE(t, set_flags_(m, t->ino, SILT_FLAG_IMMUTABLE)), 0);
	assert_int_equal(STRIKE(t, unlink_(m, t->d1, "f", false, &r)), -EPERM);
	assert_int_equal(STRIKE(t, set_flags_(m, t->ino, 0)), 0);
	assert_int_equal(attr_of(see, t->ino).flags, 0);
}

/* One of several names; one that is not there; one in the other directory. */
static void strike_unlinks(struct round *t)
{
	struct meta *m = t->f->m, *see = t->f->see;
	struct meta_reply r;
	assert_int_equal(STRIKE(t, unlink_(m, t->d1, "g", false, &r)), 0);
	assert_int_equal(r.inode.attr.ino, t->ino);
	assert_int_equal(r.inode.attr.nlink, 2);
	assert_int_equal(attr_of(see, t->ino).nlink, 2);
	assert_int_equal(STRIKE(t, unlink_(m, t->d1, "g", false, &r)), -ENOENT);
	assert_int_equal(STRIKE(t, unlink_(m, t->d2, "g", false, &r)), 0);
	assert_int_equal(r.inode.attr.nlink, 1);
	assert_int_equal(attr_of(see, t->ino).nlink, 1);
}

/* To another name, directory; one that is not there; over a file; an exchange. Leaves the file at
 * "x" in d1. */
static void strike_renames(struct round *t)
{
	struct meta *m = t->f->m, *see = t->f->see;
	struct meta_reply r;
	struct silt_inode i;
	assert_int_equal(STRIKE(t, rename_(m, t->d1, "f", t->d1, "h", 0, &r)), 0);
	assert_int_equal(r.inode.attr.ino, t->ino);
	assert_int_equal(STRIKE(t, rename_(m, t->d1, "f", t->d1, "h", 0, &r)), -ENOENT);
	assert_int_equal(look(see, t->d1, "h", &i), 0);
	assert_int_equal(STRIKE(t, rename_(m, t->d1, "h", t->d2, "h", 0, &r)), 0);
	assert_int_equal(r.inode.attr.ino, t->ino);
	assert_int_equal(look(see, t->d1, "h", &i), -ENOENT);
	assert_int_equal(look(see, t->d2, "h", &i), 0);
	silt_ino over = must_make(see, t->d1, "over", S_IFREG | 0644);
	assert_int_equal(STRIKE(t, rename_(m, t->d2, "h", t->d1, "over", 0, &r)), 0);
	assert_int_equal(r.inode.attr.ino, t->ino);
	assert_int_equal(r.replaced, over);
	assert_int_equal(r.replaced_nlink, 0);
	assert_int_equal(getattr_(see, over, NULL), -ENOENT);
	must_make(see, t->d1, "x", S_IFREG | 0644);
	const unsigned exchange = META_RENAME_EXCHANGE;
	assert_int_equal(STRIKE(t, rename_(m, t->d1, "x", t->d1, "over", exchange, &r)), 0);
	assert_int_equal(look(see, t->d1, "x", &i), 0);
	assert_int_equal(i.attr.ino, t->ino);
	assert_int_equal(STRIKE(t, unlink_(m, t->d1, "over", false, &r)), 0);
}

/* A directory to the other one, then another over it. Leaves "sub" in d2. */
static void strike_renames_of_directories(struct round *t)
{
	struct meta *m = t->f->m, *see = t->f->see;
	struct meta_reply r;
	assert_int_equal(STRIKE(t, rename_(m, t->d1, "sub", t->d2, "sub", 0, &r)), 0);
	assert_int_equal(attr_of(see, t->d1).nlink, 2);
	assert_int_equal(attr_of(see, t->d2).nlink, 3);
	must_make(see, t->d1, "sub", S_IFDIR | 0755);
	assert_int_equal(STRIKE(t, rename_(m, t->d1, "sub", t->d2, "sub", 0, &r)), 0);
	assert_int_equal(attr_of(see, t->d2).nlink, 3);
	assert_int_equal(usage_of(see).inodes, t->base.inodes + 2);
}

/* The file's last name while it is open, its release; the directory. Nothing is left. */
static void strike_ends(struct round *t)
{
	struct meta *m = t->f->m, *see = t->f->see;
	struct meta_reply r;
	assert_int_equal(STRIKE(t, unlink_(m, t->d1, "x", true, &r)), 0);
	assert_int_equal(r.inode.attr.ino, t->ino);
	assert_int_equal(r.inode.attr.nlink, 0);
	assert_int_equal(attr_of(see, t->ino).nlink, 0);
	assert_int_equal(STRIKE(t, DO(meta_release_deleted(m, t->ino, meta_wait_done, &w_), NULL)),
	                 0);
	assert_int_equal(getattr_(see, t->ino, NULL), -ENOENT);
	assert_int_equal(STRIKE(t, rmdir_(m, t->d2, "sub")), 0);
	assert_int_equal(STRIKE(t, rmdir_(m, t->d2, "sub")), -ENOENT);
	for (int k = 0; k < 2; k++) {
		struct silt_attr a = attr_of(see, k ? t->d2 : t->d1);
		assert_int_equal(a.size, 0);
		assert_int_equal(a.nlink, 2);
	}
	assert_int_equal(usage_of(see).inodes, t->base.inodes);
	assert_int_equal(usage_of(see).bytes, t->base.bytes);
}

/* How many operations were struck. */
static int strike_all(struct fixture *f, int skip, enum fault how)
{
	struct round t = { .f = f, .word = "\r\nFCALL\r\n", .skip = skip, .how = how };
	t.d1 = must_make(f->see, 1, "d1", S_IFDIR | 0755);
	t.d2 = must_make(f->see, 1, "d2", S_IFDIR | 0755);
	t.base = usage_of(f->see);
	strike_makes_and_links(&t);
	strike_writes(&t);
	strike_attributes(&t);
	strike_unlinks(&t);
	strike_renames(&t);
	strike_renames_of_directories(&t);
	strike_ends(&t);
	assert_int_equal(rmdir_(f->see, 1, "d1"), 0);
	assert_int_equal(rmdir_(f->see, 1, "d2"), 0);
	assert_no_keys(f->see, "{*}t");
	assert_no_keys(f->see, "{*}a*");
	return t.struck;
}

/* Strikes the first call of each operation, then the second, until none has so many. */
static void strike_each_call(struct fixture *f, enum fault how)
{
	int skip = 0;
	while (strike_all(f, skip, how) > 0)
		assert_true(++skip < 20);
	assert_true(skip > 0);
}

static void test_lost_reply(void **state)
{
	strike_each_call(*state, CUT_REPLY);
}

static void test_lost_request(void **state)
{
	strike_each_call(*state, CUT_REQUEST);
}

static void test_broken_reply(void **state)
{
	assert_true(strike_all(*state, 0, HALF_REPLY) > 0);
	assert_true(strike_all(*state, 0, RUBBISH) > 0);
}

/* A name that somebody else gives to a new file, between our request and its second sending, stays.
 */
static void *make_later(void *arg)
{
	struct fixture *f = arg;
	if (!proxy_wait_struck(f->x))
		return (void *)-ETIMEDOUT;
	intptr_t rc = make(f->see, 1, "name", S_IFREG | 0600, NULL);
	proxy_disarm(f->x);
	return (void *)rc;
}

static void test_somebody_elses_file(void **state)
{
	struct fixture *f = *state;
	for (int k = 0; k < 3; k++) {
		pthread_t t;
		struct silt_inode i;
		silt_ino mine =
		        must_make(f->see, 1, "name", k == 2 ? S_IFDIR | 0700 : S_IFREG | 0644);
		usleep(600000); /* the lease of the other side runs out, else a rename would wait
		                   for it */
		static const char *const words[] = { "silt1_unlink", "silt1_rename",
			                             "silt1_rmdir" };
		proxy_arm(f->x, words[k], 0, CUT_AND_HOLD);
		pthread_create(&t, NULL, make_later, f);
		/* The proxy lets connections in again only when the other file is there. */
		if (k == 0)
			assert_int_equal(unlink_(f->m, 1, "name", false, NULL), 0);
		else if (k == 1)
			assert_int_equal(rename_(f->m, 1, "name", 1, "moved", 0, NULL), 0);
		else
			assert_int_equal(rmdir_(f->m, 1, "name"), 0);
		void *made;
		pthread_join(t, &made);
		assert_int_equal((intptr_t)made, 0);
		assert_int_equal(look(f->see, 1, "name", &i), 0);
		assert_int_equal(i.attr.mode, S_IFREG | 0600);
		if (k == 1) {
			assert_int_equal(look(f->see, 1, "moved", &i), 0);
			assert_true(i.attr.ino == mine);
			assert_int_equal(unlink_(f->see, 1, "moved", false, NULL), 0);
		}
		assert_int_equal(unlink_(f->see, 1, "name", false, NULL), 0);
	}
}

/* A reply too many can't be taken for somebody's: the connection is given up. */
static void test_reply_too_many(void **state)
{
	struct fixture *f = *state;
	struct silt_inode i;
	silt_ino a = must_make(f->see, 1, "a", S_IFREG | 0644),
	         b = must_make(f->see, 1, "b", S_IFREG | 0644);
	for (int k = 0; k < 20; k++) {
		proxy_arm(f->x, "silt1_lookup", 0, EXTRA_REPLY);
		assert_int_equal(look(f->m, 1, "a", &i), 0);
		assert_true(proxy_disarm(f->x) > 0);
		assert_true(i.attr.ino == a);
		usleep(20000);
		assert_int_equal(look(f->m, 1, "b", &i), 0);
		assert_true(i.attr.ino == b);
	}
}

static double seconds(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* A server that says nothing: the request ends within its time, what is asked later is answered. */
static void test_mute(void **state)
{
	struct fixture *f = *state;
	struct meta *m = server_open(f->s, proxy_address(f->x), 1000, 0);
	double t = seconds();
	proxy_arm(f->x, "silt1_getattr", 0, MUTE);
	assert_int_equal(getattr_(m, 1, NULL), -EIO);
	assert_true(proxy_disarm(f->x) > 0);
	assert_true(seconds() - t < 3);
	assert_int_equal(getattr_(m, 1, NULL), 0);
	t = seconds();
	proxy_arm(f->x, "silt1_", 0, MUTE);
	assert_int_equal(make(m, 1, "m", S_IFREG | 0644, NULL), -EIO);
	meta_close(m);
	assert_true(seconds() - t < 10);
	assert_true(proxy_disarm(f->x) > 0);
}

/* Closing with requests under way while Redis is away ends, and every request with it. */
static void test_close_without_server(void **state)
{
	struct fixture *f = *state;
	struct meta *m = server_open(f->s, proxy_address(f->x), 1500, 0);
	struct burst b;
	burst_begin(&b, 100);
	proxy_arm(f->x, "silt1_", 0, REFUSE);
	for (int k = 0; k < 100; k++)
		meta_getattr(m, 1, burst_done, &b);
	double t = seconds();
	meta_close(m);
	assert_int_equal(burst_left(&b), 0);
	assert_int_equal(burst_end(&b), 100);
	assert_true(seconds() - t < 12);
	assert_true(proxy_disarm(f->x) > 0);
}

enum { STREAM = 3000 }; /* files of a stream of requests */

enum stream_op { STREAM_MAKE, STREAM_COMMIT, STREAM_RENAME, STREAM_UNLINK };

struct stream {
	struct fixture *f;
	silt_ino dir, inos[STREAM];
	struct meta_commit commits[STREAM];
	int struck;
};

static void stream_send(struct stream *s, enum stream_op op, int k, struct burst *b)
{
	struct meta *m = s->f->m;
	struct meta_make how = { .mode = S_IFREG | 0644, .now = now() };
	char from[32], to[32];
	size_t nf = (size_t)snprintf(from, sizeof(from), "a%d", k);
	size_t nt = (size_t)snprintf(to, sizeof(to), "b%d", k);
	switch (op) {
	case STREAM_MAKE: meta_make(m, s->dir, from, nf, &how, burst_done, b); break;
	case STREAM_COMMIT:
		s->commits[k] = (struct meta_commit){ .ino = s->inos[k],
			                              .extent = extent(0, 10, 5),
			                              .mtime = now() };
		meta_commit(m, &s->commits[k], 1, burst_done, b);
		break;
	case STREAM_RENAME:
		meta_rename(m, s->dir, from, nf, s->dir, to, nt, 0, false, now(), burst_done, b);
		break;
	case STREAM_UNLINK: meta_unlink(m, s->dir, to, nt, false, now(), burst_done, b); break;
	}
}

/* All files at once, with a broken connection now and then. */
static void stream_run(struct stream *s, enum stream_op op)
{
	struct burst b;
	burst_begin(&b, STREAM);
	for (int k = 0; k < STREAM; k++) {
		if (k % 500 == 100) {
			s->struck += proxy_disarm(s->f->x);
			proxy_arm(s->f->x, "FCALL", 3, k % 1000 == 100 ? CUT_REPLY : CUT_REQUEST);
			usleep(1000);
		}
		stream_send(s, op, k, &b);
	}
	assert_int_equal(burst_end(&b), 0);
	s->struck += proxy_disarm(s->f->x);
}

/* Requests in flight by the hundred while the connection breaks again and again. */
static void test_pipelined(void **state)
{
	struct fixture *f = *state;
	struct meta_statfs base = usage_of(f->see);
	struct stream *s = calloc(1, sizeof(*s));
	s->f = f;
	s->dir = must_make(f->see, 1, "dir", S_IFDIR | 0755);
	for (enum stream_op op = STREAM_MAKE; op <= STREAM_UNLINK; op++) {
		bool there = op < STREAM_UNLINK,
		     written = op == STREAM_COMMIT || op == STREAM_RENAME;
		s->struck = 0;
		stream_run(s, op);
		assert_true(s->struck > 0);
		for (int k = 0; k < STREAM && op == STREAM_MAKE; k++) {
			struct silt_inode i;
			char name[32];
			snprintf(name, sizeof(name), "a%d", k);
			assert_int_equal(look(f->see, s->dir, name, &i), 0);
			s->inos[k] = i.attr.ino;
		}
		for (int k = 0; k < STREAM && op == STREAM_COMMIT; k++)
			assert_int_equal(s->commits[k].err, 0);
		assert_int_equal(attr_of(f->see, s->dir).size, there ? STREAM : 0);
		assert_int_equal(usage_of(f->see).inodes, base.inodes + 1 + (there ? STREAM : 0));
		assert_int_equal(live(f->see, 5), written ? 100 * STREAM : 0);
	}
	assert_int_equal(rmdir_(f->see, 1, "dir"), 0);
	free(s);
}

/* A lease whose grant was lost with the connection must not be taken for the old one, whose names
 * are known: others may have added some in between. */
static void test_lease_and_lost_reply(void **state)
{
	struct fixture *f = *state;
	struct silt_inode i;
	char name[32];
	silt_ino dir = must_make(f->see, 1, "dir", S_IFDIR | 0755);
	for (int k = 0; k < 5; k++) {
		snprintf(name, sizeof(name), "a%d", k);
		must_make(f->m, dir, name, S_IFREG | 0644);
	}
	usleep(600000);
	must_make(f->see, dir, "theirs", S_IFREG | 0644);
	struct meta_make how = { .mode = S_IFREG | 0644, .now = now() };
	struct burst b;
	burst_begin(&b, 2);
	proxy_arm(f->x, "silt1_make", 0, CUT_AND_HOLD);
	meta_make(f->m, dir, "b0", 2, &how, burst_done, &b);
	meta_make(f->m, dir, "b1", 2, &how, burst_done, &b); /* this one gets the lease */
	assert_true(proxy_wait_struck(f->x));
	proxy_disarm(f->x);
	assert_int_equal(burst_end(&b), 0);
	must_make(f->m, dir, "b2", S_IFREG | 0644);
	assert_int_equal(look(f->m, dir, "theirs", &i), 0);
}

/* Redis loses its last second (power cut, failover) and gives numbers out again: nobody's file is
 * overwritten. */
static void test_numbers_given_again(void **state)
{
	struct fixture *f = *state;
	silt_ino ino[40];
	struct silt_inode i;
	char name[32];
	for (int k = 0; k < 10; k++) {
		snprintf(name, sizeof(name), "a%d", k);
		ino[k] = must_make(f->m, 1, name, S_IFREG | 0644);
	}
	free(redis(f->see, "HSET", "{0}c", "n", "1"));
	struct meta *m = server_open(f->s, NULL, 30000, 0);
	for (int k = 10; k < 40; k++) {
		snprintf(name, sizeof(name), "a%d", k);
		ino[k] = must_make(k % 2 ? m : f->m, 1, name, S_IFREG | 0644);
		for (int j = 0; j < k; j++)
			assert_true(ino[j] != ino[k]);
	}
	for (int k = 0; k < 40; k++) {
		snprintf(name, sizeof(name), "a%d", k);
		assert_int_equal(look(f->see, 1, name, &i), 0);
		assert_true(i.attr.ino == ino[k]);
	}
	meta_close(m);
}

/* A full Redis: what makes room goes on, also for who connects now; the rest says so. */
static void test_full_redis(void **state)
{
	struct fixture *f = *state;
	must_make(f->m, 1, "a", S_IFREG | 0644);
	must_make(f->m, 1, "b", S_IFREG | 0644);
	free(redis(f->see, "CONFIG", "SET", "maxmemory", "1"));
	assert_int_equal(make(f->m, 1, "c", S_IFREG | 0644, NULL), -ENOSPC);
	proxy_arm(f->x, "silt1_unlink", 0, CUT_REQUEST);
	assert_int_equal(unlink_(f->m, 1, "a", false, NULL), 0);
	assert_true(proxy_disarm(f->x) > 0);
	struct meta *m = server_open(f->s, NULL, 30000, 0);
	assert_int_equal(unlink_(m, 1, "b", false, NULL), 0);
	meta_close(m);
	free(redis(f->see, "CONFIG", "SET", "maxmemory", "0"));
	must_make(f->m, 1, "c", S_IFREG | 0644);
}

/* --- a server that takes no writes --- */

static void *make_main(void *arg)
{
	struct fixture *f = arg;
	return (void *)(intptr_t)make(f->m, 1, "waits", S_IFREG | 0644, NULL);
}

/* Too few replicas, or no room for its log: who reads goes on, who writes waits and then succeeds, or is told
 * when its time is up. */
static void test_no_writes_taken(void **state)
{
	struct fixture *f = *state;
	silt_ino ino = must_make(f->m, 1, "there", S_IFREG | 0644);
	pthread_t thread;
	void *rc;
	free(redis(f->see, "CONFIG", "SET", "min-replicas-to-write", "1"));
	assert_int_equal(pthread_create(&thread, NULL, make_main, f), 0);
	uint64_t start = silt_now_ns();
	for (int i = 0; i < 100; i++) {
		assert_int_equal(getattr_(f->m, ino, NULL), 0);
		usleep(10000);
	}
	assert_true(silt_now_ns() - start < 15 * 1000000000ull);
	assert_int_equal(look(f->m, 1, "waits", NULL), -ENOENT);
	free(redis(f->see, "CONFIG", "SET", "min-replicas-to-write", "0"));
	pthread_join(thread, &rc);
	assert_int_equal((intptr_t)rc, 0);
	assert_int_equal(look(f->see, 1, "waits", NULL), 0);

	struct meta *hasty = server_open(f->s, proxy_address(f->x), 1000, 0);
	free(redis(f->see, "CONFIG", "SET", "min-replicas-to-write", "1"));
	assert_int_equal(make(hasty, 1, "late", S_IFREG | 0644, NULL), -EIO);
	assert_int_equal(getattr_(hasty, ino, NULL), 0);
	free(redis(f->see, "CONFIG", "SET", "min-replicas-to-write", "0"));
	assert_int_equal(look(f->see, 1, "late", NULL), -ENOENT);
	meta_close(hasty);
}

#define ONE(test)  CASE_1_SHARD(test, setup, teardown)
#define BOTH(test) CASE_1_AND_8_SHARDS(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH(test_lost_reply),
		BOTH(test_lost_request),
		BOTH(test_broken_reply),
		ONE(test_no_writes_taken),
		ONE(test_somebody_elses_file),
		ONE(test_reply_too_many),
		ONE(test_mute),
		BOTH(test_close_without_server),
		BOTH(test_pipelined),
		ONE(test_lease_and_lost_reply),
		ONE(test_numbers_given_again),
		ONE(test_full_redis),
	};
	const char *only = getenv("SILT_TEST_ONLY");
	if (only)
		cmocka_set_test_filter(only);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
