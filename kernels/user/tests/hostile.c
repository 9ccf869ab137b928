/* A program that tries to take the kernel with it. It runs in the guest only: it uses up memory and processes, and its
 * children do random system calls. What it says is how each attempt ended for the program; that it can say so at the
 * end is the result. Afterwards, memory has to be what it was.
 */
#include "t.h"
#include <pthread.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <ucontext.h>

static uint64_t seed = 88172645463325252UL;

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

/* Like CHILD(), but it has ten seconds. */
static void limited(const char *what, void (*fn)(void))
{
	struct timespec begin, now;
	pid_t pid = fork();
	int status;

	if (!pid) {
		setpgid(0, 0);
		fn();
		_exit(0);
	}
	setpgid(pid, pid);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (now = begin; now.tv_sec < begin.tv_sec + 10; clock_gettime(CLOCK_MONOTONIC, &now)) {
		if (waitpid(pid, &status, WNOHANG) == pid) {
			kill(-pid, SIGKILL);
			if (what)
				say_status(what, status);
			return;
		}
		sleep_ms(5);
	}
	kill(-pid, SIGKILL);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	if (what)
		say("%s: had to be killed", what);
}

/* ---- instructions ---- */

static void step_over_syscall(void)
{
	signal(SIGTRAP, SIG_IGN);
	__asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; mov $39, %%eax; syscall; nop" ::: "rax", "rcx", "r11", "memory");
}

static volatile int traps;

static void count_trap(int sig)
{
	(void)sig;
	traps++;
}

static void step_over_syscall_handled(void)
{
	signal(SIGTRAP, count_trap);
	__asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; mov $39, %%eax; syscall; nop; pushfq; andl $~0x100, (%%rsp); popfq"
			 ::: "rax", "rcx", "r11", "memory");
	_exit(traps > 2 ? 0 : 1);
}

static void stack_segment_then_syscall(void)
{
	signal(SIGTRAP, SIG_IGN);
	__asm__ volatile("mov %%ss, %%edx; pushfq; orl $0x100, (%%rsp); popfq; mov %%edx, %%ss; syscall; nop; nop"
			 :: "a"(39) : "rcx", "r11", "rdx", "memory");
}

static void flags_into_syscall(void)
{
	static const unsigned long flags[] = { 0x400, 0x4000, 0x40000, 0x3000, 0x44cd5, 0x200000, ~0x100UL };

	for (unsigned int i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		long pid;

		__asm__ volatile("push %1; popfq; mov $39, %%eax; syscall; push $0x202; popfq"
				 : "=a"(pid) : "r"(flags[i]) : "rcx", "r11", "memory");
		if (pid != getpid())
			_exit(1);
	}
}

/* Without a stack: system calls, an interrupt, and then the fault. */
static void no_stack(void)
{
	__asm__ volatile("xor %%esp, %%esp; mov $39, %%eax; syscall; mov $0x8000000000000000, %%rsp; mov $39, %%eax; syscall;"
			 "mov $20000000, %%ecx; 1: dec %%ecx; jnz 1b; mov $0xffff888000100000, %%rsp; mov $39, %%eax; syscall; push %%rax"
			 ::: "memory");
}

static void segments(void)
{
	for (unsigned int s = 0; s < 0x80; s++) {
		if (!fork()) {
			__asm__ volatile("mov %0, %%ds" :: "r"(s));
			__asm__ volatile("mov %0, %%es" :: "r"(s));
			__asm__ volatile("mov %0, %%gs" :: "r"(s));
			sleep_ms(1);
			__asm__ volatile("mov %0, %%fs" :: "r"(s));
			syscall(SYS_getpid);
			_exit(0);
		}
		wait(NULL);
		if (!fork()) {
			__asm__ volatile("push %0; lea 1f(%%rip), %%rax; push %%rax; lretq; 1: mov $60, %%eax; xor %%edi, %%edi; syscall"
					 :: "r"((unsigned long)s) : "rax", "memory");
			_exit(0);
		}
		wait(NULL);
		if (!fork()) {
			__asm__ volatile("mov %%rsp, %%rcx; push %0; push %%rcx; pushfq; push %0; lea 1f(%%rip), %%rax; push %%rax; iretq; 1: nop"
					 :: "r"((unsigned long)s) : "rax", "rcx", "memory");
			_exit(0);
		}
		wait(NULL);
	}
}

/* 32-bit code: all its ways into the kernel. */
static void compatibility_mode(void)
{
	static const unsigned char codes[][8] = {
		{ 0x0f, 0x05, 0x0f, 0x0b },		/* syscall; ud2 */
		{ 0x0f, 0x34, 0x0f, 0x0b },		/* sysenter */
		{ 0xcd, 0x80, 0x0f, 0x0b },		/* int 0x80 */
		{ 0xcd, 0x03, 0x0f, 0x0b }, { 0xce, 0x0f, 0x0b }, { 0xf4 }, { 0xeb, 0xfe },
		{ 0x9a, 0, 0, 0, 0, 0x08, 0 },		/* call 8:0 */
		{ 0x8e, 0xd0, 0x0f, 0x05 },		/* mov ss, eax; syscall */
	};
	unsigned char *low = mmap((void *)0x10000, 8192, PROT_READ | PROT_WRITE | PROT_EXEC,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	static const unsigned long selectors[] = { 0x1b, 0x23, 0x2b, 0x33, 0x08, 0x10 };

	for (unsigned int i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
		for (unsigned int s = 0; s < 6; s++) {
			pid_t pid = fork();

			if (!pid) {
				memcpy(low, codes[i], 8);
				alarm(1);
				__asm__ volatile("mov $0x11f00, %%rsp; push %0; push $0x10000; mov $20, %%eax; lretq"
						 :: "r"(selectors[s]) : "memory");
			}
			sleep_ms(3);
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
		}
}

static void random_code(void)
{
	unsigned char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	syscall(SYS_setresuid, 1000, 1000, 1000);
	for (int n = 0; n < 150; n++) {
		pid_t pid;

		for (int i = 0; i < 4096; i++)
			page[i] = (unsigned char)rnd();
		pid = fork();
		if (!pid)
			((void (*)(void))page)();
		sleep_ms(1);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
}

static void jumps(void)
{
	static const unsigned long to[] = { 0, 0x7fffffffefffUL, 0x7fffffffffffUL, 0x800000000000UL, 0xffff800000000000UL,
					    0xffffffff80000000UL, 0xffffffffffffffffUL, 0x8000000000000000UL };

	for (unsigned int i = 0; i < sizeof(to) / sizeof(to[0]); i++) {
		if (!fork()) {
			((void (*)(void))to[i])();
			_exit(0);
		}
		wait(NULL);
	}
}

/* A system call in the last two bytes that a program can have: it returns to where none may be. */
static void syscall_at_the_end(void)
{
	unsigned char *last = mmap((void *)0x7fffffffe000UL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	if (last == MAP_FAILED)
		_exit(0);
	last[0xffe] = 0x0f;
	last[0xfff] = 0x05;
	__asm__ volatile("mov $39, %%eax; jmp *%0" :: "r"(last + 0xffe) : "memory");
}

/* ---- signals ---- */

static void random_frames(void)
{
	static uint64_t frame[512];

	for (int n = 0; n < 300; n++) {
		if (!fork()) {
			for (int i = 0; i < 512; i++)
				frame[i] = rnd() % 3 ? rnd() : (uint64_t)frame + rnd() % 4096;
			if (n % 2)
				frame[200] = (uint64_t)(frame + 300) & ~15UL;
			__asm__ volatile("mov %0, %%rsp; mov $15, %%eax; syscall" :: "r"(frame + 1 + rnd() % 100) : "memory");
		}
		sleep_ms(1);
		kill(0, SIGCONT);
	}
	while (1) {
		pid_t pid = waitpid(-1, NULL, WNOHANG);

		if (pid < 0)
			return;
		if (!pid) {
			signal(SIGTERM, SIG_IGN);
			kill(0, SIGTERM);
			sleep_ms(5);
		}
	}
}

/* A frame with good values but one, so that it gets further. */
static int which_field;

static void spoil(int sig, siginfo_t *info, void *context)
{
	static const uint64_t values[] = { 0, 8, 0x7fffffffefff, 0x800000000000, 0xffff888000000000, ~0UL, 0x8000000000000000, 3 };
	uint64_t *words = context;

	(void)sig, (void)info;
	words[which_field / 8] = values[which_field % 8];
}

static void spoiled_frames(void)
{
	struct sigaction a = { .sa_sigaction = spoil, .sa_flags = SA_SIGINFO };

	for (which_field = 0; which_field < 38 * 8; which_field++) {
		pid_t pid = fork();

		if (!pid) {
			sigaction(SIGUSR1, &a, NULL);
			raise(SIGUSR1);
			_exit(0);
		}
		sleep_ms(1);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
}

static void recurse(int sig)
{
	raise(sig);
}

static void endless_handlers(void)
{
	struct sigaction a = { .sa_handler = recurse, .sa_flags = SA_NODEFER };

	sigaction(SIGUSR1, &a, NULL);
	raise(SIGUSR1);
}

static void endless_segv(void)
{
	struct sigaction a = { .sa_handler = (void (*)(int))16, .sa_flags = SA_NODEFER };

	sigaction(SIGSEGV, &a, NULL);
	raise(SIGSEGV);
}

static void kernel_handler(void)
{
	struct sigaction a = { .sa_handler = (void (*)(int))0xffffffff80000000UL };

	sigaction(SIGUSR1, &a, NULL);
	raise(SIGUSR1);
}

static void handler_without_restorer(void)
{
	struct { uint64_t handler, flags, restorer, mask; } a = { (uint64_t)recurse, 0, 0, 0 };

	syscall(SYS_rt_sigaction, SIGUSR1, &a, NULL, 8L);
	raise(SIGUSR1);
}

static void storm(void)
{
	pid_t pids[8];

	signal(SIGUSR1, count_trap);
	for (int i = 0; i < 8; i++) {
		pids[i] = fork();
		if (!pids[i])
			while (1)
				kill(getppid(), SIGUSR1);
	}
	while (traps < 20)
		;
	for (int i = 0; i < 8; i++)
		kill(pids[i], SIGKILL);
	while (wait(NULL) > 0)
		;
}

/* ---- too much of everything ---- */

static char *eat(char *at)
{
	char here[4096];

	here[0] = 1;
	return rnd() == 1 ? at : eat(here) + 1;
}

static void endless_recursion(void)
{
	eat(NULL);
}

static void all_memory(void)
{
	while (1) {
		char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			_exit(1);
		for (int i = 0; i < 1 << 20; i += 4096)
			p[i] = 1;
	}
}

/* Others need a page now and then while one takes them all. */
static void all_memory_and_others(void)
{
	int status, bad = 0;
	pid_t pid = fork();

	if (!pid)
		all_memory();
	while (waitpid(pid, &status, WNOHANG) == 0)
		if (!fork()) {
			static char page[65536];

			memset(page, 1, sizeof(page));
			_exit(0);
		} else if (waitpid(-1, &status, 0) > 0 && WIFSIGNALED(status)) {
			bad++;
		}
	_exit(bad > 1);		/* the one that was to end, and that one only */
}

static void fork_bomb(void)
{
	for (int i = 0; i < 10; i++)
		if (fork() < 0)
			break;
	sleep_ms(50);
	kill(0, SIGKILL);
}

static void *thread_bomb_body(void *arg)
{
	(void)arg;
	pause();
	return NULL;
}

static void thread_bomb(void)
{
	pthread_attr_t attr;
	pthread_t t;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 16384);
	while (!pthread_create(&t, &attr, thread_bomb_body, NULL))
		;
}

/* Timers that are due at every tick, as many as there can be. */
static void timer_storm(void)
{
	struct itimerspec s = { { 0, 1 }, { 0, 1 } };
	struct sigevent e = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
	int id;

	signal(SIGRTMIN, SIG_IGN);
	for (int i = 0; i < 40; i++)
		if (!fork()) {
			while (!syscall(SYS_timer_create, CLOCK_MONOTONIC, &e, &id))
				syscall(SYS_timer_settime, id, 0, &s, NULL);
			pause();
		}
	sleep_ms(300);
}

static void limited_processes(void)
{
	struct rlimit l = { 5, 5 };
	int n = 0;

	syscall(SYS_setresuid, 1003, 1003, 1003);
	setrlimit(RLIMIT_NPROC, &l);
	for (int i = 0; i < 20; i++) {
		pid_t pid = fork();

		if (!pid) {
			pause();
			_exit(0);
		}
		n += pid > 0;
	}
	_exit(n);
}

static void exec_itself(void)
{
	execl("/proc/self/exe", "hostile", "again", "60", NULL);
}

static void vfork_fun(void)
{
	if (!vfork()) {
		kill(getppid(), SIGKILL);
		_exit(0);
	}
}

static void nothing(void)
{
}

/* ---- random calls ---- */

static uint64_t argument(void *page)
{
	switch (rnd() % 8) {
	case 0: return 0;
	case 1: return rnd() % 16;
	case 2: return (uint64_t)page + rnd() % 4096;
	case 3: return (uint64_t)page;
	case 4: return rnd();
	case 5: return ~0UL - rnd() % 4;
	case 6: return 0xffff888000000000UL + rnd() % (1UL << 40);
	default: return 1UL << rnd() % 64;
	}
}

static void random_calls(void)
{
	char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	syscall(SYS_setresuid, 1000, 1000, 1000);
	for (int i = 0; i < 4000; i++) {
		long nr = (long)(rnd() % 470);

		if (i % 64 == 0)
			for (int j = 0; j < 8192; j++)
				page[j] = (char)(rnd() % 4 ? 0 : rnd());
		/* those that only end or stop this program, or write to the console */
		if (nr == SYS_exit || nr == SYS_exit_group || nr == SYS_pause || nr == SYS_rt_sigsuspend || nr == SYS_rt_sigreturn ||
		    nr == SYS_write || nr == SYS_writev || nr == SYS_pwrite64 || nr == SYS_pwritev || nr == 328 || nr == SYS_sendfile ||
		    nr == SYS_munmap || nr == SYS_kill || nr == SYS_tkill || nr == SYS_tgkill || nr == SYS_splice)
			continue;
		alarm(1);
		syscall(nr, argument(page), argument(page), argument(page), argument(page), argument(page), argument(page));
	}
}

static uint64_t free_memory(void)
{
	struct sysinfo s;

	sysinfo(&s);
	return s.freeram >> 12;
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*fn)(void); } attempts[] = {
		{ "step over a system call", step_over_syscall }, { "the same, handled", step_over_syscall_handled },
		{ "mov ss, system call", stack_segment_then_syscall }, { "flags", flags_into_syscall }, { "no stack", no_stack },
		{ "segments", segments }, { "32-bit code", compatibility_mode }, { "random code", random_code }, { "jumps", jumps },
		{ "system call at the end", syscall_at_the_end },
		{ "random frames", random_frames }, { "spoiled frames", spoiled_frames }, { "endless handlers", endless_handlers },
		{ "endless faults", endless_segv }, { "handler in the kernel", kernel_handler },
		{ "no restorer", handler_without_restorer }, { "storm", storm },
		{ "recursion", endless_recursion }, { "all memory", all_memory },
		{ "all memory, and others", all_memory_and_others }, { "fork bomb", fork_bomb },
		{ "thread bomb", thread_bomb }, { "timer storm", timer_storm }, { "limited processes", limited_processes }, { "exec itself", exec_itself },
		{ "vfork, parent killed", vfork_fun },
	};
	uint64_t before = 0;

	if (argc > 3) {			/* random FIRST COUNT */
		for (int i = 0; i < atoi(argv[3]); i++) {
			seed = 88172645463325252UL + (uint64_t)(atoi(argv[2]) + i);
			limited(NULL, random_calls);
			kill(-1, SIGKILL);
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
		}
		say("random calls survived");
		return 0;
	}
	if (argc > 2) {			/* again N */
		char n[16];

		snprintf(n, sizeof(n), "%d", atoi(argv[2]) - 1);
		if (atoi(argv[2]))
			execl("/proc/self/exe", argv[0], argv[1], n, NULL);
		return 5;
	}
	signal(SIGTTOU, SIG_IGN);
	/* the first round makes what stays (slabs, tables): the second must not need more */
	for (int round = 0; round < (argc > 1 && !strcmp(argv[1], "once") ? 1 : 2); round++) {
		seed = 88172645463325252UL;
		for (unsigned int i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++) {
			before = free_memory();
			limited(round ? NULL : attempts[i].name, attempts[i].fn);
			kill(-1, SIGKILL);		/* what they left behind */
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
			sleep_ms(20);
			limited(NULL, nothing);
			if (round && free_memory() + 64 < before)
				say("%s: %ld pages are gone", attempts[i].name, (long)(before - free_memory()));
		}
	}
	return 0;
}
