/* A volume as the tools open it: from an address to its metadata engine and its object store.
 *
 * `local:DIR` is resolved here: the private Redis is started (or shared) for as long as the volume
 * is open, and a bucket that begins with "./" is below DIR. The objects of volume NAME live below
 * NAME/ in the bucket, among them the marker "siltfs-volume.json", which says whose they are. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "cache/store.h"
#include "meta/local.h"
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
	unsigned wait_ms, heartbeat_ms;
};

struct volume {
	struct meta_address address; /* as given */
	struct meta_address server;  /* where Redis is: local: turned into a socket */
	struct meta_local *local;
	struct meta *meta;
	struct store *store; /* NULL unless want_store */
	struct silt_log *log;
};

/* Opens metadata and, if wanted, the store, whose marker must be that of this volume. */
int volume_open(const struct volume_config *cfg, struct volume **out, struct silt_err *err);
void volume_close(struct volume *v);

/* --- Steps of it, for format
 * ---------------------------------------------------------------------- */

/* Parses the address and brings up local:. `create`: make DIR. Release with volume_release(). */
int volume_resolve(const char *address, bool create, struct silt_log *log, struct volume *out,
                   struct silt_err *err);
void volume_release(struct volume *v);

/* Opens the store of volume `name` in `bucket` ("./..." is below local:DIR). */
int volume_open_store(const struct volume *v, const struct volume_config *cfg, const char *kind,
                      const char *bucket, const char *region, const char *name, struct store **out,
                      struct silt_err *err);

struct volume_marker {
	char name[64];
	uint64_t id;
	unsigned format;
};
/* -ENOENT: there is none. */
int volume_read_marker(struct store *s, struct volume_marker *out, struct silt_err *err);
/* -EEXIST: there is one. */
int volume_write_marker(struct store *s, const struct volume_marker *m, struct silt_err *err);
