/* Inside the control server: what control.c (connections, threads) and control_commands.c (what the
 * commands do) share. */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fs/control.h"

struct json_object;

#define CONTROL_LINE_MAX   (1u << 20) /* of a request, newline included */
#define CONTROL_INODES_MAX 65536

/* A client with its request. The worker thread of a request owns the writing side. */
struct client {
	struct control *control;
	int fd;
	char *line; /* CONTROL_LINE_MAX + 1 bytes, made when the first byte comes */
	size_t len;
	bool used, busy, closing; /* poll thread only */
	pthread_t thread;
	atomic_bool cancel;   /* hung up, or the server ends */
	atomic_bool finished; /* the worker is done; the poll thread joins it */
};

/* What the commands see of the server. */
const struct control_config *control_config_of(const struct control *c);
uint64_t control_started_ns(const struct control *c);

/* Sends `o` as one line and releases it. False: the client is gone; `cancel` is then set. Blocks
 * while the client reads, at most some seconds. */
bool client_send(struct client *cl, struct json_object *o);

/* Ends a request: `o` (NULL: an empty object) with "done":true and "error":text. */
void client_done(struct client *cl, struct json_object *o, const char *error);

/* Runs one request line on the worker's thread; always ends with client_done(). */
void control_run(struct client *cl, const char *line, size_t len);
