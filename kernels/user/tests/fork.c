/* Processes: fork, wait, exit, orphans, groups of children. */
#include "t.h"
#include <sys/prctl.h>
#include <sys/resource.h>

static void waiting(void)
{
	int status = 0x5a5a;
	pid_t pid;
	siginfo_t info;

	T(waitpid(-1, &status, 0));
	T(waitpid(1234567, &status, 0));
	T(waitpid(-1, &status, WNOHANG));
	T(waitpid(-1, &status, 0x80));
	T(syscall(SYS_wait4, (long)INT32_MIN, &status, 0, NULL));
	T(waitid(P_ALL, 0, &info, WEXITED));
	T(waitid(P_ALL, 0, &info, 0));
	T(waitid(P_ALL, 0, &info, WEXITED | 0x40));
	T(waitid(9, 0, &info, WEXITED));
	T(waitid(P_PID, 0, &info, WEXITED));
	T(waitid(P_PID, -1, &info, WEXITED));
	T(waitid(P_PGID, -1, &info, WEXITED));
	CHILD("exit 0", _exit(0));
	CHILD("exit 255", _exit(255));
	CHILD("exit 256", _exit(256));
	CHILD("exit -1", _exit(-1));
	CHILD("abort", abort());
	CHILD("kill", kill(getpid(), SIGKILL));
	CHILD("term", raise(SIGTERM));

	pid = fork();
	if (!pid) {
		sleep_ms(50);
		_exit(5);
	}
	T(waitpid(pid, &status, WNOHANG));
	T(waitpid(pid, &status, WNOHANG | WUNTRACED | WCONTINUED));
	memset(&info, 0x55, sizeof(info));
	T(waitid(P_PID, pid, &info, WEXITED | WNOHANG));
	C(info.si_pid == 0);
	C(info.si_signo == 0);
	T(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
	C(info.si_pid == pid);
	C(info.si_code == CLD_EXITED);
	C(info.si_status == 5);
	C(info.si_signo == SIGCHLD);
	C(waitpid(pid, &status, 0) == pid);
	say_status("after WNOWAIT", status);
	T(waitpid(pid, &status, 0));
	T(syscall(SYS_kill, pid, 0));

	pid = fork();
	if (!pid)
		_exit(3);
	errno = 0;
	C(syscall(SYS_wait4, pid, BAD, 0, NULL) == -1 && errno == EFAULT);
	T(waitpid(pid, &status, 0));		/* it was taken all the same */
}

static void groups(void)
{
	int status;
	pid_t a = fork(), b;

	if (!a) {
		setpgid(0, 0);
		sleep_ms(30);
		_exit(1);
	}
	setpgid(a, a);
	b = fork();
	if (!b)
		_exit(2);
	C(waitpid(0, &status, 0) == b);
	say_status("own group", status);
	T(waitpid(0, &status, 0));
	C(waitpid(-a, &status, 0) == a);
	say_status("its group", status);
	T(waitpid(-a, &status, 0));
}

/* The child of a child goes to the one that adopts. */
static void orphans(void)
{
	int pipe_[2], status;
	pid_t pid, grandchild = 0;

	T(prctl(PR_SET_CHILD_SUBREAPER, 1));
	if (pipe(pipe_)) {
		say("no pipe");
		return;
	}
	pid = fork();
	if (!pid) {
		pid_t parent = getpid(), inner = fork();

		if (!inner) {
			while (getppid() == parent)
				sleep_ms(5);
			_exit(getppid() == parent ? 1 : 42);
		}
		(void)!write(pipe_[1], &inner, sizeof(inner));
		_exit(7);
	}
	(void)!read(pipe_[0], &grandchild, sizeof(grandchild));
	C(waitpid(pid, &status, 0) == pid);
	say_status("child", status);
	C(waitpid(grandchild, &status, 0) == grandchild);
	say_status("grandchild", status);
	T(waitpid(-1, &status, 0));
	T(prctl(PR_SET_CHILD_SUBREAPER, 0));
	close(pipe_[0]);
	close(pipe_[1]);
}

static void ignored_children(void)
{
	struct sigaction ignore = { .sa_handler = SIG_IGN }, no_zombies = { .sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT },
			 normal = { .sa_handler = SIG_DFL };
	int status;

	sigaction(SIGCHLD, &ignore, NULL);
	if (!fork())
		_exit(1);
	T(waitpid(-1, &status, 0));
	sigaction(SIGCHLD, &no_zombies, NULL);
	if (!fork())
		_exit(1);
	T(waitpid(-1, &status, 0));
	sigaction(SIGCHLD, &normal, NULL);
	if (!fork())
		_exit(1);
	OK(waitpid(-1, &status, 0));
}

/* Memory is copied, and only when it is written. */
static int shared_value = 1;

static void memory(void)
{
	int *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int *private = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	*shared = *private = 10;
	CHILD("writer", shared_value = 2; *shared = 20; *private = 30);
	C(shared_value == 1);
	C(*shared == 20);
	C(*private == 10);
	munmap(shared, 4096);
	munmap(private, 4096);
}

static int vfork_order;

static void vforked(void)
{
	pid_t pid = vfork();
	int status;

	if (!pid) {
		vfork_order = 1;
		_exit(9);
	}
	C(vfork_order == 1);
	C(waitpid(pid, &status, 0) == pid);
	say_status("vfork", status);
}

static void usage(void)
{
	struct rusage r;
	struct rlimit l;

	T(getrusage(RUSAGE_SELF, &r));
	T(getrusage(RUSAGE_CHILDREN, &r));
	T(getrusage(7, &r));
	T(syscall(SYS_getrusage, RUSAGE_SELF, BAD));
	T(getrlimit(99, &l));
	T(syscall(SYS_getrlimit, RLIMIT_NOFILE, BAD));
	l.rlim_cur = 200;
	l.rlim_max = 100;
	T(setrlimit(RLIMIT_NOFILE, &l));
	getrlimit(RLIMIT_NOFILE, &l);
	l.rlim_cur = 5;
	T(setrlimit(RLIMIT_NOFILE, &l));
	T(dup(1) < 0 ? -1 : 0);
	T(dup(1) < 0 ? -1 : 0);
	T(dup(1));
	l.rlim_cur = 64;
	T(setrlimit(RLIMIT_NOFILE, &l));
	T(dup2(1, 64));
	T(dup2(1, 63));
	T(syscall(SYS_prlimit64, 99999999, RLIMIT_NOFILE, NULL, &l));
}

/* Numbers that no signal has: such a child ends in silence. */
static void exit_signals(void)
{
	static const int numbers[] = { 0, SIGUSR1, 64, 65, 100, 128, 255 };
	sigset_t usr1, before;
	int status;

	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigaddset(&usr1, 64);
	sigprocmask(SIG_BLOCK, &usr1, &before);
	for (unsigned i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
		long pid = syscall(SYS_clone, numbers[i], NULL, NULL, NULL, NULL);

		if (!pid)
			_exit(20 + (int)i);
		C(waitpid((pid_t)pid, &status, 0) == -1 && errno == ECHILD);
		C(waitpid((pid_t)pid, &status, __WALL) == pid);
		say_status("cloned", status);
		sigpending(&usr1);
		say("pending: %d %d", sigismember(&usr1, SIGUSR1), sigismember(&usr1, 64));
	}
	signal(SIGUSR1, SIG_IGN);
	signal(64, SIG_IGN);
	sigprocmask(SIG_SETMASK, &before, NULL);
}

int main(void)
{
	C(getppid() > 0);
	C(getpid() == (pid_t)syscall(SYS_gettid));
	waiting();
	groups();
	orphans();
	ignored_children();
	memory();
	vforked();
	exit_signals();
	usage();
	return 3;
}
