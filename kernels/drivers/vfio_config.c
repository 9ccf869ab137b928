/* Configuration space as a program sees it through VFIO.
 *
 * Bits are the function's own or a copy's (virt), and the program may write some of either (writable). A BAR can be sized
 * and set, which moves nothing; what the kernel manages, as the message of an MSI, is a copy; COMMAND is the function's but
 * for INTX_OFF, with which the kernel masks. Capabilities that are none of these are hidden.
 */
#include "vfio.h"
#include "errno.h"
#include "string.h"
#include "uaccess.h"
#include "vma.h"

static void put(u8 *p, u32 at, u32 size, u32 value)
{
	for (u32 i = 0; i < size; i++)
		p[at + i] = (u8)(value >> 8 * i);
}

static u32 get(const u8 *p, u32 at, u32 size)
{
	u32 value = 0;

	for (u32 i = 0; i < size; i++)
		value |= (u32)p[at + i] << 8 * i;
	return value;
}

static void field(struct vfio_device *v, u32 at, u32 size, u32 virt, u32 writable)
{
	put(v->virt, at, size, virt);
	put(v->writable, at, size, writable);
}

#define ALL	0xffffffffU

/* Places of what is known; the others are taken out of the list. */
static void init_capabilities(struct vfio_device *v)
{
	u32 link = PCI_CAP_LIST, at = get(v->config, link, 1) & 0xfc;

	v->msi = v->pm = v->af = v->exp = 0;
	if (!(get(v->config, PCI_STATUS, 2) & PCI_STATUS_CAPS))
		return;
	field(v, PCI_CAP_LIST, 1, ALL, 0);
	for (u32 i = 0; at >= 0x40 && i < 48; i++) {
		u32 id = get(v->config, at, 1), next = get(v->config, at + 1, 1) & 0xfc;
		bool known = true;

		switch (id) {
		case PCI_CAP_PM:
			v->pm = (u8)at;
			field(v, at + 4, 2, 3, 3);
			break;
		case PCI_CAP_MSI: {
			bool wide = v->config[at + 2] & 0x80;

			v->msi = (u8)at;
			field(v, at + 2, 2, ALL, 1);
			v->config[at + 2] &= ~0x0e;	/* one vector is offered */
			field(v, at + 4, 4, ALL, ~3U);
			if (wide)
				field(v, at + 8, 4, ALL, ALL);
			field(v, at + (wide ? 12 : 8), 2, ALL, ALL);
			break;
		}
		case PCI_CAP_EXP:
			v->exp = (u8)at;
			field(v, at + 8, 2, 0x8000, 0x8000);
			break;
		case PCI_CAP_AF:
			v->af = (u8)at;
			field(v, at + 4, 1, 1, 1);
			break;
		default:
			known = false;
		}
		field(v, at + 1, 1, ALL, 0);
		if (known) {
			v->config[link] = (u8)at;
			link = at + 1;
		} else {
			field(v, at, 1, ALL, 0);
			v->config[at] = 0;
		}
		at = next;
	}
	v->config[link] = 0;
	if (link == PCI_CAP_LIST)
		v->config[PCI_STATUS] &= (u8)~PCI_STATUS_CAPS;
}

void vfio_config_init(struct vfio_device *v)
{
	for (u32 i = 0; i < VFIO_CONFIG_SIZE; i += 4)
		put(v->config, i, 4, pci_read(v->dev, i, 4));
	memset(v->virt, 0, sizeof(v->virt));
	memset(v->writable, 0, sizeof(v->writable));
	field(v, PCI_VENDOR_ID, 4, ALL, 0);
	field(v, PCI_COMMAND, 2, PCI_COMMAND_INTX_OFF, 0xffff);
	put(v->config, PCI_COMMAND, 2, get(v->config, PCI_COMMAND, 2) & ~(u32)PCI_COMMAND_INTX_OFF);
	field(v, PCI_STATUS, 2, PCI_STATUS_CAPS, 0xf900);
	field(v, 0x0c, 4, 0, 0xff00ffff);
	for (u32 i = 0; i < PCI_BARS; i++)
		field(v, PCI_BAR0 + 4 * i, 4, ALL, ALL);
	field(v, 0x28, 8, ALL, 0);
	field(v, 0x30, 4, ALL, 0);
	put(v->config, 0x30, 4, 0);
	field(v, PCI_INT_LINE, 2, ALL, 0x00ff);
	init_capabilities(v);
}

bool vfio_memory_enabled(const struct vfio_device *v)
{
	return pci_read(v->dev, PCI_COMMAND, 2) & PCI_COMMAND_MEMORY &&
		!(v->pm && pci_read(v->dev, v->pm + 4U, 2) & 3);
}

static void zap(struct vfio_device *v)
{
	mutex_lock(&v->areas.lock);
	unmap_mapping_range(&v->areas, 0, ~0UL >> 13, true);
	mutex_unlock(&v->areas.lock);
}

int vfio_reset(struct vfio_device *v)
{
	if (!v->can_reset)
		return -ENOTTY;
	if (v->frozen || v->dev->incoming)
		return -EBUSY;
	zap(v);
	return pci_reset_function(v->dev);
}

/* ---- what a write does beyond the copy ---- */

/* BARs keep what their size allows, and their kind. */
static void fix_bars(struct vfio_device *v)
{
	for (u32 i = 0; i < PCI_BARS; i++) {
		const struct pci_bar *b = &v->dev->bar[i];
		u32 at = PCI_BAR0 + 4 * i, value = get(v->config, at, 4);

		if (i && v->dev->bar[i - 1].wide)
			value &= ~(u32)((v->dev->bar[i - 1].size - 1) >> 32);
		else if (!b->size)
			value = 0;
		else if (b->io)
			value = (value & ~(u32)(b->size - 1) & 0xffff) | 1;
		else
			value = (value & ~(u32)(b->size - 1) & ~0xfU) | (b->wide ? 4 : 0) | (b->prefetch ? 8 : 0);
		put(v->config, at, 4, value);
	}
}

static void command_written(struct vfio_device *v, u32 before)
{
	bool off = get(v->config, PCI_COMMAND, 2) & PCI_COMMAND_INTX_OFF;

	if (before & PCI_COMMAND_MEMORY && !vfio_memory_enabled(v))
		zap(v);
	if (off != v->masked_by_command) {
		if (off)
			vfio_intx_mask(v, true);
		else
			vfio_intx_unmask(v, true);
	}
	/* a function behind a bridge is no master without it */
	if (pci_read(v->dev, PCI_COMMAND, 2) & ~before & PCI_COMMAND_MASTER && v->dev->bridge)
		pci_set_master(v->dev->bridge, true);
}

static void msi_written(struct vfio_device *v)
{
	u32 control = get(v->config, v->msi + 2U, 2), real = pci_read(v->dev, v->msi + 2U, 2);

	if (v->irq != VFIO_MSI)
		control &= ~1U;
	put(v->config, v->msi + 2U, 2, control);
	if ((control ^ real) & 1)
		pci_write(v->dev, v->msi + 2U, 2, (real & ~1U) | (control & 1));
}

static void power_written(struct vfio_device *v)
{
	u32 state = v->config[v->pm + 4] & 3, real = pci_read(v->dev, v->pm + 4U, 2);

	if (state && state != (real & 3))
		zap(v);
	if (v->dev->incoming || v->frozen)	/* the way back may reset it */
		state = real & 3;
	else if (state != (real & 3))
		pci_write(v->dev, v->pm + 4U, 2, (real & ~3U) | state);
	v->config[v->pm + 4] = (u8)((v->config[v->pm + 4] & ~3) | (pci_read(v->dev, v->pm + 4U, 2) & 3));
}

static bool covers(u64 at, u64 size, u32 reg, u32 length)
{
	return at < reg + length && reg < at + size;
}

static void written(struct vfio_device *v, u32 at, u32 size, u32 command)
{
	if (covers(at, size, PCI_BAR0, 4 * PCI_BARS))
		fix_bars(v);
	if (covers(at, size, PCI_COMMAND, 2))
		command_written(v, command);
	if (v->msi && covers(at, size, v->msi + 2U, 2))
		msi_written(v);
	if (v->pm && covers(at, size, v->pm + 4U, 2))
		power_written(v);
	if ((v->af && covers(at, size, v->af + 4U, 1) && v->config[v->af + 4] & 1) ||
	    (v->exp && covers(at, size, v->exp + 9U, 1) && v->config[v->exp + 9] & 0x80)) {
		if (v->af)
			v->config[v->af + 4] &= (u8)~1;
		if (v->exp)
			v->config[v->exp + 9] &= 0x7f;
		vfio_reset(v);
	}
}

/* ---- reading and writing: aligned pieces of 4, 2 or 1 ---- */

static u32 mask_of(u32 size) { return size == 4 ? ALL : (1U << 8 * size) - 1; }

static u32 read_piece(struct vfio_device *v, u32 at, u32 size)
{
	u32 virt = get(v->virt, at, size), value = get(v->config, at, size) & virt;

	if (virt != mask_of(size))
		value |= pci_read(v->dev, at, size) & ~virt;
	return value;
}

static void write_piece(struct vfio_device *v, u32 at, u32 size, u32 value)
{
	u32 virt = get(v->virt, at, size), may = get(v->writable, at, size), own = may & ~virt;
	u32 command = pci_read(v->dev, PCI_COMMAND, 2), real;
	u64 flags;

	if (!may)
		return;
	put(v->config, at, size, (get(v->config, at, size) & ~(may & virt)) | (value & may & virt));
	if (own) {
		flags = spin_lock_irqsave(&v->irq_lock);	/* an interrupt changes COMMAND too */
		real = pci_read(v->dev, at, size);
		/* what is cleared by writing 1 (status) is written only where the program says so */
		if (at >= PCI_STATUS && at < PCI_STATUS + 2)
			real = 0;
		else if (at == PCI_COMMAND && size == 4)
			real &= 0xffff;
		pci_write(v->dev, at, size, (real & ~own) | (value & own));
		spin_unlock_irqrestore(&v->irq_lock, flags);
	}
	written(v, at, size, command);
}

static u32 piece(u64 at, u64 left)
{
	return left >= 4 && !(at & 3) ? 4 : left >= 2 && !(at & 1) ? 2 : 1;
}

ssize_t vfio_config_rw(struct vfio_device *v, u64 at, void *user, u64 size, bool write)
{
	u64 done = 0;

	if (at >= VFIO_CONFIG_SIZE || size > VFIO_CONFIG_SIZE - at)
		return -EFAULT;
	while (done < size) {
		u32 n = piece(at, size - done), value = 0;

		if (write) {
			if (copy_from_user(&value, (u8 *)user + done, n))
				return -EFAULT;
			write_piece(v, (u32)at, n, value);
		} else {
			value = read_piece(v, (u32)at, n);
			if (copy_to_user((u8 *)user + done, &value, n))
				return -EFAULT;
		}
		at += n;
		done += n;
	}
	return (ssize_t)done;
}
