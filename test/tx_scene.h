/* Operations across shards to be interrupted, what they work on, and what must be true afterwards:
 * directories of the root in three shards, none of them the root's, and what is in them:
 *
 *	d[0]  file dir/    d[1]  dir2/ link?    d[2]  file2 empty/?
 */
#pragma once
#include "test/meta_fixture.h"

#include <sys/stat.h>

struct scene {
	silt_ino d[3], file, dir, file2;
};

struct job {
	int (*run)(struct meta *m, const struct scene *s); /* by the client that is interrupted */
	void (*prepare)(struct meta *m, const struct scene *s);
	bool unlinks; /* its first step is an ordinary unlink */
	bool repeats; /* several operations, of which the first STEPS steps will do */
	/* What it moves: 0 nothing; else "file" or "dir" of d[0] goes to `to` in d[1], where it
	 * replaces something if `over`, or changes places with it if `swaps`. */
	const char *moves, *to;
	bool over, swaps;
	const char *removes; /* from d[1] */
};
#define STEPS 20 /* more than any operation has */

extern const struct job mkdir_job, rmdir_job, rmdir_one_job, link_job, unlink_job, rename_job,
        rename_over_job, rename_dir_job, rename_dir_over_job, exchange_job, exchange_dirs_job,
        exchange_both_job;

/* Once a volume: the three directories. */
void scene_directories(struct meta *m, struct scene *s);
void scene_set(struct meta *m, struct scene *s, const struct job *j);
/* Empties the directories; a mark that was left in one would make this fail. */
void scene_clear(struct meta *m, const struct scene *s);
/* The inode of a name, 0: none. */
silt_ino scene_at(struct meta *m, silt_ino dir, const char *name);
/* What moves is at its old name or at its new one; what does not is where it was. */
void scene_check_names(struct meta *m, const struct scene *s, const struct job *j);

/* All of the volume: names lead to inodes, each inode has as many names as its link count says,
 * there are as many as counted, directories know their parents and sizes, and no intent or mark is
 * left. */
void check_volume(struct meta *m);

/* A client in a process of its own, whose session expires soon (in 5 * CHILD_BEAT_MS): connects to
 * `address`, calls `run` (NULL: waits until `go` is closed) after it has read a byte from `go`.
 * Exits with 0, or 4 if `run` said an error. */
#define CHILD_BEAT_MS 40
struct child {
	pid_t pid;
	int go; /* to be closed */
};
struct child child_start(const struct meta_address *address,
                         int (*run)(struct meta *, const struct scene *), const struct scene *s);
void child_go(struct child *c);
/* Its exit status, as wait(2) says it. */
int child_end(struct child *c);

/* Waits until at most `n` sessions are there: the work of the dead ones is done by then. */
void wait_sessions(struct meta *m, unsigned n);
