/* PCI functions that are handed over: the FLB pci-luemu-v1, which lives as long as a VFIO file is preserved.
 *
 * The record says which functions go over and what a scan would have to write to find out: how large their BARs are. The
 * next kernel reads it before it scans. A function in it keeps bus number, addresses, COMMAND and all else; so do the
 * bridges above it. One that is not there any more, or not as it was, ends the handover of all: no function is a master
 * then, and what is found is set up as at power-on.
 */
#define pr_fmt(fmt) "pci: " fmt
#include "luo_internal.h"
#include "luo_devices.h"
#include "../../kernels/drivers/pci_internal.h"
#include "../../kernels/drivers/vtd.h"
#include "panic.h"
#include "printk.h"
#include "string.h"

static struct pci_luemu_ser *outgoing;
static bool frozen;

/* ---- the old kernel ---- */

static bool is_above(const struct pci_dev *bridge, const struct pci_dev *dev)
{
	for (dev = dev->bridge; dev; dev = dev->bridge)
		if (dev == bridge)
			return true;
	return false;
}

static bool above_one_that_goes(const struct pci_dev *bridge)
{
	struct pci_dev *dev;

	list_for_each_entry(dev, &pci_devices, list)
		if (dev->preserved && is_above(bridge, dev))
			return true;
	return false;
}

bool pci_luo_kept(const struct pci_dev *dev)
{
	return frozen && (dev->preserved || (dev->header == 1 && above_one_that_goes(dev)));
}

static void write_function(struct pci_luemu_function *f, struct pci_dev *dev)
{
	*f = (struct pci_luemu_function){
		.bdf = dev->bdf, .vendor = dev->vendor, .device = dev->device, .class = dev->class,
		.flags = dev->preserved ? 0 : PCI_LUEMU_BRIDGE, .header = dev->header, .secondary = dev->secondary,
	};
	for (u32 i = 0; i < PCI_BARS; i++) {
		const struct pci_bar *b = &dev->bar[i];

		f->size[i] = b->size;
		if (b->size)
			f->bar[i] = b->phys | (b->io ? 1 : (b->wide ? 4 : 0) | (b->prefetch ? 8 : 0));
	}
}

int pci_luo_freeze(void)
{
	struct pci_luemu_ser *s = outgoing;
	struct pci_dev *dev;

	memset(s, 0, sizeof(*s));
	list_for_each_entry(dev, &pci_devices, list) {
		if (!dev->preserved && !(dev->header == 1 && above_one_that_goes(dev)))
			continue;
		if (s->nr_functions == PCI_LUEMU_FUNCTIONS)
			return -ENOSPC;
		write_function(&s->functions[s->nr_functions++], dev);
	}
	s->checksum = devices_sum(&s->checksum + 1, sizeof(*s) - 8);
	frozen = true;
	return 0;
}

void pci_luo_unfreeze(void) { frozen = false; }

static int pci_flb_preserve(struct liveupdate_flb_args *a)
{
	struct pci_luemu_ser *s = kho_alloc_preserve(sizeof(*s));

	if (IS_ERR(s))
		return (int)PTR_ERR(s);
	outgoing = s;
	a->data = virt_to_phys(s);
	a->obj = s;
	return 0;
}

static void pci_flb_unpreserve(struct liveupdate_flb_args *a)
{
	outgoing = NULL;
	kho_unpreserve_free(a->obj);
}

/* ---- the new kernel ---- */

static const struct pci_luemu_ser *incoming;	/* verified; functions may still turn out to be others */
static bool refused;

/* Where registers can be: a program may map them, so never memory. How large they are can not be asked of a function that
 * works. */
static bool is_no_memory(u64 phys, u64 size, u64 low)
{
	u64 end = phys + size;

	if (low & 1)
		return end <= PCI_IO_END;
	if (end <= PCI_MEMORY_END)
		return phys >= PCI_MEMORY_START;
	return low & 4 && phys >= 1UL << 32 && phys >= PFN_PHYS(max_pfn) && end > phys;
}

/* Sizes are powers of two, BARs lie on multiples of them. */
static bool bars_make_sense(const struct pci_luemu_function *f)
{
	u32 count = f->header ? 2 : PCI_BARS;

	for (u32 i = 0; i < PCI_BARS; i++) {
		u64 size = f->size[i], low = f->bar[i] & (f->bar[i] & 1 ? 3 : 15);

		if (!size && f->bar[i])
			return false;
		if (!size)
			continue;
		if (i >= count || size & (size - 1) || size < 4 || ((f->bar[i] - low) & (size - 1)) ||
		    (low & 4 && !(low & 1) && i + 1 >= count) || !is_no_memory(f->bar[i] - low, size, low))
			return false;
	}
	return true;
}

static const char *problem(const struct pci_luemu_ser *s)
{
	u32 last = 0;

	if (s->checksum != devices_sum(&s->checksum + 1, sizeof(*s) - 8))
		return "wrong checksum";
	if (!s->nr_functions || s->nr_functions > PCI_LUEMU_FUNCTIONS)
		return "impossible number of functions";
	for (u32 i = 0; i < s->nr_functions; i++) {
		const struct pci_luemu_function *f = &s->functions[i];

		if (i && f->bdf <= last)
			return "functions out of order";
		if (f->header > 1 || f->flags & ~PCI_LUEMU_BRIDGE || !f->flags != !f->header)
			return "a function of no kind that goes over";
		if (!bars_make_sense(f))
			return "an impossible BAR";
		last = f->bdf;
	}
	return NULL;
}

static int pci_flb_retrieve(struct liveupdate_flb_args *a)
{
	const struct pci_luemu_ser *s;
	unsigned int order;
	const char *what;

	if (!kho_is_preserved(claim(a->data), &order) || order) {
		pr_err("the record at %#lx was not preserved\n", a->data);
		return -EIO;
	}
	kho_own_range(claim(a->data), PAGE_SIZE);
	s = phys_to_virt(a->data);
	what = problem(s);
	if (what) {
		pr_err("the record of the previous kernel is damaged: %s\n", what);
		return -EIO;
	}
	a->obj = (void *)s;
	return 0;
}

static void pci_flb_finish(struct liveupdate_flb_args *a)
{
	incoming = NULL;
	kho_restore_free(a->obj);
}

static const struct liveupdate_flb_ops pci_flb_ops = {
	.preserve = pci_flb_preserve,
	.unpreserve = pci_flb_unpreserve,
	.retrieve = pci_flb_retrieve,
	.finish = pci_flb_finish,
};
struct liveupdate_flb pci_flb = { .ops = &pci_flb_ops, .compatible = PCI_LUEMU_COMPATIBLE };

static void refuse(void)
{
	unsigned int nr = pci_silence_all();

	refused = true;
	incoming = NULL;
	pr_err("what was handed over about functions is refused; %u of them had to be stopped\n", nr);
}

bool pci_luo_refused(void) { return refused; }

void pci_luo_start(void)
{
	void *obj;
	int err = liveupdate_flb_get_incoming(&pci_flb, &obj);

	if (err == -EOPNOTSUPP || err == -ENODATA || err == -ENOENT)
		return;
	if (!err) {
		incoming = obj;
		liveupdate_flb_put_incoming(&pci_flb);
	}
	/* without its tables a function reaches nothing that is its own */
	if (err || vtd_refused() || !vtd_adopted())
		refuse();
}

static bool register_agrees(struct pci_dev *dev, const struct pci_luemu_function *f, u32 i)
{
	u32 at = PCI_BAR0 + 4 * i;

	return pci_read(dev, at, 4) == (u32)f->bar[i] &&
		((f->bar[i] & 7) != 4 || pci_read(dev, at + 4, 4) == f->bar[i] >> 32);
}

bool pci_luo_incoming(struct pci_dev *dev)
{
	const struct pci_luemu_function *f = NULL;

	for (u32 i = 0; incoming && i < incoming->nr_functions; i++)
		if (incoming->functions[i].bdf == dev->bdf)
			f = &incoming->functions[i];
	if (!f || f->vendor != dev->vendor || f->device != dev->device || f->class != dev->class ||
	    f->header != dev->header)
		return false;
	for (u32 i = 0; i < PCI_BARS; i++) {
		if (!f->size[i])
			continue;
		if (!register_agrees(dev, f, i))
			return false;
		dev->bar[i] = (struct pci_bar){
			.size = f->size[i], .phys = f->bar[i] & ~(f->bar[i] & 1 ? 3UL : 15UL), .io = f->bar[i] & 1,
			.wide = (f->bar[i] & 5) == 4, .prefetch = (f->bar[i] & 9) == 8,
		};
	}
	dev->incoming = true;
	return true;
}

void pci_luo_scanned(void)
{
	struct pci_dev *dev;
	bool lost = false;
	u32 found = 0;

	list_for_each_entry(dev, &pci_devices, list) {
		found += dev->incoming;
		lost |= dev->incoming && dev->header == 0 && !iommu_domain_of(dev);
	}
	if (!incoming || (!lost && found == incoming->nr_functions))
		return;
	pr_err("functions that were handed over are not there, or not as they were\n");
	list_for_each_entry(dev, &pci_devices, list)
		dev->incoming = false;
	refuse();
}

/* The last function behind a bridge that goes over is an ordinary one: so is the bridge. */
void pci_luo_finish(struct pci_dev *dev)
{
	struct pci_dev *bridge, *other;

	dev->incoming = false;
	for (bridge = dev->bridge; bridge; bridge = bridge->bridge) {
		bool any = false;

		list_for_each_entry(other, &pci_devices, list)
			any |= other->incoming && is_above(bridge, other);
		if (!any)
			bridge->incoming = false;
	}
}
