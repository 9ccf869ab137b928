/* The KHO test beyond folios: vmalloc areas, reserve_mem regions, and a blob, in the sub-tree "luemu_test".
 * Its FDT:
 *
 *	/		compatible "luemu-test-v1"; seed u64, of all contents; generation u32, of the kernel that saved;
 *			payload, bytes that are verified like everything else; scratch, the array of that kernel
 *	/vmalloc@N	info, a struct kho_vmalloc; size u64
 *	/reserve_mem	one u64 a region, named after it: where it is
 *
 * A region of reserve_mem is written by the first kernel that has it and verified by every one after it;
 * what it holds is told by its own first bytes.
 */
#define pr_fmt(fmt) "test_kho: " fmt
#include "test_kho.h"
#include "breakage.h"
#include "errno.h"
#include "fdt.h"
#include "init.h"
#include "kho.h"
#include "memblock.h"
#include "pattern.h"
#include "printk.h"
#include "random.h"
#include "string.h"
#include "workload.h"

#define PAYLOAD_SIZE	256

/* Which contents: each has another pattern. Folios have the numbers below. */
#define PATTERN_AREA	(1UL << 32)
#define PATTERN_PAYLOAD	(2UL << 32)

/* More blocks than a chunk lists (511), and blocks larger than a page. */
static const struct {
	const char *node;
	u64 size;
	bool huge;
} kinds[] = {
	{ "vmalloc@0", 600 * PAGE_SIZE, false },
	{ "vmalloc@1", 2 * PMD_SIZE, true },
};

struct region_header {
	u64 magic;
	u64 seed;
	u64 size;			/* of the region */
	u64 reserved[5];
};
static_assert(sizeof(struct region_header) == PATTERN_BLOCK, "contents begin at a block");
#define REGION_MAGIC	0x4d454d5652455345UL	/* "ESERVMEM" */

static struct {
	void *fdt;
	void *area[ARRAY_SIZE(kinds)];
	struct kho_vmalloc info[ARRAY_SIZE(kinds)];
} saved;
static u64 regions_verified;		/* bit n: the contents of region n are good */

/* Bytes of a region behind its header; 0 if it is too small to be tested. */
static u64 contents_size(const struct reserve_mem_region *region)
{
	return region->size < 2 * PATTERN_BLOCK ? 0 :
	       ALIGN_DOWN(region->size - sizeof(struct region_header), PATTERN_BLOCK);
}

/* ---- restore ---- */

/* phys is where the contents begin; they are physically contiguous. */
static bool contents_ok(const char *what, struct pattern pattern, const void *p, u64 size, phys_addr_t phys)
{
	s64 at = pattern_check(pattern, p, size);

	if (at < 0)
		return true;
	verdict_fail("%s: page %lu at 0x%lx changed, at byte %lu", what,
		     (phys % PAGE_SIZE + (u64)at) >> PAGE_SHIFT, (phys + (u64)at) & PAGE_MASK,
		     (phys + (u64)at) & ~PAGE_MASK);
	return false;
}

static void restore_area(const void *fdt, unsigned int i, u64 seed)
{
	const char *name = kinds[i].node;
	int node = fdt_subnode(fdt, FDT_ROOT, name);
	struct kho_vmalloc desc;
	const void *info;
	void *area;
	s64 at;
	u64 size;
	u32 len;

	info = node < 0 ? NULL : fdt_getprop(fdt, node, "info", &len);
	if (!info || len != sizeof(desc) || fdt_getprop_u64(fdt, node, "size", &size)) {
		verdict_fail("%s: the FDT does not describe it", name);
		return;
	}
	memcpy(&desc, info, sizeof(desc));
	if (size != (u64)desc.total_pages * PAGE_SIZE) {
		verdict_fail("%s: %lu bytes are no %u pages", name, size, desc.total_pages);
		return;
	}
	area = kho_restore_vmalloc(&desc);
	if (!area) {
		verdict_fail("%s: %u pages cannot be restored", name, desc.total_pages);
		return;
	}
	at = pattern_check(make_pattern(seed, PATTERN_AREA + i), area, size);
	if (at >= 0) {
		struct vm_struct *vm = find_vm_area(area);

		verdict_fail("%s: page %lu at 0x%lx changed, at byte %lu", name, (u64)at >> PAGE_SHIFT,
			     page_to_phys(vm->pages[(u64)at >> PAGE_SHIFT]), (u64)at & ~PAGE_MASK);
	} else {
		pr_info("%s restored: %u pages in blocks of order %u\n", name, desc.total_pages, desc.order);
	}
	vfree(area);
}

static void verify_region(unsigned int i, const struct reserve_mem_region *region, phys_addr_t was)
{
	const struct region_header *header = phys_to_virt(region->start);
	char what[48];

	scnprintf(what, sizeof(what), "reserve_mem region %s", region->name);
	if (region->start != was) {
		verdict_fail("%s: it was at 0x%lx and is at 0x%lx", what, was, region->start);
		return;
	}
	if (header->magic != REGION_MAGIC || header->size != region->size) {
		verdict_fail("%s: page 0 at 0x%lx changed, the header is another", what, region->start);
		return;
	}
	if (contents_ok(what, make_pattern(header->seed, i), header + 1, contents_size(region),
			region->start + sizeof(*header))) {
		pr_info("%s verified: %lu bytes at 0x%lx\n", what, region->size, region->start);
		regions_verified |= 1UL << i;
	}
}

static void verify_regions(const void *fdt)
{
	const struct reserve_mem_region *region;
	int node = fdt_subnode(fdt, FDT_ROOT, "reserve_mem");
	u64 was;

	for (unsigned int i = 0; node >= 0 && (region = reserve_mem_get(i)); i++) {
		if (contents_size(region) && !fdt_getprop_u64(fdt, node, region->name, &was))
			verify_region(i, region, was);
	}
}

/* That this kernel believes in other areas than the one before shows nowhere else. */
static void verify_scratch(const void *fdt)
{
	struct kho_scratch was;
	const u8 *areas;
	u32 len;

	areas = fdt_getprop(fdt, FDT_ROOT, "scratch", &len);
	if (!areas || len != kho_scratch_cnt * sizeof(was)) {
		verdict_fail("there are %u scratch areas, the previous kernel had others", kho_scratch_cnt);
		return;
	}
	for (unsigned int i = 0; i < kho_scratch_cnt; i++) {
		memcpy(&was, areas + i * sizeof(was), sizeof(was));
		if (was.addr != kho_scratch[i].addr || was.size != kho_scratch[i].size)
			verdict_fail("scratch area %u is 0x%lx+0x%lx, the previous kernel had 0x%lx+0x%lx", i,
				     kho_scratch[i].addr, kho_scratch[i].size, was.addr, was.size);
	}
}

bool test_areas_restore(u64 *seed)
{
	void *fdt;
	const void *payload;
	u32 len;
	int err = test_retrieve_fdt(TEST_AREAS_SUBTREE, TEST_AREAS_COMPATIBLE, &fdt);

	if (err == -ENOENT && previous_was_ours())
		verdict_fail("sub-tree %s is not there", TEST_AREAS_SUBTREE);
	if (err)
		return false;
	if (fdt_getprop_u64(fdt, FDT_ROOT, "seed", seed)) {
		verdict_fail("the FDT of sub-tree %s is not as it should be", TEST_AREAS_SUBTREE);
		return false;
	}
	payload = fdt_getprop(fdt, FDT_ROOT, "payload", &len);
	if (!payload || len != PAYLOAD_SIZE)
		verdict_fail("sub-tree %s: no payload", TEST_AREAS_SUBTREE);
	else
		contents_ok("payload of sub-tree " TEST_AREAS_SUBTREE, make_pattern(*seed, PATTERN_PAYLOAD), payload, len,
			    virt_to_phys(payload));
	verify_scratch(fdt);
	for (unsigned int i = 0; i < ARRAY_SIZE(kinds); i++)
		restore_area(fdt, i, *seed);
	verify_regions(fdt);
	kho_restore_free(fdt);
	return true;
}

/* ---- save ---- */

static int save_area(unsigned int i, u64 seed)
{
	int err;

	saved.area[i] = kinds[i].huge ? vmalloc_huge(kinds[i].size) : vmalloc(kinds[i].size);
	if (!saved.area[i])
		return -ENOMEM;
	pattern_fill(make_pattern(seed, PATTERN_AREA + i), saved.area[i], kinds[i].size, 0);
	err = kho_preserve_vmalloc(saved.area[i], &saved.info[i]);
	if (err) {
		vfree(saved.area[i]);
		saved.area[i] = NULL;
	}
	return err;
}

static void fill_region(unsigned int i, const struct reserve_mem_region *region, u64 seed)
{
	struct region_header *header = phys_to_virt(region->start);

	if (regions_verified & 1UL << i || !contents_size(region))
		return;
	*header = (struct region_header){ .magic = REGION_MAGIC, .seed = seed, .size = region->size };
	pattern_fill(make_pattern(seed, i), header + 1, contents_size(region), 0);
}

static int write_fdt(u64 seed)
{
	const struct reserve_mem_region *region;
	u8 payload[PAYLOAD_SIZE];
	struct fdt_writer w;

	pattern_fill(make_pattern(seed, PATTERN_PAYLOAD), payload, sizeof(payload), 0);
	fdt_create(&w, saved.fdt, PAGE_SIZE);
	fdt_begin_node(&w, "");
	fdt_property_string(&w, "compatible", TEST_AREAS_COMPATIBLE);
	fdt_property_u64(&w, "seed", seed);
	fdt_property_u32(&w, "generation", kernel_generation());
	fdt_property(&w, "payload", payload, sizeof(payload));
	fdt_property(&w, "scratch", kho_scratch, kho_scratch_cnt * (u32)sizeof(*kho_scratch));
	for (unsigned int i = 0; i < ARRAY_SIZE(kinds); i++) {
		fdt_begin_node(&w, kinds[i].node);
		fdt_property(&w, "info", &saved.info[i], sizeof(saved.info[i]));
		fdt_property_u64(&w, "size", kinds[i].size);
		fdt_end_node(&w);
	}
	fdt_begin_node(&w, "reserve_mem");
	for (unsigned int i = 0; (region = reserve_mem_get(i)); i++)
		fdt_property_u64(&w, region->name, region->start);
	fdt_end_node(&w);
	fdt_end_node(&w);
	return fdt_finish(&w) ? -ENOSPC : 0;
}

static void free_areas(void)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (!saved.area[i])
			continue;
		kho_unpreserve_vmalloc(&saved.info[i]);
		vfree(saved.area[i]);
		saved.area[i] = NULL;
	}
}

int test_areas_save(u64 seed)
{
	const struct reserve_mem_region *region;
	int err = 0;

	for (unsigned int i = 0; i < ARRAY_SIZE(kinds) && !err; i++)
		err = save_area(i, seed);
	if (err)
		goto free_areas;
	for (unsigned int i = 0; (region = reserve_mem_get(i)); i++)
		fill_region(i, region, seed);
	saved.fdt = kho_alloc_preserve(PAGE_SIZE);
	if (IS_ERR(saved.fdt)) {
		err = (int)PTR_ERR(saved.fdt);
		goto free_areas;
	}
	err = write_fdt(seed);
	if (!err)
		err = kho_add_subtree(TEST_AREAS_SUBTREE, saved.fdt, fdt_totalsize(saved.fdt));
	if (!err)
		return 0;

	kho_unpreserve_free(saved.fdt);
free_areas:
	free_areas();
	return err;
}

/* ---- negative controls ---- */

static void flip(const char *what, u64 n, phys_addr_t phys)
{
	pr_warn("break: %s %lu: a byte of the page at 0x%lx changes\n", what, n, phys & PAGE_MASK);
	*(u8 *)phys_to_virt(phys) ^= 0x10;
}

void test_areas_break(void)
{
	const struct reserve_mem_region *region;
	struct page **pages = find_vm_area(saved.area[0])->pages;
	u64 nr_pages = kinds[0].size >> PAGE_SHIFT, n;
	const void *payload;
	u32 len;

	if (breaks("vmalloc", &n))
		flip("vmalloc page", n % nr_pages, page_to_phys(pages[n % nr_pages]) + 0x123);
	if (breaks("vmallocpage", &n)) {
		n %= nr_pages;
		pr_warn("break: vmalloc page %lu at 0x%lx is not preserved\n", n, page_to_phys(pages[n]));
		kho_unpreserve_pages(pages[n], 1);
	}
	if (breaks("reserve_mem", &n)) {
		region = reserve_mem_get((unsigned int)n);
		if (region)
			flip("reserve_mem region", n, region->start + region->size / 2);
		else
			verdict_fail("break=reserve_mem: there is no region %lu", n);
	}
	if (breaks("blob", &n)) {
		payload = fdt_getprop(saved.fdt, FDT_ROOT, "payload", &len);
		if (payload)
			flip("byte of blob " TEST_AREAS_SUBTREE, n, virt_to_phys(payload) + n % PAYLOAD_SIZE);
	}
	if (breaks("node", NULL)) {
		pr_warn("break: sub-tree %s at 0x%lx is removed\n", TEST_AREAS_SUBTREE, virt_to_phys(saved.fdt));
		kho_remove_subtree(saved.fdt);
	}
}
