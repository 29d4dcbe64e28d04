/* Which kinds of extended attributes inodes have, as far as their records lately told this mount:
 * the flags of an inode, and when they came. The kernel asks for ACLs whenever it has refreshed
 * attributes, and before a first write for security.capability; `ls -l` asks for two attributes of
 * each file. Nearly always the answer is "none", and nearly always the record has just come by,
 * with LOOKUP, READDIRPLUS, GETATTR or the reply to a change: so no question goes to Redis.
 *
 * Who asks says how old an answer may be: as long as the kernel may keep the attributes that came
 * with the flags. So a change by another mount is seen when the attributes are seen, and with
 * timeouts of 0 every question goes to Redis. Notes must be made in the order in which Redis sent
 * the records (on the connection's reader thread), else an older one could hide a change of our
 * own.
 *
 * Set-associative and lossy; a miss costs a call. All functions from any thread. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "meta/lock.h"
#include "meta/types.h"

#define FLAG_WAYS  4u
#define FLAG_SETS  8192u
#define FLAG_LOCKS 64u

struct flag_set {                 /* one cache line; the way used last comes first */
	silt_ino ino[FLAG_WAYS];  /* 0: empty */
	uint64_t seen[FLAG_WAYS]; /* ms << 8 | flags */
};

struct flag_table {
	struct silt_lock locks[FLAG_LOCKS];
	struct flag_set *v;
};

int flag_table_init(struct flag_table *t);
void flag_table_free(struct flag_table *t);

/* A record of Redis came. */
void flags_note(struct flag_table *t, const struct silt_attr *attr);
/* What is known is not certain any more. */
void flags_drop(struct flag_table *t, silt_ino ino);
/* Flags that came less than `max_age` seconds ago. */
bool flags_get(struct flag_table *t, silt_ino ino, double max_age, unsigned *flags);
