/* siltfs warmup (also installed as `warmup`): asks the mounts that hold the paths to bring them to
 * their SSD (cache/warmup.h does the work there), shows the progress, says what is missing.
 *
 * Paths of different mounts are grouped; the mounts are asked one after the other. Interrupting the
 * command hangs up, which ends the work in the daemon; what was fetched stays. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "meta/cleanup.h"
#include "tools/cli.h"
#include "tools/control_client.h"
#include "tools/json_fields.h"
#include "tools/progress.h"

static const char help[] =
        "Usage: warmup [OPTIONS] PATH...\n"
        "       siltfs warmup [OPTIONS] PATH...\n"
        "Bring everything below each PATH of a siltfs mount to this node's SSD, and verify it:\n"
        "what is there since an earlier mount is read back, once a mount, and fetched again\n"
        "where it is damaged.\n"
        "Exit status 0: all of it is there; 1: something is missing (its names are listed); 2: "
        "refused\n"
        "(not on a mount, does not fit, no cache).\n"
        "\n"
        "  --check             fetch nothing, only say what is missing or damaged (also reads\n"
        "                      back what this mount has not verified yet)\n"
        "  --verify            read back all of it, also what this mount has verified before;\n"
        "                      repairs, or with --check only says what is wrong\n"
        "  --evict             drop it from the SSD instead\n"
        "  --files-from FILE   read more paths from FILE, one a line (-: standard input)\n"
        "  --json              one JSON object a line: progress, then the result\n"
        "  -q, --quiet         no progress\n";

#define MAX_ROOTS 65536 /* of one request */

struct root {
	char *path;
	char socket[108];
	uint64_t inode;
};

struct warmup_command {
	struct root *v;
	size_t n, cap;
	bool check, verify, evict, json, quiet;
	/* the request under way */
	const struct root *first;
	struct progress progress;
	int status;
};

/* --- Paths ------------------------------------------------------------------------------ */

static int add_path(struct warmup_command *c, const char *path)
{
	struct silt_err err = { 0 };
	if (c->n == c->cap) {
		size_t cap = c->cap ? c->cap * 2 : 16;
		struct root *v = realloc(c->v, cap * sizeof(*v));
		if (!v)
			return cli_fail(CLI_FAILED, "out of memory");
		c->v = v;
		c->cap = cap;
	}
	struct root *r = &c->v[c->n];
	if (control_find(path, r->socket, &r->inode, &err) < 0)
		return cli_fail(CLI_USAGE, "%s", err.text);
	if (!(r->path = strdup(path)))
		return cli_fail(CLI_FAILED, "out of memory");
	c->n++;
	return CLI_OK;
}

static int add_paths_from(struct warmup_command *c, const char *name)
{
	bool in = strcmp(name, "-") == 0;
	SILT_FCLOSE FILE *f = in ? fdopen(dup(0), "r") : fopen(name, "re");
	SILT_FREE char *line = NULL;
	size_t cap = 0;
	ssize_t n;
	int rc = CLI_OK;

	if (!f)
		return cli_fail(CLI_USAGE, "can't read %s: %s", name, strerror(errno));
	while (rc == CLI_OK && (n = getline(&line, &cap, f)) > 0) {
		if (line[n - 1] == '\n')
			line[n - 1] = '\0';
		if (line[0])
			rc = add_path(c, line);
	}
	return rc;
}

static int by_socket(const void *a, const void *b)
{
	return strcmp(((const struct root *)a)->socket, ((const struct root *)b)->socket);
}

/* --- Replies ---------------------------------------------------------------------------- */

static struct warmup_figures figures_of(struct json_object *o)
{
	return (struct warmup_figures){
		.files = json_number(o, "files"),
		.bytes = json_number(o, "bytes"),
		.packs = json_number(o, "packs"),
		.packs_done = json_number(o, "packs_done"),
		.packs_cached = json_number(o, "packs_cached"),
		.fetched_packs = json_number(o, "fetched_packs"),
		.fetched_bytes = json_number(o, "fetched_bytes"),
		.missing_files = json_number(o, "missing_files"),
		.checked_packs = json_number(o, "checked_packs"),
		.checked_bytes = json_number(o, "checked_bytes"),
		.damaged_packs = json_number(o, "damaged_packs"),
		.seconds = json_object_get_double(json_member(o, "seconds")),
		.resolved = json_object_get_boolean(json_member(o, "resolved")),
	};
}

/* As ls(1) does it: a file's name gives no commands to a terminal. */
static void print_name(FILE *f, const char *name, bool terminal)
{
	for (const unsigned char *p = (const unsigned char *)name; *p; p++) {
		/* U+0080 to U+009f are commands as well, in UTF-8 and alone. */
		bool wide = terminal && p[0] == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0;
		bool command = wide || (terminal && (*p < ' ' || *p == 0x7f));
		fputc(command ? '?' : *p, f);
		p += wide;
	}
}

/* Names of missing files come as "<path below the root>: why", before the result. */
static void print_missing(struct warmup_command *c, struct json_object *list)
{
	size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
	bool terminal = isatty(STDERR_FILENO);
	for (size_t i = 0; i < n; i++) {
		struct json_object *m = json_object_array_get_idx(list, i);
		const struct root *r = c->first + json_number(m, "root");
		const char *below = json_text(m, "path");
		bool slash = below[0] && below[0] != ':' && r->path[strlen(r->path) - 1] != '/';
		fputs("missing: ", stderr);
		print_name(stderr, r->path, terminal);
		fputs(slash ? "/" : "", stderr);
		print_name(stderr, below, terminal);
		fputc('\n', stderr);
	}
}

/* ", read back 12 packs (1.0 GiB), 1 was damaged"; nothing where nothing was. */
static void describe_check(const struct warmup_figures *f, char *out, size_t size)
{
	char bytes[32];
	out[0] = '\0';
	if (f->checked_packs || f->damaged_packs)
		snprintf(out, size, ", read back %llu packs (%s), %llu damaged",
		         (unsigned long long)(f->checked_packs + f->damaged_packs),
		         cli_bytes((double)f->checked_bytes, bytes),
		         (unsigned long long)f->damaged_packs);
}

static void print_summary(struct warmup_command *c, const struct warmup_figures *f)
{
	char bytes[32], fetched[32], rate[32], checked[96];
	describe_check(f, checked, sizeof(checked));
	cli_bytes((double)f->bytes, bytes);
	cli_bytes((double)f->fetched_bytes, fetched);
	cli_bytes(f->seconds > 0 ? (double)f->fetched_bytes / f->seconds : 0, rate);
	if (c->evict)
		printf("%llu files, %s: dropped %llu packs\n", (unsigned long long)f->files, bytes,
		       (unsigned long long)f->packs);
	else if (c->check)
		printf("%llu files, %s%s: %llu not on the SSD or damaged\n",
		       (unsigned long long)f->files, bytes, checked,
		       (unsigned long long)f->missing_files);
	else
		printf("%llu files, %s: fetched %llu of %llu packs (%s) in %.1f s, %s/s%s; %llu "
		       "files "
		       "missing\n",
		       (unsigned long long)f->files, bytes, (unsigned long long)f->fetched_packs,
		       (unsigned long long)f->packs, fetched, f->seconds, rate, checked,
		       (unsigned long long)f->missing_files);
}

static int on_line(void *arg, struct json_object *line)
{
	struct warmup_command *c = arg;
	struct json_object *p = json_member(line, "progress"),
	                   *result = json_member(line, "result"),
	                   *missing = json_member(line, "missing");

	if (c->json)
		puts(json_object_to_json_string_ext(line, JSON_C_TO_STRING_PLAIN |
		                                                  JSON_C_TO_STRING_NOSLASHESCAPE));
	if (c->json)
		fflush(stdout);
	if (p && !c->json && !c->quiet) {
		struct warmup_figures f = figures_of(p);
		progress_show(&c->progress, &f);
	}
	if (missing && !c->json) {
		progress_end(&c->progress);
		print_missing(c, missing);
	}
	if (!result)
		return 0;
	struct warmup_figures f = figures_of(result);
	c->status = json_member(line, "status") ? json_object_get_int(json_member(line, "status"))
	                                        : -EIO;
	progress_end(&c->progress);
	if (!c->json && c->status >= 0 && !c->quiet)
		print_summary(c, &f);
	return 0;
}

/* --- One mount -------------------------------------------------------------------------- */

static int ask(struct warmup_command *c, size_t first, size_t n)
{
	struct json_object *request = json_object_new_object(), *list = json_object_new_array();
	struct silt_err err = { 0 };

	for (size_t i = 0; i < n; i++)
		json_object_array_add(list, json_object_new_uint64(c->v[first + i].inode));
	json_object_object_add(request, "cmd",
	                       json_object_new_string(c->evict ? "drop" : "warmup"));
	json_object_object_add(request, "check", json_object_new_boolean(c->check));
	json_object_object_add(request, "verify", json_object_new_boolean(c->verify));
	json_object_object_add(request, "inodes", list);
	c->first = c->v + first;
	c->status = -EIO;
	progress_begin(&c->progress);
	int rc = control_request(c->v[first].socket, request, on_line, c, &err);
	progress_end(&c->progress);
	if (rc < 0)
		return cli_fail(c->status == -ENOSPC || c->status == -ENODEV || c->status == -ENOENT
		                        ? CLI_USAGE
		                        : CLI_FAILED,
		                "%s", err.text);
	return c->status == 0 ? CLI_OK : CLI_FAILED;
}

static int ask_all(struct warmup_command *c)
{
	int worst = CLI_OK;
	qsort(c->v, c->n, sizeof(*c->v), by_socket);
	for (size_t i = 0, n; i < c->n; i += n) {
		for (n = 1; i + n < c->n && n < MAX_ROOTS; n++)
			if (by_socket(&c->v[i], &c->v[i + n]) != 0)
				break;
		int rc = ask(c, i, n);
		worst = rc > worst ? rc : worst;
	}
	return worst;
}

static int parse(struct warmup_command *c, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "check", no_argument, NULL, 'c' },
		{ "verify", no_argument, NULL, 'v' },
		{ "evict", no_argument, NULL, 'e' },
		{ "files-from", required_argument, NULL, 'f' },
		{ "json", no_argument, NULL, 'j' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },
		{ 0 },
	};
	int opt, rc = CLI_OK;

	opterr = 0;
	while (rc == CLI_OK && (opt = getopt_long(argc, argv, "qh", longs, NULL)) != -1) {
		switch (opt) {
		case 'c': c->check = true; break;
		case 'v': c->verify = true; break;
		case 'e': c->evict = true; break;
		case 'j': c->json = true; break;
		case 'q': c->quiet = true; break;
		case 'f': rc = add_paths_from(c, optarg); break;
		case 'h': cli_help(help); return -1;
		case 'V': puts("warmup (siltfs) " SILT_VERSION); return -1;
		default:
			return cli_usage("warmup", "unknown option or no value: %s",
			                 argv[optind - 1]);
		}
	}
	for (int i = optind; rc == CLI_OK && i < argc; i++)
		rc = add_path(c, argv[i]);
	if (rc == CLI_OK && c->n == 0)
		return cli_usage("warmup", "warmup takes one or more PATHs");
	if (rc == CLI_OK && (c->check || c->verify) && c->evict)
		return cli_usage("warmup", "--evict excludes --check and --verify");
	return rc;
}

int cmd_warmup(int argc, char **argv)
{
	struct warmup_command c = { 0 };
	int rc = parse(&c, argc, argv);

	if (rc == CLI_OK)
		rc = ask_all(&c);
	for (size_t i = 0; i < c.n; i++)
		free(c.v[i].path);
	free(c.v);
	return rc < 0 ? CLI_OK : rc;
}
