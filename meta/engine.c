/* An open volume: connection, session, heartbeat.
 *
 * The heartbeat thread keeps the session alive, takes over what sessions that have expired left behind
 * (open-but-deleted files, unfinished operations across shards), and works the garbage lists off. */
#include "meta/engine.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/cleanup.h"
#include "meta/local.h"

#define HEARTBEAT_MS	 5000
#define HEARTBEATS_MISSED 5
#define TX_LIFE_BITS      40 /* requests of one life of a session: see functions_sent.lua */
#define FILL		 64 /* entries a bucket; at most about twice that before its split comes */
#define FILL_SMALL	 32 /* where hash-max-listpack-entries can't be raised from 128 */

const struct meta_volume *meta_volume(const struct meta *m)
{
	return &m->volume;
}

uint64_t meta_session(const struct meta *m)
{
	return m->session;
}

/* --- connecting --- */

/* Was the session taken for dead while there was no connection? Then it is better to know before the
 * requests that wait are sent. The heartbeat goes on from there. */
static void check_session(struct meta *m, redisContext *c)
{
	if (!m->locks)
		return;
	redisReply *r = redisCommand(c, "HEXISTS {0}S %s", m->session_text);
	redisReply *dead = redisCommand(c, "HGET {0}F %s", m->session_text);
	bool lost = r && r->type == REDIS_REPLY_INTEGER && r->integer == 0;
	lost |= dead && dead->type == REDIS_REPLY_STRING && strstr(dead->str, " 1 ");
	if (lost)
		locks_lost(m);
	if (r)
		freeReplyObject(r);
	if (dead)
		freeReplyObject(dead);
}

/* After a reconnect: the server may be another one (restarted without its data, failed over). */
static int on_connect(void *arg, redisContext *c)
{
	struct meta *m = arg;
	struct silt_err err = { 0 };
	struct meta_volume v = { 0 };
	struct meta_server_info info;
	int rc = volume_load(c, m->cfg.address->shown, &v, &err);
	if (!rc && v.id != m->volume.id)
		rc = silt_fail(&err, -ESTALE, "the volume at %s is another one now", m->cfg.address->shown);
	if (!rc)
		rc = server_check(c, m->cfg.address->shown, &info, &err);
	if (!rc)
		rc = functions_load(c, m->cfg.address->shown, &err);
	meta_volume_free(&v);
	if (rc)
		silt_error(m->log, "%s; trying again", err.text);
	else {
		check_session(m, c);
		cover_connected(m, c);
	}
	return rc;
}

/* A private server that has died is nobody else's to start again. */
static void before_connect(void *arg)
{
	struct meta *m = arg;
	if (m->local)
		meta_local_revive(m->local);
}

static void on_down(void *arg)
{
	leases_forget(arg);
	cover_lost(arg);
}

static void warn_about(struct meta *m, const struct meta_server_info *i)
{
	if (!i->append_only)
		silt_warn(m->log, "redis has its append-only file off: a crash of redis loses metadata; "
			  "set appendonly yes");
	else if (strcmp(i->fsync, "no") == 0)
		silt_warn(m->log, "redis has appendfsync no: a power cut may lose metadata; set everysec or always");
	if (i->policy[0] && strcmp(i->policy, "noeviction") != 0)
		silt_warn(m->log, "redis may evict metadata (maxmemory-policy %s); set noeviction", i->policy);
	if (!i->listpack_set)
		silt_warn(m->log, "redis does not allow CONFIG SET: names longer than %u bytes and full "
			  "buckets take more memory; set hash-max-listpack-value 512 and "
			  "hash-max-listpack-entries 256 in its configuration", i->listpack_value);
}

static int connect_first(struct meta *m, struct silt_err *err)
{
	const struct meta_address *a = m->cfg.address;
	const char *path = m->local ? meta_local_socket(m->local) : NULL;
	struct meta_server_info info;
	redisContext *c = NULL;
	int rc = conn_connect_plain(a, path, 10000, &c, err);
	if (!rc)
		rc = server_check(c, a->shown, &info, err);
	if (!rc)
		rc = volume_load(c, a->shown, &m->volume, err);
	if (!rc)
		rc = functions_load(c, a->shown, err);
	if (!rc) {
		warn_about(m, &info);
		m->fill = info.listpack_entries >= 4 * FILL ? FILL : FILL_SMALL;
		struct conn_config cfg = { .address = a, .socket_path = path, .log = m->log,
					   .metrics = m->metrics, .wait_ms = m->cfg.wait_ms,
					   .before_connect = before_connect,
					   .on_connect = on_connect, .on_connect_arg = m,
					   .on_down = on_down };
		rc = conn_open(&cfg, c, &m->conn);
		if (rc)
			silt_fail(err, rc, "cannot start the connection to redis: %s", strerror(-rc));
	}
	if (rc && c && !m->conn)
		redisFree(c);
	return rc;
}

/* --- the session --- */

/* Registers a session; one that has been taken for dead again, under its number. */
static int open_session(struct meta *m, struct silt_err *err)
{
	struct conn_request *r = call_begin(m, 0, F_SESSION_OPEN, 4, 0);
	redisReply *reply = NULL;
	uint64_t before = m->session;
	conn_arg_str(&r, m->cfg.session_info ? m->cfg.session_info : "{}");
	conn_arg_u64(&r, (uint64_t)m->cfg.heartbeat_ms * HEARTBEATS_MISSED);
	conn_arg_u64(&r, before);
	conn_arg_u64(&r, atomic_load(&m->tx_counter) >> TX_LIFE_BITS << TX_LIFE_BITS);
	int rc = call_checked(m, F_SESSION_OPEN, r, &reply, NULL);
	if (!rc && !before && reply->elements > 1 && reply->element[1]->type == REDIS_REPLY_INTEGER)
		m->session = (uint64_t)reply->element[1]->integer;
	if (reply)
		freeReplyObject(reply);
	if (!before)
		snprintf(m->session_text, sizeof(m->session_text), "%llu", (unsigned long long)m->session);
	if (rc == -EBUSY)
		return silt_fail(err, rc, "the volume is being repaired by siltfs fsck; try again when that has ended");
	if (rc || !m->session)
		return silt_fail(err, rc ? rc : -EIO, "cannot register a session with redis: %s", strerror(-rc));
	return 0;
}

/* From here on Redis can tell us something. Who wants to hear it adds its listener here. */
static int start_push(struct meta *m, struct silt_err *err)
{
	char channel[PUSH_CHANNEL_MAX];
	const char *path = m->local ? meta_local_socket(m->local) : NULL;
	push_channel(m->volume.id, m->session, channel);
	int rc = push_open(m->cfg.address, path, m->log, &m->push);
	if (!rc)
		rc = locks_open(m);
	if (!rc)
		rc = cover_start(m);
	if (!rc)
		rc = push_start(m->push, channel);
	return rc ? silt_fail(err, rc, "cannot start a thread: %s", strerror(-rc)) : 0;
}

static int simple_call(struct meta *m, enum meta_function fn, const char *a, uint64_t b, redisReply **out)
{
	struct conn_request *r = call_begin(m, 0, fn, b ? 2 : 1, 0);
	redisReply *reply = NULL;
	conn_arg_str(&r, a);
	if (b)
		conn_arg_u64(&r, b);
	int rc = call_checked(m, fn, r, &reply, NULL);
	if (out && !rc)
		*out = reply;
	else if (reply)
		freeReplyObject(reply);
	return rc;
}

/* To clean up after many, over many shards, takes long: our own session must not expire meanwhile. */
static void take_over(struct meta *m, const char *dead, uint64_t ttl)
{
	redisReply *reply = NULL;
	if (simple_call(m, F_SESSION_CLAIM, dead, ttl, &reply))
		return;
	const redisReply *died = reply_at(reply, 1);
	if (died) {
		silt_info(m->log, "session %s has expired: cleaning up after it", dead);
		tx_recover(m, dead, died->str);
		simple_call(m, F_HEARTBEAT, m->session_text, ttl, NULL);
	}
	freeReplyObject(reply);
}

/* What began before the session was taken for dead is told by its number from what begins now. */
static void number_anew(struct meta *m)
{
	uint_fast64_t n = atomic_load(&m->tx_counter);
	while (!atomic_compare_exchange_weak(&m->tx_counter, &n, ((n >> TX_LIFE_BITS) + 1) << TX_LIFE_BITS))
		;
}

/* Tells the other shards that the session came back. */
static int tell_back(struct meta *m)
{
	int rc = 0;
	while (m->back_in < m->volume.shards && !rc) {
		struct conn_request *r = call_begin(m, m->back_in, F_SESSION_BACK, 2, 0);
		redisReply *reply = NULL;
		conn_arg_str(&r, m->session_text);
		conn_arg_u64(&r, atomic_load(&m->tx_counter) >> TX_LIFE_BITS << TX_LIFE_BITS);
		rc = call_checked(m, F_SESSION_BACK, r, &reply, NULL);
		if (reply)
			freeReplyObject(reply);
		if (!rc)
			rc = deleted_join(m, m->back_in);
		m->back_in += !rc;
	}
	return rc;
}

static int come_back(struct meta *m, uint64_t ttl)
{
	silt_error(m->log, "session %s was taken for dead (no heartbeat for %llu s): files that were "
		   "deleted while open here are gone, locks that were held here are lost",
		   m->session_text, (unsigned long long)ttl / 1000);
	locks_lost(m);
	int rc = locks_start_anew(m);
	if (rc)
		return rc;
	number_anew(m);
	m->back_in = 0;
	return open_session(m, NULL); /* what it holds from now on must be found when it dies */
}

static int beat(struct meta *m)
{
	uint64_t ttl = (uint64_t)m->cfg.heartbeat_ms * HEARTBEATS_MISSED;
	redisReply *reply = NULL;
	int rc = simple_call(m, F_HEARTBEAT, m->session_text, ttl, &reply);
	if (rc == -ENOENT)
		rc = come_back(m, ttl);
	if (!rc)
		rc = tell_back(m);
	for (size_t i = 1; !rc && reply && i < reply->elements; i++)
		if (reply_at(reply, i) && strcmp(reply_at(reply, i)->str, m->session_text) != 0)
			take_over(m, reply_at(reply, i)->str, ttl);
	if (reply)
		freeReplyObject(reply);
	return rc;
}

static void *heart_main(void *arg)
{
	struct meta *m = arg;
	pthread_setname_np(pthread_self(), "silt-heart");
	silt_lock(&m->heart_lock);
	while (!m->stopping) {
		silt_unlock(&m->heart_lock);
		if (beat(m) == 0) { /* else every call of these would wait as long as it may */
			tx_finish_stuck(m);
			tx_collect_garbage(m);
		}
		silt_lock(&m->heart_lock);
		uint64_t until = silt_now_ns() + (uint64_t)m->cfg.heartbeat_ms * 1000000u;
		while (!m->stopping && silt_cond_wait_until(&m->heart_wake, &m->heart_lock, until))
			;
	}
	silt_unlock(&m->heart_lock);
	return NULL;
}

static int start_heart(struct meta *m, struct silt_err *err)
{
	int rc = -pthread_create(&m->heart, NULL, heart_main, m);
	if (rc)
		return silt_fail(err, rc, "cannot start a thread: %s", strerror(-rc));
	m->heart_runs = true;
	return 0;
}

static void stop_heart(struct meta *m)
{
	if (!m->heart_runs)
		return;
	silt_lock(&m->heart_lock);
	m->stopping = true;
	silt_cond_signal(&m->heart_wake);
	silt_unlock(&m->heart_lock);
	pthread_join(m->heart, NULL);
}

/* --- open, close --- */

int meta_open(const struct meta_config *cfg, struct meta **out, struct silt_err *err)
{
	struct meta *m = calloc(1, sizeof(*m));
	if (!m)
		return silt_fail(err, -ENOMEM, "out of memory");
	m->cfg = *cfg;
	m->log = cfg->log;
	m->metrics = cfg->metrics;
	if (!m->cfg.heartbeat_ms)
		m->cfg.heartbeat_ms = HEARTBEAT_MS;
	silt_lock_init(&m->heart_lock);
	silt_cond_init(&m->heart_wake);
	int rc = 0;
	sigset_t before;
	conn_hold_sigpipe(&before);
	if (cfg->address->kind == META_ADDRESS_LOCAL)
		rc = meta_local_open(cfg->address->path, 0, m->log, &m->local, err);
	if (!rc && (rc = leases_open(m)) != 0) /* before the connection, which tells of its loss */
		silt_fail(err, rc, "out of memory");
	if (!rc && (rc = cover_open(m)) != 0)
		silt_fail(err, rc, "out of memory");
	if (!rc)
		rc = connect_first(m, err);
	conn_restore_sigpipe(&before);
	if (!rc && (rc = sequences_init(m)) != 0)
		silt_fail(err, rc, "out of memory");
	if (!rc && (rc = tx_open(m)) != 0)
		silt_fail(err, rc, "cannot start threads: %s", strerror(-rc));
	if (!rc && cfg->session)
		rc = open_session(m, err);
	if (!rc && cfg->session && (rc = deleted_open(m)) != 0)
		silt_fail(err, rc, "cannot register a mount with redis: %s", strerror(-rc));
	if (!rc && cfg->session)
		rc = start_push(m, err);
	m->back_in = m->volume.shards;
	if (!rc && cfg->session)
		rc = start_heart(m, err);
	if (rc) {
		meta_close(m);
		return rc;
	}
	*out = m;
	return 0;
}

/* Gives up what this session holds, so that nobody has to wait for it to expire. */
static void close_session(struct meta *m)
{
	if (!m->session || !conn_up(m->conn))
		return;
	deleted_leave(m);
	tx_recover(m, m->session_text, "");
}

void meta_close(struct meta *m)
{
	if (!m)
		return;
	stop_heart(m);
	push_close(m->push);
	locks_stop(m);
	cover_stop(m);
	if (m->tx)
		tx_close(m);
	if (m->conn)
		close_session(m);
	conn_close(m->conn);
	deleted_close(m);
	locks_free(m);
	cover_close(m);
	leases_close(m);
	sequences_free(m);
	meta_volume_free(&m->volume);
	meta_local_close(m->local);
	silt_lock_destroy(&m->heart_lock);
	silt_cond_destroy(&m->heart_wake);
	free(m);
}

/* --- looking inside --- */

int meta_sessions_json(struct meta *m, char **out)
{
	redisReply *reply = NULL;
	int rc = call_wait(m, F_SESSION_LIST, call_begin(m, 0, F_SESSION_LIST, 0, 0), &reply);
	rc = reply_code(m, F_SESSION_LIST, rc, reply, NULL);
	json_object *list = json_object_new_array();
	for (size_t i = 1; !rc && i + 2 < reply->elements; i += 3) {
		const redisReply *id = reply_at(reply, i), *text = reply_at(reply, i + 1);
		const redisReply *expiry = reply_at(reply, i + 2);
		json_object *o = text ? json_tokener_parse(text->str) : NULL;
		if (!o || !json_object_is_type(o, json_type_object)) {
			json_object_put(o);
			o = json_object_new_object();
		}
		json_object_object_add(o, "session", json_object_new_string(id ? id->str : ""));
		json_object_object_add(o, "expires_ms",
				       json_object_new_int64(expiry ? strtoll(expiry->str, NULL, 10) : 0));
		json_object_array_add(list, o);
	}
	if (!rc && !(*out = strdup(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PLAIN))))
		rc = -ENOMEM;
	json_object_put(list);
	if (reply)
		freeReplyObject(reply);
	return rc;
}

static void print_bytes(FILE *f, const char *s, size_t len)
{
	fputc('"', f);
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)s[i];
		if (c >= 32 && c < 127 && c != '"' && c != '\\')
			fputc(c, f);
		else
			fprintf(f, "\\x%02x", c);
	}
	fputs("\"\n", f);
}

static void print_reply(FILE *f, const redisReply *r, int depth)
{
	switch (r->type) {
	case REDIS_REPLY_INTEGER: fprintf(f, "(integer) %lld\n", r->integer); break;
	case REDIS_REPLY_NIL: fputs("(nil)\n", f); break;
	case REDIS_REPLY_ERROR: fprintf(f, "(error) %s\n", r->str); break;
	case REDIS_REPLY_ARRAY:
		if (r->elements == 0)
			fputs("(empty)\n", f);
		for (size_t i = 0; i < r->elements; i++) {
			fprintf(f, "%*s%zu) ", i ? depth * 3 : 0, "", i + 1);
			print_reply(f, r->element[i], depth + 1);
		}
		break;
	default: print_bytes(f, r->str, r->len);
	}
}

int meta_debug_command(struct meta *m, int argc, const char **argv, const size_t *lens, char **out)
{
	struct conn_request *r = conn_begin(argc, F_COMMAND, 256);
	redisReply *reply = NULL;
	for (int i = 0; i < argc; i++)
		conn_arg(&r, argv[i], lens ? lens[i] : strlen(argv[i]));
	int rc = call_wait(m, F_COMMAND, r, &reply);
	size_t size;
	FILE *f = rc ? NULL : open_memstream(out, &size);
	if (f) {
		print_reply(f, reply, 0);
		fclose(f);
	}
	if (reply)
		freeReplyObject(reply);
	return rc ? rc : f ? 0 : -ENOMEM;
}
