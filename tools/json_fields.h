/* Members of what a daemon or a store sent, where nothing has to be as it should: one that is not
 * there is NULL, "" or 0. `o` may be NULL. */
#pragma once
#include <json-c/json.h>
#include <stdint.h>

struct json_object *json_member(struct json_object *o, const char *name);
const char *json_text(struct json_object *o, const char *name);
uint64_t json_number(struct json_object *o, const char *name);
