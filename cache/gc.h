/* Objects that no file uses, found by looking at all of both: what is in the store, and what Redis points to.
 *
 *	list the store -> take those older than the grace period -> mark what any inode's extents name
 *	-> bury the rest in Redis (meta.h: from then on no commit names them) -> delete
 *
 * The worker (worker.h) deletes what dies, as counted; this also finds packs that were stored and never
 * committed (a client died in between), and what counters that went wrong keep. Runs beside clients: what
 * they store meanwhile is younger than the grace period, what they come to share is found by the burial. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "cache/store.h"
#include "meta/meta.h"

struct gc_config {
	struct store *store;
	struct meta *meta;
	uint64_t grace_s; /* younger objects stay, by the store's times and this machine's clock */
	bool dry_run;	  /* nothing is changed */
	/* May be NULL: each pack that is deleted, or would be; `leaves` names what the pass has done so far. */
	void (*on_pack)(void *arg, uint64_t pack, uint64_t bytes);
	void (*on_progress)(void *arg, uint64_t objects, uint64_t inodes);
	void *arg;
};

struct gc_count {
	uint64_t packs, bytes;
};

struct gc_result {
	struct gc_count all;	 /* packs in the store */
	struct gc_count used;
	struct gc_count young;	 /* not used, but younger than the grace period (or used: it was not asked) */
	struct gc_count deleted; /* dry run: would be */
	struct gc_count counted; /* not used, but Redis counts live bytes: fsck corrects that */
	uint64_t foreign;	 /* objects below packs/ that are no packs */
	uint64_t inodes;
};

/* Errors: of the store and the connection; -EBADMSG with a text: an inode's record or extents are
 * damaged, so nobody knows what it names, and nothing was deleted. *out is valid on success. */
int gc_run(const struct gc_config *cfg, struct gc_result *out, struct silt_err *err);
