/* Slot table decoders on arbitrary bytes: no crash, and what they accept is what the encoder writes
 * and makes sense. The first 64 bytes are a header, the rest entries. */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "cache/slot_table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_entry(const struct slot_header *h, uint32_t slot, const uint8_t *in)
{
	struct slot_entry e;
	uint8_t again[TABLE_ENTRY];
	if (!slot_entry_decode(h, slot, in, &e)) {
		assert(e.pack == 0);
		return;
	}
	assert(e.pack != 0 && e.valid != 0 && e.freq <= 3);
	assert((e.valid & ~slot_full_mask(h->slot_size, e.pack_len, e.piece)) == 0);
	slot_entry_encode(h, slot, &e, again);
	struct slot_entry twice;
	assert(slot_entry_decode(h, slot, again, &twice));
	assert(memcmp(&e, &twice, sizeof(e)) == 0);
}

/* The fuzzer can't guess checksums: entries are also tried with their check made right. */
static void check_resealed(const struct slot_header *h, const uint8_t *in)
{
	struct slot_entry e = { 0 };
	uint8_t sealed[TABLE_ENTRY];
	memcpy(&e.pack, in, 8);
	memcpy(&e.piece, in + 8, 4);
	memcpy(&e.pack_len, in + 12, 4);
	memcpy(&e.valid, in + 16, 2);
	e.freq = in[18];
	e.flags = in[19];
	slot_entry_encode(h, 3, &e, sealed);
	check_entry(h, 3, sealed);
	check_entry(h, 4, sealed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 64)
		return 0;
	/* Slots of 64 KiB to 1 MiB, and of sizes that can't be. */
	struct slot_header h = { SLOT_TABLE_VERSION, SLOT_SIZE_MIN << data[0] % 6, 8, 7, 99 };
	slot_header_decode(data, &h);
	for (uint32_t i = 0; 64 + (size_t)(i + 1) * TABLE_ENTRY <= size; i++) {
		check_entry(&h, i, data + 64 + (size_t)i * TABLE_ENTRY);
		check_resealed(&h, data + 64 + (size_t)i * TABLE_ENTRY);
	}
	return 0;
}
