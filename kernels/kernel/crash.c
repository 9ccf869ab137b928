/* Crashes to order: `crash=KIND` makes the kernel die of it at the last level of initcalls. For tests of everything that
 * has to work then: the traps, the epitaph, and who reads it.
 *
 * Each kind has a function of its own, so that a backtrace names it.
 */
#include "apic.h"
#include "arch.h"
#include "cpu.h"
#include "errno.h"
#include "init.h"
#include "panic.h"
#include "printk.h"
#include "sched.h"
#include "string.h"

/* An address that is never mapped, below the kernels. */
#define BAD_STACK	0xffffffff40000000UL

static const u64 constant = 1;
static u8 code_as_data[16] = { 0xc3 };		/* ret */

static noinline void crash_divide(void)
{
	__asm__ volatile("xorl %%ecx, %%ecx; movl $1, %%eax; cltd; divl %%ecx" ::: "eax", "ecx", "edx");
}

static noinline void crash_null(void)
{
	u64 v;

	__asm__ volatile("movq 8, %0" : "=r"(v));
}

static noinline void crash_null_call(void)
{
	__asm__ volatile("call *%0" :: "r"(0UL) : "memory");
}

static noinline void crash_gp(void)
{
	u64 v;

	__asm__ volatile("movq (%1), %0" : "=r"(v) : "r"(1UL << 63));
}

static noinline void crash_ud(void)
{
	__asm__ volatile("ud2");
}

static noinline void crash_breakpoint(void)
{
	__asm__ volatile("int3");
}

static noinline void crash_df(void)
{
	__asm__ volatile("movq %0, %%rsp; pushq %%rax" :: "r"(BAD_STACK) : "memory");
}

/* Down to the last bytes of the stack and over them, with interrupts off so that nothing else needs the room; then
 * back up. It is the next switch that notices. */
static noinline void fill_stack(u64 depth)
{
	volatile u64 here = depth;
	u64 *bottom = current->stack;

	if ((u64)&here - (u64)bottom > 512)
		fill_stack(depth + 1);
	else
		memset(bottom, 0x5a, 64);
	here = 0;
}

static noinline void crash_stack(void)
{
	local_irq_disable();
	fill_stack(0);
	local_irq_enable();
	yield();
	barrier();			/* no tail call: the backtrace is to name this function */
}

static noinline void crash_panic(void)
{
	panic("crash=panic on the command line");
}

static noinline void crash_bug(void)
{
	BUG_ON(constant == 1);
}

static noinline void crash_nx(void)
{
	__asm__ volatile("call *%0" :: "r"(code_as_data) : "memory");
}

static noinline void crash_rodata(void)
{
	__asm__ volatile("movq $2, (%0)" :: "r"(&constant) : "memory");
}

static noinline void crash_text(void)
{
	__asm__ volatile("movb $0x90, (%0)" :: "r"(crash_rodata) : "memory");
}

static noinline void crash_atomic(void)
{
	static spinlock_t lock = SPINLOCK_INIT;

	spin_lock(&lock);
	msleep(1);
	spin_unlock(&lock);
}

static noinline void crash_mutex(void)
{
	static struct mutex mutex = MUTEX_INIT(mutex);

	mutex_lock(&mutex);
	mutex_lock(&mutex);
	mutex_unlock(&mutex);
}

/* The text of the panic cannot be made: a fault while the epitaph is being written. */
static noinline void crash_twice(void)
{
	panic("this text has no %s", (const char *)BAD_STACK);
}

/* The processor's own stacks: NMI to itself. */
static noinline void crash_nmi(void)
{
	apic_send_nmi();
	barrier();
}

/* Not a crash, but an end that nothing else of this kernel comes to. */
static void crash_restart(void)
{
	machine_restart();
}

static const struct crash {
	const char *name;
	void (*fn)(void);
} crashes[] = {
	{ "divide", crash_divide }, { "null", crash_null }, { "null-call", crash_null_call }, { "gp", crash_gp },
	{ "ud", crash_ud }, { "breakpoint", crash_breakpoint }, { "df", crash_df }, { "stack", crash_stack },
	{ "panic", crash_panic }, { "bug", crash_bug }, { "nx", crash_nx }, { "rodata", crash_rodata },
	{ "text", crash_text }, { "atomic", crash_atomic }, { "mutex", crash_mutex },
	{ "twice", crash_twice }, { "nmi", crash_nmi }, { "restart", crash_restart },
};
static const struct crash *chosen;

static int set_crash(const char *value)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(crashes); i++) {
		if (!strcmp(value, crashes[i].name)) {
			chosen = &crashes[i];
			return 0;
		}
	}
	return -EINVAL;
}
kernel_param("crash", set_crash);

static int crash_if_asked(void)
{
	if (!chosen)
		return 0;
	pr_notice("crash=%s\n", chosen->name);
	chosen->fn();
	pr_err("crash=%s did not crash\n", chosen->name);
	return -EINVAL;
}
late_initcall(crash_if_asked);
