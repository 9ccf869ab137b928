/* drivers/vtd_tables.c, vtd_claim.c and dmar.c as a library of the host. Physical memory is an arena of pages at
 * PAGE_OFFSET. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "types.h"
#include "page.h"

#define ARENA_PAGES 4096

static u8 used[ARENA_PAGES];
static u32 nr_used, limit = ARENA_PAGES;
/* A table that is freed while hardware can still reach it is what must never be. */
static u32 freed_before_flush, dirty;

phys_addr_t virt_to_phys(const volatile void *p) { return (u64)p - PAGE_OFFSET; }

void *get_free_pages(gfp_t gfp, unsigned int order)
{
	(void)gfp;
	(void)order;
	for (u32 i = 1; i < ARENA_PAGES && nr_used < limit; i++)
		if (!used[i]) {
			used[i] = 1;
			nr_used++;
			return memset(phys_to_virt(i * PAGE_SIZE), 0, PAGE_SIZE);
		}
	return NULL;
}

void free_pages(void *p, unsigned int order)
{
	u64 i = virt_to_phys(p) / PAGE_SIZE;

	(void)order;
	if (!used[i])
		abort();
	used[i] = 0;
	nr_used--;
	freed_before_flush += dirty;
	memset(p, 0xdd, PAGE_SIZE);
}

#include "../../kernels/drivers/vtd_tables.c"
#include "../../kernels/drivers/vtd_claim.c"
#include "../../kernels/drivers/dmar.c"
#undef ID_MAX
#include "../../luo/guest/luo_iommufd_check.c"

static struct vtd_tables t;

static void flush(void *ctx)
{
	(void)ctx;
	dirty = 0;
}

int host_reset(u32 levels, u32 largest)
{
	static void *arena;

	if (!arena)
		arena = mmap((void *)PAGE_OFFSET, ARENA_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	memset(used, 0, sizeof(used));
	nr_used = freed_before_flush = dirty = 0;
	limit = ARENA_PAGES;
	return vtd_tables_init(&t, levels, largest);
}

void host_limit(u32 pages) { limit = pages; }
u32 host_used(void) { return nr_used; }
u64 host_counted(void) { return t.nr; }
u64 host_top(void) { return virt_to_phys(t.top); }
u8 *host_arena(void) { return phys_to_virt(0); }

int host_map(u64 iova, u64 phys, u64 size, u64 prot, u64 *done)
{
	return vtd_tables_map(&t, iova, phys, size, prot, done);
}

int host_unmap(u64 iova, u64 size, u64 *done)
{
	int err;

	dirty = 1;
	err = vtd_tables_unmap(&t, iova, size, flush, NULL, done);
	return freed_before_flush ? -1000 : err;
}

u64 host_lookup(u64 iova, u32 *level) { return vtd_tables_lookup(&t, iova, level); }
u64 host_run(u64 iova, u64 end, u64 *phys, u64 prot) { return vtd_tables_run(&t, iova, end, phys, prot); }

void host_free(void)
{
	dirty = 0;
	vtd_tables_free(&t);
}

static int count(u64 *table, void *ctx)
{
	(void)table;
	++*(u32 *)ctx;
	return 0;
}

u32 host_each(void)
{
	u32 n = 0;

	vtd_tables_each(&t, count, &n);
	return n;
}

/* ---- claims ---- */

static u8 seen[ARENA_PAGES];
static struct { u64 iova, phys, size, prot; } pages_seen[1 << 16];
static u32 nr_pages_seen;

static int claim_table(struct vtd_claim *c, phys_addr_t phys, const u64 **table)
{
	(void)c;
	if (phys % PAGE_SIZE || phys / PAGE_SIZE >= ARENA_PAGES || !used[phys / PAGE_SIZE] || seen[phys / PAGE_SIZE]++)
		return -EINVAL;
	*table = phys_to_virt(phys);
	return 0;
}

static int claim_pages(struct vtd_claim *c, u64 iova, const u64 *entries, u64 nr, u64 size)
{
	(void)c;
	for (u64 i = 0; i < nr; i++, iova += size) {
		if (nr_pages_seen == ARRAY_SIZE(pages_seen))
			return -ENOMEM;
		pages_seen[nr_pages_seen].iova = iova;
		pages_seen[nr_pages_seen].phys = entries[i] & VTD_ADDRESS;
		pages_seen[nr_pages_seen].size = size;
		pages_seen[nr_pages_seen++].prot = entries[i] & 3;
	}
	return 0;
}

int host_claim(u64 *nr, u64 *bytes)
{
	struct vtd_claim c = { .levels = t.levels, .largest = t.largest, .table = claim_table, .pages = claim_pages };
	int err;

	memset(seen, 0, sizeof(seen));
	nr_pages_seen = 0;
	err = vtd_claim_walk(&c, virt_to_phys(t.top));
	*nr = c.nr;
	*bytes = c.bytes;
	return err;
}

u32 host_pages(u64 **out)
{
	*out = (u64 *)pages_seen;
	return nr_pages_seen;
}

bool host_dmar(const u8 *table, u64 size, struct dmar *d)
{
	/* a copy that ends where the table does, so that a read behind it is found by the allocator's guard */
	u8 *copy = malloc(size ? size : 1);
	bool ok;

	memcpy(copy, table, size);
	ok = dmar_parse(d, copy, size);
	free(copy);
	return ok;
}

/* The record ends where memory does. */
const char *host_check(const u8 *data, u64 size, u64 room)
{
	static u8 *area;
	const u64 pages = 4;
	u8 *at;

	if (!area) {
		area = mmap(NULL, (pages + 1) * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		mprotect(area + pages * PAGE_SIZE, PAGE_SIZE, PROT_NONE);
	}
	at = area + pages * PAGE_SIZE - room;
	memset(at, 0, room);
	memcpy(at, data, min(size, room));
	return iommufd_luemu_check((const struct iommufd_luemu_ser *)at, room);
}
