/* memfds, and any other file in memory that has no name: contents, size, position and seals.
 *
 *	record (one page) -> vmalloc area of { pfn, index } -> folios, which stay where they are
 *
 * While a file is preserved its size and its pages are fixed, its pages are pinned outside scratch, and its contents may
 * change until the jump. What goes over is what is in memory then.
 *
 * A record of the previous kernel is looked at as a whole before anything of it is taken (own): a file that is damaged in
 * one place is refused with all of its memory untouched.
 */
#define pr_fmt(fmt) "memfd_luo: " fmt
#include "luo_internal.h"
#include "luo_devices.h"
#include "init.h"
#include "pagecache.h"
#include "panic.h"
#include "printk.h"
#include "string.h"
#include "vfs.h"

#define PAGES_MAX	0xffffffffUL

static bool memfd_can_preserve(struct liveupdate_file_handler *h, struct file *file)
{
	(void)h;
	return shmem_inode(file->inode) && !file->inode->nlink;
}

static u64 memfd_get_id(struct file *file) { return (u64)file->inode; }

/* ---- the old kernel ---- */

struct listing {
	struct memfd_luo_folio_ser *array;
	u64 nr;
};

static int count_folio(struct folio *f, void *ctx)
{
	(void)f;
	++*(u64 *)ctx;
	return 0;
}

static int preserve_folio(struct folio *f, void *ctx)
{
	struct listing *l = ctx;
	int err = kho_preserve_folio(f);

	if (err)
		return err;
	f->page.flags |= PG_DIRTY | PG_UPTODATE;
	l->array[l->nr++] = (struct memfd_luo_folio_ser){
		folio_pfn(f) | MEMFD_LUO_FOLIO_DIRTY | MEMFD_LUO_FOLIO_UPTODATE, f->page.index,
	};
	return 0;
}

static int unpreserve_folio(struct folio *f, void *ctx)
{
	u64 *left = ctx;

	if (left && !(*left)--)
		return 1;
	kho_unpreserve_folio(f);
	shmem_unpin_folio(f);
	return 0;
}

/* What is in [0, size) goes into an array. It is pinned, so nothing comes, goes or moves. */
static int preserve_contents(struct inode *inode, struct memfd_luo_ser *ser, void **array)
{
	struct mapping *m = &inode->shmem->mapping;
	u64 pages = PFN_UP(inode->size);
	struct listing l = { 0 };
	int err;

	*array = NULL;
	if (!inode->size)
		return 0;
	err = shmem_pin(inode, inode->size);
	if (err)
		return err;
	mapping_walk(m, 0, pages, count_folio, &ser->nr_folios);
	*array = l.array = vzalloc(ser->nr_folios * sizeof(*l.array));
	err = -ENOMEM;
	if (!l.array)
		goto out_unpin;
	err = mapping_walk(m, 0, pages, preserve_folio, &l);
	if (err)
		goto out_folios;
	err = kho_preserve_vmalloc(l.array, &ser->folios);
	if (!err)
		return 0;
out_folios:
	mapping_walk(m, 0, pages, unpreserve_folio, &l.nr);
	vfree(l.array);
out_unpin:
	shmem_unpin(inode);
	return err;
}

static int memfd_preserve(struct liveupdate_file_args *a)
{
	struct inode *inode = a->file->inode;
	struct shmem *s = inode->shmem;
	struct memfd_luo_ser *ser;
	int err;

	mutex_lock(&inode->lock);
	s->frozen = true;
	ser = kho_alloc_preserve(sizeof(*ser));
	err = (int)PTR_ERR(ser);
	if (IS_ERR(ser))
		goto out_thaw;
	err = -EOPNOTSUPP;
	if (s->seals & ~MEMFD_LUO_ALL_SEALS)
		goto out_ser;
	ser->seals = s->seals;
	ser->pos = (u64)a->file->pos;
	ser->size = inode->size;
	err = -EFBIG;
	if (PFN_UP(inode->size) > PAGES_MAX)
		goto out_ser;
	err = preserve_contents(inode, ser, &a->private_data);
	if (err)
		goto out_ser;
	a->serialized_data = virt_to_phys(ser);
	mutex_unlock(&inode->lock);
	return 0;
out_ser:
	kho_unpreserve_free(ser);
out_thaw:
	s->frozen = false;
	mutex_unlock(&inode->lock);
	return err;
}

static u64 nr_unpreserved;

u64 memfd_luo_unpreserved(void) { return nr_unpreserved; }

static void memfd_unpreserve(struct liveupdate_file_args *a)
{
	struct inode *inode = a->file->inode;
	struct memfd_luo_ser *ser = phys_to_virt(a->serialized_data);

	nr_unpreserved++;
	mutex_lock(&inode->lock);
	if (ser->nr_folios) {
		kho_unpreserve_vmalloc(&ser->folios);
		mapping_walk(&inode->shmem->mapping, 0, PFN_UP(inode->size), unpreserve_folio, NULL);
		vfree(a->private_data);
	}
	inode->shmem->frozen = false;
	mutex_unlock(&inode->lock);
	kho_unpreserve_free(ser);
}

/* Position and seals may have changed since. (Linux reads only the position again, and forgets seals that were added.) */
static int memfd_freeze(struct liveupdate_file_args *a)
{
	struct memfd_luo_ser *ser = phys_to_virt(a->serialized_data);

	ser->pos = (u64)a->file->pos;
	if (!luo_strict_linux)
		ser->seals = a->file->inode->shmem->seals;
	return 0;
}

/* ---- the new kernel ---- */

/* What own_file() learns about a file while it goes through all that the record leads to. The first problem decides, the
 * rest is owned all the same, so that nobody else gets it. */
struct survey {
	struct liveupdate_file_args *args;
	u64 pages;			/* that the file has by its size */
	u64 next;			/* page where the next folio must begin */
	u64 nr;				/* records seen */
	int err;
};

static void problem(struct survey *s, int err, const char *what, u64 where)
{
	if (s->err)
		return;
	s->err = err;
	pr_err("%s (%#lx): the file is refused\n", what, where);
}

static u64 pfn_of(const struct memfd_luo_folio_ser *r) { return r->pfn_flags & ((1UL << MEMFD_LUO_PFN_BITS) - 1); }

static void own_folio(struct survey *s, const struct memfd_luo_folio_ser *r)
{
	u64 phys = PFN_PHYS(pfn_of(r)), nr = s->nr++;
	unsigned int order;
	int err;

	if (!phys)			/* a hole: whether it may be one, the next folio or the end says */
		return;
	err = liveupdate_own(s->args, phys, &order);
	if (err && !s->err)
		pr_err("Unable to restore folio at physical address: %lx\n", phys);
	if (err) {
		problem(s, -EIO, "a folio is not there, or is another file's too", phys);
		return;
	}
	if (r->index < s->next) {
		if (!s->err)
			pr_err("shmem: failed to add to page cache folio index %lu: %d\n", nr, -EEXIST);
		problem(s, -EEXIST, "two folios are for the same page", r->index);
	} else if (r->index != s->next) {
		problem(s, -EIO, "no folio is there for a page", s->next);
	} else if (!IS_ALIGNED(r->index, 1UL << order) || r->index >= s->pages) {
		problem(s, -EIO, "a folio can not be where it says, or is behind the end", r->index);
	} else if (!(r->pfn_flags & MEMFD_LUO_FOLIO_UPTODATE)) {
		problem(s, -EIO, "a folio says that its contents are not there", phys);
	}
	s->next = r->index + (1UL << order);
}

/* One block of the array, and the records in it. False: it can not be read. */
static bool own_block(struct survey *s, const struct memfd_luo_ser *ser, u64 phys)
{
	u64 size = PAGE_SIZE << ser->folios.order;
	unsigned int order;
	bool ok = true;

	for (u64 at = phys; at < phys + size; at += PAGE_SIZE << order)
		if (liveupdate_own(s->args, at, &order) || PAGE_SIZE << order > phys + size - at) {
			order = 0;
			ok = false;
		}
	if (ok)
		for (u64 k = 0; k < size / sizeof(struct memfd_luo_folio_ser) && s->nr < ser->nr_folios; k++)
			own_folio(s, (struct memfd_luo_folio_ser *)phys_to_virt(phys) + k);
	return ok;
}

/* The array, by its chunks. It has exactly the blocks that it says, and room for the records. */
static bool own_array(struct survey *s, const struct memfd_luo_ser *ser)
{
	const struct kho_vmalloc *v = &ser->folios;
	u64 left = v->total_pages >> (v->order & 63);
	unsigned int order;

	if (v->order > MAX_PAGE_ORDER || v->total_pages & ((1UL << v->order) - 1) ||
	    ser->nr_folios > PFN_PHYS(v->total_pages) / sizeof(struct memfd_luo_folio_ser))
		return false;
	for (u64 at = v->first; at;) {
		const struct kho_vmalloc_chunk *chunk;
		u32 i;

		if (liveupdate_own(s->args, at, &order) || order)
			return false;
		chunk = phys_to_virt(at);
		for (i = 0; i < ARRAY_SIZE(chunk->phys) && chunk->phys[i]; i++)
			if (!left-- || !own_block(s, ser, chunk->phys[i]))
				return false;
		if (!i && chunk->next)
			return false;
		at = chunk->next;
	}
	return !left;
}

static int memfd_own(struct liveupdate_file_args *a)
{
	u64 at = a->serialized_data;
	struct survey s = { .args = a };
	const struct memfd_luo_ser *ser;
	unsigned int order;

	if (liveupdate_own(a, at, &order) || order) {
		problem(&s, -EIO, "the record is not there, or is another one's too", at);
		return s.err;
	}
	ser = phys_to_virt(at);
	s.pages = PFN_UP(ser->size);
	if (ser->seals & ~MEMFD_LUO_ALL_SEALS)
		problem(&s, -EOPNOTSUPP, "unknown seals", ser->seals);
	if (ser->size > SHMEM_SIZE_MAX || s.pages > PAGES_MAX)
		problem(&s, -EIO, "impossible size", ser->size);
	if (ser->flags)
		pr_warn("unknown flags %#x in a record are ignored\n", ser->flags);
	if (ser->nr_folios && !own_array(&s, ser))
		problem(&s, -EINVAL, "the array of folios is damaged", ser->folios.first);
	if (s.next < s.pages)
		problem(&s, -EIO, "no folio is there for a page", s.next);
	return s.err;
}

/* ---- taking ---- */

/* A folio of this kernel again. NULL: it is not there. */
static struct folio *restore(const struct memfd_luo_folio_ser *r)
{
	u64 phys = PFN_PHYS(pfn_of(r));
	struct folio *f = kho_restore_folio(phys);

	if (!f) {
		pr_err("Unable to restore folio at physical address: %lx\n", phys);
		return NULL;
	}
	if (!(r->pfn_flags & MEMFD_LUO_FOLIO_UPTODATE))
		memset(folio_address(f), 0, folio_nr_pages(f) << PAGE_SHIFT);
	f->page.flags |= PG_DIRTY | PG_UPTODATE;
	return f;
}

/* Restores every folio: into the mapping, or to be freed without one, or when one before it could not be had. */
static int take_folios(struct memfd_luo_ser *ser, struct mapping *m)
{
	struct memfd_luo_folio_ser *array;
	int err = 0;

	if (!ser->nr_folios)
		return 0;
	if (ser->nr_folios > PFN_PHYS(ser->folios.total_pages) / sizeof(*array))
		return -EINVAL;
	array = kho_restore_vmalloc(&ser->folios);
	if (!array)
		return -EINVAL;
	for (u64 i = 0; i < ser->nr_folios; i++) {
		struct folio *f;

		if (!pfn_of(&array[i]))
			continue;
		f = restore(&array[i]);
		if (!f) {
			err = err ? err : -EIO;
			continue;
		}
		if (m && !err) {
			err = mapping_add(m, f, array[i].index);
			if (err)
				pr_err("shmem: failed to add to page cache folio index %lu: %d\n", i, err);
		}
		folio_put(f);		/* the mapping has its own reference; without one it is free */
	}
	vfree(array);
	return err;
}

static struct memfd_luo_ser *record_at(u64 data)
{
	unsigned int order;

	return kho_is_preserved(claim(data), &order) && !order ? phys_to_virt(data) : NULL;
}

/* A file that may not be executed, but can be written, was made so (MFD_NOEXEC_SEAL), and stays so. One that is sealed
 * against both may have been executable. (Linux takes that for granted, and seals every such file against writing.) */
static void mode_and_seals(const struct memfd_luo_ser *ser, u32 *mode, u32 *seals)
{
	bool noexec = ser->seals & F_SEAL_EXEC && ~ser->seals & F_SEALS_WRITE;

	*mode = noexec && !luo_strict_linux ? 0666 : 0777;
	*seals = ser->seals | (noexec && luo_strict_linux ? F_SEALS_WRITE : 0);
}

static int memfd_retrieve(struct liveupdate_file_args *a)
{
	struct memfd_luo_ser *ser = record_at(a->serialized_data);
	struct file *file;
	u32 mode, seals;
	int err;

	if (!ser)
		return -EIO;
	if (ser->seals & ~MEMFD_LUO_ALL_SEALS) {
		kho_restore_free(ser);
		return -EOPNOTSUPP;
	}
	mode_and_seals(ser, &mode, &seals);
	file = shmem_file_setup("", ser->size, seals, mode, O_RDWR | O_LARGEFILE);
	if (IS_ERR(file))
		return (int)PTR_ERR(file);
	if (ser->pos <= SHMEM_SIZE_MAX)
		file->pos = (loff_t)ser->pos;
	else
		pr_warn("impossible position %#lx: it is 0 now\n", ser->pos);
	mutex_lock(&file->inode->shmem->mapping.lock);
	err = take_folios(ser, &file->inode->shmem->mapping);
	mutex_unlock(&file->inode->shmem->mapping.lock);
	kho_restore_free(ser);
	if (err) {
		fput(file);
		return err;
	}
	a->file = file;
	return 0;
}

/* One that nobody asked for is freed. */
static void memfd_finish(struct liveupdate_file_args *a)
{
	struct memfd_luo_ser *ser = a->retrieve_status ? NULL : record_at(a->serialized_data);

	if (!ser)
		return;
	take_folios(ser, NULL);
	kho_restore_free(ser);
}

static const struct liveupdate_file_ops memfd_luo_ops = {
	.can_preserve = memfd_can_preserve,
	.preserve = memfd_preserve,
	.unpreserve = memfd_unpreserve,
	.freeze = memfd_freeze,
	.own = memfd_own,
	.retrieve = memfd_retrieve,
	.finish = memfd_finish,
	.get_id = memfd_get_id,
};
static struct liveupdate_file_handler memfd_luo_handler = { .ops = &memfd_luo_ops, .compatible = MEMFD_LUO_COMPATIBLE };

static int memfd_luo_init(void)
{
	int err = liveupdate_register_file_handler(&memfd_luo_handler);

	return err == -EOPNOTSUPP ? 0 : err;
}
late_initcall(memfd_luo_init);
