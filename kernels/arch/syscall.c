/* System calls: the table, what is called, and how the way back is taken.
 *
 * Calls register themselves (syscall.h); the table is made from the section of their entries. A number that nobody
 * registered is answered with -ENOSYS and named on the console, once, because a program that misses one seldom says
 * so.
 */
#include "cpu.h"
#include "init.h"
#include "panic.h"
#include "printk.h"
#include "sched.h"
#include "signal.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"
#include "bitops.h"

#define NR_SYSCALLS	512

#define ARCH_SET_GS	0x1001
#define ARCH_SET_FS	0x1002
#define ARCH_GET_FS	0x1003
#define ARCH_GET_GS	0x1004

/* arch/syscall_entry.S counts on these */
static_assert(offsetof(struct percpu, kernel_stack) == 16, "PERCPU_KERNEL_STACK");
static_assert(offsetof(struct percpu, user_rsp) == 24, "PERCPU_USER_RSP");
static_assert(offsetof(struct pt_regs, rcx) == 11 * 8, "order of struct pt_regs");
static_assert(offsetof(struct pt_regs, rsp) == 20 * 8, "order of struct pt_regs");

extern const struct syscall_entry __syscalls_start[], __syscalls_end[];
extern char syscall_entry[], syscall_entry_32[];

static syscall_fn table[NR_SYSCALLS];

void syscall_init(void)
{
	for (const struct syscall_entry *e = __syscalls_start; e < __syscalls_end; e++) {
		if (e->nr >= NR_SYSCALLS || table[e->nr])
			panic("system call %s: number %lu is taken or none", e->name, e->nr);
		table[e->nr] = e->fn;
	}
	fpu_init();
	/* SYSRET loads CS from the upper selector + 16 and SS from it + 8 */
	wrmsr(MSR_STAR, (u64)(USER_CS32 & ~3) << 48 | 3UL << 48 | (u64)KERNEL_CS << 32);
	wrmsr(MSR_LSTAR, (u64)syscall_entry);
	wrmsr(MSR_CSTAR, (u64)syscall_entry_32);
	wrmsr(MSR_SYSENTER_CS, 0);	/* there is none: it faults */
	wrmsr(MSR_SYSCALL_MASK, RFLAGS_TF | RFLAGS_IF | RFLAGS_DF | RFLAGS_NT | RFLAGS_AC | RFLAGS_RF | 3UL << 12);
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
}

static int syscall_initcall(void)
{
	syscall_init();
	return 0;
}
early_initcall(syscall_initcall);

static s64 unknown_syscall(u32 nr)
{
	static u64 reported[NR_SYSCALLS / 64 + 1];
	u32 bit = min(nr, (u32)NR_SYSCALLS);

	if (!test_bit(bit, reported)) {
		set_bit(bit, reported);
		pr_info("%s[%d]: unknown system call %u\n", current_process()->comm, current_process()->pid, nr);
	}
	return -ENOSYS;
}

static bool sysret_is_safe(const struct pt_regs *regs)
{
	return regs->rcx == regs->rip && regs->r11 == regs->rflags && regs->rip < USER_END &&
	       regs->cs == USER_CS && regs->ss == USER_DS && !(regs->rflags & (RFLAGS_RF | RFLAGS_TF));
}

/* From syscall_entry; interrupts are off, before and after. True: by SYSRET. */
__used bool syscall_dispatch(struct pt_regs *regs)
{
	u32 nr = (u32)regs->rax;

	current_task()->orig_rax = nr;
	regs->rax = (u64)-ENOSYS;
	local_irq_enable();
	if (nr < NR_SYSCALLS && table[nr])
		regs->rax = (u64)table[nr](regs->rdi, regs->rsi, regs->rdx, regs->r10, regs->r8, regs->r9);
	else
		regs->rax = (u64)unknown_syscall(nr);
	local_irq_disable();
	exit_to_user(regs);
	return sysret_is_safe(regs);
}

/* Bases in the upper half would be taken for the kernel's (arch/entry.S). */
SYSCALL_DEFINE2(arch_prctl, 158, int, code, u64, value)
{
	switch (code) {
	case ARCH_SET_FS:
		if (value >= USER_END)
			return -EPERM;
		set_fs_base(value);
		return 0;
	case ARCH_SET_GS:
		if (value >= USER_END)
			return -EPERM;
		set_gs_base(value);
		return 0;
	case ARCH_GET_FS:
		return put_user(current->fs_base, (u64 *)value);
	case ARCH_GET_GS:
		return put_user(current_task()->gs_base, (u64 *)value);
	default:
		return -EINVAL;
	}
}
