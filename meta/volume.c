/* A volume's settings (JSON under {0}v), the checks of a server, loading the functions, format. */
#include "meta/engine.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "meta/cleanup.h"
#include "meta/local.h"

#define REDIS_NEEDED	 7
#define LISTPACK_ENTRIES 256
#define LISTPACK_VALUE	 512

extern const char silt_functions_begin[], silt_functions_end[];

void meta_volume_free(struct meta_volume *v)
{
	free(v->name);
	free(v->storage);
	free(v->bucket);
	free(v->region);
	memset(v, 0, sizeof(*v));
}

int volume_to_json(const struct meta_volume *v, char **out)
{
	char id[24];
	snprintf(id, sizeof(id), "%016llx", (unsigned long long)v->id);
	json_object *o = json_object_new_object();
	json_object_object_add(o, "version", json_object_new_int((int)v->version));
	json_object_object_add(o, "name", json_object_new_string(v->name));
	json_object_object_add(o, "id", json_object_new_string(id));
	json_object_object_add(o, "shards", json_object_new_int((int)v->shards));
	json_object_object_add(o, "storage", json_object_new_string(v->storage));
	json_object_object_add(o, "bucket", json_object_new_string(v->bucket));
	if (v->region)
		json_object_object_add(o, "region", json_object_new_string(v->region));
	json_object_object_add(o, "compress_level", json_object_new_int(v->compress_level));
	json_object_object_add(o, "created", json_object_new_int64(v->created));
	*out = strdup(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
	json_object_put(o);
	return *out ? 0 : -ENOMEM;
}

static char *text_of(json_object *o, const char *key)
{
	json_object *v;
	if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_string))
		return NULL;
	return strdup(json_object_get_string(v));
}

static int64_t number_of(json_object *o, const char *key, int64_t otherwise)
{
	json_object *v;
	if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_int))
		return otherwise;
	return json_object_get_int64(v);
}

int volume_from_json(const char *text, struct meta_volume *out, struct silt_err *err)
{
	json_object *o = json_tokener_parse(text);
	if (!o || !json_object_is_type(o, json_type_object)) {
		json_object_put(o);
		return silt_fail(err, -EUCLEAN, "the settings of the volume are damaged (no JSON object)");
	}
	struct meta_volume v = { 0 };
	SILT_FREE char *id = text_of(o, "id");
	int64_t shards = number_of(o, "shards", 0);
	v.version = (unsigned)number_of(o, "version", 0);
	v.name = text_of(o, "name");
	v.id = id ? strtoull(id, NULL, 16) : 0;
	v.shards = shards > 0 && shards <= SILT_MAX_SHARDS ? (unsigned)shards : 0;
	v.storage = text_of(o, "storage");
	v.bucket = text_of(o, "bucket");
	v.region = text_of(o, "region");
	v.compress_level = (int)number_of(o, "compress_level", 0);
	v.created = number_of(o, "created", 0);
	json_object_put(o);
	int rc = 0;
	if (v.version > META_FORMAT_VERSION)
		rc = silt_fail(err, -ENOTSUP,
			       "the volume has format version %u, this siltfs knows %d: use a newer siltfs",
			       v.version, META_FORMAT_VERSION);
	else if (!v.version || !v.name || !v.id || !v.shards || !v.storage || !v.bucket)
		rc = silt_fail(err, -EUCLEAN, "the settings of the volume are damaged (something is missing)");
	if (rc)
		meta_volume_free(&v);
	else
		*out = v;
	return rc;
}

int volume_load(redisContext *c, const char *shown, struct meta_volume *out, struct silt_err *err)
{
	redisReply *r = redisCommand(c, "GET {0}v");
	int rc;
	if (!r)
		return silt_fail(err, -EIO, "redis at %s closed the connection", shown);
	if (r->type == REDIS_REPLY_NIL)
		rc = silt_fail(err, -ENOENT, "there is no siltfs volume at %s; create one with 'siltfs format'",
			       shown);
	else if (r->type != REDIS_REPLY_STRING)
		rc = silt_fail(err, -EIO, "cannot read the settings of the volume at %s: %s", shown,
			       r->type == REDIS_REPLY_ERROR ? r->str : "they are no string");
	else
		rc = volume_from_json(r->str, out, err);
	freeReplyObject(r);
	return rc;
}

/* --- the server --- */

/* Copies the value of "field:" in INFO's text. */
static void info_field(const char *text, const char *field, char *out, size_t size)
{
	const char *p = strstr(text, field);
	out[0] = '\0';
	if (!p)
		return;
	p += strlen(field);
	size_t n = strcspn(p, "\r\n");
	snprintf(out, size, "%.*s", (int)(n < size ? n : size - 1), p);
}

static void config_get(redisContext *c, const char *name, char *out, size_t size)
{
	redisReply *r = redisCommand(c, "CONFIG GET %s", name);
	out[0] = '\0';
	if (r && r->type == REDIS_REPLY_ARRAY && r->elements == 2 && r->element[1]->str)
		snprintf(out, size, "%s", r->element[1]->str);
	if (r)
		freeReplyObject(r);
}

/* Raises a number setting if it is lower; false when that is not allowed. */
static bool config_raise(redisContext *c, const char *name, unsigned want, unsigned *now)
{
	char text[32];
	config_get(c, name, text, sizeof(text));
	*now = (unsigned)strtoul(text, NULL, 10);
	if (*now >= want)
		return true;
	redisReply *r = redisCommand(c, "CONFIG SET %s %u", name, want);
	bool ok = r && r->type == REDIS_REPLY_STATUS;
	if (ok)
		*now = want;
	if (r)
		freeReplyObject(r);
	return ok;
}

static double ping_ms(redisContext *c)
{
	double best = 1e9;
	for (int i = 0; i < 5; i++) {
		uint64_t t = silt_now_ns();
		redisReply *r = redisCommand(c, "PING");
		if (!r)
			break;
		freeReplyObject(r);
		double ms = (double)(silt_now_ns() - t) / 1e6;
		best = ms < best ? ms : best;
	}
	return best;
}

int server_check(redisContext *c, const char *shown, struct meta_server_info *info, struct silt_err *err)
{
	memset(info, 0, sizeof(*info));
	redisReply *r = redisCommand(c, "INFO server");
	if (!r || r->type == REDIS_REPLY_ERROR || !r->str) {
		int rc = silt_fail(err, -EIO, "redis at %s does not answer INFO: %s", shown,
				   r && r->str ? r->str : "connection closed");
		if (r)
			freeReplyObject(r);
		return rc;
	}
	info_field(r->str, "redis_version:", info->version, sizeof(info->version));
	freeReplyObject(r);
	if (strtoul(info->version, NULL, 10) < REDIS_NEEDED)
		return silt_fail(err, -EPROTO,
				 "redis at %s is version %s; siltfs needs %d.0 or newer (functions), or Valkey",
				 shown, info->version[0] ? info->version : "unknown", REDIS_NEEDED);
	char aof[8];
	config_get(c, "appendonly", aof, sizeof(aof));
	info->append_only = !strcmp(aof, "yes");
	config_get(c, "appendfsync", info->fsync, sizeof(info->fsync));
	config_get(c, "maxmemory-policy", info->policy, sizeof(info->policy));
	bool a = config_raise(c, "hash-max-listpack-entries", LISTPACK_ENTRIES, &info->listpack_entries);
	bool b = config_raise(c, "hash-max-listpack-value", LISTPACK_VALUE, &info->listpack_value);
	info->listpack_set = a && b;
	info->ping_ms = ping_ms(c);
	return 0;
}

/* Are the functions there, just these? A server that is full, or may not write, can't load them. */
static bool functions_there(redisContext *c)
{
	static const char key[] = "library_code";
	size_t size = (size_t)(silt_functions_end - silt_functions_begin);
	redisReply *r = redisCommand(c, "FUNCTION LIST LIBRARYNAME siltfs1 WITHCODE");
	bool there = false;
	const redisReply *lib = r && r->type == REDIS_REPLY_ARRAY && r->elements == 1 ? r->element[0] : NULL;
	for (size_t i = 0; lib && i + 1 < lib->elements; i += 2) {
		const redisReply *k = lib->element[i], *v = lib->element[i + 1];
		if (k->type == REDIS_REPLY_STRING && v->type == REDIS_REPLY_STRING && !strcmp(k->str, key))
			there = v->len == size && !memcmp(v->str, silt_functions_begin, size);
	}
	if (r)
		freeReplyObject(r);
	return there;
}

int functions_load(redisContext *c, const char *shown, struct silt_err *err)
{
	if (functions_there(c))
		return 0;
	/* This replaces another build of the same format version. */
	redisReply *r = redisCommand(c, "FUNCTION LOAD REPLACE %b", silt_functions_begin,
				     (size_t)(silt_functions_end - silt_functions_begin));
	if (r && r->type == REDIS_REPLY_STRING) {
		freeReplyObject(r);
		return 0;
	}
	int rc = silt_fail(err, r && r->str && strstr(r->str, "NOPERM") ? -EACCES : -EIO,
			   "redis at %s refuses the server-side functions: %s", shown,
			   r && r->str ? r->str : "connection closed");
	if (r)
		freeReplyObject(r);
	return rc;
}

/* --- format --- */

static int write_volume(redisContext *c, const char *shown, const struct meta_volume *v, uint32_t uid,
			uint32_t gid, struct silt_err *err)
{
	SILT_FREE char *json = NULL;
	int rc = volume_to_json(v, &json);
	if (rc)
		return silt_fail(err, rc, "out of memory");
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	uint8_t now[RECORD_TIME];
	record_time_encode((struct silt_time){ ts.tv_sec, (uint32_t)ts.tv_nsec }, now);
	redisReply *r = redisCommand(c, "FCALL silt1_format 1 {0} %u %u %u %b %s", uid, gid, S_IFDIR | 0755,
				     now, sizeof(now), json);
	if (r && r->type == REDIS_REPLY_INTEGER && r->integer == -EEXIST)
		rc = silt_fail(err, -EEXIST, "there is a siltfs volume at %s already; it is left as it is",
			       shown);
	else if (!r || r->type != REDIS_REPLY_ARRAY)
		rc = silt_fail(err, -EIO, "cannot write the volume to redis at %s: %s", shown,
			       r && r->str ? r->str : "connection closed");
	if (r)
		freeReplyObject(r);
	return rc;
}

static int refuse_existing(redisContext *c, const char *shown, struct silt_err *err)
{
	redisReply *r = redisCommand(c, "EXISTS {0}v");
	bool there = r && r->type == REDIS_REPLY_INTEGER && r->integer == 1;
	if (r)
		freeReplyObject(r);
	return there ? silt_fail(err, -EEXIST, "there is a siltfs volume at %s already; it is left as it is",
				 shown) : 0;
}

int meta_format(const struct meta_address *a, const struct meta_volume *v, uint32_t uid, uint32_t gid,
		struct silt_log *log, struct meta_server_info *info, struct silt_err *err)
{
	struct meta_local *local = NULL;
	redisContext *c = NULL;
	int rc = 0;
	sigset_t before;
	conn_hold_sigpipe(&before);
	if (a->kind == META_ADDRESS_LOCAL)
		rc = meta_local_open(a->path, 1, log, &local, err);
	if (!rc)
		rc = conn_connect_plain(a, local ? meta_local_socket(local) : NULL, 10000, &c, err);
	if (!rc)
		rc = server_check(c, a->shown, info, err);
	if (!rc)
		rc = refuse_existing(c, a->shown, err);
	if (!rc)
		rc = functions_load(c, a->shown, err);
	if (!rc)
		rc = write_volume(c, a->shown, v, uid, gid, err);
	if (c)
		redisFree(c);
	conn_restore_sigpipe(&before);
	meta_local_close(local);
	return rc;
}
