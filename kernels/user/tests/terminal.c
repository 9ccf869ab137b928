/* The line discipline and job control, on a pseudo-terminal. What is typed goes in at the master, which also sees what is
 * echoed; the terminal's reader says what arrives.
 */
#include "t.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <termios.h>

static int master, slave;
static struct termios sane;

static void show_bytes(const char *what, const char *p, long n)
{
	char out[400] = "";
	size_t at = 0;

	if (n < 0) {
		show(what, n);
		return;
	}
	for (long i = 0; i < n && at < sizeof(out) - 8; i++) {
		unsigned char c = (unsigned char)p[i];

		if (c >= 0x20 && c < 0x7f && c != '\\')
			out[at++] = (char)c;
		else
			at += (size_t)sprintf(out + at, "\\%02x", c);
	}
	say("%s (%ld): %s", what, n, out);
}

static void settle(void) { sleep_ms(20); }	/* Linux moves input by a thread of its own */

static void type_n(const char *keys, size_t n)
{
	char echo[4096];
	long got;

	if (write(master, keys, n) != (ssize_t)n)
		say("typing: errno %d", errno);
	settle();
	got = read(master, echo, sizeof(echo));
	show_bytes("  echo", echo, got < 0 && errno == EAGAIN ? 0 : got);
}
static void type(const char *keys)
{
	show_bytes("type", keys, (long)strlen(keys));
	type_n(keys, strlen(keys));
}

static void reads(size_t size)
{
	char buf[4096];

	show_bytes("  read", buf, read(slave, buf, size));
}

static void set(tcflag_t iflag, tcflag_t oflag, tcflag_t lflag, int min, int time)
{
	struct termios t = sane;

	t.c_iflag = iflag;
	t.c_oflag = oflag;
	t.c_lflag = lflag;
	t.c_cc[VMIN] = (cc_t)min;
	t.c_cc[VTIME] = (cc_t)time;
	say("set %o %o %o %d %d = %d", iflag, oflag, lflag, min, time, tcsetattr(slave, TCSAFLUSH, &t));
}

#define LOCAL (ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN)

static void open_pair(void)
{
	char path[32];
	int unlock = 0, n = -1;
	struct stat st;

	if (access("/dev/pts/ptmx", F_OK) < 0 && access("/dev/pts/0", F_OK) < 0)
		mount("devpts", "/dev/pts", "devpts", 0, NULL);
	master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
	C(master >= 0);
	C(isatty(master));
	T(ioctl(master, TIOCGPTN, &n) || n < 0);
	snprintf(path, sizeof(path), "/dev/pts/%d", n);
	T(open(path, O_RDWR | O_NOCTTY));
	T(ioctl(master, TIOCSPTLCK, &unlock));
	slave = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK);
	C(slave >= 0);
	C(isatty(slave));
	fstat(slave, &st);
	C(S_ISCHR(st.st_mode));
	T(tcgetattr(slave, &sane));
	say("%o %o %o %o", sane.c_iflag, sane.c_oflag, sane.c_cflag, sane.c_lflag);
	show_bytes("cc", (char *)sane.c_cc, 17);
}

static void canonical(void)
{
	say("-- canonical");
	reads(100);
	type("hello");
	reads(100);
	type("\r");
	reads(100);
	type("two\rlines\n");
	reads(100);
	reads(100);
	type("longer line\r");
	reads(4);
	reads(4);
	reads(100);
	type("abc\x7f\x7fx\r");
	reads(100);
	type("\x7f\x7f\r");
	reads(100);
	type("one two  \x17three\x17\x17new\r");
	reads(100);
	type("foo_bar.baz\x17\r");
	reads(100);
	type("killed\x15kept\r");
	reads(100);
	type("tab\there\x7f\x7f\x7f\x7f\x7f\x7f\r");
	reads(100);
	type("\t\t\x7f\x7f\x7f\r");
	reads(100);
	type("ctrl\x01\x02\x7f\x7f\x7fx\r");
	reads(100);
	type("re\x12print\r");
	reads(100);
	type("\x16\x03lit\x16\x7f\x16\r\x16\n\r");
	reads(100);
	type("eof\x04");
	reads(3);
	reads(100);
	type("eof\x04");
	reads(100);
	reads(100);
	type("\x04");
	reads(100);
	reads(100);
	type("a\x04" "b\x04\x04" "c\r");
	reads(100);
	reads(100);
	reads(100);
	reads(100);
	type("\x00nul\r");
	type_n("a\0b\r", 4);
	reads(100);
	type("\xc3\xa9\x7f\xff\xfe\r");
	reads(100);
	type("unread");
	type("\r");
	T(tcflush(slave, TCIFLUSH));
	reads(100);
}

static void echo_flags(void)
{
	say("-- echo");
	set(ICRNL, OPOST | ONLCR, ICANON, 1, 0);
	type("no\x7f echo\x15yes\x03\r");
	reads(100);
	set(ICRNL, OPOST | ONLCR, ICANON | ECHONL, 1, 0);
	type("nl only\r");
	reads(100);
	set(ICRNL, OPOST | ONLCR, ICANON | ECHO, 1, 0);
	type("ab\x7f\x7f\x15\x17kill\x15" "c\x01\r");
	reads(100);
	set(ICRNL, OPOST | ONLCR, ICANON | ECHO | ECHOK, 1, 0);
	type("kill\x15more\r");
	reads(100);
	set(ICRNL, OPOST | ONLCR, ICANON | ECHO | ECHOE | ECHOPRT | IEXTEN | ECHOCTL, 1, 0);
	type("abcd\x7f\x7fx\x7f\x7f\x7f\r");
	reads(100);
	set(ICRNL | IUTF8, OPOST | ONLCR, LOCAL, 1, 0);
	type("\xc3\xa9\xe2\x82\xac\x7f\x7f\x7fz\r");
	reads(100);
	type("\xc3\xa9\t\x7f\xe2\x82\xac w\x17\r");
	reads(100);
}

static void input_flags(void)
{
	say("-- input");
	set(0, OPOST | ONLCR, LOCAL, 1, 0);
	type("cr\rnl\n");
	reads(100);
	set(INLCR, OPOST | ONLCR, LOCAL, 1, 0);
	type("nl\n");
	reads(100);
	set(IGNCR, OPOST | ONLCR, LOCAL, 1, 0);
	type("no\rcr\n");
	reads(100);
	set(ISTRIP | ICRNL, OPOST | ONLCR, LOCAL, 1, 0);
	type("\xe1\xe2\r");
	reads(100);
	set(IUCLC | ICRNL, OPOST | ONLCR, LOCAL, 1, 0);
	type("UPPER lower\r");
	reads(100);
	set(PARMRK | ICRNL, OPOST | ONLCR, LOCAL, 1, 0);
	type("x\xff\xfe\r");
	reads(100);
	{
		struct termios t = sane;

		t.c_cc[VEOL] = '!';
		t.c_cc[VEOL2] = '?';
		t.c_cc[VERASE] = '#';
		t.c_cc[VINTR] = 0;
		T(tcsetattr(slave, TCSANOW, &t));
		type("ab#c!d?e\x03\x7f\r");
		reads(100);
		reads(100);
		reads(100);
		T(tcsetattr(slave, TCSANOW, &sane));
	}
}

static void puts_and_shows(const char *text, size_t n)
{
	char out[4096];

	show_bytes("write", text, (long)n);
	T(write(slave, text, n));
	settle();
	show_bytes("  out", out, read(master, out, sizeof(out)));
}

static void output_flags(void)
{
	static const tcflag_t flags[] = { 0, OPOST, OPOST | ONLCR, OPOST | OCRNL, OPOST | ONOCR, OPOST | ONLRET | ONOCR,
					  OPOST | OLCUC, OPOST | XTABS, OPOST | ONLCR | XTABS | OCRNL };
	static const char text[] = "\rab\tc\b\td\ne\r\rf\r\n\x01g\t\n";

	say("-- output");
	for (unsigned int i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		set(ICRNL, flags[i], ICANON, 1, 0);
		puts_and_shows("\n", 1);
		puts_and_shows(text, sizeof(text) - 1);
	}
	set(ICRNL, OPOST | ONLCR, ICANON, 1, 0);
	T(write(slave, BAD, 5));
	T(write(slave, NULL, 0));
}

static void raw(void)
{
	char buf[32];
	struct timespec a, b;

	say("-- raw");
	set(0, 0, 0, 1, 0);
	reads(100);
	type("\x03\x04\x7f\r\n\x16\x15");
	reads(100);
	fcntl(slave, F_SETFL, O_RDWR);
	set(0, 0, 0, 3, 0);
	type("ab");
	{
		struct pollfd f = { slave, POLLIN | POLLOUT, 0 };
		int n;

		T(poll(&f, 1, 0));
		say("%x", f.revents);
		T(ioctl(slave, FIONREAD, &n));
		say("%d", n);
	}
	if (!fork()) {
		sleep_ms(50);
		write(master, "c", 1);
		_exit(0);
	}
	reads(100);
	wait(NULL);
	type("abcdefg");
	reads(2);
	reads(100);
	set(0, 0, 0, 0, 0);
	reads(100);
	set(0, 0, 0, 0, 2);
	clock_gettime(CLOCK_MONOTONIC, &a);
	reads(100);
	clock_gettime(CLOCK_MONOTONIC, &b);
	C((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 >= 190);
	type("x");
	reads(100);
	set(0, 0, 0, 5, 2);
	type("ab");
	reads(100);		/* not five, but no more within 0.2 s */
	fcntl(slave, F_SETFL, O_RDWR | O_NONBLOCK);
	set(0, 0, 0, 0, 0);
	reads(100);
	set(0, 0, 0, 0, 2);
	reads(100);
	set(0, 0, 0, 1, 0);
	type("half");
	{
		struct termios t = sane;

		T(tcsetattr(slave, TCSANOW, &t));	/* what was typed becomes a line */
		reads(2);
		reads(100);
		type("unfinished");
		t.c_lflag &= ~(tcflag_t)ICANON;
		T(tcsetattr(slave, TCSANOW, &t));
		reads(100);
		T(tcsetattr(slave, TCSANOW, &sane));
	}
	T(read(slave, BAD, 5));
	T(read(slave, buf, 0));
}

static void overlong(void)
{
	static char big[5000], buf[5000];
	int n;

	say("-- overlong");
	set(ICRNL, OPOST | ONLCR, ICANON, 1, 0);
	memset(big, 'x', sizeof(big));
	for (int i = 0; i < 5000; i += 500) {
		T(write(master, big, 500));
		settle();
	}
	T(write(master, "yz\r", 3));
	settle();
	T(ioctl(slave, FIONREAD, &n));
	say("%d", n);
	n = (int)read(slave, buf, sizeof(buf));
	say("%d, ends in %02x %02x %02x", n, buf[n - 3], buf[n - 2], buf[n - 1]);
	reads(10);
	T(tcflush(slave, TCIFLUSH));
	T(tcsetattr(slave, TCSANOW, &sane));
}

static void flow_control(void)
{
	char out[100];

	say("-- flow");
	T(tcsetattr(slave, TCSAFLUSH, &sane));
	type("\x13");
	T(write(slave, "held", 4));
	{
		struct pollfd f = { slave, POLLOUT, 0 };

		T(poll(&f, 1, 0));
	}
	type("\x11");
	T(write(slave, "free", 4));
	settle();
	show_bytes("  out", out, read(master, out, sizeof(out)));
	T(tcflow(slave, TCOOFF));
	T(write(slave, "held", 4));
	T(tcflow(slave, TCOON));
	T(tcflow(slave, TCIOFF));
	settle();
	show_bytes("  out", out, read(master, out, sizeof(out)));
	T(ioctl(slave, TCXONC, 9));
	T(tcflush(slave, 9));
	T(tcdrain(slave));
	T(tcsendbreak(slave, 0));
}

static void questions(void)
{
	struct winsize w = { 24, 80, 1, 2 }, got = { 9, 9, 9, 9 };
	struct termios t;
	int n = -1;

	say("-- questions");
	T(ioctl(slave, TIOCGWINSZ, &got));
	say("%u %u", got.ws_row, got.ws_col);
	T(ioctl(master, TIOCSWINSZ, &w));
	T(ioctl(slave, TIOCGWINSZ, &got));
	say("%u %u %u %u", got.ws_row, got.ws_col, got.ws_xpixel, got.ws_ypixel);
	T(ioctl(slave, TIOCGWINSZ, BAD));
	T(ioctl(slave, TIOCSWINSZ, BAD));
	T(ioctl(slave, TCGETS, BAD));
	T(ioctl(slave, TCSETS, BAD));
	T(ioctl(master, TCGETS, &t));
	T(ioctl(slave, TIOCGETD, &n));
	say("%d", n);
	n = 99;
	T(ioctl(slave, TIOCSETD, &n));
	T(ioctl(slave, TIOCMGET, &n));
	T(ioctl(slave, TIOCOUTQ, &n));
	say("%d", n);
	T(ioctl(slave, 0x5499, &n));
	T(ioctl(slave, TIOCGPGRP, &n));
	T(ioctl(slave, TIOCGSID, &n));
	T(ioctl(slave, TIOCNOTTY, 0));
	n = 1;
	T(ioctl(slave, TIOCSPGRP, &n));
	T(ioctl(slave, TIOCGPTN, &n));
	T(lseek(slave, 0, SEEK_SET));
	T(pread(slave, &n, 1, 0));
	T(ftruncate(slave, 0));
	C(mmap(NULL, 4096, PROT_READ, MAP_SHARED, slave, 0) == MAP_FAILED);
	{
		int null = open("/dev/null", O_RDWR);

		T(tcgetattr(null, &t));
		T(isatty(null));
		close(null);
	}
}

/* ---- job control ---- */

static void on_signal(int sig) { say("    signal %d", sig); }

static void job(void)
{
	int ctty, status, n, p[2];
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	pid_t child;
	char path[32], c;

	say("-- jobs");
	ioctl(master, TIOCGPTN, &n);
	snprintf(path, sizeof(path), "/dev/pts/%d", n);
	T(open("/dev/tty", O_RDWR));
	setsid();
	T(open("/dev/tty", O_RDWR));
	T(ioctl(slave, TIOCGSID, &n));
	ctty = open(path, O_RDWR);		/* becomes ours */
	C(tcgetsid(ctty) == getsid(0));
	C(tcgetpgrp(ctty) == getpgrp());
	C(tcgetpgrp(master) == getpgrp());
	n = open("/dev/tty", O_RDWR);
	C(n >= 0);
	C(tcgetpgrp(n) == getpgrp());
	close(n);
	T(ioctl(ctty, TIOCSCTTY, 0));
	T(tcsetpgrp(ctty, 99999999));
	T(tcsetpgrp(ctty, -1));
	T(ioctl(ctty, TIOCSPGRP, BAD));
	T(tcsetpgrp(ctty, getpgid(getppid())));
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGQUIT, &sa, NULL);
	sigaction(SIGTSTP, &sa, NULL);
	sigaction(SIGWINCH, &sa, NULL);
	type("abc\x03");
	reads(100);
	type("abc\x1c");
	type("\x1a");
	{
		struct termios t = sane;

		t.c_lflag |= NOFLSH;
		tcsetattr(ctty, TCSANOW, &t);
		type("abc\x03\r");
		reads(100);
		t.c_lflag &= ~(tcflag_t)(ISIG | NOFLSH);
		tcsetattr(ctty, TCSANOW, &t);
		type("abc\x03\r");
		reads(100);
		tcsetattr(ctty, TCSANOW, &sane);
	}
	{
		struct winsize w = { 30, 90, 0, 0 };

		T(ioctl(master, TIOCSWINSZ, &w));
		settle();
		T(ioctl(master, TIOCSWINSZ, &w));
	}
	signal(SIGTTOU, SIG_DFL);
	/* a foreground child gets the keys, we do not */
	pipe(p);
	child = fork();
	if (!child) {
		signal(SIGINT, SIG_DFL);
		signal(SIGTSTP, SIG_DFL);
		setpgid(0, 0);
		write(p[1], "x", 1);
		while (1)
			pause();
	}
	read(p[0], &c, 1);
	T(tcsetpgrp(ctty, child));
	C(tcgetpgrp(ctty) == child);
	type("\x1a");
	waitpid(child, &status, WUNTRACED);
	say_status("child", status);
	kill(child, SIGCONT);
	waitpid(child, &status, WCONTINUED);
	say_status("child", status);
	type("\x03");
	waitpid(child, &status, 0);
	say_status("child", status);
	/* now we are in the background, and our group is orphaned */
	fcntl(ctty, F_SETFL, O_RDWR | O_NONBLOCK);
	signal(SIGTTOU, SIG_IGN);
	T(tcsetpgrp(ctty, getpgrp()));
	signal(SIGTTOU, SIG_DFL);
	/* a background child stops when it reads, when it changes modes, and if asked to when it writes */
	child = fork();
	if (!child) {
		struct termios t = sane;

		setpgid(0, 0);
		write(p[1], "x", 1);
		show_bytes("background read", &c, read(ctty, &c, 1));
		T(tcsetattr(ctty, TCSANOW, &t));
		T(write(ctty, "W", 1));
		t.c_lflag |= TOSTOP;
		signal(SIGTTOU, SIG_IGN);
		T(tcsetattr(ctty, TCSANOW, &t));
		T(write(ctty, "W", 1));
		signal(SIGTTOU, SIG_DFL);
		T(write(ctty, "W", 1));
		signal(SIGTTIN, SIG_IGN);
		T(read(ctty, &c, 1));
		_exit(0);
	}
	read(p[0], &c, 1);
	write(master, "k\r", 2);
	while (waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status)) {
		say_status("  child", status);
		sleep_ms(10);
		if (WSTOPSIG(status) == SIGTTIN) {	/* to the foreground, for its read */
			signal(SIGTTOU, SIG_IGN);
			tcsetpgrp(ctty, child);
			kill(child, SIGCONT);
			sleep_ms(30);
			tcsetpgrp(ctty, getpgrp());
			signal(SIGTTOU, SIG_DFL);
			continue;
		}
		signal(SIGTTOU, SIG_IGN);
		tcsetpgrp(ctty, child);
		kill(child, SIGCONT);
		sleep_ms(30);
		tcsetpgrp(ctty, getpgrp());
		signal(SIGTTOU, SIG_DFL);
	}
	say_status("child", status);
	settle();
	{
		char out[64];

		show_bytes("  out", out, read(master, out, sizeof(out)));
	}
	tcsetattr(ctty, TCSANOW, &sane);
	/* another session can not have it */
	CHILD("thief", setsid(); T(ioctl(ctty, TIOCSCTTY, 0)); T(open("/dev/tty", O_RDWR)); T(tcgetpgrp(ctty));
	      C(open(path, O_RDWR) >= 0); T(open("/dev/tty", O_RDWR)));
	close(p[0]);
	close(p[1]);
	sa.sa_handler = on_signal;
	sigaction(SIGHUP, &sa, NULL);
	sigaction(SIGCONT, &sa, NULL);
	T(ioctl(ctty, TIOCNOTTY, 0));
	T(open("/dev/tty", O_RDWR));
	T(tcgetpgrp(ctty));
	T(ioctl(ctty, TIOCSCTTY, 0));
	C(tcgetpgrp(ctty) == getpgrp());
}

/* The leader of a session ends: what becomes of the others and of their files? */
static void leader_ends(void)
{
	int report[2], status, ctty, n;
	char path[32], buf[64];

	say("-- leader ends");
	ioctl(master, TIOCGPTN, &n);
	snprintf(path, sizeof(path), "/dev/pts/%d", n);
	pipe(report);
	if (!fork()) {
		setsid();
		ctty = open(path, O_RDWR | O_NONBLOCK);
		if (!fork()) {
			struct sigaction sa = { .sa_handler = on_signal };
			struct pollfd f = { ctty, POLLIN | POLLOUT, 0 };

			sigaction(SIGHUP, &sa, NULL);
			sleep_ms(100);
			T(read(ctty, buf, 1));
			T(write(ctty, "x", 1));
			T(poll(&f, 1, 0));
			say("    %x", f.revents);
			T(ioctl(ctty, TIOCGWINSZ, buf));
			T(tcgetpgrp(ctty));
			T(tcsetpgrp(ctty, getpgrp()));
			T(isatty(ctty));
			T(open("/dev/tty", O_RDWR));
			write(report[1], "x", 1);
			_exit(0);
		}
		sleep_ms(50);
		_exit(0);
	}
	wait(&status);
	sleep_ms(30);
	say_status("leader", status);
	read(report[0], buf, 1);
	close(report[0]);
	close(report[1]);
	T(write(slave, "x", 1));
}

static void master_ends(void)
{
	struct pollfd f;
	char buf[16];
	int n, unlock = 0, s, m = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK), ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN };
	char path[32];

	say("-- ends");
	ioctl(m, TIOCGPTN, &n);
	ioctl(m, TIOCSPTLCK, &unlock);
	snprintf(path, sizeof(path), "/dev/pts/%d", n);
	T(read(m, buf, 1));
	s = open(path, O_RDWR | O_NOCTTY);
	T(write(s, "last", 4));
	close(s);
	settle();
	f = (struct pollfd){ m, POLLIN | POLLOUT, 0 };
	T(poll(&f, 1, 0));
	say("%x", f.revents);
	T(read(m, buf, 16));
	T(read(m, buf, 16));
	s = open(path, O_RDWR | O_NOCTTY);
	C(s >= 0);
	T(read(m, buf, 16));
	T(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e));
	T(epoll_wait(ep, &e, 1, 0));
	write(m, "k\r", 2);
	T(epoll_wait(ep, &e, 1, 100));
	say("%x", e.events);
	T(read(s, buf, 16));
	close(m);
	T(epoll_wait(ep, &e, 1, 100));
	say("%x", e.events);
	T(read(s, buf, 16));
	T(write(s, "x", 1));
	T(open(path, O_RDWR | O_NOCTTY));
	close(s);
	close(ep);
}

int main(void)
{
	open_pair();
	canonical();
	echo_flags();
	input_flags();
	output_flags();
	raw();
	overlong();
	flow_control();
	questions();
	CHILD("jobs", job());
	leader_ends();
	master_ends();
	return 0;
}
