/* Two ranges are held: `now`, from which ids are taken, and `spare`, asked for when half of `now`
 * is used up. At most one request is under way. */
#include "cache/pack_ids.h"

#include <errno.h>

#define FIRST_BLOCK 8u
#define LAST_BLOCK  1024u

static uint64_t left(const struct id_range *r)
{
	return r->end - r->next;
}

void pack_ids_init(struct pack_ids *ids, const struct uploader_ops *ops, struct meta *meta)
{
	*ids = (struct pack_ids){ .ops = ops, .meta = meta, .block = FIRST_BLOCK };
	silt_lock_init(&ids->lock);
	silt_cond_init(&ids->answered);
}

static void on_block(void *arg, const struct meta_reply *r)
{
	struct pack_ids *ids = arg;
	silt_lock(&ids->lock);
	int err = r->err;
	if (!err && !r->first) /* 0 means "no pack" everywhere */
		err = -EIO;
	if (err) {
		ids->err = err;
		ids->failures++;
	} else {
		ids->spare = (struct id_range){ r->first, r->first + ids->asked };
		if (ids->block < LAST_BLOCK)
			ids->block *= 2;
	}
	ids->asked = 0;
	/* Under the lock: pack_ids_destroy() frees once it sees the answer. */
	silt_cond_broadcast(&ids->answered);
	silt_unlock(&ids->lock);
}

/* Called with the lock held, which is let go during the call: the answer may come on this thread.
 */
static void ask(struct pack_ids *ids)
{
	if (ids->asked || left(&ids->spare))
		return;
	unsigned n = ids->block;
	ids->asked = n;
	silt_unlock(&ids->lock);
	ids->ops->alloc_packs(ids->meta, n, on_block, ids);
	silt_lock(&ids->lock);
}

void pack_ids_prepare(struct pack_ids *ids)
{
	silt_lock(&ids->lock);
	if (!left(&ids->now))
		ask(ids);
	silt_unlock(&ids->lock);
}

int pack_ids_take(struct pack_ids *ids, uint64_t *out)
{
	int err = 0;
	silt_lock(&ids->lock);
	unsigned failures = ids->failures;
	for (;;) {
		if (!left(&ids->now)) {
			ids->now = ids->spare;
			ids->spare = (struct id_range){ 0, 0 };
		}
		if (left(&ids->now))
			break;
		if (ids->failures != failures) {
			err = ids->err;
			break;
		}
		ask(ids);
		if (ids->asked)
			silt_cond_wait(&ids->answered, &ids->lock);
	}
	if (!err) {
		*out = ids->now.next++;
		if (left(&ids->now) < ids->block / 4)
			ask(ids);
	}
	silt_unlock(&ids->lock);
	return err;
}

void pack_ids_discard(struct pack_ids *ids)
{
	silt_lock(&ids->lock);
	ids->now = ids->spare = (struct id_range){ 0, 0 };
	silt_unlock(&ids->lock);
}

void pack_ids_destroy(struct pack_ids *ids)
{
	silt_lock(&ids->lock);
	while (ids->asked)
		silt_cond_wait(&ids->answered, &ids->lock);
	silt_unlock(&ids->lock);
	silt_cond_destroy(&ids->answered);
	silt_lock_destroy(&ids->lock);
}
