/* Interrupt remapping (VT-d D51397, chapter 5): a message or a pin of the I/O APIC names an entry of a table, and the
 * entry says which processor gets which vector; only the function that it is for may use it.
 *
 * The entry of a function that is handed over stays its own over the update, with the message that the function was
 * programmed with. Between the kernels it is masked: nobody there could take the interrupt.
 *
 * Entries are few and searched: they are looked for when an interrupt is set up, not when it comes.
 */
#include "vtd.h"
#include "acpi.h"
#include "apic.h"
#include "errno.h"
#include "iommu.h"
#include "pci.h"
#include "sched.h"

#define FREE		0U
#define OWNER_PCI(bdf)	(1U << 16 | (bdf))
#define OWNER_PIN(apic, pin) (2U << 16 | (apic) << 8 | (pin))

static u32 owners[VTD_INTERRUPTS];
static spinlock_t lock = SPINLOCK_INIT;

static u64 entry_low(u8 vector, bool level)
{
	return VTD_PRESENT | (level ? 1UL << 4 : 0) | (u64)vector << 16 | (u64)local_apic_id() << 40;
}

/* The owner's entry, or a free one; -ENOSPC. */
static int entry_of(u32 owner)
{
	int free = -ENOSPC;

	for (int i = 0; i < VTD_INTERRUPTS; i++) {
		if (owners[i] == owner)
			return i;
		if (owners[i] == FREE && free < 0)
			free = i;
	}
	return free;
}

/* Index or -ENOSPC. */
static int set_entry(u32 owner, u16 source, u8 vector, bool level)
{
	u64 flags = spin_lock_irqsave(&lock);
	int i = entry_of(owner);

	if (i >= 0) {
		struct vtd_entry *e = &vtd.irt[i];
		bool known = e->low & VTD_PRESENT;

		owners[i] = owner;
		WRITE_ONCE(e->high, VTD_IRTE_VERIFY | source);
		barrier();
		WRITE_ONCE(e->low, entry_low(vector, level));
		vtd_sync();
		if (known)
			vtd_flush_interrupt((u32)i);
	}
	spin_unlock_irqrestore(&lock, flags);
	return i;
}

/* lock held */
static void clear_entry(u32 i, u64 low, u64 high)
{
	WRITE_ONCE(vtd.irt[i].low, low);
	WRITE_ONCE(vtd.irt[i].high, high);
	vtd_flush_interrupt(i);
}

int irq_message_alloc(struct pci_dev *dev, u8 vector, struct irq_message *m)
{
	if (!vtd.irt) {
		*m = (struct irq_message){ .address = 0xfee00000 | (u64)local_apic_id() << 12, .data = vector, .index = -1 };
		return 0;
	}
	m->index = set_entry(OWNER_PCI(dev->bdf), dev->bdf, vector, false);
	if (m->index < 0)
		return m->index;
	m->address = 0xfee00000 | ((u64)m->index & 0x7fff) << 5 | 1UL << 4 | ((u64)m->index >> 15) << 2;
	m->data = 0;
	return 0;
}

void irq_message_free(struct pci_dev *dev, struct irq_message *m)
{
	u64 flags;

	(void)dev;
	if (m->index < 0)
		return;
	flags = spin_lock_irqsave(&lock);
	clear_entry((u32)m->index, 0, 0);
	owners[m->index] = FREE;
	spin_unlock_irqrestore(&lock, flags);
	m->index = -1;
}

u64 irq_io_apic_entry(u32 id, u32 pin, u8 vector, bool level)
{
	int index;
	u32 i = 0;

	if (!vtd.irt)
		return 0;
	while (i < vtd.dmar.nr_io_apics && vtd.dmar.io_apics[i].id != id)
		i++;
	if (i == vtd.dmar.nr_io_apics)
		return 0;
	index = set_entry(OWNER_PIN(i, pin), vtd.dmar.io_apics[i].source, vector, level);
	/* The vector is for the end of interrupt, which finds the pin by it. */
	return index < 0 ? 0 : ((u64)index & 0x7fff) << 49 | 1UL << 48 | ((u64)index >> 15) << 11 | vector;
}

void vtd_irq_adopt(void)
{
	for (u32 i = 0; i < VTD_INTERRUPTS; i++)
		if (vtd.irt[i].high)
			owners[i] = OWNER_PCI(vtd.irt[i].high & 0xffff);
}

void vtd_irq_shutdown(bool (*keep)(u16 bdf))
{
	u64 flags = spin_lock_irqsave(&lock);

	for (u32 i = 0; i < VTD_INTERRUPTS; i++) {
		if (owners[i] == FREE)
			continue;
		if (owners[i] >> 16 == 1 && keep((u16)owners[i]))
			clear_entry(i, (vtd.irt[i].low & ~VTD_PRESENT) | VTD_IRTE_FPD, vtd.irt[i].high);
		else
			clear_entry(i, 0, 0);
	}
	spin_unlock_irqrestore(&lock, flags);
}
