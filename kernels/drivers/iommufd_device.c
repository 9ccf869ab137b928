/* Functions in an iommufd: see iommufd.h. Called by the VFIO device file; the program sees object ids. */
#include "iommufd_internal.h"
#include "errno.h"
#include "iommu.h"
#include "page.h"
#include "pci.h"
#include "vfs.h"

/* The object of a function; NULL. */
static struct iommufd_object *device_of(struct iommufd *ctx, const struct pci_dev *dev)
{
	struct iommufd_object *o;

	list_for_each_entry(o, &ctx->objects, list)
		if (o->kind == IOMMUFD_LUEMU_DEVICE && o->dev == dev)
			return o;
	return NULL;
}

int iommufd_of(struct pci_dev *dev, struct iommufd **ctx, u32 *id, u32 *pt)
{
	struct iommufd *c;
	int err = -ENOENT;

	mutex_lock(&iommufd_all_lock);
	list_for_each_entry(c, &iommufd_all, list) {
		struct iommufd_object *o;

		mutex_lock(&c->lock);
		o = device_of(c, dev);
		if (o) {
			iommufd_get(c);
			*ctx = c;
			*id = o->id;
			*pt = o->hwpt ? o->hwpt->id : 0;
			err = 0;
		}
		mutex_unlock(&c->lock);
		if (o)
			break;
	}
	mutex_unlock(&iommufd_all_lock);
	return err;
}

int iommufd_bind(struct iommufd *ctx, struct pci_dev *dev, u32 *id)
{
	struct iommufd_object *o;
	struct iommufd *other;
	u32 pt;
	int err = 0;

	if (!iommu_present())
		return -ENODEV;
	if (!iommufd_of(dev, &other, id, &pt)) {
		bool same = other == ctx && dev->incoming;

		iommufd_put(other);
		return same ? 0 : -EBUSY;
	}
	if (dev->incoming)
		return -EBUSY;
	mutex_lock(&ctx->lock);
	o = ctx->frozen ? ERR_PTR(-EBUSY) : iommufd_object_new(ctx, IOMMUFD_LUEMU_DEVICE, 0);
	if (!o)
		err = -ENOMEM;
	else if (IS_ERR(o))
		err = (int)PTR_ERR(o);
	if (!err) {
		o->dev = dev;
		o->users = 1;		/* the VFIO file: IOMMU_DESTROY must not take it away */
		*id = o->id;
	}
	mutex_unlock(&ctx->lock);
	return err;
}

/* The HWPT loses a user; one that attaching made goes with the last. */
static void release_hwpt(struct iommufd *ctx, struct iommufd_object *hwpt)
{
	if (!--hwpt->users && hwpt->automatic && !ctx->frozen)
		iommufd_object_free(ctx, hwpt);
}

static void detach(struct iommufd *ctx, struct iommufd_object *o)
{
	struct iommufd_object *hwpt = o->hwpt;

	if (!hwpt)
		return;
	iommu_detach(o->dev);
	o->hwpt = NULL;
	release_hwpt(ctx, hwpt);
}

/* One that attaching made before, or a new one. */
static struct iommufd_object *automatic_hwpt(struct iommufd *ctx, struct iommufd_object *ioas)
{
	struct iommufd_object *o;

	list_for_each_entry(o, &ctx->objects, list)
		if (o->kind == IOMMUFD_LUEMU_HWPT && o->ioas == ioas && o->automatic)
			return o;
	return iommufd_hwpt_new(ctx, ioas, true);
}

static int attach(struct iommufd *ctx, struct pci_dev *dev, u32 *pt)
{
	struct iommufd_object *o = device_of(ctx, dev), *to = iommufd_find(ctx, *pt, 0), *before;
	int err;

	if (!o)
		return -EINVAL;
	if (!to)
		return -ENOENT;
	before = o->hwpt;
	if (ctx->frozen) {
		if (!before || (to != before && !(before->automatic && to == before->ioas)))
			return -EBUSY;
		*pt = before->id;
		return 0;
	}
	if (to->kind == IOMMUFD_LUEMU_IOAS)
		to = automatic_hwpt(ctx, to);
	else if (to->kind != IOMMUFD_LUEMU_HWPT)
		return -EINVAL;
	if (IS_ERR(to))
		return (int)PTR_ERR(to);
	to->users++;
	err = iommu_attach(to->domain, dev);
	if (err) {
		release_hwpt(ctx, to);
		return err;
	}
	o->hwpt = to;
	*pt = to->id;
	if (before)
		release_hwpt(ctx, before);
	return 0;
}

int iommufd_attach(struct iommufd *ctx, struct pci_dev *dev, u32 *pt)
{
	int err;

	mutex_lock(&ctx->lock);
	err = attach(ctx, dev, pt);
	mutex_unlock(&ctx->lock);
	return err;
}

void iommufd_detach(struct iommufd *ctx, struct pci_dev *dev)
{
	struct iommufd_object *o;

	mutex_lock(&ctx->lock);
	o = device_of(ctx, dev);
	if (o && !ctx->frozen)
		detach(ctx, o);
	mutex_unlock(&ctx->lock);
}

void iommufd_unbind(struct iommufd *ctx, struct pci_dev *dev)
{
	struct iommufd_object *o;

	mutex_lock(&ctx->lock);
	o = device_of(ctx, dev);
	if (o) {
		detach(ctx, o);
		iommufd_object_free(ctx, o);
	}
	mutex_unlock(&ctx->lock);
}
