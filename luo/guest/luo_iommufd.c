/* Files of /dev/iommu: objects, areas and the domains behind them.
 *
 *	record -> objects, areas, extents of physical memory, ranges	(abi_devices.h; one block)
 *	domains: their tables stay where they are, hardware uses them all the time
 *
 * Memory that is mapped belongs to files that hand it over themselves: memfds of any session. An iommufd is refused
 * whose memory is something else, because a device would go on writing there. From preserving on nothing of the iommufd
 * changes. What its functions are is written down at freeze, when it is known which of them go over.
 *
 * In the next kernel all of it was verified before the first page was given out, and the memory has a reference
 * (PG_DMA), which a retrieved file takes over when it is finished. Until then it stays frozen.
 */
#define pr_fmt(fmt) "iommufd_luo: " fmt
#include "luo_internal.h"
#include "luo_devices.h"
#include "../../kernels/drivers/iommufd_internal.h"
#include "../../kernels/drivers/vtd.h"
#include "init.h"
#include "iommu.h"
#include "pagecache.h"
#include "panic.h"
#include "pci.h"
#include "printk.h"
#include "string.h"
#include "vfs.h"

/* ---- the old kernel ---- */

static struct iommufd *ctx_of(struct file *file)
{
	struct iommufd *ctx = iommufd_from_file(file);

	if (IS_ERR(ctx))
		return NULL;
	iommufd_put(ctx);		/* whoever gave the file holds it */
	return ctx;
}

static bool iommufd_can_preserve(struct liveupdate_file_handler *h, struct file *file)
{
	(void)h;
	return ctx_of(file) != NULL;
}

static u64 iommufd_get_id(struct file *file) { return (u64)ctx_of(file); }

struct counts {
	u32 objects, areas, extents, ranges;
};

static u64 size_of(const struct counts *n)
{
	return sizeof(struct iommufd_luemu_ser) + n->objects * sizeof(struct iommufd_luemu_object) +
	       n->areas * sizeof(struct iommufd_luemu_area) + n->extents * sizeof(struct iommufd_luemu_extent) +
	       n->ranges * sizeof(struct iommufd_luemu_range);
}

/* A function that does not go over is none of the next kernel's business. */
static bool goes_over(const struct iommufd_object *o, bool freezing)
{
	return o->kind != IOMMUFD_LUEMU_DEVICE || (o->hwpt && (!freezing || o->dev->preserved));
}

static struct counts count(struct iommufd *ctx, bool freezing)
{
	struct counts n = { 0 };
	struct iommufd_object *o;
	struct iommufd_area *a;
	struct iommufd_range *r;

	list_for_each_entry(o, &ctx->objects, list) {
		n.objects += goes_over(o, freezing);
		if (o->kind != IOMMUFD_LUEMU_IOAS)
			continue;
		list_for_each_entry(a, &o->areas, list) {
			n.areas++;
			n.extents += a->memory.nr;
		}
		list_for_each_entry(r, &o->allowed, list)
			n.ranges++;
	}
	return n;
}

/* Memory that its own file hands over, and that therefore stays where it is. */
static bool is_preserved(const struct iommufd_luemu_extent *e)
{
	const struct mapping *last = NULL;

	for (u64 at = e->phys, end = at + e->size; at < end;) {
		const struct folio *f = page_folio(phys_to_page(at));
		const struct mapping *m = f->page.mapping;

		if (!m || (m != last && !m->inode->shmem->frozen))
			return false;
		last = m;
		at = PFN_PHYS(folio_pfn(f) + folio_nr_pages(f));
	}
	return true;
}

static void write_object(struct iommufd_luemu_object *to, const struct iommufd_object *o)
{
	*to = (struct iommufd_luemu_object){ .id = o->id, .kind = o->kind };
	if (o->kind == IOMMUFD_LUEMU_IOAS) {
		to->flags = o->small ? IOMMUFD_LUEMU_SMALL : 0;
	} else if (o->kind == IOMMUFD_LUEMU_HWPT) {
		to->parent = o->ioas->id;
		to->flags = o->automatic ? IOMMUFD_LUEMU_AUTO : 0;
		to->arg = iommu_domain_id(o->domain);
	} else {
		to->parent = o->hwpt->id;
		to->arg = o->dev->bdf;
	}
}

/* The whole record. It has room: nothing was added since it was made. 0, or -EINVAL and why in the log. */
static int write_record(struct iommufd *ctx, struct iommufd_luemu_ser *s, bool freezing)
{
	struct counts n = count(ctx, freezing), at = { 0 };
	struct iommufd_object *o;
	struct iommufd_area *a;
	struct iommufd_range *r;

	*s = (struct iommufd_luemu_ser){
		.size = size_of(&n), .nr_objects = n.objects, .nr_areas = n.areas, .nr_extents = n.extents,
		.nr_ranges = n.ranges, .rlimit_mode = ctx->rlimit_mode,
	};
	list_for_each_entry(o, &ctx->objects, list) {
		if (goes_over(o, freezing))
			write_object(iommufd_luemu_objects(s) + at.objects++, o);
		if (o->kind != IOMMUFD_LUEMU_IOAS)
			continue;
		list_for_each_entry(a, &o->areas, list) {
			iommufd_luemu_areas(s)[at.areas++] = (struct iommufd_luemu_area){
				.iova = a->iova, .size = a->size, .ioas = o->id, .prot = a->prot,
				.first_extent = at.extents, .nr_extents = a->memory.nr,
			};
			for (u32 i = 0; i < a->memory.nr; i++) {
				if (!is_preserved(&a->memory.v[i])) {
					pr_err("the memory at IOVA %#lx is not handed over by a file of its own\n",
					       a->iova);
					return -EINVAL;
				}
				iommufd_luemu_extents(s)[at.extents++] = a->memory.v[i];
			}
		}
		list_for_each_entry(r, &o->allowed, list)
			iommufd_luemu_ranges(s)[at.ranges++] = (struct iommufd_luemu_range){
				.start = r->start, .last = r->last, .ioas = o->id, .kind = IOMMUFD_LUEMU_ALLOWED,
			};
	}
	s->checksum = devices_sum(&s->checksum + 1, s->size - 8);
	return 0;
}

/* Domains up to `end`, or all of them. */
static void unpreserve_domains(struct iommufd *ctx, const struct iommufd_object *end)
{
	struct iommufd_object *o;

	list_for_each_entry(o, &ctx->objects, list) {
		if (o == end)
			return;
		if (o->kind == IOMMUFD_LUEMU_HWPT)
			iommu_domain_unpreserve(o->domain);
	}
}

static int preserve_domains(struct iommufd *ctx)
{
	struct iommufd_object *o;
	int err;

	list_for_each_entry(o, &ctx->objects, list) {
		if (o->kind != IOMMUFD_LUEMU_HWPT)
			continue;
		err = iommu_domain_preserve(o->domain);
		if (err) {
			unpreserve_domains(ctx, o);
			return err;
		}
	}
	return 0;
}

static int iommufd_preserve(struct liveupdate_file_args *a)
{
	struct iommufd *ctx = ctx_of(a->file);
	struct iommufd_luemu_ser *ser;
	struct counts n;
	int err = -EBUSY;

	mutex_lock(&ctx->lock);
	if (ctx->frozen)
		goto out;
	n = count(ctx, false);
	ser = kho_alloc_preserve(size_of(&n));
	err = (int)PTR_ERR(ser);
	if (IS_ERR(ser))
		goto out;
	err = write_record(ctx, ser, false);
	if (err)
		goto out_ser;
	err = preserve_domains(ctx);
	if (err)
		goto out_ser;
	err = iommu_luo_add_file(virt_to_phys(ser));
	if (err)
		goto out_domains;
	ctx->frozen = true;
	a->serialized_data = virt_to_phys(ser);
	a->private_data = (void *)memfd_luo_unpreserved();
	mutex_unlock(&ctx->lock);
	return 0;
out_domains:
	unpreserve_domains(ctx, NULL);
out_ser:
	kho_unpreserve_free(ser);
out:
	mutex_unlock(&ctx->lock);
	return err;
}

static void iommufd_unpreserve(struct liveupdate_file_args *a)
{
	struct iommufd *ctx = ctx_of(a->file);

	mutex_lock(&ctx->lock);
	iommu_luo_remove_file(a->serialized_data);
	unpreserve_domains(ctx, NULL);
	kho_unpreserve_free(phys_to_virt(a->serialized_data));
	ctx->frozen = false;
	mutex_unlock(&ctx->lock);
}

/* The record is as it was, unless a memfd was unpreserved since, or a function does not go over. */
static int iommufd_freeze(struct liveupdate_file_args *a)
{
	struct iommufd_luemu_ser *ser = phys_to_virt(a->serialized_data);
	struct iommufd *ctx = ctx_of(a->file);
	int err = 0;

	mutex_lock(&ctx->lock);
	if ((u64)a->private_data != memfd_luo_unpreserved() || count(ctx, true).objects != ser->nr_objects)
		err = write_record(ctx, ser, true);
	mutex_unlock(&ctx->lock);
	return err ? err : iommu_luo_freeze();
}

static void iommufd_unfreeze(struct liveupdate_file_args *a)
{
	(void)a;
	iommu_luo_unfreeze();
}

/* ---- the new kernel ---- */

static int iommufd_own(struct liveupdate_file_args *a)
{
	unsigned int order;
	int err = liveupdate_own(a, a->serialized_data, &order);

	if (err || !iommu_adopted_file(a->serialized_data)) {
		vtd_refuse("an iommufd's record is not among those that were verified");
		return -EIO;
	}
	return 0;
}

/* The record, as long as DMA remapping was adopted; NULL. */
static const struct iommufd_luemu_ser *record(const struct liveupdate_file_args *a)
{
	return iommu_adopted_file(a->serialized_data) ? phys_to_virt(a->serialized_data) : NULL;
}

static int read_objects(struct iommufd *ctx, const struct iommufd_luemu_ser *s)
{
	for (u32 i = 0; i < s->nr_objects; i++) {
		const struct iommufd_luemu_object *from = iommufd_luemu_objects(s) + i;

		if (!iommufd_object_new(ctx, from->kind, from->id))
			return -ENOMEM;
	}
	for (u32 i = 0; i < s->nr_objects; i++) {
		const struct iommufd_luemu_object *from = iommufd_luemu_objects(s) + i;
		struct iommufd_object *o = iommufd_find(ctx, from->id, from->kind);

		if (o->kind == IOMMUFD_LUEMU_IOAS) {
			o->small = from->flags & IOMMUFD_LUEMU_SMALL;
		} else if (o->kind == IOMMUFD_LUEMU_HWPT) {
			o->ioas = iommufd_find(ctx, from->parent, IOMMUFD_LUEMU_IOAS);
			o->ioas->users++;
			o->automatic = from->flags & IOMMUFD_LUEMU_AUTO;
			o->domain = iommu_domain_adopted(from->arg);
		} else {
			o->dev = pci_find((u16)from->arg);
			if (!o->dev || !o->dev->incoming)
				return -ENODEV;
			o->users = 1;
			o->hwpt = iommufd_find(ctx, from->parent, IOMMUFD_LUEMU_HWPT);
			o->hwpt->users++;
			iommu_domain_of(o->dev);
		}
	}
	return 0;
}

static int read_areas(struct iommufd *ctx, const struct iommufd_luemu_ser *s)
{
	for (u32 i = 0; i < s->nr_areas; i++) {
		const struct iommufd_luemu_area *from = iommufd_luemu_areas(s) + i;
		struct iommufd_area *a = kzalloc(sizeof(*a), GFP_KERNEL);
		u64 size = from->nr_extents * sizeof(struct iommufd_luemu_extent);

		if (!a)
			return -ENOMEM;
		a->iova = from->iova;
		a->size = from->size;
		a->prot = from->prot;
		a->memory.v = kmalloc(size, GFP_KERNEL);
		if (!a->memory.v) {
			kfree(a);
			return -ENOMEM;
		}
		a->memory.nr = a->memory.room = from->nr_extents;
		memcpy(a->memory.v, iommufd_luemu_extents(s) + from->first_extent, size);
		list_add_tail(&a->list, &iommufd_find(ctx, from->ioas, IOMMUFD_LUEMU_IOAS)->areas);
	}
	for (u32 i = 0; i < s->nr_ranges; i++) {
		const struct iommufd_luemu_range *from = iommufd_luemu_ranges(s) + i;
		struct iommufd_range *r = kmalloc(sizeof(*r), GFP_KERNEL);

		if (!r)
			return -ENOMEM;
		r->start = from->start;
		r->last = from->last;
		list_add_tail(&r->list, &iommufd_find(ctx, from->ioas, IOMMUFD_LUEMU_IOAS)->allowed);
	}
	return 0;
}

/* What was read so far, without touching hardware or memory that is not this file's yet. */
static void forget(struct iommufd *ctx)
{
	struct iommufd_object *o;
	struct iommufd_area *a;

	list_for_each_entry(o, &ctx->objects, list) {
		if (o->kind == IOMMUFD_LUEMU_HWPT)
			o->domain = NULL;
		if (o->kind == IOMMUFD_LUEMU_DEVICE)
			o->hwpt = NULL;
		if (o->kind == IOMMUFD_LUEMU_HWPT && !o->ioas)
			o->kind = IOMMUFD_LUEMU_DEVICE;
		if (o->kind != IOMMUFD_LUEMU_IOAS)
			continue;
		list_for_each_entry(a, &o->areas, list)
			a->memory.nr = 0;
	}
	iommufd_free(ctx);
}

static int iommufd_retrieve(struct liveupdate_file_args *a)
{
	const struct iommufd_luemu_ser *s = record(a);
	struct iommufd *ctx;
	struct file *file;
	int err;

	if (!s)
		return -EIO;
	ctx = iommufd_new();
	if (!ctx)
		return -ENOMEM;
	ctx->frozen = ctx->incoming = true;
	ctx->rlimit_mode = s->rlimit_mode;
	err = read_objects(ctx, s);
	if (!err)
		err = read_areas(ctx, s);
	file = err ? ERR_PTR(err) : iommufd_file(ctx, O_RDWR);
	if (IS_ERR(file)) {
		forget(ctx);
		return (int)PTR_ERR(file);
	}
	a->file = file;
	return 0;
}

/* First page of the preserved block that a page is in which waits for its file. */
static struct page *waiting_block(u64 phys)
{
	for (unsigned int order = 0; order <= MAX_PAGE_ORDER; order++) {
		struct page *head = phys_to_page(ALIGN_DOWN(phys, PAGE_SIZE << order));

		if (head->private >> 32 == KHO_PAGE_MAGIC && (u32)head->private >= order)
			return head;
	}
	panic("iommufd_luo: page %#lx was preserved, and is not any more", phys);
}

/* The folio at this address, if the memory is this kernel's own by now (pages that wait are all zero but for the block's
 * stamp), NULL if it waits for its file; and where it ends. */
static struct folio *restored_folio(u64 phys, u64 *end)
{
	struct page *page = phys_to_page(phys);
	struct folio *f = NULL;

	if (page->flags & PG_TAIL || page->refcount > 0) {
		f = page_folio(page);
		*end = PFN_PHYS(folio_pfn(f) + folio_nr_pages(f));
	} else {
		page = waiting_block(phys);
		*end = page_to_phys(page) + (PAGE_SIZE << (u32)page->private);
	}
	return f;
}

static bool all_restored(const struct iommufd_luemu_ser *s)
{
	const struct iommufd_luemu_extent *e = iommufd_luemu_extents(s);

	for (u32 i = 0; i < s->nr_extents; i++)
		for (u64 at = e[i].phys, end = at + e[i].size; at < end;)
			if (!restored_folio(at, &at))
				return false;
	return true;
}

/* A file that somebody works with needs its memory; one that nobody asked for needs nothing. */
static bool iommufd_can_finish(struct liveupdate_file_args *a)
{
	const struct iommufd_luemu_ser *s = record(a);

	if (!a->file || !s || vtd_all_restored() || all_restored(s))
		return true;
	pr_err("memory that is mapped was not retrieved: not finished\n");
	return false;
}

/* The reference that PG_DMA stands for becomes the file's own, or goes. */
static void take_folio(struct folio *f, bool keep)
{
	bool had = f->page.flags & PG_DMA;

	f->page.flags &= ~PG_DMA;
	if (had && !keep)
		folio_put(f);
	else if (!had && keep)
		folio_get(f);
}

static void take_memory(const struct iommufd_luemu_ser *s, bool keep)
{
	const struct iommufd_luemu_extent *e = iommufd_luemu_extents(s);

	for (u32 i = 0; i < s->nr_extents; i++) {
		struct page *page = phys_to_page(e[i].phys), *end = phys_to_page(e[i].phys + e[i].size);

		while (page < end) {
			u64 next;
			struct folio *f;

			if (keep && (page->flags & (PG_HEAD | PG_DMA)) == (PG_HEAD | PG_DMA)) {	/* most are */
				page->flags &= ~PG_DMA;
				page += 1UL << page->order;
				continue;
			}
			f = restored_folio(page_to_phys(page), &next);
			if (f)
				take_folio(f, keep);
			else
				waiting_block(page_to_phys(page))->flags &= ~PG_DMA;
			page = phys_to_page(next);
		}
	}
}

/* Nobody asked for it: its functions, if there are any left, are stopped; then the tables go. */
static void drop_domains(const struct iommufd_luemu_ser *s)
{
	for (u32 i = 0; i < s->nr_objects; i++) {
		const struct iommufd_luemu_object *o = iommufd_luemu_objects(s) + i;
		struct pci_dev *dev = o->kind == IOMMUFD_LUEMU_DEVICE ? pci_find((u16)o->arg) : NULL;

		if (dev && iommu_domain_of(dev)) {
			pci_set_master(dev, false);
			iommu_detach(dev);
		}
	}
	for (u32 i = 0; i < s->nr_objects; i++) {
		const struct iommufd_luemu_object *o = iommufd_luemu_objects(s) + i;
		struct iommu_domain *d = o->kind == IOMMUFD_LUEMU_HWPT ? iommu_domain_adopted(o->arg) : NULL;

		if (d) {
			iommu_domain_finish(d);
			iommu_domain_free(d);
		}
	}
}

/* Domains are ordinary ones. A function whose file nobody asked for has left by now. */
static void settle_objects(struct iommufd *ctx)
{
	struct iommufd_object *o, *next;

	list_for_each_entry(o, &ctx->objects, list)
		if (o->kind == IOMMUFD_LUEMU_HWPT)
			iommu_domain_finish(o->domain);
	list_for_each_entry_safe(o, next, &ctx->objects, list)
		if (o->kind == IOMMUFD_LUEMU_DEVICE && !iommu_domain_of(o->dev)) {
			o->hwpt->users--;
			iommufd_object_free(ctx, o);
		}
	list_for_each_entry_safe(o, next, &ctx->objects, list)
		if (o->kind == IOMMUFD_LUEMU_HWPT && o->automatic && !o->users)
			iommufd_object_free(ctx, o);
}

static void iommufd_finish(struct liveupdate_file_args *a)
{
	const struct iommufd_luemu_ser *s = record(a);
	struct iommufd *ctx = a->file ? ctx_of(a->file) : NULL;

	if (!s)
		return;				/* refused: all of it stays as it is */
	if (ctx) {
		mutex_lock(&ctx->lock);
		ctx->frozen = ctx->incoming = false;
		settle_objects(ctx);
		take_memory(s, true);
		mutex_unlock(&ctx->lock);
	} else {
		drop_domains(s);
		take_memory(s, false);
	}
	kho_restore_free(phys_to_virt(a->serialized_data));
}

static const struct liveupdate_file_ops iommufd_luo_ops = {
	.can_preserve = iommufd_can_preserve,
	.preserve = iommufd_preserve,
	.unpreserve = iommufd_unpreserve,
	.freeze = iommufd_freeze,
	.unfreeze = iommufd_unfreeze,
	.own = iommufd_own,
	.retrieve = iommufd_retrieve,
	.can_finish = iommufd_can_finish,
	.finish = iommufd_finish,
	.get_id = iommufd_get_id,
};
static struct liveupdate_file_handler iommufd_luo_handler = {
	.ops = &iommufd_luo_ops, .compatible = IOMMUFD_LUEMU_COMPATIBLE,
};

static int iommufd_luo_init(void)
{
	int err;

	if (!iommu_present() && !vtd_refused())
		return 0;
	err = liveupdate_register_file_handler(&iommufd_luo_handler);
	if (!err)
		err = liveupdate_register_flb(&iommufd_luo_handler, &iommu_flb);
	return err == -EOPNOTSUPP ? 0 : err;
}
late_initcall(iommufd_luo_init);
