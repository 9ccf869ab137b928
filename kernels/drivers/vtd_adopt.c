/* Taking over DMA remapping from the previous kernel, before the first page of memory is given out (mm_core_init).
 *
 * Devices are writing into memory all the time, wherever the tables say. So either all of what is found is as the
 * records say, and every page that it leads to is preserved memory; or bus mastering of every function is switched off,
 * and then nothing of it is used. There is nothing in between.
 *
 *	record of the FLB -> registers of the unit -> root table -> context tables -> functions and domains
 *	                  -> records of iommufds -> their domains: tables -> pages, which are the areas, no more, no less
 *	                  -> interrupt table: entries of functions that were handed over, and of no others
 *
 * Tables are owned as they are met, so none is met twice; blocks that are mapped are marked PG_DMA and can be no tables.
 * Nothing allocates here. The pages of the tables become this kernel's own in vtd_adopt_finish().
 */
#define pr_fmt(fmt) "DMAR: " fmt
#include "vtd.h"
#include "acpi.h"
#include "bitops.h"
#include "cpu.h"
#include "errno.h"
#include "iommu.h"
#include "../../kho/guest/kho_internal.h"
#include "luo_devices.h"
#include "page.h"
#include "panic.h"
#include "pci.h"
#include "printk.h"

/* All of a handover's state that its hardware must have. */
#define ON_DMA		(VTD_TE | VTD_QIE)

static const struct iommu_luemu_ser *incoming;	/* verified */
static bool refused;
static u64 nr_marked;				/* blocks */
static struct page *tables;			/* all that were verified, by page->mapping */

bool vtd_refused(void) { return refused; }
bool vtd_all_restored(void) { return kho_dma_restored() == nr_marked; }
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

/* Order of the preserved block that begins with this page, which waits for its owner; -1. */
static inline int waiting_order(const struct page *page)
{
	u64 order = page->private ^ kho_stamp(0);

	return order > MAX_PAGE_ORDER || page->index ? -1 : (int)order;
}

/* The block that a page in the middle of one is in: its first page; NULL. */
static struct page *block_of(u64 pfn)
{
	for (int o = 0; o <= MAX_PAGE_ORDER; o++) {
		struct page *head = pfn_to_page(ALIGN_DOWN(pfn, 1UL << o));
		int order = waiting_order(head);

		if (order >= 0)
			return order >= o ? head : NULL;
	}
	return NULL;
}

static inline void mark(struct page *head)
{
	nr_marked += !(head->flags & PG_DMA);
	head->flags |= PG_DMA;
}

/* From the first page that is not the beginning of a block. */
static noinline int mark_slowly(u64 pfn, u64 end)
{
	while (pfn < end) {
		struct page *head = block_of(pfn);

		if (!head)
			return -EINVAL;
		mark(head);
		pfn = page_to_pfn(head) + (1UL << waiting_order(head));
	}
	return 0;
}

/* Blocks are what it is all made of, mostly large ones: this runs for each of them. */
static inline int mark_pages(phys_addr_t phys, u64 size)
{
	u64 pfn = PFN_DOWN(phys), end = PFN_UP(phys + size);
	int order;

	if (phys + size < phys || end > max_pfn)
		return -EINVAL;
	for (; pfn < end; pfn += 1UL << order) {
		struct page *head = pfn_to_page(pfn);

		order = waiting_order(head);
		if (order < 0)
			return mark_slowly(pfn, end);
		mark(head);
	}
	return 0;
}

int vtd_mark_pages(phys_addr_t phys, u64 size) { return mark_pages(phys, size); }

/* A page that the unit reads: preserved, one page, and nothing else. */
static int own_page(phys_addr_t phys)
{
	unsigned int order;
	u64 before;

	if (!phys || !kho_own(claim(phys), KHO_OWNER_KHO, &order, &before) || before || order ||
	    phys_to_page(phys)->flags & PG_DMA)
		return -EINVAL;
	return 0;
}

/* The same; it is remembered, through its struct page, until it is taken over. */
static int own_table(phys_addr_t phys)
{
	int err = own_page(phys);

	if (err)
		return err;
	phys_to_page(phys)->mapping = tables;
	tables = phys_to_page(phys);
	return 0;
}

/* ---- domains ---- */

/* What a domain must map: the areas of an IOAS, from the first to the last. */
struct expected {
	struct vtd_claim claim;
	u32 ioas;
	const struct iommufd_luemu_area *area, *next, *end;
	const struct iommufd_luemu_extent *extents, *extent;	/* extent: where the area goes on */
	u64 iova, left;			/* of the area, what was not met yet */
	u64 in_extent;
};

static bool next_area(struct expected *x)
{
	const struct iommufd_luemu_area *a = x->next;

	while (a < x->end && a->ioas != x->ioas)
		a++;
	if (a >= x->end)
		return false;
	x->area = a;
	x->next = a + 1;
	x->iova = a->iova;
	x->left = a->size;
	x->extent = x->extents + a->first_extent;
	x->in_extent = 0;
	return true;
}

static int claimed_table(struct vtd_claim *c, phys_addr_t phys, const u64 **table)
{
	(void)c;
	if (own_table(phys))
		return -EINVAL;
	*table = phys_to_virt(phys);
	return 0;
}

/* One page, in whatever pieces the areas have it. */
static noinline int expect_page(struct expected *x, u64 iova, u64 entry, u64 size)
{
	u64 phys = entry & VTD_ADDRESS;

	if (mark_pages(phys, size))
		return -EINVAL;
	while (size) {
		u64 n;

		if (!x->left && !next_area(x))
			return -EINVAL;
		n = min(size, x->extent->size - x->in_extent);
		if (iova != x->iova || phys != x->extent->phys + x->in_extent ||
		    (entry & (VTD_READ | VTD_WRITE)) != x->area->prot)
			return -EINVAL;
		x->iova = iova += n;
		phys += n;
		size -= n;
		x->left -= n;
		x->in_extent += n;
		if (x->in_extent == x->extent->size) {
			x->in_extent = 0;
			x->extent++;
		}
	}
	return 0;
}

/* How many entries from the first on are whole extents in whole blocks of the entries' size: so it is with large pages,
 * and then this is all that is done for each of them. */
static u64 expect_blocks(struct expected *x, u64 iova, const u64 *entries, u64 nr, u64 size)
{
	const struct iommufd_luemu_extent *e = x->extent;
	u64 stamp = kho_stamp((unsigned int)(ctz64(size) - PAGE_SHIFT)), step = size >> PAGE_SHIFT;
	u64 bits, done = 0, marked = 0;

	if (!x->left || iova != x->iova || x->in_extent)
		return 0;
	bits = x->area->prot | (size > PAGE_SIZE ? VTD_PAGE : 0);
	nr = min(nr, x->left / size);
	while (done < nr) {
		struct page *head = phys_to_page(e->phys);
		u64 want = e->phys | bits, end = want + e->size;

		if (e->size > (nr - done) * size || PFN_UP(e->phys + e->size) > max_pfn)
			break;
		for (; want < end && entries[done] == want && head->private == stamp && !head->index; want += size) {
			marked += !(head->flags & PG_DMA);
			head->flags |= PG_DMA;
			head += step;
			done++;
		}
		if (want != end) {	/* again from the extent's beginning, slowly */
			done -= (want - (e->phys | bits)) / size;
			break;
		}
		e++;
	}
	nr_marked += marked;
	x->extent = e;
	x->iova += done * size;
	x->left -= done * size;
	return done;
}

/* Everything that is mapped is the next piece of an area, and every area is mapped. */
static int claimed_pages(struct vtd_claim *claim, u64 iova, const u64 *entries, u64 nr, u64 size)
{
	struct expected *x = container_of(claim, struct expected, claim);

	for (u64 i = 0; i < nr;) {
		u64 n = expect_blocks(x, iova + i * size, entries + i, nr - i, size);

		i += n;
		if (n)
			continue;
		if (expect_page(x, iova + i * size, entries[i], size))
			return -EINVAL;
		i++;
	}
	return 0;
}

static const char *verify_domain(const struct iommu_luemu_domain *d, const struct iommufd_luemu_ser *f, u32 ioas)
{
	struct expected x = {
		.claim = { .levels = d->levels, .largest = vtd.largest, .table = claimed_table, .pages = claimed_pages },
		.ioas = ioas, .next = iommufd_luemu_areas(f), .end = iommufd_luemu_areas(f) + f->nr_areas,
		.extents = iommufd_luemu_extents(f),
	};

	if (d->levels != vtd.levels || !d->id || d->id > 255)
		return "a domain that can not be";
	if (vtd_claim_walk(&x.claim, d->top))
		return "tables are damaged, or lead to memory that is not preserved, or not what their iommufd says";
	if (x.claim.nr != d->nr_tables || x.claim.bytes != d->bytes)
		return "tables are not those of the record";
	if (x.left || next_area(&x))
		return "an iommufd's areas are not mapped";
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

	if (vtd_off())
		return "the command line says iommu=off";
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

/* All bits of [start, end) together. */
static u64 bits_of(const void *start, const void *end)
{
	u64 bits = 0;

#pragma unroll 8
	for (const u64 *p = start; p < (const u64 *)end; p++)
		bits |= *p;
	return bits;
}

static const char *verify_record(const struct iommu_luemu_ser *s)
{
	u64 rest;

	if (s->checksum != devices_sum(&s->checksum + 1, sizeof(*s) - 8))
		return "the record's checksum is wrong";
	if (s->nr_domains > IOMMU_LUEMU_DOMAINS || s->nr_devices > IOMMU_LUEMU_DEVICES ||
	    s->nr_files > IOMMU_LUEMU_FILES)
		return "the record is impossible";
	rest = s->reserved | bits_of(s->reserved2, s->domains) | bits_of(s->domains + s->nr_domains, s->devices) |
	       bits_of(s->devices + s->nr_devices, s->files) | bits_of(s->files + s->nr_files, s + 1);
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
		return verify_domain(d, f, o->parent);
	}
	if (o->kind != IOMMUFD_LUEMU_DEVICE)
		return NULL;
	dev = device(s, (u16)o->arg);
	if (!dev || object(f, o->parent)->arg != dev->domain ||
	    seen_before(seen->devices, (u32)(dev - s->devices)))
		return "an iommufd has a function that is not its own";
	return NULL;
}

static bool has_domain(const struct iommufd_luemu_ser *f, u32 ioas)
{
	const struct iommufd_luemu_object *o = iommufd_luemu_objects(f);

	for (u32 i = 0; i < f->nr_objects; i++)
		if (o[i].kind == IOMMUFD_LUEMU_HWPT && o[i].parent == ioas)
			return true;
	return false;
}

/* The memory of an area that no table leads to. */
static int mark_area(const struct iommufd_luemu_ser *f, const struct iommufd_luemu_area *a)
{
	const struct iommufd_luemu_extent *e = iommufd_luemu_extents(f) + a->first_extent;

	for (u32 i = 0; i < a->nr_extents; i++)
		if (vtd_mark_pages(e[i].phys, e[i].size))
			return -EINVAL;
	return 0;
}

static const char *verify_file(const struct iommu_luemu_ser *s, u64 record, struct seen *seen)
{
	const struct iommufd_luemu_ser *f = phys_to_virt(record);
	const struct iommufd_luemu_area *a;
	unsigned int order;
	const char *why;

	if (!kho_is_preserved(claim(record), &order) || phys_to_page(record)->index ||
	    phys_to_page(record)->flags & PG_DMA)
		return "an iommufd's record is not preserved";
	why = iommufd_luemu_check(f, PAGE_SIZE << order);
	if (why)
		return why;
	a = iommufd_luemu_areas(f);
	for (u32 i = 0; i < f->nr_areas; i++)
		if (!has_domain(f, a[i].ioas) && mark_area(f, &a[i]))
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

	if (own_page(record))
		return "the record is not preserved";
	why = verify_record(s);
	if (!why)
		why = verify_unit(s);
	if (!why)
		why = verify_root(s);
	for (u32 i = 0; !why && i < s->nr_domains; i++)
		why = domain(s, s->domains[i].id) != &s->domains[i] ? "a domain is there twice" : NULL;
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

void vtd_adopt_finish(void)
{
	while (tables) {
		struct page *page = tables;

		tables = page->mapping;
		page->mapping = NULL;
		if (!kho_restore_pages(page_to_phys(page), 1))
			panic("DMAR: a table that was verified is gone");
	}
	vtd.root = phys_to_virt(incoming->root);
	if (incoming->interrupts)
		vtd.irt = phys_to_virt(incoming->interrupts & VTD_ADDRESS);
}
