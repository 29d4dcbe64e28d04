/* The one place where locks come from, so that checking and counting of contention have one place.
 * A lock failure is a bug, never an input error: it aborts. */
#pragma once
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

struct silt_lock {
	pthread_mutex_t m;
};

struct silt_cond {
	pthread_cond_t c;
};

static inline void silt_lock_init(struct silt_lock *l)
{
	int rc = pthread_mutex_init(&l->m, NULL);
	assert(rc == 0);
	(void)rc;
}

static inline void silt_lock_destroy(struct silt_lock *l)
{
	pthread_mutex_destroy(&l->m);
}

static inline void silt_lock(struct silt_lock *l)
{
	int rc = pthread_mutex_lock(&l->m);
	assert(rc == 0);
	(void)rc;
}

static inline void silt_unlock(struct silt_lock *l)
{
	int rc = pthread_mutex_unlock(&l->m);
	assert(rc == 0);
	(void)rc;
}

/* Condition variables run on CLOCK_MONOTONIC. */
static inline void silt_cond_init(struct silt_cond *c)
{
	pthread_condattr_t a;
	pthread_condattr_init(&a);
	pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
	pthread_cond_init(&c->c, &a);
	pthread_condattr_destroy(&a);
}

static inline void silt_cond_destroy(struct silt_cond *c)
{
	pthread_cond_destroy(&c->c);
}

static inline void silt_cond_wait(struct silt_cond *c, struct silt_lock *l)
{
	pthread_cond_wait(&c->c, &l->m);
}

/* Monotonic time in nanoseconds. */
static inline uint64_t silt_now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Waits until signalled or until the monotonic time `until_ns`; returns false on time-out. */
static inline int silt_cond_wait_until(struct silt_cond *c, struct silt_lock *l, uint64_t until_ns)
{
	struct timespec ts = { .tv_sec = (time_t)(until_ns / 1000000000u),
			       .tv_nsec = (long)(until_ns % 1000000000u) };
	return pthread_cond_timedwait(&c->c, &l->m, &ts) != ETIMEDOUT;
}

static inline void silt_cond_signal(struct silt_cond *c)
{
	pthread_cond_signal(&c->c);
}

static inline void silt_cond_broadcast(struct silt_cond *c)
{
	pthread_cond_broadcast(&c->c);
}
