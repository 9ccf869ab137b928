/* What the files of KHO share among themselves. */
#pragma once
#include "kho.h"
#include "claim.h"
#include "fdt.h"
#include "radix.h"

/* What came from the previous kernel. */
struct kho_in {
	phys_addr_t fdt;		/* root FDT, checked by kho_populate(); 0: nothing was handed over */
	phys_addr_t scratch;		/* its scratch array; 0: this kernel reserves scratch itself */
	u64 scratch_len;
};
extern struct kho_in kho_in;

/* What goes to the next one. */
struct kho_out {
	void *fdt;			/* root FDT, one preserved page; NULL before kho_init() */
	struct mutex fdt_lock;
	struct kho_radix_tree tree;
};
extern struct kho_out kho_out;

extern bool kho_enable;

/* Incoming root FDT, NULL without one. Works as soon as the direct map does. */
static inline const void *kho_in_fdt(void)
{
	return kho_in.fdt ? phys_to_virt(kho_in.fdt) : NULL;
}

/* scratch.c */
#define KHO_SCRATCH_ALIGN	(PAGE_SIZE << MAX_PAGE_ORDER)
#define KHO_SCRATCH_LOW_LIMIT	0xffffffffUL	/* highest address of devices with 32 address bits */
#define KHO_SCRATCH_MAX		256		/* areas: one array page */
void kho_scratch_reserve(void);			/* cold boot; turns KHO off when there is no memory */
void kho_scratch_release(enum migratetype type);	/* to the page allocator */

/* subtree.c: the blob of a node of the incoming FDT; false: it makes no sense. Says nothing. */
bool kho_subtree_blob(int node, phys_addr_t *phys, u64 *size);

/* debugfs.c: what goes to the next kernel, for people */
void kho_debugfs_init(void);
void kho_debugfs_add(const char *name, const void *mem, u64 size);
void kho_debugfs_remove(const void *mem);

/* metadata.c */
void kho_metadata_read(void);
int kho_metadata_write(void);

/* restore.c */
/* page->private of the first page of an adopted block. */
static inline u64 kho_stamp(unsigned int order)
{
	return (u64)KHO_PAGE_MAGIC << 32 | order;
}
void kho_disown(struct page *page, unsigned int order);		/* owner.c: the block is restored */
void kho_count_adopted(u64 pages);
/* Whether preserved blocks tile [claimed, claimed + nr_pages) exactly. */
bool kho_are_preserved(claim_t c, u64 nr_pages);

/* mm/reserve_mem.c: regions that have to wait until preserved memory is known. */
void reserve_mem_allocate_late(void);
