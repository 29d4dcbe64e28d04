/* Private to the S3 stores: MD5 as S3 uses it, against damage on the way, not against enemies. */
#pragma once
#include <stdbool.h>

#include "cache/store_impl.h"

#define STORE_MD5_BASE64 25

struct store_md5 {
	void *algorithm; /* NULL: this OpenSSL refuses MD5 (FIPS) */
};

void store_md5_open(struct store_md5 *m);
void store_md5_close(struct store_md5 *m);

/* -ENOTSUP without MD5. Any thread. */
int store_md5(const struct store_md5 *m, const struct iovec *iov, int niov, unsigned char out[16]);

/* The MD5 of a PUT's body, computed by the first of its tries. */
void store_md5_of_put(const struct store_md5 *m, struct store_put *put);

void store_md5_base64(const unsigned char md5[16], char out[STORE_MD5_BASE64]);

/* True when `etag` has the form of an MD5 (32 hex digits) and is another one. */
bool store_md5_differs(const unsigned char md5[16], const char *etag);
