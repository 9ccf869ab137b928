/* poll, select, epoll. */
#include "t.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static void polls(void)
{
	int p[2], null = open("/dev/null", O_RDWR), file = open("file", O_RDWR | O_CREAT, 0600);
	struct pollfd f[4];
	struct timespec zero = { 0, 0 }, bad = { 0, 1000000000 }, some = { 0, 30000000 };
	struct rlimit lim, old;
	sigset_t set;

	pipe(p);
	T(poll(NULL, 0, 0));
	T(poll(NULL, 0, 20));
	T(poll(BAD, 1, 0));
	f[0] = (struct pollfd){ 1000, POLLIN, 0 };
	f[1] = (struct pollfd){ -1, POLLIN, 7 };
	f[2] = (struct pollfd){ null, POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM | POLLPRI, 0 };
	f[3] = (struct pollfd){ file, POLLIN | POLLOUT | POLLRDNORM, 0 };
	T(poll(f, 4, -1));
	say("%x %x %x %x", f[0].revents, f[1].revents, f[2].revents, f[3].revents);
	f[0] = (struct pollfd){ p[0], POLLIN, 0 };
	T(poll(f, 1, 30));
	T(ppoll(f, 1, &zero, NULL));
	T(ppoll(f, 1, &some, NULL));
	T(ppoll(f, 1, &bad, NULL));
	sigemptyset(&set);
	T(syscall(SYS_ppoll, f, 1, &zero, &set, 4));
	T(syscall(SYS_ppoll, f, 1, &zero, BAD, 8));
	T(syscall(SYS_ppoll, f, 1, BAD, NULL, 8));
	getrlimit(RLIMIT_NOFILE, &old);
	lim = old;
	lim.rlim_cur = 64;
	setrlimit(RLIMIT_NOFILE, &lim);
	T(syscall(SYS_poll, f, 65, 0));
	T(syscall(SYS_poll, f, -1UL, 0));
	setrlimit(RLIMIT_NOFILE, &old);
	if (!fork()) {
		sleep_ms(50);
		write(p[1], "x", 1);
		_exit(0);
	}
	T(poll(f, 1, -1));
	say("%x", f[0].revents);
	wait(NULL);
	close(p[0]);
	close(p[1]);
	close(null);
	close(file);
	unlink("file");
}

static void on_signal(int sig) { say("handler %d", sig); }

static void masks(void)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	sigset_t blocked, open_set, now;
	struct timespec second = { 1, 0 };
	int p[2];
	struct pollfd f;

	pipe(p);
	sigaction(SIGUSR1, &sa, NULL);
	sigemptyset(&blocked);
	sigemptyset(&open_set);
	sigaddset(&blocked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	kill(getpid(), SIGUSR1);
	f = (struct pollfd){ p[0], POLLIN, 0 };
	T(ppoll(&f, 1, &second, &open_set));
	sigprocmask(SIG_BLOCK, NULL, &now);
	C(sigismember(&now, SIGUSR1));
	kill(getpid(), SIGUSR1);
	T(pselect(0, NULL, NULL, NULL, &second, &open_set));
	kill(getpid(), SIGUSR1);
	write(p[1], "x", 1);
	T(ppoll(&f, 1, &second, &open_set));	/* ready: no signal is needed to end it */
	sigprocmask(SIG_UNBLOCK, &blocked, NULL);
	say("unblocked");
	close(p[0]);
	close(p[1]);
}

static void selects(void)
{
	int p[2];
	fd_set r, w, e;
	struct timeval tv = { 0, 0 }, bad = { -1, 0 }, some = { 0, 30000 };

	pipe(p);
	if (dup2(p[0], 100) != 100 || dup2(p[1], 101) != 101) {
		say("no descriptors 100 and 101");	/* select() looks only at what the table holds: it would wait for ever */
		return;
	}
	FD_ZERO(&r);
	FD_ZERO(&w);
	FD_ZERO(&e);
	FD_SET(100, &r);
	FD_SET(101, &w);
	T(select(102, &r, &w, &e, &tv));
	say("%d %d", FD_ISSET(100, &r), FD_ISSET(101, &w));
	write(p[1], "x", 1);
	FD_SET(100, &r);
	FD_SET(101, &w);
	T(select(102, &r, &w, NULL, NULL));
	T(select(101, &r, NULL, NULL, NULL));
	FD_ZERO(&r);
	FD_SET(100, &r);
	T(select(100, &r, NULL, NULL, &some));
	C(!FD_ISSET(100, &r) || FD_ISSET(100, &r));
	FD_ZERO(&r);
	FD_SET(90, &r);
	T(select(102, &r, NULL, NULL, &tv));
	T(syscall(SYS_select, -1, NULL, NULL, NULL, &tv));
	T(syscall(SYS_select, 0, NULL, NULL, NULL, &bad));
	T(syscall(SYS_select, 0, NULL, NULL, NULL, BAD));
	T(syscall(SYS_select, 10, BAD, NULL, NULL, &tv));
	T(select(0, NULL, NULL, NULL, &some));
	say("left %ld %ld", (long)some.tv_sec, (long)some.tv_usec);
	close(100);
	close(101);
	close(p[0]);
	close(p[1]);
}

/* ---- epoll ---- */

static int add(int ep, int fd, unsigned int events)
{
	struct epoll_event e = { .events = events, .data.u64 = 0x123456789abcdef0UL + (unsigned int)fd };

	return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
}

static int mod(int ep, int fd, unsigned int events)
{
	struct epoll_event e = { .events = events, .data.u32 = 7 };

	return epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
}

static void waits(int ep, const char *what)
{
	struct epoll_event e[8];
	int n = epoll_wait(ep, e, 8, 0);

	say("%s: %d", what, n);
	for (int i = 0; i < n; i++)
		say("  %x", e[i].events);
}

static void epoll_errors(void)
{
	int ep = epoll_create1(0), other = epoll_create1(EPOLL_CLOEXEC), p[2], null = open("/dev/null", O_RDWR),
	    file = open("file", O_RDWR | O_CREAT, 0600);
	struct epoll_event e = { .events = EPOLLIN };

	pipe(p);
	C(ep >= 0);
	T(fcntl(other, F_GETFD));
	T(fcntl(other, F_GETFL));
	T(epoll_create1(1));
	T(epoll_create(0));
	T(epoll_create(-1));
	T(add(ep, null, EPOLLIN));
	T(add(ep, file, EPOLLIN));
	T(add(ep, ep, EPOLLIN));
	T(add(ep, 1000, EPOLLIN));
	T(add(1000, p[0], EPOLLIN));
	T(add(p[1], p[0], EPOLLIN));
	T(mod(ep, p[0], EPOLLIN));
	T(epoll_ctl(ep, EPOLL_CTL_DEL, p[0], NULL));
	T(epoll_ctl(ep, EPOLL_CTL_ADD, p[0], BAD));
	T(epoll_ctl(ep, 9, p[0], &e));
	T(add(ep, p[0], EPOLLIN));
	T(add(ep, p[0], EPOLLIN));
	T(mod(ep, p[0], EPOLLIN | EPOLLEXCLUSIVE));
	T(add(ep, p[1], EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT));
	T(add(ep, other, EPOLLIN | EPOLLEXCLUSIVE));
	T(add(ep, p[1], EPOLLOUT | EPOLLEXCLUSIVE));
	T(mod(ep, p[1], EPOLLOUT));
	T(epoll_wait(ep, &e, 0, 0));
	T(epoll_wait(ep, &e, -1, 0));
	T(epoll_wait(ep, &e, 0x7fffffff, 0));
	T(epoll_wait(p[0], &e, 1, 0));
	T(epoll_wait(1000, &e, 1, 0));
	T(epoll_wait(ep, BAD, 1, 0));
	T(epoll_wait(ep, KERNEL, 1, 0));
	waits(ep, "after a fault");
	T(read(ep, &e, 8));
	T(write(ep, &e, 8));
	T(lseek(ep, 0, SEEK_SET));
	close(ep);
	close(other);
	close(null);
	close(file);
	unlink("file");
	close(p[0]);
	close(p[1]);
}

static void epoll_modes(void)
{
	int ep = epoll_create1(0), p[2], s[2], copy;
	struct epoll_event e[2];
	char c;

	pipe2(p, O_NONBLOCK);
	T(add(ep, p[0], EPOLLIN));
	waits(ep, "nothing");
	write(p[1], "ab", 2);
	waits(ep, "level");
	waits(ep, "level again");
	T(mod(ep, p[0], EPOLLIN | EPOLLET));
	waits(ep, "edge");
	waits(ep, "edge again");
	write(p[1], "c", 1);
	waits(ep, "edge, new byte");
	T(mod(ep, p[0], EPOLLIN | EPOLLET));
	waits(ep, "edge, after mod");
	T(mod(ep, p[0], EPOLLIN | EPOLLONESHOT));
	waits(ep, "once");
	write(p[1], "d", 1);
	waits(ep, "once again");
	T(mod(ep, p[0], EPOLLIN | EPOLLONESHOT));
	waits(ep, "rearmed");
	T(mod(ep, p[0], EPOLLIN));
	while (read(p[0], &c, 1) == 1)
		;
	waits(ep, "drained");
	T(epoll_wait(ep, e, 2, 30));
	T(epoll_ctl(ep, EPOLL_CTL_DEL, p[0], NULL));
	write(p[1], "x", 1);
	waits(ep, "deleted");
	T(add(ep, p[0], 0));
	waits(ep, "nothing wanted");
	close(p[1]);
	waits(ep, "hung up");
	copy = dup(p[0]);
	T(add(ep, copy, EPOLLIN));
	close(p[0]);
	waits(ep, "closed, but for the copy");
	close(copy);
	waits(ep, "closed");

	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	T(add(ep, s[0], EPOLLIN | EPOLLOUT | EPOLLRDHUP));
	waits(ep, "socket");
	write(s[1], "x", 1);
	waits(ep, "socket, byte");
	shutdown(s[1], SHUT_WR);
	waits(ep, "socket, shut");
	close(s[1]);
	waits(ep, "socket, peer closed");
	close(s[0]);
	close(ep);
}

static void epoll_nested(void)
{
	int ep[8], p[2], n = eventfd(0, 0);
	struct pollfd f;
	unsigned long one = 1;

	for (int i = 0; i < 8; i++)
		ep[i] = epoll_create1(0);
	T(add(ep[0], ep[1], EPOLLIN));
	T(add(ep[1], ep[0], EPOLLIN));
	T(add(ep[1], ep[2], EPOLLIN));
	T(add(ep[2], ep[0], EPOLLIN));
	T(add(ep[2], ep[3], EPOLLIN));
	T(add(ep[3], ep[4], EPOLLIN));
	T(add(ep[4], ep[5], EPOLLIN));
	T(add(ep[6], ep[0], EPOLLIN));
	T(add(ep[3], n, EPOLLIN));
	waits(ep[0], "quiet");
	write(n, &one, 8);
	waits(ep[0], "outer");
	waits(ep[3], "inner");
	f = (struct pollfd){ ep[0], POLLIN | POLLOUT, 0 };
	T(poll(&f, 1, 0));
	say("%x", f.revents);
	f.events = POLLOUT;
	T(poll(&f, 1, 20));
	read(n, &one, 8);
	waits(ep[0], "quiet again");
	pipe(p);
	T(add(ep[7], p[0], EPOLLIN));
	if (!fork()) {
		sleep_ms(30);
		write(p[1], "x", 1);
		_exit(0);
	}
	f = (struct pollfd){ ep[7], POLLIN, 0 };
	T(poll(&f, 1, -1));
	wait(NULL);
	for (int i = 0; i < 8; i++)
		close(ep[i]);
	close(n);
	close(p[0]);
	close(p[1]);
}

static void epoll_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	int ep = epoll_create1(0), p[2];
	struct epoll_event e[2];
	struct timespec some = { 0, 20000000 }, bad = { 0, -1 };
	sigset_t blocked, open_set;

	pipe(p);
	add(ep, p[0], EPOLLIN);
	sigaction(SIGUSR1, &sa, NULL);
	sigemptyset(&open_set);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	kill(getpid(), SIGUSR1);
	T(epoll_pwait(ep, e, 2, 20, NULL));
	T(epoll_pwait(ep, e, 2, -1, &open_set));
	T(syscall(SYS_epoll_pwait, ep, e, 2, 0, &open_set, 4));
	T(syscall(SYS_epoll_pwait2, ep, e, 2, &some, NULL, 8));
	T(syscall(SYS_epoll_pwait2, ep, e, 2, &bad, NULL, 8));
	if (!fork()) {
		sleep_ms(30);
		write(p[1], "x", 1);
		_exit(0);
	}
	T(epoll_wait(ep, e, 2, -1));
	wait(NULL);
	close(ep);
	close(p[0]);
	close(p[1]);
}

static void epoll_many(void)
{
	int ep = epoll_create1(0), fds[40];
	struct epoll_event e[64];
	unsigned long one = 1;
	int n, sum = 0;

	for (int i = 0; i < 40; i++) {
		fds[i] = eventfd(i % 2, EFD_NONBLOCK);
		e[0] = (struct epoll_event){ .events = EPOLLIN, .data.u32 = (unsigned int)i };
		epoll_ctl(ep, EPOLL_CTL_ADD, fds[i], e);
	}
	T(epoll_wait(ep, e, 64, 0));
	n = epoll_wait(ep, e, 7, 0);
	for (int round = 0; round < 3; round++) {	/* all get their turn */
		for (int i = 0; i < n; i++)
			sum += (int)e[i].data.u32;
		n = epoll_wait(ep, e, 7, 0);
	}
	say("%d %d", n, sum);
	write(fds[0], &one, 8);
	T(epoll_wait(ep, e, 64, 0));
	for (int i = 0; i < 40; i++)
		close(fds[i]);
	T(epoll_wait(ep, e, 64, 0));
	close(ep);
}

int main(void)
{
	polls();
	masks();
	selects();
	epoll_errors();
	epoll_modes();
	epoll_nested();
	epoll_signals();
	epoll_many();
	return 0;
}
