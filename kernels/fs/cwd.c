/* Where a process's paths begin: its root and its working directory. */
#include "vfs.h"
#include "on_path.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

static int set_cwd(struct dentry *d)
{
	struct fs *fs = current_task()->fs;
	int err = S_ISDIR(d->inode->mode) ? inode_permission(d->inode, 1) : -ENOTDIR;

	if (err)
		return err;
	dget(d);
	dput(fs->cwd);
	fs->cwd = d;
	return 0;
}
SYSCALL_DEFINE1(chdir, 80, const char *, path)
{
	return ON_PATH(AT_FDCWD, path, LOOKUP_FOLLOW | LOOKUP_DIRECTORY, set_cwd(d));
}
SYSCALL_DEFINE1(fchdir, 81, int, fd)
{
	return ON_FD(fd, set_cwd(f->dentry));
}

static int set_root(struct dentry *d)
{
	struct fs *fs = current_task()->fs;

	if (!capable())
		return -EPERM;
	dget(d);
	dput(fs->root);
	fs->root = d;
	return 0;
}
SYSCALL_DEFINE1(chroot, 161, const char *, path)
{
	return ON_PATH(AT_FDCWD, path, LOOKUP_FOLLOW | LOOKUP_DIRECTORY, set_root(d));
}

SYSCALL_DEFINE2(getcwd, 79, char *, user, u64, size)
{
	char *buf = kmalloc(PATH_MAX, GFP_KERNEL);
	ssize_t len;

	if (!buf)
		return -ENOMEM;
	len = current_task()->fs->cwd->unlinked ? -ENOENT : dentry_path(current_task()->fs->cwd, buf, PATH_MAX);
	if (len >= 0)
		len = (u64)len + 1 > size ? -ERANGE : copy_to_user(user, buf, (u64)len + 1) ? -EFAULT : len + 1;
	kfree(buf);
	return len;
}
