/* Signals (kernel/signal.c): numbers and layouts of Linux on x86-64. */
#pragma once
#include "types.h"
#include "list.h"
#include "ptrace.h"

#define SIGHUP	1
#define SIGINT	2
#define SIGQUIT	3
#define SIGILL	4
#define SIGTRAP	5
#define SIGABRT	6
#define SIGBUS	7
#define SIGFPE	8
#define SIGKILL	9
#define SIGUSR1	10
#define SIGSEGV	11
#define SIGUSR2	12
#define SIGPIPE	13
#define SIGALRM	14
#define SIGTERM	15
#define SIGSTKFLT 16
#define SIGCHLD	17
#define SIGCONT	18
#define SIGSTOP	19
#define SIGTSTP	20
#define SIGTTIN	21
#define SIGTTOU	22
#define SIGURG	23
#define SIGXCPU	24
#define SIGXFSZ	25
#define SIGVTALRM 26
#define SIGPROF	27
#define SIGWINCH 28
#define SIGIO	29
#define SIGPWR	30
#define SIGSYS	31
#define SIGRTMIN 32
#define NSIG	64

typedef u64 sigset_t;				/* bit n - 1 is signal n */
#define sigmask(n)	(1UL << ((n) - 1))

#define SA_NOCLDSTOP	0x00000001
#define SA_NOCLDWAIT	0x00000002
#define SA_SIGINFO	0x00000004
#define SA_ONSTACK	0x08000000
#define SA_RESTART	0x10000000
#define SA_NODEFER	0x40000000
#define SA_RESETHAND	0x80000000
#define SA_RESTORER	0x04000000
#define SIG_DFL		0UL
#define SIG_IGN		1UL

struct k_sigaction {				/* as rt_sigaction(2) takes it */
	u64 handler, flags, restorer;
	sigset_t mask;
};
struct sighand {
	u32 refs;
	struct k_sigaction action[NSIG];
};

struct siginfo {				/* the parts that are used; 128 bytes for the program */
	s32 signo, err, code, pad;
	union {
		struct { s32 pid; u32 uid; s32 status; } kill;	/* kill, SIGCHLD */
		struct { s32 pid; u32 uid; u64 value; } rt;	/* sigqueue */
		u64 addr;					/* faults */
	};
};
struct queued_signal {
	struct queued_signal *next;
	struct siginfo info;
};
struct sigpending {
	sigset_t set;
	struct siginfo info[NSIG];		/* the first of each; standard signals do not queue */
	struct queued_signal *queue;		/* more of the real-time signals, oldest first */
	u32 nr_queued;
};

struct task;
struct process;
int send_signal(struct task *t, int sig, const struct siginfo *info);		/* to one task */
int send_signal_process(struct process *p, int sig, const struct siginfo *info);
int send_signal_group(s32 pgrp, int sig);	/* 0 or -ESRCH */
void force_signal(int sig, int code, u64 addr);	/* the running task; not to be ignored or blocked */
/* si_code */
#define SI_USER		0
#define SI_KERNEL	0x80
#define SI_QUEUE	(-1)
#define SI_TKILL	(-6)
#define ILL_ILLOPN	2
#define FPE_INTDIV	1
#define FPE_FLTDIV	3
#define FPE_FLTOVF	4
#define FPE_FLTUND	5
#define FPE_FLTRES	6
#define FPE_FLTINV	7
#define SEGV_MAPERR	1
#define SEGV_ACCERR	2
#define BUS_ADRALN	1
#define BUS_ADRERR	2
#define TRAP_BRKPT	1
#define TRAP_TRACE	2
#define CLD_EXITED	1
#define CLD_KILLED	2
#define CLD_DUMPED	3
#define CLD_STOPPED	5
#define CLD_CONTINUED	6

/* Takes the first pending signal that is in the mask, of the running task; its number or 0. */
extern struct wait_queue signalfd_wait;	/* woken when a signal arrives, at any process */
int dequeue_signal(sigset_t mask, struct siginfo *info);
sigset_t pending_signals(const struct task *t);	/* its own and its process's, blocked or not */
/* For calls that replace the blocked signals while they wait (sigsuspend, ppoll, pselect): the old ones come back
 * after the handler, or at once if none runs. user NULL: nothing. 0, -EFAULT, -EINVAL (size is not 8). */
int set_user_sigmask(const sigset_t *user, u64 size);
void restore_sigmask_unless(bool interrupted);	/* at the end of such a call */
void set_blocked(sigset_t set);

/* On the way back to user mode: delivers what is pending, restarts the system call or ends the process. */
void exit_to_user(struct pt_regs *regs);
