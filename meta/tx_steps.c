/* The steps of operations across shards: one blocking call each. */
#include "meta/tx.h"

#include <errno.h>
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
	int rc = call_step(m, F_LOOKUP, r, &reply, NULL);
	if (!rc)
		rc = take_entry(m, dir, reply_at(reply, 1), out);
	done_with(reply);
	return rc;
}

int step_mark(struct meta *m, const char *tx, const struct intent *i, silt_ino dir, const char *name,
	      size_t len, struct entry *out)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(dir), F_X_MARK, 4, len + i->len + 64);
	redisReply *reply = NULL;
	conn_arg_str(&r, tx);
	conn_arg(&r, i->v, i->len);
	conn_arg_u64(&r, silt_ino_seq(dir));
	conn_arg(&r, name, len);
	int rc = call_step(m, F_X_MARK, r, &reply, NULL);
	if (!rc)
		rc = take_entry(m, dir, reply_at(reply, 1), out);
	done_with(reply);
	return rc;
}

int step_unmark(struct meta *m, const char *tx, silt_ino dir, const char *name, size_t len, bool remove,
		struct silt_time now)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(dir), F_X_UNMARK, 6, len + 64);
	redisReply *reply = NULL;
	conn_arg_str(&r, tx);
	conn_arg_u64(&r, silt_ino_seq(dir));
	conn_arg(&r, name, len);
	conn_arg(&r, remove ? "1" : "0", 1);
	call_arg_time(&r, now);
	conn_arg_u64(&r, m->fill);
	int rc = call_step(m, F_X_UNMARK, r, &reply, NULL);
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
	int rc = call_step(m, F_X_ADD_ENTRY, r, &reply, NULL);
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

int step_end(struct meta *m, const char *tx, silt_ino ino, bool ok, struct silt_time now,
	     struct silt_inode *inode)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_X_END, 4, 64);
	redisReply *reply = NULL;
	conn_arg_str(&r, tx);
	conn_arg_u64(&r, silt_ino_seq(ino));
	conn_arg(&r, ok ? "1" : "0", 1);
	call_arg_time(&r, now);
	int rc = call_step(m, F_X_END, r, &reply, NULL);
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
	int rc = call_step(m, F_X_RMDIR, r, &reply, NULL);
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

int step_moved(struct meta *m, silt_ino ino, silt_ino parent, struct silt_time now, struct silt_inode *inode)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(ino), F_X_MOVED, 4, 64);
	redisReply *reply = NULL;
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

int step_insert(struct meta *m, const struct insert_args *a, int *code, struct entry *old,
		struct silt_inode *old_inode)
{
	struct conn_request *r = call_begin(m, silt_ino_shard(a->dir), F_X_INSERT, 14, a->len + 128);
	redisReply *reply = NULL;
	long long c = 0;
	conn_arg_str(&r, a->tx);
	conn_arg_u64(&r, silt_ino_seq(a->dir));
	conn_arg(&r, a->name, a->len);
	conn_arg_u64(&r, record_kind(a->moved->type));
	conn_arg_u64(&r, silt_ino_shard(a->moved->ino));
	conn_arg_u64(&r, silt_ino_seq(a->moved->ino));
	conn_arg(&r, a->noreplace ? "1" : "0", 1);
	conn_arg_str(&r, a->keep ? m->session_text : "");
	conn_arg(&r, a->gone->v, a->gone->len);
	call_arg_time(&r, a->now);
	conn_arg_u64(&r, m->fill);
	conn_arg_str(&r, a->drop_tx);
	lease_note_name(m, a->dir, a->name, a->len, false);
	conn_arg_str(&r, m->session_text);
	conn_arg(&r, a->checked->v, a->checked->len);
	int rc = call_step(m, F_X_INSERT, r, &reply, &c);
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

int step_intents(struct meta *m, unsigned shard, redisReply **out)
{
	*out = NULL;
	return call_step(m, F_X_INTENTS, call_begin(m, shard, F_X_INTENTS, 0, 0), out, NULL);
}
