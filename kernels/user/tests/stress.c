/* Everything at once: threads that fork, execute, wait, signal each other, sleep and fight for locks, preempted anywhere.
 * The first argument is how much of it.
 */
#include "t.h"
#include <poll.h>
#include <pthread.h>
#include <sys/time.h>

#define THREADS 6

static int rounds = 20;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static volatile int counter, handled, failures;

static void fail(const char *what)
{
	__atomic_fetch_add(&failures, 1, __ATOMIC_SEQ_CST);
	say("failed: %s: %s", what, strerror(errno));
}

static void handler(int sig)
{
	(void)sig;
	__atomic_fetch_add(&handled, 1, __ATOMIC_RELAXED);
}

static pid_t wait_for(pid_t pid, int *status)
{
	pid_t got;

	while ((got = waitpid(pid, status, 0)) < 0 && errno == EINTR)
		;
	return got;
}

static void *forks(void *arg)
{
	int me = (int)(long)arg, status;

	for (int i = 0; i < rounds; i++) {
		pid_t pid = fork();

		if (!pid) {
			if (i % 3)
				_exit(i & 0x7f);
			execl("/proc/self/exe", "stress", "exit", "77", NULL);
			_exit(1);
		}
		if (pid < 0) {
			fail("fork");
			continue;
		}
		if (i % 5 == 4)
			kill(pid, SIGKILL);
		if (wait_for(pid, &status) != pid)
			fail("waitpid");
		else if (WIFEXITED(status) ? WEXITSTATUS(status) != (i % 3 ? (i & 0x7f) : 77) : i % 5 != 4 || WTERMSIG(status) != SIGKILL)
			fail("status");
		if (me == 0)
			sched_yield();
	}
	return NULL;
}

static void *locks(void *arg)
{
	(void)arg;
	for (int i = 0; i < rounds * 50; i++) {
		pthread_mutex_lock(&mutex);
		counter++;
		if (i % 16 == 0)
			sched_yield();
		counter--;
		pthread_mutex_unlock(&mutex);
		if (i % 64 == 0)
			kill(getpid(), SIGUSR1);
	}
	return NULL;
}

static void *short_lived(void *arg)
{
	return arg;
}

static void *makes_threads(void *arg)
{
	(void)arg;
	for (long i = 0; i < rounds * 4; i++) {
		pthread_t t;
		void *result;

		if (pthread_create(&t, NULL, short_lived, (void *)i))
			fail("pthread_create");
		else if (pthread_join(t, &result) || (long)result != i)
			fail("pthread_join");
	}
	return NULL;
}

static void *pipes(void *arg)
{
	int ends[2];
	char buf[5000];

	(void)arg;
	for (int i = 0; i < rounds; i++) {
		size_t got = 0;
		pid_t pid;
		int status;

		if (pipe2(ends, O_CLOEXEC)) {
			fail("pipe");
			continue;
		}
		pid = fork();
		if (!pid) {
			memset(buf, i, sizeof(buf));
			for (int n = 0; n < 20; n++)
				if (write(ends[1], buf, sizeof(buf)) != sizeof(buf))
					_exit(1);
			_exit(0);
		}
		close(ends[1]);
		while (1) {
			ssize_t n = read(ends[0], buf, sizeof(buf));

			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0)
				break;
			for (ssize_t j = 0; j < n; j++)
				if (buf[j] != (char)i) {
					fail("contents");
					break;
				}
			got += (size_t)n;
		}
		/* others fork meanwhile and have our end open until they execute or exit: read to the end waits for them */
		if (got != 20 * sizeof(buf))
			fail("size");
		close(ends[0]);
		if (wait_for(pid, &status) != pid || status)
			fail("writer");
	}
	return NULL;
}

static void *stops(void *arg)
{
	int status;

	(void)arg;
	for (int i = 0; i < rounds; i++) {
		pid_t pid = fork();

		if (!pid)
			while (1)
				getppid();
		kill(pid, SIGSTOP);
		while (waitpid(pid, &status, WUNTRACED) < 0 && errno == EINTR)
			;
		if (!WIFSTOPPED(status))
			fail("stop");
		kill(pid, SIGCONT);
		kill(pid, i % 2 ? SIGTERM : SIGKILL);
		if (wait_for(pid, &status) != pid || !WIFSIGNALED(status))
			fail("end");
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static void *(*const work[THREADS])(void *) = { forks, forks, locks, makes_threads, pipes, stops };
	struct itimerval timer = { { 0, 10000 }, { 0, 10000 } };
	struct sigaction a = { .sa_handler = handler, .sa_flags = SA_RESTART };
	pthread_t threads[THREADS];

	if (argc > 2)
		return atoi(argv[2]);
	if (argc > 1)
		rounds = atoi(argv[1]);
	sigaction(SIGUSR1, &a, NULL);
	sigaction(SIGALRM, &a, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (long i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, work[i], (void *)i);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	timer.it_value.tv_usec = timer.it_interval.tv_usec = 0;
	setitimer(ITIMER_REAL, &timer, NULL);
	say("failures %d, counter %d, handled %d, children left %d", failures, counter, handled > 0,
	    waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD);
	return failures != 0;
}
