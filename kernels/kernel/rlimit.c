/* Limits of a process. Those that somebody asks for count (open files, stack, processes, file size); the others are
 * remembered and returned.
 */
#include "proc_internal.h"
#include "syscall.h"
#include "uaccess.h"

#define NR_OPEN		(1UL << 20)		/* no RLIMIT_NOFILE is above it */

/* task_lock protects the limits: reading one is a single access, changing them is a check and two. */
static int change(struct process *p, u32 which, const struct rlimit *new, struct rlimit *old)
{
	struct rlimit *limit = &p->rlim[which];
	u64 flags;
	int err = 0;

	if (new && new->cur > new->max)
		return -EINVAL;
	if (new && which == RLIMIT_NOFILE && new->max > NR_OPEN)
		return -EPERM;
	flags = spin_lock_irqsave(&task_lock);
	*old = *limit;
	if (new && new->max > limit->max && !capable())
		err = -EPERM;
	else if (new)
		*limit = *new;
	spin_unlock_irqrestore(&task_lock, flags);
	return err;
}

/* The process of a pid, 0: the caller's; a reference. -ESRCH, -EPERM: another user's. */
static struct process *target(pid_t pid)
{
	const struct cred *mine = &current_task()->cred;
	struct process *p;
	struct task *t;

	if (!pid || pid == current_process()->pid) {
		process_get(current_process());
		return current_process();
	}
	t = find_task(pid);
	if (!t)
		return ERR_PTR(-ESRCH);
	p = t->process;
	if (!capable() && (t->cred.uid != mine->uid || t->cred.euid != mine->uid || t->cred.suid != mine->uid))
		p = ERR_PTR(-EPERM);
	else
		process_get(p);
	task_put(t);
	return p;
}

SYSCALL_DEFINE4(prlimit64, 302, pid_t, pid, u32, which, const struct rlimit *, unew, struct rlimit *, uold)
{
	struct rlimit new, old;
	struct process *p;
	int err;

	if (which >= RLIM_NLIMITS)
		return -EINVAL;
	if (unew && copy_from_user(&new, unew, sizeof(new)))
		return -EFAULT;
	p = target(pid);
	if (IS_ERR(p))
		return PTR_ERR(p);
	err = change(p, which, unew ? &new : NULL, &old);
	process_put(p);
	if (err)
		return err;
	return uold && copy_to_user(uold, &old, sizeof(old)) ? -EFAULT : 0;
}

SYSCALL_DEFINE2(getrlimit, 97, u32, which, struct rlimit *, user)
{
	struct rlimit old;

	if (which >= RLIM_NLIMITS)
		return -EINVAL;
	change(current_process(), which, NULL, &old);
	return copy_to_user(user, &old, sizeof(old)) ? -EFAULT : 0;
}

SYSCALL_DEFINE2(setrlimit, 160, u32, which, const struct rlimit *, user)
{
	struct rlimit new, old;

	if (copy_from_user(&new, user, sizeof(new)))
		return -EFAULT;
	if (which >= RLIM_NLIMITS)
		return -EINVAL;
	return change(current_process(), which, &new, &old);
}
