/* /proc, as far as programs look: files about the kernel. Those about processes are in proc_pid.c. */
#include "vfs.h"
#include "arch.h"
#include "init.h"
#include "kho.h"
#include "ktimer.h"
#include "panic.h"
#include "proc.h"
#include "release.h"
#include "string.h"
#include "task.h"

#define PROC_MAGIC	0x9fa0

struct super *procfs;

static int show_cmdline(struct seq *s, void *unused)
{
	(void)unused;
	seq_printf(s, "%s\n", boot_command_line);
	return 0;
}

static int show_version(struct seq *s, void *unused)
{
	(void)unused;
	seq_printf(s, "Linux version %s (luemu, release \"%s\")\n", RELEASE_VERSION, RELEASE_NAME);
	return 0;
}

static void kib(struct seq *s, const char *name, u64 pages)
{
	seq_printf(s, "%-15s %8lu kB\n", name, pages * (PAGE_SIZE / 1024));
}

static u64 nr_cma_pages(void)
{
	u64 pages = 0;

	for (u32 i = 0; kho_is_enabled() && i < kho_scratch_cnt; i++)
		pages += PFN_DOWN(kho_scratch[i].size);
	return pages;
}

static int show_meminfo(struct seq *s, void *unused)
{
	(void)unused;
	kib(s, "MemTotal:", nr_managed_pages());
	kib(s, "MemFree:", nr_free_pages());
	kib(s, "MemAvailable:", nr_free_pages());
	kib(s, "Buffers:", 0);
	kib(s, "Cached:", page_cache_pages());
	kib(s, "SwapCached:", 0);
	kib(s, "SwapTotal:", 0);
	kib(s, "SwapFree:", 0);
	kib(s, "Shmem:", page_cache_pages());
	kib(s, "CmaTotal:", nr_cma_pages());
	kib(s, "CmaFree:", nr_free_cma_pages());
	seq_printf(s, "HugePages_Total: %7d\nHugePages_Free:  %7d\nHugepagesize:   %8d kB\n", 0, 0, 2048);
	return 0;
}

static int show_misc(struct seq *s, void *unused)
{
	(void)unused;
	show_devices(s, 10);
	return 0;
}

static int show_filesystems(struct seq *s, void *unused)
{
	static const char *const types[] = { "sysfs", "tmpfs", "proc", "devtmpfs", "debugfs", "ramfs" };

	(void)unused;
	for (u32 i = 0; i < ARRAY_SIZE(types); i++)
		seq_printf(s, "nodev\t%s\n", types[i]);
	return 0;
}

static int show_uptime(struct seq *s, void *unused)
{
	u64 now = ktime_get_ns() / 10000000;

	(void)unused;
	seq_printf(s, "%lu.%02lu 0.00\n", now / 100, now % 100);
	return 0;
}

static int show_loadavg(struct seq *s, void *unused)
{
	(void)unused;
	seq_printf(s, "0.00 0.00 0.00 1/1 %d\n", current_process()->pid);
	return 0;
}

static int show_stat(struct seq *s, void *unused)
{
	(void)unused;
	seq_printf(s, "cpu  0 0 0 %lu 0 0 0 0 0 0\ncpu0 0 0 0 %lu 0 0 0 0 0 0\nbtime %lu\n", jiffies, jiffies,
		   (ktime_get_real_ns() - ktime_get_ns()) / NSEC_PER_SEC);
	return 0;
}

static int show_cpuinfo(struct seq *s, void *unused)
{
	u32 r[4];
	char vendor[13] = "";

	(void)unused;
	cpuid(0, 0, r);
	memcpy(vendor, &r[1], 4);
	memcpy(vendor + 4, &r[3], 4);
	memcpy(vendor + 8, &r[2], 4);
	cpuid(1, 0, r);
	seq_printf(s, "processor\t: 0\nvendor_id\t: %s\ncpu family\t: %u\nmodel\t\t: %u\nstepping\t: %u\n\n", vendor,
		   (r[0] >> 8 & 15) + (r[0] >> 20 & 255), (r[0] >> 4 & 15) | (r[0] >> 12 & 0xf0), r[0] & 15);
	return 0;
}

/* The firmware's memory map with the kernel in it, as kexec-tools reads it. */
static int show_iomem(struct seq *s, void *unused)
{
	static const char *const names[] = { "Reserved", "System RAM", "Reserved", "ACPI Tables",
					     "ACPI Non-volatile Storage" };
	u64 code = kernel_phys, data = kernel_phys + (u64)(_rodata - _text);

	(void)unused;
	for (u32 i = 0; i < e820_count; i++) {
		const struct e820_entry *e = &e820_table[i];

		seq_printf(s, "%08lx-%08lx : %s\n", e->addr, e->addr + e->size - 1,
			   e->type < ARRAY_SIZE(names) ? names[e->type] : "Reserved");
		if (e->type == E820_RAM && kernel_phys >= e->addr && kernel_phys < e->addr + e->size)
			seq_printf(s, "  %08lx-%08lx : Kernel code\n  %08lx-%08lx : Kernel data\n", code, data - 1, data,
				   kernel_phys + (u64)(_end - _text) - 1);
	}
	return 0;
}

static int show_word(struct seq *s, void *text)
{
	seq_printf(s, "%s\n", (const char *)text);
	return 0;
}

static const struct inode_ops proc_dir_ops = { 0 };

static struct dentry *make_dir(struct dentry *parent, const char *name)
{
	struct dentry *d = vfs_make(parent, name, S_IFDIR | 0555, NULL, NULL);

	if (IS_ERR(d))
		panic("no memory for /proc");
	d->inode->ops = &proc_dir_ops;
	return d;
}

static int proc_init(void)
{
	struct inode *inode;
	struct dentry *root, *sys, *kernel;

	procfs = super_create("proc", PROC_MAGIC);
	inode = procfs ? inode_new(procfs, S_IFDIR | 0555) : NULL;
	root = inode ? d_make_root(procfs, inode) : NULL;
	if (!root)
		return -ENOMEM;
	seq_file_create(root, "cmdline", 0444, show_cmdline, NULL);
	seq_file_create(root, "version", 0444, show_version, NULL);
	seq_file_create(root, "meminfo", 0444, show_meminfo, NULL);
	seq_file_create(root, "misc", 0444, show_misc, NULL);
	seq_file_create(root, "filesystems", 0444, show_filesystems, NULL);
	seq_file_create(root, "uptime", 0444, show_uptime, NULL);
	seq_file_create(root, "loadavg", 0444, show_loadavg, NULL);
	seq_file_create(root, "stat", 0444, show_stat, NULL);
	seq_file_create(root, "cpuinfo", 0444, show_cpuinfo, NULL);
	seq_file_create(root, "iomem", 0400, show_iomem, NULL);
	sys = make_dir(root, "sys");
	kernel = make_dir(sys, "kernel");
	seq_file_create(kernel, "osrelease", 0444, show_word, RELEASE_VERSION);
	seq_file_create(kernel, "ostype", 0444, show_word, "Linux");
	seq_file_create(kernel, "hostname", 0444, show_word, "(none)");
	seq_file_create(kernel, "pid_max", 0444, show_word, "32768");
	proc_pid_init(root);
	return 0;
}
subsys_initcall(proc_init);
