/* Says its arguments, then ends as the first one says: a number is its exit status, "fault" a bad address, "term" a
 * signal, "threads" the end of its first thread only.
 */
#include "t.h"
#include <pthread.h>

static void *second(void *arg)
{
	(void)arg;
	sleep_ms(20);
	say("second thread ends");
	syscall(SYS_exit, 9);
	return NULL;
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "7";

	for (int i = 1; i < argc; i++)
		say("argument %d '%s'", i, argv[i]);
	if (!strcmp(how, "fault"))
		*(volatile char *)0x1234 = 1;
	if (!strcmp(how, "kill")) {
		kill(getpid(), SIGKILL);
		kill(getpid(), SIGTERM);
		kill(getpid(), SIGSTOP);
		say("still there");
	}
	if (!strcmp(how, "threads")) {
		pthread_t t;

		pthread_create(&t, NULL, second, NULL);
		syscall(SYS_exit, 3);
	}
	return atoi(how);
}
