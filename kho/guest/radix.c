/* The radix tree: changing this kernel's own, and walking any. */
#define pr_fmt(fmt) "KHO: " fmt
#include "radix.h"
#include "bitops.h"
#include "errno.h"
#include "page.h"
#include "panic.h"
#include "printk.h"

#define TABLE_ENTRIES	(1U << KHO_TABLE_SIZE_LOG2)
#define LEAF_BITS	(1U << KHO_BITMAP_SIZE_LOG2)
#define LEAF_WORDS	(LEAF_BITS / 64)
static_assert(LEAF_WORDS == TABLE_ENTRIES, "either is a page of words");

/* Bits of the key below the part that a page of this level decodes. */
static unsigned int shift_of(unsigned int level)
{
	return level ? KHO_BITMAP_SIZE_LOG2 + (level - 1) * KHO_TABLE_SIZE_LOG2 : 0;
}

static unsigned int index_of(u64 key, unsigned int level)
{
	return (unsigned int)(key >> shift_of(level)) % (level ? TABLE_ENTRIES : LEAF_BITS);
}

static struct kho_radix_node *node_at(u64 phys)
{
	return phys_to_virt(phys);
}

static u64 *bitmap_of(struct kho_radix_node *leaf)
{
	return ((struct kho_radix_leaf *)leaf)->bitmap;
}

/* Pages of the tree are never freed, so a leaf that was found once stays where it is. */
static bool in_last(const struct kho_radix_tree *tree, u64 key)
{
	return tree->last && key >> KHO_BITMAP_SIZE_LOG2 == tree->last_prefix;
}

static void remember(struct kho_radix_tree *tree, u64 key, struct kho_radix_node *leaf)
{
	tree->last = (struct kho_radix_leaf *)leaf;
	tree->last_prefix = key >> KHO_BITMAP_SIZE_LOG2;
}

int kho_radix_add(struct kho_radix_tree *tree, u64 pfn, unsigned int order)
{
	struct kho_radix_node *node = tree->root, *made[KHO_TREE_MAX_DEPTH];
	u64 key, *first = NULL;
	unsigned int nr_made = 0;
	int err = 0;

	if (WARN_ON_ONCE(!tree->root) || order > KHO_ORDER_0_LOG2)
		return -EINVAL;
	key = kho_radix_key(pfn, order);
	mutex_lock(&tree->lock);
	if (in_last(tree, key)) {
		set_bit(index_of(key, 0), tree->last->bitmap);
		mutex_unlock(&tree->lock);
		return 0;
	}
	for (unsigned int level = KHO_TREE_MAX_DEPTH - 1; level; level--) {
		u64 *slot = &node->table[index_of(key, level)];

		if (!*slot) {
			made[nr_made] = get_zeroed_page();
			if (!made[nr_made]) {
				err = -ENOMEM;
				break;
			}
			if (!nr_made)
				first = slot;
			*slot = virt_to_phys(made[nr_made++]);
		}
		node = node_at(*slot);
	}
	if (err) {
		if (first)
			*first = 0;
		while (nr_made)
			free_page(made[--nr_made]);
	} else {
		set_bit(index_of(key, 0), bitmap_of(node));
		remember(tree, key, node);
	}
	mutex_unlock(&tree->lock);
	return err;
}

void kho_radix_del(struct kho_radix_tree *tree, u64 pfn, unsigned int order)
{
	struct kho_radix_node *node = tree->root;
	u64 key;

	if (WARN_ON_ONCE(!tree->root) || order > KHO_ORDER_0_LOG2)
		return;
	key = kho_radix_key(pfn, order);
	mutex_lock(&tree->lock);
	if (in_last(tree, key)) {
		clear_bit(index_of(key, 0), tree->last->bitmap);
		mutex_unlock(&tree->lock);
		return;
	}
	for (unsigned int level = KHO_TREE_MAX_DEPTH - 1; level && node; level--) {
		u64 phys = node->table[index_of(key, level)];

		node = phys ? node_at(phys) : NULL;
	}
	if (!WARN_ON(!node)) {
		clear_bit(index_of(key, 0), bitmap_of(node));
		remember(tree, key, node);
	}
	mutex_unlock(&tree->lock);
}

/* ---- walking ---- */

/* Whether [prefix << shift, (prefix + 1) << shift) has the key of a block that begins below end_pfn. */
static bool keys_possible(u64 prefix, unsigned int shift, u64 end_pfn)
{
	unsigned int marker, order;

	if (!prefix)
		return true;
	marker = ilog2(prefix) + shift;
	if (marker > KHO_ORDER_0_LOG2)
		return false;
	order = KHO_ORDER_0_LOG2 - marker;
	return ((prefix << shift) ^ 1UL << marker) << order < end_pfn;
}

/* Index of the first word from i on that is not 0; 512 if there is none. Most pages of a tree are nearly empty. */
static unsigned int next_word(const u64 *w, unsigned int i)
{
	while (i < TABLE_ENTRIES) {
		if (i % 8 == 0 && !(w[i] | w[i + 1] | w[i + 2] | w[i + 3] | w[i + 4] | w[i + 5] | w[i + 6] | w[i + 7]))
			i += 8;
		else if (w[i])
			return i;
		else
			i++;
	}
	return TABLE_ENTRIES;
}

/* Number of the first bit from `at` on that is set; LEAF_BITS if there is none. */
static u64 next_set(const u64 *bitmap, u64 at)
{
	unsigned int i = (unsigned int)at / 64;
	u64 word = at < LEAF_BITS ? bitmap[i] & ~0UL << at % 64 : 0;

	if (word)
		return i * 64 + ctz64(word);
	i = next_word(bitmap, i + 1);
	return i < LEAF_WORDS ? i * 64 + ctz64(bitmap[i]) : LEAF_BITS;
}

/* The same for bits that are not. */
static u64 next_clear(const u64 *bitmap, u64 at)
{
	unsigned int i = (unsigned int)at / 64;
	u64 word = ~bitmap[i] & ~0UL << at % 64;

	while (!word) {
		if (++i == LEAF_WORDS)
			return LEAF_BITS;
		word = ~bitmap[i];
	}
	return i * 64 + ctz64(word);
}

/* The leaf of the smallest keys, where the marker is in the bitmap itself: orders above 37, one block each. */
static int walk_first_leaf(struct kho_radix_walk *walk, const u64 *bitmap)
{
	int err = 0;

	if (test_bit(0, bitmap))
		return -EINVAL;			/* no block has this key */
	for (u64 key = 1; !err && (key = next_set(bitmap, key)) < LEAF_BITS; key++) {
		unsigned int order;
		u64 pfn = kho_radix_pfn(key, &order);

		err = walk->run(walk, pfn, order, 1);
	}
	return err;
}

static int walk_leaf(struct kho_radix_walk *walk, const u64 *bitmap, u64 prefix)
{
	u64 key = prefix << KHO_BITMAP_SIZE_LOG2, base, bit = 0, end;
	unsigned int order;
	int err = 0;

	if (!prefix)
		return walk_first_leaf(walk, bitmap);
	base = kho_radix_pfn(key, &order);
	while (!err && (bit = next_set(bitmap, bit)) < LEAF_BITS) {
		end = next_clear(bitmap, bit);
		err = walk->run(walk, base + (bit << order), order, end - bit);
		bit = end;
	}
	return err;
}

static int walk_node(struct kho_radix_walk *walk, claim_t phys, unsigned int level, u64 prefix)
{
	const u64 *words;
	int err = 0;

	if (!keys_possible(prefix, shift_of(level + 1), walk->end_pfn)) {
		pr_err("page 0x%llx of the tree, level %u, is for no memory that exists\n",
		       (unsigned long long)phys.value, level);
		return -EINVAL;
	}
	words = walk->node(walk, phys, level);
	if (!words)
		return -EINVAL;
	if (!level)
		return walk_leaf(walk, words, prefix);
	for (unsigned int i = 0; !err && (i = next_word(words, i)) < TABLE_ENTRIES; i++)
		err = walk_node(walk, claim(words[i]), level - 1, prefix << KHO_TABLE_SIZE_LOG2 | i);
	return err;
}

int kho_radix_walk(struct kho_radix_walk *walk, claim_t root)
{
	return walk_node(walk, root, KHO_TREE_MAX_DEPTH - 1, 0);
}
