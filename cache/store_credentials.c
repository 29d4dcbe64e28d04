/* Where the keys of the object store come from: a file, the environment, or the AWS command line's
 * own files. Never the command line, which every user of the machine can read.
 *
 * Two forms of file are understood: INI sections with aws_access_key_id, aws_secret_access_key and
 * aws_session_token, and two or three bare lines. The first line that is neither blank nor a
 * comment tells which. A file given to us that others than its owner can read is refused, as ssh
 * does; the AWS command line's own file is taken as it is. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/store.h"
#include "meta/cleanup.h"

#define FILE_MAX 16384 /* bytes; more is no credentials file */

static void wipe(char **s)
{
	if (*s)
		explicit_bzero(*s, strlen(*s));
	free(*s);
	*s = NULL;
}

void store_credentials_free(struct store_credentials *c)
{
	wipe(&c->access_key);
	wipe(&c->secret_key);
	wipe(&c->session_token);
}

static bool set_field(char **field, const char *value)
{
	char *copy = strdup(value);
	if (!copy)
		return false;
	wipe(field);
	*field = copy;
	return true;
}

/* Cuts blanks off both ends, in place. */
static char *trim(char *s)
{
	char *end = s + strlen(s);
	while (end > s && isspace((unsigned char)end[-1]))
		*--end = '\0';
	while (isspace((unsigned char)*s))
		s++;
	return s;
}

/* One line of an INI file. `inside` tells whether the section is the wanted one. */
static bool read_ini_line(char *line, const char *profile, bool *inside,
                          struct store_credentials *c)
{
	char *name, *value, *end;

	if (line[0] == '[') {
		end = strchr(line, ']');
		if (end)
			*end = '\0';
		name = trim(line + 1);
		if (strncmp(name, "profile ", 8) == 0)
			name = trim(name + 8);
		*inside = strcmp(name, profile) == 0;
		return true;
	}
	value = strchr(line, '=');
	if (!value || !*inside)
		return true;
	*value++ = '\0';
	name = trim(line);
	value = trim(value);
	if (strcmp(name, "aws_access_key_id") == 0)
		return set_field(&c->access_key, value);
	if (strcmp(name, "aws_secret_access_key") == 0)
		return set_field(&c->secret_key, value);
	if (strcmp(name, "aws_session_token") == 0)
		return set_field(&c->session_token, value);
	return true;
}

static bool read_text(char *text, const char *profile, struct store_credentials *c)
{
	char **bare[] = { &c->access_key, &c->secret_key, &c->session_token };
	bool ini = false, first = true, inside = false, ok = true;
	size_t n = 0;

	for (char *line, *rest = text; ok && (line = strsep(&rest, "\n"));) {
		line = trim(line);
		if (*line == '\0' || *line == '#' || *line == ';')
			continue;
		if (first)
			ini = *line == '[';
		first = false;
		if (ini)
			ok = read_ini_line(line, profile, &inside, c);
		else if (n < 3)
			ok = set_field(bare[n++], line);
	}
	return ok;
}

/* Reads the whole file into `text`. */
static int slurp(const char *path, bool must_be_private, char *text, struct silt_err *err)
{
	SILT_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	size_t len = 0;
	ssize_t n = 1;

	if (fd < 0 || fstat(fd, &st) != 0)
		return silt_fail(err,
		                 errno == ENOENT   ? -ENOENT
		                 : errno == EACCES ? -EACCES
		                                   : -EIO,
		                 "cannot read the credentials file %s: %s", path, strerror(errno));
	if (must_be_private && S_ISREG(st.st_mode) && (st.st_mode & 077))
		return silt_fail(err, -EACCES,
		                 "others can read the credentials file %s; "
		                 "chmod 600 it",
		                 path);
	while (n > 0 && len < FILE_MAX) {
		n = read(fd, text + len, FILE_MAX - len);
		if (n < 0 && errno == EINTR)
			n = 1;
		else if (n > 0)
			len += (size_t)n;
	}
	if (n < 0)
		return silt_fail(err, -EIO, "cannot read the credentials file %s: %s", path,
		                 strerror(errno));
	text[len] = '\0';
	return 0;
}

/* -ENOENT, without text, when the file has no such profile. */
static int read_file(const char *path, const char *profile, bool must_be_private,
                     struct store_credentials *out, struct silt_err *err)
{
	char text[FILE_MAX + 1];
	bool ok;
	int rc;

	rc = slurp(path, must_be_private, text, err);
	if (rc < 0)
		return rc;
	ok = read_text(text, profile, out);
	explicit_bzero(text, sizeof(text));
	if (!ok)
		return silt_fail(err, -ENOMEM, "out of memory");
	return out->access_key && out->secret_key ? 0 : -ENOENT;
}

/* 1: found, 0: not set, negative: error. */
static int from_environment(const char *access, const char *secret, const char *token,
                            struct store_credentials *out, struct silt_err *err)
{
	const char *a = getenv(access), *s = getenv(secret), *t = getenv(token);

	if (!a || !*a || !s || !*s)
		return 0;
	if (!set_field(&out->access_key, a) || !set_field(&out->secret_key, s) ||
	    (t && *t && !set_field(&out->session_token, t)))
		return silt_fail(err, -ENOMEM, "out of memory");
	return 1;
}

static char *home_file(void)
{
	const char *home = getenv("HOME");
	struct passwd pw, *found = NULL;
	char room[4096], *path;

	if ((!home || !*home) && getpwuid_r(getuid(), &pw, room, sizeof(room), &found) == 0 &&
	    found)
		home = found->pw_dir;
	if (!home || asprintf(&path, "%s/.aws/credentials", home) < 0)
		return NULL;
	return path;
}

static int from_aws_file(struct store_credentials *out, struct silt_err *err)
{
	const char *named = getenv("AWS_SHARED_CREDENTIALS_FILE"), *profile = getenv("AWS_PROFILE");
	SILT_FREE char *path = named && *named ? strdup(named) : home_file();
	int rc;

	profile = profile && *profile ? profile : "default";
	rc = path ? read_file(path, profile, false, out, err) : -ENOENT;
	if (rc == -ENOENT)
		silt_fail(
		        err, rc,
		        "no credentials for the object store: set SILTFS_ACCESS_KEY and "
		        "SILTFS_SECRET_KEY, or give a credentials file (looked for [%s] in %s too)",
		        profile, path ? path : "~/.aws/credentials");
	return rc;
}

int store_credentials(const char *file, struct store_credentials *out, struct silt_err *err)
{
	struct store_credentials found = { 0 };
	const char *profile = getenv("AWS_PROFILE");
	int rc;

	if (file) {
		struct silt_err own = { 0 };
		rc = read_file(file, profile && *profile ? profile : "default", true, &found, &own);
		if (rc < 0 && own.text[0])
			silt_fail(err, rc, "%s", own.text);
		else if (rc < 0)
			rc = silt_fail(err, -EINVAL,
			               "the credentials file %s lacks the access key or the "
			               "secret key",
			               file);
	} else {
		rc = from_environment("SILTFS_ACCESS_KEY", "SILTFS_SECRET_KEY",
		                      "SILTFS_SESSION_TOKEN", &found, err);
		if (rc == 0)
			rc = from_environment("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
			                      "AWS_SESSION_TOKEN", &found, err);
		if (rc == 0)
			rc = from_aws_file(&found, err);
	}
	if (rc < 0) {
		store_credentials_free(&found);
		return rc;
	}
	*out = found;
	return 0;
}
