/* fs/control.c and control_commands.c over made-up metadata and cache: requests, hostile input,
 * many clients, hanging up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "cache/warmup.h"
#include "fs/control.h"
#include "meta/lock.h"

static char dir[64], path[80];
static struct control *control;
static struct silt_metrics metrics;

/* --- What the commands call ------------------------------------------------------------- */

static struct silt_lock lock;
static struct silt_cond cond;
static unsigned running, cancelled; /* warmups */
static atomic_uint windows_asked;

#define SPARSE_INO 8
#define MISSING    250 /* files, to the fake warmup: more than go into a line */

const struct meta_volume *meta_volume(const struct meta *m)
{
	static const struct meta_volume v = { .version = 1,
		                              .name = (char *)"vol",
		                              .id = 0xabc,
		                              .shards = 2,
		                              .storage = (char *)"file",
		                              .bucket = (char *)"/b" };
	return &v;
}

uint64_t meta_session(const struct meta *m)
{
	return 7;
}

const char *meta_function_name(unsigned kind)
{
	return kind == 0 ? "lookup" : NULL;
}

const char *fs_fuse_kind_name(unsigned kind)
{
	return kind < 2 ? (kind ? "GETATTR" : "LOOKUP") : NULL;
}

int meta_sessions_json(struct meta *m, char **out)
{
	return (*out = strdup("[{\"host\":\"h\"}]")) ? 0 : -ENOMEM;
}

const char *store_where(const struct store *s)
{
	return "/b/vol";
}

void cache_space(struct cache *c, uint64_t *total, uint64_t *used)
{
	*total = 100;
	*used = 40;
}

int cache_each_slot(struct cache *c, int (*each)(void *arg, const struct cache_slot_info *s),
                    void *arg)
{
	for (unsigned i = 0; i < 5000; i++)
		each(arg, &(struct cache_slot_info){ .slot = i, .pack = i * 3, .pack_len = 9 });
	return 0;
}

enum cache_pack_state cache_pack_state(struct cache *c, uint64_t pack)
{
	return pack == 4 ? CACHE_PACK_FULL : CACHE_PACK_ABSENT;
}

void meta_wait_init(struct meta_wait *w)
{
	memset(w, 0, sizeof(*w));
}

void meta_wait_done(void *arg, const struct meta_reply *r)
{
	struct meta_wait *w = arg;
	w->reply = *r;
}

int meta_wait(struct meta_wait *w)
{
	return w->reply.err;
}

void meta_wait_free(struct meta_wait *w)
{
}

void meta_getattr(struct meta *m, silt_ino ino, meta_done done, void *arg)
{
	struct meta_reply r = { .err = ino == 99 ? -ENOENT : 0 };
	r.inode.attr = (struct silt_attr){ .ino = ino, .mode = S_IFREG | 0644, .size = 5 };
	r.inode.map = SILT_MAP_INLINE;
	r.inode.extent = (struct silt_extent){ .len = 5, .pack = 4, .stored = 45 };
	if (ino == SPARSE_INO) {
		r.inode.attr.size = (uint64_t)1 << 50;
		r.inode.map = SILT_MAP_EXTERNAL;
	}
	done(arg, &r);
}

void meta_window(struct meta *m, silt_ino ino, uint64_t window, meta_done done, void *arg)
{
	static uint8_t log[SILT_EXTENT_ENCODED_MAX];
	struct silt_extent e = { .off = window * SILT_WINDOW, .len = 5, .pack = 4, .stored = 45 };
	windows_asked++;
	done(arg, &(struct meta_reply){ .data = log, .len = extent_encode(&e, log) });
}

/* Three windows, out of order, one of them twice. */
void meta_windows(struct meta *m, silt_ino ino, uint64_t from, meta_done done, void *arg)
{
	static const uint64_t windows[] = { 16000000, 3, 16000000, 200 };
	static uint8_t logs[4 * (EXTENT_LOGS_HEAD + 1)];
	size_t n = 0;
	for (unsigned i = from ? 2 : 0; i < (from ? 4u : 2u); i++)
		n += extent_logs_put(logs + n, windows[i], "", 0);
	done(arg, &(struct meta_reply){ .data = logs, .len = n, .next = from ? 0 : 5 });
}

/* A warmup of inode 1 ends at once, of inode 2 when it is cancelled. */
int warmup_run(const struct warmup_config *cfg, struct warmup_result *out)
{
	struct warmup_progress p = { .files = 3, .missing_files = 1, .resolved = true };
	memset(out, 0, sizeof(*out));
	cfg->progress(cfg->arg, &p);
	out->progress = p;
	if (cfg->roots[0] == 2) {
		silt_lock(&lock);
		running++;
		silt_cond_broadcast(&cond);
		silt_unlock(&lock);
		while (!atomic_load(cfg->cancel))
			usleep(1000);
		silt_lock(&lock);
		cancelled++;
		silt_cond_broadcast(&cond);
		silt_unlock(&lock);
		return silt_fail(&out->err, -ECANCELED, "cancelled");
	}
	if (cfg->roots[0] == 3)
		return silt_fail(&out->err, -ENOSPC, "does not fit");
	for (int i = 0; i < MISSING; i++)
		cfg->missing(cfg->arg, 0, "a\"b", "not cached");
	return 1;
}

/* --- A client --------------------------------------------------------------------------- */

static int dial(void)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct timeval limit = { .tv_sec = 20 };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	strcpy(sa.sun_path, path);
	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	return fd;
}

static void send_text(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = send(fd, text, len, MSG_NOSIGNAL);
		if (n < 0)
			return; /* the server hung up: it may */
		text += n;
		len -= (size_t)n;
	}
}

static struct json_object *read_line(int fd)
{
	static char line[1 << 16];
	size_t n = 0;
	while (n + 1 < sizeof(line) && recv(fd, line + n, 1, 0) == 1 && line[n] != '\n')
		n++;
	line[n] = '\0';
	return n ? json_tokener_parse(line) : NULL;
}

static const char *text_of(struct json_object *o, const char *name)
{
	struct json_object *f;
	assert_true(json_object_object_get_ex(o, name, &f));
	return json_object_get_string(f);
}

/* Sends a request and returns the last line; *lines counts those before. */
static struct json_object *ask(int fd, const char *request, int *lines)
{
	struct json_object *o, *f;
	send_text(fd, request, strlen(request));
	for (*lines = 0; (o = read_line(fd)); (*lines)++) {
		if (json_object_object_get_ex(o, "done", &f))
			return o;
		json_object_put(o);
	}
	fail_msg("no last line for %s", request);
	return NULL;
}

static void expect_error(const char *request, size_t len, const char *part)
{
	int fd = dial();
	send_text(fd, request, len);
	struct json_object *o = read_line(fd);
	assert_non_null(o);
	if (!strstr(text_of(o, "error"), part))
		fail_msg("%s is not about %s", text_of(o, "error"), part);
	json_object_put(o);
	close(fd);
}

/* --- Tests ------------------------------------------------------------------------------ */

static int setup(void **state)
{
	strcpy(dir, "/tmp/siltfs-control-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/s", dir);
	silt_lock_init(&lock);
	silt_cond_init(&cond);
	running = cancelled = 0;
	struct control_config cfg = { .path = path,
		                      .metrics = &metrics,
		                      .mountpoint = "/m",
		                      .source = "local:/v",
		                      .store = (struct store *)path };
	return control_open(&cfg, &control, NULL);
}

static int teardown(void **state)
{
	control_close(control);
	if (access(path, F_OK) == 0)
		return -1;
	return rmdir(dir);
}

static void test_status(void **state)
{
	struct json_object *f;
	struct stat st;
	int lines, fd = dial();
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	silt_gauge(&metrics, M_STORE_PUTS, 12);
	metrics.fuse[1] = 5;
	struct json_object *o = ask(fd, "{\"cmd\":\"status\"}\n", &lines);
	assert_string_equal(text_of(o, "error"), "");
	assert_string_equal(text_of(o, "mountpoint"), "/m");
	json_object_object_get_ex(o, "counters", &f);
	assert_string_equal(text_of(f, "store.puts"), "12");
	json_object_object_get_ex(o, "fuse", &f);
	assert_string_equal(text_of(f, "GETATTR"), "5");
	assert_false(json_object_object_get_ex(o, "sessions", &f));
	json_object_put(o);
	/* A second request on the same connection. */
	o = ask(fd, "{\"cmd\":\"status\",\"sessions\":true}\n", &lines);
	assert_true(json_object_object_get_ex(o, "sessions", &f));
	json_object_put(o);
	close(fd);
}

/* Every file that is missing is named, in lines of bounded length. */
static void test_warmup_names_all(void **state)
{
	static const char request[] = "{\"cmd\":\"warmup\",\"inodes\":[1]}\n";
	struct json_object *o, *f;
	int names = 0, fd = dial();

	send_text(fd, request, strlen(request));
	while ((o = read_line(fd)) && !json_object_object_get_ex(o, "done", &f)) {
		if (json_object_object_get_ex(o, "missing", &f)) {
			names += (int)json_object_array_length(f);
			f = json_object_array_get_idx(f, 0);
			assert_string_equal(text_of(f, "path"), "a\"b: not cached");
			assert_string_equal(text_of(f, "root"), "0");
		}
		json_object_put(o);
	}
	assert_non_null(o);
	assert_string_equal(text_of(o, "status"), "1");
	assert_int_equal(names, MISSING);
	json_object_put(o);
	close(fd);
}

static void test_warmup_slots_info(void **state)
{
	int lines, fd = dial();
	struct json_object *o = ask(fd, "{\"cmd\":\"warmup\",\"inodes\":[3]}\n", &lines);
	assert_string_equal(text_of(o, "error"), "does not fit");
	json_object_put(o);
	o = ask(fd, "{\"cmd\":\"slots\"}\n", &lines);
	assert_int_equal(lines, 5000);
	json_object_put(o);
	o = ask(fd, "{\"cmd\":\"info\",\"inodes\":[4,5]}\n", &lines);
	assert_int_equal(lines, 2);
	assert_string_equal(text_of(o, "error"), "");
	json_object_put(o);
	o = ask(fd, "{\"cmd\":\"info\",\"inodes\":[99]}\n", &lines);
	assert_string_equal(text_of(o, "error"), strerror(ENOENT));
	json_object_put(o);
	close(fd);
}

/* A petabyte with three windows: these are asked for, not every one that there could be, and come
 * in their order. */
static void test_info_of_a_sparse_file(void **state)
{
	static const char request[] = "{\"cmd\":\"info\",\"inodes\":[8]}\n";
	static const uint64_t want[] = { 3, 200, 16000000 };
	struct json_object *o, *list;
	int fd = dial();
	send_text(fd, request, strlen(request));
	o = read_line(fd);
	assert_string_equal(text_of(o, "map"), "external");
	json_object_put(o);
	for (size_t i = 0; i < 3; i++) {
		char off[24];
		snprintf(off, sizeof(off), "%llu", (unsigned long long)(want[i] * SILT_WINDOW));
		o = read_line(fd);
		assert_true(json_object_object_get_ex(o, "extents", &list));
		assert_int_equal(json_object_array_length(list), 1);
		assert_string_equal(text_of(json_object_array_get_idx(list, 0), "off"), off);
		json_object_put(o);
	}
	o = read_line(fd);
	assert_string_equal(text_of(o, "error"), "");
	json_object_put(o);
	assert_int_equal(windows_asked, 3);
	close(fd);
}

static void test_hostile_input(void **state)
{
	static const char *const t[] = {
		"\n",
		"x\n",
		"{\n",
		"[]\n",
		"null\n",
		"1\n",
		"\"cmd\"\n",
		"{}\n",
		"{\"cmd\":1}\n",
		"{\"cmd\":null}\n",
		"{\"cmd\":[\"status\"]}\n",
		"{\"cmd\":\"status\"}x\n",
		"{\"cmd\":\"status\"}{}\n",
		"[[[[[[[[[[[[[[[[[[[[[[[[\n",
		"\xff\xfe\n",
	};
	static const char *const inodes[] = {
		"",
		",\"inodes\":1",
		",\"inodes\":[]",
		",\"inodes\":[0]",
		",\"inodes\":[-1]",
		",\"inodes\":[\"1\"]",
		",\"inodes\":[1.5]",
		",\"inodes\":[null]",
		",\"inodes\":{}",
		",\"inodes\":[[1]]",
	};
	char text[256];
	for (size_t i = 0; i < sizeof(t) / sizeof(t[0]); i++)
		expect_error(t[i], strlen(t[i]), "\"cmd\"");
	expect_error("{\"cmd\":\"frob\"}\n", 15, "unknown command");
	expect_error("a\0b\n", 4, "\"cmd\"");
	for (size_t i = 0; i < sizeof(inodes) / sizeof(inodes[0]); i++) {
		int n = snprintf(text, sizeof(text), "{\"cmd\":\"warmup\"%s}\n", inodes[i]);
		expect_error(text, (size_t)n, "inode");
	}
	char *big = malloc(2u << 20);
	memset(big, 'a', 2u << 20);
	expect_error(big, 2u << 20, "1 MiB");
	free(big);
	/* Half a request, then nobody there. */
	int fd = dial();
	send_text(fd, "{\"cmd\"", 6);
	close(fd);
	test_status(state);
}

static void wait_for(unsigned *counter, unsigned n)
{
	silt_lock(&lock);
	while (*counter < n)
		assert_true(silt_cond_wait_until(&cond, &lock, silt_now_ns() + 20000000000u));
	silt_unlock(&lock);
}

static void test_hanging_up_cancels(void **state)
{
	int fds[8];
	for (int i = 0; i < 8; i++) {
		fds[i] = dial();
		send_text(fds[i], "{\"cmd\":\"warmup\",\"inodes\":[2]}\n", 30);
	}
	wait_for(&running, 8);
	test_status(state); /* others are served meanwhile */
	for (int i = 0; i < 4; i++)
		close(fds[i]);
	wait_for(&cancelled, 4);
	assert_int_equal(cancelled, 4);
	/* teardown cancels the rest */
	for (int i = 4; i < 8; i++)
		shutdown(fds[i], SHUT_WR);
}

static void test_many_clients(void **state)
{
	int fds[80];
	for (int i = 0; i < 80; i++)
		fds[i] = dial();
	struct json_object *o = read_line(fds[79]);
	assert_string_equal(text_of(o, "error"), "too many clients");
	json_object_put(o);
	for (int i = 0; i < 80; i++)
		close(fds[i]);
	/* They are noticed one after the other; then there is room again. */
	for (;;) {
		int fd = dial();
		send_text(fd, "{\"cmd\":\"status\"}\n", 17);
		o = read_line(fd);
		close(fd);
		bool ok = o && text_of(o, "error")[0] == '\0';
		json_object_put(o);
		if (ok)
			break;
	}
}

static void test_stale_and_live_sockets(void **state)
{
	struct control_config cfg = { .path = path };
	struct control *second;
	struct silt_err err;
	assert_int_equal(control_open(&cfg, &second, &err), -EADDRINUSE);
	control_close(control);
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	strcpy(sa.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	close(fd); /* the file stays, nobody answers */
	assert_int_equal(control_open(&cfg, &control, &err), 0);
	char long_path[200];
	memset(long_path, 'x', sizeof(long_path));
	long_path[199] = '\0';
	cfg.path = long_path;
	assert_int_equal(control_open(&cfg, &second, &err), -ENAMETOOLONG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_status, setup, teardown),
		cmocka_unit_test_setup_teardown(test_warmup_names_all, setup, teardown),
		cmocka_unit_test_setup_teardown(test_warmup_slots_info, setup, teardown),
		cmocka_unit_test_setup_teardown(test_info_of_a_sparse_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hostile_input, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hanging_up_cancels, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many_clients, setup, teardown),
		cmocka_unit_test_setup_teardown(test_stale_and_live_sockets, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
