/* The page allocator: a buddy allocator over two zones, with a list for each order and kind of memory.
 *
 * Kinds (migrate types) belong to pageblocks of 2 MiB. CMA is the scratch of KHO: what lies there is overwritten when
 * the next kernel is loaded, so it serves movable allocations only, and never changes its kind. UNMOVABLE and MOVABLE
 * keep long-lived and movable pages apart; a pageblock that is free as a whole is always MOVABLE (or CMA), one that an
 * unmovable allocation breaks up becomes UNMOVABLE, and when a kind runs out it takes from the other's blocks without
 * changing them. A free block is in the list of its pageblock's kind.
 *
 * Giving and freeing touch no page contents (but for junk), giving only the struct page of the block's head. Where the
 * memory comes from is page_init.c.
 */
#include "zone.h"
#include "init.h"
#include "panic.h"
#include "printk.h"
#include "string.h"

struct zone zones[ZONES] = { { .name = "DMA32" }, { .name = "Normal" } };
u8 *pageblock_type;
bool mm_junk = true;
static spinlock_t lock;
static struct percpu *lock_owner;

u64 lock_zones(void)
{
	u64 flags = spin_lock_irqsave(&lock);

	WRITE_ONCE(lock_owner, this_cpu());
	return flags;
}

void unlock_zones(u64 flags)
{
	WRITE_ONCE(lock_owner, NULL);
	spin_unlock_irqrestore(&lock, flags);
}

bool page_alloc_locked(void)
{
	return READ_ONCE(lock_owner) == this_cpu();
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

void give_block(u64 pfn, unsigned int order)
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

static struct page *take_smallest(struct zone *z, enum migratetype list, unsigned int from, unsigned int order,
				  bool claim)
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

/* ---- allocation ---- */

static struct page *take_pages(gfp_t gfp, unsigned int order, bool refill)
{
	/* The array of struct pages takes what is there: giving it more needs struct pages in turn. */
	for (int last_resort = !refill; last_resort <= 1; last_resort++) {
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
	page->index = 0;
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

	if (page->mapping)
		bad_page(page, "freeing a page that a file still has");
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
	page->order = 0;	/* merged with its lower buddy it is the head of nothing */
	if (mm_junk)
		memset(page_address(page), JUNK_FREED, PAGE_SIZE << order);
	for (u64 i = 0; i < 1UL << order; i += 1UL << part) {
		vmemmap_refill();
		flags = lock_zones();
		give_block(pfn + i, part);
		unlock_zones(flags);
	}
}

void adjust_managed_page_count(struct page *page, s64 count)
{
	u64 flags = lock_zones();

	pfn_zone(page_to_pfn(page))->managed_pages += (u64)count;
	unlock_zones(flags);
}

static int parse_junk(const char *value)
{
	return kstrtobool(value, &mm_junk);
}
early_param("junk", parse_junk);
