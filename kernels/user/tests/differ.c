/* Anything at all that an agent of live updates or a hostile program can do, drawn by dice: the same lines have to come out
 * of every kernel, before an update and after it.
 *
 *	differ PHASE SEED COUNT STEPS [WORD...]
 *
 * COUNT sequences of STEPS steps, one after the other, from SEED on. PHASE counts the updates so far: in a later one a
 * sequence begins with what the same seed may have left in the one before. What is open at the end of a sequence stays open,
 * in a process that nobody waits for.
 *
 * Two things Linux answers in a way that ours do not want to copy (docs/differences.md); they are drawn only if the words
 * say so, for a kernel that runs with luo_strict=linux:
 *	noexec	files that may be written and not executed (MFD_NOEXEC_SEAL) are preserved
 *	late	seals are added to files that are, or were, preserved
 * RETRIEVE_SESSION with an answer that can not be written is never drawn: Linux loses the session.
 */
#include "differ_files.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <linux/liveupdate.h>

#define NAME_SIZE	LIVEUPDATE_SESSION_NAME_LENGTH
#define PAGE		4096

static const uint64_t tokens[] = { 1, 2, 3, 0, UINT64_MAX, 1UL << 63 };
enum { TOKENS = sizeof(tokens) / sizeof(*tokens), NAMES = 4 };

/* ---- a call, in all its forms ---- */

static unsigned char *arena;		/* two pages, and one that is not there */
static int socket_pair[2];

/* The way an argument is given. Every kernel looks at the same things in the same order. */
enum form {
	PLAIN, SHORT, ZERO, LONG, LONG_TAIL, ODD_TAIL, PAGE_LONG, ENDLESS, ENDLESS_TAIL, CUT, NOTHING, FOREIGN, READ_ONLY,
	WRONG_SIZE_BITS, WRONG_NUMBER, WRONG_TYPE, OTHER_FILE, FORMS
};
static const char *const form_names[FORMS] = {
	"", "short", "size 0", "long", "long with a tail", "odd tail", "a page", "endless", "endless with a tail", "cut off",
	"NULL", "kernel's", "read-only", "size in the number", "wrong number", "wrong type", "for the other file",
};

static enum form a_form(void) { return chance(5) ? (enum form)dice(FORMS) : PLAIN; }

/* The argument is at `arg` afterwards, as the call left it. */
static long call(int fd, unsigned cmd, void *arg, uint32_t size, enum form form)
{
	unsigned char *at = arena + PICK(0, 8, 2000, PAGE - 8);
	void *given;
	long r;
	int e;

	if (form == CUT)
		at = arena + 2 * PAGE - size + PICK(4U, 1U);
	if (form == READ_ONLY || form == PAGE_LONG)
		at = arena;
	if (form == ENDLESS || form == ENDLESS_TAIL)
		at = arena + 2 * PAGE - size - PICK(0, 8, 64, 72);
	given = form == NOTHING ? NULL : form == FOREIGN ? KERNEL : at;
	memset(arena, 0, 2 * PAGE);
	memcpy(at, arg, (size_t)(arena + 2 * PAGE - at) < size ? (size_t)(arena + 2 * PAGE - at) : size);
	*(uint32_t *)at = form == SHORT ? size - PICK(1U, 4U, 8U) : form == ZERO ? (uint32_t)PICK(0, 1, 4)
		: form == LONG ? size + PICK(1U, 8U, 64U) : form == LONG_TAIL || form == ODD_TAIL ? size + 24
		: form == PAGE_LONG ? PAGE : form == ENDLESS || form == ENDLESS_TAIL ? size + PICK(100U, 5000U, 100000U) : size;
	if (form == LONG_TAIL || form == ODD_TAIL)
		at[form == ODD_TAIL ? size + 23 : size] = 1;
	if (form == ENDLESS_TAIL && at + size < arena + 2 * PAGE)
		at[size] = 1;
	if (form == READ_ONLY)
		mprotect(arena, PAGE, PROT_READ);
	cmd = form == WRONG_SIZE_BITS ? cmd | (unsigned)PICK(0xc0480000, 0x80000000, 0x40000000) : form == WRONG_TYPE ? cmd ^ 0x100
		: form == WRONG_NUMBER ? (cmd & 0xff00) | PICK(2U, 3U, 0x3fU, 0x44U, 0xffU) : form == OTHER_FILE ? cmd ^ 0x40 : cmd;
	r = ioctl(fd, cmd, given);
	e = errno;
	mprotect(arena, 2 * PAGE, PROT_READ | PROT_WRITE);
	memcpy(arg, at, (size_t)(arena + 2 * PAGE - at) < size ? (size_t)(arena + 2 * PAGE - at) : size);
	errno = e;
	return r;
}

/* ---- sessions ---- */

static void draw_name(unsigned char *name, char *text)
{
	unsigned seed = chance(16) ? d.seed - 1 : d.seed, which = dice(NAMES);

	memset(name, 0, NAME_SIZE);
	sprintf((char *)name, "%u-%c", seed, 'a' + which);
	sprintf(text, "%s", name);
	if (which == NAMES - 1) {
		memset(name + strlen(text), 'n', NAME_SIZE - 1 - strlen(text));
		strcat(text, "nn");
	}
	switch (dice(30)) {
	case 0:
		memset(name, 0, NAME_SIZE);
		strcpy(text, "nothing");
		break;
	case 1:
		memset(name + strlen((char *)name), 'n', NAME_SIZE - strlen((char *)name));
		strcat(text, " without end");
		break;
	case 2:
		memset(name + strlen((char *)name) + 1, 'n', NAME_SIZE - 1 - strlen((char *)name));
		strcat(text, " and more");
		break;
	case 3:
		memcpy(name, "\n/%s\377", 5);
		strcpy(text, "strange");
		break;
	case 4:
		strcpy((char *)name, "luo");
		strcpy(text, "luo");
		break;
	default:
		break;
	}
}

static void session_by_name(int retrieve)
{
	struct liveupdate_ioctl_create_session a = { 0 }, before;
	int device = a_device(), where = slot(SESSION, SESSIONS, 0);
	enum form form = a_form();
	char text[100], what[200];
	long r;
	int e;

	if (retrieve && (form == READ_ONLY || (form == CUT)))
		form = PLAIN;
	draw_name(a.name, text);
	a.fd = -9;
	before = a;
	r = call(device, retrieve ? LIVEUPDATE_IOCTL_RETRIEVE_SESSION : LIVEUPDATE_IOCTL_CREATE_SESSION, &a, sizeof(a), form);
	e = errno;
	snprintf(what, sizeof(what), "%s of %s '%s' %s%s", retrieve ? "retrieve" : "create", name_of(device), text,
		 form_names[form], form != CUT && memcmp(a.name, before.name, NAME_SIZE) ? " other name" : "");
	errno = e;
	keep(r < 0 ? r : a.fd, where, what);
}

static void preserve(int session, int fd, uint64_t token, enum form form)
{
	struct liveupdate_session_preserve_fd a = { .fd = fd, .token = token };
	struct stat st = { 0 };
	int seals = fcntl(fd, F_GET_SEALS);

	fstat(fd, &st);
	if (st.st_size > 8 * MIB && st.st_size <= 1L << 44)	/* more than there is memory: Linux looks for it until somebody dies */
		return;
	if (!d.noexec && seals > 0 && seals & SEAL_EXEC && ~seals & SEALS_WRITE)
		return;
	remember(fd);
	SAY(call(session, LIVEUPDATE_SESSION_PRESERVE_FD, &a, sizeof(a), form), "preserve in %s %s as %lx %s", name_of(session),
	    name_of(fd), token, form_names[form]);
}

static void retrieve_fd(int session, uint64_t token, enum form form)
{
	struct liveupdate_session_retrieve_fd a = { .fd = -9, .token = token };
	long r = call(session, LIVEUPDATE_SESSION_RETRIEVE_FD, &a, sizeof(a), form);
	int where, e = errno;
	char what[100];

	where = slot(FILE_, FILES, 0);
	snprintf(what, sizeof(what), "retrieve from %s %lx %s", name_of(session), token, form_names[form]);
	errno = e;
	if (keep(r < 0 ? r : a.fd, where, what) >= 0 && !chance(4)) {
		remember(where);
		status(where);
	}
}

static void finish(int session, enum form form)
{
	struct liveupdate_session_finish a = { .reserved = chance(10) };

	SAY(call(session, LIVEUPDATE_SESSION_FINISH, &a, sizeof(a), form), "finish %s reserved %u %s", name_of(session),
	    a.reserved, form_names[form]);
}

static void get_name(int session)
{
	struct liveupdate_session_get_name a = { .reserved = chance(10) };
	enum form form = a_form();
	long r;
	int e;

	memset(a.name, 0xaa, sizeof(a.name));
	r = call(session, LIVEUPDATE_SESSION_GET_NAME, &a, sizeof(a), form);
	e = errno;
	for (int i = 0; i < NAME_SIZE; i++)
		a.name[i] = a.name[i] && (a.name[i] < ' ' || a.name[i] > '~') ? '?' : a.name[i];
	errno = e;
	SAY(r, "name of %s %s: size %u, %.12s %016lx", name_of(session), form_names[form], r ? 0 : a.size,
	    r ? (unsigned char *)"" : a.name, r ? 0 : hash(HASH, a.name, sizeof(a.name)));
}

static void odd(int fd)
{
	char link[100] = "", path[64], byte = 1;
	struct stat st = { 0 };
	long got;

	switch (dice(22)) {
	case 0:
		SAY(read(fd, &byte, 1), "read %s", name_of(fd));
		break;
	case 1:
		SAY(write(fd, &byte, 1), "write %s", name_of(fd));
		break;
	case 2:
		SAY(lseek(fd, 0, SEEK_SET), "lseek %s", name_of(fd));
		break;
	case 3:
		SAY(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0, "mmap %s", name_of(fd));
		break;
	case 4:
		SAY(ftruncate(fd, 0), "ftruncate %s", name_of(fd));
		break;
	case 5:
		SAY(fcntl(fd, F_GET_SEALS), "seals of %s", name_of(fd));
		break;
	case 6:
		SAY(isatty(fd) ? 0 : -1, "isatty %s", name_of(fd));
		break;
	case 7:
		SAY(fallocate(fd, 0, 0, PAGE), "fallocate %s", name_of(fd));
		break;
	case 8:
		SAY(fsync(fd), "fsync %s", name_of(fd));
		break;
	case 9:
		SAY(pread(fd, &byte, 1, 0), "pread %s", name_of(fd));
		break;
	case 10:
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		got = readlink(path, link, sizeof(link) - 1);
		SAY(got, "readlink %s %s", name_of(fd), link);
		break;
	case 11:
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		got = open(path, O_RDWR);
		SAY(got < 0 ? -1 : 0, "reopen %s", name_of(fd));
		if (got >= 0)
			close((int)got);
		break;
	case 12:
		got = fstat(fd, &st);
		SAY(got, "fstat %s mode %o size %ld", name_of(fd), st.st_mode, (long)st.st_size);
		break;
	case 13: {
		struct pollfd p = { fd, POLLIN | POLLOUT | POLLPRI, 0 };

		got = poll(&p, 1, 0);
		SAY(got, "poll %s: %x", name_of(fd), p.revents);
		break;
	}
	case 14: {
		struct epoll_event event = { .events = EPOLLIN };
		int set = epoll_create1(0);

		SAY(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event), "epoll %s", name_of(fd));
		close(set);
		break;
	}
	case 15: {
		struct iovec two[2] = { { &byte, 1 }, { &byte, 1 } };

		SAY(PICK(0, 1) ? readv(fd, two, 2) : writev(fd, two, 2), "vector %s", name_of(fd));
		break;
	}
	case 16:
		SAY(flock(fd, LOCK_EX | LOCK_NB), "flock %s", name_of(fd));
		flock(fd, LOCK_UN);
		break;
	case 17: {
		struct statfs fs = { 0 };

		got = fstatfs(fd, &fs);
		SAY(got, "fstatfs %s: %lx", name_of(fd), (long)fs.f_type);
		break;
	}
	case 18: {
		off_t from = 0;

		SAY(sendfile(a_file(), fd, chance(2) ? &from : NULL, 1), "sendfile %s", name_of(fd));
		break;
	}
	case 19:
		SAY(fchmod(fd, 0600), "fchmod %s", name_of(fd));
		break;
	default: {
		unsigned cmd = PICK(0x5450U, 0x5451U, 0x5421U, 0x541bU, 0U, ~0U, 0xba44U, 0x4004ba00U);

		memset(arena, 0, 16);
		SAY(ioctl(fd, cmd, arena), "ioctl %s %x", name_of(fd), cmd);
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	}
	}
}

static void few_descriptors(void)
{
	struct rlimit saved, none;

	getrlimit(RLIMIT_NOFILE, &saved);
	none = saved;
	none.rlim_cur = 3;
	setrlimit(RLIMIT_NOFILE, &none);
	SAY(0, "no more descriptors");
	switch (dice(3)) {
	case 0:
		session_by_name(0);
		break;
	case 1:
		session_by_name(1);
		break;
	default:
		retrieve_fd(a_session(), PICK(1UL, 2UL, 3UL), a_form());
	}
	setrlimit(RLIMIT_NOFILE, &saved);
}

static void open_device(void)
{
	int flags = PICK(O_RDWR, O_RDWR, O_RDWR, O_RDONLY, O_WRONLY, O_PATH, O_RDWR | O_TRUNC);

	KEEP(slot(DEVICE, DEVICES, 0), flags == O_PATH ? "device as a path" : "device", open("/dev/liveupdate", flags));
}

static void session_step(void)
{
	unsigned what = dice(64);
	int session = a_session();

	if (what < 3) {
		open_device();
	} else if (what < 4) {
		int device = a_device();

		SAY(close(device), "close %s", name_of(device));
	} else if (what < 5) {
		KEEP(slot(DEVICE, DEVICES, 0), "dup of a device", dup(a_device()));
	} else if (what < 17) {
		session_by_name(0);
	} else if (what < 22) {
		session_by_name(1);
	} else if (what < 42) {
		preserve(session, PICK(0, 0, 0, 0, 0, 0, 0, 0, 1, 2) ? PICK(-1, 0, 1000, DEVICE, SESSION) : a_file(),
			 tokens[dice(TOKENS)], a_form());
	} else if (what < 47) {
		retrieve_fd(session, tokens[dice(TOKENS)], a_form());
	} else if (what < 50) {
		finish(session, a_form());
	} else if (what < 52) {
		get_name(session);
	} else if (what < 56) {
		odd(PICK(0, 0, 1) ? a_device() : session);
	} else if (what < 57) {
		few_descriptors();
	} else if (what < 59) {
		KEEP(slot(SESSION, SESSIONS, 0), "dup of a session", dup(session));
	} else {
		SAY(close(session), "close %s", name_of(session));
	}
}

/* ---- processes ---- */

static void step(void);

/* A child that does as its parent does, and ends with all that it holds. */
static void child(void)
{
	unsigned steps = 1 + dice(8), end = dice(3), other_user = chance(5);
	uint64_t state = draw();
	int status = 0;
	pid_t pid;

	if (d.depth)
		return;
	pid = fork();
	if (!pid) {
		d.state = state;
		d.depth++;
		if (other_user)
			SAY(setuid(1000), "setuid");
		while (steps--)
			step();
		if (end == 1)
			raise(SIGKILL);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	SAY(WIFSIGNALED(status) ? WTERMSIG(status) : 0, "child ended");
}

/* One that holds what is open now, until it is killed. */
static void keeper(int i)
{
	int status, without_device, ready[2];
	char byte;

	if (d.depth)
		return;
	if (keepers[i]) {
		kill(keepers[i], SIGKILL);
		waitpid(keepers[i], &status, 0);
		keepers[i] = 0;
		SAY(0, "keeper %d ended", i);
		return;
	}
	without_device = chance(2);
	if (pipe2(ready, O_CLOEXEC))
		return;
	keepers[i] = fork();
	if (!keepers[i]) {
		for (int k = 0; without_device && k < DEVICES; k++)
			close(DEVICE + k);
		close(ready[0]);
		close(ready[1]);
		for (;;)
			pause();
	}
	close(ready[1]);
	(void)!read(ready[0], &byte, 1);
	close(ready[0]);
	SAY(0, "keeper %d%s", i, without_device ? " without the device" : "");
}

static void send_one(int fd)
{
	char byte = 0, control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(int));
	SAY(sendmsg(socket_pair[0], &m, MSG_DONTWAIT), "send %s", name_of(fd));
}

static void receive_one(void)
{
	char byte, control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	long r = recvmsg(socket_pair[1], &m, MSG_DONTWAIT);
	struct cmsghdr *c = r >= 0 ? CMSG_FIRSTHDR(&m) : NULL;
	char link[64] = "", path[64];
	int fd;

	if (!c || c->cmsg_len != CMSG_LEN(sizeof(int))) {
		SAY(r, "receive");
		return;
	}
	memcpy(&fd, CMSG_DATA(c), sizeof(int));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	r = readlink(path, link, sizeof(link) - 1);
	if (r > 0 && strstr(link, "luo_session"))
		keep(fd, slot(SESSION, SESSIONS, 0), "receive");
	else
		keep(fd, slot(FILE_, FILES, 0), "receive");
}

static void process_step(void)
{
	unsigned what = dice(8);

	if (what < 3)
		child();
	else if (what < 5)
		keeper((int)dice(KEEPERS));
	else if (what < 6)
		send_one(PICK(0, 1) ? a_session() : a_file());
	else
		receive_one();
}

static void step(void)
{
	unsigned what = dice(100);

	d.step++;
	if (what < 52)
		file_step();
	else if (what < 94)
		session_step();
	else
		process_step();
}

/* ---- a sequence ---- */

/* What the seed's last phase may have left: asked for in any order, with other steps in between. */
static void arrival(void)
{
	unsigned rounds = 40 + dice(40);

	while (rounds--) {
		unsigned what = dice(20);

		d.step++;
		if (what < 6)
			session_by_name(1);
		else if (what < 15)
			retrieve_fd(a_session(), tokens[dice(TOKENS)], chance(3) ? a_form() : PLAIN);
		else if (what < 16)
			finish(a_session(), a_form());
		else if (what < 17)
			get_name(a_session());
		else
			step();
	}
}

/* The last steps before an update fill sessions, so that there is something to hand over; some files change after that. */
static void departure(void)
{
	for (int i = 0; i < SESSIONS; i++) {
		int session = SESSION + i;

		d.step++;
		if (!in_use(session))
			session_by_name(0);
		for (unsigned n = dice(4); n--;) {
			if (chance(2))
				new_memfd();
			for (unsigned k = dice(4); k--;)
				PICK(write_file, write_file, resize_file, allocate, seek_file, seal_file)(a_file());
			preserve(session, a_file(), tokens[dice(TOKENS)], PLAIN);
		}
	}
	for (unsigned n = dice(16); n--;) {
		d.step++;
		file_step();
	}
}

/* Nothing is left unsaid. */
static void account(void)
{
	d.step++;
	for (int fd = FILE_; fd < FILE_ + FILES; fd++)
		if (in_use(fd))
			status(fd);
	for (int i = 0; i < MAPS; i++)
		touch_map(i, 0);
	for (int fd = SESSION; fd < SESSION + SESSIONS; fd++)
		if (in_use(fd))
			get_name(fd);
}

static void sequence(unsigned steps)
{
	static char stack[65536];
	stack_t other = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction action = { .sa_handler = faulted, .sa_flags = SA_ONSTACK };

	arena = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(arena + 2 * PAGE, PAGE, PROT_NONE);
	socketpair(AF_UNIX, SOCK_DGRAM, 0, socket_pair);
	for (int i = 0; i < 2; i++) {
		dup3(socket_pair[i], FLIGHT + i, O_CLOEXEC);
		close(socket_pair[i]);
		socket_pair[i] = FLIGHT + i;
	}
	sigaltstack(&other, NULL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	umask(022);
	d.state = d.seed * 1000UL + (unsigned)d.phase;
	open_device();
	if (d.phase)
		arrival();
	while (d.step < steps)
		step();
	departure();
	account();
	for (int i = 0; i < KEEPERS; i++)
		if (keepers[i])
			keeper(i);
	for (int fd = DEVICE; fd < DEVICE + DEVICES; fd++)
		close(fd);
}

int main(int argc, char **argv)
{
	unsigned first, count, steps;

	if (argc < 5)
		return 2;
	d.phase = atoi(argv[1]);
	first = (unsigned)atoi(argv[2]);
	count = (unsigned)atoi(argv[3]);
	steps = (unsigned)atoi(argv[4]);
	for (int i = 5; i < argc; i++) {
		d.noexec |= !strcmp(argv[i], "noexec");
		d.late |= !strcmp(argv[i], "late");
	}
	known = mmap(NULL, sizeof(*known), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (d.seed = first; d.seed < first + count; d.seed++) {
		int ready[2];
		char byte;

		if (pipe2(ready, O_CLOEXEC))
			return 3;
		if (!fork()) {
			setsid();
			dup2(ready[1], 100);
			close(ready[0]);
			close(ready[1]);
			known->count = 0;
			sequence(steps);
			say("%u:%d end", d.seed, d.phase);
			for (int fd = 0; fd < 3; fd++)
				close(fd);
			close(100);
			for (;;)
				pause();
		}
		close(ready[1]);
		(void)!read(ready[0], &byte, 1);	/* its end, or that of the process */
		close(ready[0]);
	}
	return 0;
}
