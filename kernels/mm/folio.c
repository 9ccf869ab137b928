/* References to pages, and folios: blocks of pages that have one reference count and one owner. */
#include "internal.h"
#include "panic.h"

/* A page that somebody has: anything else is freed twice, or was never allocated. */
static void check_in_use(const struct page *page)
{
	u64 pfn = page_to_pfn(page);

	if (!pfn_valid(pfn))
		panic("BUG: freeing or using what is no page: pfn:0x%llx", (unsigned long long)pfn);
	if (page->flags & PG_BUDDY)
		bad_page(page, "a page is used or freed that is free already");
	if (page->flags & PG_RESERVED)
		bad_page(page, "a reserved page is used or freed");
	if (page->refcount <= 0)
		bad_page(page, memblock_is_region_reserved(PFN_PHYS(pfn), PAGE_SIZE) ?
			 "a page is used or freed that belongs to nobody: reserved" :
			 "a page is used or freed that belongs to nobody: freed twice?");
}

static void drop(struct page *page, unsigned int order)
{
	check_in_use(page);
	if (__atomic_sub_fetch(&page->refcount, 1, __ATOMIC_ACQ_REL) == 0) {
		if (page->flags & (PG_SLAB | PG_KMALLOC))
			bad_page(page, "a page of the slab allocator is freed as a page");
		free_block(page, order);
	}
}

void __free_pages(struct page *page, unsigned int order)
{
	if (page->flags & PG_TAIL)
		bad_page(page, "freeing a part of a folio");
	if (page->order != order && !(page->flags & PG_BUDDY))
		bad_page(page, "freeing a block in another order than it was allocated in");
	drop(page, order);
}

void free_pages(void *addr, unsigned int order)
{
	if (addr)
		__free_pages(virt_to_page(addr), order);
}

void split_page(struct page *page, unsigned int order)
{
	check_in_use(page);
	BUG_ON(page->flags & (PG_HEAD | PG_TAIL) || page->order != order || page->refcount != 1);
	page->order = 0;
	for (u64 i = 1; i < 1UL << order; i++)
		page[i].refcount = 1;
}

struct folio *folio_alloc(gfp_t gfp, unsigned int order)
{
	return (struct folio *)alloc_pages(gfp | __GFP_COMP, order);
}

void prep_compound_page(struct page *head, unsigned int order)
{
	head->refcount = 1;
	head->order = (u8)order;
	if (!order)
		return;
	head->flags |= PG_HEAD;
	for (u64 i = 1; i < 1UL << order; i++) {
		head[i].refcount = 0;
		head[i].flags = PG_TAIL;
		head[i].private = (u64)head;
	}
}

struct folio *page_folio(struct page *page)
{
	return (struct folio *)(page->flags & PG_TAIL ? (struct page *)page->private : page);
}

void get_page(struct page *page)
{
	struct page *head = &page_folio(page)->page;

	check_in_use(head);
	__atomic_add_fetch(&head->refcount, 1, __ATOMIC_RELAXED);
}

void put_page(struct page *page)
{
	struct page *head = &page_folio(page)->page;

	drop(head, head->order);
}

void folio_get(struct folio *folio)
{
	get_page(&folio->page);
}

void folio_put(struct folio *folio)
{
	put_page(&folio->page);
}
