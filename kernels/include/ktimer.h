/* Timers and clocks (kernel/timer.c). Times are in ns: of ktime_get_ns(), unless a name says real. */
#pragma once
#include "types.h"
#include "list.h"

/* fn runs in the timer interrupt, interrupts off, at the first tick that finds ktime_get_ns() >= deadline. */
struct ktimer {
	struct list_head list;
	u64 deadline;
	void (*fn)(struct ktimer *t);
};
#define KTIME_MAX	0x7fffffffffffffffUL	/* never comes */

void ktimer_init(struct ktimer *t, void (*fn)(struct ktimer *t));
void ktimer_set(struct ktimer *t, u64 deadline);	/* one that is set moves */
bool ktimer_cancel(struct ktimer *t);	/* was it set? Once this returns fn does not run */
void ktimer_tick(void);			/* timer interrupt */
/* schedule() that is over at the deadline (0 = never); the thread's state is set by prepare_to_wait(). */
void schedule_until(u64 deadline);

u64 ktime_get_real_ns(void);		/* since 1970 */
void set_real_ns(u64 ns);

struct timespec {			/* as programs have it; milliseconds and the like are smaller by far */
	s64 sec, nsec;
};
#define NSEC_PER_SEC	1000000000UL
#define NSEC_PER_USEC	1000UL
/* ns, at most KTIME_MAX. 0, -EFAULT, -EINVAL (negative, or nsec is none). */
int get_timespec(u64 *ns, const struct timespec *user);
int put_timespec(struct timespec *user, u64 ns);
/* now + ns, not beyond KTIME_MAX. */
u64 deadline_after(u64 ns);
