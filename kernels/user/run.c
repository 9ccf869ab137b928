/*
 * run.c - run a program, forward what it writes, collect what dies
 *
 * A program may leave children behind: that is how a session stays open until the kernel is replaced. So a
 * program is done when it exits, not when its output ends, nobody is ever killed, and the reading end of its
 * output stays open, or a child that writes later would die of SIGPIPE.
 */
#include "run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* What every program starts with: room for the 20,000 sessions of the longest tests, a usual default. */
static const struct rlimit open_files = { .rlim_cur = 1024, .rlim_max = 1048576 };

static void on_sigchld(int signal)
{
	(void)signal;	/* only there to end ppoll() */
}

int runner_init(struct runner *runner, struct record *record)
{
	struct sigaction action = { .sa_handler = on_sigchld };
	sigset_t blocked;

	memset(runner, 0, sizeof(*runner));
	runner->record = record;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	if (sigprocmask(SIG_BLOCK, &blocked, NULL) < 0)
		return -1;
	return sigaction(SIGCHLD, &action, NULL);
}

void runner_drain(struct runner *runner)
{
	static unsigned char chunk[65536];	/* what a pipe holds: one record for a burst of output */

	for (unsigned int i = 0; i < runner->streams;) {
		ssize_t n = read(runner->stream[i].fd, chunk, sizeof(chunk));

		if (n > 0) {
			record_begin(runner->record, RECORD_OUTPUT);
			record_number(runner->record, runner->stream[i].program);
			record_bytes(runner->record, chunk, (size_t)n);
			record_send(runner->record);
			continue;	/* the same stream, until it is empty */
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			i++;
			continue;
		}
		close(runner->stream[i].fd);	/* its last writer is gone */
		runner->streams--;
		memmove(&runner->stream[i], &runner->stream[i + 1],
			(runner->streams - i) * sizeof(runner->stream[0]));
	}
}

/* In the child: become the program. On failure the parent reads errno from `report`. */
static _Noreturn void become(char *const argv[], const char *terminal, int output, int report)
{
	static char *environment[] = { "PATH=/bin:/sbin", "HOME=/", "TERM=vt102", NULL };
	extern char **environ;
	sigset_t none;

	signal(SIGCHLD, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	if (terminal != NULL) {
		int tty = open(terminal, O_RDWR);

		if (tty < 0 || ioctl(tty, TIOCSCTTY, 0) < 0)
			goto failed;
		for (int fd = 0; fd <= 2; fd++)
			if (dup2(tty, fd) < 0)
				goto failed;
		if (tty > 2)
			close(tty);
	} else {
		int null = open("/dev/null", O_RDONLY);

		if (null < 0 || dup2(null, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0)
			goto failed;
		if (null > 2)
			close(null);
	}
	/* Outside the machine, in tests, this may not be allowed: then what there is has to do. */
	setrlimit(RLIMIT_NOFILE, &open_files);
	environ = environment;
	execvp(argv[0], argv);
failed:
	{
		int error = errno;
		ssize_t n = write(report, &error, sizeof(error));

		(void)n;
	}
	_exit(127);
}

/* Start the program; its process, or -1 with errno. */
static pid_t start(struct runner *runner, char *const argv[], const char *terminal)
{
	int output[2] = { -1, -1 };
	int report[2];
	int error = 0;
	pid_t pid = -1;

	if (pipe2(report, O_CLOEXEC) < 0)
		return -1;
	if (terminal == NULL && pipe2(output, O_CLOEXEC) < 0) {
		error = errno;
		goto out;
	}
	pid = fork();
	if (pid == 0)
		become(argv, terminal, output[1], report[1]);
	if (pid < 0) {
		error = errno;
		goto out;
	}
	close(report[1]);
	report[1] = -1;
	/* Nothing comes, and the pipe ends, when the program has begun: it is close-on-exec. */
	ssize_t n;
	do {
		n = read(report[0], &error, sizeof(error));
	} while (n < 0 && errno == EINTR);
	if (n != (ssize_t)sizeof(error))
		error = 0;
	if (error == 0 && terminal == NULL) {
		fcntl(output[0], F_SETFL, O_NONBLOCK);
		runner->stream[runner->streams].fd = output[0];
		runner->stream[runner->streams].program = runner->programs;
		runner->streams++;
		output[0] = -1;
	}
out:
	if (output[0] >= 0)
		close(output[0]);
	if (output[1] >= 0)
		close(output[1]);
	close(report[0]);
	if (report[1] >= 0)
		close(report[1]);
	if (error != 0) {
		if (pid > 0)
			waitpid(pid, NULL, 0);
		errno = error;
		return -1;
	}
	return pid;
}

/* Wait for `pid`, forwarding all output that comes meanwhile and collecting orphans. */
static int wait_for(struct runner *runner, pid_t pid)
{
	struct pollfd fds[RUN_STREAMS_MAX];
	sigset_t none;
	int result = 0;
	bool done = false;

	sigemptyset(&none);
	for (;;) {
		pid_t dead;
		int status;

		/* First the dead, then the output: what a program wrote before it exited is then in the pipe. */
		while ((dead = waitpid(-1, &status, WNOHANG)) > 0) {
			if (dead == pid) {
				result = status;
				done = true;
			}
		}
		runner_drain(runner);
		if (done)
			return result;
		for (unsigned int i = 0; i < runner->streams; i++)
			fds[i] = (struct pollfd){ .fd = runner->stream[i].fd, .events = POLLIN };
		ppoll(fds, runner->streams, NULL, &none);
	}
}

int run_program(struct runner *runner, const char *when, char *const argv[], const char *terminal,
		const char **tried)
{
	struct record *record = runner->record;
	unsigned int program = runner->programs;

	*tried = argv[0];
	if (runner->streams == RUN_STREAMS_MAX) {
		errno = EMFILE;
		return -1;
	}
	record_begin(record, RECORD_START);
	record_number(record, program);
	record_field(record, when);
	for (char *const *arg = argv; *arg != NULL; arg++)
		record_field(record, *arg);
	record_send(record);

	pid_t pid = start(runner, argv, terminal);
	runner->programs++;
	if (pid < 0)
		return -1;
	int status = wait_for(runner, pid);

	record_begin(record, RECORD_EXIT);
	record_number(record, program);
	if (WIFSIGNALED(status)) {
		record_field(record, "-");
		record_number(record, (unsigned int)WTERMSIG(status));
	} else {
		record_number(record, (unsigned int)WEXITSTATUS(status));
		record_field(record, "-");
	}
	record_send(record);
	return 0;
}
