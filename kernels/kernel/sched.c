/* The scheduler: preemptive threads of the kernel, one queue, round robin.
 *
 * A thread is in exactly one of these places: running on a processor; runnable, on the queue; asleep until a
 * jiffy, on `sleepers`; asleep in a wait queue, on no list of ours; dead, until it is joined. The idle thread is on none of
 * them: it runs when the queue is empty, that is all there is of priorities.
 *
 * Everything is under one lock, which is held across a switch: who is switched to releases it. So a thread that others
 * see as not running has really left its stack. With it held, the preemption count is 1 on both sides of
 * the switch.
 *
 * A thread about to sleep (state THREAD_SLEEPING, on its way to schedule()) may be preempted. It stays on
 * the queue then, because it did not look at its condition yet.
 *
 * Time is counted in timer interrupts: a time slice is from one to the next.
 */
#include "sched.h"
#include "arch.h"
#include "page.h"
#include "panic.h"
#include "string.h"
#include "task.h"

#define NS_PER_MS	1000000UL
#define NS_PER_TICK	(1000 * NS_PER_MS / HZ)

#define STACK_MAGIC	0x6b63617473656e6fUL	/* in the last word that a stack may grow to */

extern char boot_stack[];
void switch_stacks(u64 *save_rsp, u64 load_rsp);	/* arch/switch.S */
void thread_start(void);
void thread_first_run(void);

static spinlock_t sched_lock = SPINLOCK_INIT;
static LIST_HEAD(runnable);
static LIST_HEAD(sleepers);		/* by time to wake, then in order of arrival */
static LIST_HEAD(joiners);		/* struct waiter: asleep in kthread_join() */
static LIST_HEAD(all_threads);
static int next_tid = 1;

struct thread boot_thread = {
	.stack = boot_stack,
	.state = THREAD_RUNNING,
	.name = "idle",
};

static u64 *stack_magic(const struct thread *t)
{
	return t->stack;
}

static void check_stack(const struct thread *t)
{
	if (*stack_magic(t) != STACK_MAGIC)
		panic("stack of thread %d (%s) overflowed", t->tid, t->name);
}

/* With sched_lock held. The two states between which there is a switch are never seen from outside. */
static bool is_on_cpu(const struct thread *t)
{
	return this_cpu()->current_thread == t;	/* one processor */
}

static struct thread *pick_next(void)
{
	struct thread *next;

	if (list_empty(&runnable))
		return this_cpu()->idle;
	next = list_first_entry(&runnable, struct thread, run_list);
	list_del_init(&next->run_list);
	return next;
}

static void load_thread_state(const struct thread *prev, struct thread *next)
{
	this_cpu()->current_thread = next;
	set_kernel_stack((u8 *)next->stack + THREAD_STACK_SIZE);
	if (next->fs_base != prev->fs_base)
		wrmsr(MSR_FS_BASE, next->fs_base);
	switch_user_state(next->task);
}

/* Interrupts are off and sched_lock is held, before and after; between the two, other threads ran. */
static void switch_thread(bool preempted)
{
	struct percpu *cpu = this_cpu();
	struct thread *prev = current, *next;

	if (cpu->preempt_count != 1 || cpu->irq_depth)
		panic("thread %d (%s) sleeps while it must not be preempted", prev->tid, prev->name);
	check_stack(prev);
	cpu->need_resched = false;
	if (prev == cpu->idle)
		BUG_ON(prev->state != THREAD_RUNNING);	/* somebody has to be there */
	else if (preempted || prev->state == THREAD_RUNNING)
		list_add_tail(&prev->run_list, &runnable);
	next = pick_next();
	if (next == prev)
		return;
	check_stack(next);
	load_thread_state(prev, next);
	switch_stacks(&prev->rsp, next->rsp);
}

void schedule(void)
{
	u64 flags = spin_lock_irqsave(&sched_lock);

	switch_thread(false);
	spin_unlock_irqrestore(&sched_lock, flags);
}

void preempt_schedule(void)
{
	u64 flags;

	if (!this_cpu()->need_resched || this_cpu()->preempt_count || this_cpu()->irq_depth)
		return;
	flags = spin_lock_irqsave(&sched_lock);
	switch_thread(true);
	spin_unlock_irqrestore(&sched_lock, flags);
}

void preempt_enable(void)
{
	__asm__ volatile("decl %%gs:%c0" :: "i"(offsetof(struct percpu, preempt_count)) : "memory");
	if (this_cpu()->need_resched && irqs_enabled())
		preempt_schedule();
}

void yield(void)
{
	schedule();
}

/* With sched_lock held. */
static void make_runnable(struct thread *t)
{
	if (t->state != THREAD_SLEEPING)
		return;
	t->state = THREAD_RUNNING;
	if (is_on_cpu(t))
		return;			/* it did not get to schedule() yet */
	if (t->wake_jiffies) {
		list_del_init(&t->run_list);
		t->wake_jiffies = 0;
	}
	if (list_empty(&t->run_list))
		list_add_tail(&t->run_list, &runnable);
	if (current == this_cpu()->idle)
		this_cpu()->need_resched = true;
}

void wake_up_thread(struct thread *t)
{
	u64 flags = spin_lock_irqsave(&sched_lock);

	make_runnable(t);
	spin_unlock_irqrestore(&sched_lock, flags);
}

/* With sched_lock held. */
static void add_sleeper(struct thread *t, u64 until)
{
	struct thread *other;

	t->state = THREAD_SLEEPING;
	t->wake_jiffies = until;
	list_for_each_entry(other, &sleepers, run_list)
		if (other->wake_jiffies > until)
			break;
	list_add_tail(&t->run_list, &other->run_list);
}

/* Wakes at the first tick that is not too early by the clock; ticks are not as exact as it. */
void msleep(u64 ms)
{
	u64 now = ktime_get_ns(), deadline = now + ms * NS_PER_MS;

	for (; now < deadline; now = ktime_get_ns()) {
		u64 flags = spin_lock_irqsave(&sched_lock);

		add_sleeper(current, jiffies + DIV_ROUND_UP(deadline - now, NS_PER_TICK));
		switch_thread(false);
		spin_unlock_irqrestore(&sched_lock, flags);
	}
}

void sched_tick(void)
{
	u64 flags = spin_lock_irqsave(&sched_lock);

	current->ticks++;
	check_stack(current);
	while (!list_empty(&sleepers)) {
		struct thread *t = list_first_entry(&sleepers, struct thread, run_list);

		if (t->wake_jiffies > jiffies)
			break;
		make_runnable(t);
	}
	if (!list_empty(&runnable))
		this_cpu()->need_resched = true;
	spin_unlock_irqrestore(&sched_lock, flags);
}

/* A new thread comes out of switch_stacks() here, by thread_start, with sched_lock held and interrupts off. */
__used void thread_first_run(void)
{
	spin_unlock(&sched_lock);
	local_irq_enable();
	current->fn(current->arg);
	thread_exit();
}

static void prepare_stack(struct thread *t)
{
	u64 *sp = (u64 *)((u8 *)t->stack + THREAD_STACK_SIZE);

	*--sp = 0;			/* where a frame would have its return address */
	*--sp = 0;
	*--sp = (u64)thread_start;
	for (unsigned int i = 0; i < 6; i++)
		*--sp = 0;		/* rbp, rbx, r12 to r15 */
	t->rsp = (u64)sp;
	*stack_magic(t) = STACK_MAGIC;
}

struct thread *kthread_create(void (*fn)(void *), void *arg, const char *name)
{
	struct thread *t = kzalloc(sizeof(*t), GFP_KERNEL);
	u64 flags;

	if (!t)
		return NULL;
	t->stack = get_free_pages(GFP_KERNEL, THREAD_STACK_ORDER);
	if (!t->stack) {
		kfree(t);
		return NULL;
	}
	t->fn = fn;
	t->arg = arg;
	strscpy(t->name, name, sizeof(t->name));
	t->state = THREAD_RUNNING;
	prepare_stack(t);
	flags = spin_lock_irqsave(&sched_lock);
	t->tid = next_tid++;
	list_add_tail(&t->all_list, &all_threads);
	list_add_tail(&t->run_list, &runnable);
	if (current == this_cpu()->idle)
		this_cpu()->need_resched = true;
	spin_unlock_irqrestore(&sched_lock, flags);
	return t;
}

_Noreturn void thread_exit(void)
{
	struct waiter *w;

	spin_lock_irqsave(&sched_lock);
	current->state = THREAD_DEAD;
	list_for_each_entry(w, &joiners, list)
		make_runnable(w->thread);
	switch_thread(false);
	panic("a dead thread runs");
}

void kthread_join(struct thread *t)
{
	u64 flags = spin_lock_irqsave(&sched_lock);
	struct waiter w = { .thread = current };

	BUG_ON(t == current);
	list_add_tail(&w.list, &joiners);
	while (t->state != THREAD_DEAD) {
		current->state = THREAD_SLEEPING;
		switch_thread(false);
	}
	list_del(&w.list);
	list_del(&t->all_list);
	spin_unlock_irqrestore(&sched_lock, flags);
	check_stack(t);
	free_pages(t->stack, THREAD_STACK_ORDER);
	kfree(t);
}

void sched_init(void)
{
	INIT_LIST_HEAD(&boot_thread.run_list);
	list_add_tail(&boot_thread.all_list, &all_threads);
	*stack_magic(&boot_thread) = STACK_MAGIC;
	set_kernel_stack(boot_stack + THREAD_STACK_SIZE);
	this_cpu()->idle = &boot_thread;
}

_Noreturn void cpu_idle(void)
{
	while (1) {
		local_irq_disable();
		if (!list_empty(&runnable)) {
			local_irq_enable();
			schedule();
		} else {
			/* an interrupt between the two instructions is held back, and ends the hlt */
			__asm__ volatile("sti; hlt" ::: "memory");
		}
	}
}
