/* A session of the Live Update Orchestrator that is passed through a socket lives as long as somebody has it, in a message
 * too; and no longer.
 */
#include "t.h"
#include <linux/liveupdate.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static int device;

static int create(void)
{
	struct liveupdate_ioctl_create_session c = { .size = sizeof(c), .name = "passed" };

	return ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, &c) < 0 ? -1 : c.fd;
}

static void send_fd(int s, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr c;
	} u = { .c = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
	struct iovec v = { "x", 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof(u.buf) };

	memcpy(CMSG_DATA(&u.c), &fd, sizeof(fd));
	T(sendmsg(s, &m, 0));
}

static int receive_fd(int s)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr c;
	} u;
	char text[4];
	struct iovec v = { text, 4 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof(u.buf) };
	int fd = -1;

	T(recvmsg(s, &m, 0));
	memcpy(&fd, CMSG_DATA(&u.c), sizeof(fd));
	return fd;
}

int main(void)
{
	int s[2], fd, status;

	device = open("/dev/liveupdate", O_RDWR);
	C(device >= 0);
	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	fd = create();
	C(fd >= 0);
	T(create());
	send_fd(s[0], fd);
	close(fd);
	T(create());			/* it is in the message */
	if (!fork()) {
		struct liveupdate_session_preserve_fd p = { .size = sizeof(p), .token = 7 };
		char c;

		close(s[0]);
		fd = receive_fd(s[1]);
		p.fd = memfd_create("kept", 0);
		T(ftruncate(p.fd, 8192));
		T(ioctl(fd, LIVEUPDATE_SESSION_PRESERVE_FD, &p));
		read(s[1], &c, 1);
		_exit(0);
	}
	close(s[1]);
	sleep_ms(50);
	T(create());			/* the child has it */
	close(s[0]);
	wait(&status);
	say_status("child", status);
	fd = create();
	C(fd >= 0);
	/* now in a socket that is in itself */
	socketpair(AF_UNIX, SOCK_STREAM, 0, s);
	send_fd(s[0], fd);
	send_fd(s[0], s[0]);
	send_fd(s[0], s[1]);
	close(fd);
	T(create());
	close(s[0]);
	T(create());
	close(s[1]);
	socketpair(AF_UNIX, SOCK_STREAM, 0, s);	/* closing one looks for garbage */
	close(s[0]);
	close(s[1]);
	C(create() >= 0);
	return 0;
}
