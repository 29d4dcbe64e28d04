/* siltfs debug: shows things as they are stored, for people who debug siltfs and for its tests. */
#include "tools/debug.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/cli.h"
#include "tools/control_client.h"
#include "tools/json_fields.h"

static const char help[] =
        "Usage: siltfs debug WHAT ...\n"
        "  inode ADDRESS INODE     the record of an inode and its extents\n"
        "  bucket ADDRESS INODE    the dentry buckets of a directory\n"
        "  redis ADDRESS CMD ...   a raw Redis command\n"
        "  pack ADDRESS PACK       header, index and verification of a pack (PACK in hex)\n"
        "  pack FILE               the same of a pack in a file\n"
        "  slots MOUNTPOINT        the used slots of a mount's SSD cache, and their size\n"
        "  digest PATH             xxh3 of the names, modes, sizes and bytes of a tree\n"
        "INODE is a decimal number (siltfs info shows it; 1 is the root).\n";

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
} parts[] = {
	{ "inode", debug_inode }, { "bucket", debug_bucket }, { "redis", debug_redis },
	{ "pack", debug_pack },   { "slots", debug_slots },   { "digest", debug_digest },
};

struct slots {
	uint64_t used, slot_bytes;
};

static int on_slot(void *arg, struct json_object *line)
{
	struct slots *s = arg;

	if (json_member(line, "done")) {
		s->slot_bytes = json_number(line, "slot_bytes");
		return 0;
	}
	if (s->used++ == 0)
		printf("%8s %-16s %6s %10s %6s %s\n", "slot", "pack", "piece", "pack_len", "valid",
		       "freq");
	printf("%8s %-16s %6s %10s %6" PRIx64 " %s\n", json_text(line, "slot"),
	       json_text(line, "pack"), json_text(line, "piece"), json_text(line, "pack_len"),
	       json_number(line, "valid_mask"), json_text(line, "freq"));
	return 0;
}

int debug_slots(int argc, char **argv)
{
	struct silt_err err = { 0 };
	struct slots s = { 0 };
	char socket[108], bytes[32];

	if (argc != 2)
		return cli_usage("debug", "debug slots takes a MOUNTPOINT");
	if (control_find(argv[1], socket, NULL, &err) < 0)
		return cli_fail(CLI_USAGE, "%s", err.text);
	struct json_object *request = json_object_new_object();
	json_object_object_add(request, "cmd", json_object_new_string("slots"));
	if (control_request(socket, request, on_slot, &s, &err) < 0)
		return cli_fail(CLI_FAILED, "%s", err.text);
	if (s.slot_bytes)
		printf("%" PRIu64 " slots used, of %s each\n", s.used,
		       cli_bytes((double)s.slot_bytes, bytes));
	else
		puts("no SSD cache");
	return CLI_OK;
}

int cmd_debug(int argc, char **argv)
{
	if (argc < 2)
		return cli_usage("debug", "debug what?");
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
		return cli_help(help);
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		if (strcmp(parts[i].name, argv[1]) == 0)
			return parts[i].run(argc - 1, argv + 1);
	return cli_usage("debug", "no \"%s\" to debug", argv[1]);
}
