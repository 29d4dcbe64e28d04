/* What the answer of an S3 server means: which errno, whether to try again, and one line for
 * people.
 *
 * The error code in the reply's body says most; without one (HEAD, proxies, crashed servers) the
 * HTTP status decides. A 5xx, 408 or 429 is always worth another try, whatever its body is, except
 * 501 and 505, which say "never". */
#include <errno.h>
#include <string.h>

#include "cache/store_http.h"
#include "cache/store_s3_xml.h"

struct meaning {
	const char *code;
	int err;
	bool again;
	const char *text;
};

static const struct meaning meanings[] = {
	{ "NoSuchKey", -ENOENT, false, "no such object" },
	{ "NoSuchBucket", -ENOENT, false,
	  "there is no such bucket; create it, or correct the address" },
	{ "PreconditionFailed", -EEXIST, false, "the object is there already" },
	{ "InvalidAccessKeyId", -EACCES, false, "the store does not know this access key" },
	{ "SignatureDoesNotMatch", -EACCES, false,
	  "wrong secret key (or a proxy changed the request)" },
	{ "RequestTimeTooSkewed", -EACCES, false,
	  "this machine's clock differs too much from the store's; set it" },
	{ "AccessDenied", -EACCES, false,
	  "these credentials may not do this; check the bucket's policy and owner" },
	{ "AllAccessDisabled", -EACCES, false, "access to the bucket is disabled" },
	{ "ExpiredToken", -EACCES, false, "the session token has expired; get a new one" },
	{ "InvalidToken", -EACCES, false, "the session token is wrong" },
	{ "AuthorizationHeaderMalformed", -EACCES, false,
	  "the store did not accept the signature's form; is the region right?" },
	{ "InvalidRequest", -EIO, false, "the store does not accept the request" },
	{ "InvalidBucketName", -EINVAL, false, "bad bucket name" },
	{ "PermanentRedirect", -EIO, false,
	  "the bucket is elsewhere; use the address of its region" },
	{ "TemporaryRedirect", -EIO, true, "the bucket is being moved" },
	{ "QuotaExceeded", -ENOSPC, false, "the quota of the bucket or its owner is used up" },
	{ "EntityTooLarge", -EIO, false, "the store does not take objects of this size" },
	{ "NotImplemented", -EIO, false, "the store cannot do this" },
	{ "BadDigest", -EIO, true, "other bytes arrived than were sent" },
	{ "IncompleteBody", -EIO, true, "the store did not get the whole body" },
	{ "RequestTimeout", -EIO, true, "the store waited too long for the body" },
	{ "OperationAborted", -EIO, true, "another request was in the way" },
	{ "ConditionalRequestConflict", -EIO, true, "another request was in the way" },
	{ "SlowDown", -EIO, true, "the store is overloaded" },
	{ "ServiceUnavailable", -EIO, true, "the store is not available" },
	{ "InternalError", -EIO, true, "the store failed inside" },
};

static const struct meaning *find_meaning(const char *code)
{
	for (size_t i = 0; *code && i < sizeof(meanings) / sizeof(meanings[0]); i++)
		if (strcmp(meanings[i].code, code) == 0)
			return &meanings[i];
	return NULL;
}

static bool status_passes(long status)
{
	return status == 408 || status == 429 ||
	       (status / 100 == 5 && status != 501 && status != 505);
}

static struct meaning by_status(const struct store_exchange *x)
{
	switch (x->status) {
	case 401:
	case 403:
		return (struct meaning){
			"", -EACCES, false,
			"not allowed; check the credentials, the bucket's policy and "
			"this machine's clock"
		};
	case 404: return (struct meaning){ "", -ENOENT, false, "no such object (or bucket)" };
	case 409: return (struct meaning){ "", -EIO, true, "another request was in the way" };
	case 412: return (struct meaning){ "", -EEXIST, false, "the object is there already" };
	case 413:
		return (struct meaning){ "", -EIO, false,
			                 "a proxy or the store finds it too large" };
	case 507: return (struct meaning){ "", -ENOSPC, true, "the store is full" };
	}
	if (x->status / 100 == 3)
		return (struct meaning){
			"", -EIO, false,
			"the store sends us elsewhere; use the address of the bucket's "
			"region"
		};
	if (status_passes(x->status))
		return (struct meaning){ "", -EIO, true, "the store failed" };
	if (x->status / 100 == 4)
		return (struct meaning){ "", -EIO, false, "the store does not accept the request" };
	return (struct meaning){ "", -EIO, true, "this is no answer of an S3 server" };
}

static bool worth_retrying(CURLcode c)
{
	switch (c) {
	case CURLE_URL_MALFORMAT:
	case CURLE_UNSUPPORTED_PROTOCOL:
	case CURLE_NOT_BUILT_IN:
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_CACERT_BADFILE:
	case CURLE_SSL_ISSUER_ERROR:
	case CURLE_SSL_ENGINE_NOTFOUND:
	case CURLE_OUT_OF_MEMORY: return false;
	default: return true;
	}
}

static const char *transport_hint(CURLcode c)
{
	switch (c) {
	case CURLE_COULDNT_RESOLVE_HOST: return "; check the host's name";
	case CURLE_COULDNT_CONNECT: return "; does the store run, is the address right?";
	case CURLE_PEER_FAILED_VERIFICATION:
		return "; give the CA that signed the store's certificate";
	case CURLE_SSL_CACERT_BADFILE: return "; check the CA file";
	case CURLE_SSL_CONNECT_ERROR: return "; does this port speak TLS?";
	case CURLE_UNSUPPORTED_PROTOCOL:
	case CURLE_WEIRD_SERVER_REPLY: return "; is this port plain http or https?";
	default: return "";
	}
}

static int judge_transport(struct store_exchange *x)
{
	struct store_try *t = x->t;
	const char *cause = x->cause[0] ? x->cause : curl_easy_strerror(x->result);

	t->again = worth_retrying(x->result);
	if (x->no_memory || x->result == CURLE_OUT_OF_MEMORY) {
		t->again = false;
		return silt_fail(t->err, -ENOMEM, "%s %s: out of memory", t->verb, t->key);
	}
	if (x->stalled) {
		t->timed_out = true;
		return silt_fail(t->err, -ETIMEDOUT, "%s %s: %s: no byte moved for %.1f s", t->verb,
		                 t->key, x->store->where, x->store->cfg.stall_timeout_ms / 1000.0);
	}
	t->timed_out = x->result == CURLE_OPERATION_TIMEDOUT;
	if (t->timed_out && x->moved_ns != 0)
		return silt_fail(t->err, -ETIMEDOUT, "%s %s: %s: no answer before the deadline of %.1f s",
		                 t->verb, t->key, x->store->where,
		                 x->store->cfg.deadline_ms / 1000.0);
	if (x->too_long)
		cause = "more bytes came than were asked for";
	return silt_fail(t->err, t->timed_out ? -ETIMEDOUT : -EIO, "%s %s: %s: %s%s", t->verb,
	                 t->key, x->store->where, cause, transport_hint(x->result));
}

int store_http_judge_code(struct store_exchange *x, const char *code, const char *message,
                          const char *key)
{
	struct store_try *t = x->t;
	const struct meaning *found = find_meaning(code);
	struct meaning m = found ? *found : by_status(x);

	t->again = m.again || status_passes(x->status);
	t->timed_out = false;
	t->wait_ms = x->retry_after_s > 30 ? 30000 : x->retry_after_s * 1000;
	return silt_fail(t->err, m.err, "%s %s: %s: HTTP %ld%s%s: %s%s%.120s%s", t->verb, key,
	                 x->store->where, x->status, *code ? " " : "", code, m.text,
	                 !found && *message ? " (" : "", found ? "" : message,
	                 !found && *message ? ")" : "");
}

int store_http_judge(struct store_exchange *x)
{
	struct s3_error e = { 0 };

	/* A refusal that came before the body was taken is an answer, though sending then failed.
	 */
	if (x->result != CURLE_OK && !(x->result == CURLE_SEND_ERROR && x->status >= 300))
		return judge_transport(x);
	if (x->status / 100 == 2)
		return 0;
	if (x->text_len > 0)
		s3_xml_error(x->text, x->text_len, &e);
	return store_http_judge_code(x, e.code, e.message, x->t->key);
}

static ssize_t bad_range(struct store_exchange *x, const char *why)
{
	struct store_try *t = x->t;
	t->again = true;
	return silt_fail(t->err, -EIO, "GET %s: %s: %s (asked for %zu bytes at %llu, got %zu)",
	                 t->key, x->store->where, why, x->room, (unsigned long long)x->off, x->got);
}

static ssize_t check_range(struct store_exchange *x)
{
	uint64_t want;

	if (x->status == 206) {
		if (!x->has_range || x->range_from != x->off)
			return bad_range(x, "the reply is for another range");
		x->info.size = x->range_total;
	} else {
		/* Without a length the end of the connection would pass for the end of the object.
		 */
		if (x->length < 0)
			return bad_range(x, "the reply does not tell its length");
		x->info.size = (uint64_t)x->length;
	}
	want = x->info.size > x->off ? x->info.size - x->off : 0;
	if (want > x->room)
		want = x->room;
	if (x->got != want)
		return bad_range(x, "the reply is not as long as it should be");
	return (ssize_t)x->got;
}

ssize_t store_http_end_get(struct store_exchange *x, int judged, struct store_object *info)
{
	ssize_t rc = judged;

	if (judged == 0)
		rc = check_range(x);
	else if (x->result == CURLE_OK && x->status == 416)
		rc = 0; /* at or past the end */
	if (rc >= 0) {
		*info = x->info;
		x->t->again = false;
	}
	return rc;
}

int store_http_end_head(struct store_exchange *x, int judged)
{
	if (judged < 0)
		return judged;
	if (x->length < 0) {
		x->t->again = true;
		return silt_fail(x->t->err, -EIO, "HEAD %s: %s: the reply does not tell the size",
		                 x->t->key, x->store->where);
	}
	x->info.size = (uint64_t)x->length;
	return 0;
}

int store_http_end_delete(struct store_exchange *x, int judged)
{
	struct s3_error e = { 0 };

	if (judged == -ENOENT && s3_xml_error(x->text, x->text_len, &e) == 0 &&
	    strcmp(e.code, "NoSuchBucket") != 0)
		return 0;
	return judged;
}

int store_http_read_list(struct store_exchange *x, const char *cut, struct store_page *page)
{
	struct store_try *t = x->t;
	struct s3_error e;
	int rc = s3_xml_list(x->text ? x->text : "", x->text_len, cut, page, &e);

	if (rc == -EBADMSG && e.code[0])
		return store_http_judge_code(x, e.code, e.message, t->key);
	if (rc == -EBADMSG) {
		t->again = true;
		return silt_fail(t->err, -EIO, "LIST %s: %s: the reply is no listing", t->key,
		                 x->store->where);
	}
	return rc < 0 ? silt_fail(t->err, rc, "out of memory") : 0;
}
