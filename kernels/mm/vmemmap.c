/* The array of struct pages, with memory only where it was written.
 *
 * At the start the whole array is one page of zeros, mapped read-only again and again:
 *
 *	PGD -> PDPT -> shared PD (512 x) -> shared PT (512 x) -> zero page
 *
 * The first write to a 4 KiB page of it faults, and vmemmap_fault() gives the place memory of its own, and tables of
 * its own on the way there. So an array for terabytes costs four pages, and boot costs what it uses.
 *
 * The fault can come at any moment, with the allocator's lock held too, so it takes its pages from a pool. Where that
 * is allowed the pool is filled again at once: from memblock as long as that allocates (it never touches a struct
 * page), later from the page allocator unless this CPU is inside it; the page allocator itself refills before it takes
 * its lock (vmemmap_refill()). One operation of the allocator writes to the heads of at most eleven blocks inside one of
 * order 10, and to their neighbours in the lists, which have memory already: POOL_LOW is enough for that, for the tables,
 * and for an interrupt that does the same in between.
 */
#include "cpu.h"
#include "internal.h"
#include "panic.h"
#include "sched.h"
#include "string.h"

#define POOL_LOW	40
#define POOL_HIGH	56
#define TABLE		(PTE_P | PTE_W | PTE_A)

static spinlock_t vmemmap_lock;		/* the pool and the tables of the vmemmap; innermost of all locks */
static void *pool;			/* zeroed pages, linked through their first word */
static u32 pool_count;
static u64 taken;			/* pages, from memblock and from the page allocator */
static u64 vmemmap_end;			/* of the array, page-aligned */
static u64 *pdpt, *shared_pd, *shared_pt;
static phys_addr_t zero_page;

static void pool_push(void *page)
{
	u64 flags = spin_lock_irqsave(&vmemmap_lock);

	*(void **)page = pool;
	pool = page;
	pool_count++;
	taken++;
	spin_unlock_irqrestore(&vmemmap_lock, flags);
}

/* With the lock held. */
static void *pool_pop(void)
{
	void *page = pool;

	if (!page)
		panic("BUG: no page left for the array of struct pages");
	pool = *(void **)page;
	*(void **)page = NULL;
	pool_count--;
	return page;
}

u64 vmemmap_pages(void)
{
	return taken;
}

u64 vmemmap_reserve(void)
{
	return pool_count;
}

void vmemmap_refill(void)
{
	if (likely(pool_count >= POOL_LOW))
		return;
	while (pool_count < POOL_HIGH) {
		void *page;

		if (memblock.done) {
			struct page *p = alloc_page_for_vmemmap();

			page = p ? page_address(p) : NULL;
		} else {
			page = memblock_alloc(PAGE_SIZE, PAGE_SIZE);
		}
		if (!page)
			return;		/* what is there may be enough */
		pool_push(page);
	}
}

/* The table that entry points to; if it is the shared one, a copy takes its place. */
static u64 *own_table(u64 *entry, const u64 *shared)
{
	u64 *table = phys_to_virt(*entry & PTE_ADDR);

	if (table == shared) {
		table = pool_pop();
		memcpy(table, shared, PAGE_SIZE);
		*entry = virt_to_phys(table) | TABLE;
	}
	return table;
}

bool vmemmap_fault(u64 address)
{
	u64 *pd, *pt, *pte, flags;

	if (address < VMEMMAP_BASE || address >= vmemmap_end)
		return false;
	flags = spin_lock_irqsave(&vmemmap_lock);
	pd = own_table(&pdpt[address >> 30 & 511], shared_pd);
	pt = own_table(&pd[address >> 21 & 511], shared_pt);
	pte = &pt[address >> PAGE_SHIFT & 511];
	if (!(*pte & PTE_W))	/* else another CPU was faster */
		*pte = virt_to_phys(pool_pop()) | PROT_KERNEL;
	invlpg((void *)address);
	spin_unlock_irqrestore(&vmemmap_lock, flags);
	if (!memblock.done || !page_alloc_locked())
		vmemmap_refill();
	return true;
}

static void fill_table(u64 *table, u64 entry)
{
	for (unsigned int i = 0; i < 512; i++)
		table[i] = entry;
}

void vmemmap_init(void)
{
	/* Whole blocks of the buddy allocator, so that a buddy can be looked at without asking whether it is there. */
	u64 pages = ALIGN_UP(max_pfn, 1UL << MAX_PAGE_ORDER);
	u64 size = PAGE_ALIGN(pages * sizeof(struct page));
	u64 *pgd_entry = &kernel_pgd[VMEMMAP_BASE >> 39 & 511];

	if (size > PGD_SPAN)
		panic("more memory than the array of struct pages can describe");
	BUG_ON(*pgd_entry);
	zero_page = virt_to_phys(memblock_alloc_or_panic(PAGE_SIZE, PAGE_SIZE, "vmemmap"));
	shared_pt = memblock_alloc_or_panic(PAGE_SIZE, PAGE_SIZE, "vmemmap");
	shared_pd = memblock_alloc_or_panic(PAGE_SIZE, PAGE_SIZE, "vmemmap");
	pdpt = memblock_alloc_or_panic(PAGE_SIZE, PAGE_SIZE, "vmemmap");
	fill_table(shared_pt, zero_page | PROT_KERNEL_RO);
	fill_table(shared_pd, virt_to_phys(shared_pt) | TABLE);
	for (u64 at = 0; at < size; at += 1UL << 30)
		pdpt[at >> 30] = virt_to_phys(shared_pd) | TABLE;
	*pgd_entry = virt_to_phys(pdpt) | TABLE;
	vmemmap_end = VMEMMAP_BASE + size;
	vmemmap_refill();
}
