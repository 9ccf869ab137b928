/* PCI configuration space and what is done by it to one function (PCI 3.0, chapter 6; PCI PM 1.2; PCIe 5.0, 7.5).
 *
 * All access is by the two ports: they work before memory does, and reach everything that the kernel uses, the first 256
 * bytes of each function.
 */
#define pr_fmt(fmt) "pci: " fmt
#include "pci.h"
#include "arch.h"
#include "cpu.h"
#include "errno.h"
#include "page.h"
#include "sched.h"

#define CONFIG_ADDRESS	0xcf8
#define CONFIG_DATA	0xcfc
#define CONFIG_ENABLE	(1U << 31)
#define CAPS_MAX	48		/* no list is longer: so a loop ends */

#define CLASS_HOST	0x0600
#define CLASS_ISA	0x0601

LIST_HEAD(pci_devices);
static spinlock_t config_lock = SPINLOCK_INIT;	/* address and data belong together */

u32 pci_read_bdf(u16 bdf, u32 reg, u32 size)
{
	u16 port = (u16)(CONFIG_DATA + (reg & 3));
	u64 flags = spin_lock_irqsave(&config_lock);
	u32 v;

	outl(CONFIG_ADDRESS, CONFIG_ENABLE | (u32)bdf << 8 | (reg & 0xfc));
	v = size == 1 ? inb(port) : size == 2 ? inw(port) : inl(port);
	spin_unlock_irqrestore(&config_lock, flags);
	return v;
}

void pci_write_bdf(u16 bdf, u32 reg, u32 size, u32 value)
{
	u16 port = (u16)(CONFIG_DATA + (reg & 3));
	u64 flags = spin_lock_irqsave(&config_lock);

	outl(CONFIG_ADDRESS, CONFIG_ENABLE | (u32)bdf << 8 | (reg & 0xfc));
	if (size == 1)
		outb(port, (u8)value);
	else if (size == 2)
		outw(port, (u16)value);
	else
		outl(port, value);
	spin_unlock_irqrestore(&config_lock, flags);
}

u32 pci_read(struct pci_dev *dev, u32 reg, u32 size) { return pci_read_bdf(dev->bdf, reg, size); }
void pci_write(struct pci_dev *dev, u32 reg, u32 size, u32 value) { pci_write_bdf(dev->bdf, reg, size, value); }

struct pci_dev *pci_find(u16 bdf)
{
	struct pci_dev *dev;

	list_for_each_entry(dev, &pci_devices, list)
		if (dev->bdf == bdf)
			return dev;
	return NULL;
}

u8 pci_find_cap(struct pci_dev *dev, u8 id)
{
	u8 at = 0;

	if (pci_read(dev, PCI_STATUS, 2) & PCI_STATUS_CAPS)
		at = (u8)pci_read(dev, PCI_CAP_LIST, 1) & 0xfc;
	for (unsigned int i = 0; at >= 0x40 && i < CAPS_MAX; i++) {
		u32 head = pci_read(dev, at, 2);

		if ((head & 0xff) == id)
			return at;
		at = head >> 8 & 0xfc;
	}
	return 0;
}

/* Only what changes is written. */
static void command(struct pci_dev *dev, u32 clear, u32 set)
{
	u32 old = pci_read(dev, PCI_COMMAND, 2), new = (old & ~clear) | set;

	if (new != old)
		pci_write(dev, PCI_COMMAND, 2, new);
}

void pci_enable(struct pci_dev *dev)
{
	u32 bits = 0;

	for (struct pci_dev *b = dev->bridge; b; b = b->bridge)
		command(b, 0, PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
	for (unsigned int i = 0; i < PCI_BARS; i++)
		if (dev->bar[i].phys)
			bits |= dev->bar[i].io ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
	command(dev, 0, bits);
}

void pci_set_master(struct pci_dev *dev, bool on)
{
	for (struct pci_dev *b = on ? dev->bridge : NULL; b; b = b->bridge)
		command(b, 0, PCI_COMMAND_MASTER);
	command(dev, on ? 0 : PCI_COMMAND_MASTER, on ? PCI_COMMAND_MASTER : 0);
}

void pci_msi_off(struct pci_dev *dev)
{
	u8 at = pci_find_cap(dev, PCI_CAP_MSI);
	u32 control = at ? pci_read(dev, at + 2U, 2) : 0;

	if (control & 1)
		pci_write(dev, at + 2U, 2, control & ~1U);
}

/* What is behind a bridge first: it must not get through while the list is walked. Bus numbers are claims. */
static unsigned int silence_bus(u32 bus)
{
	unsigned int had = 0;

	for (u32 devfn = 0; devfn < 256; devfn++) {
		u16 bdf = (u16)(bus << 8 | devfn);
		u32 class, header;

		if (pci_read_bdf(bdf, PCI_VENDOR_ID, 2) == 0xffff) {
			devfn |= devfn & 7 ? 0 : 7;	/* no function 0: no others */
			continue;
		}
		class = pci_read_bdf(bdf, 0x0a, 2);
		header = pci_read_bdf(bdf, PCI_HEADER, 1);
		if ((header & 0x7f) == 1) {
			u32 secondary = pci_read_bdf(bdf, PCI_BUSES + 1, 1);

			if (secondary > bus)
				had += silence_bus(secondary);
		}
		if (class != CLASS_HOST && class != CLASS_ISA) {
			u32 cmd = pci_read_bdf(bdf, PCI_COMMAND, 2);

			if (cmd & PCI_COMMAND_MASTER) {
				pci_write_bdf(bdf, PCI_COMMAND, 2, cmd & ~(u32)PCI_COMMAND_MASTER);
				had++;
			}
		}
		if (!(devfn & 7) && !(header & 0x80))
			devfn |= 7;
	}
	return had;
}

unsigned int pci_silence_all(void)
{
	return silence_bus(0);
}

volatile void *pci_map_bar(struct pci_dev *dev, unsigned int bar)
{
	if (bar >= PCI_BARS || dev->bar[bar].io || !dev->bar[bar].phys)
		return NULL;
	if (!dev->mapped[bar])
		dev->mapped[bar] = ioremap(dev->bar[bar].phys, dev->bar[bar].size);
	return dev->mapped[bar];
}

/* ---- reset ---- */

enum reset { RESET_NONE, RESET_EXPRESS, RESET_ADVANCED, RESET_POWER };

static enum reset reset_method(struct pci_dev *dev, u8 *at)
{
	*at = pci_find_cap(dev, PCI_CAP_EXP);
	if (*at && pci_read(dev, *at + 4U, 4) & 1U << 28)
		return RESET_EXPRESS;
	*at = pci_find_cap(dev, PCI_CAP_AF);
	if (*at && (pci_read(dev, *at + 3U, 1) & 3) == 3)
		return RESET_ADVANCED;
	*at = pci_find_cap(dev, PCI_CAP_PM);
	if (*at && !(pci_read(dev, *at + 4U, 2) & 8))
		return RESET_POWER;
	return RESET_NONE;
}

bool pci_can_reset(struct pci_dev *dev)
{
	u8 at;

	return reset_method(dev, &at) != RESET_NONE;
}

int pci_reset_function(struct pci_dev *dev)
{
	u32 saved[16], msi[4];
	u8 at, msi_at;
	enum reset how;

	if (dev->incoming)
		return -EBUSY;
	how = reset_method(dev, &at);
	if (how == RESET_NONE)
		return -ENOTTY;
	msi_at = pci_find_cap(dev, PCI_CAP_MSI);
	for (u32 i = 0; i < ARRAY_SIZE(saved); i++)
		saved[i] = pci_read(dev, 4 * i, 4);
	for (u32 i = 0; msi_at && i < ARRAY_SIZE(msi); i++)
		msi[i] = pci_read(dev, msi_at + 4 * i, 4);
	command(dev, PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, PCI_COMMAND_INTX_OFF);
	switch (how) {
	case RESET_EXPRESS:
		pci_write(dev, at + 8U, 2, pci_read(dev, at + 8U, 2) | 1U << 15);
		msleep(100);
		break;
	case RESET_ADVANCED:
		pci_write(dev, at + 4U, 1, 1);
		msleep(100);
		break;
	default:
		pci_write(dev, at + 4U, 2, 3);
		msleep(10);
		pci_write(dev, at + 4U, 2, 0);
		msleep(10);
		break;
	}
	for (u32 i = ARRAY_SIZE(saved) - 1; i >= 4; i--)
		pci_write(dev, 4 * i, 4, saved[i]);
	for (u32 i = ARRAY_SIZE(msi) - 1; msi_at && i < ARRAY_SIZE(msi); i--)
		pci_write(dev, msi_at + 4 * i, 4, msi[i]);
	pci_write(dev, PCI_COMMAND, 2, saved[1] & 0xffff);
	return 0;
}
