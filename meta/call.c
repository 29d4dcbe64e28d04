/* Requests to the server-side functions and what their replies mean. */
#include "meta/engine.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[F_COUNT] = {
#define X(id, name) [id] = name,
	META_FUNCTIONS(X)
#undef X
};

static const char *const function_names[F_COUNT] = {
#define X(id, name) [id] = "silt1_" name,
	META_FUNCTIONS(X)
#undef X
};

const char *meta_function_name(unsigned kind)
{
	return kind < F_COUNT ? names[kind] : NULL;
}

bool function_writes(enum meta_function fn)
{
	switch (fn) {
	case F_LOOKUP:
	case F_GETATTR:
	case F_READLINK:
	case F_WINDOW:
	case F_WINDOWS:
	case F_NEXT_WINDOW:
	case F_READDIR:
	case F_STATFS:
	case F_SESSION_LIST:
	case F_GARBAGE_PEEK:
	case F_FOLD_LIST:
	case F_DEAD_PACKS:
	case F_NOTED_PACKS:
	case F_EXTENTS:
	case F_DICTIONARY:
	case F_COUNT_PACKS:
	case F_LIMITS:
	case F_INODES:
	case F_LIVE:
	case F_GARBAGE:
	case F_GETXATTR:
	case F_LISTXATTR:
	case F_LOCK_GET:
	case F_LOCK_BLOCKERS:
	case F_DELETED:
	case F_COVER: return false;
	default: return true;
	}
}

int check_name(const char *name, size_t len)
{
	if (len > SILT_NAME_MAX)
		return -ENAMETOOLONG;
	if (len == 0 || memchr(name, '/', len) || memchr(name, '\0', len))
		return -EINVAL;
	if ((len == 1 && name[0] == '.') || (len == 2 && name[0] == '.' && name[1] == '.'))
		return -EINVAL;
	return 0;
}

struct op *op_new(struct meta *m, enum meta_function fn, const char *name, size_t len, const char *name2,
		  size_t len2, size_t extra, meta_done done, void *arg)
{
	struct op *op = NULL;
	int err = name ? check_name(name, len) : 0;
	if (!err && name2)
		err = check_name(name2, len2);
	if (!err && !(op = malloc(sizeof(*op) + len + len2 + extra + 2)))
		err = -ENOMEM;
	if (err) {
		struct meta_reply r = { .err = err };
		done(arg, &r);
		return NULL;
	}
	memset(op, 0, sizeof(*op));
	op->m = m;
	op->fn = fn;
	op->done = done;
	op->arg = arg;
	op->len = (uint16_t)len;
	op->len2 = (uint16_t)len2;
	op->name = op->text;
	op->name2 = op->text + len;
	if (len)
		memcpy(op->text, name, len);
	if (len2)
		memcpy(op->text + len, name2, len2);
	return op;
}

void op_end(struct op *op, struct meta_reply *r)
{
	if (op->m->cfg.relaxed && function_writes(op->fn))
		relaxed_changed(op, r);
	op->done(op->arg, r);
	free(op);
}

void op_fail(struct op *op, int err)
{
	struct meta_reply r = { .err = err };
	op_end(op, &r);
}

struct conn_request *call_begin(struct meta *m, unsigned shard, enum meta_function fn, int args, size_t hint)
{
	bool writes = function_writes(fn);
	char key[16];
	struct conn_request *r = conn_begin(4 + args + writes, fn, 96 + hint);
	(void)m;
	conn_arg_str(&r, writes ? "FCALL" : "FCALL_RO");
	conn_arg_str(&r, function_names[fn]);
	conn_arg(&r, "1", 1);
	int n = snprintf(key, sizeof(key), "{%u}", shard);
	conn_arg(&r, key, (size_t)n);
	return r;
}

void call_send(struct meta *m, enum meta_function fn, struct conn_request *r, conn_done done, void *arg)
{
	bool writes = function_writes(fn);
	if (writes)
		conn_arg(&r, "0", 1);
	conn_send(m->conn, r, writes, done, arg);
}

void call_arg_time(struct conn_request **r, struct silt_time t)
{
	uint8_t b[RECORD_TIME];
	record_time_encode(t, b);
	conn_arg(r, b, sizeof(b));
}

void call_arg_write_time(struct conn_request **r, struct silt_time t, bool drop_suid)
{
	uint8_t b[RECORD_TIME + 1];
	record_time_encode(t, b);
	b[RECORD_TIME] = '-';
	conn_arg(r, b, RECORD_TIME + drop_suid);
}

/* What an error reply of Redis means to the caller of a file operation. */
static int error_reply(struct meta *m, enum meta_function fn, const char *text)
{
	static const struct {
		const char *prefix;
		int err;
	} map[] = {
		{ "OOM", -ENOSPC },	      { "DAMAGED", -EIO }, { "NOPERM", -EACCES },
		{ "NOAUTH", -EACCES },
	};
	int err = -EIO;
	for (size_t i = 0; i < sizeof(map) / sizeof(*map); i++)
		if (!strncmp(text, map[i].prefix, strlen(map[i].prefix)))
			err = map[i].err;
	if (!strncmp(text, "DAMAGED", 7))
		silt_count(m->metrics, M_META_DAMAGED, 1);
	silt_error(m->log, "redis answers %s with: %s", names[fn], text);
	return err;
}

int reply_code(struct meta *m, enum meta_function fn, int err, const redisReply *reply, long long *code)
{
	if (err)
		return err;
	if (reply->type == REDIS_REPLY_INTEGER && reply->integer < 0 && reply->integer > -4096)
		return (int)reply->integer;
	if (reply->type == REDIS_REPLY_ERROR)
		return error_reply(m, fn, reply->str);
	if (reply->type != REDIS_REPLY_ARRAY || reply->elements < 1 ||
	    reply->element[0]->type != REDIS_REPLY_INTEGER) {
		silt_error(m->log, "redis answers %s with something unknown", names[fn]);
		return -EIO;
	}
	if (code)
		*code = reply->element[0]->integer;
	return 0;
}

const redisReply *reply_at(const redisReply *reply, size_t i)
{
	if (i >= reply->elements || reply->element[i]->type != REDIS_REPLY_STRING)
		return NULL;
	return reply->element[i];
}

uint64_t reply_number(const redisReply *reply, size_t i)
{
	if (i >= reply->elements || reply->element[i]->type != REDIS_REPLY_INTEGER ||
	    reply->element[i]->integer < 0)
		return 0;
	return (uint64_t)reply->element[i]->integer;
}

int reply_inode(struct meta *m, silt_ino ino, const redisReply *s, struct silt_inode *out)
{
	if (s && s->len == 0) {
		silt_error(m->log, "inode %llu is named by a directory but is not there; fsck finds such names",
			   (unsigned long long)ino);
		silt_count(m->metrics, M_META_DAMAGED, 1);
		return -EIO;
	}
	if (!s || record_decode(ino, s->str, s->len, out, NULL, NULL)) {
		silt_error(m->log, "the record of inode %llu is damaged", (unsigned long long)ino);
		silt_count(m->metrics, M_META_DAMAGED, 1);
		return -EIO;
	}
	return 0;
}

void next_tx(struct meta *m, char out[40])
{
	snprintf(out, 40, "%s.%llx", m->session_text,
		 (unsigned long long)atomic_fetch_add(&m->tx_counter, 1));
}

/* --- blocking form --- */

struct waiter {
	struct silt_lock lock;
	struct silt_cond cond;
	bool ready;
	int err;
	redisReply *reply;
};

/* hiredis replies can't be copied, and the connection frees its own: take the parts over. */
static redisReply *take_reply(redisReply *reply)
{
	redisReply *mine = malloc(sizeof(*mine));
	if (!mine)
		return NULL;
	*mine = *reply;
	memset(reply, 0, sizeof(*reply));
	reply->type = REDIS_REPLY_NIL;
	return mine;
}

static void waiter_done(void *arg, int err, redisReply *reply)
{
	struct waiter *w = arg;
	silt_lock(&w->lock);
	w->err = err;
	if (!err && !(w->reply = take_reply(reply)))
		w->err = -ENOMEM;
	w->ready = true;
	silt_cond_signal(&w->cond);
	silt_unlock(&w->lock);
}

int call_wait(struct meta *m, enum meta_function fn, struct conn_request *r, redisReply **out)
{
	struct waiter w = { 0 };
	silt_lock_init(&w.lock);
	silt_cond_init(&w.cond);
	if (fn == F_COMMAND)
		conn_send(m->conn, r, false, waiter_done, &w);
	else
		call_send(m, fn, r, waiter_done, &w);
	silt_lock(&w.lock);
	while (!w.ready)
		silt_cond_wait(&w.cond, &w.lock);
	silt_unlock(&w.lock);
	silt_lock_destroy(&w.lock);
	silt_cond_destroy(&w.cond);
	*out = w.reply;
	return w.err;
}

int call_checked(struct meta *m, enum meta_function fn, struct conn_request *r, redisReply **out,
		 long long *code)
{
	*out = NULL;
	int rc = call_wait(m, fn, r, out);
	return reply_code(m, fn, rc, *out, code);
}
