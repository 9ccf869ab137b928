/* The page allocator's numbers, as text, and whether they are right. */
#include "zone.h"
#include "panic.h"
#include "printk.h"

u64 nr_free_pages(void)
{
	u64 sum = 0;

	for (int i = 0; i < ZONES; i++)
		sum += zones[i].free_pages + zones[i].deferred_pages;
	return sum;
}

u64 nr_free_cma_pages(void)
{
	return zones[ZONE_DMA32].free_cma_pages + zones[ZONE_NORMAL].free_cma_pages;
}

u64 nr_managed_pages(void)
{
	return zones[ZONE_DMA32].managed_pages + zones[ZONE_NORMAL].managed_pages;
}

static void show_zone(const struct zone *z)
{
	static const char letters[MIGRATE_TYPES + 1] = "UMC";
	u64 kib = 0;

	pr_info("Node 0 %s free:%llukB deferred:%llukB managed:%llukB free_cma:%llukB\n", z->name,
		(unsigned long long)(z->free_pages + z->deferred_pages) << 2,
		(unsigned long long)z->deferred_pages << 2, (unsigned long long)z->managed_pages << 2,
		(unsigned long long)z->free_cma_pages << 2);
	pr_info("Node 0 %s: ", z->name);
	for (unsigned int order = 0; order < ORDERS; order++) {
		char types[MIGRATE_TYPES + 1] = "";
		u64 sum = 0;
		int n = 0;

		for (int type = 0; type < MIGRATE_TYPES; type++) {
			sum += z->nr_free[type][order];
			if (z->nr_free[type][order])
				types[n++] = letters[type];
		}
		kib += sum << order << 2;
		printk(KERN_CONT "%llu*%lukB %s%s%s", (unsigned long long)sum, (PAGE_SIZE << order) / KIB,
		       n ? "(" : "", types, n ? ") " : "");
	}
	printk(KERN_CONT "= %llukB\n", (unsigned long long)kib);
}

void show_mem(void)
{
	pr_info("Mem-Info:\n");
	for (int i = 0; i < ZONES; i++)
		if (zones[i].managed_pages)
			show_zone(&zones[i]);
	pr_info("%llu pages managed, %llu free, %llu of them in scratch\n", (unsigned long long)nr_managed_pages(),
		(unsigned long long)nr_free_pages(), (unsigned long long)nr_free_cma_pages());
}

void print_zones(void)
{
	pr_info("Zone ranges:\n");
	for (int i = 0; i < ZONES; i++) {
		const struct zone *z = &zones[i];

		if (z->end_pfn > z->start_pfn)
			pr_info("  %-8s [mem 0x%016llx-0x%016llx]\n", z->name,
				(unsigned long long)max(PFN_PHYS(z->start_pfn), PAGE_SIZE),
				(unsigned long long)(PFN_PHYS(z->end_pfn) - 1));
		else
			pr_info("  %-8s empty\n", z->name);
	}
}

/* ---- verification ---- */

#define VERIFY(page, c) do { if (!(c)) bad_page(page, "free lists: " #c); } while (0)

static void check_block(const struct zone *z, const struct page *page, enum migratetype type, unsigned int order)
{
	u64 pfn = page_to_pfn(page);
	const struct page *buddy = pfn_to_page(pfn ^ 1UL << order);

	VERIFY(page, pfn >= z->start_pfn && pfn + (1UL << order) <= z->end_pfn);
	VERIFY(page, IS_ALIGNED(pfn, 1UL << order));
	VERIFY(page, page->flags == PG_BUDDY);
	VERIFY(page, page->order == order);
	VERIFY(page, page->refcount == 0);
	VERIFY(page, page->private == 0);
	VERIFY(page, page->lru.next->prev == &page->lru);
	VERIFY(page, block_type(pfn) == type);
	VERIFY(page, order < PAGEBLOCK_ORDER || type != MIGRATE_UNMOVABLE);
	if (order < MAX_PAGE_ORDER && buddy->flags & PG_BUDDY && buddy->order == order)
		VERIFY(page, (block_type(pfn) == MIGRATE_CMA) != (block_type(page_to_pfn(buddy)) == MIGRATE_CMA));
	for (u64 i = 1; i < 1UL << order; i++)
		VERIFY(page + i, page[i].flags == 0 && page[i].refcount == 0);
}

void check_free_lists(void)
{
	u64 flags;

	vmemmap_refill();
	flags = lock_zones();
	for (int i = 0; i < ZONES; i++) {
		const struct zone *z = &zones[i];
		u64 free = 0, cma = 0;

		for (int type = 0; type < MIGRATE_TYPES; type++) {
			for (unsigned int order = 0; order < ORDERS; order++) {
				const struct page *page;
				u64 n = 0;

				list_for_each_entry(page, &z->free_list[type][order], lru) {
					check_block(z, page, type, order);
					n++;
				}
				if (n != z->nr_free[type][order])
					panic("BUG: free lists: %s order %u type %d has %llu blocks, counted %llu",
					      z->name, order, type, (unsigned long long)n,
					      (unsigned long long)z->nr_free[type][order]);
				free += n << order;
				cma += type == MIGRATE_CMA ? n << order : 0;
			}
		}
		if (free != z->free_pages || cma != z->free_cma_pages ||
		    free + z->deferred_pages > z->managed_pages)
			panic("BUG: free lists: %s has %llu free pages (CMA %llu), counted %llu (%llu), "
			      "%llu deferred, %llu managed", z->name, (unsigned long long)free,
			      (unsigned long long)cma, (unsigned long long)z->free_pages,
			      (unsigned long long)z->free_cma_pages, (unsigned long long)z->deferred_pages,
			      (unsigned long long)z->managed_pages);
	}
	unlock_zones(flags);
}
