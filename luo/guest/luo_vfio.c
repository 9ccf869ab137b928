/* Files of VFIO devices: a function goes over while it works.
 *
 *	preserve	the file is bound to an iommufd that is preserved, and attached; from now on no reset, no other table
 *	freeze		what the kernel knows of it is written down; interrupts are not taken any more
 *	shutdown	the function is left alone (drivers/pci_driver.c)
 *	next kernel	nothing writes to it until a program does, through the retrieved file
 *	finish		it is a function like any other; if nobody asked for it, it is stopped and reset
 *
 * eventfds do not go over. The first one that the program sets in the next kernel hears of what came meanwhile: a line
 * that is still asserted, or else one signal to make up for one that may have been lost (a message, or a line whose
 * interrupt was passed on before to an eventfd that nobody may have read).
 */
#define pr_fmt(fmt) "vfio_luo: " fmt
#include "luo_internal.h"
#include "luo_devices.h"
#include "../../kernels/drivers/vfio.h"
#include "errno.h"
#include "init.h"
#include "iommu.h"
#include "iommufd.h"
#include "printk.h"
#include "string.h"
#include "vfs.h"

static_assert(VFIO_LUEMU_CONFIG == VFIO_CONFIG_SIZE && VFIO_LUEMU_INTX == VFIO_INTX && VFIO_LUEMU_MSI == VFIO_MSI &&
	      VFIO_LUEMU_NO_IRQ == VFIO_IRQS, "vfio-pci-luemu-v1");

static struct vfio_file *file_of(struct file *f) { return f->private; }

/* ---- the old kernel ---- */

static bool vfio_can_preserve(struct liveupdate_file_handler *h, struct file *file)
{
	(void)h;
	return file->ops == &vfio_file_ops;
}

static u64 vfio_get_id(struct file *file) { return (u64)file_of(file)->v; }

/* NULL, or what is missing. */
static const char *not_ready(struct vfio_file *vf)
{
	if (!vfio_is_bound(vf))
		return "it is not bound";
	if (!vf->v->dev->domain)
		return "it is attached to nothing";
	if (!iommufd_preserved(vf->iommufd))
		return "its iommufd is not handed over";
	return NULL;
}

static int refuse(const struct vfio_device *v, const char *why)
{
	pr_err(PCI_NAME " can not be handed over: %s\n", PCI_NAME_ARGS(v->dev), why);
	return -EINVAL;
}

static int vfio_preserve(struct liveupdate_file_args *a)
{
	struct vfio_file *vf = file_of(a->file);
	struct vfio_device *v = vf->v;
	struct vfio_luemu_ser *s;
	const char *why;
	int err = 0;

	mutex_lock(&v->lock);
	why = not_ready(vf);
	if (why) {
		err = refuse(v, why);
		goto out;
	}
	if (v->dev->incoming) {
		err = -EBUSY;
		goto out;
	}
	s = kho_alloc_preserve(sizeof(*s));
	if (IS_ERR(s)) {
		err = (int)PTR_ERR(s);
		goto out;
	}
	v->frozen = v->dev->preserved = true;
	a->serialized_data = virt_to_phys(s);
out:
	mutex_unlock(&v->lock);
	return err;
}

static void vfio_unpreserve(struct liveupdate_file_args *a)
{
	struct vfio_device *v = file_of(a->file)->v;

	mutex_lock(&v->lock);
	v->frozen = v->dev->preserved = false;
	mutex_unlock(&v->lock);
	kho_unpreserve_free(phys_to_virt(a->serialized_data));
}

static void write_down(struct vfio_file *vf, struct vfio_luemu_ser *s)
{
	struct vfio_device *v = vf->v;
	u64 flags;

	pci_hold_irq(v->dev);
	flags = spin_lock_irqsave(&v->irq_lock);
	*s = (struct vfio_luemu_ser){
		.bdf = v->dev->bdf, .vendor = v->dev->vendor, .device = v->dev->device, .irq = v->irq,
		.flags = (v->masked ? VFIO_LUEMU_MASKED : 0) | (v->masked_by_command ? VFIO_LUEMU_INTX_OFF : 0) |
			 (v->make_up ? VFIO_LUEMU_MAKE_UP : 0) | (v->can_reset ? VFIO_LUEMU_RESET : 0),
		.object = vf->id, .table = vf->pt,
	};
	memcpy(s->config, v->config, sizeof(s->config));
	spin_unlock_irqrestore(&v->irq_lock, flags);
	s->checksum = devices_sum(&s->checksum + 1, sizeof(*s) - 8);
}

static int vfio_freeze(struct liveupdate_file_args *a)
{
	struct vfio_file *vf = file_of(a->file);
	struct vfio_device *v = vf->v;
	const char *why;
	int err;

	mutex_lock(&v->lock);
	why = not_ready(vf);
	err = why ? refuse(v, why) : pci_luo_freeze();
	if (!err) {
		write_down(vf, phys_to_virt(a->serialized_data));
		v->written_down = true;
	}
	mutex_unlock(&v->lock);
	return err;
}

static void vfio_unfreeze(struct liveupdate_file_args *a)
{
	struct vfio_device *v = file_of(a->file)->v;

	mutex_lock(&v->lock);
	pci_luo_unfreeze();
	v->written_down = false;
	if (pci_resume_irq(v->dev))
		pr_err(PCI_NAME " has lost its interrupt\n", PCI_NAME_ARGS(v->dev));
	mutex_unlock(&v->lock);
}

/* ---- the new kernel ---- */

/* The function of a record, if it was handed over and is not finished; NULL. */
static struct vfio_device *device_of(const struct vfio_luemu_ser *s)
{
	struct pci_dev *dev = pci_find(s->bdf);

	return dev && dev->incoming ? vfio_of(dev) : NULL;
}

static const char *problem(const struct vfio_luemu_ser *s)
{
	if (s->checksum != devices_sum(&s->checksum + 1, sizeof(*s) - 8))
		return "wrong checksum";
	if (s->irq != VFIO_LUEMU_INTX && s->irq != VFIO_LUEMU_MSI && s->irq != VFIO_LUEMU_NO_IRQ)
		return "an interrupt of no kind";
	if (s->flags & ~(VFIO_LUEMU_MASKED | VFIO_LUEMU_INTX_OFF | VFIO_LUEMU_MAKE_UP | VFIO_LUEMU_RESET))
		return "unknown flags";
	if (!s->object || !s->table)
		return "not bound or not attached";
	return NULL;
}

/* A function whose record can not be believed can not be had either: it is stopped at once. Its tables and the memory
 * that they lead to stay reserved, so what it did until now did no harm. */
static int vfio_own(struct liveupdate_file_args *a)
{
	const struct vfio_luemu_ser *s;
	struct vfio_device *v;
	unsigned int order;
	const char *what;
	int err = liveupdate_own(a, a->serialized_data, &order);

	if (err || order) {
		pr_err("a record is not there, or is another one's too: its function can not be had\n");
		return -EIO;
	}
	s = phys_to_virt(a->serialized_data);
	what = problem(s);
	v = device_of(s);
	if (!what && !v)
		what = "its function was not handed over";
	else if (!what && (v->dev->vendor != s->vendor || v->dev->device != s->device))
		what = "its function is another one";
	if (!what)
		return 0;
	pr_err("a record is refused: %s\n", what);
	if (v)
		pci_set_master(v->dev, false);
	return -EIO;
}

/* For luo_strict=linux, which looks at nothing beforehand: NULL, it is not there or makes no sense. */
static struct vfio_luemu_ser *record_at(u64 data)
{
	struct vfio_luemu_ser *s;
	unsigned int order;

	if (!kho_is_preserved(claim(data), &order) || order)
		return NULL;
	s = phys_to_virt(data);
	return problem(s) ? NULL : s;
}

/* As after open, bind and attach; registers are read only. */
static void take_over(struct vfio_device *v, struct vfio_file *vf, const struct vfio_luemu_ser *s)
{
	bool masked = s->flags & VFIO_LUEMU_MASKED;

	vfio_config_init(v);
	for (u32 i = 0; i < VFIO_CONFIG_SIZE; i++)
		v->config[i] = s->config[i];
	v->can_reset = s->flags & VFIO_LUEMU_RESET;
	v->irq = s->irq;
	v->masked = masked;
	v->masked_by_command = s->flags & VFIO_LUEMU_INTX_OFF;
	v->resume = s->irq != VFIO_LUEMU_NO_IRQ;
	v->make_up = v->resume && (s->irq == VFIO_LUEMU_MSI || masked || s->flags & VFIO_LUEMU_MAKE_UP);
	v->owner = vf;
}

static int vfio_retrieve(struct liveupdate_file_args *a)
{
	const struct vfio_luemu_ser *s = record_at(a->serialized_data);
	struct vfio_device *v = s ? device_of(s) : NULL;
	struct file *file;

	if (!v || v->owner)
		return -EIO;
	file = dentry_open(v->node, O_RDWR);
	if (IS_ERR(file))
		return (int)PTR_ERR(file);
	mutex_lock(&v->lock);
	take_over(v, file_of(file), s);
	mutex_unlock(&v->lock);
	a->file = file;
	return 0;
}

/* A function must not be anybody's before the tables are whose its memory is. */
static bool vfio_can_finish(struct liveupdate_file_args *a)
{
	struct vfio_file *vf;
	bool bound;

	if (!a->file)
		return true;
	vf = file_of(a->file);
	mutex_lock(&vf->v->lock);
	bound = vfio_is_bound(vf);
	mutex_unlock(&vf->v->lock);
	if (!bound)
		pr_err(PCI_NAME ": its iommufd was not retrieved: not finished\n", PCI_NAME_ARGS(vf->v->dev));
	return bound;
}

/* Nobody asked for it. */
static void stop(struct vfio_device *v)
{
	pci_set_master(v->dev, false);
	iommu_detach(v->dev);
	pci_luo_finish(v->dev);
	pci_msi_off(v->dev);
	pci_reset_function(v->dev);
	pci_set_master(v->dev, false);
	pr_info(PCI_NAME " was not retrieved: stopped\n", PCI_NAME_ARGS(v->dev));
}

static void vfio_finish(struct liveupdate_file_args *a)
{
	struct vfio_luemu_ser *s = record_at(a->serialized_data);
	struct vfio_device *v = s ? device_of(s) : NULL;

	if (!s)
		return;				/* it stays as it is */
	if (v) {
		mutex_lock(&v->lock);
		if (a->file)
			pci_luo_finish(v->dev);
		else
			stop(v);
		mutex_unlock(&v->lock);
	}
	kho_restore_free(s);
}

static const struct liveupdate_file_ops vfio_luo_ops = {
	.can_preserve = vfio_can_preserve,
	.preserve = vfio_preserve,
	.unpreserve = vfio_unpreserve,
	.freeze = vfio_freeze,
	.unfreeze = vfio_unfreeze,
	.own = vfio_own,
	.retrieve = vfio_retrieve,
	.can_finish = vfio_can_finish,
	.finish = vfio_finish,
	.get_id = vfio_get_id,
};
static struct liveupdate_file_handler vfio_luo_handler = {
	.ops = &vfio_luo_ops, .compatible = VFIO_LUEMU_COMPATIBLE,
};

static int vfio_luo_init(void)
{
	int err;

	if (list_empty(&vfio_devices) && !pci_luo_refused())
		return 0;
	err = liveupdate_register_file_handler(&vfio_luo_handler);
	if (!err)
		err = liveupdate_register_flb(&vfio_luo_handler, &pci_flb);
	return err == -EOPNOTSUPP ? 0 : err;
}
late_initcall(vfio_luo_init);
