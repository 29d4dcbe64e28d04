/* What an object store gives by itself: N threads put, get or delete objects of one size through the
 * same code that siltfs uses. bench/big-files compares a mount with it.
 *
 *	store_bench put|get|delete KIND BUCKET OBJECTS BYTES THREADS	prints "MB/s seconds" */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "cache/store.h"

struct job {
	struct store *store;
	enum { PUT, GET, DELETE } what;
	unsigned objects;
	size_t bytes;
	const char *data;
	atomic_uint next;
	atomic_int failed;
};

static int one(struct job *j, unsigned i, char *buf, struct silt_err *err)
{
	char key[64];
	/* Spread over prefixes as packs are. */
	snprintf(key, sizeof(key), "bench/%02x/%08x", i & 0xff, i);
	if (j->what == DELETE)
		return store_delete(j->store, key, err);
	if (j->what == PUT) {
		struct iovec iov = { .iov_base = (char *)j->data, .iov_len = j->bytes };
		return store_put(j->store, key, &iov, 1, 0, err);
	}
	ssize_t n = store_get(j->store, key, 0, j->bytes, buf, NULL, err);
	if (n < 0)
		return (int)n;
	return (size_t)n == j->bytes ? 0 : silt_fail(err, -EIO, "%s is short", key);
}

static void *work(void *arg)
{
	struct job *j = arg;
	char *buf = malloc(j->bytes);
	struct silt_err err = { 0 };
	unsigned i;
	while (buf && (i = atomic_fetch_add(&j->next, 1)) < j->objects) {
		if (one(j, i, buf, &err) == 0)
			continue;
		if (!atomic_exchange(&j->failed, 1))
			fprintf(stderr, "store_bench: %s\n", err.text);
		break;
	}
	if (!buf)
		atomic_store(&j->failed, 1);
	free(buf);
	return NULL;
}

static double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static char *noise(size_t n)
{
	char *data = malloc(n);
	for (size_t at = 0; data && at < n;) {
		ssize_t got = getrandom(data + at, n - at, 0);
		if (got < 0 && errno != EINTR) {
			free(data);
			return NULL;
		}
		at += got > 0 ? (size_t)got : 0;
	}
	return data;
}

int main(int argc, char **argv)
{
	struct job j = { 0 };
	unsigned threads = argc == 7 ? (unsigned)atoi(argv[6]) : 0;
	if (threads < 1 || threads > 256) {
		fprintf(stderr, "usage: store_bench put|get|delete KIND BUCKET OBJECTS BYTES THREADS\n");
		return 2;
	}
	j.what = !strcmp(argv[1], "put") ? PUT : !strcmp(argv[1], "get") ? GET : DELETE;
	j.objects = (unsigned)atoi(argv[4]);
	j.bytes = strtoull(argv[5], NULL, 10);

	struct silt_err err = { 0 };
	struct store_credentials cred = { 0 };
	if (strcmp(argv[2], "file") != 0 && store_credentials(NULL, &cred, &err) < 0) {
		fprintf(stderr, "store_bench: %s\n", err.text);
		return 1;
	}
	struct store_config cfg = { .kind = argv[2],
				    .bucket = argv[3],
				    .access_key = cred.access_key,
				    .secret_key = cred.secret_key,
				    .session_token = cred.session_token };
	char *data = noise(j.bytes);
	if (!data || store_open(&cfg, &j.store, &err) < 0) {
		fprintf(stderr, "store_bench: %s\n", data ? err.text : "no memory");
		return 1;
	}
	j.data = data;
	pthread_t id[256];
	double start = now();
	for (unsigned i = 0; i < threads; i++) {
		if (pthread_create(&id[i], NULL, work, &j) != 0)
			abort();
	}
	for (unsigned i = 0; i < threads; i++)
		pthread_join(id[i], NULL);
	double took = now() - start;
	printf("%.1f %.2f\n", (double)j.objects * (double)j.bytes / 1e6 / took, took);
	store_close(j.store);
	store_credentials_free(&cred);
	free(data);
	return atomic_load(&j.failed) ? 1 : 0;
}
