/* Object store `s3v2`: S3 with signature V2, for servers that know nothing newer, by libs3 2.0.
 *
 * LICENCE: libs3 2.0 is GPL version 3. A binary that is linked with it may be given away only under
 * the GPL version 3. This file is therefore a build option (-Ds3v2), and siltfs without it is not
 * bound by that.
 *
 * libs3 builds and signs the request; nothing else of it is used, because it reports some lost PUTs
 * and cut GETs as success, checks no certificates and knows no timeouts. The build renames its
 * reference to curl_easy_perform (objcopy --redefine-sym) to store_s3v2_perform() below, which
 * hands libs3's curl handle to the same exchange that `s3` uses: own body, own reply, own
 * judgement. What libs3 then says of the request is not asked.
 *
 *	this file -> S3_put_object() -> store_s3v2_perform() -> store_http_perform() -> curl
 *	             signs                 finds the exchange
 *
 * The exchange is found through a thread-local pointer, set around each call of libs3.
 *
 * Signature V2 has no conditional PUT, so STORE_EXCL is a HEAD before: two writers at one moment
 * may both succeed. siltfs uses unique keys. Every PUT is followed by a HEAD that must show its
 * size and MD5. There is no multi-delete; store.c deletes one by one. */
#include <errno.h>
#include <libs3.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/store_http.h"
#include "cache/store_s3_md5.h"

#define SECRET_MAX 64 /* libs3 signs wrongly with more */

struct s3v2 {
	struct store_place place;
	struct store_md5 md5;
	S3BucketContext bucket;
};

static _Thread_local struct store_exchange *current;

/* libs3's curl_easy_perform. */
CURLcode store_s3v2_perform(CURL *curl);
CURLcode store_s3v2_perform(CURL *curl)
{
	assert(current);
	/* libs3 keeps its handles to itself, also after a PUT was refused (see store_s3.c). */
	curl_easy_setopt(curl, CURLOPT_FORBID_REUSE, current->size > 0 ? 1L : 0L);
	return store_http_perform(current, curl);
}

/* libs3's gmtime: it dates every request with the one result that all threads share. */
struct tm *store_s3v2_gmtime(const time_t *t);
struct tm *store_s3v2_gmtime(const time_t *t)
{
	static _Thread_local struct tm tm;
	return gmtime_r(t, &tm);
}

static pthread_once_t libs3_once = PTHREAD_ONCE_INIT;
static S3Status libs3_status;

static void libs3_init(void)
{
	libs3_status = S3_initialize("siltfs", S3_INIT_ALL, NULL);
}

static int s3v2_open(struct store *s, struct silt_err *err)
{
	struct s3v2 *c;
	int rc;

	if (store_http_global_init() < 0)
		return silt_fail(err, -ENOMEM, "cannot set up libcurl");
	pthread_once(&libs3_once, libs3_init);
	if (libs3_status != S3StatusOK)
		return silt_fail(err, -EIO, "cannot set up libs3: %s",
		                 S3_get_status_name(libs3_status));
	if (s->cfg.session_token)
		return silt_fail(err, -EINVAL, "signature V2 knows no session tokens; use s3");
	if (strlen(s->cfg.secret_key) > SECRET_MAX || strlen(s->cfg.access_key) > SECRET_MAX)
		return silt_fail(err, -EINVAL, "s3v2 takes keys of up to %d characters",
		                 SECRET_MAX);
	c = calloc(1, sizeof(*c));
	if (!c)
		return silt_fail(err, -ENOMEM, "out of memory");
	rc = store_place_parse(s->cfg.bucket, &c->place, s->where, err);
	if (rc < 0) {
		free(c);
		return rc;
	}
	c->bucket = (S3BucketContext){
		.hostName = c->place.host,
		.bucketName = c->place.bucket,
		.protocol = c->place.https ? S3ProtocolHTTPS : S3ProtocolHTTP,
		.uriStyle = S3UriStylePath,
		.accessKeyId = s->cfg.access_key,
		.secretAccessKey = s->cfg.secret_key,
	};
	store_md5_open(&c->md5);
	s->impl = c;
	return 0;
}

static void s3v2_close(struct store *s)
{
	struct s3v2 *c = s->impl;
	store_md5_close(&c->md5);
	free(c);
}

/* --- Calls of libs3 -------------------------------------------------------------------------- */

/* libs3 requires these; none of them is asked, save that `complete` keeps the status for the case
 * that no request was made at all. */
static S3Status ignore_properties(const S3ResponseProperties *p, void *arg)
{
	return S3StatusOK;
}

static void complete(S3Status status, const S3ErrorDetails *details, void *arg)
{
	*(S3Status *)arg = status;
}

static int no_body(int room, char *buffer, void *arg)
{
	return 0;
}

static S3Status ignore_data(int len, const char *data, void *arg)
{
	return S3StatusOK;
}

static S3Status ignore_list(int truncated, const char *marker, int n, const S3ListBucketContent *v,
                            int prefixes_n, const char **prefixes, void *arg)
{
	return S3StatusOK;
}

static const S3ResponseHandler handler = { ignore_properties, complete };

/* After libs3's call: what came of the exchange. */
static int finish(struct store_exchange *x, S3Status status)
{
	struct store_try *t = x->t;

	current = NULL;
	/* In path style libs3 checks nothing that we let through; but never take silence for
	 * success. */
	if (!x->performed)
		return silt_fail(t->err, -EIO, "%s %s: libs3 made no request: %s", t->verb, t->key,
		                 S3_get_status_name(status));
	return store_http_judge(x);
}

static void full_key(const struct s3v2 *c, const char *key, char *out)
{
	snprintf(out, 2 * STORE_KEY_MAX + 2, "%s%s", c->place.prefix, key);
}

static int send_put(struct store_exchange *x, const char *key, const char *md5_base64)
{
	struct s3v2 *c = x->store->impl;
	char full[2 * STORE_KEY_MAX + 2];
	S3Status status = S3StatusInternalError;
	S3PutProperties properties = { .md5 = md5_base64, .expires = -1 };
	S3PutObjectHandler put = { handler, no_body };

	full_key(c, key, full);
	current = x;
	S3_put_object(&c->bucket, full, x->size, &properties, NULL, &put, &status);
	return finish(x, status);
}

static int send_head(struct store_exchange *x, const char *key)
{
	struct s3v2 *c = x->store->impl;
	char full[2 * STORE_KEY_MAX + 2];
	S3Status status = S3StatusInternalError;

	full_key(c, key, full);
	current = x;
	S3_head_object(&c->bucket, full, NULL, &handler, &status);
	return store_http_end_head(x, finish(x, status));
}

/* --- Verbs ----------------------------------------------------------------------------------- */

static int s3v2_head(struct store *s, struct store_try *t, struct store_object *info)
{
	struct store_exchange x;
	int rc;

	store_exchange_init(&x, s, t, STORE_HEAD);
	rc = send_head(&x, t->key);
	if (rc == 0)
		*info = x.info;
	store_exchange_free(&x);
	return rc;
}

/* The object must be there as it was sent. */
static int verify_put(struct store *s, struct store_try *t, const struct store_put *put)
{
	struct store_exchange x;
	int rc;

	store_exchange_init(&x, s, t, STORE_HEAD);
	rc = send_head(&x, t->key);
	if (rc == -ENOENT || (rc == 0 && x.info.size != put->size) ||
	    (rc == 0 && put->have_md5 && !x.foreign_etag &&
	     store_md5_differs(put->md5, x.info.etag))) {
		t->again = true;
		rc = silt_fail(t->err, -EIO, "PUT %s: %s: the store said it has the object, but %s",
		               t->key, s->where,
		               rc == -ENOENT ? "it has not" : "it has other bytes");
	}
	store_exchange_free(&x);
	return rc;
}

/* STORE_EXCL, as far as V2 can: looks once, since later tries may find their own object. */
static int check_absent(struct store *s, struct store_try *t, struct store_put *put)
{
	struct store_object info;
	int rc = s3v2_head(s, t, &info);

	if (rc == 0)
		return silt_fail(t->err, -EEXIST, "PUT %s: the object is there already in %s",
		                 t->key, s->where);
	if (rc != -ENOENT)
		return rc;
	put->checked_absent = true;
	return 0;
}

static int s3v2_put(struct store *s, struct store_try *t, struct store_put *put)
{
	struct s3v2 *c = s->impl;
	struct store_exchange x;
	char base64[STORE_MD5_BASE64];
	int rc = 0;

	if ((put->flags & STORE_EXCL) && !put->checked_absent) {
		rc = check_absent(s, t, put);
		if (rc < 0)
			return rc;
	}
	store_md5_of_put(&c->md5, put);
	if (put->have_md5)
		store_md5_base64(put->md5, base64);
	store_exchange_init(&x, s, t, STORE_PUT);
	x.iov = put->iov;
	x.niov = put->niov;
	x.size = put->size;
	rc = send_put(&x, t->key, put->have_md5 ? base64 : NULL);
	store_exchange_free(&x);
	return rc == 0 ? verify_put(s, t, put) : rc;
}

static ssize_t s3v2_get(struct store *s, struct store_try *t, uint64_t off, size_t len, void *buf,
                        struct store_object *info)
{
	struct s3v2 *c = s->impl;
	struct store_exchange x;
	char full[2 * STORE_KEY_MAX + 2];
	S3GetObjectHandler get = { handler, ignore_data };
	S3Status status = S3StatusInternalError;
	ssize_t rc;

	store_exchange_init(&x, s, t, STORE_GET);
	x.into = buf;
	x.off = off;
	x.room = len;
	full_key(c, t->key, full);
	current = &x;
	S3_get_object(&c->bucket, full, NULL, off, len, NULL, &get, &status);
	rc = store_http_end_get(&x, finish(&x, status), info);
	store_exchange_free(&x);
	return rc;
}

static int s3v2_delete(struct store *s, struct store_try *t)
{
	struct s3v2 *c = s->impl;
	struct store_exchange x;
	char full[2 * STORE_KEY_MAX + 2];
	S3Status status = S3StatusInternalError;
	int rc;

	store_exchange_init(&x, s, t, STORE_DELETE);
	full_key(c, t->key, full);
	current = &x;
	S3_delete_object(&c->bucket, full, NULL, &handler, &status);
	rc = store_http_end_delete(&x, finish(&x, status));
	store_exchange_free(&x);
	return rc;
}

static int s3v2_list_page(struct store *s, struct store_try *t, const char *prefix,
                          const char *after, struct store_page *page)
{
	struct s3v2 *c = s->impl;
	struct store_exchange x;
	char full_prefix[2 * STORE_KEY_MAX + 2], full_after[2 * STORE_KEY_MAX + 2];
	S3ListBucketHandler list = { handler, ignore_list };
	S3Status status = S3StatusInternalError;
	int rc;

	full_key(c, prefix, full_prefix);
	full_key(c, after, full_after);
	store_exchange_init(&x, s, t, STORE_GET);
	current = &x;
	S3_list_bucket(&c->bucket, full_prefix, *after ? full_after : NULL, NULL, STORE_PAGE, NULL,
	               &list, &status);
	rc = finish(&x, status);
	if (rc == 0)
		rc = store_http_read_list(&x, c->place.prefix, page);
	store_exchange_free(&x);
	return rc;
}

static int s3v2_create_bucket(struct store *s, struct store_try *t)
{
	struct s3v2 *c = s->impl;
	struct store_page page = { 0 };
	struct store_exchange x;
	S3Status status = S3StatusInternalError;
	int rc = s3v2_list_page(s, t, "", "", &page);

	store_page_free(&page);
	if (rc != -ENOENT)
		return rc;
	store_exchange_init(&x, s, t, STORE_PUT);
	current = &x;
	S3_create_bucket(c->bucket.protocol, c->bucket.accessKeyId, c->bucket.secretAccessKey,
	                 c->bucket.hostName, c->bucket.bucketName, S3CannedAclPrivate, NULL, NULL,
	                 &handler, &status);
	rc = finish(&x, status);
	store_exchange_free(&x);
	return rc;
}

const struct store_ops store_s3v2_ops = {
	.kind = "s3v2",
	.open = s3v2_open,
	.close = s3v2_close,
	.put = s3v2_put,
	.get = s3v2_get,
	.head = s3v2_head,
	.list_page = s3v2_list_page,
	.del = s3v2_delete,
	.create_bucket = s3v2_create_bucket,
};
