/* Second-level tables that are this kernel's own: see vtd_tables.h. Pure: tested on the host too. */
#include "vtd_tables.h"
#include "errno.h"
#include "page.h"

#define SPAN(level)	(1UL << VTD_LEVEL_SHIFT(level))
#define INDEX(iova, level) ((iova) >> VTD_LEVEL_SHIFT(level) & (VTD_ENTRIES - 1))

static bool is_page(u64 entry, u32 level) { return level == 1 || entry & VTD_PAGE; }

static u64 *table_of(u64 entry) { return phys_to_virt(entry & VTD_ADDRESS); }

static u64 *new_table(struct vtd_tables *t)
{
	u64 *table = get_zeroed_page();

	t->nr += !!table;
	return table;
}

int vtd_tables_init(struct vtd_tables *t, u32 levels, u32 largest)
{
	*t = (struct vtd_tables){ .levels = levels, .largest = largest };
	t->top = new_table(t);
	return t->top ? 0 : -ENOMEM;
}

static void free_tables(struct vtd_tables *t, u64 *table, u32 level)
{
	if (level > 1)
		for (u64 i = 0; i < VTD_ENTRIES; i++)
			if (table[i] && !is_page(table[i], level))
				free_tables(t, table_of(table[i]), level - 1);
	free_page(table);
	t->nr--;
}

void vtd_tables_free(struct vtd_tables *t)
{
	free_tables(t, t->top, t->levels);
	t->top = NULL;
}

u64 vtd_tables_lookup(const struct vtd_tables *t, u64 iova, u32 *level)
{
	const u64 *table = t->top;

	for (*level = t->levels;; --*level) {
		u64 entry = table[INDEX(iova, *level)];

		if (!entry || is_page(entry, *level))
			return entry;
		table = table_of(entry);
	}
}

u64 vtd_tables_run(const struct vtd_tables *t, u64 iova, u64 end, u64 *phys, u64 prot)
{
	u32 level = t->levels;
	const u64 *table = t->top;
	u64 entry, span, want, run;

	while (entry = table[INDEX(iova, level)], entry && !is_page(entry, level)) {
		table = table_of(entry);
		level--;
	}
	span = SPAN(level);
	want = (entry & VTD_ADDRESS) | prot | (level > 1 ? VTD_PAGE : 0);
	if (!entry || entry != want)
		return 0;
	*phys = (entry & VTD_ADDRESS) + iova % span;
	run = span - iova % span;
	for (u64 i = INDEX(iova, level) + 1; i < VTD_ENTRIES && run < end - iova; i++) {
		want += span;
		if (table[i] != want)
			break;
		run += span;
	}
	return min(run, end - iova);
}

static bool is_empty(const struct vtd_tables *t, u64 iova, u64 end)
{
	while (iova < end) {
		u32 level;

		if (vtd_tables_lookup(t, iova, &level))
			return false;
		iova = ALIGN_DOWN(iova, SPAN(level)) + SPAN(level);
	}
	return true;
}

/* The entry of this level for iova, tables above it are made; NULL without memory. Nothing is mapped on the way. */
static u64 *make_entry(struct vtd_tables *t, u64 iova, u32 level)
{
	u64 *table = t->top;

	for (u32 l = t->levels; l > level; l--) {
		u64 *entry = &table[INDEX(iova, l)];

		if (!*entry) {
			u64 *below = new_table(t);

			if (!below)
				return NULL;
			WRITE_ONCE(*entry, virt_to_phys(below) | VTD_READ | VTD_WRITE);
		}
		table = table_of(*entry);
	}
	return &table[INDEX(iova, level)];
}

int vtd_tables_map(struct vtd_tables *t, u64 iova, phys_addr_t phys, u64 size, u64 prot, u64 *done)
{
	*done = 0;
	if (!is_empty(t, iova, iova + size))
		return -EEXIST;
	while (*done < size) {
		u64 at = iova + *done, to = phys + *done, left = size - *done, *entry;
		u32 level = t->largest;

		while (level > 1 && ((at | to) & (SPAN(level) - 1) || left < SPAN(level)))
			level--;
		/* An empty table is where the large page would go: hardware may know it, so it is used. */
		do {
			entry = make_entry(t, at, level);
			if (!entry)
				return -ENOMEM;
		} while (*entry && level-- > 1);
		/* Its neighbours in the same table are cheap. */
		do {
			WRITE_ONCE(*entry, to | prot | (level > 1 ? VTD_PAGE : 0));
			entry++;
			at += SPAN(level);
			to += SPAN(level);
			*done += SPAN(level);
			left -= SPAN(level);
		} while (left >= SPAN(level) && INDEX(at, level) && !*entry &&
			 (level == t->largest || (at | to) & (SPAN(level + 1) - 1)));
	}
	return 0;
}

/* ---- unmapping ---- */

/* Tables that are cut off, until hardware has forgotten them. */
struct cut {
	struct vtd_tables *t;
	void (*flush)(void *ctx);
	void *ctx;
	u32 nr;
	bool dirty;			/* hardware may know something that is gone */
	struct { u64 *table; u32 level; } tables[16];
	u64 bytes;
};

static void forget(struct cut *c)
{
	if (c->dirty)
		c->flush(c->ctx);
	c->dirty = false;
	while (c->nr) {
		c->nr--;
		free_tables(c->t, c->tables[c->nr].table, c->tables[c->nr].level);
	}
}

static u64 mapped_below(const u64 *table, u32 level)
{
	u64 bytes = 0;

	for (u64 i = 0; i < VTD_ENTRIES; i++)
		if (table[i])
			bytes += is_page(table[i], level) ? SPAN(level) : mapped_below(table_of(table[i]), level - 1);
	return bytes;
}

static void cut_table(struct cut *c, u64 *entry, u32 level)
{
	if (c->nr == ARRAY_SIZE(c->tables))
		forget(c);
	c->bytes += mapped_below(table_of(*entry), level - 1);
	c->tables[c->nr].table = table_of(*entry);
	c->tables[c->nr++].level = level - 1;
	c->dirty = true;
	WRITE_ONCE(*entry, 0);
}

/* A page becomes a table of pages that map the same. */
static int split(struct vtd_tables *t, u64 *entry, u32 level)
{
	u64 *below = new_table(t), keep = level > 2 ? *entry : *entry & ~VTD_PAGE;

	if (!below)
		return -ENOMEM;
	for (u64 i = 0; i < VTD_ENTRIES; i++)
		below[i] = keep + i * SPAN(level - 1);
	WRITE_ONCE(*entry, virt_to_phys(below) | VTD_READ | VTD_WRITE);
	return 0;
}

static bool has_nothing(const u64 *table)
{
	for (u64 i = 0; i < VTD_ENTRIES; i++)
		if (table[i])
			return false;
	return true;
}

/* [start, end) lies in what this table covers. */
static int unmap_level(struct cut *c, u64 *table, u32 level, u64 start, u64 end)
{
	while (start < end) {
		u64 *entry = &table[INDEX(start, level)], first = ALIGN_DOWN(start, SPAN(level));
		u64 next = min(first + SPAN(level), end);
		bool whole = start == first && next == first + SPAN(level);
		int err;

		if (*entry && whole && is_page(*entry, level)) {
			WRITE_ONCE(*entry, 0);
			c->dirty = true;
			c->bytes += SPAN(level);
		} else if (*entry && whole) {
			cut_table(c, entry, level);
		} else if (*entry) {
			if (is_page(*entry, level)) {
				err = split(c->t, entry, level);
				if (err)
					return err;
				c->dirty = true;
			}
			err = unmap_level(c, table_of(*entry), level - 1, start, next);
			if (err)
				return err;
			if (has_nothing(table_of(*entry)))
				cut_table(c, entry, level);
		}
		start = next;
	}
	return 0;
}

int vtd_tables_unmap(struct vtd_tables *t, u64 iova, u64 size, void (*flush)(void *ctx), void *ctx, u64 *done)
{
	struct cut c = { .t = t, .flush = flush, .ctx = ctx };
	int err = unmap_level(&c, t->top, t->levels, iova, iova + size);

	forget(&c);
	*done = c.bytes;
	return err;
}

/* ---- all tables ---- */

static int each(u64 *table, u32 level, int (*fn)(u64 *table, void *ctx), void *ctx)
{
	int err = fn(table, ctx);

	if (err || level == 1)
		return err;
	for (const u64 *e = table, *end = table + VTD_ENTRIES; e < end; e++) {
		if (!*e || *e & VTD_PAGE)
			continue;
		err = each(table_of(*e), level - 1, fn, ctx);
		if (err)
			return err;
	}
	return 0;
}

int vtd_tables_each(const struct vtd_tables *t, int (*fn)(u64 *table, void *ctx), void *ctx)
{
	return each(t->top, t->levels, fn, ctx);
}
