#include "meta/conn.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "meta/cleanup.h"
#include "meta/lock.h"

#define WRITE_BATCH 64 /* requests a writev */
#define READ_CHUNK  (64u << 10)
#define PUT_OFF_NS  200000000u   /* a write that the server does not take now */
#define TELL_NS     10000000000u /* so often it is said that there are such */

struct conn_request {
	struct conn_request *next;
	conn_done done;
	void *arg;
	uint64_t deadline; /* monotonic ns */
	uint64_t due;      /* of one that was put off */
	int holders;       /* FIFO and writer; under conn->lock */
	unsigned kind;
	bool has_retry_flag, touched; /* touched: some of it may have reached a server */
	bool popped;                  /* off the FIFO */
	size_t len, cap, off;         /* off: bytes written so far */
	char data[];
};

struct conn {
	struct conn_config cfg;
	struct meta_address address;
	char *socket_path;
	pthread_t reader;
	int wake_fd;

	struct silt_lock lock;
	struct silt_cond idle;
	struct conn_request *head, **tail; /* no reply yet, in order */
	struct conn_request *unsent;       /* the first that is not wholly written */
	struct conn_request *later, **later_tail; /* put off, in the order in which they are due */
	uint64_t told;                        /* when it was said last that there are such */
	bool writing, up, stopping, want_write;
	redisContext *ctx;
};

static void request_free(struct conn_request *r)
{
	free(r);
}

/* --- Building requests --- */

struct conn_request *conn_begin(int argc, unsigned kind, size_t size_hint)
{
	size_t cap = size_hint + (size_t)argc * 16 + 32;
	struct conn_request *r = malloc(sizeof(*r) + cap);
	if (!r)
		return NULL;
	memset(r, 0, sizeof(*r));
	r->cap = cap;
	r->kind = kind;
	r->len = (size_t)snprintf(r->data, cap, "*%d\r\n", argc);
	return r;
}

static struct conn_request *reserve(struct conn_request **rp, size_t more)
{
	struct conn_request *r = *rp;
	if (!r || r->len + more <= r->cap)
		return r;
	size_t cap = (r->len + more) * 2;
	struct conn_request *bigger = realloc(r, sizeof(*r) + cap);
	if (!bigger) {
		free(r);
		return *rp = NULL;
	}
	bigger->cap = cap;
	return *rp = bigger;
}

void conn_arg(struct conn_request **rp, const void *data, size_t len)
{
	struct conn_request *r = reserve(rp, len + 32);
	if (!r)
		return;
	r->len += (size_t)snprintf(r->data + r->len, 24, "$%zu\r\n", len);
	if (len)
		memcpy(r->data + r->len, data, len);
	r->len += len;
	memcpy(r->data + r->len, "\r\n", 2);
	r->len += 2;
}

void conn_arg_str(struct conn_request **rp, const char *s)
{
	conn_arg(rp, s, strlen(s));
}

void conn_arg_u64(struct conn_request **rp, uint64_t v)
{
	char text[24];
	int n = snprintf(text, sizeof(text), "%llu", (unsigned long long)v);
	conn_arg(rp, text, (size_t)n);
}

/* --- Writing: any thread, one at a time --- */

static void wake_reader(struct conn *c)
{
	uint64_t one = 1;
	if (write(c->wake_fd, &one, sizeof(one)) < 0) {
		/* The counter is full: the reader is awake anyway. */
	}
}

/* Drops a writer's hold on the requests of a batch, and finds where to go on. A request that was
 * not written to its end but is off the FIFO had its time run out or got a reply that can't be its
 * own: the reader is about to drop the connection, and nothing may follow the half request until
 * then. Caller holds the lock. */
static void after_write(struct conn *c, struct conn_request **batch, int n, ssize_t written)
{
	struct conn_request *resume = NULL;
	for (int i = 0; i < n; i++) {
		struct conn_request *r = batch[i];
		size_t left = r->len - r->off;
		if (!resume && written >= 0 && (size_t)written >= left) {
			written -= (ssize_t)left;
			r->off = r->len;
		} else if (!resume && r->popped) {
			c->up = false;
			shutdown(c->ctx->fd, SHUT_RDWR);
			written = -1;
		} else if (!resume) {
			if (written > 0)
				r->off += (size_t)written;
			written = -1;
			resume = r;
		}
		if (--r->holders == 0)
			request_free(r);
	}
	if (resume)
		c->unsent = resume;
}

/* Writes what waits until nothing does or the socket is full. Caller holds the lock and has found
 * !writing && up. */
static void write_out(struct conn *c)
{
	struct conn_request *batch[WRITE_BATCH];
	struct iovec iov[WRITE_BATCH];
	c->writing = true;
	while (c->up && c->unsent) {
		int n = 0;
		size_t want = 0;
		for (; c->unsent && n < WRITE_BATCH; c->unsent = c->unsent->next) {
			struct conn_request *r = c->unsent;
			r->holders++;
			r->touched = true;
			iov[n] = (struct iovec){ r->data + r->off, r->len - r->off };
			want += iov[n].iov_len;
			batch[n++] = r;
		}
		int fd = c->ctx->fd;
		silt_unlock(&c->lock);
		struct msghdr msg = { .msg_iov = iov, .msg_iovlen = (size_t)n };
		ssize_t written = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		int e = errno;
		silt_lock(&c->lock);
		after_write(c, batch, n, written);
		silt_count(c->cfg.metrics, M_REDIS_FLUSHES, 1);
		if (written > 0)
			silt_count(c->cfg.metrics, M_REDIS_SENT, (uint64_t)written);
		if (written >= 0 && (size_t)written == want)
			continue;
		if (written >= 0 || e == EAGAIN || e == EINTR) {
			c->want_write = true;
			wake_reader(c);
		} /* Any other error shows itself to the reader as well, which reconnects. */
		break;
	}
	c->writing = false;
	silt_cond_broadcast(&c->idle);
}

void conn_send(struct conn *c, struct conn_request *r, bool has_retry_flag, conn_done done,
               void *arg)
{
	if (!r) {
		done(arg, -ENOMEM, NULL);
		return;
	}
	assert(!has_retry_flag || !memcmp(r->data + r->len - 7, "$1\r\n0\r\n", 7));
	r->done = done;
	r->arg = arg;
	r->has_retry_flag = has_retry_flag;
	r->holders = 1;
	r->deadline = silt_now_ns() + (uint64_t)c->cfg.wait_ms * 1000000u;
	silt_count(c->cfg.metrics, M_REDIS_CALLS, 1);
	if (c->cfg.metrics && r->kind < SILT_REDIS_KINDS)
		atomic_fetch_add_explicit(&c->cfg.metrics->redis[r->kind], 1, memory_order_relaxed);

	silt_lock(&c->lock);
	if (c->stopping) {
		silt_unlock(&c->lock);
		request_free(r);
		done(arg, -ESHUTDOWN, NULL);
		return;
	}
	*c->tail = r;
	c->tail = &r->next;
	if (!c->unsent)
		c->unsent = r;
	if (c->up && !c->writing && !c->want_write)
		write_out(c);
	silt_unlock(&c->lock);
}

bool conn_up(struct conn *c)
{
	silt_lock(&c->lock);
	bool up = c->up;
	silt_unlock(&c->lock);
	return up;
}

/* --- Reading: the reader thread --- */

/* Takes the first request off the FIFO. Caller holds the lock. */
static struct conn_request *pop(struct conn *c)
{
	struct conn_request *r = c->head;
	if (!r)
		return NULL;
	c->head = r->next;
	if (!c->head)
		c->tail = &c->head;
	if (c->unsent == r)
		c->unsent = r->next;
	r->popped = true;
	return r;
}

static void finish(struct conn *c, struct conn_request *r, int err, redisReply *reply)
{
	r->done(r->arg, err, reply);
	silt_lock(&c->lock);
	if (--r->holders == 0)
		request_free(r);
	if (!c->head && !c->later)
		silt_cond_broadcast(&c->idle);
	silt_unlock(&c->lock);
}

static bool says(const redisReply *reply, const char *const *prefixes)
{
	for (; reply->type == REDIS_REPLY_ERROR && *prefixes; prefixes++)
		if (!strncmp(reply->str, *prefixes, strlen(*prefixes)))
			return true;
	return false;
}

/* Replies that mean "not now": the server is loading or failing over. */
static bool try_later(const redisReply *reply)
{
	static const char *const prefixes[] = { "LOADING",     "MASTERDOWN", "READONLY",
		                                "CLUSTERDOWN", "TRYAGAIN",   "BUSY ",
		                                NULL };
	return says(reply, prefixes);
}

/* The server answers who reads, but takes no writes: out of its log's disk, or of replicas. */
static bool takes_no_writes(const redisReply *reply)
{
	static const char *const prefixes[] = { "MISCONF", "NOREPLICAS", NULL };
	return says(reply, prefixes);
}

/* Others must not wait behind a write that the server does not take: it is sent again in a while, behind
 * them. `r` is off the FIFO. */
static void put_off(struct conn *c, struct conn_request *r, const char *why)
{
	uint64_t now = silt_now_ns();
	silt_lock(&c->lock);
	r->next = NULL;
	r->due = now + PUT_OFF_NS;
	*c->later_tail = r;
	c->later_tail = &r->next;
	bool tell = !c->told || now - c->told >= TELL_NS;
	if (tell)
		c->told = now;
	silt_unlock(&c->lock);
	if (tell)
		silt_warn(c->cfg.log, "redis says: %s; writes wait", why);
}

/* Sends again what was put off, if there is a connection, and ends what has no more time. */
static void send_put_off(struct conn *c)
{
	uint64_t now = silt_now_ns();
	silt_lock(&c->lock);
	struct conn_request *r;
	while ((r = c->later) && r->holders == 1) { /* else a writer has not let go of it yet */
		bool over = r->deadline <= now;
		if (!over && (r->due > now || !c->up))
			break;
		c->later = r->next;
		if (!c->later)
			c->later_tail = &c->later;
		if (over) {
			silt_unlock(&c->lock);
			silt_error(c->cfg.log, "redis at %s takes no writes for %u s: giving a request up",
			           c->address.shown, c->cfg.wait_ms / 1000);
			finish(c, r, -EIO, NULL);
			silt_lock(&c->lock);
			continue;
		}
		r->next = NULL;
		r->off = 0;
		r->popped = r->touched = false;
		*c->tail = r;
		c->tail = &r->next;
		if (!c->unsent)
			c->unsent = r;
	}
	if (c->up && c->unsent && !c->writing && !c->want_write)
		write_out(c);
	silt_unlock(&c->lock);
}

/* Handles all replies that are complete. Returns -EAGAIN when the server is not ready for requests
 * (reconnect and send them again), -EPROTO when the stream makes no sense, else 0. */
static int take_replies(struct conn *c)
{
	for (;;) {
		void *raw = NULL;
		if (redisReaderGetReply(c->ctx->reader, &raw) != REDIS_OK)
			return -EPROTO;
		redisReply *reply = raw;
		if (!reply)
			return 0;
		if (try_later(reply)) {
			silt_warn(c->cfg.log, "redis says: %s; waiting", reply->str);
			freeReplyObject(reply);
			return -EAGAIN;
		}
		silt_lock(&c->lock);
		struct conn_request *r = c->head;
		/* A reply to something that was not asked yet is none of ours. */
		if (r && r->holders == 1 && r->off < r->len)
			r = NULL;
		if (r)
			pop(c);
		silt_unlock(&c->lock);
		if (!r) {
			freeReplyObject(reply);
			return -EPROTO;
		}
		if (takes_no_writes(reply))
			put_off(c, r, reply->str);
		else
			finish(c, r, 0, reply);
		freeReplyObject(reply);
	}
}

static int read_some(struct conn *c, char *buf)
{
	ssize_t n = recv(c->ctx->fd, buf, READ_CHUNK, MSG_DONTWAIT);
	if (n == 0)
		return -ECONNRESET;
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	silt_count(c->cfg.metrics, M_REDIS_RECEIVED, (uint64_t)n);
	if (redisReaderFeed(c->ctx->reader, buf, (size_t)n) != REDIS_OK)
		return -EPROTO;
	return take_replies(c);
}

/* Ends requests whose time is up; requests are in order of deadline. Returns true when one was on a
 * live connection: then its reply may still come and the connection can't be used any more. */
static bool expire(struct conn *c)
{
	bool was_up = false;
	for (;;) {
		silt_lock(&c->lock);
		struct conn_request *r = c->head;
		if (!r || r->deadline > silt_now_ns() || (c->up && r->holders > 1)) {
			silt_unlock(&c->lock);
			return was_up;
		}
		was_up = was_up || c->up;
		c->up = false; /* it may be half written: nothing must follow */
		pop(c);
		silt_unlock(&c->lock);
		silt_error(c->cfg.log, "redis at %s did not answer for %u s: giving a request up",
		           c->address.shown, c->cfg.wait_ms / 1000);
		finish(c, r, -EIO, NULL);
	}
}

/* Marks the connection down and makes all requests without a reply unsent again. */
static void go_down(struct conn *c, int why)
{
	silt_lock(&c->lock);
	c->up = false;
	while (c->writing)
		silt_cond_wait(&c->idle, &c->lock);
	for (struct conn_request *r = c->head; r; r = r->next) {
		if (r->touched && r->has_retry_flag)
			r->data[r->len - 3] = '1';
		if (r->touched)
			silt_count(c->cfg.metrics, M_REDIS_RETRIES, 1);
		r->touched = false;
		r->off = 0;
	}
	c->unsent = c->head;
	c->want_write = false;
	bool stopping = c->stopping;
	redisContext *old = c->ctx;
	c->ctx = NULL;
	silt_unlock(&c->lock);
	if (c->cfg.on_down)
		c->cfg.on_down(c->cfg.on_connect_arg);
	if (old)
		redisFree(old);
	if (!stopping)
		silt_warn(c->cfg.log, "lost the connection to redis at %s (%s); reconnecting",
		          c->address.shown, strerror(-why));
}

static bool should_stop(struct conn *c)
{
	silt_lock(&c->lock);
	bool stop = c->stopping && !c->head && !c->later;
	silt_unlock(&c->lock);
	return stop;
}

static void drain_wake(struct conn *c)
{
	uint64_t v;
	while (read(c->wake_fd, &v, sizeof(v)) > 0)
		;
}

/* Tries until there is a connection again; false when told to stop. */
static bool reconnect(struct conn *c)
{
	for (unsigned pause = 10;; pause = pause < 500 ? pause * 2 : 1000) {
		redisContext *ctx = NULL;
		struct silt_err err = { 0 };
		expire(c);
		send_put_off(c);
		if (should_stop(c))
			return false;
		if (c->cfg.before_connect)
			c->cfg.before_connect(c->cfg.on_connect_arg);
		int rc = conn_connect_plain(&c->address, c->socket_path, 3000, &ctx, &err);
		if (!rc && c->cfg.on_connect)
			rc = c->cfg.on_connect(c->cfg.on_connect_arg, ctx);
		if (!rc) {
			silt_lock(&c->lock);
			c->ctx = ctx;
			c->up = true;
			if (c->unsent && !c->writing)
				write_out(c);
			silt_unlock(&c->lock);
			silt_count(c->cfg.metrics, M_REDIS_RECONNECTS, 1);
			silt_info(c->cfg.log, "connected to redis at %s again", c->address.shown);
			return true;
		}
		if (ctx)
			redisFree(ctx);
		silt_debugf(c->cfg.log, "meta.conn", "no connection yet: %s", err.text);
		struct pollfd p = { .fd = c->wake_fd, .events = POLLIN };
		poll(&p, 1, (int)pause);
		drain_wake(c);
	}
}

static int wait_readable(struct conn *c)
{
	silt_lock(&c->lock);
	bool want_write = c->want_write, some_later = c->later;
	silt_unlock(&c->lock);
	struct pollfd p[2] = { { .fd = c->ctx->fd,
		                 .events = (short)(POLLIN | (want_write ? POLLOUT : 0)) },
		               { .fd = c->wake_fd, .events = POLLIN } };
	poll(p, 2, some_later ? 100 : 500);
	if (p[1].revents)
		drain_wake(c);
	if (p[0].revents & POLLOUT) {
		silt_lock(&c->lock);
		c->want_write = false;
		if (c->up && c->unsent && !c->writing)
			write_out(c);
		silt_unlock(&c->lock);
	}
	return p[0].revents & (POLLIN | POLLHUP | POLLERR);
}

static void *reader_main(void *arg)
{
	struct conn *c = arg;
	SILT_FREE char *buf = malloc(READ_CHUNK);
	assert(buf);
	sigset_t before;
	conn_hold_sigpipe(&before);
	pthread_setname_np(pthread_self(), "silt-redis");
	while (!should_stop(c)) {
		int rc = 0;
		if (wait_readable(c))
			rc = read_some(c, buf);
		else if (expire(c))
			rc = -ETIMEDOUT;
		if (rc == 0) {
			send_put_off(c);
			continue;
		}
		go_down(c, rc);
		if (rc == -EAGAIN)
			usleep(50000);
		if (!reconnect(c))
			break;
	}
	return NULL;
}

/* --- Opening and closing --- */

int conn_open(const struct conn_config *cfg, redisContext *ctx, struct conn **out)
{
	struct conn *c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->cfg = *cfg;
	if (!c->cfg.wait_ms)
		c->cfg.wait_ms = 60000;
	int rc = meta_address_copy(cfg->address, &c->address);
	c->socket_path = cfg->socket_path ? strdup(cfg->socket_path) : NULL;
	silt_lock_init(&c->lock);
	silt_cond_init(&c->idle);
	c->tail = &c->head;
	c->later_tail = &c->later;
	c->ctx = ctx;
	c->up = true;
	c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!rc)
		rc = c->wake_fd < 0 ? -errno : -pthread_create(&c->reader, NULL, reader_main, c);
	if (rc) {
		if (c->wake_fd >= 0)
			close(c->wake_fd);
		meta_address_free(&c->address);
		free(c->socket_path);
		free(c);
		return rc;
	}
	*out = c;
	return 0;
}

void conn_close(struct conn *c)
{
	if (!c)
		return;
	silt_lock(&c->lock);
	uint64_t until = silt_now_ns() + (uint64_t)c->cfg.wait_ms * 1000000u;
	while ((c->head || c->later) && silt_cond_wait_until(&c->idle, &c->lock, until))
		;
	c->stopping = true;
	silt_unlock(&c->lock);
	wake_reader(c);
	pthread_join(c->reader, NULL);
	if (c->ctx)
		redisFree(c->ctx);
	close(c->wake_fd);
	meta_address_free(&c->address);
	free(c->socket_path);
	silt_lock_destroy(&c->lock);
	silt_cond_destroy(&c->idle);
	free(c);
}
