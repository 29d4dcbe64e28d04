/* The siltfs command: finds the subcommand and runs it. Called as `warmup` it is `siltfs warmup`,
 * as `mount.siltfs` the helper of mount(8). */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli.h"

static const struct cli_command commands[] = {
	{ "format", "ADDRESS NAME", "make a volume", cmd_format },
	{ "mount", "ADDRESS MOUNTPOINT", "mount a volume", cmd_mount },
	{ "umount", "MOUNTPOINT", "unmount, when everything is stored", cmd_umount },
	{ "status", "MOUNTPOINT|ADDRESS", "show a mount's counters or a volume's state",
	  cmd_status },
	{ "info", "PATH...", "show where the bytes of files are", cmd_info },
	{ "warmup", "PATH...", "bring files to this node's SSD", cmd_warmup },
	{ "fsck", "ADDRESS", "check a volume, and repair it", cmd_fsck },
	{ "gc", "ADDRESS", "delete objects that no file uses", cmd_gc },
	{ "train", "ADDRESS PATH...", "make a dictionary for compressing small files", cmd_train },
	{ "debug", "WHAT ...", "show inodes, directories, packs and slots as they are", cmd_debug },
};

static void print_help(void)
{
	puts("Usage: siltfs COMMAND [OPTIONS] ...\n"
	     "A POSIX file system with metadata in Redis, bytes in an object store and a cache on "
	     "SSD.\n");
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		printf("  %-7s %-22s %s\n", commands[i].name, commands[i].args,
		       commands[i].summary);
	puts("\nsiltfs COMMAND --help tells more; siltfs(1) tells all. First steps:\n"
	     "  siltfs format local:/srv/vol demo\n"
	     "  siltfs mount local:/srv/vol /mnt\n"
	     "  siltfs umount /mnt");
}

/* Output that could not be written (a full disk) is a failure too. */
static int finish(int rc)
{
	if ((fflush(stdout) != 0 || ferror(stdout)) && rc == CLI_OK)
		return cli_fail(CLI_FAILED, "can't write the output");
	return rc;
}

/* Started with stdin, stdout or stderr closed, the next descriptors would get their numbers, and
 * messages would go to them. Something that can't be used stands in, so that errors still show. */
static void hold_standard_descriptors(void)
{
	for (int fd = 0; fd <= 2; fd++)
		if (fcntl(fd, F_GETFD) < 0)
			open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
}

int main(int argc, char **argv)
{
	hold_standard_descriptors();
	const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
	const char *self = slash ? slash + 1 : argc > 0 ? argv[0] : "siltfs";

	if (strcmp(self, "warmup") == 0)
		return finish(cmd_warmup(argc, argv));
	if (strcmp(self, "mount.siltfs") == 0)
		return finish(cmd_mount_helper(argc, argv));
	if (argc < 2) {
		print_help();
		return CLI_USAGE;
	}
	const char *name = argv[1];
	if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
		print_help();
		return finish(CLI_OK);
	}
	if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
		puts("siltfs " SILT_VERSION);
		return finish(CLI_OK);
	}
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (strcmp(commands[i].name, name) != 0)
			continue;
		if (argc > 2 && strcmp(argv[2], "--version") == 0) {
			puts("siltfs " SILT_VERSION);
			return finish(CLI_OK);
		}
		return finish(commands[i].run(argc - 1, argv + 1));
	}
	return cli_fail(CLI_USAGE, "no command \"%s\"; see siltfs --help", name);
}
