/* Files that stand for a process: readable (poll) when it has ended, and a name for it that is never given to another.
 */
#include "poll.h"
#include "proc_internal.h"
#include "string.h"
#include "syscall.h"
#include "sigframe.h"
#include "uaccess.h"
#include "vfs.h"

static u32 pidfd_poll(struct file *f, struct poll_table *t)
{
	struct process *p = f->private;

	poll_wait(f, &p->exit_wait, t);
	return READ_ONCE(p->zombie) ? EPOLLIN : 0;
}

static void pidfd_release(struct file *f)
{
	process_put(f->private);
}

static const struct file_ops pidfd_ops = {
	.poll = pidfd_poll,
	.release = pidfd_release,
};

int pidfd_prepare(struct process *p, u32 flags, struct file **file)
{
	int fd = get_unused_fd(O_CLOEXEC);

	if (fd < 0)
		return fd;
	process_get(p);
	*file = anon_inode_getfile("[pidfd]", &pidfd_ops, p, O_RDWR | flags);
	if (IS_ERR(*file)) {
		int err = (int)PTR_ERR(*file);

		*file = NULL;
		process_put(p);
		put_unused_fd(fd);
		return err;
	}
	return fd;
}

struct process *pidfd_process(int fd, bool *nonblocking)
{
	struct file *f = fget(fd);
	struct process *p = ERR_PTR(-EBADF);

	if (!f)
		return p;
	if (f->ops == &pidfd_ops) {
		p = f->private;
		process_get(p);
		if (nonblocking)
			*nonblocking = f->flags & O_NONBLOCK;
	}
	fput(f);
	return p;
}

SYSCALL_DEFINE2(pidfd_open, 434, pid_t, pid, u32, flags)
{
	struct file *file;
	struct process *p;
	int fd;

	if (flags & ~(u32)O_NONBLOCK || pid <= 0)
		return -EINVAL;
	p = find_process(pid);
	if (!p) {
		struct task *t = find_task(pid);

		task_put(t);
		return t ? -ENOENT : -ESRCH;	/* a thread that is not the first */
	}
	fd = pidfd_prepare(p, flags, &file);
	process_put(p);
	if (fd >= 0)
		fd_install(fd, file);
	return fd;
}

SYSCALL_DEFINE4(pidfd_send_signal, 424, int, fd, int, sig, const void *, user, u32, flags)
{
	struct process *p;
	int err;

	if (flags)
		return -EINVAL;
	p = pidfd_process(fd, NULL);
	if (IS_ERR(p))
		return PTR_ERR(p);
	err = signal_by_user(p, sig, user);
	process_put(p);
	return err;
}
