/* Users and groups; run by user 0. */
#include "t.h"
#include <sys/fsuid.h>
#include <sys/resource.h>
#include <sys/stat.h>

static void ids(const char *when)
{
	uid_t r, e, s;
	gid_t gr, ge, gs;

	getresuid(&r, &e, &s);
	getresgid(&gr, &ge, &gs);
	say("%s: %d %d %d / %d %d %d", when, r, e, s, gr, ge, gs);
}

int main(void)
{
	static const struct { uid_t r, e, s; } tries[] = {
		{ -1U, 1001, -1U }, { 1001, -1U, -1U }, { -1U, -1U, 1001 }, { 1000, 1002, -1U }, { 1002, 1001, 1000 },
	};

	ids("start");
	T(syscall(SYS_setuid, -1));
	T(syscall(SYS_setresuid, -1, -1, -1));
	T(syscall(SYS_getresuid, BAD, BAD, BAD));
	T(syscall(SYS_setgroups, 100000, BAD));
	T(syscall(SYS_setgroups, 0, NULL));
	T(syscall(SYS_getgroups, 0, NULL));
	T(syscall(SYS_getgroups, -1, NULL));
	CHILD("setuid", {
		T(syscall(SYS_setgid, 1000));
		T(syscall(SYS_setuid, 1000));
		ids("after");
		T(syscall(SYS_setuid, 0));
		T(syscall(SYS_setuid, 1000));
		T(syscall(SYS_setgid, 0));
		T(syscall(SYS_setreuid, 0, 0));
		T(syscall(SYS_setresuid, 0, -1, -1));
		T(syscall(SYS_setgroups, 0, NULL));
		T(kill(1, 0));
		T(kill(1, SIGCONT));
		T(kill(getpid(), 0));
		T(setpriority(PRIO_PROCESS, 0, -5));
		T(setpriority(PRIO_PROCESS, 0, 5));
		T(setpriority(PRIO_PROCESS, 0, 3));
		T(sethostname("x", 1));
		T(syscall(SYS_clock_settime, CLOCK_REALTIME, &(struct timespec){ 0, 0 }));
		{
			struct rlimit l = { 100, 100 };
			struct rlimit more = { 100, 200 };

			T(setrlimit(RLIMIT_NOFILE, &l));
			T(setrlimit(RLIMIT_NOFILE, &more));
		}
	});
	for (unsigned int i = 0; i < 5; i++)
		CHILD("setresuid", {
			T(syscall(SYS_setresuid, 1000, 1001, 1002) ? -1 : 0);
			T(syscall(SYS_setresuid, tries[i].r, tries[i].e, tries[i].s));
			ids("now");
			T(syscall(SYS_setresuid, 0, 0, 0));
			T(syscall(SYS_setresuid, -1, 1000, -1));
			ids("now");
		});
	CHILD("setreuid", {
		T(syscall(SYS_setreuid, 1000, -1));
		ids("now");
		T(syscall(SYS_setreuid, -1, 1001));
		ids("now");
		T(syscall(SYS_setreuid, 1001, 1000));
		ids("now");
		T(syscall(SYS_setreuid, 5, -1));
	});
	CHILD("seteuid and back", {
		T(syscall(SYS_setresuid, -1, 1000, -1));
		ids("now");
		T(syscall(SYS_setuid, 1001));
		T(syscall(SYS_setresuid, -1, 0, -1));
		ids("back");
	});
	CHILD("setresgid", {
		T(syscall(SYS_setresgid, 1, 2, 3));
		ids("now");
		T(syscall(SYS_setregid, 4, 5));
		ids("now");
		T(syscall(SYS_setresuid, 1000, 1000, 1000));
		T(syscall(SYS_setresgid, 6, -1, -1));
		T(syscall(SYS_setregid, 5, 4));
		ids("now");
	});
	CHILD("fsuid", {
		T(syscall(SYS_setfsuid, 1000));
		T(syscall(SYS_setfsuid, -1));
		T(syscall(SYS_setuid, 1001));
		T(syscall(SYS_setfsuid, 0));
		T(syscall(SYS_setfsuid, -1));
		T(syscall(SYS_setfsgid, 0));
	});
	CHILD("files", {
		int fd = open("lx-mine", O_CREAT | O_WRONLY, 0600);

		close(fd);
		chmod(".", 0777);
		syscall(SYS_setresuid, 1000, 1000, 1000);
		T(open("lx-mine", O_RDONLY));
		T(access("lx-mine", R_OK));
		T(execl("lx-mine", "x", NULL));
		T(chmod("lx-mine", 0777));
		T(unlink("lx-mine"));
	});
	CHILD("umask", {
		T(umask(077));
		T(umask(0777777));
		T(umask(022));
	});
	return 0;
}
