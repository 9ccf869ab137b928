/*
 * run.h - run a program and forward what it writes
 */
#ifndef LUEMU_RUN_H
#define LUEMU_RUN_H

#include "plan.h"
#include "record.h"

/* Every program that has run may have left children that still hold its output. */
#define RUN_STREAMS_MAX	(PLAN_PROGRAMS_MAX + 1)

struct runner {
	struct record *record;
	unsigned int programs;		/* started so far */
	unsigned int streams;
	struct {
		int fd;
		unsigned int program;
	} stream[RUN_STREAMS_MAX];
};

/* Prepare to run programs: takes SIGCHLD, so once in a process. */
int runner_init(struct runner *runner, struct record *record);

/*
 * Run argv and wait until it, not what it leaves behind, is done. Sends START, OUTPUT and EXIT. With `terminal`,
 * the program has that as controlling terminal and its output is not forwarded; without, it reads nothing and
 * its output is. Returns 0; or -1 with errno, the argument `tried` then says what failed.
 */
int run_program(struct runner *runner, const char *when, char *const argv[], const char *terminal,
		const char **tried);

/* Forward what children left behind have written by now. */
void runner_drain(struct runner *runner);

#endif
