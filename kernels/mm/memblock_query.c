/* What memblock knows: sums, single addresses, the free stretches, and all of it as text. */
#include "memblock_internal.h"
#include "init.h"
#include "printk.h"
#include "string.h"

static bool memblock_debug;

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

void memblock_free_iter_init(struct memblock_free_iter *it, phys_addr_t from, u32 mask, u32 flags)
{
	*it = (struct memblock_free_iter){
		.at = from, .mask = mask, .flags = flags,
		.memory = find_region(&memblock.memory, from), .reserved = find_region(&memblock.reserved, from),
	};
}

bool memblock_free_iter_next(struct memblock_free_iter *it, phys_addr_t *start, phys_addr_t *end)
{
	const struct memblock_type *mem = &memblock.memory, *rsv = &memblock.reserved;

	for (; it->memory < mem->cnt; it->memory++) {
		const struct memblock_region *m = &mem->regions[it->memory];
		phys_addr_t at = max(it->at, m->base);

		if ((m->flags & it->mask) != it->flags)
			continue;
		while (it->reserved < rsv->cnt && region_end(&rsv->regions[it->reserved]) <= at)
			it->reserved++;
		while (at < region_end(m) && it->reserved < rsv->cnt && rsv->regions[it->reserved].base <= at)
			at = region_end(&rsv->regions[it->reserved++]);
		it->at = at;
		if (at >= region_end(m))
			continue;
		*start = at;
		*end = it->reserved < rsv->cnt ? min(rsv->regions[it->reserved].base, region_end(m)) : region_end(m);
		it->at = *end;
		return true;
	}
	return false;
}

bool memblock_next_free_flags(phys_addr_t *cursor, phys_addr_t *start, phys_addr_t *end, u32 mask, u32 flags)
{
	struct memblock_free_iter it;

	memblock_free_iter_init(&it, *cursor, mask, flags);
	if (!memblock_free_iter_next(&it, start, end))
		return false;
	*cursor = *end;
	return true;
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
