/* Walks trees and shows every extent of their files: directories by page with attributes, up to
 * WALK_IN_FLIGHT requests under way, memory bounded by those pages and by the directories found but
 * not yet read (newest first, so that they stay few).
 *
 * One thread drives a walk (walk_pump) and gets all its calls; replies arrive on the metadata
 * engine's threads and are only queued there, under `wake`. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "meta/lock.h"
#include "meta/meta.h"

#define WALK_IN_FLIGHT 64
#define WALK_PAGE      512 /* entries of a directory page */

/* What the driving thread sleeps on; signalled with every reply. */
struct wake {
	struct silt_lock lock;
	struct silt_cond cond;
	uint64_t events; /* how many signals there were */
};

struct walk_ops {
	void (*dir)(void *arg);
	void (*file)(void *arg, uint64_t size);
	/* An extent (no hole) of the file being shown. A reason: nothing more is wanted of this
	 * file, it goes to `missing` with that; else NULL. */
	const char *(*extent)(void *arg, const struct silt_extent *e);
	/* `path` is below root number `root` ("" for the root itself), NULL unless `paths`. Also
	 * called for what could not be read. */
	void (*missing)(void *arg, size_t root, const char *path, const char *why);
	bool paths;
};

struct walk;

/* `roots` is copied; `ops` and `wake` must outlive the walk. NULL: out of memory. */
struct walk *walk_new(struct meta *meta, const silt_ino *roots, size_t n,
                      const struct walk_ops *ops, void *arg, struct wake *wake);

/* Handles replies and sends requests. Returns 1 while there is more to come, 0 when all was shown,
 * or a negative errno with one line in `err`: bad root (-ENOENT...), metadata unreachable, -ENOMEM.
 */
int walk_pump(struct walk *w, struct silt_err *err);

/* Waits for requests under way, then frees. */
void walk_free(struct walk *w);
