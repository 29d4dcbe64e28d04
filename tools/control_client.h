/* The other side of fs/control.h: finds the control socket of the mount that holds a path, sends a
 * request and reads the replies. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "meta/error.h"

struct json_object;

/* The control socket of the mount that holds `path` (at least 108 bytes) and the inode number of
 * what `path` leads to. -ENOENT: no such path; -ENOTSUP: it is on no siltfs mount; -ENOTCONN: the
 * mount's daemon is gone. `inode` may be NULL. */
int control_find(const char *path, char socket[108], uint64_t *inode, struct silt_err *err);

/* Connects. Returns a descriptor or a negative errno; *pid (may be NULL) gets the daemon's. */
int control_connect(const char *socket, pid_t *pid, struct silt_err *err);

/* Sends `request` (released) and calls `each` with every reply line until the last; a non-zero
 * return of `each` hangs up, which cancels the request. Returns 0 when the last line said
 * "error":"", else a negative errno with that text, or what `each` returned. */
typedef int (*control_line_fn)(void *arg, struct json_object *line);
int control_request(const char *socket, struct json_object *request, control_line_fn each,
                    void *arg, struct silt_err *err);
