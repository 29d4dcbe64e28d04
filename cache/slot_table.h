/* The slot table: what is in each slot of the SSD cache, in a file, so that a restart finds the
 *cache as it was. Version 1.
 *
 *	0       TABLE_HEADER bytes   header: the 64 bytes below, then zeros
 *	4096    TABLE_ENTRY bytes    entry of slot 0
 *	        TABLE_ENTRY bytes    entry of slot 1 ...
 *
 *	header  "SILTSLOT" | u32 version | u32 slot size | u64 volume id | u64 nonce | u32 slots |
 *	        u32 flags (0) | 16 zero bytes | u64 xxh3 of the 56 bytes before             64 bytes
 *	entry   u64 pack id | u32 piece | u32 pack length | u16 valid | u8 freq | u8 (any) |
 *	        u32 slot number | u32 zero | u32 check                                      32 bytes
 *
 * `check` is XXH3_64bits over the 28 bytes before, seeded with volume id ^ nonce, folded to 32
 *bits: an entry of another volume, of a table made earlier on the same disk, or of another slot
 *never passes for this one's. An entry that does not check, or whose pack id is 0, is a free slot.
 *The nonce is new each time a table is made. Entries don't cross a 4 KiB page, so a power cut tears
 *at most the check, not two entries.
 *
 * That the bytes in a slot are right is in no entry: what was true when it was written need not be at
 * the next mount. The tier remembers what it has checked itself, and only for as long as it is open.
 *
 * The slot size belongs to the table, for as long as the table lives. A slot has 16 chunks whatever
 * its size, one for each bit of `valid`, so that small slots can be filled in steps of 4 KiB. Small
 * slots waste little on small packs, large ones need a small index:
 *
 *	cache            slots        chunks      slots at the upper end
 *	up to 64 GiB      64 KiB       4 KiB      1 Mi
 *	up to 512 GiB    256 KiB      16 KiB      2 Mi
 *	larger             1 MiB      64 KiB
 *
 * The functions on bytes are pure. The table's file functions are for one thread at a time: the
 *tier holds its save lock. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "meta/error.h"

#define SLOT_SIZE_MIN      (64u << 10)
#define SLOT_SIZE_MAX      (1u << 20)
#define SLOT_CHUNKS        16u
#define SLOT_CHUNK_MAX     (SLOT_SIZE_MAX / SLOT_CHUNKS) /* a multiple of every chunk size */
#define SLOT_TABLE_VERSION 1u
#define TABLE_HEADER       4096u
#define TABLE_ENTRY        32u

struct slot_header {
	uint32_t version, slot_size, slots;
	uint64_t volume, nonce;
};

struct slot_entry {
	uint64_t pack;  /* 0: free */
	uint32_t piece; /* which slot-sized part of the pack */
	uint32_t pack_len;
	uint16_t valid; /* bit i: chunk i of the slot holds its bytes */
	uint8_t freq;
};

/* The slot size for a new cache of `bytes`. */
uint32_t slot_size_for(uint64_t bytes);

/* Whether slots may be so large: a power of two from SLOT_SIZE_MIN to SLOT_SIZE_MAX. */
bool slot_size_valid(uint32_t size);

void slot_header_encode(const struct slot_header *h, uint8_t out[64]);

/* -EBADMSG: no header, or a damaged one. Any version that checks is decoded. */
int slot_header_decode(const uint8_t in[64], struct slot_header *out);

void slot_entry_encode(const struct slot_header *h, uint32_t slot, const struct slot_entry *e,
                       uint8_t out[TABLE_ENTRY]);

/* True when `in` is a sound entry of a used slot; false (and *out zeroed) when the slot is free. */
bool slot_entry_decode(const struct slot_header *h, uint32_t slot, const uint8_t in[TABLE_ENTRY],
                       struct slot_entry *out);

/* Which bits of `valid` a slot has when all of its part of a pack of `pack_len` bytes is there; 0
 * for a piece past the pack's end. */
uint16_t slot_full_mask(uint32_t slot_size, uint32_t pack_len, uint32_t piece);

struct slot_table {
	int fd;
	struct slot_header h;
	uint8_t *entries; /* as loaded, h.slots of them; freed by slot_table_loaded() */
};

/* What a table is opened for. */
struct slot_want {
	uint64_t volume;
	uint32_t slot_size, slots;
};

/* The slot size of the table `name` in `dirfd`; 0 when there is none that could be taken over. */
uint32_t slot_table_slot_size(int dirfd, const char *name);

/* Opens or makes the table `name` in `dirfd`; entries of slots past want->slots are lost, new ones
 * are free. *fresh tells that no earlier table was taken over: it was missing, of an older version,
 * of another slot size, or its header was damaged (*why then says so, else "").
 * -EEXIST: it belongs to another volume or a newer siltfs; `err` says what to do. */
int slot_table_open(int dirfd, const char *name, const struct slot_want *want, bool *fresh,
                    char why[160], struct slot_table *out, struct silt_err *err);
void slot_table_close(struct slot_table *t);

/* Gives the entry that slot `slot` had when the table was opened, until slot_table_loaded(). */
bool slot_table_entry(const struct slot_table *t, uint32_t slot, struct slot_entry *out);
void slot_table_loaded(struct slot_table *t);

/* Writes the entries of `n` slots from `slot` on (in place, through the page cache; e == NULL: they
 * are free); slot_table_sync() makes all that was written durable. */
int slot_table_put(struct slot_table *t, uint32_t slot, const struct slot_entry *e, uint32_t n);
int slot_table_sync(struct slot_table *t);
