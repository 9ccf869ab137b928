/* Moving a page of the page cache to other memory while programs have it mapped.
 *
 * All mappings of it go first: whoever touches it faults and waits for mapping->lock. Then nobody but the tree may have
 * a reference (a system call that is copying has one: -EBUSY), so the copy is complete, and the new folio takes its
 * place. Private copies of programs are other pages and stay.
 */
#include "pagecache.h"
#include "panic.h"
#include "string.h"
#include "vma.h"

int migrate_folio(struct mapping *m, struct folio *f)
{
	u64 index = f->page.index, pages = folio_nr_pages(f);
	struct folio *to;

	if (f->page.flags & PG_PINNED)
		return -EBUSY;
	to = folio_alloc(GFP_KERNEL, folio_order(f));
	if (!to)
		return -ENOMEM;
	unmap_mapping_range(m, index, index + pages - 1, false);
	if (f->page.refcount != 1) {
		folio_put(to);
		return -EBUSY;
	}
	memcpy(folio_address(to), folio_address(f), pages << PAGE_SHIFT);
	to->page.flags |= f->page.flags & (PG_UPTODATE | PG_DIRTY);
	mapping_replace(m, f, to);
	folio_put(to);			/* the mapping has its own reference */
	return 0;
}
