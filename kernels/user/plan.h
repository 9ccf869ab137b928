/*
 * plan.h - the orders that init finds in /luemu/plan
 *
 * The host writes them into the initramfs (emu/initproto.py writes what plan.c reads). A plan is lines of words
 * separated by single spaces; a word's bytes other than printable ASCII, and '%' and space, are written %XX
 * with two upper-case hex digits, and an empty word is written "%-". The first line names the format.
 *
 *	luemu-plan 1
 *	updates 2                             how many times to kexec
 *	before lu s1 S:one F:0x1:4K:all       argv; several lines run in this order
 *	after lu s2 S:one F:0x1:4K:all
 *	next /luemu/kernel-1 /sys/firmware/initrd console=ttyS0%20kho=on
 *	interactive /dev/ttyS0 /bin/sh
 *
 * "next KERNEL INITRD CMDLINE": the n-th such line says what starts generation n, the last one is used for all
 * later generations as well; INITRD "-" means none. "interactive TTY ARGV" runs a program on a terminal after
 * the others of a generation.
 */
#ifndef LUEMU_PLAN_H
#define LUEMU_PLAN_H

#include <stddef.h>

#define PLAN_BYTES_MAX		131072	/* of the whole file */
#define PLAN_PROGRAMS_MAX	64	/* before and after together */
#define PLAN_NEXT_MAX		64
#define PLAN_WORDS_MAX		8192	/* all argv arrays together, their NULLs included */
#define PLAN_UPDATES_MAX	1000000

enum plan_when { PLAN_BEFORE, PLAN_AFTER };

struct plan_program {
	enum plan_when when;
	char **argv;		/* ends with NULL, argv[0] is never empty */
};

struct plan_next {
	const char *kernel;
	const char *initrd;	/* NULL: none */
	const char *cmdline;
};

struct plan {
	unsigned int updates;
	unsigned int programs_count;
	struct plan_program programs[PLAN_PROGRAMS_MAX];
	unsigned int next_count;
	struct plan_next next[PLAN_NEXT_MAX];
	const char *terminal;	/* NULL: not interactive */
	char **shell;
	size_t words_count;
	char *words[PLAN_WORDS_MAX];
};

/* What is wrong with a plan, and in which line, counted from 1. */
struct plan_error {
	unsigned int line;
	const char *message;
};

/*
 * Parse `text`, which is changed and must stay: the plan points into it. `text` must have room for
 * one more byte than `length`. Returns 0, or -1 with `error` filled in.
 */
int plan_parse(char *text, size_t length, struct plan *plan, struct plan_error *error);

/* What starts `generation` (1 or more), or NULL if the plan has no kernel at all. */
const struct plan_next *plan_next_for(const struct plan *plan, unsigned int generation);

#endif
