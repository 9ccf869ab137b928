/* Second-level tables of the previous kernel: nothing of them is believed before it was looked at. Pure. */
#include "vtd_tables.h"
#include "errno.h"

static int walk(struct vtd_claim *c, phys_addr_t phys, u32 level, u64 iova)
{
	u64 span = 1UL << VTD_LEVEL_SHIFT(level);
	const u64 *table;
	int err = c->table(c, phys, &table);

	if (err)
		return err;
	c->nr++;
	for (u64 i = 0; i < VTD_ENTRIES; i++, iova += span) {
		u64 entry = table[i], prot = entry & (VTD_READ | VTD_WRITE), to = entry & VTD_ADDRESS;

		if (!entry)
			continue;
		if (!prot || entry & ~(VTD_ADDRESS | VTD_READ | VTD_WRITE | (level > 1 ? VTD_PAGE : 0)))
			return -EINVAL;
		if (level > 1 && !(entry & VTD_PAGE)) {
			if (prot != (VTD_READ | VTD_WRITE))
				return -EINVAL;
			err = walk(c, to, level - 1, iova);
		} else if (level > c->largest || to & (span - 1)) {
			return -EINVAL;
		} else {
			c->bytes += span;
			err = c->page(c, iova, to, span, prot);
		}
		if (err)
			return err;
	}
	return 0;
}

int vtd_claim_walk(struct vtd_claim *c, phys_addr_t top)
{
	c->nr = c->bytes = 0;
	return walk(c, top, c->levels, 0);
}
