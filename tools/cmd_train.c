/* siltfs train: makes a zstd dictionary of small files and the volume's current one (cache/dict.h). */
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/dict.h"
#include "tools/cli.h"
#include "tools/options.h"
#include "tools/volume.h"

static const char help[] =
        "Usage: siltfs train [OPTIONS] ADDRESS PATH...\n"
        "Train a zstd dictionary from small files (up to 32 KiB) in the folders PATH, which may lie in a\n"
        "mount of the volume at ADDRESS or anywhere else, and store it in the volume: mounts compress\n"
        "such files with it from then on. Files that are there already stay as they are, and\n"
        "dictionaries are never deleted. Volumes with many small files also get their first one by\n"
        "themselves.\n"
        "\n"
        "  --size SIZE          of the dictionary at most (default 64K)\n"
        "  --dry-run            only say what it would save\n"
        "  --region NAME, --credentials FILE, --ca-file FILE   as for siltfs format\n"
        "  --help\n"
        "\n"
        "Exit status: 0 done; 1 failed, or it would save nothing; 2 usage.\n";

struct train {
	struct volume_config volume;
	uint64_t size;
	bool dry_run;
	char *const *paths;
	/* A fair choice of all small files that were found. */
	char *chosen[DICT_SAMPLES];
	uint64_t found;
	unsigned seed;
	struct dict_samples samples;
};

/* Keeps each file that was found with the same probability. */
static int choose(struct train *t, const char *path)
{
	uint64_t at = t->found++;
	if (at >= DICT_SAMPLES)
		at = ((uint64_t)rand_r(&t->seed) << 31 | (uint64_t)rand_r(&t->seed)) % t->found;
	if (at >= DICT_SAMPLES)
		return 0;
	free(t->chosen[at]);
	t->chosen[at] = strdup(path);
	return t->chosen[at] ? 0 : -ENOMEM;
}

static int find_files(struct train *t)
{
	int rc = 0;
	FTS *fts = fts_open(t->paths, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
	if (!fts)
		return cli_fail(CLI_FAILED, "can't walk: %s", strerror(errno));
	for (FTSENT *e; !rc && (e = fts_read(fts));) {
		if (e->fts_info == FTS_ERR || e->fts_info == FTS_NS || e->fts_info == FTS_DNR)
			rc = cli_fail(CLI_FAILED, "%s: %s", e->fts_path, strerror(e->fts_errno));
		else if (e->fts_info == FTS_F && e->fts_statp->st_size > 0 && e->fts_statp->st_size <= DICT_FRAME_MAX &&
			 choose(t, e->fts_path))
			rc = cli_fail(CLI_FAILED, "out of memory");
	}
	fts_close(fts);
	return rc;
}

/* Files that can't be read, or are no longer there, are passed over. */
static void read_files(struct train *t)
{
	static uint8_t buf[DICT_FRAME_MAX];
	for (unsigned i = 0; i < DICT_SAMPLES && t->chosen[i]; i++) {
		int fd = open(t->chosen[i], O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
		ssize_t n = fd >= 0 ? read(fd, buf, sizeof(buf)) : -1;
		if (fd >= 0)
			close(fd);
		uint8_t *to = n > 0 ? dict_samples_add(&t->samples, (size_t)n) : NULL;
		if (to)
			memcpy(to, buf, (size_t)n);
	}
}

static int publish(struct train *t, const struct volume *v, const void *dict, size_t len)
{
	struct silt_err err = { 0 };
	uint32_t number;
	if (dict_publish(v->store, v->meta, meta_volume(v->meta)->id, dict, len, &number, &err))
		return cli_fail(CLI_FAILED, "train: the dictionary can't be stored: %s", err.text);
	printf("stored as dictionary %" PRIu32 "; mounts use it within seconds\n", number);
	return CLI_OK;
}

static int train(struct train *t, const struct volume *v)
{
	void *dict;
	size_t len;
	uint64_t without, with;
	char bytes[32], size[32];
	int level = meta_volume(v->meta)->compress_level;
	if (!level && !t->dry_run)
		return cli_fail(CLI_FAILED, "the volume is formatted without compression: nothing would use it");
	int rc = find_files(t);
	if (rc)
		return rc;
	read_files(t);
	printf("%-34s %10u  %s\n", "samples", t->samples.n, cli_bytes((double)t->samples.used, bytes));
	rc = dict_train(&t->samples, t->size, level ? level : 1, &dict, &len, &without, &with);
	if (rc == -EINVAL)
		return cli_fail(CLI_FAILED, "train: %s", t->samples.n < 50 ? "give at least 50 files of up to 32 KiB"
		                                                            : "these files have too little in common");
	if (rc)
		return cli_fail(CLI_FAILED, "train: %s", strerror(-rc));
	printf("%-34s %10s\n", "dictionary", cli_bytes((double)len, size));
	printf("%-34s %10s\n", "samples held back, without it", cli_bytes((double)without, bytes));
	printf("%-34s %10s  %.0f %%\n", "with it", cli_bytes((double)with, bytes),
	       without ? (double)with * 100 / (double)without : 100);
	if (with >= without / 100 * 98)
		rc = cli_fail(CLI_FAILED, "train: it saves nothing worth it and is not stored");
	else if (!t->dry_run)
		rc = publish(t, v, dict, len);
	free(dict);
	return rc;
}

static int run(struct train *t)
{
	struct volume *v;
	struct silt_err err = { 0 };
	if (volume_open(&t->volume, &v, &err) < 0)
		return cli_fail(CLI_FAILED, "%s", err.text);
	int rc = train(t, v);
	volume_close(v);
	dict_samples_free(&t->samples);
	for (unsigned i = 0; i < DICT_SAMPLES; i++)
		free(t->chosen[i]);
	return rc;
}

int cmd_train(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "dry-run", no_argument, NULL, 'n' },
		{ "size", required_argument, NULL, 's' },
		{ "region", required_argument, NULL, 'r' },
		{ "credentials", required_argument, NULL, 'c' },
		{ "ca-file", required_argument, NULL, 'a' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	static struct train t = { .volume = { .want_store = true }, .size = DICT_SIZE, .seed = 1 };
	int opt;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, "nh", longs, NULL)) != -1) {
		switch (opt) {
		case 'h': return cli_help(help);
		case 'n': t.dry_run = true; break;
		case 'r': t.volume.region = optarg; break;
		case 'c': t.volume.credentials = optarg; break;
		case 'a': t.volume.ca_file = optarg; break;
		case 's':
			if (options_size(optarg, &t.size) < 0 || t.size < 1024 || t.size > DICT_SIZE_MAX)
				return cli_usage("train", "--size %s: give 1K to 1M", optarg);
			break;
		default: return cli_usage("train", "unknown or incomplete option: %s", argv[optind - 1]);
		}
	}
	if (argc - optind < 2)
		return cli_usage("train", "train takes an ADDRESS and at least one PATH");
	t.volume.address = argv[optind];
	t.paths = argv + optind + 1;
	return run(&t);
}
