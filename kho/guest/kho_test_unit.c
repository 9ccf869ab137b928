/* KHO's self-test in the kernel (`selftest=on`): errors and edges, on the kernel's own tree and FDT, which are
 * afterwards what they were before.
 *
 * The same sources are tested with many more cases in a process of the host; here it is about what only the kernel has:
 * its page allocator, slab and vmalloc, and where they put things.
 */
#define pr_fmt(fmt) "kho test: " fmt
#include "block.h"
#include "errno.h"
#include "kho_internal.h"
#include "printk.h"
#include "selftest.h"
#include "string.h"

#define CHUNK_SLOTS	511

/* ---- what the tree says ---- */

struct count {
	struct kho_radix_walk walk;
	u64 pfn;			/* looked for */
	unsigned int order;
	bool found;
	u64 blocks, keys_sum;
};

static const u64 *own_node(struct kho_radix_walk *walk, claim_t phys, unsigned int level)
{
	(void)walk;
	(void)level;
	return phys_to_virt(phys.value);
}

static int count_run(struct kho_radix_walk *walk, u64 pfn, unsigned int order, u64 nr)
{
	struct count *c = container_of(walk, struct count, walk);

	c->found |= order == c->order && c->pfn >= pfn && c->pfn < pfn + (nr << order);
	c->blocks += nr;
	c->keys_sum += nr * kho_radix_key(pfn, order) + nr * (nr - 1) / 2;
	return 0;
}

static struct count look_for(u64 pfn, unsigned int order)
{
	struct count c = {
		.walk = { .run = count_run, .node = own_node, .end_pfn = ~0UL }, .pfn = pfn, .order = order,
	};

	kho_radix_walk(&c.walk, claim(virt_to_phys(kho_out.tree.root)));
	return c;
}

static bool in_tree(const void *p, unsigned int order)
{
	return look_for(PFN_DOWN(virt_to_phys(p)), order).found;
}

/* ---- tests ---- */

static void test_alloc(void)
{
	static const struct {
		u64 size;
		unsigned int order;
	} good[] = {
		{ 1, 0 }, { PAGE_SIZE, 0 }, { PAGE_SIZE + 1, 1 }, { PAGE_SIZE << MAX_PAGE_ORDER, MAX_PAGE_ORDER },
	};

	CHECK(PTR_ERR(kho_alloc_preserve(0)) == -EINVAL);
	CHECK(PTR_ERR(kho_alloc_preserve((PAGE_SIZE << MAX_PAGE_ORDER) + 1)) == -E2BIG);
	CHECK(PTR_ERR(kho_alloc_preserve(~0UL)) == -E2BIG);
	for (u64 i = 0; i < ARRAY_SIZE(good); i++) {
		u8 *p = kho_alloc_preserve(good[i].size);

		if (!CHECK(!IS_ERR(p)))
			continue;
		CHECK(in_tree(p, good[i].order));
		CHECK(!p[0] && !memcmp(p, p + 1, (PAGE_SIZE << good[i].order) - 1));
		CHECK(!kho_scratch_overlap(virt_to_phys(p), PAGE_SIZE << good[i].order));
		kho_unpreserve_free(p);
		CHECK(!in_tree(p, good[i].order));
	}
	kho_unpreserve_free(NULL);
}

static void test_pages(void)
{
	struct page *page = alloc_pages(GFP_KERNEL, 4);
	u64 pfn = page ? page_to_pfn(page) : 0, before = look_for(0, 0).blocks;

	if (!CHECK(page))
		return;
	/* 1 to 15: cut into orders 0, 1, 2, 2, 1 and 0 */
	CHECK(!kho_preserve_pages(page + 1, 13));
	CHECK(look_for(pfn + 1, 0).found && look_for(pfn + 2, 1).found && look_for(pfn + 4, 2).found);
	CHECK(look_for(pfn + 8, 2).found && look_for(pfn + 12, 1).found && look_for(0, 0).blocks == before + 5);
	/* marked twice it is there once */
	CHECK(!kho_preserve_pages(page + 1, 13) && look_for(0, 0).blocks == before + 5);
	kho_unpreserve_pages(page + 1, 13);
	CHECK(look_for(0, 0).blocks == before);
	__free_pages(page, 4);
}

static void test_scratch(void)
{
	const struct kho_scratch *area = kho_scratch;
	struct page *page;

	while (area < kho_scratch + kho_scratch_cnt && !area->size)
		area++;
	if (area == kho_scratch + kho_scratch_cnt)
		return;
	page = phys_to_page(area->addr);
	pr_info("two warnings are wanted: scratch cannot be preserved\n");
	CHECK(kho_preserve_pages(page, 1) == -EINVAL);
	CHECK(kho_preserve_pages(page - 1, 2) == -EINVAL);
	CHECK(!look_for(PFN_DOWN(area->addr), 0).found && !look_for(PFN_DOWN(area->addr) - 1, 0).found);
	CHECK(kho_scratch_overlap(area->addr + area->size - 1, 1) && !kho_scratch_overlap(PAGE_SIZE, MIB - PAGE_SIZE));
}

static void test_subtrees(void)
{
	static u8 before[PAGE_SIZE];
	void *blob = kho_alloc_preserve(PAGE_SIZE);
	phys_addr_t phys;
	char name[16];
	int n = 0, err;
	u64 size;

	if (!CHECK(!IS_ERR(blob)))
		return;
	memcpy(before, kho_out.fdt, PAGE_SIZE);
	CHECK(!kho_add_subtree("unit", blob, 100));
	CHECK(kho_add_subtree("unit", blob, 100) == -EEXIST);
	CHECK(fdt_check(kho_out.fdt, PAGE_SIZE) == 0);
	do {
		scnprintf(name, sizeof(name), "unit%04d", n++);
		err = kho_add_subtree(name, blob, 100);
	} while (!err && n < 1000);
	CHECK(err == -ENOMEM && n > 30);
	CHECK(fdt_subnode(kho_out.fdt, FDT_ROOT, name) == -FDT_ERR_NOTFOUND);
	while (n--)
		kho_remove_subtree(blob);
	CHECK(fdt_check(kho_out.fdt, PAGE_SIZE) == 0);
	CHECK(fdt_first_subnode(kho_out.fdt, FDT_ROOT) >= 0);
	kho_remove_subtree(blob);		/* not there any more: silent */
	CHECK(!memcmp(before, kho_out.fdt, fdt_totalsize(before)));
	kho_unpreserve_free(blob);

	CHECK(kho_retrieve_subtree("no such sub-tree", &phys, &size) == -ENOENT);
	CHECK(kho_retrieve_subtree(KHO_METADATA_NODE_NAME, NULL, &size) == (is_kho_boot() ? -EINVAL : -ENOENT));
}

/* An area of exactly as many blocks as a chunk has: an empty chunk follows. */
static void test_vmalloc_edge(u64 nr_pages, u64 nr_chunks)
{
	u64 before = look_for(0, 0).blocks, found = 0;
	struct kho_vmalloc desc = {};
	void *area = vmalloc(nr_pages << PAGE_SHIFT);

	if (!CHECK(area) || !CHECK(!kho_preserve_vmalloc(area, &desc)))
		return;
	CHECK(desc.total_pages == nr_pages && desc.flags == KHO_VMALLOC_ALLOC && !desc.order);
	for (u64 phys = desc.first; phys; phys = ((struct kho_vmalloc_chunk *)phys_to_virt(phys))->next)
		found++;
	CHECK(found == nr_chunks);
	CHECK(look_for(0, 0).blocks == before + nr_pages + nr_chunks);
	kho_unpreserve_vmalloc(&desc);
	CHECK(!desc.first && look_for(0, 0).blocks == before);
	vfree(area);
}

static void test_vmalloc(void)
{
	struct page **pages = kmalloc(sizeof(*pages), GFP_KERNEL);
	struct kho_vmalloc desc = {};
	void *p = vmalloc_huge(PMD_SIZE), *mapped;

	CHECK(kho_preserve_vmalloc(pages, &desc) == -EINVAL);
	CHECK(kho_preserve_vmalloc((void *)VMALLOC_BASE + VMALLOC_SIZE - 1, &desc) == -EINVAL);
	test_vmalloc_edge(1, 1);
	test_vmalloc_edge(CHUNK_SLOTS - 1, 1);
	test_vmalloc_edge(CHUNK_SLOTS, 2);
	test_vmalloc_edge(CHUNK_SLOTS + 1, 2);
	if (CHECK(p)) {
		unsigned int order = find_vm_area(p)->page_order;

		CHECK(!kho_preserve_vmalloc(p, &desc));
		CHECK(desc.order == order && desc.flags == (KHO_VMALLOC_ALLOC | KHO_VMALLOC_HUGE_VMAP));
		CHECK(look_for(page_to_pfn(find_vm_area(p)->pages[0]), order).found);
		kho_unpreserve_vmalloc(&desc);
		vfree(p);
	}
	if (!CHECK(pages))
		return;
	pages[0] = alloc_page(GFP_KERNEL);
	mapped = pages[0] ? vmap_pages(pages, 1, VM_MAP, 0, PAGE_SIZE) : NULL;
	if (!CHECK(mapped))
		return;
	CHECK(kho_preserve_vmalloc(mapped, &desc) == -EOPNOTSUPP);
	__free_pages(pages[0], 0);
	vfree(mapped);			/* and the array */
}

static void test_blocks(void)
{
	u64 before = look_for(0, 0).blocks;
	struct kho_block_set set;
	struct kho_block_it it;
	u64 *entry;
	u64 sum = 0;

	kho_block_set_init(&set, 80);
	CHECK(set.capacity == 51);
	CHECK(!kho_block_set_grow(&set, 103) && set.nr_blocks == 3);
	kho_block_it_init(&it, &set);
	for (u64 i = 1; i <= 103; i++) {
		entry = kho_block_it_reserve_entry(&it);
		if (CHECK(entry))
			*entry = i;
	}
	kho_block_it_init(&it, &set);
	while ((entry = kho_block_it_read_entry(&it)))
		sum += *entry;
	CHECK(sum == 103 * 104 / 2);
	CHECK(look_for(0, 0).blocks == before + 3);
	kho_block_set_shrink(&set, 51);
	CHECK(set.nr_blocks == 1 && look_for(0, 0).blocks == before + 1);
	kho_block_set_destroy(&set);
	CHECK(!set.head && look_for(0, 0).blocks == before);
}

/* What nobody preserved cannot be restored. */
static void test_stamps(void)
{
	struct page *page = alloc_page(GFP_KERNEL);
	unsigned int order;

	if (!CHECK(page))
		return;
	CHECK(!kho_is_preserved(claim(page_to_phys(page)), &order));
	CHECK(!kho_is_preserved(claim(0), &order));
	CHECK(!kho_is_preserved(claim(page_to_phys(page) + 8), &order));
	CHECK(!kho_is_preserved(claim(PFN_PHYS(max_pfn)), &order));
	CHECK(!kho_is_preserved(claim(~0UL << PAGE_SHIFT), &order));
	__free_pages(page, 0);
}

static void test_keys(void)
{
	static const struct {
		u64 phys;
		unsigned int order;
		u64 key;
	} known[] = {
		{ 0x1000, 0, 0x0010000000000001 }, { 0x104a3c000, 0, 0x0010000000104a3c },
		{ 0x10000000000, 0, 0x0010000010000000 }, { 0x140000000, 9, 0x0000080000000a00 },
		{ 0x140000000, 10, 0x0000040000000500 }, { 0x8000000, 15, 0x0000002000000001 }, { 0, 52, 1 },
	};

	for (u64 i = 0; i < ARRAY_SIZE(known); i++) {
		unsigned int order;

		CHECK(kho_radix_key(PFN_DOWN(known[i].phys), known[i].order) == known[i].key);
		CHECK(PFN_PHYS(kho_radix_pfn(known[i].key, &order)) == known[i].phys && order == known[i].order);
	}
}

void kho_selftest(void)
{
	struct count before, after;

	test_keys();
	test_stamps();
	if (!kho_is_enabled()) {
		struct page *page = alloc_page(GFP_KERNEL);

		if (!CHECK(page))
			return;
		CHECK(kho_preserve_pages(page, 1) == -EOPNOTSUPP);
		CHECK(PTR_ERR(kho_alloc_preserve(1)) == -EOPNOTSUPP);
		CHECK(kho_add_subtree("unit", page_address(page), 1) == -EOPNOTSUPP);
		__free_pages(page, 0);
		return;
	}
	before = look_for(0, 0);
	test_alloc();
	test_pages();
	test_scratch();
	test_subtrees();
	test_vmalloc();
	test_blocks();
	after = look_for(0, 0);
	CHECK(after.blocks == before.blocks && after.keys_sum == before.keys_sum);
}
