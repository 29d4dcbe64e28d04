/* What a file is, in memory. The record encodings are in record.h (inodes) and extent.h. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "meta/extent.h"

/* Inode number: shard in bits 48 to 59, sequence within the shard below. Never used again after a
 * delete, so it serves as the FUSE node id with generation 0 and nothing has to remember it. */
typedef uint64_t silt_ino;

#define SILT_ROOT_INO	 ((silt_ino)1)
#define SILT_SHARD_SHIFT 48
#define SILT_MAX_SHARDS	 4096
#define SILT_SEQ_MASK	 (((uint64_t)1 << SILT_SHARD_SHIFT) - 1)

static inline unsigned silt_ino_shard(silt_ino ino)
{
	return (unsigned)(ino >> SILT_SHARD_SHIFT);
}

static inline uint64_t silt_ino_seq(silt_ino ino)
{
	return ino & SILT_SEQ_MASK;
}

static inline silt_ino silt_ino_make(unsigned shard, uint64_t seq)
{
	return ((uint64_t)shard << SILT_SHARD_SHIFT) | seq;
}

#define SILT_NAME_MAX	 255
#define SILT_SYMLINK_MAX 4095
/* Of silt_attr.flags; values as in the record. */
enum {
	/* directory: somebody may have its lease; file: may get its first name (private to meta/) */
	SILT_FLAG_LEASED = 1,
	SILT_FLAG_XATTRS = 2,	   /* has extended attributes besides ACLs */
	SILT_FLAG_ACL = 4,	   /* has an access ACL */
	SILT_FLAG_DEFAULT_ACL = 8, /* directory: has a default ACL */
	SILT_FLAG_IMMUTABLE = 16,
	SILT_FLAG_APPEND = 32, /* append-only */
	SILT_FLAGS_KNOWN = 63,
	SILT_FLAGS_DIRECTORY = SILT_FLAG_DEFAULT_ACL,
};

#define SILT_FILE_MAX	 ((uint64_t)1 << 52) /* bytes: exact in the functions' doubles */

struct silt_time {
	int64_t sec; /* since 1970; -2^39 to 2^39-1 are kept */
	uint32_t nsec;
};

struct silt_attr {
	silt_ino ino;
	uint32_t mode; /* type and permissions as in st_mode */
	uint8_t flags; /* SILT_FLAG_ */
	uint32_t uid, gid;
	uint32_t nlink;
	uint32_t rdev;
	uint64_t size; /* directories: number of entries */
	/* Changes with every change of the bytes: equal versions mean equal bytes. */
	uint64_t version;
	silt_ino parent; /* directories only */
	struct silt_time atime, mtime, ctime;
};

/* Where the extents of a regular file are. */
enum silt_map {
	SILT_MAP_NONE,	   /* no bytes: empty, or one hole */
	SILT_MAP_INLINE,   /* one extent, in the inode record */
	SILT_MAP_EXTERNAL, /* extent logs, one for each window of SILT_WINDOW bytes */
};

struct silt_inode {
	struct silt_attr attr;
	enum silt_map map;
	struct silt_extent extent; /* SILT_MAP_INLINE */
};
