/* Regions of a VFIO device: BARs and configuration space in the file, BARs in the program's memory. */
#include "vfio.h"
#include "cpu.h"
#include "errno.h"
#include "page.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define PIECE	8U			/* one access of a program to a register */

static u64 read_register(const struct pci_bar *b, volatile u8 *p, u64 at, u32 size)
{
	u16 port = (u16)(b->phys + at);

	if (b->io)
		return size == 4 ? inl(port) : size == 2 ? inw(port) : inb(port);
	switch (size) {
	case 8:
		return readq(p + at);
	case 4:
		return readl(p + at);
	case 2:
		return *(volatile u16 *)(p + at);
	}
	return p[at];
}

static void write_register(const struct pci_bar *b, volatile u8 *p, u64 at, u32 size, u64 value)
{
	u16 port = (u16)(b->phys + at);

	if (b->io && size == 4)
		outl(port, (u32)value);
	else if (b->io && size == 2)
		outw(port, (u16)value);
	else if (b->io)
		outb(port, (u8)value);
	else if (size == 8)
		writeq(value, p + at);
	else if (size == 4)
		writel((u32)value, p + at);
	else if (size == 2)
		*(volatile u16 *)(p + at) = (u16)value;
	else
		p[at] = (u8)value;
}

static ssize_t bar_rw(struct vfio_device *v, u32 bar, u64 at, u8 *user, u64 size, bool write)
{
	const struct pci_bar *b = &v->dev->bar[bar];
	volatile u8 *p = NULL;
	u64 done = 0;

	if (!b->phys || at >= b->size)
		return -EINVAL;
	size = min(size, b->size - at);
	if (!b->io) {
		if (!vfio_memory_enabled(v))
			return -EIO;
		p = pci_map_bar(v->dev, bar);
		if (!p)
			return -ENOMEM;
	}
	while (done < size) {
		u64 left = size - done, value = 0;
		u32 n = b->io ? 4 : PIECE;

		while (n > left || at % n)
			n /= 2;
		if (write) {
			if (copy_from_user(&value, user + done, n))
				return -EFAULT;
			write_register(b, p, at, n, value);
		} else {
			value = read_register(b, p, at, n);
			if (copy_to_user(user + done, &value, n))
				return -EFAULT;
		}
		at += n;
		done += n;
	}
	return (ssize_t)done;
}

static ssize_t rw(struct file *f, u8 *user, u64 size, loff_t *pos, bool write)
{
	struct vfio_file *vf = f->private;
	struct vfio_device *v = vf->v;
	u64 at = (u64)*pos & ((1UL << VFIO_OFFSET_SHIFT) - 1), region = (u64)*pos >> VFIO_OFFSET_SHIFT;
	ssize_t n = -EINVAL;

	mutex_lock(&v->lock);
	if (v->written_down)
		n = -EBUSY;
	else if (!vfio_is_bound(vf) || region >= VFIO_REGIONS)
		n = -EINVAL;
	else if (!size)
		n = 0;
	else if (region == VFIO_REGION_CONFIG)
		n = vfio_config_rw(v, at, user, size, write);
	else if (region < VFIO_REGION_ROM)
		n = bar_rw(v, (u32)region, at, user, size, write);
	mutex_unlock(&v->lock);
	if (n > 0)
		*pos += n;
	return n;
}

ssize_t vfio_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	return rw(f, user, size, pos, false);
}

ssize_t vfio_write(struct file *f, const void *user, u64 size, loff_t *pos)
{
	return rw(f, (u8 *)user, size, pos, true);
}

/* Positions are for pread and pwrite. */
loff_t vfio_llseek(struct file *f, loff_t off, int whence)
{
	(void)f;
	(void)off;
	(void)whence;
	return -ESPIPE;
}

/* The mm's lock is held, under which no device's may be taken: only what never changes is looked at. */
int vfio_mmap(struct file *f, struct vma *vma)
{
	struct vfio_file *vf = f->private;
	struct vfio_device *v = vf->v;
	u64 region = vma->pgoff >> (VFIO_OFFSET_SHIFT - PAGE_SHIFT), page;
	const struct pci_bar *b;

	if (READ_ONCE(v->owner) != vf || region >= VFIO_REGION_ROM || !(vma->flags & VM_SHARED))
		return -EINVAL;
	b = &v->dev->bar[region];
	page = vma->pgoff & ((1UL << (VFIO_OFFSET_SHIFT - PAGE_SHIFT)) - 1);
	if (!b->phys || b->io || !IS_ALIGNED(b->phys | b->size, PAGE_SIZE) ||
	    page + PFN_DOWN(vma->end - vma->start) > PFN_DOWN(b->size))
		return -EINVAL;
	vma->flags |= VM_DEVICE;
	vma->mapping = &v->areas;
	return 0;
}

int vfio_device_page(struct file *f, u64 page, phys_addr_t *phys)
{
	struct vfio_file *vf = f->private;
	const struct pci_bar *b = &vf->v->dev->bar[page >> (VFIO_OFFSET_SHIFT - PAGE_SHIFT)];

	if (READ_ONCE(vf->v->owner) != vf || !vfio_memory_enabled(vf->v))
		return -EIO;
	*phys = b->phys + PFN_PHYS(page & ((1UL << (VFIO_OFFSET_SHIFT - PAGE_SHIFT)) - 1));
	return 0;
}
