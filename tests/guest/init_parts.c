/*
 * init_parts.c - init's parts, run on the host by tests/test_init.py
 *
 *	init_parts parse	plan on standard input; what was understood, fields ended by NUL, on standard output
 *	init_parts run		plan on standard input; runs its "before" programs, records on standard output
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../../kernels/user/plan.h"
#include "../../kernels/user/record.h"
#include "../../kernels/user/run.h"

static struct plan plan;
static struct record record;
static struct runner runner;
static char text[PLAN_BYTES_MAX + 4096];

static void field(const char *word)
{
	fputs(word, stdout);
	putchar('\0');
}

static void show_argv(const char *what, char **argv)
{
	field(what);
	for (; *argv != NULL; argv++)
		field(*argv);
	field("\n");
}

int main(int argc, char **argv)
{
	struct plan_error wrong;
	size_t length = 0;
	ssize_t n;

	while ((n = read(0, text + length, sizeof(text) - 1 - length)) > 0)
		length += (size_t)n;
	if (plan_parse(text, length, &plan, &wrong) < 0) {
		fprintf(stderr, "%u: %s\n", wrong.line, wrong.message);
		return 3;
	}
	if (argc > 1 && strcmp(argv[1], "run") == 0) {
		const char *tried;

		record.fd = 1;
		if (runner_init(&runner, &record) < 0)
			return 4;
		for (unsigned int i = 0; i < plan.programs_count; i++)
			if (run_program(&runner, "before", plan.programs[i].argv, NULL, &tried) < 0)
				record_failure(&record, RECORD_WARNING, tried, errno);
		runner_drain(&runner);
		return 0;
	}
	printf("%u", plan.updates);
	field("");
	for (unsigned int i = 0; i < plan.programs_count; i++)
		show_argv(plan.programs[i].when == PLAN_BEFORE ? "before" : "after", plan.programs[i].argv);
	for (unsigned int g = 1; g <= plan.updates && g <= plan.next_count + 1; g++) {
		const struct plan_next *next = plan_next_for(&plan, g);

		field("next");
		field(next->kernel);
		field(next->initrd != NULL ? next->initrd : "(none)");
		field(next->cmdline);
		field("\n");
	}
	if (plan.terminal != NULL) {
		field(plan.terminal);
		show_argv("interactive", plan.shell);
	}
	return 0;
}
