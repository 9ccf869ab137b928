/* Zones of the page allocator, for the files that it consists of. */
#pragma once
#include "internal.h"
#include "sched.h"

#define DMA32_END_PFN		(4 * GIB >> PAGE_SHIFT)
#define ORDERS			(MAX_PAGE_ORDER + 1)
#define PAGEBLOCK_PAGES		(1UL << PAGEBLOCK_ORDER)

enum { ZONE_DMA32, ZONE_NORMAL, ZONES };

struct zone {
	const char *name;
	u64 start_pfn, end_pfn;
	u64 managed_pages;
	u64 free_pages, free_cma_pages;	/* in the lists */
	u64 deferred_pages;		/* free, but not in the lists yet */
	struct memblock_free_iter deferred;	/* all of them are behind this */
	struct list_head free_list[MIGRATE_TYPES][ORDERS];
	u64 nr_free[MIGRATE_TYPES][ORDERS];
};
extern struct zone zones[ZONES];
extern u8 *pageblock_type;		/* enum migratetype by pfn / PAGEBLOCK_PAGES */

/* Protects all of the above. */
u64 lock_zones(void);
void unlock_zones(u64 flags);

static inline struct zone *pfn_zone(u64 pfn)
{
	return &zones[pfn < DMA32_END_PFN ? ZONE_DMA32 : ZONE_NORMAL];
}

/* The kind of a free block. */
static inline enum migratetype block_type(u64 pfn)
{
	return pageblock_type[pfn >> PAGEBLOCK_ORDER];
}

/* Puts a block into the lists, merged with its buddies as far as they are free. The lock is held. */
void give_block(u64 pfn, unsigned int order);
/* Gives the next 64 MiB of a zone's deferred memory, or just the next block if vmemmap_refill() may not be called (many
 * small blocks need more than its reserve); false if there is none. */
bool give_deferred(struct zone *z, bool refill);
