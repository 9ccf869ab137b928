/* Memory before the page allocator: what is RAM and what of it is taken, as two sorted arrays of disjoint regions.
 *
 * Neighbours that touch differ in their flags, everything else is merged, so the arrays stay as short as the facts
 * allow. The first arrays are in the image; when one is full a larger one is allocated from memblock itself, which is
 * the reason for the care about order in double_array(). Marking flags splits regions at the edges of the range,
 * changes what is inside and merges again.
 *
 * A handover can bring hundreds of thousands of preserved blocks: looking up is a binary search, appending at the end
 * costs nothing, and a whole list of blocks is merged in one pass (memblock_noinit.c). The rules of scratch-only
 * allocation are those of Linux (mm/memblock.c there). Nothing here touches memory outside the arrays.
 */
#include "memblock_internal.h"
#include "sdt.h"
#include "string.h"

#define INIT_REGIONS		128

static struct memblock_region memory_regions[INIT_REGIONS], reserved_regions[INIT_REGIONS];

struct memblock memblock = {
	.memory = { .max = INIT_REGIONS, .regions = memory_regions, .name = "memory" },
	.reserved = { .max = INIT_REGIONS, .regions = reserved_regions, .name = "reserved" },
	.current_limit = ~0UL,
};

static int add_range(struct memblock_type *type, phys_addr_t base, u64 size, u32 flags);
static int remove_range(struct memblock_type *type, phys_addr_t base, u64 size);

static bool is_static_array(const struct memblock_region *regions)
{
	return regions == memory_regions || regions == reserved_regions;
}

void memblock_free_array(struct memblock_region *regions, u64 max)
{
	/* A failure would only lose the memory of the old array. */
	if (!is_static_array(regions))
		remove_range(&memblock.reserved, virt_to_phys(regions), PAGE_ALIGN(max * sizeof(*regions)));
}

/* Memory for `max` regions outside [base, base + size), which is about to be added or reserved. Not reserved yet. */
static phys_addr_t find_array(u64 max, phys_addr_t base, u64 size)
{
	u64 bytes = PAGE_ALIGN(max * sizeof(struct memblock_region));
	phys_addr_t at = memblock_find(bytes, PAGE_SIZE, range_end(base, size), 0);

	return at || !base ? at : memblock_find(bytes, PAGE_SIZE, 0, base);
}

static int double_array(struct memblock_type *type, phys_addr_t base, u64 size)
{
	struct memblock_region *old = type->regions, *new;
	u64 old_max = type->max;
	phys_addr_t at;

	if (!memblock.may_resize)
		return -ENOMEM;
	/* The new array has to be reserved when there is no way back: make sure that this cannot fail. */
	if (type != &memblock.reserved && memblock.reserved.cnt == memblock.reserved.max) {
		int err = double_array(&memblock.reserved, base, size);

		if (err)
			return err;
	}
	at = find_array(old_max * 2, base, size);
	if (!at)
		return -ENOMEM;
	new = phys_to_virt(at);
	memcpy(new, old, type->cnt * sizeof(*old));
	type->regions = new;
	type->max = old_max * 2;
	BUG_ON(add_range(&memblock.reserved, at, PAGE_ALIGN(type->max * sizeof(*new)), MEMBLOCK_RSRV_KERN));
	PROBE2(memblock, alloc, at, PAGE_ALIGN(type->max * sizeof(*new)));
	memblock_free_array(old, old_max);
	return 0;
}

/* Room for n more regions, in no new array inside the range, which is what they are for. */
static int make_room(struct memblock_type *type, u64 n, phys_addr_t base, u64 size)
{
	while (type->max - type->cnt < n) {
		int err = double_array(type, base, size);

		if (err)
			return err;
	}
	return 0;
}

static void insert_region(struct memblock_type *type, u64 at, phys_addr_t base, phys_addr_t end, u32 flags)
{
	struct memblock_region *r = &type->regions[at];

	memmove(r + 1, r, (type->cnt - at) * sizeof(*r));
	*r = (struct memblock_region){ .base = base, .size = end - base, .flags = flags };
	type->cnt++;
}

/* Merges what can be merged among the regions [first, last) and their neighbours. */
static void merge_regions(struct memblock_type *type, u64 first, u64 last)
{
	u64 from = first ? first - 1 : 0, to = min(last + 1, type->cnt), out = from;
	struct memblock_region *r = type->regions;

	if (from >= to)
		return;
	for (u64 i = from + 1; i < to; i++) {
		if (region_end(&r[out]) == r[i].base && r[out].flags == r[i].flags)
			r[out].size += r[i].size;
		else
			r[++out] = r[i];
	}
	if (++out == to)
		return;
	memmove(&r[out], &r[to], (type->cnt - to) * sizeof(*r));
	type->cnt -= to - out;
}

/* Adds the parts of the range that are not there; parts that are there keep their flags. */
static int add_range(struct memblock_type *type, phys_addr_t base, u64 size, u32 flags)
{
	phys_addr_t end = range_end(base, size), at;
	u64 first, i, missing;
	int err;

	if (base >= end)
		return 0;
	if (type->cnt) {
		struct memblock_region *last = &type->regions[type->cnt - 1];

		if (region_end(last) == base && last->flags == flags) {
			last->size += end - base;
			return 0;
		}
	}
	missing = 0;
	at = base;
	for (i = find_region(type, base); i < type->cnt && type->regions[i].base < end; i++) {
		missing += type->regions[i].base > at;
		at = region_end(&type->regions[i]);
	}
	missing += at < end;
	/* A new array reserves itself, but never inside the range: the number of missing parts stays. */
	err = make_room(type, missing, base, end - base);
	if (err)
		return err;

	first = find_region(type, base);
	at = base;
	for (i = first; i < type->cnt && type->regions[i].base < end; i++) {
		if (type->regions[i].base > at) {
			insert_region(type, i, at, type->regions[i].base, flags);
			i++;
		}
		at = region_end(&type->regions[i]);
	}
	if (at < end)
		insert_region(type, i++, at, end, flags);
	merge_regions(type, first, i);
	return 0;
}

/* Splits regions at both ends of the range; those inside it are then [*first, *last). */
static int isolate_range(struct memblock_type *type, phys_addr_t base, u64 size, u64 *first, u64 *last)
{
	phys_addr_t end = range_end(base, size);
	u64 i;
	int err;

	*first = *last = 0;
	if (base >= end)
		return 0;
	err = make_room(type, 2, base, end - base);
	if (err)
		return err;
	i = find_region(type, base);
	if (i < type->cnt && type->regions[i].base < base) {
		insert_region(type, i, type->regions[i].base, base, type->regions[i].flags);
		i++;
		type->regions[i].size -= base - type->regions[i].base;
		type->regions[i].base = base;
	}
	*first = i;
	while (i < type->cnt && type->regions[i].base < end) {
		if (region_end(&type->regions[i]) > end) {
			insert_region(type, i, type->regions[i].base, end, type->regions[i].flags);
			type->regions[i + 1].size -= end - type->regions[i + 1].base;
			type->regions[i + 1].base = end;
		}
		i++;
	}
	*last = i;
	return 0;
}

static int remove_range(struct memblock_type *type, phys_addr_t base, u64 size)
{
	u64 first, last;
	int err = isolate_range(type, base, size, &first, &last);

	if (err)
		return err;
	memmove(&type->regions[first], &type->regions[last], (type->cnt - last) * sizeof(type->regions[0]));
	type->cnt -= last - first;
	return 0;
}

static int change_flags(struct memblock_type *type, phys_addr_t base, u64 size, u32 set, u32 clear)
{
	u64 first, last;
	int err = size ? make_room(type, 2, 0, 0) : 0;	/* a new array may be inside the range */

	if (!err)
		err = isolate_range(type, base, size, &first, &last);
	if (err)
		return err;
	for (u64 i = first; i < last; i++)
		type->regions[i].flags = (type->regions[i].flags | set) & ~clear;
	merge_regions(type, first, last);
	return 0;
}

int memblock_add(phys_addr_t base, u64 size)
{
	return too_late() ? -EBUSY : add_range(&memblock.memory, base, size, MEMBLOCK_NONE);
}

int memblock_remove(phys_addr_t base, u64 size)
{
	return too_late() ? -EBUSY : remove_range(&memblock.memory, base, size);
}

int memblock_reserve(phys_addr_t base, u64 size)
{
	return too_late() ? -EBUSY : add_range(&memblock.reserved, base, size, MEMBLOCK_NONE);
}

int memblock_reserve_kern(phys_addr_t base, u64 size)
{
	return too_late() ? -EBUSY : add_range(&memblock.reserved, base, size, MEMBLOCK_RSRV_KERN);
}

int memblock_phys_free(phys_addr_t base, u64 size)
{
	return too_late() ? -EBUSY : remove_range(&memblock.reserved, base, size);
}

int memblock_reserved_mark_noinit(phys_addr_t base, u64 size)
{
	return too_late() ? -EBUSY : change_flags(&memblock.reserved, base, size, MEMBLOCK_RSRV_NOINIT, 0);
}

int memblock_mark_kho_scratch(phys_addr_t base, u64 size)
{
	return too_late() ? -EBUSY : change_flags(&memblock.memory, base, size, MEMBLOCK_KHO_SCRATCH, 0);
}

int memblock_clear_kho_scratch(phys_addr_t base, u64 size)
{
	return too_late() ? -EBUSY : change_flags(&memblock.memory, base, size, 0, MEMBLOCK_KHO_SCRATCH);
}

void memblock_set_kho_scratch_only(void)
{
	memblock.scratch_only = true;
}

void memblock_clear_kho_scratch_only(void)
{
	memblock.scratch_only = false;
}
