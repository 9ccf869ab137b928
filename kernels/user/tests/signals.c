/* Signals: handlers, frames, masks, waiting, restart of calls, stop and continue. */
#include "t.h"
#include <math.h>
#include <sys/time.h>
#include <ucontext.h>

static volatile int count, last_code, last_signo, nested, in_handler;
static volatile pid_t last_pid;

static void note(int sig, siginfo_t *info, void *context)
{
	(void)context;
	count++;
	last_signo = sig == info->si_signo ? sig : -1;
	last_code = info->si_code;
	last_pid = info->si_pid;
}

static void install(int sig, void (*fn)(int, siginfo_t *, void *), int flags)
{
	struct sigaction a = { .sa_sigaction = fn, .sa_flags = SA_SIGINFO | flags };

	sigemptyset(&a.sa_mask);
	sigaction(sig, &a, NULL);
}

static void basics(void)
{
	struct sigaction a = { .sa_handler = SIG_IGN }, old;
	sigset_t set;

	T(sigaction(0, &a, NULL));
	T(sigaction(65, &a, NULL));
	T(sigaction(SIGKILL, &a, NULL));
	T(sigaction(SIGSTOP, &a, NULL));
	T(sigaction(SIGKILL, NULL, &old));
	T(syscall(SYS_rt_sigaction, SIGUSR1, NULL, NULL, 4L));
	T(syscall(SYS_rt_sigaction, SIGUSR1, BAD, NULL, 8L));
	T(syscall(SYS_rt_sigaction, SIGUSR1, NULL, BAD, 8L));
	T(syscall(SYS_rt_sigprocmask, 77, NULL, NULL, 8L));
	T(syscall(SYS_rt_sigprocmask, 77, &set, NULL, 8L));
	T(syscall(SYS_rt_sigprocmask, 0, NULL, NULL, 16L));
	T(syscall(SYS_rt_sigprocmask, 0, BAD, NULL, 8L));
	T(syscall(SYS_rt_sigprocmask, 0, NULL, BAD, 8L));
	T(syscall(SYS_rt_sigpending, BAD, 8L));
	T(syscall(SYS_rt_sigpending, &set, 9L));
	T(syscall(SYS_rt_sigsuspend, BAD, 8L));
	T(syscall(SYS_rt_sigsuspend, &set, 4L));
	T(kill(getpid(), 0));
	T(kill(getpid(), 65));
	T(kill(getpid(), -1));
	T(kill(99999999, 0));
	T(kill(99999999, 999));
	T(kill(-99999999, 0));
	T(syscall(SYS_tkill, 0L, 0L));
	T(syscall(SYS_tkill, 99999999L, 0L));
	T(syscall(SYS_tgkill, 0L, getpid(), 0L));
	T(syscall(SYS_tgkill, getpid(), 0L, 0L));
	T(syscall(SYS_tgkill, getpid(), getpid(), 0L));
	T(syscall(SYS_tgkill, getpid() + 1, getpid(), 0L));
	T(syscall(SYS_tgkill, getpid(), getpid(), 65L));

	install(SIGUSR1, note, 0);
	T(kill(getpid(), SIGUSR1));
	C(count == 1 && last_signo == SIGUSR1 && last_code == SI_USER && last_pid == getpid());
	T(raise(SIGUSR1));
	C(count == 2 && last_code == SI_TKILL && last_pid == getpid());
	sigaction(SIGUSR1, NULL, &old);
	C(old.sa_sigaction == note);
	say("flags %#x", old.sa_flags);
	install(SIGUSR1, note, SA_RESETHAND);
	raise(SIGUSR1);
	sigaction(SIGUSR1, NULL, &old);
	C(old.sa_handler == SIG_DFL);
	CHILD("default USR1", raise(SIGUSR1));
	CHILD("default PIPE", raise(SIGPIPE));
	CHILD("default CHLD", raise(SIGCHLD));
	CHILD("default WINCH", raise(SIGWINCH));
	CHILD("default URG", raise(SIGURG));
	CHILD("default CONT", raise(SIGCONT));
	CHILD("default IO", raise(SIGIO));
	CHILD("default ALRM", raise(SIGALRM));
	CHILD("default RT", raise(40));
	CHILD("ignored TERM", signal(SIGTERM, SIG_IGN); raise(SIGTERM));
}

static void masks(void)
{
	sigset_t set, old, pending;
	struct timespec zero = { 0, 0 }, bad = { 0, 1000000000 }, some = { 0, 30000000 };
	siginfo_t info;

	count = 0;
	install(SIGUSR1, note, 0);
	install(SIGUSR2, note, 0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	T(sigprocmask(SIG_BLOCK, &set, &old));
	C(!sigismember(&old, SIGUSR1));
	raise(SIGUSR1);
	raise(SIGUSR1);
	raise(SIGUSR2);
	C(count == 0);
	sigpending(&pending);
	C(sigismember(&pending, SIGUSR1) && sigismember(&pending, SIGUSR2) && !sigismember(&pending, SIGHUP));
	T(sigtimedwait(&set, &info, &zero));
	C(info.si_signo == SIGUSR1 && info.si_code == SI_TKILL && info.si_pid == getpid());
	T(sigtimedwait(&set, NULL, &zero));
	T(sigtimedwait(&set, &info, &zero));
	T(sigtimedwait(&set, &info, &bad));
	T(sigtimedwait(&set, &info, &some));
	T(syscall(SYS_rt_sigtimedwait, BAD, NULL, NULL, 8L));
	T(syscall(SYS_rt_sigtimedwait, &set, NULL, BAD, 8L));
	T(syscall(SYS_rt_sigtimedwait, &set, NULL, &zero, 7L));
	raise(SIGUSR1);
	T(syscall(SYS_rt_sigtimedwait, &set, BAD, &zero, 8L));
	T(sigtimedwait(&set, &info, &zero));
	raise(SIGUSR2);
	T(sigprocmask(SIG_SETMASK, &old, NULL));
	C(count == 1 && last_signo == SIGUSR2);

	/* ignored while blocked: dropped when the handler says so */
	sigprocmask(SIG_BLOCK, &set, NULL);
	raise(SIGUSR1);
	signal(SIGUSR1, SIG_IGN);
	sigpending(&pending);
	C(!sigismember(&pending, SIGUSR1));
	raise(SIGUSR1);
	sigpending(&pending);
	C(sigismember(&pending, SIGUSR1));
	sigprocmask(SIG_SETMASK, &old, NULL);

	if (!fork()) {
		sleep_ms(30);
		kill(getppid(), SIGUSR2);
		_exit(0);
	}
	count = 0;
	sigprocmask(SIG_BLOCK, &set, NULL);
	T(sigsuspend(&old));
	C(count == 1);
	sigprocmask(SIG_SETMASK, NULL, &pending);
	C(sigismember(&pending, SIGUSR2));
	sigprocmask(SIG_SETMASK, &old, NULL);
	OK(wait(NULL));
	if (!fork()) {
		sleep_ms(30);
		kill(getppid(), SIGUSR2);
		_exit(0);
	}
	T(pause());
	OK(wait(NULL));
}

static void nest(int sig)
{
	if (in_handler)
		nested++;
	in_handler++;
	if (nested < 3 && count++ < 1)
		raise(sig);
	in_handler--;
}

static void nesting(void)
{
	struct sigaction a = { .sa_handler = nest };

	count = nested = 0;
	sigaction(SIGUSR1, &a, NULL);
	raise(SIGUSR1);
	say("nested without NODEFER: %d", nested);
	count = nested = 0;
	a.sa_flags = SA_NODEFER;
	sigaction(SIGUSR1, &a, NULL);
	raise(SIGUSR1);
	say("nested with NODEFER: %d", nested);
	/* two at once: the lower number first, its handler interrupted by the other */
}

/* ---- restart ---- */

static void send_in(long ms, int sig)
{
	if (!fork()) {
		sleep_ms(ms);
		kill(getppid(), sig);
		_exit(0);
	}
}

static void restarts(void)
{
	int pipe_[2], status;
	struct timespec t = { 0, 100000000 }, left = { 0 };
	pid_t pid;
	char c;

	if (pipe(pipe_)) {
		say("no pipe");
		return;
	}
	install(SIGUSR1, note, 0);
	send_in(30, SIGUSR1);
	T(read(pipe_[0], &c, 1));
	wait(NULL);
	install(SIGUSR1, note, SA_RESTART);
	count = 0;
	send_in(30, SIGUSR1);
	if (!fork()) {
		sleep_ms(100);
		(void)!write(pipe_[1], "x", 1);
		_exit(0);
	}
	T(read(pipe_[0], &c, 1));
	C(count == 1);
	wait(NULL);
	wait(NULL);
	/* no handler: goes on without anybody noticing */
	send_in(20, SIGCHLD);
	if (!fork()) {
		sleep_ms(60);
		(void)!write(pipe_[1], "y", 1);
		_exit(0);
	}
	T(read(pipe_[0], &c, 1));
	wait(NULL);
	wait(NULL);

	send_in(30, SIGUSR1);
	T(nanosleep(&t, &left));
	C(left.tv_sec == 0 && left.tv_nsec > 0 && left.tv_nsec < 100000000);
	wait(NULL);
	install(SIGUSR1, note, 0);
	pid = fork();
	if (!pid) {
		sleep_ms(100);
		_exit(4);
	}
	send_in(20, SIGUSR1);
	T(waitpid(pid, &status, 0));
	C(waitpid(pid, &status, 0) == pid);
	say_status("waited again", status);
	wait(NULL);
	close(pipe_[0]);
	close(pipe_[1]);
}

/* Stopped in the middle of a sleep, it sleeps on to the same end. */
static void stops(void)
{
	int status;
	pid_t pid = fork();
	siginfo_t info;

	if (!pid) {
		struct timespec t = { 0, 60000000 };

		_exit(nanosleep(&t, NULL) ? 1 : 6);
	}
	sleep_ms(10);
	T(kill(pid, SIGSTOP));
	C(waitpid(pid, &status, WUNTRACED) == pid);
	say_status("stopped", status);
	T(waitpid(pid, &status, WUNTRACED | WNOHANG));
	T(kill(pid, SIGCONT));
	C(waitpid(pid, &status, WCONTINUED) == pid);
	say_status("continued", status);
	C(waitpid(pid, &status, 0) == pid);
	say_status("then", status);

	pid = fork();
	if (!pid) {
		raise(SIGSTOP);
		_exit(11);
	}
	C(waitid(P_PID, pid, &info, WSTOPPED) == 0 && info.si_code == CLD_STOPPED && info.si_status == SIGSTOP);
	T(kill(pid, SIGTERM));			/* waits until it goes on */
	T(waitpid(pid, &status, WNOHANG));
	kill(pid, SIGCONT);
	waitpid(pid, &status, 0);
	say_status("term while stopped", status);

	pid = fork();
	if (!pid) {
		raise(SIGSTOP);
		_exit(11);
	}
	waitpid(pid, &status, WUNTRACED);
	T(kill(pid, SIGKILL));
	C(waitpid(pid, &status, 0) == pid);
	say_status("killed while stopped", status);

	/* SIGCHLD for stops, unless SA_NOCLDSTOP */
	for (int i = 0; i < 2; i++) {
		count = 0;
		install(SIGCHLD, note, i ? SA_NOCLDSTOP : 0);
		pid = fork();
		if (!pid) {
			raise(SIGSTOP);
			_exit(0);
		}
		while (waitpid(pid, &status, WUNTRACED) < 0)
			;
		sleep_ms(10);
		say("SIGCHLD by a stop: %d", count);
		if (!i)
			C(last_code == CLD_STOPPED && last_pid == pid);
		kill(pid, SIGCONT);
		while (waitpid(pid, &status, 0) < 0)
			;
		sleep_ms(10);
		say("after its end: %d", count);
	}
	signal(SIGCHLD, SIG_DFL);
}

/* ---- faults ---- */

static void fault(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	unsigned long address = (unsigned long)info->si_addr, trap = (unsigned long)uc->uc_mcontext.gregs[REG_TRAPNO];

	/* small numbers are what the test used, others differ from run to run */
	say("fault: signal %d, code %d, address %#lx, trap %lu, error %lld, %s%s", sig, info->si_code,
	    address < 4096 ? address : address & 0xfff, trap, uc->uc_mcontext.gregs[REG_ERR],
	    address == (unsigned long)uc->uc_mcontext.gregs[REG_RIP] ? "the instruction's" : "other than rip",
	    trap == 14 && address != (unsigned long)uc->uc_mcontext.gregs[REG_CR2] ? ", not cr2" : "");
	_exit(20);
}

static void go(void *where)
{
	((void (*)(void))where)();
}

static volatile int zero;

static void faults(void)
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP };
	char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("/tmp/luemu-bus", O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *file = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	(void)!ftruncate(fd, 100);
	for (int handled = 0; handled < 2; handled++) {
		if (handled)
			for (unsigned int i = 0; i < 5; i++)
				install(signals[i], fault, 0);
		CHILD("read of 16", (void)*(volatile char *)16);
		CHILD("write to 24", *(volatile char *)24 = 1);
		CHILD("read of kernel", (void)*(volatile char *)KERNEL);
		CHILD("non-canonical", (void)*(volatile char *)0x8000000000000000UL);
		CHILD("write to read-only", mprotect(page, 4096, PROT_READ); *(volatile char *)page = 1);
		CHILD("read of PROT_NONE", mprotect(page, 4096, PROT_NONE); (void)*(volatile char *)page);
		CHILD("execute data", page[4096] = 1; go(page + 4096));
		CHILD("jump to 32", go((void *)32));
		CHILD("jump to kernel", go(KERNEL));
		CHILD("behind the file", (void)*(volatile char *)(file + 4096));
		CHILD("in its last page", (void)*(volatile char *)(file + 200));
		CHILD("divide", __asm__ volatile("xor %%ecx, %%ecx; div %%ecx" ::: "rax", "rcx", "rdx"));
		CHILD("ud2", __asm__ volatile("ud2"));
		CHILD("int3", __asm__ volatile("int3"));
		CHILD("hlt", __asm__ volatile("hlt"));
		CHILD("cli", __asm__ volatile("cli"));
		CHILD("in", __asm__ volatile("inb $0x80, %%al" ::: "rax"));
		CHILD("mov cr0", __asm__ volatile("mov %%cr0, %%rax" ::: "rax"));
		CHILD("wrmsr", __asm__ volatile("wrmsr" :: "a"(0), "c"(0xc0000100), "d"(0)));
		CHILD("swapgs", __asm__ volatile("swapgs"));
		CHILD("sysret", __asm__ volatile("sysretq"));
		CHILD("single step", __asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; nop; nop" ::: "memory"));
		CHILD("x87 exception", {
			unsigned short control = 0x37f & ~(1U << 2);

			__asm__ volatile("fldcw %0; fld1; fldz; fdivrp; fwait" :: "m"(control));
		});
	}
	for (unsigned int i = 0; i < 5; i++)
		signal(signals[i], SIG_DFL);
	CHILD("blocked SEGV", {
		sigset_t all;

		install(SIGSEGV, fault, 0);
		sigfillset(&all);
		sigprocmask(SIG_SETMASK, &all, NULL);
		*(volatile char *)8 = 1;
	});
	CHILD("ignored SEGV", signal(SIGSEGV, SIG_IGN); *(volatile char *)8 = 1);
	unlink("/tmp/luemu-bus");
}

/* ---- the frame ---- */

static void change(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	(void)sig, (void)info;
	uc->uc_mcontext.gregs[REG_RBX] = 0x1234;
	uc->uc_mcontext.gregs[REG_R15] ^= 0xff;
	say("frame: aligned %d, fpregs %d, flags %#lx, link %d", ((uintptr_t)__builtin_frame_address(0) & 15) == 0,
	    uc->uc_mcontext.fpregs != NULL, uc->uc_flags & 6, uc->uc_link == NULL);
	sigaddset(&uc->uc_sigmask, SIGHUP);
}

static void frame(void)
{
	long rbx = 1, r15 = 0xf00, rdi = getpid(), result = SYS_kill;
	double before = sqrt(2.0) + zero, after;
	sigset_t mask;

	install(SIGUSR1, change, 0);
	__asm__ volatile("mov %[in], %%rbx; mov %[r], %%r15; syscall; mov %%rbx, %[out]; mov %%r15, %[r]"
			 : "+a"(result), [out] "=&r"(rbx), [r] "+&r"(r15)
			 : [in] "r"(7L), "D"(rdi), "S"((long)SIGUSR1) : "rbx", "r15", "rcx", "r11", "memory");
	after = sqrt(2.0) + zero;
	say("kill %ld, rbx %#lx, r15 %#lx, fpu %s", result, rbx, r15, before == after ? "kept" : "lost");
	sigprocmask(SIG_SETMASK, NULL, &mask);
	C(sigismember(&mask, SIGHUP));
	sigemptyset(&mask);
	sigprocmask(SIG_SETMASK, &mask, NULL);
}

static void clobber_fpu(int sig)
{
	(void)sig;
	__asm__ volatile("fninit; pxor %%xmm0, %%xmm0; pxor %%xmm7, %%xmm7; pxor %%xmm15, %%xmm15" ::: "xmm0", "xmm7", "xmm15");
	count++;
}

/* Registers keep their values over a handler and over other programs that use them. */
static void fpu(void)
{
	struct itimerval every = { { 0, 10000 }, { 0, 10000 } }, off = { { 0, 0 }, { 0, 0 } };
	unsigned long wrong = 0, pattern[2] = { 0x0123456789abcdefUL, 0xfedcba9876543210UL }, got[2];
	pid_t other = fork();

	if (!other)
		while (1)
			__asm__ volatile("pcmpeqb %%xmm7, %%xmm7; fldpi; fstp %%st(0)" ::: "xmm7");
	count = 0;
	signal(SIGALRM, clobber_fpu);
	setitimer(ITIMER_REAL, &every, NULL);
	while (count < 5) {
		__asm__ volatile("movdqu %1, %%xmm7; mov $100000, %%ecx; 1: dec %%ecx; jnz 1b; movdqu %%xmm7, %0"
				 : "=m"(got) : "m"(pattern) : "xmm7", "ecx");
		wrong += got[0] != pattern[0] || got[1] != pattern[1];
	}
	setitimer(ITIMER_REAL, &off, NULL);
	say("SSE registers lost: %lu", wrong);
	kill(other, SIGKILL);
	waitpid(other, NULL, 0);
	signal(SIGALRM, SIG_DFL);
}

/* ---- alternate stack ---- */

static char altstack[16384];

static void on_alternate(int sig)
{
	char here;
	stack_t now;

	say("signal %d on the alternate stack: %d", sig, &here >= altstack && &here < altstack + sizeof(altstack));
	sigaltstack(NULL, &now);
	say("flags %d, change in it: %d", now.ss_flags, sigaltstack(&now, NULL) ? errno : 0);
	if (sig == SIGSEGV)
		_exit(30);
}

static void alternate(void)
{
	stack_t s = { .ss_sp = altstack, .ss_size = sizeof(altstack) }, old, small = { .ss_sp = altstack, .ss_size = 100 },
		off = { .ss_flags = SS_DISABLE }, odd = { .ss_sp = altstack, .ss_size = 8192, .ss_flags = 16 };
	struct sigaction a = { .sa_handler = on_alternate, .sa_flags = SA_ONSTACK };

	T(sigaltstack(NULL, &old));
	say("flags %d", old.ss_flags);
	T(syscall(SYS_sigaltstack, &small, NULL));
	T(syscall(SYS_sigaltstack, &odd, NULL));
	T(syscall(SYS_sigaltstack, BAD, NULL));
	T(syscall(SYS_sigaltstack, NULL, BAD));
	T(sigaltstack(&s, NULL));
	sigaltstack(NULL, &old);
	C(old.ss_sp == altstack && old.ss_size == sizeof(altstack) && old.ss_flags == 0);
	sigaction(SIGUSR1, &a, NULL);
	sigaction(SIGSEGV, &a, NULL);
	raise(SIGUSR1);
	CHILD("stack overflow", __asm__ volatile("mov $8, %%rsp; push %%rax" ::: "memory"));
	T(sigaltstack(&off, NULL));
	CHILD("no stack for the handler", __asm__ volatile("mov $64, %%rsp; push %%rax" ::: "memory"));
	CHILD("stack in the kernel", __asm__ volatile("mov %0, %%rsp; push %%rax" :: "r"(KERNEL) : "memory"));
	CHILD("sigreturn from nowhere", __asm__ volatile("mov $64, %%rsp; mov $15, %%eax; syscall" ::: "memory"));
	CHILD("sigreturn of zeros", {
		static char zeros[2048];

		__asm__ volatile("mov %0, %%rsp; mov $15, %%eax; syscall" :: "r"(zeros) : "memory");
	});
	CHILD("sigreturn of ones", {
		static char ones[4096];

		memset(ones, 0xff, sizeof(ones));
		__asm__ volatile("mov %0, %%rsp; mov $15, %%eax; syscall" :: "r"(ones + 64) : "memory");
	});
	signal(SIGSEGV, SIG_DFL);
	signal(SIGUSR1, SIG_DFL);
}

static void timers(void)
{
	struct itimerval v = { { 0, 20000 }, { 0, 20000 } }, old, bad = { { 0, 1000000 }, { 0, 0 } };
	unsigned int left;

	T(setitimer(5, &v, NULL));
	T(setitimer(ITIMER_REAL, &bad, NULL));
	T(syscall(SYS_setitimer, ITIMER_REAL, BAD, NULL));
	T(syscall(SYS_getitimer, ITIMER_REAL, BAD));
	T(getitimer(4, &old));
	T(getitimer(ITIMER_REAL, &old));
	C(old.it_value.tv_sec == 0 && old.it_value.tv_usec == 0);
	install(SIGALRM, note, 0);
	count = 0;
	T(alarm(10));
	left = alarm(0);
	C(left == 10 || left == 9);
	T(setitimer(ITIMER_REAL, &v, NULL));
	while (count < 3)
		pause();
	C(last_code == SI_KERNEL);
	memset(&v, 0, sizeof(v));
	T(setitimer(ITIMER_REAL, &v, &old));
	C(old.it_interval.tv_usec == 20000 && old.it_value.tv_sec == 0);
	v.it_value.tv_usec = 20000;
	T(setitimer(ITIMER_REAL, &v, NULL));
	T(pause());
	T(alarm(0));
	/* not inherited by fork, kept by exec */
	alarm(100);
	CHILD("alarm of a child", _exit(alarm(0) == 0 ? 1 : 2));
	alarm(0);
}

/* Real-time signals queue, with a value each, the lower number first. */
static int order[32], nr_order;

static void record(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (nr_order < 32)
		order[nr_order++] = sig * 1000 + info->si_value.sival_int;
}

static void queues(void)
{
	sigset_t set, old;
	siginfo_t info;
	int sigs[3] = { SIGRTMIN + 2, SIGRTMIN + 1, SIGUSR1 };

	sigemptyset(&set);
	for (int i = 0; i < 3; i++) {
		install(sigs[i], record, 0);
		sigaddset(&set, sigs[i]);
	}
	sigprocmask(SIG_BLOCK, &set, &old);
	for (int i = 0; i < 3; i++)
		for (int n = 0; n < 3; n++)
			T(sigqueue(getpid(), sigs[i], (union sigval){ .sival_int = 10 * i + n }));
	T(sigtimedwait(&set, &info, &(struct timespec){ 0, 0 }));
	say("value %d, code %d", info.si_value.sival_int, info.si_code);
	sigprocmask(SIG_SETMASK, &old, NULL);
	/* handlers nest here: the last that was taken runs first */
	for (int i = 0; i < nr_order; i++)
		say("taken %d", order[i]);
	T(sigqueue(99999999, SIGUSR1, (union sigval){ 0 }));
	T(sigqueue(getpid(), 65, (union sigval){ 0 }));
	T(syscall(SYS_rt_sigqueueinfo, 1, SIGUSR1, &(siginfo_t){ .si_code = SI_USER }));
	T(syscall(SYS_rt_sigqueueinfo, getpid(), 0, &(siginfo_t){ .si_code = SI_USER }));
	T(syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), 0, &(siginfo_t){ .si_code = SI_QUEUE }));
	T(syscall(SYS_rt_tgsigqueueinfo, 0, getpid(), 0, &(siginfo_t){ .si_code = SI_QUEUE }));
}

static void processor_time(void)
{
	struct itimerval v = { { 0, 20000 }, { 0, 20000 } }, old;

	for (int which = ITIMER_VIRTUAL; which <= ITIMER_PROF; which++) {
		int sig = which == ITIMER_VIRTUAL ? SIGVTALRM : SIGPROF;

		install(sig, note, 0);
		count = 0;
		v.it_value.tv_usec = v.it_interval.tv_usec = 20000;
		T(setitimer(which, &v, NULL));
		while (count < 2)
			;
		memset(&v, 0, sizeof(v));
		T(setitimer(which, &v, &old));
		C(old.it_interval.tv_usec == 20000 && last_signo == sig && last_code == SI_KERNEL);
	}
}

/* ---- timer_create ---- */

static void made_timers(void)
{
	struct sigevent e = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 7 };
	struct itimerspec s = { { 0, 20000000 }, { 0, 20000000 } }, bad = { { 0, 0 }, { 0, 1000000000 } }, old;
	int id = -1, id2, sig;
	sigset_t set, before;
	siginfo_t info;

	T(syscall(SYS_timer_create, 99, &e, &id));
	T(syscall(SYS_timer_create, CLOCK_MONOTONIC, BAD, &id));
	T(syscall(SYS_timer_create, CLOCK_MONOTONIC, &e, BAD));
	e.sigev_signo = 65;
	T(syscall(SYS_timer_create, CLOCK_MONOTONIC, &e, &id));
	e.sigev_signo = SIGRTMIN;
	e.sigev_notify = 9;
	T(syscall(SYS_timer_create, CLOCK_MONOTONIC, &e, &id));
	e.sigev_notify = SIGEV_SIGNAL;
	T(syscall(SYS_timer_create, CLOCK_MONOTONIC, &e, &id));
	T(syscall(SYS_timer_settime, 12345, 0, &s, NULL));
	T(syscall(SYS_timer_settime, id, 0, NULL, NULL));
	T(syscall(SYS_timer_settime, id, 0, &bad, NULL));
	T(syscall(SYS_timer_settime, id, 0, BAD, NULL));
	T(syscall(SYS_timer_gettime, 12345, &old));
	T(syscall(SYS_timer_gettime, id, BAD));
	T(syscall(SYS_timer_getoverrun, 12345));
	T(syscall(SYS_timer_delete, 12345));
	T(syscall(SYS_timer_gettime, id, &old));
	C(!old.it_value.tv_nsec && !old.it_interval.tv_nsec);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &set, &before);
	T(syscall(SYS_timer_settime, id, 0, &s, &old));
	for (int i = 0; i < 3; i++) {
		sig = sigwaitinfo(&set, &info);
		say("signal %d, code %d, value %d", sig, info.si_code, info.si_value.sival_int);
	}
	sleep_ms(150);
	sigwaitinfo(&set, &info);
	T(syscall(SYS_timer_getoverrun, id) >= 3);
	T(syscall(SYS_timer_gettime, id, &old));
	C(old.it_value.tv_nsec > 0 && old.it_value.tv_nsec <= 20000000 && old.it_interval.tv_nsec == 20000000);
	memset(&s, 0, sizeof(s));
	T(syscall(SYS_timer_settime, id, 0, &s, &old));
	C(old.it_interval.tv_nsec == 20000000);
	clock_gettime(CLOCK_REALTIME, &s.it_value);
	T(syscall(SYS_timer_create, CLOCK_REALTIME, &e, &id2));
	T(syscall(SYS_timer_settime, id2, TIMER_ABSTIME, &s, NULL));
	C(sigwaitinfo(&set, &info) == SIGRTMIN);
	e.sigev_notify = SIGEV_NONE;
	T(syscall(SYS_timer_delete, id2));
	T(syscall(SYS_timer_delete, id2));
	T(syscall(SYS_timer_delete, id));
	CHILD("not inherited", T(syscall(SYS_timer_delete, id)));
	sigprocmask(SIG_SETMASK, &before, NULL);
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	basics();
	masks();
	nesting();
	restarts();
	stops();
	faults();
	frame();
	fpu();
	alternate();
	timers();
	queues();
	processor_time();
	made_timers();
	return 0;
}
