/* The SSD tier over restarts: it keeps what it was given, also when it was killed, resized, damaged
 * or half lost; and what it says when it can't be opened or its disk takes no writes. */
#include "test/tier_fixture.h"

#include <fcntl.h>
#include <signal.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void test_restart(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[16];
	open_tier(f, 16);
	for (uint64_t pack = 1; pack <= 5; pack++)
		assert_int_equal(put(f->tier, pack, 2 * MIB + 5, 0, 2 * MIB + 5), 0);
	tier_drop_pack(f->tier, 3);
	close_tier(f);
	open_tier(f, 16);
	for (uint64_t pack = 1; pack <= 5; pack++) {
		if (pack == 3)
			assert_int_equal(get(f->tier, pack, 0, 16, buf), -ENOENT);
		else
			check(f->tier, pack, 2 * MIB - 100, 105);
	}
	uint64_t total, used;
	tier_space(f->tier, &total, &used);
	assert_int_equal(total, 16 * MIB);
	assert_int_equal(used, 4 * (2 * MIB + f->slot_size));
}

static void damage(struct fixture *f, const char *file, off_t off, const void *bytes, size_t n)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/%s", f->dir, file);
	int fd = open(path, O_WRONLY);
	assert_int_equal(pwrite(fd, bytes, n, off), (ssize_t)n);
	close(fd);
}

static void test_damaged_entries_are_free_slots(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[16];
	unsigned there = 0;
	const off_t pack_entries = MIB / f->slot_size * TABLE_ENTRY;
	open_tier(f, 8);
	for (uint64_t pack = 1; pack <= 8; pack++)
		assert_int_equal(put(f->tier, pack, MIB, 0, MIB), 0);
	close_tier(f);
	damage(f, "table", TABLE_HEADER + 1 * pack_entries, "\x5a", 1); /* flipped */
	damage(f, "table", TABLE_HEADER + 2 * pack_entries + 16, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
	       16); /* torn */
	open_tier(f, 8);
	for (uint64_t pack = 1; pack <= 8; pack++) {
		int rc = get(f->tier, pack, 0, 16, buf);
		there += rc == 0;
		assert_true(rc == -ENOENT || (rc == 0 && right(pack, 0, 16, buf)));
	}
	assert_int_equal(there, 6);
	assert_int_equal(put(f->tier, 20, f->slot_size, 0, f->slot_size), 0);
	assert_int_equal(put(f->tier, 21, f->slot_size, 0, f->slot_size), 0);
	check(f->tier, 20, 5, 500);
	assert_int_equal(silt_metric_get(&f->metrics, M_SSD_EVICTIONS), 0);
}

/* The table outlives its data files: someone deleted or cut them. */
static void test_lost_data_file(void **state)
{
	struct fixture *f = *state;
	char path[128];
	uint8_t buf[16];
	open_tier(f, 8);
	for (uint64_t pack = 1; pack <= 8; pack++)
		assert_int_equal(put(f->tier, pack, MIB, 0, MIB), 0);
	close_tier(f);
	snprintf(path, sizeof(path), "%s/slots.000", f->dir);
	assert_int_equal(truncate(path, 3 * MIB), 0);
	open_tier(f, 8);
	unsigned there = 0;
	for (uint64_t pack = 1; pack <= 8; pack++)
		there += get(f->tier, pack, 0, 16, buf) == 0;
	assert_int_equal(there, 3);
	for (uint64_t pack = 11; pack <= 15; pack++)
		assert_int_equal(put(f->tier, pack, MIB, 0, MIB), 0);
}

static bool verified(struct fixture *f, uint64_t pack)
{
	struct tier_pack p;
	tier_look(f->tier, pack, &p);
	assert_true(p.full || !p.verified);
	return p.verified;
}

/* What was checked is remembered by the mount that did it, not on the disk. */
static void test_nothing_is_believed_after_a_restart(void **state)
{
	struct fixture *f = *state;
	struct tier_pack p;
	open_tier(f, 8);
	assert_int_equal(put(f->tier, 1, MIB, 0, MIB), 0);
	tier_mark_verified(f->tier, 1);
	assert_true(verified(f, 1));
	close_tier(f);
	open_tier(f, 8);
	tier_look(f->tier, 1, &p);
	assert_true(p.full && !p.verified);
	tier_mark_verified(f->tier, 1);
	assert_true(verified(f, 1));
	tier_unverify(f->tier, 1);
	assert_false(verified(f, 1));
}

/* Under the open tier. */
static void test_data_file_is_cut(void **state)
{
	struct fixture *f = *state;
	struct silt_err err = { 0 };
	char path[128], moved[128];
	uint8_t buf[16];
	unsigned there = 0;
	struct stat st;
	open_tier(f, 8);
	for (uint64_t pack = 1; pack <= 8; pack++) {
		assert_int_equal(put(f->tier, pack, MIB, 0, MIB), 0);
		tier_mark_verified(f->tier, pack);
	}
	assert_int_equal(tier_check_files(f->tier, &err), 0);
	for (uint64_t pack = 1; pack <= 8; pack++)
		assert_true(verified(f, pack));
	snprintf(path, sizeof(path), "%s/slots.000", f->dir);
	assert_int_equal(truncate(path, 3 * MIB), 0);
	/* A read past the end is no fault of the disk, however many there are. */
	for (unsigned i = 0; i < 20; i++)
		for (uint64_t pack = 1; pack <= 8; pack++)
			assert_int_not_equal(get(f->tier, pack, 0, 16, buf), -ENODEV);
	assert_int_equal(tier_check_files(f->tier, &err), 0);
	for (uint64_t pack = 1; pack <= 8; pack++) {
		assert_false(verified(f, pack));
		there += get(f->tier, pack, 0, 16, buf) == 0;
	}
	assert_int_equal(there, 3);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, 8 * MIB);
	for (uint64_t pack = 11; pack <= 15; pack++) {
		assert_int_equal(put(f->tier, pack, MIB, 0, MIB), 0);
		check(f->tier, pack, 5, 5000);
		tier_mark_verified(f->tier, pack);
	}
	/* Cut, and as long as before. */
	assert_int_equal(truncate(path, 0), 0);
	assert_int_equal(truncate(path, 8 * MIB), 0);
	assert_int_equal(tier_check_files(f->tier, &err), 0);
	assert_false(verified(f, 11));
	snprintf(moved, sizeof(moved), "%s/elsewhere", f->dir);
	assert_int_equal(rename(path, moved), 0);
	assert_int_equal(tier_check_files(f->tier, &err), -ENODEV);
	assert_non_null(strstr(err.text, "deleted or replaced"));
	close(open(path, O_CREAT | O_WRONLY, 0600));
	assert_int_equal(tier_check_files(f->tier, &err), -ENODEV);
	assert_int_equal(rename(moved, path), 0);
	assert_int_equal(tier_check_files(f->tier, &err), 0);
}

static void test_size_changes(void **state)
{
	struct fixture *f = *state;
	uint8_t buf[16];
	struct stat st;
	char path[128];
	open_tier(f, 8);
	for (uint64_t pack = 1; pack <= 8; pack++)
		assert_int_equal(put(f->tier, pack, MIB, 0, MIB), 0);
	close_tier(f);
	open_tier(f, 5);
	snprintf(path, sizeof(path), "%s/slots.000", f->dir);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, 5 * MIB);
	unsigned there = 0;
	for (uint64_t pack = 1; pack <= 8; pack++)
		there += get(f->tier, pack, 0, 16, buf) == 0 && right(pack, 0, 16, buf);
	assert_int_equal(there, 5);
	close_tier(f);
	open_tier(f, 12);
	for (uint64_t pack = 1; pack <= 8; pack++)
		there -= get(f->tier, pack, 0, 16, buf) == 0 && right(pack, 0, 16, buf);
	assert_int_equal(there, 0);
}

/* The slot size is the cache's for as long as it fits. */
static void test_slot_size_stays(void **state)
{
	struct fixture *f = *state;
	const uint32_t made = f->slot_size;
	open_tier(f, 8);
	assert_int_equal(tier_slot_size(f->tier), made);
	assert_int_equal(put(f->tier, 1, MIB, 0, MIB), 0);
	close_tier(f);
	f->slot_size = 0;
	open_tier(f, 12);
	assert_int_equal(tier_slot_size(f->tier), made);
	check(f->tier, 1, 0, 1000);
	close_tier(f);
	f->slot_size = 128u << 10; /* another one, by force: the cache is empty */
	open_tier(f, 12);
	struct tier_pack p;
	tier_look(f->tier, 1, &p);
	assert_int_equal(p.pieces, 0);
	assert_int_equal(put(f->tier, 1, MIB, 0, MIB), 0);
	check(f->tier, 1, 5, 131112);
}

static void test_one_mount_a_directory(void **state)
{
	struct fixture *f = *state;
	struct tier *other;
	struct silt_err err;
	open_tier(f, 8);
	assert_int_equal(try_open(f, 8 * MIB, 7, &other, &err), -EBUSY);
	assert_non_null(strstr(err.text, "another mount"));
	close_tier(f);
	assert_int_equal(try_open(f, 8 * MIB, 8, &other, &err), -EEXIST);
}

static void test_no_room(void **state)
{
	struct fixture *f = *state;
	struct tier *other;
	struct silt_err err;
	const struct tier_config cfg = { .dir = f->dir, .size = 8 * MIB, .free_ratio = 1.0 };
	assert_int_equal(tier_open(&cfg, &other, &err), -ENOSPC);
	assert_non_null(strstr(err.text, "free some space"));
	assert_int_equal(try_open(f, 1000, 7, &other, &err), -EINVAL);
	char file[96];
	snprintf(file, sizeof(file), "%s/file/sub", f->dir);
	const struct tier_config bad = { .dir = file, .size = 8 * MIB };
	file[strlen(f->dir) + 5] = 0;
	close(open(file, O_CREAT | O_WRONLY, 0600));
	file[strlen(f->dir) + 5] = '/';
	assert_int_equal(tier_open(&bad, &other, &err), -ENOTDIR);
}

/* A disk that takes no writes: counted, and after some of them the tier is out of use. RLIMIT_FSIZE
 * stands in for the disk. */
static void test_write_errors(void **state)
{
	struct fixture *f = *state;
	struct rlimit old, low;
	uint8_t buf[16];
	open_tier(f, 16);
	assert_int_equal(put(f->tier, 1, MIB, 0, MIB), 0);
	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &old);
	low = old;
	low.rlim_cur = 2 * MIB;
	setrlimit(RLIMIT_FSIZE, &low);
	unsigned failed = 0, out = 0;
	for (uint64_t pack = 2; pack <= 14; pack++) {
		int rc = put(f->tier, pack, MIB, 0, MIB);
		failed += rc < 0 && rc != -ENODEV;
		out += rc == -ENODEV;
		if (rc < 0)
			assert_int_not_equal(get(f->tier, pack, 0, 16, buf), 0);
	}
	setrlimit(RLIMIT_FSIZE, &old);
	assert_int_equal(failed, 8);
	assert_true(out > 0);
	assert_int_equal(get(f->tier, 1, 0, 16, buf), -ENODEV);
	struct tier_pack look;
	tier_look(f->tier, 1, &look);
	assert_false(look.full); /* nothing is served from here any more */
	assert_int_equal(silt_metric_get(&f->metrics, M_SSD_ERRORS), 8);
}

/* Writes and evicts until it is killed; one byte into the pipe a round. */
static void churn(struct fixture *f, int fd)
{
	struct silt_err err;
	if (try_open(f, 8 * MIB, 7, &f->tier, &err) < 0)
		_exit(1);
	for (uint64_t pack = 1;; pack = pack % 30 + 1) {
		put(f->tier, pack, MIB + 4000, 0, MIB + 4000);
		if (pack % 7 == 0)
			tier_drop_pack(f->tier, pack);
		if (pack % 5 == 0)
			tier_save(f->tier);
		if (write(fd, "x", 1) != 1)
			_exit(1);
	}
}

/* kill -9 at any moment: what is found afterwards is right, and not nothing. */
static void test_killed(void **state)
{
	struct fixture *f = *state;
	unsigned found = 0;
	for (unsigned round = 1; round <= 6; round++) {
		int p[2], status;
		char x;
		assert_int_equal(pipe(p), 0);
		pid_t child = fork();
		if (child == 0)
			churn(f, p[1]);
		close(p[1]);
		for (unsigned i = 0; i < 11 * round; i++)
			assert_int_equal(read(p[0], &x, 1), 1);
		kill(child, SIGKILL);
		assert_int_equal(waitpid(child, &status, 0), child);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		close(p[0]);
		open_tier(f, 8);
		uint8_t buf[1000];
		for (uint64_t pack = 1; pack <= 30; pack++) {
			for (uint32_t off = 0; off < MIB; off += SLOT_CHUNK_MAX - 1000) {
				int rc = get(f->tier, pack, off, 1000, buf);
				assert_true(rc == -ENOENT ||
				            (rc == 0 && right(pack, off, 1000, buf)));
				found += rc == 0;
			}
		}
		close_tier(f);
	}
	assert_true(found > 0);
}

/* In a child whose io_uring_setup() is refused, as container runtimes do. */
static int without_uring(struct fixture *f)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { .len = 4, .filter = code };
	struct silt_err err;
	uint8_t buf[1000];
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) < 0)
		return 2;
	if (try_open(f, 8 * MIB, 7, &f->tier, &err) < 0)
		return 3;
	bool ok = put(f->tier, 1, MIB, 0, MIB) == 0 && get(f->tier, 1, 5, 1000, buf) == 0 &&
	          right(1, 5, 1000, buf);
	tier_close(f->tier);
	return ok ? 0 : 4;
}

static void test_io_uring_forbidden(void **state)
{
	int status;
	pid_t child = fork();
	if (child == 0)
		_exit(without_uring(*state));
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_restart),
		CASE(test_damaged_entries_are_free_slots),
		CASE(test_lost_data_file),
		CASE(test_size_changes),
		CASE(test_nothing_is_believed_after_a_restart),
		CASE(test_data_file_is_cut),
		CASE(test_slot_size_stays),
		CASE(test_one_mount_a_directory),
		CASE(test_no_room),
		CASE(test_write_errors),
		CASE(test_killed),
		CASE(test_io_uring_forbidden),
	};
	return RUN_WITH_SLOT_SIZES(tests);
}
