/* Verifying claims against what this kernel knows: RAM, from its own memory map, and scratch. */
#include "claim.h"
#include "kho.h"
#include "memblock.h"

bool claim_is_ram(claim_t c, u64 size, u64 align)
{
	u64 at = c.value, end = at + size;

	if (end <= at || !IS_ALIGNED(at, align))
		return false;
	/* Regions are sorted; the flags of scratch split memory that is one piece. */
	for (u64 i = 0; i < memblock.memory.cnt && at < end; i++) {
		const struct memblock_region *r = &memblock.memory.regions[i];

		if (r->base > at)
			return false;
		at = max(at, r->base + r->size);
	}
	return at >= end;
}

bool claim_is_outside(claim_t c, u64 size, u64 align)
{
	return claim_is_ram(c, size, align) && !kho_scratch_overlap(c.value, size);
}
