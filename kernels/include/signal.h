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
#define SIGCHLD	17
#define SIGCONT	18
#define SIGSTOP	19
#define SIGTSTP	20
#define SIGTTIN	21
#define SIGTTOU	22
#define SIGWINCH 28
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
		u64 addr;					/* faults */
	};
};
struct sigpending {
	sigset_t set;
	struct siginfo info[NSIG];		/* one of each: standard signals do not queue */
};

struct task;
struct process;
int send_signal(struct task *t, int sig, const struct siginfo *info);		/* to one task */
int send_signal_process(struct process *p, int sig, const struct siginfo *info);
int send_signal_group(s32 pgrp, int sig);	/* 0 or -ESRCH */
void force_signal(int sig, int code, u64 addr);	/* the running task; not to be ignored or blocked */
/* On the way back to user mode: delivers what is pending, restarts the system call or ends the process. */
void exit_to_user(struct pt_regs *regs);
