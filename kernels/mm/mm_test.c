/* The memory management under test, in the running kernel. What must end in a BUG is tested on the host
 * (tests/guest/test_mm.py), because a kernel does not come back from that.
 *
 * Everything that is taken is given back, and at the end of each part the free pages are those of its beginning, but
 * for the pages that the array of struct pages took meanwhile.
 */
#include "internal.h"
#include "cpu.h"
#include "printk.h"
#include "random.h"
#include "selftest.h"
#include "string.h"

#define SLOTS		256
#define BUDDY_STEPS	4000
#define SLAB_STEPS	6000
#define BULK_PAGES	20000
#define EXHAUST_MAX	(1 * GIB >> PAGE_SHIFT)	/* larger machines are not emptied */

struct slot {
	u8 *p;
	u64 size;
	u64 stamp;
	u32 order;
};
static struct slot slots[SLOTS];

static u64 available(void)
{
	return nr_free_pages() + vmemmap_pages();
}

/* ---- contents: a stamp in the first and last words of what was taken ---- */

static void stamp(struct slot *s)
{
	s->stamp = get_random_u64();
	put_unaligned_u64(s->stamp, s->p);
	put_unaligned_u64(~s->stamp, s->p + s->size - 8);
}

static bool stamped(const struct slot *s)
{
	if (get_unaligned_u64(s->p + s->size - 8) != ~s->stamp)
		return false;
	return s->size < 16 || get_unaligned_u64(s->p) == s->stamp;
}

static bool filled(const u8 *p, u64 size, u8 value)
{
	/* All bytes are equal to their neighbours, and the first is the value. */
	return p[0] == value && !memcmp(p, p + 1, size - 1);
}

/* ---- page allocator ---- */

static void test_orders(void)
{
	u64 before = available();

	for (unsigned int order = 0; order <= MAX_PAGE_ORDER; order++) {
		struct page *page = alloc_pages(__GFP_ZERO, order);
		u64 size = PAGE_SIZE << order;

		if (!CHECK(page))
			continue;
		CHECK(IS_ALIGNED(page_to_pfn(page), 1UL << order));
		CHECK(page->refcount == 1 && page->flags == 0);
		CHECK(get_pageblock_migratetype(page_to_pfn(page)) != MIGRATE_CMA);
		CHECK(filled(page_address(page), PAGE_SIZE, 0));
		CHECK(filled((u8 *)page_address(page) + size - PAGE_SIZE, PAGE_SIZE, 0));
		CHECK(available() == before - (1UL << order));
		get_page(page);
		__free_pages(page, order);
		CHECK(available() == before - (1UL << order));	/* one reference is left */
		__free_pages(page, order);
		CHECK(available() == before);
	}
	CHECK(!alloc_pages(__GFP_NOWARN, MAX_PAGE_ORDER + 1));
	check_free_lists();
}

static void test_split(void)
{
	u64 before = available();
	struct page *page = alloc_pages(GFP_KERNEL, 5);

	if (!CHECK(page))
		return;
	split_page(page, 5);
	for (u64 i = 0; i < 32; i += 2)
		put_page(page + i);
	check_free_lists();
	CHECK(available() == before - 16);
	for (u64 i = 1; i < 32; i += 2)
		put_page(page + i);
	CHECK(available() == before);
	check_free_lists();
}

static void test_folios(void)
{
	u64 before = available();

	for (unsigned int order = 0; order <= MAX_PAGE_ORDER; order++) {
		struct folio *folio = folio_alloc(GFP_KERNEL, order);
		struct page *last;

		if (!CHECK(folio))
			continue;
		last = &folio->page + (1UL << order) - 1;
		CHECK(folio_order(folio) == order);
		CHECK(page_folio(last) == folio);
		CHECK(order == 0 || (last->flags == PG_TAIL && last->refcount == 0));
		get_page(last);
		CHECK(folio->page.refcount == 2);
		folio_put(folio);
		put_page(last);
		CHECK(last->flags == (last->flags & PG_BUDDY) && (order == 0 || last->private == 0));
		CHECK(available() == before);
	}
	check_free_lists();
}

static void release(struct slot *s)
{
	CHECK(stamped(s));
	free_pages(s->p, s->order);
	s->p = NULL;
}

static void test_random_pages(void)
{
	u64 before = available(), taken = 0, peak = 0;

	for (u32 step = 0; step < BUDDY_STEPS; step++) {
		struct slot *s = &slots[get_random_below(SLOTS)];

		if (s->p) {
			taken -= s->size >> PAGE_SHIFT;
			release(s);
		} else {
			/* Small ones mostly: order n in one of 2^(n+1) cases. */
			s->order = min(ctz64(get_random_u64()), 7U);
			s->size = PAGE_SIZE << s->order;
			s->p = get_free_pages(get_random_below(2) ? GFP_KERNEL : GFP_MOVABLE, s->order);
			if (!CHECK(s->p))
				continue;
			stamp(s);
			taken += s->size >> PAGE_SHIFT;
			peak = max(peak, taken);
		}
		if (step % 256 == 0)
			check_free_lists();
		CHECK(available() == before - taken);
	}
	for (u32 i = 0; i < SLOTS; i++)
		if (slots[i].p)
			release(&slots[i]);
	check_free_lists();
	CHECK(available() == before);
	pr_info("mm: %u random steps, up to %llu pages taken\n", BUDDY_STEPS, (unsigned long long)peak);
}

/* Two pageblocks become scratch for a while. */
static void test_cma(void)
{
	struct page *block = alloc_pages(GFP_KERNEL, MAX_PAGE_ORDER), *page;
	u64 pfn = block ? page_to_pfn(block) : 0, cma = nr_free_cma_pages();
	bool junk = mm_junk;
	LIST_HEAD(others);

	if (!CHECK(block))
		return;
	for (u64 p = pfn; p < pfn + (1UL << MAX_PAGE_ORDER); p += 1UL << PAGEBLOCK_ORDER)
		set_pageblock_migratetype(p, MIGRATE_CMA);
	__free_pages(block, MAX_PAGE_ORDER);
	CHECK(nr_free_cma_pages() == cma + (1UL << MAX_PAGE_ORDER));
	check_free_lists();
	for (unsigned int order = 0; order <= MAX_PAGE_ORDER; order++) {
		page = alloc_pages(GFP_KERNEL | __GFP_NOWARN, order);
		if (!page)
			continue;
		CHECK(get_pageblock_migratetype(page_to_pfn(page)) != MIGRATE_CMA);
		__free_pages(page, order);
	}
	CHECK(nr_free_cma_pages() == cma + (1UL << MAX_PAGE_ORDER));
	mm_junk = false;
	/* The movable come here at the latest when nothing else is left; as it was found, it is taken out again. */
	while (nr_managed_pages() <= EXHAUST_MAX) {
		page = alloc_pages(GFP_MOVABLE | __GFP_NOWARN, MAX_PAGE_ORDER);
		if (!CHECK(page) || page == block)
			break;
		list_add(&page->lru, &others);
	}
	if (nr_managed_pages() <= EXHAUST_MAX) {
		CHECK(nr_free_cma_pages() <= cma);
		CHECK(page == block);
	}
	while (!list_empty(&others)) {
		struct page *other = list_first_entry(&others, struct page, lru);

		list_del(&other->lru);
		__free_pages(other, MAX_PAGE_ORDER);
	}
	mm_junk = junk;
	if (page != block)
		return;		/* it stays scratch: harmless */
	for (u64 p = pfn; p < pfn + (1UL << MAX_PAGE_ORDER); p += 1UL << PAGEBLOCK_ORDER)
		set_pageblock_migratetype(p, MIGRATE_UNMOVABLE);
	__free_pages(block, MAX_PAGE_ORDER);
	CHECK(nr_free_cma_pages() == cma);
	check_free_lists();
}

/* Takes all there is, largest first. */
static u64 take_all(struct list_head *all, gfp_t gfp)
{
	u64 pages = 0;

	for (unsigned int order = MAX_PAGE_ORDER + 1; order--; ) {
		struct page *page;

		while ((page = alloc_pages(gfp | __GFP_NOWARN, order))) {
			CHECK(gfp & __GFP_MOVABLE || get_pageblock_migratetype(page_to_pfn(page)) != MIGRATE_CMA);
			list_add(&page->lru, all);
			pages += 1UL << order;
		}
	}
	return pages;
}

static void test_exhaustion(void)
{
	u64 before, unmovable, movable;
	bool junk = mm_junk;
	LIST_HEAD(all);

	if (nr_managed_pages() > EXHAUST_MAX)
		return;
	mm_junk = false;
	before = available();
	unmovable = take_all(&all, GFP_KERNEL);
	CHECK(nr_free_pages() == nr_free_cma_pages());
	movable = take_all(&all, GFP_MOVABLE);
	CHECK(nr_free_pages() == 0);
	CHECK(!alloc_page(GFP_KERNEL | __GFP_NOWARN));
	CHECK(!kmalloc(PAGE_SIZE, GFP_KERNEL | __GFP_NOWARN));
	check_free_lists();
	while (!list_empty(&all)) {
		struct page *page = list_first_entry(&all, struct page, lru);

		list_del(&page->lru);
		__free_pages(page, page->order);
	}
	mm_junk = junk;
	CHECK(unmovable + movable <= before);
	CHECK(available() == before);
	check_free_lists();
}

/* ---- slab ---- */

static void test_kmalloc_sizes(void)
{
	static const u16 odd[] = { 1, 7, 8, 9, 16, 17, 31, 33, 100, 129, 500, 513, 1025, 2047 };

	for (u32 shift = 0; shift <= 22; shift++) {
		u64 size = 1UL << shift;
		u8 *p = kmalloc(size, GFP_KERNEL), *z = kzalloc(size, GFP_KERNEL);

		if (CHECK(p && z && p != z)) {
			CHECK(IS_ALIGNED((u64)p, min(size, PAGE_SIZE)) && IS_ALIGNED((u64)z, min(size, PAGE_SIZE)));
			CHECK(!mm_junk || filled(p, min(size, PAGE_SIZE), JUNK_ALLOCATED));
			CHECK(filled(z, min(size, PAGE_SIZE), 0));
			memset(p, 0x55, size);
			CHECK(filled(z, min(size, PAGE_SIZE), 0));
		}
		kfree(p);
		kfree(z);
		CHECK(!p || !mm_junk || filled(p, min(size, PAGE_SIZE), JUNK_FREED));
	}
	for (u32 i = 0; i < ARRAY_SIZE(odd); i++) {
		u8 *p = kmalloc(odd[i], GFP_MOVABLE);

		if (CHECK(p))
			CHECK(get_pageblock_migratetype(page_to_pfn(virt_to_page(p))) != MIGRATE_CMA);
		kfree(p);
	}
	CHECK(!kmalloc((PAGE_SIZE << MAX_PAGE_ORDER) + 1, GFP_KERNEL | __GFP_NOWARN));
	kfree(NULL);
}

static void test_random_objects(void)
{
	for (u32 step = 0; step < SLAB_STEPS; step++) {
		struct slot *s = &slots[get_random_below(SLOTS)];

		if (s->p) {
			CHECK(stamped(s));
			kfree(s->p);
			s->p = NULL;
		} else {
			s->size = 8 + get_random_below(1UL << (4 + get_random_below(9)));
			s->p = kmalloc(s->size, GFP_KERNEL);
			if (CHECK(s->p))
				stamp(s);
		}
	}
	for (u32 i = 0; i < SLOTS; i++) {
		if (!slots[i].p)
			continue;
		CHECK(stamped(&slots[i]));
		kfree(slots[i].p);
		slots[i].p = NULL;
	}
	check_free_lists();
}

static void test_named_cache(void)
{
	static struct kmem_cache *cache;	/* a cache is for ever */
	void *objects[100];
	bool distinct = true;

	if (!cache)
		cache = kmem_cache_create("mm-selftest", 70, 0);
	if (!CHECK(cache))
		return;
	for (u32 i = 0; i < ARRAY_SIZE(objects); i++) {
		objects[i] = kmem_cache_alloc(cache, __GFP_ZERO);
		if (!CHECK(objects[i]))
			return;
		CHECK(IS_ALIGNED((u64)objects[i], 8));
		for (u32 j = 0; j < i; j++) {
			u64 a = (u64)objects[i], b = (u64)objects[j];

			distinct &= a >= b + 72 || b >= a + 72;
		}
	}
	CHECK(distinct);
	for (u32 i = 0; i < ARRAY_SIZE(objects); i++)
		kmem_cache_free(cache, objects[i]);
}

/* ---- vmalloc ---- */

static bool contiguous(const struct vm_struct *area)
{
	u64 block = 1UL << area->page_order;

	for (u64 i = 0; i < area->nr_pages; i++) {
		u64 pfn = page_to_pfn(area->pages[i]), head = page_to_pfn(area->pages[i & ~(block - 1)]);

		if (pfn != head + (i & (block - 1)) || !IS_ALIGNED(head, block))
			return false;
	}
	return true;
}

static void test_vmalloc(void)
{
	static const u64 sizes[] = { 1, PAGE_SIZE, PAGE_SIZE + 1, 10 * PAGE_SIZE, 3 * MIB + 5, 5 * MIB };
	u64 before;
	void *p, *q, *again;

	vfree(vmalloc(8 * MIB));	/* page tables stay */
	before = available();
	for (u32 i = 0; i < 2 * ARRAY_SIZE(sizes); i++) {
		u64 size = sizes[i / 2], mapped;
		bool huge = i % 2;
		u8 *area = huge ? vmalloc_huge(size) : vzalloc(size);
		struct vm_struct *vm = find_vm_area(area);

		if (!CHECK(area) || !CHECK(vm))
			continue;
		mapped = vm->nr_pages << PAGE_SHIFT;
		CHECK(is_vmalloc_addr(area) && vm->addr == (u64)area && vm->size == mapped && mapped >= size);
		CHECK(find_vm_area(area + size - 1) == vm);
		CHECK(find_vm_area(area + mapped) != vm);
		CHECK(vm->flags == (VM_ALLOC | (huge ? VM_ALLOW_HUGE_VMAP : 0)));
		CHECK(vm->page_order == (huge && size >= PMD_SIZE ? PAGEBLOCK_ORDER : 0));
		CHECK(contiguous(vm));
		CHECK(huge || filled(area, min(size, PAGE_SIZE), 0));
		for (u64 at = 0; at < mapped; at += PAGE_SIZE)
			put_unaligned_u64(at ^ i, area + at);
		for (u64 at = 0; at < mapped; at += PAGE_SIZE) {
			if (!CHECK(get_unaligned_u64(page_address(vm->pages[at >> PAGE_SHIFT])) == (at ^ i)))
				break;
		}
		vfree(area);
		CHECK(!find_vm_area(area));
	}
	p = vmalloc(3 * PAGE_SIZE);
	q = vmalloc(PAGE_SIZE);
	CHECK(p && q && (u64)q >= (u64)p + 4 * PAGE_SIZE);	/* a guard page */
	vfree(p);
	again = vmalloc(2 * PAGE_SIZE);
	CHECK(again == p);					/* the gap is used again */
	vfree(again);
	vfree(q);
	CHECK(!vmalloc(0));
	CHECK(!vmalloc(1UL << 50));
	vfree(NULL);
	CHECK(available() == before);
	check_free_lists();
}

/* Pages that were there before, in an order of their own, become an area. */
static void test_vmap(void)
{
	u64 before = available();
	struct page **pages = kmalloc(64 * sizeof(*pages), GFP_KERNEL);
	u64 *p;

	if (!CHECK(pages))
		return;
	for (u64 i = 0; i < 64; i++) {
		pages[63 - i] = alloc_page(__GFP_ZERO);
		if (!CHECK(pages[63 - i]))
			return;
	}
	for (u64 i = 0; i < 64; i++)
		*(u64 *)page_address(pages[i]) = i;
	p = vmap_pages(pages, 64, VM_ALLOC, 0, PMD_SIZE);
	if (!CHECK(p) || !CHECK(IS_ALIGNED((u64)p, PMD_SIZE)))
		return;
	for (u64 i = 0; i < 64; i++)
		CHECK(p[i * PAGE_SIZE / 8] == i);
	vfree(p);
	CHECK(available() >= before - 1);	/* a table may have been made for this address */
	check_free_lists();
}

/* ---- the array of struct pages ---- */

static u64 mapped_pages(void)
{
	return vmemmap_pages() - vmemmap_reserve();
}

static void test_vmemmap(void)
{
	struct page *block = alloc_pages(GFP_KERNEL, MAX_PAGE_ORDER);
	u64 sum = 0, before, flags, mapped;

	before = mapped_pages();
	for (u64 pfn = 0; pfn < max_pfn; pfn += 61)
		sum += pfn_to_page(pfn)->refcount < 0;
	CHECK(sum == 0);
	CHECK(mapped_pages() == before);	/* reading takes nothing */
	if (!CHECK(block))
		return;
	/* Writing takes a page for each page of the array, once, with interrupts off too. */
	flags = local_irq_save();
	for (u64 i = 0; i < 1UL << MAX_PAGE_ORDER; i++)
		WRITE_ONCE(block[i].index, 0);
	mapped = mapped_pages();
	for (u64 i = 0; i < 1UL << MAX_PAGE_ORDER; i++)
		WRITE_ONCE(block[i].index, 0);
	local_irq_restore(flags);
	/* One more for the straddling, and two times two tables where a table's end is in between. */
	CHECK(mapped - before <= (sizeof(struct page) << MAX_PAGE_ORDER >> PAGE_SHIFT) + 1 + 4);
	CHECK(mapped_pages() == mapped);
	__free_pages(block, MAX_PAGE_ORDER);
	/* More than the reserve at a time; what is written is what is there. */
	before = available();
	for (u64 pfn = max_pfn - min(max_pfn, BULK_PAGES); pfn < max_pfn; pfn++)
		WRITE_ONCE(pfn_to_page(pfn)->index, READ_ONCE(pfn_to_page(pfn)->index));
	CHECK(available() == before);
	CHECK(mapped_pages() >= mapped);
	check_free_lists();
	CHECK(!vmemmap_fault(PAGE_OFFSET));
	CHECK(!vmemmap_fault(VMEMMAP_BASE - 1));
}

void mm_selftest(void)
{
	test_orders();
	test_split();
	test_folios();
	test_random_pages();
	test_cma();
	test_exhaustion();
	test_kmalloc_sizes();
	test_random_objects();
	test_named_cache();
	test_vmalloc();
	test_vmap();
	test_vmemmap();
	pr_info("mm: the array of struct pages has %llu pages, its tables and reserve included\n",
		(unsigned long long)vmemmap_pages());
}
