/* What the subcommands share. One file each: cmd_format.c, cmd_mount.c, ... */
#pragma once
#include <stdbool.h>

#include "meta/error.h"

/* Exit statuses. warmup: CLI_FAILED means that something is missing. */
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

struct cli_command {
	const char *name, *args, *summary;
	int (*run)(int argc, char **argv); /* argv[0] is the subcommand; returns the exit status */
};

int cmd_format(int argc, char **argv);
int cmd_mount(int argc, char **argv);
int cmd_umount(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_warmup(int argc, char **argv);
int cmd_fsck(int argc, char **argv);
int cmd_gc(int argc, char **argv);
int cmd_train(int argc, char **argv);
int cmd_debug(int argc, char **argv);

/* Called as mount.siltfs by mount(8): ADDRESS MOUNTPOINT [-sfnv] [-o OPTIONS]. */
int cmd_mount_helper(int argc, char **argv);

/* Prints one line "siltfs: ..." on stderr and returns `status`. */
int cli_fail(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A usage error: the line, ending in "; see siltfs COMMAND --help". Returns CLI_USAGE. */
int cli_usage(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Prints help on stdout. Returns CLI_OK. */
int cli_help(const char *text);

/* A number of bytes for people: "1.5 GiB". */
const char *cli_bytes(double bytes, char out[32]);
