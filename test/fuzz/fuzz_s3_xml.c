/* Hostile replies of an S3 server: listings, errors, delete results. */
#include <stdint.h>
#include <stdlib.h>

#include "cache/store_s3_xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data;
	char key[STORE_KEY_MAX + 1];
	struct store_page page = { 0 };
	struct s3_error error;

	s3_xml_list(text, size, "", &page, &error);
	store_page_clear(&page);
	s3_xml_list(text, size, "prefix/", &page, &error);
	s3_xml_error(text, size, &error);
	s3_xml_deleted(text, size, key, &error);
	store_page_free(&page);
	return 0;
}
