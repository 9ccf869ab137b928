/* execve: arguments, environment, auxiliary vector, scripts, files that are no programs, what stays and what goes. */
#include "t.h"
#include <dirent.h>
#include <elf.h>
#include <pthread.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

extern char **environ;
static const char *self;

static void put(const char *path, const void *data, size_t size, mode_t mode)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0700);

	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		say("cannot write %s", path);
	fchmod(fd, mode);
	close(fd);
}

static void put_text(const char *path, const char *text)
{
	put(path, text, strlen(text), 0755);
}

/* ---- the other side ---- */

static int child(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "args")) {
		say("argc %d", argc);
		for (int i = 1; i < argc; i++)
			say("argv[%d] '%.60s'%s", i, argv[i], strlen(argv[i]) > 60 ? "…" : "");
		for (char **e = environ; *e; e++)
			say("env '%s'", *e);
		say("end of vectors: %d", argv[argc] == NULL);
		return 0;
	}
	if (!strcmp(what, "name0")) {
		say("argv[0] is '%s'", argv[0]);
		return 0;
	}
	if (!strcmp(what, "state")) {
		struct sigaction a;
		sigset_t set;
		stack_t stack;
		char name[16];

		sigaction(SIGUSR1, NULL, &a);
		say("ignored stays: %d", a.sa_handler == SIG_IGN);
		sigaction(SIGUSR2, NULL, &a);
		say("caught goes: %d, flags %#x", a.sa_handler == SIG_DFL, a.sa_flags);
		sigprocmask(SIG_SETMASK, NULL, &set);
		say("blocked stays: %d", sigismember(&set, SIGHUP));
		sigpending(&set);
		say("pending stays: %d", sigismember(&set, SIGHUP));
		sigaltstack(NULL, &stack);
		say("alternate stack: flags %d", stack.ss_flags);
		say("fd 10: %d, fd 11: %d", fcntl(10, F_GETFD), fcntl(11, F_GETFD));
		prctl(PR_GET_NAME, name);
		say("name '%s'", name);
		say("same pid: %d, umask %o", atoi(argv[2]) == getpid(), umask(0));
		say("alarm: %d", alarm(0) > 0);
		return 0;
	}
	if (!strcmp(what, "aux")) {
		const unsigned char *random = (const unsigned char *)getauxval(AT_RANDOM);
		const Elf64_Phdr *phdr = (const Elf64_Phdr *)getauxval(AT_PHDR);
		int load = 0;

		say("PAGESZ %lu CLKTCK %lu FLAGS %lu SECURE %lu", getauxval(AT_PAGESZ), getauxval(AT_CLKTCK),
		    getauxval(AT_FLAGS), getauxval(AT_SECURE));
		say("UID %d EUID %d GID %d EGID %d", getauxval(AT_UID) == getuid(), getauxval(AT_EUID) == geteuid(),
		    getauxval(AT_GID) == getgid(), getauxval(AT_EGID) == getegid());
		say("PHENT %lu PHNUM > 0 %d BASE %lu", getauxval(AT_PHENT), getauxval(AT_PHNUM) > 0, getauxval(AT_BASE));
		for (unsigned long i = 0; i < getauxval(AT_PHNUM); i++)
			load += phdr[i].p_type == PT_LOAD;
		say("PT_LOAD found %d ENTRY %d", load > 0, getauxval(AT_ENTRY) != 0);
		say("RANDOM %d PLATFORM %s EXECFN ends in exec %d", random != NULL, (char *)getauxval(AT_PLATFORM),
		    !strcmp(strrchr((char *)getauxval(AT_EXECFN), '/'), "/exec"));
		say("stack aligned %d", ((uintptr_t)__builtin_frame_address(0) & 15) == 0);
		return 0;
	}
	if (!strcmp(what, "exit"))
		return atoi(argv[2]);
	say("unknown child");
	return 98;
}

/* ---- this side ---- */

#define EXEC(what, path, ...) CHILD(what, {						\
		char *argv_[] = { __VA_ARGS__, NULL }, *envp_[] = { "A=1", "LONG=x", NULL };	\
		execve(path, argv_, envp_);						\
		say("%s: -%d (%s)", what, errno, strerror(errno)); _exit(100);		\
	})

static void arguments(void)
{
	char *empty[] = { NULL };
	static char big[200000], many[131072];
	struct rlimit l;

	EXEC("args", self, "x", "args", "", "three words here", "ä");
	CHILD("no envp", execve(self, (char *[]){ "x", "args", NULL }, NULL));
	CHILD("empty envp", execve(self, (char *[]){ "x", "args", NULL }, empty));
	CHILD("NULL path", T(syscall(SYS_execve, NULL, empty, empty)));
	CHILD("bad path", T(syscall(SYS_execve, BAD, empty, empty)));
	CHILD("empty path", T(syscall(SYS_execve, "", empty, empty)));
	CHILD("bad argv", T(syscall(SYS_execve, self, BAD, empty)));
	CHILD("bad envp", T(syscall(SYS_execve, self, (char *[]){ "x", NULL }, BAD)));
	CHILD("bad string", T(syscall(SYS_execve, self, (char *[]){ "x", BAD, NULL }, empty)));
	CHILD("kernel string", T(syscall(SYS_execve, self, (char *[]){ "x", KERNEL, NULL }, empty)));
	memset(big, 'b', sizeof(big) - 1);
	EXEC("string too long", self, "x", "args", big);
	memset(many, 'm', sizeof(many) - 1);
	EXEC("longest string", self, "x", "args", many);
	CHILD("too much", {
		char *argv[30] = { "x", "args" };

		for (int i = 2; i < 29; i++)
			argv[i] = many;
		T(execve(self, argv, empty));
	});
	CHILD("too much for a small stack", {
		char *argv[4] = { "x", "args", many, NULL };

		l.rlim_cur = l.rlim_max = 200000;
		setrlimit(RLIMIT_STACK, &l);
		argv[2] = many;
		argv[3] = NULL;
		T(execve(self, argv, (char *[]){ many, NULL }));
	});
	memset(big, '/', 5000);
	big[5000] = 0;
	EXEC("long path", big, "x");
	EXEC("aux", self, "x", "aux");
}

static void errors(void)
{
	put_text("/tmp/lx-text", "just text\n");
	put("/tmp/lx-empty", "", 0, 0755);
	put("/tmp/lx-noexec", "#!/bin/x\n", 9, 0644);
	mkdir("/tmp/lx-dir", 0755);
	symlink("lx-loop", "/tmp/lx-loop");
	EXEC("missing", "/tmp/lx-missing", "x");
	EXEC("no directory", "/tmp/lx-text/x", "x");
	EXEC("directory", "/tmp/lx-dir", "x");
	EXEC("not executable", "/tmp/lx-noexec", "x");
	EXEC("text", "/tmp/lx-text", "x");
	EXEC("empty", "/tmp/lx-empty", "x");
	EXEC("loop", "/tmp/lx-loop", "x");
	EXEC("device", "/dev/null", "x");
}

static void scripts(void)
{
	char text[600], name[300];

	snprintf(text, sizeof(text), "#!%s\n", self);
	put_text("/tmp/lx-s1", text);
	EXEC("script without argument", "/tmp/lx-s1", "zero", "args");
	snprintf(text, sizeof(text), "#! \t %s   args with  blanks \t \nignored\n", self);
	put_text("/tmp/lx-s2", text);
	EXEC("script with argument", "/tmp/lx-s2", "zero", "one", "two");
	snprintf(text, sizeof(text), "#!%s args", self);
	put_text("/tmp/lx-s3", text);
	EXEC("script without newline", "/tmp/lx-s3", "zero");
	put_text("/tmp/lx-s4", "#!/tmp/lx-s2 more\n");
	EXEC("script of a script", "/tmp/lx-s4", "zero", "end");
	put_text("/tmp/lx-s5", "#!/tmp/lx-nothing\n");
	EXEC("interpreter missing", "/tmp/lx-s5", "zero");
	put_text("/tmp/lx-s6", "#!\n");
	EXEC("nothing behind it", "/tmp/lx-s6", "zero");
	put_text("/tmp/lx-s7", "#!   \t\n");
	EXEC("blanks behind it", "/tmp/lx-s7", "zero");
	put_text("/tmp/lx-s8", "#!/tmp/lx-s8\n");
	EXEC("itself", "/tmp/lx-s8", "zero");
	put_text("/tmp/lx-s9", "#!/tmp/lx-text\n");
	EXEC("interpreter is text", "/tmp/lx-s9", "zero");
	put_text("/tmp/lx-s10", "#!/tmp/lx-dir\n");
	EXEC("interpreter is a directory", "/tmp/lx-s10", "zero");
	snprintf(name, sizeof(name), "#!/%0*d\n", 280, 0);
	put_text("/tmp/lx-s11", name);
	EXEC("interpreter too long", "/tmp/lx-s11", "zero");
	snprintf(text, sizeof(text), "#!%s args %0*d\n", self, 300, 7);
	put_text("/tmp/lx-s12", text);
	EXEC("argument cut", "/tmp/lx-s12", "zero");
	CHILD("script without argv", execve("/tmp/lx-s3", (char *[]){ NULL }, (char *[]){ NULL }));
	put("/tmp/lx-s13", "#!", 2, 0755);
	EXEC("two bytes", "/tmp/lx-s13", "zero");
	/* five levels are possible, six are not */
	snprintf(text, sizeof(text), "#!%s args\n", self);
	put_text("/tmp/lx-l0", text);
	for (int i = 1; i < 7; i++) {
		snprintf(text, sizeof(text), "#!/tmp/lx-l%d\n", i - 1);
		snprintf(name, sizeof(name), "/tmp/lx-l%d", i);
		put_text(name, text);
	}
	EXEC("level 4", "/tmp/lx-l4", "zero");
	EXEC("level 5", "/tmp/lx-l5", "zero");
	EXEC("level 6", "/tmp/lx-l6", "zero");
}

/* ---- hostile ELF files: a good one with one thing changed ---- */

static unsigned char *image;
static size_t image_size;

#define EHDR ((Elf64_Ehdr *)image)
#define PHDR ((Elf64_Phdr *)(image + sizeof(Elf64_Ehdr)))

/* Position-dependent, one segment, exits with 77. */
static void good_image(void)
{
	static const unsigned char code[] = { 0xbf, 77, 0, 0, 0, 0xb8, 0xe7, 0, 0, 0, 0x0f, 0x05 };

	free(image);
	image_size = 8192;
	image = calloc(1, image_size);
	memcpy(EHDR->e_ident, "\177ELF\2\1\1", 7);
	EHDR->e_type = ET_EXEC;
	EHDR->e_machine = EM_X86_64;
	EHDR->e_version = 1;
	EHDR->e_entry = 0x400200;
	EHDR->e_phoff = sizeof(Elf64_Ehdr);
	EHDR->e_ehsize = sizeof(Elf64_Ehdr);
	EHDR->e_phentsize = sizeof(Elf64_Phdr);
	EHDR->e_phnum = 1;
	PHDR[0] = (Elf64_Phdr){ .p_type = PT_LOAD, .p_flags = PF_R | PF_X, .p_vaddr = 0x400000, .p_filesz = 0x300,
				.p_memsz = 0x300, .p_align = 4096 };
	memcpy(image + 0x200, code, sizeof(code));
}

#define ELF(what, ...) do {								\
		good_image();								\
		__VA_ARGS__;								\
		unlink("/tmp/lx-elf");							\
		put("/tmp/lx-elf", image, image_size, 0755);				\
		EXEC("elf: " what, "/tmp/lx-elf", "x");					\
	} while (0)

static void elves(void)
{
	ELF("good", );
	ELF("wrong magic", image[3] = 'X');
	ELF("32-bit", EHDR->e_ident[EI_CLASS] = ELFCLASS32);
	ELF("other machine", EHDR->e_machine = EM_AARCH64);
	ELF("relocatable", EHDR->e_type = ET_REL);
	ELF("core", EHDR->e_type = ET_CORE);
	ELF("header cut", image_size = 40);
	ELF("headers behind the end", EHDR->e_phoff = 100000);
	ELF("headers at 2^63", EHDR->e_phoff = 1UL << 63);
	ELF("headers at -1", EHDR->e_phoff = ~0UL);
	ELF("no headers", EHDR->e_phnum = 0);
	ELF("65535 headers", EHDR->e_phnum = 65535);
	ELF("1171 headers", EHDR->e_phnum = 1171);
	ELF("odd header size", EHDR->e_phentsize = 57);
	ELF("entry in the kernel", EHDR->e_entry = 0xffffffff80000000UL);
	ELF("entry not canonical", EHDR->e_entry = 1UL << 62);
	ELF("entry nowhere", EHDR->e_entry = 0x100);
	ELF("no segment to load", PHDR[0].p_type = PT_NOTE);
	ELF("vaddr 0", PHDR[0].p_vaddr = 0; EHDR->e_entry = 0x200);
	ELF("file larger than memory", PHDR[0].p_memsz = 0x100);
	ELF("offset not congruent", PHDR[0].p_offset = 0x123);
	ELF("segment in the kernel", PHDR[0].p_vaddr = 0xffffffff80000000UL; EHDR->e_entry = 0xffffffff80000200UL);
	ELF("segment across the end", PHDR[0].p_vaddr = 0x7fffffffe000UL; PHDR[0].p_memsz = 0x100000);
	ELF("memsz 2^63", PHDR[0].p_memsz = 1UL << 63; PHDR[0].p_flags |= PF_W);
	ELF("memsz 2^47", PHDR[0].p_memsz = 1UL << 47; PHDR[0].p_flags |= PF_W);
	ELF("filesz 2^40", PHDR[0].p_filesz = PHDR[0].p_memsz = 1UL << 40);
	ELF("vaddr + memsz wraps", PHDR[0].p_memsz = ~0UL - 0x1000; PHDR[0].p_filesz = 0x300);
	ELF("offset behind the end", PHDR[0].p_offset = 0x10000);
	ELF("offset 2^62", PHDR[0].p_offset = 1UL << 62);
	ELF("offset -4096", PHDR[0].p_offset = ~0xfffUL);
	ELF("not executable", PHDR[0].p_flags = PF_R);
	ELF("no rights", PHDR[0].p_flags = 0);
	ELF("memory behind the file", PHDR[0].p_memsz = 0x5000; PHDR[0].p_flags |= PF_W);
	ELF("read-only memory behind the file", PHDR[0].p_memsz = 0x5000);
	ELF("only memory", EHDR->e_phnum = 2;
	    PHDR[1] = (Elf64_Phdr){ .p_type = PT_LOAD, .p_flags = PF_R | PF_W, .p_vaddr = 0x600123, .p_memsz = 0x5000 });
	ELF("two at one place", EHDR->e_phnum = 2; PHDR[1] = PHDR[0]);
	ELF("upside down", EHDR->e_phnum = 2; PHDR[1] = PHDR[0]; PHDR[0].p_vaddr = 0x800000);
	ELF("over the stack", EHDR->e_phnum = 2; PHDR[1] = PHDR[0]; PHDR[1].p_vaddr = 0x7ffffffde000UL);
	ELF("PIE", EHDR->e_type = ET_DYN; PHDR[0].p_vaddr = 0; EHDR->e_entry = 0x200);
	ELF("PIE at an address", EHDR->e_type = ET_DYN);
	ELF("PIE, huge alignment", EHDR->e_type = ET_DYN; PHDR[0].p_vaddr = 0; EHDR->e_entry = 0x200; PHDR[0].p_align = 1UL << 21);
	ELF("PIE, absurd alignment", EHDR->e_type = ET_DYN; PHDR[0].p_vaddr = 0; EHDR->e_entry = 0x200; PHDR[0].p_align = ~0UL);
	ELF("PIE, too large", EHDR->e_type = ET_DYN; PHDR[0].p_vaddr = 0; EHDR->e_entry = 0x200; PHDR[0].p_memsz = 0x7ffffffff000UL;
	    PHDR[0].p_flags |= PF_W);
	ELF("file cut in the segment", image_size = 0x210);
	ELF("interpreter missing", EHDR->e_phnum = 2; strcpy((char *)image + 0x400, "/tmp/lx-nothing");
	    PHDR[1] = (Elf64_Phdr){ .p_type = PT_INTERP, .p_offset = 0x400, .p_filesz = 16 });
	ELF("interpreter is text", EHDR->e_phnum = 2; strcpy((char *)image + 0x400, "/tmp/lx-text");
	    PHDR[1] = (Elf64_Phdr){ .p_type = PT_INTERP, .p_offset = 0x400, .p_filesz = 13 });
	ELF("interpreter is a directory", EHDR->e_phnum = 2; strcpy((char *)image + 0x400, "/tmp/lx-dir");
	    PHDR[1] = (Elf64_Phdr){ .p_type = PT_INTERP, .p_offset = 0x400, .p_filesz = 12 });
	ELF("interpreter without end", EHDR->e_phnum = 2; strcpy((char *)image + 0x400, "/tmp/lx-text");
	    PHDR[1] = (Elf64_Phdr){ .p_type = PT_INTERP, .p_offset = 0x400, .p_filesz = 5 });
	ELF("interpreter's name empty", EHDR->e_phnum = 2;
	    PHDR[1] = (Elf64_Phdr){ .p_type = PT_INTERP, .p_offset = 0x400, .p_filesz = 1 });
	ELF("interpreter's name too long", EHDR->e_phnum = 2;
	    PHDR[1] = (Elf64_Phdr){ .p_type = PT_INTERP, .p_offset = 0x400, .p_filesz = 5000 });
	ELF("interpreter's name behind the end", EHDR->e_phnum = 2;
	    PHDR[1] = (Elf64_Phdr){ .p_type = PT_INTERP, .p_offset = 0x40000, .p_filesz = 10 });
	ELF("interpreter is itself", EHDR->e_phnum = 2; strcpy((char *)image + 0x400, "/tmp/lx-elf");
	    PHDR[1] = (Elf64_Phdr){ .p_type = PT_INTERP, .p_offset = 0x400, .p_filesz = 12 });
}

/* ---- what stays ---- */

static char altstack[8192];

static void nothing(int sig)
{
	(void)sig;
}

static void state(void)
{
	char pid[16];
	sigset_t set;

	if (fork()) {
		int status;

		wait(&status);
		say_status("state", status);
		return;
	}
	snprintf(pid, sizeof(pid), "%d", getpid());
	signal(SIGUSR1, SIG_IGN);
	signal(SIGUSR2, nothing);
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	raise(SIGHUP);
	sigaltstack(&(stack_t){ .ss_sp = altstack, .ss_size = sizeof(altstack) }, NULL);
	dup2(1, 10);
	dup2(1, 11);
	fcntl(11, F_SETFD, FD_CLOEXEC);
	umask(027);
	alarm(50);
	execv(self, (char *[]){ "x", "state", pid, NULL });
	_exit(100);
}

/* ---- threads ---- */

static void *exec_here(void *arg)
{
	(void)arg;
	sleep_ms(5);
	execv(self, (char *[]){ "x", "exit", "55", NULL });
	return NULL;
}

static void *wait_forever(void *arg)
{
	(void)arg;
	while (1)
		pause();
}

static void threads(void)
{
	pthread_t t;

	CHILD("exec in a thread", {
		pthread_create(&t, NULL, wait_forever, NULL);
		pthread_create(&t, NULL, exec_here, NULL);
		wait_forever(NULL);
	});
	CHILD("exec in the first thread", {
		pthread_create(&t, NULL, wait_forever, NULL);
		pthread_create(&t, NULL, wait_forever, NULL);
		exec_here(NULL);
	});
	CHILD("exec after vfork", {
		pid_t pid = vfork();
		int status;

		if (!pid) {
			execv(self, (char *[]){ "x", "exit", "66", NULL });
			_exit(100);
		}
		waitpid(pid, &status, 0);
		say_status("vforked", status);
	});
}

static void by_fd(void)
{
	int fd = open(self, O_RDONLY | O_CLOEXEC), dir = open("/tmp", O_RDONLY | O_DIRECTORY);
	char *argv[] = { "x", "exit", "44", NULL }, *envp[] = { NULL }, path[64];

	CHILD("execveat fd", T(syscall(SYS_execveat, fd, "", argv, envp, AT_EMPTY_PATH)));
	CHILD("execveat dir", T(syscall(SYS_execveat, dir, "lx-s1", argv, envp, 0)));
	CHILD("execveat no such", T(syscall(SYS_execveat, dir, "lx-none", argv, envp, 0)));
	CHILD("execveat empty", T(syscall(SYS_execveat, dir, "", argv, envp, 0)));
	CHILD("execveat bad fd", T(syscall(SYS_execveat, 77, "x", argv, envp, 0)));
	CHILD("execveat flags", T(syscall(SYS_execveat, dir, "lx-s1", argv, envp, 1)));
	CHILD("execveat link", T(syscall(SYS_execveat, dir, "lx-loop", argv, envp, AT_SYMLINK_NOFOLLOW)));
	close(fd);
	close(dir);
	for (int noexec = 0; noexec < 2; noexec++) {
		fd = memfd_create("program", MFD_CLOEXEC | (noexec ? 8 : 0));	/* MFD_NOEXEC_SEAL */
		good_image();
		(void)!write(fd, image, image_size);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		CHILD("memfd", T(syscall(SYS_execveat, fd, "", argv, envp, AT_EMPTY_PATH)));
		CHILD("memfd by name", T(execve(path, argv, envp)));
		close(fd);
	}
	/* the name of the file that a process executes: it may be gone */
	good_image();
	put("/tmp/lx-gone", image, image_size, 0755);
	CHILD("deleted", {
		fd = open("/tmp/lx-gone", O_RDONLY);
		unlink("/tmp/lx-gone");
		T(syscall(SYS_execveat, fd, "", argv, envp, AT_EMPTY_PATH));
	});
	CHILD("script by a closed descriptor", {
		put_text("/tmp/lx-fd", "#!/tmp/lx-l0\n");
		fd = open("/tmp/lx-fd", O_RDONLY | O_CLOEXEC);
		T(syscall(SYS_execveat, fd, "", argv, envp, AT_EMPTY_PATH));
	});
	CHILD("no execute permission in the directory", {
		mkdir("/tmp/lx-dir2", 0700);
		put_text("/tmp/lx-dir2/x", "#!/tmp/lx-l0\n");
		(void)!setuid(1000);
		T(execve("/tmp/lx-dir2/x", argv, envp));
	});
	CHILD("only to be executed", {
		put("/tmp/lx-111", image, image_size, 0111);
		(void)!setuid(1000);
		T(open("/tmp/lx-111", O_RDONLY));
		T(execve("/tmp/lx-111", argv, envp));
	});
}

static void clean_up(void)
{
	DIR *dir = (unlink("/tmp/lx-dir2/x"), opendir("/tmp"));
	struct dirent *entry;
	char path[300];

	while (dir && (entry = readdir(dir)) != NULL) {
		if (strncmp(entry->d_name, "lx-", 3))
			continue;
		snprintf(path, sizeof(path), "/tmp/%s", entry->d_name);
		if (unlink(path))
			rmdir(path);
	}
}

int main(int argc, char **argv)
{
	if (argc > 1)
		return child(argc, argv);
	self = realpath("/proc/self/exe", NULL);
	if (!self)
		self = argv[0];
	arguments();
	errors();
	scripts();
	elves();
	state();
	threads();
	by_fd();
	clean_up();
	return 0;
}
