/* Allocation from memblock: the highest free place, or the lowest, as the release prefers; scratch alone while scratch-only
 * is on. What is allocated is reserved as RSRV_KERN: it is part of what the kernel needs to boot, and the sizes of the
 * scratch areas follow from that.
 */
#include "memblock_internal.h"
#include "printk.h"
#include "sdt.h"
#include "string.h"

/* The highest place inside [lo, hi), which is all RAM. */
static phys_addr_t find_top_down(phys_addr_t lo, phys_addr_t hi, u64 size, u64 align)
{
	const struct memblock_type *rsv = &memblock.reserved;
	u64 i = find_region(rsv, hi - 1);	/* first that ends at hi or behind it */

	if (i < rsv->cnt && rsv->regions[i].base < hi)
		hi = rsv->regions[i].base;
	while (hi > lo && hi - lo >= size) {
		phys_addr_t floor = i ? max(region_end(&rsv->regions[i - 1]), lo) : lo;
		phys_addr_t at = ALIGN_DOWN(hi - size, align);

		if (hi > floor && hi - floor >= size && at >= floor)
			return at;
		if (!i)
			break;
		hi = rsv->regions[--i].base;
	}
	return 0;
}

static phys_addr_t find_bottom_up(phys_addr_t lo, phys_addr_t hi, u64 size, u64 align)
{
	const struct memblock_type *rsv = &memblock.reserved;
	u64 i = find_region(rsv, lo);

	while (lo < hi) {
		phys_addr_t ceiling = i < rsv->cnt ? min(rsv->regions[i].base, hi) : hi;
		phys_addr_t at = ALIGN_UP(lo, align);

		if (at >= lo && at < ceiling && ceiling - at >= size)
			return at;
		if (i >= rsv->cnt)
			break;
		lo = max(region_end(&rsv->regions[i++]), lo);
	}
	return 0;
}

phys_addr_t memblock_find(u64 size, u64 align, phys_addr_t start, phys_addr_t end)
{
	const struct memblock_type *mem = &memblock.memory;
	u32 flags = required_flags();

	BUG_ON(!is_power_of_2(align));
	end = min(end ? end : memblock.current_limit, memblock.current_limit);
	start = max(start, PAGE_SIZE);		/* address 0 means failure */
	for (u64 n = 0; n < mem->cnt; n++) {
		const struct memblock_region *r = &mem->regions[RELEASE_MEMBLOCK_TOP_DOWN ? mem->cnt - 1 - n : n];
		phys_addr_t lo = max(r->base, start), hi = min(region_end(r), end), at;

		if ((r->flags & flags) != flags || lo >= hi || hi - lo < size)
			continue;
		at = RELEASE_MEMBLOCK_TOP_DOWN ? find_top_down(lo, hi, size, align) :
						 find_bottom_up(lo, hi, size, align);
		if (at)
			return at;
	}
	return 0;
}

phys_addr_t memblock_phys_alloc_range(u64 size, u64 align, phys_addr_t start, phys_addr_t end)
{
	phys_addr_t at;

	BUG_ON(memblock.done || !size);
	at = memblock_find(size, align, start, end);
	if (!at || memblock_reserve_kern(at, size))
		return 0;
	PROBE2(memblock, alloc, at, size);
	return at;
}

void *memblock_alloc(u64 size, u64 align)
{
	phys_addr_t at = memblock_phys_alloc_range(size, align, 0, 0);

	return at ? memset(phys_to_virt(at), 0, size) : NULL;
}

void *memblock_alloc_or_panic(u64 size, u64 align, const char *what)
{
	void *p = memblock_alloc(size, align);

	if (!p)
		panic("no memory for %s: %llu bytes aligned to %llu%s", what, (unsigned long long)size,
		      (unsigned long long)align, memblock.scratch_only ? " in scratch" : "");
	return p;
}
