/* eventfd, timerfd, signalfd. */
#include "t.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static int events(int fd)
{
	struct pollfd f = { fd, POLLIN | POLLOUT, 0 };

	poll(&f, 1, 0);
	return f.revents;
}

static void eventfds(void)
{
	int e = eventfd(3, EFD_NONBLOCK), s = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
	uint64_t v = 0, max = UINT64_MAX - 1, none = UINT64_MAX;

	C(e >= 0);
	T(eventfd(0, 0x10));
	T(fcntl(e, F_GETFL));
	T(fcntl(s, F_GETFD));
	say("%x", events(e));
	T(read(e, &v, 8));
	say("%lu, %x", (unsigned long)v, events(e));
	T(read(e, &v, 8));
	T(read(e, &v, 7));
	T(write(e, &v, 7));
	v = 5;
	T(write(e, &v, 8));
	T(write(e, &v, 16));
	T(read(e, BAD, 8));
	T(read(e, &v, 8));
	T(write(e, BAD, 8));
	T(write(e, &none, 8));
	T(write(e, &max, 8));
	say("%x", events(e));
	v = 1;
	T(write(e, &v, 8));
	v = 0;
	T(write(e, &v, 8));
	T(read(s, &v, 8));
	say("%lu", (unsigned long)v);
	read(s, &v, 8);
	read(s, &v, 8);
	T(read(s, &v, 8));
	T(lseek(e, 0, SEEK_SET));
	T(pread(e, &v, 8, 0));
	close(e);
	close(s);
	e = eventfd(0, 0);
	if (!fork()) {
		sleep_ms(30);
		v = 9;
		write(e, &v, 8);
		_exit(0);
	}
	T(read(e, &v, 8));
	say("%lu", (unsigned long)v);
	wait(NULL);
	close(e);
}

static void timerfds(void)
{
	int t = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	struct itimerspec s = { { 0, 0 }, { 0, 30000000 } }, old = { { 9, 9 }, { 9, 9 } }, bad = { { 0, 0 }, { 0, 1000000000 } };
	uint64_t v = 0;
	struct timespec now;

	C(t >= 0);
	T(timerfd_create(99, 0));
	T(timerfd_create(CLOCK_MONOTONIC, 1));
	T(timerfd_create(CLOCK_PROCESS_CPUTIME_ID, 0));
	T(timerfd_gettime(t, &old));
	say("%ld %ld %ld %ld", (long)old.it_value.tv_sec, old.it_value.tv_nsec, (long)old.it_interval.tv_sec,
	    old.it_interval.tv_nsec);
	T(read(t, &v, 8));
	T(timerfd_settime(t, 0, &s, &old));
	T(read(t, &v, 8));
	say("%x", events(t));
	sleep_ms(60);
	say("%x", events(t));
	T(read(t, &v, 8));
	say("%lu", (unsigned long)v);
	T(read(t, &v, 8));
	T(read(t, &v, 4));
	T(write(t, &v, 8));
	T(timerfd_settime(t, 0, &bad, NULL));
	T(timerfd_settime(t, 16, &s, NULL));
	T(timerfd_settime(t, 0, BAD, NULL));
	T(timerfd_settime(1000, 0, &s, NULL));
	T(timerfd_settime(1, 0, &s, NULL));
	T(timerfd_gettime(t, BAD));
	s.it_interval.tv_nsec = 20000000;
	T(timerfd_settime(t, 0, &s, NULL));
	fcntl(t, F_SETFL, 0);
	T(read(t, &v, 8));
	C(v >= 1);
	sleep_ms(100);
	T(read(t, &v, 8));
	C(v >= 3);
	s.it_value = (struct timespec){ 50, 0 };
	T(timerfd_settime(t, 0, &s, &old));
	say("%ld", (long)old.it_interval.tv_nsec);
	T(timerfd_gettime(t, &old));
	C(old.it_value.tv_sec == 49);
	clock_gettime(CLOCK_MONOTONIC, &s.it_value);
	s.it_interval = (struct timespec){ 0, 0 };
	T(timerfd_settime(t, TFD_TIMER_ABSTIME, &s, NULL));
	T(read(t, &v, 8));
	say("%lu", (unsigned long)v);
	s.it_value = (struct timespec){ 0, 0 };
	T(timerfd_settime(t, 0, &s, NULL));
	close(t);
	t = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC);
	clock_gettime(CLOCK_REALTIME, &now);
	s.it_value = now;
	s.it_value.tv_nsec += 30000000;
	if (s.it_value.tv_nsec >= 1000000000) {
		s.it_value.tv_nsec -= 1000000000;
		s.it_value.tv_sec++;
	}
	T(timerfd_settime(t, TFD_TIMER_ABSTIME, &s, NULL));
	T(read(t, &v, 8));
	close(t);
}

static void signalfds(void)
{
	struct signalfd_siginfo i[4];
	sigset_t set, other;
	union sigval value = { .sival_int = 77 };
	int s, ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN };

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGKILL);
	sigemptyset(&other);
	sigaddset(&other, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	sigprocmask(SIG_BLOCK, &other, NULL);
	T(syscall(SYS_signalfd4, -1, &set, 4, 0));
	T(syscall(SYS_signalfd4, -1, BAD, 8, 0));
	T(syscall(SYS_signalfd4, -1, &set, 8, 1));
	T(syscall(SYS_signalfd4, 1000, &set, 8, 0));
	T(syscall(SYS_signalfd4, 1, &set, 8, 0));
	s = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	C(s >= 0);
	T(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e));
	say("%x", events(s));
	T(read(s, i, sizeof(i)));
	T(read(s, i, 100));
	T(epoll_wait(ep, &e, 1, 0));
	kill(getpid(), SIGUSR2);
	kill(getpid(), SIGUSR1);
	kill(getpid(), SIGTERM);
	say("%x", events(s));
	T(epoll_wait(ep, &e, 1, 0));
	T(read(s, BAD, sizeof(i)));
	kill(getpid(), SIGUSR1);
	T(read(s, i, sizeof(i)));
	for (int n = 0; n < 2; n++)
		say("%u %d %d, mine %d", i[n].ssi_signo, i[n].ssi_code, i[n].ssi_errno, (int)i[n].ssi_pid == getpid());
	T(read(s, i, sizeof(i)));
	T(epoll_wait(ep, &e, 1, 0));
	sigqueue(getpid(), SIGUSR1, value);
	T(read(s, i, sizeof(i[0])));
	say("%u %d %d", i[0].ssi_signo, i[0].ssi_code, i[0].ssi_int);
	C(signalfd(s, &other, 0) == s);
	T(read(s, i, sizeof(i)));
	say("%u", i[0].ssi_signo);
	T(signalfd(s, &set, 0) == s);
	fcntl(s, F_SETFL, 0);
	if (!fork()) {
		sleep_ms(30);
		_exit(7);
	}
	T(read(s, i, sizeof(i)));
	say("%u %d status %d", i[0].ssi_signo, i[0].ssi_code, i[0].ssi_status);
	wait(NULL);
	T(write(s, i, 128));
	/* inherited: whose signals they are depends on who reads */
	kill(getpid(), SIGUSR1);
	fcntl(s, F_SETFL, O_NONBLOCK);
	CHILD("child", show("child reads", read(s, i, sizeof(i))));
	T(read(s, i, sizeof(i[0])));
	close(s);
	close(ep);
}

int main(void)
{
	eventfds();
	timerfds();
	signalfds();
	return 0;
}
