/* Between the delivery of signals (kernel/signal.c) and the frame of a handler (arch/sigframe.c). */
#pragma once
#include "types.h"
#include "signal.h"

#define SIGINFO_SIZE	128		/* as programs have it */
#define SS_ONSTACK	1
#define SS_DISABLE	2
#define SS_AUTODISARM	(1U << 31)
#define MINSIGSTKSZ	2048

struct sigaltstack {			/* stack_t */
	u64 sp;
	u32 flags, pad;
	u64 size;
};

bool on_altstack(const struct task *t, u64 sp);
void save_altstack(const struct task *t, struct sigaltstack *out, u64 sp);
int restore_altstack(struct task *t, const struct sigaltstack *from, u64 sp);
/* Makes the frame and lets the registers begin the handler. `blocked` is what rt_sigreturn brings back. -EFAULT. */
int setup_sigframe(struct pt_regs *regs, int sig, const struct k_sigaction *action, const struct siginfo *info,
		   sigset_t blocked);
void siginfo_to_user_form(u8 out[SIGINFO_SIZE], const struct siginfo *info);
