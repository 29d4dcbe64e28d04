#include "cache/store_s3_md5.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

void store_md5_open(struct store_md5 *m)
{
	m->algorithm = EVP_MD_fetch(NULL, "MD5", NULL);
}

void store_md5_close(struct store_md5 *m)
{
	EVP_MD_free(m->algorithm);
}

int store_md5(const struct store_md5 *m, const struct iovec *iov, int niov, unsigned char out[16])
{
	EVP_MD_CTX *ctx = m->algorithm ? EVP_MD_CTX_new() : NULL;
	int ok = ctx && EVP_DigestInit_ex(ctx, m->algorithm, NULL);

	for (int i = 0; ok && i < niov; i++)
		ok = EVP_DigestUpdate(ctx, iov[i].iov_base, iov[i].iov_len);
	ok = ok && EVP_DigestFinal_ex(ctx, out, NULL);
	EVP_MD_CTX_free(ctx);
	return ok ? 0 : -ENOTSUP;
}

void store_md5_of_put(const struct store_md5 *m, struct store_put *put)
{
	if (put->tried_md5)
		return;
	put->tried_md5 = true;
	put->have_md5 = store_md5(m, put->iov, put->niov, put->md5) == 0;
}

void store_md5_base64(const unsigned char md5[16], char out[STORE_MD5_BASE64])
{
	EVP_EncodeBlock((unsigned char *)out, md5, 16);
}

bool store_md5_differs(const unsigned char md5[16], const char *etag)
{
	char hex[33];

	if (strlen(etag) != 32 || strspn(etag, "0123456789abcdefABCDEF") != 32)
		return false;
	for (int i = 0; i < 16; i++)
		snprintf(hex + 2 * i, 3, "%02x", md5[i]);
	return strcasecmp(hex, etag) != 0;
}
