/* What the ACPI table DMAR says about remapping hardware (drivers/dmar.c). */
#pragma once
#include "types.h"

#define DMAR_IO_APICS	8

struct dmar {
	phys_addr_t registers;		/* of the unit */
	bool interrupts;		/* firmware lets interrupts be remapped */
	u32 nr_io_apics;
	struct { u8 id; u16 source; } io_apics[DMAR_IO_APICS];	/* requester ids of what has no function */
};

/* The whole table, checksum verified. False: there is no such unit, or the table is malformed. */
bool dmar_parse(struct dmar *d, const u8 *table, u64 size);
