/* siltfs debug pack: header, index and verification of one pack, from a store or a file. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/pack.h"
#include "meta/cleanup.h"
#include "tools/cli.h"
#include "tools/debug.h"
#include "tools/volume.h"

static void print_index(const uint8_t *data, size_t len)
{
	uint32_t off, index_len, frames;
	uint64_t xxh3;
	struct pack_index ix;

	if (len < PACK_HEADER + PACK_TRAILER ||
	    pack_trailer_decode(data + len - PACK_TRAILER, len, &off, &index_len, &frames, &xxh3) <
	            0) {
		puts("trailer: damaged");
		return;
	}
	printf("trailer: index of %u bytes at %u, %u frames\n", index_len, off, frames);
	if (pack_index_decode(data + off, index_len, frames, xxh3, off, &ix) < 0) {
		puts("index: damaged");
		return;
	}
	printf("%10s %20s %14s %8s %8s\n", "at", "inode", "file offset", "raw", "stored");
	for (size_t i = 0; i < ix.n; i++)
		printf("%10u %20" PRIu64 " %14" PRIu64 " %8u %8u\n", ix.v[i].pack_off, ix.v[i].ino,
		       ix.v[i].off, ix.v[i].raw, ix.v[i].stored);
	pack_index_free(&ix);
}

/* `expect` and `volume`: 0 means whatever the header says. */
static int show_pack(const uint8_t *data, size_t len, uint64_t expect, uint64_t volume)
{
	struct pack_info info;
	char why[160] = "";

	if (len < PACK_HEADER || pack_header_decode(data, &info) < 0)
		return cli_fail(CLI_FAILED, "no pack: its header is damaged");
	printf("pack %016" PRIx64 ", volume %016" PRIx64 ", nonce %016" PRIx64 ", %zu bytes\n",
	       info.pack, info.volume, info.nonce, len);
	print_index(data, len);
	if (pack_verify(data, len, expect ? expect : info.pack, volume ? volume : info.volume,
	                why) < 0)
		return cli_fail(CLI_FAILED, "the pack is damaged: %s", why);
	puts("verified: every checksum is right");
	return CLI_OK;
}

static int show_file(const char *name)
{
	SILT_FREE uint8_t *data = malloc(PACK_MAX + 1);
	SILT_FCLOSE FILE *f = fopen(name, "re");

	if (!f || !data)
		return cli_fail(CLI_FAILED, "%s: %s", name, strerror(errno));
	size_t n = fread(data, 1, PACK_MAX + 1, f);
	if (ferror(f) || n > PACK_MAX)
		return cli_fail(CLI_FAILED, "%s: %s", name,
		                n > PACK_MAX ? "larger than a pack may be" : "can't be read");
	return show_pack(data, n, 0, 0);
}

static int show_object(struct volume *v, uint64_t pack)
{
	SILT_FREE uint8_t *data = malloc(PACK_MAX);
	struct silt_err err = { 0 };
	char key[PACK_KEY_MAX];

	if (!data)
		return cli_fail(CLI_FAILED, "out of memory");
	pack_key(pack, key);
	ssize_t n = store_get(v->store, key, 0, PACK_MAX, data, NULL, &err);
	if (n < 0)
		return cli_fail(CLI_FAILED, "%s", err.text);
	printf("object %s at %s\n", key, store_where(v->store));
	return show_pack(data, (size_t)n, pack, meta_volume(v->meta)->id);
}

int debug_pack(int argc, char **argv)
{
	struct volume_config cfg = { .address = argc > 1 ? argv[1] : "", .want_store = true };
	struct silt_err err = { 0 };
	struct volume *v;
	char *end;

	if (argc == 2)
		return show_file(argv[1]);
	uint64_t pack = argc == 3 ? strtoull(argv[2], &end, 16) : 0;
	if (pack == 0 || *end)
		return cli_usage("debug",
		                 "debug pack takes an ADDRESS and a pack id in hex, or a FILE");
	int rc = volume_open(&cfg, &v, &err);
	if (rc < 0)
		rc = cli_fail(CLI_FAILED, "%s", err.text);
	else
		rc = show_object(v, pack);
	if (rc == CLI_OK || err.code == 0)
		volume_close(v);
	return rc;
}
