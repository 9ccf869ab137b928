/* Memory before the page allocator (mm/memblock.c): two sorted arrays of regions, what is RAM and what is taken.
 *
 * While scratch-only is on, memory is allocated from regions marked KHO_SCRATCH alone: everything else may hold
 * what the previous kernel preserved.
 */
#pragma once
#include "types.h"

#define MEMBLOCK_NONE		0x00
#define MEMBLOCK_RSRV_NOINIT	0x10	/* reserved: its struct pages are not to be touched (KHO) */
#define MEMBLOCK_RSRV_KERN	0x20	/* reserved by an allocation or for the kernel image: what it costs to boot */
#define MEMBLOCK_KHO_SCRATCH	0x40	/* memory: scratch of the chain of kernels */

struct memblock_region {
	phys_addr_t base;
	u64 size;
	u32 flags;
};
struct memblock_type {
	u64 cnt, max;
	struct memblock_region *regions;
	const char *name;
};
struct memblock {
	struct memblock_type memory, reserved;
	phys_addr_t current_limit;
	bool may_resize;
	bool scratch_only;
	bool done;			/* memblock_free_all() ran: nothing is allocated here any more */
};
extern struct memblock memblock;

/* 0 or -ENOMEM. Adding what is there already is no error; flags of parts that are there stay. */
int memblock_add(phys_addr_t base, u64 size);
int memblock_remove(phys_addr_t base, u64 size);
int memblock_reserve(phys_addr_t base, u64 size);
int memblock_reserve_kern(phys_addr_t base, u64 size);
int memblock_phys_free(phys_addr_t base, u64 size);
/* The same as memblock_reserve() and memblock_reserved_mark_noinit() for n ascending, disjoint ranges, in one pass
 * over the reserved regions. */
int memblock_reserve_noinit_ranges(const struct memblock_region *ranges, u64 n);

int memblock_reserved_mark_noinit(phys_addr_t base, u64 size);
int memblock_mark_kho_scratch(phys_addr_t base, u64 size);
int memblock_clear_kho_scratch(phys_addr_t base, u64 size);
void memblock_set_kho_scratch_only(void);
void memblock_clear_kho_scratch_only(void);

/* Free memory inside [start, end), at `align` (a power of two); top-down or bottom-up as the release prefers.
 * Reserved with RSRV_KERN. 0 if there is none. end 0 means the current limit. */
phys_addr_t memblock_phys_alloc_range(u64 size, u64 align, phys_addr_t start, phys_addr_t end);
/* Zeroed, by its direct map address; NULL if there is none. */
void *memblock_alloc(u64 size, u64 align);
void *memblock_alloc_or_panic(u64 size, u64 align, const char *what);

/* Bytes reserved with RSRV_KERN below limit. */
u64 memblock_reserved_kern_size(phys_addr_t limit);
u64 memblock_phys_mem_size(void);
bool memblock_is_memory(phys_addr_t addr);
bool memblock_is_region_reserved(phys_addr_t base, u64 size);
phys_addr_t memblock_end_of_dram(void);
void memblock_dump(void);		/* memblock=debug */

/* The next stretch of memory that is not reserved, from *cursor on; false at the end. Start with *cursor = 0. */
bool memblock_next_free(phys_addr_t *cursor, phys_addr_t *start, phys_addr_t *end);

/* Ends scratch-only, then gives all memory that is not reserved to the page allocator. */
void memblock_free_all(void);

/* reserve_mem=SIZE:ALIGN:NAME (mm/reserve_mem.c): the nth region of the table, NULL behind the last. */
struct reserve_mem_region {
	phys_addr_t start;
	u64 size;
	char name[16];
};
const struct reserve_mem_region *reserve_mem_get(unsigned int n);
