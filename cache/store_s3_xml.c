/* Parsing what an S3 server sends, with libxml2 and with distrust: no network, no entity expansion,
 * no DTD (the way to exponential documents), libxml2's own limits on depth and size left on.
 * Element names are compared without their namespace: servers don't agree on one. */
#include "cache/store_s3_xml.h"

#include <errno.h>
#include <libxml/parser.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void free_doc(xmlDoc **d)
{
	if (*d)
		xmlFreeDoc(*d);
}
#define XML_DOC __attribute__((cleanup(free_doc))) xmlDoc

static xmlDoc *parse(const char *text, size_t len)
{
	xmlDoc *doc;

	if (len == 0 || len > INT32_MAX)
		return NULL;
	doc = xmlReadMemory(text, (int)len, "reply.xml", NULL,
	                    XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING);
	if (doc && (doc->intSubset || doc->extSubset)) {
		xmlFreeDoc(doc);
		doc = NULL;
	}
	return doc;
}

static bool named(const xmlNode *n, const char *name)
{
	return n && n->type == XML_ELEMENT_NODE && strcmp((const char *)n->name, name) == 0;
}

static const xmlNode *child(const xmlNode *parent, const char *name)
{
	for (const xmlNode *n = parent->children; n; n = n->next)
		if (named(n, name))
			return n;
	return NULL;
}

/* The text of element `name` below `parent`, as far as it fits. Returns its full length. */
static size_t text_of(const xmlNode *parent, const char *name, char *out, size_t room)
{
	const xmlNode *e = child(parent, name);
	size_t len = 0;

	for (const xmlNode *n = e ? e->children : NULL; n; n = n->next) {
		if ((n->type != XML_TEXT_NODE && n->type != XML_CDATA_SECTION_NODE) || !n->content)
			continue;
		for (const char *p = (const char *)n->content; *p; p++, len++)
			if (len + 1 < room)
				out[len] = *p;
	}
	out[len < room ? len : room - 1] = '\0';
	return len;
}

static void read_error(const xmlNode *e, struct s3_error *out)
{
	text_of(e, "Code", out->code, sizeof(out->code));
	text_of(e, "Message", out->message, sizeof(out->message));
	for (char *p = out->code; *p; p++)
		if ((unsigned char)*p < ' ')
			*p = ' ';
	for (char *p = out->message; *p; p++)
		if ((unsigned char)*p < ' ')
			*p = ' ';
}

int s3_xml_error(const char *text, size_t len, struct s3_error *out)
{
	XML_DOC *doc = parse(text, len);
	const xmlNode *root = doc ? xmlDocGetRootElement(doc) : NULL;

	*out = (struct s3_error){ 0 };
	if (!named(root, "Error"))
		return -EBADMSG;
	read_error(root, out);
	return 0;
}

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* In place. Returns the new length; a %00 would hide the rest of a key and is left as it is. */
static size_t url_decode(char *s)
{
	char *to = s;
	for (const char *p = s; *p; p++) {
		int high = *p == '%' ? hex_value(p[1]) : -1;
		int low = high >= 0 ? hex_value(p[2]) : -1;
		if (low >= 0 && high + low > 0) {
			*to++ = (char)(high << 4 | low);
			p += 2;
		} else {
			*to++ = *p == '+' ? ' ' : *p;
		}
	}
	*to = '\0';
	return (size_t)(to - s);
}

/* "2026-01-31T23:59:59.000Z" */
static int64_t read_time(const char *s)
{
	struct tm tm = { 0 };
	if (sscanf(s, "%4d-%2d-%2dT%2d:%2d:%2d", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour,
	           &tm.tm_min, &tm.tm_sec) != 6)
		return 0;
	tm.tm_year -= 1900;
	tm.tm_mon -= 1;
	time_t t = timegm(&tm);
	return t > 0 ? t : 0;
}

static int read_content(const xmlNode *e, bool url, const char *cut, struct store_page *page)
{
	/* S3 keys have at most 1,024 bytes, url encoding makes three of each. */
	char key[3 * 1024 + 1], number[24], when[40], etag[80];
	struct store_object info = { 0 };
	size_t len = text_of(e, "Key", key, sizeof(key)), cut_len = strlen(cut);
	char *end;

	if (len == 0 || len >= sizeof(key))
		return -EBADMSG;
	if (url)
		len = url_decode(key);
	if (strncmp(key, cut, cut_len) != 0)
		return -EBADMSG;
	text_of(e, "Size", number, sizeof(number));
	errno = 0;
	info.size = strtoull(number, &end, 10);
	if (end == number || *end || errno || number[0] == '-')
		return -EBADMSG;
	text_of(e, "LastModified", when, sizeof(when));
	info.mtime = read_time(when);
	len = text_of(e, "ETag", etag, sizeof(etag));
	if (len >= 2 && len < sizeof(etag) && etag[0] == '"' && etag[len - 1] == '"')
		snprintf(info.etag, sizeof(info.etag), "%.*s", (int)(len - 2), etag + 1);
	else
		snprintf(info.etag, sizeof(info.etag), "%.70s", etag);
	return store_page_add(page, key + cut_len, strlen(key + cut_len), &info);
}

int s3_xml_list(const char *text, size_t len, const char *cut, struct store_page *page,
                struct s3_error *error)
{
	XML_DOC *doc = parse(text, len);
	const xmlNode *root = doc ? xmlDocGetRootElement(doc) : NULL;
	char word[8];
	bool url;

	*error = (struct s3_error){ 0 };
	if (named(root, "Error"))
		read_error(root, error);
	if (!named(root, "ListBucketResult"))
		return -EBADMSG;
	text_of(root, "EncodingType", word, sizeof(word));
	url = strcmp(word, "url") == 0;
	for (const xmlNode *n = root->children; n; n = n->next) {
		int rc = named(n, "Contents") ? read_content(n, url, cut, page) : 0;
		if (rc < 0)
			return rc;
	}
	text_of(root, "IsTruncated", word, sizeof(word));
	if (strcmp(word, "true") != 0 && strcmp(word, "false") != 0)
		return -EBADMSG; /* S3 always says; an end that nobody announced is a cut document
		                  */
	page->more = word[0] == 't';
	return 0;
}

int s3_xml_deleted(const char *text, size_t len, char *key, struct s3_error *error)
{
	XML_DOC *doc = parse(text, len);
	const xmlNode *root = doc ? xmlDocGetRootElement(doc) : NULL;

	*error = (struct s3_error){ 0 };
	key[0] = '\0';
	if (named(root, "Error")) {
		read_error(root, error);
		return -EBADMSG;
	}
	if (!named(root, "DeleteResult"))
		return -EBADMSG;
	for (const xmlNode *n = root->children; n; n = n->next) {
		if (!named(n, "Error"))
			continue;
		read_error(n, error);
		if (!error->code[0])
			snprintf(error->code, sizeof(error->code), "InternalError");
		if (strcmp(error->code, "NoSuchKey") != 0) {
			text_of(n, "Key", key, STORE_KEY_MAX + 1);
			return 0;
		}
		*error = (struct s3_error){ 0 };
	}
	return 0;
}
