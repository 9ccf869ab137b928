/* Small objects: caches of slabs.
 *
 * A slab is a folio of pages that is cut into at most 256 objects of one size; what it is like stands in a struct slab
 * outside of it, so objects keep the alignment of their power of two and nobody who writes over the end of one can
 * damage the allocator. Which objects are free is a bitmap: freeing one twice, or one that never was, shows at once.
 * Slabs with free objects are in a list of their cache; full ones are in none; of the empty ones a cache keeps one.
 *
 * Structs slab and kmem_cache come out of pages of their own that are never given back. kmalloc() beyond 2 KiB takes
 * blocks from the page allocator and marks them.
 */
#include "internal.h"
#include "panic.h"
#include "printk.h"
#include "sched.h"
#include "string.h"

#define OBJECTS_MAX		256
#define OBJECTS_MIN		8
#define MIN_SHIFT		4			/* kmalloc caches of 16 … */
#define MAX_SHIFT		11			/* … to 2048 bytes */
#define KMALLOC_MAX		(PAGE_SIZE << MAX_PAGE_ORDER)
#define CACHES_MAX		32

struct kmem_cache {
	const char *name;
	u32 size;			/* of an object, a multiple of its alignment */
	u32 order, objects;		/* of a slab */
	spinlock_t lock;
	struct list_head partial;	/* slabs with a free object, the empty one last */
	struct slab *empty;		/* the one that is kept, in partial too */
};

struct slab {
	struct list_head list;
	struct kmem_cache *cache;
	u8 *base;
	u32 free;
	u64 free_map[OBJECTS_MAX / 64];	/* 1 is free */
};

static struct kmem_cache caches[CACHES_MAX];
static u32 nr_caches;
static struct kmem_cache *kmalloc_caches[MAX_SHIFT + 1];
static struct slab *spare_slabs;	/* linked through list.next */
static spinlock_t slab_lock;		/* caches and spare_slabs */

bool slab_is_available(void)
{
	return nr_caches;
}

/* ---- slabs ---- */

static struct slab *slab_struct_alloc(void)
{
	struct slab *slab, *more = NULL;
	u64 flags;

	if (!READ_ONCE(spare_slabs)) {
		more = get_free_pages(GFP_KERNEL, 0);
		if (!more)
			return NULL;
	}
	flags = spin_lock_irqsave(&slab_lock);
	for (u64 i = 0; more && i < PAGE_SIZE / sizeof(*more); i++) {
		more[i].list.next = (struct list_head *)spare_slabs;
		spare_slabs = &more[i];
	}
	slab = spare_slabs;
	if (slab)
		spare_slabs = (struct slab *)slab->list.next;
	spin_unlock_irqrestore(&slab_lock, flags);
	return slab;
}

static void slab_struct_free(struct slab *slab)
{
	u64 flags = spin_lock_irqsave(&slab_lock);

	slab->list.next = (struct list_head *)spare_slabs;
	spare_slabs = slab;
	spin_unlock_irqrestore(&slab_lock, flags);
}

static struct slab *slab_create(struct kmem_cache *c, gfp_t gfp)
{
	struct slab *slab = slab_struct_alloc();
	struct page *page;

	if (!slab)
		return NULL;
	page = alloc_pages((gfp & __GFP_NOWARN) | __GFP_COMP, c->order);
	if (!page) {
		slab_struct_free(slab);
		return NULL;
	}
	*slab = (struct slab){ .cache = c, .base = page_address(page), .free = c->objects };
	for (u32 i = 0; i < c->objects; i++)
		set_bit(i, slab->free_map);
	page->slab = slab;
	page->flags |= PG_SLAB;
	return slab;
}

static void slab_destroy(struct slab *slab)
{
	struct page *page = virt_to_page(slab->base);

	page->flags &= ~PG_SLAB;
	page->slab = NULL;
	__free_pages(page, slab->cache->order);
	slab_struct_free(slab);
}

/* ---- objects ---- */

static void *take_object(struct kmem_cache *c, struct slab *slab)
{
	u32 word = 0, n;

	while (!slab->free_map[word])
		word++;
	n = word * 64 + ctz64(slab->free_map[word]);
	clear_bit(n, slab->free_map);
	if (slab == c->empty)
		c->empty = NULL;
	if (--slab->free == 0)
		list_del(&slab->list);
	return slab->base + (u64)n * c->size;
}

void *kmem_cache_alloc(struct kmem_cache *c, gfp_t gfp)
{
	struct slab *fresh = NULL;
	void *object = NULL;
	u64 flags;

	for (;;) {
		flags = spin_lock_irqsave(&c->lock);
		if (fresh)
			list_add(&fresh->list, &c->partial);
		if (!list_empty(&c->partial))
			object = take_object(c, list_first_entry(&c->partial, struct slab, list));
		spin_unlock_irqrestore(&c->lock, flags);
		if (object)
			break;
		fresh = slab_create(c, gfp);
		if (!fresh)
			return NULL;
	}
	if (gfp & __GFP_ZERO)
		memset(object, 0, c->size);
	else if (mm_junk)
		memset(object, JUNK_ALLOCATED, c->size);
	return object;
}

static void free_object(struct kmem_cache *c, struct slab *slab, void *object)
{
	u64 offset = (u64)((u8 *)object - slab->base), n = offset / c->size, flags;
	struct slab *surplus = NULL;

	if (offset % c->size || n >= c->objects)
		panic("BUG: slab %s: freeing what is no object: offset %llu of a slab", c->name,
		      (unsigned long long)offset);
	flags = spin_lock_irqsave(&c->lock);
	if (test_bit(n, slab->free_map))
		panic("BUG: slab %s: object %llu of a slab is freed twice", c->name, (unsigned long long)n);
	if (mm_junk)
		memset(object, JUNK_FREED, c->size);
	set_bit(n, slab->free_map);
	if (slab->free++ == 0)
		list_add(&slab->list, &c->partial);
	if (slab->free == c->objects) {
		if (c->empty) {
			list_del(&slab->list);
			surplus = slab;
		} else {
			list_move_tail(&slab->list, &c->partial);
			c->empty = slab;
		}
	}
	spin_unlock_irqrestore(&c->lock, flags);
	if (surplus)
		slab_destroy(surplus);
}

void kmem_cache_free(struct kmem_cache *c, void *object)
{
	struct page *page = &page_folio(virt_to_page(object))->page;

	if (!(page->flags & PG_SLAB) || page->slab->cache != c)
		panic("BUG: slab %s: freeing an object that is not of this cache", c->name);
	free_object(c, page->slab, object);
}

/* ---- caches ---- */

struct kmem_cache *kmem_cache_create(const char *name, u32 size, u32 align)
{
	struct kmem_cache *c;
	u64 flags;
	u32 order = 0;

	BUG_ON(!size || (align && !is_power_of_2(align)) || align > PAGE_SIZE);
	size = ALIGN_UP(size, max(align, (u32)8));
	while (PAGE_SIZE << order < (u64)size * OBJECTS_MIN && order < MAX_PAGE_ORDER)
		order++;
	if (PAGE_SIZE << order < size)
		return NULL;
	flags = spin_lock_irqsave(&slab_lock);
	c = nr_caches < CACHES_MAX ? &caches[nr_caches++] : NULL;
	spin_unlock_irqrestore(&slab_lock, flags);
	if (!c)
		return NULL;
	c->name = name;
	c->size = size;
	c->order = order;
	c->objects = (u32)min((PAGE_SIZE << order) / size, (u64)OBJECTS_MAX);
	INIT_LIST_HEAD(&c->partial);
	return c;
}

void kmem_cache_init(void)
{
	static const char *const names[MAX_SHIFT + 1] = {
		[4] = "kmalloc-16", [5] = "kmalloc-32", [6] = "kmalloc-64", [7] = "kmalloc-128",
		[8] = "kmalloc-256", [9] = "kmalloc-512", [10] = "kmalloc-1k", [11] = "kmalloc-2k",
	};

	for (u32 shift = MIN_SHIFT; shift <= MAX_SHIFT; shift++)
		kmalloc_caches[shift] = kmem_cache_create(names[shift], 1U << shift, 1U << shift);
}

/* ---- kmalloc ---- */

static void *kmalloc_large(u64 size, gfp_t gfp)
{
	struct page *page = size <= KMALLOC_MAX ? alloc_pages(gfp | __GFP_COMP, get_order(size)) : NULL;

	if (!page)
		return NULL;
	page->flags |= PG_KMALLOC;
	return page_address(page);
}

void *kmalloc(u64 size, gfp_t gfp)
{
	u32 shift = size > 1UL << MIN_SHIFT ? ilog2(size - 1) + 1 : MIN_SHIFT;

	BUG_ON(!slab_is_available());
	gfp &= ~__GFP_MOVABLE;		/* who has a pointer does not expect it to move */
	return shift > MAX_SHIFT ? kmalloc_large(size, gfp) : kmem_cache_alloc(kmalloc_caches[shift], gfp);
}

void *kzalloc(u64 size, gfp_t gfp)
{
	return kmalloc(size, gfp | __GFP_ZERO);
}

void kfree(const void *p)
{
	struct page *page;

	if (!p)
		return;
	page = &page_folio(virt_to_page(p))->page;
	if (page->flags & PG_SLAB) {
		free_object(page->slab->cache, page->slab, (void *)p);
		return;
	}
	if (!(page->flags & PG_KMALLOC) || page_address(page) != p)
		bad_page(page, "kfree() of what kmalloc() did not return, or twice");
	page->flags &= ~PG_KMALLOC;
	__free_pages(page, page->order);
}
