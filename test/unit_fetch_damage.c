/* The read side when bytes are missing, cut short, damaged or another's, in the store and on the
 * SSD: healed where another copy is right, else reported, and never given to a reader. */
#include "test/fetch_fixture.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

static void flip(const char *path, off_t off)
{
	uint8_t x;
	chmod(path, 0600);
	int fd = open(path, O_RDWR);
	assert_int_equal(pread(fd, &x, 1, off), 1);
	x ^= 0x10;
	assert_int_equal(pwrite(fd, &x, 1, off), 1);
	close(fd);
}

static void test_missing_object(void **state)
{
	struct fixture *f = *state;
	uint8_t b[SMALL];
	open_cache(f, 16, 0);
	make_small(f, 10, 0);
	struct silt_extent e = make_big(f, 20, 3, 0);
	remove_object(f, 10);
	remove_object(f, 20);
	assert_int_equal(get(f, 1000, &f->small[0], 0, SMALL, b), -EIO);
	assert_int_equal(get(f, 5, &e, 0, 100, b), -EIO);
	assert_int_equal(get_pack(f, 10, NULL), -ENOENT);
	/* it comes back (a store that lagged): reads work again */
	make_small(f, 10, 0);
	check_small(f, 0, true);
}

static void test_damaged_object(void **state)
{
	struct fixture *f = *state;
	char path[PATH_LEN];
	uint8_t b[SMALL];
	open_cache(f, 128, 0);
	make_small(f, 10, 0);
	object_path(f, 10, path);
	flip(path, f->small[3].pack_off + FRAME_HEADER + 100);
	assert_int_equal(get(f, 1003, &f->small[3], 0, SMALL, b), -EIO);
	assert_int_equal(metric(f, M_DAMAGED_FRAMES), 2); /* asked twice before it was believed */
	check_small(f, 2, true);
	check_small(f, 4, true);
	assert_int_equal(get_pack(f, 10, NULL), -EIO);
	assert_int_not_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_FULL);
	assert_int_equal(get(f, 1003, &f->small[3], 0, SMALL, b), -EIO);
	flip(path, f->small[3].pack_off + FRAME_HEADER + 100); /* repaired */
	check_small(f, 3, true);
	assert_int_equal(get_pack(f, 10, NULL), 0);
}

static void test_cut_object(void **state)
{
	struct fixture *f = *state;
	char path[PATH_LEN];
	uint8_t b[SMALL];
	open_cache(f, 16, 0);
	make_small(f, 10, 0);
	object_path(f, 10, path);
	chmod(path, 0600);
	assert_int_equal(truncate(path, f->small[300].pack_off + 50), 0);
	assert_int_equal(get(f, 1300, &f->small[300], 0, SMALL, b), -EIO);
	assert_int_equal(get(f, 1500, &f->small[500], 0, SMALL, b), -EIO);
	check_small(f, 5, true);
	assert_int_equal(get_pack(f, 10, NULL), -EIO);
}

static void test_wrong_owner(void **state)
{
	struct fixture *f = *state;
	uint8_t b[SMALL];
	open_cache(f, 16, 0);
	make_small(f, 10, 0);
	check_small(f, 1, true);
	assert_int_equal(get(f, 999, &f->small[1], 0, SMALL, b), -EIO);
	assert_int_equal(get(f, 999, &f->small[2], 0, SMALL, b), -EIO);
	struct silt_extent e = f->small[1];
	e.flags |= EXTENT_FOREIGN; /* a file that shares another's bytes */
	assert_int_equal(get(f, 999, &e, 0, SMALL, b), 0);
	e = f->small[2];
	e.stored += 8; /* metadata that disagrees with the pack */
	assert_int_equal(get(f, 1002, &e, 0, SMALL, b), -EIO);
}

/* Finds where on the SSD byte `off` of `pack` is. */
struct place {
	uint64_t pack;
	uint32_t off, slot_size;
	off_t at;
};

static int look_for(void *arg, uint32_t slot, const struct slot_entry *e)
{
	struct place *p = arg;
	if (e->pack == p->pack && e->piece == p->off / p->slot_size)
		p->at = (off_t)slot * p->slot_size + p->off % p->slot_size;
	return 0;
}

static void flip_on_ssd(struct fixture *f, uint64_t pack, uint32_t off)
{
	struct place p = { .pack = pack, .off = off, .slot_size = f->slot_size, .at = -1 };
	char path[PATH_LEN];
	tier_each(f->tier, look_for, &p);
	assert_true(p.at >= 0);
	snprintf(path, sizeof(path), "%s/slots.000", f->ssd);
	flip(path, p.at);
}

static void test_damaged_ssd_is_healed(void **state)
{
	struct fixture *f = *state;
	open_cache(f, 16, 0);
	make_small(f, 10, 0);
	uint64_t bytes = 0;
	assert_int_equal(get_pack(f, 10, &bytes), 0);
	assert_true(bytes > FILES * SMALL);
	reopen(f, 16, 0);
	flip_on_ssd(f, 10, f->small[7].pack_off + 1000);
	uint64_t gets = metric(f, M_STORE_GETS);
	check_small(f, 7, true);
	assert_int_equal(metric(f, M_SSD_BAD), 1);
	assert_int_equal(metric(f, M_STORE_GETS), gets + 1);
	reopen(f, 16, 0);
	check_small(f, 7, true); /* written anew */
	assert_int_equal(metric(f, M_SSD_BAD), 1);
	assert_int_equal(metric(f, M_STORE_GETS), gets + 1);
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_UNCHECKED);
	assert_int_equal(get_pack(f, 10, NULL), 0); /* read back and verified, not fetched */
	assert_int_equal(metric(f, M_STORE_GETS), gets + 1);
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_FULL);
}

static int check_pack(struct fixture *f, uint64_t pack)
{
	struct wait w;
	wait_init(&w);
	fetch_check_pack(f->fetch, pack, NULL, on_done, &w);
	return wait_end(&w);
}

/* What lies on the SSD since an earlier mount is believed only after it was read back, and then for
 * as long as the mount lives. */
static void test_checked_once_a_mount(void **state)
{
	struct fixture *f = *state;
	open_cache(f, 16, 0);
	make_small(f, 10, 0);
	assert_int_equal(check_pack(f, 10), -ENOENT);
	assert_int_equal(get_pack(f, 10, NULL), 0);
	uint64_t gets = metric(f, M_STORE_GETS), read = metric(f, M_SSD_READ_BYTES);
	assert_int_equal(check_pack(f, 10), 0);
	assert_int_equal(metric(f, M_SSD_READ_BYTES), read); /* written by this mount */
	reopen(f, 16, 0);
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_UNCHECKED);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(check_pack(f, 10), 0);
		assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_FULL);
		assert_in_range(metric(f, M_SSD_READ_BYTES) - read, FILES * SMALL,
		                2 * FILES * SMALL - 1);
	}
	flip_on_ssd(f, 10, f->small[7].pack_off + 1000);
	assert_int_equal(check_pack(f, 10), 0); /* not looked at again, unless asked */
	tier_unverify(f->tier, 10);
	assert_int_equal(check_pack(f, 10), -EBADMSG);
	assert_int_equal(metric(f, M_SSD_BAD), 1);
	assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_ABSENT);
	assert_int_equal(metric(f, M_STORE_GETS), gets);
	assert_int_equal(get_pack(f, 10, NULL), 0);
	assert_int_equal(metric(f, M_STORE_GETS), gets + 1);
}

/* Who wants the pack fetched gets it, though a check of it is under way and fails. */
static void test_fetch_joins_a_check(void **state)
{
	struct fixture *f = *state;
	struct wait check, fetch;
	open_cache(f, 16, 0);
	make_small(f, 10, 0);
	assert_int_equal(get_pack(f, 10, NULL), 0);
	for (unsigned i = 0; i < 20; i++) {
		flip_on_ssd(f, 10, f->small[7].pack_off + 1000);
		tier_unverify(f->tier, 10);
		wait_init(&check);
		wait_init(&fetch);
		fetch_check_pack(f->fetch, 10, NULL, on_done, &check);
		fetch_pack(f->fetch, 10, NULL, on_done, &fetch);
		check_small(f, 7, true);
		int rc = wait_end(&check); /* 0: the reader was first and had it healed */
		assert_true(rc == -EBADMSG || rc == -ENOENT || rc == 0);
		assert_int_equal(wait_end(&fetch), 0);
		assert_int_equal(fetch_pack_state(f->fetch, 10), CACHE_PACK_FULL);
	}
}

/* The index of a compressed run is damaged on the SSD. */
static void test_damaged_index_is_healed(void **state)
{
	struct fixture *f = *state;
	struct silt_extent e = make_big(f, 20, 3, 0);
	uint64_t bytes = 0;
	open_cache(f, 16, 0);
	assert_int_equal(get_pack(f, 20, &bytes), 0);
	reopen(f, 16, 0);
	flip_on_ssd(f, 20, (uint32_t)bytes - 60);
	uint64_t gets = metric(f, M_STORE_GETS);
	for (unsigned i = 0; i < 2; i++) { /* then it is written anew */
		check(f, 5, &e, MIB, 5000, false);
		assert_int_equal(metric(f, M_SSD_BAD), 1);
		assert_int_equal(metric(f, M_STORE_GETS), gets + 1);
		reopen(f, 16, 0);
	}
}

/* A record of an inode that was damaged may decode all the same, and say anything of a pack. */
static void test_extents_that_lie(void **state)
{
	struct fixture *f = *state;
	uint8_t *b = malloc(BIG);
	open_cache(f, 32, 0);
	for (int level = 0; level <= 3; level += 3) {
		struct silt_extent e = make_big(f, 20 + (unsigned)level, level, 0), bad = e;
		/* longer than the only frame that it has */
		bad.flags &= (uint8_t) ~(EXTENT_RUN | EXTENT_RAW_RUN);
		assert_int_equal(get(f, 5, &bad, 0, BIG, b), -EIO);
		assert_int_equal(get(f, 5, &bad, PACK_FRAME_RAW, 10, b), -EIO);
		/* ends in the middle of a frame, or of its header */
		bad = e;
		for (uint32_t cut = 1; cut < 2 * FRAME_HEADER; cut += FRAME_HEADER) {
			bad.stored = FRAME_HEADER + cut;
			assert_int_equal(get(f, 5, &bad, 0, BIG, b), -EIO);
		}
		bad.stored = UINT32_MAX - bad.pack_off;
		bad.len = UINT32_MAX;
		assert_int_equal(get(f, 5, &bad, SILT_WINDOW - 10, 20, b), -EIO);
		bad = e;
		bad.skip = UINT32_MAX - BIG;
		assert_int_equal(get(f, 5, &bad, 0, BIG, b), -EIO);
		/* no frame begins there; behind the pack's end */
		bad = e;
		bad.pack_off += 7;
		assert_int_equal(get(f, 5, &bad, 0, BIG, b), -EIO);
		bad.pack_off = UINT32_MAX - bad.stored;
		assert_int_equal(get(f, 5, &bad, 0, BIG, b), -EIO);
		check(f, 5, &e, 0, BIG, level == 0);
	}
	free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_missing_object),
		CASE(test_damaged_object),
		CASE(test_cut_object),
		CASE(test_wrong_owner),
		CASE(test_damaged_ssd_is_healed),
		CASE(test_damaged_index_is_healed),
		CASE(test_checked_once_a_mount),
		CASE(test_fetch_joins_a_check),
		CASE(test_extents_that_lie),
	};
	return RUN_WITH_SLOT_SIZES(tests);
}
