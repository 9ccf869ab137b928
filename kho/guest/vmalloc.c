/* Preserving a vmalloc area: its pages, and a list of them.
 *
 *	struct kho_vmalloc -> chunk page -> chunk page -> 0
 *			      511 blocks    511 blocks
 *
 * A chunk is appended as soon as one is full, so the chain of an area of exactly k * 511 blocks ends with an empty one.
 * The reader believes nothing of it: the whole chain is gone through and every chunk and block found to be preserved
 * before the first is restored, so an area is restored as a whole or stays as it was.
 */
#define pr_fmt(fmt) "KHO: " fmt
#include "kho_internal.h"
#include "errno.h"
#include "panic.h"
#include "printk.h"
#include "string.h"

#define SLOTS	ARRAY_SIZE(((struct kho_vmalloc_chunk *)0)->phys)

/* ---- preserving ---- */

static struct kho_vmalloc_chunk *new_chunk(u64 *link)
{
	struct kho_vmalloc_chunk *chunk = get_zeroed_page();

	if (!chunk)
		return NULL;
	if (kho_preserve_pages(virt_to_page(chunk), 1)) {
		free_page(chunk);
		return NULL;
	}
	*link = virt_to_phys(chunk);
	return chunk;
}

int kho_preserve_vmalloc(void *ptr, struct kho_vmalloc *out)
{
	struct vm_struct *vm = find_vm_area(ptr);
	struct kho_vmalloc_chunk *chunk;
	u64 slot = 0, block_pages;
	int err;

	if (!kho_enable)
		return -EOPNOTSUPP;
	if (!vm)
		return -EINVAL;
	block_pages = 1UL << vm->page_order;
	if (vm->flags & ~(VM_ALLOC | VM_ALLOW_HUGE_VMAP) || !(vm->flags & VM_ALLOC) ||
	    !IS_ALIGNED(vm->nr_pages, block_pages) || vm->nr_pages > UINT32_MAX)
		return -EOPNOTSUPP;
	*out = (struct kho_vmalloc){
		.total_pages = (u32)vm->nr_pages,
		.flags = KHO_VMALLOC_ALLOC | (vm->flags & VM_ALLOW_HUGE_VMAP ? KHO_VMALLOC_HUGE_VMAP : 0),
		.order = (u16)vm->page_order,
	};
	chunk = new_chunk(&out->first);
	if (!chunk)
		return -ENOMEM;
	for (u64 i = 0; i < vm->nr_pages; i += block_pages) {
		err = kho_preserve_pages(vm->pages[i], block_pages);
		if (err)
			goto undo;
		chunk->phys[slot++] = page_to_phys(vm->pages[i]);
		if (slot == SLOTS) {
			chunk = new_chunk(&chunk->next);
			slot = 0;
			err = -ENOMEM;
			if (!chunk)
				goto undo;
		}
	}
	return 0;

undo:
	kho_unpreserve_vmalloc(out);
	return err;
}

void kho_unpreserve_vmalloc(struct kho_vmalloc *desc)
{
	u64 phys = desc->first;

	while (phys) {
		struct kho_vmalloc_chunk *chunk = phys_to_virt(phys);

		for (u64 i = 0; i < SLOTS && chunk->phys[i]; i++)
			kho_unpreserve_pages(phys_to_page(chunk->phys[i]), 1UL << desc->order);
		kho_unpreserve_pages(virt_to_page(chunk), 1);
		phys = chunk->next;
		free_page(chunk);
	}
	desc->first = 0;
}

/* ---- restoring ---- */

static bool block_preserved(u64 phys, unsigned int order)
{
	bool ok = kho_are_preserved(claim(phys), 1UL << order);

	if (!ok)
		pr_err("block at 0x%lx of a vmalloc area was not preserved\n", phys);
	return ok;
}

/* Whether the chain has the pages it says, all of them preserved. Bounded by total_pages: every chunk but the last
 * has a block. */
static bool chain_ok(const struct kho_vmalloc *desc)
{
	u64 blocks, left;
	unsigned int order;
	claim_t at = claim(desc->first);

	if (desc->order >= 32 || desc->total_pages & ((1UL << desc->order) - 1) || !desc->total_pages)
		return false;
	for (left = desc->total_pages >> desc->order; at.value; left -= blocks) {
		const struct kho_vmalloc_chunk *chunk;

		if (!kho_is_preserved(at, &order) || order)
			return false;
		chunk = phys_to_virt(at.value);
		for (blocks = 0; blocks < SLOTS && chunk->phys[blocks]; blocks++)
			if (blocks == left || !block_preserved(chunk->phys[blocks], desc->order))
				return false;
		if (!blocks && chunk->next)
			return false;
		at = claim(chunk->next);
	}
	return !left;
}

static struct page **restore_chain(const struct kho_vmalloc *desc, struct page **pages)
{
	u64 phys = desc->first, n = 0, block_pages = 1UL << desc->order;

	while (phys) {
		struct kho_vmalloc_chunk *chunk = phys_to_virt(phys);

		for (u64 i = 0; i < SLOTS && chunk->phys[i]; i++) {
			struct page *page = kho_restore_pages(chunk->phys[i], block_pages);

			if (!page)
				return NULL;
			for (u64 k = 0; k < block_pages; k++)
				pages[n++] = page + k;
		}
		phys = chunk->next;
		kho_restore_free(chunk);
	}
	return pages;
}

static void free_array(struct page **pages)
{
	if (is_vmalloc_addr(pages))
		vfree(pages);
	else
		kfree(pages);
}

void *kho_restore_vmalloc(const struct kho_vmalloc *desc)
{
	u64 size = desc->total_pages * sizeof(struct page *);
	u32 flags = VM_ALLOC | (desc->flags & KHO_VMALLOC_HUGE_VMAP ? VM_ALLOW_HUGE_VMAP : 0);
	struct page **pages;
	void *area;

	if (WARN_ON_ONCE(!chain_ok(desc)))
		return NULL;
	pages = size <= PAGE_SIZE ? kmalloc(size, GFP_KERNEL) : vmalloc(size);
	if (!pages)
		return NULL;
	/* The same block twice, or a block that is a chunk too, passed the check; what it took is lost. */
	if (WARN_ON_ONCE(!restore_chain(desc, pages))) {
		free_array(pages);
		return NULL;
	}
	area = vmap_pages(pages, desc->total_pages, flags, desc->order, PAGE_SIZE << desc->order);
	if (!area) {
		for (u64 i = 0; i < desc->total_pages; i++)
			put_page(pages[i]);
		free_array(pages);
	}
	return area;
}
