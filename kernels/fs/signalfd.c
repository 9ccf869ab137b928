/* signalfd(2): reading takes signals that are pending for the reader, who keeps them blocked. Whose they are is asked
 * when it is read, so a file that others inherited gives them theirs; all of them wait on one queue for that reason.
 */
#include "vfs.h"
#include "poll.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

struct signalfd_siginfo {
	u32 signo;
	s32 err, code;
	u32 pid, uid;
	s32 fd;
	u32 tid, band, overrun, trapno;
	s32 status, int_value;
	u64 pointer, user_time, system_time, addr;
	u8 pad[48];
};
static_assert(sizeof(struct signalfd_siginfo) == 128, "user ABI");

struct signalfd {
	sigset_t mask;
};

struct wait_queue signalfd_wait = WAIT_QUEUE_INIT(signalfd_wait);

static void fill(struct signalfd_siginfo *to, const struct siginfo *from)
{
	memset(to, 0, sizeof(*to));
	to->signo = (u32)from->signo;
	to->err = from->err;
	to->code = from->code;
	switch (from->signo) {
	case SIGSEGV:
	case SIGBUS:
	case SIGILL:
	case SIGFPE:
	case SIGTRAP:
		if (from->code > 0 && from->code != SI_KERNEL) {
			to->addr = from->addr;
			return;
		}
		break;
	case SIGCHLD:
		to->status = from->kill.status;
	}
	to->pid = (u32)from->kill.pid;
	to->uid = from->kill.uid;
	if (from->code == SI_QUEUE) {
		to->pointer = from->rt.value;
		to->int_value = (s32)from->rt.value;
	}
}

static bool is_ready(const struct signalfd *s) { return pending_signals(current_task()) & READ_ONCE(s->mask); }

/* The first is waited for, the others are taken if they are there. */
static ssize_t signalfd_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	const struct signalfd *s = f->private;
	u64 count = size / sizeof(struct signalfd_siginfo), done = 0;
	int err = 0;

	(void)pos;
	if (!count)
		return -EINVAL;
	while (done < count) {
		struct signalfd_siginfo out;
		struct siginfo info;

		if (!dequeue_signal(s->mask, &info)) {
			if (done)
				break;
			err = -EAGAIN;
			if (!(f->flags & O_NONBLOCK))
				err = wait_event_interruptible(&signalfd_wait, is_ready(s));
			if (err)
				break;
			continue;
		}
		fill(&out, &info);
		if (copy_to_user((u8 *)user + done * sizeof(out), &out, sizeof(out))) {
			err = -EFAULT;
			break;
		}
		done++;
	}
	return done ? (ssize_t)(done * sizeof(struct signalfd_siginfo)) : err;
}

static u32 signalfd_poll(struct file *f, struct poll_table *t)
{
	poll_wait(f, &signalfd_wait, t);
	return current_task() && is_ready(f->private) ? EPOLLIN : 0;
}

static void signalfd_release(struct file *f)
{
	kfree(f->private);
}

static const struct file_ops signalfd_ops = {
	.read = signalfd_read, .poll = signalfd_poll, .llseek = noop_llseek, .release = signalfd_release,
};

static s64 change_mask(int fd, sigset_t mask)
{
	struct file *f = fget(fd);
	s64 ret = fd;

	if (!f)
		return -EBADF;
	if (f->ops != &signalfd_ops) {
		ret = -EINVAL;
	} else {
		WRITE_ONCE(((struct signalfd *)f->private)->mask, mask);
		wake_up(&signalfd_wait);
	}
	fput(f);
	return ret;
}

SYSCALL_DEFINE4(signalfd4, 289, int, fd, const sigset_t *, user, u64, size, u32, flags)
{
	struct signalfd *s;
	sigset_t mask;
	s64 ret;

	if (size != sizeof(mask))
		return -EINVAL;
	if (get_user(mask, user))
		return -EFAULT;
	if (flags & ~(u32)(O_CLOEXEC | O_NONBLOCK))
		return -EINVAL;
	mask &= ~(sigmask(SIGKILL) | sigmask(SIGSTOP));
	if (fd != -1)
		return change_mask(fd, mask);
	s = kzalloc(sizeof(*s), GFP_KERNEL);
	if (!s)
		return -ENOMEM;
	s->mask = mask;
	ret = anon_inode_getfd("[signalfd]", &signalfd_ops, s, flags);
	if (ret < 0)
		kfree(s);
	return ret;
}
SYSCALL_DEFINE3(signalfd, 282, int, fd, const sigset_t *, user, u64, size)
{
	return sys_signalfd4(fd, user, size, 0);
}
