/* Preserving memory: marking blocks in the tree.
 *
 * A folio is one block. A range of pages is cut into the largest aligned blocks, from the front; undoing cuts the same
 * range the same way, so whoever unpreserves must name the range that was preserved. The tree counts nothing: a block
 * that two preserve is gone when the first of them unpreserves it.
 */
#define pr_fmt(fmt) "KHO: " fmt
#include "kho_internal.h"
#include "bitops.h"
#include "errno.h"
#include "panic.h"
#include "sdt.h"

static int add_block(u64 pfn, unsigned int order)
{
	PROBE2(kho, preserve, pfn, order);
	return kho_radix_add(&kho_out.tree, pfn, order);
}

static void del_block(u64 pfn, unsigned int order)
{
	PROBE2(kho, unpreserve, pfn, order);
	kho_radix_del(&kho_out.tree, pfn, order);
}

/* Order of the largest aligned block at the front of [pfn, end). */
static unsigned int front_order(u64 pfn, u64 end)
{
	return min(ctz64(pfn), ilog2(end - pfn));
}

/* Takes [start, at) of a range that ends at `end` out of the tree: the blocks are those of the whole range. */
static void unpreserve_range(u64 start, u64 at, u64 end)
{
	while (start < at) {
		unsigned int order = front_order(start, end);

		del_block(start, order);
		start += 1UL << order;
	}
}

static int preserve_range(u64 start, u64 end)
{
	u64 pfn = start;

	while (pfn < end) {
		unsigned int order = front_order(pfn, end);
		int err = add_block(pfn, order);

		if (err) {
			unpreserve_range(start, pfn, end);
			return err;
		}
		pfn += 1UL << order;
	}
	return 0;
}

int kho_preserve_folio(struct folio *folio)
{
	u64 pfn = folio_pfn(folio);

	if (!kho_enable)
		return -EOPNOTSUPP;
	if (WARN_ON(kho_scratch_overlap(PFN_PHYS(pfn), PAGE_SIZE << folio_order(folio))))
		return -EINVAL;
	return add_block(pfn, folio_order(folio));
}

void kho_unpreserve_folio(struct folio *folio)
{
	if (kho_out.tree.root)
		del_block(folio_pfn(folio), folio_order(folio));
}

int kho_preserve_pages(struct page *page, u64 nr_pages)
{
	u64 pfn = page_to_pfn(page);

	if (!kho_enable)
		return -EOPNOTSUPP;
	if (WARN_ON(kho_scratch_overlap(PFN_PHYS(pfn), nr_pages << PAGE_SHIFT)))
		return -EINVAL;
	return preserve_range(pfn, pfn + nr_pages);
}

void kho_unpreserve_pages(struct page *page, u64 nr_pages)
{
	u64 pfn = page_to_pfn(page);

	if (kho_out.tree.root)
		unpreserve_range(pfn, pfn + nr_pages, pfn + nr_pages);
}

void *kho_alloc_preserve(u64 size)
{
	struct folio *folio;
	int err;

	if (!kho_enable)
		return ERR_PTR(-EOPNOTSUPP);
	if (!size)
		return ERR_PTR(-EINVAL);
	if (size > PAGE_SIZE << MAX_PAGE_ORDER)
		return ERR_PTR(-E2BIG);
	folio = folio_alloc(GFP_KERNEL | __GFP_ZERO, get_order(size));
	if (!folio)
		return ERR_PTR(-ENOMEM);
	err = kho_preserve_folio(folio);
	if (err) {
		folio_put(folio);
		return ERR_PTR(err);
	}
	return folio_address(folio);
}

void kho_unpreserve_free(void *mem)
{
	struct folio *folio;

	if (!mem)
		return;
	folio = page_folio(virt_to_page(mem));
	kho_unpreserve_folio(folio);
	folio_put(folio);
}
