/* What goes over about DMA remapping as a whole: the FLB iommu-luemu-v1, which lives as long as an iommufd is preserved.
 *
 *	preserve	record, root table, context tables and interrupt table are marked, so that they stay
 *	freeze of each iommufd	the record is written: only then it is known which functions go over
 *	next kernel	verified and adopted before memory is given out (drivers/vtd_adopt.c); here only the record goes
 */
#define pr_fmt(fmt) "iommu_luo: " fmt
#include "luo_internal.h"
#include "luo_devices.h"
#include "../../kernels/drivers/vtd.h"
#include "iommu.h"
#include "pci.h"
#include "printk.h"
#include "string.h"

/* What this kernel accepts, where tools find it in the ELF file. */
__used const char iommu_compatible[] = IOMMU_LUEMU_COMPATIBLE;
__used const char iommufd_compatible[] = IOMMUFD_LUEMU_COMPATIBLE;

static struct iommu_luemu_ser *outgoing;
static u64 files[IOMMU_LUEMU_FILES];
static u32 nr_files;
static bool frozen;			/* written down, for a kexec that comes next */

static int preserve_page(void *p) { return kho_preserve_pages(virt_to_page(p), 1); }
static void unpreserve_page(void *p) { kho_unpreserve_pages(virt_to_page(p), 1); }

int iommu_luo_table(void *table) { return outgoing ? preserve_page(table) : 0; }

/* Root, interrupt table, context tables: calls undo for those before the one that fails. */
static int each_table(int (*fn)(void *p), void (*undo)(void *p))
{
	void *done[VTD_ROOT_ENTRIES + 2];
	u32 nr = 0;
	int err = 0;

	done[nr++] = vtd.root;
	if (vtd.irt)
		done[nr++] = vtd.irt;
	for (u32 bus = 0; bus < VTD_ROOT_ENTRIES; bus++)
		if (vtd.root[bus].low)
			done[nr++] = phys_to_virt(vtd.root[bus].low & VTD_ADDRESS);
	for (u32 i = 0; i < nr; i++) {
		err = fn ? fn(done[i]) : 0;
		if (!fn)
			undo(done[i]);
		if (err) {
			while (i--)
				undo(done[i]);
			return err;
		}
	}
	return 0;
}

static int iommu_flb_preserve(struct liveupdate_flb_args *a)
{
	struct iommu_luemu_ser *ser;
	int err;

	if (!iommu_present())
		return -ENODEV;
	ser = kho_alloc_preserve(sizeof(*ser));
	if (IS_ERR(ser))
		return (int)PTR_ERR(ser);
	err = each_table(preserve_page, unpreserve_page);
	if (err) {
		kho_unpreserve_free(ser);
		return err;
	}
	outgoing = ser;
	a->data = virt_to_phys(ser);
	a->obj = ser;
	return 0;
}

static void iommu_flb_unpreserve(struct liveupdate_flb_args *a)
{
	outgoing = NULL;
	each_table(NULL, unpreserve_page);
	kho_unpreserve_free(a->obj);
}

int iommu_luo_add_file(u64 record)
{
	if (!outgoing)
		return -ENOENT;
	if (nr_files == IOMMU_LUEMU_FILES)
		return -ENOSPC;
	files[nr_files++] = record;
	return 0;
}

void iommu_luo_remove_file(u64 record)
{
	for (u32 i = 0; i < nr_files; i++)
		if (files[i] == record) {
			files[i] = files[--nr_files];
			return;
		}
}

static int add_domains(struct iommu_luemu_ser *s)
{
	struct iommu_domain *d;

	list_for_each_entry(d, &iommu_domains, list) {
		if (!d->preserved)
			continue;
		if (s->nr_domains == IOMMU_LUEMU_DOMAINS)
			return -ENOSPC;
		s->domains[s->nr_domains++] = (struct iommu_luemu_domain){
			.id = d->id, .levels = d->tables.levels, .top = virt_to_phys(d->tables.top),
			.nr_tables = d->tables.nr, .bytes = d->bytes,
		};
	}
	return 0;
}

static int add_devices(struct iommu_luemu_ser *s)
{
	struct pci_dev *dev;

	list_for_each_entry(dev, &pci_devices, list) {
		if (!dev->preserved)
			continue;
		if (!dev->domain || !dev->domain->preserved) {
			pr_err("%02x:%02x.%u is to be handed over, and the tables that it uses are not\n",
			       dev->bdf >> 8, dev->bdf >> 3 & 31, dev->bdf & 7);
			return -EINVAL;
		}
		if (s->nr_devices == IOMMU_LUEMU_DEVICES)
			return -ENOSPC;
		s->devices[s->nr_devices++] = (struct iommu_luemu_device){ .bdf = dev->bdf, .domain = dev->domain->id };
	}
	return 0;
}

int iommu_luo_freeze(void)
{
	struct iommu_luemu_ser *s = outgoing;
	int err;

	memset(s, 0, sizeof(*s));
	s->unit = vtd.dmar.registers;
	s->capabilities = vtd.cap;
	s->extended = vtd.ecap;
	s->root = virt_to_phys(vtd.root);
	s->interrupts = vtd.irt ? virt_to_phys(vtd.irt) | VTD_IRTA_SIZE : 0;
	s->nr_files = nr_files;
	memcpy(s->files, files, nr_files * sizeof(*files));
	err = add_domains(s);
	if (!err)
		err = add_devices(s);
	s->checksum = devices_sum(&s->checksum + 1, sizeof(*s) - 8);
	frozen = !err;
	return err;
}

void iommu_luo_unfreeze(void) { frozen = false; }
bool iommu_luo_frozen(void) { return frozen; }

/* ---- the new kernel ---- */

static int iommu_flb_retrieve(struct liveupdate_flb_args *a)
{
	const struct iommu_luemu_ser *s = vtd_adopted();

	if (!s || virt_to_phys(s) != a->data)
		return -EIO;
	a->obj = (void *)s;
	return 0;
}

/* The tables are this kernel's own since it runs; the domains are, since their files were finished. */
static void iommu_flb_finish(struct liveupdate_flb_args *a)
{
	vtd_adopted_done();
	kho_restore_free(a->obj);
}

static const struct liveupdate_flb_ops iommu_flb_ops = {
	.preserve = iommu_flb_preserve,
	.unpreserve = iommu_flb_unpreserve,
	.retrieve = iommu_flb_retrieve,
	.finish = iommu_flb_finish,
};
struct liveupdate_flb iommu_flb = { .ops = &iommu_flb_ops, .compatible = IOMMU_LUEMU_COMPATIBLE };
