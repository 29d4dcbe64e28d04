/* Dictionary objects: arbitrary bytes are refused or decode to what lies in them; sealed ones are taken. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cache/dict.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *dict;
	size_t len;
	if (dict_decode(data, size, 1, 2, &dict, &len) == 0)
		assert(dict == data + DICT_HEADER && len == size - DICT_HEADER);
	uint8_t *object = malloc(DICT_HEADER + size);
	if (!object)
		return 0;
	dict_encode(1, 2, data, size, object);
	int rc = dict_decode(object, DICT_HEADER + size, 1, 2, &dict, &len);
	assert(size > DICT_SIZE_MAX ? rc != 0 : rc == 0 && len == size && memcmp(dict, data, size) == 0);
	if (size > 4) { /* the header as it comes, the checksum of the rest made right by nobody */
		memcpy(object, data, size < DICT_HEADER ? size : DICT_HEADER);
		dict_decode(object, DICT_HEADER + size, 1, 2, &dict, &len);
	}
	free(object);
	return 0;
}
