/* One plain connection to Redis, logged in; conn.c makes a pipelined one of it. */
#include "meta/conn.h"

#include <errno.h>
#include <string.h>
#include <time.h>

static int reply_error(const struct meta_address *a, redisReply *reply, struct silt_err *err)
{
	int code = 0;
	if (!reply)
		return silt_fail(err, -EIO, "redis at %s closed the connection during log-in",
		                 a->shown);
	if (reply->type == REDIS_REPLY_ERROR) {
		bool auth = strstr(reply->str, "WRONGPASS") || strstr(reply->str, "NOAUTH") ||
		            strstr(reply->str, "invalid password") ||
		            strstr(reply->str, "NOPERM") ||
		            strstr(reply->str, "without any password");
		code = auth ? -EACCES : !strncmp(reply->str, "LOADING", 7) ? -EAGAIN : -EIO;
		silt_fail(err, code, "redis at %s refuses: %s%s", a->shown, reply->str,
		          auth ? "; give user and password in the address, in SILTFS_META_PASSWORD "
		                 "or "
		                 "in the file that SILTFS_META_PASSWORD_FILE names"
		               : "");
	}
	freeReplyObject(reply);
	return code;
}

static int log_in(const struct meta_address *a, redisContext *c, struct silt_err *err)
{
	int rc = 0;
	if (a->password && a->user)
		rc = reply_error(a, redisCommand(c, "AUTH %s %s", a->user, a->password), err);
	else if (a->password)
		rc = reply_error(a, redisCommand(c, "AUTH %s", a->password), err);
	if (!rc && a->db)
		rc = reply_error(a, redisCommand(c, "SELECT %d", a->db), err);
	if (!rc)
		rc = reply_error(a, redisCommand(c, "PING"), err);
	return rc;
}

int conn_connect_plain(const struct meta_address *a, const char *socket_path, unsigned timeout_ms,
                       redisContext **out, struct silt_err *err)
{
	struct timeval tv = { .tv_sec = timeout_ms / 1000, .tv_usec = (timeout_ms % 1000) * 1000 };
	const char *path = socket_path ? socket_path : a->kind == META_ADDRESS_TCP ? NULL : a->path;
	errno = 0;
	redisContext *c = path ? redisConnectUnixWithTimeout(path, tv)
	                       : redisConnectWithTimeout(a->host, a->port, tv);
	if (!c)
		return silt_fail(err, -ENOMEM, "out of memory");
	if (c->err) {
		int code = errno ? -errno : -EHOSTUNREACH;
		silt_fail(err, code,
		          "cannot connect to redis at %s: %s; is the server running, and "
		          "is the address right?",
		          a->shown, c->errstr);
		redisFree(c);
		return code;
	}
	redisSetTimeout(c, tv);
	if (!path)
		redisEnableKeepAlive(c);
	int rc = log_in(a, c, err);
	if (rc) {
		redisFree(c);
		return rc;
	}
	*out = c;
	return 0;
}

void conn_hold_sigpipe(sigset_t *before)
{
	sigset_t pipe;
	sigemptyset(&pipe);
	sigaddset(&pipe, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &pipe, before);
}

void conn_restore_sigpipe(const sigset_t *before)
{
	sigset_t pipe;
	sigemptyset(&pipe);
	sigaddset(&pipe, SIGPIPE);
	if (!sigismember(before, SIGPIPE))
		while (sigtimedwait(&pipe, NULL, &(struct timespec){ 0 }) == SIGPIPE)
			;
	pthread_sigmask(SIG_SETMASK, before, NULL);
}
