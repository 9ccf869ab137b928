/* Waiting for children: wait4 and waitid. A zombie that was waited for is gone; what stopped or went on is reported once.
 */
#include "proc_internal.h"
#include "string.h"
#include "syscall.h"
#include "uaccess.h"
#include "vfs.h"

#define WNOHANG		0x00000001
#define WSTOPPED	0x00000002		/* WUNTRACED */
#define WEXITED		0x00000004
#define WCONTINUED	0x00000008
#define WNOWAIT		0x01000000
#define WNOTHREAD	0x20000000
#define WALL		0x40000000
#define WCLONE		0x80000000U

#define P_ALL		0
#define P_PID		1
#define P_PGID		2
#define P_PIDFD		3

struct wait_request {
	int which;				/* P_* */
	pid_t id;
	u32 options;
	bool nonblocking;			/* the pidfd is: -EAGAIN instead of 0 */
	/* found */
	s64 result;				/* pid, 0, -errno */
	struct process *released;
	u32 uid;
	int status, code;			/* as wait4 and as waitid report it */
	u64 user_ticks, system_ticks;
};

struct rusage {
	struct {
		s64 sec, usec;
	} utime, stime;
	s64 others[14];
};
static_assert(sizeof(struct rusage) == 144, "rusage");

static bool is_meant(const struct wait_request *w, const struct process *child)
{
	bool clone = child->exit_signal != SIGCHLD;

	if (w->which == P_PID && child->pid != w->id)
		return false;
	if (w->which == P_PGID && child->pgrp != w->id)
		return false;
	return w->options & WALL || clone == !!(w->options & WCLONE);
}

static void found(struct wait_request *w, const struct process *child, int status, int code)
{
	w->result = child->pid;
	w->status = status;
	w->code = code;
	w->user_ticks = child->user_ticks + child->child_user_ticks;
	w->system_ticks = child->system_ticks + child->child_system_ticks;
}

static bool take_zombie(struct wait_request *w, struct process *child)
{
	int sig = child->exit_status & 0x7f;

	if (!child->zombie || !(w->options & WEXITED))
		return false;
	found(w, child, child->exit_status, sig ? (child->exit_status & 0x80 ? CLD_DUMPED : CLD_KILLED) : CLD_EXITED);
	if (!(w->options & WNOWAIT)) {
		account_to_parent(child);
		unlink_process(child);
		w->released = child;
	}
	return true;
}

static bool take_stopped(struct wait_request *w, struct process *child)
{
	if (!child->stopped || child->stop_reported || child->exiting || !(w->options & WSTOPPED))
		return false;
	found(w, child, child->stop_signal << 8 | 0x7f, CLD_STOPPED);
	if (!(w->options & WNOWAIT))
		child->stop_reported = true;
	return true;
}

static bool take_continued(struct wait_request *w, struct process *child)
{
	if (!child->continued || child->exiting || !(w->options & WCONTINUED))
		return false;
	found(w, child, 0xffff, CLD_CONTINUED);
	if (!(w->options & WNOWAIT))
		child->continued = false;
	return true;
}

/* Is the answer there? */
static bool try_wait(struct wait_request *w)
{
	struct process *child;
	u64 flags = spin_lock_irqsave(&task_lock);
	bool done = false;

	w->result = -ECHILD;
	list_for_each_entry(child, &current_process()->children, sibling) {
		if (!is_meant(w, child))
			continue;
		w->result = 0;
		done = take_zombie(w, child) || take_stopped(w, child) || take_continued(w, child);
		if (done)
			break;
	}
	spin_unlock_irqrestore(&task_lock, flags);
	return done || w->result == -ECHILD || w->options & WNOHANG;
}

/* pid, 0 with WNOHANG, -ECHILD, -ERESTARTSYS */
static s64 do_wait(struct wait_request *w)
{
	int err;

	reap_dead_tasks();
	err = wait_event_interruptible(&current_process()->wait, try_wait(w));
	if (err)
		return err;
	if (w->released) {
		reap_dead_tasks();
		process_put(w->released);
	}
	return w->result;
}

static int put_rusage(const struct wait_request *w, void *user)
{
	struct rusage usage;

	if (!user)
		return 0;
	memset(&usage, 0, sizeof(usage));
	fill_cpu_times(w->user_ticks, w->system_ticks, &usage);
	return copy_to_user(user, &usage, sizeof(usage)) ? -EFAULT : 0;
}

SYSCALL_DEFINE4(wait4, 61, pid_t, pid, int *, status, u32, options, void *, rusage)
{
	struct wait_request w = { .options = options | WEXITED };
	s64 result;

	if (options & ~(WNOHANG | WSTOPPED | WCONTINUED | WNOTHREAD | WALL | WCLONE))
		return -EINVAL;
	if (pid == -0x7fffffff - 1)
		return -ESRCH;
	if (pid == -1) {
		w.which = P_ALL;
	} else if (pid > 0) {
		w.which = P_PID;
		w.id = pid;
	} else {
		w.which = P_PGID;
		w.id = pid ? -pid : current_process()->pgrp;
	}
	result = do_wait(&w);
	if (result <= 0)
		return result;
	if ((status && put_user(w.status, status)) || put_rusage(&w, rusage))
		return -EFAULT;
	return result;
}

static int set_target(struct wait_request *w, int which, pid_t id)
{
	struct process *p;

	w->which = which;
	w->id = id;
	switch (which) {
	case P_ALL:
		return 0;
	case P_PID:
		return id > 0 ? 0 : -EINVAL;
	case P_PGID:
		if (id < 0)
			return -EINVAL;
		if (!id)
			w->id = current_process()->pgrp;
		return 0;
	case P_PIDFD:
		if (id < 0)
			return -EINVAL;
		p = pidfd_process(id, &w->nonblocking);
		if (IS_ERR(p))
			return (int)PTR_ERR(p);
		if (w->options & WNOHANG)
			w->nonblocking = false;
		else if (w->nonblocking)
			w->options |= WNOHANG;
		w->which = P_PID;
		w->id = p->pid;
		process_put(p);
		return 0;
	default:
		return -EINVAL;
	}
}

/* The parts of siginfo that waitid(2) defines. */
static int put_wait_info(void *user, const struct wait_request *w, s64 result)
{
	struct {
		s32 signo, err, code, pad, pid;
		u32 uid;
		s32 status;
	} info;

	if (!user)
		return 0;
	memset(&info, 0, sizeof(info));
	if (result > 0) {
		info.signo = SIGCHLD;
		info.code = w->code;
		info.pid = (s32)result;
		info.status = w->code == CLD_EXITED ? w->status >> 8 & 0xff :
			      w->code == CLD_STOPPED ? w->status >> 8 & 0xff :
			      w->code == CLD_CONTINUED ? SIGCONT : w->status & 0x7f;
	}
	return copy_to_user(user, &info, sizeof(info)) ? -EFAULT : 0;
}

SYSCALL_DEFINE5(waitid, 247, int, which, pid_t, id, void *, info, u32, options, void *, rusage)
{
	struct wait_request w = { .options = options };
	s64 result;
	int err;

	if (options & ~(WNOHANG | WNOWAIT | WEXITED | WSTOPPED | WCONTINUED | WNOTHREAD | WALL | WCLONE))
		return -EINVAL;
	if (!(options & (WEXITED | WSTOPPED | WCONTINUED)))
		return -EINVAL;
	err = set_target(&w, which, id);
	if (err)
		return err;
	result = do_wait(&w);
	if (result < 0)
		return result;
	if (!result && w.nonblocking)
		return -EAGAIN;
	if (result && put_rusage(&w, rusage))
		return -EFAULT;
	return put_wait_info(info, &w, result);
}
