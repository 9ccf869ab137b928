/* System calls about time: clocks, sleeping, interval timers. */
#include "arch.h"
#include "proc_internal.h"
#include "string.h"
#include "syscall.h"
#include "uaccess.h"

#define CLOCK_REALTIME			0
#define CLOCK_MONOTONIC			1
#define CLOCK_PROCESS_CPUTIME_ID	2
#define CLOCK_THREAD_CPUTIME_ID		3
#define CLOCK_MONOTONIC_RAW		4
#define CLOCK_REALTIME_COARSE		5
#define CLOCK_MONOTONIC_COARSE		6
#define CLOCK_BOOTTIME			7
#define CLOCK_REALTIME_ALARM		8
#define CLOCK_BOOTTIME_ALARM		9
#define CLOCK_TAI			11
#define TIMER_ABSTIME			1
#define ITIMER_REAL			0
#define ITIMER_PROF			2

#define NSEC_PER_TICK			(NSEC_PER_SEC / HZ)

struct timeval {
	s64 sec, usec;
};
struct itimerval {
	struct timeval interval, value;
};

static struct timeval to_timeval(u64 ns)
{
	return (struct timeval){ .sec = (s64)(ns / NSEC_PER_SEC), .usec = (s64)(ns % NSEC_PER_SEC / NSEC_PER_USEC) };
}

void fill_cpu_times(u64 user_ticks, u64 system_ticks, void *two_timevals)
{
	const struct timeval t[2] = { to_timeval(user_ticks * NSEC_PER_TICK),
				      to_timeval(system_ticks * NSEC_PER_TICK) };

	memcpy(two_timevals, t, sizeof(t));
}

/* ---- clocks ---- */

static int read_clock(int clock, u64 *ns)
{
	const struct process *p = current_process();

	switch (clock) {
	case CLOCK_REALTIME:
	case CLOCK_REALTIME_COARSE:
	case CLOCK_REALTIME_ALARM:
	case CLOCK_TAI:
		*ns = ktime_get_real_ns();
		return 0;
	case CLOCK_MONOTONIC:
	case CLOCK_MONOTONIC_RAW:
	case CLOCK_MONOTONIC_COARSE:
	case CLOCK_BOOTTIME:
	case CLOCK_BOOTTIME_ALARM:
		*ns = ktime_get_ns();
		return 0;
	case CLOCK_PROCESS_CPUTIME_ID:
		*ns = (p->user_ticks + p->system_ticks) * NSEC_PER_TICK;
		return 0;
	case CLOCK_THREAD_CPUTIME_ID:
		*ns = current->ticks * NSEC_PER_TICK;
		return 0;
	default:
		return -EINVAL;
	}
}

SYSCALL_DEFINE2(clock_gettime, 228, int, clock, struct timespec *, user)
{
	u64 ns;
	int err = read_clock(clock, &ns);

	return err ? err : put_timespec(user, ns);
}

SYSCALL_DEFINE2(clock_getres, 229, int, clock, struct timespec *, user)
{
	bool coarse = clock == CLOCK_REALTIME_COARSE || clock == CLOCK_MONOTONIC_COARSE;
	u64 ns;
	int err = read_clock(clock, &ns);

	if (err || !user)
		return err;
	return put_timespec(user, coarse ? NSEC_PER_TICK : 1);
}

SYSCALL_DEFINE2(clock_settime, 227, int, clock, const struct timespec *, user)
{
	u64 ns;
	int err;

	if (clock != CLOCK_REALTIME)
		return -EINVAL;
	err = get_timespec(&ns, user);
	if (err)
		return err;
	if (!capable())
		return -EPERM;
	set_real_ns(ns);
	return 0;
}

SYSCALL_DEFINE2(gettimeofday, 96, struct timeval *, tv, void *, tz)
{
	const struct timeval now = to_timeval(ktime_get_real_ns());
	const u64 utc = 0;

	if (tv && copy_to_user(tv, &now, sizeof(now)))
		return -EFAULT;
	return tz && copy_to_user(tz, &utc, sizeof(utc)) ? -EFAULT : 0;
}

SYSCALL_DEFINE2(settimeofday, 164, const struct timeval *, tv, const void *, tz)
{
	struct timeval t;
	u64 zone;

	if (tv && copy_from_user(&t, tv, sizeof(t)))
		return -EFAULT;
	if (tv && (t.usec < 0 || t.usec >= 1000000 || t.sec < 0 || (u64)t.sec >= KTIME_MAX / NSEC_PER_SEC))
		return -EINVAL;
	if (tz && copy_from_user(&zone, tz, sizeof(zone)))
		return -EFAULT;
	if (!capable())
		return -EPERM;
	if (tv)
		set_real_ns((u64)t.sec * NSEC_PER_SEC + (u64)t.usec * NSEC_PER_USEC);
	return 0;
}

SYSCALL_DEFINE1(time, 201, s64 *, user)
{
	s64 now = (s64)(ktime_get_real_ns() / NSEC_PER_SEC);

	return user && put_user(now, user) ? -EFAULT : now;
}

/* ---- sleeping ---- */

static bool never(__unused void *arg)
{
	return false;
}

static s64 sleep_restart(struct task *t);

/* Until the deadline. Interrupted: what is left goes to the program, and a restart sleeps on to the same deadline. */
static s64 sleep_until(u64 deadline, struct timespec *left)
{
	struct task *t = current_task();
	int err = wait_until(&t->process->stop_wait, never, NULL, deadline);
	u64 now;

	if (err == -ETIMEDOUT)
		return 0;
	now = ktime_get_ns();
	if (left && put_timespec(left, deadline > now ? deadline - now : 0))
		return -EFAULT;
	t->restart = sleep_restart;
	t->restart_data[0] = deadline;
	t->restart_data[1] = (u64)left;
	return -ERESTART_RESTARTBLOCK;
}

static s64 sleep_restart(struct task *t)
{
	return sleep_until(t->restart_data[0], (struct timespec *)t->restart_data[1]);
}

SYSCALL_DEFINE0(restart_syscall, 219)
{
	struct task *t = current_task();

	return t->restart ? t->restart(t) : -EINTR;
}

SYSCALL_DEFINE2(nanosleep, 35, const struct timespec *, user, struct timespec *, left)
{
	u64 ns;
	int err = get_timespec(&ns, user);

	return err ? err : sleep_until(deadline_after(ns), left);
}

static bool can_sleep_on(int clock)
{
	return clock == CLOCK_REALTIME || clock == CLOCK_MONOTONIC || clock == CLOCK_BOOTTIME || clock == CLOCK_TAI ||
	       clock == CLOCK_REALTIME_ALARM || clock == CLOCK_BOOTTIME_ALARM;
}

SYSCALL_DEFINE4(clock_nanosleep, 230, int, clock, int, flags, const struct timespec *, user, struct timespec *, left)
{
	u64 ns, now;
	s64 result;
	int err;

	if (read_clock(clock, &now))
		return -EINVAL;
	if (!can_sleep_on(clock))
		return -EOPNOTSUPP;
	err = get_timespec(&ns, user);
	if (err)
		return err;
	if (!(flags & TIMER_ABSTIME))
		return sleep_until(deadline_after(ns), left);
	read_clock(clock, &now);
	result = sleep_until(deadline_after(ns > now ? ns - now : 0), NULL);
	return result == -ERESTART_RESTARTBLOCK ? -ERESTARTNOHAND : result;
}

/* ---- the alarm of a process: alarm(2) and ITIMER_REAL are one ---- */

void alarm_expired(struct ktimer *timer)
{
	struct process *p = container_of(timer, struct process, alarm);

	send_signal_process(p, SIGALRM, &(struct siginfo){ .code = SI_KERNEL });
	if (!p->alarm_interval) {
		p->alarm_deadline = 0;
		return;
	}
	p->alarm_deadline = max(p->alarm_deadline + p->alarm_interval, ktime_get_ns());
	ktimer_set(&p->alarm, p->alarm_deadline);
}

static u64 alarm_left(const struct process *p, u64 now)
{
	if (!p->alarm_deadline)
		return 0;
	return p->alarm_deadline > now ? p->alarm_deadline - now : NSEC_PER_USEC;
}

/* ns until it comes, 0: off. What was left before, and the interval. */
static void set_alarm(u64 ns, u64 interval, u64 *left, u64 *old_interval)
{
	struct process *p = current_process();
	u64 flags;

	ktimer_cancel(&p->alarm);
	flags = local_irq_save();
	*left = alarm_left(p, ktime_get_ns());
	*old_interval = p->alarm_interval;
	p->alarm_deadline = ns ? deadline_after(ns) : 0;
	p->alarm_interval = interval;
	if (ns)
		ktimer_set(&p->alarm, p->alarm_deadline);
	local_irq_restore(flags);
}

SYSCALL_DEFINE1(alarm, 37, u32, seconds)
{
	u64 left, interval;

	set_alarm((u64)seconds * NSEC_PER_SEC, 0, &left, &interval);
	/* rounded, but never to 0 while something is left */
	return left && left < NSEC_PER_SEC ? 1 : (s64)((left + NSEC_PER_SEC / 2) / NSEC_PER_SEC);
}

static bool get_timeval(const struct timeval *t, u64 *ns)
{
	if (t->sec < 0 || t->usec < 0 || t->usec >= 1000000)
		return false;
	*ns = (u64)t->sec >= KTIME_MAX / NSEC_PER_SEC ? KTIME_MAX :
	      (u64)t->sec * NSEC_PER_SEC + (u64)t->usec * NSEC_PER_USEC;
	return true;
}

static s64 put_itimer(struct itimerval *user, u64 left, u64 interval)
{
	const struct itimerval value = { .interval = to_timeval(interval), .value = to_timeval(left) };

	return copy_to_user(user, &value, sizeof(value)) ? -EFAULT : 0;
}

static u64 to_ticks(u64 ns)
{
	return ns / NSEC_PER_TICK + (ns % NSEC_PER_TICK != 0);
}

/* The timers that count processor time, in ticks of it. */
static void set_cpu_timer(int which, u64 ns, u64 interval, u64 *left, u64 *old_interval)
{
	struct process *p = current_process();
	u64 flags = local_irq_save();

	*left = p->cpu_timer[which - 1].left * NSEC_PER_TICK;
	*old_interval = p->cpu_timer[which - 1].interval * NSEC_PER_TICK;
	p->cpu_timer[which - 1].left = to_ticks(ns);
	p->cpu_timer[which - 1].interval = to_ticks(interval);
	local_irq_restore(flags);
}

static void count_cpu_timer(struct process *p, unsigned int i, int sig)
{
	if (!p->cpu_timer[i].left || --p->cpu_timer[i].left)
		return;
	p->cpu_timer[i].left = p->cpu_timer[i].interval;
	send_signal_process(p, sig, NULL);
}

SYSCALL_DEFINE2(getitimer, 36, int, which, struct itimerval *, user)
{
	const struct process *p = current_process();

	if (which < ITIMER_REAL || which > ITIMER_PROF)
		return -EINVAL;
	if (which == ITIMER_REAL)
		return put_itimer(user, alarm_left(p, ktime_get_ns()), p->alarm_interval);
	return put_itimer(user, p->cpu_timer[which - 1].left * NSEC_PER_TICK,
			  p->cpu_timer[which - 1].interval * NSEC_PER_TICK);
}

SYSCALL_DEFINE3(setitimer, 38, int, which, const struct itimerval *, user, struct itimerval *, old)
{
	struct itimerval value = { 0 };
	u64 ns = 0, interval = 0, left, old_interval;

	if (user && copy_from_user(&value, user, sizeof(value)))
		return -EFAULT;
	if (which < ITIMER_REAL || which > ITIMER_PROF || !get_timeval(&value.value, &ns) ||
	    !get_timeval(&value.interval, &interval))
		return -EINVAL;
	if (which == ITIMER_REAL)
		set_alarm(ns, interval, &left, &old_interval);
	else
		set_cpu_timer(which, ns, interval, &left, &old_interval);
	return old ? put_itimer(old, left, old_interval) : 0;
}

/* ---- accounting ---- */

/* RLIMIT_CPU: a warning each second from the soft limit on, the end at the hard one. */
static void check_cpu_limit(struct process *p)
{
	const struct rlimit *limit = &p->rlim[RLIMIT_CPU];
	u64 ticks = p->user_ticks + p->system_ticks;

	if (limit->cur == RLIM_INFINITY || ticks % HZ)
		return;
	if (ticks / HZ >= limit->max)
		send_signal_process(p, SIGKILL, NULL);
	else if (ticks / HZ >= limit->cur)
		send_signal_process(p, SIGXCPU, NULL);
}

void task_tick(bool user)
{
	struct process *p = current->task ? current->task->process : NULL;

	ktimer_tick();
	if (!p)
		return;
	if (user)
		p->user_ticks++;
	else
		p->system_ticks++;
	if (user)
		count_cpu_timer(p, 0, SIGVTALRM);
	count_cpu_timer(p, 1, SIGPROF);
	check_cpu_limit(p);
}
