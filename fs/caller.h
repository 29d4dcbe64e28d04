/* Who sent a request, beyond what FUSE tells. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Has the process that waits for this request a capability (CAP_... of linux/capability.h) in the
 * user namespace that we are in? Reads /proc; for rare requests. Of a process that can't be looked
 * at (one in another PID namespace) root is believed to have all. */
bool caller_can(pid_t pid, uint32_t uid, int capability);
