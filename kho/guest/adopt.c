/* Adopting what the previous kernel preserved (mm_core_init, right before memory goes to the page allocator).
 *
 * The tree is a claim from beginning to end, so it is first walked to verify and count, then again to collect runs
 * of blocks, and only when all of it makes sense anything is reserved:
 *
 *	tree -> runs, by descending order, ascending inside an order
 *	     -> ranges, by address, neighbours joined, to be found disjoint
 *	     -> the head of every block is stamped with its order
 *	     -> memblock, in one pass
 *
 * Each step is linear in the number of runs or blocks. Stamps need memory for the array of struct pages, and memblock
 * allocates fast only as long as it has few regions: so they come first.
 *
 * A tree with anything wrong in it is not used at all: the handover is forgotten, and its consumers find nothing, which
 * is better than that some find half.
 */
#define pr_fmt(fmt) "KHO: " fmt
#include "kho_internal.h"
#include "errno.h"
#include "memblock.h"
#include "printk.h"
#include "sdt.h"

#define NR_ORDERS	(KHO_ORDER_0_LOG2 + 1)

struct adoption {
	struct kho_radix_walk walk;
	struct memblock_region *runs, *ranges;	/* flags of a run: its order */
	u64 nr_runs, nr_ranges;
	const struct memblock_region *good;	/* RAM outside scratch, where the last run was; NULL */
	u64 *nodes;			/* addresses of the tree's pages, in the order of the walk */
	u64 nr_nodes;
};

static struct adoption *adoption_of(struct kho_radix_walk *walk)
{
	return container_of(walk, struct adoption, walk);
}

static const u64 *verify_node(struct kho_radix_walk *walk, claim_t phys, unsigned int level)
{
	struct adoption *a = adoption_of(walk);

	if (!phys.value || !claim_is_outside(phys, PAGE_SIZE, PAGE_SIZE)) {
		pr_err("page 0x%llx of the tree, level %u, is not a page of RAM outside scratch\n",
		       (unsigned long long)phys.value, level);
		return NULL;
	}
	if (a->nodes)
		a->nodes[a->nr_nodes] = phys.value;
	a->nr_nodes++;
	return phys_to_virt(phys.value);
}

/* Runs come by address, so most are where the last one was. */
static bool run_ok(struct adoption *a, phys_addr_t base, u64 size, u64 align)
{
	const struct memblock_region *r = a->good;

	if (r && base >= r->base && base - r->base < r->size && size <= r->size - (base - r->base))
		return true;
	if (!claim_is_outside(claim(base), size, align))
		return false;
	for (r = memblock.memory.regions; base - r->base >= r->size; r++)
		;
	a->good = r->flags & MEMBLOCK_KHO_SCRATCH ? NULL : r;
	return true;
}

static int verify_run(struct kho_radix_walk *walk, u64 pfn, unsigned int order, u64 nr)
{
	struct adoption *a = adoption_of(walk);

	if (pfn >= walk->end_pfn || nr > (walk->end_pfn - pfn) >> order ||
	    !run_ok(a, PFN_PHYS(pfn), PAGE_SIZE * nr << order, PAGE_SIZE << order)) {
		pr_err("preserved memory 0x%llx, %llu blocks of order %u, is not RAM outside scratch\n",
		       (unsigned long long)PFN_PHYS(pfn), (unsigned long long)nr, order);
		return -EINVAL;
	}
	a->nr_runs++;
	return 0;
}

static int collect_run(struct kho_radix_walk *walk, u64 pfn, unsigned int order, u64 nr)
{
	struct adoption *a = adoption_of(walk);

	a->runs[a->nr_runs++] = (struct memblock_region){
		.base = PFN_PHYS(pfn), .size = PAGE_SIZE * nr << order, .flags = order,
	};
	return 0;
}

/* Every page of the tree must be there once. Heap sort: there are few, but how many is the tree's claim. */
static int verify_nodes_distinct(struct adoption *a)
{
	u64 *v = a->nodes, n = a->nr_nodes;

	for (u64 start = n / 2, end = n; end > 1;) {
		u64 value, hole, child;

		if (start) {
			value = v[--start];
		} else {
			value = v[--end];
			v[end] = v[0];
		}
		for (hole = start; (child = 2 * hole + 1) < end; hole = child) {
			if (child + 1 < end && v[child + 1] > v[child])
				child++;
			if (v[child] <= value)
				break;
			v[hole] = v[child];
		}
		v[hole] = value;
	}
	for (u64 i = 1; i < n; i++)
		if (v[i] == v[i - 1]) {
			pr_err("page 0x%llx is in the tree more than once\n", (unsigned long long)v[i]);
			return -EINVAL;
		}
	return 0;
}

/* Merges the ascending runs of all orders into one ascending list; neighbours become one range. */
static int merge_runs(struct adoption *a)
{
	u64 head[NR_ORDERS], end[NR_ORDERS], nr_lists = 0;

	for (u64 i = 0; i < a->nr_runs; i++)
		if (!i || a->runs[i].flags != a->runs[i - 1].flags) {
			head[nr_lists] = i;
			if (nr_lists)
				end[nr_lists - 1] = i;
			end[nr_lists++] = a->nr_runs;
		}
	while (nr_lists) {
		struct memblock_region *last = a->nr_ranges ? &a->ranges[a->nr_ranges - 1] : NULL;
		const struct memblock_region *run;
		u64 least = 0;

		for (u64 i = 1; i < nr_lists; i++)
			if (a->runs[head[i]].base < a->runs[head[least]].base)
				least = i;
		run = &a->runs[head[least]++];
		if (head[least] == end[least]) {
			nr_lists--;
			head[least] = head[nr_lists];
			end[least] = end[nr_lists];
		}
		if (last && run->base < last->base + last->size) {
			pr_err("preserved memory 0x%llx is in more than one block\n", (unsigned long long)run->base);
			return -EINVAL;
		}
		if (last && run->base == last->base + last->size)
			last->size += run->size;
		else
			a->ranges[a->nr_ranges++] = (struct memblock_region){ run->base, run->size, 0 };
	}
	return 0;
}

static void set_private(const struct adoption *a, bool stamp)
{
	for (u64 i = 0; i < a->nr_runs; i++) {
		unsigned int order = a->runs[i].flags;
		u64 pfn = PFN_DOWN(a->runs[i].base), end = pfn + PFN_DOWN(a->runs[i].size);
		u64 value = stamp ? kho_stamp(order) : 0;

		for (; pfn < end; pfn += 1UL << order)
			pfn_to_page(pfn)->private = value;
	}
}

/* Not zeroed; NULL if scratch is full. */
static void *alloc_array(u64 nr, u64 element_size)
{
	phys_addr_t phys = memblock_phys_alloc_range(max(nr, 1UL) * element_size, PAGE_SIZE, 0, 0);

	return phys ? phys_to_virt(phys) : NULL;
}

static void free_array(void *array, u64 nr, u64 element_size)
{
	if (array)
		memblock_phys_free(virt_to_phys(array), max(nr, 1UL) * element_size);
}

static int kho_adopt(claim_t root)
{
	struct adoption a = {
		.walk = { .run = verify_run, .node = verify_node, .end_pfn = PFN_DOWN(memblock_end_of_dram()) },
	};
	u64 nr_runs, nr_nodes;
	int err;

	err = kho_radix_walk(&a.walk, root);
	if (err)
		return err;
	nr_runs = a.nr_runs;
	nr_nodes = a.nr_nodes;
	a.runs = alloc_array(nr_runs, sizeof(*a.runs));
	a.ranges = alloc_array(nr_runs, sizeof(*a.ranges));
	a.nodes = alloc_array(nr_nodes, sizeof(*a.nodes));
	err = -ENOMEM;
	if (!a.runs || !a.ranges || !a.nodes) {
		pr_err("scratch has no room to adopt %llu runs of preserved blocks\n",
		       (unsigned long long)nr_runs);
		goto free;
	}
	a.nr_runs = a.nr_nodes = 0;
	a.walk.run = collect_run;
	kho_radix_walk(&a.walk, root);
	err = verify_nodes_distinct(&a);
	if (!err)
		err = merge_runs(&a);
	if (err)
		goto free;
	set_private(&a, true);
	err = memblock_reserve_noinit_ranges(a.ranges, a.nr_ranges);
	if (err)
		set_private(&a, false);
	for (u64 i = 0; !err && i < a.nr_ranges; i++)
		kho_count_adopted(PFN_DOWN(a.ranges[i].size));
free:
	free_array(a.nodes, nr_nodes, sizeof(*a.nodes));
	free_array(a.ranges, nr_runs, sizeof(*a.ranges));
	free_array(a.runs, nr_runs, sizeof(*a.runs));
	return err;
}

/* What this kernel goes on reading stays reserved even if the tree does not have it. */
static void keep(claim_t c, u64 size)
{
	u64 start = ALIGN_DOWN(c.value, PAGE_SIZE), end = PAGE_ALIGN(c.value + size);

	if (size && start <= c.value && claim_is_outside(claim(start), end - start, PAGE_SIZE))
		memblock_reserve(start, end - start);
}

static void keep_blobs(void)
{
	const void *fdt = kho_in_fdt();
	u64 phys, size;

	keep(claim(kho_in.fdt), fdt_totalsize(fdt));
	for (int node = fdt_first_subnode(fdt, FDT_ROOT); node >= 0; node = fdt_next_subnode(fdt, node))
		if (!fdt_getprop_u64(fdt, node, KHO_SUB_TREE_PROP_NAME, &phys) &&
		    !fdt_getprop_u64(fdt, node, KHO_SUB_TREE_SIZE_PROP_NAME, &size))
			keep(claim(phys), size);
}

static void retrieve_memory(void)
{
	u64 root = 0;
	int err = fdt_getprop_u64(kho_in_fdt(), FDT_ROOT, KHO_FDT_MEMORY_MAP_PROP_NAME, &root);

	if (err)
		err = -ENOENT;
	else
		err = root ? kho_adopt(claim(root)) : -EINVAL;
	if (err) {
		pr_warn("preserved memory cannot be adopted (%d), disabling KHO revival\n", err);
		kho_in.fdt = 0;
		return;
	}
	keep_blobs();
}

void kho_memory_init(void)
{
	PROBE(kho, memory_init);
	if (kho_in.scratch) {
		retrieve_memory();
		reserve_mem_allocate_late();
	} else if (kho_enable) {
		kho_scratch_reserve();
	}
}
