/* siltfs status: a mount's counters through its control socket, or a volume's state from Redis. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "meta/cleanup.h"
#include "tools/cli.h"
#include "tools/control_client.h"
#include "tools/json_fields.h"
#include "tools/volume.h"

static const char help[] =
        "Usage: siltfs status [--json] [--sessions] MOUNTPOINT|ADDRESS\n"
        "Of a mount: volume, cache and counters. Of an address: the volume, its usage and the\n"
        "sessions of its mounts.\n"
        "\n"
        "  --json       one JSON object\n"
        "  --sessions   of a mount: the sessions of all mounts of the volume too\n";

static bool is_address(const char *s)
{
	return strstr(s, "://") || strncmp(s, "local:", 6) == 0;
}

static void print_json(struct json_object *o)
{
	puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY |
	                                               JSON_C_TO_STRING_NOSLASHESCAPE));
}

static void print_sessions(struct json_object *list)
{
	size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
	printf("Sessions: %zu\n", n);
	for (size_t i = 0; i < n; i++)
		printf("  %s\n", json_object_to_json_string_ext(
		                         json_object_array_get_idx(list, i),
		                         JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
}

static void print_group(struct json_object *group, const char *title)
{
	if (!group || json_object_object_length(group) == 0)
		return;
	printf("%s\n", title);
	json_object_object_foreach(group, name, value)
	        printf("  %-24s %s\n", name, json_object_get_string(value));
}

static void print_volume(struct json_object *v)
{
	printf("Volume:   %s (id %s), %" PRIu64 " shard%s, objects: %s %s\n", json_text(v, "name"),
	       json_text(v, "id"), json_number(v, "shards"),
	       json_number(v, "shards") == 1 ? "" : "s", json_text(v, "storage"),
	       json_text(v, "bucket"));
}

static void print_mount(struct json_object *o)
{
	struct json_object *cache = json_member(o, "cache"), *counters = json_member(o, "counters");
	char used[32], total[32], slot[32];

	printf("Mount:    %s on %s (siltfs %s, pid %s, up %s s, session %s)\n",
	       json_text(o, "source"), json_text(o, "mountpoint"), json_text(o, "version"),
	       json_text(o, "pid"), json_text(o, "uptime_seconds"), json_text(o, "session"));
	print_volume(json_member(o, "volume"));
	printf("Store:    %s\n", json_text(o, "store"));
	if (json_number(cache, "total_bytes"))
		printf("Cache:    %s of %s used, in slots of %s\n",
		       cli_bytes((double)json_number(cache, "used_bytes"), used),
		       cli_bytes((double)json_number(cache, "total_bytes"), total),
		       cli_bytes((double)json_number(cache, "slot_bytes"), slot));
	else
		printf("Cache:    none\n");
	puts("Counters");
	for (int i = 0; i < SILT_METRIC_COUNT; i++) {
		const struct silt_metric_info *m = &silt_metric_table[i];
		printf("  %-24s %-12s %s: %s\n", m->name, json_text(counters, m->name), m->unit,
		       m->help);
	}
	print_group(json_member(o, "fuse"), "FUSE requests");
	print_group(json_member(o, "redis"), "Redis calls");
	if (json_member(o, "sessions"))
		print_sessions(json_member(o, "sessions"));
}

static int on_line(void *arg, struct json_object *line)
{
	*(struct json_object **)arg = json_object_get(line);
	return 0;
}

static int status_of_mount(const char *path, bool json, bool sessions)
{
	struct json_object *request = json_object_new_object(), *reply = NULL;
	char socket[108];
	struct silt_err err = { 0 };

	json_object_object_add(request, "cmd", json_object_new_string("status"));
	json_object_object_add(request, "sessions", json_object_new_boolean(sessions));
	if (control_find(path, socket, NULL, &err) < 0) {
		json_object_put(request);
		return cli_fail(CLI_USAGE, "%s", err.text);
	}
	if (control_request(socket, request, on_line, &reply, &err) < 0 || !reply) {
		json_object_put(reply);
		return cli_fail(CLI_FAILED, "%s", err.text);
	}
	json_object_object_del(reply, "done");
	json_object_object_del(reply, "error");
	if (json)
		print_json(reply);
	else
		print_mount(reply);
	json_object_put(reply);
	return CLI_OK;
}

static struct json_object *describe_volume(struct volume *v, int *rc)
{
	const struct meta_volume *mv = meta_volume(v->meta);
	struct json_object *o = json_object_new_object(), *vol = json_object_new_object();
	struct meta_wait w;
	SILT_FREE char *sessions = NULL;
	char id[20];

	snprintf(id, sizeof(id), "%016" PRIx64, mv->id);
	json_object_object_add(vol, "name", json_object_new_string(mv->name));
	json_object_object_add(vol, "id", json_object_new_string(id));
	json_object_object_add(vol, "format", json_object_new_uint64(mv->version));
	json_object_object_add(vol, "shards", json_object_new_uint64(mv->shards));
	json_object_object_add(vol, "storage", json_object_new_string(mv->storage));
	json_object_object_add(vol, "bucket", json_object_new_string(mv->bucket));
	json_object_object_add(vol, "compress_level", json_object_new_int(mv->compress_level));
	json_object_object_add(vol, "created", json_object_new_int64(mv->created));
	json_object_object_add(o, "volume", vol);
	json_object_object_add(o, "source", json_object_new_string(v->address.shown));
	meta_wait_init(&w);
	meta_statfs(v->meta, meta_wait_done, &w);
	*rc = meta_wait(&w);
	json_object_object_add(o, "inodes", json_object_new_uint64(w.reply.statfs.inodes));
	json_object_object_add(o, "bytes", json_object_new_uint64(w.reply.statfs.bytes));
	meta_wait_free(&w);
	if (*rc == 0)
		*rc = meta_sessions_json(v->meta, &sessions);
	if (*rc == 0)
		json_object_object_add(o, "sessions", json_tokener_parse(sessions));
	return o;
}

static int status_of_volume(const char *address, bool json)
{
	struct volume_config cfg = { .address = address };
	struct silt_err err = { 0 };
	struct volume *v;
	char bytes[32];
	int rc;

	if (volume_open(&cfg, &v, &err) < 0) {
		return cli_fail(CLI_FAILED, "%s", err.text);
	}
	struct json_object *o = describe_volume(v, &rc);
	volume_close(v);
	if (rc < 0) {
		cli_fail(0, "can't read the volume's state: %s", strerror(-rc));
	} else if (json) {
		print_json(o);
	} else {
		printf("Metadata: %s\n", json_text(o, "source"));
		print_volume(json_member(o, "volume"));
		printf("Usage:    %s inodes, %s\n", json_text(o, "inodes"),
		       cli_bytes((double)json_number(o, "bytes"), bytes));
		print_sessions(json_member(o, "sessions"));
	}
	json_object_put(o);
	return rc < 0 ? CLI_FAILED : CLI_OK;
}

int cmd_status(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "sessions", no_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool json = false, sessions = false;
	int opt;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (opt == 'h')
			return cli_help(help);
		if (opt == '?')
			return cli_usage("status", "unknown option: %s", argv[optind - 1]);
		json |= opt == 'j';
		sessions |= opt == 's';
	}
	if (argc - optind != 1)
		return cli_usage("status", "status takes one MOUNTPOINT or ADDRESS");
	return is_address(argv[optind]) ? status_of_volume(argv[optind], json)
	                                : status_of_mount(argv[optind], json, sessions);
}
