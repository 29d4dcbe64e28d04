/* What a file system is: the metadata engine on Redis. Read this first, then types.h (inodes),
 * the picture at the head of functions.lua (keys and records), record.h (encodings),
 * conn.h (the connection), extent.h.
 *
 * Every operation is one server-side function call (FCALL) when it stays in one shard, sent over one
 * pipelined connection that all threads share. The calls below are asynchronous: they format the
 * request on the calling thread, write it to the socket, and return; `done` runs on the connection's
 * reader thread (or, for an argument error or a closed connection, on the caller's) and must not
 * block. Tools and tests use meta_wait().
 *
 * Names are `len` bytes without NUL or '/', 1 to SILT_NAME_MAX long (-ENAMETOOLONG, -EINVAL).
 *
 * Retries: a request that was on the wire when the connection broke is sent again, marked as a retry;
 * what was executed is not executed again, also when another client has undone or changed it since.
 * While Redis can't be reached requests wait, up to `wait_ms`, then they end with -EIO.
 *
 * Threads: all functions from any thread unless they say otherwise. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "meta/address.h"
#include "meta/error.h"
#include "meta/log.h"
#include "meta/metrics.h"
#include "meta/types.h"

struct meta;
struct bucket;

/* --- The volume ---------------------------------------------------------------------------------- */

#define META_FORMAT_VERSION 1

/* What `format` decided and every mount reads. Strings are owned by the struct (meta_volume_free). */
struct meta_volume {
	unsigned version; /* of the format: META_FORMAT_VERSION */
	char *name;
	uint64_t id; /* random; stands in every pack header */
	unsigned shards;
	char *storage;	 /* kind of the object store */
	char *bucket;	 /* of the object store; relative to the local DIR when it begins with "./" */
	char *region;	 /* may be NULL */
	int compress_level; /* zstd, 0: off */
	int64_t created; /* seconds since 1970 */
};
void meta_volume_free(struct meta_volume *v);

struct meta_config {
	const struct meta_address *address;
	struct silt_log *log;
	struct silt_metrics *metrics; /* may be NULL */
	unsigned wait_ms;	      /* how long a request waits for Redis to come back; 0: 60,000 */
	unsigned heartbeat_ms;	      /* 0: 5,000; a session expires after 5 missed ones */
	bool session;		      /* register a session (mounts); tools that only look don't */
	bool opens_files; /* others' deletions wait until this session has heard of them: meta_hear_deleted() */
	/* What is remembered of the metadata (buckets.h) takes so many bytes at most; 0: nothing is, and
	 * nothing is pushed. `relaxed`: lookups, getattrs and listings that allow it are answered from it. */
	uint64_t cache_size;
	bool relaxed;
	const char *session_info;     /* JSON text about this client, shown by `status`; may be NULL */
};

/* What the checks of a server found, for `format` to print. */
struct meta_server_info {
	char version[32];
	bool append_only;
	char fsync[16]; /* appendfsync */
	char policy[32]; /* maxmemory-policy */
	unsigned listpack_entries, listpack_value; /* after we set what was allowed */
	bool listpack_set; /* we could raise them */
	double ping_ms;
};

/* Creates a volume: loads the functions, checks that there is none, writes the settings and the root
 * directory (mode 0777 & ~022 of `uid`:`gid`). -EEXIST: there is one. */
int meta_format(const struct meta_address *a, const struct meta_volume *v, uint32_t uid, uint32_t gid,
		struct silt_log *log, struct meta_server_info *info, struct silt_err *err);

/* The first step of a format: checks the server and notes the id that the volume will have there, before
 * anything outside of Redis is marked with it. When a format has not got beyond this, *id becomes the
 * id it noted: what bears that id is of this format too. meta_format() takes the note away.
 * -EEXIST: there is a volume. */
int meta_format_note(const struct meta_address *a, uint64_t *id, struct silt_err *err);

/* Connects, checks server and volume, registers a session, starts the reader and heartbeat threads.
 * -ENOENT no volume there, -EACCES password, -ECONNREFUSED..., -EPROTO Redis too old, -ENOTSUP volume
 * of a newer format. */
int meta_open(const struct meta_config *cfg, struct meta **out, struct silt_err *err);

/* Ends the session (its open-but-deleted files go) and the connection. Waits for requests under way. */
void meta_close(struct meta *m);

const struct meta_volume *meta_volume(const struct meta *m);
uint64_t meta_session(const struct meta *m);

/* Names of the Redis functions, by index into silt_metrics.redis; NULL past the last. */
const char *meta_function_name(unsigned kind);

/* --- Operations ---------------------------------------------------------------------------------- */

/* What is remembered of an answer, for meta_tell_*(). Private to meta/ but for being handed back. */
struct meta_seen {
	uint32_t inode, name; /* stamps; 0: it is not remembered */
	uint32_t start;	      /* of the name's bucket */
};

struct meta_dirent {
	const char *name; /* not NUL-terminated */
	uint16_t len;
	uint32_t type;	/* S_IFMT bits */
	silt_ino ino;
	uint64_t pos;	/* cookie: meta_readdir() from here goes on after this entry; > 2 */
	bool has_inode; /* false for entries whose inode is in another shard: ask meta_getattr */
	struct silt_inode inode;
	struct meta_seen seen;
};

/* A page of a directory: entries in the fixed order. */
struct meta_dirpage {
	size_t n;
	uint64_t next; /* cookie of the next page; 0: that was the end */
	struct meta_dirent v[];
};

struct meta_statfs {
	uint64_t inodes, bytes;
};

/* What `done` gets; valid during the call only. `err` 0 or a negative errno. */
struct meta_reply {
	int err;
	/* lookup, getattr, setattr, make, link; unlink: as it is now; rename: the moved one. lookup and
	 * rename of an entry whose inode is in another shard fetch it with a second call. */
	struct silt_inode inode;
	/* rename: the inode that lost its name to it (0: none), and its links now; 0 links and
	 * `keep_open`: it stays until meta_release_deleted(). */
	silt_ino replaced;
	uint32_t replaced_nlink;
	/* make, link, unlink, rmdir in one shard: the directory after the change (ino 0: not told) */
	struct silt_attr dir;
	/* lookup (also of a name that is not there), getattr: what may be told to a kernel for long */
	struct meta_seen seen;
	bool existed; /* make: it was there before */
	/* lookup, with -EIO: the name is there, but its entry or its inode's record is damaged or missing;
	 * inode.attr.mode is its type as far as that is known, `first` the name's place. meta_unlink() removes such a name unless the
	 * record is what does not decode. */
	bool damaged;
	const struct meta_dirpage *page; /* readdir; free with free() if *keep_page is set */
	bool *keep_page;	 /* set it to keep `page` */
	const void *data;	 /* readlink: target; window: the log; xattrs: see there */
	size_t len;
	struct meta_statfs statfs;
	uint64_t first; /* alloc: first id; lookup: see `damaged`; allocate, next_window: see there */
	uint64_t next;	/* next_window; windows: where to go on, 0: that was all */
};
typedef void (*meta_done)(void *arg, const struct meta_reply *r);

void meta_lookup(struct meta *m, silt_ino dir, const char *name, size_t len, meta_done done, void *arg);
void meta_getattr(struct meta *m, silt_ino ino, meta_done done, void *arg);
/* The same, and meta_readdir(), for a reply that goes to the kernel: whoever can't give it (the request was
 * interrupted) must tell the kernel to forget the inode. A relaxed mount answers from what it remembers if
 * it can, on the caller's thread. */
void meta_lookup_for_kernel(struct meta *m, silt_ino dir, const char *name, size_t len, meta_done done,
			 void *arg);
void meta_getattr_for_kernel(struct meta *m, silt_ino ino, meta_done done, void *arg);
/* For an open, whose reply brings the kernel no attributes: a relaxed mount may answer from memory, and
 * when they are others than the kernel has, on_stale() hears of it. */
void meta_getattr_for_open(struct meta *m, silt_ino ino, meta_done done, void *arg);
void meta_readdir_for_kernel(struct meta *m, silt_ino dir, uint64_t pos, unsigned want, bool attrs,
			  meta_done done, void *arg);

enum {
	META_SET_MODE = 1,
	META_SET_UID = 2,
	META_SET_GID = 4,
	META_SET_SIZE = 8,
	META_SET_ATIME = 16,
	META_SET_MTIME = 32,
	META_SET_CTIME = 64,
	META_CLEAR_SUID = 128, /* drop set-user-ID, and set-group-ID if group-executable; not of directories */
};
/* ctime becomes `now` unless META_SET_CTIME. A new size drops extents past it; where that are more
 * than 500 windows, the file shrinks in several calls. */
void meta_setattr(struct meta *m, silt_ino ino, unsigned set, const struct silt_attr *values,
		  struct silt_time now, meta_done done, void *arg);

/* Creates a file, directory, symbolic link or special file (type in `mode`). The group is the
 * directory's when that has the set-group-ID bit, and a directory inherits the bit; ACLs come from the
 * directory's default ACL. -EEXIST with the
 * existing inode in the reply, unless `open_existing` (open without O_EXCL): then it is a success with
 * `existed` set in the reply. */
struct meta_make {
	uint32_t mode, uid, gid, rdev;
	uint32_t umask; /* not used where the directory has a default ACL */
	const char *target; /* symbolic links */
	size_t target_len;
	bool open_existing;
	struct silt_time now;
};
void meta_make(struct meta *m, silt_ino dir, const char *name, size_t len, const struct meta_make *how,
	       meta_done done, void *arg);

void meta_readlink(struct meta *m, silt_ino ino, meta_done done, void *arg);
void meta_link(struct meta *m, silt_ino ino, silt_ino dir, const char *name, size_t len,
	       struct silt_time now, meta_done done, void *arg);

/* Reply: the inode after the change (nlink 0: it was the last name). A file whose last name goes stays,
 * if `keep_open`, until meta_release_deleted() or the end of the session. */
void meta_unlink(struct meta *m, silt_ino dir, const char *name, size_t len, bool keep_open,
		 struct silt_time now, meta_done done, void *arg);
void meta_rmdir(struct meta *m, silt_ino dir, const char *name, size_t len, struct silt_time now,
		meta_done done, void *arg);

enum { META_RENAME_NOREPLACE = 1, META_RENAME_EXCHANGE = 2 };
/* -EINVAL: a directory into itself or below. */
void meta_rename(struct meta *m, silt_ino from_dir, const char *from, size_t from_len, silt_ino to_dir,
		 const char *to, size_t to_len, unsigned flags, bool keep_open, struct silt_time now,
		 meta_done done, void *arg);

/* A deleted file's last handle was closed. */
void meta_release_deleted(struct meta *m, silt_ino ino, meta_done done, void *arg);

/* With cfg.opens_files: who is asked about files that lost their last name, through any mount, a heartbeat or
 * two later. What is open here is kept until meta_release_deleted(). NULL: nobody; when
 * meta_hear_deleted() returns no call to the one before is under way. Called on the heartbeat thread. */
struct meta_deleted_listener {
	bool (*anything_open)(void *arg);
	/* Is it open? Not NULL: yes, and that must not be released before kept() is called. */
	void *(*is_open)(void *arg, silt_ino ino);
	/* `err` 0: it stays. Else it is gone, or nobody knows. */
	void (*kept)(void *arg, void *open, int err);
	void *arg;
};
void meta_hear_deleted(struct meta *m, const struct meta_deleted_listener *l);

/* One page of a directory from place `pos` (0: the beginning) on; at least `want` entries if there
 * are so many, about twice that at most. Entries that exist throughout are seen exactly once, whatever
 * others create, delete or rename meanwhile. "." and ".." are not among them. */
void meta_readdir(struct meta *m, silt_ino dir, uint64_t pos, unsigned want, bool attrs, meta_done done,
		  void *arg);

/* Extended attributes of any namespace; who may use which is the caller's business. ACLs are
 * attributes too (the two names below, values as Linux has them in xattrs, checked when set); setting an
 * access ACL changes the mode, META_SET_MODE changes the ACL. The reply of each has the inode.
 *
 * get: -ENODATA; reply: data, len. list: data, len: names, a NUL after each. set: -EEXIST, -ENODATA as
 * META_XATTR_CREATE and _REPLACE ask for; -E2BIG; -ENOSPC: the inode has too many; -EINVAL: no ACL;
 * -EACCES: default ACL of something else than a directory. remove: -ENODATA; an ACL that is not there
 * counts as removed. -EPERM: the inode is immutable or append-only. */
#define META_XATTR_NAME_MAX    255
#define META_XATTR_VALUE_MAX   65536
#define META_XATTR_ACL	       "system.posix_acl_access"
#define META_XATTR_DEFAULT_ACL "system.posix_acl_default"
enum {
	META_XATTR_CREATE = 1,
	META_XATTR_REPLACE = 2,
	META_XATTR_CLEAR_SGID = 4, /* with an access ACL */
};
void meta_getxattr(struct meta *m, silt_ino ino, const char *name, meta_done done, void *arg);
void meta_listxattr(struct meta *m, silt_ino ino, meta_done done, void *arg);
void meta_setxattr(struct meta *m, silt_ino ino, const char *name, const void *value, size_t len,
		   unsigned how, struct silt_time now, meta_done done, void *arg);
void meta_removexattr(struct meta *m, silt_ino ino, const char *name, struct silt_time now,
		      meta_done done, void *arg);
/* Makes it immutable, append-only, both or neither: SILT_FLAG_IMMUTABLE | SILT_FLAG_APPEND. From then on
 * operations that change such an inode, or names in such a directory, fail with -EPERM; so does a commit
 * to an immutable file. That an append-only file is only appended to is up to the caller. */
void meta_set_flags(struct meta *m, silt_ino ino, unsigned flags, struct silt_time now, meta_done done,
		    void *arg);

void meta_statfs(struct meta *m, meta_done done, void *arg);

/* The extent log of window `window` (file offset / SILT_WINDOW) of a SILT_MAP_EXTERNAL file; reply:
 * data, len (0: no extents there). */
void meta_window(struct meta *m, silt_ino ino, uint64_t window, meta_done done, void *arg);

/* The extent logs of a SILT_MAP_EXTERNAL file, some at a time: from `from` (0 at first, then the
 * reply's `next`) on. Reply: data, len for extent_logs_next(), in no order. A window may come twice;
 * one that is there throughout does come. */
void meta_windows(struct meta *m, silt_ino ino, uint64_t from, meta_done done, void *arg);

/* Reserves `n` pack ids (never given out before); reply: first. */
void meta_alloc_packs(struct meta *m, unsigned n, meta_done done, void *arg);

/* Commits extents: `n` items in one call for each shard. The size of the file becomes at least
 * off + len of the extent, mtime and ctime `mtime`, and set-id bits go. Items of one call are applied
 * in order. When all shards answered, `done` is called once with err 0, and each item has its own
 * `err` (-ENOENT: the file is gone; -ESTALE: the pack is, see meta_packs_bury(); -EIO) and new `version`. `items` must stay until then. */
struct meta_commit {
	silt_ino ino;
	struct silt_extent extent;
	struct silt_time mtime;
	/* An extent to be appended: `extent` says where this client takes the file's end to be, and may
	 * cross a window's border; it is put where the end is. `again`: it may have been committed
	 * before. Items with and without go out in calls of their own. */
	bool append, again;
	bool drop_suid; /* written by somebody without CAP_FSETID: set-id bits go */
	int err;
	uint64_t version;
	uint64_t at; /* append: where it was put */
};
void meta_commit(struct meta *m, struct meta_commit *items, size_t n, meta_done done, void *arg);

/* --- More about bytes (data.c) ------------------------------------------------------------------- */

/* Makes a regular file without a name, nlink 0, in the shard of `dir`; the session holds it until
 * meta_release_deleted(). meta_link() of this session may give it a name if `linkable`.
 * -ENOTSUP without a session. Reply: inode. */
void meta_make_unnamed(struct meta *m, silt_ino dir, const struct meta_make *how, bool linkable,
		       meta_done done, void *arg);

/* Bytes [off, stop) become a hole (none if equal); the file's size becomes at least `size`. Reply:
 * inode, and in `first` from where to go on: a call does 64 windows at most; 0: done. */
struct meta_allocate {
	uint64_t off, stop, size;
	bool drop_suid;
	struct silt_time now;
};
void meta_allocate(struct meta *m, silt_ino ino, const struct meta_allocate *how, meta_done done, void *arg);

/* The first window from `first` to `last` that holds extents. Reply: first (UINT64_MAX: none), and in
 * `next` from where to go on asking when none was found so far (0: that was all). */
void meta_next_window(struct meta *m, silt_ino ino, uint64_t first, uint64_t last, meta_done done,
		      void *arg);

/* Puts `n` extents that stand in another file already (or are holes) into `ino`, META_CLONE_MAX at
 * most, none across a window's border; size at least `stop`. Reply: inode. */
#define META_CLONE_MAX 256
void meta_clone(struct meta *m, silt_ino ino, const struct silt_extent *v, size_t n, uint64_t stop,
		bool drop_suid, struct silt_time now, meta_done done, void *arg);

/* Access times, META_TOUCH_MAX at most; `relative`: only where relatime wants it. Inodes that are gone
 * are passed over. */
struct meta_touch {
	silt_ino ino;
	struct silt_time atime;
};
#define META_TOUCH_MAX 256
void meta_touch(struct meta *m, const struct meta_touch *items, size_t n, bool relative, meta_done done,
		void *arg);

/* --- Packs that nobody uses any more (packs.c, functions_packs.lua) ------------------------------ */
/* All of these block: not on a reader thread. */

/* The volume's background work is done by one session at a time. 1: this one is, or goes on to be, that one
 * for `ms` from now on; 0: another is, or this client has no session. */
int meta_worker_elect(struct meta *m, unsigned ms);
void meta_worker_resign(struct meta *m);

/* About `want` of the packs whose live bytes came to 0 in `shard`, from *cursor (0 at first) on; some may
 * be in use again, here or in another shard. *cursor is where to go on, 0: that was all. *out is malloced.
 * One may come twice. */
int meta_dead_packs(struct meta *m, unsigned shard, uint64_t *cursor, unsigned want, uint64_t **out, size_t *n);

/* The live bytes of packs in one shard; 0 also where there is no counter. */
#define META_PACK_BURIED  INT64_MIN
#define META_PACK_RUBBISH (INT64_MIN + 1) /* no number */
int meta_packs_count(struct meta *m, unsigned shard, const uint64_t *packs, size_t n, int64_t *state);

/* Sees to it that no commit names these packs any more, each of which must have no live bytes in any
 * shard; dead[i] says which that is true of. From then on such commits fail with -ESTALE, and the object can be
 * deleted. Doing it again is harmless, as is ending half-way. */
int meta_packs_bury(struct meta *m, const uint64_t *packs, size_t n, bool *dead);

/* The shard's list of dead packs need not have these any more. */
int meta_packs_forget(struct meta *m, unsigned shard, const uint64_t *packs, size_t n);

/* --- Moving bytes to other packs (compact.c, functions_compact.lua) ------------------------------- */
/* All of these block: not on a reader thread. */

/* About `want` of the packs that one shard has noted: they may be small, or little of them is used any more.
 * *cursor and *out as with meta_dead_packs(). */
int meta_noted_packs(struct meta *m, unsigned shard, uint64_t *cursor, unsigned want, uint64_t **out, size_t *n);
/* The shard's list need not have these any more. */
int meta_noted_forget(struct meta *m, unsigned shard, const uint64_t *packs, size_t n);

/* Where the bytes of one window of a file are: the extents as they stand there. */
struct meta_place {
	silt_ino ino;
	uint64_t window;
	bool log;	  /* out: a window's log; else the one extent of the record */
	uint8_t *entries; /* out, malloced: encoded extents (extent.h); NULL: there are none */
	size_t len;
};
/* Reads them for places that all lie in `shard`. The caller frees `entries`, also after an error. */
int meta_read_places(struct meta *m, unsigned shard, struct meta_place *v, size_t n);

/* A run of bytes that was copied into another pack. */
struct meta_move {
	uint64_t pack;
	uint32_t pack_off, to_off;
};
/* Extents at `v` (as meta_read_places() left them, all in `shard`) that name one of `moves`, sorted by pack and
 * pack_off, name pack `to` from then on. Those that have changed since stay as they are. *moved gets how many
 * extents were changed. -ESTALE: the new pack was deleted meanwhile. */
int meta_move_places(struct meta *m, unsigned shard, const struct meta_place *v, size_t n,
		     const struct meta_move *moves, size_t nmoves, uint64_t to, uint64_t *moved);

/* --- Dictionaries (compact.c, cache/dict.h) ------------------------------------------------------ */
/* All of these block: not on a reader thread. The number of the current one, 0: there is none; a new number; make a
 * number the current one. */
int meta_dictionary(struct meta *m, uint32_t *number);
int meta_dictionary_new(struct meta *m, uint32_t *number);
int meta_dictionary_use(struct meta *m, uint32_t number);

/* --- What kernels are told, and told to forget (cover.h, buckets.h) -------------------------------- */

/* Before a kernel is given an answer for long: true if it will be said (meta_listen()) when that is no
 * longer so. Without it, a kernel may keep it for META_UNTOLD_MS while meta_pushes(), so that it is no
 * older than what is pushed. */
#define META_UNTOLD_MS 100
bool meta_tell_inode(struct meta *m, silt_ino ino, const struct meta_seen *seen);
bool meta_tell_name(struct meta *m, silt_ino dir, const struct meta_seen *seen);

/* Was the kernel told (by way of meta_tell_inode()) what is remembered now? */
bool meta_is_told(struct meta *m, silt_ino ino);
/* What was heard last of an inode, if it is remembered. *seen (may be NULL) is for meta_tell_inode(): a kernel that
 * knows it from elsewhere. */
bool meta_remembers(struct meta *m, silt_ino ino, struct silt_inode *out, struct meta_seen *seen);

/* True while Redis watches for this mount. */
bool meta_pushes(struct meta *m);
/* True while this mount answers from what it remembers. */
bool meta_relaxed(struct meta *m);

/* meta_getattr(), and the inode's bucket is watched from then on whatever else is used, for on_stale() to
 * hear of its next change; the kernel is not told. */
void meta_watch_inode(struct meta *m, silt_ino ino, meta_done done, void *arg);

/* Who is told what is no longer so. Neither function may block or call back. NULL: nobody; when
 * meta_listen() returns no call to the one before is under way. */
struct meta_listener {
	/* A bucket changed, was pushed out, or is not watched any more (buckets.h); yours to free. */
	void (*on_stale)(void *arg, struct bucket *b);
	/* Redis watches (again): nothing is watched yet. */
	void (*on_up)(void *arg);
	void *arg;
};
void meta_listen(struct meta *m, const struct meta_listener *l);

/* --- For tools and tests ------------------------------------------------------------------------- */

/* Waits for one operation on the calling thread:
 *	struct meta_wait w;
 *	meta_wait_init(&w);
 *	meta_lookup(m, dir, name, len, meta_wait_done, &w);
 *	int err = meta_wait(&w);	  // the reply is in w.reply; free w.page, w.data
 * Never on a reader thread. */
struct meta_wait {
	void *sync; /* private */
	struct meta_reply reply;
	struct meta_dirpage *page; /* malloced copy */
	char *data;		   /* malloced copy, NUL-terminated */
};
void meta_wait_init(struct meta_wait *w);
void meta_wait_done(void *arg, const struct meta_reply *r);
int meta_wait(struct meta_wait *w);
void meta_wait_free(struct meta_wait *w);

/* Sends a raw command and gives the reply as text in the manner of redis-cli (malloced). For
 * `siltfs debug`. */
int meta_debug_command(struct meta *m, int argc, const char **argv, const size_t *lens, char **out);

/* Sessions as one JSON array (malloced). */
int meta_sessions_json(struct meta *m, char **out);
