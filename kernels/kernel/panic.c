/* The end of a kernel. First the epitaph is written, a plain record in memory that the host finds by its symbol;
 * then the same is said on the console; then the machine halts for good.
 *
 * Nothing here may need anything that could be what is broken: no allocation, no waiting for locks (from the first
 * panic on spinlocks are not waited for, see lock.c), and the stack is read only where it is known to be. A fault in
 * here keeps the first epitaph, says one line, and halts; a fault in that halts.
 */
#include "panic.h"
#include "arch.h"
#include "console.h"
#include "cpu.h"
#include "printk.h"
#include "release.h"
#include "sched.h"
#include "string.h"

static_assert(sizeof(struct epitaph) == 16 + 176 + 40 + 8 + 8 * EPITAPH_FRAMES_MAX + 32 + EPITAPH_REASON_MAX,
	      "the host reads it");

struct epitaph epitaph;
static u32 panics;
static const char *phase = "entry";

bool panic_in_progress(void)
{
	return READ_ONCE(panics) != 0;
}

void set_phase(const char *what)
{
	WRITE_ONCE(phase, what);
}

static bool is_in(u64 address, u64 size, u64 start, u64 end)
{
	return address >= start && address < end && size <= end - address;
}

/* The stacks of boot and of the IST are in the image; a thread's is only trusted while it is the current one. */
static bool is_on_stack(u64 address, u64 size)
{
	u64 stack = (u64)current->stack;

	return is_in(address, size, (u64)_data, (u64)_end) ||
	       is_in(address, size, stack, stack + THREAD_STACK_SIZE);
}

unsigned int backtrace_from(u64 rbp, u64 *out, unsigned int max)
{
	unsigned int n = 0;

	while (n < max && IS_ALIGNED(rbp, 8) && is_on_stack(rbp, 16)) {
		const u64 *frame = (const u64 *)rbp;	/* caller's rbp, return address */

		if (!is_in(frame[1], 1, (u64)_text, (u64)_etext))
			break;
		out[n++] = frame[1];
		rbp = frame[0];
	}
	return n;
}

static void print_trace(bool emergency, const u64 *trace, unsigned int n)
{
	printk(emergency ? KERN_EMERG "Call trace:\n" : KERN_WARNING "Call trace:\n");
	for (unsigned int i = 0; i < n; i++)
		printk(emergency ? KERN_EMERG "  0x%lx\n" : KERN_WARNING "  0x%lx\n", trace[i]);
}

noinline void dump_stack(void)
{
	u64 trace[EPITAPH_FRAMES_MAX];

	print_trace(false, trace, backtrace_from((u64)__builtin_frame_address(0), trace, ARRAY_SIZE(trace)));
}

void warn_at(const char *file, int line, const char *what)
{
	pr_warn("WARNING: %s at %s:%d\n", what, file, line);
	dump_stack();
}

/* The first panic's epitaph stays, unless it was not finished. */
static _Noreturn void panic_again(u32 before, const char *fmt)
{
	if (before == 1) {
		if (epitaph.magic != EPITAPH_MAGIC) {
			strscpy(epitaph.reason, fmt, sizeof(epitaph.reason));
			epitaph.size = sizeof(epitaph);
			barrier();
			WRITE_ONCE(epitaph.magic, EPITAPH_MAGIC);
		}
		console_write("\npanic inside a panic: ", 23);
		console_write(fmt, strlen(fmt));
		console_write("\n", 1);
		console_flush();
	}
	machine_halt();
}

/* After a jump to where no code is, the caller is not yet in a frame: its address is on top of the stack. */
static unsigned int backtrace_of(const struct pt_regs *regs, u64 *out, unsigned int max)
{
	unsigned int n = 0;

	if (!is_in(regs->rip, 1, (u64)_text, (u64)_etext) && IS_ALIGNED(regs->rsp, 8) && is_on_stack(regs->rsp, 8)) {
		u64 caller = *(const u64 *)regs->rsp;

		if (is_in(caller, 1, (u64)_text, (u64)_etext))
			out[n++] = caller;
	}
	return n + backtrace_from(regs->rbp, out + n, max - n);
}

static void write_epitaph(const struct pt_regs *regs, bool has_trap, const char *fmt, va_list args)
{
	struct epitaph *e = &epitaph;

	e->size = sizeof(*e);
	e->regs = *regs;
	e->cr0 = read_cr0();
	e->cr2 = read_cr2();
	e->cr3 = read_cr3();
	e->cr4 = read_cr4();
	e->efer = rdmsr(MSR_EFER);
	e->has_trap = has_trap;
	e->frames = backtrace_of(regs, e->backtrace, EPITAPH_FRAMES_MAX);
	strscpy(e->phase, phase, sizeof(e->phase));
	vsnprintf(e->reason, sizeof(e->reason), fmt, args);
	barrier();
	WRITE_ONCE(e->magic, EPITAPH_MAGIC);
}

static void print_epitaph(void)
{
	const struct epitaph *e = &epitaph;
	const struct pt_regs *r = &e->regs;

	pr_emerg("Kernel panic: %s\n", e->reason);
	pr_emerg("kernel %s (release \"%s\"), phase: %s, thread %d (%s)\n", RELEASE_VERSION, RELEASE_NAME, e->phase,
		 current->tid, current->name);
	if (e->has_trap)
		pr_emerg("at 0x%lx, vector %lu, error code 0x%lx\n", r->rip, r->vector, r->error_code);
	else
		pr_emerg("at 0x%lx\n", r->rip);
	pr_emerg("  rax %016lx rbx %016lx rcx %016lx rdx %016lx\n", r->rax, r->rbx, r->rcx, r->rdx);
	pr_emerg("  rsi %016lx rdi %016lx rbp %016lx rsp %016lx\n", r->rsi, r->rdi, r->rbp, r->rsp);
	pr_emerg("  r8  %016lx r9  %016lx r10 %016lx r11 %016lx\n", r->r8, r->r9, r->r10, r->r11);
	pr_emerg("  r12 %016lx r13 %016lx r14 %016lx r15 %016lx\n", r->r12, r->r13, r->r14, r->r15);
	pr_emerg("  cs %04lx ss %04lx rflags %08lx efer %04lx\n", r->cs, r->ss, r->rflags, e->efer);
	pr_emerg("  cr0 %08lx cr2 %016lx cr3 %016lx cr4 %08lx\n", e->cr0, e->cr2, e->cr3, e->cr4);
	print_trace(true, e->backtrace, e->frames);
	pr_emerg("System halted\n");
}

static _Noreturn void end_kernel(const struct pt_regs *regs, bool has_trap, const char *fmt, va_list args)
{
	u32 before;

	local_irq_disable();
	before = __atomic_fetch_add(&panics, 1, __ATOMIC_SEQ_CST);
	if (before)
		panic_again(before, fmt);
	write_epitaph(regs, has_trap, fmt, args);
	print_epitaph();
	printk_flush();
	machine_halt();
}

_Noreturn void die(const struct pt_regs *regs, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	end_kernel(regs, true, fmt, args);
}

/* The registers of the caller that can be known here; the others are 0. */
noinline _Noreturn void panic(const char *fmt, ...)
{
	const u64 *frame = __builtin_frame_address(0);
	struct pt_regs regs = {
		.rip = frame[1], .rbp = frame[0], .rsp = (u64)(frame + 2),
		.cs = KERNEL_CS, .ss = KERNEL_DS, .rflags = local_save_flags(),
	};
	va_list args;

	va_start(args, fmt);
	end_kernel(&regs, false, fmt, args);
}
