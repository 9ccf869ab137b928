/* Which functions are for programs: `vfio-pci.ids=VENDOR:DEVICE[,…]` or `vfio-pci.ids=all` on the command line, and all that
 * were handed over. Each gets a device file, numbered in the order of the functions, and a directory in sysfs that says
 * which is which:
 *
 *	/dev/vfio/devices/vfioN
 *	/sys/bus/pci/devices/0000:BB:DD.F/{vendor,device,class}
 *	/sys/bus/pci/devices/0000:BB:DD.F/vfio-dev/vfioN/dev
 */
#define pr_fmt(fmt) "vfio-pci: " fmt
#include "vfio.h"
#include "errno.h"
#include "init.h"
#include "panic.h"
#include "printk.h"
#include "string.h"
#include "vfs.h"

#define IDS_MAX		16
#define VFIO_MAJOR	244

LIST_HEAD(vfio_devices);
static struct pci_id ids[IDS_MAX];
static unsigned int nr_ids;
static bool all;
static u32 next_nr;
static struct dentry *dev_dir, *sys_dir;

static int hex(const char **p, u16 *out)
{
	u32 value = 0, digits = 0;

	for (; digits < 5; digits++, ++*p) {
		char c = **p, low = (char)(c | 0x20);

		if (c >= '0' && c <= '9')
			value = value << 4 | (u32)(c - '0');
		else if (low >= 'a' && low <= 'f')
			value = value << 4 | (u32)(low - 'a' + 10);
		else
			break;
	}
	*out = (u16)value;
	return digits && digits < 5 ? 0 : -EINVAL;
}

static int ids_param(const char *value)
{
	if (!strcmp(value, "all")) {
		all = true;
		return 0;
	}
	while (*value) {
		struct pci_id id;

		if (hex(&value, &id.vendor) || *value++ != ':' || hex(&value, &id.device) || (*value && *value != ','))
			return -EINVAL;
		if (nr_ids == IDS_MAX)
			return -ENOSPC;
		ids[nr_ids++] = id;
		value += *value == ',';
	}
	return 0;
}
kernel_param("vfio-pci.ids", ids_param);

static bool chosen(const struct pci_dev *dev)
{
	if (all || dev->incoming)
		return true;
	for (unsigned int i = 0; i < nr_ids; i++)
		if (ids[i].vendor == dev->vendor && ids[i].device == dev->device)
			return true;
	return false;
}

struct vfio_device *vfio_of(struct pci_dev *dev)
{
	struct vfio_device *v;

	list_for_each_entry(v, &vfio_devices, list)
		if (v->dev == dev)
			return v;
	return NULL;
}

/* ---- names ---- */

static int show_vendor(struct seq *s, void *dev)
{
	seq_printf(s, "0x%04x\n", ((struct pci_dev *)dev)->vendor);
	return 0;
}

static int show_device(struct seq *s, void *dev)
{
	seq_printf(s, "0x%04x\n", ((struct pci_dev *)dev)->device);
	return 0;
}

static int show_class(struct seq *s, void *dev)
{
	seq_printf(s, "0x%06x\n", ((struct pci_dev *)dev)->class);
	return 0;
}

static int show_number(struct seq *s, void *v)
{
	seq_printf(s, "%u:%u\n", VFIO_MAJOR, ((struct vfio_device *)v)->nr);
	return 0;
}

static struct dentry *directory(struct dentry *parent, const char *name)
{
	return IS_ERR(parent) ? parent : vfs_make(parent, name, S_IFDIR | 0755, NULL, NULL);
}

static int make_names(struct vfio_device *v)
{
	struct dentry *dir;
	char name[32];

	if (!dev_dir) {
		dev_dir = directory(directory(devtmpfs->root, "vfio"), "devices");
		sys_dir = directory(directory(directory(sysfs->root, "bus"), "pci"), "devices");
	}
	scnprintf(name, sizeof(name), "0000:" PCI_NAME, PCI_NAME_ARGS(v->dev));
	dir = directory(sys_dir, name);
	if (IS_ERR(dir) || IS_ERR(dev_dir))
		return -ENOMEM;
	seq_file_create(dir, "vendor", 0444, show_vendor, v->dev);
	seq_file_create(dir, "device", 0444, show_device, v->dev);
	seq_file_create(dir, "class", 0444, show_class, v->dev);
	scnprintf(name, sizeof(name), "vfio%u", v->nr);
	dir = directory(directory(dir, "vfio-dev"), name);
	if (IS_ERR(dir))
		return -ENOMEM;
	seq_file_create(dir, "dev", 0444, show_number, v);
	v->node = vfs_make(dev_dir, name, S_IFCHR | 0600, &vfio_file_ops, v);
	if (IS_ERR(v->node))
		return (int)PTR_ERR(v->node);
	v->node->inode->rdev = MKDEV(VFIO_MAJOR, v->nr);
	return 0;
}

/* ---- driver ---- */

static int vfio_probe(struct pci_dev *dev)
{
	struct vfio_device *v;
	int err;

	if (!chosen(dev))
		return -ENODEV;
	v = kzalloc(sizeof(*v), GFP_KERNEL);
	if (!v)
		return -ENOMEM;
	v->dev = dev;
	v->nr = next_nr;
	v->irq = VFIO_IRQS;
	mutex_init(&v->lock);
	ktimer_init(&v->unmask_later, vfio_unmask_later);
	mapping_init(&v->areas, NULL);
	err = make_names(v);
	if (err) {
		kfree(v);
		return err;
	}
	next_nr++;
	dev->driver_data = v;
	list_add_tail(&v->list, &vfio_devices);
	pr_info(PCI_NAME " [%04x:%04x] is /dev/vfio/devices/vfio%u\n", PCI_NAME_ARGS(dev), dev->vendor, dev->device, v->nr);
	return 0;
}

/* Its program is not asked any more: it is stopped. */
static void vfio_shutdown(struct pci_dev *dev)
{
	struct vfio_device *v = dev->driver_data;

	if (!v->owner)
		return;
	vfio_irq_disable(v);
	pci_set_master(dev, false);
	vfio_reset(v);
}

static struct pci_driver vfio_driver = {
	.name = "vfio-pci", .incoming = true, .probe = vfio_probe, .shutdown = vfio_shutdown,
};

static int vfio_init(void)
{
	return pci_register_driver(&vfio_driver);
}
fs_initcall(vfio_init);		/* before the kernel's own drivers */
