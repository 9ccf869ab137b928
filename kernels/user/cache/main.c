/*
 * main.c - an in-memory cache that survives live updates: service, client, agent
 *
 *	cache start SIZE	before an update: a cache of SIZE bytes, filled; preserved by an agent; written to until the
 *				kernel stops. Goes on with the cache that there is, if there is one.
 *	cache check		after it: the service starts again from what was preserved, a client compares all of it
 *				with what had been acknowledged
 *	cache serve SIZE	the service alone
 *	cache serve INDEX STORE	the same, with the files of another one
 *	cache status		what the service says of itself
 *
 * Three parts that know of each other no more than they would in a data centre. The service keeps all it has in two
 * memfds and knows nothing of updates. The client writes, and keeps account in a memfd of its own. The agent asks the
 * service which files to preserve, takes them through /proc, and puts them into sessions, which live as long as it does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../luo.h"
#include "client.h"
#include "serve.h"
#include "store.h"

#define SESSION		"cache"
#define CLIENT_SESSION	"cache-client"
enum { TOKEN_STORE = 1, TOKEN_INDEX, TOKEN_LEDGER };

#define LEDGER_PATH	"/tmp/cache.ledger"	/* a link to where a process keeps the client's ledger open */
#define BURST		16			/* writes between two pauses */
#define WRITES_AFTER	256			/* with the files preserved, before the command is done */

static struct client client;

static int fail(const char *what)
{
	fprintf(stderr, "cache: %s: %s\n", what, strerror(errno));
	return 1;
}

/* A process that goes on when its parent is done. The parent gets its number, or -1. */
static pid_t leave_behind(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		setsid();
		signal(SIGPIPE, SIG_IGN);
	}
	return pid;
}

/* Of what is open it gets its two files and the standard streams: a session is not to live as long as the service. */
static pid_t start_service(uint64_t size, int index_fd, int store_fd)
{
	pid_t pid = leave_behind();

	if (pid != 0)
		return pid;
	for (int fd = 3; fd < 64; fd++)
		if (fd != index_fd && fd != store_fd)
			close(fd);
	_exit(serve(size, index_fd, store_fd));
}

/* Connect to a service that has just been started; it may turn out that it cannot start. */
static int connect_to(pid_t service)
{
	int status;

	if (client_connect(&client) == 0)
		return 0;
	if (service > 0 && waitpid(service, &status, WNOHANG) == service)
		fprintf(stderr, "cache: the service did not start\n");
	return -1;
}

/* ---- the agent ---- */

/* A file that another process has open. */
static int open_of(uint64_t pid, uint64_t fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%" PRIu64 "/fd/%" PRIu64, pid, fd);
	return open(path, O_RDWR | O_CLOEXEC);
}

static int preserve_all(int store, int index, int ledger)
{
	int device = luo_open(), session, own;

	if (device < 0)
		return fail(LUO_DEVICE);
	session = luo_create(device, SESSION);
	own = luo_create(device, CLIENT_SESSION);
	close(device);
	if (session < 0 || own < 0)
		return fail("create a session");
	if (luo_preserve(session, store, TOKEN_STORE) < 0 || luo_preserve(session, index, TOKEN_INDEX) < 0 ||
	    luo_preserve(own, ledger, TOKEN_LEDGER) < 0)
		return fail("preserve a file");
	return 0;
}

/* Preserves, tells the parent how that went, and holds the sessions. */
static _Noreturn void agent(int report, int store, int index, int ledger)
{
	unsigned char status = (unsigned char)preserve_all(store, index, ledger);

	if (write(report, &status, 1) != 1 || status != 0)
		_exit(1);
	close(report);
	for (;;)
		pause();
}

static int start_agent(void)
{
	uint64_t pid, store_fd, index_fd;
	unsigned char status = 1;
	int report[2], store, index;

	if (client_stat(&client, "pid", &pid) < 0 || client_stat(&client, "store_fd", &store_fd) < 0 ||
	    client_stat(&client, "index_fd", &index_fd) < 0)
		return 1;
	store = open_of(pid, store_fd);
	index = open_of(pid, index_fd);
	if (store < 0 || index < 0)
		return fail("open the service's files");
	if (pipe2(report, O_CLOEXEC) < 0)
		return fail("pipe");
	switch (leave_behind()) {
	case -1:
		return fail("fork");
	case 0:
		close(report[0]);
		agent(report[1], store, index, client.ledger_fd);
	}
	close(report[1]);
	close(store);
	close(index);
	if (read(report[0], &status, 1) != 1)
		fprintf(stderr, "cache: the agent is gone\n");
	close(report[0]);
	return status;
}

/* ---- commands ---- */

static _Noreturn void write_for_ever(void)
{
	const struct timespec pause = { .tv_nsec = 500000 };

	for (unsigned int i = 1;; i++) {
		if (client_write(&client, client_next_key(&client)) < 0)
			_exit(1);
		if (i % BURST == 0)
			nanosleep(&pause, NULL);
	}
}

static int open_ledger(void)
{
	int fd = open(LEDGER_PATH, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return fail(LEDGER_PATH);
	return client_open_ledger(&client, fd) < 0;
}

static int start(uint64_t size)
{
	int running = serve_connect();
	pid_t service = 0;

	if (running >= 0)
		close(running);
	else
		service = start_service(size, -1, -1);
	if (service < 0)
		return fail("fork");
	if (connect_to(service) < 0)
		return 1;
	if (running >= 0 ? open_ledger() : client_new_ledger(&client, size))
		return 1;
	while (client.ledger->issued < client.ledger->keys)
		if (client_write(&client, client_next_key(&client)) < 0)
			return 1;
	if (start_agent() != 0)
		return 1;
	/* Preserved files are written to like others: some of that now, in any case; the rest until the kernel stops. */
	for (unsigned int i = 0; i < WRITES_AFTER; i++)
		if (client_write(&client, client_next_key(&client)) < 0)
			return 1;
	printf("cache: %u keys in a store of %" PRIu64 " MiB are preserved, %" PRIu64 " writes acknowledged\n",
	       client.ledger->keys, size >> 20, client.ledger->acknowledged);
	fflush(stdout);
	switch (leave_behind()) {
	case -1:
		return fail("fork");
	case 0:
		write_for_ever();
	}
	return 0;
}

/* Somebody has to have the ledger open until the next update. */
static int keep_ledger(void)
{
	char path[64];
	pid_t pid = leave_behind();

	if (pid < 0)
		return fail("fork");
	if (pid == 0)
		for (;;)
			pause();
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, client.ledger_fd);
	unlink(LEDGER_PATH);
	return symlink(path, LEDGER_PATH) < 0 ? fail(LEDGER_PATH) : 0;
}

static void report(const struct verdict *v)
{
	printf("@cache {\"keys\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"lost\": %" PRIu64 ", \"corrupted\": %" PRIu64
	       ", \"last_write_survived\": %s, \"issued\": %" PRIu64 ", \"acknowledged\": %" PRIu64
	       ", \"in_flight\": %" PRIu64 "}\n",
	       v->keys, v->bytes, v->lost, v->corrupted, v->last_write_survived ? "true" : "false", v->issued,
	       v->acknowledged, v->in_flight);
}

static int check(void)
{
	struct verdict v;
	int device = luo_open(), session, own, store, index, ledger;
	pid_t service;

	if (device < 0)
		return fail(LUO_DEVICE);
	session = luo_retrieve(device, SESSION);
	own = luo_retrieve(device, CLIENT_SESSION);
	close(device);
	if (session < 0 || own < 0)
		return fail("retrieve a session");
	store = luo_retrieve_fd(session, TOKEN_STORE);
	index = luo_retrieve_fd(session, TOKEN_INDEX);
	ledger = luo_retrieve_fd(own, TOKEN_LEDGER);
	if (store < 0 || index < 0 || ledger < 0)
		return fail("retrieve a file");
	service = start_service(0, index, store);
	if (service < 0)
		return fail("fork");
	close(store);
	close(index);
	if (connect_to(service) < 0 || client_open_ledger(&client, ledger) < 0 || client_check(&client, &v) < 0)
		return 1;
	if (luo_finish(session) < 0 || luo_finish(own) < 0)
		return fail("finish a session");
	close(session);
	close(own);
	if (keep_ledger() != 0)
		return 1;
	report(&v);
	return v.lost != 0 || v.corrupted != 0 || !v.last_write_survived;
}

static int serve_files(const char *index, const char *store)
{
	int index_fd = open(index, O_RDWR | O_CLOEXEC), store_fd = open(store, O_RDWR | O_CLOEXEC);

	if (index_fd < 0 || store_fd < 0)
		return fail("open index and store");
	return serve(0, index_fd, store_fd);
}

static int status(void)
{
	static char bytes[4096];
	size_t size = 0;
	int fd = serve_connect();

	if (fd < 0)
		return fail("no service");
	if (write(fd, "stats\r\nquit\r\n", 13) != 13)
		return fail("ask the service");
	for (ssize_t n; size < sizeof(bytes) && (n = read(fd, bytes + size, sizeof(bytes) - size)) > 0;)
		size += (size_t)n;
	return fwrite(bytes, 1, size, stdout) != size;
}

static bool parse_size(const char *text, uint64_t *size)
{
	char *end;

	errno = 0;
	*size = strtoull(text, &end, 10);
	if (errno != 0 || end == text || *text == '-')
		return false;
	for (const char *unit = "KMGT"; *end != '\0' && *unit != '\0'; unit++) {
		if (*size > UINT64_MAX >> 10)
			return false;
		*size <<= 10;
		if (*end == *unit)
			return end[1] == '\0';
	}
	return *end == '\0';
}

int main(int argc, char **argv)
{
	uint64_t size;

	if (argc == 3 && strcmp(argv[1], "start") == 0 && parse_size(argv[2], &size))
		return start(size);
	if (argc == 3 && strcmp(argv[1], "serve") == 0 && parse_size(argv[2], &size))
		return serve(size, -1, -1);
	if (argc == 4 && strcmp(argv[1], "serve") == 0)
		return serve_files(argv[2], argv[3]);
	if (argc == 2 && strcmp(argv[1], "check") == 0)
		return check();
	if (argc == 2 && strcmp(argv[1], "status") == 0)
		return status();
	fprintf(stderr, "usage: cache start SIZE | check | serve SIZE | serve INDEX STORE | status\n");
	return 2;
}
