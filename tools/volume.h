/* A volume as the tools open it: from an address to its metadata engine and its object store.
 *
 * The objects of volume NAME live below NAME/ in the bucket, among them the marker
 * "siltfs-volume.json", which says whose they are. A bucket that begins with "./" is below the DIR
 * of local:DIR. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "cache/store.h"
#include "meta/meta.h"

#define VOLUME_MARKER "siltfs-volume.json"

struct volume_config {
	const char *address;
	struct silt_log *log;
	struct silt_metrics *metrics;
	/* Object store; the last three may be NULL. */
	bool want_store;
	const char *credentials, *ca_file, *region;
	/* As in struct meta_config. */
	bool session;
	const char *session_info;
	uint64_t meta_cache; /* meta_config.cache_size */
	bool relaxed;
	unsigned wait_ms, heartbeat_ms;
};

struct volume {
	struct meta_address address;
	struct meta *meta;
	struct store *store; /* NULL unless want_store */
};

/* Opens metadata and, if wanted, the store, whose marker must be that of this volume. */
int volume_open(const struct volume_config *cfg, struct volume **out, struct silt_err *err);
void volume_close(struct volume *v);

/* --- Steps of it, for format ------------------------------------------------------------ */

/* Opens the store of volume `name` in `bucket` ("./..." is below the DIR of `address`). */
int volume_open_store(const struct meta_address *address, const struct volume_config *cfg,
                      const char *kind, const char *bucket, const char *region, const char *name,
                      struct store **out, struct silt_err *err);

struct volume_marker {
	char name[64];
	uint64_t id;
	unsigned format;
};
/* -ENOENT: there is none. */
int volume_read_marker(struct store *s, struct volume_marker *out, struct silt_err *err);
/* -EEXIST: there is one. */
int volume_write_marker(struct store *s, const struct volume_marker *m, struct silt_err *err);
