/* Memory that is contiguous in virtual addresses only: areas of 4 KiB pages, in a list sorted by address.
 *
 * An area is put into the first gap that it fits in; behind each one is a page that is never mapped. vmalloc_huge()
 * takes its memory in physical blocks of 2 MiB and splits them into single pages, so that an area is the same kind of
 * thing whatever its blocks are; it is mapped in 4 KiB pages too. KHO hands an area over as its blocks, and makes it
 * again from pages (vmap_pages).
 */
#include "internal.h"
#include "panic.h"
#include "sched.h"
#include "string.h"

#define VMALLOC_END	IOREMAP_BASE

static LIST_HEAD(areas);
static spinlock_t areas_lock;

bool is_vmalloc_addr(const void *p)
{
	return (u64)p >= VMALLOC_BASE && (u64)p < VMALLOC_END;
}

/* The array of an area's pages is too large for kmalloc() when the area has more than 2 GiB. */
static void *array_alloc(u64 size)
{
	return size <= PAGE_SIZE << MAX_PAGE_ORDER ? kmalloc(size, GFP_KERNEL | __GFP_NOWARN) : vmalloc(size);
}

static void array_free(void *array)
{
	if (is_vmalloc_addr(array))
		vfree(array);
	else
		kfree(array);
}

/* Puts the area into the list, at an address; false if there is no room. */
static bool insert_area(struct vm_struct *area, u64 align)
{
	u64 at = ALIGN_UP(VMALLOC_BASE, align), flags = spin_lock_irqsave(&areas_lock);
	struct vm_struct *next;
	bool fits;

	list_for_each_entry(next, &areas, list) {
		if (next->addr >= at && next->addr - at > area->size)	/* more: the guard page */
			break;
		at = ALIGN_UP(next->addr + next->size + PAGE_SIZE, align);
	}
	fits = at < VMALLOC_END && VMALLOC_END - at > area->size;
	if (fits) {
		area->addr = at;
		list_add_tail(&area->list, &next->list);	/* at the end of the list, next is its head */
	}
	spin_unlock_irqrestore(&areas_lock, flags);
	return fits;
}

static void unmap_area(const struct vm_struct *area)
{
	for (u64 i = 0; i < area->nr_pages; i++)
		unmap_kernel_page(area->addr + (i << PAGE_SHIFT));
}

static void remove_area(struct vm_struct *area)
{
	u64 flags = spin_lock_irqsave(&areas_lock);

	list_del(&area->list);
	spin_unlock_irqrestore(&areas_lock, flags);
}

void *vmap_pages(struct page **pages, u64 nr_pages, u32 vm_flags, u32 page_order, u64 align)
{
	struct vm_struct *area;

	if (!nr_pages || nr_pages > (VMALLOC_END - VMALLOC_BASE) >> PAGE_SHIFT || !is_power_of_2(align))
		return NULL;
	area = kzalloc(sizeof(*area), GFP_KERNEL);
	if (!area)
		return NULL;
	area->size = nr_pages << PAGE_SHIFT;
	area->flags = vm_flags;
	area->page_order = page_order;
	area->pages = pages;
	if (!insert_area(area, max(align, PAGE_SIZE)))
		goto err_free;
	for (; area->nr_pages < nr_pages; area->nr_pages++) {
		if (map_kernel_page(area->addr + (area->nr_pages << PAGE_SHIFT),
				    page_to_phys(pages[area->nr_pages]), PROT_KERNEL))
			goto err_unmap;
	}
	return (void *)area->addr;

err_unmap:
	unmap_area(area);
	remove_area(area);
err_free:
	kfree(area);
	return NULL;
}

static void free_all(struct page **pages, u64 nr_pages)
{
	for (u64 i = 0; i < nr_pages; i++)
		__free_pages(pages[i], 0);
	array_free(pages);
}

static void *alloc_area(u64 size, gfp_t gfp, u32 vm_flags, u32 order)
{
	u64 nr_pages = ALIGN_UP(size, PAGE_SIZE << order) >> PAGE_SHIFT, n = 0;
	struct page **pages;
	void *p;

	if (!size || size > VMALLOC_END - VMALLOC_BASE)
		return NULL;
	pages = array_alloc(nr_pages * sizeof(*pages));
	if (!pages)
		return NULL;
	while (n < nr_pages) {
		struct page *block = alloc_pages(gfp, order);

		if (!block)
			goto err;
		if (order)
			split_page(block, order);
		for (u64 i = 0; i < 1UL << order; i++)
			pages[n++] = block + i;
	}
	p = vmap_pages(pages, nr_pages, vm_flags, order, PAGE_SIZE << order);
	if (p)
		return p;
err:
	free_all(pages, n);
	return NULL;
}

void *vmalloc(u64 size)
{
	return alloc_area(size, GFP_KERNEL, VM_ALLOC, 0);
}

void *vzalloc(u64 size)
{
	return alloc_area(size, GFP_KERNEL | __GFP_ZERO, VM_ALLOC, 0);
}

void *vmalloc_huge(u64 size)
{
	u32 vm_flags = VM_ALLOC | VM_ALLOW_HUGE_VMAP;
	void *p = NULL;

	if (size >= PMD_SIZE)
		p = alloc_area(size, GFP_KERNEL | __GFP_NOWARN, vm_flags, PMD_SHIFT - PAGE_SHIFT);
	return p ? p : alloc_area(size, GFP_KERNEL, vm_flags, 0);
}

struct vm_struct *find_vm_area(const void *p)
{
	u64 flags = spin_lock_irqsave(&areas_lock);
	struct vm_struct *area, *found = NULL;

	list_for_each_entry(area, &areas, list) {
		if ((u64)p >= area->addr && (u64)p < area->addr + area->size)
			found = area;
		if ((u64)p < area->addr + area->size)
			break;
	}
	spin_unlock_irqrestore(&areas_lock, flags);
	return found;
}

void vfree(const void *p)
{
	struct vm_struct *area;

	if (!p)
		return;
	area = find_vm_area(p);
	if (!area || area->addr != (u64)p)
		panic("BUG: vfree() of what vmalloc() did not return, or twice");
	unmap_area(area);
	remove_area(area);
	if (area->flags & VM_ALLOC)
		free_all(area->pages, area->nr_pages);
	else
		array_free(area->pages);
	kfree(area);
}

void vmalloc_init(void)
{
	/* Page tables of processes copy the entries of the top table, which therefore must not change any more. */
	for (u64 at = VMALLOC_BASE; at < VMALLOC_BASE + VMALLOC_SIZE; at += PGD_SPAN)
		if (!pgtable_prepare(at))
			panic("no memory for the page tables of vmalloc");
}
