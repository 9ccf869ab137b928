/* `reserve_mem=SIZE:ALIGN:NAME`: a named region of memory that every kernel of a chain finds at the same place.
 *
 * A cold boot takes the region from memblock. Later, each kernel writes the names and places into the KHO blob
 * "memblock" and preserves the regions; the next kernel that is given the same parameter looks the name up there and
 * uses the region again, contents and all.
 *
 * A region that is new in a kernel that was handed over to cannot be taken at once: until preserved memory is known
 * memblock gives out scratch only, and a region in scratch could not be preserved for the next kernel. Such a region
 * waits until the incoming tree was adopted, and gets what is free outside scratch then. (Linux 7.2 takes it from
 * scratch.)
 */
#define pr_fmt(fmt) "memblock: " fmt
#include "bitops.h"
#include "errno.h"
#include "fdt.h"
#include "init.h"
#include "internal.h"
#include "kho_internal.h"
#include "page.h"
#include "printk.h"
#include "string.h"

#define REGIONS_MAX	8
#define CACHE_LINE	64

static struct reserve_mem_region regions[REGIONS_MAX];	/* start 0: has to wait, or there was no memory for it */
static u64 aligns[REGIONS_MAX];
static unsigned int nr_regions;

const struct reserve_mem_region *reserve_mem_get(unsigned int n)
{
	return n < nr_regions ? &regions[n] : NULL;
}

/* ---- from the previous kernel ---- */

/* The incoming blob, once it is known to be a good one; NULL. */
static const void *incoming_fdt(void)
{
	static bool tried;
	static const void *fdt;
	phys_addr_t phys;
	u64 size;
	int err;

	if (tried)
		return fdt;
	tried = true;
	err = kho_retrieve_subtree(MEMBLOCK_KHO_NODE_NAME, &phys, &size);
	if (err) {
		if (err != -ENOENT)
			pr_warn("failed to retrieve FDT '%s' from KHO: %d\n", MEMBLOCK_KHO_NODE_NAME, err);
		return NULL;
	}
	err = fdt_check(phys_to_virt(phys), size);
	if (!err)
		err = fdt_node_compatible(phys_to_virt(phys), FDT_ROOT, MEMBLOCK_KHO_FDT_COMPATIBLE);
	if (err) {
		pr_warn("FDT '%s' is incompatible with '%s': %d\n", MEMBLOCK_KHO_NODE_NAME,
			MEMBLOCK_KHO_FDT_COMPATIBLE, err);
		return NULL;
	}
	fdt = phys_to_virt(phys);
	return fdt;
}

/* The region as the previous kernel left it, if this kernel can use that. */
static bool revive(struct reserve_mem_region *r, u64 align)
{
	const void *fdt = incoming_fdt();
	u64 start, size, first;
	int node, err;

	if (!fdt)
		return false;
	node = fdt_subnode(fdt, FDT_ROOT, r->name);
	if (node < 0) {
		pr_warn("FDT '%s' has no child '%s': %d\n", MEMBLOCK_KHO_NODE_NAME, r->name, node);
		return false;
	}
	err = fdt_node_compatible(fdt, node, RESERVE_MEM_KHO_NODE_COMPATIBLE);
	if (err) {
		pr_warn("Node '%s' is incompatible with '%s': %d\n", r->name, RESERVE_MEM_KHO_NODE_COMPATIBLE, err);
		return false;
	}
	if (fdt_getprop_u64(fdt, node, "start", &start) || fdt_getprop_u64(fdt, node, "size", &size)) {
		pr_warn("Node '%s' has no start or size\n", r->name);
		return false;
	}
	if (!IS_ALIGNED(start, align)) {
		pr_warn("KHO reserve-mem '%s' has wrong alignment (0x%llx, 0x%llx)\n", r->name,
			(unsigned long long)align, (unsigned long long)start);
		return false;
	}
	if (size != r->size) {
		pr_warn("KHO reserve-mem '%s' has wrong size (0x%llx != 0x%llx)\n", r->name,
			(unsigned long long)size, (unsigned long long)r->size);
		return false;
	}
	first = ALIGN_DOWN(start, PAGE_SIZE);
	if (start + size < start || !claim_is_outside(claim(first), start + size - first, PAGE_SIZE) ||
	    memblock_reserve(first, PAGE_ALIGN(start + size) - first)) {
		pr_warn("KHO reserve-mem '%s' is not in RAM outside scratch\n", r->name);
		return false;
	}
	r->start = start;
	pr_info("Revived memory reservation '%s' from KHO\n", r->name);
	return true;
}

/* ---- new ones ---- */

/* Whole pages, so that preserving a region preserves nothing of others. */
static bool allocate(struct reserve_mem_region *r, u64 align)
{
	r->start = memblock_phys_alloc_range(PAGE_ALIGN(r->size), max(align, PAGE_SIZE), 0, 0);
	return r->start != 0;
}

static bool reserve_outside_scratch(struct reserve_mem_region *r, u64 align)
{
	phys_addr_t cursor = 0, start, end;
	u64 size = PAGE_ALIGN(r->size);

	while (memblock_next_free_flags(&cursor, &start, &end, MEMBLOCK_KHO_SCRATCH, 0)) {
		start = ALIGN_UP(start, max(align, PAGE_SIZE));
		if (start >= end || end - start < size)
			continue;
		if (memblock_reserve_kern(start, size))
			break;
		r->start = start;
		return true;
	}
	return false;
}

void reserve_mem_allocate_late(void)
{
	for (unsigned int i = 0; i < nr_regions; i++)
		if (!regions[i].start && !reserve_outside_scratch(&regions[i], aligns[i]))
			pr_err("no memory outside scratch for reserve_mem '%s'\n", regions[i].name);
}

/* ---- reserve_mem= ---- */

static size_t blanks(const char *s)
{
	size_t n = 0;

	while (s[n] == ' ' || s[n] == '\t')
		n++;
	return n;
}

static bool name_ok(const char *name)
{
	size_t len = strlen(name);

	return len && len < sizeof(regions[0].name) && name[blanks(name)] != '\0';
}

static int parse_reserve_mem(const char *value)
{
	struct reserve_mem_region r = {};
	const char *end;
	u64 align;

	r.size = memparse(value, &end);
	if (!r.size || end == value || *end != ':' || r.size > PAGE_MASK)
		return -EINVAL;
	value = end + 1;
	align = max(memparse(value, &end), (u64)CACHE_LINE);
	if (end == value || *end != ':' || !is_power_of_2(align) || !name_ok(end + 1))
		return -EINVAL;
	if (nr_regions == REGIONS_MAX)
		return -EBUSY;
	for (unsigned int i = 0; i < nr_regions; i++)
		if (!strcmp(regions[i].name, end + 1))
			return -EBUSY;
	strscpy(r.name, end + 1, sizeof(r.name));
	if (!revive(&r, align) && !kho_in.scratch && !allocate(&r, align))
		return -ENOMEM;
	aligns[nr_regions] = align;
	regions[nr_regions++] = r;
	return 0;
}
kernel_param("reserve_mem", parse_reserve_mem);

/* Regions are not restored: they stay reserved as they came. */
static int own_regions(void)
{
	for (unsigned int i = 0; i < nr_regions; i++)
		if (regions[i].start)
			kho_own_range(claim(regions[i].start), regions[i].size);
	return 0;
}
fs_initcall(own_regions);

/* ---- to the next kernel ---- */

static struct page *first_page(const struct reserve_mem_region *r, u64 *nr_pages)
{
	*nr_pages = PFN_UP(r->start + r->size) - PFN_DOWN(r->start);
	return phys_to_page(r->start);
}

static int write_fdt(void *buf)
{
	struct fdt_writer w;

	fdt_create(&w, buf, PAGE_SIZE);
	fdt_begin_node(&w, "");
	fdt_property_string(&w, "compatible", MEMBLOCK_KHO_FDT_COMPATIBLE);
	for (unsigned int i = 0; i < nr_regions; i++) {
		if (!regions[i].start)
			continue;
		fdt_begin_node(&w, regions[i].name);
		fdt_property_string(&w, "compatible", RESERVE_MEM_KHO_NODE_COMPATIBLE);
		fdt_property_u64(&w, "start", regions[i].start);
		fdt_property_u64(&w, "size", regions[i].size);
		fdt_end_node(&w);
	}
	fdt_end_node(&w);
	return fdt_finish(&w) ? -ENOMEM : 0;
}

static void unpreserve_regions(unsigned int n)
{
	u64 nr_pages;

	while (n--) {
		struct page *page = first_page(&regions[n], &nr_pages);

		if (regions[n].start)
			kho_unpreserve_pages(page, nr_pages);
	}
}

static int preserve_regions(void)
{
	u64 nr_pages;

	for (unsigned int i = 0; i < nr_regions; i++) {
		struct page *page = first_page(&regions[i], &nr_pages);
		int err = regions[i].start ? kho_preserve_pages(page, nr_pages) : 0;

		if (err) {
			unpreserve_regions(i);
			return err;
		}
	}
	return 0;
}

static int reserve_mem_init(void)
{
	void *fdt;
	int err;

	if (!kho_is_enabled() || !nr_regions)
		return 0;
	fdt = kho_alloc_preserve(PAGE_SIZE);
	if (IS_ERR(fdt))
		return (int)PTR_ERR(fdt);
	err = write_fdt(fdt);
	if (!err)
		err = preserve_regions();
	if (err)
		goto free;
	err = kho_add_subtree(MEMBLOCK_KHO_NODE_NAME, fdt, fdt_totalsize(fdt));
	if (!err)
		return 0;
	unpreserve_regions(nr_regions);
free:
	kho_unpreserve_free(fdt);
	pr_err("failed to prepare memblock FDT for KHO: %d\n", err);
	return err;
}
late_initcall(reserve_mem_init);
