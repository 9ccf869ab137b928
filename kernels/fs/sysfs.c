/* sysfs and debugfs, as far as live update is concerned: /sys/kernel/kexec_loaded, and the place where KHO puts its
 * files (/sys/kernel/debug/kho). */
#include "vfs.h"
#include "init.h"
#include "kexec.h"
#include "string.h"

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
	vfs_make(kernel, "debug", S_IFDIR | 0700, NULL, NULL);
	seq_file_create(kernel, "kexec_loaded", 0444, show_kexec_loaded, NULL);
	seq_file_create(kernel, "kexec_crash_loaded", 0444, show_number, NULL);
	seq_file_create(kernel, "kexec_crash_size", 0444, show_number, NULL);
	return 0;
}
core_initcall(sysfs_init);
