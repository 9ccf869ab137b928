/* /sys/kernel/debug/kho: what was handed over, and what will be, as bytes.
 *
 *	in/fdt, in/sub_fdts/NAME	from the previous kernel; only if there was one
 *	out/fdt, out/sub_fdts/NAME	for the next one, as it is now
 *	out/scratch_phys, scratch_len	a line an area
 *
 * What came in is copied before anybody consumes it: a file shows what was handed over, not what its memory is used for
 * today. The root FDT that goes out grows and shrinks with its sub-trees, and is shown whole.
 */
#define pr_fmt(fmt) "KHO: " fmt
#include "kho_internal.h"
#include "errno.h"
#include "init.h"
#include "printk.h"
#include "string.h"
#include "uaccess.h"
#include "vfs.h"

#define COPY_MAX	(1UL << 20)	/* a larger blob is not shown */
#define IN_MAX		16

struct blob {
	struct list_head list;		/* of what goes out */
	char name[FDT_NAME_MAX + 1];
	const void *mem;		/* NULL: it went away while a file was open */
	u64 size;
	struct dentry *file;
};

static struct blob in[IN_MAX], in_fdt;
static unsigned int nr_in;
static struct list_head out = LIST_HEAD_INIT(out);
static struct dentry *out_dir;		/* sub_fdts of what goes out */

/* ---- files ---- */

static ssize_t give(const void *mem, u64 have, void *user, u64 size, loff_t *pos)
{
	u64 n = (u64)*pos < have ? min(size, have - (u64)*pos) : 0;

	if (copy_to_user(user, (const u8 *)mem + *pos, n))
		return -EFAULT;
	*pos += (loff_t)n;
	return (ssize_t)n;
}

static ssize_t blob_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	const struct blob *b = f->inode->private;

	return b->mem ? give(b->mem, b->size, user, size, pos) : -ENODEV;
}
static const struct file_ops blob_fops = { .read = blob_read, .llseek = generic_llseek };

static ssize_t fdt_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	void *copy = kmalloc(PAGE_SIZE, GFP_KERNEL);
	ssize_t n;

	(void)f;
	if (!copy)
		return -ENOMEM;
	mutex_lock(&kho_out.fdt_lock);
	memcpy(copy, kho_out.fdt, PAGE_SIZE);
	mutex_unlock(&kho_out.fdt_lock);
	n = give(copy, fdt_totalsize(copy), user, size, pos);
	kfree(copy);
	return n;
}
static const struct file_ops fdt_fops = { .read = fdt_read, .llseek = generic_llseek };

static int show_phys(struct seq *s, void *unused)
{
	(void)unused;
	for (unsigned int i = 0; i < kho_scratch_cnt; i++)
		seq_printf(s, "0x%lx\n", kho_scratch[i].addr);
	return 0;
}

static int show_len(struct seq *s, void *unused)
{
	(void)unused;
	for (unsigned int i = 0; i < kho_scratch_cnt; i++)
		seq_printf(s, "0x%lx\n", kho_scratch[i].size);
	return 0;
}

/* NULL without memory: then there is no file, and nothing else is amiss. */
static struct dentry *make_dir(struct dentry *parent, const char *name)
{
	struct dentry *d = parent ? vfs_make(parent, name, S_IFDIR | 0755, NULL, NULL) : NULL;

	return IS_ERR(d) ? NULL : d;
}

static void make_file(struct dentry *dir, const char *name, struct blob *b, const struct file_ops *fops)
{
	struct dentry *d = dir ? vfs_make(dir, name, S_IFREG | 0400, fops, b) : NULL;

	if (!d || IS_ERR(d))
		return;
	d->inode->size = b ? b->size : 0;
	if (b)
		b->file = d;
}

/* ---- from the previous kernel ---- */

static bool copy(struct blob *b, const char *name, const void *mem, u64 size)
{
	void *to = size && size <= COPY_MAX ? kmalloc(size, GFP_KERNEL) : NULL;

	if (!to)
		return false;
	memcpy(to, mem, size);
	b->mem = to;
	b->size = size;
	strscpy(b->name, name, sizeof(b->name));
	return true;
}

/* Names were found to be names, but not necessarily ones that a file can have. */
static bool is_file_name(const char *name)
{
	return *name && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..");
}

/* Before anybody consumes a blob, and before there can be files. */
static int keep_incoming(void)
{
	const void *fdt = kho_in_fdt();
	phys_addr_t phys;
	u64 size;

	if (!fdt)
		return 0;
	copy(&in_fdt, "fdt", fdt, fdt_totalsize(fdt));
	for (int node = fdt_first_subnode(fdt, FDT_ROOT); node >= 0; node = fdt_next_subnode(fdt, node)) {
		const char *name = fdt_node_name(fdt, node);

		if (nr_in < IN_MAX && is_file_name(name) && kho_subtree_blob(node, &phys, &size) &&
		    copy(&in[nr_in], name, phys_to_virt(phys), size))
			nr_in++;
	}
	return 0;
}
early_initcall(keep_incoming);

static void show_incoming(struct dentry *top)
{
	struct dentry *dir = make_dir(top, "in"), *subs = make_dir(dir, "sub_fdts");

	make_file(dir, "fdt", &in_fdt, &blob_fops);
	for (unsigned int i = 0; i < nr_in; i++)
		make_file(subs, in[i].name, &in[i], &blob_fops);
}

/* ---- for the next kernel ---- */

void kho_debugfs_init(void)
{
	struct dentry *top = debugfs ? make_dir(debugfs->root, "kho") : NULL, *dir = make_dir(top, "out");

	if (in_fdt.mem)
		show_incoming(top);
	make_file(dir, "fdt", NULL, &fdt_fops);
	if (dir) {
		seq_file_create(dir, "scratch_phys", 0400, show_phys, NULL);
		seq_file_create(dir, "scratch_len", 0400, show_len, NULL);
	}
	out_dir = make_dir(dir, "sub_fdts");
}

void kho_debugfs_add(const char *name, const void *mem, u64 size)
{
	struct blob *b = out_dir ? kzalloc(sizeof(*b), GFP_KERNEL) : NULL;

	if (!b)
		return;
	b->mem = mem;
	b->size = size;
	make_file(out_dir, name, b, &blob_fops);
	list_add_tail(&b->list, &out);
}

void kho_debugfs_remove(const void *mem)
{
	struct blob *b;

	list_for_each_entry(b, &out, list) {
		if (b->mem != mem)
			continue;
		b->mem = NULL;		/* whoever has the file open finds nothing; what describes it stays for his sake */
		if (b->file)
			vfs_remove(b->file);
		list_del(&b->list);
		return;
	}
}
