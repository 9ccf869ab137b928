/* Random calls on pipes, sockets, terminals, counters and watchers, by several processes at once that share them. It runs
 * in the guest only. What it says is that it is still there, and that nothing was left behind.
 */
#include "t.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <termios.h>

#define FDS	48
#define PROCESSES 6
#define FIRST	10		/* those of the test itself are below */

static uint64_t seed;
static char area[1 << 22];		/* twice as much as a call moves, so nothing else is overwritten */

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}
static unsigned int below(unsigned int n) { return (unsigned int)(rnd() >> 20) % n; }
static int any_fd(void) { return FIRST + (int)below(FDS); }

/* Each kind has eight descriptors of its own; mostly a call gets one of those that suit it. */
enum kind { PIPE_READ, PIPE_WRITE, SOCKET, WATCHER, COUNTER, TERMINAL };
static int fd_of(enum kind kind)
{
	return below(8) ? FIRST + 8 * (int)kind + (int)below(8) : any_fd();
}

/* Mostly good, sometimes not. */
static void *any_pointer(void)
{
	switch (below(12)) {
	case 0: return BAD;
	case 1: return KERNEL;
	case 2: return (void *)rnd();
	default: return area + below(sizeof(area) / 2);
	}
}
static size_t any_size(void)
{
	switch (below(8)) {
	case 0: return 0;
	case 1: return below(8) ? 1 << 20 : (size_t)rnd() | 1UL << 63;
	case 2: return 1 << 16;
	default: return below(5000);
	}
}

static void keep(int fd, enum kind kind)
{
	if (fd < 0)
		return;
	dup2(fd, fd_of(kind));
	close(fd);
}

static void make(void)
{
	static const int types[] = { SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET };
	int p[2], unlock = 0, peer;
	sigset_t set;
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	switch (below(9)) {
	case 0:
		if (!pipe2(p, O_NONBLOCK)) {
			keep(p[0], PIPE_READ);
			keep(p[1], PIPE_WRITE);
		}
		return;
	case 1:
		if (!socketpair(AF_UNIX, types[below(3)] | SOCK_NONBLOCK, 0, p)) {
			keep(p[0], SOCKET);
			keep(p[1], SOCKET);
		}
		return;
	case 2:
		p[0] = socket(AF_UNIX, types[below(3)] | SOCK_NONBLOCK, 0);
		a.sun_path[1] = (char)('a' + below(6));
		if (below(2)) {
			bind(p[0], (struct sockaddr *)&a, 4);
			listen(p[0], (int)below(3));
		} else {
			connect(p[0], (struct sockaddr *)&a, 4);
		}
		keep(p[0], SOCKET);
		return;
	case 3:
		keep(epoll_create1(0), WATCHER);
		return;
	case 4:
		keep(eventfd(below(3), EFD_NONBLOCK), COUNTER);
		return;
	case 5:
		keep(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), COUNTER);
		return;
	case 6:
		sigfillset(&set);
		keep(signalfd(-1, &set, SFD_NONBLOCK), COUNTER);
		return;
	case 7:
		p[0] = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
		ioctl(p[0], TIOCSPTLCK, &unlock);
		peer = ioctl(p[0], 0x5441, O_RDWR | O_NOCTTY | O_NONBLOCK);
		keep(p[0], TERMINAL);
		keep(peer, TERMINAL);
		return;
	default:
		dup2(any_fd(), any_fd());
	}
}

/* Not by the library, which looks at them itself. */
static void messages(void)
{
	static char control[2048];
	struct cmsghdr *c = (struct cmsghdr *)control;
	struct iovec v[2] = { { area, below(3000) }, { any_pointer(), any_size() } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = (int)below(3), .msg_control = below(8) ? control : any_pointer(),
			    .msg_controllen = (socklen_t)below(sizeof(control)) };
	unsigned int n = below(4), got;

	if (below(2)) {
		c->cmsg_level = below(9) ? SOL_SOCKET : 1 + (int)below(5);
		c->cmsg_type = 1 + (int)below(3) / 2;
		c->cmsg_len = (socklen_t)CMSG_LEN(n * sizeof(int));
		for (unsigned int i = 0; i < n; i++)
			((int *)CMSG_DATA(c))[i] = any_fd();
		if (below(4))
			m.msg_controllen = (socklen_t)CMSG_SPACE(n * sizeof(int));
		syscall(SYS_sendmsg, fd_of(SOCKET), &m, (below(16) ? MSG_NOSIGNAL : (int)rnd()) | MSG_DONTWAIT);
		return;
	}
	memset(control, 0, sizeof(control));
	if (syscall(SYS_recvmsg, fd_of(SOCKET), &m, (below(16) ? 0 : (int)rnd()) | MSG_DONTWAIT) < 0 ||
	    m.msg_control != control || m.msg_controllen < CMSG_LEN(4) || c->cmsg_type != SCM_RIGHTS)
		return;
	got = (unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
	for (unsigned int i = 0; i < got && i < 300; i++)
		keep(((int *)CMSG_DATA(c))[i], (enum kind)below(6));
}

static void watch(void)
{
	struct epoll_event e[4] = { { .events = (uint32_t)rnd() & ~(below(4) ? 1U << 28 : 0) } };
	struct pollfd f[4];
	fd_set r, w;
	struct timeval tv = { 0, (long)below(2000) };

	switch (below(4)) {
	case 0:
		epoll_ctl(fd_of(WATCHER), below(3) ? 1 : 1 + (int)below(3), fd_of((enum kind)below(6)), e);
		return;
	case 1:
		epoll_wait(fd_of(WATCHER), below(8) ? e : any_pointer(), 1 + (int)below(4), (int)below(3));
		return;
	case 2:
		for (int i = 0; i < 4; i++)
			f[i] = (struct pollfd){ any_fd(), (short)rnd(), 0 };
		poll(f, 4, (int)below(3));
		return;
	default:
		FD_ZERO(&r);
		FD_ZERO(&w);
		FD_SET(any_fd(), &r);
		FD_SET(any_fd(), &w);
		select(FIRST + FDS, &r, &w, NULL, &tv);
	}
}

static void control(void)
{
	static const unsigned int commands[] = {
		TCGETS, TCSETS, TCSETSF, TIOCGWINSZ, TIOCSWINSZ, TIOCGPGRP, TIOCSPGRP, TIOCSCTTY, TIOCNOTTY, TIOCGSID, FIONREAD,
		TIOCOUTQ, TCFLSH, TCXONC, TIOCSETD, TIOCGPTN, TIOCSTI, 0x5437, FIONBIO,
	};
	struct itimerspec t = { { 0, below(2) ? 3000000 : 0 }, { 0, below(2000000) } };
	unsigned int command = commands[below(sizeof(commands) / sizeof(commands[0]))];
	int one = 1, fd = fd_of(SOCKET), v = (int)rnd();

	switch (below(6)) {
	case 0:
		timerfd_settime(fd_of(COUNTER), (int)below(2), &t, NULL);
		return;
	case 1:
		setsockopt(fd, SOL_SOCKET, 1 + (int)below(40), &v, (socklen_t)below(20));
		return;
	case 2:
		shutdown(fd, (int)below(4));
		return;
	case 3:
		keep(accept4(fd, NULL, NULL, SOCK_NONBLOCK), SOCKET);
		return;
	case 4:
		fd = fd_of(TERMINAL);
		if (command == TCXONC || command == TCFLSH)
			ioctl(fd, command, below(4));
		else if (command != FIONBIO)
			ioctl(fd, command, any_pointer());
		ioctl(fd, FIONBIO, &one);
		return;
	default:
		fcntl(fd_of(PIPE_READ), F_SETPIPE_SZ, 1 << below(22));
	}
}

static void one_call(void)
{
	switch (below(10)) {
	case 0:
	case 1:
		make();
		return;
	case 2:
	case 3:
		read(fd_of((enum kind)below(6)), any_pointer(), any_size());
		return;
	case 4:
	case 5:
		write(fd_of((enum kind)below(6)), any_pointer(), any_size() & 0xffff);
		return;
	case 6:
		messages();
		return;
	case 7:
		watch();
		return;
	case 8:
		control();
		return;
	default:
		if (below(2))
			close(any_fd());
		else
			kill(getppid(), SIGWINCH);
	}
}

static void process(uint64_t number, int calls)
{
	static const int signals[] = { SIGPIPE, SIGHUP, SIGTTIN, SIGTTOU, SIGINT, SIGQUIT, SIGTSTP };

	seed = number * 0x9e3779b97f4a7c15UL + 1;
	for (unsigned int i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		signal(signals[i], SIG_IGN);
	for (int i = 0; i < calls; i++) {
		one_call();
		if (i == calls / 2 && below(2) && fork() == 0)	/* everything is inherited */
			i = calls * 3 / 4;
		if (below(300) == 0)
			setsid();
	}
	_exit(0);
}

static void round_of(uint64_t number, int calls)
{
	int status, wrong = 0;

	for (uint64_t i = 0; i < PROCESSES; i++)
		if (!fork())
			process(number * 100 + i, calls);
	while (wait(&status) > 0)
		if (status) {
			wrong++;
			say_status("a process", status);
		}
	if (wrong)
		say("round %lu: %d processes did not get to the end", (unsigned long)number, wrong);
}

static unsigned long free_memory(void)
{
	struct sysinfo s;

	sysinfo(&s);
	return s.freeram * s.mem_unit;
}

int main(int argc, char **argv)
{
	int calls = argc > 1 ? atoi(argv[1]) : 1500, rounds = argc > 2 ? atoi(argv[2]) : 4;
	unsigned long before, after;

	mount("devpts", "/dev/pts", "devpts", 0, NULL);
	round_of(0, calls);
	round_of(1, calls);
	before = free_memory();
	for (int i = 2; i < rounds + 2; i++)
		round_of((uint64_t)i, calls);
	sleep_ms(300);
	after = free_memory();
	if (before > after + (4UL << 20))
		say("%lu KiB are gone", (before - after) >> 10);
	say("done");
	return 0;
}
