/* Threads, locks and waiting (kernel/sched.c, kernel/lock.c, arch/switch.S).
 *
 * Threads are preemptive: the timer interrupt switches when preempt_count is 0. A spinlock disables preemption, the
 * _irqsave form interrupts too (for what interrupt handlers take). A mutex sleeps. Per-CPU data is reached
 * through GS; in user mode the kernel's GS base is swapped out.
 */
#pragma once
#include "types.h"
#include "cpu.h"
#include "list.h"
#include "release.h"

#define THREAD_STACK_ORDER	2
#define THREAD_STACK_SIZE	(4096UL << THREAD_STACK_ORDER)	/* 16 KiB */

enum thread_state { THREAD_RUNNING, THREAD_SLEEPING, THREAD_DEAD };

/* Fields: struct thread *self-contained: u64 rsp; void *stack; struct list_head run_list, all_list; int tid;
 * enum thread_state state; u64 wake_jiffies; u64 ticks; void (*fn)(void *); void *arg; char name[16]; u64 fs_base;
 * struct task *task (of a program, NULL in a kernel thread). The release orders them and adds its own. */
struct task;
struct thread {
	RELEASE_THREAD_FIELDS
};

struct percpu {
	struct percpu *self;		/* at 0: this_cpu() */
	struct thread *current_thread;
	u64 kernel_stack;		/* top, for the system call entry */
	u64 user_rsp;			/* scratch of the system call entry */
	u32 cpu;
	s32 preempt_count;
	u32 irq_depth;
	bool need_resched;
	struct thread *idle;
};

static inline struct percpu *this_cpu(void) { struct percpu *p; __asm__ volatile("movq %%gs:0, %0" : "=r"(p)); return p; }
/* One instruction: the answer stays right when the thread goes on elsewhere. */
static inline struct thread *get_current(void)
{
	struct thread *t;

	__asm__ volatile("movq %%gs:%c1, %0" : "=r"(t) : "i"(offsetof(struct percpu, current_thread)));
	return t;
}
#define current get_current()

extern struct thread boot_thread;	/* thread 0: what runs from the first instruction on, later the idle thread */
void sched_init(void);
/* A thread that runs fn(arg) from now on; NULL without memory. Its name is copied. One that ends, by returning from fn
 * or thread_exit(), keeps its memory until kthread_join(): so it goes back at a moment that does not depend on timing. */
struct thread *kthread_create(void (*fn)(void *), void *arg, const char *name);
void kthread_join(struct thread *t);	/* waits for the end and frees; once for each thread */
_Noreturn void thread_exit(void);
void schedule(void);
void yield(void);
void msleep(u64 ms);
void wake_up_thread(struct thread *t);
void sched_tick(void);			/* timer interrupt */
_Noreturn void cpu_idle(void);

static inline void preempt_disable(void)
{
	__asm__ volatile("incl %%gs:%c0" :: "i"(offsetof(struct percpu, preempt_count)) : "memory");
}
void preempt_enable(void);		/* switches if it was due */
void preempt_schedule(void);		/* the same, at the end of an interrupt */

typedef struct { volatile u32 next, owner; } spinlock_t;	/* ticket lock; all zero is unlocked */
#define SPINLOCK_INIT	{ 0, 0 }
void spin_lock(spinlock_t *l);
void spin_unlock(spinlock_t *l);
u64 spin_lock_irqsave(spinlock_t *l);
void spin_unlock_irqrestore(spinlock_t *l, u64 flags);

struct wait_queue {
	spinlock_t lock;
	struct list_head waiters;
};
#define WAIT_QUEUE_INIT(name)	{ SPINLOCK_INIT, LIST_HEAD_INIT((name).waiters) }
void init_wait_queue(struct wait_queue *q);
struct waiter {
	struct list_head list;
	struct thread *thread;
	bool woken;			/* since prepare_to_wait(), for one who waits on several queues */
	void (*fn)(struct waiter *w);	/* NULL. Called instead of waking, under the queue's lock: see add_waiter() */
};
/* For what is not a thread: fn is called at each wake_up() until remove_waiter(). It must not sleep. */
void add_waiter(struct wait_queue *q, struct waiter *w, void (*fn)(struct waiter *w));
void remove_waiter(struct wait_queue *q, struct waiter *w);
void prepare_to_wait(struct wait_queue *q, struct waiter *w);
void finish_wait(struct wait_queue *q, struct waiter *w);
void wake_up(struct wait_queue *q);	/* all waiters */
/* Sleeps until the condition, which is looked at again after each wake_up(), holds. */
#define wait_event(q, condition) do {							\
		struct waiter w_;							\
		while (1) {								\
			prepare_to_wait((q), &w_);					\
			if (condition)							\
				break;							\
			schedule();							\
			finish_wait((q), &w_);						\
		}									\
		finish_wait((q), &w_);							\
	} while (0)

struct mutex {
	struct thread *owner;
	struct wait_queue wait;
};
#define MUTEX_INIT(name)	{ NULL, WAIT_QUEUE_INIT((name).wait) }
void mutex_init(struct mutex *m);
void mutex_lock(struct mutex *m);
bool mutex_trylock(struct mutex *m);
void mutex_unlock(struct mutex *m);
