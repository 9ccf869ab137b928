/* Registers as the trap entry saves them (arch/entry.S), lowest address first. */
#pragma once
#include "types.h"

struct pt_regs {
	u64 r15, r14, r13, r12, rbp, rbx;
	u64 r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
	u64 vector;
	u64 error_code;				/* 0 where the processor pushes none */
	u64 rip, cs, rflags, rsp, ss;		/* pushed by the processor */
};

static inline bool user_mode(const struct pt_regs *regs) { return (regs->cs & 3) == 3; }
