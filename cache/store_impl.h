/* Private to the object stores: what a kind of store has to do.
 *
 * The functions of `struct store_ops` make one try each and return 0 (or a count) or a negative
 * errno. A try that failed in a way that may pass sets `t->again`; store.c then waits and calls it
 * again, with the same arguments and the next `t->number`. Keys were checked before they arrive,
 * the text of an error goes to `t->err`. */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "cache/store.h"

#define STORE_KEY_MAX   512
#define STORE_PAGE      1000 /* keys in a page of a listing and in a multi-delete */
#define STORE_WHERE_MAX 1024

/* One call of the interface over all its tries. */
struct store_try {
	struct store *store;
	const char *verb, *key; /* for messages */
	struct silt_err *err;   /* never NULL */
	uint64_t start_ns, until_ns;
	unsigned number;  /* of tries made before this one */
	bool again;       /* set by a try that failed: the next one may succeed */
	bool timed_out;   /* set by a try that failed for want of time */
	unsigned wait_ms; /* set by a try that failed: the store asked for this pause */
	char nonce[33];   /* random hex, the same for all tries: tells our PUT from another's */
	struct silt_err own_err; /* `err` points here when the caller gave none */
};

struct store_put {
	const char *key;
	const struct iovec *iov;
	int niov;
	uint64_t size;
	unsigned flags;
	bool tried_md5, have_md5; /* s3, s3v2: computed by the first try */
	unsigned char md5[16];
	bool checked_absent; /* s3v2, and s3 where it looks first: STORE_EXCL was looked at */
};

/* A page of a listing; `keys` holds NUL-terminated strings end to end. */
struct store_page {
	struct store_page_entry {
		size_t key; /* offset in `keys` */
		struct store_object info;
	} * v;
	size_t n, cap;
	char *keys;
	size_t keys_len, keys_cap;
	bool more;
};

void store_page_free(struct store_page *p);
/* Forgets the entries, keeps the memory. */
void store_page_clear(struct store_page *p);
/* Copies `key_len` bytes of `key`; -ENOMEM. */
int store_page_add(struct store_page *p, const char *key, size_t key_len,
                   const struct store_object *info);

struct store_ops {
	const char *kind;
	/* Sets `s->impl`, `s->where`. The strings of `s->cfg` are the store's own copies. */
	int (*open)(struct store *s, struct silt_err *err);
	void (*close)(struct store *s);
	int (*put)(struct store *s, struct store_try *t, struct store_put *put);
	ssize_t (*get)(struct store *s, struct store_try *t, uint64_t off, size_t len, void *buf,
	               struct store_object *info);
	int (*head)(struct store *s, struct store_try *t, struct store_object *info);
	/* One of the two: a whole listing without retries, or one page after `after`, in key order.
	 */
	int (*list)(struct store *s, struct store_try *t, const char *prefix, const char *after,
	            store_list_fn each, void *arg);
	int (*list_page)(struct store *s, struct store_try *t, const char *prefix,
	                 const char *after, struct store_page *page);
	int (*del)(struct store *s, struct store_try *t);
	/* Up to STORE_PAGE keys in one request. NULL, or -ENOTSUP: store.c deletes one by one. */
	int (*del_batch)(struct store *s, struct store_try *t, const char *const *keys, size_t n);
	int (*create_bucket)(struct store *s, struct store_try *t);
};

extern const struct store_ops store_file_ops, store_s3_ops;
#ifdef SILT_HAVE_S3V2
extern const struct store_ops store_s3v2_ops;
#endif

struct store {
	const struct store_ops *ops;
	struct store_config cfg; /* owned copies, defaults filled in */
	char where[STORE_WHERE_MAX];
	/* s3: it does not know, or overlooks, "not if it is there"; so a HEAD goes first */
	atomic_bool looks_first;
	void *impl;
};

/* -EINVAL unless `key` is one that siltfs writes (see store.h). `len` bytes, no NUL needed. */
int store_key_check(const char *key, size_t len);

/* `n` random bytes as 2n hex digits and a NUL. */
void store_random_hex(char *out, size_t n);

/* Milliseconds left before the call's deadline, at least 1. */
unsigned store_try_left_ms(const struct store_try *t);
