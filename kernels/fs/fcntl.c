/* fcntl(2), ioctl(2) where it concerns every file, flock(2). */
#include "vfs.h"
#include "bitops.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

#define F_DUPFD		0
#define F_GETFD		1
#define F_SETFD		2
#define F_GETFL		3
#define F_SETFL		4
#define F_GETLK		5
#define F_SETLK		6
#define F_SETLKW	7
#define F_SETOWN	8
#define F_GETOWN	9
#define F_OFD_GETLK	36
#define F_OFD_SETLKW	38
#define F_DUPFD_CLOEXEC	1030
#define F_SETPIPE_SZ	1031
#define F_GETPIPE_SZ	1032
#define F_ADD_SEALS	1033
#define F_GET_SEALS	1034

#define F_UNLCK		2
#define FD_CLOEXEC	1
#define SETFL_MASK	(O_APPEND | O_NONBLOCK | 020000 | 040000 | 01000000)	/* and FASYNC, O_DIRECT, O_NOATIME */

#define FIONREAD	0x541b
#define FIONBIO		0x5421
#define FIONCLEX	0x5450
#define FIOCLEX		0x5451

struct flock {
	s16 type, whence;
	s64 start, len;
	s32 pid;
};

static s64 fd_flag(int fd, bool set, bool on)
{
	struct files *files = current_task()->files;
	s64 ret;

	mutex_lock(&files->lock);
	if (set && on)
		set_bit((u32)fd, files->close_on_exec);
	else if (set)
		clear_bit((u32)fd, files->close_on_exec);
	ret = set ? 0 : test_bit((u32)fd, files->close_on_exec) ? FD_CLOEXEC : 0;
	mutex_unlock(&files->lock);
	return ret;
}

/* Locks are advice among programs; here every one is granted and none is remembered. */
static s64 get_lock(struct flock *user)
{
	struct flock l;

	if (copy_from_user(&l, user, sizeof(l)))
		return -EFAULT;
	l.type = F_UNLCK;
	return copy_to_user(user, &l, sizeof(l)) ? -EFAULT : 0;
}

int pipe_set_size(struct file *f, u64 size);	/* fs/pipe.c */
s64 pipe_get_size(struct file *f);

static s64 do_fcntl(struct file *f, int fd, u32 cmd, u64 arg)
{
	switch (cmd) {
	case F_DUPFD:
		return dup_from(fd, (u32)arg, 0);
	case F_DUPFD_CLOEXEC:
		return dup_from(fd, (u32)arg, O_CLOEXEC);
	case F_GETFD:
		return fd_flag(fd, false, false);
	case F_SETFD:
		return fd_flag(fd, true, arg & FD_CLOEXEC);
	case F_GETFL:
		return f->flags;
	}
	if (f->mode & FMODE_PATH)
		return -EBADF;
	switch (cmd) {
	case F_SETFL:
		f->flags = (f->flags & ~(u32)SETFL_MASK) | ((u32)arg & SETFL_MASK);
		return 0;
	case F_GETLK:
	case F_OFD_GETLK:
		return get_lock((struct flock *)arg);
	case F_SETLK ... F_SETOWN:
	case F_OFD_GETLK + 1 ... F_OFD_SETLKW:
		return 0;
	case F_GETOWN:
		return 0;
	case F_ADD_SEALS:
		return memfd_add_seals(f, (u32)arg);
	case F_GET_SEALS:
		return memfd_get_seals(f);
	case F_SETPIPE_SZ:
		return pipe_set_size(f, arg);
	case F_GETPIPE_SZ:
		return pipe_get_size(f);
	default:
		return -EINVAL;
	}
}

SYSCALL_DEFINE3(fcntl, 72, int, fd, u32, cmd, u64, arg)
{
	struct file *f = fget_raw(fd);
	s64 ret;

	if (!f)
		return -EBADF;
	ret = do_fcntl(f, fd, cmd, arg);
	fput(f);
	return ret;
}

SYSCALL_DEFINE3(ioctl, 16, int, fd, u32, cmd, u64, arg)
{
	struct file *f = fget(fd);
	s64 ret;
	int on;

	if (!f)
		return -EBADF;
	switch (cmd) {
	case FIOCLEX:
	case FIONCLEX:
		ret = fd_flag(fd, true, cmd == FIOCLEX);
		break;
	case FIONBIO:
		ret = get_user(on, (int *)arg);
		if (!ret)
			f->flags = on ? f->flags | O_NONBLOCK : f->flags & ~(u32)O_NONBLOCK;
		break;
	default:
		if (cmd == FIONREAD && S_ISREG(f->inode->mode))
			ret = put_user((int)(f->inode->size - (u64)f->pos), (int *)arg);
		else
			ret = f->ops->ioctl ? f->ops->ioctl(f, cmd, arg) : -ENOTTY;
	}
	fput(f);
	return ret;
}

SYSCALL_DEFINE2(flock, 73, int, fd, int, how)
{
	struct file *f = fget(fd);

	if (!f)
		return -EBADF;
	fput(f);
	return (how & ~4) == 1 || (how & ~4) == 2 || (how & ~4) == 8 ? 0 : -EINVAL;
}
