/* Between the files of memblock: arrays of regions. */
#pragma once
#include "errno.h"
#include "internal.h"
#include "memblock.h"
#include "page.h"
#include "panic.h"

static inline phys_addr_t region_end(const struct memblock_region *r)
{
	return r->base + r->size;
}

/* End of a range that a caller gave; what would wrap around ends at the last byte but one. */
static inline phys_addr_t range_end(phys_addr_t base, u64 size)
{
	return size > ~0UL - base ? ~0UL : base + size;
}

/* Index of the first region that ends behind addr; cnt if there is none. */
static inline u64 find_region(const struct memblock_type *type, phys_addr_t addr)
{
	u64 lo = 0, hi = type->cnt;

	if (hi && region_end(&type->regions[hi - 1]) <= addr)
		return hi;		/* what is appended costs no search */
	while (lo < hi) {
		u64 mid = lo + (hi - lo) / 2;

		if (region_end(&type->regions[mid]) > addr)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

/* What changed after the page allocator took over would be known to nobody. */
static inline bool too_late(void)
{
	return WARN_ON(memblock.done);
}

/* Flags that memory must have to be allocated. */
static inline u32 required_flags(void)
{
	return memblock.scratch_only ? MEMBLOCK_KHO_SCRATCH : MEMBLOCK_NONE;
}

/* A place that is free, not reserved yet; 0 if there is none. */
phys_addr_t memblock_find(u64 size, u64 align, phys_addr_t start, phys_addr_t end);
/* Gives an array of regions back that a larger one replaced. */
void memblock_free_array(struct memblock_region *regions, u64 max);
