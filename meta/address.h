/* Metadata addresses:
 *	redis://[user[:password]@]host[:port][/db]
 *	redis+socket:///path[?db=N]
 *	local:DIR	a private server on a socket in DIR (see local.h)
 * User and password are percent-decoded; host may be an [IPv6] address. The password may also come
 * from SILTFS_META_PASSWORD, or from the file that SILTFS_META_PASSWORD_FILE names (first line); one
 * in the address wins. */
#pragma once
#include "meta/error.h"

enum meta_address_kind { META_ADDRESS_TCP, META_ADDRESS_SOCKET, META_ADDRESS_LOCAL };

struct meta_address {
	enum meta_address_kind kind;
	char *host; /* TCP */
	int port;
	char *path; /* socket path, or the DIR of local: (absolute) */
	int db;
	char *user, *password; /* may be NULL */
	char *shown;	       /* the address without its password, for messages */
};

/* Parses `text`. -EINVAL with one line that shows the forms. Free with meta_address_free(). */
int meta_address_parse(const char *text, struct meta_address *out, struct silt_err *err);
/* -ENOMEM: nothing is left in `to`. */
int meta_address_copy(const struct meta_address *a, struct meta_address *to);
void meta_address_free(struct meta_address *a);
