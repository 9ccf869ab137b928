/* Page tables of the kernel: single 4 KiB pages of vmalloc and of devices.
 *
 * The top table is made by boot code (arch/setup.c) together with the direct map and the image, which never change;
 * the vmemmap has its own rules (vmemmap.c). Tables that were made stay: addresses of vmalloc are used again.
 *
 *	47      39 38      30 29      21 20      12 11         0
 *	[  PGD   ] [  PDPT  ] [   PD   ] [   PT   ] [  offset  ]
 */
#include "arch.h"
#include "cpu.h"
#include "internal.h"
#include "panic.h"
#include "sched.h"
#include "string.h"

#define DIRECT_MAP_SIZE		(1UL << 46)
#define LEVELS			4

static spinlock_t pgtable_lock;
static u64 ioremap_next = IOREMAP_BASE;

u64 max_pfn;

bool pfn_valid(u64 pfn)
{
	return pfn < max_pfn && memblock_is_memory(PFN_PHYS(pfn));
}

phys_addr_t virt_to_phys(const volatile void *p)
{
	u64 v = (u64)p;

	if (v >= PAGE_OFFSET && v - PAGE_OFFSET < DIRECT_MAP_SIZE)
		return v - PAGE_OFFSET;
	if (v >= (u64)_text && v < (u64)_end)
		return v - (u64)_text + kernel_phys;
	panic("BUG: virt_to_phys() of an address outside the direct map and the image");
}

void *pgtable_alloc(void)
{
	return memblock.done ? get_zeroed_page() : memblock_alloc(PAGE_SIZE, PAGE_SIZE);
}

/* The entry of the last level for this address; NULL if a table is missing and cannot or shall not be made. */
static u64 *walk(u64 virt, bool make)
{
	u64 *table = kernel_pgd;

	for (unsigned int level = LEVELS - 1; level; level--) {
		u64 *entry = &table[virt >> (PAGE_SHIFT + 9 * level) & 511];

		if (!(*entry & PTE_P)) {
			void *new = make ? pgtable_alloc() : NULL;

			if (!new)
				return NULL;
			*entry = virt_to_phys(new) | PTE_P | PTE_W | PTE_A;
		}
		BUG_ON(*entry & PTE_PS);
		table = phys_to_virt(*entry & PTE_ADDR);
	}
	return &table[virt >> PAGE_SHIFT & 511];
}

bool pgtable_prepare(u64 virt)
{
	u64 *entry = &kernel_pgd[virt >> 39 & 511];
	void *new = *entry ? NULL : pgtable_alloc();

	if (new)
		*entry = virt_to_phys(new) | PTE_P | PTE_W | PTE_A;
	return *entry;
}

int map_kernel_page(u64 virt, phys_addr_t phys, u64 prot)
{
	u64 flags = spin_lock_irqsave(&pgtable_lock);
	u64 *pte = walk(virt, true);
	int err = 0;

	if (!pte)
		err = -ENOMEM;
	else if (*pte & PTE_P)
		err = -EBUSY;
	else
		*pte = phys | prot;
	spin_unlock_irqrestore(&pgtable_lock, flags);
	return err;
}

phys_addr_t unmap_kernel_page(u64 virt)
{
	u64 flags = spin_lock_irqsave(&pgtable_lock);
	u64 *pte = walk(virt, false);
	phys_addr_t phys = ~0UL;

	if (pte && *pte & PTE_P) {
		phys = *pte & PTE_ADDR;
		*pte = 0;
		invlpg((void *)virt);
	}
	spin_unlock_irqrestore(&pgtable_lock, flags);
	return phys;
}

void *ioremap(phys_addr_t phys, u64 size)
{
	u64 offset = phys & ~PAGE_MASK, bytes = PAGE_ALIGN(offset + size), virt, flags;

	if (!size || bytes < size || phys + size < phys)
		return NULL;
	flags = spin_lock_irqsave(&pgtable_lock);
	virt = ioremap_next;
	if (bytes > IOREMAP_BASE + IOREMAP_SIZE - virt)
		virt = 0;
	else
		ioremap_next += bytes;
	spin_unlock_irqrestore(&pgtable_lock, flags);
	for (u64 done = 0; virt && done < bytes; done += PAGE_SIZE) {
		if (map_kernel_page(virt + done, phys - offset + done, PROT_DEVICE)) {
			while (done)
				unmap_kernel_page(virt + (done -= PAGE_SIZE));
			return NULL;
		}
	}
	return virt ? (void *)(virt + offset) : NULL;
}
