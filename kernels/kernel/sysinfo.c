/* What a program can ask about the system, about itself, and about how it is scheduled. */
#include "arch.h"
#include "init.h"
#include "page.h"
#include "proc_internal.h"
#include "random.h"
#include "release.h"
#include "string.h"
#include "syscall.h"
#include "uaccess.h"
#include "vfs.h"

#define NAME_SIZE	65

static struct utsname {
	char sysname[NAME_SIZE], nodename[NAME_SIZE], release[NAME_SIZE], version[NAME_SIZE], machine[NAME_SIZE],
	     domainname[NAME_SIZE];
} uts = {
	.sysname = "Linux", .nodename = "(none)", .release = RELEASE_VERSION, .version = "#1 luemu",
	.machine = "x86_64", .domainname = "(none)",
};
static struct mutex uts_lock = MUTEX_INIT(uts_lock);

SYSCALL_DEFINE1(uname, 63, struct utsname *, user)
{
	struct utsname copy;

	mutex_lock(&uts_lock);
	copy = uts;
	mutex_unlock(&uts_lock);
	return copy_to_user(user, &copy, sizeof(copy)) ? -EFAULT : 0;
}

static s64 set_name(char name[NAME_SIZE], const char *user, s32 size)
{
	char copy[NAME_SIZE] = "";

	if (!capable())
		return -EPERM;
	if (size < 0 || size >= NAME_SIZE)
		return -EINVAL;
	if (copy_from_user(copy, user, (u64)size))
		return -EFAULT;
	mutex_lock(&uts_lock);
	memcpy(name, copy, NAME_SIZE);
	mutex_unlock(&uts_lock);
	return 0;
}

SYSCALL_DEFINE2(sethostname, 170, const char *, user, s32, size)
{
	return set_name(uts.nodename, user, size);
}

SYSCALL_DEFINE2(setdomainname, 171, const char *, user, s32, size)
{
	return set_name(uts.domainname, user, size);
}

/* ---- memory, load ---- */

struct sysinfo {
	s64 uptime;
	u64 loads[3], totalram, freeram, sharedram, bufferram, totalswap, freeswap;
	u16 procs, pad;
	u32 pad2;
	u64 totalhigh, freehigh;
	u32 mem_unit, pad3;
};
static_assert(sizeof(struct sysinfo) == 112, "sysinfo");

SYSCALL_DEFINE1(sysinfo, 99, struct sysinfo *, user)
{
	const struct sysinfo info = {
		.uptime = (s64)DIV_ROUND_UP(ktime_get_ns(), NSEC_PER_SEC),
		.totalram = nr_managed_pages() << PAGE_SHIFT, .freeram = nr_free_pages() << PAGE_SHIFT,
		.procs = (u16)min(count_tasks(), 65535U), .mem_unit = 1,
	};

	return copy_to_user(user, &info, sizeof(info)) ? -EFAULT : 0;
}

SYSCALL_DEFINE3(getrandom, 318, u8 *, user, u64, size, u32, flags)
{
	u8 chunk[256];
	u64 done = 0;

	if (flags & ~7U || (flags & 6U) == 6U)
		return -EINVAL;
	size = min(size, 0x7fffffffUL);
	while (done < size) {
		u64 n = min(size - done, sizeof(chunk));

		get_random_bytes(chunk, n);
		if (copy_to_user(user + done, chunk, n))
			return done ? (s64)done : -EFAULT;
		done += n;
		if (signal_pending())
			return (s64)done;
	}
	return (s64)done;
}

/* ---- this process ---- */

SYSCALL_DEFINE0(getpid, 39) { return current_process()->pid; }
SYSCALL_DEFINE0(gettid, 186) { return current_task()->tid; }
SYSCALL_DEFINE0(getppid, 110) { return process_parent_pid(current_process()); }

SYSCALL_DEFINE1(umask, 95, u32, mask)
{
	struct fs *fs = current_task()->fs;

	return __atomic_exchange_n(&fs->umask, mask & 0777, __ATOMIC_RELAXED);
}

SYSCALL_DEFINE1(times, 100, s64 *, user)
{
	const struct process *p = current_process();
	const s64 ticks[4] = { (s64)p->user_ticks, (s64)p->system_ticks, (s64)p->child_user_ticks,
			       (s64)p->child_system_ticks };

	if (user && copy_to_user(user, ticks, sizeof(ticks)))
		return -EFAULT;
	return (s64)(ktime_get_ns() / (NSEC_PER_SEC / HZ));
}

#define RUSAGE_SELF	0
#define RUSAGE_CHILDREN	(-1)
#define RUSAGE_THREAD	1

SYSCALL_DEFINE2(getrusage, 98, int, who, void *, user)
{
	const struct process *p = current_process();
	u64 usage[18] = { 0 };

	switch (who) {
	case RUSAGE_SELF:
	case RUSAGE_THREAD:
		fill_cpu_times(p->user_ticks, p->system_ticks, usage);
		break;
	case RUSAGE_CHILDREN:
		fill_cpu_times(p->child_user_ticks, p->child_system_ticks, usage);
		break;
	default:
		return -EINVAL;
	}
	return copy_to_user(user, usage, sizeof(usage)) ? -EFAULT : 0;
}

#define PERSONALITY_QUERY 0xffffffffU

SYSCALL_DEFINE1(personality, 135, u32, persona)
{
	u32 old = current_process()->personality;

	if (persona != PERSONALITY_QUERY)
		current_process()->personality = persona;
	return old;
}

/* ---- scheduling: one class, one processor ---- */

SYSCALL_DEFINE0(sched_yield, 24)
{
	yield();
	return 0;
}

SYSCALL_DEFINE3(getcpu, 309, u32 *, cpu, u32 *, node, void *, cache)
{
	(void)cache;
	return (cpu && put_user(0U, cpu)) || (node && put_user(0U, node)) ? -EFAULT : 0;
}

static int check_tid(pid_t tid)
{
	struct task *t;

	if (tid < 0)
		return -EINVAL;
	if (!tid)
		return 0;
	t = find_task(tid);
	task_put(t);
	return t ? 0 : -ESRCH;
}

SYSCALL_DEFINE3(sched_getaffinity, 204, pid_t, tid, u32, size, u64 *, user)
{
	int err;

	if (size < sizeof(u64) || size % sizeof(u64))
		return -EINVAL;
	err = tid < 0 ? -ESRCH : check_tid(tid);
	if (err)
		return err;
	return put_user(1UL, user) ? -EFAULT : (s64)sizeof(u64);
}

SYSCALL_DEFINE3(sched_setaffinity, 203, pid_t, tid, u32, size, const u64 *, user)
{
	u64 mask = 0;
	int err;

	if (copy_from_user(&mask, user, min((u64)size, sizeof(mask))))
		return -EFAULT;
	err = tid < 0 ? -ESRCH : check_tid(tid);
	if (err)
		return err;
	return mask & 1 ? 0 : -EINVAL;
}

SYSCALL_DEFINE1(sched_getscheduler, 145, pid_t, tid)
{
	return check_tid(tid);		/* SCHED_OTHER is 0 */
}

SYSCALL_DEFINE2(sched_getparam, 143, pid_t, tid, u32 *, user)
{
	int err = user ? check_tid(tid) : -EINVAL;

	return err ? err : put_user(0U, user);
}

SYSCALL_DEFINE3(sched_setscheduler, 144, pid_t, tid, int, policy, const s32 *, user)
{
	s32 priority;
	int err = user && policy >= 0 ? check_tid(tid) : -EINVAL;

	if (err)
		return err;
	if (get_user(priority, user))
		return -EFAULT;
	/* SCHED_OTHER, _BATCH and _IDLE are the same here; there are no real-time classes */
	return (policy == 0 || policy == 3 || policy == 5) && !priority ? 0 : -EINVAL;
}

SYSCALL_DEFINE2(sched_setparam, 142, pid_t, tid, const s32 *, user)
{
	s32 priority;
	int err = user ? check_tid(tid) : -EINVAL;

	if (err)
		return err;
	if (get_user(priority, user))
		return -EFAULT;
	return priority ? -EINVAL : 0;
}

/* How long a thread runs before the next one's turn comes: from tick to tick. */
SYSCALL_DEFINE2(sched_rr_get_interval, 148, pid_t, tid, struct timespec *, user)
{
	int err = check_tid(tid);

	return err ? err : put_timespec(user, NSEC_PER_SEC / HZ);
}

static s64 priority_bound(int policy, s64 realtime)
{
	switch (policy) {
	case 0: case 3: case 5: case 6:
		return 0;
	case 1: case 2:
		return realtime;
	default:
		return -EINVAL;
	}
}

SYSCALL_DEFINE1(sched_get_priority_max, 146, int, policy) { return priority_bound(policy, 99); }
SYSCALL_DEFINE1(sched_get_priority_min, 147, int, policy) { return priority_bound(policy, 1); }

SYSCALL_DEFINE2(getpriority, 140, int, which, int, who)
{
	struct process *p;
	s64 nice;

	if (which < 0 || which > 2)
		return -EINVAL;
	if (which || !who)
		return 20 - current_process()->nice;
	p = find_process(who);
	if (!p)
		return -ESRCH;
	nice = p->nice;
	process_put(p);
	return 20 - nice;
}

SYSCALL_DEFINE3(setpriority, 141, int, which, int, who, int, nice)
{
	struct process *p;

	if (which < 0 || which > 2)
		return -EINVAL;
	nice = min(max(nice, -20), 19);
	p = which || !who ? find_process(current_process()->pid) : find_process(who);
	if (!p)
		return -ESRCH;
	if (nice < p->nice && !capable()) {
		process_put(p);
		return -EACCES;
	}
	p->nice = nice;
	process_put(p);
	return 0;
}

/* membarrier(2): on one processor each thread sees all writes of the others when it runs. What is left is that the
 * private kinds have to be registered before. */
#define MEMBARRIER_KNOWN	0x7f		/* GLOBAL to REGISTER_PRIVATE_EXPEDITED_SYNC_CORE */
#define MEMBARRIER_NEED_REGISTRATION (1U << 3 | 1U << 5)	/* its registration is the next bit */

SYSCALL_DEFINE3(membarrier, 324, u32, command, u32, flags, int, cpu)
{
	struct process *p = current_process();

	(void)cpu;
	if (flags || command & ~MEMBARRIER_KNOWN || command & (command - 1))
		return -EINVAL;
	if (!command)
		return MEMBARRIER_KNOWN;
	if (command & MEMBARRIER_NEED_REGISTRATION && !(p->membarrier & command << 1))
		return -EPERM;
	p->membarrier |= command;
	return 0;
}

/* Known, so that it is not reported: C libraries try it, and do without. */
SYSCALL_DEFINE0(rseq, 334)
{
	return -ENOSYS;
}
