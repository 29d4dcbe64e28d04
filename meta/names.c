/* Operations on names in a directory, within one shard: one call each. Each has a submit half,
 * which formats the request from the `struct op`, and a reply half on the reader thread. Where the
 * reply shows that part of the work lies in another shard, the operation goes on in tx.c. */
#include "meta/engine.h"
#include "meta/varint.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define STALE_TRIES 20
#define MISS_TRIES  20

/* --- what replies have in common --- */

/* The entry of a name that was looked up (NULL: there is none). What kernels keep of names: those of
 * directories and the like; a relaxed mount's all. */
static void put_name(struct op *op, const redisReply *entry, uint32_t type, struct meta_seen *seen)
{
	if (op->fn != F_LOOKUP || (S_ISREG(type) && !op->m->cfg.relaxed))
		return;
	seen->name = cover_put_name(op->m, op->dir, op->buckets, op->name, op->len,
				    entry ? entry->str : NULL, entry ? entry->len : 0, &seen->start);
}

/* The entry was there, its inode was not. An operation across shards is between two of its steps: by its
 * end the name is gone, or names something else (a rename that replaces must not be seen as an absence).
 * False: it stays so; the name is damaged. */
static bool missed(struct op *op, bool moving)
{
	if (!moving && op->misses++ >= MISS_TRIES)
		return false;
	tx_again(op);
	return true;
}

struct second {
	struct op *op;
	struct meta_reply so_far;
	bool moving;
};

static void got_second(void *arg, const struct meta_reply *r)
{
	struct second *s = arg;
	if (r->err == -ENOENT && missed(s->op, s->moving)) {
		free(s);
		return;
	}
	s->so_far.inode = r->inode;
	s->so_far.seen.inode = r->seen.inode;
	s->so_far.err = r->err;
	op_end(s->op, &s->so_far);
	free(s);
}

/* Looks the inode up in its own shard and ends the operation with it. */
static void finish_with_getattr(struct op *op, silt_ino ino, bool moving, const struct meta_reply *so_far)
{
	struct second *s = malloc(sizeof(*s));
	if (!s) {
		op_fail(op, -ENOMEM);
		return;
	}
	s->op = op;
	s->moving = moving;
	s->so_far = *so_far;
	/* Not from memory: what is remembered may be older than the name that was just heard of. */
	ask_inode(op->m, ino, op->to_kernel, got_second, s);
}

static void got_moved(void *arg, int err, redisReply *reply)
{
	struct second *s = arg;
	struct op *op = s->op;
	silt_ino ino = s->so_far.inode.attr.ino;
	int rc = reply_code(op->m, F_X_MOVED, err, reply, NULL);
	if (!rc)
		rc = reply_inode(op->m, ino, reply_at(reply, 1), &s->so_far.inode);
	/* Gone meanwhile, or not reached: the rename has happened all the same. */
	if (rc)
		s->so_far.inode = (struct silt_inode){ .attr.ino = ino };
	op_end(op, &s->so_far);
	free(s);
}

static void ignore_moved(void *arg, int err, redisReply *reply)
{
	reply_code(arg, F_X_MOVED, err, reply, NULL);
}

/* The inode of a name that a rename moved has its change time in its own shard. */
static void touch_moved(struct op *op, silt_ino ino, silt_ino parent, conn_done done, void *arg)
{
	struct conn_request *q = call_begin(op->m, silt_ino_shard(ino), F_X_MOVED, 5, 128);
	conn_arg_str(&q, "");
	conn_arg_u64(&q, silt_ino_seq(ino));
	conn_arg_u64(&q, silt_ino_shard(parent));
	conn_arg_u64(&q, silt_ino_seq(parent));
	call_arg_time(&q, op->now);
	call_send(op->m, F_X_MOVED, q, done, arg);
}

static void finish_with_moved(struct op *op, silt_ino ino, const struct meta_reply *so_far)
{
	struct second *s = malloc(sizeof(*s));
	if (!s) {
		op_fail(op, -ENOMEM);
		return;
	}
	*s = (struct second){ .op = op, .so_far = *so_far };
	s->so_far.inode.attr.ino = ino;
	touch_moved(op, ino, op->dir2, got_moved, s);
}

/* Ends an operation whose reply holds an entry and, when the inode is in the same shard, its
 * record. */
static void end_with_entry(struct op *op, const redisReply *entry, const redisReply *record,
                           struct meta_reply *r)
{
	uint32_t type;
	silt_ino ino = 0;
	bool moving;
	unsigned shard = silt_ino_shard(op->dir);
	if (!entry || record_entry_decode(shard, entry->str, entry->len, &type, &ino, &moving) ||
	    silt_ino_shard(ino) >= op->m->volume.shards) {
		silt_error(op->m->log, "entry \"%.*s\" of directory %llu is damaged", (int)op->len,
		           op->name, (unsigned long long)op->dir);
		silt_count(op->m->metrics, M_META_DAMAGED, 1);
		r->err = -EIO;
		r->damaged = true;
		r->inode.attr.mode = S_IFREG;
		r->first = record_place(op->name, op->len);
	} else if (silt_ino_shard(ino) != shard && (!record || record->len == 0)) {
		put_name(op, entry, type, &r->seen);
		if (op->fn == F_RENAME && !op->nothing)
			finish_with_moved(op, ino, r);
		else
			finish_with_getattr(op, ino, moving, r);
		return;
	} else if (record && record->len == 0 && missed(op, moving)) {
		return;
	} else {
		r->err = reply_inode(op->m, ino, record, &r->inode);
		if (r->err) {
			r->damaged = true;
			r->inode.attr.mode = type;
			r->first = record_place(op->name, op->len);
		}
		if (!r->err && op->fn == F_LOOKUP)
			r->seen.inode = cover_put_reply(op, ino, record);
		if (!r->err)
			put_name(op, entry, type, &r->seen);
	}
	op_end(op, r);
}

/* Takes the directory's record that comes with a change of its names. */
static void take_dir(struct op *op, const redisReply *record, struct meta_reply *r)
{
	struct silt_inode dir;
	if (record && record->len &&
	    !record_decode(op->dir, record->str, record->len, &dir, NULL, NULL))
		r->dir = dir.attr;
}

/* --- lookup --- */

static void got_lookup(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	long long code = 0;
	r.err = reply_code(op->m, op->fn, err, reply, &code);
	op->buckets = r.err ? 0 : reply_number(reply, 1);
	if (!r.err && code < 0) {
		r.err = (int)code;
		if (op->m->cfg.relaxed)
			put_name(op, NULL, 0, &r.seen);
	}
	if (r.err)
		op_end(op, &r);
	else
		end_with_entry(op, reply_at(reply, 2), reply_at(reply, 3), &r);
}

static void submit_lookup(struct op *op)
{
	struct conn_request *r = call_begin(op->m, silt_ino_shard(op->dir), F_LOOKUP, 2, op->len);
	conn_arg_u64(&r, silt_ino_seq(op->dir));
	conn_arg(&r, op->name, op->len);
	call_send(op->m, F_LOOKUP, r, got_lookup, op);
}

static void lookup(struct meta *m, silt_ino dir, const char *name, size_t len, bool to_kernel,
                   meta_done done, void *arg)
{
	struct op *op = op_new(m, F_LOOKUP, name, len, NULL, 0, 0, done, arg);
	if (!op)
		return;
	op->dir = dir;
	op->to_kernel = to_kernel;
	if (lease_says_absent(m, dir, name, len))
		op_fail(op, -ENOENT);
	else if (!to_kernel || !m->cfg.relaxed || !relaxed_lookup(op))
		submit_lookup(op);
}

void meta_lookup(struct meta *m, silt_ino dir, const char *name, size_t len, meta_done done,
                 void *arg)
{
	lookup(m, dir, name, len, false, done, arg);
}

void meta_lookup_for_kernel(struct meta *m, silt_ino dir, const char *name, size_t len, meta_done done,
                         void *arg)
{
	lookup(m, dir, name, len, true, done, arg);
}

/* --- make --- */

static void got_make(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	long long code = 0;
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	if (!r.err)
		code = reply->element[0]->integer;
	if (!r.err) {
		take_dir(op, reply_at(reply, 3), &r);
		if (reply->elements > 4 && reply->element[4]->type == REDIS_REPLY_INTEGER)
			lease_granted(op->m, op->dir, op->sent, reply->element[4]->integer,
			              r.dir.size);
		/* Again: another thread may have claimed the lease between the first note and the
		 * send. */
		lease_note_name(op->m, op->dir, op->name, op->len, false);
	}
	if (r.err == -EAGAIN) {
		tx_again(op);
		return;
	}
	if (r.err == -ESTALE && op->tries++ < STALE_TRIES) {
		op_other_sequence(op);
		return;
	}
	if (!r.err && code < 0) { /* -EEXIST, with the inode that is there */
		r.err = (int)code;
		op_end(op, &r);
		return;
	}
	if (r.err) {
		op_end(op, &r);
		return;
	}
	r.existed = code == 1;
	end_with_entry(op, reply_at(reply, 1), reply_at(reply, 2), &r);
}

static void arg_tail(struct conn_request **r, const struct meta_make *how)
{
	uint8_t tail[SILT_SYMLINK_MAX + 1], *end;
	const char *elsewhere = "";
	size_t elsewhere_len = 0;
	size_t n = 1;
	tail[0] = 0;
	if (S_ISLNK(how->mode) && how->target_len > 200) {
		tail[0] = 1;
		elsewhere = how->target;
		elsewhere_len = how->target_len;
	} else if (S_ISLNK(how->mode)) {
		memcpy(tail + 1, how->target, how->target_len);
		n += how->target_len;
	} else if (!S_ISREG(how->mode)) {
		end = silt_put_varint(tail, how->rdev);
		n = (size_t)(end - tail);
	}
	conn_arg(r, tail, n);
	conn_arg(r, elsewhere, elsewhere_len);
}

static void submit_make(struct op *op)
{
	struct meta *m = op->m;
	struct conn_request *r = call_begin(m, silt_ino_shard(op->dir), F_MAKE, 13,
	                                    op->len + op->make.target_len + 64);
	conn_arg_u64(&r, silt_ino_seq(op->dir));
	conn_arg(&r, op->name, op->len);
	conn_arg_u64(&r, op->seq);
	conn_arg_u64(&r, op->make.mode | (uint64_t)op->make.umask << 16);
	conn_arg_u64(&r, op->make.uid);
	conn_arg_u64(&r, op->make.gid);
	call_arg_time(&r, op->make.now);
	arg_tail(&r, &op->make);
	conn_arg(&r, op->make.open_existing ? "1" : "0", 1);
	conn_arg_u64(&r, m->fill);
	bool ask = lease_note_name(m, op->dir, op->name, op->len, true);
	conn_arg_str(&r, m->session_text);
	conn_arg(&r, ask ? "1" : "0", 1);
	op->sent = lease_clock();
	call_send(m, F_MAKE, r, got_make, op);
}

/* Directories are spread over the shards by their name; files live with the directory. */
static unsigned shard_for(struct op *op)
{
	unsigned shards = op->m->volume.shards;
	if (shards == 1 || !S_ISDIR(op->make.mode))
		return silt_ino_shard(op->dir);
	uint64_t mix = record_place(op->name, op->len) ^ (op->dir * 0x9e3779b97f4a7c15u);
	return (unsigned)((mix ^ mix >> 29) % shards);
}

void op_with_sequence(struct op *op)
{
	unsigned shard = shard_for(op);
	if (op->fn == F_TMPFILE) {
		submit_tmpfile(op);
		return;
	}
	if (shard != silt_ino_shard(op->dir))
		tx_make_dir(op, shard);
	else
		submit_make(op);
}

void op_other_sequence(struct op *op)
{
	unsigned shard = shard_for(op);
	silt_warn(op->m->log, "inode number %llu is in use: redis has lost its last changes",
	          (unsigned long long)silt_ino_make(shard, op->seq));
	sequence_forget(op->m, shard);
	sequence_take(op->m, shard, op);
}

void meta_make(struct meta *m, silt_ino dir, const char *name, size_t len,
               const struct meta_make *how, meta_done done, void *arg)
{
	size_t target_len = S_ISLNK(how->mode) ? how->target_len : 0;
	struct op *op = op_new(m, F_MAKE, name, len, NULL, 0, target_len, done, arg);
	if (!op)
		return;
	if (!record_kind(how->mode) || (S_ISLNK(how->mode) && target_len == 0)) {
		op_fail(op, -EINVAL);
		return;
	}
	if (target_len > SILT_SYMLINK_MAX) {
		op_fail(op, -ENAMETOOLONG);
		return;
	}
	op->dir = dir;
	op->make = *how;
	op->make.target = op->text + len;
	op->make.target_len = target_len;
	if (target_len)
		memcpy(op->text + len, how->target, target_len);
	sequence_take(m, shard_for(op), op);
}

/* --- link --- */

static void got_link(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	if (r.err == -EAGAIN) {
		tx_again(op);
		return;
	}
	lease_note_name(op->m, op->dir, op->name, op->len, false);
	if (!r.err)
		r.err = reply_inode(op->m, op->ino, reply_at(reply, 1), &r.inode);
	if (!r.err)
		take_dir(op, reply_at(reply, 2), &r);
	op_end(op, &r);
}

static void submit_link(struct op *op)
{
	struct conn_request *r =
	        call_begin(op->m, silt_ino_shard(op->dir), F_LINK, 7, op->len + 40);
	next_tx(op->m, op->tx);
	conn_arg_u64(&r, silt_ino_seq(op->ino));
	conn_arg_u64(&r, silt_ino_seq(op->dir));
	conn_arg(&r, op->name, op->len);
	call_arg_time(&r, op->now);
	conn_arg_u64(&r, op->m->fill);
	lease_note_name(op->m, op->dir, op->name, op->len, false);
	conn_arg_str(&r, op->m->session_text);
	conn_arg_str(&r, op->tx);
	call_send(op->m, F_LINK, r, got_link, op);
}

void meta_link(struct meta *m, silt_ino ino, silt_ino dir, const char *name, size_t len,
               struct silt_time now, meta_done done, void *arg)
{
	struct op *op = op_new(m, F_LINK, name, len, NULL, 0, 0, done, arg);
	if (!op)
		return;
	op->ino = ino;
	op->dir = dir;
	op->now = now;
	if (silt_ino_shard(ino) != silt_ino_shard(dir))
		tx_link(op);
	else
		submit_link(op);
}

/* --- unlink, rmdir --- */

static void end_unlink(struct op *op, redisReply *reply)
{
	struct meta_reply r = { 0 };
	const redisReply *entry = reply_at(reply, 1), *record = reply_at(reply, 2);
	uint32_t type;
	silt_ino ino = 0;
	bool moving;
	bool good = entry && record_entry_decode(silt_ino_shard(op->dir), entry->str, entry->len,
	                                         &type, &ino, &moving) == 0;
	if (good) {
		r.inode.attr.ino = ino;
		if (record && record->len)
			record_decode(ino, record->str, record->len, &r.inode, NULL, NULL);
	} else if (reply->elements > 3) { /* not the answer to one that was sent again */
		silt_warn(op->m->log,
		          "entry \"%.*s\" of directory %llu was damaged and is removed; the inode "
		          "that it named is left, if there is one",
		          (int)op->len, op->name, (unsigned long long)op->dir);
	}
	take_dir(op, reply_at(reply, 3), &r);
	op_end(op, &r);
}

static void got_unlink(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	long long code = 0;
	r.err = reply_code(op->m, op->fn, err, reply, &code);
	if (r.err == -EAGAIN)
		tx_again(op);
	else if (r.err)
		op_end(op, &r);
	else if (code == 2)
		frozen_check(op, reply);
	else if (code == 1)
		tx_drop(op, silt_ino_shard(op->dir), reply_at(reply, 1), &r);
	else
		end_unlink(op, reply);
}

static void submit_unlink(struct op *op)
{
	struct meta *m = op->m;
	struct conn_request *r = call_begin(m, silt_ino_shard(op->dir), F_UNLINK, 7, op->len + 40);
	next_tx(m, op->tx);
	conn_arg_u64(&r, silt_ino_seq(op->dir));
	conn_arg(&r, op->name, op->len);
	conn_arg_str(&r, op->keep ? m->session_text : "");
	call_arg_time(&r, op->now);
	conn_arg_u64(&r, m->fill);
	conn_arg_str(&r, op->tx);
	conn_arg(&r, op->checked, op->nchecked);
	call_send(m, F_UNLINK, r, got_unlink, op);
}

void meta_unlink(struct meta *m, silt_ino dir, const char *name, size_t len, bool keep_open,
                 struct silt_time now, meta_done done, void *arg)
{
	struct op *op = op_new(m, F_UNLINK, name, len, NULL, 0, 0, done, arg);
	if (!op)
		return;
	op->dir = dir;
	op->keep = keep_open && m->session;
	op->now = now;
	submit_unlink(op);
}

static void got_rmdir(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	r.err = reply_code(op->m, op->fn, err, reply, NULL);
	if (r.err == -EAGAIN)
		tx_again(op);
	else if (r.err == -EXDEV)
		tx_rmdir(op);
	else {
		if (!r.err)
			take_dir(op, reply_at(reply, 1), &r);
		op_end(op, &r);
	}
}

static void submit_rmdir(struct op *op)
{
	struct conn_request *r =
	        call_begin(op->m, silt_ino_shard(op->dir), F_RMDIR, 5, op->len + 40);
	next_tx(op->m, op->tx);
	conn_arg_u64(&r, silt_ino_seq(op->dir));
	conn_arg(&r, op->name, op->len);
	call_arg_time(&r, op->now);
	conn_arg_u64(&r, op->m->fill);
	conn_arg_str(&r, op->tx);
	call_send(op->m, F_RMDIR, r, got_rmdir, op);
}

void meta_rmdir(struct meta *m, silt_ino dir, const char *name, size_t len, struct silt_time now,
                meta_done done, void *arg)
{
	struct op *op = op_new(m, F_RMDIR, name, len, NULL, 0, 0, done, arg);
	if (!op)
		return;
	op->dir = dir;
	op->now = now;
	submit_rmdir(op);
}

/* --- rename --- */

static void got_rename(void *arg, int err, redisReply *reply)
{
	struct op *op = arg;
	struct meta_reply r = { 0 };
	long long code = 0;
	uint32_t type;
	silt_ino ino = 0;
	bool moving;
	unsigned shard = silt_ino_shard(op->dir);
	r.err = reply_code(op->m, op->fn, err, reply, &code);
	if (r.err == -EAGAIN) {
		tx_again(op);
		return;
	}
	if (r.err == -EXDEV) {
		tx_rename(op);
		return;
	}
	if (r.err) {
		op_end(op, &r);
		return;
	}
	if (code == 2) {
		frozen_check(op, reply);
		return;
	}
	const redisReply *gone = reply_at(reply, 3), *gone_record = reply_at(reply, 4);
	struct silt_inode old;
	lease_note_name(op->m, op->dir2, op->name2, op->len2, false);
	if (op->flags & META_RENAME_EXCHANGE)
		lease_note_name(op->m, op->dir, op->name, op->len, false);
	if (gone && gone->len &&
	    !record_entry_decode(shard, gone->str, gone->len, &type, &ino, &moving)) {
		r.replaced = ino;
		if (gone_record && gone_record->len &&
		    !record_decode(ino, gone_record->str, gone_record->len, &old, NULL, NULL))
			r.replaced_nlink = old.attr.nlink;
	}
	const redisReply *entry = reply_at(reply, 1), *record = reply_at(reply, 2);
	const redisReply *back = reply_at(reply, 5);
	op->nothing = code == 3;
	if (back && back->len && !record_entry_decode(shard, back->str, back->len, &type, &ino, &moving) &&
	    silt_ino_shard(ino) < op->m->volume.shards)
		touch_moved(op, ino, op->dir, ignore_moved, op->m);
	if (code == 1) {
		if (entry &&
		    !record_entry_decode(shard, entry->str, entry->len, &type, &ino, &moving)) {
			r.inode.attr.ino =
			        ino; /* tx_drop fetches the rest of it if it is elsewhere */
			if (record && record->len)
				record_decode(ino, record->str, record->len, &r.inode, NULL, NULL);
		}
		tx_drop(op, shard, gone, &r);
		return;
	}
	end_with_entry(op, entry, record, &r);
}

static void submit_rename(struct op *op)
{
	struct meta *m = op->m;
	struct conn_request *r =
	        call_begin(m, silt_ino_shard(op->dir), F_RENAME, 12, op->len + op->len2 + 64u);
	next_tx(m, op->tx);
	conn_arg_u64(&r, silt_ino_seq(op->dir));
	conn_arg(&r, op->name, op->len);
	conn_arg_u64(&r, silt_ino_seq(op->dir2));
	conn_arg(&r, op->name2, op->len2);
	conn_arg_u64(&r, op->flags);
	conn_arg_str(&r, op->keep ? m->session_text : "");
	call_arg_time(&r, op->now);
	conn_arg_u64(&r, m->fill);
	conn_arg_str(&r, op->tx);
	conn_arg(&r, m->volume.shards > 1 ? "1" : "0", 1);
	lease_note_name(m, op->dir2, op->name2, op->len2, false);
	if (op->flags & META_RENAME_EXCHANGE)
		lease_note_name(m, op->dir, op->name, op->len, false);
	conn_arg_str(&r, m->session_text);
	conn_arg(&r, op->checked, op->nchecked);
	call_send(m, F_RENAME, r, got_rename, op);
}

void meta_rename(struct meta *m, silt_ino from_dir, const char *from, size_t from_len,
                 silt_ino to_dir, const char *to, size_t to_len, unsigned flags, bool keep_open,
                 struct silt_time now, meta_done done, void *arg)
{
	struct op *op = op_new(m, F_RENAME, from, from_len, to, to_len, 0, done, arg);
	if (!op)
		return;
	op->dir = from_dir;
	op->dir2 = to_dir;
	op->flags = flags;
	op->keep = keep_open && m->session;
	op->now = now;
	if (flags & ~3u || flags == 3)
		op_fail(op, -EINVAL);
	else if (silt_ino_shard(from_dir) != silt_ino_shard(to_dir))
		tx_rename(op);
	else
		submit_rename(op);
}

/* --- another try --- */

void op_resubmit(struct op *op)
{
	switch (op->fn) {
	case F_LOOKUP: submit_lookup(op); break;
	case F_MAKE: submit_make(op); break;
	case F_LINK: submit_link(op); break;
	case F_UNLINK: submit_unlink(op); break;
	case F_RMDIR: submit_rmdir(op); break;
	case F_RENAME:
		if (silt_ino_shard(op->dir) != silt_ino_shard(op->dir2))
			tx_rename(op);
		else
			submit_rename(op);
		break;
	default: op_fail(op, -EIO);
	}
}
