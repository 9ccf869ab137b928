/* The file of a VFIO device: one program at a time owns the function, through an iommufd.
 *
 * Opened, it can only be bound; what it is bound to decides which memory the function reaches. All else answers -EINVAL
 * before that, as in Linux. The last close takes everything back: interrupts, bus master, address space, and the
 * function is reset.
 */
#include "vfio.h"
#include "errno.h"
#include "iommufd.h"
#include "page.h"
#include "string.h"
#include "uaccess.h"
#include "vfs.h"

/* ---- taking and giving back; lock held ---- */

void vfio_start(struct vfio_device *v)
{
	pci_set_master(v->dev, false);
	pci_enable(v->dev);
	v->can_reset = pci_can_reset(v->dev) && !pci_reset_function(v->dev);
	pci_set_master(v->dev, false);
	pci_msi_off(v->dev);
	v->irq = VFIO_IRQS;
	v->masked = v->masked_by_command = v->make_up = v->resume = false;
	vfio_config_init(v);
}

void vfio_stop(struct vfio_device *v)
{
	vfio_irq_disable(v);
	if (v->request)
		fput(v->request);
	v->request = NULL;
	pci_set_master(v->dev, false);
	vfio_reset(v);
	pci_set_master(v->dev, false);
}

/* The file of a function that was handed over has an owner before it has an iommufd, whichever is retrieved first. */
bool vfio_is_bound(struct vfio_file *vf)
{
	if (vf->v->owner != vf)
		return false;
	return vf->iommufd || !iommufd_of(vf->v->dev, &vf->iommufd, &vf->id, &vf->pt);
}

static int vfio_open(struct inode *inode, struct file *f)
{
	struct vfio_device *v = inode->private;
	struct vfio_file *vf;

	vf = kzalloc(sizeof(*vf), GFP_KERNEL);
	if (!vf)
		return -ENOMEM;
	vf->v = v;
	f->private = vf;
	return 0;
}

static void vfio_release(struct file *f)
{
	struct vfio_file *vf = f->private;
	struct vfio_device *v = vf->v;

	mutex_lock(&v->lock);
	if (v->owner == vf) {
		vfio_stop(v);
		if (vfio_is_bound(vf)) {
			iommufd_unbind(vf->iommufd, v->dev);
			iommufd_put(vf->iommufd);
		}
		v->owner = NULL;
	}
	mutex_unlock(&v->lock);
	kfree(vf);
}

/* ---- ioctls; lock held ---- */

/* The first `size` bytes that a program must give, the first of which say how many it has. */
static int take(void *arg, const void *user, u32 size)
{
	u32 argsz;

	if (copy_from_user(arg, user, size))
		return -EFAULT;
	memcpy(&argsz, arg, sizeof(argsz));
	return argsz < size ? -EINVAL : 0;
}

static int answer(void *user, const void *arg, u32 size)
{
	return copy_to_user(user, arg, size) ? -EFAULT : 0;
}

static int bind(struct vfio_file *vf, void *user)
{
	struct vfio_device *v = vf->v;
	struct iommufd *ctx;
	struct vfio_bind b;
	bool fresh = false;
	int err;

	err = take(&b, user, sizeof(b));
	if (err)
		return err;
	if (b.flags || b.iommufd < 0)
		return -EINVAL;
	/* one that was handed over is bound already, and may be told so again */
	if (v->owner && !(v->owner == vf && v->dev->incoming))
		return -EINVAL;
	ctx = iommufd_from_fd(b.iommufd);
	if (IS_ERR(ctx))
		return (int)PTR_ERR(ctx);
	err = iommufd_bind(ctx, v->dev, &b.out_devid);
	if (!err)
		vfio_is_bound(vf);
	if (!err && !v->owner) {
		vf->iommufd = ctx;
		vf->id = b.out_devid;
		v->owner = vf;
		vfio_start(v);
		fresh = true;
	}
	if (!fresh)
		iommufd_put(ctx);
	return err ? err : answer((u8 *)user + offsetof(struct vfio_bind, out_devid), &b.out_devid, sizeof(u32));
}

static int attach(struct vfio_file *vf, void *user)
{
	struct vfio_attach a = { 0 };
	int err = take(&a, user, offsetof(struct vfio_attach, pasid));

	if (err)
		return err;
	if (a.flags)
		return -EINVAL;		/* VFIO_DEVICE_ATTACH_PASID: no function here has any */
	err = iommufd_attach(vf->iommufd, vf->v->dev, &a.pt_id);
	if (err)
		return err;
	vf->pt = a.pt_id;
	err = answer((u8 *)user + offsetof(struct vfio_attach, pt_id), &a.pt_id, sizeof(u32));
	if (err && !vf->v->dev->incoming) {
		iommufd_detach(vf->iommufd, vf->v->dev);
		vf->pt = 0;
	}
	return err;
}

static int detach(struct vfio_file *vf, void *user)
{
	struct vfio_detach d;
	int err = take(&d, user, offsetof(struct vfio_detach, pasid));

	if (err)
		return err;
	if (d.flags & ~VFIO_ATTACH_PASID)
		return -EINVAL;
	if (d.flags)			/* none is ever attached by its PASID */
		return d.argsz < sizeof(d) ? -EINVAL : 0;
	if (vf->v->frozen || vf->v->dev->incoming)
		return -EBUSY;
	iommufd_detach(vf->iommufd, vf->v->dev);
	vf->pt = 0;
	return 0;
}

static int get_info(struct vfio_device *v, void *user)
{
	struct vfio_device_info i = { 0 };
	int err = take(&i, user, offsetof(struct vfio_device_info, cap_offset));

	if (err)
		return err;
	i.flags = VFIO_DEVICE_FLAGS_PCI | (v->can_reset ? VFIO_DEVICE_FLAGS_RESET : 0);
	i.num_regions = VFIO_REGIONS;
	i.num_irqs = VFIO_IRQS;
	i.cap_offset = i.pad = 0;
	return answer(user, &i, min(i.argsz, (u32)sizeof(i)));
}

static int get_region_info(struct vfio_device *v, void *user)
{
	struct vfio_region_info i;
	int err = take(&i, user, sizeof(i));

	if (err)
		return err;
	if (i.index >= VFIO_REGIONS || i.index == VFIO_REGION_VGA)
		return -EINVAL;
	i.offset = (u64)i.index << VFIO_OFFSET_SHIFT;
	i.size = i.flags = i.cap_offset = 0;
	if (i.index == VFIO_REGION_CONFIG) {
		i.size = VFIO_CONFIG_SIZE;
		i.flags = VFIO_REGION_READ | VFIO_REGION_WRITE;
	} else if (i.index < VFIO_REGION_ROM && v->dev->bar[i.index].phys) {
		const struct pci_bar *b = &v->dev->bar[i.index];

		i.size = b->size;
		i.flags = VFIO_REGION_READ | VFIO_REGION_WRITE;
		if (!b->io && IS_ALIGNED(b->phys | b->size, PAGE_SIZE))
			i.flags |= VFIO_REGION_MMAP;
	}
	return answer(user, &i, sizeof(i));
}

static int get_irq_info(struct vfio_device *v, void *user)
{
	struct vfio_irq_info i;
	int err = take(&i, user, sizeof(i));

	if (err)
		return err;
	if (i.index >= VFIO_IRQS || (i.index == VFIO_ERR && !v->exp))
		return -EINVAL;
	i.flags = VFIO_IRQ_EVENTFD;
	i.flags |= i.index == VFIO_INTX ? VFIO_IRQ_MASKABLE | VFIO_IRQ_AUTOMASKED : VFIO_IRQ_NORESIZE;
	i.count = (u32)vfio_irq_count(v, i.index);
	return answer(user, &i, sizeof(i));
}

static int set_irqs(struct vfio_device *v, void *user)
{
	struct vfio_irq_set s;
	u32 size, count;
	s32 data = 0;			/* nothing has more than one interrupt of a kind */
	int err = take(&s, user, sizeof(s));

	if (err)
		return err;
	if (s.index >= VFIO_IRQS || s.count >= ~0U - s.start || s.flags & ~(u32)(VFIO_DATA_MASK | VFIO_ACTION_ALL))
		return -EINVAL;
	count = (u32)vfio_irq_count(v, s.index);
	if (s.start >= count || s.start + s.count > count)
		return -EINVAL;
	switch (s.flags & VFIO_DATA_MASK) {
	case VFIO_DATA_NONE:
		size = 0;
		break;
	case VFIO_DATA_BOOL:
		size = 1;
		break;
	case VFIO_DATA_EVENTFD:
		size = 4;
		break;
	default:
		return -EINVAL;
	}
	if (s.argsz - sizeof(s) < s.count * size)
		return -EINVAL;
	if (s.count * size && copy_from_user(&data, (u8 *)user + sizeof(s), s.count * size))
		return -EFAULT;
	return vfio_set_irqs(v, &s, &data);
}

static int bound_ioctl(struct vfio_file *vf, u32 cmd, void *user)
{
	switch (cmd) {
	case VFIO_DEVICE_ATTACH_IOMMUFD_PT:
		return attach(vf, user);
	case VFIO_DEVICE_DETACH_IOMMUFD_PT:
		return detach(vf, user);
	case VFIO_DEVICE_GET_INFO:
		return get_info(vf->v, user);
	case VFIO_DEVICE_GET_REGION_INFO:
		return get_region_info(vf->v, user);
	case VFIO_DEVICE_GET_IRQ_INFO:
		return get_irq_info(vf->v, user);
	case VFIO_DEVICE_SET_IRQS:
		return set_irqs(vf->v, user);
	case VFIO_DEVICE_RESET:
		return vf->v->can_reset ? vfio_reset(vf->v) : -EINVAL;
	}
	return -ENOTTY;
}

static s64 vfio_ioctl(struct file *f, u32 cmd, u64 arg)
{
	struct vfio_file *vf = f->private;
	struct vfio_device *v = vf->v;
	int err;

	mutex_lock(&v->lock);
	if (v->written_down)
		err = -EBUSY;
	else if (cmd == VFIO_DEVICE_BIND_IOMMUFD)
		err = bind(vf, (void *)arg);
	else
		err = vfio_is_bound(vf) ? bound_ioctl(vf, cmd, (void *)arg) : -EINVAL;
	mutex_unlock(&v->lock);
	return err;
}

const struct file_ops vfio_file_ops = {
	.open = vfio_open, .release = vfio_release, .ioctl = vfio_ioctl, .read = vfio_read, .write = vfio_write,
	.llseek = vfio_llseek, .mmap = vfio_mmap, .device_page = vfio_device_page,
};
