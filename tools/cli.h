/* What the subcommands share. One file each: cmd_format.c, cmd_mount.c, ... */
#pragma once
#include <stdbool.h>

#include "meta/error.h"

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
int cmd_debug(int argc, char **argv);
