/* The commands of the control socket (control.h lists them). Each runs on a worker thread of its
 * own and may block. */
#include "fs/control_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cache/warmup.h"
#include "meta/cleanup.h"
#include "meta/lock.h"

#define JSON_DEPTH   8
#define NAMES_A_LINE 100 /* of missing files, to who asked for a warmup */

static void add_text(struct json_object *o, const char *name, const char *text)
{
	json_object_object_add(o, name, json_object_new_string(text ? text : ""));
}

static void add_number(struct json_object *o, const char *name, uint64_t v)
{
	json_object_object_add(o, name, json_object_new_uint64(v));
}

static void add_hex(struct json_object *o, const char *name, uint64_t v)
{
	char text[20];
	snprintf(text, sizeof(text), "%016" PRIx64, v);
	add_text(o, name, text);
}

/* Bytes of a slot of the SSD cache; 0: there is none. */
static uint64_t slot_bytes(const struct control_config *cfg)
{
	uint64_t total = 0, used = 0;
	cache_space(cfg->cache, &total, &used);
	return total ? cfg->slot_size : 0;
}

/* --- status ----------------------------------------------------------------------------- */

static struct json_object *volume_json(const struct meta_volume *v)
{
	struct json_object *o = json_object_new_object();
	add_text(o, "name", v->name);
	add_hex(o, "id", v->id);
	add_number(o, "format", v->version);
	add_number(o, "shards", v->shards);
	add_text(o, "storage", v->storage);
	add_text(o, "bucket", v->bucket);
	add_text(o, "region", v->region);
	add_number(o, "compress_level", (uint64_t)v->compress_level);
	add_number(o, "created", (uint64_t)v->created);
	return o;
}

static struct json_object *counters_json(struct silt_metrics *m)
{
	struct json_object *o = json_object_new_object();
	for (int i = 0; m && i < SILT_METRIC_COUNT; i++)
		add_number(o, silt_metric_table[i].name, silt_metric_get(m, (enum silt_metric)i));
	return o;
}

/* Counters by kind; kinds that never happened are left out. */
static struct json_object *kinds_json(atomic_uint_fast64_t *v, unsigned n,
                                      const char *(*name)(unsigned kind))
{
	struct json_object *o = json_object_new_object();
	for (unsigned i = 0; i < n && name(i); i++) {
		uint64_t count = atomic_load_explicit(&v[i], memory_order_relaxed);
		if (count)
			add_number(o, name(i), count);
	}
	return o;
}

static void cmd_status(struct client *cl, struct json_object *request)
{
	const struct control_config *cfg = control_config_of(cl->control);
	struct json_object *o = json_object_new_object(), *cache = json_object_new_object(), *f;
	SILT_FREE char *sessions = NULL;
	uint64_t total = 0, used = 0;

	add_text(o, "version", SILT_VERSION);
	add_number(o, "pid", (uint64_t)getpid());
	add_text(o, "mountpoint", cfg->mountpoint);
	add_text(o, "source", cfg->source);
	add_number(o, "uptime_seconds",
	           (silt_now_ns() - control_started_ns(cl->control)) / 1000000000u);
	json_object_object_add(o, "volume", volume_json(meta_volume(cfg->meta)));
	add_text(o, "store", cfg->store ? store_where(cfg->store) : "");
	add_number(o, "session", meta_session(cfg->meta));
	cache_space(cfg->cache, &total, &used);
	add_number(cache, "total_bytes", total);
	add_number(cache, "used_bytes", used);
	add_number(cache, "slot_bytes", slot_bytes(cfg));
	json_object_object_add(o, "cache", cache);
	json_object_object_add(o, "counters", counters_json(cfg->metrics));
	if (cfg->metrics) {
		json_object_object_add(
		        o, "fuse",
		        kinds_json(cfg->metrics->fuse, SILT_FUSE_KINDS, fs_fuse_kind_name));
		json_object_object_add(
		        o, "redis",
		        kinds_json(cfg->metrics->redis, SILT_REDIS_KINDS, meta_function_name));
	}
	if (json_object_object_get_ex(request, "sessions", &f) && json_object_get_boolean(f) &&
	    meta_sessions_json(cfg->meta, &sessions) == 0)
		json_object_object_add(o, "sessions", json_tokener_parse(sessions));
	client_done(cl, o, "");
}

/* --- warmup and drop -------------------------------------------------------------------- */

/* The "inodes" of a request, malloced; NULL after an error was sent. */
static silt_ino *request_inodes(struct client *cl, struct json_object *request, size_t *n)
{
	struct json_object *list;
	silt_ino *out;

	if (!json_object_object_get_ex(request, "inodes", &list) ||
	    !json_object_is_type(list, json_type_array) || json_object_array_length(list) == 0 ||
	    json_object_array_length(list) > CONTROL_INODES_MAX) {
		client_done(cl, NULL, "\"inodes\" must be a list of 1 to 65536 inode numbers");
		return NULL;
	}
	*n = json_object_array_length(list);
	out = calloc(*n, sizeof(*out));
	for (size_t i = 0; out && i < *n; i++) {
		struct json_object *v = json_object_array_get_idx(list, i);
		int64_t ino = json_object_is_type(v, json_type_int) ? json_object_get_int64(v) : 0;
		if (ino <= 0) {
			free(out);
			client_done(cl, NULL, "\"inodes\" has something that is no inode number");
			return NULL;
		}
		out[i] = (silt_ino)ino;
	}
	if (!out)
		client_done(cl, NULL, "out of memory");
	return out;
}

static struct json_object *progress_json(const struct warmup_progress *p)
{
	struct json_object *o = json_object_new_object();
	add_number(o, "dirs", p->dirs);
	add_number(o, "files", p->files);
	add_number(o, "bytes", p->bytes);
	add_number(o, "packs", p->packs);
	add_number(o, "packs_done", p->packs_done);
	add_number(o, "packs_cached", p->packs_cached);
	add_number(o, "fetched_packs", p->fetched_packs);
	add_number(o, "fetched_bytes", p->fetched_bytes);
	add_number(o, "failed_packs", p->failed_packs);
	add_number(o, "checked_packs", p->checked_packs);
	add_number(o, "checked_bytes", p->checked_bytes);
	add_number(o, "damaged_packs", p->damaged_packs);
	add_number(o, "missing_files", p->missing_files);
	json_object_object_add(o, "seconds", json_object_new_double(p->seconds));
	json_object_object_add(o, "resolved", json_object_new_boolean(p->resolved));
	return o;
}

/* Who asked for a warmup, and names of missing files that go into the next line to it. */
struct warmup_asker {
	struct client *cl;
	struct json_object *names; /* NULL: none yet */
};

static void on_progress(void *arg, const struct warmup_progress *p)
{
	struct warmup_asker *a = arg;
	struct json_object *o = json_object_new_object();
	json_object_object_add(o, "progress", progress_json(p));
	client_send(a->cl, o);
}

static void send_names(struct warmup_asker *a)
{
	struct json_object *o;

	if (!a->names)
		return;
	o = json_object_new_object();
	json_object_object_add(o, "missing", silt_steal(a->names));
	client_send(a->cl, o);
}

static void on_missing(void *arg, size_t root, const char *path, const char *why)
{
	struct warmup_asker *a = arg;
	struct json_object *m = json_object_new_object();
	SILT_FREE char *text = NULL;

	if (asprintf(&text, "%s: %s", path, why) < 0)
		text = NULL;
	add_number(m, "root", root);
	add_text(m, "path", text ? text : why);
	if (!a->names)
		a->names = json_object_new_array();
	json_object_array_add(a->names, m);
	if (json_object_array_length(a->names) == NAMES_A_LINE)
		send_names(a);
}

static void send_result(struct client *cl, int rc, const struct warmup_result *r)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "result", progress_json(&r->progress));
	json_object_object_add(o, "status", json_object_new_int(rc));
	client_done(cl, o, rc >= 0 ? "" : r->err.text[0] ? r->err.text : strerror(-rc));
}

static void run_warmup(struct client *cl, struct json_object *request, bool drop)
{
	const struct control_config *cfg = control_config_of(cl->control);
	struct warmup_asker asker = { .cl = cl };
	struct json_object *f;
	struct warmup_result result;
	size_t n;
	SILT_FREE silt_ino *roots = request_inodes(cl, request, &n);

	if (!roots)
		return;
	bool check = json_object_object_get_ex(request, "check", &f) && json_object_get_boolean(f);
	bool verify =
	        json_object_object_get_ex(request, "verify", &f) && json_object_get_boolean(f);
	struct warmup_config wc = {
		.meta = cfg->meta,
		.cache = cfg->cache,
		.log = cfg->log,
		.roots = roots,
		.n_roots = n,
		.check = check,
		.verify = verify,
		.drop = drop,
		.cancel = &cl->cancel,
		.progress = on_progress,
		.missing = on_missing,
		.arg = &asker,
	};
	int rc = warmup_run(&wc, &result);
	send_names(&asker);
	send_result(cl, rc, &result);
}

static void cmd_warmup(struct client *cl, struct json_object *request)
{
	run_warmup(cl, request, false);
}

static void cmd_drop(struct client *cl, struct json_object *request)
{
	run_warmup(cl, request, true);
}

/* --- slots ------------------------------------------------------------------------------ */

struct slot_list {
	struct cache_slot_info *v;
	size_t n, cap;
};

/* Called with the tier's locks: only copy. */
static int collect_slot(void *arg, const struct cache_slot_info *s)
{
	struct slot_list *l = arg;
	if (l->n == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 1024;
		struct cache_slot_info *v = realloc(l->v, cap * sizeof(*v));
		if (!v)
			return -ENOMEM;
		l->v = v;
		l->cap = cap;
	}
	l->v[l->n++] = *s;
	return 0;
}

static void cmd_slots(struct client *cl, struct json_object *request)
{
	const struct control_config *cfg = control_config_of(cl->control);
	struct json_object *last = json_object_new_object();
	struct slot_list l = { 0 };
	int rc = cache_each_slot(cfg->cache, collect_slot, &l);

	for (size_t i = 0; i < l.n && rc == 0; i++) {
		const struct cache_slot_info *s = &l.v[i];
		struct json_object *o = json_object_new_object();
		add_number(o, "slot", s->slot);
		add_hex(o, "pack", s->pack);
		add_number(o, "piece", s->piece);
		add_number(o, "pack_len", s->pack_len);
		add_number(o, "valid_mask", s->valid_mask);
		add_number(o, "freq", s->freq);
		if (!client_send(cl, o))
			break;
	}
	free(l.v);
	add_number(last, "slot_bytes", slot_bytes(cfg));
	client_done(cl, last, rc < 0 ? strerror(-rc) : "");
}

/* --- info ------------------------------------------------------------------------------- */

static void add_extents(struct client *cl, struct json_object *list, const struct silt_extent *v,
                        size_t n)
{
	static const char *const states[] = { "absent", "partial", "unchecked", "full" };
	struct cache *cache = control_config_of(cl->control)->cache;

	for (size_t i = 0; i < n; i++) {
		struct json_object *e = json_object_new_object();
		if (v[i].pack == 0)
			continue;
		add_number(e, "off", v[i].off);
		add_number(e, "len", v[i].len);
		add_hex(e, "pack", v[i].pack);
		add_number(e, "pack_off", v[i].pack_off);
		add_number(e, "stored", v[i].stored);
		add_number(e, "skip", v[i].skip);
		add_text(e, "cached", states[cache_pack_state(cache, v[i].pack)]);
		json_object_array_add(list, e);
	}
}

/* meta_wait() copies what came: there may have been no memory for it. */
static int waited_for_data(const struct meta_wait *w)
{
	return w->reply.len && !w->reply.data ? -ENOMEM : 0;
}

struct window_list {
	uint64_t *v;
	size_t n, cap;
};

static int add_window(struct window_list *l, uint64_t window)
{
	if (l->n == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 64;
		uint64_t *v = realloc(l->v, cap * sizeof(*v));
		if (!v)
			return -ENOMEM;
		l->v = v;
		l->cap = cap;
	}
	l->v[l->n++] = window;
	return 0;
}

static int compare_windows(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

/* Finds the windows that an external map has; they come in no order, and some twice. */
static int list_windows(struct client *cl, silt_ino ino, struct window_list *l)
{
	uint64_t from = 0;
	int rc = 0;

	do {
		struct meta_wait wait;
		struct extent_log log;
		meta_wait_init(&wait);
		meta_windows(control_config_of(cl->control)->meta, ino, from, meta_wait_done,
		             &wait);
		rc = meta_wait(&wait);
		if (rc == 0)
			rc = waited_for_data(&wait);
		const uint8_t *p = wait.reply.data;
		size_t left = wait.reply.len;
		while (rc == 0 && extent_logs_next(&p, &left, &log))
			rc = add_window(l, log.window);
		from = wait.reply.next;
		meta_wait_free(&wait);
		if (atomic_load(&cl->cancel))
			rc = -ECANCELED;
	} while (rc == 0 && from);
	if (rc < 0 || !l->n)
		return rc;
	qsort(l->v, l->n, sizeof(*l->v), compare_windows);
	size_t kept = 1;
	for (size_t i = 1; i < l->n; i++)
		if (l->v[i] != l->v[kept - 1])
			l->v[kept++] = l->v[i];
	l->n = kept;
	return 0;
}

/* Sends the extents of one window, if it has some. */
static int send_window(struct client *cl, const struct silt_inode *inode, uint64_t window)
{
	struct meta_wait wait;
	struct extent_map map;

	meta_wait_init(&wait);
	extent_map_init(&map);
	meta_window(control_config_of(cl->control)->meta, inode->attr.ino, window, meta_wait_done,
	            &wait);
	int rc = meta_wait(&wait);
	if (rc == 0)
		rc = waited_for_data(&wait);
	if (rc == 0)
		rc = extent_map_add_log(&map, wait.reply.data, wait.reply.len);
	extent_map_truncate(&map, inode->attr.size);
	if (rc == 0 && map.n) {
		struct json_object *o = json_object_new_object();
		struct json_object *list = json_object_new_array();
		add_extents(cl, list, map.v, map.n);
		add_number(o, "inode", inode->attr.ino);
		json_object_object_add(o, "extents", list);
		if (!client_send(cl, o))
			rc = -ECANCELED;
	}
	extent_map_free(&map);
	meta_wait_free(&wait);
	return rc;
}

/* Sends the extents of an external map, one line a window that has some, in their order. */
static int send_windows(struct client *cl, const struct silt_inode *inode)
{
	struct window_list l = { 0 };
	int rc = list_windows(cl, inode->attr.ino, &l);

	for (size_t i = 0; i < l.n && rc == 0; i++)
		rc = atomic_load(&cl->cancel) ? -ECANCELED : send_window(cl, inode, l.v[i]);
	free(l.v);
	return rc;
}

static int send_info(struct client *cl, silt_ino ino)
{
	static const char *const maps[] = { "none", "inline", "external" };
	struct json_object *o, *list;
	struct meta_wait wait;

	meta_wait_init(&wait);
	meta_getattr(control_config_of(cl->control)->meta, ino, meta_wait_done, &wait);
	int rc = meta_wait(&wait);
	struct silt_inode inode = wait.reply.inode;
	meta_wait_free(&wait);
	if (rc < 0)
		return rc;
	o = json_object_new_object();
	list = json_object_new_array();
	add_number(o, "inode", ino);
	add_number(o, "mode", inode.attr.mode);
	add_number(o, "nlink", inode.attr.nlink);
	add_number(o, "size", inode.attr.size);
	add_hex(o, "version", inode.attr.version);
	if (S_ISREG(inode.attr.mode)) {
		add_text(o, "map", maps[inode.map]);
		if (inode.map == SILT_MAP_INLINE)
			add_extents(cl, list, &inode.extent, 1);
	}
	json_object_object_add(o, "extents", list);
	if (!client_send(cl, o))
		return -ECANCELED;
	return S_ISREG(inode.attr.mode) && inode.map == SILT_MAP_EXTERNAL ? send_windows(cl, &inode)
	                                                                  : 0;
}

static void cmd_info(struct client *cl, struct json_object *request)
{
	size_t n;
	SILT_FREE silt_ino *inodes = request_inodes(cl, request, &n);
	int rc = 0;

	for (size_t i = 0; inodes && i < n && rc == 0; i++)
		rc = send_info(cl, inodes[i]);
	if (inodes)
		client_done(cl, NULL, rc < 0 ? strerror(-rc) : "");
}

/* --- Dispatch --------------------------------------------------------------------------- */

static const struct {
	const char *name;
	void (*run)(struct client *cl, struct json_object *request);
} commands[] = {
	{ "status", cmd_status }, { "warmup", cmd_warmup }, { "drop", cmd_drop },
	{ "slots", cmd_slots },   { "info", cmd_info },
};

static struct json_object *parse_request(const char *line, size_t len)
{
	struct json_tokener *t = json_tokener_new_ex(JSON_DEPTH);
	struct json_object *o = NULL;

	if (!t)
		return NULL;
	json_tokener_set_flags(t, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	o = json_tokener_parse_ex(t, line, (int)len);
	if (json_tokener_get_error(t) != json_tokener_success ||
	    json_tokener_get_parse_end(t) != len) {
		json_object_put(o);
		o = NULL;
	}
	json_tokener_free(t);
	return o;
}

void control_run(struct client *cl, const char *line, size_t len)
{
	struct json_object *request = parse_request(line, len), *f = NULL;
	const char *name = NULL;

	if (json_object_is_type(request, json_type_object) &&
	    json_object_object_get_ex(request, "cmd", &f) &&
	    json_object_is_type(f, json_type_string))
		name = json_object_get_string(f);
	for (size_t i = 0; name && i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (strcmp(commands[i].name, name) == 0) {
			commands[i].run(cl, request);
			json_object_put(request);
			return;
		}
	}
	client_done(cl, NULL,
	            name ? "unknown command" : "the request is no JSON object with a \"cmd\"");
	json_object_put(request);
}
