/* Inode records, directory entries, settings: everything that comes out of Redis. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "meta/engine.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct silt_inode i;
	const char *target;
	size_t target_len;
	uint32_t type;
	silt_ino ino;
	bool moving;
	record_decode(1, data, size, &i, &target, &target_len);
	record_buckets(data, size);
	record_entry_decode(0, data, size, &type, &ino, &moving);
	char *text = malloc(size + 1);
	memcpy(text, data, size);
	text[size] = '\0';
	struct meta_volume v;
	if (volume_from_json(text, &v, NULL) == 0)
		meta_volume_free(&v);
	free(text);
	return 0;
}
