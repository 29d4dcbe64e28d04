/* Private to the S3 stores: the XML documents of S3. Whatever the bytes are, parsing ends with a
 * result or -EBADMSG; entities are never expanded, documents with a DTD are refused. */
#pragma once
#include <stddef.h>

#include "cache/store_impl.h"

/* <Error><Code/><Message/></Error>; strings are cut to their room, control characters blanked. */
struct s3_error {
	char code[64];
	char message[256];
};

/* Reads an error document. -EBADMSG when it is none; `out` is then empty. */
int s3_xml_error(const char *text, size_t len, struct s3_error *out);

/* Reads a ListBucketResult (V1 or V2) into `page` (appended to). Keys that don't begin with `cut`
 * are an error; `cut` is taken off them. `error` is filled when an <Error> stands in its place. */
int s3_xml_list(const char *text, size_t len, const char *cut, struct store_page *page,
                struct s3_error *error);

/* Reads a DeleteResult: the first <Error> in it that is not NoSuchKey goes to `error` and its key
 * to `key` (STORE_KEY_MAX + 1 bytes); none: `error` is empty. */
int s3_xml_deleted(const char *text, size_t len, char *key, struct s3_error *error);
