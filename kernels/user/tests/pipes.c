/* Pipes and fifos. */
#include "t.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>

static void ends(void)
{
	char buf[16] = { 0 };
	int p[2], n;
	struct stat st;

	T(pipe(p));
	T(syscall(SYS_pipe, BAD));
	T(syscall(SYS_pipe2, p, 0x12345));
	T(fcntl(p[0], F_GETFL));
	T(fcntl(p[1], F_GETFL));
	T(fcntl(p[0], F_GETFD));
	T(write(p[1], "hello", 5));
	T(ioctl(p[0], FIONREAD, &n));
	say("n %d", n);
	T(read(p[0], buf, 3));
	T(read(p[0], buf, 16));
	say("%.2s", buf);
	T(read(p[1], buf, 1));
	T(write(p[0], buf, 1));
	T(lseek(p[0], 0, SEEK_SET));
	T(pread(p[0], buf, 1, 0));
	T(pwrite(p[1], buf, 1, 0));
	T(ftruncate(p[1], 0));
	T(fsync(p[0]));
	C(mmap(NULL, 4096, PROT_READ, MAP_SHARED, p[0], 0) == MAP_FAILED);
	T(fstat(p[0], &st));
	say("mode %o size %ld nlink %ld", st.st_mode, (long)st.st_size, (long)st.st_nlink);
	T(write(p[1], BAD, 4));
	T(write(p[1], KERNEL, 4));
	T(write(p[1], "abcd", 4));
	T(read(p[0], BAD, 4));
	T(read(p[0], KERNEL, 4));
	T(read(p[0], NULL, 0));
	T(write(p[1], NULL, 0));
	T(read(p[0], buf, -1));
	T(close(p[1]));
	T(read(p[0], buf, 4));
	T(read(p[0], buf, 4));
	T(close(p[0]));
	T(read(p[0], buf, 4));
	T(pipe2(p, O_CLOEXEC | O_NONBLOCK));
	T(fcntl(p[0], F_GETFD));
	T(fcntl(p[0], F_GETFL));
	T(read(p[0], buf, 4));
	close(p[0]);
	close(p[1]);
}

static void broken(void)
{
	int p[2];

	pipe(p);
	close(p[0]);
	CHILD("writer without reader", write(p[1], "x", 1));
	signal(SIGPIPE, SIG_IGN);
	T(write(p[1], "x", 1));
	T(write(p[1], "x", 0));
	signal(SIGPIPE, SIG_DFL);
	close(p[1]);
}

static void full(void)
{
	static char big[1 << 17];
	int p[2];
	long total = 0, n;

	pipe2(p, O_NONBLOCK);
	T(fcntl(p[0], F_GETPIPE_SZ));
	while ((n = write(p[1], big, 4096)) > 0)
		total += n;
	say("total %ld, errno %d", total, errno);
	T(write(p[1], big, 1));
	T(read(p[0], big, 4096));
	T(write(p[1], big, 4096));
	while (read(p[0], big, sizeof(big)) > 0)
		;
	T(write(p[1], big, sizeof(big)));
	T(fcntl(p[0], F_SETPIPE_SZ, 1 << 16));
	T(fcntl(p[0], F_SETPIPE_SZ, 1 << 12));
	T(fcntl(p[0], F_SETPIPE_SZ, 1 << 18));
	T(fcntl(p[0], F_GETPIPE_SZ));
	T(fcntl(p[0], F_SETPIPE_SZ, 0));
	T(fcntl(p[0], F_SETPIPE_SZ, 5000 + (1 << 16)));
	T(fcntl(0, F_GETPIPE_SZ));
	close(p[0]);
	close(p[1]);
}

/* More than fits, from one process to another, and back in order. */
static void flow(void)
{
	static unsigned int data[1 << 18], got[1 << 18];
	unsigned long done = 0;
	int p[2];
	long n;

	pipe(p);
	for (unsigned int i = 0; i < 1 << 18; i++)
		data[i] = i * 2654435761U;
	if (!fork()) {
		close(p[0]);
		_exit(write(p[1], data, sizeof(data)) != sizeof(data));
	}
	close(p[1]);
	while ((n = read(p[0], (char *)got + done, sizeof(got) - done)) > 0)
		done += (unsigned long)n;
	say("got %lu, same %d", done, !memcmp(data, got, sizeof(data)));
	wait(NULL);
	close(p[0]);
}

static void vectors(void)
{
	char a[4] = "abc", b[8] = "defghij", in[16] = { 0 };
	struct iovec out[3] = { { a, 3 }, { NULL, 0 }, { b, 7 } }, bad[2] = { { a, 3 }, { BAD, 3 } },
		     huge[2] = { { a, 3 }, { b, (size_t)-1 } }, back[2] = { { in, 2 }, { in + 2, 13 } };
	int p[2];

	pipe2(p, O_NONBLOCK);
	T(writev(p[1], out, 3));
	T(readv(p[0], back, 2));
	say("%s", in);
	T(writev(p[1], bad, 2));
	T(read(p[0], in, 16));
	T(writev(p[1], huge, 2));
	T(writev(p[1], out, 0));
	T(writev(p[1], out, 1025));
	T(writev(p[1], out, -1));
	T(writev(p[1], BAD, 1));
	T(read(p[0], in, 16));
	close(p[0]);
	close(p[1]);
}

static void events(void)
{
	static char page[4096];
	int p[2];
	struct pollfd f[2];

#define LOOK(what) do { f[0] = (struct pollfd){ p[0], POLLIN | POLLOUT | POLLRDHUP, 0 };		\
		f[1] = (struct pollfd){ p[1], POLLIN | POLLOUT | POLLRDHUP, 0 };			\
		say("%s: %d, %x %x", what, poll(f, 2, 0), f[0].revents, f[1].revents); } while (0)
	pipe2(p, O_NONBLOCK);
	LOOK("empty");
	write(p[1], page, 1);
	LOOK("one byte");
	while (write(p[1], page, 4096) > 0)
		;
	LOOK("full");
	read(p[0], page, 1);
	LOOK("one less");
	while (read(p[0], page, 4096) > 0)
		;
	LOOK("empty again");
	close(p[1]);
	f[0].events = f[1].events = POLLIN;
	T(poll(f, 1, -1));
	say("%x", f[0].revents);
	close(p[0]);
	pipe(p);
	close(p[0]);
	f[1] = (struct pollfd){ p[1], POLLOUT, 0 };
	T(poll(f + 1, 1, -1));
	say("%x", f[1].revents);
	close(p[1]);
}

static void on_alarm(int sig) { (void)sig; }

static void interrupted(void)
{
	struct sigaction sa = { .sa_handler = on_alarm };
	char c;
	int p[2];

	pipe(p);
	sigaction(SIGALRM, &sa, NULL);
	alarm(1);
	T(read(p[0], &c, 1));
	fcntl(p[1], F_SETPIPE_SZ, 4096);
	alarm(1);
	{
		static char big[8192];

		T(write(p[1], big, sizeof(big)));
		T(read(p[0], big, sizeof(big)));
	}
	close(p[0]);
	close(p[1]);
}

static void fifos(void)
{
	char buf[8] = { 0 };
	int r, w, status;
	struct stat st;

	T(mkfifo("fifo", 0640));
	T(mkfifo("fifo", 0640));
	stat("fifo", &st);
	say("mode %o", st.st_mode);
	T(open("fifo", O_WRONLY | O_NONBLOCK));
	r = open("fifo", O_RDONLY | O_NONBLOCK);
	C(r >= 0);
	T(read(r, buf, 8));
	w = open("fifo", O_WRONLY | O_NONBLOCK);
	C(w >= 0);
	T(read(r, buf, 8));
	T(write(w, "abc", 3));
	T(read(r, buf, 8));
	T(close(w));
	T(read(r, buf, 8));
	close(r);
	if (!fork()) {
		w = open("fifo", O_WRONLY);
		write(w, "child", 5);
		_exit(w < 0);
	}
	r = open("fifo", O_RDONLY);
	T(read(r, buf, 8));
	T(read(r, buf, 8));
	wait(&status);
	say_status("child", status);
	close(r);
	r = open("fifo", O_RDWR);
	T(write(r, "self", 4));
	T(read(r, buf, 8));
	close(r);
	r = open("fifo", O_RDONLY | O_NONBLOCK);
	T(read(r, buf, 8));
	close(r);
	T(unlink("fifo"));
}

int main(void)
{
	ends();
	broken();
	full();
	flow();
	vectors();
	events();
	interrupted();
	fifos();
	return 0;
}
