#include "meta/push.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "meta/cleanup.h"
#include "meta/conn.h"
#include "meta/lock.h"

#define CONNECT_MS 3000
#define READ_CHUNK (64u << 10)

static const char invalidate_channel[] = "__redis__:invalidate";

struct push {
	struct meta_address address;
	char *socket_path, *channel;
	struct silt_log *log;
	struct push_listener listeners[PUSH_LISTENERS_MAX];
	unsigned n;
	pthread_t thread;
	bool runs;
	int wake_fd;
	atomic_bool stopping, dropping, up;
	atomic_uint_fast64_t client_id;

	/* Of the push thread: */
	redisContext *ctx;
	uint64_t heard;  /* monotonic ns of the last byte */
	bool pinged;     /* since then */
	bool complained; /* about why there is no connection */
};

void push_channel(uint64_t volume, uint64_t session, char out[PUSH_CHANNEL_MAX])
{
	snprintf(out, PUSH_CHANNEL_MAX, "silt:%" PRIx64 ":%" PRIu64, volume, session);
}

/* --- telling --- */

static void tell_up(struct push *p)
{
	uint64_t id = atomic_load(&p->client_id);
	for (unsigned i = 0; i < p->n; i++)
		if (p->listeners[i].up)
			p->listeners[i].up(p->listeners[i].arg, id);
}

static void tell_down(struct push *p)
{
	for (unsigned i = 0; i < p->n; i++)
		if (p->listeners[i].down)
			p->listeners[i].down(p->listeners[i].arg);
}

static void tell_message(struct push *p, const redisReply *payload)
{
	for (unsigned i = 0; i < p->n; i++)
		if (p->listeners[i].message)
			p->listeners[i].message(p->listeners[i].arg, payload->str, payload->len);
}

static void tell_invalid(struct push *p, const char *key, size_t len)
{
	for (unsigned i = 0; i < p->n; i++)
		if (p->listeners[i].invalidate)
			p->listeners[i].invalidate(p->listeners[i].arg, key, len);
}

/* --- reading --- */

static bool is_text(const redisReply *r, const char *text)
{
	return (r->type == REDIS_REPLY_STRING || r->type == REDIS_REPLY_STATUS) &&
	       r->len == strlen(text) && !memcmp(r->str, text, r->len);
}

static void invalidated(struct push *p, const redisReply *keys)
{
	if (keys->type != REDIS_REPLY_ARRAY) { /* nil: everything */
		tell_invalid(p, NULL, 0);
		return;
	}
	for (size_t i = 0; i < keys->elements; i++)
		if (keys->element[i]->type == REDIS_REPLY_STRING)
			tell_invalid(p, keys->element[i]->str, keys->element[i]->len);
}

/* One thing the server said: a message, the answer to a PING. -EPROTO: something else. */
static int handle(struct push *p, const redisReply *r)
{
	if (r->type == REDIS_REPLY_ERROR) {
		silt_warn(p->log, "redis at %s says on the push connection: %s", p->address.shown,
		          r->str);
		return -EPROTO;
	}
	if (r->type != REDIS_REPLY_ARRAY || r->elements < 2)
		return -EPROTO;
	if (is_text(r->element[0], "pong"))
		return 0;
	if (r->elements != 3 || !is_text(r->element[0], "message"))
		return -EPROTO;
	if (is_text(r->element[1], invalidate_channel))
		invalidated(p, r->element[2]);
	else if (is_text(r->element[1], p->channel) && r->element[2]->type == REDIS_REPLY_STRING)
		tell_message(p, r->element[2]);
	return 0;
}

static int handle_all(struct push *p)
{
	for (;;) {
		void *raw = NULL;
		if (redisReaderGetReply(p->ctx->reader, &raw) != REDIS_OK)
			return -EPROTO;
		if (!raw)
			return 0;
		int rc = handle(p, raw);
		freeReplyObject(raw);
		if (rc)
			return rc;
	}
}

static int read_some(struct push *p, char *buf)
{
	ssize_t n = recv(p->ctx->fd, buf, READ_CHUNK, MSG_DONTWAIT);
	if (n == 0)
		return -ECONNRESET;
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	p->heard = silt_now_ns();
	p->pinged = false;
	if (redisReaderFeed(p->ctx->reader, buf, (size_t)n) != REDIS_OK)
		return -EPROTO;
	return handle_all(p);
}

static int ping(struct push *p)
{
	static const char text[] = "*1\r\n$4\r\nPING\r\n";
	p->pinged = true;
	ssize_t n = send(p->ctx->fd, text, sizeof(text) - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
	return n == (ssize_t)sizeof(text) - 1 ? 0 : n < 0 ? -errno : -EIO;
}

static void drain_wake(struct push *p)
{
	uint64_t v;
	while (read(p->wake_fd, &v, sizeof(v)) > 0)
		;
}

/* Waits for what comes first: bytes, somebody who wants the thread, the time to ask or to give up.
 */
static int listen_once(struct push *p, char *buf)
{
	struct pollfd fds[2] = { { .fd = p->ctx->fd, .events = POLLIN },
		                 { .fd = p->wake_fd, .events = POLLIN } };
	uint64_t quiet = (silt_now_ns() - p->heard) / 1000000u;
	uint64_t limit = p->pinged ? PUSH_DEAD_MS : PUSH_QUIET_MS;
	if (poll(fds, 2, quiet < limit ? (int)(limit - quiet) : 0) < 0 && errno != EINTR)
		return -errno;
	if (fds[1].revents)
		drain_wake(p);
	if (atomic_exchange(&p->dropping, false))
		return -ECONNABORTED;
	if (fds[0].revents)
		return read_some(p, buf);
	quiet = (silt_now_ns() - p->heard) / 1000000u;
	if (!p->pinged)
		return quiet < PUSH_QUIET_MS ? 0 : ping(p);
	return quiet < PUSH_DEAD_MS ? 0 : -ETIMEDOUT;
}

/* --- connecting --- */

static int ask_id(struct push *p, redisContext *c)
{
	redisReply *r = redisCommand(c, "CLIENT ID");
	if (!r)
		return -ECONNRESET;
	atomic_store(&p->client_id, r->type == REDIS_REPLY_INTEGER ? (uint64_t)r->integer : 0);
	freeReplyObject(r);
	return 0;
}

static int subscribe(struct push *p, redisContext *c, struct silt_err *err)
{
	if (redisAppendCommand(c, "SUBSCRIBE %s %s", p->channel, invalidate_channel) != REDIS_OK)
		return silt_fail(err, -ENOMEM, "out of memory");
	for (int i = 0; i < 2; i++) {
		void *raw = NULL;
		if (redisGetReply(c, &raw) != REDIS_OK || !raw)
			return silt_fail(err, -ECONNRESET, "redis at %s closed the connection",
			                 p->address.shown);
		redisReply *r = raw;
		int rc = 0;
		if (r->type == REDIS_REPLY_ERROR)
			rc = silt_fail(err, -EACCES,
			               "redis at %s refuses SUBSCRIBE: %s; the user needs the "
			               "channels silt:* and %s (ACL SETUSER ... &silt:* &%s)",
			               p->address.shown, r->str, invalidate_channel,
			               invalidate_channel);
		else if (r->type != REDIS_REPLY_ARRAY || !r->elements ||
		         !is_text(r->element[0], "subscribe"))
			rc = silt_fail(err, -EPROTO,
			               "redis at %s answers SUBSCRIBE with something unknown",
			               p->address.shown);
		freeReplyObject(r);
		if (rc)
			return rc;
	}
	return 0;
}

static int try_connect(struct push *p, struct silt_err *err)
{
	redisContext *c = NULL;
	int rc = conn_connect_plain(&p->address, p->socket_path, CONNECT_MS, &c, err);
	if (!rc && (rc = ask_id(p, c)) != 0)
		silt_fail(err, rc, "redis at %s closed the connection", p->address.shown);
	if (!rc)
		rc = subscribe(p, c, err);
	if (rc) {
		atomic_store(&p->client_id, 0);
		if (c)
			redisFree(c);
		return rc;
	}
	p->ctx = c;
	p->heard = silt_now_ns();
	p->pinged = false;
	return 0;
}

/* Tries until there is a connection; false when told to stop. */
static bool connect_again(struct push *p)
{
	for (unsigned pause = 10; !atomic_load(&p->stopping);
	     pause = pause < 500 ? pause * 2 : 1000) {
		struct silt_err err = { 0 };
		int rc = try_connect(p, &err);
		if (!rc) {
			if (p->complained)
				silt_info(p->log, "the push connection to redis at %s is up",
				          p->address.shown);
			p->complained = false;
			return true;
		}
		/* That the server is away is the main connection's to say; a refusal is not seen
		 * there. */
		if (rc == -EACCES && !p->complained) {
			p->complained = true;
			silt_error(p->log,
			           "no push connection, so waiting for locks takes longer: %s",
			           err.text);
		}
		silt_debugf(p->log, "meta.push", "no connection yet: %s", err.text);
		struct pollfd fd = { .fd = p->wake_fd, .events = POLLIN };
		poll(&fd, 1, (int)pause);
		drain_wake(p);
	}
	return false;
}

static void *push_main(void *arg)
{
	struct push *p = arg;
	SILT_FREE char *buf = malloc(READ_CHUNK);
	sigset_t before;
	pthread_setname_np(pthread_self(), "silt-push");
	conn_hold_sigpipe(&before);
	while (buf && connect_again(p)) {
		atomic_store(&p->up, true);
		tell_up(p);
		int rc = handle_all(p); /* what came with the answers to SUBSCRIBE */
		while (!rc && !atomic_load(&p->stopping))
			rc = listen_once(p, buf);
		atomic_store(&p->up, false);
		atomic_store(&p->client_id, 0);
		redisFree(p->ctx);
		p->ctx = NULL;
		if (atomic_load(&p->stopping))
			break;
		p->complained = true;
		silt_warn(p->log, "lost the push connection to redis at %s (%s); reconnecting",
		          p->address.shown, strerror(-rc));
		tell_down(p);
	}
	return NULL;
}

/* --- life --- */

int push_open(const struct meta_address *address, const char *socket_path, struct silt_log *log,
              struct push **out)
{
	struct push *p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->log = log;
	p->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int rc = p->wake_fd < 0 ? -errno : meta_address_copy(address, &p->address);
	if (!rc && socket_path && !(p->socket_path = strdup(socket_path)))
		rc = -ENOMEM;
	if (rc) {
		push_close(p);
		return rc;
	}
	*out = p;
	return 0;
}

void push_listen(struct push *p, const struct push_listener *l)
{
	assert(!p->runs && p->n < PUSH_LISTENERS_MAX);
	p->listeners[p->n++] = *l;
}

int push_start(struct push *p, const char *channel)
{
	if (!(p->channel = strdup(channel)))
		return -ENOMEM;
	int rc = -pthread_create(&p->thread, NULL, push_main, p);
	p->runs = rc == 0;
	return rc;
}

uint64_t push_client_id(struct push *p)
{
	return atomic_load(&p->up) ? atomic_load(&p->client_id) : 0;
}

bool push_up(struct push *p)
{
	return atomic_load(&p->up);
}

static void wake(struct push *p)
{
	uint64_t one = 1;
	if (write(p->wake_fd, &one, sizeof(one)) < 0) {
		/* The counter is full: the thread is awake anyway. */
	}
}

void push_reconnect(struct push *p)
{
	atomic_store(&p->dropping, true);
	wake(p);
}

void push_close(struct push *p)
{
	if (!p)
		return;
	if (p->runs) {
		atomic_store(&p->stopping, true);
		wake(p);
		pthread_join(p->thread, NULL);
	}
	if (p->wake_fd >= 0)
		close(p->wake_fd);
	meta_address_free(&p->address);
	free(p->socket_path);
	free(p->channel);
	free(p);
}
