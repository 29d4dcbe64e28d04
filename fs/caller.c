/* See caller.h. */
#include "fs/caller.h"

#include <stdio.h>
#include <sys/stat.h>

#include "meta/cleanup.h"

/* A user may be root, with all capabilities, in a namespace of his own. */
static bool same_user_namespace(pid_t pid)
{
	char path[64];
	struct stat theirs, ours;
	snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
	if (stat(path, &theirs) != 0 || stat("/proc/self/ns/user", &ours) != 0)
		return false;
	return theirs.st_dev == ours.st_dev && theirs.st_ino == ours.st_ino;
}

bool caller_can(pid_t pid, uint32_t uid, int capability)
{
	char path[64], line[256];
	unsigned long long effective;
	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	SILT_FCLOSE FILE *f = pid > 0 ? fopen(path, "re") : NULL;
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "CapEff: %llx", &effective) == 1)
			return effective >> capability & 1 &&
			       (uid == 0 || same_user_namespace(pid));
	return uid == 0;
}
