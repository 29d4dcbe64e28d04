/* siltfs gc: deletes objects that no file uses, found by looking at everything (cache/gc.h). */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/gc.h"
#include "tools/cli.h"
#include "tools/options.h"
#include "tools/volume.h"

static const char help[] =
        "Usage: siltfs gc [OPTIONS] ADDRESS\n"
        "Delete objects of the volume at ADDRESS that no file uses: what clients stored and never\n"
        "committed because they died, and what was removed and not deleted yet. Mounts go on\n"
        "meanwhile; they delete what dies by themselves, so this is for now and then.\n"
        "\n"
        "  --dry-run            change nothing, say what would be deleted\n"
        "  --grace SECONDS      leave objects alone that are younger (default 3600); s, m, h or d\n"
        "                       may follow the number\n"
        "  --list               print the name of each object that goes\n"
        "  --region NAME, --credentials FILE, --ca-file FILE   as for siltfs format\n"
        "  --help\n"
        "\n"
        "Exit status: 0 done; 1 failed, what was not deleted is left for the next run; 2 usage.\n";

struct gc_tool {
	struct gc_config gc;
	struct volume_config volume;
	bool list, tty, drawn;
};

static void on_pack(void *arg, uint64_t pack, uint64_t bytes)
{
	const struct gc_tool *t = arg;
	if (t->list)
		printf("packs/%02x/%016" PRIx64 " %" PRIu64 "\n", (unsigned)(pack & 0xff), pack, bytes);
}

static void on_progress(void *arg, uint64_t objects, uint64_t inodes)
{
	struct gc_tool *t = arg;
	if (!t->tty)
		return;
	fprintf(stderr, "\r%" PRIu64 " objects listed, %" PRIu64 " inodes looked at ", objects, inodes);
	t->drawn = true;
}

static void print_count(const char *what, const struct gc_count *c)
{
	char bytes[32];
	printf("%-34s %10" PRIu64 "  %s\n", what, c->packs, cli_bytes((double)c->bytes, bytes));
}

static void print_result(const struct gc_tool *t, const struct gc_result *r)
{
	print_count("objects", &r->all);
	print_count("in use", &r->used);
	print_count("too young to be looked at", &r->young);
	print_count(t->gc.dry_run ? "not in use, would be deleted" : "not in use, deleted", &r->deleted);
	if (r->counted.packs)
		print_count("not in use, but counted; see fsck", &r->counted);
	if (r->foreign)
		printf("%-34s %10" PRIu64 "\n", "no packs, left alone", r->foreign);
}

static int run(struct gc_tool *t)
{
	struct volume *v;
	struct gc_result result;
	struct silt_err err = { 0 };
	if (volume_open(&t->volume, &v, &err) < 0)
		return cli_fail(CLI_FAILED, "%s", err.text);
	t->gc.store = v->store;
	t->gc.meta = v->meta;
	t->gc.on_pack = on_pack;
	t->gc.on_progress = on_progress;
	t->gc.arg = t;
	int rc = gc_run(&t->gc, &result, &err);
	if (t->drawn)
		fputs("\r\033[K", stderr);
	if (rc)
		rc = cli_fail(CLI_FAILED, "gc: %s", err.text);
	else
		print_result(t, &result);
	volume_close(v);
	return rc;
}

int cmd_gc(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "dry-run", no_argument, NULL, 'n' },
		{ "grace", required_argument, NULL, 'g' },
		{ "list", no_argument, NULL, 'l' },
		{ "region", required_argument, NULL, 'r' },
		{ "credentials", required_argument, NULL, 'c' },
		{ "ca-file", required_argument, NULL, 'a' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct gc_tool t = { .gc = { .grace_s = 3600 }, .volume = { .want_store = true } };
	double seconds;
	int opt;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, "nh", longs, NULL)) != -1) {
		switch (opt) {
		case 'h': return cli_help(help);
		case 'n': t.gc.dry_run = true; break;
		case 'l': t.list = true; break;
		case 'r': t.volume.region = optarg; break;
		case 'c': t.volume.credentials = optarg; break;
		case 'a': t.volume.ca_file = optarg; break;
		case 'g':
			if (options_seconds(optarg, &seconds) < 0 || seconds > 1e9)
				return cli_usage("gc", "--grace %s: give a number of seconds, or one with s, m, h or d",
				                 optarg);
			t.gc.grace_s = (uint64_t)seconds;
			break;
		default: return cli_usage("gc", "unknown or incomplete option: %s", argv[optind - 1]);
		}
	}
	if (argc - optind != 1)
		return cli_usage("gc", "gc takes an ADDRESS");
	t.volume.address = argv[optind];
	t.tty = isatty(STDERR_FILENO);
	return run(&t);
}
