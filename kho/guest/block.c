/* Block sets: see block.h. Their messages bear LUO's name, as in Linux: its sets are the only ones. */
#define pr_fmt(fmt) "luo: " fmt
#include "block.h"
#include "errno.h"
#include "kho_internal.h"
#include "printk.h"
#include "string.h"

struct kho_block {
	struct list_head list;
	struct kho_block_header_ser *ser;
};

void kho_block_set_init(struct kho_block_set *set, u32 entry_size)
{
	*set = (struct kho_block_set){
		.entry_size = entry_size,
		.capacity = (u32)(KHO_BLOCK_SIZE - sizeof(struct kho_block_header_ser)) / entry_size,
	};
	INIT_LIST_HEAD(&set->blocks);
}

static u8 *entries_of(const struct kho_block *block)
{
	return (u8 *)(block->ser + 1);
}

static struct kho_block *last_block(struct kho_block_set *set)
{
	return list_empty(&set->blocks) ? NULL : list_last_entry(&set->blocks, struct kho_block, list);
}

/* Puts a block at the end of the set's list; the pages' own chain is the caller's business. */
static struct kho_block *track(struct kho_block_set *set, struct kho_block_header_ser *ser)
{
	struct kho_block *block = kmalloc(sizeof(*block), GFP_KERNEL);

	if (!block)
		return NULL;
	block->ser = ser;
	list_add_tail(&block->list, &set->blocks);
	set->nr_blocks++;
	return block;
}

static void drop_last(struct kho_block_set *set)
{
	struct kho_block *block = last_block(set);

	list_del(&block->list);
	set->nr_blocks--;
	if (set->incoming)
		kho_restore_free(block->ser);
	else
		kho_unpreserve_free(block->ser);
	kfree(block);
	block = last_block(set);
	if (block)
		block->ser->next = 0;
	else
		set->head = 0;
}

static int append(struct kho_block_set *set)
{
	struct kho_block *last = last_block(set);
	struct kho_block_header_ser *ser;

	if (set->nr_blocks == KHO_MAX_BLOCKS)
		return -ENOSPC;
	ser = kho_alloc_preserve(KHO_BLOCK_SIZE);
	if (IS_ERR(ser))
		return (int)PTR_ERR(ser);
	if (!track(set, ser)) {
		kho_unpreserve_free(ser);
		return -ENOMEM;
	}
	*(last ? &last->ser->next : &set->head) = virt_to_phys(ser);
	return 0;
}

int kho_block_set_grow(struct kho_block_set *set, u64 entries)
{
	u64 before = set->nr_blocks;

	if (set->incoming)
		return -EINVAL;
	while (entries > set->nr_blocks * set->capacity) {
		int err = append(set);

		if (err) {
			while (set->nr_blocks > before)
				drop_last(set);
			return err;
		}
	}
	return 0;
}

void kho_block_set_shrink(struct kho_block_set *set, u64 entries)
{
	while (set->nr_blocks && entries <= (set->nr_blocks - 1) * set->capacity)
		drop_last(set);
}

void kho_block_set_clear(struct kho_block_set *set)
{
	struct kho_block *block;

	list_for_each_entry(block, &set->blocks, list) {
		block->ser->count = 0;
		memset(entries_of(block), 0, KHO_BLOCK_SIZE - sizeof(*block->ser));
	}
}

void kho_block_set_destroy(struct kho_block_set *set)
{
	while (set->nr_blocks)
		drop_last(set);
	set->head = 0;
}

/* ---- incoming ---- */

/* The block of an address that the previous kernel claims; NULL if no preserved page is there. */
static struct kho_block_header_ser *block_at(claim_t c)
{
	unsigned int order;

	return kho_is_preserved(c, &order) && !order ? phys_to_virt(c.value) : NULL;
}

/* Whether the chain ends: a second pointer goes two steps at a time, and meets the first one in a cycle. */
static bool chain_ends(u64 head)
{
	u64 slow = head, fast = head;

	for (u64 steps = 0; fast; steps++) {
		struct kho_block_header_ser *ser = block_at(claim(fast));

		if (!ser || steps >= KHO_MAX_BLOCKS)
			return false;
		fast = ser->next;
		if (steps % 2)
			slow = block_at(claim(slow))->next;
		if (fast && fast == slow)
			return false;
	}
	return true;
}

static int check_count(const struct kho_block_set *set, const struct kho_block_header_ser *ser)
{
	if (ser->count && ser->count <= set->capacity)
		return 0;
	pr_err("Block contains invalid entry count: %llu\n", (unsigned long long)ser->count);
	return -EINVAL;
}

int kho_block_set_check(const struct kho_block_set *set, u64 head)
{
	const struct kho_block_header_ser *ser;
	int err = 0;

	if (!chain_ends(head)) {
		pr_err("Block set is corrupted\n");
		return -EINVAL;
	}
	for (u64 at = head; at && !err; at = ser->next) {
		ser = phys_to_virt(at);
		err = check_count(set, ser);
	}
	return err;
}

int kho_block_set_restore(struct kho_block_set *set, u64 head)
{
	u64 at = head;
	int err = 0;

	if (!head)
		return 0;
	set->incoming = true;
	if (!chain_ends(head)) {
		pr_err("Block set is corrupted\n");
		set->head = 0;
		return -EINVAL;
	}
	set->head = head;
	while (at) {
		struct kho_block_header_ser *ser = phys_to_virt(at);

		at = ser->next;
		if (!err)
			err = check_count(set, ser);
		if (!err && !track(set, ser))
			err = -ENOMEM;
		if (err)
			kho_restore_free(ser);
	}
	if (err)
		kho_block_set_destroy(set);
	return err;
}

/* ---- iterators ---- */

static struct kho_block *first_block(struct kho_block_set *set)
{
	return list_empty(&set->blocks) ? NULL : list_first_entry(&set->blocks, struct kho_block, list);
}

static struct kho_block *next_block(struct kho_block_set *set, struct kho_block *block)
{
	return block == last_block(set) ? NULL : list_next_entry(block, list);
}

void kho_block_it_init(struct kho_block_it *it, struct kho_block_set *set)
{
	*it = (struct kho_block_it){ .set = set, .block = first_block(set) };
}

/* The next slot among the first `limit` of each block. */
static void *advance(struct kho_block_it *it, bool reserve)
{
	while (it->block) {
		u64 limit = reserve ? it->set->capacity : min(it->block->ser->count, (u64)it->set->capacity);

		if (it->slot < limit)
			return entries_of(it->block) + it->slot++ * it->set->entry_size;
		if (!next_block(it->set, it->block))
			break;
		it->block = next_block(it->set, it->block);
		it->slot = 0;
	}
	return NULL;
}

void *kho_block_it_reserve_entry(struct kho_block_it *it)
{
	void *entry = advance(it, true);

	if (entry)
		it->block->ser->count = it->slot;
	return entry;
}

void *kho_block_it_read_entry(struct kho_block_it *it)
{
	return advance(it, false);
}

void *kho_block_it_prev(struct kho_block_it *it)
{
	if (!it->block)
		return NULL;
	if (!it->slot) {
		if (it->block == first_block(it->set))
			return NULL;
		it->block = list_prev_entry(it->block, list);
		it->slot = it->set->capacity;
	}
	it->slot--;
	return entries_of(it->block) + it->slot * it->set->entry_size;
}
