/* Files whose contents are page cache and nothing else: tmpfs, memfd, shared anonymous memory.
 *
 * Locks: inode->lock serialises changes of size and contents by system calls; mapping->lock protects the tree, and is
 * the only one a page fault takes (under the mm's). Copies from and to programs run under neither or under inode->lock,
 * with a reference to the folio, since they may fault on the same file.
 */
#include "kho.h"
#include "pagecache.h"
#include "panic.h"
#include "printk.h"
#include "string.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define SEALS_AGAINST_WRITE	(F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)

int shmem_init_inode(struct inode *inode)
{
	struct shmem *s = kzalloc(sizeof(*s), GFP_KERNEL);

	if (!s)
		return -ENOMEM;
	mapping_init(&s->mapping, inode);
	s->seals = F_SEAL_SEAL;
	inode->shmem = s;
	inode->fops = &shmem_file_ops;
	return 0;
}

void shmem_evict_inode(struct inode *inode)
{
	struct shmem *s = inode->shmem;

	if (!s)
		return;
	mutex_lock(&s->mapping.lock);
	mapping_truncate(&s->mapping, 0);
	mutex_unlock(&s->mapping.lock);
	kfree(s);
	inode->shmem = NULL;
}

bool shmem_inode(const struct inode *inode) { return inode->shmem != NULL; }

static struct folio *new_folio(u64 index, u64 size, bool huge, gfp_t gfp)
{
	struct folio *f = NULL;

	if (huge && ALIGN_DOWN(index, 512UL) + 512 <= PFN_UP(size))
		f = folio_alloc(gfp | __GFP_ZERO | __GFP_NOWARN, PAGEBLOCK_ORDER);
	return f ? f : folio_alloc(gfp | __GFP_ZERO, 0);
}

static struct folio *get_folio(struct shmem *s, u64 index, u64 size, gfp_t gfp)
{
	struct folio *f = mapping_find(&s->mapping, index);
	int err;

	if (f)
		return f;
	f = new_folio(index, size, s->huge, gfp);
	if (!f)
		return ERR_PTR(-ENOMEM);
	err = mapping_add(&s->mapping, f, ALIGN_DOWN(index, folio_nr_pages(f)));
	if (err == -EEXIST) {		/* a small page is where the large one would go */
		folio_put(f);
		f = folio_alloc(gfp | __GFP_ZERO, 0);
		if (!f)
			return ERR_PTR(-ENOMEM);
		err = mapping_add(&s->mapping, f, index);
	}
	folio_put(f);			/* the mapping has its own reference */
	if (err)
		return ERR_PTR(err);
	return f;
}

/* Whoever asks for a folio to use it makes it part of the file's data. Until then, what fallocate(2) provided is a hole. */
static struct folio *for_use(struct folio *f)
{
	if (!IS_ERR(f))
		f->page.flags |= PG_UPTODATE | PG_DIRTY;
	return f;
}

static bool is_data(const struct folio *f) { return f->page.flags & PG_UPTODATE; }

struct folio *shmem_get_folio(struct shmem *s, u64 index, u64 size)
{
	return for_use(get_folio(s, index, size, GFP_MOVABLE));
}

/* Bytes from position pos on that lie in the folio, as memory. */
static u8 *folio_bytes(struct folio *f, u64 pos, u64 *room)
{
	u64 start = PFN_PHYS(f->page.index), end = start + (folio_nr_pages(f) << PAGE_SHIFT);

	*room = end - pos;
	return (u8 *)folio_address(f) + (pos - start);
}

static ssize_t shmem_read(struct file *file, void *user, u64 size, loff_t *ppos)
{
	struct shmem *s = file->inode->shmem;
	u64 pos = (u64)*ppos, done = 0;

	while (done < size) {
		u64 end = READ_ONCE(file->inode->size), n, room, left;
		struct folio *f;

		if (pos >= end)
			break;
		n = min(size - done, end - pos);
		mutex_lock(&s->mapping.lock);
		f = mapping_find(&s->mapping, PFN_DOWN(pos));
		if (f)
			folio_get(f);
		mutex_unlock(&s->mapping.lock);
		if (f) {
			const u8 *from = folio_bytes(f, pos, &room);

			n = min(n, room);
			left = copy_to_user((u8 *)user + done, from, n);
			folio_put(f);
		} else {
			n = min(n, PAGE_SIZE - pos % PAGE_SIZE);
			left = clear_user((u8 *)user + done, n);
		}
		pos += n - left;
		done += n - left;
		if (left) {
			if (!done)
				return -EFAULT;
			break;
		}
	}
	*ppos = (loff_t)pos;
	return (ssize_t)done;
}

/* May bytes [pos, pos + size) be written? Also says why a file may not grow. */
static int may_write(struct inode *inode, u64 pos, u64 size)
{
	struct shmem *s = inode->shmem;

	if (s->seals & SEALS_AGAINST_WRITE)
		return -EPERM;
	if (pos + size > inode->size && (s->seals & F_SEAL_GROW || s->frozen))
		return -EPERM;
	return 0;
}

static ssize_t shmem_write(struct file *file, const void *user, u64 size, loff_t *ppos)
{
	struct inode *inode = file->inode;
	struct shmem *s = inode->shmem;
	u64 pos, done = 0;
	int err = 0;

	if (!size)
		return 0;
	mutex_lock(&inode->lock);
	pos = file->flags & O_APPEND ? inode->size : (u64)*ppos;
	if (pos >= SHMEM_SIZE_MAX) {
		mutex_unlock(&inode->lock);
		return -EFBIG;
	}
	size = min(size, SHMEM_SIZE_MAX - pos);
	while (done < size) {
		u64 n = min(size - done, PAGE_SIZE - pos % PAGE_SIZE), room, left;
		struct folio *f;
		u8 *to;

		/* as much as a large folio would take at once is allowed as a whole, or not at all */
		err = may_write(inode, pos, min(size - done, PMD_SIZE - pos % PMD_SIZE));
		if (err)
			break;
		mutex_lock(&s->mapping.lock);
		f = shmem_get_folio(s, PFN_DOWN(pos), inode->size);
		if (!IS_ERR(f))
			folio_get(f);
		mutex_unlock(&s->mapping.lock);
		if (IS_ERR(f)) {
			err = (int)PTR_ERR(f);
			break;
		}
		to = folio_bytes(f, pos, &room);
		left = copy_from_user(to, (const u8 *)user + done, n);
		folio_put(f);
		pos += n - left;
		done += n - left;
		if (pos > inode->size)		/* even if nothing could be copied there */
			WRITE_ONCE(inode->size, pos);
		if (left) {
			err = -EFAULT;
			break;
		}
	}
	mutex_unlock(&inode->lock);
	if (!done && err)
		return err;
	*ppos = (loff_t)pos;
	return (ssize_t)done;
}

/* Zeros bytes [start, end) of what is there. mapping->lock held. */
static void zero_range(struct mapping *m, u64 start, u64 end)
{
	while (start < end) {
		struct folio *f = mapping_next(m, PFN_DOWN(start));
		u64 room;
		u8 *p;

		if (!f || PFN_PHYS(f->page.index) >= end)
			return;
		start = max(start, PFN_PHYS(f->page.index));
		p = folio_bytes(f, start, &room);
		memset(p, 0, min(room, end - start));
		start += room;
	}
}

int shmem_truncate(struct inode *inode, u64 size)
{
	struct shmem *s = inode->shmem;
	u64 old = inode->size;

	if (size > SHMEM_SIZE_MAX)
		return -EFBIG;
	if (size != old && (s->frozen || s->seals & (size < old ? F_SEAL_SHRINK : F_SEAL_GROW)))
		return -EPERM;
	mutex_lock(&s->mapping.lock);
	WRITE_ONCE(inode->size, size);
	if (size <= old) {		/* also what is provided beyond the end, and bytes that were written there */
		unmap_mapping_range(&s->mapping, PFN_UP(size), ~0UL >> PAGE_SHIFT, true);
		if (size % PAGE_SIZE)
			zero_range(&s->mapping, size, ALIGN_UP(size, PAGE_SIZE));
		mapping_truncate(&s->mapping, PFN_UP(size));
		/* What is left of a large folio that could not be split must read as zeros should the file grow. */
		zero_range(&s->mapping, ALIGN_UP(size, PAGE_SIZE), ALIGN_UP(size, PAGE_SIZE) + PMD_SIZE * 2);
	}
	mutex_unlock(&s->mapping.lock);
	return 0;
}

static void punch_hole(struct shmem *s, u64 start, u64 end)
{
	u64 first = PFN_UP(start), last = PFN_DOWN(end);	/* whole pages: [first, last) */
	struct folio *f;

	mutex_lock(&s->mapping.lock);
	if (first < last)
		unmap_mapping_range(&s->mapping, first, last - 1, false);
	zero_range(&s->mapping, start, end);
	for (f = mapping_next(&s->mapping, first); f && f->page.index < last; ) {
		u64 next = f->page.index + folio_nr_pages(f);

		if (f->page.index >= first && next <= last)
			mapping_remove(&s->mapping, f);
		f = mapping_next(&s->mapping, next);
	}
	mutex_unlock(&s->mapping.lock);
}

static int allocate_range(struct inode *inode, u64 start, u64 end, u64 size)
{
	struct shmem *s = inode->shmem;
	u64 pages = PFN_UP(end) - PFN_DOWN(start);

	if (pages > s->mapping.nr_pages + nr_free_pages())
		return -ENOSPC;
	for (u64 i = PFN_DOWN(start); i < PFN_UP(end); ) {
		struct folio *f;

		mutex_lock(&s->mapping.lock);
		f = mapping_find(&s->mapping, i);	/* one that was provided before is data from now on */
		f = f ? for_use(f) : get_folio(s, i, size, GFP_MOVABLE);
		mutex_unlock(&s->mapping.lock);
		if (IS_ERR(f))
			return -ENOSPC;
		i = f->page.index + folio_nr_pages(f);
	}
	return 0;
}

static int shmem_fallocate(struct file *file, int mode, loff_t off, loff_t len)
{
	struct inode *inode = file->inode;
	struct shmem *s = inode->shmem;
	u64 start = (u64)off, end = start + (u64)len;
	int err = 0;

	if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
		return -EOPNOTSUPP;
	mutex_lock(&inode->lock);
	if (s->frozen) {
		err = -EPERM;
	} else if (mode & FALLOC_FL_PUNCH_HOLE) {
		if (s->seals & SEALS_AGAINST_WRITE)
			err = -EPERM;
		else
			punch_hole(s, start, end);
	} else if (end > inode->size && s->seals & F_SEAL_GROW) {	/* also what would keep the size */
		err = -EPERM;
	} else {
		err = allocate_range(inode, start, end, max(end, inode->size));
		if (!err && !(mode & FALLOC_FL_KEEP_SIZE) && end > inode->size)
			WRITE_ONCE(inode->size, end);
	}
	mutex_unlock(&inode->lock);
	return err;
}

static loff_t shmem_llseek(struct file *file, loff_t off, int whence)
{
	struct inode *inode = file->inode;
	struct mapping *m = &inode->shmem->mapping;
	u64 pos = (u64)off, result;

	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return generic_llseek(file, off, whence);
	mutex_lock(&inode->lock);
	if (off < 0 || pos >= inode->size) {
		mutex_unlock(&inode->lock);
		return -ENXIO;
	}
	mutex_lock(&m->lock);
	if (whence == SEEK_DATA) {
		struct folio *f = mapping_next(m, PFN_DOWN(pos));

		while (f && !is_data(f))
			f = mapping_next(m, f->page.index + folio_nr_pages(f));
		result = f ? max(pos, PFN_PHYS(f->page.index)) : inode->size;
	} else {
		struct folio *f = mapping_find(m, PFN_DOWN(pos));

		result = pos;
		for (; f && is_data(f); f = mapping_find(m, PFN_DOWN(result)))
			result = PFN_PHYS(f->page.index + folio_nr_pages(f));
		result = min(result, inode->size);
	}
	mutex_unlock(&m->lock);
	if (whence == SEEK_DATA && result >= inode->size) {
		mutex_unlock(&inode->lock);
		return -ENXIO;
	}
	file->pos = (loff_t)result;
	mutex_unlock(&inode->lock);
	return (loff_t)result;
}

static int shmem_mmap(struct file *file, struct vma *vma)
{
	struct shmem *s = file->inode->shmem;

	if (vma->flags & VM_SHARED && s->seals & SEALS_AGAINST_WRITE) {
		if (vma->flags & VM_WRITE)
			return -EPERM;
		vma->flags &= ~VM_MAYWRITE;
	}
	vma->mapping = &s->mapping;
	return 0;
}

const struct file_ops shmem_file_ops = {
	.read = shmem_read,
	.write = shmem_write,
	.llseek = shmem_llseek,
	.mmap = shmem_mmap,
	.fallocate = shmem_fallocate,
};

/* ---- pinning, for those who need pages to stay where they are ---- */

static bool in_scratch(const struct folio *f)
{
	return get_pageblock_migratetype(folio_pfn(f)) == MIGRATE_CMA;
}

static int unpin(struct folio *f, void *ctx)
{
	(void)ctx;
	f->page.flags &= ~PG_PINNED;
	return 0;
}

/* The first one that is missing, or not where it may stay. */
static int pin(struct folio *f, void *ctx)
{
	u64 *index = ctx;

	if (f->page.index > *index || in_scratch(f))
		return 1;
	f->page.flags |= PG_PINNED;
	*index = f->page.index + folio_nr_pages(f);
	return 0;
}

struct folio *shmem_get_pinnable(struct shmem *s, u64 index, u64 size)
{
	struct folio *f = for_use(get_folio(s, index, size, GFP_KERNEL));
	int err;

	if (IS_ERR(f) || !in_scratch(f))
		return f;
	err = migrate_folio(&s->mapping, f);
	return err ? ERR_PTR(err) : mapping_find(&s->mapping, index);
}

/* The same; the lock is let go while somebody uses the folio. */
static struct folio *get_unmovable(struct shmem *s, u64 index, u64 size)
{
	while (1) {
		struct folio *f = shmem_get_pinnable(s, index, size);

		if (f != ERR_PTR(-EBUSY))
			return f;
		mutex_unlock(&s->mapping.lock);
		yield();
		mutex_lock(&s->mapping.lock);
	}
}

int shmem_pin(struct inode *inode, u64 size)
{
	struct shmem *s = inode->shmem;
	u64 pages = PFN_UP(size), index = 0;
	int err = 0;

	/* A sparse file that memory can not hold is refused before it has eaten all of it. */
	if (pages > s->mapping.nr_pages + nr_free_pages())
		return -ENOMEM;
	mutex_lock(&s->mapping.lock);
	while (!err && index < pages) {
		struct folio *f = mapping_find(&s->mapping, index);

		if (f && !in_scratch(f)) {
			mapping_walk(&s->mapping, index, pages, pin, &index);
			continue;
		}
		f = get_unmovable(s, index, size);
		if (IS_ERR(f))
			err = (int)PTR_ERR(f);
		else
			pin(f, &index);
	}
	if (err)
		mapping_walk(&s->mapping, 0, index, unpin, NULL);
	mutex_unlock(&s->mapping.lock);
	return err;
}

void shmem_unpin(struct inode *inode)
{
	struct mapping *m = &inode->shmem->mapping;

	mutex_lock(&m->lock);
	mapping_walk(m, 0, ~0UL, unpin, NULL);
	mutex_unlock(&m->lock);
}
