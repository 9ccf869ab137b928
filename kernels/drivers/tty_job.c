/* Terminals and jobs: a session has at most one controlling terminal, and that has one foreground group, which gets the
 * signals of the keyboard. Others are stopped when they read, and when they write if the terminal says so.
 *
 * Who belongs to whom is under task_lock, together with the groups and sessions themselves. A terminal is never freed,
 * so a pointer to one stays good.
 */
#include "tty.h"
#include "syscall.h"
#include "uaccess.h"

#define TIOCSCTTY	0x540e
#define TIOCGPGRP	0x540f
#define TIOCSPGRP	0x5410
#define TIOCNOTTY	0x5422
#define TIOCGSID	0x5429

struct tty *current_tty(void)
{
	return READ_ONCE(current_process()->tty);
}

u32 tty_number(const struct process *p)
{
	const struct tty *t = READ_ONCE(p->tty);

	return t ? (u32)t->rdev : 0;
}

pid_t tty_foreground(const struct process *p)
{
	const struct tty *t = READ_ONCE(p->tty);

	return t ? t->pgrp : -1;
}

static bool is_ignored(const struct task *t, int sig)
{
	return t->blocked & sigmask(sig) || t->sighand->action[sig - 1].handler == SIG_IGN;
}

int tty_check_job(struct tty *t, int sig)
{
	const struct process *p = current_process();
	pid_t group = READ_ONCE(t->pgrp);

	if (p->tty != t || !group || p->pgrp == group)
		return 0;
	if (is_ignored(current_task(), sig))
		return sig == SIGTTIN ? -EIO : 0;
	if (pgrp_is_orphaned(p->pgrp))
		return -EIO;
	send_signal_group(p->pgrp, sig);
	return -ERESTARTSYS;
}

/* ---- whose it is; task_lock held ---- */

static void give(struct tty *t, struct process *leader)
{
	t->session = leader->session;
	t->pgrp = leader->pgrp;
	leader->tty = t;
}

static void take_from_session(struct tty *t)
{
	struct process *p;

	list_for_each_entry(p, &all_processes, all)
		if (p->tty == t)
			p->tty = NULL;
	t->session = t->pgrp = 0;
}

static bool leads_session(const struct process *p) { return p->pid == p->session; }

/* ---- without it ---- */

void tty_opened_by_leader(struct tty *t, bool readable)
{
	struct process *p;
	u64 flags;

	if (!current_task() || !readable)
		return;
	p = current_process();
	flags = spin_lock_irqsave(&task_lock);
	if (leads_session(p) && !p->tty && !t->session)
		give(t, p);
	spin_unlock_irqrestore(&task_lock, flags);
}

static int set_controlling(struct tty *t, struct file *f, bool steal)
{
	struct process *p = current_process();
	bool root = capable();
	u64 flags = spin_lock_irqsave(&task_lock);
	int err = 0;

	if (leads_session(p) && t->session == p->session)
		goto out;
	err = -EPERM;
	if (!leads_session(p) || p->tty)
		goto out;
	if (t->session) {
		if (!steal || !root)
			goto out;
		take_from_session(t);
	}
	if (!(f->mode & FMODE_READ) && !root)
		goto out;
	give(t, p);
	err = 0;
out:
	spin_unlock_irqrestore(&task_lock, flags);
	return err;
}

static void signal_foreground(pid_t group, bool go_on)
{
	if (!group)
		return;
	send_signal_group(group, SIGHUP);
	if (go_on)
		send_signal_group(group, SIGCONT);
}

/* A leader takes it from the whole session, others only from themselves. */
static int give_up(struct tty *t)
{
	struct process *p = current_process();
	u64 flags = spin_lock_irqsave(&task_lock);
	int err = p->tty == t ? 0 : -ENOTTY;
	pid_t group = 0;

	if (!err && leads_session(p)) {
		group = t->pgrp;
		take_from_session(t);
	} else if (!err) {
		p->tty = NULL;
	}
	spin_unlock_irqrestore(&task_lock, flags);
	signal_foreground(group, true);
	return err;
}

static int set_foreground(struct tty *t, const pid_t *user)
{
	const struct process *p = current_process(), *other;
	int err = tty_check_job(t, SIGTTOU);
	pid_t group;
	u64 flags;

	if (err)
		return err == -EIO ? -ENOTTY : err;
	if (p->tty != t || t->session != p->session)
		return -ENOTTY;
	if (get_user(group, user))
		return -EFAULT;
	if (group < 0)
		return -EINVAL;
	flags = spin_lock_irqsave(&task_lock);
	err = -ESRCH;
	list_for_each_entry(other, &all_processes, all) {
		if (other->pgrp != group)
			continue;
		err = other->session == p->session ? 0 : -EPERM;
		break;
	}
	if (!err)
		t->pgrp = group;
	spin_unlock_irqrestore(&task_lock, flags);
	return err;
}

s64 tty_job_ioctl(struct tty *t, struct file *f, u32 cmd, u64 arg)
{
	switch (cmd) {
	case TIOCSCTTY:
		return set_controlling(t, f, arg == 1);
	case TIOCNOTTY:
		return give_up(t);
	case TIOCSPGRP:
		return set_foreground(t, (const pid_t *)arg);
	case TIOCGPGRP:
		return current_tty() != t ? -ENOTTY : put_user(t->pgrp, (pid_t *)arg);
	case TIOCGSID:
		return current_tty() != t || !t->session ? -ENOTTY : put_user(t->session, (pid_t *)arg);
	default:
		return -ENOTTY;
	}
}

/* Every file of it is dead, nobody has it any more. */
void tty_hangup(struct tty *t)
{
	u64 flags = spin_lock_irqsave(&task_lock);
	pid_t group = t->pgrp, session = t->session;

	take_from_session(t);
	spin_unlock_irqrestore(&task_lock, flags);
	flags = spin_lock_irqsave(&t->lock);
	t->hangups++;
	tty_line_flush_input(t);
	t->exclusive = false;
	tty_hold(t, false);
	spin_unlock_irqrestore(&t->lock, flags);
	wake_up(&t->read_wait);
	wake_up(&t->write_wait);
	if (session && session != group)
		signal_foreground(session, true);
	signal_foreground(group, true);
}

SYSCALL_DEFINE0(vhangup, 153)
{
	struct tty *t = current_tty();

	if (!capable())
		return -EPERM;
	if (t)
		tty_hangup(t);
	return 0;
}

/* A line is hung up. A pseudo-terminal stays what it is for those who have it open: its master decides. */
void tty_leader_exit(struct process *leader)
{
	struct tty *t = leader->tty;
	pid_t group = 0;
	u64 flags;

	if (!t)
		return;
	if (t->ops->hangs_up) {
		tty_hangup(t);
		return;
	}
	flags = spin_lock_irqsave(&task_lock);
	if (leader->tty == t) {
		group = t->pgrp;
		take_from_session(t);
	}
	spin_unlock_irqrestore(&task_lock, flags);
	signal_foreground(group, false);
}
