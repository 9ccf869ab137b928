/* Restoring memory: an adopted block becomes ordinary allocated memory of this kernel.
 *
 * Adoption stamped the first page of every block with its order (kho_stamp()). The stamp proves that a block begins
 * there, and restoring takes it away: so an address that the previous kernel made up is refused, and so is restoring a
 * block twice. The contents are never touched.
 */
#define pr_fmt(fmt) "KHO: " fmt
#include "kho_internal.h"
#include "errno.h"
#include "panic.h"
#include "sdt.h"

static u64 restored_pages;
static u64 dma_restored;		/* blocks with PG_DMA */

u64 kho_restored_pages(void)
{
	return restored_pages;
}

u64 kho_dma_restored(void) { return dma_restored; }

bool kho_is_preserved(claim_t c, unsigned int *order)
{
	const struct page *page;

	if (!IS_ALIGNED(c.value, PAGE_SIZE) || !pfn_valid(PFN_DOWN(c.value)))
		return false;
	page = phys_to_page(c.value);
	*order = (u32)page->private;
	return page->private >> 32 == KHO_PAGE_MAGIC;
}

bool kho_are_preserved(claim_t c, u64 nr_pages)
{
	unsigned int order;

	while (nr_pages) {
		if (!kho_is_preserved(c, &order) || nr_pages >> order == 0)
			return false;
		nr_pages -= 1UL << order;
		c.value += PAGE_SIZE << order;
	}
	return true;
}

/* Takes the stamp of a block of at most max_pages pages; only one caller gets it. */
static bool take_stamp(claim_t c, u64 max_pages, unsigned int *order)
{
	u64 stamp;

	if (!kho_is_preserved(c, order) || max_pages >> *order == 0)
		return false;
	stamp = kho_stamp(*order);
	if (!__atomic_compare_exchange_n(&phys_to_page(c.value)->private, &stamp, 0, false, __ATOMIC_ACQ_REL,
					 __ATOMIC_RELAXED))
		return false;
	kho_disown(phys_to_page(c.value), *order);
	return true;
}

/* The pages of a block belong to this kernel from now on. */
static void account(phys_addr_t phys, unsigned int order)
{
	PROBE2(kho, restore, phys, order);
	adjust_managed_page_count(phys_to_page(phys), (s64)(1UL << order));
	__atomic_add_fetch(&restored_pages, 1UL << order, __ATOMIC_RELAXED);
}

struct folio *kho_restore_folio(phys_addr_t phys)
{
	struct page *page = phys_to_page(phys);
	unsigned int order;

	if (WARN_ON_ONCE(!take_stamp(claim(phys), 1UL << MAX_PAGE_ORDER, &order)))
		return NULL;
	prep_compound_page(page, order);
	/* A device writes to it: the device's file has a reference, until it is finished, whatever becomes of others. */
	if (page->flags & PG_DMA) {
		page->refcount++;
		dma_restored++;
	}
	account(phys, order);
	return (struct folio *)page;
}

struct page *kho_restore_pages(phys_addr_t phys, u64 nr_pages)
{
	unsigned int order;

	/* By the order that was stored, however the range was cut; a block that goes beyond the range is not ours. */
	for (u64 done = 0; done < nr_pages; done += 1UL << order) {
		phys_addr_t at = phys + (done << PAGE_SHIFT);
		struct page *page = phys_to_page(at);

		if (WARN_ON_ONCE(!take_stamp(claim(at), nr_pages - done, &order)))
			return NULL;
		for (u64 i = 0; i < 1UL << order; i++)
			page[i].refcount = 1;
		account(at, order);
	}
	return phys_to_page(phys);
}

void kho_restore_free(void *mem)
{
	struct folio *folio;

	if (!mem)
		return;
	folio = kho_restore_folio(virt_to_phys(mem));
	if (!WARN_ON(!folio))
		folio_put(folio);
}
