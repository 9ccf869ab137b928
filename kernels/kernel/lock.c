/* Locks and waiting.
 *
 * Spinlock: a ticket lock, first come, first served. Who holds one cannot be preempted, so on one processor none is
 * ever found taken, except by a bug; a wait that does not end is reported. Wait queue: a list of threads that
 * a wake_up() makes runnable, each of which then looks at its condition again. Mutex: an owner and a wait queue.
 *
 * From a panic on nobody waits for a spinlock: its holder may be what died.
 */
#include "panic.h"
#include "sched.h"

#define SPINS_MAX	(1UL << 28)	/* far beyond any wait for a working holder */

static void ticket_lock(spinlock_t *l)
{
	u32 ticket = __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED);

	for (u64 spins = 0; __atomic_load_n(&l->owner, __ATOMIC_ACQUIRE) != ticket; spins++) {
		if (panic_in_progress())
			return;
		if (spins == SPINS_MAX)
			panic("spinlock is never released: a processor waits for itself?");
		cpu_relax();
	}
}

static void ticket_unlock(spinlock_t *l)
{
	__atomic_store_n(&l->owner, l->owner + 1, __ATOMIC_RELEASE);
}

void spin_lock(spinlock_t *l)
{
	preempt_disable();
	ticket_lock(l);
}

void spin_unlock(spinlock_t *l)
{
	ticket_unlock(l);
	preempt_enable();
}

u64 spin_lock_irqsave(spinlock_t *l)
{
	u64 flags = local_irq_save();

	spin_lock(l);
	return flags;
}

/* Preemption is let in after interrupts: the switch that was due happens here, not at the next tick. */
void spin_unlock_irqrestore(spinlock_t *l, u64 flags)
{
	ticket_unlock(l);
	local_irq_restore(flags);
	preempt_enable();
}

void init_wait_queue(struct wait_queue *q)
{
	q->lock = (spinlock_t)SPINLOCK_INIT;
	INIT_LIST_HEAD(&q->waiters);
}

/* From here on a wake_up() is not missed. It must come before the look at the condition, and the thread goes on running
 * until schedule(); preempted meanwhile it is not asleep (see sched.c). */
void prepare_to_wait(struct wait_queue *q, struct waiter *w)
{
	u64 flags = spin_lock_irqsave(&q->lock);

	w->thread = current;
	w->woken = false;
	w->fn = NULL;
	list_add_tail(&w->list, &q->waiters);
	__atomic_store_n(&current->state, THREAD_SLEEPING, __ATOMIC_SEQ_CST);
	spin_unlock_irqrestore(&q->lock, flags);
}

void finish_wait(struct wait_queue *q, struct waiter *w)
{
	u64 flags = spin_lock_irqsave(&q->lock);

	current->state = THREAD_RUNNING;
	list_del(&w->list);
	spin_unlock_irqrestore(&q->lock, flags);
}

void add_waiter(struct wait_queue *q, struct waiter *w, void (*fn)(struct waiter *w))
{
	u64 flags = spin_lock_irqsave(&q->lock);

	w->thread = NULL;
	w->woken = false;
	w->fn = fn;
	list_add_tail(&w->list, &q->waiters);
	spin_unlock_irqrestore(&q->lock, flags);
}

void remove_waiter(struct wait_queue *q, struct waiter *w)
{
	u64 flags = spin_lock_irqsave(&q->lock);

	list_del(&w->list);
	spin_unlock_irqrestore(&q->lock, flags);
}

void wake_up(struct wait_queue *q)
{
	u64 flags = spin_lock_irqsave(&q->lock);
	struct waiter *w;

	list_for_each_entry(w, &q->waiters, list) {
		w->woken = true;
		if (w->fn)
			w->fn(w);
		else
			wake_up_thread(w->thread);
	}
	spin_unlock_irqrestore(&q->lock, flags);
}

void mutex_init(struct mutex *m)
{
	m->owner = NULL;
	init_wait_queue(&m->wait);
}

bool mutex_trylock(struct mutex *m)
{
	struct thread *nobody = NULL;

	return __atomic_compare_exchange_n(&m->owner, &nobody, current, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

void mutex_lock(struct mutex *m)
{
	if (mutex_trylock(m))
		return;
	if (READ_ONCE(m->owner) == current)
		panic("mutex is locked twice by its owner");
	wait_event(&m->wait, mutex_trylock(m));
}

void mutex_unlock(struct mutex *m)
{
	if (READ_ONCE(m->owner) != current)
		panic("mutex is unlocked by another than its owner");
	/* Who is not among the waiters yet looks at the owner once more after having joined them. */
	__atomic_exchange_n(&m->owner, NULL, __ATOMIC_SEQ_CST);
	if (READ_ONCE(m->wait.waiters.next) != &m->wait.waiters)
		wake_up(&m->wait);
}
