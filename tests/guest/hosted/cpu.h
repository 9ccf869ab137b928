/* Stands in for the kernel's cpu.h where its code runs as a program of the host: no interrupts. */
#pragma once
#include "types.h"

#define MSR_GS_BASE	0xc0000101

static inline u64 local_irq_save(void) { return 0; }
static inline void local_irq_restore(u64 flags) { (void)flags; }
static inline u64 rdmsr(u32 msr) { return msr; }
static inline void cpu_relax(void) { }
