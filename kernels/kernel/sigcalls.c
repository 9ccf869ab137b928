/* System calls about signals. */
#include "proc_internal.h"
#include "sigframe.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

#define SIG_BLOCK	0
#define SIG_UNBLOCK	1
#define SIG_SETMASK	2
#define SA_EXPOSE_TAGBITS 0x00000800
#define SA_ALL		(SA_NOCLDSTOP | SA_NOCLDWAIT | SA_SIGINFO | SA_ONSTACK | SA_RESTART | SA_NODEFER | \
			 SA_RESETHAND | SA_RESTORER | SA_EXPOSE_TAGBITS)

SYSCALL_DEFINE4(rt_sigaction, 13, int, sig, const struct k_sigaction *, user, struct k_sigaction *, old, u64, size)
{
	struct task *t = current_task();
	struct k_sigaction action, before;
	u64 flags;

	if (size != sizeof(sigset_t))
		return -EINVAL;
	if (user && copy_from_user(&action, user, sizeof(action)))
		return -EFAULT;
	if (sig < 1 || sig > NSIG || (user && UNBLOCKABLE & sigmask(sig)))
		return -EINVAL;
	flags = spin_lock_irqsave(&task_lock);
	before = t->sighand->action[sig - 1];
	if (user) {
		action.flags &= SA_ALL;
		action.mask &= ~UNBLOCKABLE;
		t->sighand->action[sig - 1] = action;
		forget_if_ignored(t->process, sig, action.handler);
	}
	spin_unlock_irqrestore(&task_lock, flags);
	if (old && copy_to_user(old, &before, sizeof(before)))
		return -EFAULT;
	return 0;
}

SYSCALL_DEFINE4(rt_sigprocmask, 14, int, how, const sigset_t *, user, sigset_t *, old, u64, size)
{
	sigset_t before = current_task()->blocked, set;

	if (size != sizeof(sigset_t))
		return -EINVAL;
	if (user) {
		if (get_user(set, user))
			return -EFAULT;
		switch (how) {
		case SIG_BLOCK:
			set_blocked(before | set);
			break;
		case SIG_UNBLOCK:
			set_blocked(before & ~set);
			break;
		case SIG_SETMASK:
			set_blocked(set);
			break;
		default:
			return -EINVAL;
		}
	}
	return old && put_user(before, old) ? -EFAULT : 0;
}

SYSCALL_DEFINE2(rt_sigpending, 127, sigset_t *, user, u64, size)
{
	const struct task *t = current_task();
	sigset_t set = pending_signals(t) & t->blocked;

	if (size > sizeof(set))
		return -EINVAL;
	return copy_to_user(user, &set, size) ? -EFAULT : 0;
}

/* ---- waiting ---- */

static void wait_for_signal(void)
{
	struct process *p = current_process();

	/* any queue will do: a signal wakes the thread wherever it is */
	(void)wait_event_interruptible(&p->stop_wait, false);
}

SYSCALL_DEFINE0(pause, 34)
{
	wait_for_signal();
	return -ERESTARTNOHAND;
}

SYSCALL_DEFINE2(rt_sigsuspend, 130, const sigset_t *, user, u64, size)
{
	int err;

	if (size != sizeof(sigset_t))
		return -EINVAL;
	if (!user)
		return -EFAULT;
	err = set_user_sigmask(user, size);
	if (err)
		return err;
	wait_for_signal();
	return -ERESTARTNOHAND;
}

static bool has_waited_for(void *arg)
{
	const struct task *t = arg;

	return pending_signals(t) & t->waiting_for;
}

SYSCALL_DEFINE4(rt_sigtimedwait, 128, const sigset_t *, user, void *, uinfo, const struct timespec *, timeout, u64, size)
{
	struct task *t = current_task();
	u8 out[SIGINFO_SIZE];
	struct siginfo info;
	u64 ns = 0, deadline = 0;
	sigset_t set;
	int sig, err;

	if (size != sizeof(set))
		return -EINVAL;
	if (get_user(set, user))
		return -EFAULT;
	if (timeout) {
		err = get_timespec(&ns, timeout);
		if (err)
			return err;
		deadline = deadline_after(ns);
	}
	set &= ~UNBLOCKABLE;
	sig = dequeue_signal(set, &info);
	if (!sig && !(timeout && !ns)) {
		t->waiting_for = set;
		err = wait_until(&t->process->signal_wait, has_waited_for, t, deadline);
		sig = dequeue_signal(set, &info);
		t->waiting_for = 0;
		if (!sig)
			return err == -ETIMEDOUT ? -EAGAIN : -EINTR;
	}
	if (!sig)
		return -EAGAIN;
	siginfo_to_user_form(out, &info);
	if (uinfo && copy_to_user(uinfo, out, sizeof(out)))
		return -EFAULT;
	return sig;
}

/* ---- sending ---- */

/* May the running task signal it? task_lock held. */
static bool may_signal(const struct process *p, int sig)
{
	const struct cred *mine = &current_task()->cred, *theirs;

	if (p == current_process() || capable() || list_empty(&p->tasks))
		return true;
	theirs = &list_first_entry(&p->tasks, struct task, in_process)->cred;
	if (mine->euid == theirs->suid || mine->euid == theirs->uid || mine->uid == theirs->suid ||
	    mine->uid == theirs->uid)
		return true;
	return sig == SIGCONT && p->session == current_process()->session;
}

static struct siginfo from_me(int code)
{
	return (struct siginfo){ .code = code, .kill = { .pid = current_process()->pid,
							 .uid = current_task()->cred.uid } };
}

/* task_lock held. */
static int try_signal(struct process *p, struct task *t, int sig, const struct siginfo *info)
{
	if (sig < 0 || sig > NSIG)
		return -EINVAL;
	if (!may_signal(p, sig))
		return -EPERM;
	if (sig)
		signal_locked(p, t, sig, info);
	return 0;
}

/* 0 if one of them got it, otherwise the last error. pgrp -1: everybody but init and the sender. */
static int signal_many(pid_t pgrp, int sig, const struct siginfo *info)
{
	struct process *p;
	bool found = false, sent = false;
	int err = 0;

	list_for_each_entry(p, &all_processes, all) {
		int e;

		if (pgrp == -1 ? p == init_process || p == current_process() : p->pgrp != pgrp)
			continue;
		e = try_signal(p, NULL, sig, info);
		found = true;
		if (pgrp == -1 && e == -EPERM)
			continue;
		if (e)
			err = e;
		else
			sent = true;
	}
	if (!found)
		return -ESRCH;
	return sent ? 0 : err;
}

SYSCALL_DEFINE2(kill, 62, pid_t, pid, int, sig)
{
	const struct siginfo info = from_me(SI_USER);
	struct process *p;
	u64 flags;
	int err;

	if (pid == -0x7fffffff - 1)
		return -ESRCH;
	flags = spin_lock_irqsave(&task_lock);
	if (pid > 0) {
		struct task *t = lookup_task(pid);

		p = t ? t->process : lookup_process(pid);
		err = p ? try_signal(p, NULL, sig, &info) : -ESRCH;
	} else {
		err = signal_many(pid == -1 ? -1 : pid ? -pid : current_process()->pgrp, sig, &info);
	}
	spin_unlock_irqrestore(&task_lock, flags);
	return err;
}

static s64 signal_task(pid_t tgid, pid_t tid, int sig, const struct siginfo *info)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	struct task *t = lookup_task(tid);
	int err = -ESRCH;

	if (t && (!tgid || t->process->pid == tgid))
		err = try_signal(t->process, t, sig, info);
	spin_unlock_irqrestore(&task_lock, flags);
	return err;
}

SYSCALL_DEFINE2(tkill, 200, pid_t, tid, int, sig)
{
	const struct siginfo info = from_me(SI_TKILL);

	return tid > 0 ? signal_task(0, tid, sig, &info) : -EINVAL;
}

SYSCALL_DEFINE3(tgkill, 234, pid_t, tgid, pid_t, tid, int, sig)
{
	const struct siginfo info = from_me(SI_TKILL);

	return tgid > 0 && tid > 0 ? signal_task(tgid, tid, sig, &info) : -EINVAL;
}

/* A program makes the siginfo itself; it must not look like the kernel's or kill()'s. */
static int get_siginfo(struct siginfo *info, const void *user, pid_t target)
{
	u8 raw[SIGINFO_SIZE];

	if (copy_from_user(raw, user, sizeof(raw)))
		return -EFAULT;
	memcpy(info, raw, sizeof(*info));
	if ((info->code >= 0 || info->code == SI_TKILL) && target != current_process()->pid)
		return -EPERM;
	return 0;
}

/* For pidfd_send_signal(2), whose siginfo may be missing: as kill(2) then. */
int signal_by_user(struct process *p, int sig, const void *user)
{
	struct siginfo info = from_me(SI_USER);
	u64 flags;
	int err = user ? get_siginfo(&info, user, p->pid) : 0;

	if (err)
		return err;
	if (user && info.signo != sig)
		return -EINVAL;
	flags = spin_lock_irqsave(&task_lock);
	/* once it has been waited for it is in no tree any more */
	err = p->parent || p == init_process ? try_signal(p, NULL, sig, &info) : -ESRCH;
	spin_unlock_irqrestore(&task_lock, flags);
	return err;
}

SYSCALL_DEFINE3(rt_sigqueueinfo, 129, pid_t, pid, int, sig, const void *, user)
{
	struct siginfo info;
	struct process *p;
	u64 flags;
	int err = get_siginfo(&info, user, pid);

	if (err)
		return err;
	flags = spin_lock_irqsave(&task_lock);
	p = lookup_process(pid);
	err = p ? try_signal(p, NULL, sig, &info) : -ESRCH;
	spin_unlock_irqrestore(&task_lock, flags);
	return err;
}

SYSCALL_DEFINE4(rt_tgsigqueueinfo, 297, pid_t, tgid, pid_t, tid, int, sig, const void *, user)
{
	struct siginfo info;
	int err;

	if (tgid <= 0 || tid <= 0)
		return -EINVAL;
	err = get_siginfo(&info, user, tgid);
	return err ? err : signal_task(tgid, tid, sig, &info);
}

/* ---- the alternate stack ---- */

void save_altstack(const struct task *t, struct sigaltstack *out, __unused u64 sp)
{
	*out = (struct sigaltstack){ .sp = t->sas_sp, .flags = t->sas_flags, .size = t->sas_size };
}

int restore_altstack(struct task *t, const struct sigaltstack *from, u64 sp)
{
	u32 mode = from->flags & ~SS_AUTODISARM;

	if (on_altstack(t, sp))
		return -EPERM;
	if (mode != SS_DISABLE && mode != SS_ONSTACK && mode != 0)
		return -EINVAL;
	if (mode != SS_DISABLE && from->size < MINSIGSTKSZ)
		return -ENOMEM;
	t->sas_sp = mode == SS_DISABLE ? 0 : from->sp;
	t->sas_size = mode == SS_DISABLE ? 0 : from->size;
	t->sas_flags = from->flags;
	return 0;
}

SYSCALL_DEFINE2(sigaltstack, 131, const struct sigaltstack *, user, struct sigaltstack *, old)
{
	struct task *t = current_task();
	u64 sp = task_regs(t)->rsp;
	struct sigaltstack stack, before = {
		.sp = t->sas_sp, .size = t->sas_size,
		.flags = (!t->sas_size ? SS_DISABLE : on_altstack(t, sp) ? SS_ONSTACK : 0) |
			 (t->sas_flags & SS_AUTODISARM),
	};
	int err;

	if (user) {
		if (copy_from_user(&stack, user, sizeof(stack)))
			return -EFAULT;
		err = restore_altstack(t, &stack, sp);
		if (err)
			return err;
	}
	return old && copy_to_user(old, &before, sizeof(before)) ? -EFAULT : 0;
}
