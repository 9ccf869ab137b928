/* Between the parts of the process half (kernel/task.c, fork.c, exec.c, exit.c, wait.c, signal.c); nobody else. */
#pragma once
#include "task.h"

#define STOP_SIGNALS	(sigmask(SIGSTOP) | sigmask(SIGTSTP) | sigmask(SIGTTIN) | sigmask(SIGTTOU))
#define IGNORED_BY_DEFAULT (sigmask(SIGCONT) | sigmask(SIGCHLD) | sigmask(SIGWINCH) | sigmask(SIGURG))
#define UNBLOCKABLE	(sigmask(SIGKILL) | sigmask(SIGSTOP))
/* Caused by the program's own instructions: taken first, so that the frame shows the instruction. */
#define SYNCHRONOUS	(sigmask(SIGSEGV) | sigmask(SIGBUS) | sigmask(SIGILL) | sigmask(SIGTRAP) | sigmask(SIGFPE) | \
			 sigmask(SIGSYS))

/* ---- with task_lock held ---- */
struct process *lookup_process(pid_t pid);	/* no reference */
struct task *lookup_task(pid_t tid);
int link_task(struct task *t, struct process *p);	/* gives it a tid; -EAGAIN: all numbers are taken */
void link_process(struct process *p, struct process *parent);	/* p->pid is set */
void unlink_task(struct task *t);
void unlink_unstarted(struct task *t);
void unlink_process(struct process *p);
void rename_task(struct task *t, pid_t tid);
u32 count_processes_of(u32 uid);
void signal_locked(struct process *p, struct task *t, int sig, const struct siginfo *info);	/* t NULL: the process */
void forget_if_ignored(struct process *p, int sig, u64 handler);	/* after it was given this handler */
void forget_pending(struct sigpending *pending, sigset_t set);
void kill_tasks(struct process *p, struct task *except);	/* all its threads end */
bool notify_parent(struct process *p);		/* of an exit; true: it does not want to wait, release */
void account_to_parent(struct process *p);	/* its time, when it is released */
bool group_is_orphaned(pid_t pgrp, const struct process *except);
bool group_has_stopped(pid_t pgrp);
void signal_group_locked(pid_t pgrp, int sig);
void wake_for_signals(struct process *p, struct task *except);

/* ---- without ---- */
u32 count_tasks(void);
struct task *task_alloc(void);
struct process *process_alloc(void);
void reap_dead_tasks(void);
void stop_process(int sig);			/* of the running task */
bool init_may_die(void);
void alarm_expired(struct ktimer *timer);
void delete_posix_timers(struct process *p);
void wake_vfork_parent(struct task *t);
void clear_child_tid(struct task *t);		/* CLONE_CHILD_CLEARTID and robust futexes */
void exit_robust_list(struct task *t);
void sighand_put(struct sighand *s);
/* A pidfd for it that is not installed yet, and its number; -errno. Flags: O_NONBLOCK. */
int pidfd_prepare(struct process *p, u32 flags, struct file **file);
struct process *pidfd_process(int fd, bool *nonblocking);	/* a reference; ERR_PTR(-EBADF) */
int signal_by_user(struct process *p, int sig, const void *user_siginfo);	/* user_siginfo may be NULL */
/* Writes two struct timeval: user and system time of so many ticks. */
void fill_cpu_times(u64 user_ticks, u64 system_ticks, void *two_timevals);
