/* The end of tasks and processes.
 *
 * A task gives back what it shares (memory, files) while it still is a program, so that closing files may sleep. The
 * last one makes the process a zombie: its children go to the nearest ancestor that adopts (subreaper) or to init, stopped
 * groups that nobody looks after any more are woken, and the parent is told. A parent that said it does not care gets
 * no zombie.
 */
#include "arch.h"
#include "panic.h"
#include "proc_internal.h"
#include "syscall.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

void sighand_put(struct sighand *s)
{
	if (s && !__atomic_sub_fetch(&s->refs, 1, __ATOMIC_ACQ_REL))
		kfree(s);
}

void wake_vfork_parent(struct task *t)
{
	if (!t->vfork)
		return;
	t->vfork = false;
	wake_up(&t->vfork_wait);
}

/* ---- orphaned groups; task_lock held ---- */

/* Does any member but `except` have a parent in another group of the same session? Then a shell can continue them. */
bool group_is_orphaned(pid_t pgrp, const struct process *except)
{
	const struct process *p;

	list_for_each_entry(p, &all_processes, all) {
		if (p->pgrp != pgrp || p == except || p->zombie || !p->parent || p->parent == init_process)
			continue;
		if (p->parent->pgrp != pgrp && p->parent->session == p->session)
			return false;
	}
	return true;
}

bool group_has_stopped(pid_t pgrp)
{
	const struct process *p;

	list_for_each_entry(p, &all_processes, all)
		if (p->pgrp == pgrp && p->stopped)
			return true;
	return false;
}

/* The group of `child` loses the parent that looked after it: is it orphaned by that, with stopped members? */
static void check_orphaned(struct process *child, struct process *parent, const struct process *except)
{
	if (parent->pgrp == child->pgrp || parent->session != child->session)
		return;				/* it did not look after it */
	if (!group_is_orphaned(child->pgrp, except) || !group_has_stopped(child->pgrp))
		return;
	signal_group_locked(child->pgrp, SIGHUP);
	signal_group_locked(child->pgrp, SIGCONT);
}

/* ---- the process ends; task_lock held ---- */

bool notify_parent(struct process *p)
{
	struct process *parent = p->parent;
	const struct k_sigaction *action;
	int status = p->exit_status, sig = status & 0x7f;
	struct siginfo info = {
		.signo = p->exit_signal, .code = sig ? (status & 0x80 ? CLD_DUMPED : CLD_KILLED) : CLD_EXITED,
		.kill = { .pid = p->pid, .status = sig ? sig : status >> 8 & 0xff },
	};
	bool ignored = false, send = p->exit_signal > 0 && p->exit_signal <= NSIG;	/* clone(2) takes any number */

	if (!parent || list_empty(&parent->tasks))
		return false;
	action = &list_first_entry(&parent->tasks, struct task, in_process)->sighand->action[SIGCHLD - 1];
	if (p->exit_signal == SIGCHLD && (action->handler == SIG_IGN || action->flags & SA_NOCLDWAIT)) {
		ignored = true;
		send = action->handler != SIG_IGN;
	}
	if (send)
		signal_locked(parent, NULL, p->exit_signal, &info);
	wake_up(&parent->wait);
	return ignored;
}

void account_to_parent(struct process *p)
{
	if (!p->parent)
		return;
	p->parent->child_user_ticks += p->user_ticks + p->child_user_ticks;
	p->parent->child_system_ticks += p->system_ticks + p->child_system_ticks;
}

static void release_locked(struct process *p, struct list_head *released)
{
	account_to_parent(p);
	unlink_process(p);
	list_add_tail(&p->all, released);
}

static struct process *find_reaper(const struct process *p)
{
	for (struct process *a = p->parent; a; a = a->parent)
		if (a->subreaper && a->nr_live)
			return a;
	return init_process;
}

static void give_children_away(struct process *p, struct list_head *released)
{
	struct process *reaper = find_reaper(p), *child, *next;

	list_for_each_entry_safe(child, next, &p->children, sibling) {
		child->parent = reaper;
		child->exit_signal = SIGCHLD;
		list_move_tail(&child->sibling, &reaper->children);
		check_orphaned(child, p, NULL);
		if (child->zombie && notify_parent(child))
			release_locked(child, released);
	}
}

static void process_exit(struct process *p, struct list_head *released)
{
	if (p == init_process) {
		spin_unlock(&task_lock);
		panic("Attempted to kill init! exitcode=0x%08x", p->exit_status);
	}
	give_children_away(p, released);
	p->stopped = false;
	if (p->parent)
		check_orphaned(p, p->parent, p);
	p->zombie = true;
	wake_up(&p->exit_wait);
	if (notify_parent(p))
		release_locked(p, released);
}

static void drop_released(struct list_head *released)
{
	struct process *p, *next;

	list_for_each_entry_safe(p, next, released, all) {
		list_del(&p->all);
		process_put(p);
	}
}

/* ---- tasks ---- */

/* The signal that children asked for when the thread that made them ends, prctl(PR_SET_PDEATHSIG). */
static void parent_death_signals(struct process *parent)
{
	const struct siginfo info = { .code = SI_USER, .kill = { .pid = parent->pid } };
	struct process *child;
	struct task *t;

	list_for_each_entry(child, &parent->children, sibling)
		list_for_each_entry(t, &child->tasks, in_process)
			if (t->parent_death_signal)
				signal_locked(child, NULL, t->parent_death_signal, &info);
}

static bool leave_process(struct process *p, int status)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	bool last = !--p->nr_live;

	if (last && !p->exiting) {
		p->exiting = true;
		p->exit_status = status;
	}
	spin_unlock_irqrestore(&task_lock, flags);
	return last;
}

static void give_back(struct task *t)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	struct mm *mm = t->mm;
	struct files *files = t->files;
	struct fs *fs = t->fs;

	t->mm = NULL;
	t->files = NULL;
	t->fs = NULL;
	spin_unlock_irqrestore(&task_lock, flags);
	mm_switch(NULL);
	wake_vfork_parent(t);
	if (mm)
		mm_put(mm);
	if (files)
		files_put(files);
	if (fs)
		fs_put(fs);
}

_Noreturn void do_exit(int status)
{
	struct task *t = current_task();
	struct process *p = t->process;
	struct sighand *sighand = t->sighand;
	LIST_HEAD(released);
	u64 flags;

	if (in_interrupt())
		panic("a program ends in an interrupt");
	if (leave_process(p, status)) {
		ktimer_cancel(&p->alarm);
		delete_posix_timers(p);
		if (p->pid == p->session && p->tty)
			tty_leader_exit(p);
	}
	exit_robust_list(t);
	clear_child_tid(t);
	give_back(t);

	flags = spin_lock_irqsave(&task_lock);
	parent_death_signals(p);
	t->sighand = NULL;
	process_get(p);
	unlink_task(t);
	if (!p->nr_tasks)
		process_exit(p, &released);
	else
		wake_for_signals(p, NULL);
	if (p->exec_task)
		wake_up(&p->stop_wait);
	spin_unlock_irqrestore(&task_lock, flags);

	drop_released(&released);
	process_put(p);
	sighand_put(sighand);
	user_state_detach();
	thread_exit();
}

_Noreturn void do_group_exit(int status)
{
	struct task *t = current_task();
	struct process *p = t->process;
	u64 flags = spin_lock_irqsave(&task_lock);

	if (!p->exiting) {
		p->exiting = true;
		p->exit_status = status;
		kill_tasks(p, t);
	}
	spin_unlock_irqrestore(&task_lock, flags);
	do_exit(status);
}

SYSCALL_DEFINE1(exit, 60, int, code)
{
	do_exit((code & 0xff) << 8);
}

SYSCALL_DEFINE1(exit_group, 231, int, code)
{
	do_group_exit((code & 0xff) << 8);
}
