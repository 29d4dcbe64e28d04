/* store_put N PREFIX: writes N objects PREFIX0 PREFIX1 ... on 8 threads to the store that the
 * environment names (store_env.h), each its key repeated up to 1 + 7919 * i % 70000 bytes, every
 * second one with STORE_EXCL. Prints "ok KEY SIZE" or "failed KEY WHY" for each. For tests that
 * break the server meanwhile and then look for themselves what is there. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache/store.h"
#include "meta/cleanup.h"
#include "meta/lock.h"
#include "test/store_env.h"

struct run {
	struct store *store;
	const char *prefix;
	struct silt_lock lock; /* of stdout */
};

static void put_and_tell(void *arg, size_t i)
{
	struct run *run = arg;
	char key[256];
	int key_len = snprintf(key, sizeof(key), "%s%zu", run->prefix, i);
	size_t len = 1 + 7919 * i % 70000;
	SILT_FREE char *data = malloc(len);
	struct iovec iov = { .iov_base = data, .iov_len = len };
	struct silt_err err = { 0 };

	for (size_t at = 0; at < len; at++)
		data[at] = key[at % (size_t)key_len];
	int rc = store_put(run->store, key, &iov, 1, i % 2 ? STORE_EXCL : 0, &err);
	silt_lock(&run->lock);
	if (rc == 0)
		printf("ok %s %zu\n", key, len);
	else
		printf("failed %s %s\n", key, err.text);
	fflush(stdout);
	silt_unlock(&run->lock);
}

int main(int argc, char **argv)
{
	struct store_config cfg = store_env_config(NULL, NULL);
	struct silt_err err = { 0 };
	struct run run = { 0 };

	if (argc != 3 || !cfg.kind || !cfg.bucket) {
		fprintf(stderr, "usage: store_put N PREFIX, with SILT_TEST_STORE_*\n");
		return 2;
	}
	run.prefix = argv[2];
	if (store_open(&cfg, &run.store, &err) < 0) {
		fprintf(stderr, "%s\n", err.text);
		return 1;
	}
	silt_lock_init(&run.lock);
	store_env_spread(8, put_and_tell, &run, strtoul(argv[1], NULL, 10));
	store_close(run.store);
	return 0;
}
