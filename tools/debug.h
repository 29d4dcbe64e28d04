/* Parts of `siltfs debug`, by what they look at (cmd_debug.c dispatches). argv[0] is the name of
 * the part; each returns an exit status. */
#pragma once

int debug_inode(int argc, char **argv);  /* ADDRESS INODE */
int debug_bucket(int argc, char **argv); /* ADDRESS INODE */
int debug_redis(int argc, char **argv);  /* ADDRESS COMMAND [ARG...] */
int debug_pack(int argc, char **argv);   /* ADDRESS PACK | FILE */
int debug_slots(int argc, char **argv);  /* MOUNTPOINT */
int debug_digest(int argc, char **argv); /* PATH */
