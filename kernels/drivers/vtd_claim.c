/* Second-level tables of the previous kernel: nothing of them is believed before it was looked at. Pure. */
#include "vtd_tables.h"
#include "errno.h"

/* How many entries from the first on are pages, as they may be; 0: that one may not. */
static u64 pages(const struct vtd_claim *c, const u64 *entries, u64 max, u32 level)
{
	u64 low = (1UL << VTD_LEVEL_SHIFT(level)) - 1, page = level > 1 ? VTD_PAGE : 0, nr = 0;
	u64 wrong = ~VTD_ADDRESS & ~(VTD_READ | VTD_WRITE | page);

	wrong |= low & VTD_ADDRESS;
	if (level > c->largest)
		return 0;
	while (nr < max && entries[nr] & (VTD_READ | VTD_WRITE) && (entries[nr] & (wrong | page)) == page)
		nr++;
	return nr;
}

static int walk(struct vtd_claim *c, phys_addr_t phys, u32 level, u64 iova)
{
	u64 span = 1UL << VTD_LEVEL_SHIFT(level);
	const u64 *table;
	int err = c->table(c, phys, &table);

	if (err)
		return err;
	c->nr++;
	for (u64 i = 0; i < VTD_ENTRIES; i++) {
		u64 entry = table[i], nr;

		if (!entry) {		/* most are: four at a time */
			while (i + 4 < VTD_ENTRIES && !(table[i + 1] | table[i + 2] | table[i + 3] | table[i + 4]))
				i += 4;
			continue;
		}
		if (level == 1 || entry & VTD_PAGE) {
			nr = pages(c, table + i, VTD_ENTRIES - i, level);
			if (!nr)
				return -EINVAL;
			err = c->pages(c, iova + i * span, table + i, nr, span);
			c->bytes += nr * span;
			i += nr - 1;
		} else if ((entry & ~VTD_ADDRESS) != (VTD_READ | VTD_WRITE)) {
			return -EINVAL;
		} else {
			err = walk(c, entry & VTD_ADDRESS, level - 1, iova + i * span);
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
