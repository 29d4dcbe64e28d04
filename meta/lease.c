#include "meta/lease.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "meta/engine.h"

#define LEASE_LOCKS 64
#define DIRS_MAX    16		/* a lock: 1,024 directories in all */
#define NAMES_MAX   (1u << 20)	/* hashes a directory */
#define NAMES_TOTAL (1u << 21)	/* hashes in all: 16 MiB, tables at most twice that */
#define ASK_AFTER   2		/* creates in a row, each within CREATE_GAP of the one before */
#define CREATE_GAP  500000000u	/* ns */
#define MARGIN	    20000000u	/* ns by which we let a lease end early */
#define LIST_FREE   2048	/* directories of so many entries are listed without hesitation */
#define LIST_RATIO  64		/* bigger ones after one create for so many entries */
#define PAGE	    1000

struct names {
	uint64_t *v; /* open addressing, 0 is free */
	size_t n, cap;
};

struct entry {
	silt_ino dir;
	uint64_t until;	     /* lease_clock(); the lease is over then */
	uint64_t last;	     /* last create here */
	uint64_t creates;
	uint64_t generation; /* of the lease: a listing begun under another one is worth nothing */
	bool complete, listing, full;
	struct names names;
};

struct shelf {
	struct silt_lock lock;
	struct entry v[DIRS_MAX];
};

struct leases {
	struct shelf shelves[LEASE_LOCKS];
	atomic_size_t total; /* hashes */
};

uint64_t lease_clock(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_BOOTTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* FNV-1a; a collision only costs a lookup. */
static uint64_t hash_of(const char *name, size_t len)
{
	uint64_t h = 0xcbf29ce484222325u;
	for (size_t i = 0; i < len; i++)
		h = (h ^ (unsigned char)name[i]) * 0x100000001b3u;
	h ^= h >> 32;
	return h ? h : 1;
}

static void names_clear(struct leases *l, struct names *s)
{
	atomic_fetch_sub(&l->total, s->n);
	free(s->v);
	*s = (struct names){ 0 };
}

static bool names_has(const struct names *s, uint64_t h)
{
	if (!s->cap)
		return false;
	for (size_t i = h & (s->cap - 1); s->v[i]; i = (i + 1) & (s->cap - 1))
		if (s->v[i] == h)
			return true;
	return false;
}

static void put_hash(struct names *s, uint64_t h)
{
	size_t i = h & (s->cap - 1);
	while (s->v[i])
		i = (i + 1) & (s->cap - 1);
	s->v[i] = h;
}

/* False: no room; the entry can't know its names then. */
static bool names_add(struct leases *l, struct names *s, uint64_t h)
{
	if (names_has(s, h))
		return true;
	if (s->n >= NAMES_MAX || atomic_load(&l->total) >= NAMES_TOTAL)
		return false;
	if ((s->n + 1) * 4 > s->cap * 3) {
		struct names bigger = { .n = s->n, .cap = s->cap ? s->cap * 2 : 64 };
		bigger.v = calloc(bigger.cap, sizeof(*bigger.v));
		if (!bigger.v)
			return false;
		for (size_t i = 0; i < s->cap; i++)
			if (s->v[i])
				put_hash(&bigger, s->v[i]);
		free(s->v);
		*s = bigger;
	}
	put_hash(s, h);
	s->n++;
	atomic_fetch_add(&l->total, 1);
	return true;
}

static struct shelf *shelf_of(struct leases *l, silt_ino dir)
{
	return &l->shelves[(dir * 0x9e3779b97f4a7c15u) >> 58];
}

/* The entry of a directory, or NULL. Caller holds the shelf's lock. */
static struct entry *find(struct shelf *s, silt_ino dir)
{
	for (int i = 0; i < DIRS_MAX; i++)
		if (s->v[i].dir == dir)
			return &s->v[i];
	return NULL;
}

/* Makes room for a directory in place of the one that was idle longest. */
static struct entry *claim(struct leases *l, struct shelf *s, silt_ino dir)
{
	struct entry *oldest = &s->v[0];
	for (int i = 1; i < DIRS_MAX; i++)
		if (s->v[i].last < oldest->last)
			oldest = &s->v[i];
	uint64_t generation = oldest->generation + 1;
	names_clear(l, &oldest->names);
	*oldest = (struct entry){ .dir = dir, .generation = generation };
	return oldest;
}

static void note(struct leases *l, struct entry *e, uint64_t h)
{
	if (!e->full && !names_add(l, &e->names, h)) {
		e->full = true;
		e->complete = false;
		names_clear(l, &e->names);
	}
}

int leases_open(struct meta *m)
{
	m->leases = calloc(1, sizeof(*m->leases));
	if (!m->leases)
		return -ENOMEM;
	for (int i = 0; i < LEASE_LOCKS; i++)
		silt_lock_init(&m->leases->shelves[i].lock);
	return 0;
}

void leases_close(struct meta *m)
{
	if (!m->leases)
		return;
	for (int i = 0; i < LEASE_LOCKS; i++) {
		struct shelf *s = &m->leases->shelves[i];
		for (int k = 0; k < DIRS_MAX; k++)
			names_clear(m->leases, &s->v[k].names);
		silt_lock_destroy(&s->lock);
	}
	free(m->leases);
	m->leases = NULL;
}

void leases_forget(struct meta *m)
{
	if (!m->leases)
		return;
	for (int i = 0; i < LEASE_LOCKS; i++) {
		struct shelf *s = &m->leases->shelves[i];
		silt_lock(&s->lock);
		for (int k = 0; k < DIRS_MAX; k++) {
			s->v[k].until = 0;
			s->v[k].generation++;
			s->v[k].complete = s->v[k].listing = false;
		}
		silt_unlock(&s->lock);
	}
}

bool lease_says_absent(struct meta *m, silt_ino dir, const char *name, size_t len)
{
	struct shelf *s = shelf_of(m->leases, dir);
	silt_lock(&s->lock);
	struct entry *e = find(s, dir);
	bool absent = e && e->complete && lease_clock() < e->until && !names_has(&e->names, hash_of(name, len));
	silt_unlock(&s->lock);
	return absent;
}

bool lease_note_name(struct meta *m, silt_ino dir, const char *name, size_t len, bool creating)
{
	struct shelf *s = shelf_of(m->leases, dir);
	uint64_t now = lease_clock();
	bool ask = false;
	if (!m->session)
		return false;
	silt_lock(&s->lock);
	struct entry *e = find(s, dir);
	if (!e && creating)
		e = claim(m->leases, s, dir);
	if (e) {
		note(m->leases, e, hash_of(name, len));
		if (creating) {
			e->creates = now - e->last < CREATE_GAP ? e->creates + 1 : 1;
			e->last = now;
			ask = e->creates >= ASK_AFTER && !e->full;
		}
	}
	silt_unlock(&s->lock);
	return ask;
}

/* --- learning the names --- */

struct listing {
	struct meta *m;
	silt_ino dir;
	uint64_t generation;
};

static void got_names(void *arg, const struct meta_reply *r)
{
	struct listing *li = arg;
	struct leases *l = li->m->leases;
	struct shelf *s = shelf_of(l, li->dir);
	bool more = false;
	silt_lock(&s->lock);
	struct entry *e = find(s, li->dir);
	if (e && e->generation == li->generation) {
		for (size_t i = 0; !r->err && i < r->page->n; i++)
			note(l, e, hash_of(r->page->v[i].name, r->page->v[i].len));
		more = !r->err && r->page->next && !e->full;
		e->listing = more;
		e->complete = !r->err && !more && !e->full;
	}
	silt_unlock(&s->lock);
	if (more)
		meta_readdir(li->m, li->dir, r->page->next, PAGE, false, got_names, li);
	else
		free(li);
}

static void list(struct meta *m, silt_ino dir, uint64_t generation)
{
	struct listing *li = malloc(sizeof(*li));
	if (!li)
		return; /* then it stays incomplete */
	*li = (struct listing){ .m = m, .dir = dir, .generation = generation };
	meta_readdir(m, dir, 0, PAGE, false, got_names, li);
}

void lease_granted(struct meta *m, silt_ino dir, uint64_t sent_ns, long long ms, uint64_t size)
{
	struct shelf *s = shelf_of(m->leases, dir);
	uint64_t generation = 0;
	silt_lock(&s->lock);
	struct entry *e = find(s, dir);
	if (e) {
		uint64_t ns = (uint64_t)(ms < 0 ? -ms : ms) * 1000000u;
		bool before = e->complete || e->listing;
		if (ms <= 0 || !before) { /* what was known may have been added to by others */
			e->generation++;
			e->complete = e->listing = false;
		}
		e->until = ns > MARGIN ? sent_ns + ns - MARGIN : 0;
		if (ms && !e->complete && !e->listing && !e->full) {
			e->complete = size == 1; /* the one just made */
			e->listing = !e->complete &&
				     (size <= LIST_FREE || e->creates >= size / LIST_RATIO);
			if (e->listing)
				generation = e->generation;
		}
	}
	silt_unlock(&s->lock);
	if (generation)
		list(m, dir, generation);
}
