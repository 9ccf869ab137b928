/* Memory of a program that a device works in: brought in, moved out of scratch, and held by a reference to each folio.
 *
 * What is shared is the file's own page; what is private becomes the program's own copy first, if it may write there. A
 * page in scratch would not survive an update, so it is replaced by another one before anybody knows its address.
 */
#include "iommufd_internal.h"
#include "errno.h"
#include "page.h"
#include "pagecache.h"
#include "string.h"
#include "task.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

int iommufd_extent_add(struct extents *e, phys_addr_t phys, u64 size)
{
	struct iommufd_luemu_extent *last = e->nr ? &e->v[e->nr - 1] : NULL;

	if (last && last->phys + last->size == phys) {
		last->size += size;
		return 0;
	}
	if (e->nr == e->room) {
		u32 room = e->room ? 2 * e->room : 8;
		struct iommufd_luemu_extent *v = kmalloc(room * sizeof(*v), GFP_KERNEL);

		if (!v)
			return -ENOMEM;
		memcpy(v, e->v, e->nr * sizeof(*v));
		kfree(e->v);
		e->v = v;
		e->room = room;
	}
	e->v[e->nr++] = (struct iommufd_luemu_extent){ phys, size };
	return 0;
}

/* Calls fn for the folios of all extents, once for each piece of an extent that lies in it. */
static void each_folio(const struct extents *e, void (*fn)(struct folio *f))
{
	for (u32 i = 0; i < e->nr; i++)
		for (u64 at = e->v[i].phys, end = at + e->v[i].size; at < end;) {
			struct folio *f = page_folio(phys_to_page(at));

			at = PFN_PHYS(folio_pfn(f) + folio_nr_pages(f));
			fn(f);
		}
}

void iommufd_unpin(struct extents *e)
{
	each_folio(e, folio_put);
	kfree(e->v);
	*e = (struct extents){ 0 };
}

void iommufd_pin_again(const struct extents *e) { each_folio(e, folio_get); }

static bool in_scratch(u64 pfn) { return get_pageblock_migratetype(pfn) == MIGRATE_CMA; }

/* The page of the file that is mapped at addr. Both locks of shmem's order are held then: the mm's and the mapping's. */
static struct folio *pin_cached(struct vma *v, u64 addr, u64 *first)
{
	struct inode *inode = v->mapping->inode;
	u64 index = v->pgoff + PFN_DOWN(addr - v->start);
	struct folio *f = ERR_PTR(-EFAULT);

	mutex_lock(&v->mapping->lock);
	if (v->flags & VM_HUGEPAGE && v->flags & VM_SHARED)
		inode->shmem->huge = true;
	if (index < PFN_UP(READ_ONCE(inode->size)))
		f = shmem_get_pinnable(inode->shmem, index, inode->size);
	if (!IS_ERR(f)) {
		folio_get(f);
		*first = index - f->page.index;
	}
	mutex_unlock(&v->mapping->lock);
	return f;
}

/* The program's own page. -EAGAIN: it is not there yet, or not any more. */
static struct folio *pin_private(struct vma *v, u64 addr, u64 entry, u64 *first)
{
	struct page *page = phys_to_page(entry & PTE_ADDR), *to;
	struct folio *f = page_folio(page);

	if (!pfn_valid(PFN_DOWN(entry & PTE_ADDR)))
		return ERR_PTR(-EFAULT);
	if (in_scratch(page_to_pfn(page))) {
		/* Whoever has a reference is copying from or to it. */
		if (f->page.refcount != 1)
			return ERR_PTR(-EBUSY);
		to = alloc_page(GFP_KERNEL);
		if (!to)
			return ERR_PTR(-ENOMEM);
		memcpy(page_address(to), page_address(page), PAGE_SIZE);
		if (mm_set_page(v->mm, addr, to, entry & PTE_W, v->flags & VM_EXEC)) {
			put_page(to);
			return ERR_PTR(-ENOMEM);
		}
		page = to;
		f = page_folio(to);
	}
	folio_get(f);
	*first = (u64)(page - &f->page);
	return f;
}

/* The folio at addr with a reference, which of its pages it is, and up to where the area goes. */
static struct folio *pin_one(struct mm *mm, u64 addr, bool write, u64 *first, u64 *end)
{
	bool own = false;		/* the program may write, so a private page becomes its own */
	struct folio *f;
	struct vma *v;
	u64 entry;

	mutex_lock(&mm->lock);
	v = mm_find(mm, addr);
	f = ERR_PTR(-EFAULT);
	if (!v || (write && !(v->flags & VM_WRITE)) || !(v->flags & (VM_READ | VM_WRITE)) ||
	    v->flags & VM_DEVICE)		/* a device's registers */
		goto out;
	*end = v->end;
	entry = mm_get_entry(mm, addr);
	if (v->mapping && v->flags & VM_SHARED) {
		f = pin_cached(v, addr, first);
		goto out;
	}
	f = ERR_PTR(-EAGAIN);
	own = v->flags & VM_WRITE;
	if (!entry || (own && !(entry & PTE_W)))
		goto out;
	if (v->mapping && page_folio(phys_to_page(entry & PTE_ADDR))->page.mapping)
		f = pin_cached(v, addr, first);
	else
		f = pin_private(v, addr, entry, first);
	if (!IS_ERR(f))
		*end = addr + PAGE_SIZE;
out:
	mutex_unlock(&mm->lock);
	if (f == ERR_PTR(-EAGAIN)) {
		int err = mm_fault(mm, addr, own, false);

		return ERR_PTR(err == -ENOMEM ? -ENOMEM : err ? -EFAULT : -EAGAIN);
	}
	return f;
}

int iommufd_pin(u64 addr, u64 size, bool write, struct extents *e)
{
	struct mm *mm = current_task()->mm;
	u64 end = addr + size;
	int err = 0;

	*e = (struct extents){ 0 };
	while (!err && addr < end) {
		u64 first, area_end = 0, n;
		struct folio *f = pin_one(mm, addr, write, &first, &area_end);

		if (f == ERR_PTR(-EBUSY) || f == ERR_PTR(-EAGAIN)) {
			if (fatal_signal_pending())
				err = -EFAULT;
			yield();
			continue;
		}
		if (IS_ERR(f)) {
			err = (int)PTR_ERR(f);
			break;
		}
		n = min((folio_nr_pages(f) - first) << PAGE_SHIFT, min(area_end, end) - addr);
		err = iommufd_extent_add(e, PFN_PHYS(folio_pfn(f) + first), n);
		if (err)
			folio_put(f);
		addr += n;
	}
	if (err)
		iommufd_unpin(e);
	return err;
}
