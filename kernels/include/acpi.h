/* What the kernel took from the ACPI tables (arch/acpi.c), all of it checked. 0 means: the machine has none. */
#pragma once
#include "types.h"

#define IO_APIC_MAX	8
#define ISA_IRQS	16

struct acpi_io_apic {
	u32 id, gsi_base;
	phys_addr_t phys;
};

/* Where an ISA interrupt really goes, and how it is signalled. */
struct acpi_isa_irq {
	u32 gsi;
	bool active_low, level;
};

struct acpi_info {
	phys_addr_t local_apic;
	unsigned int nr_io_apics, nr_overrides, nr_cpus;
	struct acpi_io_apic io_apic[IO_APIC_MAX];
	struct acpi_isa_irq isa_irq[ISA_IRQS];	/* identity, edge, active high unless overridden */

	u16 pm_timer, pm1a_control, pm1b_control;
	bool pm_timer_32bit;
	u8 s5_type_a, s5_type_b;
	u16 reset_port;				/* reset register in I/O space */
	u8 reset_value;

	phys_addr_t hpet;
};
extern struct acpi_info acpi;

void acpi_find_tables(void);		/* once; works before memory is given out, too */

/* Pure functions, tested on the host too: the byte sum is 0; the \_S5_ package. */
bool acpi_checksum_ok(const void *p, u64 size);
bool acpi_find_s5(const u8 *aml, u64 size, u8 *type_a, u8 *type_b);
