/* Process groups and sessions: what a shell makes jobs of. */
#include "proc_internal.h"
#include "syscall.h"

/* ---- task_lock held ---- */

static bool group_in_session(pid_t pgrp, pid_t session)
{
	const struct process *p;

	list_for_each_entry(p, &all_processes, all)
		if (p->pgrp == pgrp && p->session == session)
			return true;
	return false;
}

static int change_group(struct process *caller, pid_t pid, pid_t pgrp)
{
	struct process *p = pid == caller->pid ? caller : lookup_process(pid);

	if (!p)
		return -ESRCH;
	if (p != caller) {
		if (p->parent != caller)
			return -ESRCH;
		if (p->session != caller->session)
			return -EPERM;
		if (p->execed)
			return -EACCES;
	}
	if (p->pid == p->session)
		return -EPERM;
	if (pgrp != pid && !group_in_session(pgrp, caller->session))
		return -EPERM;
	p->pgrp = pgrp;
	return 0;
}

/* ---- */

bool pgrp_exists(pid_t pgrp, pid_t session)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	bool found = group_in_session(pgrp, session);

	spin_unlock_irqrestore(&task_lock, flags);
	return found;
}

bool pgrp_is_orphaned(pid_t pgrp)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	bool orphaned = group_is_orphaned(pgrp, NULL);

	spin_unlock_irqrestore(&task_lock, flags);
	return orphaned;
}

SYSCALL_DEFINE2(setpgid, 109, pid_t, pid, pid_t, pgrp)
{
	struct process *caller = current_process();
	u64 flags;
	int err;

	if (!pid)
		pid = caller->pid;
	if (!pgrp)
		pgrp = pid;
	if (pgrp < 0)
		return -EINVAL;
	flags = spin_lock_irqsave(&task_lock);
	err = change_group(caller, pid, pgrp);
	spin_unlock_irqrestore(&task_lock, flags);
	return err;
}

/* Group or session of a process, 0: the caller. */
static s64 get_group(pid_t pid, bool session)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	const struct task *t = pid ? lookup_task(pid) : NULL;
	const struct process *p = !pid ? current_process() : t ? t->process : lookup_process(pid);
	s64 result = !p ? -ESRCH : session ? p->session : p->pgrp;

	spin_unlock_irqrestore(&task_lock, flags);
	return result;
}

SYSCALL_DEFINE1(getpgid, 121, pid_t, pid)
{
	return get_group(pid, false);
}

SYSCALL_DEFINE0(getpgrp, 111)
{
	return current_process()->pgrp;
}

SYSCALL_DEFINE1(getsid, 124, pid_t, pid)
{
	return get_group(pid, true);
}

SYSCALL_DEFINE0(setsid, 112)
{
	struct process *caller = current_process(), *p;
	u64 flags = spin_lock_irqsave(&task_lock);
	s64 result = caller->pid;

	/* a session that had this number, or a group, would become this one */
	list_for_each_entry(p, &all_processes, all)
		if (p->pgrp == caller->pid)
			result = -EPERM;
	if (caller->session == caller->pid)
		result = -EPERM;
	if (result > 0) {
		caller->pgrp = caller->session = caller->pid;
		caller->tty = NULL;
	}
	spin_unlock_irqrestore(&task_lock, flags);
	return result;
}
