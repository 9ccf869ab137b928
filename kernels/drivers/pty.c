/* Pseudo-terminals: a terminal whose other end is a program (pty(7)).
 *
 * Opening /dev/ptmx makes one: the file is its master end, /dev/pts/N (in devpts) the terminal. What the master writes
 * has been typed; what is written to the terminal waits in a ring for the master to read it. When the master is closed,
 * the terminal is hung up and its name is gone. A pair that nobody has open is used again, never freed.
 */
#include "tty.h"
#include "init.h"
#include "poll.h"
#include "printk.h"
#include "string.h"
#include "syscall.h"
#include "uaccess.h"

#define PTYS_MAX	64U
#define RING_SIZE	4096U
#define CHUNK		256U
#define DEVPTS_MAGIC	0x1cd1

#define TIOCSIG		0x40045436
#define TIOCSPTLCK	0x40045431
#define TIOCGPTN	0x80045430
#define TIOCGPTLCK	0x80045439
#define TIOCGPTPEER	0x5441
#define TIOCGPGRP	0x540f
#define TIOCGSID	0x5429
#define TIOCINQ		0x541b
#define TCFLSH		0x540b

struct pty {
	u32 index;
	struct tty tty;			/* its lock protects the ring too */
	struct dentry *name;		/* in devpts while there is a master */
	struct wait_queue wait;		/* of the master */
	u8 ring[RING_SIZE];
	u32 head, tail;
	bool has_master, locked, held;
	bool closed;			/* the terminal was open, and is not any more */
};

struct super *devptsfs;
static struct pty *ptys[PTYS_MAX];
static struct mutex ptys_lock = MUTEX_INIT(ptys_lock);

/* ---- the terminal's side ---- */

static struct pty *pty_of(struct tty *t) { return t->driver; }
static u32 used(const struct pty *p) { return p->head - p->tail; }

static u32 pty_room(struct tty *t)
{
	const struct pty *p = pty_of(t);

	return p->held ? 0 : RING_SIZE - used(p);
}

static u32 pty_write(struct tty *t, const u8 *data, u32 size)
{
	struct pty *p = pty_of(t);
	u32 n = min(size, pty_room(t));

	for (u32 i = 0; i < n; i++)
		p->ring[p->head++ % RING_SIZE] = data[i];
	wake_up(&p->wait);
	return n;
}

static u32 pty_pending(struct tty *t __unused) { return 0; }	/* the master has it already */
static void pty_discard(struct tty *t) { pty_of(t)->tail = pty_of(t)->head; }
static void pty_hold(struct tty *t, bool stop) { pty_of(t)->held = stop; }

static void pty_throttle(struct tty *t, bool full)
{
	if (!full)
		wake_up(&pty_of(t)->wait);
}

static void pty_closed(struct tty *t)
{
	u64 flags = spin_lock_irqsave(&t->lock);

	pty_of(t)->closed = true;
	spin_unlock_irqrestore(&t->lock, flags);
	wake_up(&pty_of(t)->wait);
}

static const struct tty_ops pty_ops = {
	.write = pty_write, .room = pty_room, .pending = pty_pending, .discard = pty_discard, .hold = pty_hold,
	.throttle = pty_throttle, .closed = pty_closed,
};

static int open_terminal(struct pty *p, struct file *f)
{
	u64 flags;
	int err;

	if (!p || !p->has_master || p->locked)
		return -EIO;
	err = tty_open_file(&p->tty, f, false);
	if (err)
		return err;
	f->ops = &tty_file_ops;
	flags = spin_lock_irqsave(&p->tty.lock);
	p->closed = false;
	spin_unlock_irqrestore(&p->tty.lock, flags);
	return 0;
}

static int pts_open(struct inode *inode, struct file *f)
{
	u64 index = inode->rdev & 0xff;

	return open_terminal(index < PTYS_MAX ? ptys[index] : NULL, f);
}

static const struct file_ops pts_file_ops = { .open = pts_open };

/* ---- the master's ---- */

static struct pty *master_of(struct file *f) { return f->private; }

/* Bytes, 0: none; -EIO: and there will be none. */
static ssize_t take(struct pty *p, u8 *to, u32 size)
{
	u64 flags = spin_lock_irqsave(&p->tty.lock);
	u32 n = min(size, used(p));
	ssize_t result = n || !p->closed ? (ssize_t)n : -EIO;

	for (u32 i = 0; i < n; i++)
		to[i] = p->ring[p->tail++ % RING_SIZE];
	spin_unlock_irqrestore(&p->tty.lock, flags);
	if (n)
		wake_up(&p->tty.write_wait);
	return result;
}

static ssize_t master_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	struct pty *p = master_of(f);
	u8 buf[CHUNK];
	u64 done = 0;
	ssize_t n = 0;

	(void)pos;
	while (done < size) {
		n = take(p, buf, (u32)min(size - done, (u64)CHUNK));
		if (n > 0 && copy_to_user((u8 *)user + done, buf, (u64)n))
			n = -EFAULT;
		if (n > 0)
			done += (u64)n;
		if (n < 0 || (!n && done))
			break;
		if (n)
			continue;
		n = f->flags & O_NONBLOCK ? -EAGAIN : wait_event_interruptible(&p->wait, used(p) || p->closed);
		if (n)
			break;
	}
	return done ? (ssize_t)done : n;
}

/* One byte after the other, each with all that it causes. */
static u32 type(struct pty *p, const u8 *from, u32 size)
{
	u32 n = 0;

	while (n < size && tty_has_room(&p->tty))
		tty_receive(&p->tty, from[n++]);
	return n;
}

static ssize_t master_write(struct file *f, const void *user, u64 size, loff_t *pos)
{
	struct pty *p = master_of(f);
	u8 buf[CHUNK];
	u64 done = 0;
	int err = 0;

	(void)pos;
	while (!err && done < size && !(done && signal_pending())) {
		u32 n = (u32)min(size - done, (u64)CHUNK), typed;

		if (copy_from_user(buf, (const u8 *)user + done, n)) {
			err = -EFAULT;
			break;
		}
		typed = type(p, buf, n);
		done += typed;
		if (typed < n)
			err = f->flags & O_NONBLOCK ? -EAGAIN : wait_event_interruptible(&p->wait, tty_has_room(&p->tty));
	}
	return done ? (ssize_t)done : err;
}

static u32 master_poll(struct file *f, struct poll_table *t)
{
	struct pty *p = master_of(f);
	u32 events = 0;

	poll_wait(f, &p->wait, t);
	if (used(p))
		events |= EPOLLIN;
	if (p->closed)
		events |= EPOLLHUP;
	if (tty_has_room(&p->tty))
		events |= EPOLLOUT;
	return events;
}

static s64 open_peer(struct pty *p, u32 flags)
{
	int fd = get_unused_fd(flags);
	struct file *f;

	if (fd < 0)
		return fd;
	f = dentry_open(p->name, flags);
	if (IS_ERR(f)) {
		put_unused_fd(fd);
		return PTR_ERR(f);
	}
	fd_install(fd, f);
	return fd;
}

static s64 lock(struct pty *p, const int *user)
{
	int value;

	if (get_user(value, user))
		return -EFAULT;
	p->locked = value;
	return 0;
}

static s64 signal_foreground(struct pty *p, u64 sig)
{
	if (sig != SIGINT && sig != SIGQUIT && sig != SIGTSTP)
		return -EINVAL;
	if (p->tty.pgrp)
		send_signal_group(p->tty.pgrp, (int)sig);
	return 0;
}

static s64 master_ioctl(struct file *f, u32 cmd, u64 arg)
{
	struct pty *p = master_of(f);

	switch (cmd) {
	case TIOCGPTN:
		return put_user(p->index, (u32 *)arg);
	case TIOCSPTLCK:
		return lock(p, (const int *)arg);
	case TIOCGPTLCK:
		return put_user(p->locked, (int *)arg);
	case TIOCGPTPEER:
		return open_peer(p, (u32)arg);
	case TIOCSIG:
		return signal_foreground(p, arg);
	case TIOCINQ:
		return put_user((int)used(p), (int *)arg);
	case TIOCGPGRP:			/* for others than its session too */
		return put_user(p->tty.pgrp, (pid_t *)arg);
	case TIOCGSID:
		return p->tty.session ? put_user(p->tty.session, (pid_t *)arg) : -ENOTTY;
	default:
		return tty_ioctl_on(&p->tty, f, cmd, arg);
	}
}

static void master_release(struct file *f)
{
	struct pty *p = master_of(f);
	struct dentry *name = p->name;

	mutex_lock(&ptys_lock);
	p->name = NULL;
	p->has_master = false;
	mutex_unlock(&ptys_lock);
	vfs_remove(name);
	dput(name);
	tty_hangup(&p->tty);
}

static const struct file_ops master_file_ops = {
	.read = master_read, .write = master_write, .poll = master_poll, .ioctl = master_ioctl, .release = master_release,
};

/* One that is free; ptys_lock held. */
static struct pty *find_free(void)
{
	for (u32 i = 0; i < PTYS_MAX; i++) {
		if (!ptys[i]) {
			ptys[i] = kzalloc(sizeof(*ptys[i]), GFP_KERNEL);
			if (!ptys[i])
				return NULL;
			ptys[i]->index = i;
			return ptys[i];
		}
		if (!ptys[i]->has_master && !ptys[i]->tty.opens)
			return ptys[i];
	}
	return NULL;
}

static int ptmx_open(struct inode *inode __unused, struct file *f)
{
	struct dentry *name = NULL;
	char text[12];
	struct pty *p;

	mutex_lock(&ptys_lock);
	p = find_free();
	if (p) {
		scnprintf(text, sizeof(text), "%u", p->index);
		name = vfs_make(devptsfs->root, text, S_IFCHR | 0620, &pts_file_ops, NULL);
	}
	if (!name || IS_ERR(name)) {
		mutex_unlock(&ptys_lock);
		return name ? (int)PTR_ERR(name) : -ENOSPC;
	}
	dget(name);
	name->inode->rdev = MKDEV(PTS_MAJOR, p->index);
	tty_init(&p->tty, &pty_ops, p, name->inode->rdev);
	p->tty.termios.t.cflag = B38400 | CS8 | CREAD;
	p->tty.termios.ispeed = p->tty.termios.ospeed = 38400;
	init_wait_queue(&p->wait);
	p->head = p->tail = 0;
	p->closed = p->held = false;
	p->name = name;
	p->has_master = p->locked = true;
	f->ops = &master_file_ops;
	f->private = p;
	mutex_unlock(&ptys_lock);
	return 0;
}

static const struct file_ops ptmx_file_ops = { .open = ptmx_open };
static struct chrdev ptmx_device = {
	.name = "ptmx", .major = TTYAUX_MAJOR, .minor = 2, .mode = 0666, .fops = &ptmx_file_ops,
};

static int pty_init(void)
{
	struct dentry *dir;

	devptsfs = super_create("devpts", DEVPTS_MAGIC);
	if (!devptsfs || !d_make_root(devptsfs, inode_new(devptsfs, S_IFDIR | 0755)))
		return -ENOMEM;
	dir = vfs_make(devtmpfs->root, "pts", S_IFDIR | 0755, NULL, NULL);	/* to be mounted there */
	return IS_ERR(dir) ? (int)PTR_ERR(dir) : register_chrdev(&ptmx_device);
}
device_initcall(pty_init);
