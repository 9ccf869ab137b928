/* Files that stand for processes. */
#include "t.h"
#include <poll.h>
#include <linux/sched.h>
#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static int pidfd_open(pid_t pid, unsigned int flags)
{
	return (int)syscall(SYS_pidfd_open, pid, flags);
}

static int send_(int fd, int sig, siginfo_t *info, unsigned int flags)
{
	return (int)syscall(SYS_pidfd_send_signal, fd, sig, info, flags);
}

int main(void)
{
	struct clone_args a = { .flags = CLONE_PIDFD, .exit_signal = SIGCHLD };
	struct pollfd p = { .events = POLLIN };
	siginfo_t info;
	int fd, status, made = -1;
	char c;
	pid_t pid;

	T(pidfd_open(0, 0));
	T(pidfd_open(-1, 0));
	T(pidfd_open(99999999, 0));
	T(pidfd_open(getpid(), 0x1234));
	fd = pidfd_open(getpid(), 0);
	C(fd >= 0);
	C(fcntl(fd, F_GETFD) == FD_CLOEXEC);
	p.fd = fd;
	T(poll(&p, 1, 0));
	T(read(fd, &c, 1));
	T(write(fd, &c, 1));
	T(send_(fd, 0, NULL, 0));
	T(send_(fd, 65, NULL, 0));
	T(send_(fd, 0, NULL, 64));
	T(send_(1, 0, NULL, 0));
	T(send_(99, 0, NULL, 0));
	memset(&info, 0, sizeof(info));
	info.si_signo = SIGUSR2;
	info.si_code = SI_QUEUE;
	T(send_(fd, SIGUSR1, &info, 0));
	T(send_(fd, SIGUSR1, BAD, 0));
	T(waitid(P_PIDFD, (id_t)fd, &info, WEXITED));
	T(waitid(P_PIDFD, 1, &info, WEXITED));
	T(waitid(P_PIDFD, 99, &info, WEXITED));
	close(fd);

	pid = fork();
	if (!pid) {
		sleep_ms(40);
		_exit(5);
	}
	fd = pidfd_open(pid, O_NONBLOCK);
	p.fd = fd;
	T(poll(&p, 1, 0));
	T(poll(&p, 1, 5));
	T(waitid(P_PIDFD, (id_t)fd, &info, WEXITED));
	T(poll(&p, 1, 30000));
	say("revents %#x", p.revents);
	T(send_(fd, 0, NULL, 0));
	T(waitid(P_PIDFD, (id_t)fd, &info, WEXITED | WNOWAIT));
	C(info.si_pid == pid && info.si_status == 5 && info.si_code == CLD_EXITED);
	T(waitid(P_PIDFD, (id_t)fd, &info, WEXITED));
	T(poll(&p, 1, 0));
	T(send_(fd, 0, NULL, 0));
	T(send_(fd, SIGKILL, NULL, 0));
	T(waitid(P_PIDFD, (id_t)fd, &info, WEXITED));
	close(fd);

	pid = (pid_t)syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, 0, &made, 0, 0);
	if (!pid) {
		pause();
		_exit(0);
	}
	C(made >= 0);
	C(fcntl(made, F_GETFD) == FD_CLOEXEC);
	T(send_(made, SIGTERM, NULL, 0));
	p.fd = made;
	T(poll(&p, 1, 30000));
	C(waitpid(pid, &status, 0) == pid);
	say_status("by pidfd", status);
	close(made);

	a.pidfd = (uint64_t)(uintptr_t)&made;
	pid = (pid_t)syscall(SYS_clone3, &a, sizeof(a));
	if (!pid)
		_exit(8);
	T(waitid(P_PIDFD, (id_t)made, &info, WEXITED));
	C(info.si_pid == pid && info.si_status == 8);
	close(made);
	a.pidfd = 8;
	T(syscall(SYS_clone3, &a, sizeof(a)));
	T(waitpid(-1, &status, WNOHANG));
	return 0;
}
