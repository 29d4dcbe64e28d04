/* A directory of a test's own, below TMPDIR (else /tmp). */
#pragma once

#define SCRATCH_MAX 64 /* bytes of a path: short enough for a socket below it */

/* Makes it. 0, or -1 with errno. */
int scratch_make(char path[SCRATCH_MAX]);

/* Removes it and all below it; does nothing when `path` is "". 0, or -1. */
int scratch_remove(const char *path);
