/* Inode sequences. A shard's numbers are reserved in blocks, so that creating a file needs no call of
 * its own for its number, and a file made twice (sent again after a broken connection) is recognised by
 * its number. Numbers that are not used when the mount ends are lost; there are 2^48. */
#include "meta/engine.h"

#include <errno.h>
#include <stdlib.h>

static void ask(struct meta *m, unsigned shard);

struct asked {
	struct meta *m;
	unsigned shard, block;
};

/* Takes a number if there is one. Caller holds the lock. */
static bool take(struct sequence *s, uint64_t *out)
{
	if (s->next == s->end && s->next2 != s->end2) {
		s->next = s->next2;
		s->end = s->end2;
		s->next2 = s->end2 = 0;
	}
	if (s->next == s->end)
		return false;
	*out = s->next++;
	return true;
}

static bool should_ask(const struct sequence *s)
{
	return !s->asking && s->next2 == s->end2 && s->end - s->next <= s->block / 4;
}

static void got_block(void *arg, int err, redisReply *reply)
{
	struct asked *a = arg;
	struct meta *m = a->m;
	struct sequence *s = &m->sequences[a->shard];
	int rc = reply_code(m, F_ALLOC, err, reply, NULL);
	const redisReply *first = rc ? NULL : reply_at(reply, 1);
	if (!rc && !first)
		rc = -EIO;
	struct op *ready = NULL, *failed = NULL;

	silt_lock(&s->lock);
	s->asking = false;
	if (first) {
		s->next2 = strtoull(first->str, NULL, 10);
		s->end2 = s->next2 + a->block;
		if (s->end2 - 1 > s->known)
			s->known = s->end2 - 1;
	} else {
		failed = s->waiting;
		s->waiting = NULL;
	}
	while (s->waiting && take(s, &s->waiting->seq)) {
		struct op *op = s->waiting;
		s->waiting = op->next;
		op->next = ready;
		ready = op;
	}
	bool more = s->waiting != NULL;
	if (more)
		s->asking = true;
	silt_unlock(&s->lock);

	while (ready) {
		struct op *op = ready;
		ready = op->next;
		op_with_sequence(op);
	}
	while (failed) {
		struct op *op = failed;
		failed = op->next;
		op_fail(op, rc);
	}
	if (more)
		ask(m, a->shard);
	free(a);
}

/* s->asking is set by the caller. */
static void ask(struct meta *m, unsigned shard)
{
	struct sequence *s = &m->sequences[shard];
	struct asked *a = malloc(sizeof(*a));
	if (!a) {
		silt_lock(&s->lock);
		struct op *failed = s->waiting;
		s->waiting = NULL;
		s->asking = false;
		silt_unlock(&s->lock);
		while (failed) {
			struct op *op = failed;
			failed = op->next;
			op_fail(op, -ENOMEM);
		}
		return;
	}
	silt_lock(&s->lock);
	s->block = s->block ? s->block * 2 : SEQ_BLOCK_MIN;
	if (s->block > SEQ_BLOCK_MAX)
		s->block = SEQ_BLOCK_MAX;
	*a = (struct asked){ .m = m, .shard = shard, .block = s->block };
	uint64_t known = s->known;
	silt_unlock(&s->lock);
	struct conn_request *r = call_begin(m, shard, F_ALLOC, 3, 0);
	conn_arg(&r, "n", 1);
	conn_arg_u64(&r, a->block);
	conn_arg_u64(&r, known);
	call_send(m, F_ALLOC, r, got_block, a);
}

void sequence_take(struct meta *m, unsigned shard, struct op *op)
{
	struct sequence *s = &m->sequences[shard];
	silt_lock(&s->lock);
	bool got = take(s, &op->seq);
	if (!got) {
		op->next = s->waiting;
		s->waiting = op;
	}
	bool must_ask = should_ask(s);
	if (must_ask)
		s->asking = true;
	silt_unlock(&s->lock);
	if (must_ask)
		ask(m, shard);
	if (got)
		op_with_sequence(op);
}

void sequence_forget(struct meta *m, unsigned shard)
{
	struct sequence *s = &m->sequences[shard];
	silt_lock(&s->lock);
	s->next = s->end = s->next2 = s->end2 = 0;
	silt_unlock(&s->lock);
}

int sequences_init(struct meta *m)
{
	m->sequences = calloc(m->volume.shards, sizeof(*m->sequences));
	if (!m->sequences)
		return -ENOMEM;
	for (unsigned i = 0; i < m->volume.shards; i++)
		silt_lock_init(&m->sequences[i].lock);
	return 0;
}

void sequences_free(struct meta *m)
{
	if (!m->sequences)
		return;
	for (unsigned i = 0; i < m->volume.shards; i++)
		silt_lock_destroy(&m->sequences[i].lock);
	free(m->sequences);
}
