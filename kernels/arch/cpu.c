/* The processor: descriptor tables, interrupt stacks, per-CPU area, and the few control bits that the kernel
 * relies on.
 *
 * cpu_init() is the first thing that C code does. Nothing but the image is mapped then, so all of it is static. From
 * its end on a fault ends in an epitaph (traps.c), whatever state the boot loader or the previous kernel left.
 */
#include "arch.h"
#include "cpu.h"
#include "sched.h"
#include "traps.h"

#define IST_STACK_SIZE	8192

#define DESC_CODE64	0x00af9b000000ffffUL
#define DESC_DATA	0x00cf93000000ffffUL
#define DESC_USER	(3UL << 45)		/* descriptor privilege level 3 */
#define DESC_CODE32	0x00cf9b000000ffffUL
#define DESC_TSS	(0x89UL << 40)		/* 64-bit, available */

#define GATE_INTERRUPT	0x8e00UL		/* present, interrupts off while it runs */

struct tss {
	u32 reserved0;
	u64 rsp[3];			/* stacks of rings 0 to 2 */
	u64 reserved1;
	u64 ist[7];
	u64 reserved2;
	u16 reserved3;
	u16 io_bitmap;			/* behind the limit: there is none */
} __packed;
static_assert(sizeof(struct tss) == 104, "TSS of the processor manuals");

struct gate {
	u64 low, high;
};

struct pseudo_descriptor {
	u16 limit;
	u64 base;
} __packed;

extern char trap_stubs[];
void load_segments(const struct pseudo_descriptor *gdt, u64 cs, u64 ds, u64 tss);

static struct percpu boot_percpu;
static struct tss tss;
static u64 gdt[TSS_SELECTOR / 8 + 2];
static struct gate idt[256] __aligned(16);
static u8 ist_stacks[IST_COUNT][IST_STACK_SIZE] __aligned(16);

void set_kernel_stack(void *top)
{
	tss.rsp[0] = (u64)top;
	this_cpu()->kernel_stack = (u64)top;
}

static void init_gdt(void)
{
	u64 base = (u64)&tss, limit = sizeof(tss) - 1;

	gdt[KERNEL_CS / 8] = DESC_CODE64;
	gdt[KERNEL_DS / 8] = DESC_DATA;
	gdt[USER_CS32 / 8] = DESC_CODE32 | DESC_USER;
	gdt[USER_DS / 8] = DESC_DATA | DESC_USER;
	gdt[USER_CS / 8] = DESC_CODE64 | DESC_USER;
	gdt[TSS_SELECTOR / 8] = limit | (base & 0xffffff) << 16 | DESC_TSS | (base >> 24 & 0xff) << 56;
	gdt[TSS_SELECTOR / 8 + 1] = base >> 32;

	for (unsigned int i = 0; i < IST_COUNT; i++)
		tss.ist[i] = (u64)ist_stacks[i] + IST_STACK_SIZE;
	tss.io_bitmap = sizeof(tss);
	load_segments(&(struct pseudo_descriptor){ sizeof(gdt) - 1, (u64)gdt }, KERNEL_CS, KERNEL_DS, TSS_SELECTOR);
}

/* Which of its own stacks a trap uses (1 and up), 0: the one it finds. Those with their own must work when the
 * stack pointer is nonsense. A page fault on a bad stack becomes a double fault by itself. */
static u64 ist_of(unsigned int vector)
{
	switch (vector) {
	case TRAP_DF:
		return IST_DOUBLE_FAULT;
	case TRAP_NMI:
		return IST_NMI;
	case TRAP_MC:
		return IST_MACHINE_CHECK;
	case TRAP_DB:
		return IST_DEBUG;
	default:
		return 0;
	}
}

static void init_idt(void)
{
	for (unsigned int vector = 0; vector < 256; vector++) {
		u64 at = (u64)trap_stubs + 16 * vector;
		u64 attributes = GATE_INTERRUPT | ist_of(vector);

		if (vector == TRAP_BP || vector == TRAP_OF)
			attributes |= 3UL << 13;	/* int3 and into may be used by programs */
		idt[vector].low = (at & 0xffff) | (u64)KERNEL_CS << 16 | attributes << 32 | (at >> 16 & 0xffff) << 48;
		idt[vector].high = at >> 32;
	}
	__asm__ volatile("lidt %0" :: "m"((struct pseudo_descriptor){ sizeof(idt) - 1, (u64)idt }) : "memory");
}

void cpu_init(void)
{
	local_irq_disable();
	init_gdt();
	/* loading %gs cleared its base */
	boot_percpu.self = &boot_percpu;
	boot_percpu.current_thread = &boot_thread;
	wrmsr(MSR_GS_BASE, (u64)&boot_percpu);
	wrmsr(MSR_KERNEL_GS_BASE, 0);
	wrmsr(MSR_FS_BASE, 0);
	init_idt();
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NX);
	write_cr0(read_cr0() | CR0_WP);
	/* breakpoints of the kernel before this one */
	__asm__ volatile("mov %0, %%dr7" :: "r"(0x400UL));
}
