/* Process groups, sessions, job control without a terminal. */
#include "t.h"

static int pipe_[2];

static void tell(char c)
{
	(void)!write(pipe_[1], &c, 1);
}

static void hear(void)
{
	char c;

	(void)!read(pipe_[0], &c, 1);
}

static void groups(void)
{
	pid_t pid, other;

	T(setpgid(-1, 0));
	T(setpgid(0, -1));
	T(setpgid(99999999, 0));
	T(setpgid(getppid(), 0));
	T(getpgid(99999999));
	T(getpgid(-1));
	T(getsid(99999999));
	C(getpgid(0) == getpgrp());
	C(getsid(0) == getsid(getpid()));
	T(setpgid(0, 99999999));
	T(setsid());			/* a leader cannot */
	T(setpgid(0, 0));
	CHILD("child", {
		C(getpgrp() == getpgid(getppid()));
		C(getsid(0) == getsid(getppid()));
		T(setpgid(0, 0));
		C(getpgrp() == getpid());
		T(setpgid(0, getppid() == 0 ? 1 : getsid(0)));
		T(setpgid(0, 0));
		T(setsid());
		OK(setsid());
	});
	CHILD("session", {
		OK(setsid());
		C(getsid(0) == getpid() && getpgrp() == getpid());
		T(setpgid(0, 0));
		T(setpgid(0, getpid()));
		T(setsid());
		pid = fork();
		if (!pid) {
			T(setpgid(0, getsid(getppid() == 1 ? 0 : getppid())));
			OK(setsid());
			tell('x');
			sleep_ms(100);
			_exit(0);
		}
		hear();
		T(setpgid(pid, pid));		/* in another session */
		T(setpgid(pid, 0));
		waitpid(pid, NULL, 0);
		T(setpgid(pid, 0));
		pid = fork();
		if (!pid) {
			sleep_ms(50);
			_exit(0);
		}
		other = fork();
		if (!other) {
			sleep_ms(50);
			_exit(0);
		}
		T(setpgid(pid, pid));
		T(setpgid(other, pid));
		C(getpgid(other) == pid);
		T(setpgid(other, getpgrp() + 100000));
		T(kill(-pid, 0));
		T(kill(-pid, SIGTERM));
		C(waitpid(-pid, NULL, 0) > 0);
		C(waitpid(-pid, NULL, 0) > 0);
		T(kill(-pid, 0));
		pid = fork();
		if (!pid) {
			tell('x');
			execl("/proc/self/exe", "x", "sleep", NULL);
			_exit(99);
		}
		hear();
		sleep_ms(60);
		T(setpgid(pid, pid));		/* it has executed */
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	});
}

static volatile int hup, cont;

static void note(int sig)
{
	if (sig == SIGHUP)
		hup = 1;
	else
		cont = 1;
}

/* A stopped group whose last parent in the session ends gets SIGHUP and SIGCONT. */
static void orphans(void)
{
	pid_t middle;
	int status;

	middle = fork();
	if (!middle) {
		pid_t inner;

		setsid();
		inner = fork();
		if (!inner) {
			signal(SIGHUP, note);
			signal(SIGCONT, note);
			setpgid(0, 0);
			tell('a');
			raise(SIGSTOP);
			say("woken by HUP %d, CONT %d", hup, cont);
			tell('b');
			_exit(0);
		}
		hear();
		waitpid(inner, &status, WUNTRACED);
		say_status("inner", status);
		_exit(0);
	}
	waitpid(middle, &status, 0);
	hear();
	say_status("middle", status);

	/* in an orphaned group the terminal's stop signals do nothing */
	CHILD("orphaned group", {
		setsid();
		raise(SIGTSTP);
		raise(SIGTTIN);
		raise(SIGTTOU);
		say("not stopped");
	});
	middle = fork();
	if (!middle) {
		setpgid(0, 0);
		raise(SIGTSTP);
		_exit(5);
	}
	C(waitpid(middle, &status, WUNTRACED) == middle);
	say_status("TSTP", status);
	kill(middle, SIGCONT);
	waitpid(middle, &status, 0);
	say_status("then", status);
	CHILD("CONT clears stops", {
		sigset_t set, pending;

		setpgid(0, 0);
		sigfillset(&set);
		sigprocmask(SIG_BLOCK, &set, NULL);
		raise(SIGTSTP);
		raise(SIGTTIN);
		raise(SIGCONT);
		sigpending(&pending);
		C(!sigismember(&pending, SIGTSTP) && !sigismember(&pending, SIGTTIN));
		raise(SIGTSTP);
		sigpending(&pending);
		C(sigismember(&pending, SIGTSTP) && !sigismember(&pending, SIGCONT));
		signal(SIGTSTP, SIG_IGN);
	});
}

static void many(void)
{
	pid_t group = 0, pids[20];
	int killed = 0, status;

	for (int i = 0; i < 20; i++) {
		pids[i] = fork();
		if (!pids[i]) {
			pause();
			_exit(0);
		}
		if (!i)
			group = pids[0];
		setpgid(pids[i], group);
	}
	T(kill(-group, SIGSTOP));
	for (int i = 0; i < 20; i++) {
		waitpid(pids[i], &status, WUNTRACED);
		killed += WIFSTOPPED(status);
	}
	say("stopped %d", killed);
	T(kill(-group, SIGKILL));
	killed = 0;
	for (int i = 0; i < 20; i++) {
		waitpid(-group, &status, 0);
		killed += WIFSIGNALED(status);
	}
	say("killed %d", killed);
	T(waitpid(-group, &status, 0));
}

int main(int argc, char **argv)
{
	(void)argv;
	if (argc > 1) {
		sleep_ms(300);
		return 0;
	}
	if (pipe(pipe_))
		say("no pipe");
	groups();
	orphans();
	many();
	return 0;
}
