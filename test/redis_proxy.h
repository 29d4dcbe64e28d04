/* A proxy before a test's Redis that breaks connections when told to: a socket in the server's
 *folder, and one thread that carries bytes both ways, a read at a time.
 *
 *	proxy_arm(x, "silt1_unlink", 0, CUT_REPLY);
 *	assert_int_equal(unlink_(m, ...), 0);       the client must get over it
 *	assert_true(proxy_disarm(x) > 0);           it was struck, the case did not pass for nothing
 *
 * A fault strikes a read of a client's bytes that has the word in it; requests that a client sent
 * together are mostly one read, and are struck together. It is over then, and all passes again, but
 * for REFUSE and MUTE, which last. Threads: any, but a case arms only while no request of its own
 *is under way, unless it doesn't mind which one is struck. */
#pragma once
#include <stdbool.h>
#include <sys/types.h>

#include "meta/address.h"

enum fault {
	PASS,
	CUT_REPLY,    /* the request is executed, its reply is lost with the connection */
	CUT_AND_HOLD, /* the same, and no new connection comes through until the next order */
	CUT_REQUEST,  /* the request is lost with the connection */
	HALF_REPLY,   /* the request is executed, half its reply comes, then the connection ends */
	RUBBISH,      /* the request is lost, what comes is no reply */
	EXTRA_REPLY,  /* the reply comes twice */
	MUTE,         /* the connection stays, no reply comes on it any more */
	REFUSE,       /* the connection is cut, new ones end at once */
	KILL,         /* CUT_REPLY, after killing a process (proxy_arm_at()) */
	STOP,         /* the process is stopped, then the reply comes */
	STOP_AND_CUT, /* CUT_REPLY, after stopping it */
};

struct proxy;

/* Listens on DIR/proxy.sock, in front of the socket `upstream`. */
struct proxy *proxy_start(const char *dir, const char *upstream);
void proxy_stop(struct proxy *x);

/* How a client finds it; valid until proxy_stop(). */
const struct meta_address *proxy_address(const struct proxy *x);

/* Lets `skip` requests with `word` (which the caller keeps) pass; the next one meets `f`. */
void proxy_arm(struct proxy *x, const char *word, int skip, enum fault f);

/* KILL, STOP or STOP_AND_CUT, with `victim` (a child of the caller) as the process. */
void proxy_arm_at(struct proxy *x, const char *word, int skip, enum fault f, pid_t victim);

/* Lets everything pass again. How many requests were struck since the last proxy_arm(). */
int proxy_disarm(struct proxy *x);

/* How many requests were struck since the last proxy_arm(). */
int proxy_struck(struct proxy *x);

/* Waits until a request was struck; false when none is for 30 s. */
bool proxy_wait_struck(struct proxy *x);
