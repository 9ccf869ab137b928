/* Interrupts of a VFIO device to eventfds, by the rules of Linux's SET_IRQS.
 *
 * A pin is masked in the function itself (INTX_OFF) as soon as its interrupt was passed on, until the program unmasks it:
 * a line that stays asserted then disturbs nobody. A message is passed on each time.
 *
 * After an update the function goes on with what was on, but the eventfd is gone. The first one that is set hears once
 * of what may have come meanwhile; see docs/abi-devices.md. A pin that is asserted and not masked needs no such help.
 */
#include "vfio.h"
#include "arch.h"
#include "breakage.h"
#include "errno.h"
#include "eventfd.h"
#include "page.h"
#include "string.h"
#include "vfs.h"

#define UNMASK_LATER_NS	1000000

int vfio_irq_count(struct vfio_device *v, u32 index)
{
	switch (index) {
	case VFIO_INTX:
		return v->dev->pin ? 1 : 0;
	case VFIO_MSI:
		return v->msi ? 1 : 0;		/* more vectors than one are not offered */
	case VFIO_ERR:
		return v->exp ? 1 : 0;
	case VFIO_REQ:
		return 1;
	}
	return 0;
}

/* ---- the pin ---- */

static void set_intx_off(struct vfio_device *v, bool off)
{
	u32 command = pci_read(v->dev, PCI_COMMAND, 2);
	u32 wanted = off ? command | PCI_COMMAND_INTX_OFF : command & ~(u32)PCI_COMMAND_INTX_OFF;

	if (wanted != command)
		pci_write(v->dev, PCI_COMMAND, 2, wanted);
}

/* By an interrupt or with v->lock: on one processor nobody changes the trigger meanwhile. Not with irq_lock, for whoever
 * listens to the eventfd may be the one that unmasks. */
static void signal_trigger(struct vfio_device *v)
{
	if (v->trigger)
		eventfd_signal(v->trigger);
}

static void intx_interrupt(struct pci_dev *dev, void *data)
{
	struct vfio_device *v = data;
	bool passed_on;

	(void)dev;
	spin_lock(&v->irq_lock);
	passed_on = !v->masked;
	v->masked = true;
	set_intx_off(v, true);
	spin_unlock(&v->irq_lock);
	if (!passed_on)
		return;
	v->passing_on = true;
	signal_trigger(v);
	v->passing_on = false;
}

static void msi_interrupt(struct pci_dev *dev, void *data)
{
	(void)dev;
	signal_trigger(data);
}

void vfio_intx_mask(struct vfio_device *v, bool by_command)
{
	u64 flags = spin_lock_irqsave(&v->irq_lock);

	if (by_command)
		v->masked_by_command = true;
	else
		v->masked = true;
	if (v->irq == VFIO_INTX || by_command)
		set_intx_off(v, true);
	spin_unlock_irqrestore(&v->irq_lock, flags);
}

void vfio_intx_unmask(struct vfio_device *v, bool by_command)
{
	u64 flags = spin_lock_irqsave(&v->irq_lock);

	if (by_command)
		v->masked_by_command = false;
	else
		v->masked = false;
	if (v->irq == VFIO_INTX && !v->masked && !v->masked_by_command)
		set_intx_off(v, false);		/* still asserted: it comes again at once */
	spin_unlock_irqrestore(&v->irq_lock, flags);
}

/* ---- on and off ---- */

static struct file *set_trigger(struct vfio_device *v, struct file *new)
{
	u64 flags = spin_lock_irqsave(&v->irq_lock);
	struct file *before = v->trigger;

	v->trigger = new;
	spin_unlock_irqrestore(&v->irq_lock, flags);
	return before;
}

/* Only when the handler is there: what comes from now on is passed on anyway. */
static void make_up(struct vfio_device *v)
{
	if (v->make_up && !breaks("interrupt", NULL)) {	// break: nobody hears of what came meanwhile
		v->make_up = false;
		signal_trigger(v);
	}
}

static int enable(struct vfio_device *v, u32 index, struct file *trigger)
{
	int err;

	v->masked = false;
	v->trigger = trigger;
	v->irq = index;
	if (index == VFIO_INTX) {
		err = pci_request_intx(v->dev, intx_interrupt, v);
		if (!err && v->masked_by_command)
			set_intx_off(v, true);
	} else {
		err = pci_request_msi(v->dev, msi_interrupt, v);
	}
	if (err) {
		v->trigger = NULL;
		v->irq = VFIO_IRQS;
	}
	return err;
}

/* The eventfd of a descriptor, NULL for -1. */
static struct file *trigger_of(int fd)
{
	return fd < 0 ? NULL : eventfd_get(fd);
}

void vfio_unmask_later(struct ktimer *t)
{
	struct vfio_device *v = container_of(t, struct vfio_device, unmask_later);

	if (v->written_down)		/* nothing changes now; but the update may not come about */
		ktimer_set(t, ktime_get_ns() + UNMASK_LATER_NS);
	else
		vfio_intx_unmask(v, false);
}

/* Where the trigger itself unmasks, a line that stays asserted would leave no time for anything else. */
static void unmask_by_eventfd(void *data)
{
	struct vfio_device *v = data;

	if (v->passing_on)
		ktimer_set(&v->unmask_later, ktime_get_ns() + UNMASK_LATER_NS);
	else
		vfio_intx_unmask(v, false);
}

static void forget_unmask_fd(struct vfio_device *v)
{
	if (!v->unmask)
		return;
	eventfd_listen(v->unmask, NULL, NULL);
	ktimer_cancel(&v->unmask_later);
	fput(v->unmask);
	v->unmask = NULL;
}

void vfio_irq_disable(struct vfio_device *v)
{
	struct file *before;

	if (v->irq == VFIO_IRQS)
		return;
	if (v->resume && v->irq == VFIO_INTX)
		set_intx_off(v, true);
	else if (v->resume)
		pci_msi_off(v->dev);
	pci_free_irq(v->dev);
	forget_unmask_fd(v);
	before = set_trigger(v, NULL);
	v->irq = VFIO_IRQS;
	v->masked = v->make_up = v->resume = false;
	if (before)
		fput(before);
}

/* The handler for what the function is set to since the previous kernel. No register is written, unless others than
 * expected are found. A line that is asserted makes itself known at once. */
static int resume(struct vfio_device *v)
{
	int err;

	if (!v->resume)
		return 0;
	if (v->irq == VFIO_INTX)
		set_intx_off(v, v->masked || v->masked_by_command);
	err = v->irq == VFIO_INTX ? pci_request_intx(v->dev, intx_interrupt, v)
				  : pci_request_msi(v->dev, msi_interrupt, v);
	if (err)
		return err;
	v->resume = false;
	return 0;
}

/* ---- SET_IRQS ---- */

static bool switches_off(const struct vfio_device *v, const struct vfio_irq_set *s)
{
	return v->irq == s->index && !s->count && s->flags & VFIO_DATA_NONE;
}

static int set_unmask_fd(struct vfio_device *v, int fd)
{
	struct file *f = trigger_of(fd);
	int err;

	if (IS_ERR(f))
		return (int)PTR_ERR(f);
	if (!f) {
		forget_unmask_fd(v);
		return 0;
	}
	err = v->unmask ? -EBUSY : eventfd_listen(f, unmask_by_eventfd, v);
	if (err)
		fput(f);
	else
		v->unmask = f;
	return err;
}

static int set_intx_mask(struct vfio_device *v, const struct vfio_irq_set *s, const void *data, bool mask)
{
	if (v->irq != VFIO_INTX || s->start || s->count != 1)
		return -EINVAL;
	if (s->flags & VFIO_DATA_EVENTFD)
		return mask ? -ENOTTY : set_unmask_fd(v, *(const s32 *)data);
	if (s->flags & VFIO_DATA_BOOL && !*(const u8 *)data)
		return 0;
	if (mask)
		vfio_intx_mask(v, false);
	else
		vfio_intx_unmask(v, false);
	return 0;
}

static void replace_trigger(struct vfio_device *v, struct file *new)
{
	struct file *before = set_trigger(v, new);

	if (before)
		fput(before);
}

static int set_trigger_fd(struct vfio_device *v, const struct vfio_irq_set *s, int fd)
{
	struct file *trigger = trigger_of(fd);
	int err;

	if (IS_ERR(trigger))
		return (int)PTR_ERR(trigger);
	if (v->irq == s->index) {
		replace_trigger(v, trigger);
		err = trigger ? resume(v) : 0;
		if (err)
			vfio_irq_disable(v);
		else if (trigger)
			make_up(v);
		return err;
	}
	err = enable(v, s->index, trigger);
	if (err && trigger)
		fput(trigger);
	return err;
}

static int set_main_trigger(struct vfio_device *v, const struct vfio_irq_set *s, const void *data)
{
	if (switches_off(v, s)) {
		vfio_irq_disable(v);
		return 0;
	}
	if (v->irq != s->index && v->irq != VFIO_IRQS)
		return -EINVAL;
	if (s->index == VFIO_INTX && (s->start || s->count != 1))
		return -EINVAL;
	if (s->flags & VFIO_DATA_EVENTFD)
		return s->count ? set_trigger_fd(v, s, *(const s32 *)data) : -EINVAL;
	if (v->irq != s->index)
		return -EINVAL;
	if (s->count && (s->flags & VFIO_DATA_NONE || *(const u8 *)data))
		signal_trigger(v);
	return 0;
}

/* "Give the device back, please": the kernel never asks, but a program can try its own wiring. */
static int set_request(struct vfio_device *v, const struct vfio_irq_set *s, const void *data)
{
	struct file *new = NULL;

	if (s->start || s->count > 1)
		return -EINVAL;
	if (s->flags & VFIO_DATA_EVENTFD) {
		if (!s->count)
			return -EINVAL;
		new = trigger_of(*(const s32 *)data);
		if (IS_ERR(new))
			return (int)PTR_ERR(new);
	} else {
		if (!v->request)
			return -EINVAL;
		if (s->flags & VFIO_DATA_BOOL && !(s->count && *(const u8 *)data))
			return 0;
		if (s->count) {
			eventfd_signal(v->request);
			return 0;
		}
	}
	if (v->request)
		fput(v->request);
	v->request = new;
	return 0;
}

int vfio_set_irqs(struct vfio_device *v, const struct vfio_irq_set *s, const void *data)
{
	u32 action = s->flags & VFIO_ACTION_ALL;

	if (s->index == VFIO_INTX && (action == VFIO_ACTION_MASK || action == VFIO_ACTION_UNMASK))
		return set_intx_mask(v, s, data, action == VFIO_ACTION_MASK);
	if (action != VFIO_ACTION_TRIGGER)
		return -ENOTTY;
	if (s->index == VFIO_INTX || s->index == VFIO_MSI)
		return set_main_trigger(v, s, data);
	if (s->index == VFIO_REQ)
		return set_request(v, s, data);
	return -ENOTTY;
}
