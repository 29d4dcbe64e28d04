/* Leases of directories: knowing that a name is not there without asking.
 *
 * Creating a file through the kernel is a LOOKUP that finds nothing and then a CREATE: two round trips
 * where one does the work. So a client that adds several names to a directory asks for its lease
 * (functions.lua, "leases"): while it holds that, nobody else adds a name. It then learns the names that
 * are there (none in a directory that was empty; else one listing) and keeps their hashes together with
 * those of the names it adds itself. A name whose hash is not among them is absent, exactly, as long as
 * the lease runs by the client's own clock, counted from before the request was sent.
 *
 * What it does not do: say that a name is there (others may remove names), or hold a lease that others
 * wait for (it is short, and not renewed then).
 *
 * Threads: all functions from any thread. A directory's lock (one of LEASE_LOCKS by its number) guards
 * its entry; no lock is held while a request is sent. */
#pragma once
#include "meta/types.h"

struct meta;
struct leases;

int leases_open(struct meta *m);
void leases_close(struct meta *m);

/* Nothing is known any more: the connection was lost, and with it perhaps a reply that said that a lease
 * is a new one, or the server's memory of it. */
void leases_forget(struct meta *m);

/* True when `name` is certainly not in `dir`. */
bool lease_says_absent(struct meta *m, silt_ino dir, const char *name, size_t len);

/* Before a name is added to `dir` by this client, in whatever way. `creating`: by a create, which may
 * ask for the lease. Returns whether it should. */
bool lease_note_name(struct meta *m, silt_ino dir, const char *name, size_t len, bool creating);

/* Like silt_now_ns(), but it goes on while the machine sleeps. */
uint64_t lease_clock(void);

/* A create's reply: `ms` as functions.lua's lease() gave it, for a request sent at `sent_ns`
 * (lease_clock()); `size` of
 * the directory after it. Called in the order of the replies (reader thread). */
void lease_granted(struct meta *m, silt_ino dir, uint64_t sent_ns, long long ms, uint64_t size);
