/* The daemon: a FUSE session over meta/ and cache/. Read this first, then node.h (inodes in use),
 * write_buffer.h (bytes not yet in a pack), ops_*.c (FUSE operations by subject), control.h (the
 * control socket).
 *
 * The FUSE node id is the inode number, so lookups leave nothing behind that FORGET would have to
 * free; the daemon keeps a node only for an inode that is open or has dirty bytes. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "cache/cache.h"
#include "meta/meta.h"

struct fs;

struct fs_config {
	struct meta *meta;   /* not owned */
	struct cache *cache; /* not owned */
	struct store *store; /* not owned; for status */
	struct silt_log *log;
	struct silt_metrics *metrics;
	const char *source;	/* shown as the device in /proc/mounts */
	const char *mountpoint; /* may be /dev/fd/N */
	const char *control_path; /* unix socket to serve, NULL: none */
	const char *fuse_options; /* comma-separated, passed to libfuse (allow_other, ro, ...); may be NULL */
	double attr_timeout;	/* seconds attributes are cached by the kernel */
	double entry_timeout;	/* seconds names of files from directory listings are cached */
	double dir_entry_timeout; /* seconds names of directories are cached */
	/* While Redis pushes changes, these are no limits: see coherence.h. */
	uint64_t buffer_size;	/* bytes of written data in memory at most; 0: 256 MiB */
	unsigned max_threads;	/* FUSE threads; 0: 10 */
	bool read_only;
	enum fs_atime { FS_NOATIME, FS_RELATIME, FS_STRICTATIME } atime;
	void (*ready)(void *arg, const char *features); /* called once, when the kernel's INIT is answered */
	void *ready_arg;
};

/* Mounts. On failure `err` says what is wrong with the mount point or FUSE and what to do. */
int fs_mount(const struct fs_config *cfg, struct fs **out, struct silt_err *err);

/* Serves requests until the file system is unmounted or fs_stop(); then flushes everything that is
 * dirty. Returns 0, or a negative errno if dirty data could not be stored (logged, file by file). */
int fs_serve(struct fs *fs);

/* Ends fs_serve(); safe in a signal handler. */
void fs_stop(struct fs *fs);

/* Unmounts if still mounted, frees. */
void fs_close(struct fs *fs);

/* Name of a FUSE request kind by index into silt_metrics.fuse; NULL past the last. */
const char *fs_fuse_kind_name(unsigned kind);

/* Resolves an open FUSE inode number from the path of a mount for the control socket: the virtual
 * extended attribute "user.siltfs.control" of every file and directory of a mount holds the path of
 * the control socket ("" when there is none), "user.siltfs.inode" the inode number in decimal. */
#define FS_XATTR_CONTROL "user.siltfs.control"
#define FS_XATTR_INODE	 "user.siltfs.inode"
