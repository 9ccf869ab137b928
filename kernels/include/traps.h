/* Vectors of the processor's own traps, and those that the kernel gives to interrupts (arch/cpu.c, traps.c, irq.c). */
#pragma once
#include "types.h"
#include "ptrace.h"

#define TRAP_DE		0
#define TRAP_DB		1
#define TRAP_NMI	2
#define TRAP_BP		3
#define TRAP_OF		4
#define TRAP_BR		5
#define TRAP_UD		6
#define TRAP_NM		7
#define TRAP_DF		8
#define TRAP_TS		10
#define TRAP_NP		11
#define TRAP_SS		12
#define TRAP_GP		13
#define TRAP_PF		14
#define TRAP_MF		16
#define TRAP_AC		17
#define TRAP_MC		18
#define TRAP_XF		19
#define TRAP_COUNT	32		/* vectors below belong to the processor */

#define VECTOR_GSI_BASE	0x30		/* interrupt of the I/O APIC n: this + n */
#define VECTOR_GSI_MAX	0x9f
#define VECTOR_MSI_BASE	0xa0		/* messages of devices */
#define VECTOR_MSI_MAX	0xdf
#define VECTOR_REMAPPING 0xee		/* a fault of DMA remapping */
#define VECTOR_TIMER	0xef
#define VECTOR_ERROR	0xfe
#define VECTOR_SPURIOUS	0xff

/* Stacks of traps that cannot trust the one they find, by their number in a gate. */
#define IST_DOUBLE_FAULT	1
#define IST_NMI			2
#define IST_MACHINE_CHECK	3
#define IST_DEBUG		4
#define IST_COUNT		4

/* Bits of a page fault's error code. */
#define PF_PRESENT	(1UL << 0)
#define PF_WRITE	(1UL << 1)
#define PF_USER		(1UL << 2)
#define PF_RESERVED	(1UL << 3)
#define PF_FETCH	(1UL << 4)

void trap_dispatch(struct pt_regs *regs);	/* from arch/entry.S */
void irq_dispatch(struct pt_regs *regs);	/* vectors from TRAP_COUNT on; arch/irq.c */

/* Traps of programs (arch/user_trap.c). They may sleep, interrupts are on in them. */
void user_trap(struct pt_regs *regs, u64 address);
/* The kernel touched a program's memory: true if the instruction can go on, or was taken elsewhere. */
bool kernel_fault_on_user(struct pt_regs *regs, u64 address);
/* Says on the console what the running task is about to die of, if it is a fault. */
void log_user_fault(int sig);
