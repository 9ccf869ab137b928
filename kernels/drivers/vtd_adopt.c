/* Taking over DMA remapping from the previous kernel, before the first page of memory is given out (mm_core_init).
 *
 * Devices are writing into memory all the time, wherever the tables say. So either all of what is found is as the
 * records say, and every page that it leads to is preserved memory; or bus mastering of every function is switched off,
 * and then nothing of it is used. There is nothing in between.
 *
 *	record of the FLB -> registers of the unit -> root table -> context tables -> functions and domains
 *	                  -> domains: tables -> pages
 *	                  -> records of iommufds: their areas are what the tables map, no more and no less
 *	                  -> interrupt table: entries of functions that were handed over, and of no others
 *
 * Tables are owned as they are met, so none is met twice; blocks that are mapped are marked PG_DMA and can be no tables.
 * Nothing allocates here. The pages of the tables become this kernel's own in vtd_adopt_finish().
 */
#define pr_fmt(fmt) "DMAR: " fmt
#include "vtd.h"
#include "acpi.h"
#include "cpu.h"
#include "errno.h"
#include "iommu.h"
#include "kho.h"
#include "luo_devices.h"
#include "page.h"
#include "panic.h"
#include "pci.h"
#include "printk.h"
#include "string.h"

/* All of a handover's state that its hardware must have. */
#define ON_DMA		(VTD_TE | VTD_QIE)

static const struct iommu_luemu_ser *incoming;	/* verified */
static bool refused;
static u64 marked_start, marked_end;		/* the block that was marked last */

bool vtd_refused(void) { return refused; }
const struct iommu_luemu_ser *vtd_adopted(void) { return incoming; }
void vtd_adopted_done(void) { incoming = NULL; }

void vtd_refuse(const char *why)
{
	unsigned int nr = pci_silence_all();

	if (refused)
		return;
	refused = true;
	pr_err("what the previous kernel handed over is refused: %s\n", why);
	pr_err("bus mastering is off (%u functions had it on), no device writes to memory any more\n", nr);
}

/* ---- blocks ---- */

static bool stamped(u64 pfn, unsigned int *order)
{
	const struct page *page = pfn_to_page(pfn);

	*order = (u32)page->private;
	return page->private >> 32 == KHO_PAGE_MAGIC;
}

/* The preserved block that a page is in: its first page; NULL. */
static struct page *block_of(u64 pfn, unsigned int *order)
{
	for (unsigned int o = 0; o <= MAX_PAGE_ORDER; o++) {
		u64 head = ALIGN_DOWN(pfn, 1UL << o);

		if (stamped(head, order))
			return *order >= o ? pfn_to_page(head) : NULL;
	}
	return NULL;
}

int vtd_mark_pages(phys_addr_t phys, u64 size)
{
	u64 end = phys + size;

	if (end < phys || PFN_UP(end) > max_pfn)
		return -EINVAL;
	while (phys < end) {
		unsigned int order;
		struct page *head;

		if (phys < marked_start || phys >= marked_end) {
			head = block_of(PFN_DOWN(phys), &order);
			if (!head || head->index)
				return -EINVAL;
			head->flags |= PG_DMA;
			marked_start = page_to_phys(head);
			marked_end = marked_start + (PAGE_SIZE << order);
		}
		phys = marked_end;
	}
	return 0;
}

/* A page that the unit reads: preserved, one page, and nothing else. */
static int own_table(phys_addr_t phys)
{
	unsigned int order;
	u64 before;

	if (!phys || !kho_own(claim(phys), KHO_OWNER_KHO, &order, &before) || before || order ||
	    phys_to_page(phys)->flags & PG_DMA)
		return -EINVAL;
	return 0;
}

/* ---- domains ---- */

static int claimed_table(struct vtd_claim *c, phys_addr_t phys, const u64 **table)
{
	(void)c;
	if (own_table(phys))
		return -EINVAL;
	*table = phys_to_virt(phys);
	return 0;
}

static int claimed_page(struct vtd_claim *c, u64 iova, phys_addr_t phys, u64 size, u64 prot)
{
	(void)c;
	(void)iova;
	(void)prot;
	return vtd_mark_pages(phys, size);
}

static const char *verify_domain(const struct iommu_luemu_domain *d)
{
	struct vtd_claim c = {
		.levels = d->levels, .largest = vtd.largest, .table = claimed_table, .page = claimed_page,
	};

	if (d->levels != vtd.levels || !d->id || d->id > 255)
		return "a domain that can not be";
	if (vtd_claim_walk(&c, d->top))
		return "tables are damaged, or lead to memory that is not preserved";
	if (c.nr != d->nr_tables || c.bytes != d->bytes)
		return "tables are not those of the record";
	return NULL;
}

static const struct iommu_luemu_domain *domain(const struct iommu_luemu_ser *s, u32 id)
{
	for (u32 i = 0; i < s->nr_domains; i++)
		if (s->domains[i].id == id)
			return &s->domains[i];
	return NULL;
}

/* ---- root and context tables ---- */

static const struct iommu_luemu_device *device(const struct iommu_luemu_ser *s, u16 bdf)
{
	for (u32 i = 0; i < s->nr_devices; i++)
		if (s->devices[i].bdf == bdf)
			return &s->devices[i];
	return NULL;
}

/* How many functions of this bus have a context; -EINVAL. */
static int verify_contexts(const struct iommu_luemu_ser *s, u32 bus, phys_addr_t phys)
{
	const struct vtd_entry *e;
	int nr = 0;

	if (own_table(phys))
		return -EINVAL;
	e = phys_to_virt(phys);
	for (u32 i = 0; i < VTD_CONTEXT_ENTRIES; i++) {
		const struct iommu_luemu_device *dev;
		const struct iommu_luemu_domain *d;

		if (!(e[i].low | e[i].high))
			continue;
		dev = device(s, (u16)(bus << 8 | i));
		d = dev ? domain(s, dev->domain) : NULL;
		if (!d || e[i].low != (d->top | VTD_PRESENT) || e[i].high != ((u64)d->id << 8 | vtd_width(d->levels)))
			return -EINVAL;
		nr++;
	}
	return nr;
}

static const char *verify_root(const struct iommu_luemu_ser *s)
{
	const struct vtd_entry *root;
	u32 found = 0;

	if (own_table(s->root))
		return "the root table is not preserved";
	root = phys_to_virt(s->root);
	for (u32 bus = 0; bus < VTD_ROOT_ENTRIES; bus++) {
		int nr;

		if (!(root[bus].low | root[bus].high))
			continue;
		nr = root[bus].high || (root[bus].low & ~VTD_ADDRESS) != VTD_PRESENT
			     ? -EINVAL : verify_contexts(s, bus, root[bus].low & VTD_ADDRESS);
		if (nr < 0)
			return "root or context tables are damaged";
		found += (u32)nr;
	}
	for (u32 i = 0; i < s->nr_devices; i++)
		for (u32 k = 0; k < i; k++)
			if (s->devices[i].bdf == s->devices[k].bdf)
				return "a function is there twice";
	return found == s->nr_devices ? NULL : "a function has no context";
}

static const char *verify_interrupts(const struct iommu_luemu_ser *s)
{
	const struct vtd_entry *e = phys_to_virt(s->interrupts & VTD_ADDRESS);

	if (!s->interrupts)
		return vtd.interrupts ? "interrupts were not remapped" : NULL;
	if (!vtd.interrupts || (s->interrupts & ~VTD_ADDRESS) != VTD_IRTA_SIZE ||
	    own_table(s->interrupts & VTD_ADDRESS))
		return "the interrupt table is not preserved";
	for (u32 i = 0; i < VTD_INTERRUPTS; i++)
		if ((e[i].low | e[i].high) &&
		    (e[i].low & VTD_PRESENT || e[i].high >> 16 != VTD_IRTE_VERIFY >> 16 ||
		     !device(s, (u16)e[i].high)))
			return "the interrupt table is damaged";
	return NULL;
}

static const char *verify_unit(const struct iommu_luemu_ser *s)
{
	u32 status;

	if (!vtd_find() || vtd.dmar.registers != s->unit || vtd.cap != s->capabilities || vtd.ecap != s->extended)
		return "it is another machine's";
	status = readl(vtd.registers + VTD_GSTS);
	if ((status & ON_DMA) != ON_DMA || !(status & VTD_IRE) != !s->interrupts)
		return "remapping was switched off";
	if (readq(vtd.registers + VTD_RTADDR) != s->root ||
	    (s->interrupts && readq(vtd.registers + VTD_IRTA) != s->interrupts))
		return "hardware has other tables than the record";
	return NULL;
}

/* ---- records ---- */

static const char *verify_record(const struct iommu_luemu_ser *s)
{
	u64 rest = 0;

	if (s->checksum != devices_sum(&s->checksum + 1, sizeof(*s) - 8))
		return "the record's checksum is wrong";
	if (s->nr_domains > IOMMU_LUEMU_DOMAINS || s->nr_devices > IOMMU_LUEMU_DEVICES ||
	    s->nr_files > IOMMU_LUEMU_FILES)
		return "the record is impossible";
	rest |= s->reserved;
	for (u32 i = 0; i < ARRAY_SIZE(s->reserved2); i++)
		rest |= s->reserved2[i];
	for (u32 i = 0; i < ARRAY_SIZE(s->reserved3); i++)
		rest |= s->reserved3[i];
	for (u32 i = 0; i < s->nr_devices; i++)
		rest |= s->devices[i].reserved;
	return rest ? "the record has a reserved field set" : NULL;
}

struct vtd_tables vtd_adopted_tables(u32 nr)
{
	const struct iommu_luemu_domain *d = &incoming->domains[nr];

	return (struct vtd_tables){
		.top = phys_to_virt(d->top), .levels = d->levels, .largest = vtd.largest, .nr = d->nr_tables,
	};
}

/* An area's memory is what the tables of a domain map there. */
static bool same_as_tables(const struct iommufd_luemu_ser *f, const struct iommufd_luemu_area *a,
			   const struct iommu_luemu_domain *d)
{
	struct vtd_tables t = { .top = phys_to_virt(d->top), .levels = d->levels };
	const struct iommufd_luemu_extent *e = iommufd_luemu_extents(f) + a->first_extent;
	u64 iova = a->iova, in_extent = 0;

	while (iova < a->iova + a->size) {
		u64 phys, n = vtd_tables_run(&t, iova, a->iova + a->size, &phys, a->prot);

		n = min(n, e->size - in_extent);
		if (!n || phys != e->phys + in_extent)
			return false;
		iova += n;
		in_extent += n;
		if (in_extent == e->size) {
			in_extent = 0;
			e++;
		}
	}
	return true;
}

static const char *verify_ioas(const struct iommufd_luemu_ser *f, u32 ioas, const struct iommu_luemu_domain *d)
{
	const struct iommufd_luemu_area *a = iommufd_luemu_areas(f);
	u64 bytes = 0;

	for (u32 i = 0; i < f->nr_areas; i++)
		if (a[i].ioas == ioas) {
			bytes += a[i].size;
			if (a[i].iova + a[i].size > vtd_tables_end(&(struct vtd_tables){ .levels = d->levels }) ||
			    !same_as_tables(f, &a[i], d))
				return "an iommufd's areas are not what is mapped";
		}
	return bytes == d->bytes ? NULL : "something is mapped that no iommufd knows";
}

/* Where a domain or function was met: nobody else may claim it. */
struct seen {
	u64 domains[4];			/* by id */
	u64 devices[IOMMU_LUEMU_DEVICES / 64];	/* by place in the record */
};

static bool seen_before(u64 *map, u32 n)
{
	bool was = map[n / 64] >> n % 64 & 1;

	map[n / 64] |= 1UL << n % 64;
	return was;
}

static const struct iommufd_luemu_object *object(const struct iommufd_luemu_ser *f, u32 id)
{
	const struct iommufd_luemu_object *o = iommufd_luemu_objects(f);

	for (u32 i = 0; i < f->nr_objects; i++)
		if (o[i].id == id)
			return &o[i];
	return NULL;
}

static const char *verify_object(const struct iommu_luemu_ser *s, const struct iommufd_luemu_ser *f,
				 const struct iommufd_luemu_object *o, struct seen *seen)
{
	const struct iommu_luemu_device *dev;
	const struct iommu_luemu_domain *d;

	if (o->kind == IOMMUFD_LUEMU_HWPT) {
		d = domain(s, o->arg);
		if (!d || seen_before(seen->domains, o->arg & 255))
			return "an iommufd has a domain that is not its own";
		return verify_ioas(f, o->parent, d);
	}
	if (o->kind != IOMMUFD_LUEMU_DEVICE)
		return NULL;
	dev = device(s, (u16)o->arg);
	if (!dev || object(f, o->parent)->arg != dev->domain ||
	    seen_before(seen->devices, (u32)(dev - s->devices)))
		return "an iommufd has a function that is not its own";
	return NULL;
}

static const char *verify_file(const struct iommu_luemu_ser *s, u64 record, struct seen *seen)
{
	const struct iommufd_luemu_ser *f = phys_to_virt(record);
	const struct iommufd_luemu_extent *e;
	unsigned int order;
	const char *why;

	if (!kho_is_preserved(claim(record), &order) || phys_to_page(record)->index ||
	    phys_to_page(record)->flags & PG_DMA)
		return "an iommufd's record is not preserved";
	why = iommufd_luemu_check(f, PAGE_SIZE << order);
	if (why)
		return why;
	e = iommufd_luemu_extents(f);
	for (u32 i = 0; i < f->nr_extents; i++)
		if (vtd_mark_pages(e[i].phys, e[i].size))
			return "an iommufd's memory is not preserved";
	for (u32 i = 0; !why && i < f->nr_objects; i++)
		why = verify_object(s, f, iommufd_luemu_objects(f) + i, seen);
	return why;
}

static const char *verify_files(const struct iommu_luemu_ser *s)
{
	struct seen seen = { 0 };

	for (u32 i = 0; i < s->nr_files; i++) {
		const char *why = verify_file(s, s->files[i], &seen);

		for (u32 k = 0; !why && k < i; k++)
			if (s->files[i] == s->files[k])
				why = "an iommufd is there twice";
		if (why)
			return why;
	}
	for (u32 i = 0; i < s->nr_domains; i++)
		if (!seen_before(seen.domains, s->domains[i].id))
			return "a domain is no iommufd's";
	for (u32 i = 0; i < s->nr_devices; i++)
		if (!seen_before(seen.devices, i))
			return "a function is no iommufd's";
	return NULL;
}

static const char *adopt(u64 record)
{
	const struct iommu_luemu_ser *s = phys_to_virt(record);
	const char *why;

	if (own_table(record))
		return "the record is not preserved";
	why = verify_record(s);
	if (!why)
		why = verify_unit(s);
	if (!why)
		why = verify_root(s);
	for (u32 i = 0; !why && i < s->nr_domains; i++)
		why = domain(s, s->domains[i].id) != &s->domains[i] ? "a domain is there twice"
								   : verify_domain(&s->domains[i]);
	if (!why)
		why = verify_interrupts(s);
	if (!why)
		why = verify_files(s);
	if (!why)
		incoming = s;
	return why;
}

void iommu_early_init(void)
{
	const char *why;
	unsigned int nr;
	u64 record;

	if (!kho_was_handed_over())
		return;
	if (luo_flb_peek(IOMMU_LUEMU_COMPATIBLE, &record)) {
		acpi_find_tables();
		why = adopt(record);
		if (why)
			vtd_refuse(why);
		return;
	}
	nr = pci_silence_all();
	if (nr) {
		refused = true;
		pr_err("%u functions were left as bus masters and nothing was handed over for them: bus mastering is off\n",
		       nr);
	}
}

bool iommu_adopted_file(u64 record)
{
	for (u32 i = 0; incoming && !refused && i < incoming->nr_files; i++)
		if (incoming->files[i] == record)
			return true;
	return false;
}

/* ---- when memory works ---- */

static void *take_page(phys_addr_t phys)
{
	if (!kho_restore_pages(phys, 1))
		panic("DMAR: a table that was verified is gone");
	return phys_to_virt(phys);
}

static int take_table(u64 *table, void *ctx)
{
	(void)ctx;
	take_page(virt_to_phys(table));
	return 0;
}

void vtd_adopt_finish(void)
{
	vtd.root = take_page(incoming->root);
	for (u32 bus = 0; bus < VTD_ROOT_ENTRIES; bus++)
		if (vtd.root[bus].low)
			take_page(vtd.root[bus].low & VTD_ADDRESS);
	if (incoming->interrupts)
		vtd.irt = take_page(incoming->interrupts & VTD_ADDRESS);
	for (u32 i = 0; i < incoming->nr_domains; i++) {
		struct vtd_tables t = vtd_adopted_tables(i);

		vtd_tables_each(&t, take_table, NULL);
	}
}
