/* Object stores: one small interface over a directory (`file`), S3 with signature V4 (`s3`, libcurl)
 * and S3 with signature V2 (`s3v2`, libs3).
 *
 * Keys are made of [A-Za-z0-9_./-], never begin with '/', hold no "." or ".." component and no "//",
 * and are at most 512 bytes long; a key that breaks this is -EINVAL. An object is written once and
 * never overwritten by siltfs.
 *
 * Threads: every function may run in many threads at once on one store. All calls block; a caller
 * that wants many requests in flight uses many threads (each keeps its own connection alive).
 *
 * Faults: transport errors, 408, 429 and 5xx are retried inside, with exponential back-off and
 * jitter, until `retries` tries were made or `deadline_ms` passed; only then an error is returned.
 * A GET that brings fewer bytes than its Content-Length is a transport error, never short data.
 * A PUT is a success only when the store said so after it had the whole body.
 *
 * Errors (negative errno): -ENOENT no such object (or bucket: see the text), -EEXIST for STORE_EXCL
 * over an existing object, -EACCES credentials or permission, -EINVAL bad key or range, -ENOSPC disk
 * full (file), -ETIMEDOUT, -EIO everything else. `err` (may be NULL) gets one line that names the
 * key, the HTTP status or cause, and what to do. */
#pragma once
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "meta/error.h"
#include "meta/log.h"
#include "meta/metrics.h"

struct store;

struct store_config {
	const char *kind;	 /* "file", "s3" or "s3v2" */
	const char *bucket;	 /* DIR, or http(s)://host[:port]/bucket[/prefix] */
	const char *region;	 /* s3; NULL: AWS_REGION, AWS_DEFAULT_REGION, else "us-east-1" */
	const char *access_key;	 /* NULL: see store_credentials() */
	const char *secret_key;
	const char *session_token; /* may be NULL */
	const char *ca_file;	 /* PEM bundle for https; NULL: the system's */
	unsigned connect_timeout_ms; /* 0: 10,000 */
	unsigned stall_timeout_ms;   /* no byte moved for so long: the try failed; 0: 20,000 */
	unsigned deadline_ms;	 /* over all tries of one call; 0: 300,000 */
	unsigned retries;	 /* tries of one call; 0: 10 */
	struct silt_log *log;
	struct silt_metrics *metrics; /* may be NULL */
};

/* What a store says of an object. `etag` is without quotes, "" when there is none. */
struct store_object {
	uint64_t size;
	int64_t mtime; /* seconds since 1970; 0 when not known */
	char etag[72];
};

enum {
	/* Fail with -EEXIST if the object is there. s3v2, and s3 where the server does not know or
	 * overlooks conditions, look by a HEAD before; the second is known after store_check(). */
	STORE_EXCL = 1,
};

/* Opens a store; makes no request. The strings of `cfg` are copied. `*out` is freed by store_close(),
 * which no other call may overlap. */
int store_open(const struct store_config *cfg, struct store **out, struct silt_err *err);
void store_close(struct store *s);

/* "file", "s3" or "s3v2", and where it is in words for messages ("http://host/bucket/prefix"). */
const char *store_kind(const struct store *s);
const char *store_where(const struct store *s);

/* Writes an object from `niov` pieces, durably (file: fsynced, then linked into place). */
int store_put(struct store *s, const char *key, const struct iovec *iov, int niov, unsigned flags,
	      struct silt_err *err);

/* Reads `len` bytes from `off` into `buf`; fewer when the object ends before. Returns the number of
 * bytes read (0 at or past the end of the object) or a negative errno; `info` (may be NULL) gets the
 * whole object's size and etag as far as the reply told them (size always when bytes were read). */
ssize_t store_get(struct store *s, const char *key, uint64_t off, size_t len, void *buf,
		  struct store_object *info, struct silt_err *err);

int store_head(struct store *s, const char *key, struct store_object *info, struct silt_err *err);

/* Calls `each` for every object whose key begins with `prefix` and sorts after `after` ("" for all),
 * in key order; a non-zero return of `each` ends the listing and is returned. */
typedef int (*store_list_fn)(void *arg, const char *key, const struct store_object *info);
int store_list(struct store *s, const char *prefix, const char *after, store_list_fn each, void *arg,
	       struct silt_err *err);

/* Deleting what is not there is a success. delete_many returns the first error after trying all. */
int store_delete(struct store *s, const char *key, struct silt_err *err);
int store_delete_many(struct store *s, const char *const *keys, size_t n, struct silt_err *err);

/* Writes, reads back, compares, tries to overwrite under STORE_EXCL and deletes a small object with a
 * random key below `prefix`; the check that `format` and `mount` make. */
int store_check(struct store *s, const char *prefix, struct silt_err *err);

/* Makes the bucket or directory if it is missing (file: mkdir -p; s3: create bucket). */
int store_create_bucket(struct store *s, struct silt_err *err);

/* Credentials, looked for in this order: `file` (if not NULL; a key that is missing there is an
 * error), SILTFS_ACCESS_KEY + SILTFS_SECRET_KEY (+ SILTFS_SESSION_TOKEN), AWS_ACCESS_KEY_ID +
 * AWS_SECRET_ACCESS_KEY (+ AWS_SESSION_TOKEN), AWS_SHARED_CREDENTIALS_FILE or ~/.aws/credentials with
 * AWS_PROFILE or [default]. `file` has either that INI form or two or three lines of access key,
 * secret key, session token; a file that others can read is refused with -EACCES. The strings are
 * malloced, freed by store_credentials_free() (which wipes them). -ENOENT: none found. */
struct store_credentials {
	char *access_key, *secret_key, *session_token;
};
int store_credentials(const char *file, struct store_credentials *out, struct silt_err *err);
void store_credentials_free(struct store_credentials *c);
