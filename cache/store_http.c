/* One HTTP exchange with an S3 server, over a curl handle that somebody else has given an address,
 * headers and a signature.
 *
 * The rules that make a reply trustworthy are here, once for both S3 stores:
 * - The body is sent from the caller's pieces and can be rewound, so curl may repeat a request
 * whose kept-alive connection turned out to be dead.
 * - Redirects are not followed: a signed request goes to the host it was signed for or nowhere.
 * - A reply counts only when curl saw it to its end (Content-Length or the last chunk).
 * - A try fails when no byte moved for the stall timeout, and when the call's deadline comes.
 * Curl's own low-speed check averages over seconds and so sees a stall late; we watch the counters.
 * - Certificates are checked, against the given bundle or the system's.
 *
 * What a status or an error code means is in store_http_judge.c. */
#include "cache/store_http.h"

#include <errno.h>
#include <libxml/parser.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cache/store_s3_xml.h"

#define TEXT_MAX       ((size_t)16 << 20) /* a page of 1,000 keys is about 0.4 MiB */
#define ERROR_TEXT_MAX ((size_t)64 << 10)
#define IO_BUFFER      (256L << 10)

/* Curl and libxml2 keep process-wide tables that must be made before threads use them. */
static pthread_once_t global_once = PTHREAD_ONCE_INIT;
static CURLcode global_result;

static void global_init(void)
{
	global_result = curl_global_init(CURL_GLOBAL_DEFAULT);
	xmlInitParser();
}

int store_http_global_init(void)
{
	pthread_once(&global_once, global_init);
	return global_result == CURLE_OK ? 0 : -ENOMEM;
}

/* --- Addresses ------------------------------------------------------------------------------- */

static int bad_place(struct silt_err *err, const char *url, const char *why)
{
	return silt_fail(err, -EINVAL,
	                 "bad bucket address \"%.200s\": %s; it looks like "
	                 "https://host[:port]/bucket[/prefix]",
	                 url, why);
}

/* Copies url[0..len) to `out`; false when it is empty or too long. */
static bool take_part(char *out, size_t room, const char *p, size_t len)
{
	if (len == 0 || len >= room)
		return false;
	memcpy(out, p, len);
	out[len] = '\0';
	return true;
}

int store_place_parse(const char *url, struct store_place *out, char *where, struct silt_err *err)
{
	struct store_place place = { 0 };
	const char *p = url;
	size_t len;

	if (strncasecmp(p, "http://", 7) != 0 && strncasecmp(p, "https://", 8) != 0)
		return bad_place(err, url, "it does not begin with http:// or https://");
	place.https = strncasecmp(p, "https://", 8) == 0;
	p += place.https ? 8 : 7;
	len = strcspn(p, "/");
	if (memchr(p, '@', len))
		return bad_place(err, "...",
		                 "keys don't belong into an address; use the environment "
		                 "or a credentials file");
	if (!take_part(place.host, sizeof(place.host), p, len) || strpbrk(place.host, "?#\\ \"<>"))
		return bad_place(err, url, "it has no valid host");
	p += len + (p[len] == '/');
	len = strcspn(p, "/");
	if (!take_part(place.bucket, sizeof(place.bucket), p, len) ||
	    store_key_check(place.bucket, len) < 0)
		return bad_place(err, url, "it has no valid bucket name");
	p += len + (p[len] == '/');
	len = strlen(p);
	while (len > 0 && p[len - 1] == '/')
		len--;
	if (len > 0) {
		if (store_key_check(p, len) < 0 || len > STORE_KEY_MAX)
			return bad_place(err, url,
			                 "its prefix has characters outside of "
			                 "[A-Za-z0-9_./-] or empty, \".\" or \"..\" parts");
		snprintf(place.prefix, sizeof(place.prefix), "%.*s/", (int)len, p);
	}
	*out = place;
	len = strlen(place.prefix);
	snprintf(where, STORE_WHERE_MAX, "http%s://%s/%s%s%.*s", place.https ? "s" : "", place.host,
	         place.bucket, len ? "/" : "", len ? (int)len - 1 : 0, place.prefix);
	return 0;
}

/* --- The request's body ---------------------------------------------------------------------- */

static size_t send_body(char *out, size_t size, size_t n, void *arg)
{
	struct store_exchange *x = arg;
	size_t room = size * n, sent = 0;

	while (sent < room && x->at_iov < x->niov) {
		const struct iovec *v = &x->iov[x->at_iov];
		size_t some = v->iov_len - x->at_byte;
		if (some > room - sent)
			some = room - sent;
		if (some > 0)
			memcpy(out + sent, (const char *)v->iov_base + x->at_byte, some);
		sent += some;
		x->at_byte += some;
		if (x->at_byte == v->iov_len) {
			x->at_iov++;
			x->at_byte = 0;
		}
	}
	return sent;
}

static int seek_body(void *arg, curl_off_t off, int origin)
{
	struct store_exchange *x = arg;

	if (origin != SEEK_SET || off < 0 || (uint64_t)off > x->size)
		return CURL_SEEKFUNC_FAIL;
	x->at_iov = 0;
	while (x->at_iov < x->niov && (size_t)off >= x->iov[x->at_iov].iov_len)
		off -= (curl_off_t)x->iov[x->at_iov++].iov_len;
	x->at_byte = (size_t)off;
	return CURL_SEEKFUNC_OK;
}

/* --- The reply ------------------------------------------------------------------------------- */

static void start_reply(struct store_exchange *x)
{
	x->status = 0;
	x->got = 0;
	x->passed = 0;
	x->text_len = 0;
	x->has_range = false;
	x->foreign_etag = false;
	x->info = (struct store_object){ 0 };
	x->nonce[0] = '\0';
	x->retry_after_s = 0;
}

/* Copies a value of `len` bytes, cut to the room there is. */
static void copy_value(char *out, size_t room, const char *v, size_t len)
{
	if (len >= room)
		len = room - 1;
	memcpy(out, v, len);
	out[len] = '\0';
}

static void take_etag(struct store_exchange *x, const char *v, size_t len)
{
	if (len > 2 && v[0] == 'W' && v[1] == '/') {
		v += 2;
		len -= 2;
	}
	if (len >= 2 && v[0] == '"' && v[len - 1] == '"') {
		v++;
		len -= 2;
	}
	copy_value(x->info.etag, sizeof(x->info.etag), v, len);
}

static void take_range(struct store_exchange *x, const char *v)
{
	unsigned long long from, to, total;
	int end = 0;

	if (sscanf(v, "bytes %llu-%llu/%llu%n", &from, &to, &total, &end) == 3 && v[end] == '\0' &&
	    from <= to && to < total) {
		x->has_range = true;
		x->range_from = from;
		x->range_to = to;
		x->range_total = total;
	} else if (sscanf(v, "bytes */%llu%n", &total, &end) == 1 && v[end] == '\0') {
		x->info.size = total;
	}
}

static void take_header(struct store_exchange *x, const char *name, const char *v, size_t len)
{
	if (strcasecmp(name, "etag") == 0)
		take_etag(x, v, len);
	else if (strcasecmp(name, "content-range") == 0)
		take_range(x, v);
	else if (strcasecmp(name, "last-modified") == 0)
		x->info.mtime = (int64_t)curl_getdate(v, NULL);
	else if (strcasecmp(name, "x-amz-meta-silt-put") == 0)
		copy_value(x->nonce, sizeof(x->nonce), v, len);
	else if (strcasecmp(name, "retry-after") == 0)
		x->retry_after_s = (unsigned)strtoul(v, NULL, 10);
	else if (strcasecmp(name, "x-amz-server-side-encryption-customer-algorithm") == 0 ||
	         (strcasecmp(name, "x-amz-server-side-encryption") == 0 &&
	          strncasecmp(v, "aws:kms", 7) == 0))
		x->foreign_etag = true;
	if (x->info.mtime < 0)
		x->info.mtime = 0;
}

static size_t take_header_line(char *data, size_t size, size_t n, void *arg)
{
	struct store_exchange *x = arg;
	size_t len = size * n, end = len;
	char line[1024], *colon, *v;

	x->moved_ns = silt_now_ns();
	while (end > 0 && (data[end - 1] == '\r' || data[end - 1] == '\n' || data[end - 1] == ' '))
		end--;
	if (end >= sizeof(line))
		return len; /* none of those that we read is so long */
	memcpy(line, data, end);
	line[end] = '\0';
	if (strncmp(line, "HTTP/", 5) == 0) {
		start_reply(x); /* also forgets what came with a 100 Continue */
		return len;
	}
	colon = strchr(line, ':');
	if (!colon)
		return len;
	*colon = '\0';
	v = colon + 1;
	v += strspn(v, " \t");
	take_header(x, line, v, strlen(v));
	return len;
}

static size_t take_text(struct store_exchange *x, const char *data, size_t len)
{
	size_t max = x->status / 100 == 2 ? TEXT_MAX : ERROR_TEXT_MAX;

	if (len > max - (x->text_len < max ? x->text_len : max)) {
		if (x->status / 100 != 2)
			return len; /* the beginning of an error will do */
		x->too_long = true;
		return 0;
	}
	if (x->text_cap - x->text_len < len + 1) {
		size_t cap = (x->text_len + len + 1) * 2;
		char *text = realloc(x->text, cap);
		if (!text) {
			x->no_memory = true;
			return 0;
		}
		x->text = text;
		x->text_cap = cap;
	}
	memcpy(x->text + x->text_len, data, len);
	x->text_len += len;
	x->text[x->text_len] = '\0';
	return len;
}

/* A server that ignores Range answers 200 with the whole object: we keep our part of it. */
static size_t take_object(struct store_exchange *x, const char *data, size_t len)
{
	size_t all = len, skip = 0;

	if (x->status == 200 && x->passed < x->off) {
		skip = x->off - x->passed < len ? (size_t)(x->off - x->passed) : len;
		x->passed += skip;
		data += skip;
		len -= skip;
	}
	if (len > x->room - x->got) {
		if (x->status == 206) {
			x->too_long = true;
			return 0;
		}
		len = x->room - x->got;
	}
	if (len > 0)
		memcpy(x->into + x->got, data, len);
	x->got += len;
	return all;
}

static size_t take_body(char *data, size_t size, size_t n, void *arg)
{
	struct store_exchange *x = arg;

	if (x->status == 0)
		curl_easy_getinfo(x->curl, CURLINFO_RESPONSE_CODE, &x->status);
	if (x->into && (x->status == 200 || x->status == 206))
		return take_object(x, data, size * n);
	return take_text(x, data, size * n);
}

/* --- Running it ------------------------------------------------------------------------------ */

static int request_begins(void *arg, char *primary_ip, char *local_ip, int primary_port,
                          int local_port)
{
	struct store_exchange *x = arg;
	x->moved_ns = silt_now_ns();
	return CURL_PREREQFUNC_OK;
}

/* Called on every progress and at least once a second. */
static int watch(void *arg, curl_off_t dltotal, curl_off_t dlnow, curl_off_t ultotal,
                 curl_off_t ulnow)
{
	struct store_exchange *x = arg;
	uint64_t now;

	if (x->moved_ns == 0)
		return 0; /* the connect timeout's time */
	now = silt_now_ns();
	if (dlnow + ulnow != x->moved) {
		x->moved = dlnow + ulnow;
		x->moved_ns = now;
		return 0;
	}
	if (now - x->moved_ns < (uint64_t)x->store->cfg.stall_timeout_ms * 1000000u)
		return 0;
	x->stalled = true;
	return 1;
}

static void set_timeouts(struct store_exchange *x, CURL *c)
{
	curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, (long)x->store->cfg.connect_timeout_ms);
	curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)store_try_left_ms(x->t));
	curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 0L);
	curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, 0L);
	curl_easy_setopt(c, CURLOPT_PREREQFUNCTION, request_begins);
	curl_easy_setopt(c, CURLOPT_PREREQDATA, x);
	curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, watch);
	curl_easy_setopt(c, CURLOPT_XFERINFODATA, x);
	curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
	/* Waiting for 100 Continue costs a round trip and more when it doesn't come. */
	curl_easy_setopt(c, CURLOPT_EXPECT_100_TIMEOUT_MS, 1L);
}

static void set_connection(struct store_exchange *x, CURL *c)
{
	curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(c, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(c, CURLOPT_PATH_AS_IS, 1L);
	curl_easy_setopt(c, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(c, CURLOPT_BUFFERSIZE, IO_BUFFER);
	curl_easy_setopt(c, CURLOPT_UPLOAD_BUFFERSIZE, IO_BUFFER);
	curl_easy_setopt(c, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(c, CURLOPT_SSL_VERIFYHOST, 2L);
	if (x->store->cfg.ca_file)
		curl_easy_setopt(c, CURLOPT_CAINFO, x->store->cfg.ca_file);
}

static void set_bodies(struct store_exchange *x, CURL *c)
{
	curl_easy_setopt(c, CURLOPT_ERRORBUFFER, x->cause);
	curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, take_header_line);
	curl_easy_setopt(c, CURLOPT_HEADERDATA, x);
	curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take_body);
	curl_easy_setopt(c, CURLOPT_WRITEDATA, x);
	if (x->method == STORE_PUT || x->method == STORE_POST) {
		curl_easy_setopt(c, CURLOPT_READFUNCTION, send_body);
		curl_easy_setopt(c, CURLOPT_READDATA, x);
		curl_easy_setopt(c, CURLOPT_SEEKFUNCTION, seek_body);
		curl_easy_setopt(c, CURLOPT_SEEKDATA, x);
	}
	if (x->method == STORE_PUT)
		curl_easy_setopt(c, CURLOPT_INFILESIZE_LARGE, (curl_off_t)x->size);
	if (x->method == STORE_POST)
		curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)x->size);
}

CURLcode store_http_perform(struct store_exchange *x, CURL *curl)
{
	curl_off_t length = -1;

	x->curl = curl;
	x->performed = true;
	set_connection(x, curl);
	set_timeouts(x, curl);
	set_bodies(x, curl);
	x->result = curl_easy_perform(curl);
	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &x->status);
	curl_easy_getinfo(curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
	x->length = length;
	/* Nothing of `x` may stay in a handle that outlives it. */
	curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, NULL);
	x->curl = NULL;
	return x->result;
}

void store_exchange_init(struct store_exchange *x, struct store *s, struct store_try *t,
                         enum store_method method)
{
	memset(x, 0, sizeof(*x));
	x->store = s;
	x->t = t;
	x->method = method;
	x->length = -1;
}

void store_exchange_free(struct store_exchange *x)
{
	free(x->text);
}
