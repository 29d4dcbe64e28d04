/* siltfs info: where the bytes of files are. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/cli.h"
#include "tools/control_client.h"
#include "tools/json_fields.h"

static const char help[] =
        "Usage: siltfs info [--json] PATH...\n"
        "Show inode, size and version of each PATH on a mount, and its extents: file offset, "
        "length,\n"
        "pack, offset in the pack, stored bytes, and whether the pack is on this node's SSD: "
        "full,\n"
        "unchecked (all of it, but not verified by this mount yet), partial, absent.\n"
        "\n"
        "  --json   the lines of the control socket as they are\n";

struct info {
	const char *path;
	bool json;
	uint64_t extents, cached;
};

static void print_extents(struct info *i, struct json_object *list)
{
	for (size_t k = 0; k < json_object_array_length(list); k++) {
		struct json_object *e = json_object_array_get_idx(list, k);
		if (i->extents++ == 0)
			printf("  %14s %12s  %-16s %10s %10s  %s\n", "offset", "length", "pack",
			       "at", "stored", "ssd");
		i->cached += strcmp(json_text(e, "cached"), "full") == 0 ||
		             strcmp(json_text(e, "cached"), "unchecked") == 0;
		printf("  %14s %12s  %s %10s %10s  %s\n", json_text(e, "off"), json_text(e, "len"),
		       json_text(e, "pack"), json_text(e, "pack_off"), json_text(e, "stored"),
		       json_text(e, "cached"));
	}
}

static int on_line(void *arg, struct json_object *line)
{
	struct info *i = arg;
	struct json_object *extents = json_member(line, "extents");

	if (json_member(line, "done"))
		return 0;
	if (i->json) {
		json_object_object_add(line, "path", json_object_new_string(i->path));
		puts(json_object_to_json_string_ext(line, JSON_C_TO_STRING_PLAIN |
		                                                  JSON_C_TO_STRING_NOSLASHESCAPE));
		return 0;
	}
	if (json_member(line, "size"))
		printf("%s: inode %s, mode %o, links %s, size %s, version %s, map %s\n", i->path,
		       json_text(line, "inode"), (unsigned)json_number(line, "mode"),
		       json_text(line, "nlink"), json_text(line, "size"),
		       json_text(line, "version"),
		       json_member(line, "map") ? json_text(line, "map") : "-");
	if (json_object_is_type(extents, json_type_array))
		print_extents(i, extents);
	return 0;
}

static int show(const char *path, bool json)
{
	struct info i = { .path = path, .json = json };
	struct json_object *request, *list;
	struct silt_err err = { 0 };
	char socket[108];
	uint64_t inode;

	if (control_find(path, socket, &inode, &err) < 0)
		return cli_fail(CLI_USAGE, "%s", err.text);
	request = json_object_new_object();
	list = json_object_new_array();
	json_object_array_add(list, json_object_new_uint64(inode));
	json_object_object_add(request, "cmd", json_object_new_string("info"));
	json_object_object_add(request, "inodes", list);
	if (control_request(socket, request, on_line, &i, &err) < 0)
		return cli_fail(CLI_FAILED, "%s: %s", path, err.text);
	if (!json && i.extents)
		printf("  %" PRIu64 " of %" PRIu64 " extents on the SSD\n", i.cached, i.extents);
	return CLI_OK;
}

int cmd_info(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool json = false;
	int opt, worst = CLI_OK;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (opt == 'h')
			return cli_help(help);
		if (opt == '?')
			return cli_usage("info", "unknown option: %s", argv[optind - 1]);
		json = true;
	}
	if (optind == argc)
		return cli_usage("info", "info takes one or more PATHs");
	for (int i = optind; i < argc; i++) {
		int rc = show(argv[i], json);
		worst = rc > worst ? rc : worst;
	}
	return worst;
}
