/* siltfs format: makes a volume.
 *
 * Order: the store is checked by writing, reading and deleting an object, the volume's id is noted
 * in Redis, the marker with that id is put with a condition (the one step that settles who owns
 * NAME in the bucket), and last the metadata is created, in one server-side call.
 *
 * Whatever fails takes the marker away again, unless Redis can't be asked whether there is a volume
 * now. A format that was killed leaves the note and perhaps the marker: the next one finds its id
 * in Redis, and goes on with a marker that has it. Credentials are used and never stored. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

#include "meta/cleanup.h"
#include "tools/cli.h"
#include "tools/options.h"
#include "tools/volume.h"

static const char help[] =
        "Usage: siltfs format [OPTIONS] ADDRESS NAME\n"
        "Make a volume NAME (3 to 63 of a-z A-Z 0-9 -) whose metadata is at ADDRESS:\n"
        "  redis://[user[:password]@]host[:port][/db]\n"
        "  redis+socket:///path[?db=N]\n"
        "  local:DIR             a private Redis in DIR, started when needed\n"
        "Refuses where there is a volume already, in Redis or in the bucket. One that was\n"
        "interrupted is finished by the same command.\n"
        "\n"
        "Options:\n"
        "  --storage file|s3|s3v2   kind of object store: a directory, S3 with signature V4\n"
        "                           (default for a URL) or with signature V2\n"
        "  --bucket DIR|URL         where objects go, below NAME/; a URL is\n"
        "                           http(s)://host[:port]/bucket[/prefix]; default for local: is\n"
        "                           DIR/objects\n"
        "  --create-bucket          make the bucket or directory if it is missing\n"
        "  --region NAME            of the bucket (default us-east-1)\n"
        "  --credentials FILE       S3 keys; else from the environment (SILTFS_ACCESS_KEY and\n"
        "                           SILTFS_SECRET_KEY, or AWS_...) or ~/.aws/credentials\n"
        "  --ca-file FILE           PEM certificates to trust for https\n"
        "  --shards N               groups of metadata, 1 to 4096 (default 1)\n"
        "  --compress none|zstd[:LEVEL]   (default zstd:1)\n"
        "  --help\n"
        "\n"
        "Passwords: in the address, in SILTFS_META_PASSWORD, or in the first line of the file\n"
        "that SILTFS_META_PASSWORD_FILE names.\n"
        "Example: siltfs format local:/srv/vol demo && siltfs mount local:/srv/vol /mnt\n";

struct format {
	struct volume_config cfg; /* credentials, ca_file */
	struct meta_volume volume;
	char *storage, *bucket, *region;
	const char *name;
	bool create_bucket;
	struct meta_address address;
	struct store *store;
	bool marked; /* the marker is there, with the volume's id */
	bool made_dir;
	char dir[4096]; /* of the objects of a file store */
};

/* --- Arguments -------------------------------------------------------------------------- */

static bool name_is_good(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-");
	return name[n] == '\0' && n >= 3 && n <= 63;
}

static int parse_option(struct format *f, int opt)
{
	char *end;
	unsigned long n;

	switch (opt) {
	case 's': f->storage = optarg; return 0;
	case 'b': f->bucket = optarg; return 0;
	case 'r': f->region = optarg; return 0;
	case 'c': f->cfg.credentials = optarg; return 0;
	case 'a': f->cfg.ca_file = optarg; return 0;
	case 'B': f->create_bucket = true; return 0;
	case 'n':
		n = strtoul(optarg, &end, 10);
		if (*end || optarg[0] == '-' || n < 1 || n > SILT_MAX_SHARDS)
			return cli_usage("format", "--shards %s: give a number from 1 to %d",
			                 optarg, SILT_MAX_SHARDS);
		f->volume.shards = (unsigned)n;
		return 0;
	case 'z':
		if (options_compress(optarg, &f->volume.compress_level) < 0)
			return cli_usage("format", "--compress %s: give none, zstd or zstd:LEVEL",
			                 optarg);
		return 0;
	default: return CLI_USAGE;
	}
}

static bool is_url(const char *s)
{
	return strncmp(s, "http://", 7) == 0 || strncmp(s, "https://", 8) == 0;
}

/* Fills in storage and bucket where they follow from each other. */
static int settle_store(struct format *f, const char *address)
{
	bool local = strncmp(address, "local:", 6) == 0;
	char *full;

	if (!f->bucket && !local)
		return cli_usage("format", "say where objects go: --bucket DIR or --bucket URL");
	if (!f->bucket) {
		f->bucket = strdup("./objects");
		f->create_bucket = true;
	} else if (is_url(f->bucket) || f->bucket[0] == '/') {
		f->bucket = strdup(f->bucket);
	} else {
		SILT_FREE char *cwd = getcwd(NULL, 0);
		full = NULL;
		if (cwd && asprintf(&full, "%s/%s", cwd, f->bucket) < 0)
			full = NULL;
		f->bucket = full;
	}
	if (!f->bucket)
		return cli_fail(CLI_FAILED, "out of memory");
	if (!f->storage)
		f->storage = (char *)(is_url(f->bucket) ? "s3" : "file");
	bool file = strcmp(f->storage, "file") == 0;
	if (!file && strcmp(f->storage, "s3") != 0 && strcmp(f->storage, "s3v2") != 0)
		return cli_usage("format", "--storage %s: give file, s3 or s3v2", f->storage);
	if (file == is_url(f->bucket))
		return cli_usage("format", "--storage %s needs a %s as --bucket", f->storage,
		                 file ? "directory" : "URL http(s)://host[:port]/bucket[/prefix]");
	return CLI_OK;
}

/* --- Steps ------------------------------------------------------------------------------ */

/* The directory of a file store: its parent, the bucket, has to be there unless it may be made. */
static int prepare_directory(struct format *f, struct silt_err *err)
{
	struct stat st;
	bool relative = strncmp(f->bucket, "./", 2) == 0;
	char bucket[4000];

	snprintf(bucket, sizeof(bucket), "%s%s%s", relative ? f->address.path : "",
	         relative ? "/" : "", relative ? f->bucket + 2 : f->bucket);
	snprintf(f->dir, sizeof(f->dir), "%s/%s", bucket, f->name);
	if (!f->create_bucket && stat(bucket, &st) < 0)
		return silt_fail(err, -errno,
		                 "the bucket directory %s: %s; make it or add "
		                 "--create-bucket",
		                 bucket, strerror(errno));
	f->made_dir = stat(f->dir, &st) < 0;
	return store_create_bucket(f->store, err);
}

static int prepare_store(struct format *f, struct silt_err *err)
{
	int rc = volume_open_store(&f->address, &f->cfg, f->storage, f->bucket, f->region, f->name,
	                           &f->store, err);
	if (rc < 0)
		return rc;
	if (strcmp(f->storage, "file") == 0)
		rc = prepare_directory(f, err);
	else if (f->create_bucket)
		rc = store_create_bucket(f->store, err);
	if (rc < 0)
		return rc;
	if ((rc = store_check(f->store, "check/", err)) < 0)
		return rc;
	printf("Object store: %s at %s: writing, reading and deleting works\n", f->storage,
	       store_where(f->store));
	return 0;
}

static int on_pack(void *arg, const char *key, const struct store_object *info)
{
	return 1;
}

/* There is a marker. One that has the noted id is of a format that was interrupted; with packs
 * beside it, Redis has lost the volume they belong to. */
static int judge_marker(struct format *f, struct silt_err *err)
{
	struct volume_marker old = { .id = 0 };
	char id[32] = "";

	if (volume_read_marker(f->store, &old, NULL) == 0)
		snprintf(id, sizeof(id), " (id %016" PRIx64 ")", old.id);
	if (old.id == f->volume.id && store_list(f->store, "packs/", "", on_pack, NULL, err) == 0) {
		puts("Going on with a format that was interrupted");
		return 0;
	}
	return silt_fail(err, -EEXIST,
	                 "%s already holds a volume named %s%s; choose another name or bucket, or "
	                 "delete all that is there if nobody needs that volume",
	                 store_where(f->store), f->name, id);
}

static int put_marker(struct format *f, struct silt_err *err)
{
	struct volume_marker m = { .id = f->volume.id, .format = META_FORMAT_VERSION };
	snprintf(m.name, sizeof(m.name), "%s", f->name);
	int rc = volume_write_marker(f->store, &m, err);

	if (rc == -EEXIST)
		rc = judge_marker(f, err);
	f->marked = rc == 0;
	return rc;
}

static void print_server(const struct format *f, const struct meta_server_info *s)
{
	printf("Redis %s at %s: answers in %.2f ms\n", s->version, f->address.shown, s->ping_ms);
	printf("  append-only file %s, fsync %s; maxmemory-policy %s\n",
	       s->append_only ? "on" : "off", s->fsync, s->policy);
	printf("  listpack: %u entries, values to %u bytes%s\n", s->listpack_entries,
	       s->listpack_value, s->listpack_set ? " (raised by siltfs)" : "");
	if (!s->append_only)
		printf("warning: metadata is lost when Redis restarts; set appendonly yes\n");
	else if (strcmp(s->fsync, "no") == 0)
		printf("warning: a power cut may lose metadata; set appendfsync everysec or "
		       "always\n");
	if (strncmp(s->policy, "noeviction", 10) != 0)
		printf("warning: Redis may evict metadata; set maxmemory-policy noeviction\n");
	if (s->listpack_value < 512 || s->listpack_entries < 256)
		printf("warning: metadata takes more memory; set hash-max-listpack-value 512 and "
		       "hash-max-listpack-entries 256\n");
}

static int run_steps(struct format *f, const char *address, struct silt_err *err)
{
	struct meta_server_info info = { 0 };
	int rc = meta_address_parse(address, &f->address, err);

	if (rc == 0)
		rc = prepare_store(f, err);
	if (rc == 0)
		rc = meta_format_note(&f->address, &f->volume.id, err);
	if (rc == 0)
		rc = put_marker(f, err);
	if (rc < 0)
		return rc;
	rc = meta_format(&f->address, &f->volume, getuid(), getgid(), NULL, &info, err);
	if (rc < 0)
		return rc;
	f->marked = f->made_dir = false; /* they stay */
	print_server(f, &info);
	printf("Volume %s (id %016" PRIx64 "): %u shard%s, %s\n", f->name, f->volume.id,
	       f->volume.shards, f->volume.shards == 1 ? "" : "s",
	       f->volume.compress_level ? "zstd" : "no compression");
	printf("Mount it: siltfs mount %s MOUNTPOINT\n", f->address.shown);
	return 0;
}

/* Whether there is no volume, for certain. One that another format has just made, or that was made
 * though the answer got lost, has this marker. */
static bool no_volume_at(const char *address)
{
	struct volume_config cfg = { .address = address };
	struct silt_err err;
	struct volume *v;
	int rc = volume_open(&cfg, &v, &err);

	if (rc == 0)
		volume_close(v);
	return rc == -ENOENT;
}

static void undo(struct format *f, const char *address)
{
	struct silt_err err;
	if (f->marked && no_volume_at(address) && store_delete(f->store, VOLUME_MARKER, &err) < 0)
		cli_fail(0, "%s at %s could not be removed: %s", VOLUME_MARKER,
		         store_where(f->store), err.text);
	/* What the check left in a directory that we made; rmdir() keeps what is in use. */
	static const char *const folders[] = { "/check", "/~tmp", "" };
	for (int i = 0; f->made_dir && i < 3; i++) {
		char path[sizeof(f->dir) + 8];
		snprintf(path, sizeof(path), "%s%s", f->dir, folders[i]);
		rmdir(path);
	}
}

static int format(struct format *f, const char *address)
{
	struct silt_err err = { 0 };
	int rc;

	while (f->volume.id == 0)
		if (getrandom(&f->volume.id, sizeof(f->volume.id), 0) < 0)
			return cli_fail(CLI_FAILED, "no random numbers: %s", strerror(errno));
	f->volume.version = META_FORMAT_VERSION;
	f->volume.name = (char *)f->name;
	f->volume.storage = f->storage;
	f->volume.bucket = f->bucket;
	f->volume.region = f->region;
	f->volume.created = time(NULL);
	rc = run_steps(f, address, &err);
	if (rc < 0) {
		fflush(stdout);
		cli_fail(0, "%s", err.text[0] ? err.text : strerror(-rc));
		undo(f, address);
	}
	if (f->store)
		store_close(f->store);
	meta_address_free(&f->address);
	return rc < 0 ? CLI_FAILED : CLI_OK;
}

int cmd_format(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "storage", required_argument, NULL, 's' },
		{ "bucket", required_argument, NULL, 'b' },
		{ "region", required_argument, NULL, 'r' },
		{ "shards", required_argument, NULL, 'n' },
		{ "compress", required_argument, NULL, 'z' },
		{ "credentials", required_argument, NULL, 'c' },
		{ "ca-file", required_argument, NULL, 'a' },
		{ "create-bucket", no_argument, NULL, 'B' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct format f = { .volume = { .shards = 1, .compress_level = 1 } };
	int opt, rc;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
		if (opt == 'h')
			return cli_help(help);
		if (opt == '?')
			return cli_usage("format", "unknown option or no value: %s",
			                 argv[optind - 1]);
		if ((rc = parse_option(&f, opt)))
			return rc;
	}
	if (argc - optind != 2)
		return cli_usage("format", "format takes an ADDRESS and a NAME");
	f.name = argv[optind + 1];
	if (!name_is_good(f.name))
		return cli_usage("format",
		                 "a volume's name is 3 to 63 of a-z A-Z 0-9 and -, not \"%s\"",
		                 f.name);
	const char *given = f.bucket;
	rc = settle_store(&f, argv[optind]);
	if (!rc)
		rc = format(&f, argv[optind]);
	if (f.bucket != given) /* settle_store() made its own, also when it then refused the kind */
		free(f.bucket);
	return rc;
}
