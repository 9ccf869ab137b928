/* Owners of preserved memory: who will restore which adopted block.
 *
 * Nothing in a handover says to whom a block belongs; that follows from records, and records may be wrong. Two of them
 * that lead to the same block would share memory, and one of the two would have the other one's data. So whoever is
 * going to restore blocks owns them first, all of them, and learns which of them another one has. What nobody owned in
 * the end is memory whose records are lost.
 *
 * The owner stands in the block's first struct page, whose `index` has no other use until the block is restored. Zero
 * is nobody, KHO_OWNER_KHO this file and what it owns for others, any other number is the business of who gave it.
 */
#define pr_fmt(fmt) "KHO: " fmt
#include "kho_internal.h"
#include "errno.h"
#include "init.h"

static u64 adopted_pages, settled_pages;	/* settled: owned, or restored without having been owned */

void kho_count_adopted(u64 pages) { adopted_pages += pages; }

u64 kho_unowned_pages(void) { return adopted_pages - settled_pages; }

bool kho_own(claim_t block, u64 owner, unsigned int *order, u64 *before)
{
	struct page *page;

	if (!kho_is_preserved(block, order))
		return false;
	page = phys_to_page(block.value);
	*before = page->index;
	if (!*before) {
		page->index = owner;
		__atomic_add_fetch(&settled_pages, 1UL << *order, __ATOMIC_RELAXED);
	}
	return true;
}

void kho_disown(struct page *page, unsigned int order)
{
	if (!page->index)
		__atomic_add_fetch(&settled_pages, 1UL << order, __ATOMIC_RELAXED);
	page->index = 0;
}

void kho_own_range(claim_t start, u64 size)
{
	u64 end = PAGE_ALIGN(start.value + size);
	unsigned int order;
	u64 before;

	for (u64 at = ALIGN_DOWN(start.value, PAGE_SIZE); at < end; at += PAGE_SIZE << order)
		if (!kho_own(claim(at), KHO_OWNER_KHO, &order, &before))
			order = 0;
}

/* The root FDT and the blobs. Whoever a blob was for has restored it by now, or reads it where it is. */
static int own_blobs(void)
{
	const void *fdt = kho_in_fdt();
	u64 phys, size;

	if (!fdt)
		return 0;
	kho_own_range(claim(kho_in.fdt), PAGE_SIZE);
	for (int node = fdt_first_subnode(fdt, FDT_ROOT); node >= 0; node = fdt_next_subnode(fdt, node))
		if (kho_subtree_blob(node, &phys, &size))
			kho_own_range(claim(phys), size);
	return 0;
}
fs_initcall(own_blobs);
