/* Inode records, entries and times: round trips are tested against Redis in unit_meta; here are the
 * vectors and the damaged ones. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "meta/record.h"

/* A 4 KB file as functions.lua writes it: 34 bytes. */
static const uint8_t small_file[] = {
	0x12, 0xa4, 0x81, 0xff, 0xf4, 0x57, 0x21, 0x5a, 0x8f, 0x02, 0x6b, 0x80, /* flags mode mtime */
	0xe6, 0xdd, 0xa3, 0x3e,						 /* atime is so many ns before */
	0x00, 0x00, 0x01, 0x80, 0x20, 0x01,				 /* uid gid nlink size version */
	0x01, 0x00, 0x00, 0x80, 0x20, 0x01, 0x30, 0xf8, 0x0a,		 /* inline extent */
};

static void test_times(void **state)
{
	static const struct silt_time t[] = {
		{ 0, 0 }, { -1, 999999999 }, { 1, 1 }, { 1ll << 38, 5 }, { -(1ll << 39), 0 },
		{ (1ll << 39) - 1, 999999999 },
	};
	(void)state;
	for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
		uint8_t b[RECORD_TIME];
		record_time_encode(t[i], b);
		struct silt_time back = record_time_decode(b);
		assert_true(back.sec == t[i].sec && back.nsec == t[i].nsec);
	}
	uint8_t b[RECORD_TIME];
	record_time_encode((struct silt_time){ INT64_MAX, 0 }, b);
	assert_true(record_time_decode(b).sec == (1ll << 39) - 1);
}

static void test_small_file(void **state)
{
	struct silt_inode i;
	(void)state;
	assert_int_equal(record_decode(5, small_file, sizeof(small_file), &i, NULL, NULL), 0);
	assert_true(i.attr.ino == 5 && i.attr.size == 4096 && i.attr.nlink == 1 && i.attr.version == 1);
	assert_int_equal(i.attr.mode, S_IFREG | 0644);
	assert_int_equal(i.map, SILT_MAP_INLINE);
	assert_true(i.extent.len == 4096 && i.extent.pack == 1 && i.extent.pack_off == 48);
	assert_int_equal(i.extent.stored, 1400);
	assert_true(i.attr.atime.sec == i.attr.mtime.sec || i.attr.atime.sec == i.attr.mtime.sec - 1);
}

/* No prefix of a record is one, and no flipped bit makes the decoder misbehave (sanitizers watch). */
static void test_damage(void **state)
{
	struct silt_inode i;
	uint8_t copy[sizeof(small_file)];
	(void)state;
	for (size_t n = 0; n < sizeof(small_file); n++) {
		uint8_t *exact = malloc(n ? n : 1);
		memcpy(exact, small_file, n);
		assert_int_equal(record_decode(5, exact, n, &i, NULL, NULL), -EUCLEAN);
		free(exact);
	}
	for (size_t bit = 0; bit < sizeof(small_file) * 8; bit++) {
		memcpy(copy, small_file, sizeof(copy));
		copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
		record_decode(5, copy, sizeof(copy), &i, NULL, NULL);
	}
}

/* Flags are a byte after the mode, there only when one is set. */
static void test_flags(void **state)
{
	/* the small file with an access ACL and extended attributes; a leased directory of 3 buckets */
	uint8_t file[sizeof(small_file) + 1];
	static const uint8_t dir[] = {
		0x18, 0xed, 0x41, 0x09, 0x03, 0xff, 0xf4, 0x57, 0x21, 0x5a, 0x8f, 0x02, 0x6b, 0x80,
		0x00, 0x00, 0x02, 0x05, 0x07,			/* uid gid nlink size version */
		0x01, 0x00, 0x09, 0x00, 0x00, 0x00, 0x00, 0x00, /* parent */
	};
	struct silt_inode i;
	(void)state;
	file[0] = small_file[0] | 8;
	memcpy(file + 1, small_file + 1, 2);
	file[3] = SILT_FLAG_XATTRS | SILT_FLAG_ACL;
	memcpy(file + 4, small_file + 3, sizeof(small_file) - 3);
	assert_int_equal(record_decode(5, file, sizeof(file), &i, NULL, NULL), 0);
	assert_int_equal(i.attr.flags, SILT_FLAG_XATTRS | SILT_FLAG_ACL);
	assert_true(i.attr.size == 4096 && i.attr.mode == (S_IFREG | 0644) && i.extent.stored == 1400);
	assert_int_equal(record_decode(9, dir, sizeof(dir), &i, NULL, NULL), 0);
	assert_int_equal(i.attr.flags, SILT_FLAG_LEASED | SILT_FLAG_DEFAULT_ACL);
	assert_true(i.attr.nlink == 2 && i.attr.size == 5 && i.attr.parent == silt_ino_make(1, 9));
	assert_true(record_buckets(dir, sizeof(dir)) == 3);
	for (unsigned f = 0; f < 256; f++) {
		bool known = f < 64, fits = !(f & SILT_FLAG_DEFAULT_ACL);
		file[3] = (uint8_t)f;
		assert_int_equal(record_decode(5, file, sizeof(file), &i, NULL, NULL),
				 known && fits ? 0 : -EUCLEAN);
	}
	for (size_t n = 0; n < sizeof(dir); n++)
		assert_int_equal(record_decode(9, dir, n, &i, NULL, NULL), -EUCLEAN);
}

static void test_entries(void **state)
{
	uint32_t type;
	silt_ino ino;
	bool moving;
	(void)state;
	assert_int_equal(record_entry_decode(3, "\x08\x05\x87\x01", 4, &type, &ino, &moving), 0);
	assert_true(type == S_IFREG && ino == silt_ino_make(3, 0x18705) && !moving);
	assert_int_equal(record_entry_decode(3, "\xc4\x07\x00\x01", 4, &type, &ino, &moving), 0);
	assert_true(type == S_IFDIR && ino == silt_ino_make(7, 1) && moving);
	assert_int_equal(record_entry_decode(0, "", 0, &type, &ino, &moving), -EUCLEAN);
	assert_int_equal(record_entry_decode(0, "\x08", 1, &type, &ino, &moving), -EUCLEAN);
	assert_int_equal(record_entry_decode(0, "\x03\x01", 2, &type, &ino, &moving), -EUCLEAN);
	assert_int_equal(record_entry_decode(0, "\x48\xff\xff\x01", 4, &type, &ino, &moving), -EUCLEAN);
	assert_int_equal(record_entry_decode(0, "\x08\1\2\3\4\5\6\7", 8, &type, &ino, &moving), -EUCLEAN);
}

static void test_place(void **state)
{
	(void)state;
	/* SHA-1 of "abc" is a9993e364706816a... */
	assert_true(record_place("abc", 3) == 0xa9993e3647068ull);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_times),	cmocka_unit_test(test_small_file),
		cmocka_unit_test(test_damage),	cmocka_unit_test(test_entries),
		cmocka_unit_test(test_place),  cmocka_unit_test(test_flags),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
