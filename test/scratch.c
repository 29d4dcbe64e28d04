#include "test/scratch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

int scratch_make(char path[SCRATCH_MAX])
{
	const char *top = getenv("TMPDIR");
	int n = snprintf(path, SCRATCH_MAX, "%s/silt-unit-XXXXXX", top && *top ? top : "/tmp");
	if (n < SCRATCH_MAX && mkdtemp(path))
		return 0;
	if (n >= SCRATCH_MAX)
		errno = ENAMETOOLONG;
	path[0] = '\0';
	return -1;
}

int scratch_remove(const char *path)
{
	char cmd[SCRATCH_MAX + 40];
	if (!path[0])
		return 0;
	snprintf(cmd, sizeof(cmd), "rm -rf --one-file-system '%s'", path);
	return system(cmd) == 0 ? 0 : -1;
}
