/* Self-test: traps that handlers fix, the protection of the image's parts, backtraces, and an interrupt by way of the
 * I/O APIC.
 */
#define pr_fmt(fmt) "trap test: " fmt
#include "arch.h"
#include "cpu.h"
#include "errno.h"
#include "page.h"
#include "panic.h"
#include "printk.h"
#include "sched.h"
#include "selftest.h"
#include "traps.h"

#define PIT_HZ		1193182

static const u64 constant = 0x1234;
static u8 code_as_data[16] = { 0xc3 };	/* ret */

/* What the last trap was, and where the code that caused it goes on. */
static struct {
	struct thread *thread;
	u64 resume, vector, error, address, rip;
	unsigned int count;
} seen;

static bool note_trap(struct pt_regs *regs, u64 address)
{
	if (current != seen.thread)
		return false;
	seen.vector = regs->vector;
	seen.error = regs->error_code;
	seen.address = address;
	seen.rip = regs->rip;
	seen.count++;
	regs->rip = seen.resume;
	return true;
}

/* Runs an instruction that traps and goes on behind it. */
#define TRAPS(vector_, instruction, ...)						\
	do {										\
		trap_handler_t before_ = set_trap_handler(vector_, note_trap);		\
		seen.count = 0;								\
		seen.thread = current;							\
		__asm__ volatile("leaq 771f(%%rip), %%rax; movq %%rax, %0;"		\
				 instruction "; 771:"					\
				 : "=m"(seen.resume) : __VA_ARGS__ : "rax", "rcx", "rdx", "memory");	\
		set_trap_handler(vector_, before_);					\
		CHECK(seen.count == 1 && seen.vector == (vector_));			\
	} while (0)

static void test_fixups(void)
{
	TRAPS(TRAP_BP, "int3", "i"(0));
	TRAPS(TRAP_UD, "ud2", "i"(0));
	TRAPS(TRAP_DE, "xorl %%ecx, %%ecx; xorl %%edx, %%edx; divl %%ecx", "i"(0));
	TRAPS(TRAP_GP, "movq (%1), %%rcx", "r"(1UL << 63));
	CHECK(seen.error == 0);
	TRAPS(TRAP_GP, "movl $0x38, %%ecx; movl %%ecx, %%ds", "i"(0));	/* behind the end of the GDT */
	CHECK(seen.error == 0x38 || seen.error == TSS_SELECTOR + 8);
	TRAPS(TRAP_PF, "movq (%1), %%rcx", "r"(8UL));
	CHECK(seen.address == 8 && seen.error == 0);
	TRAPS(TRAP_PF, "movq %%rcx, (%1)", "r"(0xff8UL));
	CHECK(seen.address == 0xff8 && seen.error == PF_WRITE);
	pr_info("breakpoint, invalid opcode, divide error, protection and page faults were fixed\n");
}

/* Three instructions, one trap after each; the third ends it. Debug traps come on a stack of their own. */
static bool note_step(struct pt_regs *regs, u64 address __unused)
{
	seen.vector = regs->vector;
	seen.address = (u64)regs;
	if (++seen.count == 3)
		regs->rflags &= ~RFLAGS_TF;
	return true;
}

static void test_single_step(void)
{
	trap_handler_t before = set_trap_handler(TRAP_DB, note_step);
	u64 sum;

	seen.count = 0;
	__asm__ volatile("xorl %%eax, %%eax; pushfq; orq %1, (%%rsp); popfq;"
			 "incl %%eax; incl %%eax; incl %%eax; incl %%eax" : "=&a"(sum) : "i"(RFLAGS_TF) : "memory");
	set_trap_handler(TRAP_DB, before);
	CHECK(sum == 4);
	CHECK(seen.count == 3 && seen.vector == TRAP_DB);
	CHECK(seen.address >= (u64)_data && seen.address < (u64)_end);
	pr_info("single steps came back from their own stack\n");
}

static void test_protection(void)
{
	u64 depth_before, depth_after;

	TRAPS(TRAP_PF, "movq %%rcx, (%1)", "r"(&constant));
	CHECK(seen.address == (u64)&constant && seen.error == (PF_PRESENT | PF_WRITE));
	CHECK(READ_ONCE(constant) == 0x1234);
	TRAPS(TRAP_PF, "movq %%rcx, (%1)", "r"(test_fixups));
	CHECK(seen.address == (u64)test_fixups && seen.error == (PF_PRESENT | PF_WRITE));
	__asm__ volatile("movq %%rsp, %0" : "=r"(depth_before));
	TRAPS(TRAP_PF, "jmp *%1", "r"(code_as_data));
	CHECK(seen.address == (u64)code_as_data && seen.rip == (u64)code_as_data);
	CHECK(seen.error == (PF_PRESENT | PF_FETCH));
	TRAPS(TRAP_PF, "jmp *%1", "r"(phys_to_virt(virt_to_phys(test_fixups))));
	CHECK(seen.error == (PF_PRESENT | PF_FETCH));
	__asm__ volatile("movq %%rsp, %0" : "=r"(depth_after));
	CHECK(depth_before == depth_after);
	pr_info("text and constants cannot be written, data cannot be executed\n");
}

/* ---- backtraces ---- */

static u64 trace[EPITAPH_FRAMES_MAX];
static unsigned int frames;

static noinline void trace_from_here(void)
{
	frames = backtrace_from((u64)__builtin_frame_address(0), trace, ARRAY_SIZE(trace));
}

static bool trace_in_trap(struct pt_regs *regs __unused, u64 address __unused)
{
	trace_from_here();
	return true;			/* int3 is behind us already */
}

enum trace_by { BY_CALL, BY_TRAP, BY_PRINTING };

static noinline void trace_inner(enum trace_by by)
{
	if (by == BY_CALL)
		trace_from_here();
	else if (by == BY_TRAP)
		__asm__ volatile("int3");
	else
		dump_stack();
	barrier();			/* no tail calls here */
}

static noinline void trace_middle(enum trace_by by)
{
	trace_inner(by);
	barrier();
}

static noinline void trace_outer(enum trace_by by)
{
	trace_middle(by);
	barrier();
}

static const struct {
	const char *name;
	void (*fn)(enum trace_by);
} expected[] = {
	{ "trace_inner", trace_inner }, { "trace_middle", trace_middle }, { "trace_outer", trace_outer },
};

/* The function with the nearest start at or before the address, of those above, if it is near. */
static int function_of(u64 address)
{
	int found = -1;

	for (unsigned int i = 0; i < ARRAY_SIZE(expected); i++) {
		u64 start = (u64)expected[i].fn;

		if (start < address && address - start < 128 &&
		    (found < 0 || start > (u64)expected[found].fn))
			found = (int)i;
	}
	return found;
}

static void check_trace(const char *what, unsigned int skip)
{
	pr_info("backtrace %s:\n", what);
	if (!CHECK(frames >= skip + ARRAY_SIZE(expected) + 1))
		return;
	for (unsigned int i = 0; i < ARRAY_SIZE(expected); i++) {
		int f = function_of(trace[skip + i]);

		CHECK(f == (int)i);
		pr_info("  %s\n", f < 0 ? "something else" : expected[f].name);
	}
}

static void test_backtrace(void)
{
	trap_handler_t before;
	unsigned int skip = 0;
	u64 bad[2] = { 0, 0 };

	trace_outer(BY_CALL);
	check_trace("through calls", 0);
	CHECK(frames < ARRAY_SIZE(trace));	/* it came to an end */
	trace_outer(BY_PRINTING);		/* the host knows the names */

	/* trace_in_trap, handle_trap and trap_dispatch, of which the compiler may merge some, and the entry come first */
	before = set_trap_handler(TRAP_BP, trace_in_trap);
	trace_outer(BY_TRAP);
	set_trap_handler(TRAP_BP, before);
	while (skip < frames && function_of(trace[skip]) != 0)
		skip++;
	check_trace("through a trap", skip);

	CHECK(backtrace_from(0, trace, ARRAY_SIZE(trace)) == 0);
	CHECK(backtrace_from(~0UL, trace, ARRAY_SIZE(trace)) == 0);
	CHECK(backtrace_from((u64)_text, trace, ARRAY_SIZE(trace)) == 0);
	CHECK(backtrace_from((u64)_end - 8, trace, ARRAY_SIZE(trace)) == 0);
	CHECK(backtrace_from((u64)bad, trace, ARRAY_SIZE(trace)) == 0);
	CHECK(backtrace_from((u64)bad + 1, trace, ARRAY_SIZE(trace)) == 0);
	bad[0] = (u64)bad;			/* a frame that is its own caller */
	bad[1] = (u64)test_backtrace;
	CHECK(backtrace_from((u64)bad, trace, ARRAY_SIZE(trace)) == ARRAY_SIZE(trace));
}

/* ---- interrupts ---- */

static volatile unsigned int interrupts;
static struct wait_queue interrupted = WAIT_QUEUE_INIT(interrupted);

static void on_interrupt(unsigned int gsi, void *data)
{
	if (data == &interrupts && gsi == isa_irq_to_gsi(0) && in_interrupt())
		interrupts++;
	wake_up(&interrupted);
}

/* Channel 0 of the 8254, one shot after a millisecond. */
static void start_pit(void)
{
	outb(0x43, 0x30);
	outb(0x40, (PIT_HZ / 1000) & 0xff);
	outb(0x40, (PIT_HZ / 1000) >> 8);
}

static void test_interrupts(void)
{
	unsigned int gsi = isa_irq_to_gsi(0);

	CHECK(request_irq(gsi, NULL, NULL) == -EINVAL);
	CHECK(request_irq(1000, on_interrupt, NULL) == -EINVAL);
	CHECK(!in_interrupt());
	if (!CHECK(request_irq(gsi, on_interrupt, (void *)&interrupts) == 0))
		return;
	CHECK(request_irq(gsi, on_interrupt, NULL) == -EBUSY);
	for (unsigned int i = 1; i <= 3; i++) {
		start_pit();
		wait_event(&interrupted, interrupts >= i);
		CHECK(interrupts == i);
	}
	free_irq(gsi);
	start_pit();
	msleep(10);
	CHECK(interrupts == 3);
	__asm__ volatile("int $0x9e");		/* nobody's */
	__asm__ volatile("int $0xff");		/* spurious */
	pr_info("interrupts by the I/O APIC came and went\n");
}

void trap_selftest(void)
{
	test_fixups();
	test_single_step();
	test_protection();
	test_backtrace();
	test_interrupts();
}
