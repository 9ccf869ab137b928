/* epoll(7): a file that watches others.
 *
 *	epoll	all its items; the ready ones in a list of their own
 *	item	one watched file (under one descriptor), what is wanted of it, the hooks in its wait queues
 *	hook	a waiter that is no thread: when its queue is woken, the item becomes ready
 *
 * Ready only means: worth a look. A look asks the file; one that has what is wanted is reported, and stays ready unless it
 * is edge-triggered. An item holds no reference to its file: the last close takes it out of all watchers.
 *
 * One mutex protects items against coming and going while others look, a spinlock in each epoll its list of ready
 * ones, which interrupts change. Nothing closes files or touches a program's memory under the mutex, so what polling
 * a file locks may be locked by others first.
 */
#include "vfs.h"
#include "ktimer.h"
#include "poll.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

#define EPOLL_CTL_ADD	1
#define EPOLL_CTL_DEL	2
#define EPOLL_CTL_MOD	3
#define EPOLLEXCLUSIVE	(1U << 28)
#define EPOLLWAKEUP	(1U << 29)
#define EPOLLONESHOT	(1U << 30)
#define EPOLLET		(1U << 31)
#define PRIVATE_BITS	(EPOLLEXCLUSIVE | EPOLLWAKEUP | EPOLLONESHOT | EPOLLET)
#define EXCLUSIVE_BITS	(EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE)
#define NESTS_MAX	4		/* epolls that watch epolls that … */

struct epoll_event {
	u32 events;
	u64 data;
} __attribute__((packed));

struct epoll {
	struct wait_queue wait;
	struct list_head items;
	u32 nr_items;
	spinlock_t lock;		/* with interrupts off: ready, and queued of each item */
	struct list_head ready;
	struct file *file;		/* its own */
	u64 walk;			/* the last walk that came here, and what it found */
	u32 depth;
};

struct item {
	struct list_head in_epoll, in_file, in_ready, hooks;
	struct epoll *epoll;
	struct file *file;
	int fd;
	bool queued;			/* in the ready list */
	bool failed;			/* no memory for a hook */
	struct epoll_event event;
};

struct hook {
	struct list_head list;
	struct waiter waiter;
	struct wait_queue *queue;
	struct item *item;
};

struct hook_table {
	struct poll_table table;
	struct item *item;
};

static struct mutex epoll_mutex = MUTEX_INIT(epoll_mutex);
static const struct file_ops epoll_ops;

static struct epoll *epoll_of(const struct file *f) { return f->ops == &epoll_ops ? f->private : NULL; }

/* ---- becoming ready ---- */

/* False: it was. */
static bool queue(struct item *i)
{
	struct epoll *e = i->epoll;
	u64 flags = spin_lock_irqsave(&e->lock);
	bool news = !i->queued && i->event.events & ~PRIVATE_BITS;

	if (news) {
		i->queued = true;
		list_add_tail(&i->in_ready, &e->ready);
	}
	spin_unlock_irqrestore(&e->lock, flags);
	return news;
}

/* Whoever waits was woken for an item that is ready already. So one wake-up goes through each item only once, however
 * many ways lead up from it through epolls that watch epolls. */
static void make_ready(struct item *i)
{
	if (queue(i))
		wake_up(&i->epoll->wait);
}

static void hook_woken(struct waiter *w)
{
	make_ready(container_of(w, struct hook, waiter)->item);
}

static void add_hook(struct poll_table *table, struct file *f, struct wait_queue *q)
{
	struct item *i = container_of(table, struct hook_table, table)->item;
	struct hook *h = kzalloc(sizeof(*h), GFP_KERNEL);

	(void)f;
	if (!h) {
		i->failed = true;
		return;
	}
	h->item = i;
	h->queue = q;
	list_add_tail(&h->list, &i->hooks);
	add_waiter(q, &h->waiter, hook_woken);
}

/* ---- looking; epoll_mutex held ---- */

static u32 look(struct epoll *e, struct epoll_event *out, u32 max);

static u32 item_events(const struct item *i)
{
	struct epoll *inner = epoll_of(i->file);
	u32 events = inner ? (look(inner, NULL, 1) ? EPOLLIN | EPOLLRDNORM : 0) : file_poll(i->file, NULL);

	return events & i->event.events & ~PRIVATE_BITS;
}

static struct item *next_ready(struct epoll *e, struct list_head *from)
{
	u64 flags = spin_lock_irqsave(&e->lock);
	struct item *i = NULL;

	if (!list_empty(from)) {
		i = list_first_entry(from, struct item, in_ready);
		list_del(&i->in_ready);
		i->queued = false;	/* what happens from now on is news */
	}
	spin_unlock_irqrestore(&e->lock, flags);
	return i;
}

static void move_all(struct epoll *e, struct list_head *from, struct list_head *to)
{
	u64 flags = spin_lock_irqsave(&e->lock);

	while (!list_empty(from)) {
		struct list_head *last = from->prev;

		list_del(last);
		list_add(last, to);
	}
	spin_unlock_irqrestore(&e->lock, flags);
}

static bool has_ready(void *arg)
{
	struct epoll *e = arg;
	u64 flags = spin_lock_irqsave(&e->lock);
	bool yes = !list_empty(&e->ready);

	spin_unlock_irqrestore(&e->lock, flags);
	return yes;
}

/* Up to max events; out NULL: only whether there is one. */
static u32 look(struct epoll *e, struct epoll_event *out, u32 max)
{
	LIST_HEAD(looking);
	struct item *i;
	u32 n = 0;

	move_all(e, &e->ready, &looking);
	while (n < max && (i = next_ready(e, &looking))) {
		u32 events = item_events(i);

		if (!events)
			continue;
		if (out) {
			out[n] = (struct epoll_event){ .events = events, .data = i->event.data };
			if (i->event.events & EPOLLONESHOT)
				i->event.events &= PRIVATE_BITS;
		}
		n++;
		if (!out || !(i->event.events & EPOLLET))
			queue(i);
	}
	move_all(e, &looking, &e->ready);
	if (out && has_ready(e))
		wake_up(&e->wait);	/* for others who wait */
	return n;
}

/* ---- items; epoll_mutex held ---- */

static struct item *find_item(struct epoll *e, const struct file *f, int fd)
{
	struct item *i;

	list_for_each_entry(i, &f->watchers, in_file)
		if (i->epoll == e && i->fd == fd)
			return i;
	return NULL;
}

/* The file's list is last: fput() of a file whose list is empty does not come here. */
static void remove_item(struct item *i)
{
	struct epoll *e = i->epoll;
	struct hook *h, *next;
	u64 flags;

	list_for_each_entry_safe(h, next, &i->hooks, list) {
		remove_waiter(h->queue, &h->waiter);
		kfree(h);
	}
	flags = spin_lock_irqsave(&e->lock);
	if (i->queued)
		list_del(&i->in_ready);
	spin_unlock_irqrestore(&e->lock, flags);
	list_del(&i->in_epoll);
	e->nr_items--;
	list_del(&i->in_file);
	kfree(i);
}

static int add_item(struct epoll *e, struct file *f, int fd, const struct epoll_event *event)
{
	struct item *i = kzalloc(sizeof(*i), GFP_KERNEL);
	struct hook_table t = { .table.add = add_hook, .item = i };

	if (!i)
		return -ENOMEM;
	INIT_LIST_HEAD(&i->hooks);
	i->epoll = e;
	i->file = f;
	i->fd = fd;
	i->event = *event;
	list_add_tail(&i->in_epoll, &e->items);
	list_add_tail(&i->in_file, &f->watchers);
	e->nr_items++;
	if (epoll_of(f))
		poll_wait(f, &epoll_of(f)->wait, &t.table);
	else
		f->ops->poll(f, &t.table);
	if (i->failed) {
		remove_item(i);
		return -ENOMEM;
	}
	if (item_events(i))
		make_ready(i);
	return 0;
}

static u64 walk;

static u32 depth_below(struct epoll *e)
{
	const struct item *i;

	if (e->walk == walk)
		return e->depth;
	e->walk = walk;
	e->depth = 0;
	list_for_each_entry(i, &e->items, in_epoll)
		if (epoll_of(i->file))
			e->depth = max(e->depth, 1 + depth_below(epoll_of(i->file)));
	return e->depth;
}

static u32 depth_above(struct epoll *e)
{
	const struct item *i;

	if (e->walk == walk)
		return e->depth;
	e->walk = walk;
	e->depth = 0;
	list_for_each_entry(i, &e->file->watchers, in_file)
		e->depth = max(e->depth, 1 + depth_above(i->epoll));
	return e->depth;
}

/* Whether e may watch the inner one: no circles, and not too deep. There are no circles yet, and nothing is deep, so
 * the walks end, and each comes to an epoll once. */
static bool may_nest(struct epoll *e, struct epoll *inner)
{
	u32 below;

	walk++;
	e->walk = walk;
	e->depth = NESTS_MAX + 1;	/* found from the inner one it would be a circle */
	below = depth_below(inner);
	walk++;
	return below <= NESTS_MAX && 1 + below + depth_above(e) <= NESTS_MAX;
}

static int control(struct epoll *e, int op, struct file *f, int fd, struct epoll_event *event)
{
	struct item *i = find_item(e, f, fd);

	event->events |= EPOLLERR | EPOLLHUP;
	switch (op) {
	case EPOLL_CTL_ADD:
		if (epoll_of(f) && !may_nest(e, epoll_of(f)))
			return -ELOOP;
		return i ? -EEXIST : add_item(e, f, fd, event);
	case EPOLL_CTL_DEL:
		if (!i)
			return -ENOENT;
		remove_item(i);
		return 0;
	case EPOLL_CTL_MOD:
		if (!i)
			return -ENOENT;
		if (i->event.events & EPOLLEXCLUSIVE)
			return -EINVAL;
		i->event = *event;
		if (item_events(i))
			make_ready(i);
		return 0;
	default:
		return -EINVAL;
	}
}

/* ---- files ---- */

void epoll_forget(struct file *f)
{
	struct item *i, *next;

	mutex_lock(&epoll_mutex);
	list_for_each_entry_safe(i, next, &f->watchers, in_file)
		remove_item(i);
	mutex_unlock(&epoll_mutex);
}

static void epoll_release(struct file *f)
{
	struct epoll *e = f->private;
	struct item *i, *next;

	mutex_lock(&epoll_mutex);
	list_for_each_entry_safe(i, next, &e->items, in_epoll)
		remove_item(i);
	mutex_unlock(&epoll_mutex);
	kfree(e);
}

static u32 epoll_poll(struct file *f, struct poll_table *t)
{
	struct epoll *e = f->private;
	u32 n;

	poll_wait(f, &e->wait, t);
	mutex_lock(&epoll_mutex);
	n = look(e, NULL, 1);
	mutex_unlock(&epoll_mutex);
	return n ? EPOLLIN : 0;
}

static const struct file_ops epoll_ops = { .poll = epoll_poll, .llseek = noop_llseek, .release = epoll_release };

static s64 create(u32 flags)
{
	struct epoll *e;
	struct file *f;
	int fd;

	if (flags & ~(u32)O_CLOEXEC)
		return -EINVAL;
	e = kzalloc(sizeof(*e), GFP_KERNEL);
	if (!e)
		return -ENOMEM;
	init_wait_queue(&e->wait);
	INIT_LIST_HEAD(&e->items);
	INIT_LIST_HEAD(&e->ready);
	fd = get_unused_fd(flags);
	if (fd < 0) {
		kfree(e);
		return fd;
	}
	f = anon_inode_getfile("[eventpoll]", &epoll_ops, e, O_RDWR);
	if (IS_ERR(f)) {
		put_unused_fd(fd);
		kfree(e);
		return PTR_ERR(f);
	}
	e->file = f;
	fd_install(fd, f);
	return fd;
}

SYSCALL_DEFINE1(epoll_create1, 291, u32, flags)
{
	return create(flags);
}
SYSCALL_DEFINE1(epoll_create, 213, int, size)
{
	return size <= 0 ? -EINVAL : create(0);
}

static int check_control(const struct file *ef, const struct file *f, int op, const struct epoll_event *event)
{
	if (!f->ops->poll)
		return -EPERM;
	if (f == ef || !epoll_of(ef))
		return -EINVAL;
	if (op != EPOLL_CTL_DEL && event->events & EPOLLEXCLUSIVE &&
	    (op == EPOLL_CTL_MOD || epoll_of(f) || event->events & ~EXCLUSIVE_BITS))
		return -EINVAL;
	return 0;
}

SYSCALL_DEFINE4(epoll_ctl, 233, int, epfd, int, op, int, fd, const struct epoll_event *, user)
{
	struct epoll_event event = { 0 };
	struct file *ef, *f;
	s64 err;

	if (op != EPOLL_CTL_DEL && copy_from_user(&event, user, sizeof(event)))
		return -EFAULT;
	ef = fget(epfd);
	if (!ef)
		return -EBADF;
	f = fget(fd);
	err = f ? check_control(ef, f, op, &event) : -EBADF;
	if (!err) {
		mutex_lock(&epoll_mutex);
		err = control(ef->private, op, f, fd, &event);
		mutex_unlock(&epoll_mutex);
	}
	if (f)
		fput(f);
	fput(ef);
	return err;
}

/* ---- waiting ---- */

/* The program does not get what was found: all is worth a look again. */
static void look_again(struct epoll *e)
{
	struct item *i;

	mutex_lock(&epoll_mutex);
	list_for_each_entry(i, &e->items, in_epoll)
		make_ready(i);
	mutex_unlock(&epoll_mutex);
}

static s64 report(struct epoll *e, struct epoll_event *user, u32 max)
{
	struct epoll_event *found;
	u64 left;
	s64 n;

	mutex_lock(&epoll_mutex);
	max = min(max, e->nr_items);
	mutex_unlock(&epoll_mutex);
	if (!max)
		return 0;
	found = kmalloc(max * sizeof(*found), GFP_KERNEL);
	if (!found)
		return -ENOMEM;
	mutex_lock(&epoll_mutex);
	n = look(e, found, max);
	mutex_unlock(&epoll_mutex);
	left = copy_to_user(user, found, (u64)n * sizeof(*found));
	kfree(found);
	if (!left)
		return n;
	look_again(e);
	n -= (s64)DIV_ROUND_UP(left, sizeof(*found));
	return n ? n : -EFAULT;
}

static s64 wait_for_events(struct epoll *e, struct epoll_event *user, u32 max, bool block, u64 deadline)
{
	while (1) {
		s64 n = report(e, user, max);
		int err;

		if (n || !block)
			return n;
		err = wait_until(&e->wait, has_ready, e, deadline);
		if (err == -ETIMEDOUT)
			block = false;
		else if (err)
			return -EINTR;
	}
}

static s64 do_wait(int epfd, struct epoll_event *user, int max, bool block, u64 deadline)
{
	struct file *f;
	s64 n;

	if (max <= 0 || (u32)max > 0x7fffffffU / sizeof(*user))
		return -EINVAL;
	if (!access_ok(user, (u64)max * sizeof(*user)))
		return -EFAULT;
	f = fget(epfd);
	if (!f)
		return -EBADF;
	n = epoll_of(f) ? wait_for_events(f->private, user, (u32)max, block, deadline) : -EINVAL;
	fput(f);
	return n;
}

static u64 deadline_ms(s32 ms) { return ms > 0 ? deadline_after((u64)ms * 1000000) : 0; }

SYSCALL_DEFINE4(epoll_wait, 232, int, epfd, struct epoll_event *, events, int, max, s32, timeout_ms)
{
	return do_wait(epfd, events, max, timeout_ms != 0, deadline_ms(timeout_ms));
}

SYSCALL_DEFINE6(epoll_pwait, 281, int, epfd, struct epoll_event *, events, int, max, s32, timeout_ms,
		const sigset_t *, mask, u64, size)
{
	s64 n = set_user_sigmask(mask, size);

	if (n)
		return n;
	n = do_wait(epfd, events, max, timeout_ms != 0, deadline_ms(timeout_ms));
	restore_sigmask_unless(n == -EINTR);
	return n;
}

SYSCALL_DEFINE6(epoll_pwait2, 441, int, epfd, struct epoll_event *, events, int, max, const struct timespec *, timeout,
		const sigset_t *, mask, u64, size)
{
	u64 ns = 0, deadline = 0;
	s64 n;

	if (timeout) {
		n = get_timespec(&ns, timeout);
		if (n)
			return n;
		deadline = deadline_after(ns);
	}
	n = set_user_sigmask(mask, size);
	if (n)
		return n;
	n = do_wait(epfd, events, max, !timeout || ns, deadline);
	restore_sigmask_unless(n == -EINTR);
	return n;
}
