#include "tools/json_fields.h"

struct json_object *json_member(struct json_object *o, const char *name)
{
	struct json_object *f = NULL;
	json_object_object_get_ex(o, name, &f);
	return f;
}

const char *json_text(struct json_object *o, const char *name)
{
	const char *text = json_object_get_string(json_member(o, name));
	return text ? text : "";
}

uint64_t json_number(struct json_object *o, const char *name)
{
	return json_object_get_uint64(json_member(o, name));
}
