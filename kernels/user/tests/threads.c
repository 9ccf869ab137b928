/* Threads, clone and futexes. */
#include "t.h"
#include <limits.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sys/prctl.h>

static long futex(volatile unsigned int *addr, int op, unsigned int value, const struct timespec *timeout, volatile unsigned int *addr2,
		  unsigned int value3)
{
	return syscall(SYS_futex, addr, op, value, timeout, addr2, value3);
}

static __thread int tls_value = 5;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static volatile int ready, counter;

static void *count(void *arg)
{
	for (int i = 0; i < 1000; i++) {
		pthread_mutex_lock(&mutex);
		counter++;
		pthread_mutex_unlock(&mutex);
		if (i % 100 == 0)
			sched_yield();
	}
	tls_value = (int)(long)arg;
	pthread_barrier_wait(&barrier);
	return (void *)(long)tls_value;
}

static void *waiter(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&mutex);
	while (!ready)
		pthread_cond_wait(&condition, &mutex);
	counter++;
	pthread_mutex_unlock(&mutex);
	return NULL;
}

static void pthreads(void)
{
	pthread_t t[8];
	long sum = 0;
	void *result;

	pthread_barrier_init(&barrier, NULL, 8);
	for (long i = 0; i < 8; i++)
		if (pthread_create(&t[i], NULL, count, (void *)i))
			say("no thread");
	for (int i = 0; i < 8; i++) {
		pthread_join(t[i], &result);
		sum += (long)result;
	}
	say("counter %d, sum %ld, own tls %d", counter, sum, tls_value);
	counter = 0;
	for (int i = 0; i < 8; i++)
		pthread_create(&t[i], NULL, waiter, NULL);
	sleep_ms(20);
	pthread_mutex_lock(&mutex);
	ready = 1;
	pthread_cond_broadcast(&condition);
	pthread_mutex_unlock(&mutex);
	for (int i = 0; i < 8; i++)
		pthread_join(t[i], NULL);
	say("woken %d", counter);
}

/* ---- one process ---- */

static pthread_t main_thread;
static volatile int handled_by_main, handled_by_other;

static void who(int sig)
{
	(void)sig;
	if (pthread_equal(pthread_self(), main_thread))
		handled_by_main++;
	else
		handled_by_other++;
}

static void *with_signal(void *arg)
{
	(void)arg;
	while (!handled_by_other)
		sleep_ms(2);
	return NULL;
}

static void *exits_process(void *arg)
{
	sleep_ms(5);
	_exit((int)(long)arg);
}

static void *faults(void *arg)
{
	(void)arg;
	*(volatile char *)8 = 1;
	return NULL;
}

static void *last(void *arg)
{
	(void)arg;
	sleep_ms(20);
	return NULL;
}

static void *looks(void *arg)
{
	(void)arg;
	C(getpid() != (pid_t)syscall(SYS_gettid));
	C(getpgid(0) == getpgrp());
	prctl(PR_SET_NAME, "second");
	return NULL;
}

static void process(void)
{
	pthread_t t;
	sigset_t set;
	char name[16];

	CHILD("exit of another thread", pthread_create(&t, NULL, exits_process, (void *)33L); pause());
	CHILD("fault of another thread", pthread_create(&t, NULL, faults, NULL); pause());
	CHILD("first thread ends first", pthread_create(&t, NULL, last, NULL); pthread_exit(NULL));
	CHILD("raw exit of the first", pthread_create(&t, NULL, last, NULL); syscall(SYS_exit, 12));
	CHILD("all end by exit", syscall(SYS_exit, 13));
	CHILD("kill with threads", pthread_create(&t, NULL, exits_process, (void *)1L); kill(getpid(), SIGKILL));
	CHILD("fork in a thread's process", {
		int status;

		pthread_create(&t, NULL, exits_process, (void *)44L);
		if (!fork()) {
			sleep_ms(30);
			_exit(3);
		}
		wait(&status);
		say("not reached?");
	});
	prctl(PR_SET_NAME, "first");
	pthread_create(&t, NULL, looks, NULL);
	pthread_join(t, NULL);
	prctl(PR_GET_NAME, name);
	say("name '%s'", name);

	/* a signal to the process goes to a thread that does not block it */
	main_thread = pthread_self();
	signal(SIGUSR1, who);
	pthread_create(&t, NULL, with_signal, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	kill(getpid(), SIGUSR1);
	pthread_join(t, NULL);
	say("by the other %d, by the first %d", handled_by_other, handled_by_main);
	pthread_kill(main_thread, SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	say("by the other %d, by the first %d", handled_by_other, handled_by_main);
	signal(SIGUSR1, SIG_DFL);
	CHILD("stop of all", {
		pthread_create(&t, NULL, last, NULL);
		if (!fork()) {
			sleep_ms(30);
			kill(getppid(), SIGCONT);
			_exit(0);
		}
		raise(SIGSTOP);
		pthread_join(t, NULL);
		_exit(21);
	});
}

/* ---- clone ---- */

static char stack[65536] __attribute__((aligned(16)));
static volatile int shared, child_tid, parent_tid;

static int raw_child(void *arg)
{
	shared = (int)(long)arg;
	return 17;
}

static void cloning(void)
{
	struct clone_args a;
	int status;
	pid_t pid;

	T(syscall(SYS_clone, CLONE_THREAD, 0, 0, 0, 0));
	T(syscall(SYS_clone, CLONE_SIGHAND | SIGCHLD, 0, 0, 0, 0));
	T(syscall(SYS_clone, CLONE_THREAD | CLONE_SIGHAND, 0, 0, 0, 0));
	T(syscall(SYS_clone, CLONE_FS | CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0));
	T(syscall(SYS_clone, CLONE_PIDFD | CLONE_DETACHED | SIGCHLD, 0, &shared, 0, 0));
	T(syscall(SYS_clone, CLONE_PIDFD | CLONE_PARENT_SETTID | SIGCHLD, 0, &shared, 0, 0));
	T(syscall(SYS_clone3, NULL, 64));
	T(syscall(SYS_clone3, &a, 63));
	T(syscall(SYS_clone3, &a, 5000));
	memset(&a, 0, sizeof(a));
	a.exit_signal = 65;
	T(syscall(SYS_clone3, &a, sizeof(a)));
	a.exit_signal = SIGCHLD;
	a.stack = 4096;
	T(syscall(SYS_clone3, &a, sizeof(a)));
	a.stack = 0;
	a.stack_size = 4096;
	T(syscall(SYS_clone3, &a, sizeof(a)));
	a.stack_size = 0;
	a.flags = CLONE_DETACHED;
	T(syscall(SYS_clone3, &a, sizeof(a)));
	a.flags = CLONE_SIGHAND;
	T(syscall(SYS_clone3, &a, sizeof(a)));
	a.flags = CLONE_THREAD | CLONE_SIGHAND | CLONE_VM;
	T(syscall(SYS_clone3, &a, sizeof(a)));
	a.flags = 0;
	pid = (pid_t)syscall(SYS_clone3, &a, 64);
	if (!pid)
		_exit(18);
	C(waitpid(pid, &status, 0) == pid);
	say_status("clone3", status);

	pid = clone(raw_child, stack + sizeof(stack), CLONE_VM | CLONE_FILES | CLONE_FS | SIGCHLD, (void *)99L);
	C(waitpid(pid, &status, 0) == pid);
	say_status("clone VM", status);
	C(shared == 99);
	pid = clone(raw_child, stack + sizeof(stack), SIGCHLD, (void *)1L);
	waitpid(pid, &status, 0);
	C(shared == 99);
	/* no signal: only those who ask for it see it */
	pid = clone(raw_child, stack + sizeof(stack), 0, (void *)1L);
	T(waitpid(pid, &status, 0));
	C(waitpid(pid, &status, __WCLONE) == pid);
	pid = clone(raw_child, stack + sizeof(stack), SIGUSR2 | CLONE_CLEAR_SIGHAND * 0, (void *)1L);
	signal(SIGUSR2, SIG_IGN);
	C(waitpid(pid, &status, __WALL) == pid);
	signal(SIGUSR2, SIG_DFL);
	pid = clone(raw_child, stack + sizeof(stack), CLONE_VM | CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD,
		    (void *)2L, &parent_tid, NULL, &child_tid);
	waitpid(pid, &status, 0);
	C(parent_tid == pid);
	C(child_tid == 0);
	pid = clone(raw_child, stack + sizeof(stack), CLONE_VFORK | CLONE_VM | SIGCHLD, (void *)3L);
	C(shared == 3);
	waitpid(pid, &status, 0);
	CHILD("CLONE_PARENT", {
		pid_t sibling = (pid_t)syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);

		if (!sibling)
			_exit(0);
		T(waitpid(sibling, &status, 0));
	});
	C(wait(&status) > 0);		/* ours after all */
	say_status("sibling", status);
}

/* ---- futex ---- */

static volatile unsigned int word, word2;

static void *wakes(void *arg)
{
	sleep_ms(20);
	word = 1;
	return (void *)futex(&word, (int)(long)arg, INT_MAX, NULL, NULL, 0);
}

static void *waits(void *arg)
{
	(void)arg;
	return (void *)futex(&word, FUTEX_WAIT_PRIVATE, 7, NULL, NULL, 0);
}

static void *waits_for_bit(void *arg)
{
	return (void *)futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 7, NULL, NULL, (unsigned int)(long)arg);
}

static void futexes(void)
{
	struct timespec zero = { 0, 0 }, some = { 0, 20000000 }, bad = { 0, -1 }, past = { 1, 0 };
	volatile unsigned int *shared_word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_t t[4];
	void *result;
	int status;
	pid_t pid;

	word = 0;
	T(futex(&word, FUTEX_WAIT, 1, NULL, NULL, 0));
	T(futex(&word, FUTEX_WAIT, 0, &zero, NULL, 0));
	T(futex(&word, FUTEX_WAIT, 0, &some, NULL, 0));
	T(futex(&word, FUTEX_WAIT, 0, &bad, NULL, 0));
	T(futex(&word, FUTEX_WAIT, 0, BAD, NULL, 0));
	T(futex(BAD, FUTEX_WAIT, 0, &zero, NULL, 0));
	T(futex(KERNEL, FUTEX_WAIT, 0, &zero, NULL, 0));
	T(futex((volatile unsigned int *)((char *)&word + 1), FUTEX_WAIT, 0, &zero, NULL, 0));
	T(futex(&word, FUTEX_WAIT_BITSET, 0, &past, NULL, FUTEX_BITSET_MATCH_ANY));
	T(futex(&word, FUTEX_WAIT_BITSET, 0, NULL, NULL, 0));
	T(futex(&word, FUTEX_WAKE_BITSET, 0, NULL, NULL, 0));
	T(futex(&word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, &past, NULL, FUTEX_BITSET_MATCH_ANY));
	T(futex(&word, FUTEX_WAKE, 1, NULL, NULL, 0));
	T(futex(BAD, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0));
	T(futex(&word, 77, 1, NULL, NULL, 0));
	T(futex(&word, FUTEX_CMP_REQUEUE, 1, NULL, &word2, 5));
	T(futex(&word, FUTEX_CMP_REQUEUE, 1, (void *)-1L, &word2, 0));
	T(futex(&word, FUTEX_REQUEUE, 1, (void *)1L, &word2, 0));
	pthread_create(&t[0], NULL, wakes, (void *)(long)FUTEX_WAKE_PRIVATE);
	T(futex(&word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0));
	pthread_join(t[0], &result);
	say("woken %ld", (long)result);

	/* over processes, by the place in the shared memory */
	*shared_word = 0;
	pid = fork();
	if (!pid) {
		sleep_ms(20);
		_exit((int)futex(shared_word, FUTEX_WAKE, 1, NULL, NULL, 0));
	}
	T(futex(shared_word, FUTEX_WAIT, 0, NULL, NULL, 0));
	waitpid(pid, &status, 0);
	say_status("waker", status);

	word = 7;
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, waits, NULL);
	sleep_ms(30);
	T(futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)2L, &word2, 7));
	T(futex(&word2, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0));
	T(futex(&word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0));
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	for (long i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, waits_for_bit, (void *)(1L << i));
	sleep_ms(30);
	T(futex(&word, FUTEX_WAKE_BITSET_PRIVATE, 10, NULL, NULL, 4));
	T(futex(&word, FUTEX_WAKE_BITSET_PRIVATE, 10, NULL, NULL, 2));
	T(futex(&word, FUTEX_WAKE_BITSET_PRIVATE, 10, NULL, NULL, 3));
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	pthread_create(&t[0], NULL, waits, NULL);
	sleep_ms(20);
	word2 = 5;
	T(futex(&word2, FUTEX_WAKE_OP_PRIVATE, 1, (void *)1L, &word, FUTEX_OP(FUTEX_OP_ADD, 3, FUTEX_OP_CMP_EQ, 7)));
	C(word == 10);
	pthread_join(t[0], NULL);
	munmap((void *)shared_word, 4096);
}

/* ---- robust mutexes ---- */

static pthread_mutex_t *robust;

static void *dies_with_it(void *arg)
{
	(void)arg;
	pthread_mutex_lock(robust);
	return NULL;
}

static void robustness(void)
{
	pthread_mutexattr_t attr;
	pthread_t t;

	robust = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(robust, &attr);
	pthread_create(&t, NULL, dies_with_it, NULL);
	pthread_join(t, NULL);
	say("owner died: %d", pthread_mutex_lock(robust) == EOWNERDEAD);
	pthread_mutex_consistent(robust);
	pthread_mutex_unlock(robust);
	CHILD("process that holds it", pthread_mutex_lock(robust); kill(getpid(), SIGKILL));
	say("owner died: %d", pthread_mutex_lock(robust) == EOWNERDEAD);
	pthread_mutex_consistent(robust);
	pthread_mutex_unlock(robust);
	say("again: %d", pthread_mutex_lock(robust));
	CHILD("list that leads nowhere", {
		struct { void *next; long offset; void *pending; } head = { BAD, 0, KERNEL };

		T(syscall(SYS_set_robust_list, &head, sizeof(head)));
	});
	CHILD("list that is a circle", {
		static void *circle;
		static struct { void *next; long offset; void *pending; } head = { &circle, 0, NULL };

		circle = &circle;
		T(syscall(SYS_set_robust_list, &head, sizeof(head)));
	});
	T(syscall(SYS_set_robust_list, NULL, 5));
	T(syscall(SYS_get_robust_list, 0, BAD, BAD));
	T(syscall(SYS_get_robust_list, 99999999, BAD, BAD));
}

int main(void)
{
	pthreads();
	process();
	cloning();
	futexes();
	robustness();
	return 0;
}
