/* The object store that the environment names, for test programs:
 *
 *	SILT_TEST_STORE_KIND, SILT_TEST_STORE_BUCKET	as in struct store_config; both needed
 *	SILT_TEST_STORE_CA	PEM bundle
 *	SILT_TEST_STORE_STALL_MS, _CONNECT_MS, _DEADLINE_MS, _RETRIES	0 or unset: the defaults
 *	SILT_TEST_STORE_LARGE_MIB (64), _LIST (1100 objects), _THREADS (32), _OPS (40 a thread)
 *
 * Keys come from where store_credentials() finds them. */
#pragma once
#include "cache/store.h"

struct store_config store_env_config(struct silt_log *log, struct silt_metrics *metrics);

/* The number SILT_TEST_STORE_`name`. */
unsigned store_env_setting(const char *name, unsigned otherwise);

/* Runs fn(arg, i) once for each i in [0, n), on `threads` threads. */
void store_env_spread(unsigned threads, void (*fn)(void *arg, size_t i), void *arg, size_t n);
