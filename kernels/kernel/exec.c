/* execve: another program in the same process.
 *
 * The new memory is made beside the old one, so nearly every error leaves the old program as it was. Where Linux has no
 * way back any more (the file's segments cannot be mapped) the process ends by SIGSEGV, as there.
 *
 * A script ("#! interpreter argument") runs its interpreter with its own name as an argument; that may be a script
 * again, a few times.
 *
 * The stack of the new program, from the top:
 *
 *	8 bytes of zero
 *	strings: arguments, environment, file name
 *	16 bytes for AT_RANDOM, "x86_64"
 *	auxiliary vector, environment pointers, argument pointers, their number	<- %rsp, a multiple of 16
 */
#include "exec.h"
#include "init.h"
#include "cpu.h"
#include "panic.h"
#include "printk.h"
#include "proc_internal.h"
#include "random.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define STRING_MAX		131072UL	/* of one string, with its NUL */
#define STRINGS_MAX		(6UL << 20)
#define STRINGS_MIN		131072UL	/* always possible, whatever RLIMIT_STACK says */
#define SCRIPT_DEPTH_MAX	5
#define STACK_ROOM		131072UL	/* that the stack has at first; it grows */

#define AT_PAGESZ	6
#define AT_UID		11
#define AT_EUID		12
#define AT_GID		13
#define AT_EGID		14
#define AT_PLATFORM	15
#define AT_HWCAP	16
#define AT_CLKTCK	17
#define AT_SECURE	23
#define AT_RANDOM	25
#define AT_HWCAP2	26
#define AT_EXECFN	31
#define AT_MINSIGSTKSZ	51
#define SIGNAL_STACK_MIN	2048		/* what a signal frame may need */

/* ---- strings ---- */

/* Where arguments come from: a program's memory, or the kernel's for the first program. */
struct string_source {
	const char *const *list;
	bool kernel;
};

static int source_get(const struct string_source *from, u64 i, const char **out)
{
	if (!from->list)
		*out = NULL;
	else if (from->kernel)
		*out = from->list[i];
	else
		return get_user(*out, &from->list[i]);
	return 0;
}

static s64 source_count(const struct string_source *from)
{
	const char *s;

	for (u32 n = 0; n < 0x7fffffff; n++) {
		if (source_get(from, n, &s))
			return -EFAULT;
		if (!s)
			return n;
		if (n % 64 == 0 && fatal_signal_pending())
			return -EINTR;
	}
	return -E2BIG;
}

static int strings_page(struct exec_strings *s, u64 at, char **out)
{
	u64 n = at >> PAGE_SHIFT;

	if (n >= s->nr_pages_max)
		return -E2BIG;
	if (!s->page[n])
		s->page[n] = get_free_pages(GFP_KERNEL, 0);
	if (!s->page[n])
		return -ENOMEM;
	*out = s->page[n] + (at & ~PAGE_MASK);
	return 0;
}

static int add_bytes(struct exec_strings *s, const char *from, u64 size)
{
	while (size) {
		u64 n = min(size, PAGE_SIZE - (s->size & ~PAGE_MASK));
		char *to;
		int err = s->size + n > s->limit ? -E2BIG : strings_page(s, s->size, &to);

		if (err)
			return err;
		memcpy(to, from, n);
		s->size += n;
		from += n;
		size -= n;
	}
	return 0;
}

static int add_user_string(struct exec_strings *s, const char *user)
{
	u64 length = 0;

	while (1) {
		u64 room = PAGE_SIZE - (s->size & ~PAGE_MASK);
		ssize_t n;
		char *to;
		int err = s->size >= s->limit ? -E2BIG : strings_page(s, s->size, &to);

		if (err)
			return err;
		n = strncpy_from_user(to, user + length, room);
		if (n < 0)
			return (int)n;
		length += (u64)n;
		s->size += (u64)n;
		if (length >= STRING_MAX || s->size >= s->limit)
			return -E2BIG;
		if ((u64)n < room) {
			s->size++;		/* the NUL */
			return 0;
		}
	}
}

static int add_strings(struct exec_strings *s, const struct string_source *from, u64 count)
{
	const char *string;
	int err = 0;

	for (u64 i = 0; i < count && !err; i++) {
		err = source_get(from, i, &string) ? -EFAULT : 0;
		if (!err && !string)
			return -EFAULT;		/* it was there when we counted */
		if (!err)
			err = from->kernel ? add_bytes(s, string, strlen(string) + 1) : add_user_string(s, string);
		if (!err && fatal_signal_pending())
			err = -EINTR;
	}
	return err;
}

static int init_strings(struct exec_strings *s, s64 argc, s64 envc)
{
	u64 stack = current_process()->rlim[RLIMIT_STACK].cur;
	u64 limit = max(min(stack / 4, STRINGS_MAX), STRINGS_MIN), pointers;

	if (argc < 0 || envc < 0)
		return (int)(argc < 0 ? argc : envc);
	pointers = ((u64)max(argc, (s64)1) + (u64)envc) * sizeof(u64);
	if (limit <= pointers)
		return -E2BIG;
	s->limit = limit - pointers;
	s->nr_pages_max = PFN_UP(s->limit);
	s->page = kzalloc(s->nr_pages_max * sizeof(char *), GFP_KERNEL);
	return s->page ? 0 : -ENOMEM;
}

static void free_strings(struct exec_strings *s)
{
	for (u64 i = 0; s->page && i < s->nr_pages_max; i++)
		if (s->page[i])
			free_page(s->page[i]);
	kfree(s->page);
}

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

/* A script's argument strings are: interpreter, argument, name of the script, arguments without the first. */
static int wrap_arguments(struct exec *e, const struct script *s, const char *name)
{
	struct exec_strings *old = &e->strings, new = {
		.limit = old->limit, .nr_pages_max = old->nr_pages_max, .argc = old->argc + 1, .envc = old->envc,
	};
	u64 at = 0;
	int err = 0;

	new.page = kzalloc(new.nr_pages_max * sizeof(char *), GFP_KERNEL);
	if (!new.page)
		return -ENOMEM;
	err = add_bytes(&new, s->interpreter, strlen(s->interpreter) + 1);
	if (!err && s->argument[0]) {
		err = add_bytes(&new, s->argument, strlen(s->argument) + 1);
		new.argc++;
	}
	if (!err)
		err = add_bytes(&new, name, strlen(name) + 1);
	while (old->page[at >> PAGE_SHIFT][at & ~PAGE_MASK])	/* behind the first, which the name replaces */
		at++;
	at++;
	new.args_end = new.size + old->args_end - at;
	while (!err && at < old->size) {
		u64 n = min(old->size - at, PAGE_SIZE - (at & ~PAGE_MASK));

		err = add_bytes(&new, old->page[at >> PAGE_SHIFT] + (at & ~PAGE_MASK), n);
		at += n;
	}
	if (err) {
		free_strings(&new);
		return err;
	}
	free_strings(old);
	*old = new;
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
		err = parse_script(e, &s[depth % 2]);
		if (!err)
			err = wrap_arguments(e, &s[depth % 2], name);
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

/* ---- the stack ---- */

void exec_aux(struct exec *e, u64 type, u64 value)
{
	BUG_ON(e->nr_auxv == AUXV_MAX);
	e->auxv[e->nr_auxv].type = type;
	e->auxv[e->nr_auxv++].value = value;
}

/* Writes upwards into the new program's memory, through one page of buffer. */
struct stack_writer {
	struct mm *mm;
	u64 at;
	u64 *words;
	u32 used;
	int err;
};

static void flush_words(struct stack_writer *w)
{
	u64 size = w->used * sizeof(u64);

	if (!w->err && size && mm_access(w->mm, w->at, w->words, size, true) != size)
		w->err = -EFAULT;
	w->at += size;
	w->used = 0;
}

static void push_word(struct stack_writer *w, u64 word)
{
	if (w->used == PAGE_SIZE / sizeof(u64))
		flush_words(w);
	w->words[w->used++] = word;
}

/* Pointers to count strings that lie one behind the other from `at` in the strings, which are at `base` in memory. */
static u64 push_pointers(struct stack_writer *w, const struct exec_strings *s, u64 base, u64 at, u32 count)
{
	while (count--) {
		push_word(w, base + at);
		while (s->page[at >> PAGE_SHIFT][at & ~PAGE_MASK])
			at++;
		at++;
	}
	push_word(w, 0);
	return at;
}

static int copy_strings_out(struct mm *mm, const struct exec_strings *s, u64 base)
{
	for (u64 at = 0; at < s->size; at += PAGE_SIZE) {
		u64 n = min(s->size - at, PAGE_SIZE);

		if (mm_access(mm, base + at, s->page[at >> PAGE_SHIFT], n, true) != n)
			return -EFAULT;
	}
	return 0;
}

static void add_identity(struct exec *e, u64 random, u64 platform, u64 execfn)
{
	const struct cred *c = &current_task()->cred;
	u32 id[4];

	cpuid(1, 0, id);
	exec_aux(e, AT_HWCAP, id[3]);
	exec_aux(e, AT_HWCAP2, 0);
	exec_aux(e, AT_MINSIGSTKSZ, SIGNAL_STACK_MIN);
	exec_aux(e, AT_PAGESZ, PAGE_SIZE);
	exec_aux(e, AT_CLKTCK, 100);
	exec_aux(e, AT_UID, c->uid);
	exec_aux(e, AT_EUID, c->euid);
	exec_aux(e, AT_GID, c->gid);
	exec_aux(e, AT_EGID, c->egid);
	exec_aux(e, AT_SECURE, 0);
	exec_aux(e, AT_RANDOM, random);
	exec_aux(e, AT_EXECFN, execfn);
	exec_aux(e, AT_PLATFORM, platform);
}

struct stack_extra {
	u8 random[16];
	char platform[8];
};

/* Fills the stack and returns where %rsp begins. */
static s64 make_stack(struct exec *e)
{
	struct exec_strings *s = &e->strings;
	u64 name_size = strlen(e->filename) + 1, top = USER_END - 8;
	u64 execfn = top - name_size, base = execfn - s->size;
	u64 extra_at = ALIGN_DOWN(base - sizeof(struct stack_extra), 16), sp, size;
	struct stack_writer w = { .mm = e->mm };
	struct stack_extra extra = { .platform = "x86_64" };
	s64 at;
	u64 env;
	int err;

	add_identity(e, extra_at, extra_at + offsetof(struct stack_extra, platform), execfn);
	sp = extra_at - (1 + s->argc + 1 + s->envc + 1 + 2 * (u64)(e->nr_auxv + 1)) * sizeof(u64);
	sp = ALIGN_DOWN(sp, 16);
	size = PAGE_ALIGN(USER_END - sp) + STACK_ROOM;
	at = mm_map(e->mm, USER_END - size, size, PROT_READ | PROT_WRITE | (e->executable_stack ? PROT_EXEC : 0),
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, NULL, 0);
	if (at < 0)
		return at;
	get_random_bytes(extra.random, sizeof(extra.random));
	err = copy_strings_out(e->mm, s, base);
	if (!err && (mm_access(e->mm, execfn, (void *)e->filename, name_size, true) != name_size ||
		     mm_access(e->mm, extra_at, &extra, sizeof(extra), true) != sizeof(extra)))
		err = -EFAULT;
	if (err)
		return err;

	w.at = sp;
	w.words = get_free_pages(GFP_KERNEL, 0);
	if (!w.words)
		return -ENOMEM;
	push_word(&w, s->argc);
	env = push_pointers(&w, s, base, 0, s->argc);
	push_pointers(&w, s, base, env, s->envc);
	for (u32 i = 0; i < e->nr_auxv; i++) {
		push_word(&w, e->auxv[i].type);
		push_word(&w, e->auxv[i].value);
	}
	push_word(&w, 0);
	push_word(&w, 0);
	flush_words(&w);
	free_page(w.words);
	e->mm->stack_top = USER_END;
	e->mm->arg_start = base;
	e->mm->arg_end = e->mm->env_start = base + s->args_end;
	e->mm->env_end = base + s->size;
	return w.err ? w.err : (s64)sp;
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
	struct dentry *old = p->exe;

	strscpy(p->comm, slash ? slash + 1 : e->filename, sizeof(p->comm));
	strscpy(current->name, p->comm, sizeof(current->name));
	p->exe = e->file->dentry;
	if (p->exe)
		dget(p->exe);
	if (old)
		dput(old);
}

static void become(struct exec *e, struct pt_regs *regs, u64 sp)
{
	struct task *t = current_task();

	take_memory(t, e->mm);
	e->mm = NULL;
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

/* The arguments of the program: into the kernel, with an empty name if there is none. */
static int take_arguments(struct exec *e, const struct string_source *argv, const struct string_source *envp)
{
	struct exec_strings *s = &e->strings;
	s64 argc = source_count(argv), envc = source_count(envp);
	int err = init_strings(s, argc, envc);

	if (err)
		return err;
	s->argc = max((u32)argc, 1U);
	s->envc = (u32)envc;
	err = argc ? add_strings(s, argv, (u64)argc) : add_bytes(s, "", 1);
	if (err)
		return err;
	s->args_end = s->size;
	return add_strings(s, envp, (u64)envc);
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
	sp = make_stack(e);
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

static int do_exec(int dirfd, const char *path, u32 lookup, const char *filename, const struct string_source *argv,
		   const struct string_source *envp, struct pt_regs *regs)
{
	struct exec *e = kzalloc(sizeof(*e), GFP_KERNEL);
	int err;

	if (!e)
		return -ENOMEM;
	e->filename = filename;
	e->file = open_exec(dirfd, path, lookup);
	if (IS_ERR(e->file)) {
		err = (int)PTR_ERR(e->file);
		kfree(e);
		return err;
	}
	err = take_arguments(e, argv, envp);
	if (!err)
		err = load_program(e, regs);
	if (err && e->no_return && current_task()->mm) {
		current_task()->sighand->action[SIGSEGV - 1].handler = SIG_DFL;
		force_signal(SIGSEGV, SI_KERNEL, 0);
	}
	if (e->mm)
		mm_put(e->mm);
	free_strings(&e->strings);
	fput(e->file);
	kfree(e);
	return err;
}

/* ---- system calls ---- */

static s64 exec_by_user(int dirfd, const char *user_path, const char *const *argv, const char *const *envp, u32 flags)
{
	char *path = kmalloc(2 * PATH_MAX, GFP_KERNEL), *name;
	ssize_t length;
	s64 err;

	if (!path)
		return -ENOMEM;
	length = strncpy_from_user(path, user_path, PATH_MAX);
	err = length < 0 ? length : length == PATH_MAX ? -ENAMETOOLONG : !length && !(flags & AT_EMPTY_PATH) ? -ENOENT : 0;
	if (err)
		goto out;
	name = path;
	if (dirfd != AT_FDCWD && path[0] != '/') {
		name = path + PATH_MAX;
		if (length)
			snprintf(name, PATH_MAX, "/dev/fd/%d/%s", dirfd, path);
		else
			snprintf(name, PATH_MAX, "/dev/fd/%d", dirfd);
	}
	err = do_exec(dirfd, path, (flags & AT_SYMLINK_NOFOLLOW ? 0 : LOOKUP_FOLLOW) |
		      (flags & AT_EMPTY_PATH ? AT_EMPTY_PATH : 0), name,
		      &(struct string_source){ .list = argv }, &(struct string_source){ .list = envp },
		      task_regs(current_task()));
out:
	kfree(path);
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

/* ---- the first program ---- */

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
	int err = current_task() ? 0 : become_process();

	if (!err)
		err = do_exec(AT_FDCWD, path, LOOKUP_FOLLOW, path, &(struct string_source){ argv, true },
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

static int run(const char *path)
{
	const char *const argv[] = { path, NULL }, *const envp[] = { "HOME=/", "TERM=linux", NULL };

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
