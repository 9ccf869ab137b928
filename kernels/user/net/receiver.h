/*
 * receiver.h - takes frames from the ring and keeps account of them in memory that survives
 *
 * The account is written so that the kernel may stop between any two instructions: what was taken from the ring is
 * counted once, whoever goes on with it. A frame is received when its number is in the bitmap; the rest of the account is
 * about what is wrong.
 */
#ifndef LUEMU_NET_RECEIVER_H
#define LUEMU_NET_RECEIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "e1000.h"

#define RECEIVER_NUMBERS	(1U << 23)	/* frames that can be told apart */
#define RECEIVER_MAGIC		"LUNETST1"

enum { REQUEST_NONE, REQUEST_PRESERVE, REQUEST_STOP };

/* In a memfd, which the device cannot reach. The host reads it too: emu/debug/net.py. */
struct account {
	char magic[8];
	uint32_t count, buffer;		/* of the ring */
	uint32_t interrupts;		/* driven by them */
	uint32_t updates;		/* that were survived */
	uint64_t taken;			/* descriptors */
	uint64_t journal_taken;		/* number `journal_number` is about to be entered as that of this descriptor */
	uint64_t journal_number;
	uint64_t first, highest;	/* numbers; first: UINT64_MAX, none yet */
	uint64_t duplicated, corrupted, reordered, beyond;	/* beyond: numbers that the bitmap has no room for */
	uint64_t missed;		/* by the device: no descriptor was free */
	uint64_t last_frame, gap_from, gap_to;	/* time-stamp counter: longest time without a frame, both ends */
	uint64_t last_poll;		/* time-stamp counter */
	uint64_t poll_from, poll_to;	/* of the longest time without a look at the ring, across an update */
	uint64_t backlog;		/* frames that the first look after an update found; the most */
	uint64_t signals;		/* of the eventfd */
	uint64_t spurious;		/* that found no frame and no cause */
	uint64_t lost_interrupts;	/* frames were there, and no signal came */
	uint64_t lost_tick;		/* of the first such interrupt: when its frame came */
	uint32_t request, answer;	/* to whoever runs; of those who ask */
	uint64_t reserved[4];
	uint64_t bitmap[RECEIVER_NUMBERS / 64];
};

void receiver_begin(struct account *a, uint32_t count, uint32_t buffer, bool interrupts);
bool receiver_valid(const struct account *a, uint64_t size);
/* After an update: the descriptor that was being taken is either taken or not. */
void receiver_resume(struct account *a, struct e1000 *e);
unsigned int receiver_poll(struct account *a, struct e1000 *e, unsigned int frames_max);	/* frames taken */
uint64_t receiver_received(const struct account *a);

static inline uint64_t ticks(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

#endif
