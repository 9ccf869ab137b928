/* Domains of DMA remapping, and which function is in which: see iommu.h. One lock for all of it: whoever maps memory for
 * a device may sleep.
 *
 * A domain that is handed over stays as it is until the next kernel has finished its file: nothing may be mapped or
 * unmapped in it, and iommufd does not.
 */
#define pr_fmt(fmt) "DMAR: " fmt
#include "iommu.h"
#include "acpi.h"
#include "bitops.h"
#include "breakage.h"
#include "errno.h"
#include "kho.h"
#include "luo_devices.h"
#include "page.h"
#include "panic.h"
#include "pci.h"
#include "printk.h"
#include "sched.h"
#include "string.h"
#include "vtd.h"

#define DOMAINS		256		/* ids 1 to 255; 0 is for hardware's own use */

struct list_head iommu_domains = LIST_HEAD_INIT(iommu_domains);
static u64 used_ids[DOMAINS / 64] = { 1 };
static struct mutex lock = MUTEX_INIT(lock);

bool iommu_present(void) { return vtd.registers != NULL; }

u64 iommu_aperture_end(void)
{
	u64 host = (vtd.cap >> 16 & 63) + 1;

	return iommu_present() ? (1UL << min(host, 12UL + 9 * vtd.levels)) - 1 : ~0UL;
}

void iommu_fault(void) { vtd_fault_interrupt(); }

/* ---- domains ---- */

static struct iommu_domain *new_domain(u32 id)
{
	struct iommu_domain *d = kzalloc(sizeof(*d), GFP_KERNEL);

	if (!d)
		return NULL;
	d->id = id;
	set_bit(id, used_ids);
	list_add_tail(&d->list, &iommu_domains);
	return d;
}

static void drop_domain(struct iommu_domain *d)
{
	clear_bit(d->id, used_ids);
	list_del(&d->list);
	kfree(d);
}

static struct iommu_domain *alloc_domain(void)
{
	struct iommu_domain *d;
	u32 id = 1;

	while (id < DOMAINS && test_bit(id, used_ids))
		id++;
	if (id == DOMAINS)
		return ERR_PTR(-ENOSPC);
	d = new_domain(id);
	if (!d)
		return ERR_PTR(-ENOMEM);
	if (vtd_tables_init(&d->tables, vtd.levels, vtd.largest)) {
		drop_domain(d);
		return ERR_PTR(-ENOMEM);
	}
	return d;
}

struct iommu_domain *iommu_domain_alloc(void)
{
	struct iommu_domain *d;

	if (!iommu_present())
		return ERR_PTR(-ENODEV);
	mutex_lock(&lock);
	d = alloc_domain();
	mutex_unlock(&lock);
	return d;
}

static void free_domain(struct iommu_domain *d)
{
	BUG_ON(d->attached || d->preserved);
	/* its id may soon be another one's */
	vtd_flush_domain(d->id);
	vtd_tables_free(&d->tables);
	drop_domain(d);
}

void iommu_domain_free(struct iommu_domain *d)
{
	mutex_lock(&lock);
	free_domain(d);
	mutex_unlock(&lock);
}

u32 iommu_domain_id(struct iommu_domain *d) { return d->id; }

struct iommu_domain *iommu_domain_adopted(u32 id)
{
	struct iommu_domain *d, *found = NULL;

	mutex_lock(&lock);
	list_for_each_entry(d, &iommu_domains, list)
		if (d->adopted && d->id == id)
			found = d;
	mutex_unlock(&lock);
	return found;
}

/* ---- mapping ---- */

struct range {
	u32 domain;
	u64 iova, size;
};

static void flush(void *ctx)
{
	const struct range *r = ctx;

	if (breaks("iotlb", NULL))	// break: hardware goes on knowing what is no longer mapped
		return;
	vtd_flush_pages(r->domain, r->iova, r->size);
}

static bool in_aperture(u64 iova, u64 size)
{
	return size && iova + size > iova && iova + size - 1 <= iommu_aperture_end() &&
	       IS_ALIGNED(iova | size, PAGE_SIZE);
}

static int map(struct iommu_domain *d, u64 iova, phys_addr_t phys, u64 size, u32 prot)
{
	struct range r = { d->id, iova, size };
	struct vtd_tables as = d->tables;
	u64 done, gone;
	int err;

	if (!in_aperture(iova, size))
		return -ERANGE;
	if (prot & IOMMU_SMALL)
		as.largest = 1;
	err = vtd_tables_map(&as, iova, phys, size, prot & (IOMMU_READ | IOMMU_WRITE), &done);
	if (err == -ENOMEM && done)
		vtd_tables_unmap(&as, iova, done, flush, &r, &gone);
	d->tables.nr = as.nr;
	vtd_sync();
	if (!err)
		d->bytes += size;
	return err;
}

static int unmap(struct iommu_domain *d, u64 iova, u64 size)
{
	struct range r = { d->id, iova, size };
	u64 done;
	int err;

	if (!in_aperture(iova, size))
		return -ENOENT;
	err = vtd_tables_unmap(&d->tables, iova, size, flush, &r, &done);
	d->bytes -= done;
	return err || done ? err : -ENOENT;
}

int iommu_map(struct iommu_domain *d, u64 iova, phys_addr_t phys, u64 size, u32 prot)
{
	int err;

	mutex_lock(&lock);
	err = d->preserved || d->adopted ? -EBUSY : map(d, iova, phys, size, prot);
	mutex_unlock(&lock);
	return err;
}

int iommu_unmap(struct iommu_domain *d, u64 iova, u64 size)
{
	int err;

	mutex_lock(&lock);
	err = d->preserved || d->adopted ? -EBUSY : unmap(d, iova, size);
	mutex_unlock(&lock);
	return err;
}

bool iommu_lookup(struct iommu_domain *d, u64 iova, phys_addr_t *phys, u32 *prot)
{
	u64 entry = 0, page = 0;
	u32 level;

	mutex_lock(&lock);
	if (iova <= iommu_aperture_end())
		entry = vtd_tables_lookup(&d->tables, iova, &level);
	if (entry)
		page = (1UL << VTD_LEVEL_SHIFT(level)) - 1;
	mutex_unlock(&lock);
	if (!entry)
		return false;
	*phys = (entry & VTD_ADDRESS & ~page) | (iova & page);
	*prot = entry & (IOMMU_READ | IOMMU_WRITE);
	return true;
}

/* ---- functions ---- */

/* The domain that a function's context leads to, also when nobody has said so since the previous kernel. */
static struct iommu_domain *domain_of(struct pci_dev *dev)
{
	struct vtd_entry *e;
	struct iommu_domain *d;

	if (dev->domain || !iommu_present())
		return dev->domain;
	e = vtd_context(dev->bdf);
	if (!e || !e->low)
		return NULL;
	list_for_each_entry(d, &iommu_domains, list)
		if (d->adopted && d->id == (e->high >> 8 & 0xffff)) {
			dev->domain = d;
			return d;
		}
	return NULL;
}

static void leave(struct pci_dev *dev)
{
	struct iommu_domain *d = domain_of(dev);

	if (!d)
		return;
	vtd_clear_context(dev->bdf, d->id);
	dev->domain = NULL;
	if (!--d->attached && d->kernel)
		free_domain(d);
}

static int attach(struct iommu_domain *d, struct pci_dev *dev)
{
	struct iommu_domain *before = domain_of(dev);
	int err;

	if (before == d)
		return 0;
	if (dev->incoming || dev->preserved || d->adopted)
		return -EBUSY;
	err = vtd_set_context(dev->bdf, d->id, &d->tables);
	if (err)
		return err;
	d->attached++;
	dev->domain = d;
	if (before && !--before->attached && before->kernel)
		free_domain(before);
	return 0;
}

int iommu_attach(struct iommu_domain *d, struct pci_dev *dev)
{
	int err;

	mutex_lock(&lock);
	err = attach(d, dev);
	mutex_unlock(&lock);
	return err;
}

void iommu_detach(struct pci_dev *dev)
{
	mutex_lock(&lock);
	leave(dev);
	mutex_unlock(&lock);
}

struct iommu_domain *iommu_domain_of(struct pci_dev *dev)
{
	struct iommu_domain *d;

	mutex_lock(&lock);
	d = domain_of(dev);
	mutex_unlock(&lock);
	return d;
}

/* ---- memory of the kernel's drivers ---- */

/* Where the CPU and the device see the same address there is nothing to choose and nothing to run out of. */
void *dma_alloc(struct pci_dev *dev, u64 size, u64 *bus)
{
	unsigned int order = get_order(size);
	void *p = get_free_pages(GFP_KERNEL | __GFP_ZERO, order);
	struct iommu_domain *d;
	int err = 0;

	if (!p)
		return NULL;
	*bus = virt_to_phys(p);
	if (!iommu_present())
		return p;
	mutex_lock(&lock);
	d = domain_of(dev);
	if (!d) {
		d = alloc_domain();
		err = IS_ERR(d) ? (int)PTR_ERR(d) : attach(d, dev);
		if (!IS_ERR(d))
			d->kernel = true;
		if (!IS_ERR(d) && err)
			free_domain(d);
	} else if (!d->kernel) {
		err = -EBUSY;
	}
	if (!err)
		err = map(d, *bus, *bus, PAGE_SIZE << order, IOMMU_READ | IOMMU_WRITE);
	mutex_unlock(&lock);
	if (!err)
		return p;
	free_pages(p, order);
	return NULL;
}

void dma_free(struct pci_dev *dev, void *p, u64 size)
{
	unsigned int order = get_order(size);

	if (!p)
		return;
	mutex_lock(&lock);
	if (iommu_present() && dev->domain && dev->domain->kernel) {
		unmap(dev->domain, virt_to_phys(p), PAGE_SIZE << order);
		if (!dev->domain->bytes)
			leave(dev);
	}
	mutex_unlock(&lock);
	free_pages(p, order);
}

/* ---- start and end ---- */

static void take_over(const struct iommu_luemu_ser *ser)
{
	vtd_adopt_finish();
	for (u32 i = 0; i < ser->nr_domains; i++) {
		struct iommu_domain *d = new_domain(ser->domains[i].id);

		if (!d)
			panic("no memory for an adopted domain");
		d->tables = vtd_adopted_tables(i);
		d->bytes = ser->domains[i].bytes;
		d->adopted = true;
		for (u32 k = 0; k < ser->nr_devices; k++)
			d->attached += ser->devices[k].domain == d->id;
	}
	vtd_irq_adopt();
}

void iommu_init(void)
{
	const struct iommu_luemu_ser *ser;

	acpi_find_tables();
	if (!vtd_find())
		return;
	if (vtd_off()) {
		vtd_stop();	/* a kernel before this one may have left it on */
		vtd.registers = NULL;
		return;
	}
	ser = vtd_adopted();
	vtd_start(ser != NULL);
	if (ser)
		take_over(ser);
	pr_info("DMA is remapped%s%s\n", vtd.interrupts ? ", and so are interrupts" : "",
		ser ? ", as the previous kernel left it" : "");
}

static bool is_kept(u16 bdf)
{
	struct pci_dev *dev = pci_find(bdf);

	return iommu_luo_frozen() && dev && dev->preserved && dev->domain && dev->domain->preserved;
}

/* Contexts of functions that do not go over are cleared; whether one was left, against all rules. */
static bool clear_contexts(void)
{
	const struct vtd_entry *root = vtd.root;
	bool left = false;

	for (const struct vtd_entry *r = root; r < root + VTD_ROOT_ENTRIES; r++) {
		const struct vtd_entry *table, *e;

		if (!r->low)
			continue;
		table = phys_to_virt(r->low & VTD_ADDRESS);
		for (e = table; e < table + VTD_CONTEXT_ENTRIES; e++) {
			u16 bdf = (u16)((r - root) << 8 | (e - table));

			if (!e->low || is_kept(bdf))
				continue;
			if (breaks("bus-master", NULL))	// break: functions keep what they may reach
				left = true;
			else
				vtd_clear_context(bdf, (u32)(e->high >> 8 & 0xffff));
		}
	}
	return left;
}

void iommu_shutdown(void)
{
	bool left;

	if (!iommu_present())
		return;
	left = clear_contexts();
	if (vtd.irt)
		vtd_irq_shutdown(is_kept);
	vtd_quiet();
	/* Without anything to hand over, the next kernel begins as after power-on: it may not know this hardware. */
	if (!(left || iommu_luo_frozen()) || breaks("iommu-off", NULL))	// break: devices that run on reach all of memory
		vtd_stop();
}

/* ---- for LUO ---- */

static int preserve_table(u64 *table, void *ctx)
{
	int err = 0;

	if (!breaks("iommu-state", NULL))	// break: the tables are not handed over
		err = kho_preserve_pages(virt_to_page(table), 1);
	*(u64 *)ctx += !err;
	return err;
}

static int unpreserve_table(u64 *table, void *ctx)
{
	u64 *left = ctx;

	if (!*left)
		return 1;
	--*left;
	if (!breaks("iommu-state", NULL))
		kho_unpreserve_pages(virt_to_page(table), 1);
	return 0;
}

int iommu_domain_preserve(struct iommu_domain *d)
{
	u64 done = 0;
	int err;

	mutex_lock(&lock);
	err = vtd_tables_each(&d->tables, preserve_table, &done);
	if (err)
		vtd_tables_each(&d->tables, unpreserve_table, &done);
	else
		d->preserved = true;
	mutex_unlock(&lock);
	return err;
}

void iommu_domain_unpreserve(struct iommu_domain *d)
{
	u64 all = ~0UL;

	mutex_lock(&lock);
	vtd_tables_each(&d->tables, unpreserve_table, &all);
	d->preserved = false;
	mutex_unlock(&lock);
}

void iommu_domain_finish(struct iommu_domain *d)
{
	mutex_lock(&lock);
	d->adopted = false;
	mutex_unlock(&lock);
}
