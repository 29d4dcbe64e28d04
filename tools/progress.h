/* The progress of a warmup on the terminal: one line that is drawn again on a tty, a plain line
 * every few seconds elsewhere. Written to stderr. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct warmup_figures {
	uint64_t files, bytes, packs, packs_done, packs_cached;
	uint64_t fetched_packs, fetched_bytes, missing_files;
	uint64_t checked_packs, checked_bytes, damaged_packs;
	double seconds;
	bool resolved;
};

struct progress {
	bool tty, drawn;
	double last; /* seconds at the last line or drawing */
	double rate; /* smoothed, bytes a second */
	double last_bytes, last_seconds;
	uint64_t last_fetched;
	bool checking; /* of late, bytes were only read back from the SSD */
};

void progress_begin(struct progress *p);
void progress_show(struct progress *p, const struct warmup_figures *f);
/* Ends the drawn line, if there is one. */
void progress_end(struct progress *p);
