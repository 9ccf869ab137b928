/* Interrupts of functions: pins, which share lines, and messages.
 *
 * A line is level-triggered and says only that somebody on it wants something. Who does is in each function's status
 * register (PCI 2.3), so handlers are called for those alone. A line that stays asserted although nobody says so would
 * take all of the processor: it is masked after a while, with a message.
 */
#define pr_fmt(fmt) "pci: " fmt
#include "pci_internal.h"
#include "arch.h"
#include "errno.h"
#include "printk.h"
#include "sched.h"

#define LINES		32
#define UNCLAIMED_MAX	100000		/* interrupts in a row */

static struct line {
	struct list_head users;		/* next NULL: never used */
	u32 unclaimed;
} lines[LINES];
static spinlock_t lines_lock = SPINLOCK_INIT;

static bool asserts(struct pci_dev *dev)
{
	return pci_read(dev, PCI_STATUS, 2) & PCI_STATUS_INTX && !(pci_read(dev, PCI_COMMAND, 2) & PCI_COMMAND_INTX_OFF);
}

static void line_interrupt(unsigned int gsi, void *data)
{
	struct line *line = data;
	struct pci_irq *irq;
	bool any = false;

	spin_lock(&lines_lock);
	list_for_each_entry(irq, &line->users, list) {
		struct pci_dev *dev = container_of(irq, struct pci_dev, irq);

		if (!asserts(dev))
			continue;
		any = true;
		if (irq->held) {	/* this kernel ends */
			free_irq(gsi);
			break;
		}
		irq->fn(dev, irq->data);
	}
	line->unclaimed = any ? 0 : line->unclaimed + 1;
	if (line->unclaimed == UNCLAIMED_MAX) {
		pr_err("line %u is asserted and nobody says why: it is masked\n", gsi);
		free_irq(gsi);
	}
	spin_unlock(&lines_lock);
}

int pci_request_intx(struct pci_dev *dev, pci_irq_t fn, void *data)
{
	struct line *line = &lines[dev->gsi % LINES];
	u64 flags;
	int err = 0;

	if (!dev->pin)
		return -ENODEV;
	if (dev->irq.kind != PCI_IRQ_NONE)
		return -EBUSY;
	flags = spin_lock_irqsave(&lines_lock);
	if (!line->users.next)
		INIT_LIST_HEAD(&line->users);
	dev->irq.fn = fn;
	dev->irq.data = data;
	if (list_empty(&line->users)) {
		line->unclaimed = 0;
		err = request_irq(dev->gsi, line_interrupt, line);
	}
	if (!err) {
		dev->irq.kind = PCI_IRQ_INTX;
		list_add_tail(&dev->irq.list, &line->users);
	}
	spin_unlock_irqrestore(&lines_lock, flags);
	if (!err && !dev->incoming) {
		u32 command = pci_read(dev, PCI_COMMAND, 2);

		if (command & PCI_COMMAND_INTX_OFF)
			pci_write(dev, PCI_COMMAND, 2, command & ~(u32)PCI_COMMAND_INTX_OFF);
	}
	return err;
}

static void message_interrupt(unsigned int vector, void *data)
{
	struct pci_dev *dev = data;

	(void)vector;
	dev->irq.fn(dev, dev->irq.data);
}

/* Registers of the capability (PCI 3.0, 6.8.1). */
static void program(struct pci_dev *dev, u8 at)
{
	u32 control = pci_read(dev, at + 2U, 2);
	const struct irq_message *m = &dev->irq.message;
	bool wide = control & 1U << 7;

	if (control & 1)
		pci_write(dev, at + 2U, 2, control & ~1U);
	pci_write(dev, at + 4U, 4, (u32)m->address);
	if (wide)
		pci_write(dev, at + 8U, 4, (u32)(m->address >> 32));
	pci_write(dev, at + (wide ? 12U : 8U), 2, m->data);
	pci_write(dev, at + 2U, 2, (control & ~0x70U) | 1);
}

/* Is it what the function sends already? */
static bool programmed(struct pci_dev *dev, u8 at)
{
	u32 control = pci_read(dev, at + 2U, 2);
	const struct irq_message *m = &dev->irq.message;
	bool wide = control & 1U << 7;

	return control & 1 && pci_read(dev, at + 4U, 4) == (u32)m->address &&
		pci_read(dev, at + (wide ? 12U : 8U), 2) == m->data &&
		(!wide || pci_read(dev, at + 8U, 4) == m->address >> 32);
}

int pci_request_msi(struct pci_dev *dev, pci_irq_t fn, void *data)
{
	u8 at = pci_find_cap(dev, PCI_CAP_MSI);
	int vector, err;

	if (!at)
		return -ENODEV;
	if (dev->irq.kind != PCI_IRQ_NONE)
		return -EBUSY;
	dev->irq.fn = fn;
	dev->irq.data = data;
	vector = request_vector(message_interrupt, dev);
	if (vector < 0)
		return vector;
	err = irq_message_alloc(dev, (u8)vector, &dev->irq.message);
	if (err) {
		free_vector(vector);
		return err;
	}
	dev->irq.vector = vector;
	dev->irq.kind = PCI_IRQ_MSI;
	if (!programmed(dev, at))
		program(dev, at);
	return 0;
}

void pci_free_irq(struct pci_dev *dev)
{
	struct line *line = &lines[dev->gsi % LINES];
	u64 flags;

	if (dev->irq.kind == PCI_IRQ_INTX) {
		u32 command = pci_read(dev, PCI_COMMAND, 2);

		if (!dev->incoming && !(command & PCI_COMMAND_INTX_OFF))
			pci_write(dev, PCI_COMMAND, 2, command | PCI_COMMAND_INTX_OFF);
		flags = spin_lock_irqsave(&lines_lock);
		list_del_init(&dev->irq.list);
		if (list_empty(&line->users))
			free_irq(dev->gsi);
		spin_unlock_irqrestore(&lines_lock, flags);
	} else if (dev->irq.kind == PCI_IRQ_MSI) {
		pci_msi_off(dev);
		irq_message_free(dev, &dev->irq.message);
		free_vector(dev->irq.vector);
	}
	dev->irq.kind = PCI_IRQ_NONE;
	dev->irq.held = false;
}

void pci_hold_irq(struct pci_dev *dev)
{
	u64 flags = spin_lock_irqsave(&lines_lock);

	dev->irq.held = dev->irq.kind == PCI_IRQ_INTX;
	spin_unlock_irqrestore(&lines_lock, flags);
}

int pci_resume_irq(struct pci_dev *dev)
{
	u64 flags = spin_lock_irqsave(&lines_lock);
	int err = 0;

	if (dev->irq.held) {
		err = request_irq(dev->gsi, line_interrupt, &lines[dev->gsi % LINES]);
		dev->irq.held = false;
	}
	spin_unlock_irqrestore(&lines_lock, flags);
	return err == -EBUSY ? 0 : err;		/* it did not come to that */
}
