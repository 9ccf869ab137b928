/* New tasks and processes: fork, vfork, clone, clone3.
 *
 * Everything that can fail is made before the child can be seen by anyone; then, without preemption, it gets its number,
 * its place in the tables and its thread. The child begins in task_main() and leaves for user mode with the registers of
 * its parent's system call, and 0 as the result.
 */
#include "page.h"
#include "printk.h"
#include "proc_internal.h"
#include "string.h"
#include "syscall.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define CSIGNAL			0xff
#define CLONE_VM		0x00000100UL
#define CLONE_FS		0x00000200UL
#define CLONE_FILES		0x00000400UL
#define CLONE_SIGHAND		0x00000800UL
#define CLONE_PIDFD		0x00001000UL
#define CLONE_PTRACE		0x00002000UL
#define CLONE_VFORK		0x00004000UL
#define CLONE_PARENT		0x00008000UL
#define CLONE_THREAD		0x00010000UL
#define CLONE_SYSVSEM		0x00040000UL
#define CLONE_SETTLS		0x00080000UL
#define CLONE_PARENT_SETTID	0x00100000UL
#define CLONE_CHILD_CLEARTID	0x00200000UL
#define CLONE_DETACHED		0x00400000UL
#define CLONE_UNTRACED		0x00800000UL
#define CLONE_CHILD_SETTID	0x01000000UL
#define CLONE_IO		0x80000000UL
#define CLONE_CLEAR_SIGHAND	0x100000000UL
/* Name spaces there is one of each of. */
#define CLONE_NEW		(0x00020000UL | 0x02000000UL | 0x04000000UL | 0x08000000UL | 0x10000000UL | \
				 0x20000000UL | 0x40000000UL | 0x80UL)
#define CLONE3_KNOWN		(0x1ffffff00UL & ~CLONE_DETACHED)

struct clone_args {		/* of clone3(2) */
	u64 flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};
#define CLONE_ARGS_SIZE_MIN	64	/* without set_tid and what follows */
static_assert(sizeof(struct clone_args) == 88, "clone_args");

/* ---- the child ---- */

static void task_main(void *arg)
{
	struct task *t = arg;

	user_state_attach(t);
	if (t->set_tid)
		(void)put_user(t->tid, t->set_tid);
	enter_user(&t->start_regs);
}

static struct sighand *new_sighand(const struct sighand *from, bool clear)
{
	struct sighand *s = kzalloc(sizeof(*s), GFP_KERNEL);

	if (!s)
		return NULL;
	memcpy(s->action, from->action, sizeof(s->action));
	s->refs = 1;
	for (unsigned int i = 0; clear && i < NSIG; i++)
		if (s->action[i].handler != SIG_IGN)
			s->action[i] = (struct k_sigaction){ .handler = SIG_DFL };
	return s;
}

/* Memory, files, paths and handlers: shared or copied. */
static int share_or_copy(struct task *t, const struct task *from, u64 flags)
{
	if (flags & CLONE_VM) {
		mm_get(from->mm);
		t->mm = from->mm;
	} else {
		t->mm = mm_fork(from->mm);
	}
	if (flags & CLONE_FILES) {
		files_get(from->files);
		t->files = from->files;
	} else {
		t->files = files_copy(from->files);
	}
	if (flags & CLONE_FS) {
		fs_get(from->fs);
		t->fs = from->fs;
	} else {
		t->fs = fs_copy(from->fs);
	}
	if (flags & CLONE_SIGHAND) {
		__atomic_fetch_add(&from->sighand->refs, 1, __ATOMIC_RELAXED);
		t->sighand = from->sighand;
	} else {
		t->sighand = new_sighand(from->sighand, flags & CLONE_CLEAR_SIGHAND);
	}
	return t->mm && t->files && t->fs && t->sighand ? 0 : -ENOMEM;
}

static void give_up(struct task *t, struct process *p)
{
	if (t->mm)
		mm_put(t->mm);
	if (t->files)
		files_put(t->files);
	if (t->fs)
		fs_put(t->fs);
	sighand_put(t->sighand);
	task_put(t);
	process_put(p);
}

static void copy_thread_state(struct task *t, const struct task *from, const struct clone_args *args)
{
	t->cred = from->cred;
	t->blocked = from->blocked;
	t->gs_base = from->gs_base;
	t->start_fs_base = args->flags & CLONE_SETTLS ? args->tls : current->fs_base;
	fpu_copy_current(t->fpu);
	if (!(args->flags & CLONE_VM) || args->flags & CLONE_VFORK) {
		t->sas_sp = from->sas_sp;
		t->sas_size = from->sas_size;
		t->sas_flags = from->sas_flags;
	}
	t->start_regs = *task_regs(current_task());
	t->start_regs.rax = 0;
	if (args->stack)
		t->start_regs.rsp = args->stack + args->stack_size;
	if (args->flags & CLONE_CHILD_SETTID)
		t->set_tid = (u32 *)args->child_tid;
	if (args->flags & CLONE_CHILD_CLEARTID)
		t->clear_tid = (u32 *)args->child_tid;
	t->vfork = args->flags & CLONE_VFORK;
}

static struct process *copy_process(struct process *from, const struct clone_args *args)
{
	struct process *p = process_alloc();

	if (!p)
		return NULL;
	memcpy(p->rlim, from->rlim, sizeof(p->rlim));
	memcpy(p->comm, from->comm, sizeof(p->comm));
	p->pgrp = from->pgrp;
	p->session = from->session;
	p->tty = from->tty;
	p->personality = from->personality;
	p->membarrier = args->flags & CLONE_VM ? 0 : from->membarrier;
	p->nice = from->nice;
	p->no_new_privs = from->no_new_privs;
	p->exit_signal = args->flags & CLONE_PARENT ? from->exit_signal : (int)args->exit_signal;
	p->exe = process_get_exe(from);
	return p;
}

/* Threads need kernel stacks that cannot be taken back: at most an eighth of memory, as in Linux. */
static bool too_many(const struct task *from)
{
	u64 flags, limit = from->process->rlim[RLIMIT_NPROC].cur;
	bool over;

	if (count_tasks() >= max(nr_managed_pages() >> (THREAD_STACK_ORDER + 3), 64UL))
		return true;
	if (from->cred.uid == 0 || limit == RLIM_INFINITY)
		return false;
	flags = spin_lock_irqsave(&task_lock);
	over = count_processes_of(from->cred.uid) >= limit;
	spin_unlock_irqrestore(&task_lock, flags);
	return over;
}

/* Number, place in the tables, thread. The child does not run before preemption is on again. */
static int start_task(struct task *t, struct process *p, u64 clone_flags)
{
	struct task *from = current_task();
	struct process *mine = from->process;
	u64 flags;
	int err;

	preempt_disable();
	flags = spin_lock_irqsave(&task_lock);
	err = from->killed ? -ERESTARTNOINTR : link_task(t, p ? p : mine);
	if (!err && p) {
		p->pid = t->tid;
		link_process(p, clone_flags & CLONE_PARENT ? mine->parent : mine);
	}
	spin_unlock_irqrestore(&task_lock, flags);
	if (err)
		goto out;
	t->thread = kthread_create(task_main, t, t->process->comm);
	if (!t->thread) {
		flags = spin_lock_irqsave(&task_lock);
		unlink_unstarted(t);
		if (p) {
			unlink_process(p);
			process_put(p);		/* not the last reference */
		}
		spin_unlock_irqrestore(&task_lock, flags);
		err = -ENOMEM;
	}
out:
	preempt_enable();
	return err;
}

static int check_flags(const struct clone_args *args)
{
	u64 flags = args->flags;

	if (flags & CLONE_NEW)
		return -EINVAL;
	if (flags & CLONE_THREAD && !(flags & CLONE_SIGHAND))
		return -EINVAL;
	if (flags & CLONE_SIGHAND && !(flags & CLONE_VM))
		return -EINVAL;
	if (flags & CLONE_CLEAR_SIGHAND && flags & CLONE_SIGHAND)
		return -EINVAL;
	if (flags & CLONE_PARENT && current_process() == init_process)
		return -EINVAL;
	if (flags & CLONE_PIDFD && flags & (CLONE_THREAD | CLONE_DETACHED))
		return -EINVAL;
	if (flags & CLONE_SETTLS && args->tls >= USER_END)
		return -EPERM;
	return 0;
}

static void wait_for_vfork(struct task *t)
{
	wait_event(&t->vfork_wait, !READ_ONCE(t->vfork) || fatal_signal_pending());
}

static s64 do_clone(const struct clone_args *args)
{
	struct task *from = current_task(), *t;
	struct process *p = NULL;
	struct file *pidfd = NULL;
	int err = check_flags(args), fd = -1;
	pid_t tid;

	if (err)
		return err;
	reap_dead_tasks();
	if (too_many(from))
		return -EAGAIN;
	t = task_alloc();
	if (!t)
		return -ENOMEM;
	copy_thread_state(t, from, args);
	err = -ENOMEM;
	if (!(args->flags & CLONE_THREAD)) {
		p = copy_process(from->process, args);
		if (!p)
			goto fail;
	}
	err = share_or_copy(t, from, args->flags);
	if (err)
		goto fail;
	if (args->flags & CLONE_PIDFD) {
		fd = pidfd_prepare(p, 0, &pidfd);
		err = fd < 0 ? fd : put_user(fd, (int *)args->pidfd);
		if (err)
			goto fail_pidfd;
	}
	__atomic_fetch_add(&t->refs, 1, __ATOMIC_RELAXED);	/* ours, the child may end at any time */
	err = start_task(t, p, args->flags);
	if (err) {
		task_put(t);
		goto fail_pidfd;
	}
	tid = t->tid;
	if (p)
		process_put(p);
	if (pidfd)
		fd_install(fd, pidfd);
	if (args->flags & CLONE_PARENT_SETTID)
		(void)put_user(tid, (pid_t *)args->parent_tid);
	if (args->flags & CLONE_VFORK)
		wait_for_vfork(t);
	task_put(t);
	return tid;

fail_pidfd:
	if (pidfd) {
		put_unused_fd(fd);
		fput(pidfd);
	}
fail:
	give_up(t, p);
	return err;
}

SYSCALL_DEFINE5(clone, 56, u64, flags, u64, stack, u64, parent_tid, u64, child_tid, u64, tls)
{
	const struct clone_args args = {
		.flags = (u32)flags & ~(u64)CSIGNAL, .exit_signal = flags & CSIGNAL, .stack = stack, .pidfd = parent_tid,
		.parent_tid = parent_tid, .child_tid = child_tid, .tls = tls,
	};

	if (args.flags & CLONE_PIDFD && args.flags & CLONE_PARENT_SETTID)
		return -EINVAL;		/* one address for both */
	return do_clone(&args);
}

SYSCALL_DEFINE0(fork, 57)
{
	return do_clone(&(struct clone_args){ .exit_signal = SIGCHLD });
}

SYSCALL_DEFINE0(vfork, 58)
{
	return do_clone(&(struct clone_args){ .flags = CLONE_VFORK | CLONE_VM, .exit_signal = SIGCHLD });
}

SYSCALL_DEFINE2(clone3, 435, const void *, user, u64, size)
{
	struct clone_args args;
	int err;

	if (size > PAGE_SIZE)
		return -E2BIG;
	if (size < CLONE_ARGS_SIZE_MIN)
		return -EINVAL;
	err = copy_struct_from_user(&args, sizeof(args), user, size);
	if (err)
		return err;
	if (args.flags & ~CLONE3_KNOWN || args.flags & CSIGNAL || args.set_tid_size || args.exit_signal > NSIG)
		return -EINVAL;
	if (args.flags & (CLONE_THREAD | CLONE_PARENT) && args.exit_signal)
		return -EINVAL;
	if (!args.stack != !args.stack_size)
		return -EINVAL;
	if (args.stack && !access_ok((void *)args.stack, args.stack_size))
		return -EINVAL;
	return do_clone(&args);
}

/* What a thread shares, for itself alone. Name spaces there is one of each of. */
SYSCALL_DEFINE1(unshare, 272, u64, flags)
{
	struct task *t = current_task();
	u64 irq;

	if (flags & ~(CLONE_FS | CLONE_FILES | CLONE_SYSVSEM | CLONE_THREAD | CLONE_SIGHAND | CLONE_VM))
		return -EINVAL;
	if (flags & (CLONE_THREAD | CLONE_SIGHAND | CLONE_VM) && t->process->nr_tasks > 1)
		return -EINVAL;
	if (flags & CLONE_FS && t->fs->refs > 1) {
		struct fs *fs = fs_copy(t->fs), *old = t->fs;

		if (!fs)
			return -ENOMEM;
		irq = spin_lock_irqsave(&task_lock);
		t->fs = fs;
		spin_unlock_irqrestore(&task_lock, irq);
		fs_put(old);
	}
	if (flags & CLONE_FILES && t->files->refs > 1) {
		struct files *files = files_copy(t->files), *old = t->files;

		if (!files)
			return -ENOMEM;
		irq = spin_lock_irqsave(&task_lock);
		t->files = files;
		spin_unlock_irqrestore(&task_lock, irq);
		files_put(old);
	}
	return 0;
}
