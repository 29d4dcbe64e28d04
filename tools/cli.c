#include "tools/cli.h"

#include <stdarg.h>
#include <stdio.h>

static void say(const char *fmt, va_list ap, const char *tail, const char *command)
{
	char text[1024];
	vsnprintf(text, sizeof(text), fmt, ap);
	fprintf(stderr, "siltfs: %s%s%s%s\n", text, tail, command, *command ? " --help" : "");
}

int cli_fail(int status, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	say(fmt, ap, "", "");
	va_end(ap);
	return status;
}

int cli_usage(const char *command, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	say(fmt, ap, "; see siltfs ", command);
	va_end(ap);
	return CLI_USAGE;
}

int cli_help(const char *text)
{
	fputs(text, stdout);
	return CLI_OK;
}

const char *cli_bytes(double bytes, char out[32])
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
	int i = 0;
	for (; i < 5 && bytes >= 1024; i++)
		bytes /= 1024;
	snprintf(out, 32, i && bytes < 100 ? "%.1f %s" : "%.0f %s", bytes, units[i]);
	return out;
}
