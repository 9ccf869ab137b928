/* eventfd(2): a counter as a file that can be waited for. Interrupts count too. */
#include "vfs.h"
#include "arch.h"
#include "eventfd.h"
#include "poll.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

#define EFD_SEMAPHORE	1
#define COUNTER_MAX	0xfffffffffffffffeUL

struct eventfd {
	spinlock_t lock;
	struct wait_queue wait;
	u64 count;
	bool semaphore;
	void (*listener)(void *data);	/* NULL, or takes all that is counted */
	void *data;
};

/* Something was counted. Nobody else sees it if there is a listener. */
static void counted(struct eventfd *e)
{
	void (*listener)(void *data) = NULL;
	u64 flags = spin_lock_irqsave(&e->lock);
	void *data = e->data;

	if (e->listener && e->count) {
		listener = e->listener;
		e->count = 0;
	}
	spin_unlock_irqrestore(&e->lock, flags);
	if (listener)
		listener(data);
	wake_up(&e->wait);
}

static ssize_t eventfd_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	struct eventfd *e = f->private;
	u64 value = 0, flags;

	(void)pos;
	if (size < sizeof(value))
		return -EINVAL;
	while (1) {
		int err;

		flags = spin_lock_irqsave(&e->lock);
		if (e->count) {
			value = e->semaphore ? 1 : e->count;
			e->count -= value;
		}
		spin_unlock_irqrestore(&e->lock, flags);
		if (value)
			break;
		if (f->flags & O_NONBLOCK)
			return -EAGAIN;
		err = wait_event_interruptible(&e->wait, READ_ONCE(e->count));
		if (err)
			return err;
	}
	wake_up(&e->wait);
	return copy_to_user(user, &value, sizeof(value)) ? -EFAULT : (ssize_t)sizeof(value);
}

static ssize_t eventfd_write(struct file *f, const void *user, u64 size, loff_t *pos)
{
	struct eventfd *e = f->private;
	bool done = false;
	u64 value, flags;

	(void)pos;
	if (size != sizeof(value))
		return -EINVAL;
	if (copy_from_user(&value, user, sizeof(value)))
		return -EFAULT;
	if (value > COUNTER_MAX)
		return -EINVAL;
	while (1) {
		int err;

		flags = spin_lock_irqsave(&e->lock);
		if (value <= COUNTER_MAX - e->count) {
			e->count += value;
			done = true;
		}
		spin_unlock_irqrestore(&e->lock, flags);
		if (done)
			break;
		if (f->flags & O_NONBLOCK)
			return -EAGAIN;
		err = wait_event_interruptible(&e->wait, value <= COUNTER_MAX - READ_ONCE(e->count));
		if (err)
			return err;
	}
	counted(e);
	return sizeof(value);
}

static u32 eventfd_poll(struct file *f, struct poll_table *t)
{
	struct eventfd *e = f->private;

	poll_wait(f, &e->wait, t);
	return (e->count ? EPOLLIN : 0) | (e->count < COUNTER_MAX ? EPOLLOUT : 0);
}

static void free_private(struct file *f) { kfree(f->private); }

static const struct file_ops eventfd_ops = {
	.read = eventfd_read, .write = eventfd_write, .poll = eventfd_poll, .llseek = noop_llseek,
	.release = free_private,
};

struct file *eventfd_get(int fd)
{
	struct file *f = fget(fd);

	if (!f)
		return ERR_PTR(-EBADF);
	if (f->ops == &eventfd_ops)
		return f;
	fput(f);
	return ERR_PTR(-EINVAL);
}

void eventfd_signal(struct file *f)
{
	struct eventfd *e = f->private;
	u64 flags = spin_lock_irqsave(&e->lock);

	if (e->count < COUNTER_MAX)
		e->count++;
	spin_unlock_irqrestore(&e->lock, flags);
	counted(e);
}

int eventfd_listen(struct file *f, void (*listener)(void *data), void *data)
{
	struct eventfd *e = f->private;
	u64 flags = spin_lock_irqsave(&e->lock);
	int err = e->listener && listener ? -EBUSY : 0;

	if (!err) {
		e->listener = listener;
		e->data = data;
	}
	spin_unlock_irqrestore(&e->lock, flags);
	if (!err)
		counted(e);			/* before there was a listener */
	return err;
}

SYSCALL_DEFINE2(eventfd2, 290, u32, count, u32, flags)
{
	struct eventfd *e;
	s64 fd;

	if (flags & ~(u32)(EFD_SEMAPHORE | O_CLOEXEC | O_NONBLOCK))
		return -EINVAL;
	e = kzalloc(sizeof(*e), GFP_KERNEL);
	if (!e)
		return -ENOMEM;
	init_wait_queue(&e->wait);
	e->count = count;
	e->semaphore = flags & EFD_SEMAPHORE;
	fd = anon_inode_getfd("[eventfd]", &eventfd_ops, e, flags);
	if (fd < 0)
		kfree(e);
	return fd;
}
SYSCALL_DEFINE1(eventfd, 284, u32, count)
{
	return sys_eventfd2(count, 0);
}
