/* The VT-d unit: what the files of DMA remapping share. See iommu.h for what the rest of the kernel sees.
 *
 *	dmar.c		where the unit is
 *	vtd.c		registers, root and context tables, invalidation, faults
 *	vtd_irq.c	interrupt remapping
 *	vtd_tables.c	second-level tables; vtd_claim.c: those of the previous kernel
 *	vtd_adopt.c	taking over what the previous kernel left, before any memory is given out
 *	iommu.c		domains, and which function is in which
 */
#pragma once
#include "types.h"
#include "list.h"
#include "dmar.h"
#include "vtd_tables.h"

/* Registers (11.4) */
enum {
	VTD_VER = 0x00, VTD_CAP = 0x08, VTD_ECAP = 0x10, VTD_GCMD = 0x18, VTD_GSTS = 0x1c, VTD_RTADDR = 0x20,
	VTD_FSTS = 0x34, VTD_FECTL = 0x38, VTD_FEDATA = 0x3c, VTD_FEADDR = 0x40, VTD_FEUADDR = 0x44,
	VTD_IQH = 0x80, VTD_IQT = 0x88, VTD_IQA = 0x90, VTD_IRTA = 0xb8,
};
#define VTD_TE		(1U << 31)	/* GCMD, GSTS */
#define VTD_SRTP	(1U << 30)
#define VTD_QIE		(1U << 26)
#define VTD_IRE		(1U << 25)
#define VTD_SIRTP	(1U << 24)

#define VTD_ROOT_ENTRIES	256
#define VTD_CONTEXT_ENTRIES	256
#define VTD_PRESENT		1UL

struct vtd_entry {			/* of a root, context or interrupt table */
	u64 low, high;
};

struct vtd_unit {
	struct dmar dmar;
	volatile u8 *registers;		/* NULL: there is no unit, or none that is used */
	u64 cap, ecap;
	u32 levels, largest;		/* of second-level tables */
	bool interrupts;		/* are remapped */
	struct vtd_entry *root;
	struct vtd_entry *irt;		/* one page */
};
extern struct vtd_unit vtd;

/* ---- vtd.c ---- */
bool vtd_find(void);			/* the unit, from the table and its capabilities; works before memory is given out */
bool vtd_off(void);			/* iommu=off */
void vtd_start(bool adopted);		/* memory works; everything off, or everything as it was left */
void vtd_sync(void);			/* what was written to tables can be seen by hardware */
void vtd_stop(void);			/* nothing is remapped any more */
void vtd_quiet(void);			/* no fault interrupts, until the next kernel wants them */
/* 0, -ENOMEM. A context that is there is replaced. */
int vtd_set_context(u16 bdf, u32 domain, const struct vtd_tables *t);
void vtd_clear_context(u16 bdf, u32 domain);
struct vtd_entry *vtd_context(u16 bdf);	/* NULL: its bus has no table */
void vtd_flush_pages(u32 domain, u64 iova, u64 size);	/* tables on the way are forgotten too */
void vtd_flush_domain(u32 domain);
void vtd_flush_interrupt(u32 index);
void vtd_fault_interrupt(void);
/* Contexts of bits 1 (39 bits) or 2 (48 bits) */
static inline u64 vtd_width(u32 levels) { return levels - 2; }

/* ---- vtd_irq.c ---- */
#define VTD_INTERRUPTS		256	/* entries: one page */
#define VTD_IRTA_SIZE		7UL	/* 2^(7 + 1) */
#define VTD_IRTE_FPD		2UL	/* no fault is recorded */
#define VTD_IRTE_VERIFY		(1UL << 18)	/* high: the requester id must match */
void vtd_irq_adopt(void);		/* entries that are there belong to the functions that they name */
/* Entries of functions that are handed over are masked, the others go. */
void vtd_irq_shutdown(bool (*keep)(u16 bdf));

/* ---- vtd_adopt.c ---- */
struct iommu_luemu_ser;
/* What the previous kernel handed over, verified in full; NULL: nothing, or it was refused. */
const struct iommu_luemu_ser *vtd_adopted(void);
void vtd_adopted_done(void);		/* the record goes */
/* Marks the preserved blocks that [phys, phys + size) lies in as in use by a device: PG_DMA. -EINVAL: not preserved. */
int vtd_mark_pages(phys_addr_t phys, u64 size);
/* The tables of an adopted domain, as if they were ours. */
struct vtd_tables vtd_adopted_tables(u32 nr);
void vtd_adopt_finish(void);		/* memory works: the tables are this kernel's own from now on */
bool vtd_all_restored(void);		/* all memory that devices reach is this kernel's own again */
void vtd_refuse(const char *why);	/* DMA is stopped, files answer EIO; once */
bool vtd_refused(void);

/* ---- iommu.c ---- */
struct iommu_domain {
	struct list_head list;
	u32 id;
	struct vtd_tables tables;
	u64 bytes;			/* mapped */
	u32 attached;			/* functions */
	bool kernel;			/* of dma_alloc(): goes with its function */
	bool preserved, adopted;	/* adopted: until its file is finished */
};
extern struct list_head iommu_domains;

/* ---- luo/guest/luo_iommu.c ---- */
/* A new page of root or context tables, while an FLB is outgoing: 0 or an error. */
int iommu_luo_table(void *table);
