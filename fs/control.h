/* The control socket of a mount: JSON lines over a unix stream socket. A request is one line of at
 * most 1 MiB; replies are one or more lines, the last has "done":true and "error":"" (or a text).
 * Only root and the user that owns the mount may connect (socket mode 0600 and SO_PEERCRED).
 *
 *	{"cmd":"status"}		volume, store, cache, "counters" (silt_metrics by name), "fuse" and
 *					"redis" (counters by kind); "sessions":true adds the sessions
 *					(one call to Redis)
 *	{"cmd":"warmup","inodes":[N,...],"check":bool,"verify":bool}
 *					lines {"progress":{...}}, lines {"missing":[{"root":I,
 *					"path":"PATH: WHY"},...]} that name all that is missing, then
 *					{"result":{...},"status":0|1|-errno}; hanging up cancels it
 *	{"cmd":"drop","inodes":[N,...]}	drops the packs of these trees from the cache; replies as warmup
 *	{"cmd":"slots"}			one line a used slot; the last line has "slot_bytes"
 *	{"cmd":"info","inodes":[N,...]}	one line an inode: size, version, "extents" with their packs and
 *					whether these are cached; maps of big files go on in lines with
 *					the same "inode" and more "extents"
 *
 * Damaged, oversized or unknown requests get an error line; they never end the daemon. */
#pragma once
#include "fs/fs.h"

struct control;

struct control_config {
	const char *path;
	struct meta *meta;
	struct cache *cache;
	struct store *store;
	struct silt_log *log;
	struct silt_metrics *metrics;
	const char *mountpoint, *source;
	uint32_t slot_size; /* of the SSD cache, for status and slots */
};

/* Starts the thread that serves. A stale socket of a dead mount is replaced. */
int control_open(const struct control_config *cfg, struct control **out, struct silt_err *err);
void control_close(struct control *c);
