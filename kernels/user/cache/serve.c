/*
 * serve.c - the cache's service: one thread, a socket, its clients
 *
 * A client whose answers do not get away is not listened to: so what it makes the service keep is bounded.
 */
#define _GNU_SOURCE
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "protocol.h"

#define CLIENTS_MAX	32
#define INPUT_BYTES	65536

static struct connection clients[CLIENTS_MAX];
static unsigned int count;
static volatile sig_atomic_t stopped;

static void on_term(int signal)
{
	(void)signal;
	stopped = 1;
}

static struct sockaddr_un address(void)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	const char *path = getenv(SOCKET_VARIABLE);

	strncpy(name.sun_path, path != NULL ? path : SOCKET_PATH, sizeof(name.sun_path) - 1);
	return name;
}

int serve_connect(void)
{
	struct sockaddr_un name = address();
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	if (connect(fd, (struct sockaddr *)&name, sizeof(name)) < 0) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

static int listen_at(void)
{
	struct sockaddr_un name = address();
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -1;
	unlink(name.sun_path);
	if (bind(fd, (struct sockaddr *)&name, sizeof(name)) < 0 || listen(fd, CLIENTS_MAX) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static void accept_one(struct cache *cache, int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd >= 0)
		protocol_init(&clients[count++], cache, fd);
}

static size_t pending(const struct connection *c)
{
	return c->out_size - c->out_sent;
}

/* Send what there is. False: the client is gone. */
static bool send_to(struct connection *c)
{
	while (pending(c) > 0) {
		ssize_t n = send(c->fd, c->out + c->out_sent, pending(c), MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		c->out_sent += (size_t)n;
	}
	c->out_size = c->out_sent = 0;
	return true;
}

/* False: the client is gone, or has to go. */
static bool serve_one(struct connection *c, short events)
{
	static char bytes[INPUT_BYTES];

	if (pending(c) == 0 && (events & (POLLIN | POLLHUP | POLLERR))) {
		ssize_t n = read(c->fd, bytes, sizeof(bytes));

		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			return false;
		if (n > 0)
			protocol_input(c, bytes, (size_t)n);
	}
	if (c->out_of_memory || !send_to(c))
		return false;
	return !c->closing || pending(c) > 0;
}

static void drop(unsigned int number)
{
	protocol_close(&clients[number]);
	count--;
	if (number != count)
		clients[number] = clients[count];
}

static int loop(struct cache *cache, int listener)
{
	while (!stopped) {
		struct pollfd fds[CLIENTS_MAX + 1];
		unsigned int before = count;

		for (unsigned int i = 0; i < before; i++)
			fds[i] = (struct pollfd){ .fd = clients[i].fd, .events = pending(&clients[i]) > 0 ? POLLOUT : POLLIN };
		fds[before] = (struct pollfd){ .fd = count < CLIENTS_MAX ? listener : -1, .events = POLLIN };
		if (poll(fds, before + 1, -1) < 0) {
			if (errno == EINTR)
				continue;
			perror("cache: poll");
			return 1;
		}
		for (unsigned int i = before; i-- > 0;)
			if (fds[i].revents != 0 && !serve_one(&clients[i], fds[i].revents))
				drop(i);
		if (fds[before].revents & POLLIN)
			accept_one(cache, listener);
	}
	return 0;
}

int serve(uint64_t size, int index_fd, int store_fd)
{
	static struct cache cache;
	struct sigaction term = { .sa_handler = on_term };
	int listener;

	sigaction(SIGTERM, &term, NULL);
	if (index_fd >= 0 ? store_open(&cache.store, index_fd, store_fd) : store_create(&cache.store, size)) {
		if (cache.store.problem != NULL)
			fprintf(stderr, "cache: %s\n", cache.store.problem);
		else
			fprintf(stderr, "cache: a store of %llu bytes: %s\n", (unsigned long long)size, strerror(errno));
		return 1;
	}
	cache.started = (uint64_t)time(NULL);
	listener = listen_at();
	if (listener < 0) {
		perror("cache: listen");
		return 1;
	}
	return loop(&cache, listener);
}
