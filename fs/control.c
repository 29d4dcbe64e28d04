/* The control socket's server.
 *
 * One thread polls: it accepts, reads request lines, notices who hung up, and joins workers. Each
 * request runs on a worker thread of its own (a command may wait for Redis, and a warmup runs for
 * hours), one at a time for a client; a client's next line is read when the worker is done. Clients
 * and hence workers are at most MAX_CLIENTS.
 *
 * A client is whoever may connect to a socket of mode 0600, and is checked again by SO_PEERCRED. It
 * may still be broken or hostile: lines are bounded, JSON depth is bounded, a writer that does not
 * read is dropped after SEND_SECONDS. */
#include "fs/control.h"

#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

#include "fs/control_impl.h"
#include "meta/cleanup.h"
#include "meta/lock.h"

#define MAX_CLIENTS  64
#define SEND_SECONDS 10
#define BACKLOG      16

struct control {
	struct control_config cfg; /* strings copied */
	int listener, wake_fd;
	pthread_t thread;
	atomic_bool stop;
	uint64_t started_ns;
	struct client clients[MAX_CLIENTS];
};

const struct control_config *control_config_of(const struct control *c)
{
	return &c->cfg;
}

uint64_t control_started_ns(const struct control *c)
{
	return c->started_ns;
}

/* --- Replies (worker threads) ----------------------------------------------------------- */

static bool send_all(struct client *cl, const char *data, size_t len)
{
	while (len && !atomic_load(&cl->cancel)) {
		ssize_t n = send(cl->fd, data, len, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			atomic_store(&cl->cancel, true);
			break;
		}
		data += n;
		len -= (size_t)n;
	}
	return len == 0;
}

bool client_send(struct client *cl, struct json_object *o)
{
	size_t len = 0;
	const char *text =
	        o ? json_object_to_json_string_length(
	                    o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &len)
	          : NULL;
	bool ok = text && send_all(cl, text, len) && send_all(cl, "\n", 1);
	json_object_put(o);
	return ok;
}

void client_done(struct client *cl, struct json_object *o, const char *error)
{
	if (!o)
		o = json_object_new_object();
	if (o) {
		json_object_object_add(o, "done", json_object_new_boolean(true));
		json_object_object_add(o, "error", json_object_new_string(error));
	}
	client_send(cl, o);
}

/* --- Clients (poll thread) -------------------------------------------------------------- */

static void wake(struct control *c)
{
	uint64_t one = 1;
	while (write(c->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void drop_client(struct client *cl)
{
	close(cl->fd);
	free(cl->line);
	cl->line = NULL;
	cl->used = false;
}

static bool peer_may(int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 &&
	       (cred.uid == 0 || cred.uid == geteuid());
}

static void accept_client(struct control *c)
{
	static const char refused[] = "{\"done\":true,\"error\":\"too many clients\"}\n";
	struct timeval limit = { .tv_sec = SEND_SECONDS };
	struct client *cl = c->clients;
	int fd = accept4(c->listener, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0) { /* no descriptors: the listener stays readable, don't spin */
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
			usleep(100000);
		return;
	}
	while (cl < c->clients + MAX_CLIENTS && cl->used)
		cl++;
	if (cl == c->clients + MAX_CLIENTS || !peer_may(fd)) {
		if (cl == c->clients + MAX_CLIENTS)
			send(fd, refused, sizeof(refused) - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
		close(fd);
		return;
	}
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	memset(cl, 0, sizeof(*cl));
	cl->control = c;
	cl->fd = fd;
	cl->used = true;
}

static void *worker(void *arg)
{
	struct client *cl = arg;
	char *newline = memchr(cl->line, '\n', cl->len);
	size_t len = (size_t)(newline - cl->line);

	control_run(cl, cl->line, len);
	cl->len -= len + 1;
	memmove(cl->line, newline + 1, cl->len);
	atomic_store(&cl->finished, true);
	wake(cl->control);
	return NULL;
}

/* Starts the next request if a whole line is there. */
static void start_request(struct client *cl)
{
	if (cl->busy || cl->closing || !cl->line)
		return;
	if (!memchr(cl->line, '\n', cl->len)) {
		if (cl->len < CONTROL_LINE_MAX)
			return;
		client_done(cl, NULL, "the request is longer than 1 MiB");
		cl->closing = true;
		return;
	}
	atomic_store(&cl->finished, false);
	cl->busy = pthread_create(&cl->thread, NULL, worker, cl) == 0;
	if (!cl->busy) {
		client_done(cl, NULL, "out of threads");
		cl->closing = true;
	}
}

static void read_client(struct client *cl)
{
	if (!cl->line && !(cl->line = malloc(CONTROL_LINE_MAX + 1))) {
		cl->closing = true;
		return;
	}
	ssize_t n = recv(cl->fd, cl->line + cl->len, CONTROL_LINE_MAX - cl->len, MSG_DONTWAIT);
	if (n > 0)
		cl->len += (size_t)n;
	else if (n == 0 || (errno != EAGAIN && errno != EINTR))
		cl->closing = true;
	start_request(cl);
}

static void client_event(struct client *cl, short events)
{
	if (cl->busy && atomic_load(&cl->finished)) {
		pthread_join(cl->thread, NULL);
		cl->busy = false;
		start_request(cl);
	}
	if (cl->busy) {
		/* The peer is gone altogether (it may close only its sending side and still read).
		 */
		if (events & (POLLHUP | POLLERR))
			atomic_store(&cl->cancel, true);
	} else if (!cl->closing && (events & (POLLIN | POLLHUP | POLLERR))) {
		read_client(cl);
	}
	if (!cl->busy && (cl->closing || atomic_load(&cl->cancel)))
		drop_client(cl);
}

static void poll_once(struct control *c)
{
	struct pollfd p[MAX_CLIENTS + 2];
	struct client *who[MAX_CLIENTS + 2];
	nfds_t n = 2;
	uint64_t count;

	p[0] = (struct pollfd){ .fd = c->wake_fd, .events = POLLIN };
	p[1] = (struct pollfd){ .fd = c->listener, .events = POLLIN };
	for (struct client *cl = c->clients; cl < c->clients + MAX_CLIENTS; cl++) {
		if (!cl->used)
			continue;
		/* One that hung up while busy would make poll() spin: its worker wakes us. */
		bool gone = cl->busy && atomic_load(&cl->cancel);
		who[n] = cl;
		p[n++] = (struct pollfd){ .fd = gone ? -1 : cl->fd,
			                  .events = cl->busy ? 0 : POLLIN };
	}
	if (poll(p, n, -1) < 0)
		return;
	if ((p[0].revents & POLLIN) && read(c->wake_fd, &count, sizeof(count)) < 0)
		count = 0;
	for (nfds_t i = 2; i < n; i++)
		client_event(who[i], p[i].revents);
	if (p[1].revents & POLLIN)
		accept_client(c);
}

static void *serve(void *arg)
{
	struct control *c = arg;

	while (!atomic_load(&c->stop))
		poll_once(c);
	for (struct client *cl = c->clients; cl < c->clients + MAX_CLIENTS; cl++) {
		if (!cl->used)
			continue;
		atomic_store(&cl->cancel, true);
		shutdown(cl->fd, SHUT_RDWR);
		if (cl->busy)
			pthread_join(cl->thread, NULL);
		drop_client(cl);
	}
	return NULL;
}

/* --- Opening and closing ---------------------------------------------------------------- */

static bool somebody_answers(const struct sockaddr_un *sa)
{
	SILT_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	return fd < 0 || connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) == 0 ||
	       errno == EAGAIN;
}

static int open_listener(struct control *c, struct silt_err *err)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	const char *path = c->cfg.path;

	if (strlen(path) >= sizeof(sa.sun_path))
		return silt_fail(err, -ENAMETOOLONG, "the control socket's path %s is too long",
		                 path);
	strcpy(sa.sun_path, path);
	c->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* The mode given before bind() is the mode the file is made with: never open to others. */
	if (c->listener < 0 || fchmod(c->listener, 0600) < 0)
		return silt_fail(err, -errno, "no control socket: %s", strerror(errno));
	int rc = bind(c->listener, (struct sockaddr *)&sa, sizeof(sa));
	if (rc < 0 && errno == EADDRINUSE && !somebody_answers(&sa)) {
		unlink(path); /* of a dead mount */
		rc = bind(c->listener, (struct sockaddr *)&sa, sizeof(sa));
	}
	if (rc < 0 || listen(c->listener, BACKLOG) < 0)
		return silt_fail(err, -errno, "can't make the control socket %s: %s", path,
		                 strerror(errno));
	return 0;
}

static void free_control(struct control *c)
{
	silt_cleanup_fd(&c->listener);
	silt_cleanup_fd(&c->wake_fd);
	free((char *)c->cfg.path);
	free((char *)c->cfg.mountpoint);
	free((char *)c->cfg.source);
	free(c);
}

int control_open(const struct control_config *cfg, struct control **out, struct silt_err *err)
{
	struct control *c = calloc(1, sizeof(*c));
	int rc;

	if (!c)
		return silt_fail(err, -ENOMEM, "out of memory");
	c->cfg = *cfg;
	c->cfg.path = strdup(cfg->path);
	c->cfg.mountpoint = strdup(cfg->mountpoint ? cfg->mountpoint : "");
	c->cfg.source = strdup(cfg->source ? cfg->source : "");
	c->listener = -1;
	c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->started_ns = silt_now_ns();
	rc = c->wake_fd < 0 ? -errno : 0;
	if (!c->cfg.path || !c->cfg.mountpoint || !c->cfg.source)
		rc = -ENOMEM;
	if (rc < 0)
		silt_fail(err, rc, "no control socket: %s", strerror(-rc));
	else
		rc = open_listener(c, err);
	if (rc == 0 && (rc = -pthread_create(&c->thread, NULL, serve, c)) < 0) {
		unlink(c->cfg.path);
		silt_fail(err, rc, "no thread for the control socket: %s", strerror(-rc));
	}
	if (rc < 0) {
		free_control(c);
		return rc;
	}
	*out = c;
	return 0;
}

void control_close(struct control *c)
{
	if (!c)
		return;
	atomic_store(&c->stop, true);
	wake(c);
	pthread_join(c->thread, NULL);
	unlink(c->cfg.path);
	free_control(c);
}
