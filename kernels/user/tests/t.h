/* For programs whose output is compared: the same binary runs on one of our kernels and on Linux, line by line it has to
 * say the same. So nothing that differs by itself (process numbers, addresses, times) is printed, only what it is
 * compared with.
 */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* One line, one write: what several processes print does not get mixed. */
__attribute__((format(printf, 1, 2))) static inline void say(const char *fmt, ...)
{
	char line[512];
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(line, sizeof(line) - 1, fmt, args);
	va_end(args);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	line[n++] = '\n';
	if (write(1, line, (size_t)n) != n)
		_exit(99);
}

/* "name = 3" or "name = -ENOENT (2)" */
static inline long show(const char *name, long result)
{
	if (result < 0)
		say("%s = -%d (%s)", name, errno, strerror(errno));
	else
		say("%s = %ld", name, result);
	return result;
}
/* The same for a call whose result, if it is none of the errors, differs from run to run. */
static inline long show_ok(const char *name, long result)
{
	if (result < 0)
		show(name, result);
	else
		say("%s ok", name);
	return result;
}
#define T(expr) show(#expr, (long)(expr))
#define OK(expr) show_ok(#expr, (long)(expr))
/* A condition. */
#define C(expr) say("%s: %s", #expr, (expr) ? "yes" : "no")

static inline void say_status(const char *what, int status)
{
	if (WIFEXITED(status))
		say("%s: exited %d", what, WEXITSTATUS(status));
	else if (WIFSIGNALED(status))
		say("%s: killed by %d", what, WTERMSIG(status));
	else if (WIFSTOPPED(status))
		say("%s: stopped by %d", what, WSTOPSIG(status));
	else if (WIFCONTINUED(status))
		say("%s: continued", what);
	else
		say("%s: status %#x", what, status);
}

/* Runs the statement in a child and says how that ended. */
#define CHILD(what, ...) do {					\
		pid_t pid_ = fork();				\
		int status_;					\
		if (!pid_) { __VA_ARGS__; _exit(0); }		\
		while (waitpid(pid_, &status_, 0) < 0 && errno == EINTR) ; \
		say_status(what, status_);			\
	} while (0)

static inline void sleep_ms(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	while (nanosleep(&t, &t) && errno == EINTR)
		;
}

/* An address that nothing is mapped at, and one that is not the program's. */
#define BAD	((void *)8)
#define KERNEL	((void *)0xffff888000000000UL)
