/* Signals arrive: what the running task does about those that are pending, on its way back to user mode.
 *
 * It runs a handler, ends the process, stops it, or does nothing, and takes back or restarts a system call that they
 * interrupted.
 */
#include "panic.h"
#include "proc_internal.h"
#include "sigframe.h"
#include "syscall.h"
#include "task.h"
#include "traps.h"
#include "uaccess.h"

bool signal_pending(void)
{
	const struct task *t = current_task();

	return t && (t->killed || t->process->stopped || pending_signals(t) & ~t->blocked);
}

bool fatal_signal_pending(void)
{
	const struct task *t = current_task();

	return t && t->killed;
}

/* What others may take when this task no longer does. */
static void hand_over(struct task *t)
{
	u64 flags = spin_lock_irqsave(&task_lock);

	wake_for_signals(t->process, t);
	spin_unlock_irqrestore(&task_lock, flags);
}

void set_blocked(sigset_t set)
{
	struct task *t = current_task();
	sigset_t before = t->blocked;

	t->blocked = set & ~UNBLOCKABLE;
	if (t->blocked & ~before && t->process->shared_pending.set && t->process->nr_tasks > 1)
		hand_over(t);
}

int set_user_sigmask(const sigset_t *user, u64 size)
{
	struct task *t = current_task();
	sigset_t set;

	if (!user)
		return 0;
	if (size != sizeof(set))
		return -EINVAL;
	if (get_user(set, user))
		return -EFAULT;
	t->saved_blocked = t->blocked;
	t->restore_blocked = true;
	set_blocked(set);
	return 0;
}

void restore_sigmask_unless(bool interrupted)
{
	struct task *t = current_task();

	if (interrupted || !t->restore_blocked)
		return;
	t->restore_blocked = false;
	set_blocked(t->saved_blocked);
}

/* ---- the next signal ---- */

static bool group_orphaned(pid_t pgrp)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	bool orphaned = group_is_orphaned(pgrp, NULL);

	spin_unlock_irqrestore(&task_lock, flags);
	return orphaned;
}

static void default_action(int sig)
{
	struct process *p = current_process();

	if (IGNORED_BY_DEFAULT & sigmask(sig))
		return;
	if (p == init_process && !init_may_die())
		return;
	if (STOP_SIGNALS & sigmask(sig)) {
		if (sig == SIGSTOP || !group_orphaned(p->pgrp))
			stop_process(sig);
		return;
	}
	do_group_exit(sig);
}

/* The next signal that has a handler, with what to do; 0 if there is none. Does whatever else is pending. */
static int next_handled(struct k_sigaction *action, struct siginfo *info)
{
	struct task *t = current_task();

	while (1) {
		struct k_sigaction *a;
		u64 flags;
		int sig;

		if (t->killed)
			do_exit(0);
		if (t->process->stopped) {
			wait_event(&t->process->stop_wait, !t->process->stopped || t->killed);
			continue;
		}
		sig = dequeue_signal(~t->blocked, info);
		if (!sig)
			return 0;
		flags = spin_lock_irqsave(&task_lock);
		a = &t->sighand->action[sig - 1];
		*action = *a;
		if (a->handler > SIG_IGN && a->flags & SA_RESETHAND)
			a->handler = SIG_DFL;
		spin_unlock_irqrestore(&task_lock, flags);
		if (action->handler == SIG_DFL)
			default_action(sig);
		else if (action->handler != SIG_IGN)
			return sig;
	}
}

static bool wants_restart(const struct task *t, const struct pt_regs *regs)
{
	s64 result = (s64)regs->rax;

	return t->orig_rax != ~0UL && result >= -ERESTART_RESTARTBLOCK && result <= -ERESTARTSYS;
}

/* Back to the SYSCALL instruction, which is two bytes long. */
static void restart(struct task *t, struct pt_regs *regs, bool handler, u64 flags)
{
	s64 result = (s64)regs->rax;

	if (!wants_restart(t, regs))
		return;
	if (handler && (result == -ERESTART_RESTARTBLOCK || result == -ERESTARTNOHAND ||
			(result == -ERESTARTSYS && !(flags & SA_RESTART)))) {
		regs->rax = (u64)-EINTR;
	} else {
		regs->rax = result == -ERESTART_RESTARTBLOCK ? 219 /* restart_syscall */ : t->orig_rax;
		regs->rip -= 2;
	}
	t->orig_rax = ~0UL;
}

static void run_handler(struct task *t, struct pt_regs *regs, int sig, const struct k_sigaction *action,
			const struct siginfo *info)
{
	sigset_t back = t->restore_blocked ? t->saved_blocked : t->blocked;

	restart(t, regs, true, action->flags);
	if (setup_sigframe(regs, sig, action, info, back)) {
		if (sig == SIGSEGV)
			t->sighand->action[SIGSEGV - 1].handler = SIG_DFL;
		force_signal(SIGSEGV, SI_KERNEL, 0);
		return;
	}
	t->restore_blocked = false;
	set_blocked(t->blocked | action->mask | (action->flags & SA_NODEFER ? 0 : sigmask(sig)));
}

static void deliver(struct task *t, struct pt_regs *regs)
{
	struct k_sigaction action;
	struct siginfo info;
	int sig = next_handled(&action, &info);

	if (sig) {
		run_handler(t, regs, sig, &action, &info);
		return;
	}
	restart(t, regs, false, 0);
	restore_sigmask_unless(false);
}

void exit_to_user(struct pt_regs *regs)
{
	struct task *t = current_task();

	while (signal_pending() || wants_restart(t, regs) || t->restore_blocked || regs->rip >= USER_END) {
		local_irq_enable();
		/* IRET would fault on it, in the kernel; a fault that it caused already is pending */
		if (regs->rip >= USER_END && !signal_pending())
			force_signal(SIGSEGV, SEGV_MAPERR, regs->rip);
		deliver(t, regs);
		local_irq_disable();
	}
	t->orig_rax = ~0UL;
}
