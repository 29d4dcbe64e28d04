/* libFuzzer: meta_address_parse() on arbitrary text. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "meta/address.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct meta_address a;
	struct silt_err err;
	char *text = malloc(size + 1);
	if (!text)
		return 0;
	memcpy(text, data, size);
	text[size] = '\0';
	if (meta_address_parse(text, &a, &err) == 0)
		meta_address_free(&a);
	free(text);
	return 0;
}
