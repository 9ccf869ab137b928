/* Timers and clocks.
 *
 * Timers are in a wheel of slots of about a millisecond, each a list; one in the distant future shares its slot with
 * those of this turn and is passed over. So setting one costs the same however many there are. The timer interrupt goes
 * through the slots since the one before: timers come at most a tick late, never early.
 *
 * The clock of the world (CLOCK_REALTIME) is the one that counts plus an offset, which the battery-backed clock (MC146818)
 * gives once at start.
 */
#include "ktimer.h"
#include "arch.h"
#include "cpu.h"
#include "init.h"
#include "proc_internal.h"
#include "sched.h"
#include "syscall.h"
#include "uaccess.h"

#define SLOT_SHIFT	20		/* a slot is 2^20 ns */
#define SLOTS		1024

static spinlock_t lock = SPINLOCK_INIT;
static struct list_head slots[SLOTS];	/* made when first used */
static u64 next_slot;			/* all before have been gone through; counts on, modulo SLOTS is the place */
static u32 nr_set;

static struct list_head *slot_list(u64 slot)
{
	struct list_head *head = &slots[slot % SLOTS];

	if (!head->next)
		INIT_LIST_HEAD(head);
	return head;
}

void ktimer_init(struct ktimer *t, void (*fn)(struct ktimer *t))
{
	INIT_LIST_HEAD(&t->list);
	t->fn = fn;
}

static void unset(struct ktimer *t)
{
	if (list_empty(&t->list))
		return;
	list_del_init(&t->list);
	nr_set--;
}

void ktimer_set(struct ktimer *t, u64 deadline)
{
	u64 flags = spin_lock_irqsave(&lock);

	unset(t);
	t->deadline = deadline;
	nr_set++;
	/* one that is over already comes with the next tick */
	list_add_tail(&t->list, slot_list(max((deadline >> SLOT_SHIFT) + 1, next_slot)));
	spin_unlock_irqrestore(&lock, flags);
}

bool ktimer_cancel(struct ktimer *t)
{
	u64 flags = spin_lock_irqsave(&lock);
	bool was_set = !list_empty(&t->list);

	unset(t);
	spin_unlock_irqrestore(&lock, flags);
	return was_set;
}

/* Those of a slot that are due. The list is taken off first: a timer that sets itself again is not met twice. */
static void run_slot(struct list_head *slot, u64 now, u64 *flags)
{
	LIST_HEAD(due);
	struct ktimer *t, *next;

	list_for_each_entry_safe(t, next, slot, list)
		if (t->deadline <= now)
			list_move_tail(&t->list, &due);
	while (!list_empty(&due)) {
		t = list_first_entry(&due, struct ktimer, list);
		unset(t);
		spin_unlock_irqrestore(&lock, *flags);
		t->fn(t);
		*flags = spin_lock_irqsave(&lock);
	}
}

void ktimer_tick(void)
{
	u64 now = ktime_get_ns(), last = now >> SLOT_SHIFT, flags = spin_lock_irqsave(&lock), from;

	/* one turn meets all of them */
	from = last - next_slot < SLOTS ? next_slot : last - SLOTS + 1;
	if (next_slot <= last) {
		next_slot = last + 1;
		for (u64 slot = from; nr_set && slot <= last; slot++)
			run_slot(slot_list(slot), now, &flags);
	}
	spin_unlock_irqrestore(&lock, flags);
}

/* ---- waiting ---- */

struct sleeper {
	struct ktimer timer;
	struct thread *thread;
};

static void wake_sleeper(struct ktimer *t)
{
	wake_up_thread(container_of(t, struct sleeper, timer)->thread);
}

void schedule_until(u64 deadline)
{
	struct sleeper s = { .thread = current };

	if (!deadline || deadline >= KTIME_MAX) {
		schedule();
		return;
	}
	ktimer_init(&s.timer, wake_sleeper);
	ktimer_set(&s.timer, deadline);
	schedule();
	ktimer_cancel(&s.timer);
}

int wait_until(struct wait_queue *q, bool (*condition)(void *), void *arg, u64 deadline)
{
	struct waiter w;
	int result;

	while (1) {
		prepare_to_wait(q, &w);
		result = 0;
		if (condition(arg))
			break;
		result = -ERESTARTSYS;
		if (signal_pending())
			break;
		result = -ETIMEDOUT;
		if (deadline && ktime_get_ns() >= deadline)
			break;
		schedule_until(deadline);
		finish_wait(q, &w);
	}
	finish_wait(q, &w);
	return result;
}

/* ---- clocks ---- */

#define RTC_SECONDS	0x00
#define RTC_MINUTES	0x02
#define RTC_HOURS	0x04
#define RTC_DAY		0x07
#define RTC_MONTH	0x08
#define RTC_YEAR	0x09
#define RTC_A		0x0a
#define RTC_B		0x0b
#define RTC_A_UPDATING	0x80
#define RTC_B_24_HOURS	0x02
#define RTC_B_BINARY	0x04

static s64 real_offset;

static u8 rtc_read(u8 reg)
{
	outb(0x70, reg);
	return inb(0x71);
}

static u32 rtc_number(u8 reg, u8 mode)
{
	u8 v = rtc_read(reg);

	return mode & RTC_B_BINARY ? v : (v >> 4) * 10U + (v & 15);
}

static u32 rtc_hours(u8 mode)
{
	u8 v = rtc_read(RTC_HOURS), pm = mode & RTC_B_24_HOURS ? 0 : v & 0x80;
	u32 h = mode & RTC_B_BINARY ? v & 0x7f : (v >> 4 & 7) * 10U + (v & 15);

	return mode & RTC_B_24_HOURS ? h : h % 12 + (pm ? 12 : 0);
}

/* Days since 1970 of the Gregorian calendar; years from March make the leap day the last. */
static s64 days_since_1970(s64 year, u32 month, u32 day)
{
	s64 y = month <= 2 ? year - 1 : year, m = month <= 2 ? month + 9 : month - 3;

	return y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719468;
}

static int read_clock_of_the_world(void)
{
	u32 second, minute, hour, day, month, year;
	u8 mode = rtc_read(RTC_B);
	s64 seconds;

	do {
		for (unsigned int i = 0; rtc_read(RTC_A) & RTC_A_UPDATING && i < 1000000; i++)
			cpu_relax();
		second = rtc_number(RTC_SECONDS, mode);
		minute = rtc_number(RTC_MINUTES, mode);
		hour = rtc_hours(mode);
		day = rtc_number(RTC_DAY, mode);
		month = rtc_number(RTC_MONTH, mode);
		year = rtc_number(RTC_YEAR, mode);
	} while (second != rtc_number(RTC_SECONDS, mode));
	if (second > 60 || minute > 59 || hour > 23 || !day || day > 31 || !month || month > 12 || year > 99)
		return 0;			/* 1970 is as good as nonsense */
	seconds = days_since_1970(year + (year < 70 ? 2000 : 1900), month, day) * 86400 + hour * 3600 +
		  minute * 60 + second;
	real_offset = seconds * (s64)NSEC_PER_SEC - (s64)ktime_get_ns();
	return 0;
}
early_initcall(read_clock_of_the_world);

u64 ktime_get_real_ns(void)
{
	return ktime_get_ns() + (u64)real_offset;
}

void set_real_ns(u64 ns)
{
	real_offset = (s64)(ns - ktime_get_ns());
}

/* ---- times of programs ---- */

int get_timespec(u64 *ns, const struct timespec *user)
{
	struct timespec t;

	if (copy_from_user(&t, user, sizeof(t)))
		return -EFAULT;
	if (t.sec < 0 || t.nsec < 0 || t.nsec >= (s64)NSEC_PER_SEC)
		return -EINVAL;
	*ns = (u64)t.sec >= KTIME_MAX / NSEC_PER_SEC ? KTIME_MAX : (u64)t.sec * NSEC_PER_SEC + (u64)t.nsec;
	return 0;
}

int put_timespec(struct timespec *user, u64 ns)
{
	const struct timespec t = { .sec = (s64)(ns / NSEC_PER_SEC), .nsec = (s64)(ns % NSEC_PER_SEC) };

	return copy_to_user(user, &t, sizeof(t)) ? -EFAULT : 0;
}

u64 deadline_after(u64 ns)
{
	u64 now = ktime_get_ns();

	/* 0 means never to those who wait */
	return ns >= KTIME_MAX - now ? KTIME_MAX : max(now + ns, 1UL);
}
