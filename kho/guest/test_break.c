/* Negative controls inside KHO's own structures (kernel/breakage.c): a node of the tree that the next
 * kernel will not find, and an array of scratch areas that is not the one of this kernel.
 */
#define pr_fmt(fmt) "test_kho: " fmt
#include "test_kho.h"
#include "breakage.h"
#include "kho_internal.h"
#include "printk.h"
#include "string.h"
#include "workload.h"

/* The entry for the nth leaf in the order of a walk; NULL, and *n is how many are left to find. */
static u64 *find_leaf_entry(struct kho_radix_node *node, unsigned int level, u64 *n)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(node->table); i++) {
		u64 *entry = &node->table[i];

		if (!*entry)
			continue;
		if (level > 1)
			entry = find_leaf_entry(phys_to_virt(*entry), level - 1, n);
		else if ((*n)--)
			entry = NULL;
		if (entry)
			return entry;
	}
	return NULL;
}

void test_tree_break(void)
{
	u64 n, left, *entry;
	bool lost = breaks("tree", &n);

	if (!lost && !breaks("treenode", &n))
		return;
	left = n;
	entry = find_leaf_entry(kho_out.tree.root, KHO_TREE_MAX_DEPTH - 1, &left);
	if (!entry) {
		verdict_fail("break: the tree has no leaf %lu", n);
		return;
	}
	if (lost) {
		pr_warn("break: leaf %lu of the tree, the page at 0x%lx, is lost\n", n, *entry);
		*entry = 0;
	} else {
		pr_warn("break: leaf %lu of the tree is not the page at 0x%lx but the root\n", n, *entry);
		*entry = virt_to_phys(kho_out.tree.root);
	}
}

const struct kho_scratch *test_scratch_break(void)
{
	static struct kho_scratch wrong[PAGE_SIZE / sizeof(struct kho_scratch)];
	unsigned int i;
	u64 n;

	if (!breaks("scratch", &n))
		return kho_scratch;
	memcpy(wrong, kho_scratch, kho_scratch_cnt * sizeof(*wrong));
	for (i = 0; i < kho_scratch_cnt && (!wrong[i].size || n--); i++)
		;
	if (i == kho_scratch_cnt) {
		verdict_fail("break=scratch: there are not so many areas that are not empty");
		return kho_scratch;
	}
	wrong[i].addr -= KHO_SCRATCH_ALIGN;
	pr_warn("break: scratch area %u is not at 0x%lx but at 0x%lx\n", i, kho_scratch[i].addr, wrong[i].addr);
	return wrong;
}
