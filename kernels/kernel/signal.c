/* Signals: sending and taking.
 *
 * Sending marks the signal in a set and wakes who may take it; everything else is done by the receiving task itself
 * (deliver.c). So a signal costs its sender little and may
 * be sent from an interrupt. What is ignored is dropped when it is sent, unless it is blocked (the handler may change).
 *
 * Two things happen at once, because the receiver may be unable to act: SIGKILL marks all threads as killed, and SIGCONT
 * lets a stopped process go on. Process 1 gets no signal for which it has no handler, except for its own faults.
 */
#include "arch.h"
#include "page.h"
#include "panic.h"
#include "proc_internal.h"
#include "sigframe.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "traps.h"
#include "uaccess.h"

#define QUEUE_MAX	4096		/* of real-time signals, whatever the limit says */

static bool init_faulted;		/* and nobody handles it: it dies of that */

/* ---- sending; task_lock held ---- */

static u64 handler_of(const struct task *t, int sig)
{
	return t->sighand->action[sig - 1].handler;
}

static bool is_ignored(const struct process *p, const struct task *t, int sig)
{
	u64 handler = handler_of(t, sig);

	if ((t->blocked | t->waiting_for) & sigmask(sig))
		return false;
	if (p == init_process && handler == SIG_DFL && !init_faulted)
		return true;
	return handler == SIG_IGN || (handler == SIG_DFL && IGNORED_BY_DEFAULT & sigmask(sig));
}

/* Real-time signals: each one arrives. False if there are too many, or no memory. */
static bool enqueue(struct sigpending *pending, const struct siginfo *info, u64 limit)
{
	struct queued_signal *q, **end = &pending->queue;

	if (in_interrupt() || pending->nr_queued >= min(limit, (u64)QUEUE_MAX))
		return false;
	q = kmalloc(sizeof(*q), GFP_KERNEL);
	if (!q)
		return false;
	*q = (struct queued_signal){ .info = *info };
	while (*end)
		end = &(*end)->next;
	*end = q;
	pending->nr_queued++;
	return true;
}

/* Takes the oldest that is queued with this number. */
static bool unqueue(struct sigpending *pending, int sig, struct siginfo *info)
{
	for (struct queued_signal **at = &pending->queue, *q; (q = *at) != NULL; at = &q->next) {
		if (q->info.signo != sig)
			continue;
		*info = q->info;
		*at = q->next;
		pending->nr_queued--;
		kfree(q);
		return true;
	}
	return false;
}

void forget_pending(struct sigpending *pending, sigset_t set)
{
	struct queued_signal **at = &pending->queue, *q;

	pending->set &= ~set;
	while ((q = *at) != NULL) {
		if (!(set & sigmask(q->info.signo))) {
			at = &q->next;
			continue;
		}
		*at = q->next;
		pending->nr_queued--;
		kfree(q);
	}
}

static void forget(struct process *p, sigset_t set)
{
	struct task *t;

	forget_pending(&p->shared_pending, set);
	list_for_each_entry(t, &p->tasks, in_process)
		forget_pending(&t->pending, set);
}

void forget_if_ignored(struct process *p, int sig, u64 handler)
{
	if (handler == SIG_IGN || (handler == SIG_DFL && IGNORED_BY_DEFAULT & sigmask(sig)))
		forget(p, sigmask(sig));
}

static void wake_task(struct task *t)
{
	if (t->thread)
		wake_up_thread(t->thread);
}

static void tell_parent(struct process *p, int code, int status)
{
	struct siginfo info = { .signo = SIGCHLD, .code = code,
				.kill = { .pid = p->pid, .status = status } };
	const struct process *parent = p->parent;
	const struct task *t;

	if (!parent || list_empty(&parent->tasks))
		return;
	t = list_first_entry(&parent->tasks, struct task, in_process);
	if (!(t->sighand->action[SIGCHLD - 1].flags & SA_NOCLDSTOP))
		signal_locked(p->parent, NULL, SIGCHLD, &info);
	wake_up(&p->parent->wait);
}

static void go_on(struct process *p)
{
	forget(p, STOP_SIGNALS);
	if (!p->stopped)
		return;
	p->stopped = false;
	p->continued = true;
	p->stop_reported = true;
	wake_up(&p->stop_wait);
	tell_parent(p, CLD_CONTINUED, SIGCONT);
}

void kill_tasks(struct process *p, struct task *except)
{
	struct task *t;

	list_for_each_entry(t, &p->tasks, in_process) {
		if (t == except)
			continue;
		t->killed = true;
		wake_task(t);
	}
}

/* Wakes those who would take what is pending for the process. */
void wake_for_signals(struct process *p, struct task *except)
{
	struct task *t;

	list_for_each_entry(t, &p->tasks, in_process)
		if (t != except && p->shared_pending.set & (~t->blocked | t->waiting_for))
			wake_task(t);
}

static void wake_receiver(struct process *p, int sig)
{
	struct task *t;

	list_for_each_entry(t, &p->tasks, in_process) {
		if (!((~t->blocked | t->waiting_for) & sigmask(sig)))
			continue;
		wake_task(t);
		return;
	}
}

void signal_locked(struct process *p, struct task *t, int sig, const struct siginfo *info)
{
	struct sigpending *pending = t ? &t->pending : &p->shared_pending;
	struct siginfo received = *info;

	if (list_empty(&p->tasks))
		return;				/* a zombie */
	if (STOP_SIGNALS & sigmask(sig))
		forget(p, sigmask(SIGCONT));
	else if (sig == SIGCONT)
		go_on(p);
	if (is_ignored(p, t ? t : list_first_entry(&p->tasks, struct task, in_process), sig))
		return;
	if (sig == SIGKILL) {
		if (!p->exiting) {
			p->exiting = true;
			p->exit_status = SIGKILL;
		}
		kill_tasks(p, NULL);
		return;
	}
	received.signo = sig;
	if (pending->set & sigmask(sig)) {
		if (sig < SIGRTMIN || !enqueue(pending, &received, p->rlim[RLIMIT_SIGPENDING].cur))
			return;
	} else {
		pending->set |= sigmask(sig);
		pending->info[sig - 1] = received;
	}
	if (!t)
		wake_receiver(p, sig);
	else if ((~t->blocked | t->waiting_for) & sigmask(sig))
		wake_task(t);
	wake_up(&p->signal_wait);
	wake_up(&signalfd_wait);
}

void signal_group_locked(pid_t pgrp, int sig)
{
	const struct siginfo info = { .code = SI_KERNEL };
	struct process *p;

	list_for_each_entry(p, &all_processes, all)
		if (p->pgrp == pgrp)
			signal_locked(p, NULL, sig, &info);
}

/* ---- sending ---- */

static const struct siginfo from_kernel = { .code = SI_KERNEL };

int send_signal(struct task *t, int sig, const struct siginfo *info)
{
	u64 flags;

	if (sig < 1 || sig > NSIG)
		return -EINVAL;
	flags = spin_lock_irqsave(&task_lock);
	if (lookup_task(t->tid) == t)
		signal_locked(t->process, t, sig, info ? info : &from_kernel);
	spin_unlock_irqrestore(&task_lock, flags);
	return 0;
}

int send_signal_process(struct process *p, int sig, const struct siginfo *info)
{
	u64 flags;

	if (sig < 1 || sig > NSIG)
		return -EINVAL;
	flags = spin_lock_irqsave(&task_lock);
	signal_locked(p, NULL, sig, info ? info : &from_kernel);
	spin_unlock_irqrestore(&task_lock, flags);
	return 0;
}

int send_signal_group(s32 pgrp, int sig)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	const struct process *p;
	int err = -ESRCH;

	list_for_each_entry(p, &all_processes, all)
		if (p->pgrp == pgrp)
			err = 0;
	if (!err && sig)
		signal_group_locked(pgrp, sig);
	spin_unlock_irqrestore(&task_lock, flags);
	return err;
}

/* A fault: blocked or ignored it would come again for ever, so it is fatal then. */
void force_signal(int sig, int code, u64 addr)
{
	struct task *t = current_task();
	struct k_sigaction *action = &t->sighand->action[sig - 1];
	const struct siginfo info = { .signo = sig, .code = code, .addr = addr };
	u64 flags = spin_lock_irqsave(&task_lock);
	bool fatal;

	if (action->handler == SIG_IGN || t->blocked & sigmask(sig))
		action->handler = SIG_DFL;
	t->blocked &= ~sigmask(sig);
	fatal = action->handler == SIG_DFL;
	if (fatal && t->process == init_process)
		init_faulted = true;
	t->pending.set |= sigmask(sig);
	t->pending.info[sig - 1] = info;
	spin_unlock_irqrestore(&task_lock, flags);
	if (fatal)
		log_user_fault(sig);
}

bool init_may_die(void)
{
	return init_faulted;
}

/* The whole process, and its parent learns of it. */
void stop_process(int sig)
{
	struct process *p = current_process();
	u64 flags = spin_lock_irqsave(&task_lock);
	struct task *t;

	/* SIGCONT or a stop by another thread may have come in between */
	if (!p->stopped && !p->exiting) {
		p->stopped = true;
		p->continued = p->stop_reported = false;
		p->stop_signal = sig;
		list_for_each_entry(t, &p->tasks, in_process)
			if (t != current_task())
				wake_task(t);
		tell_parent(p, CLD_STOPPED, sig);
	}
	spin_unlock_irqrestore(&task_lock, flags);
}

/* ---- taking ---- */

sigset_t pending_signals(const struct task *t)
{
	return READ_ONCE(t->pending.set) | READ_ONCE(t->process->shared_pending.set);
}

int dequeue_signal(sigset_t mask, struct siginfo *info)
{
	struct task *t = current_task();
	u64 flags = spin_lock_irqsave(&task_lock);
	sigset_t set = pending_signals(t) & mask;
	struct sigpending *from;
	int sig = 0;

	if (set & SYNCHRONOUS)
		set &= SYNCHRONOUS;
	if (set) {
		sig = __builtin_ctzll(set) + 1;
		from = t->pending.set & sigmask(sig) ? &t->pending : &t->process->shared_pending;
		*info = from->info[sig - 1];
		if (!unqueue(from, sig, &from->info[sig - 1]))
			from->set &= ~sigmask(sig);
	}
	spin_unlock_irqrestore(&task_lock, flags);
	return sig;
}
