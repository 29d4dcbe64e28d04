#include "tools/control_client.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/xattr.h>

#include "fs/fs.h"
#include "meta/cleanup.h"
#include "tools/json_fields.h"

/* A short extended attribute as text; its length or a negative errno. */
static ssize_t get_text(const char *path, const char *name, char *out, size_t size)
{
	ssize_t n = getxattr(path, name, out, size - 1);
	if (n < 0)
		return -errno;
	out[n] = '\0';
	return n;
}

int control_find(const char *path, char socket[108], uint64_t *inode, struct silt_err *err)
{
	char number[32];
	ssize_t n = get_text(path, FS_XATTR_CONTROL, socket, 108);

	if (n == -ENOENT || n == -ENOTDIR || n == -EACCES || n == -ELOOP || n == -ENAMETOOLONG)
		return silt_fail(err, (int)n, "%s: %s", path, strerror((int)-n));
	if (n == -ENOTCONN || n == -ECONNABORTED)
		return silt_fail(err, -ENOTCONN,
		                 "%s: the daemon of this mount is gone; run siltfs "
		                 "umount --lazy on it and mount again",
		                 path);
	if (n < 0)
		return silt_fail(err, -ENOTSUP,
		                 "%s is not on a siltfs mount; give a path below one", path);
	if (n == 0)
		return silt_fail(err, -ENOTSUP, "%s: this mount has no control socket", path);
	if (!inode)
		return 0;
	n = get_text(path, FS_XATTR_INODE, number, sizeof(number));
	*inode = n > 0 ? strtoull(number, NULL, 10) : 0;
	return *inode ? 0
	              : silt_fail(err, -EIO, "%s: the mount does not tell its inode number", path);
}

int control_connect(const char *path, pid_t *pid, struct silt_err *err)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct ucred cred;
	socklen_t len = sizeof(cred);
	SILT_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return silt_fail(err, -errno, "no socket: %s", strerror(errno));
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return silt_fail(err, -errno, "can't reach the mount's control socket %s: %s%s",
		                 path, strerror(errno),
		                 errno == EACCES ? "; only root and the user who mounted may" : "");
	if (pid && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0)
		*pid = cred.pid;
	int out = fd;
	fd = -1;
	return out;
}

static int send_request(int fd, struct json_object *request)
{
	const char *text = json_object_to_json_string_ext(request, JSON_C_TO_STRING_PLAIN);
	SILT_FREE char *line = NULL;
	int len = text ? asprintf(&line, "%s\n", text) : -1;
	ssize_t n;

	json_object_put(request);
	if (len < 0)
		return -ENOMEM;
	for (int sent = 0; sent < len; sent += (int)n)
		if ((n = send(fd, line + sent, (size_t)(len - sent), MSG_NOSIGNAL)) <= 0)
			return -EPIPE;
	return 0;
}

/* The last line: its error as ours. */
static int end_of(struct json_object *line, struct silt_err *err)
{
	const char *text = json_text(line, "error");
	int code = json_object_get_int(json_member(line, "status"));
	if (!*text)
		return 0;
	return silt_fail(err, code < 0 ? code : -EIO, "%s", text);
}

int control_request(const char *socket, struct json_object *request, control_line_fn each,
                    void *arg, struct silt_err *err)
{
	int fd = control_connect(socket, NULL, err);
	if (fd < 0) {
		json_object_put(request);
		return fd;
	}
	int rc = send_request(fd, request);
	SILT_FCLOSE FILE *in = fdopen(fd, "r");
	SILT_FREE char *text = NULL;
	size_t cap = 0;

	if (!in) {
		close(fd);
		return silt_fail(err, -ENOMEM, "out of memory");
	}
	while (rc == 0 && getline(&text, &cap, in) > 0) {
		struct json_object *line = json_tokener_parse(text);
		if (!line)
			return silt_fail(err, -EPROTO, "the mount's daemon sent something strange");
		bool last = json_object_get_boolean(json_member(line, "done"));
		rc = each(arg, line);
		if (last && rc == 0) {
			rc = end_of(line, err);
			json_object_put(line);
			return rc;
		}
		json_object_put(line);
	}
	return rc ? rc
	          : silt_fail(err, -EPIPE,
	                      "the mount's daemon ended before it answered; see its "
	                      "log");
}
