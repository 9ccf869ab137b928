/* /dev/null and its relatives. */
#include "t.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static void node(const char *path)
{
	struct stat st;

	if (stat(path, &st) < 0) {
		show(path, -1);
		return;
	}
	say("%s: %o %u:%u", path, st.st_mode, major(st.st_rdev), minor(st.st_rdev));
}

static void basics(const char *path)
{
	int fd = open(path, O_RDWR);
	char buf[8] = "abcdefg";
	struct pollfd f = { fd, POLLIN | POLLOUT, 0 };

	say("-- %s", path);
	C(fd >= 0);
	T(read(fd, buf, 8));
	T(write(fd, buf, 8));
	T(read(fd, buf, 0));
	T(write(fd, buf, 0));
	T(read(fd, BAD, 8));
	T(read(fd, KERNEL, 8));
	T(write(fd, KERNEL, 8));
	T(pread(fd, buf, 8, 1000));
	T(pwrite(fd, buf, 8, 1000));
	T(ftruncate(fd, 0));
	T(fsync(fd));
	T(poll(&f, 1, 0));
	say("%x", f.revents);
	T(ioctl(fd, 0x5401, buf));
	T(isatty(fd));
	close(fd);
	T(open(path, O_RDONLY | O_DIRECTORY));
	T(truncate(path, 0));
	fd = open(path, O_WRONLY | O_TRUNC | O_CREAT, 0600);
	C(fd >= 0);
	T(read(fd, buf, 8));
	close(fd);
}

static void null(void)
{
	int fd = open("/dev/null", O_RDWR);
	struct epoll_event e = { 0 };

	T(lseek(fd, 5, SEEK_SET));
	T(lseek(fd, -5, SEEK_END));
	T(lseek(fd, 0, 77));
	T(write(fd, BAD, 8));
	C(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED);
	T(epoll_ctl(epoll_create1(0), EPOLL_CTL_ADD, fd, &e));
	close(fd);
}

static void zero(void)
{
	int fd = open("/dev/zero", O_RDWR), status;
	static char buf[10000];
	unsigned char *p;

	memset(buf, 7, sizeof(buf));
	T(read(fd, buf, 9999));
	say("%d %d %d", buf[0], buf[9998], buf[9999]);
	p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 4096);
	C(p != MAP_FAILED);
	say("%d %d", p[0], p[8191]);
	p[5] = 9;
	if (!fork()) {
		p[6] = 8;
		_exit(p[5]);
	}
	wait(&status);
	say_status("private", status);
	say("%d %d", p[5], p[6]);
	munmap(p, 8192);
	p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	C(p != MAP_FAILED);
	say("%d %d", p[0], p[8191]);
	if (!fork()) {
		p[4097] = 8;
		_exit(0);
	}
	wait(&status);
	say("%d", p[4097]);
	munmap(p, 8192);
	close(fd);
}

static void full(void)
{
	int fd = open("/dev/full", O_RDWR);

	T(lseek(fd, 5, SEEK_SET));
	T(write(fd, BAD, 8));
	close(fd);
}

static void random_numbers(void)
{
	static unsigned char a[1000], b[1000];
	int fd = open("/dev/urandom", O_RDONLY), zeros = 0, n;

	T(read(fd, a, sizeof(a)));
	T(read(fd, b, sizeof(b)));
	C(memcmp(a, b, sizeof(a)) != 0);
	for (unsigned int i = 0; i < sizeof(a); i++)
		zeros += !a[i];
	C(zeros < 50);
	T(ioctl(fd, 0x80045200, &n));
	say("%d", n);
	close(fd);
	fd = open("/dev/random", O_RDWR | O_NONBLOCK);
	T(read(fd, a, sizeof(a)));
	close(fd);
}

int main(void)
{
	static const char *const paths[] = { "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom",
					     "/dev/tty", "/dev/ptmx" };

	for (unsigned int i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
		node(paths[i]);
	for (int i = 0; i < 5; i++)
		basics(paths[i]);
	null();
	zero();
	full();
	random_numbers();
	return 0;
}
