/* Settings of a mount, all in one table (options.c): `-o` parsing, `siltfs mount --help` and the
 * check of the man page come from it. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "meta/error.h"
#include "meta/log.h"

#define OPTIONS_FUSE_MAX 1024

/* 0 (or NULL) in a number or text means: the default that the subsystem chooses. */
struct mount_options {
	char *cache_dir; /* "none": no SSD tier */
	uint64_t cache_size;
	double free_ratio;
	uint64_t memory_size;
	bool cache_writes;
	uint64_t buffer_size;
	double attr_timeout, entry_timeout, dir_entry_timeout;
	uint64_t meta_cache;
	bool relaxed; /* consistency */
	uint64_t upload_threads, fetch_threads, threads;
	uint64_t group_window_us;
	int compress_level; /* -1: the volume's */
	char *credentials, *ca_file, *region;
	uint64_t redis_wait;
	double heartbeat;
	double delete_grace, compact_wait;
	uint64_t compact_rate;
	char *log;
	enum silt_log_level log_level;
	char *debug;
	bool read_only;
	bool relatime, strictatime;
	bool allow_other, allow_root, no_allow_other, no_default_permissions;
	char fuse[OPTIONS_FUSE_MAX]; /* words for libfuse, comma-separated; options_fuse() adds ours
	                              */
};

enum option_type {
	OPTION_TEXT,
	OPTION_PATH, /* made absolute: a daemon's current directory is / */
	OPTION_SIZE, /* bytes; suffixes K M G T are powers of 1024 */
	OPTION_COUNT,
	OPTION_SECONDS,
	OPTION_RATIO,
	OPTION_LEVEL,    /* of logging */
	OPTION_CONSISTENCY, /* close-to-open or relaxed */
	OPTION_COMPRESS, /* none or zstd[:level] */
	OPTION_FLAG,     /* sets a bool */
	OPTION_CLEAR,    /* clears a bool */
	OPTION_PASS,     /* a word given on to libfuse */
	OPTION_IGNORE,   /* a word of mount(8) that means nothing to us */
};

struct option_def {
	const char *name;
	enum option_type type;
	size_t field;      /* offset in struct mount_options */
	double min, max;   /* of numbers */
	const char *value; /* the default in words, as if it had been given; NULL: see help */
	const char *unit;  /* "SIZE", "SECONDS", ... for help; NULL for words without a value */
	const char *help;  /* one line; NULL: mount(8) explains it */
};
extern const struct option_def option_table[];
extern const size_t option_count;

/* Sets every default. */
void options_init(struct mount_options *o);
void options_free(struct mount_options *o);

/* Applies a comma-separated list ("a,b=c"); a comma inside a value is written "\,". `sloppy`:
 * unknown words are passed over (mount -s). -EINVAL with one line that names the option and its
 * bounds. */
int options_parse(struct mount_options *o, const char *list, bool sloppy, struct silt_err *err);

/* The words for libfuse: what was passed, and default_permissions, allow_other, ro as they follow
 * from the options and from being root. -E2BIG: too long. */
int options_fuse(const struct mount_options *o, bool root, char *out, size_t size);

/* Prints the table for --help. */
void options_help(FILE *out);

/* Values that other commands parse the same way; 0 or -EINVAL. */
int options_size(const char *text, uint64_t *out);
int options_compress(const char *text, int *level);
/* Seconds, or a number with s, m, h or d. */
int options_seconds(const char *text, double *out);
