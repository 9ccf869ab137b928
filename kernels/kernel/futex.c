/* futex: threads of programs sleep until somebody changes a word in memory and wakes them.
 *
 * The word is known by its place: memory of a process and address if it is private, file and offset if the memory is
 * shared, whatever address each has it at. One mutex is over everything: looking at the word and going to sleep on it
 * is one step, and reading it may have to bring in the page. Waiters are in one list in order of arrival.
 */
#include "proc_internal.h"
#include "arch.h"
#include "ktimer.h"
#include "syscall.h"
#include "uaccess.h"
#include "vma.h"

#define FUTEX_WAIT		0
#define FUTEX_WAKE		1
#define FUTEX_REQUEUE		3
#define FUTEX_CMP_REQUEUE	4
#define FUTEX_WAKE_OP		5
#define FUTEX_WAIT_BITSET	9
#define FUTEX_WAKE_BITSET	10
#define FUTEX_PRIVATE_FLAG	128
#define FUTEX_CLOCK_REALTIME	256
#define FUTEX_BITSET_ANY	0xffffffffU

#define FUTEX_WAITERS		0x80000000U	/* in the word of a robust mutex */
#define FUTEX_OWNER_DIED	0x40000000U
#define FUTEX_TID_MASK		0x3fffffffU
#define ROBUST_LIST_LIMIT	2048

struct key {
	const void *object;		/* struct mm, struct mapping */
	u64 offset;
};

struct futex_waiter {
	struct list_head list;
	struct key key;
	u32 bits;
	bool woken;
	struct wait_queue queue;
};

static struct mutex futex_lock = MUTEX_INIT(futex_lock);
static LIST_HEAD(waiters);

static bool same(const struct key *a, const struct key *b)
{
	return a->object == b->object && a->offset == b->offset;
}

static int get_key(u64 addr, bool private, struct key *key)
{
	struct mm *mm = current_task()->mm;
	struct vma *vma;
	u32 word;

	if (addr % sizeof(u32))
		return -EINVAL;
	if (!access_ok((void *)addr, sizeof(u32)))
		return -EFAULT;
	*key = (struct key){ .object = mm, .offset = addr };
	if (private)
		return 0;
	if (get_user(word, (const u32 *)addr))
		return -EFAULT;
	mutex_lock(&mm->lock);
	vma = mm_find(mm, addr);
	if (vma && vma->flags & VM_SHARED && vma->mapping) {
		key->object = vma->mapping;
		key->offset = addr - vma->start + (vma->pgoff << PAGE_SHIFT);
	}
	mutex_unlock(&mm->lock);
	return vma ? 0 : -EFAULT;
}

/* ---- with futex_lock held ---- */

static void wake_one(struct futex_waiter *w)
{
	list_del_init(&w->list);
	w->woken = true;
	wake_up(&w->queue);
}

static int wake_some(const struct key *key, int max, u32 bits)
{
	struct futex_waiter *w, *next;
	int n = 0;

	list_for_each_entry_safe(w, next, &waiters, list) {
		if (n >= max)
			break;
		if (!same(&w->key, key) || !(w->bits & bits))
			continue;
		wake_one(w);
		n++;
	}
	return n;
}

/* ---- */

static bool is_woken(void *arg)
{
	const struct futex_waiter *w = arg;

	return READ_ONCE(w->woken);
}

static s64 wait_restart(struct task *t);

static s64 futex_wait(u64 addr, bool private, u32 value, u64 deadline, u32 bits)
{
	struct task *t = current_task();
	struct futex_waiter w = { .bits = bits };
	u32 found;
	int err;

	if (!bits)
		return -EINVAL;
	err = get_key(addr, private, &w.key);
	if (err)
		return err;
	init_wait_queue(&w.queue);
	mutex_lock(&futex_lock);
	if (get_user(found, (const u32 *)addr))
		err = -EFAULT;
	else if (found != value)
		err = -EAGAIN;
	else
		list_add_tail(&w.list, &waiters);
	mutex_unlock(&futex_lock);
	if (err)
		return err;

	err = wait_until(&w.queue, is_woken, &w, deadline);
	mutex_lock(&futex_lock);
	if (w.woken)
		err = 0;
	else
		list_del(&w.list);
	mutex_unlock(&futex_lock);
	if (err != -ERESTARTSYS || !deadline)
		return err;
	t->restart = wait_restart;
	t->restart_data[0] = addr;
	t->restart_data[1] = (u64)value << 32 | bits;
	t->restart_data[2] = deadline;
	t->restart_data[3] = private;
	return -ERESTART_RESTARTBLOCK;
}

static s64 wait_restart(struct task *t)
{
	return futex_wait(t->restart_data[0], t->restart_data[3], (u32)(t->restart_data[1] >> 32), t->restart_data[2],
			  (u32)t->restart_data[1]);
}

static s64 futex_wake(u64 addr, bool private, int max, u32 bits)
{
	struct key key;
	int n = bits ? get_key(addr, private, &key) : -EINVAL;

	if (n)
		return n;
	mutex_lock(&futex_lock);
	n = wake_some(&key, max > 0 ? max : 1, bits);	/* Linux wakes one even if asked for none */
	mutex_unlock(&futex_lock);
	return n;
}

/* Wakes some and lets others wait for the second word instead. */
static s64 futex_requeue(u64 addr, u64 addr2, bool private, int max_wake, int max_move, const u32 *compare)
{
	struct futex_waiter *w, *next;
	struct key key, key2;
	int n = 0, moved = 0, err;
	u32 found;

	if (max_wake < 0 || max_move < 0)
		return -EINVAL;
	err = get_key(addr, private, &key);
	if (!err)
		err = get_key(addr2, private, &key2);
	if (err)
		return err;
	mutex_lock(&futex_lock);
	if (compare) {
		err = get_user(found, (const u32 *)addr) ? -EFAULT : found != *compare ? -EAGAIN : 0;
		if (err)
			goto out;
	}
	list_for_each_entry_safe(w, next, &waiters, list) {
		if (!same(&w->key, &key))
			continue;
		if (n < max_wake) {
			wake_one(w);
			n++;
		} else if (moved < max_move) {
			w->key = key2;
			moved++;
		} else {
			break;
		}
	}
	err = n + moved;
out:
	mutex_unlock(&futex_lock);
	return err;
}

/* FUTEX_WAKE_OP: changes the second word, wakes on the first, and on the second if its old value compares. */
static s64 futex_wake_op(u64 addr, u64 addr2, bool private, int max, int max2, u32 encoded)
{
	u32 op = encoded >> 28 & 7, compare = encoded >> 24 & 15, old, new;
	s32 arg = (s32)(encoded << 8) >> 20, value = (s32)(encoded << 20) >> 20;
	struct key key, key2;
	bool holds;
	s64 n = get_key(addr, private, &key);

	if (!n)
		n = get_key(addr2, private, &key2);
	if (n)
		return n;
	if (encoded >> 31)
		arg = (s32)(1U << (arg & 31));
	mutex_lock(&futex_lock);
	if (get_user(old, (const u32 *)addr2)) {
		n = -EFAULT;
		goto out;
	}
	switch (op) {
	case 0: new = (u32)arg; break;
	case 1: new = old + (u32)arg; break;
	case 2: new = old | (u32)arg; break;
	case 3: new = old & ~(u32)arg; break;
	case 4: new = old ^ (u32)arg; break;
	default: n = -ENOSYS; goto out;
	}
	switch (compare) {
	case 0: holds = (s32)old == value; break;
	case 1: holds = (s32)old != value; break;
	case 2: holds = (s32)old < value; break;
	case 3: holds = (s32)old <= value; break;
	case 4: holds = (s32)old > value; break;
	case 5: holds = (s32)old >= value; break;
	default: n = -ENOSYS; goto out;
	}
	if (put_user(new, (u32 *)addr2)) {
		n = -EFAULT;
		goto out;
	}
	n = wake_some(&key, max, FUTEX_BITSET_ANY);
	if (holds)
		n += wake_some(&key2, max2, FUTEX_BITSET_ANY);
out:
	mutex_unlock(&futex_lock);
	return n;
}

/* The timeout of WAIT is a length, that of WAIT_BITSET a moment. */
static int get_deadline(int op, const struct timespec *user, bool realtime, u64 *deadline)
{
	u64 ns, now = realtime ? ktime_get_real_ns() : ktime_get_ns();
	int err;

	*deadline = 0;
	if (!user)
		return 0;
	err = get_timespec(&ns, user);
	if (err)
		return err;
	*deadline = deadline_after(op == FUTEX_WAIT ? ns : ns > now ? ns - now : 0);
	return 0;
}

SYSCALL_DEFINE6(futex, 202, u64, addr, int, flags, u32, value, u64, timeout_or_count, u64, addr2, u32, value3)
{
	int op = flags & ~(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME), count2 = (int)timeout_or_count, err;
	bool private = flags & FUTEX_PRIVATE_FLAG, realtime = flags & FUTEX_CLOCK_REALTIME;
	u64 deadline;

	if (realtime && op != FUTEX_WAIT_BITSET && op != FUTEX_WAIT)
		return -ENOSYS;
	switch (op) {
	case FUTEX_WAIT:
	case FUTEX_WAIT_BITSET:
		err = get_deadline(op, (const struct timespec *)timeout_or_count, realtime, &deadline);
		if (err)
			return err;
		return futex_wait(addr, private, value, deadline, op == FUTEX_WAIT ? FUTEX_BITSET_ANY : value3);
	case FUTEX_WAKE:
		return futex_wake(addr, private, (int)value, FUTEX_BITSET_ANY);
	case FUTEX_WAKE_BITSET:
		return futex_wake(addr, private, (int)value, value3);
	case FUTEX_REQUEUE:
		return futex_requeue(addr, addr2, private, (int)value, count2, NULL);
	case FUTEX_CMP_REQUEUE:
		return futex_requeue(addr, addr2, private, (int)value, count2, &value3);
	case FUTEX_WAKE_OP:
		return futex_wake_op(addr, addr2, private, (int)value, count2, value3);
	default:
		return -ENOSYS;
	}
}

/* ---- the end of a thread ---- */

void clear_child_tid(struct task *t)
{
	u32 *addr = t->clear_tid;

	t->clear_tid = NULL;
	if (!addr || !t->mm)
		return;
	(void)put_user(0U, addr);
	futex_wake((u64)addr, false, 1, FUTEX_BITSET_ANY);
	futex_wake((u64)addr, true, 1, FUTEX_BITSET_ANY);
}

struct robust_list_head {
	u64 next;
	s64 offset;			/* from an entry to its futex word */
	u64 pending;			/* an entry that is being locked or unlocked */
};

/* A mutex that this thread holds: it gets marked, and one waiter learns of it. */
static bool owner_died(const struct task *t, u64 addr)
{
	u32 word;

	if (addr % sizeof(u32) || get_user(word, (const u32 *)addr))
		return false;
	if ((word & FUTEX_TID_MASK) != (u32)t->tid)
		return true;
	if (put_user((word & FUTEX_WAITERS) | FUTEX_OWNER_DIED, (u32 *)addr))
		return false;
	if (word & FUTEX_WAITERS) {
		futex_wake(addr, false, 1, FUTEX_BITSET_ANY);
		futex_wake(addr, true, 1, FUTEX_BITSET_ANY);
	}
	return true;
}

/* The list is the program's: it may be cut, circular, or lead anywhere. Bit 0 of an entry marks a kind of mutex that
 * there is none of here. */
void exit_robust_list(struct task *t)
{
	struct robust_list_head head;
	u64 list = (u64)t->robust_list, entry;

	t->robust_list = NULL;
	if (!list || !t->mm || copy_from_user(&head, (const void *)list, sizeof(head)))
		return;
	entry = head.next & ~1UL;
	for (unsigned int i = 0; entry != list && i < ROBUST_LIST_LIMIT; i++) {
		u64 next;
		bool more = !get_user(next, (const u64 *)entry);

		if (entry != (head.pending & ~1UL) && !owner_died(t, entry + (u64)head.offset))
			return;
		if (!more)
			break;
		entry = next & ~1UL;
	}
	if (head.pending)
		owner_died(t, (head.pending & ~1UL) + (u64)head.offset);
}

SYSCALL_DEFINE2(set_robust_list, 273, void *, head, u64, size)
{
	if (size != sizeof(struct robust_list_head))
		return -EINVAL;
	current_task()->robust_list = head;
	return 0;
}

SYSCALL_DEFINE3(get_robust_list, 274, pid_t, tid, void **, head, u64 *, size)
{
	struct task *t = current_task(), *found = NULL;
	void *list = t->robust_list;

	if (tid && tid != t->tid) {
		found = find_task(tid);
		if (!found)
			return -ESRCH;
		list = found->robust_list;
		task_put(found);
		if (!capable())
			return -EPERM;
	}
	if (put_user(sizeof(struct robust_list_head), size) || put_user(list, head))
		return -EFAULT;
	return 0;
}

SYSCALL_DEFINE1(set_tid_address, 218, u32 *, addr)
{
	current_task()->clear_tid = addr;
	return current_task()->tid;
}
