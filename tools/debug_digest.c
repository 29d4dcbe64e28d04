/* siltfs debug digest: one number for a tree, the same for two trees with the same names, types,
 * permissions, sizes, link targets and bytes. Times and owners are left out. Works on any file
 * system.
 *
 * Fed to one XXH3-128 in the order of sorted names, depth first: the path below the root with its
 * NUL, mode and size as 8 bytes each, then the bytes (files) or the target (links). */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "meta/cleanup.h"
#include "tools/cli.h"
#include "tools/debug.h"

#define BUFFER (1u << 20)

struct digest {
	XXH3_state_t *state;
	char *buffer;
	uint64_t dirs, files, bytes;
};

static void cleanup_state(XXH3_state_t **s)
{
	XXH3_freeState(*s);
}

static int complain(const char *path)
{
	return cli_fail(CLI_FAILED, "%s: %s", path, strerror(errno));
}

static int add_file(struct digest *d, int fd, const char *path)
{
	ssize_t n;
	while ((n = read(fd, d->buffer, BUFFER)) > 0) {
		XXH3_128bits_update(d->state, d->buffer, (size_t)n);
		d->bytes += (uint64_t)n;
	}
	d->files++;
	return n < 0 ? complain(path) : CLI_OK;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The sorted names of a directory. */
static int list(DIR *dir, char ***out, size_t *count)
{
	size_t n = 0, cap = 0;
	char **v = NULL;
	struct dirent *e;

	while (errno = 0, (e = readdir(dir))) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		if (n == cap) {
			cap = cap ? cap * 2 : 64;
			char **grown = realloc(v, cap * sizeof(*v));
			if (!grown)
				break;
			v = grown;
		}
		if (!(v[n] = strdup(e->d_name)))
			break;
		n++;
	}
	*out = v;
	*count = n;
	if (n)
		qsort(v, n, sizeof(*v), by_name);
	return e || errno ? -1 : 0;
}

static int add_tree(struct digest *d, int parent, const char *name, const char *path, size_t root);

static int add_dir(struct digest *d, int fd, const char *path, size_t root)
{
	SILT_CLOSEDIR DIR *dir = fdopendir(fd);
	char **names = NULL;
	size_t n = 0;
	int rc = CLI_OK;

	if (!dir) {
		close(fd);
		return complain(path);
	}
	d->dirs++;
	if (list(dir, &names, &n) < 0)
		rc = complain(path);
	for (size_t i = 0; i < n; i++) {
		SILT_FREE char *below = NULL;
		if (rc == CLI_OK && asprintf(&below, "%s/%s", path, names[i]) < 0)
			rc = cli_fail(CLI_FAILED, "out of memory");
		if (rc == CLI_OK)
			rc = add_tree(d, dirfd(dir), names[i], below, root);
		free(names[i]);
	}
	free(names);
	return rc;
}

static int add_tree(struct digest *d, int parent, const char *name, const char *path, size_t root)
{
	struct stat st;
	if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return complain(path);
	uint64_t head[2] = { st.st_mode, S_ISDIR(st.st_mode) ? 0 : (uint64_t)st.st_size };
	XXH3_128bits_update(d->state, path + root, strlen(path + root) + 1);
	XXH3_128bits_update(d->state, head, sizeof(head));
	if (S_ISLNK(st.st_mode)) {
		ssize_t n = readlinkat(parent, name, d->buffer, BUFFER);
		if (n < 0)
			return complain(path);
		XXH3_128bits_update(d->state, d->buffer, (size_t)n);
		return CLI_OK;
	}
	if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
		return CLI_OK;
	int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return complain(path);
	if (S_ISDIR(st.st_mode))
		return add_dir(d, fd, path, root);
	int rc = add_file(d, fd, path);
	close(fd);
	return rc;
}

int debug_digest(int argc, char **argv)
{
	__attribute__((cleanup(cleanup_state))) XXH3_state_t *state = XXH3_createState();
	SILT_FREE char *buffer = malloc(BUFFER);
	struct digest d = { .state = state, .buffer = buffer };
	XXH128_canonical_t out;

	if (argc != 2)
		return cli_usage("debug", "debug digest takes a PATH");
	if (!state || !buffer)
		return cli_fail(CLI_FAILED, "out of memory");
	XXH3_128bits_reset(state);
	if (add_tree(&d, AT_FDCWD, argv[1], argv[1], strlen(argv[1])) != CLI_OK)
		return CLI_FAILED;
	XXH128_canonicalFromHash(&out, XXH3_128bits_digest(state));
	for (size_t i = 0; i < sizeof(out.digest); i++)
		printf("%02x", out.digest[i]);
	printf("  %" PRIu64 " directories, %" PRIu64 " files, %" PRIu64 " bytes\n", d.dirs, d.files,
	       d.bytes);
	return CLI_OK;
}
