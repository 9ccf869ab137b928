/* Interrupts: who gets them, and what happens around a handler.
 *
 * All of them come through the APICs; the two 8259s, which a PC starts with, are put in a known state and masked.
 * Interrupt n of the I/O APICs (a "GSI") has the vector VECTOR_GSI_BASE + n. A vector that nobody asked for is
 * acknowledged and forgotten: a kernel before this one may have left requests behind.
 *
 * Handlers run with interrupts off on the stack of whoever was interrupted. After the last, a switch that became due
 * takes place.
 */
#include "arch.h"
#include "acpi.h"
#include "apic.h"
#include "cpu.h"
#include "errno.h"
#include "iommu.h"
#include "printk.h"
#include "sched.h"
#include "task.h"
#include "timer.h"
#include "traps.h"

#define GSI_MAX		(VECTOR_GSI_MAX - VECTOR_GSI_BASE)

#define PIC_MASTER	0x20		/* command; data is the next port */
#define PIC_SLAVE	0xa0
#define PIC_VECTORS	0x20		/* never seen: but not among the processor's traps */

static struct {
	irq_handler_t handler;
	void *data;
} actions[GSI_MAX + 1];
static struct {
	irq_handler_t handler;
	void *data;
} messages[VECTOR_MSI_MAX - VECTOR_MSI_BASE + 1];
static spinlock_t actions_lock = SPINLOCK_INIT;

static void pic_command(u16 port, u8 value)
{
	outb(port, value);
	outb(0x80, 0);			/* time for old chips */
}

/* Initialisation command words 1 to 4 end whatever was in service or requested (Intel 8259A). */
static void mask_pics(void)
{
	outb(PIC_MASTER + 1, 0xff);
	outb(PIC_SLAVE + 1, 0xff);
	pic_command(PIC_MASTER, 0x11);
	pic_command(PIC_MASTER + 1, PIC_VECTORS);
	pic_command(PIC_MASTER + 1, 1 << 2);
	pic_command(PIC_MASTER + 1, 1);
	pic_command(PIC_SLAVE, 0x11);
	pic_command(PIC_SLAVE + 1, PIC_VECTORS + 8);
	pic_command(PIC_SLAVE + 1, 2);
	pic_command(PIC_SLAVE + 1, 1);
	outb(PIC_MASTER + 1, 0xff);
	outb(PIC_SLAVE + 1, 0xff);
}

void interrupts_init(void)
{
	mask_pics();
	local_apic_init();
	io_apic_init();
}

unsigned int isa_irq_to_gsi(unsigned int irq)
{
	return irq < ISA_IRQS ? acpi.isa_irq[irq].gsi : irq;
}

/* How an interrupt is signalled: as its override says; else edge and high from the ISA bus, level and low from PCI. */
static struct acpi_isa_irq signalling(unsigned int gsi)
{
	for (unsigned int i = 0; i < ISA_IRQS; i++)
		if (acpi.isa_irq[i].gsi == gsi)
			return acpi.isa_irq[i];
	return (struct acpi_isa_irq){ .gsi = gsi, .active_low = true, .level = true };
}

int request_irq(unsigned int gsi, irq_handler_t handler, void *data)
{
	struct acpi_isa_irq how = signalling(gsi);
	u64 flags;
	int err = 0;

	if (gsi > GSI_MAX || !handler || !io_apic_has_gsi(gsi))
		return -EINVAL;
	flags = spin_lock_irqsave(&actions_lock);
	if (actions[gsi].handler) {
		err = -EBUSY;
	} else {
		actions[gsi].handler = handler;
		actions[gsi].data = data;
		io_apic_route(gsi, (u8)(VECTOR_GSI_BASE + gsi), how.level, how.active_low);
	}
	spin_unlock_irqrestore(&actions_lock, flags);
	return err;
}

void free_irq(unsigned int gsi)
{
	u64 flags;

	if (gsi > GSI_MAX || !io_apic_has_gsi(gsi))
		return;
	flags = spin_lock_irqsave(&actions_lock);
	io_apic_mask(gsi);
	actions[gsi].handler = NULL;
	spin_unlock_irqrestore(&actions_lock, flags);
}

int request_vector(irq_handler_t handler, void *data)
{
	u64 flags = spin_lock_irqsave(&actions_lock);
	int vector = -ENOSPC;

	for (unsigned int i = 0; i < ARRAY_SIZE(messages) && vector < 0; i++) {
		if (messages[i].handler)
			continue;
		messages[i].data = data;
		WRITE_ONCE(messages[i].handler, handler);
		vector = (int)(VECTOR_MSI_BASE + i);
	}
	spin_unlock_irqrestore(&actions_lock, flags);
	return vector;
}

void free_vector(int vector)
{
	WRITE_ONCE(messages[vector - VECTOR_MSI_BASE].handler, NULL);
}

bool in_interrupt(void)
{
	return this_cpu()->irq_depth != 0;
}

static void handle_vector(u8 vector)
{
	if (vector == VECTOR_TIMER) {
		timer_interrupt();
	} else if (vector == VECTOR_REMAPPING) {
		iommu_fault();
	} else if (vector >= VECTOR_GSI_BASE && vector <= VECTOR_GSI_MAX) {
		unsigned int gsi = vector - VECTOR_GSI_BASE;
		irq_handler_t handler = READ_ONCE(actions[gsi].handler);

		if (handler)
			handler(gsi, actions[gsi].data);
	} else if (vector >= VECTOR_MSI_BASE && vector <= VECTOR_MSI_MAX) {
		unsigned int i = vector - VECTOR_MSI_BASE;
		irq_handler_t handler = READ_ONCE(messages[i].handler);

		if (handler)
			handler(vector, messages[i].data);
	}
}

void irq_dispatch(struct pt_regs *regs)
{
	u8 vector = (u8)regs->vector;

	this_cpu()->irq_depth++;
	handle_vector(vector);
	if (vector == VECTOR_TIMER)
		task_tick(user_mode(regs));
	/* a spurious interrupt is not in service, and so is what `int n` or an 8259 gave */
	if (apic_in_service(vector))
		apic_eoi();
	this_cpu()->irq_depth--;
	preempt_schedule();
}
