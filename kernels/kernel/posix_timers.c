/* Timers that a process makes as many of as it likes: timer_create(2) and friends.
 *
 * Each has one signal at most under way. While that is pending, further expirations are counted and reported with it as
 * the overrun.
 */
#include "arch.h"
#include "page.h"
#include "proc_internal.h"
#include "string.h"
#include "syscall.h"
#include "uaccess.h"

#define SIGEV_SIGNAL	0
#define SIGEV_NONE	1
#define SIGEV_THREAD_ID	4
#define TIMER_ABSTIME	1
#define SI_TIMER	(-2)
#define TIMERS_MAX	128		/* of a process */
#define ALL_TIMERS_MAX	2048		/* each of which may want something at every tick */
#define OVERRUN_MAX	0x7fffffffU

struct sigevent {
	u64 value;
	s32 signo, notify, tid, pad[11];
};
static_assert(sizeof(struct sigevent) == 64, "sigevent");

struct itimerspec {
	struct timespec interval, value;
};

struct posix_timer {
	struct list_head list;		/* process->timers */
	struct process *process;
	struct task *task;		/* that gets the signal, NULL: any; a reference */
	s32 id, signo;
	bool realtime, silent;
	u64 value;
	struct ktimer timer;
	u64 deadline, interval;		/* 0: off */
	u32 overrun;
};

static u32 nr_timers;

/* ---- task_lock held ---- */

static struct posix_timer *lookup(s32 id)
{
	struct posix_timer *t;

	list_for_each_entry(t, &current_process()->timers, list)
		if (t->id == id)
			return t;
	return NULL;
}

static void unlink_locked(struct posix_timer *t)
{
	list_del(&t->list);
	t->process->nr_timers--;
	nr_timers--;
}

static bool is_pending(const struct posix_timer *t)
{
	const struct sigpending *pending = t->task ? &t->task->pending : &t->process->shared_pending;

	return pending->set & sigmask(t->signo) && pending->info[t->signo - 1].code == SI_TIMER &&
	       pending->info[t->signo - 1].rt.pid == t->id;
}

static void notify(struct posix_timer *t)
{
	const struct siginfo info = { .code = SI_TIMER, .rt = { .pid = t->id, .value = t->value } };

	if (is_pending(t)) {
		t->overrun += t->overrun < OVERRUN_MAX;
		return;
	}
	t->overrun = 0;
	if (!t->task || lookup_task(t->task->tid) == t->task)
		signal_locked(t->process, t->task, t->signo, &info);
}

/* Forward by whole intervals, those that are over already counted. */
static void advance(struct posix_timer *t)
{
	u64 now = ktime_get_ns(), missed;

	if (!t->interval) {
		t->deadline = 0;
		return;
	}
	t->deadline += t->interval;
	if (t->deadline <= now) {
		missed = (now - t->deadline) / t->interval + 1;
		t->deadline += missed * t->interval;
		t->overrun = (u32)min((u64)t->overrun + missed, (u64)OVERRUN_MAX);
	}
	ktimer_set(&t->timer, t->deadline);
}

/* ---- */

static void expired(struct ktimer *timer)
{
	struct posix_timer *t = container_of(timer, struct posix_timer, timer);
	u64 flags = spin_lock_irqsave(&task_lock);

	if (!t->silent)
		notify(t);
	advance(t);
	spin_unlock_irqrestore(&task_lock, flags);
}

static void destroy(struct posix_timer *t)
{
	ktimer_cancel(&t->timer);
	task_put(t->task);
	kfree(t);
}

/* All of a process: it ends, or executes another program. */
void delete_posix_timers(struct process *p)
{
	while (1) {
		u64 flags = spin_lock_irqsave(&task_lock);
		struct posix_timer *t = NULL;

		if (!list_empty(&p->timers)) {
			t = list_first_entry(&p->timers, struct posix_timer, list);
			unlink_locked(t);
		}
		spin_unlock_irqrestore(&task_lock, flags);
		if (!t)
			return;
		destroy(t);
	}
}

static bool clock_is_realtime(int clock)
{
	return clock == 0 || clock == 8 || clock == 11;		/* REALTIME, REALTIME_ALARM, TAI */
}

/* Those that can be waited for: the processor's time cannot. */
static bool clock_has_timers(int clock)
{
	return clock_is_realtime(clock) || clock == 1 || clock == 7 || clock == 9;
}

static int set_target(struct posix_timer *t, const struct sigevent *event)
{
	t->silent = event->notify == SIGEV_NONE;
	t->signo = event->signo;
	t->value = event->value;
	if (t->silent)
		return 0;
	if (event->notify != SIGEV_SIGNAL && event->notify != SIGEV_THREAD_ID && event->notify != 2 /* SIGEV_THREAD */)
		return -EINVAL;
	if (event->signo < 1 || event->signo > NSIG)
		return -EINVAL;
	if (event->notify != SIGEV_THREAD_ID)
		return 0;
	t->task = find_task(event->tid);
	return t->task && t->task->process == t->process ? 0 : -EINVAL;
}

static int link_timer(struct posix_timer *t)
{
	struct process *p = t->process;
	u64 flags = spin_lock_irqsave(&task_lock);
	int err = p->nr_timers >= TIMERS_MAX || nr_timers >= ALL_TIMERS_MAX ? -EAGAIN : 0;

	if (!err) {
		t->id = p->next_timer_id++;
		p->nr_timers++;
		nr_timers++;
		list_add_tail(&t->list, &p->timers);
	}
	spin_unlock_irqrestore(&task_lock, flags);
	return err;
}

static struct posix_timer *unlink_timer(s32 id)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	struct posix_timer *t = lookup(id);

	if (t)
		unlink_locked(t);
	spin_unlock_irqrestore(&task_lock, flags);
	return t;
}

SYSCALL_DEFINE3(timer_create, 222, int, clock, const struct sigevent *, uevent, s32 *, uid)
{
	struct sigevent event = { .signo = SIGALRM };
	struct posix_timer *t;
	s32 id;
	int err;

	if (uevent && copy_from_user(&event, uevent, sizeof(event)))
		return -EFAULT;
	if (!clock_has_timers(clock))
		return clock >= 0 && clock <= 11 && clock != 10 ? -EOPNOTSUPP : -EINVAL;
	t = kzalloc(sizeof(*t), GFP_KERNEL);
	if (!t)
		return -EAGAIN;
	t->process = current_process();
	t->realtime = clock_is_realtime(clock);
	ktimer_init(&t->timer, expired);
	err = set_target(t, &event);
	if (!err)
		err = link_timer(t);
	if (err) {
		destroy(t);
		return err;
	}
	id = t->id;
	if (!uevent)
		t->value = (u64)id;
	if (!put_user(id, uid))
		return 0;
	t = unlink_timer(id);
	if (t)
		destroy(t);
	return -EFAULT;
}

SYSCALL_DEFINE1(timer_delete, 226, s32, id)
{
	struct posix_timer *t = unlink_timer(id);

	if (!t)
		return -EINVAL;
	destroy(t);
	return 0;
}

SYSCALL_DEFINE1(timer_getoverrun, 225, s32, id)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	const struct posix_timer *t = lookup(id);
	s64 result = t ? (s64)t->overrun : -EINVAL;

	spin_unlock_irqrestore(&task_lock, flags);
	return result;
}

static void get_setting(const struct posix_timer *t, u64 *left, u64 *interval)
{
	u64 now = ktime_get_ns();

	*left = !t->deadline ? 0 : t->deadline > now ? t->deadline - now : 1;
	*interval = t->interval;
}

static int put_setting(struct itimerspec *user, u64 left, u64 interval)
{
	return put_timespec(&user->interval, interval) || put_timespec(&user->value, left) ? -EFAULT : 0;
}

SYSCALL_DEFINE2(timer_gettime, 224, s32, id, struct itimerspec *, user)
{
	u64 left, interval, flags = spin_lock_irqsave(&task_lock);
	const struct posix_timer *t = lookup(id);

	if (t)
		get_setting(t, &left, &interval);
	spin_unlock_irqrestore(&task_lock, flags);
	return t ? put_setting(user, left, interval) : -EINVAL;
}

static u64 first_deadline(const struct posix_timer *t, u64 ns, bool absolute)
{
	u64 now;

	if (!ns)
		return 0;
	if (!absolute)
		return deadline_after(ns);
	now = t->realtime ? ktime_get_real_ns() : ktime_get_ns();
	return deadline_after(ns > now ? ns - now : 0);
}

SYSCALL_DEFINE4(timer_settime, 223, s32, id, int, how, const struct itimerspec *, user, struct itimerspec *, old)
{
	u64 ns, interval, left, old_interval, flags;
	struct posix_timer *t;
	int err;

	if (!user)
		return -EINVAL;
	err = get_timespec(&interval, &user->interval);
	if (!err)
		err = get_timespec(&ns, &user->value);
	if (err)
		return err;
	flags = spin_lock_irqsave(&task_lock);
	t = lookup(id);
	if (t) {
		get_setting(t, &left, &old_interval);
		ktimer_cancel(&t->timer);
		t->interval = ns ? interval : 0;
		t->overrun = 0;
		t->deadline = first_deadline(t, ns, how & TIMER_ABSTIME);
		if (t->deadline)
			ktimer_set(&t->timer, t->deadline);
	}
	spin_unlock_irqrestore(&task_lock, flags);
	if (!t)
		return -EINVAL;
	return old ? put_setting(old, left, old_interval) : 0;
}
