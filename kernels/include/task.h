/* Programs: processes and their threads (kernel/task.c, fork.c, exec.c, exit.c, signal.c).
 *
 * A task is a thread of a program; it has a struct thread that is scheduled like any other. Tasks of one process share
 * mm, files, fs, sighand and the struct process; after fork each has its own, mm copied on write. Kernel threads have
 * no task. The running task is current_task(), NULL in a kernel thread.
 */
#pragma once
#include "types.h"
#include "ktimer.h"
#include "list.h"
#include "ptrace.h"
#include "sched.h"
#include "signal.h"

struct mm;
struct file;
struct dentry;

typedef s32 pid_t;

#define RLIM_NLIMITS	16
#define RLIMIT_CPU	0
#define RLIMIT_FSIZE	1
#define RLIMIT_DATA	2
#define RLIMIT_STACK	3
#define RLIMIT_CORE	4
#define RLIMIT_NPROC	6
#define RLIMIT_NOFILE	7
#define RLIMIT_MEMLOCK	8
#define RLIMIT_AS	9
#define RLIMIT_SIGPENDING 11
#define RLIMIT_MSGQUEUE	12
#define RLIMIT_NICE	13
#define RLIMIT_RTPRIO	14
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

/* What the threads of a process share, besides mm and files. Lists, states and pending signals are under task_lock. */
struct process {
	u32 refs;
	pid_t pid;				/* = tid of its first task */
	struct process *parent;			/* who is told; init adopts orphans */
	struct list_head children, sibling;	/* of the parent */
	struct list_head tasks;			/* its threads */
	struct list_head all;			/* all_processes, in order of start; zombies too */
	struct list_head hash;			/* by pid */
	u32 nr_tasks;				/* in `tasks` */
	u32 nr_live;				/* of them not in do_exit() */
	pid_t pgrp, session;
	struct tty *tty;			/* controlling terminal */
	struct rlimit rlim[RLIM_NLIMITS];
	bool exiting, zombie;			/* zombie: all threads gone, parent not told yet or does not listen */
	bool stopped, continued, stop_reported;
	bool execed;				/* has called execve since its fork */
	bool subreaper;				/* adopts orphans among its descendants */
	bool no_new_privs;
	struct task *exec_task;			/* waits for all others to end */
	int stop_signal;
	int exit_status;			/* as wait4 reports it */
	int exit_signal;			/* to the parent, SIGCHLD */
	struct wait_queue wait;			/* of wait4: woken when a child changes */
	struct wait_queue exit_wait;		/* of pidfds */
	struct wait_queue stop_wait;		/* of its stopped threads */
	struct wait_queue signal_wait;		/* of sigtimedwait: woken when a signal arrives */
	struct sigpending shared_pending;
	u64 alarm_deadline, alarm_interval;	/* ITIMER_REAL, ktime in ns, 0 = off */
	struct ktimer alarm;
	struct {
		u64 left, interval;		/* ticks */
	} cpu_timer[2];				/* ITIMER_VIRTUAL, ITIMER_PROF */
	struct list_head timers;		/* of timer_create(2) */
	s32 next_timer_id;
	u32 nr_timers;
	u64 user_ticks, system_ticks;
	u64 child_user_ticks, child_system_ticks;	/* of children that were waited for */
	u64 start_time;				/* ktime in ns */
	u32 personality, membarrier;
	s32 nice;
	char comm[16];
	struct dentry *exe;
};

struct task {
	u32 refs;
	struct thread *thread;			/* NULL before its first instruction */
	struct process *process;
	pid_t tid;
	struct list_head in_process;		/* process->tasks */
	struct list_head hash;			/* by tid */
	struct mm *mm;
	struct files *files;
	struct fs *fs;
	struct sighand *sighand;
	struct cred cred;
	sigset_t blocked, saved_blocked;
	bool restore_blocked;			/* saved_blocked goes back when no handler runs (sigsuspend, ppoll) */
	sigset_t waiting_for;			/* of sigtimedwait, although blocked */
	struct sigpending pending;
	bool killed;				/* a fatal signal is on its way: sleeping calls return */
	u64 sas_sp, sas_size;			/* sigaltstack */
	u32 sas_flags;
	u32 *clear_tid, *set_tid;		/* user addresses, see set_tid_address(2) and CLONE_CHILD_SETTID */
	void *robust_list;
	s64 (*restart)(struct task *t);		/* of ERESTART_RESTARTBLOCK */
	u64 restart_data[4];
	u64 orig_rax;				/* of the system call that is running, -1 outside */
	u64 trap_vector, trap_error, trap_address;	/* of the last fault, for the signal frame */
	u64 gs_base;
	int parent_death_signal;
	int exit_status;
	bool vfork;				/* its parent waits until it executes or exits */
	struct wait_queue vfork_wait;
	struct pt_regs start_regs;		/* with which it begins */
	u64 start_fs_base;
	u8 fpu[512] __aligned(16);		/* FXSAVE, valid while another's is loaded */
};

extern spinlock_t task_lock;			/* with interrupts off: signals come from interrupt handlers */
extern struct list_head all_processes;
extern struct process *init_process;		/* pid 1; NULL before */

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

/* A reference, NULL if there is none. A number is not used again while a zombie, group or session has it; they grow
 * until 32768, then wrap. */
struct process *find_process(pid_t pid);
struct task *find_task(pid_t tid);
void process_get(struct process *p);
void process_put(struct process *p);
void task_put(struct task *t);
/* Of a process that may be ending, for /proc: a reference, NULL if it has none any more. Drop it with mm_put(),
 * files_put(), fs_put(). */
struct mm *process_get_mm(struct process *p);
struct files *process_get_files(struct process *p);
struct fs *process_get_fs(struct process *p);
struct dentry *process_get_exe(struct process *p);	/* dput() */
bool process_get_cred(struct process *p, struct cred *cred);	/* false: it is a zombie */
pid_t process_parent_pid(struct process *p);		/* 0: none */
/* 'R' running, 'S' asleep, 'T' stopped, 'Z' zombie, as /proc/PID/stat says. */
char process_state(struct process *p);
_Noreturn void do_exit(int status);		/* this task; the last one ends the process */
_Noreturn void do_group_exit(int status);	/* the whole process */
/* Starts the first program: pid 1. Returns only if that failed. */
int run_init_process(const char *path, const char *const argv[], const char *const envp[]);
/* The one that the command line or the initramfs has; returns if there is none. */
void run_first_program(void);

/* For a page that a program needs and there is no memory for: another process is made to end and gets time to do so. True:
 * try again. False: it is this one that ends, or it took too long for somebody who may hold what the other waits for. */
bool out_of_memory(bool may_hold_locks, u32 *turns);

bool capable(void);				/* euid 0 */

/* Groups and sessions (kernel/session.c). */
bool pgrp_is_orphaned(pid_t pgrp);		/* nobody in the session outside it looks after its stopped members */
bool pgrp_exists(pid_t pgrp, pid_t session);	/* has a member in that session */
/* A leader ends: its terminal's foreground group gets SIGHUP and SIGCONT, the session loses the terminal
 * (drivers/tty.c). */
void tty_leader_exit(struct process *leader);

/* The processor's user state (arch/user.c). */
void fpu_init(void);
void fpu_reset(struct task *t);			/* as a program finds it */
void fpu_copy_current(u8 to[512]);		/* of the running task */
void fpu_load_current(u8 from[512]);		/* bits that the processor refuses are cleared first */
void set_fs_base(u64 base);			/* of the running task */
void set_gs_base(u64 base);
void user_state_attach(struct task *t);		/* the running thread becomes the task's */
void user_state_detach(void);			/* and is a kernel thread again, its mm and FPU forgotten */
void switch_user_state(struct task *next);	/* from the scheduler, interrupts off; NULL: a kernel thread */
void task_tick(bool user);			/* timer interrupt */
_Noreturn void enter_user(const struct pt_regs *regs);	/* abandons the kernel stack; regs lie elsewhere */
