/* From memblock to working kmalloc() and vmalloc(), and what is said about it. */
#include "arch.h"
#include "internal.h"
#include "iommu.h"
#include "kho.h"
#include "printk.h"

extern char __bss_start[];

static unsigned long long kib(u64 bytes)
{
	return bytes >> 10;
}

static void print_memory_ranges(void)
{
	pr_info("Early memory node ranges\n");
	for (u64 i = 0; i < memblock.memory.cnt; i++) {
		const struct memblock_region *r = &memblock.memory.regions[i];

		pr_info("  node   0: [mem 0x%016llx-0x%016llx]%s\n", (unsigned long long)r->base,
			(unsigned long long)(r->base + r->size - 1),
			r->flags & MEMBLOCK_KHO_SCRATCH ? " scratch" : "");
	}
}

static void print_available(void)
{
	u64 total = memblock_phys_mem_size();

	pr_info("Memory: %lluK/%lluK available (%lluK kernel code, %lluK rwdata, %lluK rodata, %lluK bss, "
		"%lluK reserved, %lluK cma-reserved)\n",
		kib(nr_free_pages() << PAGE_SHIFT), kib(total), kib((u64)(_etext - _text)),
		kib((u64)(__bss_start - _data)), kib((u64)(_erodata - _rodata)), kib((u64)(_end - __bss_start)),
		kib(total - (nr_managed_pages() << PAGE_SHIFT)), kib(nr_free_cma_pages() << PAGE_SHIFT));
}

void mm_core_init(void)
{
	memblock_dump();
	page_alloc_init();
	print_zones();
	print_memory_ranges();
	vmemmap_init();
	kho_memory_init();
	iommu_early_init();
	memblock_free_all();
	kmem_cache_init();
	vmalloc_init();
	print_available();
	show_mem();
}
