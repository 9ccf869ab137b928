/* sendfile: files of memory, pipes, sockets; positions, borders, refusals. */
#include "t.h"
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define BIG	200000

static unsigned char data[BIG], back[BIG];

static int filled(void)
{
	int fd = memfd_create("in", MFD_ALLOW_SEALING);

	for (int i = 0; i < BIG; i++)
		data[i] = (unsigned char)(i * 7 + (i >> 9));
	T(write(fd, data, BIG));
	T(lseek(fd, 0, SEEK_SET));
	return fd;
}

static void files(void)
{
	int in = filled(), out = memfd_create("out", MFD_ALLOW_SEALING);
	off_t at = 1000;

	T(sendfile(out, in, NULL, 100));
	T(lseek(in, 0, SEEK_CUR));
	T(lseek(out, 0, SEEK_CUR));
	T(sendfile(out, in, &at, 5000));
	say("at %ld", (long)at);
	T(lseek(in, 0, SEEK_CUR));
	T(lseek(out, 0, SEEK_CUR));
	T(pread(out, back, 5100, 0));
	say("same %d %d", !memcmp(back, data, 100), !memcmp(back + 100, data + 1000, 5000));
	T(sendfile(out, in, NULL, 1 << 20));		/* more than there is */
	T(lseek(in, 0, SEEK_CUR));
	T(sendfile(out, in, NULL, 1 << 20));		/* the end */
	T(sendfile(out, in, NULL, 0));
	T(pread(out, back, BIG, 5100));
	say("same %d", !memcmp(back, data + 100, BIG - 100));
	at = BIG + 5;
	T(sendfile(out, in, &at, 10));
	say("at %ld", (long)at);
	at = -1;
	T(sendfile(out, in, &at, 10));
	T(sendfile(out, in, (off_t *)BAD, 10));
	T(sendfile(-1, in, NULL, 10));
	T(sendfile(out, -1, NULL, 10));
	T(lseek(in, 0, SEEK_SET));
	T(fcntl(out, F_ADD_SEALS, F_SEAL_GROW));
	T(lseek(out, BIG + 5000 - 4096, SEEK_SET));
	T(fcntl(out, F_ADD_SEALS, F_SEAL_WRITE));
	T(sendfile(out, in, NULL, 10));
	T(lseek(in, 0, SEEK_CUR));
	close(in);
	close(out);
}

static void modes(void)
{
	int in = filled(), fd, dir = open("/", O_RDONLY | O_DIRECTORY);

	fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
	close(fd);
	fd = open("/dev/null", O_RDONLY);
	T(sendfile(fd, in, NULL, 10));
	close(fd);
	fd = open("/dev/null", O_WRONLY);
	T(sendfile(fd, in, NULL, 10));
	T(sendfile(in, fd, NULL, 10));
	T(sendfile(fd, in, NULL, BIG));
	T(lseek(in, 0, SEEK_CUR));
	close(fd);
	T(fcntl(in, F_SETFL, O_APPEND));
	fd = memfd_create("x", 0);
	T(write(fd, "abc", 3));
	T(lseek(fd, 0, SEEK_SET));
	T(sendfile(in, fd, NULL, 3));
	T(lseek(fd, 0, SEEK_CUR));
	close(fd);
	close(dir);
	close(in);
}

static void streams(void)
{
	int in = filled(), p[2], s[2];
	off_t at = 77;

	T(pipe(p));
	T(sendfile(p[1], in, &at, 500));
	T(read(p[0], back, sizeof(back)));
	say("same %d at %ld", !memcmp(back, data + 77, 500), (long)at);
	at = 0;
	T(sendfile(in, p[0], &at, 5));
	T(sendfile(p[0], in, NULL, 5));
	T(sendfile(in, p[1], NULL, 5));
	close(p[0]);
	signal(SIGPIPE, SIG_IGN);
	T(sendfile(p[1], in, NULL, 5));
	T(lseek(in, 0, SEEK_CUR));
	close(p[1]);
	T(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
	T(sendfile(s[0], in, NULL, 3000));
	T(lseek(in, 0, SEEK_CUR));
	T(read(s[1], back, sizeof(back)));
	say("same %d", !memcmp(back, data, 3000));
	close(s[0]);
	close(s[1]);
	close(in);
}

int main(void)
{
	files();
	modes();
	streams();
	return 0;
}
