/* memfds, and any other file in memory that has no name: contents, size, position and seals.
 *
 *	record (one page) -> vmalloc area of { pfn, index } -> folios, which stay where they are
 *
 * While a file is preserved its size and its pages are fixed, its pages are pinned outside scratch, and its contents may
 * change until the jump. What goes over is what is in memory then.
 *
 * A record of the previous kernel is looked at as a whole before anything of it is taken: a file that is damaged in one
 * place is refused (-EIO) with all of its memory untouched. `luo_strict=linux` gives Linux's errors for it instead.
 */
#define pr_fmt(fmt) "memfd_luo: " fmt
#include "luo_internal.h"
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

static void unpreserve_folios(struct mapping *m, u64 end)
{
	struct folio *f;

	for (f = mapping_next(m, 0); f && f->page.index < end; f = mapping_next(m, f->page.index + folio_nr_pages(f)))
		kho_unpreserve_folio(f);
}

/* All folios that cover [0, pages), into the array. They are pinned, so none comes, goes or moves. */
static int preserve_folios(struct mapping *m, u64 pages, struct memfd_luo_folio_ser *out)
{
	u64 n = 0;
	struct folio *f;

	for (f = mapping_next(m, 0); f && f->page.index < pages; f = mapping_next(m, f->page.index + folio_nr_pages(f))) {
		int err = kho_preserve_folio(f);

		if (err) {
			unpreserve_folios(m, f->page.index);
			return err;
		}
		f->page.flags |= PG_DIRTY | PG_UPTODATE;
		out[n].pfn_flags = folio_pfn(f) | MEMFD_LUO_FOLIO_DIRTY | MEMFD_LUO_FOLIO_UPTODATE;
		out[n].index = f->page.index;
		n++;
	}
	return 0;
}

static u64 count_folios(struct mapping *m, u64 pages)
{
	struct folio *f;
	u64 n = 0;

	for (f = mapping_next(m, 0); f && f->page.index < pages; f = mapping_next(m, f->page.index + folio_nr_pages(f)))
		n++;
	return n;
}

static int preserve_contents(struct inode *inode, struct memfd_luo_ser *ser, void **array)
{
	struct mapping *m = &inode->shmem->mapping;
	u64 pages = PFN_UP(inode->size);
	int err;

	*array = NULL;
	if (!inode->size)
		return 0;
	err = shmem_pin(inode, inode->size);
	if (err)
		return err;
	ser->nr_folios = count_folios(m, pages);
	*array = vmalloc(ser->nr_folios * sizeof(struct memfd_luo_folio_ser));
	err = -ENOMEM;
	if (!*array)
		goto out_unpin;
	err = preserve_folios(m, pages, *array);
	if (err)
		goto out_array;
	err = kho_preserve_vmalloc(*array, &ser->folios);
	if (!err)
		return 0;
	unpreserve_folios(m, pages);
out_array:
	vfree(*array);
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

static void memfd_unpreserve(struct liveupdate_file_args *a)
{
	struct inode *inode = a->file->inode;
	struct memfd_luo_ser *ser = phys_to_virt(a->serialized_data);

	mutex_lock(&inode->lock);
	if (ser->nr_folios) {
		kho_unpreserve_vmalloc(&ser->folios);
		unpreserve_folios(&inode->shmem->mapping, PFN_UP(inode->size));
		vfree(a->private_data);
		shmem_unpin(inode);
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

/* Calls fn for each record of the array, straight from the blocks of the vmalloc area that it was. What is not a
 * preserved page is not read. 0, fn's first error, or -EIO. */
static int for_each_record(const struct memfd_luo_ser *ser, int (*fn)(const struct memfd_luo_folio_ser *r, void *ctx),
			   void *ctx)
{
	u64 left = ser->nr_folios, chunk_pa = ser->folios.first, per_block, blocks = 0;
	unsigned int order;

	if (ser->folios.order > MAX_PAGE_ORDER)
		return -EIO;
	per_block = (PAGE_SIZE << ser->folios.order) / sizeof(struct memfd_luo_folio_ser);
	while (chunk_pa && left) {
		const struct kho_vmalloc_chunk *chunk;

		if (!kho_is_preserved(claim(chunk_pa), &order) || order)
			return -EIO;
		chunk = phys_to_virt(chunk_pa);
		for (u32 i = 0; i < ARRAY_SIZE(chunk->phys) && chunk->phys[i] && left; i++) {
			const struct memfd_luo_folio_ser *r;

			if (!kho_is_preserved(claim(chunk->phys[i]), &order) || order != ser->folios.order ||
			    ++blocks << order > ser->folios.total_pages)
				return -EIO;
			r = phys_to_virt(chunk->phys[i]);
			for (u64 k = 0; k < per_block && left; k++, left--) {
				int err = fn(&r[k], ctx);

				if (err)
					return err;
			}
		}
		chunk_pa = chunk->next;
	}
	return left ? -EIO : 0;
}

static u64 pfn_of(const struct memfd_luo_folio_ser *r) { return r->pfn_flags & ((1UL << MEMFD_LUO_PFN_BITS) - 1); }

struct check {
	u64 next;			/* page that the next folio must begin at */
	u64 found;			/* pages of folios that are fine */
	const char *problem;
	u64 at;
};

static int check_record(const struct memfd_luo_folio_ser *r, void *ctx)
{
	struct check *c = ctx;
	unsigned int order;

	c->at = PFN_PHYS(pfn_of(r));
	if (!kho_is_preserved(claim(c->at), &order))
		c->problem = "a folio is not preserved";
	else if (r->index != c->next || !IS_ALIGNED(r->index, 1UL << order))
		c->problem = "the folios are not in order without gaps";
	else if ((r->pfn_flags >> MEMFD_LUO_PFN_BITS) != 3)
		c->problem = "a folio has unknown flags";
	if (c->problem)
		return -EIO;
	c->next += 1UL << order;
	c->found += 1UL << order;
	return 0;
}

static int refuse(struct check *c, const char *problem)
{
	pr_err("%s (%#lx): the file is refused\n", problem, c->at);
	luo_count_refused_pages(c->found);
	return -EIO;
}

/* Verifies a record and everything that it reaches. */
static int check_file(const struct memfd_luo_ser *ser, u64 at)
{
	struct check c = { .at = at };
	u64 pages = PFN_UP(ser->size);

	if (ser->flags)
		return refuse(&c, "the record has unknown flags");
	if (pages > PAGES_MAX || (s64)ser->pos < 0 || (!ser->nr_folios) != !pages || ser->nr_folios > pages)
		return refuse(&c, "size, position and number of folios do not fit");
	if (!pages)
		return 0;
	if (for_each_record(ser, check_record, &c))
		return refuse(&c, c.problem ? c.problem : "the array of folios is damaged");
	/* The last folio may reach beyond the end of the file, but not begin there. */
	c.at = at;
	if (c.next < pages)
		return refuse(&c, "the folios end before the file does");
	return 0;
}

struct adopt {
	struct mapping *m;
	int err;
	bool discard;
};

static int adopt_record(const struct memfd_luo_folio_ser *r, void *ctx)
{
	struct adopt *a = ctx;
	struct folio *f;
	int err = 0;

	if (!pfn_of(r))
		return 0;
	f = kho_restore_folio(PFN_PHYS(pfn_of(r)));
	if (!f) {
		pr_err("Unable to restore folio at physical address: %lx\n", PFN_PHYS(pfn_of(r)));
		a->err = a->err ? a->err : -EIO;
		return 0;
	}
	f->page.flags |= PG_DIRTY | PG_UPTODATE;
	if (!a->discard && !a->err) {
		err = mapping_add(a->m, f, r->index);
		if (err) {
			pr_err("shmem: failed to add to page cache folio index %lu: %d\n", r->index, err);
			a->err = err;
		}
	}
	folio_put(f);			/* the mapping has its own reference; without one it is free */
	return 0;
}

/* Restores every folio; into the mapping, or to be freed. Then the array goes. */
static int take_folios(struct memfd_luo_ser *ser, struct mapping *m, bool discard)
{
	struct adopt a = { .m = m, .discard = discard };
	struct memfd_luo_folio_ser *array;

	if (!ser->nr_folios)
		return 0;
	array = kho_restore_vmalloc(&ser->folios);
	if (!array)
		return -EINVAL;
	for (u64 i = 0; i < ser->nr_folios; i++)
		adopt_record(&array[i], &a);
	vfree(array);
	return a.err;
}

static struct memfd_luo_ser *record_at(u64 data)
{
	unsigned int order;

	return kho_is_preserved(claim(data), &order) && !order ? phys_to_virt(data) : NULL;
}

static int memfd_retrieve(struct liveupdate_file_args *a)
{
	struct memfd_luo_ser *ser = record_at(a->serialized_data);
	struct file *file;
	u32 mode = 0777;
	int err;

	if (!ser) {
		pr_err("the record at %#lx is not preserved: the file is refused\n", a->serialized_data);
		return luo_strict_linux ? -EINVAL : -EIO;
	}
	if (ser->seals & ~MEMFD_LUO_ALL_SEALS) {
		pr_err("unknown seals %#x: the file is refused\n", ser->seals);
		return -EOPNOTSUPP;
	}
	err = check_file(ser, a->serialized_data);
	if (err)
		return err;
	/* A file that may not be executed stays one. (Linux seals it against writing, too.) */
	if (ser->seals & F_SEAL_EXEC)
		mode = 0666;
	file = shmem_file_setup("", ser->size, ser->seals, mode, O_RDWR | O_LARGEFILE);
	if (IS_ERR(file))
		return (int)PTR_ERR(file);
	file->pos = (loff_t)ser->pos;
	mutex_lock(&file->inode->shmem->mapping.lock);
	err = take_folios(ser, &file->inode->shmem->mapping, false);
	mutex_unlock(&file->inode->shmem->mapping.lock);
	kho_restore_free(ser);
	if (err) {
		fput(file);
		return err;
	}
	a->file = file;
	return 0;
}

static void memfd_finish(struct liveupdate_file_args *a)
{
	struct memfd_luo_ser *ser;

	if (a->retrieve_status)
		return;
	ser = record_at(a->serialized_data);
	if (!ser || check_file(ser, a->serialized_data)) {
		pr_warn("what belongs to the record at %#lx stays reserved\n", a->serialized_data);
		return;
	}
	take_folios(ser, NULL, true);
	kho_restore_free(ser);
}

static const struct liveupdate_file_ops memfd_luo_ops = {
	.can_preserve = memfd_can_preserve,
	.preserve = memfd_preserve,
	.unpreserve = memfd_unpreserve,
	.freeze = memfd_freeze,
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
