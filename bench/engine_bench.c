/* What the metadata engine gives by itself, without FUSE: many names of one directory, hundreds of
 * requests in flight. bench/big-directory --by engine fills and empties its directory so.
 *
 *	engine_bench make|unlink ADDRESS DIRECTORY-INODE NAMES IN-FLIGHT	prints "names/s seconds"
 *
 * Names are entry-000000000 and so on. */
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "meta/lock.h"
#include "meta/meta.h"

struct run {
	struct meta *m;
	silt_ino dir;
	bool unlink;
	sem_t free; /* requests that may still be sent */
	atomic_int failed; /* the first error */
};

static void answered(void *arg, const struct meta_reply *reply)
{
	struct run *r = arg;
	int none = 0;
	if (reply->err)
		atomic_compare_exchange_strong(&r->failed, &none, reply->err);
	sem_post(&r->free);
}

static void send_one(struct run *r, unsigned long i)
{
	char name[32];
	int len = snprintf(name, sizeof(name), "entry-%09lu", i);
	struct meta_make how = { .mode = S_IFREG | 0644, .now = { .sec = 1700000000 + (long)i } };
	if (r->unlink)
		meta_unlink(r->m, r->dir, name, (size_t)len, false, how.now, answered, r);
	else
		meta_make(r->m, r->dir, name, (size_t)len, &how, answered, r);
}

static void take(struct run *r)
{
	while (sem_wait(&r->free)) /* a signal */
		;
}

static int run(struct run *r, unsigned long names, unsigned in_flight)
{
	uint64_t start = silt_now_ns();
	sem_init(&r->free, 0, in_flight);
	for (unsigned long i = 0; i < names && !atomic_load(&r->failed); i++) {
		take(r);
		send_one(r, i);
	}
	for (unsigned i = 0; i < in_flight; i++)
		take(r);
	sem_destroy(&r->free);
	double took = (double)(silt_now_ns() - start) / 1e9;
	if (atomic_load(&r->failed)) {
		fprintf(stderr, "engine_bench: %s\n", strerror(-atomic_load(&r->failed)));
		return 1;
	}
	printf("%.0f %.2f\n", (double)names / took, took);
	return 0;
}

int main(int argc, char **argv)
{
	struct meta_address address;
	struct silt_err err = { 0 };
	struct silt_log *log = NULL;
	struct run r = { 0 };
	if (argc != 6) {
		fprintf(stderr, "usage: engine_bench make|unlink ADDRESS DIRECTORY-INODE NAMES IN-FLIGHT\n");
		return 2;
	}
	r.unlink = !strcmp(argv[1], "unlink");
	r.dir = strtoull(argv[3], NULL, 10);
	if (meta_address_parse(argv[2], &address, &err) ||
	    silt_log_open("/dev/stderr", SILT_LOG_WARN, NULL, &log)) {
		fprintf(stderr, "engine_bench: %s\n", err.text);
		return 2;
	}
	struct meta_config cfg = { .address = &address, .log = log, .session = true };
	int rc = meta_open(&cfg, &r.m, &err);
	if (rc)
		fprintf(stderr, "engine_bench: %s\n", err.text);
	else
		rc = run(&r, strtoul(argv[4], NULL, 10), (unsigned)strtoul(argv[5], NULL, 10));
	meta_close(r.m);
	meta_address_free(&address);
	silt_log_close(log);
	return rc ? 1 : 0;
}
