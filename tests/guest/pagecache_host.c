/* The page cache in a process, on top of the memory management of mm_host.c, which is a source of its own: the tree of
 * folios, files in memory, moving of pages. Of the rest of the kernel there is a file with an inode, and no programs:
 * "user" memory is the test's.
 *
 * Any allocation can be made to fail: host_fail(n) counts to the nth.
 */
#include "errno.h"
#include "page.h"

static u64 fail_at, allocations;

static bool fails(void)
{
	return ++allocations == fail_at;
}

static struct page *alloc_page_or_fail(gfp_t gfp)
{
	return fails() ? NULL : alloc_pages(gfp, 0);
}

static struct folio *folio_alloc_or_fail(gfp_t gfp, unsigned int order)
{
	return fails() ? NULL : folio_alloc(gfp | __GFP_NOWARN, order);
}

#define alloc_page	alloc_page_or_fail
#define folio_alloc	folio_alloc_or_fail

#include "../../kernels/mm/migrate.c"
#include "../../kernels/mm/pagecache.c"
#include "../../kernels/mm/shmem.c"

/* ---- the rest of the kernel ---- */

void mutex_init(struct mutex *m) { (void)m; }
void mutex_lock(struct mutex *m) { (void)m; }
void mutex_unlock(struct mutex *m) { (void)m; }
void yield(void) {}

void unmap_mapping_range(struct mapping *m, u64 first, u64 last, bool even_private)
{
	(void)m, (void)first, (void)last, (void)even_private;
}

u64 copy_to_user(void *to, const void *from, u64 size)
{
	memcpy(to, from, size);
	return 0;
}

u64 copy_from_user(void *to, const void *from, u64 size)
{
	memcpy(to, from, size);
	return 0;
}

u64 clear_user(void *to, u64 size)
{
	memset(to, 0, size);
	return 0;
}

loff_t generic_llseek(struct file *f, loff_t off, int whence)
{
	(void)f, (void)off, (void)whence;
	return -EINVAL;
}

/* ---- what the tests call ---- */

static struct mapping tree;
static struct inode inode;
static struct file file;

void host_fail(u64 n)
{
	fail_at = n;
	allocations = 0;
}

u64 host_allocations(void) { return allocations; }

/* An empty tree, an empty file. */
int host_new(void)
{
	mapping_init(&tree, NULL);
	inode = (struct inode){ 0 };
	file = (struct file){ .inode = &inode };
	return shmem_init_inode(&inode);
}

void host_evict(void) { shmem_evict_inode(&inode); }

/* A folio with one reference; it begins with its number. 0: none. */
u64 host_folio(u64 order, u64 number)
{
	struct folio *f = folio_alloc(GFP_MOVABLE | __GFP_ZERO, (unsigned int)order);

	if (f)
		*(u64 *)folio_address(f) = number;
	return (u64)f;
}

int host_add(u64 f, u64 index) { return mapping_add(&tree, (struct folio *)f, index); }
void host_put(u64 f) { folio_put((struct folio *)f); }
void host_remove(u64 f) { mapping_remove(&tree, (struct folio *)f); }
void host_truncate(u64 first) { mapping_truncate(&tree, first); }
u64 host_find(u64 index) { return (u64)mapping_find(&tree, index); }
u64 host_next(u64 index) { return (u64)mapping_next(&tree, index); }
int host_migrate(u64 f) { return migrate_folio(&tree, (struct folio *)f); }
u64 host_tree_pages(void) { return tree.nr_pages; }

struct list {
	u64 *out, nr, max;
};

static int list_one(struct folio *f, void *ctx)
{
	struct list *l = ctx;
	u64 *out = l->out + 4 * l->nr;

	if (l->nr++ == l->max)
		return -E2BIG;
	out[0] = (u64)f;
	out[1] = f->page.index;
	out[2] = folio_order(f);
	out[3] = *(u64 *)folio_address(f);
	return 0;
}

/* Folios that have pages in [first, end), at most max, by mapping_walk(): address, index, order, number. How many. */
s64 host_walk(u64 first, u64 end, u64 *out, u64 max)
{
	struct list l = { out, 0, max };
	int err = mapping_walk(&tree, first, end, list_one, &l);

	return err ? err : (s64)l.nr;
}

s64 host_write(const void *from, u64 size, u64 pos)
{
	loff_t at = (loff_t)pos;

	return shmem_write(&file, from, size, &at);
}

s64 host_read(void *to, u64 size, u64 pos)
{
	loff_t at = (loff_t)pos;

	return shmem_read(&file, to, size, &at);
}

int host_resize(u64 size) { return shmem_truncate(&inode, size); }
int host_fallocate(u64 mode, u64 pos, u64 size) { return shmem_fallocate(&file, (int)mode, (loff_t)pos, (loff_t)size); }
s64 host_seek(u64 pos, u64 whence) { return shmem_llseek(&file, (loff_t)pos, (int)whence); }
int host_pin(void) { return shmem_pin(&inode, inode.size); }
void host_unpin(void) { shmem_unpin(&inode); }
void host_huge(u64 on) { inode.shmem->huge = on; }
u64 host_size(void) { return inode.size; }
u64 host_file_pages(void) { return inode.shmem->mapping.nr_pages; }

static int state_of(struct folio *f, void *ctx)
{
	u64 *state = ctx;

	state[0] += folio_nr_pages(f);
	state[1] += f->page.flags & PG_PINNED ? folio_nr_pages(f) : 0;
	state[2] += in_scratch(f) ? folio_nr_pages(f) : 0;
	return 0;
}

/* Pages of the file: all, pinned, in scratch. */
void host_state(u64 *out)
{
	out[0] = out[1] = out[2] = 0;
	mapping_walk(&inode.shmem->mapping, 0, ~0UL, state_of, out);
}
