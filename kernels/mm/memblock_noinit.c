/* Reserving what the previous kernel preserved, all at once: the reserved regions and a sorted list of ranges are merged
 * into a new array in one pass, so that the cost of hundreds of thousands of blocks grows with their number alone.
 */
#include "memblock_internal.h"

#define NOINIT_HEADROOM		128	/* free entries behind the merged list */

/* A list of regions that is being written, or only counted when regions is NULL. */
struct region_list {
	struct memblock_region *regions;
	u64 cnt;
	phys_addr_t end;		/* of the last one */
	u32 flags;
};

static void append(struct region_list *list, phys_addr_t base, phys_addr_t end, u32 flags)
{
	if (list->cnt && list->end == base && list->flags == flags) {
		if (list->regions)
			list->regions[list->cnt - 1].size += end - base;
	} else {
		if (list->regions)
			list->regions[list->cnt] =
				(struct memblock_region){ .base = base, .size = end - base, .flags = flags };
		list->cnt++;
	}
	list->end = end;
	list->flags = flags;
}

/* The reserved regions and the ranges, which become NOINIT, in one list. */
static u64 merge_noinit(const struct memblock_region *ranges, u64 n, struct memblock_region *out)
{
	struct region_list list = { .regions = out };
	const struct memblock_type *rsv = &memblock.reserved;
	phys_addr_t at = 0;			/* everything below is in the list */
	u64 i = 0, j = 0;

	while (i < rsv->cnt || j < n) {
		phys_addr_t a = i < rsv->cnt ? max(rsv->regions[i].base, at) : ~0UL;
		phys_addr_t b = j < n ? max(ranges[j].base, at) : ~0UL;
		phys_addr_t start = min(a, b), end;
		u32 flags = 0;

		end = start < a ? a : region_end(&rsv->regions[i]);
		end = min(end, start < b ? b : region_end(&ranges[j]));
		if (start == a)
			flags |= rsv->regions[i].flags;
		if (start == b)
			flags |= MEMBLOCK_RSRV_NOINIT;
		append(&list, start, end, flags);
		at = end;
		i += i < rsv->cnt && region_end(&rsv->regions[i]) <= at;
		j += j < n && region_end(&ranges[j]) <= at;
	}
	return list.cnt;
}

int memblock_reserve_noinit_ranges(const struct memblock_region *ranges, u64 n)
{
	struct memblock_type *rsv = &memblock.reserved;
	struct memblock_region *old = rsv->regions;
	u64 old_max = rsv->max, cnt, max;
	phys_addr_t at;

	if (too_late())
		return -EBUSY;
	for (u64 i = 0; i < n; i++) {
		if (!ranges[i].size || range_end(ranges[i].base, ranges[i].size) == ~0UL)
			return -EINVAL;
		if (i && ranges[i].base < region_end(&ranges[i - 1]))
			return -EINVAL;
	}
	if (!n)
		return 0;
	if (!memblock.may_resize)
		return -ENOMEM;
	/* Allocated before the pass, so that the pass sees it; that may add two regions to what was counted. */
	max = merge_noinit(ranges, n, NULL) + NOINIT_HEADROOM;
	at = memblock_phys_alloc_range(PAGE_ALIGN(max * sizeof(*old)), PAGE_SIZE, 0, 0);
	if (!at)
		return -ENOMEM;
	cnt = merge_noinit(ranges, n, phys_to_virt(at));
	BUG_ON(cnt > max);
	old = rsv->regions;			/* the allocation may have replaced it */
	old_max = rsv->max;
	rsv->regions = phys_to_virt(at);
	rsv->cnt = cnt;
	rsv->max = max;
	memblock_free_array(old, old_max);
	return 0;
}
