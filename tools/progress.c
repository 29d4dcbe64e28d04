#include "tools/progress.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "tools/cli.h"

#define PLAIN_SECONDS 5.0
#define SMOOTHING     0.15 /* weight of the newest rate */
#define BAR_WIDTH     24

void progress_begin(struct progress *p)
{
	memset(p, 0, sizeof(*p));
	p->tty = isatty(2);
	p->last = -PLAIN_SECONDS;
}

/* What came from the store, and what was read back from the SSD. */
static double work_bytes(const struct warmup_figures *f)
{
	return (double)f->fetched_bytes + (double)f->checked_bytes;
}

static void update_rate(struct progress *p, const struct warmup_figures *f)
{
	double dt = f->seconds - p->last_seconds;
	if (dt < 0.1)
		return;
	double now = (work_bytes(f) - p->last_bytes) / dt;
	p->rate = p->rate > 0 ? p->rate * (1 - SMOOTHING) + now * SMOOTHING : now;
	p->checking = f->fetched_bytes == p->last_fetched && work_bytes(f) > p->last_bytes;
	p->last_fetched = f->fetched_bytes;
	p->last_bytes = work_bytes(f);
	p->last_seconds = f->seconds;
}

/* The rest, taking packs not done yet to be as large as those that are. */
static void show_eta(const struct progress *p, const struct warmup_figures *f, char out[32])
{
	uint64_t packs = f->fetched_packs + f->checked_packs;
	double mean = packs ? work_bytes(f) / (double)packs : 0;
	double left = mean * (double)(f->packs - f->packs_done);
	long s = p->rate > 0 ? (long)(left / p->rate + 0.5) : -1;
	if (!f->resolved || mean == 0 || s < 0 || s > 359999)
		snprintf(out, 32, "--:--");
	else if (s >= 3600)
		snprintf(out, 32, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
	else
		snprintf(out, 32, "%02ld:%02ld", s / 60, s % 60);
}

static void compose(const struct progress *p, const struct warmup_figures *f, char *out,
                    size_t size)
{
	char bytes[32], rate[32], eta[32], bar[BAR_WIDTH + 1];
	double share = f->packs ? (double)f->packs_done / (double)f->packs : f->resolved;
	int full = (int)(share * BAR_WIDTH);

	memset(bar, '.', BAR_WIDTH);
	memset(bar, '#', full > BAR_WIDTH ? BAR_WIDTH : (size_t)full);
	bar[BAR_WIDTH] = '\0';
	show_eta(p, f, eta);
	cli_bytes((double)f->bytes, bytes);
	cli_bytes(p->rate, rate);
	snprintf(out, size, "[%s] %3.0f%% %llu%s files, %s, %llu/%llu packs, %s%s/s, ETA %s", bar,
	         share * 100, (unsigned long long)f->files, f->resolved ? "" : "+", bytes,
	         (unsigned long long)f->packs_done, (unsigned long long)f->packs,
	         p->checking ? "checking " : "", rate, eta);
}

void progress_show(struct progress *p, const struct warmup_figures *f)
{
	char line[256];
	struct winsize w = { .ws_col = 80 };

	update_rate(p, f);
	if (!p->tty && f->seconds - p->last < PLAIN_SECONDS)
		return;
	p->last = f->seconds;
	compose(p, f, line, sizeof(line));
	if (p->tty) {
		if (ioctl(2, TIOCGWINSZ, &w) < 0 || w.ws_col == 0)
			w.ws_col = 80;
		fprintf(stderr, "\r%.*s\033[K", w.ws_col - 1, line);
		p->drawn = true;
	} else {
		fprintf(stderr, "%s\n", line);
	}
	fflush(stderr);
}

void progress_end(struct progress *p)
{
	if (p->drawn)
		fputc('\n', stderr);
	p->drawn = false;
}
