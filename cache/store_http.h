/* Private to the S3 stores: where a bucket is, one HTTP exchange over a curl handle, and what its
 * answer means. `s3` makes and signs its requests by itself; `s3v2` lets libs3 do that; both bring
 * the bytes over with store_http_perform() and judge the answer with store_http_judge(). */
#pragma once
#include <curl/curl.h>

#include "cache/store_impl.h"
#include "meta/lock.h"

/* http(s)://host[:port]/bucket[/prefix], taken apart. */
struct store_place {
	bool https;
	char host[300]; /* with its port */
	char bucket[256];
	char prefix[STORE_KEY_MAX + 2]; /* "" or "a/b/" */
};

/* Parses `url` and writes it back in one form to `where`. -EINVAL with the form in words. */
int store_place_parse(const char *url, struct store_place *out, char *where, struct silt_err *err);

enum store_method { STORE_GET, STORE_HEAD, STORE_PUT, STORE_POST, STORE_DELETE };

struct store_exchange {
	struct store *store;
	struct store_try *t;
	enum store_method method;

	/* The request's body. */
	const struct iovec *iov;
	int niov;
	uint64_t size;
	int at_iov; /* next byte to send */
	size_t at_byte;

	/* GET of an object: the wanted range goes to `into`, the rest of a longer reply nowhere. */
	char *into;
	uint64_t off;
	size_t room, got;

	/* The reply. */
	CURL *curl;
	bool performed;
	CURLcode result;
	long status;     /* 0: none came */
	uint64_t passed; /* bytes of body before the wanted range */
	char *text;      /* other bodies: listing, error document; NUL-terminated */
	size_t text_len, text_cap;
	int64_t length; /* Content-Length, -1 when not told */
	bool has_range; /* Content-Range: bytes from-to/total */
	uint64_t range_from, range_to, range_total;
	bool foreign_etag;        /* server-side encryption: the ETag is no MD5 */
	struct store_object info; /* etag, mtime; size for HEAD */
	char nonce[33];
	unsigned retry_after_s;
	char cause[CURL_ERROR_SIZE];

	/* Watching for a stall. */
	uint64_t moved_ns; /* when the last byte moved; 0: not connected yet */
	curl_off_t moved;
	bool stalled, too_long, no_memory;
};

void store_exchange_init(struct store_exchange *x, struct store *s, struct store_try *t,
                         enum store_method method);
void store_exchange_free(struct store_exchange *x);

/* Sends the request that `curl` holds (address, headers, signature) and takes the reply into `x`.
 */
CURLcode store_http_perform(struct store_exchange *x, CURL *curl);

/* What came of it: 0 for a whole 2xx reply; else a negative errno, with the text in x->t->err and
 * x->t->again set if it may pass. */
int store_http_judge(struct store_exchange *x);

/* The same for an S3 error code inside a reply ("SlowDown"), told about `key`. */
int store_http_judge_code(struct store_exchange *x, const char *code, const char *message,
                          const char *key);

/* What an operation on one object came to, from what judge() said of its exchange (`judged`). A GET
 * has to bring all of the range that there is: returns its bytes, 0 at or past the end. A HEAD has
 * to tell the size (x->info). A DELETE of what is not there went well, unless the bucket is not. */
ssize_t store_http_end_get(struct store_exchange *x, int judged, struct store_object *info);
int store_http_end_head(struct store_exchange *x, int judged);
int store_http_end_delete(struct store_exchange *x, int judged);

/* For a listing that judge() liked: reads it into `page`, `cut` taken off the keys. */
int store_http_read_list(struct store_exchange *x, const char *cut, struct store_page *page);

/* Must be called before any other function here, by every store that opens. */
int store_http_global_init(void);
