/* What the files of fs/ share: the daemon's state and the helpers that cross their borders. */
#pragma once
#define FUSE_USE_VERSION 314
#include <fuse3/fuse_lowlevel.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "fs/coherence.h"
#include "fs/flag_table.h"
#include "fs/fs.h"
#include "fs/locks.h"
#include "fs/node.h"
#include "fs/recent.h"
#include "fs/request.h"
#include "fs/write_buffer.h"
#include "meta/lock.h"

struct control;
struct janitor;

/* An open file. FUSE has a reference from OPEN to RELEASE; requests that may be interrupted, and so
 * outlive it, have their own. */
struct handle {
	atomic_uint refs;
	struct node *node; /* a reference until RELEASE; then only the holder's own one counts */
	struct handle *prev, *next; /* of the node's open handles; node.lock */
	int flags;                  /* of open(2) */
	bool noflush; /* its close sends no FLUSH */
	atomic_uint dropping;       /* opened_note()'s token, until the open is known to have ended */
	atomic_bool lock_lost;      /* see locks.h: EIO from now on */
	atomic_uint error_seen;     /* node's error_seq that this handle has reported */
	/* Sequential reads; races between readers of one handle only blunt the guess. */
	atomic_uint_fast64_t next_off, streak, prefetched;
};

/* Directories that are open, for those that are removed meanwhile. */
struct open_dirs {
	struct silt_lock lock;
	struct dir_handle *first;
};

/* Reads that Redis is not told of yet (atime.c). */
struct atime_table {
	struct silt_lock lock;
	struct meta_touch v[META_TOUCH_MAX];
	size_t n;
	uint64_t since; /* silt_now_ns() of the first; 0: none */
};

struct fs {
	struct fs_config cfg;
	char *mountpoint, *source, *control_path;
	struct fuse_session *se;
	bool mounted;
	uint64_t init_unique; /* of the INIT request; 0 when it was answered */
	uint32_t init_flags, init_flags2; /* what the kernel offers */
	atomic_bool long_setxattr; /* the kernel sends the longer fuse_setxattr_in */
	struct request_pool requests;
	struct node_table nodes;
	struct fresh_table fresh;
	struct opened_table opened;
	struct dir_table dirs;
	struct flag_table flags;
	struct open_dirs open_dirs;
	struct write_pool pool;
	struct big_buffers big_buffers; /* of the pool */
	struct write_queue queue;
	/* Calls to meta/ and cache/ on their way that are nobody's request: segments, windows. */
	atomic_uint background;
	struct janitor *janitor;
	struct inval *inval;
	struct atime_table atimes;
	struct lock_table locks;
	struct coherence *coherence;
	struct control *control;
	char features[256];
};

/* fs_close() waits for the end; after it the completion must not touch `fs` any more. */
static inline void fs_background_begin(struct fs *fs)
{
	atomic_fetch_add(&fs->background, 1);
}

static inline void fs_background_end(struct fs *fs)
{
	atomic_fetch_sub(&fs->background, 1);
}

/* --- node.c, flush.c: attributes as this mount sees them ---------------------------------- */

/* Corrects attributes that Redis gave by what is known here: bytes not yet committed, a commit
 * whose reply overtook this one. Updates the node if the inode has one.
 * `to_kernel`: the kernel is being told this, or to ask; else a push must still tell it what others have
 * changed. */
void fs_overlay(struct fs *fs, struct silt_inode *inode, bool to_kernel);

/* --- ops_attr.c --------------------------------------------------------------------------- */
struct silt_time fs_now(void);
void fs_fill_stat(const struct silt_attr *a, struct stat *st);

/* Fills an entry for a name of `dir` that was looked up (`listed`: seen in a directory listing). `seen`:
 * what the reply said of it; NULL: it came with a change made here. */
void fs_fill_entry(struct fs *fs, silt_ino dir, const struct silt_inode *inode, bool listed,
                   const struct meta_seen *seen, struct fuse_entry_param *e);

/* Starts a setattr that changes the size of an inode with a node, or goes on with one that waited
 * for another truncation. When the size was changed, or could not be, r->then(r, err) is called if
 * it is set (it owns r then), else SETATTR is answered. */
void fs_setattr_begin(struct request *r);

/* xattr.c: the reply to a change of an inode that left its bytes alone, perhaps an error. */
void fs_changed(struct fs *fs, silt_ino ino, const struct meta_reply *reply);

/* --- map_ask.c ---------------------------------------------------------------------------- */
enum map_need { NEED_NOTHING, NEED_INODE, NEED_WINDOW, NEED_WAIT };

/* What the map lacks of [off, end). Marks it as being asked for. Lock held. */
enum map_need fs_map_need_locked(struct node *n, uint64_t off, uint64_t end, uint64_t *window);

/* Sends what fs_map_need_locked() asked for. Who waits for it is among n->map_waiters already, and
 * goes on with r->resume(). No lock held. */
void fs_map_ask(struct fs *fs, struct node *n, enum map_need need, uint64_t window,
                unsigned generation);

/* ops_write.c: a parked write goes on (err 0) or fails. */
void fs_write_parked(struct request *r, int err);

/* --- ops_dir.c ---------------------------------------------------------------------------- */
bool fs_dir_is_open(struct fs *fs, silt_ino ino);
/* At the end of a mount: handles of which the kernel sent no RELEASEDIR. */
void fs_close_dirs(struct fs *fs);

/* --- ops_file.c --------------------------------------------------------------------------- */
struct handle *fs_handle_new(struct fs *fs, const struct silt_inode *inode, int flags);
void fs_handle_close(struct fs *fs, struct handle *h); /* RELEASE */
struct handle *handle_ref(struct handle *h);
void handle_put(struct handle *h);
/* A request of the handle has come: the kernel has done what the answer to its open said. */
void handle_open_ended(struct handle *h);
static inline void handle_is_used(struct handle *h)
{
	if (atomic_load_explicit(&h->dropping, memory_order_relaxed))
		handle_open_ended(h);
}

/* Sees to it that a deleted inode goes away: now, or when its last handle here is closed. */
void fs_deleted(struct fs *fs, silt_ino ino);

/* --- The operations, by file -------------------------------------------------------------- */
void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t n);
void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *v);
void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);
void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name);
void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
               const char *newname, unsigned flags);
void op_readlink(fuse_req_t req, fuse_ino_t ino);

void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st, int to_set,
                struct fuse_file_info *fi);
void op_statfs(fuse_req_t req, fuse_ino_t ino);

void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi);
void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);

void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               struct fuse_file_info *fi);
void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);

void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
              struct fuse_file_info *fi);

void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
                  struct fuse_file_info *fi);
void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi);
void op_copy_file_range(fuse_req_t req, fuse_ino_t ino_in, off_t off_in,
                        struct fuse_file_info *fi_in, fuse_ino_t ino_out, off_t off_out,
                        struct fuse_file_info *fi_out, size_t len, int flags);

void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
                 int flags);
void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);

void op_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned cmd, void *arg, struct fuse_file_info *fi,
              unsigned flags, const void *in, size_t in_size, size_t out_size);

/* Node ids of names that are damaged (ops_name.c): of a shard that no volume has. */
#define FS_DAMAGED_NODES ((uint64_t)0xffff << 48)

/* --- transport.c -------------------------------------------------------------------------- */

/* Puts itself between libfuse and the device, after fuse_session_mount(). */
int transport_attach(struct fs *fs);

/* Did the request that this thread is handling, SETATTR or WRITE, say that set-id bits have to go? */
bool transport_kill_suid(void);

/* Did the SETXATTR of an access ACL say that the set-group-ID bit has to go? */
bool transport_acl_clears_sgid(void);

/* Is the CREATE that this thread is handling for a file without a name (O_TMPFILE)? */
bool transport_unnamed(void);

/* --- atime.c ------------------------------------------------------------------------------ */
void atime_init(struct atime_table *t);
void atime_destroy(struct atime_table *t);

/* Would a read of a file with these times count? */
bool atime_due(const struct fs *fs, const struct silt_attr *a);
/* A directory or link was read; Redis decides whether it counts. */
void atime_note(struct fs *fs, silt_ino ino, struct silt_time now);
/* A file was read through `h`. No lock held. */
void atime_read(struct fs *fs, struct handle *h);
/* Corrects what Redis said by what it was not told yet. */
void atime_overlay(struct fs *fs, struct silt_attr *a);
/* Tells Redis now, if `ino` (0: anything) is among it. */
void atime_send(struct fs *fs, silt_ino ino);
/* Janitor: the same when it is time. Returns ms until then, -1: nothing to do. */
int atime_send_due(struct fs *fs);

/* --- inval.c ------------------------------------------------------------------------------ */
int inval_open(struct fs *fs);
/* When no request is left. */
void inval_close(struct fs *fs);

/* Has the kernel drop pages and attributes of `ino`, soon, on a thread of its own. Takes those of
 * `waiters` that answer a request, to be told after that; returns the others. Any thread, no locks. */
struct flush_wait *inval_post(struct fs *fs, silt_ino ino, struct flush_wait *waiters);

/* Is something posted that the kernel was not told yet? Then inval_post() with `ino` 0 lets waiters
 * wait for that. */
bool inval_busy(struct fs *fs);

/* --- janitor.c ---------------------------------------------------------------------------- */
int janitor_open(struct fs *fs, struct janitor **out);
/* The FUSE loop has ended, the session is still there: from now on the janitor sends it nothing. */
void janitor_end(struct janitor *j);
void janitor_close(struct janitor *j); /* after janitor_end() */
void janitor_stop(struct janitor *j);  /* async-signal-safe */
void janitor_ready(struct janitor *j); /* INIT was answered */
void janitor_look(struct janitor *j);  /* fs_retry_due() has something new */
