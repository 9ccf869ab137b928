/* costs old SIZE...: what preserving a file of each size costs, and undoing it; then all are preserved and held.
 * costs new SIZE...: what retrieving each costs, and finishing with nobody else having the file, which frees it.
 *
 * One line a size, "cost WHAT BYTES NANOSECONDS". Pages are there before: what is measured is the preserving alone.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <linux/liveupdate.h>
#include "hold.h"

static unsigned long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (unsigned long long)t.tv_sec * 1000000000 + (unsigned long long)t.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void cost(const char *what, unsigned long long size, unsigned long long since)
{
	unsigned long long passed = now() - since;

	printf("cost %s %llu %llu\n", what, size, passed);
}

static int session(int device, unsigned long cmd, unsigned long long size)
{
	struct liveupdate_ioctl_create_session c = { .size = sizeof(c) };	/* retrieve has the same */

	snprintf((char *)c.name, sizeof(c.name), "%llu", size);
	if (ioctl(device, cmd, &c) < 0)
		fail("session");
	return c.fd;
}

static void preserve(int session, int fd)
{
	struct liveupdate_session_preserve_fd p = { .size = sizeof(p), .fd = fd, .token = 1 };

	if (ioctl(session, LIVEUPDATE_SESSION_PRESERVE_FD, &p) < 0)
		fail("preserve");
}

static void in_old(int device, unsigned long long size)
{
	int fd = memfd_create("cost", 0), s;
	unsigned long long since;

	if (ftruncate(fd, (off_t)size) < 0 || fallocate(fd, 0, 0, (off_t)size) < 0)
		fail("fallocate");
	/* The first time moves pages out of scratch. */
	for (int round = 0; round < 2; round++) {
		s = session(device, LIVEUPDATE_IOCTL_CREATE_SESSION, size);
		since = now();
		preserve(s, fd);
		cost(round ? "preserve" : "first-preserve", size, since);
		since = now();
		close(s);
		cost(round ? "unpreserve" : "first-unpreserve", size, since);
	}
	s = session(device, LIVEUPDATE_IOCTL_CREATE_SESSION, size);
	preserve(s, fd);
	close(fd);
}

static void in_new(int device, unsigned long long size)
{
	int s = session(device, LIVEUPDATE_IOCTL_RETRIEVE_SESSION, size);
	struct liveupdate_session_retrieve_fd r = { .size = sizeof(r), .token = 1 };
	struct liveupdate_session_finish f = { .size = sizeof(f) };
	unsigned long long since = now();

	if (ioctl(s, LIVEUPDATE_SESSION_RETRIEVE_FD, &r) < 0)
		fail("retrieve");
	cost("retrieve", size, since);
	close(r.fd);
	since = now();
	if (ioctl(s, LIVEUPDATE_SESSION_FINISH, &f) < 0)
		fail("finish");
	cost("finish", size, since);
	close(s);
}

int main(int argc, char **argv)
{
	unsigned long long since = now();
	int device = open("/dev/liveupdate", O_RDWR), old = argc > 1 && !strcmp(argv[1], "old");

	if (device < 0)
		fail("/dev/liveupdate");
	cost("open", 0, since);
	for (int i = 2; i < argc; i++)
		(old ? in_old : in_new)(device, strtoull(argv[i], NULL, 0));
	if (old)
		hold();
	return 0;
}
