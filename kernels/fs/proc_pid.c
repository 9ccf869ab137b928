/* /proc/PID: names are made when they are looked up, and go with their last user.
 *
 * A process's directory holds a reference to the process, as each file in it does; what the process has lost by ending
 * (memory, files) reads as empty.
 */
#include "vfs.h"
#include "panic.h"
#include "printk.h"
#include "proc.h"
#include "string.h"
#include "task.h"
#include "tty.h"
#include "vma.h"

static struct dentry *new_name(struct dentry *dir, const char *name, u32 len, u32 mode)
{
	struct inode *inode = inode_new(dir->super, mode);
	struct dentry *d = inode ? d_alloc(dir, name, len) : NULL;

	if (!d) {
		iput(inode);
		return ERR_PTR(-ENOMEM);
	}
	d->inode = inode;
	return d;
}

static struct process *process_of(const struct inode *inode) { return inode->private; }
static void put_process(struct inode *inode) { process_put(process_of(inode)); }

/* ---- contents ---- */

static void show_memory_text(struct seq *s, struct process *p, bool args)
{
	struct mm *mm = process_get_mm(p);
	u64 start, end;
	char buf[256];

	if (!mm)
		return;
	start = args ? mm->arg_start : mm->env_start;
	end = args ? mm->arg_end : mm->env_end;
	while (start < end) {
		u64 n = mm_access(mm, start, buf, min(end - start, sizeof(buf)), false);

		if (!n)
			break;
		seq_write(s, buf, n);
		start += n;
	}
	mm_put(mm);
}

static int show_cmdline(struct seq *s, void *p)
{
	show_memory_text(s, p, true);
	return 0;
}

static int show_environ(struct seq *s, void *p)
{
	show_memory_text(s, p, false);
	return 0;
}

static int show_comm(struct seq *s, void *p)
{
	seq_printf(s, "%s\n", ((struct process *)p)->comm);
	return 0;
}

static u64 virtual_pages(struct mm *mm)
{
	struct vma *v;
	u64 pages = 0;

	mutex_lock(&mm->lock);
	list_for_each_entry(v, &mm->areas, list)
		pages += PFN_DOWN(v->end - v->start);
	mutex_unlock(&mm->lock);
	return pages;
}

static int show_stat(struct seq *s, void *arg)
{
	struct process *p = arg;
	struct mm *mm = process_get_mm(p);

	seq_printf(s, "%d (%s) %c %d %d %d %u %d 0 0 0 0 0 %lu %lu %lu %lu 20 0 %u 0 %lu %lu %lu", p->pid, p->comm,
		   process_state(p), process_parent_pid(p), p->pgrp, p->session, tty_number(p), tty_foreground(p),
		   p->user_ticks, p->system_ticks,
		   p->child_user_ticks, p->child_system_ticks, p->nr_tasks, p->start_time / 10000000,
		   mm ? virtual_pages(mm) << PAGE_SHIFT : 0UL, mm ? mm->nr_pages : 0UL);
	for (int i = 25; i <= 52; i++)
		seq_printf(s, " %d", i == 38 ? p->exit_signal : 0);
	seq_printf(s, "\n");
	if (mm)
		mm_put(mm);
	return 0;
}

static int show_statm(struct seq *s, void *arg)
{
	struct mm *mm = process_get_mm(arg);

	seq_printf(s, "%lu %lu 0 0 0 0 0\n", mm ? virtual_pages(mm) : 0UL, mm ? mm->nr_pages : 0UL);
	if (mm)
		mm_put(mm);
	return 0;
}

static int show_status(struct seq *s, void *arg)
{
	static const char *const states[] = { "R (running)", "S (sleeping)", "T (stopped)", "Z (zombie)" };
	struct process *p = arg;
	struct mm *mm = process_get_mm(p);
	char state = process_state(p);
	struct cred c = { 0 };

	process_get_cred(p, &c);
	seq_printf(s, "Name:\t%s\nUmask:\t0022\nState:\t%s\nTgid:\t%d\nPid:\t%d\nPPid:\t%d\nTracerPid:\t0\n", p->comm,
		   states[state == 'R' ? 0 : state == 'T' ? 2 : state == 'Z' ? 3 : 1], p->pid, p->pid, process_parent_pid(p));
	seq_printf(s, "Uid:\t%u\t%u\t%u\t%u\nGid:\t%u\t%u\t%u\t%u\n", c.uid, c.euid, c.suid, c.fsuid, c.gid, c.egid, c.sgid,
		   c.fsgid);
	if (mm) {
		seq_printf(s, "VmSize:\t%8lu kB\nVmRSS:\t%8lu kB\n", virtual_pages(mm) * 4, mm->nr_pages * 4);
		mm_put(mm);
	}
	seq_printf(s, "Threads:\t%u\nSigPnd:\t%016lx\n", p->nr_tasks, p->shared_pending.set);
	return 0;
}

static int show_maps(struct seq *s, void *arg)
{
	struct mm *mm = process_get_mm(arg);
	char *path = kmalloc(PATH_MAX, GFP_KERNEL);
	struct vma *v;

	if (mm && path) {
		mutex_lock(&mm->lock);
		list_for_each_entry(v, &mm->areas, list) {
			struct inode *inode = v->file ? v->file->inode : NULL;

			seq_printf(s, "%08lx-%08lx %c%c%c%c %08lx 00:%02x %lu", v->start, v->end,
				   v->flags & VM_READ ? 'r' : '-', v->flags & VM_WRITE ? 'w' : '-',
				   v->flags & VM_EXEC ? 'x' : '-', v->flags & VM_SHARED ? 's' : 'p', PFN_PHYS(v->pgoff),
				   inode ? inode->super->dev : 0, inode ? inode->ino : 0UL);
			if (inode && dentry_path(v->file->dentry, path, PATH_MAX) > 0)
				seq_printf(s, "  %s", path);
			else if (v->flags & VM_GROWSDOWN)
				seq_printf(s, "  [stack]");
			else if (v->start >= mm->start_brk && v->end <= PAGE_ALIGN(mm->brk))
				seq_printf(s, "  [heap]");
			seq_printf(s, "\n");
		}
		mutex_unlock(&mm->lock);
	}
	kfree(path);
	if (mm)
		mm_put(mm);
	return 0;
}

static int show_mounts(struct seq *s, void *unused)
{
	struct super *all[] = { rootfs, devtmpfs, procfs, sysfs, debugfs };
	char *path = kmalloc(PATH_MAX, GFP_KERNEL);

	(void)unused;
	for (u32 i = 0; path && i < ARRAY_SIZE(all); i++) {
		if (!all[i] || (i && !all[i]->root->covers))
			continue;
		if (dentry_path(i ? all[i]->root->covers : all[i]->root, path, PATH_MAX) > 0)
			seq_printf(s, "%s %s %s rw,relatime 0 0\n", all[i]->type, path, all[i]->type);
	}
	kfree(path);
	return 0;
}

static int show_limits(struct seq *s, void *arg)
{
	struct process *p = arg;

	seq_printf(s, "%-25s %-20s %-20s %s\n", "Limit", "Soft Limit", "Hard Limit", "Units");
	seq_printf(s, "%-25s %-20lu %-20lu %s\n", "Max open files", p->rlim[RLIMIT_NOFILE].cur,
		   p->rlim[RLIMIT_NOFILE].max, "files");
	return 0;
}

static const struct {
	const char *name;
	u32 mode;
	int (*show)(struct seq *s, void *p);
} pid_files[] = {
	{ "cmdline", 0444, show_cmdline }, { "comm", 0444, show_comm },	  { "environ", 0400, show_environ },
	{ "limits", 0444, show_limits },   { "maps", 0444, show_maps },	  { "mounts", 0444, show_mounts },
	{ "stat", 0444, show_stat },	   { "statm", 0444, show_statm }, { "status", 0444, show_status },
};

static void evict_pid_file(struct inode *inode)
{
	process_put(seq_private(inode));
	kfree(inode->private);
}
static const struct inode_ops pid_file_ops = { .evict = evict_pid_file };

/* ---- links: exe, cwd, root, and those of open files ---- */

struct link {
	struct process *process;
	int fd;				/* or one of these */
};
enum { LINK_EXE = -1, LINK_CWD = -2, LINK_ROOT = -3 };

static void evict_link(struct inode *inode)
{
	struct link *l = inode->private;

	process_put(l->process);
	kfree(l);
}

static struct file *link_file(const struct link *l)
{
	struct files *files = process_get_files(l->process);
	struct file *f = NULL;

	if (!files)
		return NULL;
	mutex_lock(&files->lock);
	if ((u32)l->fd < files->size && files->fd[l->fd]) {
		f = files->fd[l->fd];
		file_get(f);
	}
	mutex_unlock(&files->lock);
	files_put(files);
	return f;
}

static struct dentry *follow_link(struct inode *inode)
{
	struct link *l = inode->private;
	struct dentry *d = NULL;
	struct file *f;
	struct fs *fs;

	if (l->fd >= 0) {
		f = link_file(l);
		if (f) {
			d = f->dentry;
			dget(d);
			fput(f);
		}
	} else if (l->fd == LINK_EXE) {
		d = process_get_exe(l->process);
	} else {
		fs = process_get_fs(l->process);
		if (fs) {
			d = l->fd == LINK_CWD ? fs->cwd : fs->root;
			dget(d);
			fs_put(fs);
		}
	}
	return d ? d : ERR_PTR(-ENOENT);
}

static ssize_t read_link(struct inode *inode, char *buf, u64 size)
{
	struct link *l = inode->private;
	struct dentry *d;
	ssize_t len = -1;

	if (l->fd >= 0) {
		struct file *f = link_file(l);

		if (!f)
			return -ENOENT;
		if (file_show_name(f, buf, size))
			len = (ssize_t)strlen(buf);
		fput(f);
		if (len >= 0)
			return len;
	}
	d = follow_link(inode);
	if (IS_ERR(d))
		return PTR_ERR(d);
	len = dentry_path(d, buf, size);
	dput(d);
	return len;
}
static const struct inode_ops link_ops = { .follow = follow_link, .readlink = read_link, .evict = evict_link };

static struct dentry *new_link(struct dentry *dir, const char *name, u32 len, struct process *p, int fd, u32 mode)
{
	struct link *l = kmalloc(sizeof(*l), GFP_KERNEL);
	struct dentry *d = l ? new_name(dir, name, len, S_IFLNK | mode) : ERR_PTR(-ENOMEM);

	if (IS_ERR(d)) {
		kfree(l);
		return d;
	}
	*l = (struct link){ .process = p, .fd = fd };
	process_get(p);
	d->inode->private = l;
	d->inode->ops = &link_ops;
	return d;
}

/* A decimal number without leading zeros, or -1. */
static s64 number(const char *name, u32 len)
{
	s64 n = 0;

	if (!len || len > 9 || (len > 1 && name[0] == '0'))
		return -1;
	for (u32 i = 0; i < len; i++) {
		if (name[i] < '0' || name[i] > '9')
			return -1;
		n = n * 10 + name[i] - '0';
	}
	return n;
}

static struct dentry *fd_lookup(struct dentry *dir, const char *name, u32 len)
{
	struct process *p = process_of(dir->inode);
	struct link l = { .process = p, .fd = (int)number(name, len) };
	struct file *f = l.fd >= 0 ? link_file(&l) : NULL;
	struct dentry *d;

	if (!f)
		return ERR_PTR(-ENOENT);
	d = new_link(dir, name, len, p, l.fd, (f->mode & FMODE_READ ? 0500 : 0) | (f->mode & FMODE_WRITE ? 0300 : 0));
	fput(f);
	return d;
}
static const struct inode_ops fd_dir_ops = { .lookup = fd_lookup, .evict = put_process };

static int fd_iterate(struct file *file, void *ctx, filldir_t fill, loff_t *pos)
{
	struct process *p = process_of(file->inode);
	struct files *files;

	if (!dir_iterate_dots(file, ctx, fill, pos))
		return 0;
	files = process_get_files(p);
	if (!files)
		return 0;
	for (u32 fd = (u32)*pos - 2; fd < files->size; fd++) {
		char name[16];
		int len = scnprintf(name, sizeof(name), "%u", fd);

		if (files->fd[fd] && fill(ctx, name, (u32)len, fd + 1, S_IFLNK))
			break;
		*pos = fd + 3;
	}
	files_put(files);
	return 0;
}
static const struct file_ops fd_dir_fops = { .iterate = fd_iterate, .llseek = generic_llseek };

/* ---- the directories ---- */

static struct dentry *new_dir(struct dentry *dir, const char *name, u32 len, struct process *p, u32 mode,
			      const struct inode_ops *ops, const struct file_ops *fops)
{
	struct dentry *d = new_name(dir, name, len, S_IFDIR | mode);

	if (IS_ERR(d))
		return d;
	process_get(p);
	d->inode->private = p;
	d->inode->ops = ops;
	d->inode->fops = fops;
	return d;
}

static bool is(const char *name, u32 len, const char *what) { return strlen(what) == len && !memcmp(name, what, len); }

static struct dentry *pid_lookup(struct dentry *dir, const char *name, u32 len)
{
	struct process *p = process_of(dir->inode);

	for (u32 i = 0; i < ARRAY_SIZE(pid_files); i++) {
		struct dentry *d;

		if (!is(name, len, pid_files[i].name))
			continue;
		d = new_name(dir, name, len, S_IFREG | pid_files[i].mode);
		if (IS_ERR(d))
			return d;
		if (seq_init_inode(d->inode, pid_files[i].show, p)) {
			dput(d);
			return ERR_PTR(-ENOMEM);
		}
		process_get(p);
		d->inode->ops = &pid_file_ops;
		return d;
	}
	if (is(name, len, "exe"))
		return new_link(dir, name, len, p, LINK_EXE, 0777);
	if (is(name, len, "cwd"))
		return new_link(dir, name, len, p, LINK_CWD, 0777);
	if (is(name, len, "root"))
		return new_link(dir, name, len, p, LINK_ROOT, 0777);
	if (is(name, len, "fd"))
		return new_dir(dir, name, len, p, 0500, &fd_dir_ops, &fd_dir_fops);
	return ERR_PTR(-ENOENT);
}
static const struct inode_ops pid_dir_ops = { .lookup = pid_lookup, .evict = put_process };

static int pid_iterate(struct file *f, void *ctx, filldir_t fill, loff_t *pos)
{
	static const struct {
		const char *name;
		u32 type;
	} others[] = { { "cwd", S_IFLNK }, { "exe", S_IFLNK }, { "fd", S_IFDIR }, { "root", S_IFLNK } };

	if (!dir_iterate_dots(f, ctx, fill, pos))
		return 0;
	for (u64 i = (u64)*pos - 2; i < ARRAY_SIZE(pid_files) + ARRAY_SIZE(others); i++) {
		bool file = i < ARRAY_SIZE(pid_files);
		const char *name = file ? pid_files[i].name : others[i - ARRAY_SIZE(pid_files)].name;

		if (fill(ctx, name, (u32)strlen(name), i + 3, file ? S_IFREG : others[i - ARRAY_SIZE(pid_files)].type))
			break;
		*pos = (loff_t)i + 3;
	}
	return 0;
}
static const struct file_ops pid_dir_fops = { .iterate = pid_iterate, .llseek = generic_llseek };

static struct dentry *root_lookup(struct dentry *dir, const char *name, u32 len)
{
	s64 pid = number(name, len);
	struct process *p = pid > 0 ? find_process((pid_t)pid) : NULL;
	struct dentry *d;

	if (!p)
		return ERR_PTR(-ENOENT);
	d = new_dir(dir, name, len, p, 0555, &pid_dir_ops, &pid_dir_fops);
	process_put(p);
	return d;
}
static const struct inode_ops root_ops = { .lookup = root_lookup };

#define FIRST_PID_POSITION 0x100000	/* behind all pinned names */

static int root_iterate(struct file *f, void *ctx, filldir_t fill, loff_t *pos)
{
	if (*pos < FIRST_PID_POSITION) {
		loff_t before;

		do {
			before = *pos;
			dir_iterate(f, ctx, fill, pos);
		} while (*pos != before);
		*pos = FIRST_PID_POSITION;
	}
	for (pid_t pid = (pid_t)(*pos - FIRST_PID_POSITION) + 1; pid <= 32768; pid++) {
		struct process *p = find_process(pid);
		char name[16];
		int len;

		if (p) {
			process_put(p);
			len = scnprintf(name, sizeof(name), "%d", pid);
			if (fill(ctx, name, (u32)len, (u64)pid + FIRST_PID_POSITION, S_IFDIR))
				break;
		}
		*pos = FIRST_PID_POSITION + pid;
	}
	return 0;
}
static const struct file_ops root_fops = { .iterate = root_iterate, .llseek = generic_llseek };

static ssize_t read_self(struct inode *inode, char *buf, u64 size)
{
	(void)inode;
	return current_task() ? scnprintf(buf, size, "%d", current_process()->pid) : -ENOENT;
}
static const struct inode_ops self_ops = { .readlink = read_self };

void proc_pid_init(struct dentry *root)
{
	struct dentry *self = vfs_make(root, "self", S_IFLNK | 0777, NULL, NULL);
	struct dentry *mounts = vfs_make(root, "mounts", S_IFLNK | 0777, NULL, NULL);

	if (IS_ERR(self) || IS_ERR(mounts))
		panic("no memory for /proc");
	self->inode->ops = &self_ops;
	mounts->inode->target = kmalloc(sizeof("self/mounts"), GFP_KERNEL);
	if (mounts->inode->target)
		memcpy(mounts->inode->target, "self/mounts", sizeof("self/mounts"));
	root->inode->ops = &root_ops;
	root->inode->fops = &root_fops;
}
