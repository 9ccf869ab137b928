/* Sockets of AF_UNIX. */
#include "t.h"
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>

static struct sockaddr_un name(const char *path, socklen_t *len)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	if (path[0] == '@') {
		memcpy(a.sun_path + 1, path + 1, strlen(path) - 1);
		*len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	} else {
		strcpy(a.sun_path, path);
		*len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
	}
	return a;
}

static int bind_to(int s, const char *path)
{
	socklen_t len;
	struct sockaddr_un a = name(path, &len);

	return bind(s, (struct sockaddr *)&a, len);
}

static int connect_to(int s, const char *path)
{
	socklen_t len;
	struct sockaddr_un a = name(path, &len);

	return connect(s, (struct sockaddr *)&a, len);
}

static void show_name(const char *what, int s, int (*fn)(int, struct sockaddr *, socklen_t *))
{
	struct sockaddr_un a = { 0 };
	socklen_t len = sizeof(a);
	int err = fn(s, (struct sockaddr *)&a, &len);

	if (err)
		show(what, err);
	else
		say("%s: %u family %d '%c' %.20s", what, len, a.sun_family, a.sun_path[0] ? a.sun_path[0] : '@', a.sun_path + 1);
}

static int events(int s)
{
	struct pollfd f = { s, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0 };

	poll(&f, 1, 0);
	return f.revents;
}

static void kinds(void)
{
	int s[2];
	struct stat st;

	T(socket(AF_INET, SOCK_STREAM, 0) >= -1 ? 0 : 1);
	T(socket(AF_UNIX, 0, 0));
	T(socket(AF_UNIX, 4, 0));
	T(socket(AF_UNIX, 11, 0));
	T(socket(AF_UNIX, SOCK_STREAM | 0x100, 0));
	T(socket(AF_UNIX, SOCK_STREAM, 2));
	T(socket(-1, SOCK_STREAM, 0));
	T(socket(AF_UNSPEC, SOCK_STREAM, 0));
	T(socket(46, SOCK_STREAM, 0));
	T(socket(1000, SOCK_STREAM, 0));
	T(socketpair(AF_UNIX, SOCK_STREAM, 0, BAD));
	T(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, s));
	T(fcntl(s[0], F_GETFD));
	T(fcntl(s[0], F_GETFL));
	T(fstat(s[0], &st));
	say("%o", st.st_mode);
	T(lseek(s[0], 0, SEEK_SET));
	T(pread(s[0], &st, 1, 0));
	T(ftruncate(s[0], 0));
	T(fsync(s[0]));
	close(s[0]);
	close(s[1]);
	T(bind_to(1, "@x"));
	T(connect_to(1000, "@x"));
	T(listen(1, 1));
	T(shutdown(1, 2));
	T(send(1, "x", 1, 0));
	T(recv(1000, s, 1, 0));
	T(accept(1, NULL, NULL));
}

static void stream(void)
{
	char buf[64] = { 0 };
	int s[2], n;
	struct iovec v[3] = { { "ab", 2 }, { "", 0 }, { "cdef", 4 } };

	T(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
	say("%x", events(s[0]));
	T(write(s[0], "hello", 5));
	T(writev(s[0], v, 3));
	say("%x", events(s[1]));
	T(ioctl(s[1], FIONREAD, &n));
	say("%d", n);
	T(recv(s[1], buf, 3, MSG_PEEK));
	T(recv(s[1], buf, 8, MSG_PEEK));
	say("%s", buf);
	T(recv(s[1], buf, 3, MSG_WAITALL));
	T(read(s[1], buf, 64));
	say("%.8s", buf);
	T(recv(s[1], buf, 1, MSG_DONTWAIT));
	T(recv(s[1], buf, 1, MSG_OOB));
	T(send(s[1], buf, 0, 0));
	T(write(s[1], NULL, 0));
	T(read(s[1], buf, 0));
	T(send(s[1], BAD, 4, 0));
	T(send(s[1], KERNEL, 4, 0));
	T(sendto(s[1], "x", 1, 0, NULL, 0));
	{
		socklen_t len;
		struct sockaddr_un a = name("@nobody", &len);

		T(sendto(s[1], "x", 1, 0, (struct sockaddr *)&a, len));
	}
	T(write(s[0], "fault", 5));
	T(read(s[1], BAD, 5));
	T(read(s[1], buf, 10));
	T(shutdown(s[0], 3));
	T(shutdown(s[0], -1));
	T(shutdown(s[0], SHUT_WR));
	say("%x %x", events(s[0]), events(s[1]));
	T(send(s[0], "x", 1, MSG_NOSIGNAL));
	T(read(s[1], buf, 10));
	T(write(s[1], "back", 4));
	T(read(s[0], buf, 10));
	T(shutdown(s[1], SHUT_RDWR));
	say("%x %x", events(s[0]), events(s[1]));
	T(read(s[0], buf, 10));
	CHILD("SIGPIPE", write(s[0], "x", 1));
	close(s[0]);
	say("%x", events(s[1]));
	close(s[1]);

	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	write(s[0], "unread", 6);
	write(s[1], "left", 4);
	close(s[0]);
	say("%x", events(s[1]));
	T(read(s[1], buf, 64));
	T(read(s[1], buf, 64));
	T(read(s[1], buf, 64));
	T(send(s[1], "x", 1, MSG_NOSIGNAL));
	close(s[1]);
}

static void full(void)
{
	static char big[1 << 20];
	int s[2];
	long n, sent = 0, got = 0;

	socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, s);
	while ((n = write(s[0], big, sizeof(big))) > 0)
		sent += n;
	say("errno %d", errno);
	C(sent > 100000 && sent < 1000000);
	say("%x", events(s[0]));
	while ((n = read(s[1], big, sizeof(big))) > 0)
		got += n;
	C(sent == got);
	say("%x", events(s[0]));
	fcntl(s[0], F_SETFL, 0);
	fcntl(s[1], F_SETFL, 0);
	for (unsigned int i = 0; i < sizeof(big); i++)
		big[i] = (char)(i * 7 + i / 253);
	if (!fork()) {
		close(s[1]);
		_exit(write(s[0], big, sizeof(big)) != sizeof(big));
	}
	{
		static char in[1 << 20];

		T(recv(s[1], in, sizeof(in), MSG_WAITALL));
		C(!memcmp(in, big, sizeof(in)));
	}
	wait(NULL);
	close(s[0]);
	close(s[1]);
}

static void servers(void)
{
	char buf[16] = { 0 };
	int l = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), a, d;
	struct sockaddr_un un = { .sun_family = AF_UNIX }, wrong = { .sun_family = AF_INET };
	socklen_t len;
	struct stat st;
	struct ucred cred;

	umask(027);
	T(listen(l, 1));
	show_name("unbound", l, getsockname);
	show_name("unbound peer", l, getpeername);
	say("%x", events(l));
	T(accept(l, NULL, NULL));
	T(connect_to(c, "sock"));
	T(bind(l, (struct sockaddr *)&un, 200));
	T(bind(l, (struct sockaddr *)&un, 1));
	T(bind(l, (struct sockaddr *)&un, -1));
	T(bind(l, BAD, 20));
	T(bind(l, (struct sockaddr *)&wrong, sizeof(wrong)));
	T(bind_to(l, "nonexistent/sock"));
	T(bind_to(l, "sock"));
	stat("sock", &st);
	say("%o", st.st_mode);
	show_name("bound", l, getsockname);
	T(bind_to(l, "sock2"));
	T(bind_to(c, "sock"));
	T(open("sock", O_RDWR));
	T(connect_to(c, "sock"));
	T(listen(l, 1));
	T(listen(l, 1));
	T(connect_to(l, "sock"));
	say("%x", events(l));
	T(connect_to(c, "sock"));
	T(connect_to(c, "sock"));
	say("%x %x", events(l), events(c));
	d = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	T(connect_to(d, "sock"));
	{
		int e = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

		T(connect_to(e, "sock"));
		close(e);
		e = socket(AF_UNIX, SOCK_DGRAM, 0);
		T(connect_to(e, "sock"));
		T(bind_to(e, "@dgram"));
		close(e);
	}
	T(write(c, "early", 5));
	len = sizeof(un);
	a = accept4(l, (struct sockaddr *)&un, &len, SOCK_CLOEXEC);
	C(a >= 0);
	say("len %u", len);
	T(fcntl(a, F_GETFD));
	T(accept4(l, NULL, NULL, 1));
	show_name("accepted", a, getsockname);
	show_name("accepted peer", a, getpeername);
	show_name("client", c, getsockname);
	show_name("client peer", c, getpeername);
	T(read(a, buf, 16));
	T(write(a, "reply", 5));
	T(read(c, buf, 16));
	len = sizeof(cred);
	T(getsockopt(a, SOL_SOCKET, SO_PEERCRED, &cred, &len));
	say("%d %u %u", cred.pid == getpid(), cred.uid, cred.gid);
	T(listen(c, 1));
	close(a);
	say("%x", events(c));
	T(read(c, buf, 16));
	close(c);
	say("%x", events(d));
	close(l);		/* d was not accepted */
	say("%x", events(d));
	T(read(d, buf, 16));
	T(read(d, buf, 16));
	close(d);
	d = socket(AF_UNIX, SOCK_STREAM, 0);
	T(connect_to(d, "sock"));
	unlink("sock");
	T(connect_to(d, "sock"));
	open("file", O_CREAT | O_RDWR, 0600);
	T(connect_to(d, "file"));
	unlink("file");
	close(d);
	umask(022);
}

static void waiting_server(void)
{
	int l = socket(AF_UNIX, SOCK_STREAM, 0), c, status;
	char buf[16] = { 0 };

	bind_to(l, "@srv");
	show_name("abstract", l, getsockname);
	listen(l, 5);
	if (!fork()) {
		sleep_ms(30);
		c = socket(AF_UNIX, SOCK_STREAM, 0);
		connect_to(c, "@srv");
		write(c, "from child", 10);
		read(c, buf, 16);
		_exit(strcmp(buf, "ok"));
	}
	c = accept(l, NULL, NULL);
	T(read(c, buf, 16));
	say("%s", buf);
	write(c, "ok", 2);
	wait(&status);
	say_status("child", status);
	T(read(c, buf, 16));
	close(c);
	close(l);
	l = socket(AF_UNIX, SOCK_STREAM, 0);
	c = socket(AF_UNIX, SOCK_STREAM, 0);
	{
		struct sockaddr_un un = { .sun_family = AF_UNIX };
		socklen_t len = sizeof(un);

		T(bind(l, (struct sockaddr *)&un, 2));
		T(getsockname(l, (struct sockaddr *)&un, &len));
		say("auto %u %d", len, un.sun_path[0]);
		T(bind(l, (struct sockaddr *)&un, 2));
	}
	T(bind_to(c, "@srv2"));
	T(bind_to(c, "@srv3"));
	close(c);
	c = socket(AF_UNIX, SOCK_STREAM, 0);
	T(bind_to(c, "@srv2"));
	T(connect_to(c, "@srv3"));
	close(c);
	close(l);
}

static void datagrams(int type)
{
	char buf[64] = { 0 };
	int s[2], n;
	struct iovec v[2] = { { "one", 3 }, { "two", 3 } }, in[2] = { { buf, 2 }, { buf + 2, 2 } };
	struct msghdr m = { .msg_iov = in, .msg_iovlen = 2 };
	static char big[1 << 19];

	say("type %d", type);
	T(socketpair(AF_UNIX, type, 0, s));
	say("%x", events(s[0]));
	T(writev(s[0], v, 2));
	T(send(s[0], "second", 6, 0));
	T(send(s[0], "", 0, 0));
	T(ioctl(s[1], FIONREAD, &n));
	say("%d", n);
	T(recvmsg(s[1], &m, 0));
	say("%s flags %x", buf, m.msg_flags);
	T(recv(s[1], buf, 3, MSG_TRUNC | MSG_PEEK));
	T(recv(s[1], buf, 3, MSG_TRUNC));
	T(read(s[1], buf, 3));
	T(recv(s[1], buf, 3, MSG_DONTWAIT));
	T(send(s[0], big, sizeof(big), 0));
	T(send(s[0], BAD, 4, 0));
	T(send(s[0], "x", 1, MSG_OOB));
	T(shutdown(s[0], SHUT_WR));
	T(send(s[0], "x", 1, MSG_NOSIGNAL));
	say("%x %x", events(s[0]), events(s[1]));
	T(write(s[1], "back", 4));
	close(s[1]);
	say("%x", events(s[0]));
	T(read(s[0], buf, 64));
	close(s[0]);
	socketpair(AF_UNIX, type, 0, s);
	close(s[1]);
	T(send(s[0], "x", 1, MSG_NOSIGNAL));
	T(send(s[0], "x", 1, MSG_NOSIGNAL));
	close(s[0]);
}

static void addressed(void)
{
	char buf[64] = { 0 };
	int a = socket(AF_UNIX, SOCK_DGRAM, 0), b = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0), c, n = 0;
	struct sockaddr_un un;
	socklen_t len, got = sizeof(un);
	struct sockaddr none = { .sa_family = AF_UNSPEC };

	T(bind_to(a, "@a"));
	T(send(b, "x", 1, 0));
	un = name("@a", &len);
	T(sendto(b, "from nobody", 11, 0, (struct sockaddr *)&un, len));
	T(bind_to(b, "@bb"));
	T(sendto(b, "from b", 6, 0, (struct sockaddr *)&un, len));
	T(recvfrom(a, buf, 64, 0, (struct sockaddr *)&un, &got));
	say("%u", got);
	got = sizeof(un);
	T(recvfrom(a, buf, 64, 0, (struct sockaddr *)&un, &got));
	say("%u %.2s", got, un.sun_path + 1);
	T(connect_to(b, "@a"));
	T(send(b, "connected", 9, 0));
	T(recv(a, buf, 64, 0));
	T(connect_to(a, "@a"));
	T(send(a, "self", 4, 0));
	T(recv(a, buf, 64, 0));
	T(send(b, "stranger", 8, 0));
	T(connect_to(a, "@bb"));
	c = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	T(connect_to(c, "@a"));
	T(listen(c, 1));
	T(accept(c, NULL, NULL));
	T(connect(a, &none, sizeof(none)));
	T(send(a, "x", 1, 0));
	T(connect_to(c, "@a"));
	while (send(c, "fill", 4, 0) == 4)
		n++;
	say("%d, errno %d", n, errno);
	say("%x", events(c));
	T(recv(a, buf, 64, 0));
	say("%x", events(c));
	T(send(c, "fill", 4, 0));
	close(a);
	say("%x", events(c));
	T(send(c, "x", 1, 0));
	T(send(c, "x", 1, 0));
	un = name("@a", &len);
	T(sendto(c, "x", 1, 0, (struct sockaddr *)&un, len));
	T(sendto(c, "x", 1, 0, (struct sockaddr *)&un, 1));
	T(sendto(c, "x", 1, 0, BAD, 20));
	close(b);
	close(c);
}

static void options(void)
{
	int s[2], v, l = socket(AF_UNIX, SOCK_STREAM, 0);
	socklen_t len;
	struct timeval tv = { 0, 40000 }, bad = { 0, 1000000 };
	char c;
	static const int names[] = { SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ERROR, SO_SNDBUF, SO_RCVBUF, SO_PASSCRED,
				     SO_ACCEPTCONN, SO_KEEPALIVE, SO_REUSEADDR, SO_RCVLOWAT, 999 };

	socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s);
	for (unsigned int i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		len = sizeof(v);
		v = -5;
		show("getsockopt", getsockopt(s[0], SOL_SOCKET, names[i], &v, &len));
		say("%d: %d %u", names[i], v, len);
	}
	len = 2;
	v = -1;
	T(getsockopt(s[0], SOL_SOCKET, SO_TYPE, &v, &len));
	say("%x %u", v, len);
	len = sizeof(v);
	T(getsockopt(s[0], SOL_SOCKET, SO_TYPE, BAD, &len));
	T(getsockopt(s[0], SOL_SOCKET, SO_TYPE, &v, BAD));
	T(getsockopt(s[0], 6, 1, &v, &len));
	T(setsockopt(s[0], 6, 1, &v, len));
	len = (socklen_t)-1;
	T(getsockopt(s[0], SOL_SOCKET, SO_TYPE, &v, &len));
	v = 1;
	T(setsockopt(s[0], SOL_SOCKET, SO_TYPE, &v, sizeof(v)));
	T(setsockopt(s[0], SOL_SOCKET, SO_KEEPALIVE, &v, sizeof(v)));
	T(setsockopt(s[0], SOL_SOCKET, SO_PASSCRED, &v, 3));
	T(setsockopt(s[0], SOL_SOCKET, SO_PASSCRED, BAD, 4));
	T(setsockopt(s[0], SOL_SOCKET, SO_PASSCRED, &v, (socklen_t)-1));
	T(setsockopt(s[0], SOL_SOCKET, 999, &v, 4));
	v = 1000;
	T(setsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &v, 4));
	len = sizeof(v);
	getsockopt(s[0], SOL_SOCKET, SO_SNDBUF, &v, &len);
	say("%d", v);
	v = 20000;
	T(setsockopt(s[0], SOL_SOCKET, SO_RCVBUF, &v, 4));
	getsockopt(s[0], SOL_SOCKET, SO_RCVBUF, &v, &len);
	say("%d", v);
	T(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &bad, sizeof(bad)));
	T(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &tv, 4));
	T(setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)));
	len = sizeof(bad);
	T(getsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &bad, &len));
	say("%ld %ld", (long)bad.tv_sec, (long)bad.tv_usec);
	T(read(s[0], &c, 1));
	close(s[0]);
	close(s[1]);
	close(l);
	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	write(s[1], "x", 1);
	write(s[0], "x", 1);
	close(s[1]);
	len = sizeof(v);
	getsockopt(s[0], SOL_SOCKET, SO_ERROR, &v, &len);
	say("error %d", v);
	getsockopt(s[0], SOL_SOCKET, SO_ERROR, &v, &len);
	say("error %d", v);
	close(s[0]);
}

static void on_alarm(int sig) { (void)sig; }

static void interrupted(void)
{
	struct sigaction sa = { .sa_handler = on_alarm };
	int s[2], l = socket(AF_UNIX, SOCK_STREAM, 0);
	char c;

	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	sigaction(SIGALRM, &sa, NULL);
	alarm(1);
	T(read(s[0], &c, 1));
	bind_to(l, "@intr");
	listen(l, 1);
	alarm(1);
	T(accept(l, NULL, NULL));
	close(s[0]);
	close(s[1]);
	close(l);
}

int main(void)
{
	kinds();
	stream();
	full();
	servers();
	waiting_server();
	datagrams(SOCK_DGRAM);
	datagrams(SOCK_SEQPACKET);
	addressed();
	options();
	interrupted();
	return 0;
}
