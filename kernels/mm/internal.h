/* Between the files of mm/. */
#pragma once
#include "bitops.h"
#include "memblock.h"
#include "page.h"

/* junk=off turns the filling of allocated and freed memory off (mm/page_alloc.c). */
#define JUNK_ALLOCATED	0xcc
#define JUNK_FREED	0xdd
extern bool mm_junk;

/* Like memblock_next_free(), of the memory regions with (flags & mask) == flags only, scratch-only or not. */
bool memblock_next_free_flags(phys_addr_t *cursor, phys_addr_t *start, phys_addr_t *end, u32 mask, u32 flags);
/* The same without searching: memblock must not change meanwhile. `at` may be moved back into the stretch that came
 * last. */
struct memblock_free_iter {
	phys_addr_t at;
	u64 memory, reserved;		/* indices of the first regions that end behind it */
	u32 mask, flags;
};
void memblock_free_iter_init(struct memblock_free_iter *it, phys_addr_t from, u32 mask, u32 flags);
bool memblock_free_iter_next(struct memblock_free_iter *it, phys_addr_t *start, phys_addr_t *end);

/* Devices have the last part of the vmalloc area. */
#define IOREMAP_SIZE	(1UL << 32)
#define IOREMAP_BASE	(VMALLOC_BASE + VMALLOC_SIZE - IOREMAP_SIZE)

#define PGD_SPAN	(1UL << 39)	/* of an entry of the top table */
bool pgtable_prepare(u64 virt);		/* makes the entry of the top table; false without memory */

void vmemmap_init(void);
/* Pages for the vmemmap faults of the next operation on struct pages. Called with no lock of the allocator held. */
void vmemmap_refill(void);
u64 vmemmap_pages(void);			/* taken so far, the reserve included */
u64 vmemmap_reserve(void);		/* pages that wait for a fault */

void page_alloc_init(void);		/* zones and the table of pageblocks; gives nothing yet */
void print_zones(void);
_Noreturn void bad_page(const struct page *page, const char *what);
void free_block(struct page *page, unsigned int order);	/* the last reference is gone */
bool page_alloc_locked(void);		/* does this CPU hold the allocator's lock? */
struct page *alloc_page_for_vmemmap(void);	/* zeroed, without a refill before; NULL */
void kmem_cache_init(void);
void vmalloc_init(void);
