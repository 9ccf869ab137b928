/* A program that is being loaded: between exec.c, which has names, arguments and the change of identity, and the format
 * of the file (fs/binfmt_elf.c).
 */
#pragma once
#include "types.h"

struct file;
struct mm;

#define EXEC_HEAD	256			/* bytes of the file that decide what it is */
#define AUXV_MAX	24

/* Argument strings, copied out of the old program, one behind the other with their NULs, in pages. */
struct exec_strings {
	char **page;
	u64 nr_pages_max;
	u64 size, limit;			/* bytes; limit leaves room for the pointers */
	u32 argc, envc;
	u64 args_end;				/* where the environment begins */
};

/* Where arguments come from: a program's memory, or the kernel's for the first program. */
struct string_source {
	const char *const *list;
	bool kernel;
};

struct exec {
	struct file *file;
	u8 head[EXEC_HEAD];			/* zero behind the end of the file */
	u64 head_size;
	const char *filename;			/* as it was given: AT_EXECFN, comm */
	bool name_closes;			/* it is /dev/fd/N, which is closed before anybody can open it */
	struct exec_strings strings;

	/* by the format: */
	struct mm *mm;				/* the new program's memory, with everything but the stack's contents */
	u64 entry;
	bool executable_stack;
	struct {
		u64 type, value;
	} auxv[AUXV_MAX];
	u32 nr_auxv;
	bool no_return;				/* from here on an error kills */
};

/* 0, -ENOEXEC: not this format; others. With no_return set when Linux could not return any more. */
int load_elf(struct exec *e);
/* Opens a program or an interpreter by the kernel's name of it: regular, executable. ERR_PTR. */
struct file *open_exec(int dirfd, const char *path, u32 lookup);
/* Exactly that many bytes; -EIO if the file is shorter. */
int exec_read(struct file *f, void *buf, u64 size, u64 at);
void exec_aux(struct exec *e, u64 type, u64 value);

/* ---- arguments and stack (kernel/exec_args.c) ---- */
int exec_take_arguments(struct exec *e, const struct string_source *argv, const struct string_source *envp);
/* For a script: its interpreter, the argument if it is not empty, and the script's name before the others. */
int exec_wrap_arguments(struct exec *e, const char *interpreter, const char *argument, const char *name);
s64 exec_make_stack(struct exec *e);	/* in the new memory; where %rsp begins */
void exec_free_strings(struct exec_strings *s);

/* ---- kernel/exec.c ---- */
struct pt_regs;
/* e has its filename; it is used up. On success the running task is the new program; *regs is how it begins. */
int do_exec(struct exec *e, int dirfd, const char *path, u32 lookup, const struct string_source *argv,
	    const struct string_source *envp, struct pt_regs *regs);
