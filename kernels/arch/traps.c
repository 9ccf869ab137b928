/* Traps of the processor: each is fixed by whoever registered for it, or ends the kernel with an epitaph that says
 * in words what happened.
 *
 * A page fault in the array of struct pages is no error: parts of it come into being when they are first written
 * (mm/vmemmap.c). Everything runs on the stack that the trap found, with interrupts off.
 */
#include "arch.h"
#include "cpu.h"
#include "page.h"
#include "panic.h"
#include "sched.h"
#include "signal.h"
#include "task.h"
#include "traps.h"
#include "uaccess.h"

/* arch/entry.S counts on these */
static_assert(offsetof(struct pt_regs, rip) == 17 * 8, "REGS_RIP");
static_assert(offsetof(struct pt_regs, cs) == 18 * 8, "REGS_CS");
static_assert(sizeof(struct pt_regs) == 22 * 8, "pushed by the processor, the stub and save_regs");

static const char *const names[TRAP_COUNT] = {
	[0] = "divide error", [1] = "debug exception", [2] = "NMI", [3] = "breakpoint", [4] = "overflow",
	[5] = "bound range exceeded", [6] = "invalid opcode", [7] = "device not available", [8] = "double fault",
	[10] = "invalid TSS", [11] = "segment not present", [12] = "stack segment fault",
	[13] = "general protection fault", [14] = "page fault", [16] = "x87 floating-point error",
	[17] = "alignment check", [18] = "machine check", [19] = "SIMD floating-point error",
	[20] = "virtualization exception", [21] = "control protection exception",
	[28] = "hypervisor injection exception", [29] = "VMM communication exception", [30] = "security exception",
};

static trap_handler_t handlers[TRAP_COUNT];

trap_handler_t set_trap_handler(unsigned int vector, trap_handler_t handler)
{
	BUG_ON(vector >= TRAP_COUNT);
	return __atomic_exchange_n(&handlers[vector], handler, __ATOMIC_SEQ_CST);
}

static _Noreturn void die_of_page_fault(const struct pt_regs *regs, u64 address)
{
	u64 error = regs->error_code;
	const char *what = error & PF_FETCH ? "execution of" : error & PF_WRITE ? "write to" : "read of";

	if (error & PF_RESERVED)
		die(regs, "page fault: reserved bits in the page table of 0x%lx", address);
	if (address < PAGE_SIZE)
		die(regs, "null pointer: %s 0x%lx", what, address);
	if (error & PF_PRESENT)
		die(regs, "page fault: %s 0x%lx, which is %s", what, address,
		    error & PF_FETCH ? "data" : error & PF_WRITE ? "read-only" : "not the kernel's");
	die(regs, "page fault: %s 0x%lx, where nothing is mapped", what, address);
}

static _Noreturn void die_of_double_fault(const struct pt_regs *regs, u64 address)
{
	const struct thread *t = current;
	u64 bottom = (u64)t->stack;

	/* a stack that grew out of its bottom, or a stack pointer from elsewhere */
	if (regs->rsp < bottom || regs->rsp > bottom + (PAGE_SIZE << THREAD_STACK_ORDER))
		die(regs, "double fault: the stack pointer 0x%lx is not on the thread's stack", regs->rsp);
	die(regs, "double fault: last page fault at 0x%lx", address);
}

static void handle_trap(struct pt_regs *regs)
{
	/* first of all: a fault in here would overwrite it */
	u64 address = regs->vector == TRAP_PF ? read_cr2() : 0;
	trap_handler_t handler = READ_ONCE(handlers[regs->vector]);
	const char *name = names[regs->vector];

	if (regs->vector == TRAP_PF && vmemmap_fault(address))
		return;
	if (user_mode(regs)) {
		user_trap(regs, address);
		return;
	}
	if (regs->vector == TRAP_PF && address < USER_END && current_task() && kernel_fault_on_user(regs, address))
		return;
	if (handler && handler(regs, address))
		return;
	if (regs->vector == TRAP_PF)
		die_of_page_fault(regs, address);
	if (regs->vector == TRAP_DF)
		die_of_double_fault(regs, read_cr2());
	die(regs, "%s", name ? name : "unknown trap");
}

void trap_dispatch(struct pt_regs *regs)
{
	if (regs->vector >= TRAP_COUNT)
		irq_dispatch(regs);
	else
		handle_trap(regs);
	if (user_mode(regs))
		exit_to_user(regs);
}
