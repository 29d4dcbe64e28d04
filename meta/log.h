/* Logging: one line an event, with a level, to stderr, a file or syslog. A `struct silt_log` is
 * handed to every subsystem when it is opened. All functions may be called from any thread. */
#pragma once
#include <stdarg.h>
#include <stdbool.h>

enum silt_log_level { SILT_LOG_ERROR, SILT_LOG_WARN, SILT_LOG_INFO, SILT_LOG_DEBUG };

struct silt_log;

/* Opens a log that writes lines of `max` and worse. `path` NULL means stderr, "syslog" means the
 * system log, anything else is a file that is appended to. `debug` is a comma-separated list of
 * topics ("cache.evict,meta.conn") whose debug lines are written whatever `max` says; may be NULL.
 * Returns 0 or a negative errno; the caller ends it with silt_log_close(). */
int silt_log_open(const char *path, enum silt_log_level max, const char *debug,
		  struct silt_log **out);
void silt_log_close(struct silt_log *log);

/* Writes one line. A NULL log drops it. */
void silt_logv(struct silt_log *log, enum silt_log_level level, const char *fmt, va_list ap)
	__attribute__((format(printf, 3, 0)));
void silt_logf(struct silt_log *log, enum silt_log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* True when debug lines of `topic` are wanted: check it before building an expensive line. */
bool silt_log_debugging(struct silt_log *log, const char *topic);
void silt_debugf(struct silt_log *log, const char *topic, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#define silt_error(log, ...) silt_logf(log, SILT_LOG_ERROR, __VA_ARGS__)
#define silt_warn(log, ...)  silt_logf(log, SILT_LOG_WARN, __VA_ARGS__)
#define silt_info(log, ...)  silt_logf(log, SILT_LOG_INFO, __VA_ARGS__)
