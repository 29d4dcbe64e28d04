/* The object store interface: dispatch, checks and retries, the same for every kind of store.
 *
 * A kind of store makes single tries (store_impl.h). This file repeats them while they fail in a
 * way that may pass: after 50 ms, then twice as long each time up to 5 s, each pause shortened by a
 * random part of its half so that a thousand nodes that lost the same server don't come back in
 * step. A pause that the store asked for (Retry-After) is taken when it is longer. The last error
 * stands when the tries or the deadline run out, with their number and the time added to its text.
 *
 * Repeating is safe: a GET, HEAD, listing or DELETE changes nothing the second time, a PUT of one
 * key always has the same bytes, and a PUT under STORE_EXCL knows its own object again by a nonce
 * (see store_s3.c).
 *
 * Metrics count what succeeded, retries, and what was given up; an object that is not there and one
 * that is there under STORE_EXCL are answers, not errors. */
#include "cache/store.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "cache/store_impl.h"
#include "meta/cleanup.h"
#include "meta/lock.h"

#define BACKOFF_FIRST_MS 50u
#define BACKOFF_MAX_MS   5000u
#define WARN_FROM_TRY    3u /* earlier ones are debug lines: single faults are normal */

static const struct store_ops *const kinds[] = {
	&store_file_ops,
	&store_s3_ops,
#ifdef SILT_HAVE_S3V2
	&store_s3v2_ops,
#endif
};

/* --- Keys ------------------------------------------------------------------------------------ */

static bool key_char(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       c == '_' || c == '.' || c == '/' || c == '-';
}

/* `open_end`: the last component may be empty or "." or "..", as a prefix's may. */
static int check_components(const char *key, size_t len, bool open_end)
{
	size_t start = 0;

	if (len > STORE_KEY_MAX)
		return -EINVAL;
	for (size_t i = 0; i <= len; i++) {
		if (i < len && !key_char(key[i]))
			return -EINVAL;
		if (i < len && key[i] != '/')
			continue;
		size_t n = i - start;
		bool dots = (n == 1 || n == 2) && key[start] == '.' && key[i - 1] == '.';
		if ((n == 0 || dots) && !(i == len && open_end))
			return -EINVAL;
		start = i + 1;
	}
	return 0;
}

int store_key_check(const char *key, size_t len)
{
	return check_components(key, len, false);
}

static int require_key(const char *key, struct silt_err *err)
{
	if (store_key_check(key, strnlen(key, STORE_KEY_MAX + 1)) == 0)
		return 0;
	return silt_fail(err, -EINVAL,
	                 "bad object key \"%.100s\": keys are made of "
	                 "[A-Za-z0-9_./-], up to %d bytes, without empty, \".\" or \"..\" parts",
	                 key, STORE_KEY_MAX);
}

static int require_prefix(const char *prefix, struct silt_err *err)
{
	size_t len = strnlen(prefix, STORE_KEY_MAX + 1);
	if (len == 0 || (prefix[0] != '/' && check_components(prefix, len, true) == 0))
		return 0;
	return silt_fail(err, -EINVAL, "bad key prefix \"%.100s\"", prefix);
}

/* --- Tries ----------------------------------------------------------------------------------- */

void store_random_hex(char *out, size_t n)
{
	static const char digits[] = "0123456789abcdef";
	for (size_t i = 0; i < n; i++) {
		unsigned char byte;
		if (getrandom(&byte, 1, 0) != 1)
			abort(); /* no entropy: cannot happen after boot */
		out[2 * i] = digits[byte >> 4];
		out[2 * i + 1] = digits[byte & 15];
	}
	out[2 * n] = '\0';
}

unsigned store_try_left_ms(const struct store_try *t)
{
	uint64_t now = silt_now_ns();
	uint64_t left = t->until_ns > now ? (t->until_ns - now) / 1000000u : 0;
	return left ? (unsigned)left : 1;
}

/* In place: `t` may point into itself. */
static void try_begin(struct store_try *t, struct store *s, const char *verb, const char *key,
                      struct silt_err *err)
{
	memset(t, 0, sizeof(*t));
	t->store = s;
	t->verb = verb;
	t->key = key;
	t->err = err ? err : &t->own_err;
	t->err->code = 0;
	t->err->text[0] = '\0';
	t->start_ns = silt_now_ns();
	t->until_ns = t->start_ns + (uint64_t)s->cfg.deadline_ms * 1000000u;
}

static unsigned pause_ms(const struct store_try *t)
{
	unsigned ms = BACKOFF_MAX_MS;
	uint32_t r = 0;

	if (t->number < 7)
		ms = BACKOFF_FIRST_MS << t->number;
	if (ms > BACKOFF_MAX_MS)
		ms = BACKOFF_MAX_MS;
	if (getrandom(&r, sizeof(r), 0) == sizeof(r))
		ms -= r % (ms / 2 + 1);
	return t->wait_ms > ms ? t->wait_ms : ms;
}

static void sleep_ms(unsigned ms)
{
	struct timespec left = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };
	while (nanosleep(&left, &left) != 0 && errno == EINTR)
		;
}

static void give_up(struct store_try *t, ssize_t *rc)
{
	size_t len = strlen(t->err->text);

	if (t->timed_out)
		*rc = -ETIMEDOUT;
	t->err->code = (int)*rc;
	snprintf(t->err->text + len, sizeof(t->err->text) - len,
	         " (given up after %u tries in %.1f s)", t->number + 1,
	         (double)(silt_now_ns() - t->start_ns) / 1e9);
}

/* True: make the next try (the pause is over). False: `*rc` is the call's result. */
static bool try_again(struct store_try *t, ssize_t *rc)
{
	struct store *s = t->store;
	unsigned ms;

	if (*rc >= 0) {
		t->err->code = 0; /* of an earlier try */
		t->err->text[0] = '\0';
		return false;
	}
	if (!t->again) {
		if (*rc != -ENOENT && *rc != -EEXIST && *rc != -ENOTSUP)
			silt_count(s->cfg.metrics, M_STORE_ERRORS, 1);
		t->err->code = (int)*rc;
		return false;
	}
	ms = pause_ms(t);
	if (store_try_left_ms(t) <= ms)
		t->timed_out = true;
	if (t->number + 1 >= s->cfg.retries || store_try_left_ms(t) <= ms) {
		give_up(t, rc);
		silt_count(s->cfg.metrics, M_STORE_ERRORS, 1);
		return false;
	}
	if (t->number + 1 >= WARN_FROM_TRY)
		silt_warn(s->cfg.log, "%s; try %u of %u in %u ms", t->err->text, t->number + 2,
		          s->cfg.retries, ms);
	else
		silt_debugf(s->cfg.log, "cache.store", "%s; next try in %u ms", t->err->text, ms);
	silt_count(s->cfg.metrics, M_STORE_RETRIES, 1);
	sleep_ms(ms);
	t->number++;
	t->again = t->timed_out = false;
	t->wait_ms = 0;
	return true;
}

/* --- Opening --------------------------------------------------------------------------------- */

static void free_config(struct store_config *c)
{
	const char *strings[] = { c->kind,       c->bucket,        c->region, c->access_key,
		                  c->secret_key, c->session_token, c->ca_file };
	if (c->secret_key)
		explicit_bzero((char *)c->secret_key, strlen(c->secret_key));
	for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++)
		free((char *)strings[i]);
}

static int copy_string(const char **field)
{
	if (*field && !(*field = strdup(*field)))
		return -ENOMEM; /* the field is now NULL: nothing of the caller's is freed */
	return 0;
}

static int copy_config(struct store_config *to, const struct store_config *from)
{
	int rc = 0;
	*to = *from;
	rc |= copy_string(&to->kind);
	rc |= copy_string(&to->bucket);
	rc |= copy_string(&to->region);
	rc |= copy_string(&to->access_key);
	rc |= copy_string(&to->secret_key);
	rc |= copy_string(&to->session_token);
	rc |= copy_string(&to->ca_file);
	to->connect_timeout_ms = from->connect_timeout_ms ? from->connect_timeout_ms : 10000;
	to->stall_timeout_ms = from->stall_timeout_ms ? from->stall_timeout_ms : 20000;
	to->deadline_ms = from->deadline_ms ? from->deadline_ms : 300000;
	to->retries = from->retries ? from->retries : 10;
	return rc ? -ENOMEM : 0;
}

/* The keys from the environment when `cfg` brings none. */
static int find_credentials(struct store_config *cfg, struct silt_err *err)
{
	struct store_credentials found;
	int rc;

	if (cfg->access_key && cfg->secret_key)
		return 0;
	if (cfg->access_key || cfg->secret_key)
		return silt_fail(err, -EINVAL, "access key and secret key are both needed");
	rc = store_credentials(NULL, &found, err);
	if (rc < 0)
		return rc;
	free((char *)cfg->session_token);
	cfg->access_key = found.access_key;
	cfg->secret_key = found.secret_key;
	cfg->session_token = found.session_token;
	return 0;
}

static const struct store_ops *find_kind(const char *kind)
{
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (strcmp(kinds[i]->kind, kind) == 0)
			return kinds[i];
	return NULL;
}

int store_open(const struct store_config *cfg, struct store **out, struct silt_err *err)
{
	const struct store_ops *ops = find_kind(cfg->kind);
	struct store *s;
	int rc;

	if (!ops && strcmp(cfg->kind, "s3v2") == 0)
		return silt_fail(err, -EINVAL,
		                 "this siltfs was built without the s3v2 store; "
		                 "rebuild with libs3 and -Ds3v2=enabled, or use s3");
	if (!ops)
		return silt_fail(err, -EINVAL,
		                 "unknown kind of object store \"%s\": "
		                 "use file, s3 or s3v2",
		                 cfg->kind);
	if (!cfg->bucket || !*cfg->bucket)
		return silt_fail(err, -EINVAL, "no bucket given for the %s store", cfg->kind);
	s = calloc(1, sizeof(*s));
	if (!s)
		return silt_fail(err, -ENOMEM, "out of memory");
	s->ops = ops;
	rc = copy_config(&s->cfg, cfg);
	if (rc < 0)
		silt_fail(err, rc, "out of memory");
	if (rc == 0 && ops != &store_file_ops)
		rc = find_credentials(&s->cfg, err);
	if (rc == 0)
		rc = ops->open(s, err);
	if (rc < 0) {
		free_config(&s->cfg);
		free(s);
		return rc;
	}
	*out = s;
	return 0;
}

void store_close(struct store *s)
{
	if (!s)
		return;
	s->ops->close(s);
	free_config(&s->cfg);
	free(s);
}

const char *store_kind(const struct store *s)
{
	return s->ops->kind;
}

const char *store_where(const struct store *s)
{
	return s->where;
}

/* --- Verbs ----------------------------------------------------------------------------------- */

int store_put(struct store *s, const char *key, const struct iovec *iov, int niov, unsigned flags,
              struct silt_err *err)
{
	struct store_put put = { .key = key, .iov = iov, .niov = niov, .flags = flags };
	struct store_try t;
	ssize_t rc = require_key(key, err);

	if (rc < 0)
		return (int)rc;
	for (int i = 0; i < niov; i++)
		put.size += iov[i].iov_len;
	try_begin(&t, s, "PUT", key, err);
	store_random_hex(t.nonce, sizeof(t.nonce) / 2);
	do
		rc = s->ops->put(s, &t, &put);
	while (try_again(&t, &rc));
	if (rc == 0) {
		silt_count(s->cfg.metrics, M_STORE_PUTS, 1);
		silt_count(s->cfg.metrics, M_STORE_PUT_BYTES, put.size);
	}
	return (int)rc;
}

ssize_t store_get(struct store *s, const char *key, uint64_t off, size_t len, void *buf,
                  struct store_object *info, struct silt_err *err)
{
	struct store_object unused;
	struct store_try t;
	ssize_t rc = require_key(key, err);

	if (rc < 0)
		return rc;
	if (off > INT64_MAX || len > SSIZE_MAX || off + len > INT64_MAX)
		return silt_fail(err, -EINVAL, "GET %s: range %llu+%zu is out of bounds", key,
		                 (unsigned long long)off, len);
	info = info ? info : &unused;
	if (len == 0) {
		rc = store_head(s, key, info, err);
		return rc;
	}
	try_begin(&t, s, "GET", key, err);
	do {
		*info = (struct store_object){ 0 };
		rc = s->ops->get(s, &t, off, len, buf, info);
	} while (try_again(&t, &rc));
	if (rc >= 0) {
		silt_count(s->cfg.metrics, M_STORE_GETS, 1);
		silt_count(s->cfg.metrics, M_STORE_GET_BYTES, (uint64_t)rc);
	}
	return rc;
}

int store_head(struct store *s, const char *key, struct store_object *info, struct silt_err *err)
{
	struct store_object unused;
	struct store_try t;
	ssize_t rc = require_key(key, err);

	if (rc < 0)
		return (int)rc;
	info = info ? info : &unused;
	try_begin(&t, s, "HEAD", key, err);
	do {
		*info = (struct store_object){ 0 };
		rc = s->ops->head(s, &t, info);
	} while (try_again(&t, &rc));
	if (rc == 0)
		silt_count(s->cfg.metrics, M_STORE_HEADS, 1);
	return (int)rc;
}

/* One page, with retries. */
static int list_page(struct store *s, const char *prefix, const char *after,
                     struct store_page *page, struct silt_err *err)
{
	struct store_try t;
	ssize_t rc;

	try_begin(&t, s, "LIST", prefix, err);
	do {
		store_page_clear(page);
		rc = s->ops->list_page(s, &t, prefix, after, page);
	} while (try_again(&t, &rc));
	if (rc == 0)
		silt_count(s->cfg.metrics, M_STORE_LISTS, 1);
	return (int)rc;
}

/* Gives the page's keys to `each`; those that siltfs would not write are somebody else's objects.
 * A store whose keys don't ascend would make the listing endless. */
static int give_page(const struct store_page *page, const char *prefix, char **last,
                     store_list_fn each, void *arg, struct silt_err *err)
{
	const char *before = *last;
	for (size_t i = 0; i < page->n; i++) {
		const char *key = page->keys + page->v[i].key;
		if (strcmp(key, before) <= 0)
			return silt_fail(err, -EIO,
			                 "LIST %s: the store's listing is out of order at "
			                 "\"%.100s\"",
			                 prefix, key);
		before = key;
		if (strncmp(key, prefix, strlen(prefix)) != 0 ||
		    store_key_check(key, strlen(key)) < 0)
			continue;
		int rc = each(arg, key, &page->v[i].info);
		if (rc != 0)
			return rc;
	}
	if (page->more && page->n == 0)
		return silt_fail(err, -EIO,
		                 "LIST %s: the store sent an empty page and says that "
		                 "there is more",
		                 prefix);
	char *copy = strdup(before);
	if (!copy)
		return silt_fail(err, -ENOMEM, "out of memory");
	free(*last);
	*last = copy;
	return 0;
}

int store_list(struct store *s, const char *prefix, const char *after, store_list_fn each,
               void *arg, struct silt_err *err)
{
	struct store_page page = { 0 };
	SILT_FREE char *last = NULL;
	ssize_t rc = require_prefix(prefix, err);

	if (rc < 0 || (rc = require_prefix(after, err)) < 0)
		return (int)rc;
	if (s->ops->list) {
		struct store_try t;
		try_begin(&t, s, "LIST", prefix, err);
		silt_count(s->cfg.metrics, M_STORE_LISTS, 1);
		return s->ops->list(s, &t, prefix, after, each, arg);
	}
	last = strdup(after);
	if (!last)
		return silt_fail(err, -ENOMEM, "out of memory");
	do {
		rc = list_page(s, prefix, last, &page, err);
		if (rc == 0)
			rc = give_page(&page, prefix, &last, each, arg, err);
	} while (rc == 0 && page.more);
	store_page_free(&page);
	return (int)rc;
}

int store_delete(struct store *s, const char *key, struct silt_err *err)
{
	struct store_try t;
	ssize_t rc = require_key(key, err);

	if (rc < 0)
		return (int)rc;
	try_begin(&t, s, "DELETE", key, err);
	do
		rc = s->ops->del(s, &t);
	while (try_again(&t, &rc));
	if (rc == 0)
		silt_count(s->cfg.metrics, M_STORE_DELETES, 1);
	return (int)rc;
}

static int delete_batch(struct store *s, const char *const *keys, size_t n, struct silt_err *err)
{
	struct store_try t;
	ssize_t rc = -ENOTSUP;

	if (s->ops->del_batch && n > 1) {
		try_begin(&t, s, "DELETE", keys[0], err);
		do
			rc = s->ops->del_batch(s, &t, keys, n);
		while (try_again(&t, &rc));
		if (rc == 0)
			silt_count(s->cfg.metrics, M_STORE_DELETES, 1);
	}
	if (rc != -ENOTSUP)
		return (int)rc;
	rc = 0;
	for (size_t i = 0; i < n; i++) {
		int one = store_delete(s, keys[i], rc == 0 ? err : NULL);
		rc = rc == 0 ? one : rc;
	}
	return (int)rc;
}

int store_delete_many(struct store *s, const char *const *keys, size_t n, struct silt_err *err)
{
	int first = 0;

	for (size_t i = 0; i < n; i++) {
		int rc = require_key(keys[i], err);
		if (rc < 0)
			return rc;
	}
	for (size_t i = 0; i < n; i += STORE_PAGE) {
		size_t some = n - i < STORE_PAGE ? n - i : STORE_PAGE;
		int rc = delete_batch(s, keys + i, some, first == 0 ? err : NULL);
		first = first == 0 ? rc : first;
	}
	return first;
}

int store_create_bucket(struct store *s, struct silt_err *err)
{
	struct store_try t;
	ssize_t rc;

	try_begin(&t, s, "CREATE", s->where, err);
	do
		rc = s->ops->create_bucket(s, &t);
	while (try_again(&t, &rc));
	return (int)rc;
}

/* Whether the store leaves an object alone that is there, which the ids of packs and the names of
 * volumes rely on. There are S3 servers that overlook the condition. */
static int check_excl(struct store *s, const char *key, const struct iovec *iov, struct silt_err *err)
{
	int rc = store_put(s, key, iov, 1, STORE_EXCL, err);

	if (rc == 0 && !atomic_exchange(&s->looks_first, true)) {
		silt_warn(s->cfg.log,
		          "%s overwrites objects though it is told not to (If-None-Match); looking "
		          "before each PUT instead",
		          s->where);
		rc = store_put(s, key, iov, 1, STORE_EXCL, err);
	}
	if (rc == -EEXIST)
		return 0;
	return rc < 0 ? rc
	              : silt_fail(err, -EIO,
	                          "%s overwrites objects, and does not show those that are there "
	                          "(HEAD); use another store",
	                          s->where);
}

int store_check(struct store *s, const char *prefix, struct silt_err *err)
{
	char key[STORE_KEY_MAX + 1], text[65], back[sizeof(text) + 1];
	char id[17];
	struct iovec iov = { .iov_base = text, .iov_len = sizeof(text) };
	ssize_t n;
	int rc;

	store_random_hex(id, 8);
	store_random_hex(text, (sizeof(text) - 1) / 2);
	if (snprintf(key, sizeof(key), "%scheck-%s", prefix, id) >= (int)sizeof(key))
		return silt_fail(err, -EINVAL, "key prefix \"%.100s\" is too long", prefix);
	rc = store_put(s, key, &iov, 1, STORE_EXCL, err);
	if (rc < 0)
		return rc;
	n = store_get(s, key, 0, sizeof(back), back, NULL, err);
	if (n < 0)
		rc = (int)n;
	else if ((size_t)n != sizeof(text) || memcmp(text, back, sizeof(text)) != 0)
		rc = silt_fail(err, -EIO, "%s gave back other bytes than were written (%s)",
		               s->where, key);
	if (rc == 0)
		rc = check_excl(s, key, &iov, err);
	int del = store_delete(s, key, rc == 0 ? err : NULL);
	return rc < 0 ? rc : del;
}
