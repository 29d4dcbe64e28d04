#include "meta/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "meta/cleanup.h"

struct silt_log {
	enum silt_log_level max;
	FILE *file; /* NULL: syslog */
	bool own_file;
	char *debug;
};

static const char *const level_names[] = { "error", "warning", "info", "debug" };
static const int syslog_levels[] = { LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

int silt_log_open(const char *path, enum silt_log_level max, const char *debug,
		  struct silt_log **out)
{
	SILT_FREE struct silt_log *log = calloc(1, sizeof(*log));
	if (!log)
		return -ENOMEM;
	log->max = max;
	if (!path) {
		log->file = stderr;
	} else if (strcmp(path, "syslog") != 0) {
		log->file = fopen(path, "ae");
		if (!log->file)
			return -errno;
		log->own_file = true;
		setvbuf(log->file, NULL, _IOLBF, 0);
	}
	if (debug && !(log->debug = strdup(debug))) {
		if (log->own_file)
			fclose(log->file);
		return -ENOMEM;
	}
	*out = silt_steal(log);
	return 0;
}

void silt_log_close(struct silt_log *log)
{
	if (!log)
		return;
	if (log->own_file)
		fclose(log->file);
	free(log->debug);
	free(log);
}

static void write_line(struct silt_log *log, enum silt_log_level level, const char *text)
{
	if (!log->file) {
		syslog(LOG_DAEMON | syslog_levels[level], "%s", text);
		return;
	}
	struct timespec ts;
	struct tm tm;
	char stamp[32];
	clock_gettime(CLOCK_REALTIME, &ts);
	localtime_r(&ts.tv_sec, &tm);
	strftime(stamp, sizeof(stamp), "%Y-%m-%d %H:%M:%S", &tm);
	fprintf(log->file, "%s.%03ld siltfs[%d] %s: %s\n", stamp, ts.tv_nsec / 1000000,
		(int)getpid(), level_names[level], text);
	fflush(log->file);
}

void silt_logv(struct silt_log *log, enum silt_log_level level, const char *fmt, va_list ap)
{
	if (!log || level > log->max)
		return;
	char text[2048];
	vsnprintf(text, sizeof(text), fmt, ap);
	write_line(log, level, text);
}

void silt_logf(struct silt_log *log, enum silt_log_level level, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	silt_logv(log, level, fmt, ap);
	va_end(ap);
}

bool silt_log_debugging(struct silt_log *log, const char *topic)
{
	if (!log)
		return false;
	if (log->max >= SILT_LOG_DEBUG)
		return true;
	if (!log->debug)
		return false;
	size_t n = strlen(topic);
	for (const char *p = log->debug; p && *p;) {
		size_t len = strcspn(p, ",");
		bool all = len == 3 && !strncmp(p, "all", 3);
		/* "cache" switches on every topic below it, "cache.evict" just that one. */
		bool under = len <= n && !strncmp(p, topic, len) &&
			     (topic[len] == '\0' || topic[len] == '.');
		if (all || under)
			return true;
		p += len;
		p += *p == ',';
	}
	return false;
}

void silt_debugf(struct silt_log *log, const char *topic, const char *fmt, ...)
{
	if (!silt_log_debugging(log, topic))
		return;
	char text[2048];
	va_list ap;
	int n = snprintf(text, sizeof(text), "%s: ", topic);
	va_start(ap, fmt);
	vsnprintf(text + n, sizeof(text) - (size_t)n, fmt, ap);
	va_end(ap);
	write_line(log, SILT_LOG_DEBUG, text);
}
