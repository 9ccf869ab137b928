/* Scratch: the memory that the next kernel may use before it knows what was preserved.
 *
 *	area 0		below 4 GiB, for devices with 32-bit addresses
 *	area 1		anywhere
 *	area 2		one for each memory node; there is one
 *
 * A cold boot reserves the areas; every later kernel of the chain gets the same ones by the array that its predecessor
 * put into one of them. Between updates they hold movable memory only, so nothing in them is ever preserved.
 */
#define pr_fmt(fmt) "KHO: " fmt
#include "kho_internal.h"
#include "errno.h"
#include "init.h"
#include "memblock.h"
#include "printk.h"
#include "string.h"

#define NR_NODES	1
#define PERCENT_DIGITS	10
#define KERNELS_FROM	(32 * MIB)	/* no kernel asks to be loaded higher; below it scratch could be of no use */

struct kho_scratch *kho_scratch;
unsigned int kho_scratch_cnt;

static u64 scale = 200;			/* per cent of what the boot needed; 0: the sizes below */
static u64 size_low, size_global, size_node;

/* ---- kho_scratch= ---- */

static int parse_percent(const char *value, size_t digits)
{
	char number[PERCENT_DIGITS + 1];
	u64 n;

	if (!digits || digits > PERCENT_DIGITS)
		return -EINVAL;
	memcpy(number, value, digits);
	number[digits] = '\0';
	if (kstrtou64(number, 10, &n) || n > INT32_MAX)
		return -EINVAL;
	scale = n;
	pr_notice("scratch scale is %llu%%\n", (unsigned long long)n);
	return 0;
}

/* "N%", or "LOW,GLOBAL,NODE" in bytes with suffixes. */
static int parse_kho_scratch(const char *value)
{
	size_t len = strlen(value);
	const char *at = value, *end;
	u64 sizes[3];

	if (len && value[len - 1] == '%')
		return parse_percent(value, len - 1);
	for (unsigned int i = 0; i < 3; i++, at = end + 1) {
		sizes[i] = memparse(at, &end);
		if (end == at || *end != (i < 2 ? ',' : '\0'))
			return -EINVAL;
	}
	if (!sizes[0] && !sizes[1] && !sizes[2])
		return -EINVAL;
	scale = 0;
	size_low = sizes[0];
	size_global = sizes[1];
	size_node = sizes[2];
	pr_notice("scratch areas: lowmem: %lluMiB global: %lluMiB pernode: %lluMiB\n",
		  (unsigned long long)(size_low / MIB), (unsigned long long)(size_global / MIB),
		  (unsigned long long)(size_node / MIB));
	return 0;
}
early_param("kho_scratch", parse_kho_scratch);

/* ---- reserving ---- */

static u64 scaled(u64 size)
{
	u64 product;

	return __builtin_mul_overflow(size, scale, &product) ? ~0UL : product / 100;
}

/* Struct pages get their memory when they are written, so this boot did not take it for all of them; but the next
 * kernel writes one for each block that was preserved, wherever that may be. */
static u64 node_size(void)
{
	if (!scale)
		return size_node;
	return scaled(memblock_reserved_kern_size(~0UL)) + PFN_UP(memblock_phys_mem_size()) * sizeof(struct page);
}

/* Low and global together; the node's size counts what they take. */
static void scale_low_and_global(void)
{
	u64 all, low;

	if (!scale)
		return;
	size_low = scaled(memblock_reserved_kern_size(KHO_SCRATCH_LOW_LIMIT));
	low = ALIGN_UP(size_low, KHO_SCRATCH_ALIGN);
	all = scaled(memblock_reserved_kern_size(~0UL));
	size_global = all > low ? all - low : 0;
}

/* Reserves an area of any size; one without bytes still has a valid address. */
static bool reserve_area(struct kho_scratch *area, u64 size, phys_addr_t end)
{
	static phys_addr_t free_end = KHO_SCRATCH_ALIGN;

	if (size > -KHO_SCRATCH_ALIGN)
		return false;
	area->size = ALIGN_UP(size, KHO_SCRATCH_ALIGN);
	area->addr = free_end;
	if (area->size) {
		area->addr = memblock_phys_alloc_range(area->size, KHO_SCRATCH_ALIGN, KERNELS_FROM, end);
		if (!area->addr)
			area->addr = memblock_phys_alloc_range(area->size, KHO_SCRATCH_ALIGN, 0, end);
	}
	free_end = area->addr + area->size;
	return area->addr != 0;
}

void kho_scratch_reserve(void)
{
	u64 array_size = (NR_NODES + 2) * sizeof(*kho_scratch);
	unsigned int n = 0;

	scale_low_and_global();
	kho_scratch = memblock_alloc(array_size, PAGE_SIZE);
	if (!kho_scratch) {
		pr_err("Failed to reserve scratch array\n");
		goto disable;
	}
	if (!reserve_area(&kho_scratch[n++], size_low, KHO_SCRATCH_LOW_LIMIT + 1)) {
		pr_err("Failed to reserve lowmem scratch buffer\n");
		goto free;
	}
	if (!reserve_area(&kho_scratch[n++], size_global, 0)) {
		pr_err("Failed to reserve global scratch buffer\n");
		goto free;
	}
	for (unsigned int node = 0; node < NR_NODES; node++)
		if (!reserve_area(&kho_scratch[n++], node_size(), 0)) {
			pr_err("Failed to reserve nid %u scratch buffer\n", node);
			goto free;
		}
	kho_scratch_cnt = n;
	return;

free:
	while (n--)
		if (kho_scratch[n].addr && kho_scratch[n].size)
			memblock_phys_free(kho_scratch[n].addr, kho_scratch[n].size);
	memblock_phys_free(virt_to_phys(kho_scratch), array_size);
	kho_scratch = NULL;
disable:
	pr_warn("Failed to reserve scratch area, disabling kexec handover\n");
	kho_enable = false;
}

void kho_scratch_release(enum migratetype type)
{
	for (unsigned int i = 0; i < kho_scratch_cnt; i++) {
		u64 pfn = PFN_DOWN(kho_scratch[i].addr), end = pfn + PFN_DOWN(kho_scratch[i].size);

		for (; pfn < end; pfn += 1UL << MAX_PAGE_ORDER) {
			for (u64 block = 0; block < 1UL << MAX_PAGE_ORDER; block += 1UL << PAGEBLOCK_ORDER)
				set_pageblock_migratetype(pfn + block, type);
			free_pages_core(pfn, MAX_PAGE_ORDER);
		}
	}
}

bool kho_scratch_overlap(phys_addr_t phys, u64 size)
{
	for (unsigned int i = 0; i < kho_scratch_cnt; i++) {
		const struct kho_scratch *area = &kho_scratch[i];

		/* An empty area has an address, too, but overlaps nothing. */
		if (area->size && phys < area->addr + area->size && area->addr < phys + size)
			return true;
	}
	return false;
}
