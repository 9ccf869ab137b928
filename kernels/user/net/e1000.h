/*
 * e1000.h - the receiver of an Intel 82540EM, driven by polling or by its interrupt
 *
 * Source: Intel, PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453), chapters 3, 13,
 * 14. The ring and its buffers are in one piece of memory which the device knows at `iova`:
 *
 *	0			descriptors, 16 bytes each
 *	E1000_BUFFERS		buffers, one a descriptor
 *
 * Everything about the ring that a program has to remember is one number: how many descriptors it has taken.
 */
#ifndef LUEMU_NET_E1000_H
#define LUEMU_NET_E1000_H

#include <stdbool.h>
#include <stdint.h>

#include "vfio.h"

#define E1000_VENDOR	0x8086
#define E1000_DEVICE	0x100e
#define E1000_BUFFERS	(2UL << 20)
#define E1000_RING_MAX	32768		/* descriptors: they have 512 KiB */

struct e1000 {
	struct vfio vfio;
	uint8_t *memory;
	uint64_t iova;
	uint32_t count, buffer;		/* descriptors, a multiple of 8; bytes of a buffer: 2048, 4096, 8192 or 16384 */
};

static inline uint64_t e1000_memory_size(uint32_t count, uint32_t buffer)
{
	return E1000_BUFFERS + (((uint64_t)count * buffer + E1000_BUFFERS - 1) & -E1000_BUFFERS);
}

void e1000_start(struct e1000 *e, bool interrupts);	/* after a reset; bus mastering is on */
void e1000_receive(struct e1000 *e, bool on);		/* the receiver alone; the ring stays as it is */
void e1000_interrupts(struct e1000 *e, bool on);
uint32_t e1000_cause(struct e1000 *e);			/* of the interrupt, which that acknowledges */
/* The frame in descriptor number `taken`, counted from the start: NULL, it is not there yet; *size 0: it is no good. */
const uint8_t *e1000_frame(struct e1000 *e, uint64_t taken, uint32_t *size);
void e1000_set_address(struct e1000 *e, uint64_t taken, uint64_t iova);	/* of the buffer of a descriptor, for good */
void e1000_clear(struct e1000 *e, uint64_t taken);	/* makes a taken descriptor fit to be used again */
void e1000_give(struct e1000 *e, uint64_t taken);	/* all descriptors before `taken` are the device's again */
uint32_t e1000_missed(struct e1000 *e);			/* frames that found no descriptor since the last call */

#endif
