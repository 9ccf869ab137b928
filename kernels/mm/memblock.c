/* Memory before the page allocator: what is RAM and what of it is taken, as two sorted arrays of disjoint regions.
 *
 * Neighbours that touch differ in their flags, everything else is merged, so the arrays stay as short as the facts
 * allow. The first arrays are in the image; when one is full a larger one is allocated from memblock itself, which is
 * the reason for the care about order in double_array(). Marking flags splits regions at the edges of the range,
 * changes what is inside and merges again.
 *
 * Three things are made for many regions, because a handover can bring hundreds of thousands of preserved blocks:
 * looking up is a binary search, appending at the end costs nothing, and a whole list of blocks is merged in one pass.
 *
 * The rules of scratch-only allocation are those of Linux (mm/memblock.c there); nothing here touches memory outside
 * the arrays.
 */
#include "memblock.h"
#include "errno.h"
#include "init.h"
#include "internal.h"
#include "page.h"
#include "panic.h"
#include "printk.h"
#include "sdt.h"
#include "string.h"

#define INIT_REGIONS		128
#define NOINIT_HEADROOM		INIT_REGIONS	/* free entries behind a merged list */

static struct memblock_region memory_regions[INIT_REGIONS], reserved_regions[INIT_REGIONS];

struct memblock memblock = {
	.memory = { .max = INIT_REGIONS, .regions = memory_regions, .name = "memory" },
	.reserved = { .max = INIT_REGIONS, .regions = reserved_regions, .name = "reserved" },
	.current_limit = ~0UL,
};

static bool memblock_debug;

static phys_addr_t region_end(const struct memblock_region *r)
{
	return r->base + r->size;
}

/* End of a range that a caller gave; what would wrap around ends at the last byte but one. */
static phys_addr_t range_end(phys_addr_t base, u64 size)
{
	return size > ~0UL - base ? ~0UL : base + size;
}

/* Index of the first region that ends behind addr; cnt if there is none. */
static u64 find_region(const struct memblock_type *type, phys_addr_t addr)
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

/* ---- finding free memory ---- */

static u32 required_flags(void)
{
	return memblock.scratch_only ? MEMBLOCK_KHO_SCRATCH : MEMBLOCK_NONE;
}

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

static phys_addr_t find_in_range(u64 size, u64 align, phys_addr_t start, phys_addr_t end)
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

/* ---- regions ---- */

static int add_range(struct memblock_type *type, phys_addr_t base, u64 size, u32 flags);
static int remove_range(struct memblock_type *type, phys_addr_t base, u64 size);

static bool is_static_array(const struct memblock_region *regions)
{
	return regions == memory_regions || regions == reserved_regions;
}

static void free_array(struct memblock_region *regions, u64 max)
{
	/* A failure would only lose the memory of the old array. */
	if (!is_static_array(regions))
		remove_range(&memblock.reserved, virt_to_phys(regions), PAGE_ALIGN(max * sizeof(*regions)));
}

/* Memory for `max` regions outside [base, base + size), which is about to be added or reserved. Not reserved yet. */
static phys_addr_t find_array(u64 max, phys_addr_t base, u64 size)
{
	u64 bytes = PAGE_ALIGN(max * sizeof(struct memblock_region));
	phys_addr_t at = find_in_range(bytes, PAGE_SIZE, range_end(base, size), 0);

	return at || !base ? at : find_in_range(bytes, PAGE_SIZE, 0, base);
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
	free_array(old, old_max);
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

/* Merges what can be merged among the regions [first - 1, last + 1]. */
static void merge_regions(struct memblock_type *type, u64 first, u64 last)
{
	u64 from = first ? first - 1 : 0, to = min(last + 2, type->cnt), out = from;
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

/* What changed after the page allocator took over would be known to nobody. */
static bool too_late(void)
{
	return WARN_ON(memblock.done);
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

/* ---- many ranges at once ---- */

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
	free_array(old, old_max);
	return 0;
}

/* ---- allocation ---- */

phys_addr_t memblock_phys_alloc_range(u64 size, u64 align, phys_addr_t start, phys_addr_t end)
{
	phys_addr_t at;

	BUG_ON(memblock.done || !size);
	at = find_in_range(size, align, start, end);
	if (!at || add_range(&memblock.reserved, at, size, MEMBLOCK_RSRV_KERN))
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

/* ---- questions ---- */

u64 memblock_reserved_kern_size(phys_addr_t limit)
{
	u64 sum = 0;

	for (u64 i = 0; i < memblock.reserved.cnt && memblock.reserved.regions[i].base < limit; i++) {
		const struct memblock_region *r = &memblock.reserved.regions[i];

		if (r->flags & MEMBLOCK_RSRV_KERN)
			sum += min(region_end(r), limit) - r->base;
	}
	return sum;
}

u64 memblock_phys_mem_size(void)
{
	u64 sum = 0;

	for (u64 i = 0; i < memblock.memory.cnt; i++)
		sum += memblock.memory.regions[i].size;
	return sum;
}

bool memblock_is_memory(phys_addr_t addr)
{
	u64 i = find_region(&memblock.memory, addr);

	return i < memblock.memory.cnt && memblock.memory.regions[i].base <= addr;
}

bool memblock_is_region_reserved(phys_addr_t base, u64 size)
{
	u64 i = find_region(&memblock.reserved, base);

	return i < memblock.reserved.cnt && memblock.reserved.regions[i].base < range_end(base, size);
}

phys_addr_t memblock_end_of_dram(void)
{
	return memblock.memory.cnt ? region_end(&memblock.memory.regions[memblock.memory.cnt - 1]) : 0;
}

bool memblock_next_free_flags(phys_addr_t *cursor, phys_addr_t *start, phys_addr_t *end, u32 mask, u32 flags)
{
	const struct memblock_type *mem = &memblock.memory, *rsv = &memblock.reserved;
	phys_addr_t at = *cursor;
	u64 i = find_region(mem, at), j = find_region(rsv, at);

	for (; i < mem->cnt; i++) {
		const struct memblock_region *m = &mem->regions[i];

		if ((m->flags & mask) != flags)
			continue;
		at = max(at, m->base);
		while (j < rsv->cnt && region_end(&rsv->regions[j]) <= at)
			j++;
		while (at < region_end(m) && j < rsv->cnt && rsv->regions[j].base <= at)
			at = region_end(&rsv->regions[j++]);
		if (at >= region_end(m))
			continue;
		*start = at;
		*end = j < rsv->cnt ? min(rsv->regions[j].base, region_end(m)) : region_end(m);
		*cursor = *end;
		return true;
	}
	*cursor = ~0UL;
	return false;
}

bool memblock_next_free(phys_addr_t *cursor, phys_addr_t *start, phys_addr_t *end)
{
	return memblock_next_free_flags(cursor, start, end, required_flags(), required_flags());
}

static void dump_type(const struct memblock_type *type)
{
	pr_info(" %s.cnt  = 0x%llx\n", type->name, (unsigned long long)type->cnt);
	for (u64 i = 0; i < type->cnt; i++) {
		const struct memblock_region *r = &type->regions[i];

		pr_info(" %s[0x%llx]\t[0x%016llx-0x%016llx], 0x%016llx bytes flags: 0x%x\n", type->name,
			(unsigned long long)i, (unsigned long long)r->base, (unsigned long long)(region_end(r) - 1),
			(unsigned long long)r->size, r->flags);
	}
}

void memblock_dump(void)
{
	if (!memblock_debug)
		return;
	pr_info("MEMBLOCK configuration:\n");
	pr_info(" memory size = 0x%016llx reserved by the kernel = 0x%016llx\n",
		(unsigned long long)memblock_phys_mem_size(),
		(unsigned long long)memblock_reserved_kern_size(~0UL));
	dump_type(&memblock.memory);
	dump_type(&memblock.reserved);
}

static int parse_memblock(const char *value)
{
	if (strcmp(value, "debug"))
		return -EINVAL;
	memblock_debug = true;
	return 0;
}
early_param("memblock", parse_memblock);
