/* The lock of the volume under which directories move to other parents, and the check for which it
 * is there: no directory becomes its own descendant. Two moves that are each right may make a loop
 * together, so they go one after the other: from before the check until all parents say where their
 * directories are. The lock has no time limit, after which a client that was only stopped could go
 * on unchecked; it belongs to the transaction, whoever completes that gives it back. */
#include "meta/tx.h"

#include <errno.h>

#define DEPTH_MAX 10000

static int lock_call(struct meta *m, enum meta_function fn, const char *tx)
{
	int rc = step_by_tx(m, fn, 0, tx);
	return rc == -ESTALE ? -EAGAIN : rc == -EAGAIN ? -EBUSY : rc;
}

int tx_lock(struct meta *m, const char *tx, bool wait)
{
	unsigned tries = 0;
	int rc;
	do
		rc = lock_call(m, F_X_LOCK, tx);
	while (rc == -EBUSY && wait && tx_pause(&tries));
	return rc;
}

void tx_unlock(struct meta *m, const char *tx)
{
	lock_call(m, F_X_UNLOCK, tx);
}

int tx_check_not_below(struct meta *m, silt_ino dir, silt_ino top)
{
	for (int depth = 0; depth < DEPTH_MAX; depth++) {
		struct silt_inode i;
		if (dir == top)
			return -EINVAL;
		if (dir == SILT_ROOT_INO)
			return 0;
		int rc = step_getattr(m, dir, &i);
		if (rc)
			return rc;
		dir = i.attr.parent;
	}
	return -ELOOP;
}
