/* Finding all functions, numbering buses, and giving out addresses.
 *
 * Whatever has a bus number or an address keeps it: firmware gave it, or the kernel before this one, and a function that
 * was handed over is in use there. What has none gets one, in the order of the list, so that the result is the same on
 * each machine with these devices. Of incoming functions and the bridges above them nothing is written: what their BARs
 * decode is in the record of the previous kernel.
 */
#define pr_fmt(fmt) "pci: " fmt
#include "pci.h"
#include "errno.h"
#include "page.h"
#include "printk.h"
#include "pci_internal.h"

#define CLASS_HOST	0x060000
#define CLASS_ISA	0x060100

static const struct pci_window all_memory = { PCI_MEMORY_START, PCI_MEMORY_END }, all_io = { PCI_IO_START, PCI_IO_END };
#define MEMORY_GRAIN	(1UL << 20)	/* of a bridge's windows */
#define IO_GRAIN	(1UL << 12)

static u32 last_bus;

/* The first ones cost no memory of their own, so that what a board has besides (SATA, SMBus, a display) changes nothing in
 * a kernel that knows none of it: every allocation after this one is the same on all boards. */
#define FEW	16
static struct pci_dev few[FEW];
static u32 nr_functions;

/* ---- functions ---- */

/* Where the pin goes: it turns with the slot behind each bridge, and at last with the slot on bus 0. */
static unsigned int gsi_of(const struct pci_dev *dev)
{
	u32 pin = dev->pin - 1U;

	for (; dev->bridge; dev = dev->bridge)
		pin = (pin + pci_slot(dev)) & 3;
	return pci_slot(dev) < 25 ? 20 + ((pci_slot(dev) + pin) & 3) : 16 + pin;
}

/* Size by writing all ones, while nothing is decoded. */
static u32 probe_register(struct pci_dev *dev, u32 reg, u32 *value)
{
	u32 mask;

	*value = pci_read(dev, reg, 4);
	pci_write(dev, reg, 4, ~0U);
	mask = pci_read(dev, reg, 4);
	pci_write(dev, reg, 4, *value);
	return mask;
}

static void read_bars(struct pci_dev *dev)
{
	u32 count = dev->header == 0 ? PCI_BARS : 2, command = pci_read(dev, PCI_COMMAND, 2);

	pci_write(dev, PCI_COMMAND, 2, command & ~(u32)(PCI_COMMAND_IO | PCI_COMMAND_MEMORY));
	for (u32 i = 0; i < count; i++) {
		struct pci_bar *b = &dev->bar[i];
		u32 value, high = 0, mask = probe_register(dev, PCI_BAR0 + 4 * i, &value);
		u64 wide_mask = mask | ~0UL << 32;

		if (!mask)
			continue;
		if (mask & 1) {
			b->io = true;
			b->phys = value & 0xfffc;
			b->size = (~((mask & ~3U) | 0xffff0000U) + 1) & 0xffff;
			continue;
		}
		b->prefetch = mask & 8;
		b->wide = (mask & 6) == 4 && i + 1 < count;
		if (b->wide)
			wide_mask = (u64)probe_register(dev, PCI_BAR0 + 4 * ++i, &high) << 32 | mask;
		b->phys = (u64)high << 32 | (value & ~0xfU);
		b->size = ~(wide_mask & ~0xfUL) + 1;
	}
	/* nobody has given it memory yet, whoever did before */
	pci_write(dev, PCI_COMMAND, 2, command & ~(u32)PCI_COMMAND_MASTER);
}

static void read_windows(struct pci_dev *b)
{
	u32 memory = pci_read(b, PCI_MEMORY_WINDOW, 4), io = pci_read(b, PCI_IO_WINDOW, 2);
	u64 start = (memory & 0xfff0) << 16, end = ((u64)(memory >> 16 & 0xfff0) << 16) + MEMORY_GRAIN;

	if (start && start < end)
		b->memory = (struct pci_window){ start, end };
	start = (io & 0xf0) << 8;
	end = (io & 0xf000) + IO_GRAIN;
	if (start && start < end)
		b->io = (struct pci_window){ start, end };
}

static struct pci_dev *add_function(u16 bdf, struct pci_dev *bridge, u32 identity, u32 class, u8 header)
{
	struct pci_dev *dev = nr_functions < FEW ? &few[nr_functions] : kzalloc(sizeof(*dev), GFP_KERNEL);

	nr_functions++;
	if (!dev) {
		pr_err("no memory for a function\n");
		return NULL;
	}
	dev->bdf = bdf;
	dev->vendor = (u16)identity;
	dev->device = (u16)(identity >> 16);
	dev->class = class >> 8;
	dev->revision = (u8)class;
	dev->header = header & 0x7f;
	dev->bridge = bridge;
	dev->pin = (u8)pci_read(dev, PCI_INT_PIN, 1);
	if (dev->pin > 4)
		dev->pin = 0;
	if (dev->pin)
		dev->gsi = gsi_of(dev);
	INIT_LIST_HEAD(&dev->irq.list);
	if (dev->header == 1)
		read_windows(dev);
	if (!pci_luo_incoming(dev) && dev->header <= 1)
		read_bars(dev);
	return dev;
}

/* ---- buses ---- */

static void scan_functions(u32 bus, struct pci_dev *bridge)
{
	for (u32 devfn = 0; devfn < 256; devfn++) {
		u16 bdf = (u16)(bus << 8 | devfn);
		u32 identity = pci_read_bdf(bdf, PCI_VENDOR_ID, 4), class;
		struct pci_dev *dev;
		u8 header;

		if ((identity & 0xffff) == 0xffff || !identity) {
			devfn |= devfn & 7 ? 0 : 7;
			continue;
		}
		class = pci_read_bdf(bdf, 0x08, 4);
		header = (u8)pci_read_bdf(bdf, PCI_HEADER, 1);
		dev = class >> 8 == CLASS_HOST || class >> 8 == CLASS_ISA ? NULL :
			add_function(bdf, bridge, identity, class, header);
		if (dev)
			list_add_tail(&dev->list, &pci_devices);
		if (!(devfn & 7) && !(header & 0x80))
			devfn |= 7;
	}
}

/* Is there a number that leads somewhere, and to nobody else? */
static bool numbered(struct pci_dev *b)
{
	u32 buses = pci_read(b, PCI_BUSES, 4), first = buses >> 8 & 0xff, last = buses >> 16 & 0xff;
	struct pci_dev *other;

	if ((buses & 0xff) != (u32)b->bdf >> 8 || first <= (u32)b->bdf >> 8 || last < first)
		return false;
	list_for_each_entry(other, &pci_devices, list)
		if (other != b && other->secondary == first)
			return false;
	b->secondary = (u8)first;
	last_bus = max(last_bus, last);
	return true;
}

static void scan_bus(u32 bus, struct pci_dev *bridge)
{
	struct pci_dev *b;
	u32 limit;

	scan_functions(bus, bridge);
	/* those that have numbers, before any is given out */
	list_for_each_entry(b, &pci_devices, list)
		if (b->header == 1 && b->bridge == bridge)
			numbered(b);
	limit = bridge ? pci_read(bridge, PCI_BUSES + 2, 1) : 255;
	list_for_each_entry(b, &pci_devices, list) {
		if (b->header != 1 || b->bridge != bridge)
			continue;
		if (b->secondary) {
			scan_bus(b->secondary, b);
			continue;
		}
		if (b->incoming)	/* it must not be numbered: what is behind it is lost */
			continue;
		if (last_bus >= limit) {
			pr_warn(PCI_NAME " gets no bus number: what is behind it is not used\n", PCI_NAME_ARGS(b));
			continue;
		}
		b->secondary = (u8)++last_bus;
		pci_write(b, PCI_BUSES, 4, (pci_read(b, PCI_BUSES, 4) & 0xff000000) | limit << 16 |
			  (u32)b->secondary << 8 | bus);
		scan_bus(b->secondary, b);
		pci_write(b, PCI_BUSES + 2, 1, last_bus);
	}
}

/* ---- addresses ---- */

/* Who has [start, end) on the bus below `bridge`: BARs and windows there. */
static u64 taken_until(const struct pci_dev *bridge, u64 start, u64 end, bool io)
{
	struct pci_dev *dev;

	list_for_each_entry(dev, &pci_devices, list) {
		const struct pci_window *w = io ? &dev->io : &dev->memory;

		if (dev->bridge != bridge)
			continue;
		if (w->start < end && start < w->end)
			return w->end;
		for (u32 i = 0; i < PCI_BARS; i++) {
			const struct pci_bar *b = &dev->bar[i];

			if (b->phys && b->io == io && b->phys < end && start < b->phys + b->size)
				return b->phys + b->size;
		}
	}
	return 0;
}

/* 0: no room */
static u64 place(const struct pci_dev *bridge, u64 size, u64 align, bool io)
{
	const struct pci_window *w = !bridge ? io ? &all_io : &all_memory : io ? &bridge->io : &bridge->memory;
	u64 at = ALIGN_UP(w->start, align), end;

	while (at + size <= w->end) {
		end = taken_until(bridge, at, at + size, io);
		if (!end)
			return at;
		at = ALIGN_UP(end, align);
	}
	return 0;
}

/* What the functions directly behind a bridge want that have nothing yet. */
static u64 wanted(const struct pci_dev *bridge, bool io, u64 *align)
{
	struct pci_dev *dev;
	u64 sum = 0;

	*align = 1;
	list_for_each_entry(dev, &pci_devices, list)
		for (u32 i = 0; dev->bridge == bridge && i < PCI_BARS; i++) {
			const struct pci_bar *b = &dev->bar[i];

			if (!b->size || b->phys || b->io != io)
				continue;
			sum = ALIGN_UP(sum, b->size) + b->size;
			*align = max(*align, b->size);
		}
	return sum;
}

static void open_window(struct pci_dev *b, bool io)
{
	u64 grain = io ? IO_GRAIN : MEMORY_GRAIN, align, size = ALIGN_UP(wanted(b, io, &align), grain), at;
	struct pci_window *w = io ? &b->io : &b->memory;

	if (!size || w->end || b->incoming)
		return;
	at = place(b->bridge, size, max(align, grain), io);
	if (!at) {
		pr_warn(PCI_NAME ": no room for a window of %lu KiB\n", PCI_NAME_ARGS(b), size / KIB);
		return;
	}
	*w = (struct pci_window){ at, at + size };
	if (io)
		pci_write(b, PCI_IO_WINDOW, 2, (u32)(at >> 8 & 0xf0) | (u32)((at + size - 1) & 0xf000));
	else
		pci_write(b, PCI_MEMORY_WINDOW, 4, (u32)(at >> 16 & 0xfff0) | (u32)((at + size - 1) & 0xfff00000));
}

static void place_bars(struct pci_dev *dev)
{
	for (u32 i = 0; i < PCI_BARS; i++) {
		struct pci_bar *b = &dev->bar[i];

		if (!b->size || b->phys)
			continue;
		b->phys = place(dev->bridge, b->size, b->size, b->io);
		if (!b->phys) {
			pr_warn(PCI_NAME ": no room for BAR %u\n", PCI_NAME_ARGS(dev), i);
			continue;
		}
		pci_write(dev, PCI_BAR0 + 4 * i, 4, (u32)b->phys);
		if (b->wide)
			pci_write(dev, PCI_BAR0 + 4 * i + 4, 4, (u32)(b->phys >> 32));
	}
}

void pci_scan(void)
{
	struct pci_dev *dev;

	scan_bus(0, NULL);
	list_for_each_entry(dev, &pci_devices, list) {
		if (dev->incoming)
			continue;
		if (dev->header == 1) {
			open_window(dev, false);
			open_window(dev, true);
		}
		place_bars(dev);
	}
}
