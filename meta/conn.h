/* One connection to one Redis server, shared by all threads of a mount, with automatic pipelining.
 *
 * conn_send() appends a request to a FIFO and, if no other thread is writing just then, writes
 * everything that is waiting with one writev(). So requests of many threads travel together whenever
 * they are submitted together, without any timer. One reader thread parses replies and runs the
 * callbacks in order.
 *
 * When the connection breaks, the reader thread makes a new one (back-off 10 ms to 1 s), and every
 * request that has no reply yet is sent again in order; those that may have reached the server have
 * their last argument, the retry flag, turned from "0" to "1". A request older than `wait_ms` ends
 * with -EIO, connected or not: a server that does not answer is as good as away. A write that the server
 * does not take for now (MISCONF, NOREPLICAS) is sent again in a while, and others pass it.
 *
 * Locks: conn->lock guards the FIFO and the state; callbacks run without it. A request has two
 * holders, the FIFO (until its reply) and a writer (during its writev): the last one frees it. */
#pragma once
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

#include "meta/address.h"
#include "meta/log.h"
#include "meta/metrics.h"

struct conn;
struct conn_request;

/* `reply` is NULL when `err` is not 0. It is freed after the call. */
typedef void (*conn_done)(void *arg, int err, redisReply *reply);

struct conn_config {
	const struct meta_address *address; /* copied as far as it is needed */
	const char *socket_path;	    /* wins over the address (local:) */
	struct silt_log *log;
	struct silt_metrics *metrics;
	unsigned wait_ms;
	/* Called on the reader thread before each attempt to connect again, with `on_connect_arg`; must not
	 * take long. May be NULL. */
	void (*before_connect)(void *arg);
	/* Called on the reader thread with a fresh connection (blocking calls allowed) before requests
	 * flow; a non-zero return means: try again later. May be NULL. */
	int (*on_connect)(void *arg, redisContext *c);
	void *on_connect_arg;
	/* Called on the reader thread when the connection is lost, with `on_connect_arg`. May be NULL. */
	void (*on_down)(void *arg);
};

/* Connects and authenticates a plain blocking hiredis connection, with time-outs in milliseconds.
 * -EACCES wrong password or user, -ECONNREFUSED, -ETIMEDOUT, -EHOSTUNREACH, ... with a line. */
int conn_connect_plain(const struct meta_address *a, const char *socket_path, unsigned timeout_ms,
		       redisContext **out, struct silt_err *err);

/* hiredis writes with write(): a server that closes the connection would end the process by SIGPIPE. The
 * signal is held back on the calling thread between these two. */
void conn_hold_sigpipe(sigset_t *before);
void conn_restore_sigpipe(const sigset_t *before);

/* Takes over an authenticated connection `c` and starts the reader thread. */
int conn_open(const struct conn_config *cfg, redisContext *c, struct conn **out);

/* Waits for the requests under way (at most wait_ms), ends the thread, frees. */
void conn_close(struct conn *c);

/* Builds a request: conn_begin(), conn_arg()..., conn_send(). The number of arguments must be as
 * announced. `kind` indexes silt_metrics.redis. The request is consumed by conn_send(). On lack of
 * memory conn_begin() returns NULL and later calls with NULL do nothing but conn_send(), which calls
 * `done` with -ENOMEM at once. */
struct conn_request *conn_begin(int argc, unsigned kind, size_t size_hint);
void conn_arg(struct conn_request **r, const void *data, size_t len);
void conn_arg_str(struct conn_request **r, const char *s);
void conn_arg_u64(struct conn_request **r, uint64_t v);
/* `has_retry_flag`: the last argument is "0" and becomes "1" when it is sent again. */
void conn_send(struct conn *c, struct conn_request *r, bool has_retry_flag, conn_done done, void *arg);

/* True while connected. */
bool conn_up(struct conn *c);
