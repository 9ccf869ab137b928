/* The tree of a file's pages: 512-way nodes, one page each, by page index.
 *
 *	height 1: one node, indices 0 to 511;  height 2: 512 nodes below the root, indices to 2^18 - 1;  …
 *
 * A slot is 0, the address of a node below, or a folio's address + 1. A folio of order o fills the 2^o slots of the
 * level that has the finest slots that are not finer than 512-page steps need: order 0 to 8 in the lowest level, order
 * 9 and 10 one above, a slot for each 512 pages. So what large folios cost does not depend on their size.
 * How many slots of a node are in use stands in the `index` of the node's own struct page; empty nodes are freed.
 *
 * All functions want mapping->lock held.
 */
#include "pagecache.h"
#include "panic.h"
#include "string.h"

#define NODE_LOG2	9
#define NODE_SLOTS	(1UL << NODE_LOG2)
#define HEIGHT_MAX	6		/* 2^54 pages: more than a file can have */

static u64 total_pages;

struct node {
	u64 slot[NODE_SLOTS];
};
static_assert(sizeof(struct node) == PAGE_SIZE, "a node is a page");

static bool is_folio(u64 slot) { return slot & 1; }
static struct folio *slot_folio(u64 slot) { return (struct folio *)(slot - 1); }
static struct node *slot_node(u64 slot) { return (struct node *)slot; }
static u64 node_count(struct node *n) { return virt_to_page(n)->index; }

static void node_add(struct node *n, u64 i, u64 value)
{
	if (!n->slot[i])
		virt_to_page(n)->index++;
	n->slot[i] = value;
}

static struct node *node_new(void)
{
	struct page *page = alloc_page(GFP_KERNEL | __GFP_ZERO);

	if (!page)
		return NULL;
	page->index = 0;
	return page_address(page);
}

static unsigned int folio_level(unsigned int order) { return order < NODE_LOG2 ? 1 : 2; }
static bool covers(u32 height, u64 index) { return index >> (height * NODE_LOG2) == 0; }
static u64 level_index(u64 index, u32 level) { return index >> ((level - 1) * NODE_LOG2) & (NODE_SLOTS - 1); }

u64 page_cache_pages(void) { return total_pages; }

void mapping_init(struct mapping *m, struct inode *inode)
{
	*m = (struct mapping){ .inode = inode };
	mutex_init(&m->lock);
	INIT_LIST_HEAD(&m->areas);
}

struct folio *mapping_find(struct mapping *m, u64 index)
{
	struct node *n = m->root;

	if (!n || !covers(m->height, index))
		return NULL;
	for (u32 level = m->height; ; level--) {
		u64 slot = n->slot[level_index(index, level)];

		if (!slot)
			return NULL;
		if (is_folio(slot))
			return slot_folio(slot);
		n = slot_node(slot);
	}
}

struct folio *mapping_next(struct mapping *m, u64 index)
{
	while (m->root && covers(m->height, index)) {
		struct node *n = m->root;
		u32 level = m->height;

		while (1) {
			u64 slot = n->slot[level_index(index, level)];

			if (is_folio(slot))
				return slot_folio(slot);
			if (!slot) {		/* nothing below this slot: on to the next one of this level */
				u64 step = 1UL << ((level - 1) * NODE_LOG2);

				index = (index | (step - 1)) + 1;
				if (!index || !covers(m->height, index))
					return NULL;
				if (level_index(index, level))
					continue;	/* the same node */
				break;			/* another node: from the root again */
			}
			n = slot_node(slot);
			level--;
		}
	}
	return NULL;
}

struct walk {
	u64 next, end;			/* pages that are not visited yet */
	int (*fn)(struct folio *f, void *ctx);
	void *ctx;
};

/* A node whose first page is `base`. */
static int walk_node(struct walk *w, struct node *n, u32 level, u64 base)
{
	u32 shift = (level - 1) * NODE_LOG2;
	u64 i = w->next > base ? (w->next - base) >> shift : 0;

	for (; i < NODE_SLOTS && base + (i << shift) < w->end; i++) {
		u64 slot = n->slot[i];
		int err;

		if (!slot)
			continue;
		if (is_folio(slot)) {
			struct folio *f = slot_folio(slot);

			err = w->fn(f, w->ctx);
			w->next = f->page.index + folio_nr_pages(f);
			i = (w->next - 1 - base) >> shift;	/* its last slot: none is in two nodes */
		} else {
			err = walk_node(w, slot_node(slot), level - 1, base + (i << shift));
		}
		if (err)
			return err;
	}
	return 0;
}

int mapping_walk(struct mapping *m, u64 first, u64 end, int (*fn)(struct folio *f, void *ctx), void *ctx)
{
	struct walk w = { .next = first, .end = end, .fn = fn, .ctx = ctx };

	return m->root && first < end ? walk_node(&w, m->root, m->height, 0) : 0;
}

/* A root that covers the index, and that has at least this height. */
static int grow(struct mapping *m, u64 index, u32 height)
{
	if (!m->root) {
		m->root = node_new();
		if (!m->root)
			return -ENOMEM;
		m->height = 1;
	}
	while (m->height < height || !covers(m->height, index)) {
		struct node *top = node_new();

		if (!top)
			return -ENOMEM;
		if (node_count(m->root))
			node_add(top, 0, (u64)m->root);
		else
			free_page(m->root);
		m->root = top;
		m->height++;
	}
	return 0;
}

/* Frees nodes on the way to the index that have become empty, and roots that are not needed. */
static void prune(struct mapping *m, u64 index)
{
	struct node *path[HEIGHT_MAX + 1] = { NULL };
	struct node *n = m->root;
	u32 level;

	for (level = m->height; n; level--) {
		u64 slot = n->slot[level_index(index, level)];

		path[level] = n;
		n = slot && !is_folio(slot) && level > 1 ? slot_node(slot) : NULL;
	}
	for (level = 1; level <= m->height; level++) {
		if (!path[level])
			continue;
		if (node_count(path[level]))
			return;
		free_page(path[level]);
		if (level == m->height) {
			m->root = NULL;
			m->height = 0;
			return;
		}
		path[level + 1]->slot[level_index(index, level + 1)] = 0;
		virt_to_page(path[level + 1])->index--;
	}
}

int mapping_add(struct mapping *m, struct folio *f, u64 index)
{
	unsigned int order = folio_order(f), level = folio_level(order);
	u64 pages = 1UL << order, last = index + pages - 1, step = 1UL << ((level - 1) * NODE_LOG2);
	struct node *n;
	int err;

	if (!IS_ALIGNED(index, pages) || last < index || !covers(HEIGHT_MAX, last))
		return -EINVAL;
	err = grow(m, last, level);
	if (err) {
		prune(m, index);	/* a new root, that the second node was missing for */
		return err;
	}
	n = m->root;
	for (u32 l = m->height; l > level; l--) {
		u64 i = level_index(index, l);

		if (is_folio(n->slot[i]))
			return -EEXIST;
		if (!n->slot[i]) {
			struct node *below = node_new();

			if (!below) {
				prune(m, index);
				return -ENOMEM;
			}
			node_add(n, i, (u64)below);
		}
		n = slot_node(n->slot[i]);
	}
	/* A slot in use is a folio, or a node that has some: empty nodes do not exist. */
	for (u64 i = 0; i < pages; i += step)
		if (n->slot[level_index(index + i, level)])
			return -EEXIST;
	for (u64 i = 0; i < pages; i += step)
		node_add(n, level_index(index + i, level), (u64)f + 1);
	f->page.mapping = m;
	f->page.index = index;
	folio_get(f);
	m->nr_pages += pages;
	__atomic_add_fetch(&total_pages, pages, __ATOMIC_RELAXED);
	return 0;
}

/* The node of a level on the way to an index that is in the tree. */
static struct node *node_at(struct mapping *m, u64 index, u32 level)
{
	struct node *n = m->root;

	for (u32 l = m->height; l > level; l--)
		n = slot_node(n->slot[level_index(index, l)]);
	return n;
}

void mapping_remove(struct mapping *m, struct folio *f)
{
	unsigned int order = folio_order(f), level = folio_level(order);
	u64 pages = 1UL << order, index = f->page.index;
	struct node *n = node_at(m, index, level);

	for (u64 i = 0; i < pages; i += 1UL << ((level - 1) * NODE_LOG2)) {
		u64 at = level_index(index + i, level);

		BUG_ON(n->slot[at] != (u64)f + 1);
		n->slot[at] = 0;
		virt_to_page(n)->index--;
	}
	m->nr_pages -= pages;
	__atomic_sub_fetch(&total_pages, pages, __ATOMIC_RELAXED);
	f->page.mapping = NULL;
	prune(m, index);
	folio_put(f);
}

void mapping_replace(struct mapping *m, struct folio *f, struct folio *by)
{
	u64 index = f->page.index, pages = folio_nr_pages(f);
	u32 level = folio_level(folio_order(f));
	struct node *n = node_at(m, index, level);

	BUG_ON(folio_order(by) != folio_order(f));
	for (u64 i = 0; i < pages; i += 1UL << ((level - 1) * NODE_LOG2)) {
		u64 at = level_index(index + i, level);

		BUG_ON(n->slot[at] != (u64)f + 1);
		n->slot[at] = (u64)by + 1;
	}
	by->page.mapping = m;
	by->page.index = index;
	folio_get(by);
	f->page.mapping = NULL;
	folio_put(f);
}

/* A folio that is mapped nowhere and used by nobody becomes single pages in the same places. One that fills slots of
 * the second level needs a node for each of them: without memory for that it stays as it is. */
static bool split(struct mapping *m, struct folio *f)
{
	u64 index = f->page.index, pages = folio_nr_pages(f), nr_nodes = pages >> NODE_LOG2;
	u32 flags = f->page.flags & (PG_UPTODATE | PG_DIRTY);
	unsigned int order = folio_order(f);
	struct node *nodes[1 << (MAX_PAGE_ORDER - NODE_LOG2)] = { NULL };
	struct node *n = node_at(m, index, folio_level(order));

	if (f->page.refcount != 1 || f->page.flags & PG_PINNED)
		return false;
	for (u64 i = 0; i < nr_nodes; i++) {
		nodes[i] = node_new();
		if (!nodes[i]) {
			while (i--)
				free_page(nodes[i]);
			return false;
		}
	}
	f->page.flags &= ~PG_HEAD;
	for (u64 i = 1; i < pages; i++) {
		struct page *p = &f->page + i;

		p->flags &= ~PG_TAIL;
		p->private = 0;
		p->order = 0;
	}
	split_page(&f->page, order);	/* a reference each: the mapping's */
	for (u64 i = 0; i < pages; i++) {
		struct page *p = &f->page + i;

		p->flags |= flags;
		p->mapping = m;
		p->index = index + i;
		node_add(nr_nodes ? nodes[i >> NODE_LOG2] : n, level_index(index + i, 1), (u64)p + 1);
	}
	for (u64 i = 0; i < nr_nodes; i++)
		n->slot[level_index(index + (i << NODE_LOG2), 2)] = (u64)nodes[i];
	return true;
}

void mapping_truncate(struct mapping *m, u64 first)
{
	struct folio *f = mapping_next(m, first);

	/* One that begins before: its end goes if it can be split; else it stays whole, zeroed by the caller. */
	if (f && f->page.index < first) {
		u64 behind = f->page.index + folio_nr_pages(f);

		f = mapping_next(m, split(m, f) ? first : behind);
	}
	while (f) {
		u64 next = f->page.index + folio_nr_pages(f);

		mapping_remove(m, f);
		f = mapping_next(m, next);
	}
}
