/* open(2) and what changes names and attributes. */
#include "vfs.h"
#include "ktimer.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

#define RENAME_NOREPLACE	1
#define AT_SYMLINK_FOLLOW	0x400
#define AT_EACCESS		0x200
#define PERM_MASK		07777U

/* A path of the program in memory of ours; free with kfree(). ERR_PTR. */
char *getname(const char *user)
{
	char *name = kmalloc(PATH_MAX, GFP_KERNEL);
	ssize_t len;

	if (!name)
		return ERR_PTR(-ENOMEM);
	len = strncpy_from_user(name, user, PATH_MAX);
	if (len < 0 || len == PATH_MAX) {
		kfree(name);
		return ERR_PTR(len < 0 ? len : -ENAMETOOLONG);
	}
	return name;
}

/* The name at a program's path, referenced. 0 or -errno. */
int user_path(int dirfd, const char *upath, u32 flags, struct dentry **out)
{
	char *path = getname(upath);
	int err;

	if (IS_ERR(path))
		return (int)PTR_ERR(path);
	err = path_lookup(dirfd, path, flags, out, NULL);
	kfree(path);
	return err;
}

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

static u32 masked(u32 mode)
{
	struct task *t = current_task();

	return mode & ~(t ? t->fs->umask : 0);
}

static int make_node(int dirfd, const char *path, u32 mode, u64 rdev)
{
	struct new_name n;
	int err = name_begin(dirfd, path, false, &n);

	if (err)
		return err;
	err = n.dir->inode->ops->create ? n.dir->inode->ops->create(n.dir, n.d, masked(mode), rdev) : -EPERM;
	return name_end(&n, err);
}

int vfs_mkdir(int dirfd, const char *path, u32 mode)
{
	struct new_name n;
	int err = name_begin(dirfd, path, true, &n);

	if (err)
		return err;
	err = n.dir->inode->ops->mkdir ? n.dir->inode->ops->mkdir(n.dir, n.d, S_IFDIR | masked(mode & 01777)) : -EPERM;
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

int vfs_mknod(int dirfd, const char *path, u32 mode, u64 rdev)
{
	return make_node(dirfd, path, mode, rdev);
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

/* ---- open ---- */

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

static int truncate_inode(struct inode *inode, u64 size)
{
	int err;

	if (S_ISDIR(inode->mode))
		return -EISDIR;
	if (!inode->ops || !inode->ops->setsize)
		return -EINVAL;
	mutex_lock(&inode->lock);
	err = inode->ops->setsize(inode, size);
	if (!err)
		inode->mtime = inode->ctime = ktime_get_real_ns();
	mutex_unlock(&inode->lock);
	return err;
}

static struct file *finish_open(struct dentry *d, u32 flags, bool created)
{
	int err = created ? 0 : may_open(d, flags);

	if (!err && flags & O_DIRECTORY && !S_ISDIR(d->inode->mode))
		err = -ENOTDIR;
	if (!err && flags & O_TRUNC && !created && S_ISREG(d->inode->mode) && d->inode->ops && d->inode->ops->setsize)
		err = truncate_inode(d->inode, 0);
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
		err = dir->inode->ops->create(dir, d, S_IFREG | masked(mode & PERM_MASK), 0);
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
		return flags & O_ACCMODE ? open_tmpfile(dirfd, path, flags & ~(u32)O_TMPFILE, mode) : ERR_PTR(-EINVAL);
	if (flags & O_PATH)
		flags &= O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
	if ((flags & (O_CREAT | O_DIRECTORY)) == (O_CREAT | O_DIRECTORY))
		return ERR_PTR(-EINVAL);
	while (1) {
		err = path_lookup(dirfd, path, flags & O_NOFOLLOW || (flags & O_CREAT && flags & O_EXCL)
				  ? 0 : LOOKUP_FOLLOW, &d, NULL);
		if (err != -ENOENT || !(flags & O_CREAT))
			break;
		err = make_node(dirfd, path, S_IFREG | (mode & PERM_MASK), 0);
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
	return WITH_PATH(path, upath, make_node(dirfd, path, mode, dev));
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

/* The name `last` in dir, referenced, of a directory that may be written. namespace_lock held. */
static int find_victim(struct dentry *dir, const char *last, struct dentry **out)
{
	struct dentry *d = d_find(dir, last, (u32)strlen(last));
	int err = inode_permission(dir->inode, 3);

	if (!err && !d)
		err = -ENOENT;
	if (!err && (!dir->inode->ops || !dir->inode->ops->writable))
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

/* ---- attributes ---- */

static bool owns(const struct inode *inode)
{
	return capable() || current_task()->cred.fsuid == inode->uid;
}

static int set_mode(struct inode *inode, u32 mode)
{
	if (!owns(inode))
		return -EPERM;
	/* F_SEAL_EXEC: who may execute it does not change any more. */
	if (inode->shmem && inode->shmem->seals & F_SEAL_EXEC && (inode->mode ^ mode) & 0111)
		return -EPERM;
	inode->mode = (inode->mode & S_IFMT) | (mode & PERM_MASK);
	inode->ctime = ktime_get_real_ns();
	return 0;
}

static int set_owner(struct inode *inode, u32 uid, u32 gid)
{
	if (!capable() && ((uid != ~0U && uid != inode->uid) || (gid != ~0U && gid != current_task()->cred.fsgid)))
		return -EPERM;
	if (uid != ~0U)
		inode->uid = uid;
	if (gid != ~0U)
		inode->gid = gid;
	inode->ctime = ktime_get_real_ns();
	return 0;
}

#define ON_PATH(dirfd, upath, flags, expression) ({			\
		struct dentry *d;					\
		int ret_ = user_path(dirfd, upath, flags, &d);		\
		if (!ret_) {						\
			ret_ = (expression);				\
			dput(d);					\
		}							\
		ret_; })
#define ON_FD(fd, expression) ({					\
		struct file *f = fget(fd);				\
		int ret_ = -EBADF;					\
		if (f) {						\
			ret_ = (expression);				\
			fput(f);					\
		}							\
		ret_; })
#define FOLLOW(flags) (((flags) & AT_SYMLINK_NOFOLLOW ? 0 : LOOKUP_FOLLOW) | ((flags) & AT_EMPTY_PATH))

SYSCALL_DEFINE2(chmod, 90, const char *, path, u32, mode)
{
	return ON_PATH(AT_FDCWD, path, LOOKUP_FOLLOW, set_mode(d->inode, mode));
}
SYSCALL_DEFINE2(fchmod, 91, int, fd, u32, mode)
{
	return ON_FD(fd, set_mode(f->inode, mode));
}
SYSCALL_DEFINE3(fchmodat, 268, int, dirfd, const char *, path, u32, mode)
{
	return ON_PATH(dirfd, path, LOOKUP_FOLLOW, set_mode(d->inode, mode));
}
SYSCALL_DEFINE3(chown, 92, const char *, path, u32, uid, u32, gid)
{
	return ON_PATH(AT_FDCWD, path, LOOKUP_FOLLOW, set_owner(d->inode, uid, gid));
}
SYSCALL_DEFINE3(lchown, 94, const char *, path, u32, uid, u32, gid)
{
	return ON_PATH(AT_FDCWD, path, 0, set_owner(d->inode, uid, gid));
}
SYSCALL_DEFINE3(fchown, 93, int, fd, u32, uid, u32, gid)
{
	return ON_FD(fd, set_owner(f->inode, uid, gid));
}
SYSCALL_DEFINE5(fchownat, 260, int, dirfd, const char *, path, u32, uid, u32, gid, u32, flags)
{
	return ON_PATH(dirfd, path, FOLLOW(flags), set_owner(d->inode, uid, gid));
}

/* access(2) asks for the real user, not for the effective one. */
static s64 do_access(int dirfd, const char *path, u32 want, u32 flags)
{
	struct cred *c = &current_task()->cred, saved = *c;
	s64 ret;

	if (want & ~7U || flags & ~(u32)(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH))
		return -EINVAL;
	if (!(flags & AT_EACCESS)) {
		c->fsuid = c->uid;
		c->fsgid = c->gid;
	}
	ret = ON_PATH(dirfd, path, FOLLOW(flags), want ? inode_permission(d->inode, want) : 0);
	*c = saved;
	return ret;
}
SYSCALL_DEFINE2(access, 21, const char *, path, u32, want)
{
	return do_access(AT_FDCWD, path, want, 0);
}
SYSCALL_DEFINE3(faccessat, 269, int, dirfd, const char *, path, u32, want)
{
	return do_access(dirfd, path, want, 0);
}
SYSCALL_DEFINE4(faccessat2, 439, int, dirfd, const char *, path, u32, want, u32, flags)
{
	return do_access(dirfd, path, want, flags);
}

SYSCALL_DEFINE2(truncate, 76, const char *, path, s64, size)
{
	if (size < 0)
		return -EINVAL;
	return ON_PATH(AT_FDCWD, path, LOOKUP_FOLLOW,
		       inode_permission(d->inode, 2) ? : truncate_inode(d->inode, (u64)size));
}
SYSCALL_DEFINE2(ftruncate, 77, int, fd, s64, size)
{
	if (size < 0)
		return -EINVAL;
	return ON_FD(fd, f->mode & FMODE_WRITE && !S_ISDIR(f->inode->mode) ? truncate_inode(f->inode, (u64)size) : -EINVAL);
}

SYSCALL_DEFINE4(fallocate, 285, int, fd, int, mode, s64, off, s64, len)
{
	if (off < 0 || len <= 0)
		return -EINVAL;
	if (off + (u64)len > SHMEM_SIZE_MAX)
		return -EFBIG;
	return ON_FD(fd, !(f->mode & FMODE_WRITE) ? -EBADF : S_ISDIR(f->inode->mode) ? -EISDIR :
			 S_ISFIFO(f->inode->mode) ? -ESPIPE : !S_ISREG(f->inode->mode) ? -ENODEV :
			 f->ops->fallocate ? f->ops->fallocate(f, mode, off, len) : -EOPNOTSUPP);
}

#define UTIME_NOW	((1L << 30) - 1)
#define UTIME_OMIT	((1L << 30) - 2)

static int set_times(struct inode *inode, const struct timespec ts[2])
{
	u64 now = ktime_get_real_ns();

	for (int i = 0; i < 2; i++) {
		u64 *to = i ? &inode->mtime : &inode->atime;

		if (!ts || ts[i].nsec == UTIME_NOW)
			*to = now;
		else if (ts[i].nsec != UTIME_OMIT)
			*to = (u64)ts[i].sec * NSEC_PER_SEC + (u64)ts[i].nsec;
	}
	inode->ctime = now;
	return 0;
}

SYSCALL_DEFINE4(utimensat, 280, int, dirfd, const char *, path, const struct timespec *, user, u32, flags)
{
	struct timespec ts[2];

	if (user && copy_from_user(ts, user, sizeof(ts)))
		return -EFAULT;
	for (int i = 0; user && i < 2; i++)
		if (ts[i].nsec != UTIME_NOW && ts[i].nsec != UTIME_OMIT && (u64)ts[i].nsec >= NSEC_PER_SEC)
			return -EINVAL;
	if (!path)
		return ON_FD(dirfd, owns(f->inode) ? set_times(f->inode, user ? ts : NULL) : -EPERM);
	return ON_PATH(dirfd, path, FOLLOW(flags),
		       owns(d->inode) || (!user && !inode_permission(d->inode, 2))
		       ? set_times(d->inode, user ? ts : NULL) : -EPERM);
}

/* ---- where paths begin ---- */

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
