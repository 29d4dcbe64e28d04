/* The slot table's format and file: what was written is read back, and nothing that is torn,
 * flipped, moved, of another volume or of another table is ever taken for an entry. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/slot_table.h"
#include "meta/lock.h"

static const struct slot_header header = { SLOT_TABLE_VERSION, SLOT_SIZE_MAX, 100, 7, 99 };
static const struct slot_entry entry = { 42, 3, 5u << 20, 0x0ff0, 2 };

static void test_header(void **state)
{
	uint8_t buf[64];
	struct slot_header h;
	slot_header_encode(&header, buf);
	assert_int_equal(slot_header_decode(buf, &h), 0);
	assert_int_equal(h.slots, header.slots);
	assert_int_equal(h.volume, header.volume);
	assert_int_equal(h.nonce, header.nonce);
	for (unsigned bit = 0; bit < sizeof(buf) * 8; bit++) {
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(slot_header_decode(buf, &h), -EBADMSG);
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
}

static void test_entry_every_bit_counts(void **state)
{
	uint8_t buf[TABLE_ENTRY];
	struct slot_entry e;
	slot_entry_encode(&header, 5, &entry, buf);
	assert_true(slot_entry_decode(&header, 5, buf, &e));
	assert_int_equal(e.pack, entry.pack);
	assert_int_equal(e.piece, entry.piece);
	assert_int_equal(e.pack_len, entry.pack_len);
	assert_int_equal(e.valid, entry.valid);
	assert_int_equal(e.freq, entry.freq);
	for (unsigned bit = 0; bit < TABLE_ENTRY * 8; bit++) {
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_false(slot_entry_decode(&header, 5, buf, &e));
		assert_int_equal(e.pack, 0);
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	assert_false(slot_entry_decode(&header, 6, buf, &e));
	struct slot_header other = header;
	other.volume++;
	assert_false(slot_entry_decode(&other, 5, buf, &e));
	other = header;
	other.nonce++;
	assert_false(slot_entry_decode(&other, 5, buf, &e));
}

static void test_entry_must_make_sense(void **state)
{
	uint8_t buf[TABLE_ENTRY];
	struct slot_entry e = entry, out;
	e.piece = 5; /* past the pack's end */
	slot_entry_encode(&header, 5, &e, buf);
	assert_false(slot_entry_decode(&header, 5, buf, &out));
	e = entry;
	e.freq = 4;
	slot_entry_encode(&header, 5, &e, buf);
	assert_false(slot_entry_decode(&header, 5, buf, &out));
}

static void test_full_mask(void **state)
{
	for (uint32_t size = SLOT_SIZE_MIN; size <= SLOT_SIZE_MAX; size *= 4) {
		uint32_t chunk = size / SLOT_CHUNKS;
		assert_int_equal(slot_full_mask(size, size, 0), 0xffff);
		assert_int_equal(slot_full_mask(size, size, 1), 0);
		assert_int_equal(slot_full_mask(size, 1, 0), 1);
		assert_int_equal(slot_full_mask(size, size + chunk, 1), 1);
		assert_int_equal(slot_full_mask(size, size + chunk + 1, 1), 3);
		assert_int_equal(slot_full_mask(size, 0, 0), 0);
		assert_int_equal(slot_full_mask(size, UINT32_MAX, UINT32_MAX), 0);
	}
}

static void test_slot_sizes(void **state)
{
	const uint64_t gib = (uint64_t)1 << 30;
	assert_int_equal(slot_size_for(4u << 20), 64u << 10);
	assert_int_equal(slot_size_for(64 * gib), 64u << 10);
	assert_int_equal(slot_size_for(64 * gib + 1), 256u << 10);
	assert_int_equal(slot_size_for(512 * gib), 256u << 10);
	assert_int_equal(slot_size_for(513 * gib), 1u << 20);
	assert_int_equal(slot_size_for(UINT64_MAX), 1u << 20);
	assert_true(slot_size_valid(128u << 10));
	assert_false(slot_size_valid(0) || slot_size_valid(32u << 10) ||
	             slot_size_valid(2u << 20) || slot_size_valid(100u << 10));
	/* An entry in a table of slots that can't be is none. */
	uint8_t buf[TABLE_ENTRY];
	struct slot_header h = header;
	struct slot_entry e;
	h.slot_size = 0;
	slot_entry_encode(&h, 5, &entry, buf);
	assert_false(slot_entry_decode(&h, 5, buf, &e));
}

static int make_dir(void **state)
{
	char path[] = "/tmp/silt-unit-XXXXXX";
	*state = mkdtemp(path) ? strdup(path) : NULL;
	return *state ? 0 : -1;
}

static int drop_dir(void **state)
{
	char cmd[128];
	snprintf(cmd, sizeof(cmd), "rm -rf '%s'", (char *)*state);
	free(*state);
	return system(cmd);
}

static int open_table(const char *dir, uint64_t volume, uint32_t slots, bool *fresh, char why[160],
                      struct slot_table *t, struct silt_err *err)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY);
	const struct slot_want want = { volume, SLOT_SIZE_MAX, slots };
	int rc = slot_table_open(fd, "table", &want, fresh, why, t, err);
	close(fd);
	return rc;
}

static void test_file(void **state)
{
	struct slot_table t;
	struct slot_entry e;
	struct silt_err err;
	bool fresh;
	char why[160];
	assert_int_equal(open_table(*state, 7, 100, &fresh, why, &t, &err), 0);
	assert_true(fresh);
	assert_int_equal(slot_table_put(&t, 5, &entry, 1), 0);
	assert_int_equal(slot_table_put(&t, 99, &entry, 1), 0);
	slot_table_close(&t);

	/* Smaller: what is past the end is lost; larger again: it stays lost. */
	assert_int_equal(open_table(*state, 7, 50, &fresh, why, &t, &err), 0);
	assert_false(fresh);
	assert_true(slot_table_entry(&t, 5, &e));
	slot_table_close(&t);
	assert_int_equal(open_table(*state, 7, 100, &fresh, why, &t, &err), 0);
	assert_true(slot_table_entry(&t, 5, &e));
	assert_false(slot_table_entry(&t, 99, &e));
	slot_table_close(&t);

	assert_int_equal(open_table(*state, 8, 100, &fresh, why, &t, &err), -EEXIST);
	assert_non_null(strstr(err.text, "its own directory"));
}

static void put_header(const char *dir, const struct slot_header *h)
{
	uint8_t buf[64];
	char path[128];
	snprintf(path, sizeof(path), "%s/table", dir);
	int fd = open(path, O_WRONLY);
	slot_header_encode(h, buf);
	assert_int_equal(pwrite(fd, buf, sizeof(buf), 0), 64);
	close(fd);
}

static void test_versions(void **state)
{
	struct slot_table t;
	struct slot_entry e;
	struct silt_err err;
	bool fresh;
	char why[160];
	assert_int_equal(open_table(*state, 7, 100, &fresh, why, &t, &err), 0);
	slot_table_put(&t, 5, &entry, 1);
	struct slot_header h = t.h;
	slot_table_close(&t);

	h.version = SLOT_TABLE_VERSION + 1;
	put_header(*state, &h);
	assert_int_equal(open_table(*state, 7, 100, &fresh, why, &t, &err), -EEXIST);
	assert_non_null(strstr(err.text, "newer"));

	h.version = 0;
	put_header(*state, &h);
	assert_int_equal(open_table(*state, 7, 100, &fresh, why, &t, &err), 0);
	assert_true(fresh);
	assert_non_null(strstr(why, "older"));
	assert_false(slot_table_entry(&t, 5, &e));
	slot_table_close(&t);
}

static void test_slot_size_stays(void **state)
{
	struct slot_table t;
	struct slot_entry e;
	struct silt_err err;
	bool fresh;
	char why[160];
	int fd = open(*state, O_RDONLY | O_DIRECTORY);
	assert_int_equal(slot_table_slot_size(fd, "table"), 0);
	const struct slot_want small = { 7, SLOT_SIZE_MIN, 100 }, large = { 7, SLOT_SIZE_MAX, 50 };
	assert_int_equal(slot_table_open(fd, "table", &small, &fresh, why, &t, &err), 0);
	slot_table_put(&t, 5, &entry, 1);
	slot_table_close(&t);
	assert_int_equal(slot_table_slot_size(fd, "table"), SLOT_SIZE_MIN);

	assert_int_equal(slot_table_open(fd, "table", &large, &fresh, why, &t, &err), 0);
	assert_true(fresh);
	assert_non_null(strstr(why, "64 KiB"));
	assert_false(slot_table_entry(&t, 5, &e));
	struct slot_header h = t.h;
	slot_table_close(&t);
	assert_int_equal(slot_table_slot_size(fd, "table"), SLOT_SIZE_MAX);
	h.slot_size = 12345;
	put_header(*state, &h);
	assert_int_equal(slot_table_slot_size(fd, "table"), 0);
	close(fd);
}

/* Many entries with one call, over the size of one write. */
static void test_runs_of_entries(void **state)
{
	enum { N = 300 };
	struct slot_table t;
	struct slot_entry e[N], out;
	struct silt_err err;
	bool fresh;
	char why[160];
	assert_int_equal(open_table(*state, 7, 400, &fresh, why, &t, &err), 0);
	for (unsigned i = 0; i < N; i++) {
		e[i] = entry;
		e[i].pack = 1000 + i;
	}
	assert_int_equal(slot_table_put(&t, 50, e, N), 0);
	assert_int_equal(slot_table_put(&t, 60, NULL, 200), 0);
	slot_table_close(&t);
	assert_int_equal(open_table(*state, 7, 400, &fresh, why, &t, &err), 0);
	for (unsigned i = 0; i < 400; i++) {
		bool used = i >= 50 && i < 50 + N && !(i >= 60 && i < 260);
		assert_int_equal(slot_table_entry(&t, i, &out), used);
		assert_int_equal(out.pack, used ? 1000 + i - 50 : 0);
	}
	slot_table_close(&t);
}

static void test_damaged_header(void **state)
{
	struct slot_table t;
	struct silt_err err;
	bool fresh;
	char why[160], path[128];
	assert_int_equal(open_table(*state, 7, 100, &fresh, why, &t, &err), 0);
	slot_table_close(&t);
	snprintf(path, sizeof(path), "%s/table", (char *)*state);
	int fd = open(path, O_WRONLY);
	assert_int_equal(pwrite(fd, "?", 1, 20), 1);
	close(fd);
	assert_int_equal(open_table(*state, 7, 100, &fresh, why, &t, &err), 0);
	assert_true(fresh);
	assert_non_null(strstr(why, "damaged"));
	slot_table_close(&t);
}

/* 64 GiB of cache must not keep a mount waiting. */
static void test_million_slots_load_fast(void **state)
{
	struct slot_table t;
	struct slot_entry e;
	struct silt_err err;
	bool fresh;
	char why[160], path[128];
	uint32_t n = 1u << 20, used = 0;
	assert_int_equal(open_table(*state, 7, n, &fresh, why, &t, &err), 0);
	uint8_t *all = malloc((size_t)n * TABLE_ENTRY);
	for (uint32_t i = 0; i < n; i++) {
		e = entry;
		e.pack = i + 1;
		slot_entry_encode(&t.h, i, &e, all + (size_t)i * TABLE_ENTRY);
	}
	assert_int_equal(pwrite(t.fd, all, (size_t)n * TABLE_ENTRY, TABLE_HEADER),
	                 (ssize_t)n * TABLE_ENTRY);
	free(all);
	slot_table_close(&t);
	uint64_t start = silt_now_ns();
	assert_int_equal(open_table(*state, 7, n, &fresh, why, &t, &err), 0);
	for (uint32_t i = 0; i < n; i++)
		used += slot_table_entry(&t, i, &e);
	print_message("%u entries in %.0f ms\n", n, (double)(silt_now_ns() - start) / 1e6);
	assert_int_equal(used, n);
	slot_table_close(&t);
	snprintf(path, sizeof(path), "%s/table", (char *)*state);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_header),
		cmocka_unit_test(test_entry_every_bit_counts),
		cmocka_unit_test(test_entry_must_make_sense),
		cmocka_unit_test(test_full_mask),
		cmocka_unit_test(test_slot_sizes),
		cmocka_unit_test_setup_teardown(test_file, make_dir, drop_dir),
		cmocka_unit_test_setup_teardown(test_versions, make_dir, drop_dir),
		cmocka_unit_test_setup_teardown(test_slot_size_stays, make_dir, drop_dir),
		cmocka_unit_test_setup_teardown(test_runs_of_entries, make_dir, drop_dir),
		cmocka_unit_test_setup_teardown(test_damaged_header, make_dir, drop_dir),
		cmocka_unit_test_setup_teardown(test_million_slots_load_fast, make_dir, drop_dir),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
