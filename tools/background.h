/* Starts a daemon and waits until it says that it serves. */
#pragma once
#include <signal.h>

/* Forks. The child runs `run`, in a session of its own, in "/", and ends with its return. It writes
 * to `report_fd` one "R" when it serves, or a line that says why it can't, and closes it. Signals
 * that end a program are held back in it: it sets the mask `signals` when it is ready to take them.
 *
 * The parent gets the exit status back, after a line on stderr if it is not CLI_OK. A signal that
 * would end it ends the daemon first, by SIGTERM and a second one STOP_PATIENCE_MS later, and then
 * the parent as it would have: whatever is not CLI_OK has left no daemon. */
int background_start(int (*run)(void *arg, int report_fd, const sigset_t *signals), void *arg);
