/* Release by scope: variables marked with these attributes let go of what they hold when they
 * leave their block, so that an early return is safe. */
#pragma once
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void silt_cleanup_free(void *p)
{
	free(*(void **)p);
}

static inline void silt_cleanup_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void silt_cleanup_file(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void silt_cleanup_dir(DIR **d)
{
	if (*d)
		closedir(*d);
}

#define SILT_FREE  __attribute__((cleanup(silt_cleanup_free)))
#define SILT_CLOSE __attribute__((cleanup(silt_cleanup_fd)))
#define SILT_FCLOSE __attribute__((cleanup(silt_cleanup_file)))
#define SILT_CLOSEDIR __attribute__((cleanup(silt_cleanup_dir)))

/* Gives up ownership: returns the pointer and leaves NULL behind. */
#define silt_steal(p)                                                                              \
	({                                                                                         \
		__typeof__(p) silt_stolen_ = (p);                                                  \
		(p) = NULL;                                                                        \
		silt_stolen_;                                                                      \
	})
