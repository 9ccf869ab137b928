/* Self-test of threads, locks and sleeping. What it prints does not depend on how fast the machine is. */
#define pr_fmt(fmt) "sched test: " fmt
#include "arch.h"
#include "cpu.h"
#include "page.h"
#include "printk.h"
#include "sched.h"
#include "selftest.h"

#define WORKERS		4
#define PATIENCE	(10 * HZ)	/* jiffies until something that should have happened will not */

static struct thread *start(void (*fn)(void *), u64 n)
{
	struct thread *t = kthread_create(fn, (void *)n, "test");

	CHECK(t != NULL);
	return t;
}

static void join_all(struct thread **t, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		if (t[i])
			kthread_join(t[i]);
}

/* ---- two threads that never give way wait for each other ---- */

static volatile bool met[2], late[2];

static void meet(void *arg)
{
	u64 n = (u64)arg, end = jiffies + PATIENCE;

	met[n] = true;
	while (!met[!n] && !late[n])
		late[n] = jiffies > end;
}

static void test_preemption(void)
{
	struct thread *t[2] = { start(meet, 0), start(meet, 1) };

	join_all(t, 2);
	CHECK(met[0] && met[1] && !late[0] && !late[1]);
	pr_info("busy threads are preempted\n");
}

static volatile bool ran;

static void set_ran(void *arg __unused)
{
	ran = true;
}

static void test_preempt_disable(void)
{
	struct thread *t;
	u64 start_jiffies;

	preempt_disable();
	t = start(set_ran, 0);
	start_jiffies = jiffies;
	while (jiffies < start_jiffies + 1)
		cpu_relax();
	CHECK(!ran);
	preempt_enable();		/* the switch that the tick asked for */
	CHECK(ran);
	join_all(&t, 1);
}

/* ---- mutual exclusion ---- */

static struct mutex mutex = MUTEX_INIT(mutex);
static u64 shared;
static bool broken_in;

static void add_with_mutex(void *arg __unused)
{
	for (unsigned int i = 0; i < 100; i++) {
		u64 v;

		mutex_lock(&mutex);
		v = READ_ONCE(shared);
		yield();		/* everybody else tries now */
		broken_in |= READ_ONCE(shared) != v || mutex.owner != current;
		WRITE_ONCE(shared, v + 1);
		mutex_unlock(&mutex);
	}
}

static void test_mutex(void)
{
	struct thread *t[WORKERS];

	mutex_lock(&mutex);
	for (u64 i = 0; i < WORKERS; i++)
		t[i] = start(add_with_mutex, i);
	for (unsigned int i = 0; i < 4 * WORKERS; i++)
		yield();
	CHECK(shared == 0);
	CHECK(!mutex_trylock(&mutex));
	mutex_unlock(&mutex);
	join_all(t, WORKERS);
	CHECK(shared == 100 * WORKERS);
	CHECK(!broken_in);
	CHECK(mutex.owner == NULL);
	CHECK(mutex_trylock(&mutex));
	mutex_unlock(&mutex);
	pr_info("a mutex let one in at a time, %lu times\n", shared);
}

static spinlock_t lock = SPINLOCK_INIT;
static u64 counter;

static void add_with_spinlock(void *arg __unused)
{
	for (unsigned int i = 0; i < 10000; i++) {
		u64 flags;

		if (i & 1) {
			spin_lock(&lock);
			counter++;
			spin_unlock(&lock);
		} else {
			flags = spin_lock_irqsave(&lock);
			counter++;
			spin_unlock_irqrestore(&lock, flags);
		}
	}
}

static void test_spinlock(void)
{
	struct thread *t[WORKERS];
	u64 flags;

	for (u64 i = 0; i < WORKERS; i++)
		t[i] = start(add_with_spinlock, i);
	join_all(t, WORKERS);
	CHECK(counter == 10000 * WORKERS);
	CHECK(lock.next == lock.owner && lock.next == 10000 * WORKERS);
	flags = spin_lock_irqsave(&lock);
	CHECK(!irqs_enabled());
	CHECK(this_cpu()->preempt_count == 1);
	spin_unlock_irqrestore(&lock, flags);
	CHECK(irqs_enabled());
	CHECK(this_cpu()->preempt_count == 0);
	pr_info("spinlocks guarded %lu additions\n", counter);
}

/* ---- wait queues: a slot that is full or empty ---- */

static struct wait_queue slot_queue = WAIT_QUEUE_INIT(slot_queue);
static volatile u64 slot;		/* 0 is empty */
static u64 received, out_of_order;

static void produce(void *arg __unused)
{
	for (u64 i = 1; i <= 100; i++) {
		wait_event(&slot_queue, !slot);
		slot = i;
		wake_up(&slot_queue);
	}
}

static void consume(void *arg __unused)
{
	for (u64 i = 1; i <= 100; i++) {
		wait_event(&slot_queue, slot);
		out_of_order += slot != i;
		received += slot;
		slot = 0;
		wake_up(&slot_queue);
	}
}

static void test_wait_queue(void)
{
	struct thread *t[2] = { start(consume, 0), start(produce, 0) };

	join_all(t, 2);
	CHECK(received == 5050 && !out_of_order && !slot);
	CHECK(list_empty(&slot_queue.waiters));
	wake_up(&slot_queue);		/* nobody waits: nothing happens */
	wait_event(&slot_queue, true);
	CHECK(current->state == THREAD_RUNNING);
	pr_info("a wait queue passed on 100 values in order\n");
}

/* ---- sleep ---- */

static const u64 sleeps_ms[] = { 60, 20, 100, 20 };
static u64 woken[ARRAY_SIZE(sleeps_ms)], nr_woken, too_short;
static struct mutex woken_mutex = MUTEX_INIT(woken_mutex);

static void sleep_for(void *arg)
{
	u64 n = (u64)arg, before = ktime_get_ns();

	msleep(sleeps_ms[n]);
	too_short += ktime_get_ns() - before < sleeps_ms[n] * 1000000;
	mutex_lock(&woken_mutex);
	woken[nr_woken++] = n;
	mutex_unlock(&woken_mutex);
}

static void test_sleep(void)
{
	struct thread *t[ARRAY_SIZE(sleeps_ms)];

	for (u64 i = 0; i < ARRAY_SIZE(t); i++)
		t[i] = start(sleep_for, i);
	join_all(t, ARRAY_SIZE(t));
	CHECK(nr_woken == ARRAY_SIZE(sleeps_ms));
	CHECK(woken[0] == 1 && woken[1] == 3 && woken[2] == 0 && woken[3] == 2);
	CHECK(!too_short);
	pr_info("sleepers woke in the order of their times:");
	for (u64 i = 0; i < nr_woken; i++)
		printk(KERN_CONT " %lu", sleeps_ms[woken[i]]);
	printk(KERN_CONT " ms\n");
}

/* ---- time ---- */

static void test_clock(void)
{
	u64 last = ktime_get_ns(), went_back = 0, before;

	for (unsigned int i = 0; i < 1000; i++) {
		u64 now = ktime_get_ns();

		went_back += now < last;
		last = now;
	}
	CHECK(!went_back);
	before = ktime_get_ns();
	udelay(50);
	CHECK(ktime_get_ns() - before >= 50000);
}

/* ---- memory of threads ---- */

static void nothing(void *arg __unused)
{
}

static void test_memory(void)
{
	u64 before;

	for (unsigned int i = 0; i < 2; i++) {
		struct thread *t[WORKERS];

		before = nr_free_pages();
		for (u64 n = 0; n < WORKERS; n++)
			t[n] = start(nothing, n);
		join_all(t, WORKERS);
		/* the first round may leave a page with the slab allocator */
	}
	CHECK(nr_free_pages() == before);
	pr_info("threads that ended gave back their memory\n");
}

void sched_selftest(void)
{
	test_preemption();
	test_preempt_disable();
	test_mutex();
	test_spinlock();
	test_wait_queue();
	test_sleep();
	test_clock();
	test_memory();
}
