/* tmpfs: names are pinned dentries, contents are shmem. The root file system is one, and /tmp, and whatever is mounted. */
#include "vfs.h"
#include "string.h"

#define TMPFS_MAGIC	0x01021994

static const struct inode_ops tmpfs_ops;

/* The driver may come later than the node, so it is looked for when the node is opened. */
static int device_open(struct inode *inode, struct file *f)
{
	const struct file_ops *ops = chrdev_fops(inode->rdev);

	if (!ops)
		return -ENXIO;
	f->ops = ops;
	return ops->open ? ops->open(inode, f) : 0;
}
static const struct file_ops device_fops = { .open = device_open };

static int tmpfs_create(struct dentry *dir, struct dentry *new, u32 mode, u64 rdev)
{
	struct inode *inode = inode_new(dir->super, mode);

	if (!inode)
		return -ENOMEM;
	inode->ops = &tmpfs_ops;
	inode->rdev = rdev;
	if (S_ISREG(mode) && shmem_init_inode(inode)) {
		iput(inode);
		return -ENOMEM;
	}
	if (S_ISCHR(mode))
		inode->fops = &device_fops;
	if (S_ISFIFO(mode))
		inode->fops = &fifo_file_ops;
	new->inode = inode;
	return 0;
}

static int tmpfs_mkdir(struct dentry *dir, struct dentry *new, u32 mode)
{
	return tmpfs_create(dir, new, mode, 0);
}

static int tmpfs_symlink(struct dentry *dir, struct dentry *new, const char *target)
{
	u64 size = strlen(target) + 1;
	int err = tmpfs_create(dir, new, S_IFLNK | 0777, 0);

	if (err)
		return err;
	new->inode->target = kmalloc(size, GFP_KERNEL);
	if (!new->inode->target)
		return -ENOMEM;		/* the caller drops the name, and the inode with it */
	memcpy(new->inode->target, target, size);
	new->inode->size = size - 1;
	return 0;
}

static int tmpfs_setsize(struct inode *inode, u64 size)
{
	return shmem_inode(inode) ? shmem_truncate(inode, size) : -EINVAL;
}

static const struct inode_ops tmpfs_ops = {
	.create = tmpfs_create, .mkdir = tmpfs_mkdir, .symlink = tmpfs_symlink, .writable = true,
	.setsize = tmpfs_setsize,
};

/* A file system of this kind under another name: devtmpfs. */
struct super *tmpfs_like(const char *type)
{
	struct super *s = super_create(type, TMPFS_MAGIC);
	struct inode *inode;

	if (!s)
		return NULL;
	inode = inode_new(s, S_IFDIR | 0755);
	if (inode)
		inode->ops = &tmpfs_ops;
	if (!d_make_root(s, inode)) {
		kfree(s);
		return NULL;
	}
	return s;
}

struct super *tmpfs_mount(void)
{
	struct super *s = tmpfs_like("tmpfs");

	if (s)
		s->root->inode->mode = S_IFDIR | 01777;
	return s;
}
