/* The first program: a kernel thread becomes process 1, with a console, and executes it. */
#include "exec.h"
#include "init.h"
#include "panic.h"
#include "printk.h"
#include "proc_internal.h"
#include "string.h"
#include "vfs.h"

#define ARGS_MAX	32

static void set_first_limits(struct rlimit *limit)
{
	for (unsigned int i = 0; i < RLIM_NLIMITS; i++)
		limit[i] = (struct rlimit){ RLIM_INFINITY, RLIM_INFINITY };
	limit[RLIMIT_STACK].cur = 8 * MIB;
	limit[RLIMIT_CORE].cur = 0;
	limit[RLIMIT_NOFILE] = (struct rlimit){ 1024, 4096 };
	limit[RLIMIT_MEMLOCK] = (struct rlimit){ 8 * MIB, 8 * MIB };
	limit[RLIMIT_SIGPENDING] = (struct rlimit){ 1024, 1024 };
	limit[RLIMIT_MSGQUEUE] = (struct rlimit){ 819200, 819200 };
	limit[RLIMIT_NICE] = limit[RLIMIT_RTPRIO] = (struct rlimit){ 0, 0 };
}

static void open_console(void)
{
	struct file *console = file_open("/dev/console", O_RDWR, 0);

	if (IS_ERR(console)) {
		pr_warn("Warning: unable to open an initial console.\n");
		return;
	}
	for (int i = 0; i < 3; i++) {
		int fd = get_unused_fd(0);

		if (fd < 0)
			break;
		file_get(console);
		fd_install(fd, console);
	}
	fput(console);
}

/* A task for this thread, which was a kernel thread so far. */
static int become_process(void)
{
	struct process *p = process_alloc();
	struct task *t = task_alloc();
	u64 flags;
	int err = -ENOMEM;

	if (!p || !t)
		goto fail;
	set_first_limits(p->rlim);
	p->exit_signal = SIGCHLD;
	strscpy(p->comm, "init", sizeof(p->comm));
	t->files = files_new();
	t->fs = fs_new();
	t->sighand = kzalloc(sizeof(*t->sighand), GFP_KERNEL);
	if (!t->files || !t->fs || !t->sighand)
		goto fail;
	t->sighand->refs = 1;
	flags = spin_lock_irqsave(&task_lock);
	err = link_task(t, p);
	if (!err) {
		p->pid = t->tid;
		link_process(p, NULL);
		init_process = p;
	}
	spin_unlock_irqrestore(&task_lock, flags);
	if (err)
		goto fail;
	process_put(p);
	user_state_attach(t);
	open_console();
	return 0;
fail:
	if (t && t->files)
		files_put(t->files);
	if (t && t->fs)
		fs_put(t->fs);
	if (t)
		sighand_put(t->sighand);
	task_put(t);
	process_put(p);
	return err;
}

int run_init_process(const char *path, const char *const argv[], const char *const envp[])
{
	static struct pt_regs regs;
	static struct exec e;
	int err = current_task() ? 0 : become_process();

	e = (struct exec){ .filename = path };
	if (!err)
		err = do_exec(&e, AT_FDCWD, path, LOOKUP_FOLLOW, &(struct string_source){ argv, true },
			      &(struct string_source){ envp, true }, &regs);
	if (err)
		return err;
	enter_user(&regs);
}

static bool exists(const char *path)
{
	struct dentry *d;

	if (path_lookup(AT_FDCWD, path, LOOKUP_FOLLOW, &d, NULL))
		return false;
	dput(d);
	return true;
}

/* What stands behind "--" on the command line are its arguments. */
static void add_arguments(const char *argv[ARGS_MAX + 1])
{
	static char line[COMMAND_LINE_SIZE];
	char *at = strstr(boot_command_line, " -- ");
	unsigned int n = 1;

	if (!at)
		return;
	strscpy(line, at + 4, sizeof(line));
	for (at = line; *at && n < ARGS_MAX; at++) {
		if (*at == ' ')
			continue;
		argv[n++] = at;
		at = strchr(at, ' ');
		if (!at)
			break;
		*at = '\0';
	}
}

static int run(const char *path)
{
	const char *argv[ARGS_MAX + 1] = { path }, *const envp[] = { "HOME=/", "TERM=linux", NULL };

	add_arguments(argv);
	pr_info("Run %s as init process\n", path);
	set_phase("userspace");
	return run_init_process(path, argv, envp);
}

/* As Linux looks for it with an initramfs: rdinit= (or /init), then init=, then the usual places. */
void run_first_program(void)
{
	static const char *const usual[] = { "/sbin/init", "/etc/init", "/bin/init", "/bin/sh" };
	static char path[PATH_MAX] = "/init";
	int err;

	if (!rootfs)
		return;
	if (cmdline_find("rdinit", path, sizeof(path)) || exists(path)) {
		err = run(path);
		pr_err("Failed to execute %s (error %d)\n", path, err);
	}
	if (cmdline_find("init", path, sizeof(path))) {
		err = run(path);
		panic("Requested init %s failed (error %d).", path, err);
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(usual); i++) {
		if (!exists(usual[i]))
			continue;
		err = run(usual[i]);
		pr_err("Starting init: %s exists but couldn't execute it (error %d)\n", usual[i], err);
	}
	if (current_task())
		panic("No working init found.  Try passing init= option to kernel.");
}
