/* Block sets: records of one size in a chain of preserved pages, for the next kernel to read.
 *
 *	head -> [ next | count | record record ... ] -> [ next | count | record ... ] -> 0
 *
 * An outgoing set is made by grow, filled by an iterator and handed over by its head address. The next kernel makes an
 * incoming set of that address, reads it by an iterator, and destroys it. Every block of a chain that is handed over
 * has at least one record, and all but the last are full.
 *
 *	grow -> reserve_entry ... -> (clear -> reserve_entry ...) -> destroy		outgoing
 *	restore -> read_entry ... -> destroy						incoming
 */
#pragma once
#include "../../kernels/include/types.h"
#include "../../kernels/include/list.h"
#include "abi.h"

struct kho_block_set {
	struct list_head blocks;
	u64 nr_blocks;
	u64 head;			/* physical address of the first block, 0: none */
	u32 entry_size;
	u32 capacity;			/* entries of a block */
	bool incoming;
};

struct kho_block_it {
	struct kho_block_set *set;
	struct kho_block *block;	/* NULL: behind the last one */
	u64 slot;
};

void kho_block_set_init(struct kho_block_set *set, u32 entry_size);
/* Room for `entries` in total. -ENOSPC beyond KHO_MAX_BLOCKS, -ENOMEM, -EINVAL for an incoming set; the set is then
 * as it was. */
int kho_block_set_grow(struct kho_block_set *set, u64 entries);
/* Drops blocks at the end that are not needed for `entries` in total. */
void kho_block_set_shrink(struct kho_block_set *set, u64 entries);
/* Whether restore would take the chain: 0 or -EINVAL, and nothing is taken. */
int kho_block_set_check(const struct kho_block_set *set, u64 head);
/* The chain of the previous kernel. 0; -EINVAL: it is malformed, and all of it that could be reached is freed; -ENOMEM,
 * the same. */
int kho_block_set_restore(struct kho_block_set *set, u64 head);
void kho_block_set_clear(struct kho_block_set *set);	/* no records; the blocks stay */
void kho_block_set_destroy(struct kho_block_set *set);

void kho_block_it_init(struct kho_block_it *it, struct kho_block_set *set);
void *kho_block_it_reserve_entry(struct kho_block_it *it);	/* the next slot, to be written; NULL: full */
void *kho_block_it_read_entry(struct kho_block_it *it);	/* the next record; NULL: no more */
void *kho_block_it_prev(struct kho_block_it *it);	/* one slot back, and what is there; NULL at the beginning */
