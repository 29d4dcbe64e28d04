/* Tests of the SSD cache run twice, with the smallest slots and with the largest. The setup of a
 * case finds the size in *state. */
#pragma once
#include "cache/slot_table.h"

static inline int slots_smallest(void **state)
{
	*state = (void *)(uintptr_t)SLOT_SIZE_MIN;
	return 0;
}

static inline int slots_largest(void **state)
{
	*state = (void *)(uintptr_t)SLOT_SIZE_MAX;
	return 0;
}

/* How many of the array of cases failed. */
#define RUN_WITH_SLOT_SIZES(tests)                                                                 \
	({                                                                                         \
		int failed_ = cmocka_run_group_tests_name("slots of 64 KiB", tests,                \
		                                          slots_smallest, NULL);                   \
		failed_ +                                                                          \
		        cmocka_run_group_tests_name("slots of 1 MiB", tests, slots_largest, NULL); \
	})
