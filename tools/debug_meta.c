/* siltfs debug inode, bucket, redis: metadata as it stands in Redis. Keys and records are drawn at
 * the head of meta/functions.lua; the raw bytes come as the text of meta_debug_command(), whose
 * strings
 * ("..." with \xHH) are turned back into bytes here. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "meta/cleanup.h"
#include "meta/record.h"
#include "tools/cli.h"
#include "tools/debug.h"
#include "tools/volume.h"

#define PLACE_BITS        52
#define INODES_PER_BUCKET 64

struct bytes {
	char *data;
	size_t len;
};

/* --- Opening and asking ----------------------------------------------------------------- */

static struct volume *open_volume(const char *address)
{
	struct volume_config cfg = { .address = address };
	struct silt_err err = { 0 };
	struct volume *v = NULL;

	if (volume_open(&cfg, &v, &err) < 0)
		cli_fail(CLI_FAILED, "%s", err.text);
	return v;
}

static char *ask(struct meta *m, int argc, const char **argv)
{
	char *out = NULL;
	int rc = meta_debug_command(m, argc, argv, NULL, &out);
	if (rc < 0)
		cli_fail(CLI_FAILED, "Redis: %s", strerror(-rc));
	return rc < 0 ? NULL : out;
}

/* The next "..." string at or after *p as bytes (in place); false when there is none. */
static bool next_string(char **p, struct bytes *out)
{
	char *s = strchr(*p, '"');
	if (!s)
		return false;
	char *w = s;
	out->data = w;
	for (s++; *s && *s != '"'; s++) {
		unsigned v;
		if (s[0] == '\\' && s[1] == 'x' && sscanf(s + 2, "%2x", &v) == 1) {
			*w++ = (char)v;
			s += 3;
		} else {
			*w++ = *s;
		}
	}
	out->len = (size_t)(w - out->data);
	*p = *s ? s + 1 : s;
	return true;
}

static int parse_inode(const char *text, silt_ino *ino)
{
	char *end;
	errno = 0;
	*ino = strtoull(text, &end, 0);
	return errno || *end || end == text || *ino == 0 ? -EINVAL : 0;
}

/* --- inode ------------------------------------------------------------------------------ */

static void print_time(const char *name, struct silt_time t)
{
	printf("  %-8s %lld.%09u\n", name, (long long)t.sec, t.nsec);
}

static void print_extent(const struct silt_extent *e)
{
	if (e->flags & EXTENT_HOLE)
		printf("    off %" PRIu64 " len %" PRIu64 " hole\n", e->off, e->len);
	else
		printf("    off %" PRIu64 " len %" PRIu64 " pack %016" PRIx64
		       " at %u stored %u skip %u flags %u\n",
		       e->off, e->len, e->pack, e->pack_off, e->stored, e->skip, e->flags);
}

static void print_record(const struct silt_inode *i)
{
	static const char *const maps[] = { "none", "inline", "external" };
	const struct silt_attr *a = &i->attr;
	printf("  mode     %o\n  owner    %u:%u\n  links    %u\n  size     %" PRIu64
	       "\n  version  %016" PRIx64 "\n",
	       a->mode, a->uid, a->gid, a->nlink, a->size, a->version);
	if (a->flags)
		printf("  flags   %s%s%s%s%s%s\n", a->flags & SILT_FLAG_LEASED ? " leased" : "",
		       a->flags & SILT_FLAG_XATTRS ? " xattrs" : "",
		       a->flags & SILT_FLAG_ACL ? " acl" : "",
		       a->flags & SILT_FLAG_DEFAULT_ACL ? " default-acl" : "",
		       a->flags & SILT_FLAG_IMMUTABLE ? " immutable" : "",
		       a->flags & SILT_FLAG_APPEND ? " append-only" : "");
	if (S_ISDIR(a->mode))
		printf("  parent   %" PRIu64 "\n", a->parent);
	print_time("atime", a->atime);
	print_time("mtime", a->mtime);
	print_time("ctime", a->ctime);
	if (S_ISREG(a->mode))
		printf("  extents  %s\n", maps[i->map]);
	if (i->map == SILT_MAP_INLINE)
		print_extent(&i->extent);
}

static void print_logs(struct meta *m, silt_ino ino)
{
	char key[64];
	struct bytes window, log;
	snprintf(key, sizeof(key), "{%u}x%" PRIx64, silt_ino_shard(ino), silt_ino_seq(ino));
	SILT_FREE char *text = ask(m, 2, (const char *[]){ "HGETALL", key });
	char *p = text;

	while (p && next_string(&p, &window) && next_string(&p, &log)) {
		struct silt_extent e;
		int used;
		printf("  window %.*s: log of %zu bytes\n", (int)window.len, window.data, log.len);
		for (size_t at = 0; at < log.len; at += (size_t)used) {
			used = extent_decode(log.data + at, log.len - at, &e);
			if (used <= 0) {
				printf("    damaged at byte %zu\n", at);
				break;
			}
			print_extent(&e);
		}
	}
}

/* Fetches the record of an inode. `text` owns its bytes. */
static int fetch_record(struct meta *m, silt_ino ino, char **text, struct bytes *record)
{
	char key[64], field[32];
	char *p;

	snprintf(key, sizeof(key), "{%u}i%" PRIx64, silt_ino_shard(ino),
	         silt_ino_seq(ino) / INODES_PER_BUCKET);
	snprintf(field, sizeof(field), "%" PRIu64, silt_ino_seq(ino) % INODES_PER_BUCKET);
	*text = ask(m, 3, (const char *[]){ "HGET", key, field });
	p = *text;
	if (!p)
		return CLI_FAILED;
	if (!next_string(&p, record))
		return cli_fail(CLI_FAILED, "no inode %" PRIu64 " (%s %s)", ino, key, field);
	printf("inode %" PRIu64 ": key %s field %s, record of %zu bytes:", ino, key, field,
	       record->len);
	for (size_t i = 0; i < record->len; i++)
		printf("%s%02x", i % 4 ? "" : " ", (unsigned char)record->data[i]);
	putchar('\n');
	return CLI_OK;
}

static int show_inode(struct meta *m, silt_ino ino)
{
	SILT_FREE char *text = NULL;
	struct silt_inode inode;
	struct bytes record;
	const char *target = NULL;
	size_t target_len = 0;

	if (fetch_record(m, ino, &text, &record) != CLI_OK)
		return CLI_FAILED;
	if (record_decode(ino, record.data, record.len, &inode, &target, &target_len) < 0)
		return cli_fail(CLI_FAILED, "the record of inode %" PRIu64 " is damaged", ino);
	print_record(&inode);
	if (target)
		printf("  target   %.*s\n", (int)target_len, target);
	if (S_ISDIR(inode.attr.mode))
		printf("  buckets  %" PRIu64 "\n", record_buckets(record.data, record.len));
	if (inode.map == SILT_MAP_EXTERNAL)
		print_logs(m, ino);
	return CLI_OK;
}

/* --- bucket ----------------------------------------------------------------------------- */

static int show_bucket(struct meta *m, silt_ino dir, uint64_t start)
{
	char key[64];
	struct bytes name, entry;
	size_t n = 0;
	int worst = CLI_OK;

	snprintf(key, sizeof(key), "{%u}d%" PRIx64 ":%" PRIx64, silt_ino_shard(dir),
	         silt_ino_seq(dir), start >> 20);
	SILT_FREE char *text = ask(m, 2, (const char *[]){ "HGETALL", key });
	char *p = text;
	if (!p)
		return CLI_FAILED;
	printf("bucket %s (places from %013" PRIx64 ")\n", key, start);
	for (; next_string(&p, &name) && next_string(&p, &entry); n++) {
		uint32_t type;
		silt_ino ino;
		bool moving;
		if (record_entry_decode(silt_ino_shard(dir), entry.data, entry.len, &type, &ino,
		                        &moving) < 0) {
			worst = CLI_FAILED;
			printf("  %-30.*s damaged\n", (int)name.len, name.data);
			continue;
		}
		printf("  %-30.*s inode %" PRIu64 " type %o place %013" PRIx64 "%s\n",
		       (int)name.len, name.data, ino, type, record_place(name.data, name.len),
		       moving ? " moving" : "");
	}
	printf("  %zu entries\n", n);
	return worst;
}

static int show_buckets(struct meta *m, silt_ino dir)
{
	SILT_FREE char *text = NULL;
	struct bytes record;
	int worst = CLI_OK;

	if (fetch_record(m, dir, &text, &record) != CLI_OK)
		return CLI_FAILED;
	uint64_t n = record_buckets(record.data, record.len);
	if (n == 0)
		return cli_fail(CLI_FAILED, "inode %" PRIu64 " is no directory", dir);
	/* Linear hashing: 2^level parts, of which the first n - 2^level are cut in two. */
	unsigned level = 63u - (unsigned)__builtin_clzll(n);
	uint64_t parts = (uint64_t)1 << level, width = ((uint64_t)1 << PLACE_BITS) >> level;
	for (uint64_t i = 0; i < parts && worst == CLI_OK; i++) {
		worst = show_bucket(m, dir, i * width);
		if (i < n - parts && worst == CLI_OK)
			worst = show_bucket(m, dir, i * width + width / 2);
	}
	return worst;
}

/* --- Entry points ----------------------------------------------------------------------- */

static int with_inode(int argc, char **argv, int (*show)(struct meta *m, silt_ino ino))
{
	silt_ino ino;

	if (argc != 3 || parse_inode(argv[2], &ino) < 0)
		return cli_usage("debug", "debug %s takes an ADDRESS and an inode number", argv[0]);
	struct volume *v = open_volume(argv[1]);
	int rc = v ? show(v->meta, ino) : CLI_FAILED;
	volume_close(v);
	return rc;
}

int debug_inode(int argc, char **argv)
{
	return with_inode(argc, argv, show_inode);
}

int debug_bucket(int argc, char **argv)
{
	return with_inode(argc, argv, show_buckets);
}

int debug_redis(int argc, char **argv)
{

	if (argc < 3)
		return cli_usage("debug", "debug redis takes an ADDRESS and a command");
	struct volume *v = open_volume(argv[1]);
	SILT_FREE char *text = v ? ask(v->meta, argc - 2, (const char **)argv + 2) : NULL;
	if (text)
		fputs(text, stdout);
	volume_close(v);
	return text && strncmp(text, "(error)", 7) != 0 ? CLI_OK : CLI_FAILED;
}
