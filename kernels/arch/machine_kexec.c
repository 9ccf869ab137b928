/* The jump from this kernel into the purgatory of the next.
 *
 * Everything is made when the image is loaded; at the jump nothing is allocated or written any more but what the list
 * of copies says (and the stack below machine_kexec). The page tables of the jump map all memory 1:1 for the
 * relocation code, the purgatory and the first steps of the next kernel, and this kernel in the upper half for the
 * few instructions between the switch to them and the jump to the control page.
 */
#define pr_fmt(fmt) "kexec: " fmt
#include "cpu.h"
#include "kexec.h"
#include "memblock.h"
#include "sdt.h"
#include "string.h"

#define PGD_SHIFT	39
#define PUD_SHIFT	30
#define PUD_SIZE	(1UL << PUD_SHIFT)
#define ENTRIES		512
#define KERNEL_HALF	256		/* first entry of the upper half */
#define TABLE		(PTE_P | PTE_W | PTE_A)
#define LEAF		(PTE_P | PTE_W | PTE_A | PTE_D | PTE_PS)	/* complete: the processor adds nothing at the jump */
#define FIRMWARE_END	(4 * GIB)	/* devices and tables of firmware are below, in no memory map that lists all */

extern const char relocate_start[], relocate_end[];

static bool has_1g_pages(void)
{
	u32 r[4];

	cpuid(0x80000000, 0, r);
	if (r[0] < 0x80000001)
		return false;
	cpuid(0x80000001, 0, r);
	return r[3] >> 26 & 1;
}

static u64 *new_table(struct kimage *image)
{
	struct page *page = kimage_alloc_control_page(image);

	return page ? memset(page_address(page), 0, PAGE_SIZE) : NULL;
}

static u64 *next_table(struct kimage *image, u64 *entry)
{
	if (!*entry) {
		u64 *table = new_table(image);

		if (!table)
			return NULL;
		*entry = virt_to_phys(table) | TABLE;
	}
	return phys_to_virt(*entry & PTE_ADDR);
}

static int map_1g(struct kimage *image, phys_addr_t phys, bool large)
{
	u64 *pud = next_table(image, &image->pgd[phys >> PGD_SHIFT]);
	u64 *pmd;

	if (!pud)
		return -ENOMEM;
	pud += phys >> PUD_SHIFT & (ENTRIES - 1);
	if (large) {
		*pud = phys | LEAF;
		return 0;
	}
	pmd = next_table(image, pud);
	if (!pmd)
		return -ENOMEM;
	for (u64 i = 0; i < ENTRIES; i++)
		pmd[i] = (phys + i * PMD_SIZE) | LEAF;
	return 0;
}

int machine_kexec_prepare(struct kimage *image)
{
	phys_addr_t end = max(memblock_end_of_dram(), (phys_addr_t)FIRMWARE_END);
	bool large = has_1g_pages();
	struct page *code;

	static_assert(FIRMWARE_END % PUD_SIZE == 0, "whole entries");
	code = kimage_alloc_control_page(image);
	image->pgd = new_table(image);
	if (!code || !image->pgd)
		return -ENOMEM;
	image->control_code = page_to_phys(code);
	memcpy(page_address(code), relocate_start, (size_t)(relocate_end - relocate_start));
	memcpy(image->pgd + KERNEL_HALF, kernel_pgd + KERNEL_HALF, PAGE_SIZE / 2);
	for (phys_addr_t phys = 0; phys < end; phys += PUD_SIZE) {
		int err = map_1g(image, phys, large);

		if (err)
			return err;
	}
	return 0;
}

_Noreturn void machine_kexec(struct kimage *image)
{
	void (*relocate)(u64 head, phys_addr_t start);

	PROBE1(kexec, jump, image);
	local_irq_disable();
	relocate = (void *)image->control_code;
	write_cr3(virt_to_phys(image->pgd));
	relocate(image->head, image->start);
	__builtin_unreachable();
}
