/* Programs: processes and their threads (kernel/task.c, fork.c, exec.c, exit.c, signal.c).
 *
 * A task is a thread of a program; it has a struct thread that is scheduled like any other. Tasks of one process share
 * mm, files, fs, sighand and the struct process; after fork each has its own, mm copied on write. Kernel threads have
 * no task. The running task is current_task(), NULL in a kernel thread.
 */
#pragma once
#include "types.h"
#include "list.h"
#include "ptrace.h"
#include "sched.h"
#include "signal.h"

struct mm;
struct file;
struct dentry;

typedef s32 pid_t;

#define RLIM_NLIMITS	16
#define RLIMIT_STACK	3
#define RLIMIT_NOFILE	7
#define RLIM_INFINITY	(~0UL)
struct rlimit {
	u64 cur, max;
};

struct cred {					/* by value in each task; copied by fork */
	u32 uid, euid, suid, fsuid;
	u32 gid, egid, sgid, fsgid;
};

/* Open files of a process (fs/file.c). */
struct files {
	u32 refs;
	struct mutex lock;
	u32 size;				/* of the three arrays, grows */
	struct file **fd;
	u64 *open, *close_on_exec;		/* bitmaps */
};

/* Where paths begin. */
struct fs {
	u32 refs;
	struct dentry *root, *cwd;
	u32 umask;
};

/* What the threads of a process share, besides mm and files. */
struct process {
	u32 refs;
	pid_t pid;				/* = tid of its first task */
	struct process *parent;			/* who is told; init adopts orphans */
	struct list_head children, sibling;	/* of the parent */
	struct list_head tasks;			/* its threads */
	struct list_head all;
	u32 nr_tasks;
	pid_t pgrp, session;
	struct tty *tty;			/* controlling terminal */
	struct rlimit rlim[RLIM_NLIMITS];
	bool exiting, zombie;			/* zombie: all threads gone, parent not told yet or does not listen */
	bool stopped, continued, stop_reported;
	int exit_status;			/* as wait4 reports it */
	int exit_signal;			/* to the parent, SIGCHLD */
	struct wait_queue wait;			/* of wait4: woken when a child changes */
	struct wait_queue exit_wait;		/* of pidfds */
	struct sigpending shared_pending;
	u64 alarm_deadline, alarm_interval;	/* ITIMER_REAL, ktime in ns, 0 = off */
	u64 user_ticks, system_ticks, child_ticks;
	char comm[16];
	struct dentry *exe;
};

struct task {
	struct thread *thread;
	struct process *process;
	pid_t tid;
	struct list_head in_process;		/* process->tasks */
	struct mm *mm;
	struct files *files;
	struct fs *fs;
	struct sighand *sighand;
	struct cred cred;
	sigset_t blocked, saved_blocked;
	bool restore_blocked;			/* saved_blocked goes back when no handler runs (sigsuspend, ppoll) */
	struct sigpending pending;
	bool killed;				/* a fatal signal is on its way: sleeping calls return */
	u64 sas_sp, sas_size;			/* sigaltstack */
	u32 sas_flags;
	u32 *clear_tid;				/* user address, see set_tid_address(2) */
	void *robust_list;
	s64 (*restart)(struct task *t);		/* of ERESTART_RESTARTBLOCK */
	u64 restart_data[4];
	u64 orig_rax;				/* of the system call that is running, -1 outside */
	u8 fpu[512] __aligned(16);		/* FXSAVE, valid while not running */
};

struct task *current_task(void);
static inline struct process *current_process(void) { return current_task()->process; }
struct pt_regs *task_regs(struct task *t);	/* of its entry into the kernel: top of its kernel stack */

/* Waiting that a signal ends: like wait_event, but -ERESTARTSYS when one is pending. */
bool signal_pending(void);
bool fatal_signal_pending(void);
#define wait_event_interruptible(q, condition) ({					\
		int ret_ = 0;								\
		struct waiter w_;							\
		while (1) {								\
			prepare_to_wait((q), &w_);					\
			if (condition)							\
				break;							\
			if (signal_pending()) {						\
				ret_ = -ERESTARTSYS;					\
				break;							\
			}								\
			schedule();							\
			finish_wait((q), &w_);						\
		}									\
		finish_wait((q), &w_);							\
		ret_; })
/* The same until ktime_get_ns() reaches deadline (0 = never): 0 by condition, -ETIMEDOUT, -ERESTARTSYS. */
int wait_until(struct wait_queue *q, bool (*condition)(void *), void *arg, u64 deadline);

struct process *find_process(pid_t pid);	/* not zombies' numbers reused: pids only grow until 32768, then wrap */
struct task *find_task(pid_t tid);
_Noreturn void do_exit(int status);		/* this task; the last one ends the process */
_Noreturn void do_group_exit(int status);	/* the whole process */
/* Starts the first program: pid 1. Returns only if that failed. */
int run_init_process(const char *path, const char *const argv[], const char *const envp[]);

bool capable(void);				/* euid 0 */
