/* siltfs fsck: is a volume consistent (cache/check.h), with the exit statuses of fsck(8). */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>

#include "cache/check.h"
#include "tools/cli.h"
#include "meta/scan.h"
#include "tools/volume.h"

/* As e2fsck has them. */
enum { FSCK_CLEAN = 0, FSCK_CORRECTED = 1, FSCK_ERRORS = 4, FSCK_FAILED = 8, FSCK_USAGE = 16 };

static const char help[] =
        "Usage: siltfs fsck [OPTIONS] ADDRESS\n"
        "Check the volume at ADDRESS: records, names, link counts and counters in Redis, and that all\n"
        "bytes of files are in the object store. May run beside mounts; only what is found each time\n"
        "of several is reported then.\n"
        "\n"
        "  --data     read all objects and verify their checksums\n"
        "  --repair   correct what can be corrected: counts, names of nothing, files without a name\n"
        "             (they get one in /lost+found), damaged records (they are removed). The volume\n"
        "             must not be mounted\n"
        "  --region NAME, --credentials FILE, --ca-file FILE   as for siltfs format\n"
        "  --help\n"
        "\n"
        "Exit status: 0 no errors; 1 errors, all corrected; 4 errors left; 8 could not check; 16 usage.\n";

#define LOOKS	  3 /* more, beside clients: counts can be wrong by the same number twice */
#define REPAIR_MS 600000u /* how long mounts are refused after a repair that was killed */

struct fsck {
	struct check_config check;
	struct volume_config volume;
	char token[64];
};

static int fail(const char *text)
{
	cli_fail(FSCK_FAILED, "fsck: %s", text);
	return FSCK_FAILED;
}

/* Sessions that live, and those that ended without being cleaned up after. */
static int count_sessions(struct meta *m, int *live, int *dead)
{
	char *text = NULL;
	int rc = meta_sessions_json(m, &text);
	struct json_object *list = rc ? NULL : json_tokener_parse(text), *expires;
	size_t n = list && json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
	*live = *dead = 0;
	for (size_t i = 0; i < n; i++) {
		bool ends = json_object_object_get_ex(json_object_array_get_idx(list, i), "expires_ms", &expires);
		int64_t at = ends ? json_object_get_int64(expires) : INT64_MAX;
		*(at > (int64_t)time(NULL) * 1000 ? live : dead) += 1;
	}
	json_object_put(list);
	free(text);
	return rc;
}

/* For the time of a repair nobody else comes in. */
static int hold(void *arg)
{
	struct fsck *f = arg;
	return meta_exclude(f->check.meta, f->token, REPAIR_MS);
}

static bool has(const struct check_result *r, const char *text)
{
	for (size_t i = 0; i < r->n; i++)
		if (!strcmp(r->v[i].text, text))
			return true;
	return false;
}

/* Another look: what it does not find again was being changed. */
static int look_again(const struct check_config *cfg, struct check_result *first, struct silt_err *err)
{
	struct check_result again = { 0 };
	struct timespec ts = { .tv_sec = 2 };
	nanosleep(&ts, NULL);
	int rc = check_run(cfg, &again, err);
	size_t n = 0;
	for (size_t i = 0; i < first->n && !rc; i++) {
		if (has(&again, first->v[i].text))
			first->v[n++] = first->v[i];
		else
			free(first->v[i].text);
	}
	if (!rc)
		first->n = n;
	check_free(&again);
	return rc;
}

static void print_findings(const struct check_result *r)
{
	for (size_t i = 0; i < r->n; i++)
		printf("%s%s\n", r->v[i].text, r->v[i].repaired ? " (corrected)" : "");
}

static void print_summary(const struct check_result *r, size_t errors, size_t left)
{
	char bytes[32];
	printf("%" PRIu64 " inodes, %" PRIu64 " directories, %" PRIu64 " names, %" PRIu64 " extents, %" PRIu64
	       " packs (%s): ",
	       r->inodes, r->directories, r->names, r->extents, r->packs, cli_bytes((double)r->pack_bytes, bytes));
	if (!errors)
		puts("clean");
	else
		printf("%zu errors, %zu left\n", errors, left);
}

static int may_repair(int live, int dead)
{
	char text[200];
	if (live > 0) {
		snprintf(text, sizeof(text),
		         "the volume is in use by %d sessions (siltfs status shows them); unmount it to repair it",
		         live);
		return fail(text);
	}
	if (dead > 0) {
		snprintf(text, sizeof(text),
		         "%d sessions ended without cleaning up; mount it once, so that what they left half-done is "
		         "completed, and unmount it",
		         dead);
		return fail(text);
	}
	return 0;
}

static int check(struct fsck *f, struct meta *m)
{
	struct check_result r = { 0 };
	struct silt_err err = { 0 };
	int sessions, dead;
	if (count_sessions(m, &sessions, &dead) < 0)
		return fail("can't list the sessions of the volume");
	int refused = f->check.repair ? may_repair(sessions, dead) : 0;
	if (refused)
		return refused;
	int rc = check_run(&f->check, &r, &err);
	for (int i = 0; i < LOOKS && !rc && r.n && sessions > 0; i++)
		rc = look_again(&f->check, &r, &err);
	size_t errors = r.n, left = r.n;
	if (!rc && errors)
		print_findings(&r);
	/* What a repair left, or brought to light. */
	for (int i = 0; i < 4 && f->check.repair && !rc && r.n; i++) {
		bool repaired = false;
		for (size_t k = 0; k < r.n; k++)
			repaired = repaired || r.v[k].repaired;
		if (!repaired)
			break;
		check_free(&r);
		rc = check_run(&f->check, &r, &err);
		left = r.n;
		if (!rc && r.n) {
			printf("looking again:\n");
			print_findings(&r);
		}
	}
	if (!rc)
		print_summary(&r, errors, left);
	check_free(&r);
	if (rc)
		return fail(err.text);
	return !errors ? FSCK_CLEAN : left ? FSCK_ERRORS : FSCK_CORRECTED;
}

int cmd_fsck(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "data", no_argument, NULL, 'd' },
		{ "repair", no_argument, NULL, 'p' },
		{ "region", required_argument, NULL, 'r' },
		{ "credentials", required_argument, NULL, 'c' },
		{ "ca-file", required_argument, NULL, 'a' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct fsck f = { .volume = { .want_store = true } };
	struct volume *v;
	struct silt_err err = { 0 };
	int opt;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		switch (opt) {
		case 'h': return cli_help(help);
		case 'd': f.check.data = true; break;
		case 'p': f.check.repair = true; break;
		case 'r': f.volume.region = optarg; break;
		case 'c': f.volume.credentials = optarg; break;
		case 'a': f.volume.ca_file = optarg; break;
		default: cli_usage("fsck", "unknown or incomplete option: %s", argv[optind - 1]); return FSCK_USAGE;
		}
	}
	if (argc - optind != 1) {
		cli_usage("fsck", "fsck takes an ADDRESS");
		return FSCK_USAGE;
	}
	f.volume.address = argv[optind];
	if (volume_open(&f.volume, &v, &err) < 0)
		return fail(err.text);
	f.check.store = v->store;
	f.check.meta = v->meta;
	int rc;
	if (f.check.repair) {
		snprintf(f.token, sizeof(f.token), "fsck-%ld-%lld", (long)getpid(), (long long)time(NULL));
		f.check.hold = hold;
		f.check.arg = &f;
		rc = hold(&f);
		if (rc == -EBUSY)
			rc = fail("the volume is being repaired by another siltfs fsck, or was until a few minutes ago");
		else if (rc)
			rc = fail("can't keep others from mounting the volume");
		else
			rc = check(&f, v->meta);
		meta_exclude(v->meta, f.token, 0);
	} else {
		rc = check(&f, v->meta);
	}
	volume_close(v);
	return rc;
}
