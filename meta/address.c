/* Parsing of metadata addresses (forms: address.h).
 *
 * The text may hold a password, so no message shows it as it was given: messages show `shown`, or
 * only the forms when the text could not be taken apart. An '@' or '/' in a password has to be
 * percent-encoded; the last '@' before the first '/' ends the user part. */
#include "meta/address.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "meta/cleanup.h"

#define DEFAULT_PORT 6379
#define MAX_DB       65535
#define MAX_TEXT     4096
#define MAX_SOCKET   107 /* bytes of sun_path without its NUL */
#define FORMS                                                                                      \
	"use redis://[user[:password]@]host[:port][/db], redis+socket:///path[?db=N] or local:DIR"

static int bad(struct silt_err *err, const char *what)
{
	return silt_fail(err, -EINVAL, "bad metadata address: %s; %s", what, FORMS);
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* A malloced, percent-decoded copy of `len` bytes; NULL with errno EINVAL (bad %XX, NUL) or ENOMEM.
 */
static char *percent_decode(const char *s, size_t len)
{
	SILT_FREE char *out = malloc(len + 1);
	size_t n = 0;
	if (!out)
		return NULL;
	for (size_t i = 0; i < len; i++) {
		char c = s[i];
		if (c == '%') {
			int hi = i + 2 < len ? hex_digit(s[i + 1]) : -1;
			int lo = i + 2 < len ? hex_digit(s[i + 2]) : -1;
			if (hi < 0 || lo < 0 || hi + lo == 0) {
				errno = EINVAL;
				return NULL;
			}
			c = (char)(hi * 16 + lo);
			i += 2;
		}
		out[n++] = c;
	}
	out[n] = '\0';
	return silt_steal(out);
}

/* A decimal number of all of `len` bytes, at most `max`; -1 when it is none. */
static long decimal(const char *s, size_t len, long max)
{
	long v = 0;
	if (len == 0)
		return -1;
	for (size_t i = 0; i < len; i++) {
		if (s[i] < '0' || s[i] > '9')
			return -1;
		v = v * 10 + (s[i] - '0');
		if (v > max)
			return -1;
	}
	return v;
}

static int parse_userinfo(const char *s, size_t len, struct meta_address *a, struct silt_err *err)
{
	const char *colon = memchr(s, ':', len);
	size_t user_len = colon ? (size_t)(colon - s) : len;

	if (user_len && !(a->user = percent_decode(s, user_len)))
		return errno == ENOMEM ? -ENOMEM : bad(err, "the user is not percent-encoded");
	if (!colon)
		return 0;
	a->password = percent_decode(colon + 1, len - user_len - 1);
	if (!a->password)
		return errno == ENOMEM ? -ENOMEM : bad(err, "the password is not percent-encoded");
	return 0;
}

static bool host_byte_ok(char c, bool bracketed)
{
	bool alnum = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
	return alnum || strchr(bracketed ? ":.%-_" : ".-_", c) != NULL;
}

/* host[:port] or [IPv6][:port] */
static int parse_host(const char *s, size_t len, struct meta_address *a, struct silt_err *err)
{
	bool bracketed = len && s[0] == '[';
	const char *host = s, *end = s + len, *host_end;

	if (bracketed) {
		host = s + 1;
		host_end = memchr(host, ']', len - 1);
		if (!host_end)
			return bad(err, "']' is missing after the IPv6 address");
		end = host_end + 1;
	} else {
		host_end = memchr(s, ':', len);
		if (!host_end)
			host_end = s + len;
		end = host_end;
	}
	if (host_end == host || host_end - host > 255)
		return bad(err, "no host");
	for (const char *p = host; p < host_end; p++)
		if (*p == '\0' || !host_byte_ok(*p, bracketed))
			return bad(err, "the host has a character that no host name has");
	if (!(a->host = strndup(host, (size_t)(host_end - host))))
		return -ENOMEM;
	a->port = DEFAULT_PORT;
	if (end == s + len)
		return 0;
	if (*end != ':')
		return bad(err, "something other than :port follows the host");
	a->port = (int)decimal(end + 1, (size_t)(s + len - end - 1), 65535);
	return a->port > 0 ? 0 : bad(err, "the port is not a number from 1 to 65535");
}

static int parse_tcp(const char *text, struct meta_address *a, struct silt_err *err)
{
	const char *rest = text + strlen("redis://");
	size_t authority = strcspn(rest, "/?#");
	const char *tail = rest + authority;
	const char *at = memrchr(rest, '@', authority);
	const char *host = at ? at + 1 : rest;
	int rc;

	a->kind = META_ADDRESS_TCP;
	if (at && (rc = parse_userinfo(rest, (size_t)(at - rest), a, err)) < 0)
		return rc;
	if ((rc = parse_host(host, (size_t)(tail - host), a, err)) < 0)
		return rc;
	if (*tail == '/' && tail[1] != '\0') {
		a->db = (int)decimal(tail + 1, strlen(tail + 1), MAX_DB);
		if (a->db < 0)
			return bad(err, "the database after '/' is not a number");
	} else if (*tail != '\0' && *tail != '/') {
		return bad(err, "something other than /db follows the host");
	}
	bool v6 = strchr(a->host, ':') != NULL;
	size_t user_len = 0;
	if (at && a->user) {
		const char *colon = memchr(rest, ':', (size_t)(at - rest));
		user_len = (size_t)((colon ? colon : at) - rest);
	}
	if (asprintf(&a->shown, "redis://%.*s%s%s%s%s:%d/%d", (int)user_len, rest,
	             user_len ? "@" : "", v6 ? "[" : "", a->host, v6 ? "]" : "", a->port,
	             a->db) < 0) {
		a->shown = NULL;
		return -ENOMEM;
	}
	return 0;
}

static int parse_socket(const char *text, struct meta_address *a, struct silt_err *err)
{
	const char *path = text + strlen("redis+socket://");
	const char *query = strrchr(path, '?');
	size_t len = query ? (size_t)(query - path) : strlen(path);

	a->kind = META_ADDRESS_SOCKET;
	if (path[0] != '/' || len < 2)
		return bad(err, "the socket's path must be absolute (three slashes)");
	if (len > MAX_SOCKET)
		return bad(err, "the socket's path is longer than 107 bytes");
	if (query) {
		if (strncmp(query, "?db=", 4) != 0)
			return bad(err, "only ?db=N may follow the socket's path");
		a->db = (int)decimal(query + 4, strlen(query + 4), MAX_DB);
		if (a->db < 0)
			return bad(err, "the database after ?db= is not a number");
	}
	a->path = strndup(path, len);
	a->shown = strdup(text);
	return a->path && a->shown ? 0 : -ENOMEM;
}

static int parse_local(const char *text, struct meta_address *a, struct silt_err *err)
{
	const char *dir = text + strlen("local:");
	size_t len = strlen(dir);

	a->kind = META_ADDRESS_LOCAL;
	if (len == 0)
		return bad(err, "no directory after local:");
	while (len > 1 && dir[len - 1] == '/')
		len--;
	if (dir[0] == '/') {
		a->path = strndup(dir, len);
	} else {
		SILT_FREE char *cwd = getcwd(NULL, 0);
		if (!cwd)
			return silt_fail(err, -errno, "can't tell the current directory: %s",
			                 strerror(errno));
		if (asprintf(&a->path, "%s/%.*s", strcmp(cwd, "/") ? cwd : "", (int)len, dir) < 0)
			a->path = NULL;
	}
	if (!a->path)
		return -ENOMEM;
	if (asprintf(&a->shown, "local:%s", a->path) < 0) {
		a->shown = NULL;
		return -ENOMEM;
	}
	return 0;
}

/* The password from the environment, for addresses of servers that have none in their text. */
static int password_from_environment(struct meta_address *a, struct silt_err *err)
{
	const char *value = getenv("SILTFS_META_PASSWORD");
	const char *file = getenv("SILTFS_META_PASSWORD_FILE");
	SILT_FREE char *line = NULL;
	size_t cap = 0;

	if (a->password || a->kind == META_ADDRESS_LOCAL)
		return 0;
	if (value && *value)
		return (a->password = strdup(value)) ? 0 : -ENOMEM;
	if (!file || !*file)
		return 0;
	SILT_FCLOSE FILE *f = fopen(file, "re");
	if (!f)
		return silt_fail(err, -errno,
		                 "can't read the password file %s: %s "
		                 "(SILTFS_META_PASSWORD_FILE names it)",
		                 file, strerror(errno));
	ssize_t n = getline(&line, &cap, f);
	while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
		line[--n] = '\0';
	if (n <= 0)
		return silt_fail(err, -EINVAL, "the password file %s has an empty first line",
		                 file);
	a->password = silt_steal(line);
	return 0;
}

int meta_address_parse(const char *text, struct meta_address *out, struct silt_err *err)
{
	struct meta_address a = { .db = 0 };
	int rc;

	if (strlen(text) > MAX_TEXT)
		return bad(err, "it is longer than 4096 bytes");
	if (strncmp(text, "redis://", 8) == 0)
		rc = parse_tcp(text, &a, err);
	else if (strncmp(text, "redis+socket://", 15) == 0)
		rc = parse_socket(text, &a, err);
	else if (strncmp(text, "local:", 6) == 0)
		rc = parse_local(text, &a, err);
	else if (strncmp(text, "rediss://", 9) == 0)
		rc = bad(err,
		         "TLS (rediss://) is not supported; put a tunnel such as stunnel in front");
	else
		rc = bad(err, "it begins with no known scheme");
	if (rc == 0)
		rc = password_from_environment(&a, err);
	if (rc == -ENOMEM)
		silt_fail(err, rc, "out of memory");
	if (rc < 0) {
		meta_address_free(&a);
		return rc;
	}
	*out = a;
	return 0;
}

static bool copy_text(const char *text, char **to)
{
	*to = text ? strdup(text) : NULL;
	return !text || *to;
}

int meta_address_copy(const struct meta_address *a, struct meta_address *to)
{
	*to = (struct meta_address){ .kind = a->kind, .port = a->port, .db = a->db };
	if (copy_text(a->host, &to->host) && copy_text(a->path, &to->path) &&
	    copy_text(a->user, &to->user) && copy_text(a->password, &to->password) &&
	    copy_text(a->shown, &to->shown))
		return 0;
	meta_address_free(to);
	return -ENOMEM;
}

void meta_address_free(struct meta_address *a)
{
	if (a->password)
		explicit_bzero(a->password, strlen(a->password));
	free(a->host);
	free(a->path);
	free(a->user);
	free(a->password);
	free(a->shown);
	memset(a, 0, sizeof(*a));
}
