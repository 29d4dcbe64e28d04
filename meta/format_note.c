/* The note that a format is under way, which makes what an interrupted one left its next run's own.
 */
#include "meta/engine.h"
#include "meta/local.h"

#include <errno.h>
#include <stdlib.h>

static int take_note(redisContext *c, const char *shown, uint64_t *id, struct silt_err *err)
{
	redisReply *r =
	        redisCommand(c, "FCALL silt1_format_note 1 {0} %016llx", (unsigned long long)*id);
	uint64_t noted = r && r->type == REDIS_REPLY_ARRAY && reply_at(r, 1)
	                         ? strtoull(reply_at(r, 1)->str, NULL, 16)
	                         : 0;
	int rc = 0;

	if (r && r->type == REDIS_REPLY_INTEGER && r->integer == -EEXIST)
		rc = silt_fail(err, -EEXIST,
		               "there is a siltfs volume at %s already; it is left as it is",
		               shown);
	else if (!noted)
		rc = silt_fail(err, -EIO, "cannot write to redis at %s: %s", shown,
		               r && r->str ? r->str : "connection closed");
	else
		*id = noted;
	if (r)
		freeReplyObject(r);
	return rc;
}

int meta_format_note(const struct meta_address *a, uint64_t *id, struct silt_err *err)
{
	struct meta_server_info info;
	struct meta_local *local = NULL;
	redisContext *c = NULL;
	sigset_t before;
	int rc = 0;

	conn_hold_sigpipe(&before);
	if (a->kind == META_ADDRESS_LOCAL)
		rc = meta_local_open(a->path, 1, NULL, &local, err);
	if (!rc)
		rc = conn_connect_plain(a, local ? meta_local_socket(local) : NULL, 10000, &c, err);
	if (!rc)
		rc = server_check(c, a->shown, &info, err);
	if (!rc)
		rc = functions_load(c, a->shown, err);
	if (!rc)
		rc = take_note(c, a->shown, id, err);
	if (c)
		redisFree(c);
	conn_restore_sigpipe(&before);
	meta_local_close(local);
	return rc;
}
