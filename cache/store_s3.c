/* Object store `s3`: S3 with signature V4, over libcurl, which signs.
 *
 * Handles. Each call takes an idle curl handle, or makes one, and puts it back; the one used last
 * is taken first. So there are as many handles as there ever were calls at once, each keeps one
 * connection alive, and threads share nothing but the lock of that list.
 *
 * Signing. The body is not hashed for the signature (UNSIGNED-PAYLOAD); Content-MD5, which the
 * store checks, covers it instead, and the ETag that comes back is compared where it is an MD5.
 * Curl 7.88 signs a query as it stands, so queries here are sorted, percent-encoded, and each name
 * has a '='.
 *
 * PUT with STORE_EXCL sends If-None-Match: *. When a PUT succeeded but its answer was lost, the
 * next try is told 412; curl itself may also have sent it twice over a dead connection. Each such
 * PUT therefore carries a nonce as user metadata; after a 412 a HEAD tells whether the object is
 * ours. Servers that refuse the condition (501), and those that overlook it, which store_check()
 * finds out, get a HEAD before the PUT instead, as with s3v2.
 *
 * Range GETs must bring exactly the range, and Content-Range must say so. */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "cache/store_http.h"
#include "cache/store_s3_md5.h"
#include "cache/store_s3_xml.h"
#include "meta/cleanup.h"

#define IDLE_MAX 256
#define URL_ROOM (STORE_WHERE_MAX + 8 * STORE_KEY_MAX)

struct s3 {
	struct store_place place;
	char sigv4[128], *user_password;
	struct store_md5 md5;
	atomic_bool no_multi_delete;
	struct silt_lock lock;
	CURL *idle[IDLE_MAX]; /* under lock, the last used at the end */
	int idle_count;
};

static int s3_open(struct store *s, struct silt_err *err)
{
	const char *region = s->cfg.region;
	struct s3 *c;
	int rc;

	if (store_http_global_init() < 0)
		return silt_fail(err, -ENOMEM, "cannot set up libcurl");
	if (!region && !(region = getenv("AWS_REGION")) && !(region = getenv("AWS_DEFAULT_REGION")))
		region = "us-east-1";
	c = calloc(1, sizeof(*c));
	if (!c)
		return silt_fail(err, -ENOMEM, "out of memory");
	rc = store_place_parse(s->cfg.bucket, &c->place, s->where, err);
	if (rc == 0 &&
	    snprintf(c->sigv4, sizeof(c->sigv4), "aws:amz:%s:s3", region) >= (int)sizeof(c->sigv4))
		rc = silt_fail(err, -EINVAL, "the region's name is too long");
	if (rc == 0 &&
	    asprintf(&c->user_password, "%s:%s", s->cfg.access_key, s->cfg.secret_key) < 0) {
		c->user_password = NULL;
		rc = silt_fail(err, -ENOMEM, "out of memory");
	}
	if (rc < 0) {
		free(c);
		return rc;
	}
	store_md5_open(&c->md5);
	silt_lock_init(&c->lock);
	s->impl = c;
	return 0;
}

static void s3_close(struct store *s)
{
	struct s3 *c = s->impl;

	while (c->idle_count > 0)
		curl_easy_cleanup(c->idle[--c->idle_count]);
	silt_lock_destroy(&c->lock);
	store_md5_close(&c->md5);
	explicit_bzero(c->user_password, strlen(c->user_password));
	free(c->user_password);
	free(c);
}

/* --- Requests -------------------------------------------------------------------------------- */

static CURL *take_handle(struct s3 *c)
{
	CURL *h = NULL;

	silt_lock(&c->lock);
	if (c->idle_count > 0)
		h = c->idle[--c->idle_count];
	silt_unlock(&c->lock);
	return h ? h : curl_easy_init();
}

static void give_handle(struct s3 *c, CURL *h)
{
	curl_easy_reset(h); /* forgets the request, keeps the connection */
	silt_lock(&c->lock);
	if (c->idle_count < IDLE_MAX) {
		c->idle[c->idle_count++] = h;
		h = NULL;
	}
	silt_unlock(&c->lock);
	if (h)
		curl_easy_cleanup(h);
}

struct headers {
	struct curl_slist *list;
	bool failed;
};

static void add_header(struct headers *h, const char *name, const char *value)
{
	SILT_FREE char *line = NULL;
	struct curl_slist *list = NULL;

	if (asprintf(&line, "%s: %s", name, value) < 0)
		line = NULL;
	if (line)
		list = curl_slist_append(h->list, line);
	if (list)
		h->list = list;
	else
		h->failed = true;
}

static void object_url(const struct s3 *c, const char *key, char *url)
{
	snprintf(url, URL_ROOM, "http%s://%s/%s/%s%s", c->place.https ? "s" : "", c->place.host,
	         c->place.bucket, c->place.prefix, key);
}

static void bucket_url(const struct s3 *c, const char *query, char *url)
{
	snprintf(url, URL_ROOM, "http%s://%s/%s%s%s", c->place.https ? "s" : "", c->place.host,
	         c->place.bucket, *query ? "?" : "", query);
}

static void set_method(CURL *h, enum store_method method)
{
	switch (method) {
	case STORE_GET: curl_easy_setopt(h, CURLOPT_HTTPGET, 1L); break;
	case STORE_HEAD: curl_easy_setopt(h, CURLOPT_NOBODY, 1L); break;
	case STORE_PUT: curl_easy_setopt(h, CURLOPT_UPLOAD, 1L); break;
	case STORE_POST: curl_easy_setopt(h, CURLOPT_POST, 1L); break;
	case STORE_DELETE: curl_easy_setopt(h, CURLOPT_CUSTOMREQUEST, "DELETE"); break;
	}
}

/* Sends one request and judges the answer. Consumes `headers`. */
static int request(struct store_exchange *x, const char *url, struct headers *headers)
{
	struct store *s = x->store;
	struct s3 *c = s->impl;
	CURL *h = take_handle(c);
	int rc;

	add_header(headers, "x-amz-content-sha256", "UNSIGNED-PAYLOAD");
	if (s->cfg.session_token)
		add_header(headers, "x-amz-security-token", s->cfg.session_token);
	if (!h || headers->failed) {
		curl_slist_free_all(headers->list);
		if (h)
			give_handle(c, h);
		return silt_fail(x->t->err, -ENOMEM, "%s %s: out of memory", x->t->verb, x->t->key);
	}
	set_method(h, x->method);
	curl_easy_setopt(h, CURLOPT_URL, url);
	curl_easy_setopt(h, CURLOPT_HTTPHEADER, headers->list);
	curl_easy_setopt(h, CURLOPT_AWS_SIGV4, c->sigv4);
	curl_easy_setopt(h, CURLOPT_USERPWD, c->user_password);
	curl_easy_setopt(h, CURLOPT_MAXCONNECTS, 1L);
	if (x->method == STORE_GET && x->into) {
		char range[48];
		snprintf(range, sizeof(range), "%llu-%llu", (unsigned long long)x->off,
		         (unsigned long long)(x->off + x->room - 1));
		curl_easy_setopt(h, CURLOPT_RANGE, range);
	}
	store_http_perform(x, h);
	rc = store_http_judge(x);
	/* RGW leaves the body of a PUT that it refuses in the connection (curl has announced it
	 * with "Expect: 100-continue") and takes it for the beginning of the next request. */
	if (rc < 0 && x->size > 0)
		curl_easy_cleanup(h);
	else
		give_handle(c, h);
	curl_slist_free_all(headers->list);
	return rc;
}

/* --- PUT ------------------------------------------------------------------------------------- */

static int head_key(struct store *s, struct store_try *t, struct store_object *info, char *nonce)
{
	struct headers headers = { 0 };
	struct store_exchange x;
	char url[URL_ROOM];
	int rc;

	store_exchange_init(&x, s, t, STORE_HEAD);
	object_url(s->impl, t->key, url);
	rc = store_http_end_head(&x, request(&x, url, &headers));
	if (rc == 0) {
		*info = x.info;
		if (nonce)
			strcpy(nonce, x.nonce);
	}
	store_exchange_free(&x);
	return rc;
}

/* The store said 412: was it an earlier copy of this very request that made the object? */
static int settle_exists(struct store *s, struct store_try *t)
{
	struct store_object info;
	char nonce[33];
	int rc;

	rc = head_key(s, t, &info, nonce);
	if (rc == 0 && strcmp(nonce, t->nonce) == 0)
		return 0;
	if (rc == 0)
		return silt_fail(t->err, -EEXIST, "PUT %s: the object is there already in %s",
		                 t->key, s->where);
	if (rc == -ENOENT)
		t->again = true; /* deleted between the two */
	return rc;
}

/* Instead of the condition. Looks once, since later tries may find their own object. */
static int check_absent(struct store *s, struct store_try *t, struct store_put *put)
{
	struct store_object info;
	int rc = put->checked_absent ? -ENOENT : head_key(s, t, &info, NULL);

	put->checked_absent |= rc == -ENOENT;
	if (rc == 0)
		rc = silt_fail(t->err, -EEXIST, "PUT %s: the object is there already in %s", t->key,
		               s->where);
	return rc == -ENOENT ? 0 : rc;
}

static int s3_put(struct store *s, struct store_try *t, struct store_put *put)
{
	struct s3 *c = s->impl;
	struct headers headers = { 0 };
	struct store_exchange x;
	char url[URL_ROOM], base64[STORE_MD5_BASE64];
	bool excl = put->flags & STORE_EXCL, look = excl && atomic_load(&s->looks_first);
	int rc;

	if (look && (rc = check_absent(s, t, put)) < 0)
		return rc;
	store_exchange_init(&x, s, t, STORE_PUT);
	x.iov = put->iov;
	x.niov = put->niov;
	x.size = put->size;
	store_md5_of_put(&c->md5, put);
	if (put->have_md5) {
		store_md5_base64(put->md5, base64);
		add_header(&headers, "Content-MD5", base64);
	}
	if (excl && !look)
		add_header(&headers, "If-None-Match", "*");
	if (excl)
		add_header(&headers, "x-amz-meta-silt-put", t->nonce);
	object_url(c, t->key, url);
	rc = request(&x, url, &headers);
	if (rc == 0 && put->have_md5 && !x.foreign_etag &&
	    store_md5_differs(put->md5, x.info.etag)) {
		t->again = true;
		rc = silt_fail(t->err, -EIO,
		               "PUT %s: %s: the store kept other bytes than were sent "
		               "(ETag %s)",
		               t->key, s->where, x.info.etag);
	}
	if (rc == -EEXIST && excl)
		rc = settle_exists(s, t);
	if (rc < 0 && x.status == 501 && excl && !look) {
		atomic_store(&s->looks_first, true);
		t->again = true;
	}
	store_exchange_free(&x);
	return rc;
}

/* --- GET, HEAD, DELETE ----------------------------------------------------------------------- */

static ssize_t s3_get(struct store *s, struct store_try *t, uint64_t off, size_t len, void *buf,
                      struct store_object *info)
{
	struct headers headers = { 0 };
	struct store_exchange x;
	char url[URL_ROOM];
	ssize_t rc;

	store_exchange_init(&x, s, t, STORE_GET);
	x.into = buf;
	x.off = off;
	x.room = len;
	object_url(s->impl, t->key, url);
	rc = store_http_end_get(&x, request(&x, url, &headers), info);
	store_exchange_free(&x);
	return rc;
}

static int s3_head(struct store *s, struct store_try *t, struct store_object *info)
{
	return head_key(s, t, info, NULL);
}

static int s3_delete(struct store *s, struct store_try *t)
{
	struct headers headers = { 0 };
	struct store_exchange x;
	char url[URL_ROOM];
	int rc;

	store_exchange_init(&x, s, t, STORE_DELETE);
	object_url(s->impl, t->key, url);
	rc = store_http_end_delete(&x, request(&x, url, &headers));
	store_exchange_free(&x);
	return rc;
}

/* --- Multi-delete ---------------------------------------------------------------------------- */

static char *delete_document(const struct s3 *c, const char *const *keys, size_t n, size_t *len)
{
	char *text = NULL;
	FILE *f = open_memstream(&text, len);

	if (!f)
		return NULL;
	fputs("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Delete><Quiet>true</Quiet>", f);
	/* Neither prefix nor key can hold a character that XML would want escaped. */
	for (size_t i = 0; i < n; i++)
		fprintf(f, "<Object><Key>%s%s</Key></Object>", c->place.prefix, keys[i]);
	fputs("</Delete>\n", f);
	if (fclose(f) != 0) {
		free(text);
		return NULL;
	}
	return text;
}

static int read_deleted(struct store_exchange *x)
{
	char key[STORE_KEY_MAX + 1];
	struct s3_error e;

	if (s3_xml_deleted(x->text ? x->text : "", x->text_len, key, &e) < 0 && !e.code[0]) {
		x->t->again = true;
		return silt_fail(x->t->err, -EIO,
		                 "DELETE %s and others: %s: the reply is no "
		                 "DeleteResult",
		                 x->t->key, x->store->where);
	}
	return e.code[0] ? store_http_judge_code(x, e.code, e.message, key[0] ? key : x->t->key)
	                 : 0;
}

static int s3_delete_batch(struct store *s, struct store_try *t, const char *const *keys, size_t n)
{
	struct s3 *c = s->impl;
	struct headers headers = { 0 };
	struct store_exchange x;
	char url[URL_ROOM], base64[STORE_MD5_BASE64];
	unsigned char md5[16];
	size_t len = 0;
	int rc;

	if (atomic_load(&c->no_multi_delete))
		return -ENOTSUP;
	SILT_FREE char *text = delete_document(c, keys, n, &len);
	struct iovec iov = { .iov_base = text, .iov_len = len };
	if (!text)
		return silt_fail(t->err, -ENOMEM, "out of memory");
	if (store_md5(&c->md5, &iov, 1, md5) < 0)
		return -ENOTSUP;
	store_md5_base64(md5, base64);
	add_header(&headers, "Content-MD5", base64);
	add_header(&headers, "Content-Type", "application/xml");
	store_exchange_init(&x, s, t, STORE_POST);
	x.iov = &iov;
	x.niov = 1;
	x.size = len;
	bucket_url(c, "delete=", url);
	rc = request(&x, url, &headers);
	if (rc == 0)
		rc = read_deleted(&x);
	else if (x.status == 501 || x.status == 405) {
		atomic_store(&c->no_multi_delete, true);
		t->again = false;
		rc = -ENOTSUP;
	}
	store_exchange_free(&x);
	return rc;
}

/* --- Listing and buckets --------------------------------------------------------------------- */

/* Adds "&name=value" with the value percent-encoded (keys: only '/' needs it). */
static void add_query(char *query, size_t room, const char *name, const char *prefix,
                      const char *key)
{
	const char *parts[2] = { prefix, key };
	size_t len = strlen(query);

	len += (size_t)snprintf(query + len, room - len, "%s%s=", len ? "&" : "", name);
	for (int i = 0; i < 2; i++)
		for (const char *p = parts[i]; *p && len + 4 < room; p++)
			len += (size_t)snprintf(query + len, room - len, *p == '/' ? "%%2F" : "%c",
			                        *p);
}

static int s3_list_page(struct store *s, struct store_try *t, const char *prefix, const char *after,
                        struct store_page *page)
{
	struct s3 *c = s->impl;
	struct headers headers = { 0 };
	struct store_exchange x;
	char url[URL_ROOM], query[URL_ROOM - STORE_WHERE_MAX] = "";
	int rc;

	/* In the order of their names, as the signature wants it. */
	add_query(query, sizeof(query), "encoding-type", "", "url");
	add_query(query, sizeof(query), "list-type", "", "2");
	add_query(query, sizeof(query), "max-keys", "", "1000");
	add_query(query, sizeof(query), "prefix", c->place.prefix, prefix);
	if (*after)
		add_query(query, sizeof(query), "start-after", c->place.prefix, after);
	bucket_url(c, query, url);
	store_exchange_init(&x, s, t, STORE_GET);
	rc = request(&x, url, &headers);
	if (rc == 0)
		rc = store_http_read_list(&x, c->place.prefix, page);
	store_exchange_free(&x);
	return rc;
}

static int head_bucket(struct store *s, struct store_try *t)
{
	struct headers headers = { 0 };
	struct store_exchange x;
	char url[URL_ROOM];
	int rc;

	store_exchange_init(&x, s, t, STORE_HEAD);
	bucket_url(s->impl, "", url);
	rc = request(&x, url, &headers);
	store_exchange_free(&x);
	return rc;
}

/* AWS wants the region named in the request; other servers don't know the names of AWS's regions.
 */
static const char *location_document(const struct s3 *c, char *text, size_t room)
{
	const char *region = c->sigv4 + strlen("aws:amz:");
	int len = (int)strcspn(region, ":");
	const char *end = strcasestr(c->place.host, ".amazonaws.com");

	text[0] = '\0';
	if (end && strncmp(region, "us-east-1:", 10) != 0)
		snprintf(text, room,
		         "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/"
		         "2006-03-01/\"><LocationConstraint>%.*s</LocationConstraint>"
		         "</CreateBucketConfiguration>",
		         len, region);
	return text;
}

static int s3_create_bucket(struct store *s, struct store_try *t)
{
	struct headers headers = { 0 };
	struct store_exchange x;
	struct s3_error e = { 0 };
	struct iovec iov;
	char url[URL_ROOM], text[512];
	int rc = head_bucket(s, t);

	if (rc != -ENOENT)
		return rc;
	iov.iov_base = (char *)location_document(s->impl, text, sizeof(text));
	iov.iov_len = strlen(text);
	store_exchange_init(&x, s, t, STORE_PUT);
	x.iov = &iov;
	x.niov = 1;
	x.size = iov.iov_len;
	bucket_url(s->impl, "", url);
	rc = request(&x, url, &headers);
	if (rc < 0 && x.status == 409 && s3_xml_error(x.text, x.text_len, &e) == 0) {
		t->again = false;
		if (strcmp(e.code, "BucketAlreadyOwnedByYou") == 0)
			rc = 0; /* made at the same moment by somebody of ours */
		else if (strcmp(e.code, "BucketAlreadyExists") == 0)
			rc = silt_fail(t->err, -EACCES,
			               "CREATE %s: the bucket's name is taken by "
			               "somebody else",
			               s->where);
		else
			t->again = true;
	}
	store_exchange_free(&x);
	return rc;
}

const struct store_ops store_s3_ops = {
	.kind = "s3",
	.open = s3_open,
	.close = s3_close,
	.put = s3_put,
	.get = s3_get,
	.head = s3_head,
	.list_page = s3_list_page,
	.del = s3_delete,
	.del_batch = s3_delete_batch,
	.create_bucket = s3_create_bucket,
};
