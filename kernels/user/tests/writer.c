/* writer PAGES: a memfd that a child writes to through a mapping, without pause, while it is preserved.
 *
 * In each page is a counter. The child counts up one after the other and keeps, in memory of its own, how far it is. It
 * is stopped before the update, and what it kept is printed, so that the next kernel's `agent` can be asked whether every
 * count is there: "page N COUNT", and "sum" as agent says it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/liveupdate.h>
#include "hold.h"

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t *map(int fd, size_t pages)
{
	void *p = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);

	if (p == MAP_FAILED)
		fail("mmap");
	return p;
}

int main(int argc, char **argv)
{
	size_t pages = argc > 1 ? strtoul(argv[1], NULL, 0) : 64;
	int fd = memfd_create("written", 0), device = open("/dev/liveupdate", O_RDWR), status;
	struct liveupdate_ioctl_create_session c = { .size = sizeof(c), .name = "written" };
	struct liveupdate_session_preserve_fd p = { .size = sizeof(p), .fd = fd, .token = 1 };
	uint64_t *counters, *kept = map(-1, 1 + (pages * 8 + 4095) / 4096), seen;
	pid_t child;

	if (ftruncate(fd, (off_t)(pages * 4096)) < 0)
		fail("ftruncate");
	counters = map(fd, pages);
	for (size_t i = 0; i < pages; i++)
		counters[i * 512] = 0;
	child = fork();
	if (!child)
		for (uint64_t n = 1;; n++)
			for (size_t i = 0; i < pages; i++) {
				/* Always one more: what was lost, a page that was copied while it was written, shows. */
				if (++counters[i * 512] != n)
					_exit(7);
				kept[i] = n;
			}
	while (!(seen = *(volatile uint64_t *)&kept[pages - 1]))
		;
	if (device < 0 || ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, &c) < 0)
		fail("create");
	if (ioctl(c.fd, LIVEUPDATE_SESSION_PRESERVE_FD, &p) < 0)
		fail("preserve");
	printf("preserved, meanwhile %d rounds\n", *(volatile uint64_t *)&kept[pages - 1] > seen);
	seen = *(volatile uint64_t *)&kept[pages - 1];
	while (*(volatile uint64_t *)&kept[pages - 1] < seen + 3)	/* it goes on, in the same pages as the file's */
		;
	kill(child, SIGSTOP);
	waitpid(child, &status, WUNTRACED);
	if (!WIFSTOPPED(status)) {
		printf("a write was lost: %d\n", WEXITSTATUS(status));
		return 1;
	}
	for (size_t i = 0; i < pages; i++)
		printf("page %zu %llu\n", i, (unsigned long long)kept[i]);
	hold();
	return 0;
}
