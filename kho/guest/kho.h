/* Kexec Handover inside the kernel: what other parts call. Contracts and errors are those of Linux 7.2 (spec: KHO
 * documentation of Linux, Documentation/core-api/kho); formats are in abi.h.
 *
 *	old kernel				new kernel
 *	kho_init (fs_initcall)			kho_populate (setup_arch): FDT checked, scratch known, scratch-only on
 *	kho_preserve_*, kho_add_subtree		kho_memory_init (mm_core_init): tree walked, memory reserved
 *	kho_fill_kimage (kexec_file_load)	kho_retrieve_subtree, kho_restore_*
 */
#pragma once
#include "../../kernels/include/types.h"
#include "../../kernels/include/page.h"
#include "abi.h"
#include "claim.h"

struct kimage;
struct kexec_buf;

bool kho_is_enabled(void);
bool is_kho_boot(void);
bool kho_was_handed_over(void);			/* by a KHO kexec, whatever became of it */

/* ---- start-up ---- */
void kho_populate(phys_addr_t fdt, u64 fdt_len, phys_addr_t scratch, u64 scratch_len);
void kho_memory_init(void);

/* ---- preserving, in the old kernel ---- */
int kho_preserve_folio(struct folio *folio);
void kho_unpreserve_folio(struct folio *folio);
int kho_preserve_pages(struct page *page, u64 nr_pages);
void kho_unpreserve_pages(struct page *page, u64 nr_pages);
int kho_preserve_vmalloc(void *ptr, struct kho_vmalloc *out);
void kho_unpreserve_vmalloc(struct kho_vmalloc *desc);
void *kho_alloc_preserve(u64 size);		/* zeroed, or ERR_PTR */
void kho_unpreserve_free(void *mem);
int kho_add_subtree(const char *name, void *blob, u64 size);
void kho_remove_subtree(void *blob);

/* ---- restoring, in the new kernel ---- */
/* Whether a preserved block, not restored yet, begins at this claimed address; its order. */
bool kho_is_preserved(claim_t c, unsigned int *order);
struct folio *kho_restore_folio(phys_addr_t phys);
struct page *kho_restore_pages(phys_addr_t phys, u64 nr_pages);
void *kho_restore_vmalloc(const struct kho_vmalloc *desc);
void kho_restore_free(void *mem);
/* Who will restore a block (owner.c). False: no preserved block begins there. `before` is who owned it; 0: nobody, and
 * now it is `owner`. */
#define KHO_OWNER_KHO	1UL
bool kho_own(claim_t block, u64 owner, unsigned int *order, u64 *before);
void kho_own_range(claim_t start, u64 size);	/* for KHO_OWNER_KHO: what is read in place and never restored */
/* Adopted pages that nobody restored, and nobody is going to. */
u64 kho_unowned_pages(void);
/* Pages that kho_restore_*() gave to this kernel so far: its share of the managed pages (INV-38). */
u64 kho_restored_pages(void);
u64 kho_dma_restored(void);			/* blocks marked PG_DMA that were restored so far */
int kho_retrieve_subtree(const char *name, phys_addr_t *phys, u64 *size);

/* ---- kexec ---- */
int kho_fill_kimage(struct kimage *image);	/* 0 also when KHO is off */
/* Place for a segment inside scratch. 1: KHO is off, search elsewhere; 0; -EADDRNOTAVAIL. */
int kho_locate_mem_hole(struct kexec_buf *kbuf);

/* ---- scratch ---- */
extern struct kho_scratch *kho_scratch;
extern unsigned int kho_scratch_cnt;
bool kho_scratch_overlap(phys_addr_t phys, u64 size);
