/* A child that outlives a daemon which was killed and can't end.
 *
 * kill -9 of a daemon ends its threads, and with the last of them the FUSE connection: who waits for an answer gets an
 * error. But a thread that is telling the kernel to forget a name waits, in the kernel and for no signal, for the lock of
 * the directory, which a program may hold that waits for the daemon's answer. Then neither ends. This child hears of the
 * main thread's death (PR_SET_PDEATHSIG), and ends the connection when others are left a moment later. */
#pragma once

/* Forks the child, before the daemon has threads and by the thread that lives longest. It has no file open but /dev/null
 * and ends with the daemon. A failure is no reason not to mount. */
void guard_start(const char *mountpoint);
