/* What Redis tells a mount without being asked: a second connection that only listens.
 *
 * The main connection (conn.h) speaks RESP2, where a connection can either ask or listen. So a
 *mount has one more, which is subscribed to two channels:
 *
 *	silt:<volume id>:<session>	what server-side functions publish for this session: locks
 *it waits for and now holds
 *	__redis__:invalidate		keys that changed and that the main connection has read,
 *once that sent CLIENT TRACKING ON REDIRECT <client id of this connection>
 *
 * A connection that is lost is made again (back-off 10 ms to 1 s). What was published meanwhile is
 *lost, and nothing says that there was anything: whoever listens must take `down` for "anything may
 *have happened since I last heard", and ask or forget. A peer that says nothing for PUSH_QUIET_MS
 *is sent a PING, and after PUSH_DEAD_MS of silence the connection counts as lost; a server that
 *closes it is noticed at once. So silence of a push that is up means: nothing has happened up to
 *PUSH_DEAD_MS ago.
 *
 * Life: push_open() makes it, push_listen() adds those who want to hear, push_start() starts its
 *thread. In meta/: `struct meta` has one if it has a session; parts add their listener in
 *meta_open() before start_push().
 *
 * Threads: listeners are called on the push thread, one call at a time, and must not block: no
 *waiting for Redis (meta_*() and conn_send() are fine), no long-held locks. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "meta/address.h"
#include "meta/log.h"

#define PUSH_QUIET_MS 500  /* silence after which the peer is asked whether it lives */
#define PUSH_DEAD_MS  2000 /* silence after which it doesn't; what kernels are told stays true for so long */

struct push;

/* Functions may be NULL. Calls come in this order: up, then any number of message and invalidate,
 * then down, then up again... A listener hears nothing before its first `up`. */
struct push_listener {
	/* Both channels are subscribed: what happens from now on will be heard. `client_id` is what
	 * CLIENT TRACKING ... REDIRECT wants; another one each time; 0 if the server's rules don't
	 * let us know it (then there is no tracking). Tracking itself belongs to the main
	 * connection: it must be switched on again after each `up`, and after each reconnect of
	 * that one. */
	void (*up)(void *arg, uint64_t client_id);
	/* The connection is lost. */
	void (*down)(void *arg);
	/* A message to this session's channel. Not NUL-terminated; the listener picks out what is
	 * its own (the first byte says whose it is, see functions_lock.lua) and checks every
	 * length. */
	void (*message)(void *arg, const char *payload, size_t len);
	/* A key that was read has changed; NULL: all keys (FLUSHALL, or too many to name them). */
	void (*invalidate)(void *arg, const char *key, size_t len);
	void *arg;
};

#define PUSH_LISTENERS_MAX 4

/* Nothing is sent yet. `address` and `socket_path` (may be NULL; it wins, see conn.h) are copied.
 */
int push_open(const struct meta_address *address, const char *socket_path, struct silt_log *log,
              struct push **out);

/* Adds a listener (copied). Before push_start(). */
void push_listen(struct push *p, const struct push_listener *l);

/* Starts the thread, which connects; returns at once. `channel` is copied. */
int push_start(struct push *p, const char *channel);

/* The id of the connection that is up now; 0: none is, or it has no known id. */
uint64_t push_client_id(struct push *p);
bool push_up(struct push *p);

/* Drops the connection; a new one is made. For tests. */
void push_reconnect(struct push *p);

/* Ends the thread and frees. No listener is called after that; `down` is not called for it. Not
 * from a listener. */
void push_close(struct push *p);

/* The channel of a session: "silt:<volume id in hex>:<session>". */
#define PUSH_CHANNEL_MAX 48
void push_channel(uint64_t volume, uint64_t session, char out[PUSH_CHANNEL_MAX]);
