/* Open files, and each process's table of them. */
#include "vfs.h"
#include "bitops.h"
#include "ktimer.h"
#include "panic.h"
#include "printk.h"
#include "string.h"
#include "syscall.h"
#include "task.h"

#define FDS_MIN		64U
#define FDS_MAX		1048576U	/* whatever the rlimit says */

/* ---- struct file ---- */

static u32 mode_of(u32 flags)
{
	if (flags & O_PATH)
		return FMODE_PATH;
	switch (flags & O_ACCMODE) {
	case O_RDONLY:
		return FMODE_READ;
	case O_WRONLY:
		return FMODE_WRITE;
	case O_RDWR:
		return FMODE_READ | FMODE_WRITE;
	default:
		return 0;
	}
}

/* Takes over nothing; the dentry gets a reference. */
static struct file *file_new(struct dentry *d, u32 flags, const struct file_ops *ops)
{
	struct file *f = kzalloc(sizeof(*f), GFP_KERNEL);

	if (!f)
		return NULL;
	f->refs = 1;
	f->flags = flags & ~(u32)(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_CLOEXEC);
	f->mode = mode_of(flags);
	f->ops = ops;
	f->dentry = d;
	f->inode = d->inode;
	mutex_init(&f->pos_lock);
	INIT_LIST_HEAD(&f->watchers);
	dget(d);
	return f;
}

static const struct file_ops path_file_ops = { 0 };

struct file *dentry_open(struct dentry *d, u32 flags)
{
	const struct file_ops *ops = flags & O_PATH ? &path_file_ops : d->inode->fops;
	struct file *f;
	int err;

	if (!ops)		/* a device that is not there, a socket, an anonymous inode */
		return ERR_PTR(-ENXIO);
	f = file_new(d, flags, ops);
	if (!f)
		return ERR_PTR(-ENOMEM);
	if (ops->open) {
		f->flags |= flags & O_NOCTTY;	/* terminals want to know */
		err = ops->open(d->inode, f);
		f->flags &= ~(u32)O_NOCTTY;
		if (err) {
			dput(d);
			kfree(f);
			return ERR_PTR(err);
		}
	}
	return f;
}

struct file *alloc_file_pseudo(struct inode *inode, const char *name, u32 flags, const struct file_ops *ops)
{
	struct dentry *d = d_alloc(NULL, name, (u32)strlen(name));
	struct file *f;

	if (!d) {
		iput(inode);
		return ERR_PTR(-ENOMEM);
	}
	d->inode = inode;
	d->super = inode->super;
	d->unlinked = true;
	f = file_new(d, flags, ops);
	dput(d);
	return f ? f : ERR_PTR(-ENOMEM);
}

static void show_anon_name(struct file *f, char *buf, u64 size)
{
	scnprintf(buf, size, "anon_inode:%s", f->dentry->name);
}

/* Files of one kind have operations of their own, so what /proc shows is asked for by the super block. */
static struct super *anon_super;

bool file_show_name(struct file *f, char *buf, u64 size)
{
	const struct file_ops *ops = f->mode & FMODE_PATH && f->inode->fops ? f->inode->fops : f->ops;

	if (ops->show_name)
		ops->show_name(f, buf, size);
	else if (f->inode->super == anon_super)
		show_anon_name(f, buf, size);
	else
		return false;
	return true;
}

bool is_anon_inode(const struct inode *inode) { return anon_super && inode->super == anon_super; }

struct file *anon_inode_getfile(const char *name, const struct file_ops *ops, void *private, u32 flags)
{
	struct inode *inode;
	struct file *f;

	if (!anon_super)
		anon_super = super_create("anon_inodefs", 0x09041934);
	inode = anon_super ? inode_new(anon_super, 0600) : NULL;
	if (!inode)
		return ERR_PTR(-ENOMEM);
	f = alloc_file_pseudo(inode, name, flags, ops);
	if (!IS_ERR(f))
		f->private = private;
	return f;
}

s64 anon_inode_getfd(const char *name, const struct file_ops *ops, void *private, u32 flags)
{
	struct file *f;
	int fd = get_unused_fd(flags);

	if (fd < 0)
		return fd;
	f = anon_inode_getfile(name, ops, private, O_RDWR | (flags & O_NONBLOCK));
	if (IS_ERR(f)) {
		put_unused_fd(fd);
		return PTR_ERR(f);
	}
	fd_install(fd, f);
	return fd;
}

void file_get(struct file *f) { __atomic_add_fetch(&f->refs, 1, __ATOMIC_SEQ_CST); }

void fput(struct file *f)
{
	if (__atomic_sub_fetch(&f->refs, 1, __ATOMIC_SEQ_CST))
		return;
	if (!list_empty(&f->watchers))
		epoll_forget(f);
	if (f->ops->release)
		f->ops->release(f);
	dput(f->dentry);
	kfree(f);
}

loff_t noop_llseek(struct file *f, loff_t off, int whence)
{
	(void)off;
	(void)whence;
	return f->pos;
}

loff_t generic_llseek(struct file *f, loff_t off, int whence)
{
	loff_t base = whence == 0 ? 0 : whence == 1 ? f->pos : (loff_t)f->inode->size, pos;

	if (S_ISREG(f->inode->mode) && (whence == SEEK_DATA || whence == SEEK_HOLE)) {	/* all of it is data */
		if (off >= (loff_t)f->inode->size)
			return -ENXIO;
		pos = whence == SEEK_DATA ? off : (loff_t)f->inode->size;
		return pos < 0 ? -EINVAL : (f->pos = pos);
	}
	if (whence < 0 || whence > 2)
		return -EINVAL;
	if (__builtin_add_overflow(base, off, &pos) || pos < 0)
		return -EINVAL;
	f->pos = pos;
	return pos;
}

/* ---- tables ---- */

static struct files *files_alloc(u32 size)
{
	struct files *n = kzalloc(sizeof(*n), GFP_KERNEL);

	if (!n)
		return NULL;
	n->refs = 1;
	n->size = size;
	mutex_init(&n->lock);
	n->fd = vzalloc(size * sizeof(n->fd[0]));
	n->open = kzalloc(size / 8, GFP_KERNEL);
	n->close_on_exec = kzalloc(size / 8, GFP_KERNEL);
	if (!n->fd || !n->open || !n->close_on_exec) {
		vfree(n->fd);
		kfree(n->open);
		kfree(n->close_on_exec);
		kfree(n);
		return NULL;
	}
	return n;
}

static void files_release(struct files *n)
{
	vfree(n->fd);
	kfree(n->open);
	kfree(n->close_on_exec);
	kfree(n);
}

/* Puts the arrays of `from` into `to`, which is larger. */
static void copy_tables(struct files *to, const struct files *from)
{
	memcpy(to->fd, from->fd, from->size * sizeof(from->fd[0]));
	memcpy(to->open, from->open, from->size / 8);
	memcpy(to->close_on_exec, from->close_on_exec, from->size / 8);
}

struct files *files_new(void) { return files_alloc(FDS_MIN); }
void files_get(struct files *files) { __atomic_add_fetch(&files->refs, 1, __ATOMIC_SEQ_CST); }

struct files *files_copy(struct files *old)
{
	struct files *n;

	mutex_lock(&old->lock);
	n = files_alloc(old->size);
	if (n) {
		copy_tables(n, old);
		for (u32 i = 0; i < n->size; i++) {
			if (n->fd[i])
				file_get(n->fd[i]);
			else
				clear_bit(i, n->open);	/* reserved by another thread: not the child's */
		}
	}
	mutex_unlock(&old->lock);
	return n;
}

void files_put(struct files *files)
{
	if (__atomic_sub_fetch(&files->refs, 1, __ATOMIC_SEQ_CST))
		return;
	for (u32 i = 0; i < files->size; i++)
		if (files->fd[i])
			fput(files->fd[i]);
	files_release(files);
}

void files_close_on_exec(struct files *files)
{
	for (u32 i = 0; i < files->size; i++)
		if (test_bit(i, files->close_on_exec))
			close_fd((int)i);
}

/* Grows the table to hold fd; lock held. */
static int grow_files(struct files *files, u32 fd)
{
	u32 size = files->size;
	struct files *n, old;

	while (size <= fd)
		size *= 2;
	n = files_alloc(size);
	if (!n)
		return -ENOMEM;
	copy_tables(n, files);
	old = *files;
	files->size = size;
	files->fd = n->fd;
	files->open = n->open;
	files->close_on_exec = n->close_on_exec;
	n->fd = old.fd;
	n->open = old.open;
	n->close_on_exec = old.close_on_exec;
	files_release(n);
	return 0;
}

static u64 fd_limit(void)
{
	return min(current_process()->rlim[RLIMIT_NOFILE].cur, (u64)FDS_MAX);
}

int get_unused_fd_from(u32 start, u32 flags)
{
	struct files *files = current_task()->files;
	u64 limit = fd_limit();
	u32 fd;
	int err = 0;

	mutex_lock(&files->lock);
	for (fd = start; fd < files->size; fd++) {
		if (!(fd % 64) && files->open[fd / 64] == ~0UL)
			fd += 63;
		else if (!test_bit(fd, files->open))
			break;
	}
	if (fd >= limit)
		err = -EMFILE;
	else if (fd >= files->size)
		err = grow_files(files, fd);
	if (!err) {
		set_bit(fd, files->open);
		if (flags & O_CLOEXEC)
			set_bit(fd, files->close_on_exec);
		else
			clear_bit(fd, files->close_on_exec);
	}
	mutex_unlock(&files->lock);
	return err ? err : (int)fd;
}

int get_unused_fd(u32 flags) { return get_unused_fd_from(0, flags); }

void put_unused_fd(int fd)
{
	struct files *files = current_task()->files;

	mutex_lock(&files->lock);
	clear_bit((u32)fd, files->open);
	mutex_unlock(&files->lock);
}

void fd_install(int fd, struct file *f)
{
	struct files *files = current_task()->files;

	mutex_lock(&files->lock);
	BUG_ON(files->fd[fd]);
	files->fd[fd] = f;
	mutex_unlock(&files->lock);
}

struct file *fget_raw(int fd)
{
	struct files *files = current_task()->files;
	struct file *f = NULL;

	mutex_lock(&files->lock);
	if ((u32)fd < files->size)
		f = files->fd[fd];
	if (f)
		file_get(f);
	mutex_unlock(&files->lock);
	return f;
}

struct file *fget(int fd)
{
	struct file *f = fget_raw(fd);

	if (f && f->mode & FMODE_PATH) {
		fput(f);
		return NULL;
	}
	return f;
}

int close_fd(int fd)
{
	struct files *files = current_task()->files;
	struct file *f = NULL;

	mutex_lock(&files->lock);
	if ((u32)fd < files->size && files->fd[fd]) {
		f = files->fd[fd];
		files->fd[fd] = NULL;
		clear_bit((u32)fd, files->open);
		clear_bit((u32)fd, files->close_on_exec);
	}
	mutex_unlock(&files->lock);
	if (!f)
		return -EBADF;
	fput(f);
	return 0;
}

/* ---- where paths begin ---- */

struct fs *fs_new(void)
{
	struct fs *fs = kzalloc(sizeof(*fs), GFP_KERNEL);

	if (!fs)
		return NULL;
	fs->refs = 1;
	fs->umask = 022;
	fs->root = fs->cwd = rootfs->root;
	dget(fs->root);
	dget(fs->cwd);
	return fs;
}

struct fs *fs_copy(struct fs *old)
{
	struct fs *fs = kzalloc(sizeof(*fs), GFP_KERNEL);

	if (!fs)
		return NULL;
	*fs = *old;
	fs->refs = 1;
	dget(fs->root);
	dget(fs->cwd);
	return fs;
}

void fs_get(struct fs *fs) { __atomic_add_fetch(&fs->refs, 1, __ATOMIC_SEQ_CST); }

void fs_put(struct fs *fs)
{
	if (__atomic_sub_fetch(&fs->refs, 1, __ATOMIC_SEQ_CST))
		return;
	dput(fs->root);
	dput(fs->cwd);
	kfree(fs);
}

/* ---- descriptors: dup, close ---- */

SYSCALL_DEFINE1(close, 3, int, fd)
{
	return close_fd(fd);
}

SYSCALL_DEFINE3(close_range, 436, u32, first, u32, last, u32, flags)
{
	struct files *files = current_task()->files;

	if (first > last || flags & ~6U)
		return -EINVAL;
	for (u32 fd = first; fd <= last && fd < files->size; fd++) {
		if (!(flags & 4)) {
			close_fd((int)fd);
		} else {		/* CLOSE_RANGE_CLOEXEC */
			mutex_lock(&files->lock);
			if (files->fd[fd])
				set_bit(fd, files->close_on_exec);
			mutex_unlock(&files->lock);
		}
	}
	return 0;
}

int dup_from(int old, u32 start, u32 flags)
{
	struct file *f = fget_raw(old);
	int fd;

	if (!f)
		return -EBADF;
	fd = start >= fd_limit() ? -EINVAL : get_unused_fd_from(start, flags);
	if (fd < 0)
		fput(f);
	else
		fd_install(fd, f);
	return fd;
}

SYSCALL_DEFINE1(dup, 32, int, old)
{
	return dup_from(old, 0, 0);
}

static s64 dup_to(int old, int new, u32 flags)
{
	struct files *files = current_task()->files;
	struct file *f = fget_raw(old), *replaced;
	int err = 0;

	if (!f)
		return -EBADF;
	if (new < 0 || (u64)new >= fd_limit()) {
		fput(f);
		return -EBADF;
	}
	mutex_lock(&files->lock);
	if ((u32)new >= files->size)
		err = grow_files(files, (u32)new);
	if (!err && test_bit((u32)new, files->open) && !files->fd[new])
		err = -EBUSY;		/* reserved: an open() in another thread is about to return it */
	if (err) {
		mutex_unlock(&files->lock);
		fput(f);
		return err;
	}
	replaced = files->fd[new];
	files->fd[new] = f;
	set_bit((u32)new, files->open);
	if (flags & O_CLOEXEC)
		set_bit((u32)new, files->close_on_exec);
	else
		clear_bit((u32)new, files->close_on_exec);
	mutex_unlock(&files->lock);
	if (replaced)
		fput(replaced);
	return new;
}

SYSCALL_DEFINE2(dup2, 33, int, old, int, new)
{
	if (old == new) {
		struct file *f = fget_raw(old);

		if (!f)
			return -EBADF;
		fput(f);
		return new;
	}
	return dup_to(old, new, 0);
}

SYSCALL_DEFINE3(dup3, 292, int, old, int, new, u32, flags)
{
	if (flags & ~(u32)O_CLOEXEC || old == new)
		return -EINVAL;
	return dup_to(old, new, flags);
}
