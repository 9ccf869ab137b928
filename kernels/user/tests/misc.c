/* Time, scheduling, prctl and other small questions; bad addresses. */
#include "t.h"
#include <linux/membarrier.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/times.h>
#include <sys/utsname.h>

static void clocks(void)
{
	struct timespec t, u, bad = { 0, 1000000000 }, negative = { -1, 0 }, some = { 0, 20000000 };
	struct timeval tv;

	T(clock_gettime(CLOCK_REALTIME, &t));
	T(clock_gettime(CLOCK_MONOTONIC, &t));
	T(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &u));
	T(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &u));
	T(clock_gettime(CLOCK_BOOTTIME, &u));
	T(clock_gettime(CLOCK_TAI, &u));
	T(syscall(SYS_clock_gettime, 99, &t));
	T(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, BAD));
	T(syscall(SYS_clock_gettime, 10, &t));
	T(syscall(SYS_clock_getres, CLOCK_MONOTONIC, NULL));
	T(syscall(SYS_clock_getres, CLOCK_MONOTONIC, BAD));
	T(syscall(SYS_clock_getres, 99, NULL));
	clock_getres(CLOCK_MONOTONIC, &u);
	say("resolution %ld %ld", (long)u.tv_sec, u.tv_nsec);
	T(syscall(SYS_clock_settime, CLOCK_MONOTONIC, &t));
	T(syscall(SYS_clock_settime, CLOCK_REALTIME, &bad));
	T(syscall(SYS_clock_settime, CLOCK_REALTIME, BAD));
	T(syscall(SYS_gettimeofday, &tv, NULL));
	T(syscall(SYS_gettimeofday, NULL, NULL));
	T(syscall(SYS_gettimeofday, BAD, NULL));
	T(syscall(SYS_gettimeofday, NULL, BAD));
	OK(syscall(SYS_time, NULL));
	T(syscall(SYS_time, BAD));
	OK(times(NULL));
	T(syscall(SYS_times, BAD));
	T(nanosleep(&bad, NULL));
	T(nanosleep(&negative, NULL));
	T(syscall(SYS_nanosleep, BAD, NULL));
	clock_gettime(CLOCK_MONOTONIC, &t);
	T(nanosleep(&some, NULL));
	clock_gettime(CLOCK_MONOTONIC, &u);
	C((u.tv_sec - t.tv_sec) * 1000000000L + u.tv_nsec - t.tv_nsec >= 20000000);
	T((int)syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &some, NULL));
	T((int)syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL));
	T((int)syscall(SYS_clock_nanosleep, CLOCK_REALTIME, TIMER_ABSTIME, &t, NULL));
	T((int)syscall(SYS_clock_nanosleep, 99, 0, &some, NULL));
	T((int)syscall(SYS_clock_nanosleep, CLOCK_THREAD_CPUTIME_ID, 0, &some, NULL));
	T((int)syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC_COARSE, 0, &some, NULL));
	T((int)syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, BAD, NULL));
	u.tv_nsec += 20000000;
	if (u.tv_nsec >= 1000000000) {
		u.tv_nsec -= 1000000000;
		u.tv_sec++;
	}
	T((int)syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &u, NULL));
	clock_gettime(CLOCK_MONOTONIC, &t);
	C(t.tv_sec > u.tv_sec || (t.tv_sec == u.tv_sec && t.tv_nsec >= u.tv_nsec));
	T(syscall(SYS_restart_syscall));
}

static void scheduling(void)
{
	unsigned long mask[16] = { 0 };
	struct sched_param p = { 0 };
	unsigned int cpu, node;

	T(sched_yield());
	T(syscall(SYS_sched_getaffinity, 0, 7, mask));
	T(syscall(SYS_sched_getaffinity, 0, 4, mask));
	T(syscall(SYS_sched_getaffinity, 99999999, 128, mask));
	T(syscall(SYS_sched_getaffinity, 0, 128, BAD));
	C(syscall(SYS_sched_getaffinity, 0, 128, mask) >= 8);
	C(mask[0] & 1);
	mask[0] = 0;
	T(syscall(SYS_sched_setaffinity, 0, 8, mask));
	mask[0] = 1;
	T(syscall(SYS_sched_setaffinity, 0, 8, mask));
	T(syscall(SYS_sched_setaffinity, 99999999, 8, mask));
	T(syscall(SYS_sched_setaffinity, 0, 8, BAD));
	T(syscall(SYS_getcpu, &cpu, &node, NULL));
	C(cpu == 0);
	T(syscall(SYS_getcpu, BAD, NULL, NULL));
	T(syscall(SYS_getcpu, NULL, NULL, NULL));
	T(syscall(SYS_sched_getscheduler, 0));
	T(syscall(SYS_sched_getscheduler, -1));
	T(syscall(SYS_sched_getscheduler, 99999999));
	T(syscall(SYS_sched_getparam, 0, &p));
	T(syscall(SYS_sched_getparam, 0, NULL));
	T(syscall(SYS_sched_setscheduler, 0, 0, &p));
	T(syscall(SYS_sched_setscheduler, 0, 77, &p));
	T(syscall(SYS_sched_setscheduler, 0, -1, &p));
	T(syscall(SYS_sched_get_priority_max, 0));
	T(syscall(SYS_sched_get_priority_max, 1));
	T(syscall(SYS_sched_get_priority_min, 2));
	T(syscall(SYS_sched_get_priority_min, 44));
	T(syscall(SYS_getpriority, 0, 0));
	T(syscall(SYS_getpriority, 5, 0));
	T(syscall(SYS_getpriority, 0, 99999999));
	T(syscall(SYS_setpriority, 0, 0, 25));
	T(syscall(SYS_getpriority, 0, 0));
	T(syscall(SYS_setpriority, 0, 0, 0));
	T(syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0));
	T(syscall(SYS_membarrier, 0x40000, 0));
	T(syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 5));
	T(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0));
	T(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0));
	T(syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0));
}

static void controls(void)
{
	int value = 77;
	char name[16] = "";

	T(prctl(PR_SET_PDEATHSIG, 65));
	T(prctl(PR_SET_PDEATHSIG, SIGUSR1));
	T(prctl(PR_GET_PDEATHSIG, &value));
	C(value == SIGUSR1);
	CHILD("not inherited", prctl(PR_GET_PDEATHSIG, &value); C(value == 0));
	T(prctl(PR_SET_PDEATHSIG, 0));
	T(prctl(PR_GET_PDEATHSIG, BAD));
	T(prctl(PR_SET_NAME, "a name that is much too long"));
	T(prctl(PR_GET_NAME, name));
	say("name '%s'", name);
	T(prctl(PR_SET_NAME, BAD));
	T(prctl(PR_GET_NAME, BAD));
	T(prctl(PR_GET_DUMPABLE));
	T(prctl(PR_SET_DUMPABLE, 5));
	T(prctl(PR_SET_DUMPABLE, 1));
	T(prctl(PR_GET_KEEPCAPS));
	T(prctl(PR_SET_KEEPCAPS, 2));
	T(prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
	T(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	T(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	T(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	CHILD("inherited", T(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)));
	T(prctl(PR_SET_CHILD_SUBREAPER, 1));
	T(prctl(PR_GET_CHILD_SUBREAPER, &value));
	C(value == 1);
	T(prctl(PR_SET_CHILD_SUBREAPER, 0));
	T(prctl(9999));
	T(prctl(PR_CAPBSET_READ, 0));
	T(prctl(PR_CAPBSET_READ, 1000));
	CHILD("dies with its parent", {
		pid_t pid = fork();

		if (!pid) {
			pid_t inner = fork();

			if (!inner) {
				prctl(PR_SET_PDEATHSIG, SIGKILL);
				sleep_ms(2000);
				_exit(0);
			}
			sleep_ms(20);
			_exit(0);
		}
		waitpid(pid, NULL, 0);
		say("soon over");
	});
}

static void names(void)
{
	struct utsname u;
	struct sysinfo s;

	T(uname(&u));
	say("%s %s", u.sysname, u.machine);
	T(syscall(SYS_uname, BAD));
	T(syscall(SYS_sethostname, BAD, 5));
	T(syscall(SYS_sethostname, "x", -1));
	T(syscall(SYS_sethostname, "x", 65));
	T(sysinfo(&s));
	C(s.totalram > s.freeram && s.mem_unit == 1 && s.procs > 1);
	T(syscall(SYS_sysinfo, BAD));
	T(syscall(SYS_personality, 0xffffffff));
	T(syscall(SYS_arch_prctl, 0x9999, 0));
	T(syscall(SYS_arch_prctl, 0x1003, BAD));
	T(syscall(SYS_arch_prctl, 0x1002, KERNEL));
	T(syscall(SYS_arch_prctl, 0x1001, KERNEL));
	T(syscall(SYS_arch_prctl, 0x1001, 0x1234));
	{
		unsigned long gs = 0;

		T(syscall(SYS_arch_prctl, 0x1004, &gs));
		C(gs == 0x1234);
		sleep_ms(20);
		T(syscall(SYS_arch_prctl, 0x1004, &gs));
		C(gs == 0x1234);
	}
}

static void randomness(void)
{
	unsigned char a[32] = { 0 }, b[32] = { 0 };

	T(syscall(SYS_getrandom, a, 32, 0));
	T(syscall(SYS_getrandom, b, 32, 0));
	C(memcmp(a, b, 32) != 0);
	T(syscall(SYS_getrandom, a, 0, 0));
	T(syscall(SYS_getrandom, BAD, 8, 0));
	T(syscall(SYS_getrandom, a, 8, 16));
	T(syscall(SYS_getrandom, a, 8, 6));
	T(syscall(SYS_getrandom, a, 8, 1));
}

/* What no call may do with a bad address is anything but -EFAULT. */
static void bad_addresses(void)
{
	static const struct { const char *name; long nr, args[5]; int where; } calls[] = {
		{ "wait4", SYS_wait4, { -1, 0, 1 }, 3 }, { "rt_sigaction", SYS_rt_sigaction, { SIGUSR1, 0, 0, 8 }, 1 },
		{ "rt_sigprocmask", SYS_rt_sigprocmask, { 0, 0, 0, 8 }, 2 }, { "nanosleep", SYS_nanosleep, { 0 }, 0 },
		{ "setitimer", SYS_setitimer, { 0 }, 1 }, { "getrlimit", SYS_getrlimit, { 0 }, 1 },
		{ "setrlimit", SYS_setrlimit, { 0 }, 1 }, { "prlimit64", SYS_prlimit64, { 0, 0, 0 }, 3 },
		{ "execve", SYS_execve, { 0 }, 0 }, { "clone3", SYS_clone3, { 0, 64 }, 0 },
		{ "futex", SYS_futex, { 0, 0, 0 }, 0 }, { "sigaltstack", SYS_sigaltstack, { 0 }, 0 },
		{ "capget", SYS_capget, { 0, 0 }, 0 }, { "capset", SYS_capset, { 0, 0 }, 0 },
		{ "rt_sigqueueinfo", SYS_rt_sigqueueinfo, { 1, 0, 0 }, 2 }, { "sched_setscheduler", SYS_sched_setscheduler, { 0, 0, 0 }, 2 },
		{ "settimeofday", SYS_settimeofday, { 0 }, 0 }, { "getitimer", SYS_getitimer, { 0 }, 1 },
	};
	static const unsigned long bad[] = { 1, 0xfff, 0x7ffffffff000UL - 1, 0x7ffffffff000UL, 0x800000000000UL,
					     0x8000000000000000UL, 0xffff888000000000UL, 0xffffffff81000000UL, ~7UL, ~0UL };

	for (unsigned int i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		for (unsigned int j = 0; j < sizeof(bad) / sizeof(bad[0]); j++) {
			long a[6] = { calls[i].args[0], calls[i].args[1], calls[i].args[2], calls[i].args[3], calls[i].args[4] };
			long result;

			a[calls[i].where] = (long)bad[j];
			result = syscall(calls[i].nr, a[0], a[1], a[2], a[3], a[4], 0);
			say("%s(%#lx) = %ld %s", calls[i].name, bad[j], result, result < 0 ? strerror(errno) : "");
		}
}

int main(void)
{
	clocks();
	scheduling();
	controls();
	names();
	randomness();
	bad_addresses();
	return 0;
}
