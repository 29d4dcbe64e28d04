#include "test/store_env.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "meta/cleanup.h"

unsigned store_env_setting(const char *name, unsigned otherwise)
{
	char full[64];
	snprintf(full, sizeof(full), "SILT_TEST_STORE_%s", name);
	const char *text = getenv(full);
	return text && *text ? (unsigned)strtoul(text, NULL, 10) : otherwise;
}

struct store_config store_env_config(struct silt_log *log, struct silt_metrics *metrics)
{
	return (struct store_config){
		.kind = getenv("SILT_TEST_STORE_KIND"),
		.bucket = getenv("SILT_TEST_STORE_BUCKET"),
		.ca_file = getenv("SILT_TEST_STORE_CA"),
		.connect_timeout_ms = store_env_setting("CONNECT_MS", 0),
		.stall_timeout_ms = store_env_setting("STALL_MS", 0),
		.deadline_ms = store_env_setting("DEADLINE_MS", 0),
		.retries = store_env_setting("RETRIES", 0),
		.log = log,
		.metrics = metrics,
	};
}

struct spread {
	void (*fn)(void *arg, size_t i);
	void *arg;
	size_t n;
	atomic_size_t next;
};

static void *spread_thread(void *arg)
{
	struct spread *s = arg;
	for (size_t i; (i = atomic_fetch_add(&s->next, 1)) < s->n;)
		s->fn(s->arg, i);
	return NULL;
}

void store_env_spread(unsigned threads, void (*fn)(void *arg, size_t i), void *arg, size_t n)
{
	struct spread s = { .fn = fn, .arg = arg, .n = n };
	SILT_FREE pthread_t *ids = calloc(threads, sizeof(*ids));

	for (unsigned i = 0; i < threads; i++)
		if (!ids || pthread_create(&ids[i], NULL, spread_thread, &s) != 0)
			abort();
	for (unsigned i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
}
