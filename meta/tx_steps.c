/* The steps of operations across shards: one blocking call each. */
#include "meta/tx.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/varint.h"

/* --- intents --- */

void intent_begin(struct intent *i, char kind)
{
	i->v[0] = (uint8_t)kind;
	i->len = 1;
}

void intent_add(struct intent *i, const void *data, size_t len)
{
	assert(i->len + len + 10 <= INTENT_MAX);
	uint8_t *p = silt_put_varint(i->v + i->len, len);
	memcpy(p, data, len);
	i->len = (size_t)(p - i->v) + len;
}

void intent_add_u64(struct intent *i, uint64_t v)
{
	uint8_t b[8];
	silt_put_le(b, v, 8);
	intent_add(i, b, sizeof(b));
}

int intent_split(const char *text, size_t len, struct intent_field f[INTENT_FIELDS])
{
	struct silt_reader r = silt_reader_of(text + 1, len - 1);
	int n = 0;
	while (silt_left(&r) && n < INTENT_FIELDS) {
		f[n].len = silt_get_varint(&r);
		f[n].p = (const char *)silt_get_bytes(&r, f[n].len);
		n++;
	}
	return r.bad || silt_left(&r) ? -EUCLEAN : n;
}

uint64_t intent_u64(const struct intent_field *f)
{
	struct silt_reader r = silt_reader_of(f->p, f->len);
	return silt_get_le(&r, 8);
}

/* --- calls --- */

static void done_with(redisReply *reply)
{
	if (reply)
		freeReplyObject(reply);
}

/* Like call_checked(), but tells apart what Redis refused and what it may or may not have done. */
static int call_step(struct meta *m, enum meta_function fn, struct conn_request *r, redisReply **reply,
		     long long *code)
{
	int rc = call_checked(m, fn, r, reply, code);
	return rc && !*reply ? -ENOTCONN : rc;
}

/* Takes a step that decides: what Redis refused to do, or does not understand, is decided too. */
static int call_decides(struct meta *m, enum meta_function fn, unsigned shard, const char *tx,
			const struct place *p, struct conn_request *r, redisReply **reply, long long *code)
{
	int rc = call_step(m, fn, r, reply, code);
	if (rc == 0 || rc == -ENOTCONN || (*reply)->type == REDIS_REPLY_INTEGER)
		return rc;
	done_with(*reply);
	return step_refuse(m, shard, tx, rc, p, reply, code);
}

int step_refuse(struct meta *m, unsigned shard, const char *tx, int err, const struct place *p,
		redisReply **out, long long *code)
{
	struct conn_request *r = call_begin(m, shard, F_X_REFUSE, 5, 64 + (p ? p->len : 0));
	redisReply *reply = NULL;
	char text[16];
	snprintf(text, sizeof(text), "%d", err);
	conn_arg_str(&r, tx);
	conn_arg_str(&r, text);
	conn_arg_u64(&r, p ? silt_ino_seq(p->dir) : 0);
	conn_arg(&r, p ? p->name : "", p ? p->len : 0);
	conn_arg(&r, p && p->stays ? "1" : "0", 1);
	int rc = call_step(m, F_X_REFUSE, r, &reply, code);
	/* An error reply says nothing about what others decide. */
	if (rc && reply && reply->type != REDIS_REPLY_INTEGER)
		rc = -ENOTCONN;
	if (out)
		*out = reply;
	else
		done_with(reply);
	return rc;
}

static int take_entry(struct meta *m, silt_ino dir, const redisReply *s, struct entry *out)
{
	bool moving;
	if (!s || s->len > sizeof(out->v) ||
	    record_entry_decode(silt_ino_shard(dir), s->str, s->len, &out->type, &out->ino, &moving)) {
		silt_error(m->log, "a directory entry in inode %llu is damaged", (unsigned long long)dir);
		return -EIO;
	}
	memcpy(out->v, s->str, s->len);
	out->v[0] &= 0x7f;
	out->len = s->len;
	return 0;
}

int step_getattr(struct meta *m, silt_ino ino, struct silt_inode *out)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_GETATTR, 1, 0);
	redisReply *reply = NULL;
	conn_arg_u64(&r, silt_ino_seq(ino));
	int rc = call_step(m, F_GETATTR, r, &reply, NULL);
	if (!rc)
		rc = reply_inode(m, ino, reply_at(reply, 1), out);
	done_with(reply);
	return rc;
}

int step_may_go(struct meta *m, silt_ino ino)
{
	struct silt_inode i;
	int rc = step_getattr(m, ino, &i);
	if (rc)
		return rc == -ENOENT ? 0 : rc;
	return i.attr.flags & (SILT_FLAG_IMMUTABLE | SILT_FLAG_APPEND) ? -EPERM : 0;
}

int step_default_acl(struct meta *m, silt_ino dir, redisReply **out)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(dir), F_GETXATTR, 2, 0);
	conn_arg_u64(&r, silt_ino_seq(dir));
	conn_arg_str(&r, META_XATTR_DEFAULT_ACL);
	int rc = call_step(m, F_GETXATTR, r, out, NULL);
	if (rc) {
		done_with(*out);
		*out = NULL;
	}
	return rc;
}

int step_entry(struct meta *m, silt_ino dir, const char *name, size_t len, struct entry *out)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(dir), F_LOOKUP, 2, len);
	redisReply *reply = NULL;
	conn_arg_u64(&r, silt_ino_seq(dir));
	conn_arg(&r, name, len);
	long long code = 0;
	int rc = call_step(m, F_LOOKUP, r, &reply, &code);
	if (!rc)
		rc = code < 0 ? (int)code : take_entry(m, dir, reply_at(reply, 2), out);
	done_with(reply);
	return rc;
}

int step_mark(struct meta *m, const char *tx, const struct intent *i, silt_ino dir, const char *name,
	      size_t len, struct entry *out)
{
	size_t n = i ? i->len : 0;
	struct conn_request *r = call_begin(m, silt_ino_shard(dir), F_X_MARK, 4, len + n + 64);
	redisReply *reply = NULL;
	conn_arg_str(&r, tx);
	conn_arg(&r, i ? (const char *)i->v : "", n);
	conn_arg_u64(&r, silt_ino_seq(dir));
	conn_arg(&r, name, len);
	int rc = call_step(m, F_X_MARK, r, &reply, NULL);
	if (!rc)
		rc = take_entry(m, dir, reply_at(reply, 1), out);
	done_with(reply);
	return rc;
}

static void arg_entry(struct conn_request **r, const struct entry *e)
{
	conn_arg_u64(r, record_kind(e->type));
	conn_arg_u64(r, silt_ino_shard(e->ino));
	conn_arg_u64(r, silt_ino_seq(e->ino));
}

int step_unmark(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len,
		enum entry_end end, const struct entry *instead, struct silt_time now, bool *seen)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(dir), F_X_UNMARK, 9, len + 64);
	redisReply *reply = NULL;
	long long code = 0;
	conn_arg_str(&r, tx);
	conn_arg_u64(&r, silt_ino_seq(dir));
	conn_arg(&r, name, len);
	conn_arg_u64(&r, end);
	call_arg_time(&r, now);
	conn_arg_u64(&r, m->fill);
	arg_entry(&r, end == ENTRY_REPLACED ? instead : &(struct entry){ .type = S_IFREG });
	int rc = call_step(m, F_X_UNMARK, r, &reply, &code);
	*seen |= code != 0;
	done_with(reply);
	return rc;
}

int step_add_entry(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len,
		   uint32_t type, silt_ino ino, struct silt_time now)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(dir), F_X_ADD_ENTRY, 9, len + 64);
	redisReply *reply = NULL;
	conn_arg_str(&r, tx);
	conn_arg_u64(&r, silt_ino_seq(dir));
	conn_arg(&r, name, len);
	conn_arg_u64(&r, record_kind(type));
	conn_arg_u64(&r, silt_ino_shard(ino));
	conn_arg_u64(&r, silt_ino_seq(ino));
	call_arg_time(&r, now);
	conn_arg_u64(&r, m->fill);
	lease_note_name(m, dir, name, len, false);
	conn_arg_str(&r, m->session_text);
	int rc = call_decides(m, F_X_ADD_ENTRY, silt_ino_shard(dir), tx, NULL, r, &reply, NULL);
	lease_note_name(m, dir, name, len, false);
	done_with(reply);
	return rc;
}

/* Takes the inode of a reply's second element, if there is one. */
static int maybe_inode(struct meta *m, silt_ino ino, const redisReply *reply, size_t i,
		       struct silt_inode *inode)
{
	const redisReply *s = reply_at(reply, i);
	if (!inode || !s || s->len == 0)
		return 0;
	return reply_inode(m, ino, s, inode);
}

int step_end(struct meta *m, const char *tx, silt_ino ino, bool ok, struct silt_time now, bool *seen,
	     struct silt_inode *inode)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_X_END, 4, 64);
	redisReply *reply = NULL;
	conn_arg_str(&r, tx);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg(&r, ok ? "1" : "0", 1);
	call_arg_time(&r, now);
	long long code = 0;
	int rc = call_step(m, F_X_END, r, &reply, &code);
	*seen |= code != 0;
	if (!rc)
		rc = maybe_inode(m, ino, reply, 1, inode);
	done_with(reply);
	return rc;
}

int step_rmdir(struct meta *m, const char *tx, silt_ino ino)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_X_RMDIR, 2, 64);
	redisReply *reply = NULL;
	conn_arg_str(&r, tx);
	conn_arg_u64(&r, silt_ino_seq(ino));
	int rc = call_decides(m, F_X_RMDIR, silt_ino_shard(ino), tx, NULL, r, &reply, NULL);
	done_with(reply);
	return rc;
}

int step_drop(struct meta *m, const char *tx, silt_ino ino, bool keep, struct silt_time now,
	      struct silt_inode *inode)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_X_DROP, 4, 64);
	redisReply *reply = NULL;
	conn_arg_str(&r, tx);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg_str(&r, keep ? m->session_text : "");
	call_arg_time(&r, now);
	int rc = call_step(m, F_X_DROP, r, &reply, NULL);
	if (!rc)
		rc = maybe_inode(m, ino, reply, 1, inode);
	done_with(reply);
	return rc;
}

int step_moved(struct meta *m, const char *tx, silt_ino ino, silt_ino parent, struct silt_time now,
	       struct silt_inode *inode)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_X_MOVED, 5, 128);
	redisReply *reply = NULL;
	conn_arg_str(&r, tx);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg_u64(&r, silt_ino_shard(parent));
	conn_arg_u64(&r, silt_ino_seq(parent));
	call_arg_time(&r, now);
	int rc = call_step(m, F_X_MOVED, r, &reply, NULL);
	if (!rc)
		rc = maybe_inode(m, ino, reply, 1, inode);
	done_with(reply);
	return rc;
}

int step_by_tx(struct meta *m, enum meta_function fn, unsigned shard, const char *tx)
{
	struct conn_request *r = call_begin(m, shard, fn, 1, 64);
	redisReply *reply = NULL;
	conn_arg_str(&r, tx);
	int rc = call_step(m, fn, r, &reply, NULL);
	done_with(reply);
	return rc;
}

int step_forget(struct meta *m, unsigned shard, const char *tx, bool *seen)
{
	struct conn_request *r = call_begin(m, shard, F_X_FORGET, 1, 64);
	redisReply *reply = NULL;
	long long code = 0;
	conn_arg_str(&r, tx);
	int rc = call_step(m, F_X_FORGET, r, &reply, &code);
	*seen |= code != 0;
	done_with(reply);
	return rc;
}

void step_clear(struct meta *m, unsigned shard, const char *tx, bool seen)
{
	struct conn_request *r = call_begin(m, shard, F_X_CLEAR, 2, 64);
	redisReply *reply = NULL;
	conn_arg_str(&r, tx);
	conn_arg(&r, seen ? "1" : "0", 1);
	call_step(m, F_X_CLEAR, r, &reply, NULL);
	done_with(reply);
}

int step_aim(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len,
	     const struct entry *moved, struct entry *out)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(dir), F_X_AIM, 6, len + 96);
	redisReply *reply = NULL;
	long long code = 0;
	conn_arg_str(&r, tx);
	conn_arg_u64(&r, silt_ino_seq(dir));
	conn_arg(&r, name, len);
	arg_entry(&r, moved);
	int rc = call_step(m, F_X_AIM, r, &reply, &code);
	out->len = 0;
	if (!rc && code == 0)
		rc = take_entry(m, dir, reply_at(reply, 1), out);
	done_with(reply);
	return rc;
}

int step_insert(struct meta *m, const struct insert_args *a, int *code, struct entry *old,
		struct silt_inode *old_inode)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(a->dir), F_X_INSERT, 14, a->len + 128);
	redisReply *reply = NULL;
	long long c = 0;
	conn_arg_str(&r, a->tx);
	conn_arg_u64(&r, silt_ino_seq(a->dir));
	conn_arg(&r, a->name, a->len);
	arg_entry(&r, a->moved);
	conn_arg(&r, a->noreplace ? "1" : "0", 1);
	conn_arg_str(&r, a->keep ? m->session_text : "");
	conn_arg(&r, a->gone->v, a->gone->len);
	call_arg_time(&r, a->now);
	conn_arg_u64(&r, m->fill);
	conn_arg_str(&r, a->drop_tx);
	lease_note_name(m, a->dir, a->name, a->len, false);
	conn_arg_str(&r, m->session_text);
	conn_arg(&r, a->checked->v, a->checked->len);
	struct place p = { a->dir, a->name, a->len, false };
	int rc = call_decides(m, F_X_INSERT, silt_ino_shard(a->dir), a->tx, &p, r, &reply, &c);
	lease_note_name(m, a->dir, a->name, a->len, false);
	*code = (int)c;
	old->len = 0;
	if (!rc && reply_at(reply, 1) && reply_at(reply, 1)->len) {
		rc = take_entry(m, a->dir, reply_at(reply, 1), old);
		if (!rc)
			rc = maybe_inode(m, old->ino, reply, 2, old_inode);
	}
	done_with(reply);
	return rc;
}

int step_exchange(struct meta *m, const struct rename_args *a, const struct entry *moved,
		  const struct entry *checked, int *code, struct entry *other)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(a->dir2), F_X_EXCHANGE, 9, a->len2 + 128);
	redisReply *reply = NULL;
	long long c = 0;
	conn_arg_str(&r, a->tx);
	conn_arg_u64(&r, silt_ino_seq(a->dir2));
	conn_arg(&r, a->name2, a->len2);
	arg_entry(&r, moved);
	call_arg_time(&r, a->now);
	conn_arg_u64(&r, m->fill);
	conn_arg(&r, checked->v, checked->len);
	struct place p = { a->dir2, a->name2, a->len2, false };
	int rc = call_decides(m, F_X_EXCHANGE, silt_ino_shard(a->dir2), a->tx, &p, r, &reply, &c);
	*code = (int)c;
	other->len = 0;
	if (!rc && c != 2)
		rc = take_entry(m, a->dir2, reply_at(reply, 1), other);
	done_with(reply);
	return rc;
}

int step_take(struct meta *m, unsigned shard, const char *session, const char *died, const char *tx,
	      redisReply **out)
{
	struct conn_request *r = call_begin(m, shard, F_X_TAKE, 3, 64);
	*out = NULL;
	conn_arg_str(&r, session);
	conn_arg_str(&r, died);
	conn_arg_str(&r, tx);
	return call_step(m, F_X_TAKE, r, out, NULL);
}
