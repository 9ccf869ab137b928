/* mount(2): file systems are in memory, so there is no device to mount. proc, sysfs, devtmpfs and debugfs exist once, each
 * mount shows the same one; mounted at a second place, ".." at its root leads to the newest. */
#include "vfs.h"
#include "string.h"
#include "syscall.h"
#include "task.h"

#define MS_REMOUNT	0x20
#define MS_BIND		0x1000
#define MS_MOVE		0x2000
#define MS_PROPAGATION	0x1e0000

static struct super *super_by_type(const char *type)
{
	if (!strcmp(type, "tmpfs") || !strcmp(type, "ramfs") || !strcmp(type, "rootfs"))
		return tmpfs_mount();
	if (!strcmp(type, "proc"))
		return procfs;
	if (!strcmp(type, "sysfs"))
		return sysfs;
	if (!strcmp(type, "devtmpfs"))
		return devtmpfs;
	if (!strcmp(type, "debugfs"))
		return debugfs;
	if (!strcmp(type, "devpts"))
		return devptsfs;
	return ERR_PTR(-ENODEV);
}

int vfs_mount(struct super *s, struct dentry *at)
{
	int err = -EBUSY;

	mutex_lock(&namespace_lock);
	if (!at->mounted && s->root != at) {
		dget(at);
		dget(s->root);
		at->mounted = s->root;
		s->root->covers = at;
		err = 0;
	}
	mutex_unlock(&namespace_lock);
	return err;
}

SYSCALL_DEFINE5(mount, 165, const char *, source, const char *, upath, const char *, utype, u64, flags, const void *, data)
{
	struct super *s;
	struct dentry *at;
	char *type;
	int err;

	(void)source;
	(void)data;
	if (!capable())
		return -EPERM;
	err = user_path(AT_FDCWD, upath, LOOKUP_FOLLOW, &at);
	if (err)
		return err;
	if (flags & (MS_REMOUNT | MS_PROPAGATION)) {
		err = 0;
		goto out;
	}
	err = -EINVAL;
	if (flags & (MS_BIND | MS_MOVE))
		goto out;
	err = -ENOTDIR;
	if (!S_ISDIR(at->inode->mode))
		goto out;
	type = getname(utype);
	err = (int)PTR_ERR(type);
	if (IS_ERR(type))
		goto out;
	s = super_by_type(type);
	kfree(type);
	err = IS_ERR(s) ? (int)PTR_ERR(s) : s ? vfs_mount(s, at) : -ENOMEM;
out:
	dput(at);
	return err;
}

SYSCALL_DEFINE2(umount2, 166, const char *, upath, int, flags)
{
	struct dentry *root, *at;
	int err;

	if (flags & ~15)
		return -EINVAL;
	if (!capable())
		return -EPERM;
	err = user_path(AT_FDCWD, upath, LOOKUP_FOLLOW, &root);
	if (err)
		return err;
	mutex_lock(&namespace_lock);
	at = root->covers;
	if (root->parent != root || !at || at->mounted != root) {
		err = -EINVAL;
	} else {
		at->mounted = NULL;
		root->covers = NULL;
	}
	mutex_unlock(&namespace_lock);
	if (!err) {
		dput(at);
		dput(root);
	}
	dput(root);
	return err;
}
