/* From a path to a name: one component after the other, through mounts and symbolic links.
 *
 * Sources: path_resolution(7), open(2).
 */
#include "vfs.h"
#include "panic.h"
#include "string.h"
#include "task.h"
#include "uaccess.h"

#define LINKS_MAX	40

struct walk {
	struct dentry *at;		/* referenced */
	struct dentry *root;
	u32 links;			/* symbolic links followed so far */
};

static void move_to(struct walk *w, struct dentry *d)	/* takes over the reference to d */
{
	dput(w->at);
	w->at = d;
}

/* What is mounted on a name, if anything is. namespace_lock held. */
static struct dentry *through_mounts(struct dentry *d)
{
	while (d->mounted)
		d = d->mounted;
	return d;
}

static void step_up(struct walk *w)
{
	struct dentry *d = w->at;

	mutex_lock(&namespace_lock);
	while (d != w->root && d->parent == d && d->covers)
		d = d->covers;		/* the root of what is mounted: as if at the mount point */
	if (d != w->root)
		d = through_mounts(d->parent);
	dget(d);
	mutex_unlock(&namespace_lock);
	move_to(w, d);
}

/* The name below w->at, referenced; ERR_PTR(-ENOENT, …). */
static struct dentry *lookup_one(struct walk *w, const char *name, u32 len)
{
	struct dentry *dir = w->at, *d;
	int err;

	if (!S_ISDIR(dir->inode->mode))
		return ERR_PTR(-ENOTDIR);
	err = inode_permission(dir->inode, 1);
	if (err)
		return ERR_PTR(err);
	if (len > NAME_MAX)
		return ERR_PTR(-ENAMETOOLONG);
	mutex_lock(&namespace_lock);
	d = d_find(dir, name, len);
	if (d) {
		d = through_mounts(d);
		dget(d);
	}
	mutex_unlock(&namespace_lock);
	if (d)
		return d;
	return dir->inode->ops && dir->inode->ops->lookup ? dir->inode->ops->lookup(dir, name, len) : ERR_PTR(-ENOENT);
}

static int walk_path(struct walk *w, const char *path, u32 flags, char last[NAME_MAX + 1]);

/* w->at is the directory that the link is in; afterwards it is where the link leads. */
static int follow_link(struct walk *w, struct dentry *link)
{
	const struct inode_ops *ops = link->inode->ops;
	char *target;
	int err;

	if (++w->links > LINKS_MAX)
		return -ELOOP;
	if (ops && ops->follow) {
		struct dentry *d = ops->follow(link->inode);

		if (IS_ERR(d))
			return (int)PTR_ERR(d);
		move_to(w, d);
		return 0;
	}
	target = kmalloc(PATH_MAX, GFP_KERNEL);
	if (!target)
		return -ENOMEM;
	if (link->inode->target) {
		strscpy(target, link->inode->target, PATH_MAX);
	} else {
		ssize_t len = ops && ops->readlink ? ops->readlink(link->inode, target, PATH_MAX - 1) : -EINVAL;

		if (len < 0) {
			kfree(target);
			return (int)len;
		}
		target[len] = 0;
	}
	err = walk_path(w, target, LOOKUP_FOLLOW, NULL);
	kfree(target);
	return err;
}

/* Walks a path from w->at (from the root if it is absolute). With `last` the final component is not looked up but copied;
 * "" if there is none. w->at always stays a referenced name. */
static int walk_path(struct walk *w, const char *path, u32 flags, char last[NAME_MAX + 1])
{
	if (!*path)
		return -ENOENT;
	if (*path == '/') {
		dget(w->root);
		move_to(w, w->root);
	}
	if (last)
		last[0] = 0;
	while (1) {
		const char *name;
		struct dentry *d;
		bool final, slash;
		u32 len;

		while (*path == '/')
			path++;
		if (!*path)
			return 0;
		name = path;
		while (*path && *path != '/')
			path++;
		len = (u32)(path - name);
		slash = *path == '/';
		while (*path == '/')
			path++;
		final = !*path;
		if (final && last) {
			if (len > NAME_MAX)
				return -ENAMETOOLONG;
			if (!S_ISDIR(w->at->inode->mode))
				return -ENOTDIR;
			memcpy(last, name, len);
			last[len] = 0;
			return slash ? 1 : 0;	/* 1: only a directory can be meant */
		}
		if (len == 1 && *name == '.') {
			if (!S_ISDIR(w->at->inode->mode))
				return -ENOTDIR;
			continue;
		}
		if (len == 2 && name[0] == '.' && name[1] == '.') {
			int err = S_ISDIR(w->at->inode->mode) ? inode_permission(w->at->inode, 1) : -ENOTDIR;

			if (err)
				return err;
			step_up(w);
			continue;
		}
		d = lookup_one(w, name, len);
		if (IS_ERR(d))
			return (int)PTR_ERR(d);
		if (S_ISLNK(d->inode->mode) && (!final || slash || flags & LOOKUP_FOLLOW)) {
			int err = follow_link(w, d);

			dput(d);
			if (err)
				return err;
		} else {
			move_to(w, d);
		}
		if ((slash || !final) && !S_ISDIR(w->at->inode->mode))
			return -ENOTDIR;
	}
}

static int start_of(int dirfd, const char *path, struct dentry **out)
{
	struct task *t = current_task();
	struct file *f;

	if (!t) {
		*out = rootfs->root;
	} else if (*path == '/' || dirfd == AT_FDCWD) {
		*out = t->fs->cwd;
	} else {
		f = fget_raw(dirfd);
		if (!f)
			return -EBADF;
		*out = f->dentry;
		dget(*out);
		fput(f);
		return 0;
	}
	dget(*out);
	return 0;
}

int path_lookup(int dirfd, const char *path, u32 flags, struct dentry **out, char last[NAME_MAX + 1])
{
	struct task *t = current_task();
	struct walk w = { .root = t ? t->fs->root : rootfs->root };
	int err = start_of(dirfd, path, &w.at);

	if (err)
		return err;
	if (!*path && flags & AT_EMPTY_PATH) {
		*out = w.at;
		return 0;
	}
	if (*path && *path != '/' && !S_ISDIR(w.at->inode->mode))
		err = -ENOTDIR;
	else
		err = walk_path(&w, path, flags, flags & LOOKUP_PARENT ? last : NULL);
	if (err >= 0 && flags & LOOKUP_DIRECTORY && !S_ISDIR(w.at->inode->mode))
		err = -ENOTDIR;
	if (err < 0) {
		dput(w.at);
		return err;
	}
	*out = w.at;
	return err;
}

/* ---- paths of programs ---- */

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
