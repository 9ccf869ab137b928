/* The page allocator: a buddy allocator over two zones, with a list for each order and kind of memory.
 *
 * Kinds (migrate types) belong to pageblocks of 2 MiB. CMA is the scratch of KHO: what lies there is overwritten when
 * the next kernel is loaded, so it serves movable allocations only, and never changes its kind. UNMOVABLE and MOVABLE
 * keep long-lived and movable pages apart; a pageblock that is free as a whole is always MOVABLE (or CMA), one that an
 * unmovable allocation breaks up becomes UNMOVABLE, and when a kind runs out it takes from the other's blocks without
 * changing them. A free block is in the list of its pageblock's kind.
 *
 * Giving and freeing touch no page contents (but for junk) and only the struct page of the block's head. Most of the
 * memory is not given at all at first: it stays deferred, as the ranges that memblock has, counts as free, and is
 * given 64 MiB at a time when an allocation finds nothing else. So booting a large machine costs what a small one does.
 */
#include "internal.h"
#include "init.h"
#include "panic.h"
#include "printk.h"
#include "sched.h"
#include "sdt.h"
#include "string.h"

#define DEFERRED_CHUNK		(64 * MIB >> PAGE_SHIFT)	/* pages given at a time */
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
	phys_addr_t deferred_from;	/* all of them are behind this */
	struct list_head free_list[MIGRATE_TYPES][ORDERS];
	u64 nr_free[MIGRATE_TYPES][ORDERS];
};

static struct zone zones[ZONES] = { { .name = "DMA32" }, { .name = "Normal" } };
static u8 *pageblock_type;		/* enum migratetype by pfn / PAGEBLOCK_PAGES */
static spinlock_t lock;			/* all of the above */
static struct percpu *lock_owner;
bool mm_junk = true;

static u64 lock_zones(void)
{
	u64 flags = spin_lock_irqsave(&lock);

	WRITE_ONCE(lock_owner, this_cpu());
	return flags;
}

static void unlock_zones(u64 flags)
{
	WRITE_ONCE(lock_owner, NULL);
	spin_unlock_irqrestore(&lock, flags);
}

bool page_alloc_locked(void)
{
	return READ_ONCE(lock_owner) == this_cpu();
}

static struct zone *pfn_zone(u64 pfn)
{
	return &zones[pfn < DMA32_END_PFN ? ZONE_DMA32 : ZONE_NORMAL];
}

enum migratetype get_pageblock_migratetype(u64 pfn)
{
	BUG_ON(pfn >= max_pfn);
	return pageblock_type[pfn >> PAGEBLOCK_ORDER];
}

void set_pageblock_migratetype(u64 pfn, enum migratetype type)
{
	BUG_ON(pfn >= max_pfn);
	pageblock_type[pfn >> PAGEBLOCK_ORDER] = (u8)type;
}

static enum migratetype block_type(u64 pfn)
{
	return pageblock_type[pfn >> PAGEBLOCK_ORDER];
}

/* ---- free lists; the lock is held ---- */

static void count_free(struct zone *z, enum migratetype type, unsigned int order, s64 blocks)
{
	z->nr_free[type][order] += (u64)blocks;
	z->free_pages += (u64)(blocks * (1L << order));
	if (type == MIGRATE_CMA)
		z->free_cma_pages += (u64)(blocks * (1L << order));
}

static void add_free(struct zone *z, u64 pfn, unsigned int order)
{
	struct page *page = pfn_to_page(pfn);
	enum migratetype type = block_type(pfn);

	page->flags = PG_BUDDY;
	page->order = (u8)order;
	if (RELEASE_BUDDY_LIFO)
		list_add(&page->lru, &z->free_list[type][order]);
	else
		list_add_tail(&page->lru, &z->free_list[type][order]);
	count_free(z, type, order, 1);
}

static void remove_free(struct zone *z, u64 pfn, unsigned int order)
{
	struct page *page = pfn_to_page(pfn);

	list_del(&page->lru);
	page->flags = 0;
	page->order = 0;
	count_free(z, block_type(pfn), order, -1);
}

/* Puts a block into the lists, merged with its buddies as far as they are free. */
static void give_block(u64 pfn, unsigned int order)
{
	struct zone *z = pfn_zone(pfn);

	while (order < MAX_PAGE_ORDER) {
		u64 buddy_pfn = pfn ^ 1UL << order;
		const struct page *buddy = pfn_to_page(buddy_pfn);

		if (!(buddy->flags & PG_BUDDY) || buddy->order != order)
			break;
		if (order >= PAGEBLOCK_ORDER &&
		    (block_type(pfn) == MIGRATE_CMA) != (block_type(buddy_pfn) == MIGRATE_CMA))
			break;
		remove_free(z, buddy_pfn, order);
		pfn &= ~(1UL << order);
		order++;
	}
	for (u64 p = pfn; order >= PAGEBLOCK_ORDER && p < pfn + (1UL << order); p += PAGEBLOCK_PAGES)
		if (block_type(p) == MIGRATE_UNMOVABLE)
			set_pageblock_migratetype(p, MIGRATE_MOVABLE);
	add_free(z, pfn, order);
}

/* Takes the first block of a list and puts back what is more than wanted. */
static struct page *take_block(struct zone *z, enum migratetype list, unsigned int have, unsigned int order, bool claim)
{
	struct page *page = list_first_entry(&z->free_list[list][have], struct page, lru);
	u64 pfn = page_to_pfn(page);

	remove_free(z, pfn, have);
	if (claim)
		for (u64 p = pfn; p < pfn + (1UL << order); p += PAGEBLOCK_PAGES)
			set_pageblock_migratetype(p, MIGRATE_UNMOVABLE);
	while (have > order) {
		have--;
		add_free(z, pfn + (1UL << have), have);
	}
	return page;
}

static struct page *take_smallest(struct zone *z, enum migratetype list, unsigned int from, unsigned int order, bool claim)
{
	for (unsigned int have = max(from, order); have < ORDERS; have++)
		if (z->nr_free[list][have])
			return take_block(z, list, have, order, claim);
	return NULL;
}

/* From the other kind's blocks, the largest first, so that few of them are broken up. */
static struct page *steal(struct zone *z, enum migratetype list, unsigned int order)
{
	for (unsigned int have = ORDERS; have-- > order; )
		if (z->nr_free[list][have])
			return take_block(z, list, have, order, false);
	return NULL;
}

/* The unmovable must not break up what it need not: first its own, then a whole pageblock, which becomes its own. */
static struct page *take_unmovable(struct zone *z, unsigned int order, bool last_resort)
{
	struct page *page = take_smallest(z, MIGRATE_UNMOVABLE, 0, order, false);

	if (!page)
		page = take_smallest(z, MIGRATE_MOVABLE, PAGEBLOCK_ORDER, order, true);
	if (!page && last_resort)
		page = steal(z, MIGRATE_MOVABLE, order);
	return page;
}

/* Scratch comes first while it is more than half of what is free: only the movable can use it. */
static struct page *take_movable(struct zone *z, unsigned int order, bool last_resort)
{
	struct page *page = NULL;

	if (z->free_cma_pages > (z->free_pages + z->deferred_pages) / 2)
		page = take_smallest(z, MIGRATE_CMA, 0, order, false);
	if (!page)
		page = take_smallest(z, MIGRATE_MOVABLE, 0, order, false);
	if (!page && last_resort)
		page = take_smallest(z, MIGRATE_CMA, 0, order, false);
	if (!page && last_resort)
		page = steal(z, MIGRATE_UNMOVABLE, order);
	return page;
}

static struct page *take(struct zone *z, gfp_t gfp, unsigned int order, bool last_resort)
{
	u64 flags = lock_zones();
	struct page *page = gfp & __GFP_MOVABLE ? take_movable(z, order, last_resort) :
						  take_unmovable(z, order, last_resort);

	unlock_zones(flags);
	return page;
}

/* ---- deferred memory ---- */

/* The largest aligned block at the start of [pfn, end). */
static unsigned int block_order(u64 pfn, u64 end)
{
	return min(min(ctz64(pfn), ilog2(end - pfn)), (unsigned int)MAX_PAGE_ORDER);
}

/* Gives one block of the deferred memory; how many pages that is, 0 at the end. */
static u64 give_deferred_block(struct zone *z)
{
	u64 flags = lock_zones(), pfn = 0, end = 0, given = 0;
	phys_addr_t at = z->deferred_from, start, stop;

	while (z->deferred_pages && pfn >= end) {
		if (!memblock_next_free_flags(&at, &start, &stop, MEMBLOCK_KHO_SCRATCH, 0))
			break;
		pfn = PFN_UP(start);
		end = min(PFN_DOWN(stop), z->end_pfn);
	}
	if (pfn < end) {
		unsigned int order = block_order(pfn, end);

		given = 1UL << order;
		z->deferred_from = PFN_PHYS(pfn + given);
		z->deferred_pages -= given;
		give_block(pfn, order);
	} else {
		BUG_ON(z->deferred_pages);
	}
	unlock_zones(flags);
	return given;
}

static bool give_deferred(struct zone *z, bool refill)
{
	u64 sum = 0, given;

	do {
		if (refill)
			vmemmap_refill();
		given = give_deferred_block(z);
		sum += given;
	} while (given && sum < DEFERRED_CHUNK);
	return sum;
}

/* ---- allocation ---- */

static struct page *take_pages(gfp_t gfp, unsigned int order, bool refill)
{
	for (int last_resort = 0; last_resort <= 1; last_resort++) {
		for (int i = ZONES; i--; ) {
			do {
				struct page *page;

				if (refill)
					vmemmap_refill();
				page = take(&zones[i], gfp, order, last_resort);
				if (page)
					return page;
			} while (give_deferred(&zones[i], refill));
		}
	}
	return NULL;
}

struct page *alloc_page_for_vmemmap(void)
{
	struct page *page = take_pages(GFP_KERNEL, 0, false);

	if (page) {
		page->refcount = 1;
		memset(page_address(page), 0, PAGE_SIZE);
	}
	return page;
}

struct page *alloc_pages(gfp_t gfp, unsigned int order)
{
	struct page *page;

	if (WARN_ON_ONCE(order > MAX_PAGE_ORDER && !(gfp & __GFP_NOWARN)))
		return NULL;
	page = order > MAX_PAGE_ORDER ? NULL : take_pages(gfp, order, true);
	if (!page) {
		if (!(gfp & __GFP_NOWARN))
			pr_warn("page allocation failure: order:%u, mode:%#x\n", order, gfp);
		return NULL;
	}
	if (page->refcount)
		bad_page(page, "a page of the free lists is in use");
	page->order = (u8)order;
	page->private = 0;
	page->refcount = 1;
	if (gfp & __GFP_COMP && order)
		prep_compound_page(page, order);
	if (gfp & __GFP_ZERO)
		memset(page_address(page), 0, PAGE_SIZE << order);
	else if (mm_junk)
		memset(page_address(page), JUNK_ALLOCATED, PAGE_SIZE << order);
	return page;
}

void *get_free_pages(gfp_t gfp, unsigned int order)
{
	struct page *page = alloc_pages(gfp, order);

	return page ? page_address(page) : NULL;
}

/* ---- freeing ---- */

_Noreturn void bad_page(const struct page *page, const char *what)
{
	panic("BUG: %s: pfn:0x%llx flags:0x%x refcount:%d order:%u", what, (unsigned long long)page_to_pfn(page),
	      page->flags, page->refcount, page->order);
}

/* Nobody has the block any more. It may be larger than the largest order, when it came from another kernel. */
void free_block(struct page *page, unsigned int order)
{
	u64 pfn = page_to_pfn(page), flags;
	unsigned int part = min(order, (unsigned int)MAX_PAGE_ORDER);

	for (u64 i = 1; i < 1UL << order; i++) {
		struct page *tail = page + i;

		if (page->flags & PG_HEAD && tail->flags & PG_TAIL) {
			tail->flags = 0;
			tail->private = 0;
		}
		if (tail->flags || tail->refcount)
			bad_page(tail, "freeing a block with a page that is in use");
	}
	page->flags = 0;
	page->private = 0;
	if (mm_junk)
		memset(page_address(page), JUNK_FREED, PAGE_SIZE << order);
	for (u64 i = 0; i < 1UL << order; i += 1UL << part) {
		vmemmap_refill();
		flags = lock_zones();
		give_block(pfn + i, part);
		unlock_zones(flags);
	}
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

/* ---- numbers ---- */

void adjust_managed_page_count(struct page *page, s64 count)
{
	u64 flags = lock_zones();

	pfn_zone(page_to_pfn(page))->managed_pages += (u64)count;
	unlock_zones(flags);
}

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

/* ---- start ---- */

void page_alloc_init(void)
{
	u64 blocks = DIV_ROUND_UP(max_pfn, PAGEBLOCK_PAGES);

	pageblock_type = memblock_alloc_or_panic(blocks, 8, "pageblock types");
	memset(pageblock_type, MIGRATE_MOVABLE, blocks);
	zones[ZONE_DMA32].end_pfn = min(max_pfn, DMA32_END_PFN);
	zones[ZONE_NORMAL].start_pfn = DMA32_END_PFN;
	zones[ZONE_NORMAL].end_pfn = max(max_pfn, DMA32_END_PFN);
	for (int i = 0; i < ZONES; i++) {
		zones[i].deferred_from = PFN_PHYS(zones[i].start_pfn);
		for (int type = 0; type < MIGRATE_TYPES; type++)
			for (unsigned int order = 0; order < ORDERS; order++)
				INIT_LIST_HEAD(&zones[i].free_list[type][order]);
	}
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

void memblock_free_all(void)
{
	phys_addr_t at = 0, start, end;

	mark_scratch();
	memblock_clear_kho_scratch_only();
	PROBE(mm, free_all);
	memblock.done = true;
	while (memblock_next_free_flags(&at, &start, &end, MEMBLOCK_KHO_SCRATCH, 0))
		count_deferred(PFN_UP(start), PFN_DOWN(end));
	at = 0;
	while (memblock_next_free_flags(&at, &start, &end, MEMBLOCK_KHO_SCRATCH, MEMBLOCK_KHO_SCRATCH))
		give_range(PFN_UP(start), PFN_DOWN(end));
	give_deferred(&zones[ZONE_DMA32], true);
	PROBE(mm, free_all_done);
}

static int parse_junk(const char *value)
{
	return kstrtobool(value, &mm_junk);
}
early_param("junk", parse_junk);
