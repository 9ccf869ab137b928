/* First C code, and the direct map while it is being made.
 *
 * The early page tables (head.S) map the image at KERNEL_BASE only. Everything else is reached through early_map(),
 * which adds 2 MiB pages to the direct map one by one, from a small pool of tables in .bss; later init_mem_mapping()
 * (setup.c) completes the same direct map with tables from memblock.
 */
#include "arch.h"
#include "bootmem.h"
#include "init.h"
#include "page.h"
#include "panic.h"
#include "string.h"

#define EARLY_TABLES 32
#define PHYS_MAX (1UL << 46)

extern u64 early_pgd[512];
static u64 early_tables[EARLY_TABLES][512] __aligned(4096);
static unsigned int early_tables_used;

phys_addr_t kernel_phys;
u64 *kernel_pgd;
static phys_addr_t boot_parameters;
static bool booted_by_pvh;

phys_addr_t image_to_phys(const void *p)
{
	return (phys_addr_t)((const char *)p - _text) + kernel_phys;
}

/* The kernel's address of a page table, which is in the image (the early ones) or in the direct map. */
static u64 *table_at(u64 entry)
{
	phys_addr_t phys = entry & PTE_ADDR;

	if (phys >= kernel_phys && phys < kernel_phys + (u64)(_end - _text))
		return (u64 *)(_text + (phys - kernel_phys));
	return phys_to_virt(phys);
}

/* The table below an entry; made, from the pool or by alloc, if there is none. */
static u64 *next_table(u64 *entry, phys_addr_t (*alloc)(void))
{
	if (!(*entry & PTE_P)) {
		if (alloc) {
			*entry = alloc() | PTE_P | PTE_W;
		} else {
			BUG_ON(early_tables_used == EARLY_TABLES);
			*entry = image_to_phys(early_tables[early_tables_used++]) | PTE_P | PTE_W;
		}
	}
	return table_at(*entry);
}

void direct_map_2m(phys_addr_t phys, phys_addr_t (*alloc)(void))
{
	u64 virt = PAGE_OFFSET + phys;
	u64 *pgd = kernel_pgd ? kernel_pgd : early_pgd;
	u64 *pdpt = next_table(&pgd[virt >> 39 & 511], alloc);
	u64 *pd = next_table(&pdpt[virt >> 30 & 511], alloc);
	u64 *pde = &pd[virt >> 21 & 511];

	if (!(*pde & PTE_P))
		*pde = phys | PROT_KERNEL | PTE_PS;
}

void *early_map(phys_addr_t phys, u64 size)
{
	if (!size || phys >= PHYS_MAX || size > PHYS_MAX - phys)
		return NULL;
	for (phys_addr_t p = ALIGN_DOWN(phys, PMD_SIZE); p < phys + size; p += PMD_SIZE)
		direct_map_2m(p, NULL);
	return phys_to_virt(phys);
}

phys_addr_t boot_parameters_phys(bool *pvh)
{
	*pvh = booted_by_pvh;
	return boot_parameters;
}

/* Called by head.S on the boot stack: where the image is, and what the boot loader passed. */
__used _Noreturn void x86_64_start(phys_addr_t image, phys_addr_t parameters, bool pvh)
{
	kernel_phys = image;
	boot_parameters = parameters;
	booted_by_pvh = pvh;
	start_kernel();
}
