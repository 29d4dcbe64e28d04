#include "test/redis_proxy.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "meta/lock.h"

#define LINKS_MAX 16
#define BYTES_MAX (1u << 16) /* of one read */

struct link {
	int client, server;
	bool dead, mute;
};

struct proxy {
	char path[108], upstream[108];
	struct meta_address address;
	int listen_fd, stop[2];
	pthread_t thread;
	/* the order: set while `fault` is PASS */
	atomic_int fault, skip, victim;
	_Atomic(const char *) word;
	struct silt_lock lock;
	struct silt_cond struck;
	int hits; /* under the lock */
	/* the thread's */
	struct link v[LINKS_MAX];
	unsigned n;
	char bytes[BYTES_MAX], reply[BYTES_MAX];
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

/* Has the request executed and takes its reply, which is small: one read. */
static size_t execute(struct proxy *x, struct link *l, size_t n)
{
	struct pollfd p = { .fd = l->server, .events = POLLIN };
	send_all(l->server, x->bytes, n);
	poll(&p, 1, 5000);
	ssize_t got = recv(l->server, x->reply, BYTES_MAX, MSG_DONTWAIT);
	return got > 0 ? (size_t)got : 0;
}

static void count_hit(struct proxy *x)
{
	silt_lock(&x->lock);
	x->hits++;
	silt_cond_broadcast(&x->struck);
	silt_unlock(&x->lock);
}

/* When it returns the process does nothing any more. */
static void stop_victim(struct proxy *x)
{
	siginfo_t info;
	pid_t pid = atomic_load(&x->victim);
	kill(pid, SIGSTOP);
	waitid(P_PID, (id_t)pid, &info, WSTOPPED | WEXITED | WNOWAIT);
}

/* The first `n` of x->bytes are a request that meets `f`. */
static void strike(struct proxy *x, struct link *l, enum fault f, size_t n)
{
	size_t got = 0;
	if (f != REFUSE && f != MUTE)
		atomic_store(&x->fault, f == CUT_AND_HOLD ? REFUSE : PASS);
	if (f != CUT_REQUEST && f != RUBBISH && f != MUTE && f != REFUSE)
		got = execute(x, l, n);
	if (f == STOP || f == STOP_AND_CUT)
		stop_victim(x);
	count_hit(x);
	switch (f) {
	case STOP: send_all(l->client, x->reply, got); return;
	case EXTRA_REPLY:
		send_all(l->client, x->reply, got);
		send_all(l->client, x->reply, got);
		return;
	case RUBBISH: send_all(l->client, "\x01HTTP/1.1 404 \r\n\r\n", 18); return;
	case MUTE: l->mute = true; return; /* a request left out would give its reply to the next */
	case HALF_REPLY: send_all(l->client, x->reply, got / 2); break;
	case KILL: kill(atomic_load(&x->victim), SIGKILL); break;
	default: break;
	}
	cut(l);
}

static void from_client(struct proxy *x, struct link *l)
{
	enum fault f = (enum fault)atomic_load(&x->fault);
	if (f == CUT_AND_HOLD)
		usleep(5000); /* what is sent together comes together */
	ssize_t n = recv(l->client, x->bytes, BYTES_MAX, 0);
	if (n <= 0) {
		cut(l);
		return;
	}
	if (l->mute)
		return;
	const char *word = f != PASS ? atomic_load(&x->word) : NULL;
	bool match = word && memmem(x->bytes, (size_t)n, word, strlen(word));
	if (match && atomic_fetch_sub(&x->skip, 1) <= 0)
		strike(x, l, f, (size_t)n);
	else
		send_all(l->server, x->bytes, (size_t)n);
}

static void from_server(struct proxy *x, struct link *l)
{
	ssize_t n = recv(l->server, x->bytes, BYTES_MAX, 0);
	if (n <= 0)
		cut(l);
	else
		send_all(l->client, x->bytes, (size_t)n);
}

static void accept_one(struct proxy *x)
{
	int fd = accept4(x->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return;
	bool refused = atomic_load(&x->fault) == REFUSE || x->n == LINKS_MAX;
	int up = refused ? -1 : dial(x->upstream);
	if (up < 0)
		close(fd);
	else
		x->v[x->n++] = (struct link){ .client = fd, .server = up };
}

static void *proxy_main(void *arg)
{
	struct proxy *x = arg;
	for (;;) {
		struct pollfd p[2 + 2 * LINKS_MAX];
		p[0] = (struct pollfd){ .fd = x->stop[0], .events = POLLIN };
		p[1] = (struct pollfd){ .fd = x->listen_fd, .events = POLLIN };
		for (unsigned i = 0; i < x->n; i++) {
			p[2 + 2 * i] = (struct pollfd){ .fd = x->v[i].client, .events = POLLIN };
			p[3 + 2 * i] = (struct pollfd){ .fd = x->v[i].server, .events = POLLIN };
		}
		poll(p, 2 + 2 * x->n, -1);
		if (p[0].revents)
			break;
		unsigned kept = 0;
		for (unsigned i = 0; i < x->n; i++) {
			if (p[3 + 2 * i].revents)
				from_server(x, &x->v[i]);
			if (p[2 + 2 * i].revents && !x->v[i].dead)
				from_client(x, &x->v[i]);
			if (!x->v[i].dead)
				x->v[kept++] = x->v[i];
		}
		x->n = kept;
		if (p[1].revents)
			accept_one(x);
	}
	for (unsigned i = 0; i < x->n; i++)
		cut(&x->v[i]);
	return NULL;
}

struct proxy *proxy_start(const char *dir, const char *upstream)
{
	struct proxy *x = calloc(1, sizeof(*x));
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct silt_err err = { 0 };
	char text[160];
	snprintf(x->path, sizeof(x->path), "%s/proxy.sock", dir);
	snprintf(x->upstream, sizeof(x->upstream), "%s", upstream);
	silt_lock_init(&x->lock);
	silt_cond_init(&x->struck);
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

void proxy_stop(struct proxy *x)
{
	assert_int_equal(write(x->stop[1], "", 1), 1);
	pthread_join(x->thread, NULL);
	close(x->stop[0]);
	close(x->stop[1]);
	close(x->listen_fd);
	meta_address_free(&x->address);
	silt_cond_destroy(&x->struck);
	silt_lock_destroy(&x->lock);
	free(x);
}

const struct meta_address *proxy_address(const struct proxy *x)
{
	return &x->address;
}

void proxy_arm(struct proxy *x, const char *word, int skip, enum fault f)
{
	atomic_store(&x->fault, PASS);
	atomic_store(&x->word, word);
	atomic_store(&x->skip, skip);
	silt_lock(&x->lock);
	x->hits = 0;
	silt_unlock(&x->lock);
	atomic_store(&x->fault, f);
}

void proxy_arm_at(struct proxy *x, const char *word, int skip, enum fault f, pid_t victim)
{
	assert_true(victim > 0);
	atomic_store(&x->fault, PASS);
	atomic_store(&x->victim, victim);
	proxy_arm(x, word, skip, f);
}

int proxy_disarm(struct proxy *x)
{
	atomic_store(&x->fault, PASS);
	return proxy_struck(x);
}

int proxy_struck(struct proxy *x)
{
	silt_lock(&x->lock);
	int hits = x->hits;
	silt_unlock(&x->lock);
	return hits;
}

bool proxy_wait_struck(struct proxy *x)
{
	uint64_t until = silt_now_ns() + 30 * 1000000000ull;
	silt_lock(&x->lock);
	while (x->hits == 0 && silt_cond_wait_until(&x->struck, &x->lock, until))
		;
	bool yes = x->hits > 0;
	silt_unlock(&x->lock);
	return yes;
}
