/* System calls: numbers, argument order and errors are those of Linux on x86-64.
 *
 *	SYSCALL_DEFINE3(read, 0, int, fd, char *, buf, u64, count) { … return n or -errno; }
 *
 * registers itself in the section .syscalls (arch/syscall.c makes the table). Unknown numbers give -ENOSYS and are
 * logged once each.
 */
#pragma once
#include "types.h"
#include "errno.h"
#include "ptrace.h"

typedef s64 (*syscall_fn)(u64, u64, u64, u64, u64, u64);
struct syscall_entry {
	u64 nr;
	syscall_fn fn;
	const char *name;
};

#define SYSCALL_ENTRY(name_, nr_)							\
	static s64 syscall_##name_(u64, u64, u64, u64, u64, u64);			\
	static const struct syscall_entry syscall_entry_##name_ __section(".syscalls") =	\
		{ .nr = nr_, .fn = syscall_##name_, .name = #name_ }
#define SYSCALL_BODY(name_, ...)							\
	static s64 syscall_##name_(__unused u64 x1, __unused u64 x2, __unused u64 x3,	\
				   __unused u64 x4, __unused u64 x5, __unused u64 x6)	\
	{ return sys_##name_(__VA_ARGS__); }

#define SYSCALL_DEFINE0(name, nr)							\
	static s64 sys_##name(void);							\
	SYSCALL_ENTRY(name, nr); SYSCALL_BODY(name) static s64 sys_##name(void)
#define SYSCALL_DEFINE1(name, nr, t1, a1)						\
	static s64 sys_##name(t1 a1);							\
	SYSCALL_ENTRY(name, nr); SYSCALL_BODY(name, (t1)x1) static s64 sys_##name(t1 a1)
#define SYSCALL_DEFINE2(name, nr, t1, a1, t2, a2)					\
	static s64 sys_##name(t1 a1, t2 a2);						\
	SYSCALL_ENTRY(name, nr); SYSCALL_BODY(name, (t1)x1, (t2)x2) static s64 sys_##name(t1 a1, t2 a2)
#define SYSCALL_DEFINE3(name, nr, t1, a1, t2, a2, t3, a3)				\
	static s64 sys_##name(t1 a1, t2 a2, t3 a3);					\
	SYSCALL_ENTRY(name, nr); SYSCALL_BODY(name, (t1)x1, (t2)x2, (t3)x3)		\
	static s64 sys_##name(t1 a1, t2 a2, t3 a3)
#define SYSCALL_DEFINE4(name, nr, t1, a1, t2, a2, t3, a3, t4, a4)			\
	static s64 sys_##name(t1 a1, t2 a2, t3 a3, t4 a4);				\
	SYSCALL_ENTRY(name, nr); SYSCALL_BODY(name, (t1)x1, (t2)x2, (t3)x3, (t4)x4)	\
	static s64 sys_##name(t1 a1, t2 a2, t3 a3, t4 a4)
#define SYSCALL_DEFINE5(name, nr, t1, a1, t2, a2, t3, a3, t4, a4, t5, a5)		\
	static s64 sys_##name(t1 a1, t2 a2, t3 a3, t4 a4, t5 a5);			\
	SYSCALL_ENTRY(name, nr); SYSCALL_BODY(name, (t1)x1, (t2)x2, (t3)x3, (t4)x4, (t5)x5)	\
	static s64 sys_##name(t1 a1, t2 a2, t3 a3, t4 a4, t5 a5)
#define SYSCALL_DEFINE6(name, nr, t1, a1, t2, a2, t3, a3, t4, a4, t5, a5, t6, a6)	\
	static s64 sys_##name(t1 a1, t2 a2, t3 a3, t4 a4, t5 a5, t6 a6);		\
	SYSCALL_ENTRY(name, nr); SYSCALL_BODY(name, (t1)x1, (t2)x2, (t3)x3, (t4)x4, (t5)x5, (t6)x6) \
	static s64 sys_##name(t1 a1, t2 a2, t3 a3, t4 a4, t5 a5, t6 a6)

void syscall_init(void);			/* the table, and the processor's SYSCALL registers */

/* A sleeping call that a signal interrupted returns one of these; the signal code turns it into -EINTR or a restart. */
#define ERESTARTSYS		512	/* restart if the handler has SA_RESTART, or there is none */
#define ERESTARTNOINTR		513	/* always restart */
#define ERESTARTNOHAND		514	/* restart only if no handler runs */
#define ERESTART_RESTARTBLOCK	516	/* restart by task->restart with the time that is left */
