/* An agent that does what it is told, one order a line, and says what came of it.
 *
 *	agent ORDER , ORDER ...			orders as arguments, each until a comma or semicolon
 *	agent					as init: orders from the second serial port, answers there
 *
 * The answer is a line: the result of the call, -errno if it failed, and what else there is to know. Descriptors are kept in
 * numbered slots, which are the descriptors themselves from SLOT_BASE on, so that they can be told from any other.
 * `@P ORDER` is carried out by process P, a child that `spawn P` makes, with all that is open but the device, and that
 * `kill P` ends.
 * `hold` as the last order leaves a process behind that keeps everything open.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>
#include <linux/liveupdate.h>
#include "hold.h"

#define SLOT_BASE	100
#define SLOTS		20000
#define PROCESSES	8
#define WORDS_MAX	16
#define LINE_SIZE	4096
#define HUGE_SIZE	(2UL << 20)

static FILE *answers;
static int is_child;

static struct {
	pid_t pid;
	FILE *orders, *answers;
} processes[PROCESSES];

static long result(long r)
{
	return r < 0 ? -(long)errno : r;
}

static int slot(const char *word)
{
	return SLOT_BASE + atoi(word);
}

/* A descriptor, or an error, becomes that of the slot. */
static long keep(const char *word, long fd)
{
	if (fd < 0)
		return fd;
	if (dup3((int)fd, slot(word), O_CLOEXEC) < 0)
		return result(-1);
	close((int)fd);
	return 0;
}

static unsigned long long number(const char *word)
{
	return strtoull(word, NULL, 0);
}

/* Byte `at` of contents with this seed. */
static unsigned char byte(unsigned long long seed, unsigned long long at)
{
	unsigned long long z = (seed << 40) + at / 8 + 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	return (unsigned char)((z ^ z >> 27) >> 8 * (at % 8));
}

static unsigned char buffer[1 << 20];

static long write_pattern(int fd, unsigned long long off, unsigned long long size, unsigned long long seed)
{
	if (size > sizeof(buffer))
		return -E2BIG;
	for (unsigned long long i = 0; i < size; i++)
		buffer[i] = byte(seed, off + i);
	return result(pwrite(fd, buffer, size, (off_t)off));
}

/* FNV-1a of the contents, by 64-bit words where nothing but zeros is common. */
static unsigned long long sum(int fd)
{
	unsigned long long h = 14695981039346656037ULL;
	off_t off = 0;
	ssize_t n;

	while ((n = pread(fd, buffer, sizeof(buffer), off)) > 0) {
		for (ssize_t i = 0; i < n; i++)
			h = (h ^ buffer[i]) * 1099511628211ULL;
		off += n;
	}
	return h;
}

static int device = -1;

static long session(unsigned long cmd, char **w)
{
	struct liveupdate_ioctl_create_session c = { .size = sizeof(c) };	/* retrieve has the same */

	memcpy(c.name, w[2], strnlen(w[2], sizeof(c.name)));
	return ioctl(device, cmd, &c) < 0 ? result(-1) : keep(w[1], c.fd);
}

static long retrieve_fd(char **w)
{
	struct liveupdate_session_retrieve_fd r = { .size = sizeof(r), .token = number(w[3]) };

	return ioctl(slot(w[2]), LIVEUPDATE_SESSION_RETRIEVE_FD, &r) < 0 ? result(-1) : keep(w[1], r.fd);
}

/* An argument in memory that can be read, not written. */
static void *read_only(const void *data, size_t size)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memcpy(p, data, size);
	mprotect(p, 4096, PROT_READ);
	return p;
}

/* ro WHAT ...: the ioctl with an argument to which nothing can be copied back. */
static long ro(char **w)
{
	struct liveupdate_ioctl_create_session c = { .size = sizeof(c) };
	struct liveupdate_session_preserve_fd p = { .size = sizeof(p) };
	struct liveupdate_session_finish f = { .size = sizeof(f) };

	if (!strcmp(w[1], "create") || !strcmp(w[1], "retrieve")) {
		strncpy((char *)c.name, w[2], sizeof(c.name) - 1);
		return result(ioctl(device, w[1][0] == 'c' ? LIVEUPDATE_IOCTL_CREATE_SESSION :
				    LIVEUPDATE_IOCTL_RETRIEVE_SESSION, read_only(&c, sizeof(c))));
	}
	if (!strcmp(w[1], "preserve")) {
		p.fd = slot(w[3]);
		p.token = number(w[4]);
		return result(ioctl(slot(w[2]), LIVEUPDATE_SESSION_PRESERVE_FD, read_only(&p, sizeof(p))));
	}
	if (!strcmp(w[1], "get")) {
		p.token = number(w[3]);
		return result(ioctl(slot(w[2]), LIVEUPDATE_SESSION_RETRIEVE_FD, read_only(&p, sizeof(p))));
	}
	return result(ioctl(slot(w[2]), LIVEUPDATE_SESSION_FINISH, read_only(&f, sizeof(f))));
}

static long huge(int fd, unsigned long long size, unsigned long long seed)
{
	unsigned char *p;

	if (ftruncate(fd, (off_t)size) < 0)
		return result(-1);
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED || madvise(p, size, MADV_HUGEPAGE) < 0)
		return result(-1);
	for (unsigned long long i = 0; i < size; i++)
		p[i] = byte(seed, i);
	munmap(p, size);
	return 0;
}

static void status(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0) {
		fprintf(answers, "%ld\n", result(-1));
		return;
	}
	fprintf(answers, "0 size=%lld blocks=%lld pos=%lld seals=0x%x mode=%o sum=%016llx\n", (long long)st.st_size,
		(long long)st.st_blocks, (long long)lseek(fd, 0, SEEK_CUR), (unsigned)fcntl(fd, F_GET_SEALS),
		st.st_mode, sum(fd));
}

static long load(char **w, int n)
{
	char line[LINE_SIZE] = "";
	int kernel = open(w[1], O_RDONLY | O_CLOEXEC), initrd = open("/sys/firmware/initrd", O_RDONLY | O_CLOEXEC);
	long r;

	for (int i = 2; i < n; i++) {
		strcat(line, w[i]);
		strcat(line, i + 1 < n ? " " : "");
	}
	r = result(syscall(SYS_kexec_file_load, kernel, initrd, strlen(line) + 1, line, initrd < 0 ? 4 : 0));
	close(kernel);
	close(initrd);
	return r;
}

static long limit(char **w)
{
	struct rlimit rl = { number(w[2]), number(w[2]) };

	return result(setrlimit(!strcmp(w[1], "files") ? RLIMIT_NOFILE : RLIMIT_AS, &rl));
}

/* mmap SLOT SIZE ADDRESS PROT FLAGS OFFSET: at that address; slot -1: no file. */
static long map(char **w)
{
	int anonymous = !strcmp(w[1], "-1");
	void *p = mmap((void *)number(w[3]), number(w[2]), (int)number(w[4]),
		       (int)number(w[5]) | MAP_FIXED | (anonymous ? MAP_ANONYMOUS : 0), anonymous ? -1 : slot(w[1]),
		       (off_t)number(w[6]));

	return p == MAP_FAILED ? result(-1) : 0;
}

/* ioctl SLOT NUMBER BYTES: the argument in hexadecimal; the answer has what has become of it. */
static void any_ioctl(char **w)
{
	static unsigned char argument[LINE_SIZE / 2];
	size_t size = strlen(w[3]) / 2;
	long r;

	for (size_t i = 0; i < size; i++) {
		char byte[3] = { w[3][2 * i], w[3][2 * i + 1], 0 };

		argument[i] = (unsigned char)strtoul(byte, NULL, 16);
	}
	r = result(ioctl(slot(w[1]), number(w[2]), argument));
	fprintf(answers, "%ld ", r);
	for (size_t i = 0; i < size; i++)
		fprintf(answers, "%02x", argument[i]);
	fprintf(answers, "\n");
}

static void carry_out(char *line);

static void serve(FILE *from, FILE *to)
{
	char line[LINE_SIZE];

	answers = to;
	setvbuf(to, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), from)) {
		line[strcspn(line, "\r\n")] = '\0';
		carry_out(line);
		fflush(to);
	}
}

static long spawn(char **w)
{
	int p = atoi(w[1]), orders[2], replies[2];
	char line[16];

	if (pipe2(orders, O_CLOEXEC) < 0 || pipe2(replies, O_CLOEXEC) < 0)
		return result(-1);
	fflush(NULL);
	processes[p].pid = fork();
	if (!processes[p].pid) {
		is_child = 1;
		close(orders[1]);
		close(replies[0]);
		close(device);
		device = -1;
		dprintf(replies[1], "ready\n");
		serve(fdopen(orders[0], "r"), fdopen(replies[1], "w"));
		_exit(0);
	}
	close(orders[0]);
	close(replies[1]);
	processes[p].orders = fdopen(orders[1], "w");
	processes[p].answers = fdopen(replies[0], "r");
	if (processes[p].pid < 0)
		return result(-1);
	/* It has closed the device by then. */
	return fgets(line, sizeof(line), processes[p].answers) ? 0 : -EPIPE;
}

static long end(char **w)
{
	int p = atoi(w[1]), st;

	if (processes[p].pid <= 0)
		return -ESRCH;
	kill(processes[p].pid, SIGKILL);
	waitpid(processes[p].pid, &st, 0);
	fclose(processes[p].orders);
	fclose(processes[p].answers);
	processes[p].pid = 0;
	return WIFSIGNALED(st) ? WTERMSIG(st) : 0;
}

static void forward(char *line)
{
	int p = atoi(line + 1);
	char *order = strchr(line, ' '), reply[LINE_SIZE];

	if (p < 0 || p >= PROCESSES || processes[p].pid <= 0 || !order) {
		fprintf(answers, "%d\n", -ESRCH);
		return;
	}
	fprintf(processes[p].orders, "%s\n", order + 1);
	fflush(processes[p].orders);
	fprintf(answers, "%s", fgets(reply, sizeof(reply), processes[p].answers) ? reply : "the process is gone\n");
}

static int do_open(void)
{
	int fd = open("/dev/liveupdate", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return (int)result(-1);
	device = fcntl(fd, F_DUPFD_CLOEXEC, 50);
	close(fd);
	return 0;
}

static void carry_out(char *line)
{
	char *w[WORDS_MAX + 1] = { NULL }, *save, copy[LINE_SIZE];
	int n = 0;
	long r;

	if (line[0] == '@') {
		forward(line);
		return;
	}
	strcpy(copy, line);
	for (char *t = strtok_r(copy, " ", &save); t && n < WORDS_MAX; t = strtok_r(NULL, " ", &save))
		w[n++] = t;
	while (n < WORDS_MAX && n)		/* a missing word is an empty one */
		w[n++] = "";
	n = 0;
	while (n < WORDS_MAX && w[n] && *w[n])
		n++;
#define IS(name) (!strcmp(w[0], name))
	if (!n)
		r = -EINVAL;
	else if (IS("open"))
		r = do_open();
	else if (IS("close-device"))
		r = result(close(device)), device = -1;
	else if (IS("create"))
		r = session(LIVEUPDATE_IOCTL_CREATE_SESSION, w);
	else if (IS("retrieve"))
		r = session(LIVEUPDATE_IOCTL_RETRIEVE_SESSION, w);
	else if (IS("close"))
		r = result(close(slot(w[1])));
	else if (IS("dup"))
		r = keep(w[1], result(dup(slot(w[2]))));
	else if (IS("memfd"))
		r = keep(w[1], result((long)memfd_create("agent", (unsigned)number(w[2]))));
	else if (IS("tmpfile"))
		r = keep(w[1], result(open("/tmp", O_TMPFILE | O_RDWR, 0600)));
	else if (IS("file"))
		r = keep(w[1], result(open(w[2], O_RDWR)));
	else if (IS("put")) {
		const char *text = strstr(line, w[2]);

		r = result(write(slot(w[1]), text, strlen(text)));
	} else if (IS("write"))
		r = write_pattern(slot(w[1]), number(w[2]), number(w[3]), number(w[4]));
	else if (IS("seek"))
		r = result((long)lseek(slot(w[1]), (off_t)number(w[2]), SEEK_SET));
	else if (IS("truncate"))
		r = result(ftruncate(slot(w[1]), (off_t)number(w[2])));
	else if (IS("fallocate"))
		r = result(fallocate(slot(w[1]), (int)number(w[2]), (off_t)number(w[3]), (off_t)number(w[4])));
	else if (IS("seal"))
		r = result(fcntl(slot(w[1]), F_ADD_SEALS, (int)number(w[2])));
	else if (IS("huge"))
		r = huge(slot(w[1]), number(w[2]), number(w[3]));
	else if (IS("preserve")) {
		struct liveupdate_session_preserve_fd p = {
			.size = sizeof(p), .fd = slot(w[2]), .token = number(w[3]),
		};

		r = result(ioctl(slot(w[1]), LIVEUPDATE_SESSION_PRESERVE_FD, &p));
	} else if (IS("get"))
		r = retrieve_fd(w);
	else if (IS("finish")) {
		struct liveupdate_session_finish f = { .size = sizeof(f) };

		r = result(ioctl(slot(w[1]), LIVEUPDATE_SESSION_FINISH, &f));
	} else if (IS("ro"))
		r = ro(w);
	else if (IS("stat")) {
		status(slot(w[1]));
		return;
	} else if (IS("read")) {
		ssize_t got = read(slot(w[1]), buffer, 63);

		buffer[got > 0 ? got : 0] = '\0';
		fprintf(answers, "%ld %s\n", result(got), buffer);
		return;
	} else if (IS("mmap"))
		r = map(w);
	else if (IS("munmap"))
		r = result(munmap((void *)number(w[1]), number(w[2])));
	else if (IS("poke")) {			/* poke SLOT OFFSET VALUE: 32 bits of a file */
		uint32_t value = (uint32_t)number(w[3]);

		r = result(pwrite(slot(w[1]), &value, sizeof(value), (off_t)number(w[2])));
	} else if (IS("madvise"))
		r = result(madvise((void *)number(w[1]), number(w[2]), (int)number(w[3])));
	else if (IS("ioctl")) {
		any_ioctl(w);
		return;
	} else if (IS("load32")) {
		fprintf(answers, "0 0x%x\n", *(volatile uint32_t *)number(w[1]));
		return;
	} else if (IS("store32")) {
		*(volatile uint32_t *)number(w[1]) = (uint32_t)number(w[2]);
		r = 0;
	} else if (IS("setuid"))
		r = result(setuid((uid_t)number(w[1])));
	else if (IS("memlock")) {
		struct rlimit rl = { number(w[1]), number(w[1]) };

		r = result(setrlimit(RLIMIT_MEMLOCK, &rl));
	} else if (IS("limit"))
		r = limit(w);
	else if (IS("load"))
		r = load(w, n);
	else if (IS("reboot")) {
		fflush(NULL);
		r = result(reboot(RB_KEXEC));
	} else if (IS("syscall"))
		r = result(syscall((long)number(w[1]), 0, 0, 0, 0, 0, 0));
	else if (IS("spawn"))
		r = spawn(w);
	else if (IS("kill"))
		r = end(w);
	else
		r = -ENOSYS;
	fprintf(answers, "%ld\n", r);
}

static int as_init(void)
{
	struct termios raw;
	int fd;

	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/tmp", 01777);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
	fd = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return 1;
	if (tcgetattr(fd, &raw) == 0) {
		cfmakeraw(&raw);
		raw.c_cflag |= CLOCAL | CREAD;
		tcsetattr(fd, TCSANOW, &raw);
	}
	dprintf(fd, "ready\n");
	serve(fdopen(fd, "r"), fdopen(dup(fd), "w"));
	return 1;
}

int main(int argc, char **argv)
{
	struct rlimit rl = { SLOTS, SLOTS };
	char line[LINE_SIZE];

	setrlimit(RLIMIT_NOFILE, &rl);
	if (getpid() == 1)
		return as_init();
	answers = stdout;
	for (int i = 1; i < argc; i++) {
		line[0] = '\0';
		for (; i < argc && strcmp(argv[i], ",") && strcmp(argv[i], ";"); i++) {
			strcat(line, *line ? " " : "");
			strcat(line, argv[i]);
		}
		if (!strcmp(line, "hold")) {
			hold();
			continue;
		}
		fprintf(stdout, "%s: ", line);
		carry_out(line);
	}
	return 0;
}
