/* Pages, folios and addresses (mm/).
 *
 * Every physical page has a struct page in the vmemmap, an array by page frame number in virtual memory. Pages of
 * the array that nobody wrote are not there: reading them gives zeros (one shared page), the first write gives
 * them memory (mm/vmemmap.c). So an all-zero struct page is the valid state of a page that was never used, and
 * what the array costs follows what is used. Its layout differs between the releases (releases/<name>.h).
 */
#pragma once
#include "types.h"
#include "errno.h"
#include "list.h"
#include "release.h"

#define PAGE_SHIFT		12
#define PAGE_SIZE		(1UL << PAGE_SHIFT)
#define PAGE_MASK		(~(PAGE_SIZE - 1))
#define PMD_SHIFT		21
#define PMD_SIZE		(1UL << PMD_SHIFT)
#define MAX_PAGE_ORDER		10
#define PAGEBLOCK_ORDER		9
#define PAGE_ALIGN(x)		ALIGN_UP((u64)(x), PAGE_SIZE)
#define PFN_UP(x)		(((u64)(x) + PAGE_SIZE - 1) >> PAGE_SHIFT)
#define PFN_DOWN(x)		((u64)(x) >> PAGE_SHIFT)
#define PFN_PHYS(pfn)		((phys_addr_t)(pfn) << PAGE_SHIFT)

/* Virtual layout; the bases are the release's (PAGE_OFFSET, VMEMMAP_BASE, VMALLOC_BASE, KERNEL_BASE). */
#define VMALLOC_SIZE		(1UL << 40)

/* page->flags */
#define PG_BUDDY	(1U << 0)	/* free, head of a block of order page->order in the buddy allocator */
#define PG_RESERVED	(1U << 1)	/* never given to the buddy allocator */
#define PG_HEAD		(1U << 2)	/* first page of a folio of order page->order > 0 */
#define PG_TAIL		(1U << 3)	/* page->private is the head's struct page */
#define PG_SLAB		(1U << 4)	/* page->slab */
#define PG_KMALLOC	(1U << 5)	/* head of a block that kmalloc() took from the page allocator */
#define PG_DMA		(1U << 6)	/* head of a preserved block that a device reaches: see kho/guest/restore.c */

struct slab;

/* The fields are: u32 flags; s32 refcount; u64 private; struct list_head lru; void *mapping; u64 index;
 * u8 order; struct slab *slab (may share mapping's place). The release orders them and adds its own. */
struct page {
	RELEASE_PAGE_FIELDS
};

/* A folio is a page that is the head of 2^order physically contiguous pages, or a single page. */
struct folio {
	struct page page;
};

#define vmemmap			((struct page *)VMEMMAP_BASE)

/* A page fault at this address: true if it was a part of the vmemmap that came into being by it (mm/vmemmap.c). */
bool vmemmap_fault(u64 address);

static inline struct page *pfn_to_page(u64 pfn) { return vmemmap + pfn; }
static inline u64 page_to_pfn(const struct page *page) { return (u64)(page - vmemmap); }
static inline phys_addr_t page_to_phys(const struct page *page) { return PFN_PHYS(page_to_pfn(page)); }
static inline struct page *phys_to_page(phys_addr_t phys) { return pfn_to_page(PFN_DOWN(phys)); }

/* The direct map maps all RAM at PAGE_OFFSET. The image is mapped a second time at KERNEL_BASE. */
static inline void *phys_to_virt(phys_addr_t phys) { return (void *)(PAGE_OFFSET + phys); }
phys_addr_t virt_to_phys(const volatile void *p);	/* direct map or image; anything else is a BUG */
static inline void *page_address(const struct page *page) { return phys_to_virt(page_to_phys(page)); }
static inline struct page *virt_to_page(const void *p) { return phys_to_page(virt_to_phys(p)); }

extern u64 max_pfn;			/* one behind the last page of RAM */
bool pfn_valid(u64 pfn);		/* is RAM */

/* Smallest order with 2^order pages >= size bytes. */
static inline unsigned int get_order(u64 size)
{
	unsigned int order = 0;

	while ((PAGE_SIZE << order) < size)
		order++;
	return order;
}

/* ---- page allocator (mm/page_alloc.c) ---- */

typedef u32 gfp_t;
#define __GFP_ZERO	(1U << 0)
#define __GFP_MOVABLE	(1U << 1)	/* may be moved, and may lie in scratch */
#define __GFP_NOWARN	(1U << 2)
#define __GFP_COMP	(1U << 3)	/* make a folio of it */
#define GFP_KERNEL	0U		/* never in scratch */
#define GFP_MOVABLE	__GFP_MOVABLE

struct page *alloc_pages(gfp_t gfp, unsigned int order);	/* refcount 1 on the first page; NULL */
void __free_pages(struct page *page, unsigned int order);	/* drops a reference; the last one frees */
void *get_free_pages(gfp_t gfp, unsigned int order);		/* their address, NULL */
void free_pages(void *addr, unsigned int order);
static inline struct page *alloc_page(gfp_t gfp) { return alloc_pages(gfp, 0); }
static inline void *get_zeroed_page(void) { return get_free_pages(GFP_KERNEL | __GFP_ZERO, 0); }
static inline void free_page(void *addr) { free_pages(addr, 0); }
/* Makes an allocated block of 2^order pages, not a folio, into single pages with a reference each. */
void split_page(struct page *page, unsigned int order);

struct folio *folio_alloc(gfp_t gfp, unsigned int order);
/* Makes head, tails and refcounts of 2^order pages that belong to nobody a folio with one reference. */
void prep_compound_page(struct page *head, unsigned int order);
static inline unsigned int folio_order(const struct folio *f) { return f->page.flags & PG_HEAD ? f->page.order : 0; }
static inline u64 folio_nr_pages(const struct folio *f) { return 1UL << folio_order(f); }
static inline u64 folio_pfn(const struct folio *f) { return page_to_pfn(&f->page); }
static inline void *folio_address(const struct folio *f) { return page_address(&f->page); }
struct folio *page_folio(struct page *page);	/* the folio that a page is in */
void folio_get(struct folio *folio);
void folio_put(struct folio *folio);		/* the last reference frees */
void get_page(struct page *page);
void put_page(struct page *page);

/* Memory that came from nowhere: gives [pfn, pfn + 2^order) to the allocator; as what, its pageblock says. */
void free_pages_core(u64 pfn, unsigned int order);
/* The number of pages that the allocator has or handed out. */
void adjust_managed_page_count(struct page *page, s64 count);

enum migratetype { MIGRATE_UNMOVABLE, MIGRATE_MOVABLE, MIGRATE_CMA, MIGRATE_TYPES };
void set_pageblock_migratetype(u64 pfn, enum migratetype type);
enum migratetype get_pageblock_migratetype(u64 pfn);

u64 nr_free_pages(void);
u64 nr_managed_pages(void);
u64 nr_free_cma_pages(void);
void show_mem(void);			/* zones, free pages by order and type, as text */
/* Walks and verifies all free lists and counters; panics on the first thing that is wrong. */
void check_free_lists(void);

void mm_core_init(void);		/* everything from memblock to working kmalloc and vmalloc */
/* Was the write to this address the first to its part of the vmemmap? Then it has memory now, and the write is to be
 * done again. Called first thing in a page fault, whatever the kernel was doing; not on a stack of its own, because
 * it may fault once more inside. */
bool vmemmap_fault(u64 address);

/* ---- page tables of the kernel (mm/pgtable.c) ---- */

#define PTE_P		(1UL << 0)
#define PTE_W		(1UL << 1)
#define PTE_U		(1UL << 2)
#define PTE_PWT		(1UL << 3)
#define PTE_PCD		(1UL << 4)
#define PTE_A		(1UL << 5)
#define PTE_D		(1UL << 6)
#define PTE_PS		(1UL << 7)
#define PTE_G		(1UL << 8)
#define PTE_NX		(1UL << 63)
#define PTE_ADDR	0x000ffffffffff000UL
#define PROT_KERNEL	(PTE_P | PTE_W | PTE_A | PTE_D | PTE_NX)
#define PROT_KERNEL_RO	(PTE_P | PTE_A | PTE_NX)
#define PROT_KERNEL_RX	(PTE_P | PTE_A)
#define PROT_DEVICE	(PROT_KERNEL | PTE_PCD | PTE_PWT)

extern u64 *kernel_pgd;			/* page table root of the kernel, 512 entries, by its direct map address */
/* Maps one page; makes missing tables. 0, -ENOMEM, -EBUSY if something is mapped there. */
int map_kernel_page(u64 virt, phys_addr_t phys, u64 prot);
/* Removes it and returns what was mapped, or -1 if nothing. Flushes the TLB entry. */
phys_addr_t unmap_kernel_page(u64 virt);
/* A page of zeros for a page table: from memblock while that allocates, from the page allocator later; NULL. */
void *pgtable_alloc(void);
void *ioremap(phys_addr_t phys, u64 size);	/* uncached; NULL. Not unmapped again. */

/* ---- slab (mm/slab.c) ---- */

struct kmem_cache;
struct kmem_cache *kmem_cache_create(const char *name, u32 size, u32 align);
void *kmem_cache_alloc(struct kmem_cache *cache, gfp_t gfp);
void kmem_cache_free(struct kmem_cache *cache, void *object);
void *kmalloc(u64 size, gfp_t gfp);	/* aligned to its power of two up to a page; any size up to 4 MiB */
void *kzalloc(u64 size, gfp_t gfp);
void kfree(const void *p);		/* NULL tolerated; what was not allocated or is free already is a BUG */
bool slab_is_available(void);

/* ---- vmalloc (mm/vmalloc.c) ---- */

#define VM_ALLOC		0x1	/* by vmalloc() */
#define VM_MAP			0x2	/* by vmap() */
#define VM_ALLOW_HUGE_VMAP	0x4
struct vm_struct {
	struct list_head list;
	u64 addr, size;			/* size without the guard page behind it */
	u32 flags;
	u32 page_order;			/* of the physical blocks */
	u64 nr_pages;
	struct page **pages;		/* nr_pages of them, every base page */
};
void *vmalloc(u64 size);		/* page-aligned, not zeroed, NULL */
void *vzalloc(u64 size);
void *vmalloc_huge(u64 size);		/* in blocks of order 9 where size allows; VM_ALLOW_HUGE_VMAP */
void vfree(const void *p);		/* frees the pages too; NULL tolerated */
/* Maps pages that exist; the area then owns them as if vmalloc()ed when flags has VM_ALLOC. Takes over `pages`
 * (kmalloced or vmalloced). align is a power of two. */
void *vmap_pages(struct page **pages, u64 nr_pages, u32 flags, u32 page_order, u64 align);
struct vm_struct *find_vm_area(const void *p);
bool is_vmalloc_addr(const void *p);
