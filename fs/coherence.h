/* Telling the kernel what other mounts changed.
 *
 * What the kernel is told for longer than a moment is marked in meta/ (meta/buckets.h). A bucket
 *that changes, or is not watched any more, comes here, and the kernel is told to forget what it was
 *told of it: names expire (their next use asks again; the tree below a directory's name stays),
 *attributes are dropped. The pages of a file go when it is open here and its version has changed.
 *
 * What may be told for how long:
 *
 *				    told	not told	pushes are down
 *	attributes		    LONG	UNTOLD		attr-timeout
 *	names of directories...	    LONG	UNTOLD		dir-entry-timeout
 *	names of files, listed	    entry-to.	UNTOLD		entry-timeout
 *	names of files, looked up   0		0		0	   an open must ask:
 *close-to-open all names, if relaxed	    RELAXED	as above	as above
 *
 * never longer than 0 where the option says 0. "Not told" (nothing is remembered of it): for
 * META_UNTOLD_MS at most, so that nothing the kernel holds is older than a push would make it.
 *
 * Threads. Notifications are never sent by a thread that answers requests: the kernel may wait with
 *a directory's lock held for an answer that only that thread can give. One thread sends what never
 *waits (attributes) and looks after open files; ENTRY_THREADS send what may have to wait for such a
 *lock (names, pages), so that one slow directory holds up little else. Queues are of the detached
 *buckets themselves: they need no memory, and their bytes count against the limit of the table.
 *
 * An answer may be on its way to the kernel while a notification overtakes it. So what was told
 *less than RECENT_NS before is notified again 0.1, 1 and 5 s later.
 *
 * A notification also makes the kernel throw the answer to a GETATTR away that is on its way, and
 *read(2) goes on with the old size then. So none is sent for what the kernel has been told since,
 *or will ask for since a lock was granted: a push that is late must not spoil what an open or a
 *lock has just made right.
 *
 * Open files. One that is open for longer than YOUNG_NS is watched, and when its bucket changes it
 *is asked for: its node gets the new attributes, its pages go if the version is another one, and
 * fs_inode_changed() hears of it. The kernel forgets its attributes only when that answer is one that it does
 *not know. */
#pragma once
#include <stdbool.h>

#include "meta/meta.h"

struct coherence;
struct fs;
struct node;
struct fuse_entry_param;

#define COHERENCE_LONG    60.0 /* seconds */
#define COHERENCE_RELAXED 3600.0

int coherence_open(struct fs *fs, struct coherence **out);
/* No notification is sent and no bucket taken any more. Before the session is destroyed. */
void coherence_stop(struct coherence *c);
void coherence_close(struct coherence *c);

/* How long the kernel may keep attributes of `ino` that a reply brought (`seen` may be NULL). */
double coherence_attr_timeout(struct fs *fs, silt_ino ino, const struct meta_seen *seen);
/* The same for a name; `type` in S_IFMT bits, 0: there is no such name. `seen` NULL: not looked up
 * now. */
double coherence_entry_timeout(struct fs *fs, silt_ino dir, unsigned type, bool listed,
                               const struct meta_seen *seen);
/* For how long at most something may be told that is not remembered; `option` seconds or less. */
double coherence_untold(struct fs *fs, double option);

/* An answer with attributes of `ino` could not be given to the kernel, which may have older ones.
 */
void coherence_not_given(struct fs *fs, silt_ino ino);

/* A name that gets its file by a rename of this mount's: the kernel keeps what moves for as long as it
 * was told under the old name, and nobody has marked the new one. So it is made to expire:
 * coherence_moving() before the rename (NULL: no memory; free() when nothing was moved), and
 * coherence_moved(), which takes it, before it is answered. The kernel holds the directory's lock until
 * it has moved the name, and the notification waits for that. */
struct drop;
struct drop *coherence_moving(silt_ino dir, const char *name, size_t len);
void coherence_moved(struct fs *fs, struct drop *d);

/* Are no pages of the file being dropped because of an older push? `wait`: until there are none. What is
 * answered then, with the kernel told of the node's version before, is not spoilt by it. */
bool coherence_settled(struct node *n, bool wait);

/* A file was opened here with `flags`: looked after when it stays open. */
void coherence_opened(struct fs *fs, silt_ino ino, int flags);

/* Open files that lose their last name elsewhere are held: meta_hear_deleted(). */

/* Inode `ino`, which is open here, was changed or (`gone`) deleted, maybe by another mount; its
 * node has the new attributes. Called on a reader thread, no lock held. Whoever must know adds its
 * call there. */
void fs_inode_changed(struct fs *fs, struct node *n, bool gone);
