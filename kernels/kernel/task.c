/* Processes and tasks: making and freeing them, and finding them by number.
 *
 * One lock, task_lock, protects the tables, the tree of processes, their states and their pending signals. It is a
 * spinlock with interrupts off, because signals also come from interrupt handlers (terminal, timers), and it is
 * held briefly: nothing under it sleeps or touches a program's memory.
 *
 * A process has references from its tasks, from its place in the tree (until its parent has been told), from pidfds and
 * from whoever looks at it. A task's memory goes when its thread has ended; since threads end on their own stacks,
 * others free them: the dead wait in a list until the next fork, exec or wait comes by (reap_dead_tasks()).
 */
#include "task.h"
#include "arch.h"
#include "page.h"
#include "panic.h"
#include "proc_internal.h"
#include "string.h"
#include "vfs.h"
#include "vma.h"

#define HASH_SIZE	256
#define PID_MAX		32768
#define PID_WRAP	300		/* after the first round low numbers stay with those that started early */

spinlock_t task_lock = SPINLOCK_INIT;
LIST_HEAD(all_processes);
struct process *init_process;

static struct list_head process_hash[HASH_SIZE], task_hash[HASH_SIZE];
static LIST_HEAD(dead_tasks);			/* by in_process; their threads end or have ended */
static pid_t last_pid;
static u32 nr_tasks;

static struct list_head *bucket(struct list_head table[HASH_SIZE], pid_t nr)
{
	struct list_head *head = &table[(u32)nr % HASH_SIZE];

	if (!head->next)
		INIT_LIST_HEAD(head);
	return head;
}

struct task *current_task(void)
{
	return current->task;
}

struct pt_regs *task_regs(struct task *t)
{
	return (struct pt_regs *)((u8 *)t->thread->stack + THREAD_STACK_SIZE) - 1;
}

bool capable(void)
{
	return current_task()->cred.euid == 0;
}

/* ---- with task_lock held ---- */

struct process *lookup_process(pid_t pid)
{
	struct process *p;

	list_for_each_entry(p, bucket(process_hash, pid), hash)
		if (p->pid == pid)
			return p;
	return NULL;
}

struct task *lookup_task(pid_t tid)
{
	struct task *t;

	list_for_each_entry(t, bucket(task_hash, tid), hash)
		if (t->tid == tid)
			return t;
	return NULL;
}

static bool pid_in_use(pid_t pid)
{
	const struct process *p;

	if (lookup_task(pid) || lookup_process(pid))
		return true;
	list_for_each_entry(p, &all_processes, all)
		if (p->pgrp == pid || p->session == pid)
			return true;
	return false;
}

/* The next free number, 0 if there is none. */
static pid_t alloc_pid(void)
{
	pid_t pid = last_pid;

	for (unsigned int tries = 0; tries < PID_MAX; tries++) {
		pid = pid + 1 < PID_MAX ? pid + 1 : PID_WRAP;
		if (!pid_in_use(pid)) {
			last_pid = pid;
			return pid;
		}
	}
	return 0;
}

int link_task(struct task *t, struct process *p)
{
	t->tid = alloc_pid();
	if (!t->tid)
		return -EAGAIN;
	t->process = p;
	process_get(p);
	p->nr_tasks++;
	p->nr_live++;
	nr_tasks++;
	list_add_tail(&t->in_process, &p->tasks);
	list_add_tail(&t->hash, bucket(task_hash, t->tid));
	return 0;
}

void link_process(struct process *p, struct process *parent)
{
	p->parent = parent;
	process_get(p);			/* until the parent has been told */
	list_add_tail(&p->all, &all_processes);
	list_add_tail(&p->hash, bucket(process_hash, p->pid));
	if (parent)
		list_add_tail(&p->sibling, &parent->children);
}

/* One that was linked a moment ago and never ran. */
void unlink_unstarted(struct task *t)
{
	list_del_init(&t->hash);
	list_del_init(&t->in_process);
	t->process->nr_tasks--;
	t->process->nr_live--;
	nr_tasks--;
}

/* The task is no longer one of its process; what is left of it is freed when its thread has ended. */
void unlink_task(struct task *t)
{
	list_del(&t->hash);
	list_move_tail(&t->in_process, &dead_tasks);
	t->process->nr_tasks--;
	nr_tasks--;
}

void unlink_process(struct process *p)
{
	list_del(&p->all);
	list_del(&p->hash);
	if (p->parent)
		list_del(&p->sibling);
	p->parent = NULL;
}

/* For exec of a thread that was not the first: from now on it is. */
void rename_task(struct task *t, pid_t tid)
{
	list_del(&t->hash);
	t->tid = tid;
	list_add_tail(&t->hash, bucket(task_hash, tid));
}

u32 count_tasks(void)
{
	return READ_ONCE(nr_tasks);
}

u32 count_processes_of(u32 uid)
{
	const struct process *p;
	u32 n = 0;

	list_for_each_entry(p, &all_processes, all)
		if (!list_empty(&p->tasks) && list_first_entry(&p->tasks, struct task, in_process)->cred.uid == uid)
			n += p->nr_tasks;
	return n;
}

/* ---- without it ---- */

struct process *find_process(pid_t pid)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	struct process *p = lookup_process(pid);

	if (p)
		process_get(p);
	spin_unlock_irqrestore(&task_lock, flags);
	return p;
}

struct task *find_task(pid_t tid)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	struct task *t = lookup_task(tid);

	if (t)
		__atomic_fetch_add(&t->refs, 1, __ATOMIC_RELAXED);
	spin_unlock_irqrestore(&task_lock, flags);
	return t;
}

void process_get(struct process *p)
{
	__atomic_fetch_add(&p->refs, 1, __ATOMIC_RELAXED);
}

void process_put(struct process *p)
{
	if (!p || __atomic_sub_fetch(&p->refs, 1, __ATOMIC_ACQ_REL))
		return;
	if (p->exe)
		dput(p->exe);
	forget_pending(&p->shared_pending, ~0UL);
	kfree(p);
}

void task_put(struct task *t)
{
	if (!t || __atomic_sub_fetch(&t->refs, 1, __ATOMIC_ACQ_REL))
		return;
	process_put(t->process);
	forget_pending(&t->pending, ~0UL);
	kfree(t);
}

/* One without mm, files and signal handlers, in no table. NULL without memory. */
struct task *task_alloc(void)
{
	struct task *t = kzalloc(sizeof(*t), GFP_KERNEL);

	if (!t)
		return NULL;
	t->refs = 1;
	t->orig_rax = ~0UL;
	t->trap_vector = ~0UL;
	t->sas_flags = 2;		/* SS_DISABLE */
	INIT_LIST_HEAD(&t->in_process);
	INIT_LIST_HEAD(&t->hash);
	init_wait_queue(&t->vfork_wait);
	fpu_reset(t);
	return t;
}

struct process *process_alloc(void)
{
	struct process *p = kzalloc(sizeof(*p), GFP_KERNEL);

	if (!p)
		return NULL;
	p->refs = 1;
	INIT_LIST_HEAD(&p->children);
	INIT_LIST_HEAD(&p->sibling);
	INIT_LIST_HEAD(&p->tasks);
	INIT_LIST_HEAD(&p->all);
	INIT_LIST_HEAD(&p->hash);
	INIT_LIST_HEAD(&p->timers);
	init_wait_queue(&p->wait);
	init_wait_queue(&p->exit_wait);
	init_wait_queue(&p->stop_wait);
	init_wait_queue(&p->signal_wait);
	ktimer_init(&p->alarm, alarm_expired);
	p->start_time = ktime_get_ns();
	return p;
}

void reap_dead_tasks(void)
{
	while (1) {
		u64 flags = spin_lock_irqsave(&task_lock);
		struct task *t = NULL;

		if (!list_empty(&dead_tasks)) {
			t = list_first_entry(&dead_tasks, struct task, in_process);
			list_del(&t->in_process);
		}
		spin_unlock_irqrestore(&task_lock, flags);
		if (!t)
			return;
		kthread_join(t->thread);
		t->thread = NULL;
		task_put(t);
	}
}

/* ---- for /proc ---- */

/* The first of its tasks that still has something; task_lock held. */
static struct task *any_task(struct process *p)
{
	return list_empty(&p->tasks) ? NULL : list_first_entry(&p->tasks, struct task, in_process);
}

struct mm *process_get_mm(struct process *p)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	struct task *t = any_task(p);
	struct mm *mm = t ? t->mm : NULL;

	if (mm)
		mm_get(mm);
	spin_unlock_irqrestore(&task_lock, flags);
	return mm;
}

struct files *process_get_files(struct process *p)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	struct task *t = any_task(p);
	struct files *files = t ? t->files : NULL;

	if (files)
		files_get(files);
	spin_unlock_irqrestore(&task_lock, flags);
	return files;
}

struct fs *process_get_fs(struct process *p)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	struct task *t = any_task(p);
	struct fs *fs = t ? t->fs : NULL;

	if (fs)
		fs_get(fs);
	spin_unlock_irqrestore(&task_lock, flags);
	return fs;
}

struct dentry *process_get_exe(struct process *p)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	struct dentry *exe = p->exe;

	if (exe)
		dget(exe);
	spin_unlock_irqrestore(&task_lock, flags);
	return exe;
}

bool process_get_cred(struct process *p, struct cred *cred)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	const struct task *t = any_task(p);

	if (t)
		*cred = t->cred;
	spin_unlock_irqrestore(&task_lock, flags);
	return t != NULL;
}

pid_t process_parent_pid(struct process *p)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	pid_t pid = p->parent ? p->parent->pid : 0;

	spin_unlock_irqrestore(&task_lock, flags);
	return pid;
}

char process_state(struct process *p)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	const struct task *t;
	char state = p->zombie || !any_task(p) ? 'Z' : p->stopped ? 'T' : 'S';

	if (state == 'S')
		list_for_each_entry(t, &p->tasks, in_process)
			if (!t->thread || t->thread->state == THREAD_RUNNING)
				state = 'R';
	spin_unlock_irqrestore(&task_lock, flags);
	return state;
}
