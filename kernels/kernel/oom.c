/* Memory is short: the process with the most pages ends, so that all others can go on, process 1 in particular.
 */
#include "panic.h"
#include "printk.h"
#include "proc_internal.h"
#include "vma.h"

#define PATIENCE	200		/* turns that a caller who may hold locks waits */

/* The largest that is not ending; *ending: another one is, which is as good. task_lock held. */
static struct process *choose(bool *ending)
{
	struct process *p, *largest = NULL;
	u64 most = 0;

	*ending = false;
	list_for_each_entry(p, &all_processes, all) {
		const struct task *t = list_empty(&p->tasks) ? NULL : list_first_entry(&p->tasks, struct task, in_process);

		if (!t)
			continue;
		if (p->exiting) {
			*ending = true;
			continue;
		}
		if (p == init_process || !t->mm || t->mm->nr_pages < most)
			continue;
		most = t->mm->nr_pages;
		largest = p;
	}
	return largest;
}

static void kill_largest(void)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	bool ending;
	struct process *p = choose(&ending);

	if (p && !ending) {
		pr_err("Out of memory: Killed process %d (%s)\n", p->pid, p->comm);
		signal_locked(p, NULL, SIGKILL, &(struct siginfo){ .code = SI_KERNEL });
	}
	spin_unlock_irqrestore(&task_lock, flags);
	if (!p && !ending)
		panic("System is deadlocked on memory");
}

bool out_of_memory(bool may_hold_locks, u32 *turns)
{
	if (fatal_signal_pending() || (may_hold_locks && ++*turns > PATIENCE))
		return false;
	kill_largest();
	yield();
	return !fatal_signal_pending();
}
