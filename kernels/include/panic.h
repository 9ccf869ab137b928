/* The end of a kernel (kernel/panic.c): an epitaph in memory at a known symbol, text on the console, halt. */
#pragma once
#include "types.h"
#include "ptrace.h"

#define EPITAPH_MAGIC		0x4850415449504521UL	/* "!EPITAPH" in memory; written last */
#define EPITAPH_REASON_MAX	128
#define EPITAPH_FRAMES_MAX	24

/* Binary interface to the host, which finds it by the symbol `epitaph`. Plain data, no pointers into it. */
struct epitaph {
	u64 magic;
	u64 size;				/* of this structure */
	/* At the fault. Or of the caller of panic(): rip is the return address then, like those of the backtrace (what
	 * it belongs to is at the byte before it), and registers that are not known are 0. */
	struct pt_regs regs;
	u64 cr0, cr2, cr3, cr4, efer;
	u32 has_trap;				/* a fault: regs.vector and regs.error_code mean something */
	u32 frames;				/* how many of backtrace[] are valid */
	u64 backtrace[EPITAPH_FRAMES_MAX];	/* callers of regs.rip, innermost first */
	char phase[32];				/* what the kernel was doing, see set_phase() */
	char reason[EPITAPH_REASON_MAX];
};
extern struct epitaph epitaph;

_Noreturn void panic(const char *fmt, ...) __printf(1, 2);
/* The same for a fault, with the registers it came with. */
_Noreturn void die(const struct pt_regs *regs, const char *fmt, ...) __printf(2, 3);

/* Return addresses from frame pointer rbp on; how many were written. Stops at anything that is no kernel stack. */
unsigned int backtrace_from(u64 rbp, u64 *out, unsigned int max);
/* Prints "Call trace:" and one line a frame, the caller's first. */
void dump_stack(void);

/* From the first panic on: locks are not waited for. */
bool panic_in_progress(void);

/* What the epitaph will say the kernel was doing. A string constant. */
void set_phase(const char *phase);

#define BUG()		panic("BUG at %s:%d", __FILE__, __LINE__)
#define BUG_ON(c)	do { if (unlikely(c)) panic("BUG at %s:%d: %s", __FILE__, __LINE__, #c); } while (0)
#define WARN_ON(c)	({ bool w_ = !!(c); if (unlikely(w_)) warn_at(__FILE__, __LINE__, #c); unlikely(w_); })
#define WARN_ON_ONCE(c)	({ static bool warned_; bool w_ = !!(c);				\
			   if (unlikely(w_ && !warned_)) { warned_ = true; warn_at(__FILE__, __LINE__, #c); }	\
			   unlikely(w_); })
void warn_at(const char *file, int line, const char *what);
