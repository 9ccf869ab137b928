/* execve: another program in the same process.
 *
 * The new memory is made beside the old one, so nearly every error leaves the old program as it was. Where Linux has no
 * way back any more (the file's segments cannot be mapped) the process ends by SIGSEGV, as there.
 *
 * A script ("#! interpreter argument") runs its interpreter with its own name as an argument; that may be a script
 * again, a few times.
 */
#include "exec.h"
#include "bitops.h"
#include "cpu.h"
#include "panic.h"
#include "printk.h"
#include "proc_internal.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define SCRIPT_DEPTH_MAX	5


/* ---- the file ---- */

struct file *open_exec(int dirfd, const char *path, u32 lookup)
{
	struct dentry *d;
	struct file *f;
	int err = path_lookup(dirfd, path, lookup, &d, NULL);

	if (err)
		return ERR_PTR(err);
	if (S_ISLNK(d->inode->mode))
		err = -ELOOP;
	else if (!S_ISREG(d->inode->mode) || !(d->inode->mode & 0111))
		err = -EACCES;
	else
		err = inode_permission(d->inode, 1);
	f = err ? ERR_PTR(err) : dentry_open(d, O_RDONLY);
	dput(d);
	return f;
}

int exec_read(struct file *f, void *buf, u64 size, u64 at)
{
	loff_t pos = (loff_t)at;
	u64 done = 0;

	if (at > (u64)1 << 62)
		return -EINVAL;
	while (done < size) {
		ssize_t n = kernel_read(f, (u8 *)buf + done, size - done, &pos);

		if (n < 0)
			return (int)n;
		if (!n)
			return -EIO;
		done += (u64)n;
	}
	return 0;
}

static int read_head(struct exec *e)
{
	loff_t pos = 0;
	ssize_t n;

	memset(e->head, 0, sizeof(e->head));
	n = kernel_read(e->file, e->head, sizeof(e->head), &pos);
	if (n < 0)
		return (int)n;
	e->head_size = (u64)n;
	return 0;
}

/* ---- scripts ---- */

struct script {
	char interpreter[EXEC_HEAD], argument[EXEC_HEAD];
};

static bool is_blank(char c)
{
	return c == ' ' || c == '\t';
}

/* The first line, without blanks around it: the interpreter, and all the rest as one argument. */
static int parse_script(const struct exec *e, struct script *s)
{
	const char *p = (const char *)e->head + 2, *end = (const char *)e->head + e->head_size, *line_end, *name;
	size_t length;
	bool cut;

	line_end = memchr(p, '\n', (size_t)(end - p));
	cut = !line_end;
	if (cut)
		line_end = end;
	while (p < line_end && is_blank(*p))
		p++;
	for (name = p; p < line_end && *p && !is_blank(*p); p++)
		;
	if (p == name)		/* without a newline Linux opens the empty name, which is a directory */
		return cut && e->head_size < EXEC_HEAD ? -EACCES : -ENOEXEC;
	if (p == end && e->head_size == EXEC_HEAD)
		return -ENOEXEC;		/* the name may go on */
	length = (size_t)(p - name);
	memcpy(s->interpreter, name, length);
	s->interpreter[length] = '\0';
	while (p < line_end && is_blank(*p))
		p++;
	while (line_end > p && is_blank(line_end[-1]))
		line_end--;
	length = strnlen(p, (size_t)(line_end - p));
	memcpy(s->argument, p, length);
	s->argument[length] = '\0';
	return 0;
}

/* Goes from scripts to what interprets them, until the file is none. */
static int resolve_scripts(struct exec *e)
{
	struct script *s = kmalloc(sizeof(*s) * 2, GFP_KERNEL);
	const char *name = e->filename;
	int err = s ? 0 : -ENOMEM;

	for (unsigned int depth = 0; !err; depth++) {
		struct file *f;

		err = read_head(e);
		if (err || e->head_size < 2 || memcmp(e->head, "#!", 2))
			break;
		if (depth == SCRIPT_DEPTH_MAX) {
			err = -ELOOP;
			break;
		}
		err = e->name_closes ? -ENOENT : parse_script(e, &s[depth % 2]);
		if (!err)
			err = exec_wrap_arguments(e, s[depth % 2].interpreter, s[depth % 2].argument, name);
		if (err)
			break;
		name = s[depth % 2].interpreter;
		f = open_exec(AT_FDCWD, name, LOOKUP_FOLLOW);
		if (IS_ERR(f)) {
			err = (int)PTR_ERR(f);
			break;
		}
		fput(e->file);
		e->file = f;
	}
	kfree(s);
	return err;
}

/* ---- the change ---- */

/* Ends all other threads; the one that is left is the first. -EAGAIN: the process is ending itself. */
static int end_other_threads(struct task *t)
{
	struct process *p = t->process;
	u64 flags = spin_lock_irqsave(&task_lock);

	if (p->exiting || p->exec_task || t->killed) {
		spin_unlock_irqrestore(&task_lock, flags);
		return -EAGAIN;
	}
	p->exec_task = t;
	kill_tasks(p, t);
	spin_unlock_irqrestore(&task_lock, flags);
	wait_event(&p->stop_wait, p->nr_tasks == 1);
	flags = spin_lock_irqsave(&task_lock);
	p->exec_task = NULL;
	if (t->tid != p->pid)
		rename_task(t, p->pid);
	spin_unlock_irqrestore(&task_lock, flags);
	reap_dead_tasks();
	return 0;
}

static int own_files_and_handlers(struct task *t)
{
	if (t->sighand->refs > 1) {
		struct sighand *s = kzalloc(sizeof(*s), GFP_KERNEL), *old = t->sighand;
		u64 flags;

		if (!s)
			return -ENOMEM;
		memcpy(s->action, old->action, sizeof(s->action));
		s->refs = 1;
		flags = spin_lock_irqsave(&task_lock);
		t->sighand = s;
		spin_unlock_irqrestore(&task_lock, flags);
		sighand_put(old);
	}
	if (t->files->refs > 1) {
		struct files *files = files_copy(t->files), *old = t->files;
		u64 flags;

		if (!files)
			return -ENOMEM;
		flags = spin_lock_irqsave(&task_lock);
		t->files = files;
		spin_unlock_irqrestore(&task_lock, flags);
		files_put(old);
	}
	return 0;
}

static void reset_signals(struct task *t)
{
	u64 flags = spin_lock_irqsave(&task_lock);

	for (unsigned int i = 0; i < NSIG; i++) {
		u64 handler = t->sighand->action[i].handler == SIG_IGN ? SIG_IGN : SIG_DFL;

		t->sighand->action[i] = (struct k_sigaction){ .handler = handler };
	}
	t->sas_sp = t->sas_size = 0;
	t->sas_flags = 2;		/* SS_DISABLE */
	spin_unlock_irqrestore(&task_lock, flags);
}

static void take_memory(struct task *t, struct mm *mm)
{
	struct mm *old = t->mm;
	u64 flags;

	if (old) {
		exit_robust_list(t);
		clear_child_tid(t);
	}
	flags = spin_lock_irqsave(&task_lock);
	t->mm = mm;
	mm_switch(mm);
	spin_unlock_irqrestore(&task_lock, flags);
	t->clear_tid = NULL;
	t->robust_list = NULL;
	wake_vfork_parent(t);
	if (old)
		mm_put(old);
}

static void set_names(struct exec *e, struct process *p)
{
	const char *slash = strrchr(e->filename, '/');
	struct dentry *exe = e->file->dentry, *old;
	u64 flags;

	if (exe)
		dget(exe);
	flags = spin_lock_irqsave(&task_lock);
	strscpy(p->comm, slash ? slash + 1 : e->filename, sizeof(p->comm));
	strscpy(current->name, p->comm, sizeof(current->name));
	old = p->exe;
	p->exe = exe;
	spin_unlock_irqrestore(&task_lock, flags);
	if (old)
		dput(old);
}

static void become(struct exec *e, struct pt_regs *regs, u64 sp)
{
	struct task *t = current_task();

	take_memory(t, e->mm);
	e->mm = NULL;
	delete_posix_timers(t->process);
	files_close_on_exec(t->files);
	reset_signals(t);
	set_names(e, t->process);
	t->process->execed = true;
	t->process->exit_signal = SIGCHLD;
	t->process->personality = t->process->membarrier = 0;
	t->restart = NULL;
	fpu_reset(t);
	set_fs_base(0);
	set_gs_base(0);
	*regs = (struct pt_regs){ .rip = e->entry, .rsp = sp, .cs = USER_CS, .ss = USER_DS, .rflags = RFLAGS_IF | 2 };
}

static int load_program(struct exec *e, struct pt_regs *regs)
{
	struct task *t = current_task();
	int err = resolve_scripts(e);
	s64 sp;

	if (err)
		return err;
	err = load_elf(e);
	if (err)
		return err;
	sp = exec_make_stack(e);
	if (sp < 0)
		return (int)sp;
	err = end_other_threads(t);
	if (!err)
		err = own_files_and_handlers(t);
	if (err)
		return err;
	become(e, regs, (u64)sp);
	return 0;
}

int do_exec(struct exec *e, int dirfd, const char *path, u32 lookup, const struct string_source *argv,
	    const struct string_source *envp, struct pt_regs *regs)
{
	int err;

	e->file = open_exec(dirfd, path, lookup);
	if (IS_ERR(e->file))
		return (int)PTR_ERR(e->file);
	err = exec_take_arguments(e, argv, envp);
	if (!err)
		err = load_program(e, regs);
	if (err && e->no_return && current_task()->mm) {
		current_task()->sighand->action[SIGSEGV - 1].handler = SIG_DFL;
		force_signal(SIGSEGV, SI_KERNEL, 0);
	}
	if (e->mm)
		mm_put(e->mm);
	exec_free_strings(&e->strings);
	fput(e->file);
	return err;
}

/* ---- system calls ---- */

struct user_exec {
	struct exec e;
	char path[PATH_MAX], name[PATH_MAX];
};

/* What the program is called: relative to a directory that only a descriptor names, by that. */
static void set_filename(struct user_exec *u, int dirfd)
{
	struct files *files = current_task()->files;

	u->e.filename = u->path;
	if (dirfd == AT_FDCWD || u->path[0] == '/')
		return;
	u->e.filename = u->name;
	snprintf(u->name, sizeof(u->name), u->path[0] ? "/dev/fd/%d/%s" : "/dev/fd/%d", dirfd, u->path);
	mutex_lock(&files->lock);
	u->e.name_closes = dirfd >= 0 && (u32)dirfd < files->size && test_bit((u32)dirfd, files->close_on_exec);
	mutex_unlock(&files->lock);
}

static s64 exec_by_user(int dirfd, const char *user_path, const char *const *argv, const char *const *envp, u32 flags)
{
	struct user_exec *u = kzalloc(sizeof(*u), GFP_KERNEL);
	ssize_t length;
	s64 err;

	if (!u)
		return -ENOMEM;
	length = strncpy_from_user(u->path, user_path, PATH_MAX);
	err = length < 0 ? length : length == PATH_MAX ? -ENAMETOOLONG : !length && !(flags & AT_EMPTY_PATH) ? -ENOENT : 0;
	if (!err) {
		set_filename(u, dirfd);
		err = do_exec(&u->e, dirfd, u->path, (flags & AT_SYMLINK_NOFOLLOW ? 0 : LOOKUP_FOLLOW) |
			      (flags & AT_EMPTY_PATH), &(struct string_source){ .list = argv },
			      &(struct string_source){ .list = envp }, task_regs(current_task()));
	}
	kfree(u);
	return err;
}

SYSCALL_DEFINE3(execve, 59, const char *, path, const char *const *, argv, const char *const *, envp)
{
	return exec_by_user(AT_FDCWD, path, argv, envp, 0);
}

SYSCALL_DEFINE5(execveat, 322, int, dirfd, const char *, path, const char *const *, argv, const char *const *, envp,
		u32, flags)
{
	if (flags & ~(u32)(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW))
		return -EINVAL;
	return exec_by_user(dirfd, path, argv, envp, flags);
}
