/* What is known here of where an open file's committed bytes are: the windows of its extent log
 * that were asked for, resolved.
 *
 * `complete` says that windows not in the list have no extents: true for empty files and for files
 * whose one extent stood in the inode record, and it stays true while only this mount adds extents.
 * Files with external logs begin with no window and load each on first use.
 *
 * Not thread-safe: the owner locks. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "meta/types.h"

struct map_window {
	uint64_t index; /* file offset / SILT_WINDOW */
	bool loaded;    /* false: the request is on its way */
	struct extent_map map;
};

struct file_map {
	bool valid; /* false: nothing is known; take a new inode record first */
	bool complete;
	unsigned generation;  /* raised when everything is forgotten: a window on its way is then
	                         stale */
	struct map_window *v; /* by index */
	size_t n, cap;
};

void file_map_init(struct file_map *m);
void file_map_free(struct file_map *m);

/* Forgets everything and starts anew from an inode record. On -ENOMEM the map is invalid. */
int file_map_set(struct file_map *m, const struct silt_inode *inode);

/* Forgets everything: valid becomes false. */
void file_map_forget(struct file_map *m);

/* Adds an extent that was just committed. Windows that are not loaded stay so (the server has it).
 */
int file_map_add(struct file_map *m, const struct silt_extent *e);

/* [off, stop) became a hole. */
void file_map_punch(struct file_map *m, uint64_t off, uint64_t stop);

/* Forgets everything at and past `size`. */
void file_map_truncate(struct file_map *m, uint64_t size);

/* Is window `index` wanted? true: it is now marked as on its way and the caller must ask for it and
 * end with file_map_load() or file_map_load_failed(). false: loaded, known to be empty, or somebody
 * else asked (look again later), or no memory. */
bool file_map_want(struct file_map *m, uint64_t index);
bool file_map_loaded(const struct file_map *m, uint64_t index);

/* Takes a window's log. -ESTALE: `generation` is not the one it was asked for in. */
int file_map_load(struct file_map *m, uint64_t index, unsigned generation, const void *log,
                  size_t len);
void file_map_load_failed(struct file_map *m, uint64_t index, unsigned generation);

/* What is at `off`: fills *e (pack 0: a hole) and returns where the run that begins at `off` ends,
 * at most `end` and at most the window's end. Returns 0 when the window of `off` is not loaded. */
uint64_t file_map_run(const struct file_map *m, uint64_t off, uint64_t end, struct silt_extent *e);
