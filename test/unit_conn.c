/* The connection to Redis when it breaks: through a proxy that can drop a reply after the server has
 * executed the request, drop the request, answer rubbish, half a reply, or nothing. Whatever happens, an
 * operation is seen to be done exactly once, by its caller and in the tree. */
#include "test/meta_fixture.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

enum fault {
	PASS,
	CUT_REPLY,	/* the request is executed, its reply is lost with the connection */
	CUT_AND_HOLD,	/* the same, and no new connection comes through until the next arm() or PASS */
	CUT_REQUEST,	/* the request is lost with the connection */
	HALF_REPLY,
	RUBBISH,
	EXTRA_REPLY,	/* a reply that nobody asked for comes first */
	MUTE,		/* the connection stays, no reply comes */
	REFUSE,		/* new connections end at once; what is there is cut */
	KILL,		/* CUT_REPLY, and kills `victim` before the connection ends */
};

struct link {
	int client, server;
	bool dead, mute;
};

struct proxy {
	char path[108], upstream[108];
	struct meta_address address;
	int listen_fd, stop[2];
	pthread_t thread;
	struct link v[16];
	unsigned n;
	atomic_int fault; /* what happens to the next request that contains `word` after `skip` others */
	_Atomic(const char *) word;
	atomic_int skip, hits;
	atomic_int victim;
};

static int dial(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	strcpy(sa.sun_path, path);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static void send_all(int fd, const char *p, size_t n)
{
	while (n) {
		ssize_t w = send(fd, p, n, MSG_NOSIGNAL);
		if (w <= 0)
			return;
		p += w;
		n -= (size_t)w;
	}
}

static void cut(struct link *l)
{
	close(l->client);
	close(l->server);
	l->dead = true;
}

/* Waits for the upstream's answer (it is small: one read). */
static ssize_t answer(struct link *l, char *buf, size_t size)
{
	struct pollfd p = { .fd = l->server, .events = POLLIN };
	poll(&p, 1, 5000);
	return recv(l->server, buf, size, 0);
}

static void strike(struct proxy *x, struct link *l, enum fault f, const char *buf, size_t n)
{
	static char reply[1 << 16];
	ssize_t got = 0;
	if (f != REFUSE && f != MUTE)
		atomic_store(&x->fault, PASS);
	if (f == CUT_AND_HOLD)
		atomic_store(&x->fault, REFUSE);
	if (f == CUT_REPLY || f == CUT_AND_HOLD || f == HALF_REPLY || f == KILL || f == EXTRA_REPLY) {
		send_all(l->server, buf, n);
		got = answer(l, reply, sizeof(reply));
	}
	atomic_fetch_add(&x->hits, 1);
	if (f == KILL)
		kill(atomic_load(&x->victim), SIGKILL);
	if (f == HALF_REPLY && got > 1)
		send_all(l->client, reply, (size_t)got / 2);
	if (f == EXTRA_REPLY) {
		send_all(l->client, reply, (size_t)got);
		send_all(l->client, reply, (size_t)got);
		return;
	}
	if (f == RUBBISH) {
		send_all(l->client, "\x01HTTP/1.1 404 \r\n\r\n", 18);
		return;
	}
	if (f == MUTE)
		l->mute = true; /* for good: a request left out would give its reply to the next */
	else
		cut(l);
}

static void from_client(struct proxy *x, struct link *l)
{
	static char buf[1 << 16];
	enum fault f = (enum fault)atomic_load(&x->fault);
	if (f == CUT_AND_HOLD)
		usleep(5000); /* what is sent together comes together */
	ssize_t n = recv(l->client, buf, sizeof(buf), 0);
	if (n <= 0) {
		cut(l);
		return;
	}
	if (l->mute)
		return;
	const char *word = f != PASS ? atomic_load(&x->word) : NULL;
	bool match = word && memmem(buf, (size_t)n, word, strlen(word));
	if (match && atomic_fetch_sub(&x->skip, 1) <= 0) {
		strike(x, l, f, buf, (size_t)n);
		return;
	}
	send_all(l->server, buf, (size_t)n);
}

static void from_server(struct link *l)
{
	static char buf[1 << 16];
	ssize_t n = recv(l->server, buf, sizeof(buf), 0);
	if (n <= 0)
		cut(l);
	else
		send_all(l->client, buf, (size_t)n);
}

static void accept_one(struct proxy *x)
{
	int fd = accept4(x->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return;
	int up = atomic_load(&x->fault) == REFUSE || x->n == 16 ? -1 : dial(x->upstream);
	if (up < 0)
		close(fd);
	else
		x->v[x->n++] = (struct link){ .client = fd, .server = up };
}

static void *proxy_main(void *arg)
{
	struct proxy *x = arg;
	for (;;) {
		struct pollfd p[34];
		p[0] = (struct pollfd){ .fd = x->stop[0], .events = POLLIN };
		p[1] = (struct pollfd){ .fd = x->listen_fd, .events = POLLIN };
		unsigned n = x->n;
		for (unsigned i = 0; i < n; i++) {
			p[2 + 2 * i] = (struct pollfd){ .fd = x->v[i].client, .events = POLLIN };
			p[3 + 2 * i] = (struct pollfd){ .fd = x->v[i].server, .events = POLLIN };
		}
		poll(p, 2 + 2 * n, -1);
		if (p[0].revents)
			break;
		for (unsigned i = 0; i < n; i++) {
			if (p[3 + 2 * i].revents)
				from_server(&x->v[i]);
			if (p[2 + 2 * i].revents && !x->v[i].dead)
				from_client(x, &x->v[i]);
		}
		unsigned k = 0;
		for (unsigned i = 0; i < x->n; i++)
			if (!x->v[i].dead)
				x->v[k++] = x->v[i];
		x->n = k;
		if (p[1].revents)
			accept_one(x);
	}
	for (unsigned i = 0; i < x->n; i++)
		cut(&x->v[i]);
	return NULL;
}

static struct proxy *proxy_start(struct server *s)
{
	struct proxy *x = calloc(1, sizeof(*x));
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct silt_err err = { 0 };
	char text[160];
	snprintf(x->path, sizeof(x->path), "%s/proxy.sock", s->dir);
	snprintf(x->upstream, sizeof(x->upstream), "%s", meta_local_socket(s->hold));
	x->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	strcpy(sa.sun_path, x->path);
	assert_int_equal(bind(x->listen_fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(x->listen_fd, 64), 0);
	assert_int_equal(pipe2(x->stop, O_CLOEXEC), 0);
	snprintf(text, sizeof(text), "redis+socket://%s", x->path);
	assert_int_equal(meta_address_parse(text, &x->address, &err), 0);
	assert_int_equal(pthread_create(&x->thread, NULL, proxy_main, x), 0);
	return x;
}

static void proxy_stop(struct proxy *x)
{
	assert_int_equal(write(x->stop[1], "", 1), 1);
	pthread_join(x->thread, NULL);
	close(x->stop[0]);
	close(x->stop[1]);
	close(x->listen_fd);
	meta_address_free(&x->address);
	free(x);
}

/* The next request with `word`, after `skip` others, meets `f`. Only while nothing is under way. */
static void arm(struct proxy *x, const char *word, int skip, enum fault f)
{
	atomic_store(&x->fault, PASS);
	atomic_store(&x->word, word);
	atomic_store(&x->skip, skip);
	atomic_store(&x->hits, 0);
	atomic_store(&x->fault, f);
}

static void assert_struck(struct proxy *x)
{
	assert_true(atomic_load(&x->hits) > 0);
	atomic_store(&x->fault, PASS);
}

struct fixture {
	struct server *s;
	struct proxy *x;
	struct meta *m;	  /* through the proxy */
	struct meta *see; /* not */
};

static int setup(void **state, unsigned shards)
{
	struct fixture *f = calloc(1, sizeof(*f));
	f->s = server_start(shards);
	f->x = proxy_start(f->s);
	f->m = server_open(f->s, &f->x->address, 30000, 0);
	f->see = server_open(f->s, NULL, 30000, 0);
	usleep(50000); /* the first heartbeats are over: what is struck is what is meant */
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
	meta_close(f->m);
	meta_close(f->see);
	proxy_stop(f->x);
	server_stop(f->s);
	free(f);
	return 0;
}

static struct meta_statfs usage(struct meta *m)
{
	struct meta_reply r;
	assert_int_equal(DO(meta_statfs(m, meta_wait_done, &w_), &r), 0);
	return r.statfs;
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
	return (struct silt_extent){ .off = off, .len = len, .pack = pack, .pack_off = 48, .stored = 100 };
}

/* Every writing operation, once for each way to lose it. In 8 shards the directories are in different
 * ones, so that most go over two; `word` is then any function call, and each of them is struck once. */
static void strike_all(struct fixture *f, const char *word, int skip, enum fault how, bool *more)
{
	struct meta *m = f->m, *see = f->see;
	struct meta_reply r;
	struct silt_inode i;
	silt_ino d1 = must_make(see, 1, "d1", S_IFDIR | 0755), d2 = must_make(see, 1, "d2", S_IFDIR | 0755);
	silt_ino ino = 0, other;
	struct meta_statfs base = usage(see);
	long live11 = live(see, 11), live12 = live(see, 12);
	int struck = 0;
#define STRIKE(call)                                                                               \
	({                                                                                         \
		arm(f->x, word, skip, how);                                                        \
		int rc__ = (call);                                                                 \
		struck += atomic_load(&f->x->hits);                                                \
		atomic_store(&f->x->fault, PASS);                                                  \
		rc__;                                                                              \
	})
	/* make: a file, a directory */
	assert_int_equal(STRIKE(make(m, d1, "f", S_IFREG | 0644, &ino)), 0);
	assert_int_equal(look(see, d1, "f", &i), 0);
	assert_true(i.attr.ino == ino && i.attr.nlink == 1);
	assert_int_equal(attr_of(see, d1).size, 1);
	assert_int_equal(usage(see).inodes, base.inodes + 1);
	assert_int_equal(STRIKE(make(m, d1, "f", S_IFREG | 0644, NULL)), -EEXIST);
	assert_int_equal(STRIKE(make(m, d1, "sub", S_IFDIR | 0755, &other)), 0);
	assert_int_equal(look(see, d1, "sub", &i), 0);
	assert_true(i.attr.ino == other && i.attr.nlink == 2);
	assert_int_equal(attr_of(see, d1).nlink, 3);
	assert_int_equal(usage(see).inodes, base.inodes + 2);
	/* link: in the directory, and elsewhere */
	assert_int_equal(STRIKE(link_(m, ino, d1, "g")), 0);
	assert_int_equal(attr_of(see, ino).nlink, 2);
	assert_int_equal(STRIKE(link_(m, ino, d2, "g")), 0);
	assert_int_equal(attr_of(see, ino).nlink, 3);
	assert_int_equal(STRIKE(link_(m, ino, d2, "g")), -EEXIST);
	assert_int_equal(attr_of(see, ino).nlink, 3);
	/* commit: two extents of one file in a call, then a whole overwrite */
	struct meta_commit c[2] = { { .ino = ino, .extent = extent(0, 50, 11), .mtime = now() },
				    { .ino = ino, .extent = extent(50, 50, 12), .mtime = now() } };
	assert_int_equal(STRIKE(commit_(m, c, 2)), 0);
	assert_int_equal(c[0].err, 0);
	assert_int_equal(c[1].err, 0);
	assert_int_equal(live(see, 11), live11 + 100);
	assert_int_equal(live(see, 12), live12 + 100);
	assert_int_equal(usage(see).bytes, base.bytes + 100);
	/* setattr */
	assert_int_equal(STRIKE(resize_(m, ino, 60)), 0);
	assert_int_equal(attr_of(see, ino).size, 60);
	assert_int_equal(usage(see).bytes, base.bytes + 60);
	/* unlink: one of several names; one that is not there; one in the other directory; the last */
	assert_int_equal(STRIKE(unlink_(m, d1, "g", false, &r)), 0);
	assert_int_equal(r.inode.attr.ino, ino);
	assert_int_equal(r.inode.attr.nlink, 2);
	assert_int_equal(attr_of(see, ino).nlink, 2);
	assert_int_equal(STRIKE(unlink_(m, d1, "g", false, &r)), -ENOENT);
	assert_int_equal(STRIKE(unlink_(m, d2, "g", false, &r)), 0);
	assert_int_equal(r.inode.attr.nlink, 1);
	assert_int_equal(attr_of(see, ino).nlink, 1);
	/* rename: to another name, directory; one that is not there; over a file; a directory */
	assert_int_equal(STRIKE(rename_(m, d1, "f", d1, "h", 0, &r)), 0);
	assert_int_equal(r.inode.attr.ino, ino);
	assert_int_equal(STRIKE(rename_(m, d1, "f", d1, "h", 0, &r)), -ENOENT);
	assert_int_equal(look(see, d1, "h", &i), 0);
	assert_int_equal(STRIKE(rename_(m, d1, "h", d2, "h", 0, &r)), 0);
	assert_int_equal(r.inode.attr.ino, ino);
	assert_int_equal(look(see, d1, "h", &i), -ENOENT);
	assert_int_equal(look(see, d2, "h", &i), 0);
	other = must_make(see, d1, "over", S_IFREG | 0644);
	assert_int_equal(STRIKE(rename_(m, d2, "h", d1, "over", 0, &r)), 0);
	assert_int_equal(r.inode.attr.ino, ino);
	assert_int_equal(r.replaced, other);
	assert_int_equal(r.replaced_nlink, 0);
	assert_int_equal(getattr_(see, other, NULL), -ENOENT);
	must_make(see, d1, "x", S_IFREG | 0644);
	assert_int_equal(STRIKE(rename_(m, d1, "x", d1, "over", META_RENAME_EXCHANGE, &r)), 0);
	assert_int_equal(look(see, d1, "x", &i), 0);
	assert_int_equal(i.attr.ino, ino);
	assert_int_equal(STRIKE(unlink_(m, d1, "over", false, &r)), 0);
	assert_int_equal(STRIKE(rename_(m, d1, "sub", d2, "sub", 0, &r)), 0);
	assert_int_equal(attr_of(see, d1).nlink, 2);
	assert_int_equal(attr_of(see, d2).nlink, 3);
	must_make(see, d1, "sub", S_IFDIR | 0755);
	assert_int_equal(STRIKE(rename_(m, d1, "sub", d2, "sub", 0, &r)), 0);
	assert_int_equal(attr_of(see, d2).nlink, 3);
	assert_int_equal(usage(see).inodes, base.inodes + 2);
	/* the ends: open and deleted, released; rmdir */
	assert_int_equal(STRIKE(unlink_(m, d1, "x", true, &r)), 0);
	assert_int_equal(r.inode.attr.ino, ino);
	assert_int_equal(r.inode.attr.nlink, 0);
	assert_int_equal(attr_of(see, ino).nlink, 0);
	assert_int_equal(STRIKE(DO(meta_release_deleted(m, ino, meta_wait_done, &w_), NULL)), 0);
	assert_int_equal(getattr_(see, ino, NULL), -ENOENT);
	assert_int_equal(STRIKE(rmdir_(m, d2, "sub")), 0);
	assert_int_equal(STRIKE(rmdir_(m, d2, "sub")), -ENOENT);
	for (int k = 0; k < 2; k++) {
		struct silt_attr a = attr_of(see, k ? d2 : d1);
		assert_int_equal(a.size, 0);
		assert_int_equal(a.nlink, 2);
	}
	assert_int_equal(usage(see).inodes, base.inodes);
	assert_int_equal(usage(see).bytes, base.bytes);
	assert_int_equal(rmdir_(see, 1, "d1"), 0);
	assert_int_equal(rmdir_(see, 1, "d2"), 0);
	assert_no_keys(see, "{*}t");
	assert_no_keys(see, "{*}a*");
	*more = struck > 0;
}

static void test_lost_reply(void **state)
{
	bool more = true;
	for (int skip = 0; more && skip < 12; skip++)
		strike_all(*state, "\r\nFCALL\r\n", skip, CUT_REPLY, &more);
	assert_false(more);
}

static void test_lost_request(void **state)
{
	bool more = true;
	for (int skip = 0; more && skip < 12; skip++)
		strike_all(*state, "\r\nFCALL\r\n", skip, CUT_REQUEST, &more);
}

static void test_broken_reply(void **state)
{
	bool more = true;
	strike_all(*state, "\r\nFCALL\r\n", 0, HALF_REPLY, &more);
	assert_true(more);
	strike_all(*state, "\r\nFCALL\r\n", 0, RUBBISH, &more);
	assert_true(more);
}

/* A name that somebody else gives to a new file, between our request and its second sending, stays. */
static void *make_later(void *arg)
{
	struct fixture *f = arg;
	while (atomic_load(&f->x->hits) == 0)
		usleep(100);
	intptr_t rc = make(f->see, 1, "name", S_IFREG | 0600, NULL);
	atomic_store(&f->x->fault, PASS);
	return (void *)rc;
}

static void test_somebody_elses_file(void **state)
{
	struct fixture *f = *state;
	for (int k = 0; k < 3; k++) {
		pthread_t t;
		struct silt_inode i;
		silt_ino mine = must_make(f->see, 1, "name", k == 2 ? S_IFDIR | 0700 : S_IFREG | 0644);
		usleep(600000); /* the lease of the other side runs out, else a rename would wait for it */
		static const char *const words[] = { "silt1_unlink", "silt1_rename", "silt1_rmdir" };
		arm(f->x, words[k], 0, CUT_AND_HOLD);
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
	silt_ino a = must_make(f->see, 1, "a", S_IFREG | 0644), b = must_make(f->see, 1, "b", S_IFREG | 0644);
	for (int k = 0; k < 20; k++) {
		arm(f->x, "silt1_lookup", 0, EXTRA_REPLY);
		assert_int_equal(look(f->m, 1, "a", &i), 0);
		assert_struck(f->x);
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
	struct meta *m = server_open(f->s, &f->x->address, 1000, 0);
	double t = seconds();
	arm(f->x, "silt1_getattr", 0, MUTE);
	assert_int_equal(getattr_(m, 1, NULL), -EIO);
	assert_struck(f->x);
	assert_true(seconds() - t < 3);
	assert_int_equal(getattr_(m, 1, NULL), 0);
	t = seconds();
	arm(f->x, "silt1_", 0, MUTE);
	assert_int_equal(make(m, 1, "m", S_IFREG | 0644, NULL), -EIO);
	meta_close(m);
	assert_true(seconds() - t < 10);
	atomic_store(&f->x->fault, PASS);
}

static void count_down(void *arg, const struct meta_reply *r)
{
	atomic_int *left = arg;
	(void)r;
	atomic_fetch_sub(left, 1);
}

/* Closing with requests under way while Redis is away ends, and every request with it. */
static void test_close_without_server(void **state)
{
	struct fixture *f = *state;
	struct meta *m = server_open(f->s, &f->x->address, 1500, 0);
	atomic_int left = 100;
	arm(f->x, "silt1_", 0, REFUSE);
	for (int k = 0; k < 100; k++)
		meta_getattr(m, 1, count_down, &left);
	double t = seconds();
	meta_close(m);
	assert_int_equal(atomic_load(&left), 0);
	assert_true(seconds() - t < 12);
	atomic_store(&f->x->fault, PASS);
}

struct stream {
	struct fixture *f;
	atomic_int left, bad;
};

static void streamed(void *arg, const struct meta_reply *r)
{
	struct stream *s = arg;
	if (r->err)
		atomic_fetch_add(&s->bad, 1);
	atomic_fetch_sub(&s->left, 1);
}

static void wait_stream(struct stream *s)
{
	while (atomic_load(&s->left) > 0)
		usleep(500);
	assert_int_equal(atomic_load(&s->bad), 0);
}

/* Requests in flight by the hundred while the connection breaks again and again. */
static void test_pipelined(void **state)
{
	struct fixture *f = *state;
	enum { N = 3000 };
	char a[32], b[32];
	static struct meta_commit commits[N];
	static silt_ino inos[N];
	struct meta_statfs base = usage(f->see);
	silt_ino dir = must_make(f->see, 1, "dir", S_IFDIR | 0755);
	struct stream s = { .f = f };
	for (int phase = 0; phase < 4; phase++) {
		atomic_store(&s.left, N);
		for (int k = 0; k < N; k++) {
			struct meta_make how = { .mode = S_IFREG | 0644, .now = now() };
			size_t na = (size_t)snprintf(a, sizeof(a), "a%d", k);
			size_t nb = (size_t)snprintf(b, sizeof(b), "b%d", k);
			if (k % 500 == 100) {
				arm(f->x, "FCALL", 3, k % 1000 == 100 ? CUT_REPLY : CUT_REQUEST);
				usleep(1000);
			}
			if (phase == 0)
				meta_make(f->m, dir, a, na, &how, streamed, &s);
			else if (phase == 1) {
				commits[k] = (struct meta_commit){ .ino = inos[k], .extent = extent(0, 10, 5),
								   .mtime = now() };
				meta_commit(f->m, &commits[k], 1, streamed, &s);
			} else if (phase == 2)
				meta_rename(f->m, dir, a, na, dir, b, nb, 0, false, now(), streamed, &s);
			else
				meta_unlink(f->m, dir, b, nb, false, now(), streamed, &s);
		}
		wait_stream(&s);
		for (int k = 0; k < N && phase == 0; k++) {
			struct silt_inode i;
			snprintf(a, sizeof(a), "a%d", k);
			assert_int_equal(look(f->see, dir, a, &i), 0);
			inos[k] = i.attr.ino;
		}
		assert_int_equal(attr_of(f->see, dir).size, phase < 3 ? N : 0);
		assert_int_equal(usage(f->see).inodes, base.inodes + 1 + (phase < 3 ? N : 0));
		assert_int_equal(live(f->see, 5), phase == 1 || phase == 2 ? 100 * N : 0);
		for (int k = 0; k < N && phase == 1; k++)
			assert_int_equal(commits[k].err, 0);
	}
	assert_int_equal(rmdir_(f->see, 1, "dir"), 0);
}

/* A lease whose grant was lost with the connection must not be taken for the old one, whose names are
 * known: others may have added some in between. */
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
	atomic_int left = 2;
	arm(f->x, "silt1_make", 0, CUT_AND_HOLD);
	meta_make(f->m, dir, "b0", 2, &how, count_down, &left);
	meta_make(f->m, dir, "b1", 2, &how, count_down, &left); /* this one gets the lease */
	while (atomic_load(&f->x->hits) == 0)
		usleep(100);
	atomic_store(&f->x->fault, PASS);
	while (atomic_load(&left))
		usleep(100);
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
	arm(f->x, "silt1_unlink", 0, CUT_REQUEST);
	assert_int_equal(unlink_(f->m, 1, "a", false, NULL), 0);
	assert_struck(f->x);
	struct meta *m = server_open(f->s, NULL, 30000, 0);
	assert_int_equal(unlink_(m, 1, "b", false, NULL), 0);
	meta_close(m);
	free(redis(f->see, "CONFIG", "SET", "maxmemory", "0"));
	must_make(f->m, 1, "c", S_IFREG | 0644);
}

/* --- a client that dies between the steps of an operation across shards --- */

/* Directories of the root that are in different shards. */
static void make_dirs(struct fixture *f, silt_ino d[3], const char *names[3])
{
	static char text[64][16];
	int n = 0;
	for (int k = 0; k < 64 && n < 3; k++) {
		snprintf(text[k], sizeof(text[k]), "d%d", k);
		silt_ino ino = must_make(f->see, 1, text[k], S_IFDIR | 0755);
		bool other = silt_ino_shard(ino) != 0;
		for (int j = 0; j < n; j++)
			other = other && silt_ino_shard(ino) != silt_ino_shard(d[j]);
		if (other) {
			names[n] = text[k];
			d[n++] = ino;
		} else {
			assert_int_equal(rmdir_(f->see, 1, text[k]), 0);
		}
	}
	assert_int_equal(n, 3);
}

static void run_child(struct fixture *f, void (*job)(struct meta *, silt_ino *), silt_ino *d)
{
	/* A session of its own, that expires soon, in a process of its own. */
	int go[2];
	char c;
	assert_int_equal(pipe(go), 0);
	pid_t pid = fork();
	if (pid == 0) {
		struct meta *m = NULL;
		struct silt_log *log = NULL;
		silt_log_open("/dev/null", SILT_LOG_INFO, NULL, &log);
		struct meta_config cfg = { .address = &f->x->address, .log = log, .session = true,
					   .wait_ms = 10000, .heartbeat_ms = 60 };
		if (read(go[0], &c, 1) != 1 || meta_open(&cfg, &m, NULL))
			_exit(3);
		job(m, d);
		_exit(0);
	}
	atomic_store(&f->x->victim, pid);
	assert_int_equal(write(go[1], "", 1), 1);
	close(go[0]);
	close(go[1]);
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
}

static void job_mkdir(struct meta *m, silt_ino *d)
{
	for (int k = 0; k < 8; k++) {
		char name[16];
		snprintf(name, sizeof(name), "s%d", k);
		make(m, d[0], name, S_IFDIR | 0755, NULL);
	}
}

static void job_link(struct meta *m, silt_ino *d)
{
	link_(m, d[3], d[1], "link");
}

static void job_unlink(struct meta *m, silt_ino *d)
{
	unlink_(m, d[1], "link", false, NULL);
}

static void job_rmdir(struct meta *m, silt_ino *d)
{
	for (int k = 0; k < 8; k++) {
		char name[16];
		snprintf(name, sizeof(name), "s%d", k);
		rmdir_(m, d[0], name);
	}
}

static void job_rename(struct meta *m, silt_ino *d)
{
	rename_(m, d[0], "file", d[1], "moved", 0, NULL);
}

static void job_rename_over(struct meta *m, silt_ino *d)
{
	rename_(m, d[0], "file", d[1], "link", 0, NULL);
}

static void job_rename_dir(struct meta *m, silt_ino *d)
{
	rename_(m, d[0], "dir", d[1], "dir2", 0, NULL);
}

/* Everything that is reachable: every name leads to an inode, link counts and counters are right. */
struct census {
	struct { silt_ino ino; unsigned names, nlink; } v[256];
	unsigned n;
	uint64_t inodes;
};

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
		struct silt_inode i;
		assert_int_equal(getattr_(m, d->ino, &i), 0);
		assert_int_equal(i.attr.mode & S_IFMT, d->type);
		if (d->type == S_IFDIR) {
			assert_true(i.attr.parent == dir);
			dirs++;
			visit(m, d->ino, c);
			continue;
		}
		unsigned j = 0;
		while (j < c->n && c->v[j].ino != d->ino)
			j++;
		if (j == c->n) {
			assert_true(c->n < 256);
			c->v[c->n].ino = d->ino;
			c->v[c->n].names = 0;
			c->v[c->n++].nlink = i.attr.nlink;
			c->inodes++;
		}
		c->v[j].names++;
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
	assert_int_equal(usage(m).inodes, c.inodes);
	assert_no_keys(m, "{*}t");
}

/* Waits until no session but `keep` others is left: the dead one's work is done by then. */
static void wait_recovered(struct fixture *f, struct meta *healer, unsigned keep)
{
	(void)healer;
	for (int k = 0; k < 1000; k++) {
		char *text = redis(f->see, "HLEN", "{0}S", NULL, NULL);
		unsigned n = 0;
		assert_int_equal(sscanf(text, "(integer) %u", &n), 1);
		free(text);
		if (n <= keep)
			return;
		usleep(10000);
	}
	fail_msg("the dead session is still there");
}

static void test_client_dies(void **state)
{
	struct fixture *f = *state;
	static const struct {
		const char *name;
		void (*job)(struct meta *, silt_ino *);
	} jobs[] = { { "mkdir", job_mkdir }, { "link", job_link }, { "unlink", job_unlink },
		     { "rmdir", job_rmdir }, { "rename", job_rename }, { "rename over", job_rename_over },
		     { "rename dir", job_rename_dir } };
#ifdef __SANITIZE_THREAD__
	skip(); /* it knows no threads after fork() */
#endif
	struct meta *healer = server_open(f->s, NULL, 30000, 60);
	silt_ino d[4];
	const char *names[3];
	make_dirs(f, d, names);
	for (unsigned j = 0; j < sizeof(jobs) / sizeof(*jobs); j++) {
		for (int step = 0; step < 8; step++) {
			struct silt_inode i;
			char name[16];
			d[3] = must_make(f->see, d[0], "file", S_IFREG | 0644);
			silt_ino moved = must_make(f->see, d[0], "dir", S_IFDIR | 0755);
			must_make(f->see, d[1], "dir2", S_IFDIR | 0755);
			if (jobs[j].job != job_link)
				must_make(f->see, d[2], "file2", S_IFREG | 0644);
			if (jobs[j].job == job_unlink)
				assert_int_equal(link_(f->see, d[3], d[1], "link"), 0);
			if (jobs[j].job == job_rename_over) {
				assert_int_equal(look(f->see, d[2], "file2", &i), 0);
				assert_int_equal(link_(f->see, i.attr.ino, d[1], "link"), 0);
			}
			for (int k = 0; k < 8 && jobs[j].job == job_rmdir; k++) {
				snprintf(name, sizeof(name), "s%d", k);
				must_make(f->see, d[0], name, S_IFDIR | 0755);
			}
			atomic_store(&f->x->victim, 0);
			arm(f->x, jobs[j].job == job_unlink && step == 0 ? "silt1_unlink" : "silt1_x_",
			    jobs[j].job == job_unlink && step ? step - 1 : step, KILL);
			run_child(f, jobs[j].job, d);
			bool struck = atomic_load(&f->x->hits) > 0;
			atomic_store(&f->x->fault, PASS);
			wait_recovered(f, healer, 3);
			if (getenv("SILT_TEST_LOG"))
				printf("%s, dead at step %d\n", jobs[j].name, step);
			check_tree(f->see);
			/* the names are neither lost nor there twice */
			int a = look(f->see, d[0], "file", &i), b = look(f->see, d[1], "moved", &i);
			int c = look(f->see, d[1], "link", &i);
			bool over = c == 0 && i.attr.ino == d[3];
			if (jobs[j].job == job_rename)
				assert_true((a == 0) != (b == 0));
			else if (jobs[j].job == job_rename_over)
				assert_true((a == 0) != over && c == 0);
			else
				assert_int_equal(a, 0);
			a = look(f->see, d[0], "dir", &i);
			b = look(f->see, d[1], "dir2", &i);
			assert_true(b == 0 && (a == 0) != (i.attr.ino == moved));
			/* empty the directories again; a mark that was left would make this fail */
			static const char *const files[] = { "file", "moved", "link", "file2" };
			for (int k = 0; k < 3; k++) {
				for (int n = 0; n < 4; n++)
					unlink_(f->see, d[k], files[n], false, NULL);
				for (int n = 0; n < 8; n++) {
					snprintf(name, sizeof(name), "s%d", n);
					rmdir_(f->see, d[k], name);
				}
				rmdir_(f->see, d[k], "dir");
				rmdir_(f->see, d[k], "dir2");
				assert_int_equal(attr_of(f->see, d[k]).size, 0);
			}
			if (!struck)
				break;
		}
	}
	meta_close(healer);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define BOTH(t) cmocka_unit_test_setup_teardown(t, setup1, teardown), \
		{ #t "_8_shards", t, setup8, teardown, NULL }
		BOTH(test_lost_reply),
		BOTH(test_lost_request),
		BOTH(test_broken_reply),
		cmocka_unit_test_setup_teardown(test_somebody_elses_file, setup1, teardown),
		cmocka_unit_test_setup_teardown(test_reply_too_many, setup1, teardown),
		cmocka_unit_test_setup_teardown(test_mute, setup1, teardown),
		BOTH(test_close_without_server),
		BOTH(test_pipelined),
		cmocka_unit_test_setup_teardown(test_lease_and_lost_reply, setup1, teardown),
		cmocka_unit_test_setup_teardown(test_numbers_given_again, setup1, teardown),
		cmocka_unit_test_setup_teardown(test_full_redis, setup1, teardown),
		{ "test_client_dies", test_client_dies, setup8, teardown, NULL },
	};
	const char *only = getenv("SILT_TEST_ONLY");
	if (only)
		cmocka_set_test_filter(only);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
