/* For tests of the SSD tier: one in a directory of its own, and packs whose bytes are known from
 * where they stand. The functions that assert are for a case's own thread only. */
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/tier.h"
#include "test/scratch.h"
#include "test/slot_sizes.h"

#define MIB (1u << 20)

struct fixture {
	char dir[SCRATCH_MAX];
	struct silt_log *log;
	struct silt_metrics metrics;
	uint32_t slot_size; /* of what is opened next */
	bool no_uring;
	struct tier *tier;
};

/* No tier is open after setup; setup_threads() is for tiers without io_uring. */
int setup(void **state);
int setup_threads(void **state);
int teardown(void **state);

int try_open(struct fixture *f, uint64_t size, uint64_t volume, struct tier **out,
             struct silt_err *err);
void open_tier(struct fixture *f, unsigned mib);
void close_tier(struct fixture *f);

/* The bytes of a pack. */
void fill(uint64_t pack, uint32_t off, uint32_t len, uint8_t *out);
bool right(uint64_t pack, uint32_t off, uint32_t len, const uint8_t *got);

/* Writes the right ones, unverified; reads. 0 or a negative errno. Any thread. */
int put(struct tier *t, uint64_t pack, uint32_t pack_len, uint32_t off, uint32_t len);
int get(struct tier *t, uint64_t pack, uint32_t off, uint32_t len, uint8_t *dst);

/* Fails unless they are there, and right. */
void check(struct tier *t, uint64_t pack, uint32_t off, uint32_t len);

#define CASE(test)               cmocka_unit_test_setup_teardown(test, setup, teardown)
#define CASE_WITHOUT_URING(test) cmocka_unit_test_setup_teardown(test, setup_threads, teardown)
