/* What S3 servers send, well-formed or not. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "cache/store_s3_xml.h"

static struct store_page page;
static struct s3_error error;

static int list(const char *text, const char *cut)
{
	store_page_clear(&page);
	return s3_xml_list(text, strlen(text), cut, &page, &error);
}

static const char *key(size_t i)
{
	return page.keys + page.v[i].key;
}

#define CONTENT(key, size)                                                                         \
	"<Contents><Key>" key "</Key><LastModified>2026-01-31T23:59:58.123Z</LastModified>"        \
	"<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>" size                     \
	"</Size></Contents>"
#define LIST(inside)                                                                               \
	"<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/"            \
	"2006-03-01/\">" inside "</ListBucketResult>"
#define NOT_MORE "<IsTruncated>false</IsTruncated>"

static void a_page(void **state)
{
	assert_int_equal(list(LIST("<IsTruncated>true</IsTruncated>" CONTENT("p/a", "12")
	                                   CONTENT("p/b", "18446744073709551615")),
	                      "p/"),
	                 0);
	assert_int_equal(page.n, 2);
	assert_true(page.more);
	assert_string_equal(key(0), "a");
	assert_string_equal(key(1), "b");
	assert_int_equal(page.v[0].info.size, 12);
	assert_true(page.v[1].info.size == UINT64_MAX);
	assert_int_equal(page.v[0].info.mtime, 1769903998);
	assert_string_equal(page.v[0].info.etag, "d41d8cd98f00b204e9800998ecf8427e");
	assert_int_equal(list(LIST(NOT_MORE), ""), 0);
	assert_int_equal(page.n, 0);
	assert_false(page.more);
}

static void encoded_keys(void **state)
{
	assert_int_equal(list(LIST(NOT_MORE "<EncodingType>url</EncodingType>" CONTENT(
	                              "a%2Fb%20c+d%ff%0", "1")),
	                      ""),
	                 0);
	assert_string_equal(key(0), "a/b c d\xff%0");
	assert_int_equal(list(LIST(NOT_MORE CONTENT("a%2Fb&amp;&lt;<![CDATA[<x>]]>", "1")), ""), 0);
	assert_string_equal(key(0), "a%2Fb&<<x>");
}

static void refused_lists(void **state)
{
	static const char *const bad[] = {
		"",
		" ",
		"<",
		"no xml",
		"<ListBucketResult>",
		"<ListBucketResult/>",
		"<DeleteResult/>",
		LIST(""),
		LIST("<IsTruncated>perhaps</IsTruncated>"),
		LIST(NOT_MORE CONTENT("p/a", "")),
		LIST(NOT_MORE CONTENT("p/a", "-1")),
		LIST(NOT_MORE CONTENT("p/a", "1x")),
		LIST(NOT_MORE CONTENT("p/a", "99999999999999999999")),
		LIST(NOT_MORE CONTENT("", "1")),
		LIST(NOT_MORE CONTENT("other/a", "1")),
		LIST(NOT_MORE "<Contents/>"),
		"<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;&a;\">]>"
		"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
		"<!DOCTYPE x SYSTEM \"file:///etc/passwd\">"
		"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(list(bad[i], "p/"), -EBADMSG);
	assert_int_equal(list("<Error><Code>SlowDown</Code></Error>", ""), -EBADMSG);
	assert_string_equal(error.code, "SlowDown");
}

static void every_prefix_of_a_list(void **state)
{
	static const char text[] = LIST(NOT_MORE CONTENT("p/a", "12") CONTENT("p/b", "3"));
	for (size_t len = 0; len < sizeof(text) - 1; len++) {
		store_page_clear(&page);
		assert_int_equal(s3_xml_list(text, len, "p/", &page, &error), -EBADMSG);
	}
}

static void long_and_deep(void **state)
{
	enum { N = 100000 };
	char *text = malloc(N + 200);

	strcpy(text,
	       "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Size>1</Size><Key>");
	size_t at = strlen(text);
	memset(text + at, 'k', N);
	strcpy(text + at + N, "</Key></Contents></ListBucketResult>");
	assert_int_equal(list(text, ""), -EBADMSG);
	for (size_t i = 0; i < N; i += 4)
		memcpy(text + i, "<aa>", 4);
	text[N] = '\0';
	assert_int_equal(list(text, ""), -EBADMSG);
	strcpy(text, "<Error><Code>");
	at = strlen(text);
	memset(text + at, 'c', N);
	strcpy(text + at + N, "</Code><Message>a\nb\x7f</Message></Error>");
	assert_int_equal(s3_xml_error(text, strlen(text), &error), 0);
	assert_int_equal(strlen(error.code), sizeof(error.code) - 1);
	assert_string_equal(error.message, "a b\x7f");
	free(text);
}

static void errors(void **state)
{
	static const char text[] =
	        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>NoSuchKey"
	        "</Code><Message>gone</Message></Error>";
	assert_int_equal(s3_xml_error(text, strlen(text), &error), 0);
	assert_string_equal(error.code, "NoSuchKey");
	assert_string_equal(error.message, "gone");
	static const char html[] = "<html><body>503 Service Unavailable</body></html>";
	assert_int_equal(s3_xml_error(html, strlen(html), &error), -EBADMSG);
	assert_string_equal(error.code, "");
}

static int deleted(const char *text, char *name)
{
	return s3_xml_deleted(text, strlen(text), name, &error);
}

static void delete_results(void **state)
{
	char name[STORE_KEY_MAX + 1];

	assert_int_equal(deleted("<DeleteResult/>", name), 0);
	assert_string_equal(error.code, "");
	assert_int_equal(
	        deleted("<DeleteResult><Error><Key>a</Key><Code>NoSuchKey</Code></Error>"
	                "<Error><Key>b</Key><Code>AccessDenied</Code></Error></DeleteResult>",
	                name),
	        0);
	assert_string_equal(error.code, "AccessDenied");
	assert_string_equal(name, "b");
	assert_int_equal(deleted("<DeleteResult><Error/></DeleteResult>", name), 0);
	assert_string_equal(error.code, "InternalError");
	assert_int_equal(deleted("<Error><Code>SlowDown</Code></Error>", name), -EBADMSG);
	assert_string_equal(error.code, "SlowDown");
	assert_int_equal(deleted("", name), -EBADMSG);
	assert_string_equal(error.code, "");
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_page),         cmocka_unit_test(encoded_keys),
		cmocka_unit_test(refused_lists),  cmocka_unit_test(every_prefix_of_a_list),
		cmocka_unit_test(long_and_deep),  cmocka_unit_test(errors),
		cmocka_unit_test(delete_results),
	};
	int rc = cmocka_run_group_tests(tests, NULL, NULL);
	store_page_free(&page);
	return rc;
}
