/* DMA remapping (drivers/iommu*.c, drivers/vtd*.c): which memory a function may reach, and which interrupts it may raise.
 *
 * With a remapping unit translation is on from boot to power-off, and over every kexec that hands a function over (else
 * the next kernel finds it off, as after power-on). A function without a domain reaches nothing. Domains of functions that are preserved go on in the next kernel: it adopts root table, context tables, domain
 * ids, translation tables and interrupt entries as they are, before any page is given out.
 * Without a unit there is one way for all: bus addresses are physical, iommu_domain_alloc() gives -ENODEV.
 */
#pragma once
#include "types.h"
#include "list.h"

struct pci_dev;
struct iommu_domain;

#define IOMMU_READ	1
#define IOMMU_WRITE	2
#define IOMMU_SMALL	4		/* iommu_map(): in 4 KiB pages only */

bool iommu_present(void);
u64 iommu_aperture_end(void);		/* the last address that can be mapped */
struct iommu_domain *iommu_domain_alloc(void);		/* ERR_PTR: -ENODEV, -ENOMEM, -ENOSPC (domain ids) */
void iommu_domain_free(struct iommu_domain *d);		/* nothing is attached any more */
/* Page-aligned. Uses 2 MiB and 1 GiB pages where both sides allow. 0, -EEXIST (nothing is changed), -ENOMEM, -ERANGE;
 * -EBUSY: the domain is to be handed over, or was and is not finished. */
int iommu_map(struct iommu_domain *d, u64 iova, phys_addr_t phys, u64 size, u32 prot);
/* When it returns no request can reach the pages any more. Large pages are split. 0, -ENOENT (holes are skipped), -ENOMEM. */
int iommu_unmap(struct iommu_domain *d, u64 iova, u64 size);
bool iommu_lookup(struct iommu_domain *d, u64 iova, phys_addr_t *phys, u32 *prot);
/* Sets dev->domain; the domain it had before is left. For an incoming function only the domain it has is possible. */
int iommu_attach(struct iommu_domain *d, struct pci_dev *dev);	/* 0, -ENOMEM, -EBUSY */
void iommu_detach(struct pci_dev *dev);

/* Memory for drivers of the kernel: zeroed pages, the same address on both sides. NULL. */
void *dma_alloc(struct pci_dev *dev, u64 size, u64 *bus);
void dma_free(struct pci_dev *dev, void *p, u64 size);

/* Interrupt entries. Without remapping: the plain message for this vector. 0, -ENOSPC. level: for I/O APIC pins. */
struct irq_message {
	u64 address;
	u32 data;
	s32 index;		/* of the entry, -1: none */
};
int irq_message_alloc(struct pci_dev *dev, u8 vector, struct irq_message *m);
void irq_message_free(struct pci_dev *dev, struct irq_message *m);
/* The I/O APIC's entry for a pin, without trigger mode and polarity; 0: its interrupts are not remapped. A pin has one
 * entry in the unit's table for ever. */
u64 irq_io_apic_entry(u32 id, u32 pin, u8 vector, bool level);
void iommu_fault(void);			/* the unit's interrupt */

/* Start, in this order: when preserved memory is known and none was given out yet; when memory works, before interrupts
 * do. */
void iommu_early_init(void);
void iommu_init(void);

/* For the handlers of LUO (luo/guest/luo_iommufd.c, luo_vfio.c); see docs/abi-devices.md. */
int iommu_domain_preserve(struct iommu_domain *d);	/* tables, context entries and so on; 0 or an error and nothing is */
void iommu_domain_unpreserve(struct iommu_domain *d);
struct iommu_domain *iommu_domain_adopted(u32 id);	/* of the previous kernel by its id; NULL */
u32 iommu_domain_id(struct iommu_domain *d);
void iommu_shutdown(void);		/* contexts of functions that are not preserved go; translation stays on */
