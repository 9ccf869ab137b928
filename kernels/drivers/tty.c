/* Terminals as files: opening, reading, writing, and what a driver calls.
 *
 * A file remembers how often its terminal had been hung up when it was opened: after the next hangup it is dead, reads
 * an end of file and writes nothing. /dev/console is the same terminal, but never becomes a controlling one by being
 * opened, has no job control, and outlives hangups, because it belongs to the machine and not to a session.
 */
#include "tty.h"
#include "arch.h"
#include "init.h"
#include "ktimer.h"
#include "panic.h"
#include "poll.h"
#include "string.h"
#include "syscall.h"
#include "uaccess.h"

#define WRITE_CHUNK	512U
#define DECISECOND	100000000UL	/* ns; the unit of VTIME */
#define POLL_ROOM	256U		/* writable: fewer bytes than this wait */

struct tty_file {
	struct tty *tty;
	u32 hangups;
	bool is_console;
};

static struct tty *registered[8];

/* ---- what drivers call ---- */

static const struct termios2 default_modes = {
	.t = {
		.iflag = ICRNL | IXON,
		.oflag = OPOST | ONLCR,
		.cflag = B115200 | CS8 | CREAD | HUPCL | CLOCAL,
		.lflag = ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN,
		.cc = { [VINTR] = 3, [VQUIT] = 0x1c, [VERASE] = 0x7f, [VKILL] = 0x15, [VEOF] = 4, [VMIN] = 1,
			[VSTART] = 0x11, [VSTOP] = 0x13, [VSUSP] = 0x1a, [VREPRINT] = 0x12, [VDISCARD] = 0xf,
			[VWERASE] = 0x17, [VLNEXT] = 0x16 },
	},
	.ispeed = 115200, .ospeed = 115200,
};

void tty_init(struct tty *t, const struct tty_ops *ops, void *driver, u64 rdev)
{
	memset(t, 0, sizeof(*t));
	t->ops = ops;
	t->driver = driver;
	t->rdev = rdev;
	init_wait_queue(&t->read_wait);
	init_wait_queue(&t->write_wait);
	mutex_init(&t->reader);
	mutex_init(&t->writer);
	t->termios = t->initial = default_modes;
}

int tty_register(struct tty *t, struct chrdev *dev)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(registered) && registered[i]; i++)
		;
	if (i == ARRAY_SIZE(registered))
		return -ENOMEM;
	registered[i] = t;
	dev->fops = &tty_file_ops;
	return register_chrdev(dev);
}

bool tty_has_room(struct tty *t)
{
	u64 flags = spin_lock_irqsave(&t->lock);
	bool room = tty_line_room(t);

	if (!room && !t->throttled && t->ops->throttle) {
		t->throttled = true;
		t->ops->throttle(t, true);
	}
	spin_unlock_irqrestore(&t->lock, flags);
	return room;
}

void tty_receive(struct tty *t, u8 c)
{
	u64 flags = spin_lock_irqsave(&t->lock);

	tty_line_receive(t, c);
	spin_unlock_irqrestore(&t->lock, flags);
}

void tty_receive_break(struct tty *t)
{
	u64 flags = spin_lock_irqsave(&t->lock);

	tty_line_break(t);
	spin_unlock_irqrestore(&t->lock, flags);
}

/* Those who wait for room or for the end of the output. */
void tty_wake_writers(struct tty *t)
{
	u64 flags = spin_lock_irqsave(&t->lock);
	bool now = t->ops->pending(t) < POLL_ROOM;

	spin_unlock_irqrestore(&t->lock, flags);
	if (now)
		wake_up(&t->write_wait);
}

/* ---- open and close ---- */

static struct tty_file *info_of(struct file *f) { return f->private; }

static bool is_dead(struct file *f)
{
	const struct tty_file *i = info_of(f);

	return !i->is_console && i->hangups != READ_ONCE(i->tty->hangups);
}

struct tty *tty_of(struct file *f)
{
	return is_dead(f) ? NULL : info_of(f)->tty;
}

int tty_open_file(struct tty *t, struct file *f, bool is_console)
{
	struct tty_file *i;

	if (t->exclusive && !capable())
		return -EBUSY;
	i = kzalloc(sizeof(*i), GFP_KERNEL);
	if (!i)
		return -ENOMEM;
	i->tty = t;
	i->hangups = t->hangups;
	i->is_console = is_console;
	f->private = i;
	__atomic_add_fetch(&t->opens, 1, __ATOMIC_SEQ_CST);
	if (!is_console && !(f->flags & O_NOCTTY))
		tty_opened_by_leader(t, f->mode & FMODE_READ);
	return 0;
}

static void tty_release(struct file *f)
{
	struct tty *t = info_of(f)->tty;

	kfree(f->private);
	if (__atomic_sub_fetch(&t->opens, 1, __ATOMIC_SEQ_CST))
		return;
	t->exclusive = false;
	if (t->ops->closed)
		t->ops->closed(t);
}

static int tty_open(struct inode *inode, struct file *f)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(registered) && registered[i]; i++)
		if (registered[i]->rdev == inode->rdev)
			return tty_open_file(registered[i], f, false);
	return -ENXIO;
}

/* ---- reading ---- */

struct reading {
	struct file *f;
	struct tty *tty;
	u64 seen;			/* bytes that are not news */
};

static bool something_new(void *arg)
{
	const struct reading *r = arg;
	struct tty *t = r->tty;
	u64 flags = spin_lock_irqsave(&t->lock);
	bool yes = tty_line_readable(t, false);

	spin_unlock_irqrestore(&t->lock, flags);
	return yes || is_dead(r->f);
}

/* How long a read waits, by the modes (termios(3), "Canonical and noncanonical mode"). */
struct patience {
	u64 least;			/* bytes that end it */
	u64 between;			/* ns from one byte to the next, 0: for ever */
	u64 first;			/* ns to the first byte, 0: for ever */
	bool none;
};

static struct patience patience_of(const struct tty *t, u64 size)
{
	const u8 *cc = t->termios.t.cc;

	if (t->termios.t.lflag & ICANON)
		return (struct patience){ .least = 1 };
	if (cc[VMIN])
		return (struct patience){ .least = min((u64)cc[VMIN], size), .between = cc[VTIME] * DECISECOND };
	return (struct patience){ .least = 1, .first = cc[VTIME] * DECISECOND, .none = !cc[VTIME] };
}

static ssize_t read_line(struct file *f, struct tty *t, u8 *buf, u64 size)
{
	struct reading r = { .f = f, .tty = t };
	u64 done = 0, deadline = 0, start = ktime_get_ns();
	int err = 0;

	while (1) {
		u64 flags = spin_lock_irqsave(&t->lock);
		struct patience p = patience_of(t, size);
		bool end;
		u32 n = is_dead(f) ? 0 : tty_line_read(t, buf + done, (u32)(size - done), &end);

		spin_unlock_irqrestore(&t->lock, flags);
		done += n;
		if (is_dead(f) || end || done >= p.least || p.none)
			break;
		if (f->flags & O_NONBLOCK) {
			err = -EAGAIN;
			break;
		}
		if (n && p.between)
			deadline = deadline_after(p.between);
		else if (!done && p.first)
			deadline = start + p.first;
		err = wait_until(&t->read_wait, something_new, &r, deadline);
		if (err)
			break;
	}
	if (done || err == -ETIMEDOUT)
		return (ssize_t)done;
	return err;
}

/* One of several readers or writers at a time, unless a signal comes. */
static int take_turn(struct mutex *turn, struct wait_queue *q, u32 flags)
{
	if (mutex_trylock(turn))
		return 0;
	return flags & O_NONBLOCK ? -EAGAIN : wait_event_interruptible(q, mutex_trylock(turn));
}

static void end_turn(struct mutex *turn, struct wait_queue *q)
{
	mutex_unlock(turn);
	wake_up(q);
}

static ssize_t tty_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	struct tty *t = tty_of(f);
	ssize_t n;
	u8 *buf;

	(void)pos;
	if (!t || !size)
		return 0;
	n = info_of(f)->is_console ? 0 : tty_check_job(t, SIGTTIN);
	if (n)
		return n;
	size = min(size, (u64)LINE_SIZE);
	buf = kmalloc(size, GFP_KERNEL);
	if (!buf)
		return -ENOMEM;
	n = take_turn(&t->reader, &t->read_wait, f->flags);
	if (!n) {
		n = read_line(f, t, buf, size);
		end_turn(&t->reader, &t->read_wait);
	}
	if (n > 0 && copy_to_user(user, buf, (u64)n))
		n = -EFAULT;
	kfree(buf);
	return n;
}

/* ---- writing ---- */

static bool can_write(struct tty *t)
{
	u64 flags = spin_lock_irqsave(&t->lock);
	bool yes = !t->stopped && t->ops->room(t) >= POLL_ROOM;

	spin_unlock_irqrestore(&t->lock, flags);
	return yes;
}

/* A piece, all of it or until something is in the way. */
static ssize_t write_piece(struct file *f, struct tty *t, const u8 *buf, u32 size)
{
	u32 done = 0;
	int err;

	while (1) {
		u64 flags = spin_lock_irqsave(&t->lock);

		err = is_dead(f) ? -EIO : 0;
		if (!err)
			done += tty_line_write(t, buf + done, size - done);
		spin_unlock_irqrestore(&t->lock, flags);
		if (err || done == size)
			break;
		err = -EAGAIN;
		if (!(f->flags & O_NONBLOCK))
			err = wait_event_interruptible(&t->write_wait, can_write(t) || is_dead(f));
		if (err)
			break;
	}
	return done ? (ssize_t)done : err;
}

static ssize_t write_all(struct file *f, struct tty *t, const u8 *user, u64 size)
{
	u64 done = 0;
	ssize_t n = 0;

	while (done < size && !(done && signal_pending())) {
		u8 buf[WRITE_CHUNK];
		u32 piece = (u32)min(size - done, (u64)WRITE_CHUNK);

		n = copy_from_user(buf, user + done, piece) ? -EFAULT : write_piece(f, t, buf, piece);
		if (n > 0)
			done += (u64)n;
		if (n != (ssize_t)piece)
			break;
	}
	return done ? (ssize_t)done : n;
}

static ssize_t tty_write(struct file *f, const void *user, u64 size, loff_t *pos)
{
	struct tty *t = tty_of(f);
	ssize_t n = 0;

	(void)pos;
	if (!t)
		return -EIO;
	if (t->termios.t.lflag & TOSTOP && !info_of(f)->is_console)
		n = tty_check_job(t, SIGTTOU);
	if (!n)
		n = take_turn(&t->writer, &t->write_wait, f->flags);
	if (n)
		return n;
	n = write_all(f, t, user, size);
	end_turn(&t->writer, &t->write_wait);
	return n;
}

static bool all_sent(struct tty *t)
{
	u64 flags = spin_lock_irqsave(&t->lock);
	bool yes = !t->ops->pending(t);

	spin_unlock_irqrestore(&t->lock, flags);
	return yes;
}

int tty_wait_sent(struct tty *t)
{
	int err = wait_event_interruptible(&t->write_wait, all_sent(t));

	if (!err && t->ops->settle)
		t->ops->settle(t);
	return err;
}

static u32 tty_poll(struct file *f, struct poll_table *pt)
{
	struct tty *t = info_of(f)->tty;
	u32 events = 0;
	u64 flags;

	poll_wait(f, &t->read_wait, pt);
	poll_wait(f, &t->write_wait, pt);
	if (is_dead(f))
		return EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP;
	flags = spin_lock_irqsave(&t->lock);
	if (tty_line_readable(t, true))
		events |= EPOLLIN;
	if (!t->stopped && t->ops->pending(t) < POLL_ROOM && t->ops->room(t))
		events |= EPOLLOUT;
	spin_unlock_irqrestore(&t->lock, flags);
	return events;
}

const struct file_ops tty_file_ops = {
	.open = tty_open, .read = tty_read, .write = tty_write, .poll = tty_poll, .ioctl = tty_ioctl,
	.release = tty_release,
};

/* ---- /dev/console, /dev/tty ---- */

static int console_open(struct inode *inode __unused, struct file *f)
{
	struct tty *t = console_tty();

	return t ? tty_open_file(t, f, true) : -ENODEV;
}

static int current_tty_open(struct inode *inode __unused, struct file *f)
{
	struct tty *t = current_tty();

	if (!t)
		return -ENXIO;
	f->ops = &tty_file_ops;
	return tty_open_file(t, f, false);
}

static const struct file_ops console_file_ops = {
	.open = console_open, .read = tty_read, .write = tty_write, .poll = tty_poll, .ioctl = tty_ioctl,
	.release = tty_release,
};
static const struct file_ops current_tty_ops = { .open = current_tty_open };

static struct chrdev console_device = {
	.name = "console", .major = TTYAUX_MAJOR, .minor = 1, .mode = 0600, .fops = &console_file_ops,
};
static struct chrdev current_tty_device = {
	.name = "tty", .major = TTYAUX_MAJOR, .minor = 0, .mode = 0666, .fops = &current_tty_ops,
};

static int tty_init_devices(void)
{
	int err = register_chrdev(&console_device);

	return err ? err : register_chrdev(&current_tty_device);
}
device_initcall(tty_init_devices);
