/* timerfd_create(2): a timer as a file that can be waited for. */
#include "vfs.h"
#include "arch.h"
#include "ktimer.h"
#include "poll.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

#define CLOCK_REALTIME	0
#define CLOCK_MONOTONIC	1
#define CLOCK_BOOTTIME	7
#define TFD_TIMER_ABSTIME 1

struct timerfd {
	struct ktimer timer;
	struct wait_queue wait;
	u64 interval, expirations;
	int clock;
};

struct itimerspec {
	struct timespec interval, value;
};

static void timerfd_expired(struct ktimer *timer)
{
	struct timerfd *t = container_of(timer, struct timerfd, timer);
	u64 now = ktime_get_ns(), missed = t->interval && now > timer->deadline ? (now - timer->deadline) / t->interval : 0;

	t->expirations += 1 + missed;
	if (t->interval)
		ktimer_set(timer, timer->deadline + (missed + 1) * t->interval);
	wake_up(&t->wait);
}

static ssize_t timerfd_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	struct timerfd *t = f->private;
	u64 value, flags;

	(void)pos;
	if (size < sizeof(value))
		return -EINVAL;
	while (1) {
		int err;

		flags = local_irq_save();
		value = t->expirations;
		t->expirations = 0;
		local_irq_restore(flags);
		if (value)
			break;
		if (f->flags & O_NONBLOCK)
			return -EAGAIN;
		err = wait_event_interruptible(&t->wait, READ_ONCE(t->expirations));
		if (err)
			return err;
	}
	return copy_to_user(user, &value, sizeof(value)) ? -EFAULT : (ssize_t)sizeof(value);
}

static u32 timerfd_poll(struct file *f, struct poll_table *pt)
{
	struct timerfd *t = f->private;

	poll_wait(f, &t->wait, pt);
	return t->expirations ? EPOLLIN : 0;
}

static void timerfd_release(struct file *f)
{
	struct timerfd *t = f->private;

	t->interval = 0;
	ktimer_cancel(&t->timer);
	kfree(t);
}

static const struct file_ops timerfd_ops = {
	.read = timerfd_read, .poll = timerfd_poll, .llseek = noop_llseek, .release = timerfd_release,
};

SYSCALL_DEFINE2(timerfd_create, 283, int, clock, u32, flags)
{
	struct timerfd *t;
	s64 fd;

	if (flags & ~(u32)(O_CLOEXEC | O_NONBLOCK) ||
	    (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC && clock != CLOCK_BOOTTIME))
		return -EINVAL;
	t = kzalloc(sizeof(*t), GFP_KERNEL);
	if (!t)
		return -ENOMEM;
	init_wait_queue(&t->wait);
	ktimer_init(&t->timer, timerfd_expired);
	t->clock = clock;
	fd = anon_inode_getfd("[timerfd]", &timerfd_ops, t, flags);
	if (fd < 0)
		kfree(t);
	return fd;
}

static struct file *get_timerfd(int fd, s64 *err)
{
	struct file *f = fget(fd);

	*err = f ? 0 : -EBADF;
	if (f && f->ops != &timerfd_ops) {
		fput(f);
		*err = -EINVAL;
		return NULL;
	}
	return f;
}

static int put_itimerspec(struct itimerspec *user, u64 left, u64 interval)
{
	return put_timespec(&user->interval, interval) || put_timespec(&user->value, left) ? -EFAULT : 0;
}

/* Time to the next expiration, 0: none is set. Interrupts off. */
static u64 time_left(const struct timerfd *t, bool armed)
{
	u64 now = ktime_get_ns();

	return !armed ? 0 : t->timer.deadline > now ? t->timer.deadline - now : 1;
}

SYSCALL_DEFINE4(timerfd_settime, 286, int, fd, u32, flags, const struct itimerspec *, new, struct itimerspec *, old)
{
	u64 value, interval, left, before, irq;
	struct timerfd *t;
	struct file *f;
	s64 err;

	if (flags & ~3U)
		return -EINVAL;
	err = get_timespec(&value, &new->value);
	if (!err)
		err = get_timespec(&interval, &new->interval);
	if (err)
		return err;
	f = get_timerfd(fd, &err);
	if (!f)
		return err;
	t = f->private;
	irq = local_irq_save();
	before = t->interval;
	left = time_left(t, ktimer_cancel(&t->timer));
	t->interval = interval;
	t->expirations = 0;
	if (value) {
		u64 deadline = deadline_after(value);

		if (flags & TFD_TIMER_ABSTIME) {
			u64 offset = t->clock == CLOCK_REALTIME ? ktime_get_real_ns() - ktime_get_ns() : 0;

			deadline = value > offset ? value - offset : 1;
		}
		ktimer_set(&t->timer, deadline);
	}
	local_irq_restore(irq);
	if (old)
		err = put_itimerspec(old, left, before);
	fput(f);
	return err;
}

SYSCALL_DEFINE2(timerfd_gettime, 287, int, fd, struct itimerspec *, user)
{
	struct timerfd *t;
	struct file *f;
	u64 left, irq;
	bool armed;
	s64 err;

	f = get_timerfd(fd, &err);
	if (!f)
		return err;
	t = f->private;
	irq = local_irq_save();
	armed = ktimer_cancel(&t->timer);
	left = time_left(t, armed);
	if (armed)
		ktimer_set(&t->timer, t->timer.deadline);
	local_irq_restore(irq);
	err = put_itimerspec(user, left, t->interval);
	fput(f);
	return err;
}
