/* poll(2) and select(2): one look at every file, which also puts a waiter on each queue that the file names; then sleep
 * until one of them is woken, and look again.
 */
#include "poll.h"
#include "arch.h"
#include "errno.h"
#include "ktimer.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"
#include "vfs.h"

#define POLLNVAL	0x020
#define FD_SETSIZE	1024

struct entry {
	struct list_head list;
	struct waiter waiter;
	struct wait_queue *queue;
	struct file *file;		/* keeps the queue */
};

struct look {
	struct poll_table table;
	struct list_head entries;
	bool failed;			/* no memory for an entry */
};

void poll_wait(struct file *f, struct wait_queue *q, struct poll_table *t)
{
	if (t)
		t->add(t, f, q);
}

static void add_entry(struct poll_table *table, struct file *f, struct wait_queue *q)
{
	struct look *t = container_of(table, struct look, table);
	struct entry *e = kzalloc(sizeof(*e), GFP_KERNEL);

	if (!e) {
		t->failed = true;
		return;
	}
	e->queue = q;
	e->file = f;
	file_get(f);
	list_add_tail(&e->list, &t->entries);
	prepare_to_wait(q, &e->waiter);
}

static void look_end(struct look *t)
{
	struct entry *e, *next;

	list_for_each_entry_safe(e, next, &t->entries, list) {
		finish_wait(e->queue, &e->waiter);
		list_del(&e->list);
		fput(e->file);
		kfree(e);
	}
}

u32 file_poll(struct file *f, struct poll_table *t)
{
	u32 events = f->ops->poll ? f->ops->poll(f, t) : EPOLLIN | EPOLLOUT;

	return events | (events & EPOLLIN ? EPOLLRDNORM : 0) | (events & EPOLLOUT ? EPOLLWRNORM : 0);
}

static bool any_woken(const struct look *t)
{
	struct entry *e;

	list_for_each_entry(e, &t->entries, list)
		if (READ_ONCE(e->waiter.woken))
			return true;
	return false;
}

/* Sleeps unless a queue was woken since the look. The waiters on the files' queues cannot keep this thread asleep, since
 * looking may itself have slept; so it goes to sleep on a queue of its own, and only then asks whether to. */
static void sleep_on(const struct look *t, u64 deadline)
{
	struct wait_queue own = WAIT_QUEUE_INIT(own);
	struct waiter w;

	prepare_to_wait(&own, &w);
	if (!any_woken(t) && !signal_pending())
		schedule_until(deadline);
	finish_wait(&own, &w);
}

/* Repeats look() until it finds something, the deadline (0: never) is over, or a signal comes. It is told to wait by
 * getting a table. Result of look(), 0, -ERESTARTNOHAND, -ENOMEM. */
int poll_until(int (*look)(void *ctx, struct poll_table *t), void *ctx, bool block, u64 deadline)
{
	while (1) {
		struct look t = { .table.add = add_entry, .entries = LIST_HEAD_INIT(t.entries) };
		int n = look(ctx, block ? &t.table : NULL);

		if (n || !block || t.failed) {
			look_end(&t);
			return n ? n : t.failed ? -ENOMEM : 0;
		}
		if (signal_pending())
			n = -ERESTARTNOHAND;
		else if (deadline && ktime_get_ns() >= deadline)
			block = false;
		else
			sleep_on(&t, deadline);
		look_end(&t);
		if (n)
			return n;
	}
}

/* ---- poll ---- */

struct pollfd {
	s32 fd;
	s16 events, revents;
};

struct poll_request {
	struct pollfd *fds;
	u64 count;
};

static int look_poll(void *ctx, struct poll_table *t)
{
	struct poll_request *r = ctx;
	int n = 0;

	for (u64 i = 0; i < r->count; i++) {
		struct pollfd *p = &r->fds[i];
		struct file *f;

		p->revents = 0;
		if (p->fd < 0)
			continue;
		f = fget(p->fd);
		if (f) {
			u32 wanted = (u16)p->events | EPOLLERR | EPOLLHUP;
			u32 got = file_poll(f, n ? NULL : t);

			p->revents = (s16)(got & wanted);
			fput(f);
		} else {
			p->revents = POLLNVAL;
		}
		n += p->revents != 0;
	}
	return n;
}

static s64 do_poll(struct pollfd *user, u64 count, bool block, u64 deadline)
{
	struct poll_request r = { .count = count };
	s64 n;

	if (count > current_process()->rlim[RLIMIT_NOFILE].cur)
		return -EINVAL;
	r.fds = kmalloc(count * sizeof(r.fds[0]) + 1, GFP_KERNEL);
	if (!r.fds)
		return -ENOMEM;
	n = -EFAULT;
	if (!copy_from_user(r.fds, user, count * sizeof(r.fds[0]))) {
		n = poll_until(look_poll, &r, block, deadline);
		for (u64 i = 0; n >= 0 && i < count; i++)
			if (put_user(r.fds[i].revents, &user[i].revents))
				n = -EFAULT;
	}
	kfree(r.fds);
	return n;
}

/* poll(2) is restarted with the time that is left. */
static s64 restart_poll(struct task *t)
{
	return do_poll((struct pollfd *)t->restart_data[0], t->restart_data[1], true, t->restart_data[2]);
}

SYSCALL_DEFINE3(poll, 7, struct pollfd *, fds, u64, count, s32, timeout_ms)
{
	struct task *t = current_task();
	u64 deadline = timeout_ms > 0 ? deadline_after((u64)timeout_ms * 1000000) : 0;
	s64 n = do_poll(fds, count, timeout_ms != 0, deadline);

	if (n == -ERESTARTNOHAND) {
		t->restart = restart_poll;
		t->restart_data[0] = (u64)fds;
		t->restart_data[1] = count;
		t->restart_data[2] = deadline;
		return -ERESTART_RESTARTBLOCK;
	}
	return n;
}

static int get_timeout(const struct timespec *user, bool *block, u64 *deadline)
{
	u64 ns;
	int err;

	*block = true;
	*deadline = 0;
	if (!user)
		return 0;
	err = get_timespec(&ns, user);
	if (err)
		return err;
	*block = ns;
	*deadline = deadline_after(ns);
	return 0;
}

/* Linux tells how much time was left. */
static void put_time_left(struct timespec *user, u64 deadline)
{
	u64 now = ktime_get_ns();

	if (user)
		(void)put_timespec(user, deadline > now ? deadline - now : 0);
}

SYSCALL_DEFINE5(ppoll, 271, struct pollfd *, fds, u64, count, struct timespec *, timeout, const sigset_t *, mask,
		u64, mask_size)
{
	u64 deadline;
	bool block;
	s64 n = get_timeout(timeout, &block, &deadline);

	if (!n)
		n = set_user_sigmask(mask, mask_size);
	if (n)
		return n;
	n = do_poll(fds, count, block, deadline);
	put_time_left(timeout, deadline);
	restore_sigmask_unless(n == -ERESTARTNOHAND);
	return n;
}

/* ---- select ---- */

#define SET_WORDS (FD_SETSIZE / 64)

struct select_request {
	u32 nfds;
	u64 in[3][SET_WORDS], out[3][SET_WORDS];
};

static int look_select(void *ctx, struct poll_table *t)
{
	static const u32 events[3] = { EPOLLIN | EPOLLHUP | EPOLLERR, EPOLLOUT | EPOLLERR, EPOLLPRI };
	struct select_request *r = ctx;
	int n = 0;

	memset(r->out, 0, sizeof(r->out));
	for (u32 fd = 0; fd < r->nfds; fd++) {
		u64 bit = 1UL << (fd % 64);
		struct file *f;
		u32 got;

		if (!((r->in[0][fd / 64] | r->in[1][fd / 64] | r->in[2][fd / 64]) & bit))
			continue;
		f = fget((int)fd);
		if (!f)
			return -EBADF;
		got = file_poll(f, n ? NULL : t);
		fput(f);
		for (u32 i = 0; i < 3; i++) {
			if (r->in[i][fd / 64] & bit && got & events[i]) {
				r->out[i][fd / 64] |= bit;
				n++;
			}
		}
	}
	return n;
}

static s64 do_select(s32 nfds, u64 *sets[3], bool block, u64 deadline)
{
	struct select_request *r;
	u64 size;
	s64 n = 0;

	if (nfds < 0)
		return -EINVAL;
	r = kzalloc(sizeof(*r), GFP_KERNEL);
	if (!r)
		return -ENOMEM;
	r->nfds = min((u32)nfds, (u32)FD_SETSIZE);
	size = DIV_ROUND_UP(r->nfds, 64) * 8;
	for (u32 i = 0; i < 3; i++)
		if (sets[i] && copy_from_user(r->in[i], sets[i], size))
			n = -EFAULT;
	if (!n)
		n = poll_until(look_select, r, block, deadline);
	for (u32 i = 0; n >= 0 && i < 3; i++)
		if (sets[i] && copy_to_user(sets[i], r->out[i], size))
			n = -EFAULT;
	kfree(r);
	return n;
}

struct timeval {
	s64 sec, usec;
};

SYSCALL_DEFINE5(select, 23, s32, nfds, u64 *, in, u64 *, out, u64 *, except, struct timeval *, timeout)
{
	u64 *sets[3] = { in, out, except }, deadline = 0, now;
	struct timeval tv;
	bool block = true;
	s64 n;

	if (timeout) {
		if (copy_from_user(&tv, timeout, sizeof(tv)))
			return -EFAULT;
		if (tv.sec < 0 || tv.usec < 0)
			return -EINVAL;
		block = tv.sec || tv.usec;
		deadline = deadline_after(min((u64)tv.sec, 1UL << 32) * NSEC_PER_SEC + (u64)tv.usec * NSEC_PER_USEC);
	}
	n = do_select(nfds, sets, block, deadline);
	if (timeout && n != -EFAULT) {	/* Linux tells how much time was left */
		now = ktime_get_ns();
		now = block && deadline > now ? deadline - now : 0;
		tv = (struct timeval){ .sec = (s64)(now / NSEC_PER_SEC), .usec = (s64)(now % NSEC_PER_SEC / NSEC_PER_USEC) };
		if (copy_to_user(timeout, &tv, sizeof(tv)))
			return -EFAULT;
	}
	return n;
}

struct pselect_mask {
	const sigset_t *mask;
	u64 size;
};

SYSCALL_DEFINE6(pselect6, 270, s32, nfds, u64 *, in, u64 *, out, u64 *, except, struct timespec *, timeout,
		const struct pselect_mask *, umask)
{
	u64 *sets[3] = { in, out, except }, deadline;
	struct pselect_mask m = { 0 };
	bool block;
	s64 n = get_timeout(timeout, &block, &deadline);

	if (n)
		return n;
	if (umask && copy_from_user(&m, umask, sizeof(m)))
		return -EFAULT;
	n = set_user_sigmask(m.mask, m.size);
	if (n)
		return n;
	n = do_select(nfds, sets, block, deadline);
	put_time_left(timeout, deadline);
	restore_sigmask_unless(n == -ERESTARTNOHAND);
	return n;
}
