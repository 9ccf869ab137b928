/* open(2): from a path and flags to an open file. */
#include "vfs.h"
#include "string.h"
#include "syscall.h"
#include "task.h"

#define PERM_MASK	07777U

static int may_open(struct dentry *d, u32 flags)
{
	u32 want = 0, mode = d->inode->mode;

	if (flags & O_PATH)
		return 0;
	if (S_ISLNK(mode))
		return -ELOOP;
	if ((flags & O_ACCMODE) != O_WRONLY)
		want |= 4;
	if ((flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC)
		want |= 2;
	if (S_ISDIR(mode) && want & 2)
		return -EISDIR;
	return inode_permission(d->inode, want);
}

static struct file *finish_open(struct dentry *d, u32 flags, bool created)
{
	int err = created ? 0 : may_open(d, flags);

	if (!err && flags & O_DIRECTORY && !S_ISDIR(d->inode->mode))
		err = -ENOTDIR;
	if (!err && flags & O_TRUNC && !created && S_ISREG(d->inode->mode) && d->inode->ops && d->inode->ops->setsize)
		err = vfs_truncate(d->inode, 0);
	return err ? ERR_PTR(err) : dentry_open(d, flags);
}

static struct file *open_tmpfile(int dirfd, const char *path, u32 flags, u32 mode)
{
	struct dentry *dir, *d;
	struct file *f;
	int err = path_lookup(dirfd, path, LOOKUP_FOLLOW | LOOKUP_DIRECTORY, &dir, NULL);

	if (err)
		return ERR_PTR(err);
	err = inode_permission(dir->inode, 3);
	if (!err && (!dir->inode->ops || !dir->inode->ops->create))
		err = -EOPNOTSUPP;
	d = err ? NULL : d_alloc(dir, "#tmpfile", 8);
	if (!err && !d)
		err = -ENOMEM;
	if (!err)
		err = dir->inode->ops->create(dir, d, S_IFREG | umasked(mode & PERM_MASK), 0);
	if (err) {
		dput(d);
		dput(dir);
		return ERR_PTR(err);
	}
	d->unlinked = true;
	d->inode->nlink = 0;
	d->inode->linkable = !(flags & O_EXCL);
	f = dentry_open(d, flags);
	dput(d);
	dput(dir);
	return f;
}

static struct file *open_path(int dirfd, const char *path, u32 flags, u32 mode)
{
	bool created = false;
	struct dentry *d;
	struct file *f;
	int err;

	if ((flags & O_TMPFILE) == O_TMPFILE)
		return flags & O_ACCMODE ? open_tmpfile(dirfd, path, flags, mode) : ERR_PTR(-EINVAL);
	if (flags & O_PATH)
		flags &= O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
	if ((flags & (O_CREAT | O_DIRECTORY)) == (O_CREAT | O_DIRECTORY))
		return ERR_PTR(-EINVAL);
	while (1) {
		err = path_lookup(dirfd, path, flags & O_NOFOLLOW || (flags & O_CREAT && flags & O_EXCL)
				  ? 0 : LOOKUP_FOLLOW, &d, NULL);
		if (err != -ENOENT || !(flags & O_CREAT))
			break;
		err = vfs_mknod(dirfd, path, S_IFREG | (mode & PERM_MASK), 0);
		if (err && err != -EEXIST)
			return ERR_PTR(err);
		if (err == -EEXIST && path_lookup(dirfd, path, 0, &d, NULL) == 0) {	/* a link that leads nowhere */
			bool link = S_ISLNK(d->inode->mode);

			dput(d);
			if (link)
				return ERR_PTR(flags & O_EXCL ? -EEXIST : -ENOENT);
		}
		created |= !err;
	}
	if (err)
		return ERR_PTR(err);
	if (flags & O_CREAT && flags & O_EXCL && !created)
		f = ERR_PTR(-EEXIST);
	else if (flags & O_CREAT && S_ISDIR(d->inode->mode))
		f = ERR_PTR(-EISDIR);
	else
		f = finish_open(d, flags, created);
	dput(d);
	return f;
}

struct file *file_open(const char *path, u32 flags, u32 mode)
{
	return open_path(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

static s64 do_open(int dirfd, const char *upath, u32 flags, u32 mode)
{
	char *path = getname(upath);
	struct file *f;
	int fd;

	if (IS_ERR(path))
		return PTR_ERR(path);
	fd = get_unused_fd(flags);
	if (fd >= 0) {
		f = open_path(dirfd, path, flags | O_LARGEFILE, mode);
		if (IS_ERR(f)) {
			put_unused_fd(fd);
			fd = (int)PTR_ERR(f);
		} else {
			fd_install(fd, f);
		}
	}
	kfree(path);
	return fd;
}

SYSCALL_DEFINE3(open, 2, const char *, path, u32, flags, u32, mode)
{
	return do_open(AT_FDCWD, path, flags, mode);
}
SYSCALL_DEFINE2(creat, 85, const char *, path, u32, mode)
{
	return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
SYSCALL_DEFINE4(openat, 257, int, dirfd, const char *, path, u32, flags, u32, mode)
{
	return do_open(dirfd, path, flags, mode);
}
