/* Drivers and functions: who gets whom, and the end of both.
 *
 * A driver that registers is offered each function that is nobody's, in the order of the list. A function that was handed
 * over is offered only to drivers that know what that means. At the shutdown functions are told in the opposite order;
 * then no function masters the bus but those that are handed over, and the bridges above them.
 */
#define pr_fmt(fmt) "pci: " fmt
#include "pci_internal.h"
#include "breakage.h"
#include "errno.h"
#include "init.h"
#include "kexec.h"
#include "printk.h"
#include "string.h"

static LIST_HEAD(drivers);
static void pci_shutdown(void);
static struct shutdown_hook hook = { .fn = pci_shutdown };	/* no name: a machine where no driver has work is silent */

static bool wants(const struct pci_driver *drv, const struct pci_dev *dev)
{
	if (!drv->ids)
		return true;
	for (const struct pci_id *id = drv->ids; id->vendor; id++)
		if (id->vendor == dev->vendor && id->device == dev->device)
			return true;
	return false;
}

static void offer(struct pci_driver *drv, struct pci_dev *dev)
{
	int err;

	if (dev->driver || dev->header != 0 || (dev->incoming && !drv->incoming) || !wants(drv, dev))
		return;
	dev->driver = drv;
	err = drv->probe(dev);
	if (!err) {
		hook.name = "pci";
		return;
	}
	dev->driver = NULL;
	dev->driver_data = NULL;
	pci_free_irq(dev);
	if (err != -ENODEV)
		pr_err(PCI_NAME ": driver %s failed: %d\n", PCI_NAME_ARGS(dev), drv->name, err);
}

int pci_register_driver(struct pci_driver *drv)
{
	struct pci_driver *other;
	struct pci_dev *dev;

	list_for_each_entry(other, &drivers, list)
		if (other == drv || !strcmp(other->name, drv->name))
			return -EEXIST;
	list_add_tail(&drv->list, &drivers);
	list_for_each_entry(dev, &pci_devices, list)
		offer(drv, dev);
	return 0;
}

void pci_release(struct pci_dev *dev)
{
	if (dev->driver && dev->driver->remove)
		dev->driver->remove(dev);
	pci_free_irq(dev);
	dev->driver = NULL;
	dev->driver_data = NULL;
}

/* A bridge comes after all that is behind it. */
static void pci_shutdown(void)
{
	struct pci_dev *dev;

	list_for_each_entry_reverse(dev, &pci_devices, list) {
		if (pci_luo_kept(dev))
			continue;
		if (dev->driver && dev->driver->shutdown)
			dev->driver->shutdown(dev);
		pci_free_irq(dev);
		if (!breaks("bus-master", NULL))	// break: it can go on writing to memory
			pci_set_master(dev, false);
	}
}

static int pci_init(void)
{
	pci_luo_start();
	pci_scan();
	pci_luo_scanned();
	if (!list_empty(&pci_devices))
		register_shutdown(&hook);
	return 0;
}
subsys_initcall(pci_init);
