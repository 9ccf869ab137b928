/* /dev: a tmpfs in which each registered character device has its node. */
#include "vfs.h"
#include "init.h"
#include "panic.h"
#include "printk.h"
#include "string.h"

#define MISC_MAJOR	10
#define MISC_DYNAMIC	255	/* asks for a free number, from 128 on downwards as Linux gives them */

struct super *rootfs, *devtmpfs;
static LIST_HEAD(devices);
static u32 next_dynamic = 127;

const struct file_ops *chrdev_fops(u64 rdev)
{
	struct chrdev *dev;

	list_for_each_entry(dev, &devices, list)
		if (MKDEV(dev->major, dev->minor) == rdev)
			return dev->fops;
	return NULL;
}

int register_chrdev(struct chrdev *dev)
{
	struct dentry *node;

	if (dev->major == MISC_MAJOR && dev->minor == MISC_DYNAMIC)
		dev->minor = next_dynamic--;
	node = vfs_make(devtmpfs->root, dev->name, S_IFCHR | dev->mode, dev->fops, NULL);
	if (IS_ERR(node))
		return (int)PTR_ERR(node);
	node->inode->rdev = MKDEV(dev->major, dev->minor);
	list_add_tail(&dev->list, &devices);
	return 0;
}

/* A line for each device of the major number, as /proc/misc has them. */
void show_devices(struct seq *s, u32 major)
{
	struct chrdev *dev;

	list_for_each_entry(dev, &devices, list)
		if (dev->major == major)
			seq_printf(s, "%3u %s\n", dev->minor, dev->name);
}

struct super *tmpfs_like(const char *type);

void vfs_init(void)
{
	rootfs = tmpfs_like("rootfs");
	devtmpfs = tmpfs_like("devtmpfs");
	if (!rootfs || !devtmpfs)
		panic("no memory for the root file system");
}
