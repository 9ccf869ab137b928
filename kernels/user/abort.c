/*
 * abort.c - every way in which a live update does not take place, and the one that does after all
 *
 *	abort start	in the old kernel: sessions that are given up, whose holder is killed, whose file refuses to be
 *			frozen; a second agent; reboots that are refused. Then something to hand over.
 *	abort check	in the new one: sessions that are finished without a look at them, whose file refuses to be
 *			finished, that are closed, that nobody asks for
 *
 * One line for each, "ok", "not ok" or "skipped"; the status is 0 if none is "not ok". A file that refuses is one of
 * /dev/luo_test, which the project's kernels have with `luo_test=file`. Linux has none.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/memfd.h>
#include <linux/reboot.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "luo.h"
#include "plan.h"

#define REFUSING	3	/* token of the file that refuses, */
#define VALUE		"7"	/* and what it is preserved with */
#define PAGE		4096
#define GENERATION	" luemu.generation=1"

static int failures;

__attribute__((format(printf, 2, 3))) static void result(const char *what, const char *format, ...)
{
	va_list args;

	printf("%s: ", what);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
}

/* One line: what was tried, and whether it came out as it must. */
static bool ok(bool good, const char *what)
{
	if (!good)
		failures++;
	result(good ? "ok" : "not ok", good ? "%s" : "%s (errno %d)", what, errno);
	return good;
}

static bool refused(long got, int wanted, const char *what)
{
	return ok(got < 0 && errno == wanted, what);
}

/* ---- files ---- */

static int make(char letter)
{
	char bytes[PAGE];
	int fd = memfd_create("abort", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	memset(bytes, letter, sizeof(bytes));
	if (fd >= 0 && write(fd, bytes, sizeof(bytes)) != sizeof(bytes))
		return -1;
	return fd;
}

static bool holds(int fd, char letter)
{
	char bytes[PAGE + 1];

	if (pread(fd, bytes, sizeof(bytes), 0) != PAGE)
		return false;
	for (int i = 0; i < PAGE; i++)
		if (bytes[i] != letter)
			return false;
	return true;
}

/* A preserved file cannot grow, one that is not can. */
static bool is_free(int fd)
{
	return ftruncate(fd, 2 * PAGE) == 0 && ftruncate(fd, PAGE) == 0;
}

/* A file that does as it is told, or -1. */
static int test_file(void)
{
	return open("/dev/luo_test", O_RDWR | O_CLOEXEC);
}

static bool tell(int fd, const char *order)
{
	return write(fd, order, strlen(order)) == (ssize_t)strlen(order);
}

/* ---- the old kernel ---- */

static void second_agent(int device)
{
	refused(luo_open(), EBUSY, "a second agent is refused");
	ok(fcntl(device, F_GETFD) >= 0, "the first one goes on");
}

static void given_up(int device)
{
	int session = luo_create(device, "given up"), fd = make('a');

	ok(luo_preserve(session, fd, 1) == 0 && !is_free(fd), "a preserved file cannot grow");
	refused(luo_preserve(session, fd, 2), EBUSY, "a file is preserved once");
	refused(luo_create(device, "given up"), EEXIST, "a name is taken once");
	close(session);
	ok(is_free(fd) && holds(fd, 'a'), "a session is given up: its file is free, with all it had");
	session = luo_create(device, "given up");
	ok(session >= 0 && luo_preserve(session, fd, 1) == 0, "the same again");
	close(session);
	close(fd);
}

static void holder_killed(int device)
{
	int fd = make('k'), ready[2], status;
	char byte;
	pid_t pid;

	if (pipe2(ready, O_CLOEXEC) < 0)
		return;
	pid = fork();
	if (pid == 0) {
		int session = luo_create(device, "killed");

		if (session < 0 || luo_preserve(session, fd, 1) < 0 || write(ready[1], "r", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	ok(read(ready[0], &byte, 1) == 1 && !is_free(fd), "a process holds a session");
	close(ready[0]);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	ok(is_free(fd) && holds(fd, 'k'), "it is killed: the file is free");
	status = luo_create(device, "killed");
	ok(status >= 0, "and the name");
	close(status);
	close(fd);
}

static void no_image(int session, int fd)
{
	refused(reboot(LINUX_REBOOT_CMD_KEXEC), EINVAL, "a reboot without a kernel is refused");
	ok(!is_free(fd) && holds(fd, 'n'), "what was preserved still is");
	(void)session;
}

/* What init will load, NULL if there is nothing. */
static const struct plan_next *next_kernel(void)
{
	static char text[PLAN_BYTES_MAX + 2];
	static struct plan plan;
	struct plan_error wrong;
	int fd = open("/luemu/plan", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	if (n < 0 || plan_parse(text, (size_t)n, &plan, &wrong) < 0)
		return NULL;
	return plan_next_for(&plan, 1);
}

/* Is it one of the project's, which knows test files? A bzImage says where its version is. */
static bool next_is_ours(void)
{
	const struct plan_next *next = next_kernel();
	int fd = next == NULL ? -1 : open(next->kernel, O_RDONLY | O_CLOEXEC);
	char version[256] = "";
	uint16_t at;
	bool found;

	if (fd < 0)
		return false;
	found = pread(fd, &at, sizeof(at), 0x20e) == sizeof(at) &&
		pread(fd, version, sizeof(version) - 1, 0x200 + at) > 0 && strstr(version, " (luemu)") != NULL;
	close(fd);
	return found;
}

static int load(void)
{
	static char cmdline[4096];
	const struct plan_next *next = next_kernel();
	int kernel, initrd;
	long n;

	if (next == NULL || next->initrd == NULL || strlen(next->cmdline) + sizeof(GENERATION) > sizeof(cmdline)) {
		errno = ENOENT;
		return -1;
	}
	strcpy(cmdline, next->cmdline);
	strcat(cmdline, GENERATION);	/* should it ever start */
	kernel = open(next->kernel, O_RDONLY | O_CLOEXEC);
	initrd = open(next->initrd, O_RDONLY | O_CLOEXEC);
	n = syscall(SYS_kexec_file_load, kernel, initrd, strlen(cmdline) + 1, cmdline, 0UL);
	close(kernel);
	close(initrd);
	return n < 0 ? -1 : 0;
}

static void freeze_refused(int device, int session, int fd)
{
	int file = test_file(), refusing, other;

	if (file < 0) {
		result("skipped", "a file refuses to be frozen: there is no /dev/luo_test");
		return;
	}
	refusing = luo_create(device, "refuses");
	ok(tell(file, "value " VALUE) && luo_preserve(refusing, file, REFUSING) == 0 && tell(file, "freeze -5"),
	   "a file that will refuse");
	if (!ok(load() == 0, "the next kernel is loaded"))
		return;
	refused(reboot(LINUX_REBOOT_CMD_KEXEC), EIO, "a file refuses to be frozen: the reboot fails");
	ok(!is_free(fd) && holds(fd, 'n'), "everything is as it was");
	other = make('o');
	ok(luo_preserve(session, other, 9) == 0, "sessions can still be used");
	close(other);
	other = luo_create(device, "after it");
	ok(other >= 0, "and created");
	close(other);
	if (!next_is_ours())
		close(refusing);	/* a Linux would refuse all sessions because of this one's file */
}

static int start(void)
{
	int device = luo_open(), session, fd;

	if (!ok(device >= 0, "the agent opens " LUO_DEVICE))
		return 1;
	second_agent(device);
	given_up(device);
	holder_killed(device);

	session = luo_create(device, "looked at");
	fd = make('n');
	ok(luo_preserve(session, fd, 1) == 0, "something to hand over");
	no_image(session, fd);
	freeze_refused(device, session, fd);
	for (int i = 0; i < 3; i++) {
		static const char *const names[] = { "not looked at", "closed", "forgotten" };

		int one = luo_create(device, names[i]), file = make((char)('0' + i));

		ok(one >= 0 && luo_preserve(one, file, 1) == 0, names[i]);
	}
	close(device);
	if (fork() == 0)
		for (;;)
			pause();
	return failures != 0;
}

/* ---- the new kernel ---- */

static void finish_refused(int device)
{
	int session = luo_retrieve(device, "refuses"), orders = test_file(), fd;
	char value[8] = "";

	if (session < 0 || orders < 0) {
		result("skipped", "a file refuses to be finished: %s",
		       orders < 0 ? "there is no /dev/luo_test" : "none was handed over");
	} else {
		ok(tell(orders, "can_finish 0"), "a file that will refuse");
		refused(luo_finish(session), EBUSY, "it refuses to be finished");
		fd = luo_retrieve_fd(session, REFUSING);
		ok(fd >= 0 && read(fd, value, sizeof(value) - 1) == 1 && strcmp(value, VALUE) == 0,
		   "nothing has changed: it can be retrieved");
		ok(tell(orders, "can_finish 1"), "it refuses no longer");
		close(fd);
		ok(luo_finish(session) == 0, "it is finished");
		ok(luo_finish(session) == 0, "and again, which does nothing");
		refused(luo_retrieve_fd(session, REFUSING), ENOENT, "a finished session has no files");
	}
	close(session);
	close(orders);
}

static int check(void)
{
	int device = luo_open(), session, fd;

	if (!ok(device >= 0, "the agent opens " LUO_DEVICE))
		return 1;
	second_agent(device);
	refused(luo_retrieve(device, "given up"), ENOENT, "what was given up is not there");
	refused(luo_retrieve(device, "killed"), ENOENT, "nor that of the killed one");

	session = luo_retrieve(device, "looked at");
	fd = luo_retrieve_fd(session, 1);
	ok(session >= 0 && fd >= 0 && holds(fd, 'n'), "what was to be handed over is there");
	refused(luo_retrieve(device, "looked at"), EINVAL, "a session is retrieved once");
	refused(luo_retrieve_fd(session, 77), ENOENT, "a token that was not used");
	refused(luo_preserve(session, fd, 2), EINVAL, "nothing can be added to it");
	session = luo_create(device, "looked at");
	refused(luo_preserve(session, fd, 1), EBUSY, "a file is not preserved again before it is finished");
	close(session);
	finish_refused(device);

	session = luo_retrieve(device, "not looked at");
	ok(session >= 0 && luo_finish(session) == 0, "a session is finished without a look at its file");
	refused(luo_retrieve_fd(session, 1), ENOENT, "which is gone");
	close(session);
	session = luo_retrieve(device, "closed");
	ok(session >= 0 && close(session) == 0, "a session is closed");
	refused(luo_retrieve(device, "closed"), ENOENT, "which finishes it");
	return failures != 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "start") == 0)
		return start();
	if (argc == 2 && strcmp(argv[1], "check") == 0)
		return check();
	fprintf(stderr, "usage: abort start|check\n");
	return 2;
}
