/* The embedded default: a private redis-server in DIR, on a socket, append-only file on, shared by all
 * mounts and tools that use DIR, started by the first and stopped by the last.
 *
 *	DIR/redis.sock redis.conf redis.log redis.pid appendonlydir/   the server's
 *	DIR/start.lock	held (flock) while starting or stopping
 *	DIR/users.lock	held shared by every user; who can take it exclusively is the last
 *	DIR/server.lock	held by the server itself for as long as it lives
 *	DIR/objects/	objects of the volume (storage file, bucket "./objects")
 *
 * A killed user's lock goes with it; the server then stays until the next user leaves. */
#pragma once
#include "meta/error.h"
#include "meta/log.h"

struct meta_local;

/* Makes DIR if `create`, starts the server unless it runs, holds it. -ENOENT: no DIR; -ENOEXEC: no
 * redis-server on the PATH (`err` says which package). `socket_path` of the result stays valid until
 * meta_local_close(). The server must survive the caller's exit (own session, no inherited fds). A
 * caller that forks to become a daemon passes ownership by letting only the child call close. */
int meta_local_open(const char *dir, int create, struct silt_log *log, struct meta_local **out,
		    struct silt_err *err);
const char *meta_local_socket(const struct meta_local *l);

/* Starts the server again if it has died (killed for want of memory, a crash), and doesn't wait for it to
 * serve. Tries once in some seconds, however often it is called. One thread at a time. */
void meta_local_revive(struct meta_local *l);

/* Lets go; the last user stops the server (which syncs its append-only file) and waits for its end. */
void meta_local_close(struct meta_local *l);
