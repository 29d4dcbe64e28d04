/* Extents: which bytes of a pack are which bytes of a file.
 *
 * An extent names a run of frames (cache/pack.h) in one pack:
 *
 *	file   ....|<---------- len ---------->|....        from file offset `off`
 *	run    |<- skip ->|<------- len ------>|..|         raw bytes of the run's frames, in order
 *	pack   ....|hdr|payload|hdr|payload|hdr|payload|..  `stored` bytes from `pack_off`, headers in
 *
 * A file's extents are kept as a log: later entries win over earlier ones where they overlap, and an
 * entry of pack 0 is a hole that wins the same way (truncation, punched holes). Appending to the log
 * never needs the log to be read; readers resolve it (extent_map_*). A log that has grown is folded
 * (fold.c): what shows of it is encoded anew. The log is cut in windows of
 * SILT_WINDOW bytes of file, and an entry lies inside one window, so that a big file's writer and reader
 * touch only the windows they need. A file with a single entry keeps it in its inode record.
 *
 * Encoding of an entry (all varints, LEB128):
 *
 *	flags | off | len | [pack | pack_off | stored]  unless flags has EXTENT_HOLE
 *	      [skip]                                    if flags has EXTENT_SKIP
 *
 * A log is entries end to end. The same bytes stand in the inode record and in a window's value. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SILT_WINDOW ((uint64_t)64 << 20)

enum {
	EXTENT_HOLE = 1,   /* no bytes: reads as zeros */
	EXTENT_SKIP = 2,   /* set by the encoder when skip is not 0 */
	EXTENT_RUN = 4,	   /* more than one frame; all but the last hold PACK_FRAME_RAW raw bytes */
	EXTENT_RAW_RUN = 8, /* every frame of the run is stored uncompressed: offsets are arithmetic */
	EXTENT_FOREIGN = 16, /* shared from another file or moved: frames may name other ino/offset */
	EXTENT_APPENDED = 32, /* by its place in the pack an append that is sent again finds that it was done */
};
#define EXTENT_FLAGS_KNOWN 63

struct silt_extent {
	uint64_t off;  /* file offset, bytes */
	uint64_t len;  /* bytes of file; > 0 */
	uint64_t pack; /* 0 for a hole */
	uint32_t pack_off; /* of the first frame's header */
	uint32_t stored;   /* bytes of all frames of the run, headers included */
	uint32_t skip;	   /* raw bytes of the run before the extent's first byte */
	uint8_t flags;
};

#define SILT_EXTENT_ENCODED_MAX 64

/* Writes `e` (at most SILT_EXTENT_ENCODED_MAX bytes) and returns the number of bytes. */
size_t extent_encode(const struct silt_extent *e, uint8_t *out);

/* Reads one entry from `data`. Returns the bytes used, or -EINVAL if they are no valid entry (cut
 * short, unknown flags, zero or overflowing length, an entry that crosses a window). */
int extent_decode(const void *data, size_t len, struct silt_extent *out);

/* A resolved map: extents sorted by file offset, none overlapping, holes left out. Not thread-safe:
 * the owner locks. */
struct extent_map {
	struct silt_extent *v;
	size_t n, cap;
};

void extent_map_init(struct extent_map *m);
void extent_map_free(struct extent_map *m);

/* Adds `e` over what is there: older extents are trimmed or split (skip and len move, stored stays).
 * -ENOMEM leaves the map as it was. */
int extent_map_add(struct extent_map *m, const struct silt_extent *e);

/* Adds every entry of an encoded log in order. -EINVAL: damaged (the map then holds what came before). */
int extent_map_add_log(struct extent_map *m, const void *log, size_t len);

/* Forgets everything at and past file offset `size`. */
void extent_map_truncate(struct extent_map *m, uint64_t size);

/* The first extent that ends after `off` (it may begin after `off`: a hole lies between), or NULL. */
const struct silt_extent *extent_map_find(const struct extent_map *m, uint64_t off);

/* Encodes the map as a log. Returns a malloced buffer in *out (NULL when empty) and its length. */
int extent_map_encode(const struct extent_map *m, uint8_t **out, size_t *len);

/* Logs of several windows in one buffer: for each the window and the length as 8 bytes, then the
 * log. It stays on this machine: byte order is its own. */
#define EXTENT_LOGS_HEAD 16

struct extent_log {
	uint64_t window;
	const uint8_t *log;
	size_t len;
};

/* Appends one at `out`, where EXTENT_LOGS_HEAD + len bytes are free; returns that number. */
size_t extent_logs_put(uint8_t *out, uint64_t window, const void *log, size_t len);

/* Takes the next one off (*p, *left). False: there is none. */
bool extent_logs_next(const uint8_t **p, size_t *left, struct extent_log *out);
