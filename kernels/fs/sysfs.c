/* sysfs and debugfs, as far as live update is concerned: /sys/kernel/kexec_loaded, /sys/firmware/initrd, and the place where KHO puts its
 * files (/sys/kernel/debug/kho). */
#include "vfs.h"
#include "arch.h"
#include "init.h"
#include "kexec.h"
#include "string.h"
#include "uaccess.h"

#define SYSFS_MAGIC	0x62656572
#define DEBUGFS_MAGIC	0x64626720

struct super *sysfs, *debugfs;

static int show_kexec_loaded(struct seq *s, void *unused)
{
	(void)unused;
	seq_printf(s, "%d\n", kexec_is_loaded());
	return 0;
}

static int show_number(struct seq *s, void *value)
{
	seq_printf(s, "%lu\n", (u64)value);
	return 0;
}

/* The initramfs as the boot loader passed it: what is given to the next kernel, too. Its memory is never freed. */
static const void *initrd_contents(struct file *f)
{
	(void)f;
	return phys_to_virt(boot_info.initrd);
}

static ssize_t initrd_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	u64 n = (u64)*pos < f->inode->size ? min(size, f->inode->size - (u64)*pos) : 0;

	if (copy_to_user(user, (const u8 *)initrd_contents(f) + *pos, n))
		return -EFAULT;
	*pos += (loff_t)n;
	return (ssize_t)n;
}
static const struct file_ops initrd_fops = {
	.read = initrd_read, .llseek = generic_llseek, .contents = initrd_contents,
};

static void make_initrd(void)
{
	struct dentry *dir = vfs_make(sysfs->root, "firmware", S_IFDIR | 0755, NULL, NULL), *d;

	if (IS_ERR(dir) || !boot_info.initrd_size)
		return;
	d = vfs_make(dir, "initrd", S_IFREG | 0440, &initrd_fops, NULL);
	if (!IS_ERR(d))
		d->inode->size = boot_info.initrd_size;
}

static struct super *make_super(const char *type, u64 magic)
{
	struct super *s = super_create(type, magic);

	return s && d_make_root(s, inode_new(s, S_IFDIR | 0755)) ? s : NULL;
}

static int sysfs_init(void)
{
	struct dentry *kernel, *fs;

	sysfs = make_super("sysfs", SYSFS_MAGIC);
	debugfs = make_super("debugfs", DEBUGFS_MAGIC);
	if (!sysfs || !debugfs)
		return -ENOMEM;
	kernel = vfs_make(sysfs->root, "kernel", S_IFDIR | 0755, NULL, NULL);
	fs = vfs_make(sysfs->root, "fs", S_IFDIR | 0755, NULL, NULL);
	if (IS_ERR(kernel) || IS_ERR(fs))
		return -ENOMEM;
	make_initrd();
	vfs_make(kernel, "debug", S_IFDIR | 0700, NULL, NULL);
	seq_file_create(kernel, "kexec_loaded", 0444, show_kexec_loaded, NULL);
	seq_file_create(kernel, "kexec_crash_loaded", 0444, show_number, NULL);
	seq_file_create(kernel, "kexec_crash_size", 0444, show_number, NULL);
	return 0;
}
core_initcall(sysfs_init);
