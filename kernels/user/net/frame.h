/*
 * frame.h - the frames of the traffic source (emu/traffic.py), as programs in the machine see them
 *
 * Ethernet, with a type that IEEE leaves to experiments, so that no stack on either side takes them for its own. Numbers
 * are little-endian. What follows the header is the pattern byte i = (uint8_t)(number + i), i from 0.
 *
 *	0	destination	6
 *	6	source		6
 *	12	0x88 0xb5	type, big-endian as everywhere
 *	14	magic		"LU"
 *	16	number		of the frame, 0 is the first
 *	24	tick		at which it was sent
 *	32	size		of all, from destination to the last byte, without the FCS
 *	36	checksum	CRC-32 (IEEE 802.3, as zlib's) of all but this field and the FCS, in this order
 *	40	pattern
 */
#ifndef LUEMU_NET_FRAME_H
#define LUEMU_NET_FRAME_H

#include <stdint.h>

#define FRAME_TYPE	0xb588		/* as a little-endian number */
#define FRAME_MAGIC	0x554c		/* "LU" */
#define FRAME_SIZE_MIN	60
#define FRAME_SIZE_MAX	9216

struct frame {
	uint8_t destination[6];
	uint8_t source[6];
	uint16_t type;
	uint16_t magic;
	uint64_t number;
	uint64_t tick;
	uint32_t size;
	uint32_t checksum;
	uint8_t pattern[];
} __attribute__((packed));

_Static_assert(sizeof(struct frame) == 40, "the header is 40 bytes");

#endif
