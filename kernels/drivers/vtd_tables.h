/* Second-level translation tables of VT-d (D51397, 3.7 and 9.8): what a domain's functions reach.
 *
 *	level 4 (48 bits)  level 3     level 2     level 1
 *	512 tables         1 GiB page  2 MiB page  4 KiB page	or a table of the level below
 *
 * An entry is 0, a table or a page. Hardware reads them at any time: an entry changes in one write, from something to
 * nothing, from nothing to something, or from a page to a table that maps the same; and a table that is not needed any
 * more is freed only after hardware has forgotten it.
 */
#pragma once
#include "types.h"

#define VTD_READ	1UL
#define VTD_WRITE	2UL
#define VTD_PAGE	(1UL << 7)	/* in levels 2 and 3: a page, not a table */
#define VTD_ADDRESS	0x0000fffffffff000UL
#define VTD_ENTRIES	512
#define VTD_LEVEL_SHIFT(level)	(12 + 9 * ((level) - 1))

struct vtd_tables {
	u64 *top;
	u32 levels;			/* 3 or 4 */
	u32 largest;			/* level of the largest page that hardware takes: 1, 2 or 3 */
	u64 nr;				/* pages of tables, the top one included */
};

static inline u64 vtd_tables_end(const struct vtd_tables *t) { return 1UL << (12 + 9 * t->levels); }

int vtd_tables_init(struct vtd_tables *t, u32 levels, u32 largest);	/* -ENOMEM */
void vtd_tables_free(struct vtd_tables *t);		/* hardware has no way to them any more */
/* Page-aligned, below the end, prot not 0. 0; -EEXIST and nothing is changed; -ENOMEM, and *done bytes are mapped. */
int vtd_tables_map(struct vtd_tables *t, u64 iova, phys_addr_t phys, u64 size, u64 prot, u64 *done);
/* flush(ctx): hardware forgets all that it knows of the range. Called at least once if anything was mapped there; when
 * this returns, hardware has forgotten. Bytes that were mapped in *done. 0, -ENOMEM (a large page can not be split: what
 * lies behind it is still there). */
int vtd_tables_unmap(struct vtd_tables *t, u64 iova, u64 size, void (*flush)(void *ctx), void *ctx, u64 *done);
/* The page that iova is in: its entry, 0 for none, and its level; or the level of the entry that is 0. */
u64 vtd_tables_lookup(const struct vtd_tables *t, u64 iova, u32 *level);
/* How many bytes from iova on, before end, are mapped with exactly this prot to memory without gaps that begins at *phys. */
u64 vtd_tables_run(const struct vtd_tables *t, u64 iova, u64 end, u64 *phys, u64 prot);
/* Calls fn for every table, parents first, until it returns something else than 0. */
int vtd_tables_each(const struct vtd_tables *t, int (*fn)(u64 *table, void *ctx), void *ctx);

/* ---- tables that somebody else left ---- */

/* What is claimed to be tables. Both functions return 0 or an error, which ends the walk. */
struct vtd_claim {
	u32 levels, largest;
	/* A table at this address: out, where it can be read. Verifies that it is memory that may be one, and that it is
	 * no table yet. */
	int (*table)(struct vtd_claim *c, phys_addr_t phys, const u64 **table);
	/* Pages of this size, side by side in I/O addresses from iova on: their entries. */
	int (*pages)(struct vtd_claim *c, u64 iova, const u64 *entries, u64 nr, u64 size);
	u64 nr;				/* out: tables */
	u64 bytes;			/* out: mapped */
};
/* Every entry is looked at. -EINVAL: one that hardware would refuse, or that no kernel of ours writes. */
int vtd_claim_walk(struct vtd_claim *c, phys_addr_t top);
