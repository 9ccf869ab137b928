/* Files and credentials in messages. */
#include "t.h"
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#pragma GCC diagnostic ignored "-Wsign-compare"	/* in the library's macros */

static long send_fds(int s, const int *fds, unsigned int count, const char *text)
{
	static union {
		char buf[CMSG_SPACE(300 * sizeof(int))];
		struct cmsghdr align;
	} u;
	struct iovec v = { (char *)text, strlen(text) };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = u.buf,
			    .msg_controllen = CMSG_SPACE(count * sizeof(int)) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(count * sizeof(int));
	if (count)
		memcpy(CMSG_DATA(c), fds, count * sizeof(int));
	return sendmsg(s, &m, 0);
}

static long receive_fds(int s, int *fds, unsigned int *count, size_t room, char *text, size_t size, int flags)
{
	static union {
		char buf[CMSG_SPACE(300 * sizeof(int))];
		struct cmsghdr align;
	} u;
	struct iovec v = { text, size };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = room ? u.buf : NULL, .msg_controllen = room };
	long n = recvmsg(s, &m, flags);

	*count = 0;
	if (n < 0)
		return n;
	say("  flags %x, control %lu", m.msg_flags, (unsigned long)m.msg_controllen);
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		say("  cmsg level %d type %d len %lu", c->cmsg_level, c->cmsg_type, (unsigned long)c->cmsg_len);
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
			*count = (unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(fds, CMSG_DATA(c), *count * sizeof(int));
		}
	}
	return n;
}

static void passing(int type)
{
	int s[2], p[2], fds[300];
	unsigned int n;
	char buf[32] = { 0 };

	say("type %d", type);
	socketpair(AF_UNIX, type, 0, s);
	pipe(p);
	T(send_fds(s[0], p, 2, "two"));
	close(p[0]);
	close(p[1]);
	T(receive_fds(s[1], fds, &n, 256, buf, 32, 0));
	say("%u %s", n, buf);
	T(write(fds[1], "through", 7));
	T(read(fds[0], buf, 32));
	T(fcntl(fds[0], F_GETFD));
	T(send_fds(s[0], fds, 2, "again"));
	close(fds[0]);
	close(fds[1]);
	T(receive_fds(s[1], fds, &n, 256, buf, 32, MSG_PEEK));
	T(write(fds[1], "x", 1));
	close(fds[0]);
	close(fds[1]);
	T(receive_fds(s[1], fds, &n, CMSG_LEN(4), buf, 32, MSG_CMSG_CLOEXEC));
	T(fcntl(fds[0], F_GETFD));
	T(read(fds[0], buf, 32));
	T(read(fds[0], buf, 32));	/* the other end did not fit and is closed */
	T(send_fds(s[0], fds, 1, "none fits"));
	T(receive_fds(s[1], fds + 1, &n, CMSG_LEN(0), buf, 32, 0));
	T(send_fds(s[0], fds, 1, "no room"));
	T(receive_fds(s[1], fds + 1, &n, 0, buf, 32, 0));
	T(send_fds(s[0], fds, 1, "plain read"));
	T(read(s[1], buf, 4));
	T(recv(s[1], buf, 32, MSG_DONTWAIT));
	close(fds[0]);
	fds[0] = 1000;
	T(send_fds(s[0], fds, 1, "bad"));
	for (int i = 0; i < 300; i++)
		fds[i] = 1;
	T(send_fds(s[0], fds, 254, "many"));
	T(send_fds(s[0], fds, 253, "many"));
	T(send_fds(s[0], fds, 0, "no fds"));
	T(receive_fds(s[1], fds, &n, CMSG_SPACE(300 * 4), buf, 32, 0));
	say("%u", n);
	for (unsigned int i = 0; i < n; i++)
		close(fds[i]);
	close(s[0]);
	close(s[1]);
}

/* Where a stream's reads end. */
static void borders(void)
{
	int s[2], fds[8], null = open("/dev/null", O_RDONLY);
	unsigned int n;
	char buf[64] = { 0 };

	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	write(s[0], "plain,", 6);
	send_fds(s[0], &null, 1, "files,");
	write(s[0], "after,", 6);
	send_fds(s[0], &null, 1, "more,");
	for (int i = 0; i < 3; i++) {
		memset(buf, 0, sizeof(buf));
		T(receive_fds(s[1], fds, &n, 256, buf, 63, MSG_DONTWAIT));
		say("%s %u", buf, n);
		for (unsigned int k = 0; k < n; k++)
			close(fds[k]);
	}
	send_fds(s[0], &null, 1, "pieces");
	T(receive_fds(s[1], fds, &n, 256, buf, 3, MSG_DONTWAIT));
	say("%u", n);
	T(receive_fds(s[1], fds + 1, &n, 256, buf, 63, MSG_DONTWAIT));
	say("%u", n);
	close(fds[0]);
	T(send_fds(s[0], &null, 1, ""));
	T(recv(s[1], buf, 1, MSG_DONTWAIT));
	close(null);
	close(s[0]);
	close(s[1]);
}

static void malformed(void)
{
	int s[2];
	char data[2] = "x";
	struct iovec v = { data, 1 }, many[2] = { { data, 1 }, { data, (size_t)-1 } };
	struct {				/* as the kernel has it; the library's has smaller lengths */
		size_t cmsg_len;
		int cmsg_level, cmsg_type;
		char data[64];
	} c;
	struct {
		void *msg_name;
		size_t msg_namelen;
		struct iovec *msg_iov;
		size_t msg_iovlen;
		void *msg_control;
		size_t msg_controllen, msg_flags;
	} m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &c };

	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	memset(&c, 0, sizeof(c));
	c.cmsg_level = SOL_SOCKET;
	c.cmsg_type = SCM_RIGHTS;
	for (size_t len = 8; len < 30; len += 3) {
		m.msg_controllen = 24;
		c.cmsg_len = len;
		say("%lu", (unsigned long)len);
		T(syscall(SYS_sendmsg, s[0], &m, 0));
	}
	c.cmsg_len = (size_t)-1;
	T(syscall(SYS_sendmsg, s[0], &m, 0));
	c.cmsg_len = 16;
	m.msg_controllen = 15;
	T(syscall(SYS_sendmsg, s[0], &m, 0));
	m.msg_controllen = 16;
	c.cmsg_type = 99;
	T(syscall(SYS_sendmsg, s[0], &m, 0));
	c.cmsg_level = 99;
	T(syscall(SYS_sendmsg, s[0], &m, 0));
	m.msg_controllen = (size_t)1 << 40;
	T(syscall(SYS_sendmsg, s[0], &m, 0));
	m.msg_control = BAD;
	m.msg_controllen = 16;
	T(syscall(SYS_sendmsg, s[0], &m, 0));
	m.msg_control = NULL;
	T(syscall(SYS_sendmsg, s[0], &m, 0));
	m.msg_controllen = 0;
	m.msg_iov = BAD;
	T(syscall(SYS_sendmsg, s[0], &m, 0));
	m.msg_iov = many;
	m.msg_iovlen = 2;
	T(syscall(SYS_sendmsg, s[0], &m, 0));
	m.msg_iovlen = 1025;
	T(syscall(SYS_sendmsg, s[0], &m, 0));
	m.msg_iovlen = 0;
	T(syscall(SYS_sendmsg, s[0], &m, 0));
	m.msg_namelen = (socklen_t)-1;
	T(syscall(SYS_sendmsg, s[0], &m, 0));
	T(syscall(SYS_sendmsg, s[0], BAD, 0));
	T(syscall(SYS_recvmsg, s[0], BAD, MSG_DONTWAIT));
	close(s[0]);
	close(s[1]);
}

static void credentials(void)
{
	int s[2], on = 1;
	union {
		char buf[CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr c;
	} u;
	char data[16] = "abc";
	struct ucred cred = { getpid(), getuid(), getgid() };
	struct iovec v = { data, 3 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof(u.buf) };
	socklen_t len = sizeof(cred);

	socketpair(AF_UNIX, SOCK_DGRAM, 0, s);
	T(getsockopt(s[0], SOL_SOCKET, SO_PEERCRED, &cred, &len));
	say("%d %u %u", cred.pid == getpid(), cred.uid, cred.gid);
	T(setsockopt(s[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)));
	T(send(s[0], "abc", 3, 0));
	v.iov_len = 16;
	T(recvmsg(s[1], &m, 0));
	memcpy(&cred, CMSG_DATA(&u.c), sizeof(cred));
	say("%lu %d %d: %d %u %u", (unsigned long)u.c.cmsg_len, u.c.cmsg_level, u.c.cmsg_type, cred.pid == getpid(), cred.uid,
	    cred.gid);
	m.msg_controllen = sizeof(u.buf);
	v.iov_len = 3;
	cred.uid = 12;
	memcpy(CMSG_DATA(&u.c), &cred, sizeof(cred));
	T(sendmsg(s[0], &m, 0));
	T(recvmsg(s[1], &m, 0));
	memcpy(&cred, CMSG_DATA(&u.c), sizeof(cred));
	say("%u", cred.uid);
	m.msg_controllen = sizeof(u.buf);
	u.c.cmsg_len--;
	T(sendmsg(s[0], &m, 0));
	u.c.cmsg_len++;
	cred.pid = 99999999;
	memcpy(CMSG_DATA(&u.c), &cred, sizeof(cred));
	T(sendmsg(s[0], &m, 0));
	if (!fork()) {
		T(setgid(50));
		T(setuid(50));
		cred = (struct ucred){ getpid(), 0, 50 };
		memcpy(CMSG_DATA(&u.c), &cred, sizeof(cred));
		T(sendmsg(s[0], &m, 0));
		cred.uid = 50;
		memcpy(CMSG_DATA(&u.c), &cred, sizeof(cred));
		T(sendmsg(s[0], &m, 0));
		_exit(0);
	}
	wait(NULL);
	T(recvmsg(s[1], &m, 0));
	m.msg_controllen = 20;
	T(send(s[0], "abc", 3, 0));
	T(recvmsg(s[1], &m, 0));
	say("%x %lu", m.msg_flags, (unsigned long)m.msg_controllen);
	close(s[0]);
	close(s[1]);
}

/* Sockets in sockets: the last close must free a pipe that is at the end of them. */
static void chain(void)
{
	int p[2], s[2], t[2];
	char c;

	pipe(p);
	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	send_fds(s[0], p + 1, 1, "end");
	for (int i = 0; i < 300; i++) {
		socketpair(AF_UNIX, SOCK_STREAM, 0, t);
		if (send_fds(t[0], s, 2, "link") < 0)
			say("%d: errno %d", i, errno);
		close(s[0]);
		close(s[1]);
		s[0] = t[0];
		s[1] = t[1];
	}
	close(p[1]);
	fcntl(p[0], F_SETFL, O_NONBLOCK);
	T(read(p[0], &c, 1));
	close(s[0]);
	close(s[1]);
	sleep_ms(200);
	T(read(p[0], &c, 1));
	close(p[0]);
}

/* And in a circle, nobody else knows them. */
static void circle(void)
{
	int p[2], s[2], t[2];
	char c;

	pipe(p);
	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	socketpair(AF_UNIX, SOCK_DGRAM, 0, t);
	send_fds(s[0], p + 1, 1, "pipe");
	send_fds(s[0], s, 2, "itself");
	send_fds(s[1], t, 2, "the other");
	send_fds(t[0], s, 2, "and back");
	close(p[1]);
	close(t[0]);
	close(t[1]);
	fcntl(p[0], F_SETFL, O_NONBLOCK);
	T(read(p[0], &c, 1));
	close(s[0]);
	T(read(p[0], &c, 1));
	close(s[1]);
	sleep_ms(200);
	socketpair(AF_UNIX, SOCK_STREAM, 0, s);		/* closing any looks for garbage */
	close(s[0]);
	close(s[1]);
	sleep_ms(200);
	T(read(p[0], &c, 1));
	close(p[0]);
}

/* Reachable over a connection that was not accepted yet. */
static void unaccepted(void)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX, .sun_path = "\0wait" };
	int l = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM, 0), p[2], s[2], a;
	unsigned int n;
	int fds[4];
	char buf[16] = { 0 };

	pipe(p);
	bind(l, (struct sockaddr *)&un, 7);
	listen(l, 2);
	connect(c, (struct sockaddr *)&un, 7);
	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	send_fds(s[0], p + 1, 1, "pipe");
	send_fds(c, s + 1, 1, "socket");
	close(p[1]);
	close(s[0]);
	close(s[1]);
	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	close(s[0]);
	close(s[1]);
	a = accept(l, NULL, NULL);
	T(receive_fds(a, fds, &n, 64, buf, 16, 0));
	T(receive_fds(fds[0], fds + 1, &n, 64, buf, 16, 0));
	T(write(fds[1], "alive", 5));
	T(read(p[0], buf, 16));
	close(fds[0]);
	close(fds[1]);
	send_fds(c, &l, 1, "listener");
	send_fds(c, &c, 1, "itself");
	close(l);
	close(c);
	close(a);
	close(p[0]);
}

static void limits(void)
{
	struct rlimit lim = { 20, 20 };
	int s[2];

	socketpair(AF_UNIX, SOCK_DGRAM, 0, s);
	if (!fork()) {
		int fds[4] = { 0, 1, 2, 1 }, sent = 0;

		setrlimit(RLIMIT_NOFILE, &lim);
		T(setuid(50));
		fcntl(s[0], F_SETFL, O_NONBLOCK);
		while (send_fds(s[0], fds, 4, "x") == 1)
			sent++;
		say("%d errno %d", sent, errno);
		_exit(0);
	}
	wait(NULL);
	close(s[0]);
	close(s[1]);
}

int main(void)
{
	passing(SOCK_STREAM);
	passing(SOCK_DGRAM);
	borders();
	malformed();
	credentials();
	chain();
	circle();
	unaccepted();
	limits();
	return 0;
}
