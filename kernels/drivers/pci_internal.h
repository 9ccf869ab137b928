/* What the files of the PCI core share: pci.c, pci_scan.c, pci_driver.c, pci_irq.c, and luo/guest/luo_pci.c. */
#pragma once
#include "pci.h"

/* Where q35 has room for BARs: between the configuration space in memory and the I/O APIC; behind the ports of the board. */
#define PCI_MEMORY_START 0xc0000000UL
#define PCI_MEMORY_END	0xfec00000UL
#define PCI_IO_START	0x1000UL
#define PCI_IO_END	0x10000UL

void pci_scan(void);


/* luo/guest/luo_pci.c */
void pci_luo_start(void);			/* the record of the previous kernel, before the scan */
/* Is it handed over? Then all that a scan would find out by writing comes from the record. */
bool pci_luo_incoming(struct pci_dev *dev);
bool pci_luo_kept(const struct pci_dev *dev);	/* by the shutdown that comes: it goes over, or is above one that does */
void pci_luo_scanned(void);			/* what is in the record and was not found ends the handover */
