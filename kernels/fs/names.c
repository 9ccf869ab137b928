/* Names in directories: making them (files, directories, links, devices), removing and renaming them.
 *
 * A new name is invisible until its inode is complete: name_begin() makes it, name_end() puts it into the tree, unless
 * somebody else was quicker.
 */
#include "vfs.h"
#include "ktimer.h"
#include "string.h"
#include "syscall.h"
#include "task.h"

#define RENAME_NOREPLACE	1
#define AT_SYMLINK_FOLLOW	0x400

/* ---- making names ---- */

struct new_name {
	struct dentry *dir, *d;
};

/* A new name in a directory that may be written; lookups do not find it yet. want_dir: the path may end in a slash. */
static int name_begin(int dirfd, const char *path, bool want_dir, struct new_name *n)
{
	char last[NAME_MAX + 1];
	struct dentry *old;
	int ret = path_lookup(dirfd, path, LOOKUP_PARENT, &n->dir, last), err;

	if (ret < 0)
		return ret;
	err = -EEXIST;
	if (!last[0] || !strcmp(last, ".") || !strcmp(last, ".."))
		goto out;
	mutex_lock(&namespace_lock);
	old = d_find(n->dir, last, (u32)strlen(last));
	mutex_unlock(&namespace_lock);
	if (!old && n->dir->inode->ops && n->dir->inode->ops->lookup) {
		old = n->dir->inode->ops->lookup(n->dir, last, (u32)strlen(last));
		if (IS_ERR(old))
			old = NULL;
		else
			dput(old);
	}
	if (old)
		goto out;
	err = -ENOENT;
	if ((ret == 1 && !want_dir) || n->dir->unlinked)
		goto out;
	err = inode_permission(n->dir->inode, 3);
	if (!err && (!n->dir->inode->ops || !n->dir->inode->ops->writable))
		err = -EPERM;
	if (err)
		goto out;
	n->d = d_alloc(n->dir, last, (u32)strlen(last));
	if (n->d)
		return 0;
	err = -ENOMEM;
out:
	dput(n->dir);
	return err;
}

/* The name has its inode: into the tree with it, unless the making failed or somebody was quicker. */
static int name_end(struct new_name *n, int err)
{
	if (!err) {
		mutex_lock(&namespace_lock);
		if (d_find(n->dir, n->d->name, (u32)strlen(n->d->name))) {
			err = -EEXIST;
		} else {
			d_add(n->dir, n->d);
			n->dir->inode->mtime = n->dir->inode->ctime = ktime_get_real_ns();
		}
		mutex_unlock(&namespace_lock);
	}
	if (err)
		dput(n->d);
	dput(n->dir);
	return err;
}

u32 umasked(u32 mode)
{
	struct task *t = current_task();

	return mode & ~(t ? t->fs->umask : 0);
}

int vfs_mknod(int dirfd, const char *path, u32 mode, u64 rdev)
{
	struct new_name n;
	int err = name_begin(dirfd, path, false, &n);

	if (err)
		return err;
	err = n.dir->inode->ops->create ? n.dir->inode->ops->create(n.dir, n.d, umasked(mode), rdev) : -EPERM;
	return name_end(&n, err);
}

int vfs_mkdir(int dirfd, const char *path, u32 mode)
{
	struct new_name n;
	int err = name_begin(dirfd, path, true, &n);

	if (err)
		return err;
	err = n.dir->inode->ops->mkdir ? n.dir->inode->ops->mkdir(n.dir, n.d, S_IFDIR | umasked(mode & 01777)) : -EPERM;
	return name_end(&n, err);
}

int vfs_symlink(const char *target, int dirfd, const char *path)
{
	struct new_name n;
	int err = *target ? name_begin(dirfd, path, false, &n) : -ENOENT;

	if (err)
		return err;
	err = n.dir->inode->ops->symlink ? n.dir->inode->ops->symlink(n.dir, n.d, target) : -EPERM;
	return name_end(&n, err);
}

int vfs_link(struct dentry *old, int dirfd, const char *path)
{
	struct new_name n;
	int err;

	if (S_ISDIR(old->inode->mode))
		return -EPERM;
	err = name_begin(dirfd, path, false, &n);
	if (err)
		return err;
	if (old->super != n.dir->super)
		return name_end(&n, -EXDEV);
	if (!old->inode->nlink && !old->inode->linkable)
		return name_end(&n, -ENOENT);
	n.d->inode = old->inode;
	iget(old->inode);
	old->inode->nlink++;
	err = name_end(&n, 0);
	if (err)
		old->inode->nlink--;
	return err;
}

/* ---- directories, links, devices ---- */

#define WITH_PATH(var, upath, expression) ({				\
		char *var = getname(upath);				\
		s64 ret_ = IS_ERR(var) ? PTR_ERR(var) : 0;		\
		if (!ret_) {						\
			ret_ = (expression);				\
			kfree(var);					\
		}							\
		ret_; })

SYSCALL_DEFINE2(mkdir, 83, const char *, upath, u32, mode)
{
	return WITH_PATH(path, upath, vfs_mkdir(AT_FDCWD, path, mode));
}
SYSCALL_DEFINE3(mkdirat, 258, int, dirfd, const char *, upath, u32, mode)
{
	return WITH_PATH(path, upath, vfs_mkdir(dirfd, path, mode));
}

static s64 do_mknod(int dirfd, const char *upath, u32 mode, u64 dev)
{
	u32 type = mode & S_IFMT;

	if (type == 0)
		mode |= S_IFREG;
	else if (type != S_IFREG && type != S_IFIFO && type != S_IFSOCK && !capable())
		return -EPERM;
	else if (type == S_IFDIR || type == S_IFLNK)
		return -EINVAL;
	return WITH_PATH(path, upath, vfs_mknod(dirfd, path, mode, dev));
}
SYSCALL_DEFINE3(mknod, 133, const char *, path, u32, mode, u64, dev)
{
	return do_mknod(AT_FDCWD, path, mode, dev);
}
SYSCALL_DEFINE4(mknodat, 259, int, dirfd, const char *, path, u32, mode, u64, dev)
{
	return do_mknod(dirfd, path, mode, dev);
}

static s64 do_symlink(const char *utarget, int dirfd, const char *upath)
{
	return WITH_PATH(target, utarget, WITH_PATH(path, upath, vfs_symlink(target, dirfd, path)));
}
SYSCALL_DEFINE2(symlink, 88, const char *, target, const char *, path)
{
	return do_symlink(target, AT_FDCWD, path);
}
SYSCALL_DEFINE3(symlinkat, 266, const char *, target, int, dirfd, const char *, path)
{
	return do_symlink(target, dirfd, path);
}

static s64 do_link(int olddir, const char *uold, int newdir, const char *unew, u32 flags)
{
	struct dentry *old;
	s64 err;

	if (flags & ~(u32)(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH))
		return -EINVAL;
	err = user_path(olddir, uold, (flags & AT_SYMLINK_FOLLOW ? LOOKUP_FOLLOW : 0) | (flags & AT_EMPTY_PATH), &old);
	if (err)
		return err;
	err = WITH_PATH(path, unew, vfs_link(old, newdir, path));
	dput(old);
	return err;
}
SYSCALL_DEFINE2(link, 86, const char *, old, const char *, new)
{
	return do_link(AT_FDCWD, old, AT_FDCWD, new, 0);
}
SYSCALL_DEFINE5(linkat, 265, int, olddir, const char *, old, int, newdir, const char *, new, u32, flags)
{
	return do_link(olddir, old, newdir, new, flags);
}

/* ---- removing ---- */

/* In a directory like /tmp, a name belongs to whoever the file or the directory belongs to. */
static bool is_anothers(const struct inode *dir, const struct inode *inode)
{
	u32 uid = current_task()->cred.fsuid;

	return dir->mode & S_ISVTX && inode->uid != uid && dir->uid != uid && !capable();
}

/* The name `last` in dir, referenced, of a directory that may be written. namespace_lock held. */
static int find_victim(struct dentry *dir, const char *last, struct dentry **out)
{
	struct dentry *d = d_find(dir, last, (u32)strlen(last));
	int err = inode_permission(dir->inode, 3);

	if (!err && !d)
		err = -ENOENT;
	if (!err && (!dir->inode->ops || !dir->inode->ops->writable))
		err = -EPERM;
	if (!err && is_anothers(dir->inode, d->inode))
		err = -EPERM;
	if (!err && d->mounted)
		err = -EBUSY;
	*out = d;
	return err;
}

static void remove_name(struct dentry *dir, struct dentry *d)
{
	struct inode *inode = d->inode;

	inode->nlink -= S_ISDIR(inode->mode) ? 2 : 1;
	inode->ctime = dir->inode->mtime = dir->inode->ctime = ktime_get_real_ns();
	d_drop(d);
}

static s64 do_unlink(int dirfd, const char *upath, bool directory)
{
	char *path = getname(upath), last[NAME_MAX + 1];
	struct dentry *dir, *d;
	int err, slash;

	if (IS_ERR(path))
		return PTR_ERR(path);
	slash = path_lookup(dirfd, path, LOOKUP_PARENT, &dir, last);
	kfree(path);
	if (slash < 0)
		return slash;
	if (!last[0] || !strcmp(last, "..") || !strcmp(last, ".")) {
		dput(dir);
		return !directory ? -EISDIR : !last[0] ? -EBUSY : last[1] ? -ENOTEMPTY : -EINVAL;
	}
	mutex_lock(&namespace_lock);
	err = find_victim(dir, last, &d);
	if (!err && slash && !S_ISDIR(d->inode->mode))
		err = -ENOTDIR;
	if (!err && directory)
		err = !S_ISDIR(d->inode->mode) ? -ENOTDIR : !list_empty(&d->children) ? -ENOTEMPTY : 0;
	else if (!err && S_ISDIR(d->inode->mode))
		err = -EISDIR;
	if (!err)
		remove_name(dir, d);
	mutex_unlock(&namespace_lock);
	dput(dir);
	return err;
}
SYSCALL_DEFINE1(unlink, 87, const char *, path)
{
	return do_unlink(AT_FDCWD, path, false);
}
SYSCALL_DEFINE1(rmdir, 84, const char *, path)
{
	return do_unlink(AT_FDCWD, path, true);
}
SYSCALL_DEFINE3(unlinkat, 263, int, dirfd, const char *, path, u32, flags)
{
	return flags & ~(u32)AT_REMOVEDIR ? -EINVAL : do_unlink(dirfd, path, flags & AT_REMOVEDIR);
}

static bool is_below(struct dentry *d, const struct dentry *top)
{
	for (; d != top; d = d->parent)
		if (d->parent == d)
			return false;
	return true;
}

/* namespace_lock held. */
static int rename_locked(struct dentry *olddir, struct dentry *d, struct dentry *newdir, const char *name, u32 flags)
{
	struct dentry *target;
	char *copy;
	int err = find_victim(newdir, name, &target);

	if (err && err != -ENOENT)
		return err;
	if (d->super != newdir->super)
		return -EXDEV;
	if (newdir->unlinked)
		return -ENOENT;
	if (S_ISDIR(d->inode->mode) && is_below(newdir, d))
		return -EINVAL;
	if (target) {
		if (flags & RENAME_NOREPLACE)
			return -EEXIST;
		if (target->inode == d->inode)
			return 0;
		if (S_ISDIR(d->inode->mode) != S_ISDIR(target->inode->mode))
			return S_ISDIR(d->inode->mode) ? -ENOTDIR : -EISDIR;
		if (!list_empty(&target->children))
			return -ENOTEMPTY;
	}
	copy = kmalloc(strlen(name) + 1, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	memcpy(copy, name, strlen(name) + 1);
	if (target)
		remove_name(newdir, target);
	dget(d);
	d_drop(d);
	kfree(d->name);
	d->name = copy;
	d->unlinked = false;
	dget(newdir);
	dput(d->parent);
	d->parent = newdir;
	d_add(newdir, d);
	dput(d);
	d->inode->ctime = olddir->inode->mtime = newdir->inode->mtime = ktime_get_real_ns();
	return 0;
}

static s64 do_rename(int olddirfd, const char *uold, int newdirfd, const char *unew, u32 flags)
{
	char old[NAME_MAX + 1], new[NAME_MAX + 1];
	struct dentry *olddir, *newdir, *d;
	s64 ret;
	int slash_old, slash_new;

	if (flags & ~(u32)RENAME_NOREPLACE)
		return -EINVAL;
	ret = WITH_PATH(path, uold, path_lookup(olddirfd, path, LOOKUP_PARENT, &olddir, old));
	if (ret < 0)
		return ret;
	slash_old = (int)ret;
	ret = WITH_PATH(path, unew, path_lookup(newdirfd, path, LOOKUP_PARENT, &newdir, new));
	if (ret < 0) {
		dput(olddir);
		return ret;
	}
	slash_new = (int)ret;
	if (!old[0] || !new[0] || !strcmp(old, ".") || !strcmp(old, "..") || !strcmp(new, ".") || !strcmp(new, "..")) {
		ret = -EBUSY;
	} else {
		mutex_lock(&namespace_lock);
		ret = find_victim(olddir, old, &d);
		if (!ret && (slash_old || slash_new) && !S_ISDIR(d->inode->mode))
			ret = -ENOTDIR;
		if (!ret)
			ret = rename_locked(olddir, d, newdir, new, flags);
		mutex_unlock(&namespace_lock);
	}
	dput(olddir);
	dput(newdir);
	return ret;
}
SYSCALL_DEFINE2(rename, 82, const char *, old, const char *, new)
{
	return do_rename(AT_FDCWD, old, AT_FDCWD, new, 0);
}
SYSCALL_DEFINE4(renameat, 264, int, olddir, const char *, old, int, newdir, const char *, new)
{
	return do_rename(olddir, old, newdir, new, 0);
}
SYSCALL_DEFINE5(renameat2, 316, int, olddir, const char *, old, int, newdir, const char *, new, u32, flags)
{
	return do_rename(olddir, old, newdir, new, flags);
}
