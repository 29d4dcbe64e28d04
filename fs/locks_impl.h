/* Private to locks.c and ops_lock.c. */
#pragma once
#include "fs/locks.h"

/* Owners of a node; its lock is held. */
struct lock_owner *lock_owner_find(const struct node *n, uint64_t owner, bool flock);
/* The owner, made if there is none, with the handle among those it locks through. NULL: no memory.
 */
struct lock_owner *lock_owner_make(struct node *n, uint64_t owner, bool flock, struct handle *h);
void lock_owner_forget(struct node *n, struct lock_owner *o);

/* Answers a granted request, or gives the lock back if its caller was told EINTR meanwhile. */
void lock_answer(struct request *r);
/* Answers a granted request after the kernel's pages are gone; r->off: the version that the file
 * has. */
void lock_answer_later(struct request *r);
