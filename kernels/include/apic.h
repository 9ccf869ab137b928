/* Local APIC and I/O APIC (arch/apic.c). */
#pragma once
#include "types.h"

void local_apic_init(void);	/* quiet and enabled, whatever state it was found in */
void local_apic_off(void);
void apic_eoi(void);
u32 local_apic_id(void);
bool apic_in_service(u8 vector);
void apic_send_nmi(void);	/* to this processor */
/* Timer of the local APIC at 1/16 of its clock. count 0 stops it. */
void apic_timer_start(u32 count, bool periodic, u8 vector);
void apic_timer_start_masked(u32 count);
u32 apic_timer_count(void);

void io_apic_init(void);	/* all of them, all pins masked */
void io_apic_mask_all(void);
bool io_apic_has_gsi(unsigned int gsi);
void io_apic_route(unsigned int gsi, u8 vector, bool level, bool active_low);
void io_apic_mask(unsigned int gsi);
