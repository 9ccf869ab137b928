/*
 * init.c - the first program: carries out a plan of live updates
 *
 * It mounts what programs expect, reads its orders from /luemu/plan (plan.h), runs the programs, loads the next
 * kernel with kexec_file_load(2), reboots into it, and goes on there, in the same plan, as the init of the next
 * generation. Which generation it is stands on the kernel's command line as luemu.generation=N. What happens
 * is told to the host in records (record.h) on the second serial port; the host answers nothing.
 *
 *	generation 0        run "before"
 *	generation k > 0    run "after"; then, if another update follows, "before" again
 *	then, if wanted     a shell on the console
 *	k < updates         kexec into generation k + 1
 *	k = updates         power off
 *
 * A program that fails is reported and the plan goes on: what the other kernel makes of it is of interest.
 * When init itself can not do its part it says so in an ERROR record and powers off.
 *
 * It is an ordinary Linux program and asks for little, so that it runs on small kernels too.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kexec.h>
#include <linux/reboot.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <termios.h>
#include <unistd.h>

#include "plan.h"
#include "record.h"
#include "run.h"

#define PLAN_PATH	"/luemu/plan"
#define PORT_PATH	"/dev/ttyS1"
#define CMDLINE_MAX	2048		/* what Linux on x86 takes */
#define GENERATION_KEY	"luemu.generation="

static struct record port;	/* .fd is -1 until it is open; set at run time, to keep the buffer out of the file */
static struct plan plan;
static struct runner runner;
static char plan_text[PLAN_BYTES_MAX + 2];

static void console(const char *text)
{
	ssize_t n = write(2, text, strlen(text));

	(void)n;	/* there is nobody else to tell */
}

/* All records must have left before the kernel goes: it does not wait for a serial port. */
static _Noreturn void leave(int how)
{
	if (port.fd >= 0)
		tcdrain(port.fd);
	sync();
	reboot(how);
	console("luemu init: the kernel refuses to stop\n");
	for (;;)
		pause();
}

static _Noreturn void fail(const char *tried, int error)
{
	if (port.fd < 0 || record_failure(&port, RECORD_ERROR, tried, error) < 0) {
		console("luemu init: ");
		console(tried);
		console(error != 0 ? ": " : "");
		console(errno_name(error));
		console("\n");
	}
	leave(RB_POWER_OFF);
}

/* "a b" in a static buffer: what was tried, and on what. */
static const char *phrase(const char *what, const char *which)
{
	static char buffer[512];

	strncpy(buffer, what, sizeof(buffer) - 2);
	strcat(buffer, " ");
	strncat(buffer, which, sizeof(buffer) - strlen(buffer) - 1);
	return buffer;
}

/* Which file systems programs expect. A failure is reported later, when there is a port to report it on. */
static struct mount_point {
	const char *type;
	const char *directory;
	bool needed;
	int error;
} mount_points[] = {
	{ "devtmpfs", "/dev", true, 0 },
	{ "proc", "/proc", true, 0 },
	{ "sysfs", "/sys", true, 0 },
	{ "tmpfs", "/tmp", true, 0 },
	{ "debugfs", "/sys/kernel/debug", false, 0 },	/* a kernel may be built without */
};
#define MOUNT_POINTS	(sizeof(mount_points) / sizeof(mount_points[0]))

static void mount_all(void)
{
	for (size_t i = 0; i < MOUNT_POINTS; i++) {
		struct mount_point *m = &mount_points[i];

		mkdir(m->directory, 0755);	/* the initramfs may be somebody else's */
		if (mount(m->type, m->directory, m->type, 0, NULL) < 0 && errno != EBUSY)
			m->error = errno;
	}
}

static void report_mounts(void)
{
	for (size_t i = 0; i < MOUNT_POINTS; i++) {
		const struct mount_point *m = &mount_points[i];

		if (m->error == 0)
			continue;
		if (m->needed)
			fail(phrase("mount", m->directory), m->error);
		record_failure(&port, RECORD_WARNING, phrase("mount", m->directory), m->error);
	}
}

static void open_port(void)
{
	struct termios raw;
	int fd = open(PORT_PATH, O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		fail("open " PORT_PATH, errno);
	/* Bytes as they are, both ways. A port that has no modes passes them as they are anyway. */
	if (tcgetattr(fd, &raw) == 0) {
		cfmakeraw(&raw);
		raw.c_cflag |= CLOCAL | CREAD;
		cfsetspeed(&raw, B115200);
		tcsetattr(fd, TCSANOW, &raw);
	}
	port.fd = fd;
}

/* Read a whole file of less than `size` bytes; its length, or -1 with errno. */
static ssize_t read_file(const char *path, char *buffer, size_t size)
{
	size_t length = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	while (length < size) {
		ssize_t n = read(fd, buffer + length, size - length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			int error = errno;

			close(fd);
			errno = error;
			return -1;
		}
		if (n == 0)
			break;
		length += (size_t)n;
	}
	close(fd);
	if (length == size) {
		errno = EFBIG;
		return -1;
	}
	return (ssize_t)length;
}

/* From the command line; 0 if it does not say. The last one counts, as usual there. -1 with errno. */
static int read_generation(unsigned int *generation)
{
	static char cmdline[8192];
	ssize_t length = read_file("/proc/cmdline", cmdline, sizeof(cmdline) - 1);

	*generation = 0;
	if (length < 0)
		return -1;
	cmdline[length] = '\0';
	for (char *word = strtok(cmdline, " \n"); word != NULL; word = strtok(NULL, " \n"))
		if (strncmp(word, GENERATION_KEY, strlen(GENERATION_KEY)) == 0)
			*generation = (unsigned int)strtoul(word + strlen(GENERATION_KEY), NULL, 10);
	return 0;
}

static void read_plan(void)
{
	struct plan_error wrong;
	ssize_t length = read_file(PLAN_PATH, plan_text, sizeof(plan_text) - 1);

	if (length < 0)
		fail("read " PLAN_PATH, errno);
	if (plan_parse(plan_text, (size_t)length, &plan, &wrong) < 0) {
		/* The host wrote it: a number of the line is enough to find what does not fit. */
		char line[12] = "";
		char *p = line + sizeof(line) - 1;

		do {
			*--p = (char)('0' + wrong.line % 10);
			wrong.line /= 10;
		} while (wrong.line != 0);
		static char message[256];
		strcpy(message, "read " PLAN_PATH " line ");
		strcat(message, p);
		strcat(message, ": ");
		strncat(message, wrong.message, sizeof(message) - strlen(message) - 1);
		fail(message, EINVAL);
	}
}

static void hello(unsigned int generation)
{
	struct utsname name = { 0 };

	uname(&name);
	record_begin(&port, RECORD_HELLO);
	record_number(&port, generation);
	record_field(&port, name.release);
	record_field(&port, name.version);
	record_send(&port);
}

static void run_all(enum plan_when when)
{
	for (unsigned int i = 0; i < plan.programs_count; i++) {
		const struct plan_program *program = &plan.programs[i];
		const char *tried;

		if (program->when != when)
			continue;
		if (run_program(&runner, when == PLAN_BEFORE ? "before" : "after", program->argv, NULL, &tried) < 0)
			fail(phrase("run", tried), errno);
	}
}

static void load(const struct plan_next *next, const char *cmdline)
{
	unsigned long flags = 0;
	int initrd = -1;
	int kernel = open(next->kernel, O_RDONLY | O_CLOEXEC);

	if (kernel < 0)
		fail(phrase("open", next->kernel), errno);
	if (next->initrd == NULL) {
		flags |= KEXEC_FILE_NO_INITRAMFS;
	} else {
		initrd = open(next->initrd, O_RDONLY | O_CLOEXEC);
		if (initrd < 0)
			fail(phrase("open", next->initrd), errno);
	}
	if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(cmdline) + 1, cmdline, flags) < 0)
		fail("kexec_file_load", errno);
	close(kernel);
	if (initrd >= 0)
		close(initrd);
}

static _Noreturn void update_to(unsigned int generation)
{
	static char cmdline[CMDLINE_MAX];
	const struct plan_next *next = plan_next_for(&plan, generation);
	char number[12] = "";
	char *p = number + sizeof(number) - 1;

	for (unsigned int n = generation; n != 0; n /= 10)
		*--p = (char)('0' + n % 10);
	if (strlen(next->cmdline) + 1 + strlen(GENERATION_KEY) + strlen(p) + 1 > sizeof(cmdline))
		fail("put the generation on the next command line", E2BIG);
	strcpy(cmdline, next->cmdline);
	strcat(cmdline, cmdline[0] != '\0' ? " " : "");
	strcat(cmdline, GENERATION_KEY);
	strcat(cmdline, p);

	load(next, cmdline);
	runner_drain(&runner);
	record_begin(&port, RECORD_KEXEC);
	record_number(&port, generation);
	record_field(&port, next->kernel);
	record_field(&port, next->initrd != NULL ? next->initrd : "-");
	record_field(&port, cmdline);
	record_send(&port);
	tcdrain(port.fd);
	sync();
	reboot(RB_KEXEC);
	fail("reboot into the next kernel", errno);
}

int main(void)
{
	unsigned int generation;
	const char *tried;

	port.fd = -1;
	mount_all();
	open_port();
	/* HELLO first, whatever comes: every stream of records begins with it. */
	int error = read_generation(&generation) < 0 ? errno : 0;
	hello(generation);
	report_mounts();
	if (error != 0)
		fail("read /proc/cmdline", error);
	read_plan();
	if (runner_init(&runner, &port) < 0)
		fail("take SIGCHLD", errno);
	umask(022);
	if (chdir("/") < 0)
		fail("chdir /", errno);

	if (generation > 0)
		run_all(PLAN_AFTER);
	if (generation == 0 || generation < plan.updates)
		run_all(PLAN_BEFORE);
	if (plan.terminal != NULL && run_program(&runner, "interactive", plan.shell, plan.terminal, &tried) < 0)
		fail(phrase("run", tried), errno);
	if (generation < plan.updates)
		update_to(generation + 1);
	runner_drain(&runner);
	record_begin(&port, RECORD_DONE);
	record_number(&port, generation);
	record_send(&port);
	leave(RB_POWER_OFF);
}
