/* The first program of a test run: runs the programs of /tests (one command a line), says how each ended, and switches
 * the machine off.
 */
#include "t.h"
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>

static void run(char *line)
{
	char *argv[32];
	int n = 0, status;
	pid_t pid;

	for (char *word = strtok(line, " "); word && n < 31; word = strtok(NULL, " "))
		argv[n++] = word;
	argv[n] = NULL;
	if (!n)
		return;
	say("@@ %s", argv[0]);
	pid = fork();
	if (!pid) {
		setsid();
		execv(argv[0], argv);
		say("execv: %s", strerror(errno));
		_exit(127);
	}
	while (1) {
		pid_t ended = wait(&status);	/* orphans too */

		if (ended == pid || (ended < 0 && errno == ECHILD))
			break;
	}
	say_status("@@ end", status);
}

int main(void)
{
	char text[4096], *rest = text, *line;
	int fd = open("/tests", O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (n < 0) {
		say("no /tests");
		return 1;
	}
	text[n] = '\0';
	close(fd);
	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	mkdir("/tmp", 01777);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	chdir("/tmp");
	while ((line = strsep(&rest, "\n")) != NULL)
		run(line);
	say("@@ done");
	reboot(RB_POWER_OFF);
	return 0;
}
