/* The table of mount settings and what reads it. To add one: a field in struct mount_options, a
 * line here, a paragraph in siltfs.1 (test/unit_options.c checks that it is there). */
#include "tools/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "meta/cleanup.h"

#define FIELD(name) offsetof(struct mount_options, name)
#define KIB         1024.0
#define MIB         (1024.0 * KIB)
#define GIB         (1024.0 * MIB)
#define TIB         (1024.0 * GIB)
#define DAY         86400.0
#define MAX_ZSTD    19

/* clang-format off */
const struct option_def option_table[] = {
	/* name, type, field, min, max, default, unit, help */
	{ "cache-dir", OPTION_PATH, FIELD(cache_dir), 0, 0, NULL, "DIR|none",
	  "SSD cache; default below ~/.cache/siltfs, as root /var/cache/siltfs" },
	{ "cache-size", OPTION_SIZE, FIELD(cache_size), 16 * MIB, 1024 * TIB, NULL, "SIZE",
	  "of the SSD cache; default 25 % of what is free, at most 100G" },
	{ "free-space-ratio", OPTION_RATIO, FIELD(free_ratio), 0.001, 0.99, "0.1", "RATIO",
	  "share of the cache's disk that stays free" },
	{ "memory-size", OPTION_SIZE, FIELD(memory_size), 1 * MIB, 1 * TIB, "64M", "SIZE",
	  "decoded data kept in memory" },
	{ "cache-writes", OPTION_FLAG, FIELD(cache_writes), 0, 0, NULL, NULL,
	  "put data just written into the SSD cache too" },
	{ "buffer-size", OPTION_SIZE, FIELD(buffer_size), 1 * MIB, 1 * TIB, "256M", "SIZE",
	  "written data in memory, not yet in the store, at most" },
	{ "attr-timeout", OPTION_SECONDS, FIELD(attr_timeout), 0, DAY, "1", "SECONDS",
	  "the kernel keeps attributes so long when Redis pushes no changes; 0: never" },
	{ "entry-timeout", OPTION_SECONDS, FIELD(entry_timeout), 0, DAY, "1", "SECONDS",
	  "the kernel keeps names of files that were listed so long; 0: not at all" },
	{ "dir-entry-timeout", OPTION_SECONDS, FIELD(dir_entry_timeout), 0, DAY, "1", "SECONDS",
	  "the kernel keeps names of directories so long when Redis pushes no changes" },
	{ "consistency", OPTION_CONSISTENCY, FIELD(relaxed), 0, 0, "close-to-open",
	  "close-to-open|relaxed",
	  "relaxed: for data that does not change; opens and lookups ask nobody" },
	{ "meta-cache", OPTION_SIZE, FIELD(meta_cache), 1 * MIB, 1 * TIB, "64M", "SIZE",
	  "memory for what is remembered of the metadata, at most" },
	{ "upload-threads", OPTION_COUNT, FIELD(upload_threads), 1, 256, "8", "N",
	  "objects written at once" },
	{ "fetch-threads", OPTION_COUNT, FIELD(fetch_threads), 1, 256, "16", "N",
	  "objects read at once" },
	{ "threads", OPTION_COUNT, FIELD(threads), 1, 256, "10", "N", "FUSE threads" },
	{ "group-window", OPTION_COUNT, FIELD(group_window_us), 1, 1000000, "10000", "MICROSECONDS",
	  "a closed file waits so long for others to share its object" },
	{ "compress", OPTION_COMPRESS, FIELD(compress_level), 0, MAX_ZSTD, NULL, "none|zstd[:LEVEL]",
	  "for data written here; default as formatted" },
	{ "credentials", OPTION_PATH, FIELD(credentials), 0, 0, NULL, "FILE",
	  "S3 keys; default from the environment or ~/.aws/credentials" },
	{ "ca-file", OPTION_PATH, FIELD(ca_file), 0, 0, NULL, "FILE",
	  "PEM certificates to trust for https; default the system's" },
	{ "region", OPTION_TEXT, FIELD(region), 0, 0, NULL, "NAME",
	  "of the bucket; default as formatted" },
	{ "redis-wait", OPTION_COUNT, FIELD(redis_wait), 1, 86400, "60", "SECONDS",
	  "operations wait so long for Redis to come back" },
	{ "heartbeat", OPTION_SECONDS, FIELD(heartbeat), 0.1, 3600, "5", "SECONDS",
	  "between signs of life; a session ends after five missed ones" },
	{ "delete-grace", OPTION_SECONDS, FIELD(delete_grace), 1, 365 * DAY, "600", "SECONDS",
	  "objects that no file uses any more are kept so long" },
	{ "compact-rate", OPTION_SIZE, FIELD(compact_rate), 0, 1 * TIB, "16M", "BYTES",
	  "read so much a second to move what is left of small and half-used objects; 0: don't" },
	{ "compact-wait", OPTION_SECONDS, FIELD(compact_wait), 1, 365 * DAY, "300", "SECONDS",
	  "after they have come to rest for so long" },
	{ "log", OPTION_PATH, FIELD(log), 0, 0, NULL, "FILE|syslog",
	  "default siltfs.log in cache-dir if given, else see siltfs(1)" },
	{ "log-level", OPTION_LEVEL, FIELD(log_level), 0, 0, "info", "error|warning|info|debug",
	  "least important lines that are logged" },
	{ "debug", OPTION_TEXT, FIELD(debug), 0, 0, NULL, "TOPIC[\\,TOPIC...]",
	  "log debug lines of these topics" },
	{ "ro", OPTION_FLAG, FIELD(read_only), 0, 0, NULL, NULL, "read-only" },
	{ "rw", OPTION_CLEAR, FIELD(read_only), 0, 0, NULL, NULL, "read-write, the default" },
	{ "relatime", OPTION_FLAG, FIELD(relatime), 0, 0, NULL, NULL,
	  "reads move access times, once after a change and once a day" },
	{ "strictatime", OPTION_FLAG, FIELD(strictatime), 0, 0, NULL, NULL,
	  "every read moves the access time; without the kernel's page cache" },
	{ "allow_other", OPTION_FLAG, FIELD(allow_other), 0, 0, NULL, NULL,
	  "other users may use the mount; the default when root mounts" },
	{ "noallow_other", OPTION_FLAG, FIELD(no_allow_other), 0, 0, NULL, NULL,
	  "only the mounting user may use the mount" },
	{ "allow_root", OPTION_FLAG, FIELD(allow_root), 0, 0, NULL, NULL,
	  "root may use the mount of a user too" },
	{ "default_permissions", OPTION_CLEAR, FIELD(no_default_permissions), 0, 0, NULL, NULL,
	  "the kernel checks permissions, the default" },
	{ "nodefault_permissions", OPTION_FLAG, FIELD(no_default_permissions), 0, 0, NULL, NULL,
	  "nobody checks permissions" },
	{ "nosuid", OPTION_PASS }, { "suid", OPTION_PASS }, { "nodev", OPTION_PASS },
	{ "dev", OPTION_PASS }, { "noexec", OPTION_PASS }, { "exec", OPTION_PASS },
	{ "noatime", OPTION_PASS }, { "atime", OPTION_PASS }, { "nodiratime", OPTION_IGNORE },
	{ "diratime", OPTION_IGNORE }, { "norelatime", OPTION_IGNORE },
	{ "nostrictatime", OPTION_IGNORE }, { "lazytime", OPTION_IGNORE },
	{ "sync", OPTION_PASS }, { "async", OPTION_PASS }, { "dirsync", OPTION_PASS },
	{ "defaults", OPTION_IGNORE }, { "auto", OPTION_IGNORE }, { "noauto", OPTION_IGNORE },
	{ "nofail", OPTION_IGNORE }, { "_netdev", OPTION_IGNORE }, { "user", OPTION_IGNORE },
	{ "nouser", OPTION_IGNORE }, { "users", OPTION_IGNORE }, { "owner", OPTION_IGNORE },
	{ "group", OPTION_IGNORE },
};
/* clang-format on */
const size_t option_count = sizeof(option_table) / sizeof(option_table[0]);

static const char *const level_names[] = { "error", "warning", "info", "debug" };

/* --- Values ----------------------------------------------------------------------------- */

static int parse_number(const char *text, double *out, const char **end)
{
	char *stop;
	if (!(*text >= '0' && *text <= '9') && *text != '.')
		return -EINVAL; /* no sign, no space, no inf or nan */
	errno = 0;
	double v = strtod(text, &stop);
	if (stop == text || errno || !isfinite(v) || memchr(text, 'x', (size_t)(stop - text)))
		return -EINVAL;
	*out = v;
	*end = stop;
	return 0;
}

static int parse_size(const char *text, double *out)
{
	static const char suffixes[] = "KMGT";
	const char *end, *suffix;

	if (parse_number(text, out, &end) < 0)
		return -EINVAL;
	if (*end == '\0')
		return 0;
	char upper = *end >= 'a' && *end <= 'z' ? (char)(*end - 'a' + 'A') : *end;
	if (!(suffix = strchr(suffixes, upper)) || (end[1] && strcmp(end + 1, "iB") != 0))
		return -EINVAL;
	*out *= pow(1024, (double)(suffix - suffixes) + 1);
	return 0;
}

int options_size(const char *text, uint64_t *out)
{
	double v;
	if (parse_size(text, &v) < 0 || v > 1e18)
		return -EINVAL;
	*out = (uint64_t)v;
	return 0;
}

int options_seconds(const char *text, double *out)
{
	static const char units[] = "smhd";
	static const double length[] = { 1, 60, 3600, DAY };
	const char *end, *unit = units;
	if (parse_number(text, out, &end) < 0)
		return -EINVAL;
	if (*end && (!(unit = strchr(units, *end)) || end[1]))
		return -EINVAL;
	*out *= length[unit - units];
	return 0;
}

int options_compress(const char *text, int *level)
{
	const char *end;
	double v;

	if (strcmp(text, "none") == 0) {
		*level = 0;
		return 0;
	}
	if (strncmp(text, "zstd", 4) != 0)
		return -EINVAL;
	if (text[4] == '\0') {
		*level = 1;
		return 0;
	}
	if (text[4] != ':' || parse_number(text + 5, &v, &end) < 0 || *end || v < 1 ||
	    v > MAX_ZSTD || v != floor(v))
		return -EINVAL;
	*level = (int)v;
	return 0;
}

static char *absolute_path(const char *path)
{
	SILT_FREE char *cwd = NULL;
	char *out;
	if (path[0] == '/')
		return strdup(path);
	if (!(cwd = getcwd(NULL, 0)) || asprintf(&out, "%s/%s", cwd, path) < 0)
		return NULL;
	return out;
}

static int set_text(char **field, const struct option_def *def, const char *value)
{
	bool word = (strcmp(def->name, "cache-dir") == 0 && strcmp(value, "none") == 0) ||
	            (strcmp(def->name, "log") == 0 && strcmp(value, "syslog") == 0);
	char *text = def->type == OPTION_PATH && !word ? absolute_path(value) : strdup(value);
	if (!text)
		return -ENOMEM;
	free(*field);
	*field = text;
	return 0;
}

static int set_number(void *field, const struct option_def *def, const char *value)
{
	const char *end = "";
	double v;
	int rc = def->type == OPTION_SIZE ? parse_size(value, &v) : parse_number(value, &v, &end);

	if (rc < 0 || *end || v < def->min || v > def->max)
		return -ERANGE;
	if (def->type == OPTION_SECONDS || def->type == OPTION_RATIO)
		*(double *)field = v;
	else if (def->type == OPTION_COUNT && v != floor(v))
		return -ERANGE;
	else
		*(uint64_t *)field = (uint64_t)v;
	return 0;
}

static int set_level(enum silt_log_level *field, const char *value)
{
	for (int i = 0; i < 4; i++) {
		if (strcmp(value, level_names[i]) == 0) {
			*field = (enum silt_log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

static int pass_word(struct mount_options *o, const char *word)
{
	size_t len = strlen(o->fuse);
	if (len + strlen(word) + 2 > sizeof(o->fuse))
		return -E2BIG;
	snprintf(o->fuse + len, sizeof(o->fuse) - len, "%s%s", len ? "," : "", word);
	return 0;
}

static int set_value(struct mount_options *o, const struct option_def *def, const char *value)
{
	void *field = (char *)o + def->field;

	switch (def->type) {
	case OPTION_TEXT:
	case OPTION_PATH: return set_text(field, def, value);
	case OPTION_SIZE:
	case OPTION_COUNT:
	case OPTION_SECONDS:
	case OPTION_RATIO: return set_number(field, def, value);
	case OPTION_LEVEL: return set_level(field, value);
	case OPTION_COMPRESS: return options_compress(value, field);
	case OPTION_CONSISTENCY:
		*(bool *)field = strcmp(value, "relaxed") == 0;
		return *(bool *)field || strcmp(value, "close-to-open") == 0 ? 0 : -EINVAL;
	case OPTION_FLAG: *(bool *)field = true; return 0;
	case OPTION_CLEAR: *(bool *)field = false; return 0;
	case OPTION_PASS: return pass_word(o, def->name);
	case OPTION_IGNORE: return 0;
	}
	return -EINVAL;
}

/* --- Lists ------------------------------------------------------------------------------ */

static const struct option_def *find_option(const char *name)
{
	for (size_t i = 0; i < option_count; i++)
		if (strcmp(option_table[i].name, name) == 0)
			return &option_table[i];
	return NULL;
}

/* A bound as a person would write it. */
static const char *show_bound(const struct option_def *def, double v, char out[32])
{
	static const char *const suffixes[] = { "", "K", "M", "G", "T" };
	int power = 0;
	if (def->type == OPTION_SIZE)
		for (; power < 4 && v >= 1024; power++)
			v /= 1024;
	snprintf(out, 32, "%g%s", v, suffixes[power]);
	return out;
}

static int bad_value(const struct option_def *def, const char *value, int rc, struct silt_err *err)
{
	char min[32], max[32];
	if (rc == -ENOMEM)
		return silt_fail(err, rc, "out of memory");
	if (rc == -E2BIG)
		return silt_fail(err, -EINVAL, "too many mount options");
	if (def->max > 0 && def->type != OPTION_COMPRESS)
		return silt_fail(err, -EINVAL, "option %s=%s: give a %s from %s to %s", def->name,
		                 value, def->type == OPTION_SIZE ? "size" : "number",
		                 show_bound(def, def->min, min), show_bound(def, def->max, max));
	return silt_fail(err, -EINVAL, "option %s=%s: give one of %s", def->name, value, def->unit);
}

static int apply(struct mount_options *o, char *word, bool sloppy, struct silt_err *err)
{
	char *value = strchr(word, '=');
	int rc;

	if (value)
		*value++ = '\0';
	const struct option_def *def = find_option(word);
	if (!def && (sloppy || strncmp(word, "x-", 2) == 0 || strcmp(word, "comment") == 0))
		return 0;
	if (!def)
		return silt_fail(err, -EINVAL, "unknown mount option %s; see siltfs mount --help",
		                 word);
	bool wants = def->unit != NULL;
	if (wants && (!value || !*value))
		return silt_fail(err, -EINVAL, "option %s needs a value: %s=%s", word, word,
		                 def->unit);
	/* mount(8) may write user=NAME; other words take no value. */
	if (!wants && value && def->type != OPTION_IGNORE)
		return silt_fail(err, -EINVAL, "option %s takes no value", word);
	rc = set_value(o, def, value);
	return rc < 0 ? bad_value(def, value ? value : "", rc, err) : 0;
}

int options_parse(struct mount_options *o, const char *list, bool sloppy, struct silt_err *err)
{
	SILT_FREE char *word = malloc(strlen(list) + 1);
	const char *p = list;

	if (!word)
		return silt_fail(err, -ENOMEM, "out of memory");
	while (*p) {
		size_t n = 0;
		while (*p && *p != ',') {
			if (*p == '\\' && (p[1] == ',' || p[1] == '\\'))
				p++;
			word[n++] = *p++;
		}
		word[n] = '\0';
		if (*p == ',')
			p++;
		int rc = n ? apply(o, word, sloppy, err) : 0;
		if (rc < 0)
			return rc;
	}
	return 0;
}

void options_init(struct mount_options *o)
{
	memset(o, 0, sizeof(*o));
	o->compress_level = -1;
	for (size_t i = 0; i < option_count; i++)
		if (option_table[i].value)
			set_value(o, &option_table[i], option_table[i].value);
}

void options_free(struct mount_options *o)
{
	for (size_t i = 0; i < option_count; i++) {
		const struct option_def *def = &option_table[i];
		if (def->type == OPTION_TEXT || def->type == OPTION_PATH)
			free(*(char **)((char *)o + def->field));
	}
	memset(o, 0, sizeof(*o));
}

int options_fuse(const struct mount_options *o, bool root, char *out, size_t size)
{
	bool other = !o->no_allow_other && !o->allow_root && (o->allow_other || root);
	int n = snprintf(out, size, "%s%s%s%s%s%s", o->read_only ? "ro" : "rw",
	                 o->no_default_permissions ? "" : ",default_permissions",
	                 other ? ",allow_other" : "", o->allow_root ? ",allow_root" : "",
	                 o->fuse[0] ? "," : "", o->fuse);
	return n < 0 || (size_t)n >= size ? -E2BIG : 0;
}

void options_help(FILE *out)
{
	for (size_t i = 0; i < option_count; i++) {
		const struct option_def *def = &option_table[i];
		char left[64];
		if (!def->help)
			continue;
		snprintf(left, sizeof(left), "%s%s%s", def->name, def->unit ? "=" : "",
		         def->unit ? def->unit : "");
		bool wide = strlen(left) > 28;
		fprintf(out, "  %-28s %s%s\n", left,
		        wide ? "\n                               " : "", def->help);
		if (def->value)
			fprintf(out, "%31s(default %s)\n", "", def->value);
	}
	fputs("  Words of mount(8) are taken too: nosuid, nodev, noexec, sync, _netdev,\n"
	      "  noauto, nofail, user, x-*...\n",
	      out);
}
