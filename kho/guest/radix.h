/* The radix tree of preserved memory: which blocks of 2^order pages the next kernel must keep.
 *
 *	key, order 0:	0 0 0 0 0 0 0 0 0 0 0 1 [ page frame number, 52 bits ]
 *	key, order o:	bit 52 - o is set, and below it is the page frame number >> o
 *
 *	bits 59..51 | 50..42 | 41..33 | 32..24 | 23..15 | 14..0
 *	level 5     | 4      | 3      | 2      | 1      | bit in the leaf (level 0)
 *
 * Levels 5 to 1 are tables of 512 physical addresses, 0 for none; a leaf is a bitmap of 32768 keys. Ascending keys
 * are descending orders, and ascending addresses inside an order. The tree does not know who preserved a block, nor
 * how often; and its own pages are not in it.
 */
#pragma once
#include "../../kernels/include/types.h"
#include "../../kernels/include/sched.h"
#include "abi.h"
#include "claim.h"

struct kho_radix_tree {
	struct kho_radix_node *root;	/* NULL: there is no tree yet */
	struct mutex lock;
	struct kho_radix_leaf *last;	/* where the last key was: the next one is mostly there, too */
	u64 last_prefix;		/* of the keys in it */
};

static inline u64 kho_radix_key(u64 pfn, unsigned int order)
{
	return 1UL << (KHO_ORDER_0_LOG2 - order) | pfn >> order;
}

/* The page frame number and order of a key > 0 that has no bit above order 0's marker. */
static inline u64 kho_radix_pfn(u64 key, unsigned int *order)
{
	unsigned int marker = 63 - (unsigned int)__builtin_clzll(key);

	*order = KHO_ORDER_0_LOG2 - marker;
	return (key ^ 1UL << marker) << *order;
}

/* Marks a block; marking it again is no error. -ENOMEM, with the tree as before; -EINVAL without a root. */
int kho_radix_add(struct kho_radix_tree *tree, u64 pfn, unsigned int order);
/* Takes the mark away; pages of the tree are not freed. */
void kho_radix_del(struct kho_radix_tree *tree, u64 pfn, unsigned int order);

/* A walk, by ascending key. */
struct kho_radix_walk {
	/* `nr` blocks of one order that lie side by side. Anything but 0 ends the walk. */
	int (*run)(struct kho_radix_walk *walk, u64 pfn, unsigned int order, u64 nr);
	/* Verifies the address of a page of the tree and returns the page; NULL ends the walk with -EINVAL. */
	const u64 *(*node)(struct kho_radix_walk *walk, claim_t phys, unsigned int level);
	/* Page frames end here. A page of the tree for keys of none below is an error; this bounds the walk. */
	u64 end_pfn;
};
int kho_radix_walk(struct kho_radix_walk *walk, claim_t root);
