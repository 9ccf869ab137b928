/* The root file system: what every system finds there, and the files of the initramfs. */
#define pr_fmt(fmt) "initramfs: " fmt
#include "rootfs.h"
#include "panic.h"
#include "printk.h"
#include "string.h"
#include "vfs.h"

static int write_file(const char *path, const void *data, u64 size, u32 mode)
{
	struct file *f = file_open(path, O_CREAT | O_TRUNC | O_WRONLY, mode);
	loff_t pos = 0;
	ssize_t n;

	if (IS_ERR(f))
		return (int)PTR_ERR(f);
	f->inode->mode = mode;
	n = kernel_write(f, data, size, &pos);
	fput(f);
	return n < 0 ? (int)n : (u64)n == size ? 0 : -ENOSPC;
}

static int make_entry(const char *path, const struct ramfs_entry *e)
{
	char target[256];
	int err = 0;

	switch (e->mode & S_IFMT) {
	case S_IFDIR:
		err = vfs_mkdir(AT_FDCWD, path, e->mode & 07777);
		break;
	case S_IFREG:
		err = write_file(path, e->data, e->size, e->mode);
		break;
	case S_IFLNK:
		if (e->size >= sizeof(target))
			return -ENAMETOOLONG;
		memcpy(target, e->data, e->size);
		target[e->size] = 0;
		err = vfs_symlink(target, AT_FDCWD, path);
		break;
	default:
		err = vfs_mknod(AT_FDCWD, path, e->mode, 0);
	}
	if (err && err != -EEXIST)
		pr_err("%s could not be made: error %d\n", path, err);
	return err == -ENOMEM || err == -ENOSPC ? err : 0;
}

void populate_rootfs(void)
{
	vfs_mkdir(AT_FDCWD, "/dev", 0755);
	vfs_mkdir(AT_FDCWD, "/root", 0700);
	vfs_mknod(AT_FDCWD, "/dev/console", S_IFCHR | 0600, MKDEV(5, 1));
	if (ramfs_for_each(make_entry))
		panic("the initramfs does not fit into memory");
}
