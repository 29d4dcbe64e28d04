/* From an address to an open volume (see volume.h). */
#include "tools/volume.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "meta/cleanup.h"
#include "tools/json_fields.h"

/* --- The store -------------------------------------------------------------------------- */

/* The bucket with /NAME appended. */
static char *bucket_of(const struct meta_address *address, const char *bucket, const char *name)
{
	size_t len = strlen(bucket);
	char *out;
	int n;

	while (len > 1 && bucket[len - 1] == '/')
		len--;
	if (strncmp(bucket, "./", 2) == 0 && address->kind == META_ADDRESS_LOCAL)
		n = asprintf(&out, "%s/%.*s/%s", address->path, (int)len - 2, bucket + 2, name);
	else
		n = asprintf(&out, "%.*s/%s", (int)len, bucket, name);
	return n < 0 ? NULL : out;
}

int volume_open_store(const struct meta_address *address, const struct volume_config *cfg,
                      const char *kind, const char *bucket, const char *region, const char *name,
                      struct store **out, struct silt_err *err)
{
	SILT_FREE char *where = bucket_of(address, bucket, name);
	struct store_credentials keys = { 0 };
	int rc;

	if (!where)
		return silt_fail(err, -ENOMEM, "out of memory");
	if (strcmp(kind, "file") != 0 && (rc = store_credentials(cfg->credentials, &keys, err)) < 0)
		return rc;
	struct store_config sc = {
		.kind = kind,
		.bucket = where,
		.region = cfg->region ? cfg->region : region,
		.access_key = keys.access_key,
		.secret_key = keys.secret_key,
		.session_token = keys.session_token,
		.ca_file = cfg->ca_file,
		.log = cfg->log,
		.metrics = cfg->metrics,
	};
	rc = store_open(&sc, out, err);
	store_credentials_free(&keys);
	return rc;
}

/* --- The marker ------------------------------------------------------------------------- */

int volume_read_marker(struct store *s, struct volume_marker *out, struct silt_err *err)
{
	char text[4096];
	struct volume_marker m = { .id = 0 };
	ssize_t n = store_get(s, VOLUME_MARKER, 0, sizeof(text) - 1, text, NULL, err);

	if (n < 0)
		return (int)n;
	text[n] = '\0';
	struct json_object *o = json_tokener_parse(text);
	snprintf(m.name, sizeof(m.name), "%s", json_text(o, "name"));
	m.format = (unsigned)json_number(o, "format");
	m.id = strtoull(json_text(o, "id"), NULL, 16);
	json_object_put(o);
	if (!m.name[0] || !m.id)
		return silt_fail(err, -EBADMSG, "%s at %s is damaged", VOLUME_MARKER,
		                 store_where(s));
	*out = m;
	return 0;
}

int volume_write_marker(struct store *s, const struct volume_marker *m, struct silt_err *err)
{
	char text[512];
	int n = snprintf(text, sizeof(text),
	                 "{\"name\":\"%s\",\"id\":\"%016" PRIx64 "\",\"format\":%u,"
	                 "\"created\":%lld}\n",
	                 m->name, m->id, m->format, (long long)time(NULL));
	struct iovec iov = { .iov_base = text, .iov_len = (size_t)n };
	return store_put(s, VOLUME_MARKER, &iov, 1, STORE_EXCL, err);
}

/* The store must hold this volume and no other. */
static int check_marker(struct volume *v, struct silt_err *err)
{
	const struct meta_volume *mv = meta_volume(v->meta);
	struct volume_marker m;
	int rc = volume_read_marker(v->store, &m, err);

	if (rc == -ENOENT)
		return silt_fail(err, rc,
		                 "the objects of volume %s are not at %s (no %s there): the "
		                 "bucket is missing or another one than at format",
		                 mv->name, store_where(v->store), VOLUME_MARKER);
	if (rc < 0)
		return rc;
	if (m.id != mv->id)
		return silt_fail(err, -EEXIST,
		                 "the objects at %s belong to another volume named %s "
		                 "(id %016" PRIx64 ", this one is %016" PRIx64 ")",
		                 store_where(v->store), m.name, m.id, mv->id);
	return 0;
}

/* --- Opening ---------------------------------------------------------------------------- */

static int open_parts(struct volume *v, const struct volume_config *cfg, struct silt_err *err)
{
	struct meta_config mc = {
		.address = &v->address,
		.log = cfg->log,
		.metrics = cfg->metrics,
		.wait_ms = cfg->wait_ms,
		.heartbeat_ms = cfg->heartbeat_ms,
		.session = cfg->session,
		.opens_files = cfg->session,
		.session_info = cfg->session_info,
		.cache_size = cfg->meta_cache,
		.relaxed = cfg->relaxed,
	};
	int rc = meta_open(&mc, &v->meta, err);
	if (rc < 0 || !cfg->want_store)
		return rc;
	const struct meta_volume *mv = meta_volume(v->meta);
	rc = volume_open_store(&v->address, cfg, mv->storage, mv->bucket, mv->region, mv->name,
	                       &v->store, err);
	return rc < 0 ? rc : check_marker(v, err);
}

int volume_open(const struct volume_config *cfg, struct volume **out, struct silt_err *err)
{
	struct volume *v = calloc(1, sizeof(*v));
	int rc;

	if (!v)
		return silt_fail(err, -ENOMEM, "out of memory");
	rc = meta_address_parse(cfg->address, &v->address, err);
	if (rc == 0)
		rc = open_parts(v, cfg, err);
	if (rc < 0) {
		volume_close(v);
		return rc;
	}
	*out = v;
	return 0;
}

void volume_close(struct volume *v)
{
	if (!v)
		return;
	if (v->store)
		store_close(v->store);
	if (v->meta)
		meta_close(v->meta);
	meta_address_free(&v->address);
	free(v);
}
