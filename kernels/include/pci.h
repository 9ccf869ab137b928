/* PCI: functions, drivers, configuration space, interrupts (drivers/pci*.c).
 *
 * Functions are found once, at boot. Those whose preservation the previous kernel announced (the FLB of the PCI core) keep
 * bus numbers, BARs, COMMAND, power state and interrupt set-up: nothing here writes to them while dev->incoming is set,
 * and only VFIO may bind to them.
 */
#pragma once
#include "types.h"
#include "iommu.h"
#include "list.h"

#define PCI_BARS	6
#define PCI_BDF(bus, slot, fn) ((u16)((bus) << 8 | (slot) << 3 | (fn)))

/* Registers (PCI 3.0, 6.1) */
#define PCI_VENDOR_ID	0x00
#define PCI_DEVICE_ID	0x02
#define PCI_COMMAND	0x04
#define  PCI_COMMAND_IO		0x001
#define  PCI_COMMAND_MEMORY	0x002
#define  PCI_COMMAND_MASTER	0x004
#define  PCI_COMMAND_INTX_OFF	0x400
#define PCI_STATUS	0x06
#define  PCI_STATUS_INTX	0x08
#define  PCI_STATUS_CAPS	0x10
#define PCI_HEADER	0x0e
#define PCI_BAR0	0x10
#define PCI_BUSES	0x18		/* bridge: primary, secondary, subordinate */
#define PCI_IO_WINDOW	0x1c
#define PCI_MEMORY_WINDOW 0x20
#define PCI_CAP_LIST	0x34
#define PCI_INT_LINE	0x3c
#define PCI_INT_PIN	0x3d
#define PCI_CAP_PM	0x01
#define PCI_CAP_MSI	0x05
#define PCI_CAP_EXP	0x10
#define PCI_CAP_AF	0x13

struct pci_bar {
	phys_addr_t phys;		/* I/O ports: the first port; 0: no such BAR */
	u64 size;
	bool io, prefetch, wide;	/* wide: 64 bits, the next BAR is its upper half */
};

struct pci_driver {
	const char *name;
	const struct pci_id { u16 vendor, device; } *ids;	/* ends with { 0, 0 }; NULL: probe decides about all */
	bool incoming;						/* knows what to do with functions that were handed over */
	/* 0: it is the driver's; -ENODEV: it is not meant; else it fails, with a message. Registers are decoded, the
	 * function masters nothing and is silent. */
	int (*probe)(struct pci_dev *dev);
	void (*remove)(struct pci_dev *dev);	/* optional */
	void (*shutdown)(struct pci_dev *dev);	/* optional: before a kexec or the end; not called for preserved functions */
	struct list_head list;
};

typedef void (*pci_irq_t)(struct pci_dev *dev, void *data);

enum pci_irq_kind { PCI_IRQ_NONE, PCI_IRQ_INTX, PCI_IRQ_MSI };
struct pci_irq {
	struct list_head list;		/* INTx: who shares the line */
	enum pci_irq_kind kind;
	bool held;
	pci_irq_t fn;
	void *data;
	int vector;			/* MSI */
	struct irq_message message;
};

/* The two functions that every PC of this kind has, host bridge and LPC bridge, are firmware's and not in the list. */
struct pci_dev {
	struct list_head list;		/* of all, by bus, slot, function */
	u16 bdf, vendor, device;
	u32 class;			/* class, subclass, interface */
	u8 header, revision, pin;	/* pin 1 to 4, 0: none */
	unsigned int gsi;		/* where the pin goes: fixed swizzle of q35 through all bridges */
	struct pci_dev *bridge;		/* above; NULL on bus 0 */
	u8 secondary;			/* bridge: the bus behind it, 0: none */
	struct pci_window { u64 start, end; } memory, io;	/* bridge: what it passes on, without prefetchable memory; end 0: nothing */
	struct pci_bar bar[PCI_BARS];
	volatile void *mapped[PCI_BARS];
	struct pci_irq irq;
	struct pci_driver *driver;	/* NULL: nobody's */
	void *driver_data;
	struct iommu_domain *domain;	/* where its DMA goes: drivers/iommu.c; NULL: nowhere */
	bool preserved;			/* is to be handed over: survives the shutdown untouched */
	bool incoming;			/* was handed over and is not finished yet */
};

static inline u8 pci_slot(const struct pci_dev *dev) { return dev->bdf >> 3 & 31; }
/* For messages: "00:03.0" by PCI_NAME and PCI_NAME_ARGS(dev). */
#define PCI_NAME	"%02x:%02x.%x"
#define PCI_NAME_ARGS(dev) (dev)->bdf >> 8, (dev)->bdf >> 3 & 31, (dev)->bdf & 7

extern struct list_head pci_devices;
struct pci_dev *pci_find(u16 bdf);	/* NULL */
int pci_register_driver(struct pci_driver *drv);	/* probes what is there; 0, -EEXIST */
void pci_release(struct pci_dev *dev);		/* takes it from its driver; nobody's then */

/* Configuration space; size 1, 2 or 4, aligned. The _bdf forms work from the first instruction of C on (ports). */
u32 pci_read(struct pci_dev *dev, u32 reg, u32 size);
void pci_write(struct pci_dev *dev, u32 reg, u32 size, u32 value);
u32 pci_read_bdf(u16 bdf, u32 reg, u32 size);
void pci_write_bdf(u16 bdf, u32 reg, u32 size, u32 value);
u8 pci_find_cap(struct pci_dev *dev, u8 id);		/* its place, 0: it has none */
void pci_set_master(struct pci_dev *dev, bool on);	/* bridges above are turned on too */
/* Clears bus mastering of every function in the machine, by ports alone: an adoption that failed must not write into
 * memory that is about to be given out. Returns how many had it on. */
unsigned int pci_silence_all(void);
void pci_enable(struct pci_dev *dev);			/* BARs are decoded, here and through the bridges above */
void pci_msi_off(struct pci_dev *dev);
int pci_reset_function(struct pci_dev *dev);		/* configuration is kept. 0, -ENOTTY (it has no way), -EBUSY (incoming) */
bool pci_can_reset(struct pci_dev *dev);
/* A BAR in the kernel's address space, uncached; NULL. */
volatile void *pci_map_bar(struct pci_dev *dev, unsigned int bar);

/* Interrupts. The handler gets data and runs with interrupts off. INTx lines may be shared: it is called when
 * the function itself says that it asserts its pin. Of an incoming function no register is written. */
int pci_request_intx(struct pci_dev *dev, pci_irq_t fn, void *data);	/* 0, -ENODEV, -EBUSY, -ENOMEM */
int pci_request_msi(struct pci_dev *dev, pci_irq_t fn, void *data);	/* 0, -ENODEV, -ENOSPC; through remapping if there is any */
void pci_free_irq(struct pci_dev *dev);
/* An interrupt that comes now is not taken: a line that it asserts waits for the next kernel. Undone by the second. */
void pci_hold_irq(struct pci_dev *dev);
int pci_resume_irq(struct pci_dev *dev);
