/* Start of the kernel: initcalls and parameters (kernel/init.c, kernel/params.c). */
#pragma once
#include "types.h"

/* Initcalls run in order of their level, within one in link order. They return 0 or -errno (logged). */
typedef int (*initcall_t)(void);
struct initcall {
	initcall_t fn;
	const char *name;
};
#define DEFINE_INITCALL(level, fn_)							\
	static const struct initcall initcall_##fn_ __section(".initcall." #level) __aligned(8) = \
		{ .fn = fn_, .name = #fn_ }
#define early_initcall(fn)	DEFINE_INITCALL(0, fn)	/* threads run, nothing else yet */
#define core_initcall(fn)	DEFINE_INITCALL(1, fn)
#define arch_initcall(fn)	DEFINE_INITCALL(3, fn)
#define subsys_initcall(fn)	DEFINE_INITCALL(4, fn)
#define fs_initcall(fn)		DEFINE_INITCALL(5, fn)	/* KHO */
#define device_initcall(fn)	DEFINE_INITCALL(6, fn)
#define late_initcall(fn)	DEFINE_INITCALL(7, fn)	/* LUO, reserve_mem's blob */

/* Parameters of the command line. The handler gets the text behind "name=" ("" if there is none) and returns 0 or
 * -errno, which is logged as a malformed option. Early ones are handled in setup_arch(), before memory is known;
 * the others before mm_core_init(), when the direct map works and only memblock allocates. A parameter may be
 * given several times. */
struct kernel_param {
	const char *name;
	int (*handler)(const char *value);
	bool early;
};
#define DEFINE_PARAM(name_, fn_, early_)						\
	static const struct kernel_param param_##fn_ __section(".param") __aligned(8) =	\
		{ .name = name_, .handler = fn_, .early = early_ }
#define early_param(name, fn)	DEFINE_PARAM(name, fn, true)
#define kernel_param(name, fn)	DEFINE_PARAM(name, fn, false)

#define COMMAND_LINE_SIZE	2048		/* with its NUL */
extern char boot_command_line[COMMAND_LINE_SIZE];	/* as handed over (arch/setup.c) */
void parse_early_params(void);
void parse_params(void);
/* Value of a parameter on the command line, copied into buf; false if it is not there. The last one counts. */
bool cmdline_find(const char *name, char *buf, size_t size);

_Noreturn void start_kernel(void);
