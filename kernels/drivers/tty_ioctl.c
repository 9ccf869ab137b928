/* Modes of terminals, and questions to them (ioctl_tty(2)). */
#include "tty.h"
#include "string.h"
#include "syscall.h"
#include "uaccess.h"

#define TCGETS		0x5401
#define TCSETS		0x5402
#define TCSETSW		0x5403
#define TCSETSF		0x5404
#define TCSBRK		0x5409
#define TCXONC		0x540a
#define TCFLSH		0x540b
#define TIOCEXCL	0x540c
#define TIOCNXCL	0x540d
#define TIOCOUTQ	0x5411
#define TIOCSTI		0x5412
#define TIOCGWINSZ	0x5413
#define TIOCSWINSZ	0x5414
#define TIOCMGET	0x5415
#define TIOCINQ		0x541b
#define TIOCSETD	0x5423
#define TIOCGETD	0x5424
#define TCSBRKP		0x5425
#define TIOCSBRK	0x5427
#define TIOCCBRK	0x5428
#define TCGETS2		0x802c542a
#define TCSETS2		0x402c542b
#define TCSETSW2	0x402c542c
#define TCSETSF2	0x402c542d
#define TIOCGDEV	0x80045432
#define TIOCVHANGUP	0x5437
#define TIOCGEXCL	0x80045440
#define TIOCSPGRP	0x5410

#define TIOCM_CABLE	0x166		/* DTR and RTS of ours, CTS, DSR and DCD of the other end */
#define BREAK_MS	250

enum when { NOW, WHEN_SENT, WHEN_SENT_AND_FLUSHED };

static int get_modes(struct tty *t, void *user, u64 size)
{
	u64 flags = spin_lock_irqsave(&t->lock);
	struct termios2 modes = t->termios;

	spin_unlock_irqrestore(&t->lock, flags);
	return copy_to_user(user, &modes, size) ? -EFAULT : 0;
}

static int set_modes(struct tty *t, const void *user, u64 size, enum when when)
{
	int err = tty_check_job(t, SIGTTOU);
	struct termios2 modes = t->termios;
	u64 flags;

	if (err)
		return err;
	if (copy_from_user(&modes, user, size))
		return -EFAULT;
	if (when != NOW) {
		err = tty_wait_sent(t);
		if (err)
			return err;
	}
	flags = spin_lock_irqsave(&t->lock);
	if (when == WHEN_SENT_AND_FLUSHED)
		tty_line_flush_input(t);
	tty_line_set(t, &modes);
	spin_unlock_irqrestore(&t->lock, flags);
	return 0;
}

static int set_window(struct tty *t, const void *user)
{
	struct winsize new;
	bool changed;
	u64 flags;

	if (copy_from_user(&new, user, sizeof(new)))
		return -EFAULT;
	flags = spin_lock_irqsave(&t->lock);
	changed = memcmp(&new, &t->winsize, sizeof(new));
	t->winsize = new;
	spin_unlock_irqrestore(&t->lock, flags);
	if (changed && t->pgrp)
		send_signal_group(t->pgrp, SIGWINCH);
	return 0;
}

static int flow(struct tty *t, u64 what)
{
	int err = tty_check_job(t, SIGTTOU);
	u64 flags;

	if (err)
		return err;
	if (what > 3)
		return -EINVAL;
	flags = spin_lock_irqsave(&t->lock);
	if (what < 2) {					/* TCOOFF, TCOON: our output */
		tty_hold(t, what == 0);
	} else {					/* TCIOFF, TCION: the other end's */
		u8 c = t->termios.t.cc[what == 2 ? VSTOP : VSTART];

		if (c && t->ops->room(t))
			t->ops->write(t, &c, 1);
	}
	spin_unlock_irqrestore(&t->lock, flags);
	return 0;
}

static int flush(struct tty *t, u64 what)
{
	int err = tty_check_job(t, SIGTTOU);
	u64 flags;

	if (err)
		return err;
	if (what > 2)
		return -EINVAL;
	flags = spin_lock_irqsave(&t->lock);
	if (what != 1)
		tty_line_flush_input(t);
	if (what != 0)
		t->ops->discard(t);
	spin_unlock_irqrestore(&t->lock, flags);
	wake_up(&t->write_wait);
	return 0;
}

/* What changes the line waits until all that was written is on it. */
static int settle_first(struct tty *t)
{
	int err = tty_check_job(t, SIGTTOU);

	return err ? err : tty_wait_sent(t);
}

static void send_break(struct tty *t)
{
	if (!t->ops->send_break)
		return;
	t->ops->send_break(t, true);
	msleep(BREAK_MS);
	t->ops->send_break(t, false);
}

static int set_discipline(const int *user)
{
	int n;

	if (get_user(n, user))
		return -EFAULT;
	return n ? -EINVAL : 0;				/* there is one */
}

/* As if it had been typed. */
static int type(struct tty *t, const u8 *user)
{
	u8 c;

	if (!capable())
		return -EIO;
	if (get_user(c, user))
		return -EFAULT;
	if (tty_has_room(t))
		tty_receive(t, c);
	return 0;
}

static u32 count(struct tty *t, bool output)
{
	u64 flags = spin_lock_irqsave(&t->lock);
	u32 n = output ? t->ops->pending(t) : tty_line_count(t);

	spin_unlock_irqrestore(&t->lock, flags);
	return n;
}

s64 tty_ioctl_on(struct tty *t, struct file *f, u32 cmd, u64 arg)
{
	void *user = (void *)arg;
	int err;

	switch (cmd) {
	case TCGETS:
		return get_modes(t, user, sizeof(struct termios));
	case TCGETS2:
		return get_modes(t, user, sizeof(struct termios2));
	case TCSETS ... TCSETSF:
		return set_modes(t, user, sizeof(struct termios), cmd - TCSETS);
	case TCSETS2 ... TCSETSF2:
		return set_modes(t, user, sizeof(struct termios2), cmd - TCSETS2);
	case TCSBRK:
	case TCSBRKP:
		err = settle_first(t);
		if (!err && (cmd == TCSBRKP || !arg))
			send_break(t);
		return err;
	case TIOCSBRK:
	case TIOCCBRK:
		err = cmd == TIOCSBRK ? settle_first(t) : tty_check_job(t, SIGTTOU);
		if (!err && t->ops->send_break)
			t->ops->send_break(t, cmd == TIOCSBRK);
		return err;
	case TCXONC:
		return flow(t, arg);
	case TCFLSH:
		return flush(t, arg);
	case TIOCOUTQ:
		return put_user((int)count(t, true), (int *)user);
	case TIOCINQ:
		return put_user((int)count(t, false), (int *)user);
	case TIOCGWINSZ:
		return copy_to_user(user, &t->winsize, sizeof(t->winsize)) ? -EFAULT : 0;
	case TIOCSWINSZ:
		return set_window(t, user);
	case TIOCEXCL:
	case TIOCNXCL:
		t->exclusive = cmd == TIOCEXCL;
		return 0;
	case TIOCGEXCL:
		return put_user(t->exclusive, (int *)user);
	case TIOCMGET:
		return t->ops->send_break ? put_user(TIOCM_CABLE, (int *)user) : -ENOTTY;
	case TIOCGETD:
		return put_user(0, (int *)user);
	case TIOCSETD:
		return set_discipline(user);
	case TIOCGDEV:
		return put_user((u32)t->rdev, (u32 *)user);
	case TIOCSTI:
		return type(t, user);
	case TIOCVHANGUP:
		if (!capable())
			return -EPERM;
		tty_hangup(t);
		return 0;
	default:
		return tty_job_ioctl(t, f, cmd, arg);
	}
}

s64 tty_ioctl(struct file *f, u32 cmd, u64 arg)
{
	struct tty *t = tty_of(f);

	if (!t)
		return cmd == TIOCSPGRP ? -ENOTTY : -EIO;
	return tty_ioctl_on(t, f, cmd, arg);
}
