/* Where a mount keeps its things on the node, and whether a mount point will do. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "meta/error.h"

/* Default cache directory of a volume: /var/cache/siltfs/ID for root, else
 * $XDG_CACHE_HOME/siltfs/ID or
 * ~/.cache/siltfs/ID. Makes it. */
int default_cache_dir(uint64_t volume_id, char *out, size_t size, struct silt_err *err);

/* Default log of a daemon: siltfs.log in `cache_dir` (if not NULL); else a file named for the mount
 * point in /var/log/siltfs for root, or in $XDG_STATE_HOME/siltfs or ~/.local/state/siltfs. */
int default_log(const char *cache_dir, const char *mountpoint, char *out, size_t size,
                struct silt_err *err);

/* A new path for the control socket of the calling process: PID-RANDOM.sock in $SILTFS_RUN_DIR,
 * /run/siltfs for root, $XDG_RUNTIME_DIR/siltfs, or /tmp/siltfs-UID (others learn it from the
 * mount: FS_XATTR_CONTROL). Makes the folder, for its owner alone, and removes what dead mounts
 * left there. */
int control_socket_path(char *out, size_t size, struct silt_err *err);

/* Makes `path` absolute without links where that is possible (a dead mount can't be resolved) and
 * checks that it can be mounted on: there, a directory, not a mount point already. /dev/fd/N
 * passes. */
int check_mountpoint(const char *path, char *out, size_t size, struct silt_err *err);

/* The type and source of what is mounted right at `path` (absolute), the topmost one. -ENOENT:
 * nothing. */
int find_mount(const char *path, char *type, size_t type_size, char *source, size_t source_size);

/* mkdir -p; new folders get `mode`. 0 or a negative errno. */
int make_folders(const char *path, unsigned mode);
