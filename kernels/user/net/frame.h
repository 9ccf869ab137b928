/*
 * frame.h - the frames of the traffic source (emu/traffic.py), as programs in the machine see them
 *
 * Ethernet, with a type that IEEE leaves to experiments, so that no stack on either side takes them for its own. Numbers
 * are little-endian but for the type. The sums are over the 32-bit words from `type` to the end, which is filled up with
 * zeros, with both sums taken as 0: for each word first += word, second += first.
 */
#ifndef LUEMU_NET_FRAME_H
#define LUEMU_NET_FRAME_H

#include <stdint.h>

#define FRAME_TYPE	0xb588		/* 0x88b5 on the wire */
#define FRAME_SIZE_MIN	60

struct frame {
	uint8_t destination[6];
	uint8_t source[6];
	uint16_t type;
	uint16_t stream;
	uint64_t number;		/* 0 is the first */
	uint64_t tick;			/* at which it arrived */
	uint32_t size;			/* without the FCS */
	uint32_t first, second;
	uint8_t filling[];
} __attribute__((packed));

_Static_assert(sizeof(struct frame) == 44, "the header is 44 bytes");

#endif
