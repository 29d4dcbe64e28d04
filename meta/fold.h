/* Private to fold.c and compact.c: a window's log is read, made anew, and put in its place if it still begins as it
 * did. */
#pragma once
#include "meta/engine.h"
#include "meta/extent.h"

/* By how much a pack's live bytes change. */
struct live_change {
	uint64_t pack;
	int64_t stored;
};

/* A log and what becomes of it. */
struct folded {
	uint8_t *log; /* malloced; NULL: empty */
	size_t len;
	struct live_change *v; /* malloced; by pack, none of 0 */
	size_t n;
};

/* Is called for each entry, which it may change; its file range and flags stay. NULL: none is changed. */
typedef void (*fold_entry_fn)(void *arg, struct silt_extent *e);

/* What of `log` shows, encoded anew. -EINVAL: it is damaged; -ENOMEM. folded_free() afterwards. */
int log_fold(const void *log, size_t len, fold_entry_fn entry, void *arg, struct folded *out);
void folded_free(struct folded *f);

/* Puts `f` in the place of the log `name` ("q:window", q in hex) that was read as `log`; NULL: it stays as it is,
 * and is off the list of those that have grown. `to`: the call is F_MOVE_LOG for that pack, else F_FOLD. Returns 1: it
 * was replaced, 0: it was another by then. Blocks. */
int log_replace(struct meta *m, unsigned shard, const char *name, const void *log, size_t len,
                const struct folded *f, uint64_t to);
