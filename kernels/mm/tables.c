/* Page tables of programs: 4 KiB entries only. An entry holds one reference to the folio of its page.
 *
 * The upper half of each top table is a copy of the kernel's, whose entries there never change once programs run.
 * With one processor, a change must be flushed from the TLB only if the tables are the ones in use.
 */
#include "cpu.h"
#include "page.h"
#include "panic.h"
#include "string.h"
#include "vma.h"

#define TABLE_USER	(PTE_P | PTE_W | PTE_U)
/* A page that is the program's, in an area that forbids everything (PROT_NONE): the processor sees no entry. */
#define PTE_HIDDEN	(1UL << 9)
#define THERE		(PTE_P | PTE_HIDDEN)

static u64 *table_of(u64 entry) { return phys_to_virt(entry & PTE_ADDR); }
static struct page *page_of(u64 entry) { return phys_to_page(entry & PTE_ADDR); }

u64 *mm_pgd_alloc(void)
{
	u64 *pgd = get_zeroed_page();

	if (pgd)
		memcpy(pgd + 256, kernel_pgd + 256, 256 * sizeof(u64));
	return pgd;
}

static void flush(struct mm *mm, u64 addr)
{
	if (read_cr3() == virt_to_phys(mm->pgd))
		invlpg((void *)addr);
}

static void flush_all(struct mm *mm)
{
	if (read_cr3() == virt_to_phys(mm->pgd))
		flush_tlb();
}

/* The entry's place, NULL where a table is missing. */
static u64 *find(struct mm *mm, u64 addr)
{
	u64 *table = mm->pgd;

	for (unsigned int shift = 39; shift > PAGE_SHIFT; shift -= 9) {
		u64 entry = table[addr >> shift & 511];

		if (!(entry & PTE_P))
			return NULL;
		table = table_of(entry);
	}
	return &table[addr >> PAGE_SHIFT & 511];
}

/* The same, making tables; called without table_lock, since it allocates. NULL: no memory. */
static u64 *make(struct mm *mm, u64 addr)
{
	u64 *table = mm->pgd;

	for (unsigned int shift = 39; shift > PAGE_SHIFT; shift -= 9) {
		u64 *entry = &table[addr >> shift & 511];

		if (!(*entry & PTE_P)) {
			void *new = get_zeroed_page();

			if (!new)
				return NULL;
			spin_lock(&mm->table_lock);
			*entry = virt_to_phys(new) | TABLE_USER;
			spin_unlock(&mm->table_lock);
		}
		table = table_of(*entry);
	}
	return &table[addr >> PAGE_SHIFT & 511];
}

static void release(struct mm *mm, u64 entry)
{
	mm->nr_pages--;
	if (!(entry & PTE_DEVICE))
		folio_put(page_folio(page_of(entry)));
}

static int set_entry(struct mm *mm, u64 addr, u64 entry)
{
	u64 *pte = make(mm, addr), old;

	if (!pte)
		return -ENOMEM;
	spin_lock(&mm->table_lock);
	old = *pte;
	*pte = entry;
	mm->nr_pages++;
	spin_unlock(&mm->table_lock);
	flush(mm, addr);
	if (old & THERE)
		release(mm, old);
	return 0;
}

int mm_set_page(struct mm *mm, u64 addr, struct page *page, bool write, bool exec)
{
	return set_entry(mm, addr, page_to_phys(page) | PTE_P | PTE_U | PTE_A | (write ? PTE_W | PTE_D : 0) |
			 (exec ? 0 : PTE_NX));
}

int mm_set_device(struct mm *mm, u64 addr, phys_addr_t phys, bool write)
{
	return set_entry(mm, addr, phys | PTE_P | PTE_U | PTE_A | PTE_PCD | PTE_PWT | PTE_NX | PTE_DEVICE |
			 (write ? PTE_W | PTE_D : 0));
}

u64 mm_get_entry(struct mm *mm, u64 addr)
{
	u64 *pte = find(mm, addr);

	return pte && *pte & THERE ? *pte : 0;
}

/* Calls fn for each entry that is there. What has no table is stepped over at once. */
static void for_each_entry(struct mm *mm, u64 start, u64 end, void (*fn)(struct mm *mm, u64 *pte, u64 addr, void *arg),
			   void *arg)
{
	for (u64 addr = start; addr < end; ) {
		u64 *table = mm->pgd;
		unsigned int shift;

		for (shift = 39; shift > PAGE_SHIFT; shift -= 9) {
			u64 entry = table[addr >> shift & 511];

			if (!(entry & PTE_P))
				break;
			table = table_of(entry);
		}
		if (shift > PAGE_SHIFT) {
			addr = ALIGN_DOWN(addr, 1UL << shift) + (1UL << shift);
			continue;
		}
		do {
			u64 *pte = &table[addr >> PAGE_SHIFT & 511];

			if (*pte & THERE)
				fn(mm, pte, addr, arg);
			addr += PAGE_SIZE;
		} while (addr < end && addr & (PMD_SIZE - 1));
	}
}

static void zap_one(struct mm *mm, u64 *pte, u64 addr, void *arg)
{
	bool only_cached = *(bool *)arg;
	u64 entry = *pte;

	(void)addr;
	if (only_cached && !(entry & PTE_DEVICE) && !page_folio(page_of(entry))->page.mapping)
		return;
	*pte = 0;
	flush(mm, addr);
	release(mm, entry);
}

void mm_zap(struct mm *mm, u64 start, u64 end, bool only_cached)
{
	spin_lock(&mm->table_lock);
	for_each_entry(mm, start, end, zap_one, &only_cached);
	spin_unlock(&mm->table_lock);
}

static void protect_one(struct mm *mm, u64 *pte, u64 addr, void *arg)
{
	(void)mm;
	(void)addr;
	(void)arg;
	*pte &= ~PTE_W;
}

void mm_write_protect(struct mm *mm, u64 start, u64 end)
{
	spin_lock(&mm->table_lock);
	for_each_entry(mm, start, end, protect_one, NULL);
	spin_unlock(&mm->table_lock);
	flush_all(mm);
}

static void protect_exec_one(struct mm *mm, u64 *pte, u64 addr, void *arg)
{
	(void)mm;
	(void)addr;
	*pte = (*pte & ~(PTE_W | PTE_NX | PTE_HIDDEN)) | PTE_P | (*(bool *)arg ? 0 : PTE_NX);
}

void mm_protect_entries(struct mm *mm, u64 start, u64 end, bool exec)
{
	spin_lock(&mm->table_lock);
	for_each_entry(mm, start, end, protect_exec_one, &exec);
	spin_unlock(&mm->table_lock);
	flush_all(mm);
}

static void hide_one(struct mm *mm, u64 *pte, u64 addr, void *arg)
{
	(void)mm;
	(void)addr;
	(void)arg;
	*pte = (*pte & ~(PTE_P | PTE_W)) | PTE_HIDDEN;
}

void mm_hide_entries(struct mm *mm, u64 start, u64 end)
{
	spin_lock(&mm->table_lock);
	for_each_entry(mm, start, end, hide_one, NULL);
	spin_unlock(&mm->table_lock);
	flush_all(mm);
}

struct copy {
	struct mm *to;
	int err;
};

/* Only pages that are a program's own are copied; those of the page cache are found again by faulting. */
static void copy_one(struct mm *from, u64 *pte, u64 addr, void *arg)
{
	struct copy *c = arg;
	struct page *page = page_of(*pte);
	struct folio *f = page_folio(page);
	u64 *to;

	(void)from;
	if (c->err || f->page.mapping)
		return;
	to = make(c->to, addr);
	if (!to) {
		c->err = -ENOMEM;
		return;
	}
	*pte &= ~PTE_W;
	*to = *pte;
	folio_get(f);
	c->to->nr_pages++;
}

int mm_copy_entries(struct mm *to, struct mm *from, u64 start, u64 end)
{
	struct copy c = { .to = to };

	/* from's areas can not change: its lock is held. Its entries can only be zapped, by a truncation, which the
	 * caller keeps out by the mapping's lock where there is one. */
	for_each_entry(from, start, end, copy_one, &c);
	flush_all(from);
	return c.err;
}

int mm_move_entries(struct mm *mm, u64 old, u64 new, u64 size)
{
	for (u64 off = 0; off < size; off += PAGE_SIZE) {
		u64 *from = find(mm, old + off), *to;

		if (!from || !(*from & THERE))
			continue;
		to = make(mm, new + off);
		if (!to)
			return -ENOMEM;
		spin_lock(&mm->table_lock);
		*to = *from;
		*from = 0;
		spin_unlock(&mm->table_lock);
	}
	flush_all(mm);
	return 0;
}

static void free_level(u64 *table, unsigned int level, unsigned int slots)
{
	if (level > 1)
		for (unsigned int i = 0; i < slots; i++)
			if (table[i] & PTE_P)
				free_level(table_of(table[i]), level - 1, 512);
	free_page(table);
}

void mm_tables_free(struct mm *mm)
{
	free_level(mm->pgd, 4, 256);
	mm->pgd = NULL;
}
