/* The push connection: what Redis publishes for a session and what it says about keys that changed,
 * over connections that break, peers that fall silent and peers that talk nonsense. */
#include "test/meta_fixture.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <hiredis/hiredis.h>

#include "meta/conn.h"
#include "meta/lock.h"
#include "meta/push.h"

/* What was heard, as one line: "up", "down", "m:text", "i:key", "i*". */
struct ear {
	struct silt_lock lock;
	struct silt_cond cond;
	char said[64][48];
	unsigned n, read;
	uint64_t id;
};

static void hear(struct ear *e, const char *kind, const char *text, size_t len)
{
	silt_lock(&e->lock);
	if (e->n < 64)
		snprintf(e->said[e->n++], sizeof(e->said[0]), "%s%.*s", kind, (int)len, text);
	silt_cond_broadcast(&e->cond);
	silt_unlock(&e->lock);
}

static void on_up(void *arg, uint64_t id)
{
	struct ear *e = arg;
	silt_lock(&e->lock);
	e->id = id;
	silt_unlock(&e->lock);
	hear(e, "up", "", 0);
}

static void on_down(void *arg)
{
	hear(arg, "down", "", 0);
}

static void on_message(void *arg, const char *payload, size_t len)
{
	hear(arg, "m:", payload, len);
}

static void on_invalidate(void *arg, const char *key, size_t len)
{
	hear(arg, key ? "i:" : "i*", key ? key : "", len);
}

static void ear_init(struct ear *e)
{
	memset(e, 0, sizeof(*e));
	silt_lock_init(&e->lock);
	silt_cond_init(&e->cond);
}

/* The next thing heard must be `what`, within `ms`. */
static void expect_within(struct ear *e, const char *what, unsigned ms)
{
	uint64_t until = silt_now_ns() + (uint64_t)ms * 1000000u;
	silt_lock(&e->lock);
	while (e->read == e->n && silt_cond_wait_until(&e->cond, &e->lock, until))
		;
	if (e->read == e->n)
		fail_msg("not heard: %s", what);
	assert_string_equal(e->said[e->read], what);
	e->read++;
	silt_unlock(&e->lock);
}

static void expect(struct ear *e, const char *what)
{
	expect_within(e, what, 10000);
}

static struct push *listen_to(const struct meta_address *a, const char *path, struct silt_log *log,
                              struct ear *e)
{
	struct push_listener l = { .up = on_up,
		                   .down = on_down,
		                   .message = on_message,
		                   .invalidate = on_invalidate,
		                   .arg = e };
	struct push_listener deaf = { 0 };
	struct push *p = NULL;
	assert_int_equal(push_open(a, path, log, &p), 0);
	push_listen(p, &deaf);
	push_listen(p, &l);
	assert_int_equal(push_start(p, "silt:7:1"), 0);
	return p;
}

static redisContext *plain(struct server *s)
{
	struct silt_err err = { 0 };
	redisContext *c = NULL;
	assert_int_equal(
	        conn_connect_plain(&s->address, meta_local_socket(s->hold), 3000, &c, &err), 0);
	return c;
}

#define RUN(c, ...)                                                                                \
	({                                                                                         \
		redisReply *r_ = redisCommand(c, __VA_ARGS__);                                     \
		assert_non_null(r_);                                                               \
		assert_int_not_equal(r_->type, REDIS_REPLY_ERROR);                                 \
		long long v_ = r_->type == REDIS_REPLY_INTEGER ? r_->integer : 0;                  \
		freeReplyObject(r_);                                                               \
		v_;                                                                                \
	})

static void test_hears(void **state)
{
	struct server *s = *state;
	struct ear e;
	char channel[PUSH_CHANNEL_MAX];
	ear_init(&e);
	struct push *p = listen_to(&s->address, meta_local_socket(s->hold), s->log, &e);
	expect(&e, "up");
	assert_int_equal(push_client_id(p), e.id);
	push_channel(7, 1, channel);
	assert_string_equal(channel, "silt:7:1");
	push_channel(UINT64_MAX, UINT64_MAX, channel);
	assert_string_equal(channel, "silt:ffffffffffffffff:18446744073709551615");

	redisContext *reader = plain(s), *writer = plain(s);
	RUN(writer, "PUBLISH silt:7:1 hello");
	RUN(writer, "PUBLISH silt:7:2 other");
	RUN(writer, "PUBLISH silt:7:1 %b", "\0\r\n$1", (size_t)5);
	expect(&e, "m:hello");
	expect(&e, "m:"); /* as a C string */
	RUN(reader, "CLIENT TRACKING ON REDIRECT %llu", (unsigned long long)e.id);
	RUN(reader, "GET {0}k");
	RUN(writer, "SET {0}k 1");
	expect(&e, "i:{0}k");
	RUN(writer, "SET {0}k 2"); /* not read since: nothing is said */
	RUN(reader, "GET {0}k");
	RUN(writer, "PUBLISH silt:7:1 end");
	expect(&e, "m:end");
	redisFree(reader);
	redisFree(writer);
	push_close(p);
	assert_int_equal(e.read, e.n); /* no `down` for the end */
}

static void test_everything_is_invalid(void **state)
{
	struct server *s = *state;
	struct ear e;
	ear_init(&e);
	struct push *p = listen_to(&s->address, meta_local_socket(s->hold), s->log, &e);
	expect(&e, "up");
	redisContext *reader = plain(s), *writer = plain(s);
	RUN(reader, "SELECT 5");
	RUN(writer, "SELECT 5");
	RUN(reader, "CLIENT TRACKING ON REDIRECT %llu", (unsigned long long)e.id);
	RUN(reader, "GET {0}k");
	RUN(writer, "FLUSHDB");
	expect(&e, "i*");
	redisFree(reader);
	redisFree(writer);
	push_close(p);
}

static void test_comes_back(void **state)
{
	struct server *s = *state;
	struct ear e;
	ear_init(&e);
	struct push *p = listen_to(&s->address, meta_local_socket(s->hold), s->log, &e);
	redisContext *c = plain(s);
	for (int i = 0; i < 3; i++) {
		expect(&e, "up");
		uint64_t id = e.id;
		RUN(c, "PUBLISH silt:7:1 %d", i);
		char want[16];
		snprintf(want, sizeof(want), "m:%d", i);
		expect(&e, want);
		if (i == 1)
			push_reconnect(p);
		else
			assert_int_equal(RUN(c, "CLIENT KILL ID %llu", (unsigned long long)id), 1);
		expect(&e, "down");
	}
	expect(&e, "up");
	redisFree(c);
	push_close(p);
}

/* A server that is there and says nothing is noticed, and so is its return. */
static void test_silence(void **state)
{
	struct server *s = *state;
	struct ear e;
	ear_init(&e);
	struct push *p = listen_to(&s->address, meta_local_socket(s->hold), s->log, &e);
	expect(&e, "up");
	redisContext *c = plain(s);
	redisReply *r = redisCommand(c, "INFO server");
	pid_t pid = (pid_t)atoi(strstr(r->str, "process_id:") + 11);
	freeReplyObject(r);
	/* Silent but alive for longer than PUSH_DEAD_MS: nothing happens. */
	usleep((PUSH_DEAD_MS + 700) * 1000);
	RUN(c, "PUBLISH silt:7:1 x");
	expect(&e, "m:x");
	assert_int_equal(kill(pid, SIGSTOP), 0);
	uint64_t t = silt_now_ns();
	expect_within(&e, "down", PUSH_DEAD_MS + 3000);
	assert_true(silt_now_ns() - t > (uint64_t)(PUSH_DEAD_MS - 1000) * 1000000u);
	assert_int_equal(kill(pid, SIGCONT), 0);
	expect(&e, "up");
	RUN(c, "PUBLISH silt:7:1 y");
	expect(&e, "m:y");
	redisFree(c);
	push_close(p);
}

/* --- a server that talks nonsense --- */

static const char *const nonsense[] = {
	"+OK\r\n",
	":1\r\n",
	"*0\r\n",
	"*1\r\n$7\r\nmessage\r\n",
	"*3\r\n$7\r\nmessage\r\n:1\r\n",
	"*3\r\n:1\r\n:2\r\n:3\r\n",
	"*-1\r\n",
	"$-1\r\n",
	"-ERR no\r\n",
	"HTTP/1.1 400\r\n\r\n",
	"*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:3\r\n",
};
/* Well-formed, and of no concern to us: the connection stays. */
static const char harmless[] =
        "*3\r\n$7\r\nmessage\r\n$8\r\nsilt:7:1\r\n:5\r\n"
        "*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n:5\r\n"
        "*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n*2\r\n:5\r\n$1\r\nk\r\n"
        "*3\r\n$7\r\nmessage\r\n$8\r\nsilt:7:1\r\n$1\r\nz\r\n";

#define ROUNDS (sizeof(nonsense) / sizeof(*nonsense))

static void say(int fd, const char *text)
{
	assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
}

static void *fake_server(void *arg)
{
	int listen_fd = *(int *)arg;
	for (size_t i = 0; i <= ROUNDS; i++) {
		char buf[512];
		int fd = accept(listen_fd, NULL, NULL);
		for (ssize_t n; (n = recv(fd, buf, sizeof(buf) - 1, 0)) > 0;) {
			buf[n] = '\0';
			if (strstr(buf, "PING"))
				say(fd, "+PONG\r\n");
			if (strstr(buf, "CLIENT"))
				say(fd, "-NOPERM no CLIENT for you\r\n");
			if (!strstr(buf, "SUBSCRIBE"))
				continue;
			say(fd, "*3\r\n$9\r\nsubscribe\r\n$8\r\nsilt:7:1\r\n:1\r\n"
			        "*3\r\n$9\r\nsubscribe\r\n$20\r\n__redis__:invalidate\r\n:2\r\n");
			say(fd, i < ROUNDS ? nonsense[i] : harmless);
		}
		close(fd);
	}
	return NULL;
}

static void test_nonsense(void **state)
{
	struct server *s = *state;
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct meta_address a = { .kind = META_ADDRESS_SOCKET,
		                  .path = sa.sun_path,
		                  .shown = (char *)"fake" };
	struct ear e;
	pthread_t thread;
	ear_init(&e);
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/fake", s->dir);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(fd, 4), 0);
	assert_int_equal(pthread_create(&thread, NULL, fake_server, &fd), 0);
	struct push *p = listen_to(&a, NULL, s->log, &e);
	for (size_t i = 0; i < ROUNDS; i++) {
		expect(&e, "up");
		assert_int_equal(e.id, 0);
		expect(&e, "down");
	}
	expect(&e, "up");
	expect(&e, "i*");
	expect(&e, "i:k");
	expect(&e, "m:z");
	push_close(p);
	pthread_join(thread, NULL);
	close(fd);
}

/* A mount's session has one, and can be reached through its channel. */
static void test_of_a_session(void **state)
{
	struct server *s = *state;
	struct meta *m = server_open(s, NULL, 0, 0);
	char channel[PUSH_CHANNEL_MAX], *text = NULL;
	push_channel(meta_volume(m)->id, meta_session(m), channel);
	for (int i = 0; i < 500; i++) {
		free(text);
		text = redis(m, "PUBLISH", channel, "x", NULL);
		if (!strcmp(text, "(integer) 1\n"))
			break;
		usleep(10000);
	}
	assert_string_equal(text, "(integer) 1\n");
	free(text);
	meta_close(m);
}

static int start(void **state)
{
	*state = server_start(1);
	return 0;
}

static int stop(void **state)
{
	server_stop(*state);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hears),      cmocka_unit_test(test_everything_is_invalid),
		cmocka_unit_test(test_comes_back), cmocka_unit_test(test_silence),
		cmocka_unit_test(test_nonsense),   cmocka_unit_test(test_of_a_session),
	};
	return cmocka_run_group_tests(tests, start, stop);
}
