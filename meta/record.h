/* Decoding of what functions.lua writes: inode records and directory entries (drawn at its head), and
 * the 9-byte times. Untrusted: every decoder checks every length. Pure; any thread. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "meta/types.h"

#define RECORD_TIME 9

/* Times outside the 40-bit range of seconds are clamped to it. */
void record_time_encode(struct silt_time t, uint8_t out[RECORD_TIME]);
struct silt_time record_time_decode(const uint8_t in[RECORD_TIME]);

/* Decodes the record of inode `ino`. -EUCLEAN: damaged. An inline link target is returned in
 * *target (pointing into `data`) when `target` is not NULL; NULL if it is kept elsewhere. */
int record_decode(silt_ino ino, const void *data, size_t len, struct silt_inode *out,
		  const char **target, size_t *target_len);

/* Decodes a directory entry of a bucket in shard `shard`: type in S_IFMT bits, inode number, and
 * whether an operation across shards is moving it. -EUCLEAN: damaged. */
int record_entry_decode(unsigned shard, const void *data, size_t len, uint32_t *type, silt_ino *ino,
			bool *moving);

/* d_type of a mode. */
unsigned record_kind(uint32_t mode);

/* Number of dentry buckets of a directory's record (for debugging); 0 when it is none. */
uint64_t record_buckets(const void *data, size_t len);

/* A name's place in its directory: the first 52 bits of its SHA-1. */
uint64_t record_place(const char *name, size_t len);
