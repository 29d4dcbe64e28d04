/* An error with its cause: the place that knows writes one line saying what went wrong and what to
 * do about it; the border (command line, FUSE reply) shows the line or maps it to the errno. */
#pragma once
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct silt_err {
	int code;	 /* negative errno; 0 when nothing was said */
	char text[512]; /* one line, no newline at its end */
};

/* Fills `err` (may be NULL) and returns `code`, so that a function can end with
 * `return silt_fail(err, -ENOENT, "no volume at %s; ...", addr);`. */
static inline int __attribute__((format(printf, 3, 4)))
silt_fail(struct silt_err *err, int code, const char *fmt, ...)
{
	if (err) {
		va_list ap;
		va_start(ap, fmt);
		err->code = code;
		vsnprintf(err->text, sizeof(err->text), fmt, ap);
		va_end(ap);
	}
	return code;
}
