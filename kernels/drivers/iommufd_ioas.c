/* I/O address spaces of iommufd: what is mapped where, and the same in every HWPT of the space.
 *
 * An area is mapped and unmapped as a whole. Its memory is pinned while it exists, whether or not there is a HWPT.
 * The window of interrupt messages and what lies behind the end of the tables can not be mapped once a HWPT exists.
 */
#include "iommufd_internal.h"
#include "errno.h"
#include "iommu.h"
#include "iommufd_abi.h"
#include "page.h"
#include "string.h"
#include "task.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define RANGES_MAX	4096U

static struct iommufd_object *ioas_of(struct iommufd *ctx, u32 id) { return iommufd_find(ctx, id, IOMMUFD_LUEMU_IOAS); }

static u64 last_of(const struct iommufd_area *a) { return a->iova + (a->size - 1); }

/* The first area that ends at or behind start; NULL. */
static struct iommufd_area *area_at(struct iommufd_object *ioas, u64 start)
{
	struct iommufd_area *a;

	list_for_each_entry(a, &ioas->areas, list)
		if (last_of(a) >= start)
			return a;
	return NULL;
}

static bool has_hwpt(struct iommufd *ctx, struct iommufd_object *ioas)
{
	struct iommufd_object *o;

	list_for_each_entry(o, &ctx->objects, list)
		if (o->kind == IOMMUFD_LUEMU_HWPT && o->ioas == ioas)
			return true;
	return false;
}

/* ---- which addresses may be used ---- */

/* Calls fn for each range that hardware leaves, by address. */
static u32 hardware_ranges(struct iommufd *ctx, struct iommufd_object *ioas, struct iommu_iova_range r[2])
{
	u64 end = iommu_aperture_end();

	r[0] = (struct iommu_iova_range){ 0, ~0UL };
	if (!has_hwpt(ctx, ioas))
		return 1;
	r[0].last = IOMMUFD_MSI_START - 1;
	r[1] = (struct iommu_iova_range){ IOMMUFD_MSI_LAST + 1, end };
	return 2;
}

static bool hardware_allows(struct iommufd *ctx, struct iommufd_object *ioas, u64 start, u64 last)
{
	struct iommu_iova_range r[2];
	u32 nr = hardware_ranges(ctx, ioas, r);

	for (u32 i = 0; i < nr; i++)
		if (start >= r[i].start && last <= r[i].last)
			return true;
	return false;
}

int iommufd_ioas_ranges(struct iommufd *ctx, void *user, u32 size)
{
	struct iommu_ioas_iova_ranges cmd;
	struct iommufd_object *ioas;
	struct iommu_iova_range r[2];
	int err = copy_struct_from_user(&cmd, sizeof(cmd), user, size);
	u32 nr, room;

	if (err)
		return err;
	if (cmd.reserved)
		return -EOPNOTSUPP;
	ioas = ioas_of(ctx, cmd.ioas_id);
	if (!ioas)
		return -ENOENT;
	nr = hardware_ranges(ctx, ioas, r);
	room = min(nr, cmd.num_iovas);
	if (room && copy_to_user((void *)cmd.allowed_iovas, r, room * sizeof(*r)))
		return -EFAULT;
	err = cmd.num_iovas < nr ? -EMSGSIZE : 0;
	cmd.num_iovas = nr;
	cmd.out_iova_alignment = PAGE_SIZE;
	return copy_to_user(user, &cmd, min(size, (u32)sizeof(cmd))) ? -EFAULT : err;
}

static void free_ranges(struct list_head *ranges)
{
	while (!list_empty(ranges)) {
		struct iommufd_range *r = list_first_entry(ranges, struct iommufd_range, list);

		list_del(&r->list);
		kfree(r);
	}
}

static int read_ranges(const struct iommu_ioas_allow_iovas *cmd, struct list_head *ranges)
{
	for (u32 i = 0; i < cmd->num_iovas; i++) {
		struct iommufd_range *r, *other;
		struct iommu_iova_range one;

		if (copy_from_user(&one, (struct iommu_iova_range *)cmd->allowed_iovas + i, sizeof(one)))
			return -EFAULT;
		if (one.start >= one.last)
			return -EINVAL;
		list_for_each_entry(other, ranges, list)
			if (one.start <= other->last && one.last >= other->start)
				return -EINVAL;
		r = kmalloc(sizeof(*r), GFP_KERNEL);
		if (!r)
			return -ENOMEM;
		*r = (struct iommufd_range){ .start = one.start, .last = one.last };
		list_add_tail(&r->list, ranges);
	}
	return 0;
}

int iommufd_ioas_allow(struct iommufd *ctx, void *user, u32 size)
{
	LIST_HEAD(ranges);
	struct iommu_ioas_allow_iovas cmd;
	struct iommufd_object *ioas;
	struct iommufd_range *r;
	int err = copy_struct_from_user(&cmd, sizeof(cmd), user, size);

	if (err)
		return err;
	if (cmd.reserved || cmd.num_iovas > RANGES_MAX)
		return -EOPNOTSUPP;
	ioas = ioas_of(ctx, cmd.ioas_id);
	if (!ioas)
		return -ENOENT;
	err = read_ranges(&cmd, &ranges);
	list_for_each_entry(r, &ranges, list)
		if (!err && !hardware_allows(ctx, ioas, r->start, r->last))
			err = -EADDRINUSE;
	if (err) {
		free_ranges(&ranges);
		return err;
	}
	free_ranges(&ioas->allowed);
	while (!list_empty(&ranges))
		list_move_tail(ranges.next, &ioas->allowed);
	return 0;
}

/* ---- mapping ---- */

static int map_area(struct iommu_domain *d, const struct iommufd_area *a, bool small)
{
	u64 iova = a->iova;

	for (u32 i = 0; i < a->memory.nr; i++) {
		const struct iommufd_luemu_extent *e = &a->memory.v[i];
		int err = iommu_map(d, iova, e->phys, e->size, a->prot | (small ? IOMMU_SMALL : 0));

		if (err) {
			if (iova != a->iova)
				iommu_unmap(d, a->iova, iova - a->iova);
			return err;
		}
		iova += e->size;
	}
	return 0;
}

/* Into every HWPT of the space, or into none. */
static int map_everywhere(struct iommufd *ctx, struct iommufd_object *ioas, const struct iommufd_area *a)
{
	struct iommufd_object *o, *undo;
	int err;

	list_for_each_entry(o, &ctx->objects, list) {
		if (o->kind != IOMMUFD_LUEMU_HWPT || o->ioas != ioas)
			continue;
		err = map_area(o->domain, a, ioas->small);
		if (!err)
			continue;
		list_for_each_entry(undo, &ctx->objects, list) {
			if (undo == o)
				return err;
			if (undo->kind == IOMMUFD_LUEMU_HWPT && undo->ioas == ioas)
				iommu_unmap(undo->domain, a->iova, a->size);
		}
	}
	return 0;
}

static void insert(struct iommufd_object *ioas, struct iommufd_area *a)
{
	struct iommufd_area *behind = area_at(ioas, a->iova);

	list_add_tail(&a->list, behind ? &behind->list : &ioas->areas);
}

/* Memory that a user may lock beyond the limit is none of the limit's business: the superuser's is not counted. */
static int account(struct iommufd *ctx, u64 pages)
{
	if (capable())
		return 0;
	if (ctx->pinned + pages > PFN_DOWN(current_process()->rlim[RLIMIT_MEMLOCK].cur))
		return -ENOMEM;
	ctx->pinned += pages;
	return 0;
}

static void free_area(struct iommufd *ctx, struct iommufd_area *a)
{
	ctx->pinned -= min(ctx->pinned, PFN_DOWN(a->size));
	iommufd_unpin(&a->memory);
	kfree(a);
}

/* An address as large as possible pages want it: like the memory's own within 1 GiB, 2 MiB or 4 KiB. -ENOSPC. */
static int choose_in(struct iommufd_object *ioas, u64 start, u64 last, u64 like, u64 size, u64 align, u64 *iova)
{
	start = max(start, PAGE_SIZE);		/* 0 is what programs take for nothing */
	while (1) {
		u64 at = ALIGN_DOWN(start, align) + (like & (align - 1));
		struct iommufd_area *a;

		if (at < start)
			at += align;
		if (at < start || at > last || last - at < size - 1)
			return -ENOSPC;
		a = area_at(ioas, at);
		if (!a || a->iova > at + (size - 1)) {
			*iova = at;
			return 0;
		}
		if (last_of(a) == ~0UL)
			return -ENOSPC;
		start = last_of(a) + 1;
	}
}

static int choose(struct iommufd *ctx, struct iommufd_object *ioas, u64 like, u64 size, u64 *iova)
{
	static const u64 aligns[] = { GIB, 2 * MIB, PAGE_SIZE };
	struct iommu_iova_range hw[2];
	u32 nr = hardware_ranges(ctx, ioas, hw);
	bool limited = !list_empty(&ioas->allowed);
	struct iommufd_range *r;

	if (!has_hwpt(ctx, ioas)) {	/* what will be possible whatever is attached */
		hw[0].last = IOMMUFD_MSI_START - 1;
		hw[1] = (struct iommu_iova_range){ IOMMUFD_MSI_LAST + 1, iommu_aperture_end() };
		nr = 2;
	}
	for (u32 k = 0; k < ARRAY_SIZE(aligns); k++) {
		if (size < aligns[k])
			continue;
		list_for_each_entry(r, &ioas->allowed, list)
			if (!choose_in(ioas, ALIGN_UP(r->start, PAGE_SIZE), r->last, like, size, aligns[k], iova))
				return 0;
		for (u32 i = 0; !limited && i < nr; i++)
			if (!choose_in(ioas, hw[i].start, hw[i].last, like, size, aligns[k], iova))
				return 0;
	}
	return -ENOSPC;
}

/* 0, or why nothing can be mapped there. */
static int check_fixed(struct iommufd *ctx, struct iommufd_object *ioas, u64 iova, u64 size)
{
	struct iommufd_area *a = area_at(ioas, iova);

	if (!hardware_allows(ctx, ioas, iova, iova + (size - 1)))
		return -EINVAL;
	return a && a->iova <= iova + (size - 1) ? -EEXIST : 0;
}

/* Takes over the memory. */
static int add_area(struct iommufd *ctx, struct iommufd_object *ioas, u64 iova, u64 size, u32 prot,
		    struct extents *memory)
{
	struct iommufd_area *a = kmalloc(sizeof(*a), GFP_KERNEL);
	int err = a ? 0 : -ENOMEM;

	if (a) {
		*a = (struct iommufd_area){ .iova = iova, .size = size, .prot = prot, .memory = *memory };
		err = map_everywhere(ctx, ioas, a);
	}
	if (err) {
		kfree(a);
		iommufd_unpin(memory);
		ctx->pinned -= min(ctx->pinned, PFN_DOWN(size));
		return err;
	}
	insert(ioas, a);
	return 0;
}

static u32 prot_of(u32 flags)
{
	return (flags & IOMMU_IOAS_MAP_READABLE ? IOMMU_READ : 0) | (flags & IOMMU_IOAS_MAP_WRITEABLE ? IOMMU_WRITE : 0);
}

#define MAP_FLAGS	(IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE)

int iommufd_ioas_map(struct iommufd *ctx, void *user, u32 size)
{
	struct iommu_ioas_map cmd;
	struct iommufd_object *ioas;
	struct extents memory;
	int err = copy_struct_from_user(&cmd, sizeof(cmd), user, size);

	if (err)
		return err;
	if (cmd.flags & ~(u32)MAP_FLAGS || cmd.reserved)
		return -EOPNOTSUPP;
	if (cmd.iova == ~0UL || cmd.length == ~0UL)
		return -EOVERFLOW;
	if (!prot_of(cmd.flags))
		return -EINVAL;
	ioas = ioas_of(ctx, cmd.ioas_id);
	if (!ioas)
		return -ENOENT;
	if (cmd.user_va + cmd.length < cmd.user_va)
		return -EOVERFLOW;
	if (!cmd.length || cmd.length % PAGE_SIZE)
		return -EINVAL;
	if (cmd.flags & IOMMU_IOAS_MAP_FIXED_IOVA) {
		if (cmd.iova % PAGE_SIZE)
			return -EINVAL;
		if (cmd.iova + (cmd.length - 1) < cmd.iova)
			return -EOVERFLOW;
		err = check_fixed(ctx, ioas, cmd.iova, cmd.length);
	} else {
		err = choose(ctx, ioas, cmd.user_va, cmd.length, &cmd.iova);
	}
	if (err)
		return err;
	if (cmd.user_va % PAGE_SIZE)
		return -EINVAL;
	if (!access_ok((void *)cmd.user_va, cmd.length))
		return -EFAULT;
	err = account(ctx, PFN_DOWN(cmd.length));
	if (err)
		return err;
	err = iommufd_pin(cmd.user_va, cmd.length, cmd.flags & IOMMU_IOAS_MAP_WRITEABLE, &memory);
	if (err) {
		ctx->pinned -= min(ctx->pinned, PFN_DOWN(cmd.length));
		return err;
	}
	err = add_area(ctx, ioas, cmd.iova, cmd.length, prot_of(cmd.flags), &memory);
	if (err)
		return err;
	return put_user(cmd.iova, &((struct iommu_ioas_map *)user)->iova);
}

/* The memory of [iova, iova + size), all of it mapped. -ENOENT, -EPERM (it may not be written), -ENOMEM. */
static int memory_of(struct iommufd_object *ioas, u64 iova, u64 size, bool write, struct extents *e)
{
	u64 end = iova + size;

	while (iova < end) {
		struct iommufd_area *a = area_at(ioas, iova);
		u64 at;

		if (!a || a->iova > iova)
			return -ENOENT;
		if (write && !(a->prot & IOMMU_WRITE))
			return -EPERM;
		at = a->iova;
		for (u32 i = 0; i < a->memory.nr && iova < end; at += a->memory.v[i++].size) {
			const struct iommufd_luemu_extent *m = &a->memory.v[i];
			u64 n = min(at + m->size, end) - iova;

			if (iova >= at + m->size)
				continue;
			if (iommufd_extent_add(e, m->phys + (iova - at), n))
				return -ENOMEM;
			iova += n;
		}
	}
	return 0;
}

int iommufd_ioas_copy(struct iommufd *ctx, void *user, u32 size)
{
	struct iommu_ioas_copy cmd;
	struct iommufd_object *from, *to;
	struct extents memory = { 0 };
	int err = copy_struct_from_user(&cmd, sizeof(cmd), user, size);

	if (err)
		return err;
	if (cmd.flags & ~(u32)MAP_FLAGS)
		return -EOPNOTSUPP;
	if (cmd.length == ~0UL || cmd.src_iova == ~0UL || cmd.dst_iova == ~0UL || cmd.src_iova + cmd.length < cmd.src_iova)
		return -EOVERFLOW;
	if (!prot_of(cmd.flags))
		return -EINVAL;
	from = ioas_of(ctx, cmd.src_ioas_id);
	to = ioas_of(ctx, cmd.dst_ioas_id);
	if (!from || !to)
		return -ENOENT;
	if (!cmd.length || (cmd.length | cmd.src_iova) % PAGE_SIZE)
		return -EINVAL;
	if (cmd.flags & IOMMU_IOAS_MAP_FIXED_IOVA) {
		if (cmd.dst_iova % PAGE_SIZE)
			return -EINVAL;
		if (cmd.dst_iova + (cmd.length - 1) < cmd.dst_iova)
			return -EOVERFLOW;
		err = check_fixed(ctx, to, cmd.dst_iova, cmd.length);
	}
	if (!err)
		err = memory_of(from, cmd.src_iova, cmd.length, cmd.flags & IOMMU_IOAS_MAP_WRITEABLE, &memory);
	if (!err && !(cmd.flags & IOMMU_IOAS_MAP_FIXED_IOVA))
		err = choose(ctx, to, memory.v[0].phys, cmd.length, &cmd.dst_iova);
	if (!err)
		err = account(ctx, PFN_DOWN(cmd.length));
	if (err) {
		kfree(memory.v);
		return err;
	}
	iommufd_pin_again(&memory);
	err = add_area(ctx, to, cmd.dst_iova, cmd.length, prot_of(cmd.flags), &memory);
	if (err)
		return err;
	return put_user(cmd.dst_iova, &((struct iommu_ioas_copy *)user)->dst_iova);
}

/* ---- unmapping ---- */

static void remove_area(struct iommufd *ctx, struct iommufd_object *ioas, struct iommufd_area *a)
{
	struct iommufd_object *o;

	list_for_each_entry(o, &ctx->objects, list)
		if (o->kind == IOMMUFD_LUEMU_HWPT && o->ioas == ioas)
			iommu_unmap(o->domain, a->iova, a->size);
	list_del(&a->list);
	free_area(ctx, a);
}

void iommufd_ioas_empty(struct iommufd *ctx, struct iommufd_object *ioas)
{
	while (!list_empty(&ioas->areas))
		remove_area(ctx, ioas, list_first_entry(&ioas->areas, struct iommufd_area, list));
	free_ranges(&ioas->allowed);
}

int iommufd_ioas_unmap(struct iommufd *ctx, void *user, u32 size)
{
	struct iommu_ioas_unmap cmd;
	struct iommufd_object *ioas;
	struct iommufd_area *a;
	int err = copy_struct_from_user(&cmd, sizeof(cmd), user, size);
	u64 start, last, done = 0;
	bool all;

	if (err)
		return err;
	ioas = ioas_of(ctx, cmd.ioas_id);
	if (!ioas)
		return -ENOENT;
	all = !cmd.iova && cmd.length == ~0UL;
	if (!all && (cmd.iova == ~0UL || cmd.length == ~0UL))
		return -EOVERFLOW;
	if (!all && !cmd.length)
		return -EINVAL;
	start = cmd.iova;
	last = all ? ~0UL : start + (cmd.length - 1);
	if (last < start)
		return -EOVERFLOW;
	while (!err && (a = area_at(ioas, start)) && a->iova <= last) {
		if (a->iova < start || last_of(a) > last) {
			err = -ENOENT;		/* an area goes as a whole */
			break;
		}
		done += a->size;
		remove_area(ctx, ioas, a);
	}
	if (!err && !done && !all)
		err = -ENOENT;
	if (!err && put_user(done, &((struct iommu_ioas_unmap *)user)->length))
		err = -EFAULT;
	return err;
}

/* ---- HWPTs ---- */

struct iommufd_object *iommufd_hwpt_new(struct iommufd *ctx, struct iommufd_object *ioas, bool automatic)
{
	struct iommufd_object *o;
	struct iommufd_area *a;
	int err = 0;

	list_for_each_entry(a, &ioas->areas, list)
		if ((a->iova <= IOMMUFD_MSI_LAST && last_of(a) >= IOMMUFD_MSI_START) ||
		    last_of(a) > iommu_aperture_end())
			return ERR_PTR(-EADDRINUSE);
	o = iommufd_object_new(ctx, IOMMUFD_LUEMU_HWPT, 0);
	if (!o)
		return ERR_PTR(-ENOMEM);
	o->ioas = ioas;
	o->automatic = automatic;
	ioas->users++;
	o->domain = iommu_domain_alloc();
	if (IS_ERR(o->domain)) {
		err = (int)PTR_ERR(o->domain);
		o->domain = NULL;
	}
	list_for_each_entry(a, &ioas->areas, list)
		err = err ? err : map_area(o->domain, a, ioas->small);
	if (err) {
		iommufd_object_free(ctx, o);
		return ERR_PTR(err);
	}
	return o;
}
