/* Where the memory of the page allocator comes from: memblock, at the end of early boot, and whoever has more later.
 *
 * Scratch is given as a whole. Of the rest most stays deferred: it counts as free and managed, but is known only as the
 * free stretches of memblock, and is given 64 MiB at a time when an allocation finds nothing else. So booting a large
 * machine costs what booting a small one does. memblock does not change any more from then on.
 *
 * No struct page of reserved memory is touched, that of preserved blocks least of all: all zero, it belongs to nobody,
 * and freeing it is caught by that.
 */
#include "zone.h"
#include "panic.h"
#include "sdt.h"
#include "string.h"

#define DEFERRED_CHUNK		(64 * MIB >> PAGE_SHIFT)	/* pages given at a time */

/* The largest aligned block at the start of [pfn, end). */
static unsigned int block_order(u64 pfn, u64 end)
{
	return min(min(ctz64(pfn), ilog2(end - pfn)), (unsigned int)MAX_PAGE_ORDER);
}

/* Gives one block of the deferred memory; how many pages that is, 0 at the end. */
static u64 give_deferred_block(struct zone *z)
{
	u64 flags = lock_zones(), pfn = 0, end = 0, given = 0;
	phys_addr_t start, stop;

	while (z->deferred_pages && pfn >= end) {
		if (!memblock_free_iter_next(&z->deferred, &start, &stop))
			break;
		pfn = PFN_UP(start);
		end = min(PFN_DOWN(stop), z->end_pfn);
	}
	if (pfn < end) {
		unsigned int order = block_order(pfn, end);

		given = 1UL << order;
		z->deferred.at = PFN_PHYS(pfn + given);
		z->deferred_pages -= given;
		give_block(pfn, order);
	} else {
		BUG_ON(z->deferred_pages);
	}
	unlock_zones(flags);
	return given;
}

bool give_deferred(struct zone *z, bool refill)
{
	u64 sum = 0, given;

	do {
		if (refill)
			vmemmap_refill();
		given = give_deferred_block(z);
		sum += given;
	} while (given && refill && sum < DEFERRED_CHUNK);
	return sum;
}

/* Memory that was not managed before. */
static void give_new(u64 pfn, unsigned int order)
{
	u64 flags;

	vmemmap_refill();
	flags = lock_zones();
	pfn_zone(pfn)->managed_pages += 1UL << order;
	give_block(pfn, order);
	unlock_zones(flags);
}

void free_pages_core(u64 pfn, unsigned int order)
{
	struct page *page = pfn_to_page(pfn);

	if (!pfn_valid(pfn) || page->flags & ~PG_RESERVED || page->refcount)
		bad_page(page, "giving a page that is no memory or in use");
	/* What is not reserved is deferred, or was given already. */
	if (!memblock_is_region_reserved(PFN_PHYS(pfn), PAGE_SIZE << order))
		bad_page(page, "giving a page that the allocator has already");
	if (page->flags)
		page->flags = 0;
	give_new(pfn, order);
}

void page_alloc_init(void)
{
	u64 blocks = DIV_ROUND_UP(max_pfn, PAGEBLOCK_PAGES);

	pageblock_type = memblock_alloc_or_panic(blocks, 8, "pageblock types");
	memset(pageblock_type, MIGRATE_MOVABLE, blocks);
	zones[ZONE_DMA32].end_pfn = min(max_pfn, DMA32_END_PFN);
	zones[ZONE_NORMAL].start_pfn = DMA32_END_PFN;
	zones[ZONE_NORMAL].end_pfn = max(max_pfn, DMA32_END_PFN);
	for (int i = 0; i < ZONES; i++) {
		for (int type = 0; type < MIGRATE_TYPES; type++)
			for (unsigned int order = 0; order < ORDERS; order++)
				INIT_LIST_HEAD(&zones[i].free_list[type][order]);
	}
}

/* Scratch that KHO brought becomes CMA, whole pageblocks only. */
static void mark_scratch(void)
{
	for (u64 i = 0; i < memblock.memory.cnt; i++) {
		const struct memblock_region *r = &memblock.memory.regions[i];
		u64 pfn = ALIGN_UP(PFN_UP(r->base), PAGEBLOCK_PAGES), end = PFN_DOWN(r->base + r->size);

		if (!(r->flags & MEMBLOCK_KHO_SCRATCH))
			continue;
		for (; pfn + PAGEBLOCK_PAGES <= end; pfn += PAGEBLOCK_PAGES)
			set_pageblock_migratetype(pfn, MIGRATE_CMA);
	}
}

static void give_range(u64 pfn, u64 end)
{
	while (pfn < end) {
		unsigned int order = block_order(pfn, end);

		give_new(pfn, order);
		pfn += 1UL << order;
	}
}

static void count_deferred(u64 pfn, u64 end)
{
	for (int i = 0; i < ZONES; i++) {
		u64 from = max(pfn, zones[i].start_pfn), to = min(end, zones[i].end_pfn);

		if (from < to) {
			zones[i].deferred_pages += to - from;
			zones[i].managed_pages += to - from;
		}
	}
}

static void count_all_deferred(void)
{
	struct memblock_free_iter it;
	phys_addr_t start, end;

	memblock_free_iter_init(&it, 0, MEMBLOCK_KHO_SCRATCH, 0);
	while (memblock_free_iter_next(&it, &start, &end))
		count_deferred(PFN_UP(start), PFN_DOWN(end));
	for (int i = 0; i < ZONES; i++)
		memblock_free_iter_init(&zones[i].deferred, PFN_PHYS(zones[i].start_pfn), MEMBLOCK_KHO_SCRATCH, 0);
}

static void give_scratch(void)
{
	struct memblock_free_iter it;
	phys_addr_t start, end;

	memblock_free_iter_init(&it, 0, MEMBLOCK_KHO_SCRATCH, MEMBLOCK_KHO_SCRATCH);
	while (memblock_free_iter_next(&it, &start, &end))
		give_range(PFN_UP(start), PFN_DOWN(end));
}

void memblock_free_all(void)
{
	mark_scratch();
	memblock_clear_kho_scratch_only();
	PROBE(mm, free_all);
	memblock.done = true;
	count_all_deferred();		/* first: scratch needs struct pages, whose memory is never in scratch */
	give_scratch();
	give_deferred(&zones[ZONE_DMA32], true);
	PROBE(mm, free_all_done);
}
