/* Warmup: resolve trees to the set of packs their files are in, read back what is on the SSD since an
 * earlier mount, fetch what is missing or damaged with many GETs, and say the truth about it.
 *
 * Directories are read by page with attributes (many pages in flight), inline extents come with
 * them, external ones some windows at a time. Memory: the set of packs and a bounded number of pages,
 * not the files. A pack that could not be fetched makes every file in it count as missing; to name
 * them the trees are walked again. */
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache/cache.h"
#include "meta/meta.h"

struct warmup_progress {
	uint64_t dirs, files, bytes;	/* found so far; final once `resolved` */
	uint64_t packs, packs_done, packs_cached; /* wanted, on the SSD now, of these already before */
	uint64_t fetched_bytes;		/* of packs, by this run */
	uint64_t fetched_packs, failed_packs;
	uint64_t checked_bytes;		/* of packs on the SSD, read back by this run */
	uint64_t checked_packs, damaged_packs; /* found right; found wrong */
	uint64_t missing_files; /* final result: files not fully on the SSD */
	double seconds;
	bool resolved;
};

struct warmup_config {
	struct meta *meta;
	struct cache *cache;
	struct silt_log *log;
	const silt_ino *roots;
	size_t n_roots;
	bool check;	     /* fetch nothing, only say what is missing or damaged */
	bool verify;	     /* read back all, also what this mount has checked before */
	bool drop;	     /* drop the packs instead */
	atomic_bool *cancel; /* set by the caller to end early (-ECANCELED); may be NULL */
	/* Called from the calling thread about every 200 ms and at the end. */
	void (*progress)(void *arg, const struct warmup_progress *p);
	/* Called so at the end for each file that is missing, in no order: which of `roots` it is below,
	 * its path below that ("" for the root itself), and why. May be NULL. */
	void (*missing)(void *arg, size_t root, const char *path, const char *why);
	void *arg;
};

struct warmup_result {
	struct warmup_progress progress;
	struct silt_err err; /* what ended it early, if something did */
};

/* Runs on the calling thread until all is done. Returns 0 when everything asked for is verified on the
 * SSD (with `check`: already was), 1 when something is missing, or a negative errno (bad root, -ENOSPC:
 * does not fit, -ENODEV: no cache directory). */
int warmup_run(const struct warmup_config *cfg, struct warmup_result *out);
