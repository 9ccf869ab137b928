/*
 * receiver.c - takes frames from the ring and keeps account of them (receiver.h)
 */
#include "receiver.h"

#include <stddef.h>
#include <string.h>

#include "frame.h"

#define POLYNOMIAL	0xedb88320U
#define barrier()	__asm__ volatile("" ::: "memory")

static uint32_t table[8][256];

static void make_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;

		for (int bit = 0; bit < 8; bit++)
			c = c >> 1 ^ (c & 1 ? POLYNOMIAL : 0);
		table[0][i] = c;
	}
	for (uint32_t i = 0; i < 256; i++)
		for (int k = 1; k < 8; k++)
			table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 0xff];
}

/* CRC-32 of IEEE 802.3, eight bytes at a time. */
static uint32_t crc(uint32_t c, const uint8_t *p, uint64_t size)
{
	for (; size >= 8; size -= 8, p += 8) {
		uint64_t word;

		memcpy(&word, p, 8);
		word ^= c;
		c = table[7][word & 0xff] ^ table[6][word >> 8 & 0xff] ^ table[5][word >> 16 & 0xff] ^
		    table[4][word >> 24 & 0xff] ^ table[3][word >> 32 & 0xff] ^ table[2][word >> 40 & 0xff] ^
		    table[1][word >> 48 & 0xff] ^ table[0][word >> 56];
	}
	for (; size > 0; size--)
		c = c >> 8 ^ table[0][(c ^ *p++) & 0xff];
	return c;
}

static bool good(const struct frame *f, uint32_t size)
{
	const uint8_t *p = (const uint8_t *)f;
	uint32_t c;

	if (size < FRAME_SIZE_MIN || f->type != FRAME_TYPE || f->magic != FRAME_MAGIC || f->size != size)
		return false;
	c = crc(~0U, p, offsetof(struct frame, checksum));
	return ~crc(c, f->pattern, size - sizeof(*f)) == f->checksum;
}

void receiver_begin(struct account *a, uint32_t count, uint32_t buffer, bool interrupts)
{
	make_table();
	memcpy(a->magic, RECEIVER_MAGIC, sizeof(a->magic));
	a->count = count;
	a->buffer = buffer;
	a->interrupts = interrupts;
	a->first = UINT64_MAX;
	a->journal_taken = UINT64_MAX;
}

bool receiver_valid(const struct account *a, uint64_t size)
{
	return size == sizeof(*a) && memcmp(a->magic, RECEIVER_MAGIC, sizeof(a->magic)) == 0 && a->count >= 8 &&
	       a->count <= E1000_RING_MAX && a->count % 8 == 0 && a->buffer >= 2048 && a->buffer <= 16384;
}

void receiver_resume(struct account *a, struct e1000 *e)
{
	make_table();
	if (a->taken > 0)
		e1000_clear(e, a->taken - 1);	/* it may have been taken and not cleared; the device does not have it */
	a->updates++;
	a->signals_before = a->signals;
}

static bool has(const struct account *a, uint64_t number)
{
	return a->bitmap[number / 64] >> number % 64 & 1;
}

/* The number of a good frame is entered, so that doing it twice for one descriptor is the same as once. */
static void enter(struct account *a, uint64_t number)
{
	bool again = a->journal_taken == a->taken && a->journal_number == number;

	if (number >= RECEIVER_NUMBERS) {
		a->beyond++;
		return;
	}
	if (!again) {
		if (has(a, number))
			a->duplicated++;
		else if (a->first != UINT64_MAX && number < a->highest)
			a->reordered++;
	}
	a->journal_number = number;
	barrier();
	a->journal_taken = a->taken;
	barrier();
	a->bitmap[number / 64] |= 1UL << number % 64;
	if (a->first == UINT64_MAX)
		a->first = number;
	if (number > a->highest)
		a->highest = number;
}

static void note_time(struct account *a, uint64_t now)
{
	if (a->last_frame != 0 && now - a->last_frame > a->gap_to - a->gap_from) {
		a->gap_from = a->last_frame;
		a->gap_to = now;
	}
	a->last_frame = now;
}

unsigned int receiver_poll(struct account *a, struct e1000 *e, unsigned int frames_max)
{
	unsigned int frames = 0;
	const uint8_t *data;
	uint32_t size;

	while (frames < frames_max && (data = e1000_frame(e, a->taken, &size)) != NULL) {
		const struct frame *f = (const struct frame *)data;

		if (size != 0 && good(f, size))
			enter(a, f->number);
		else
			a->corrupted++;
		frames++;
		barrier();
		a->taken++;
		barrier();
		e1000_clear(e, a->taken - 1);
	}
	a->last_poll = ticks();
	if (frames > 0) {
		note_time(a, a->last_poll);
		e1000_give(e, a->taken);
	}
	return frames;
}

uint64_t receiver_received(const struct account *a)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < RECEIVER_NUMBERS / 64; i++)
		for (uint64_t word = a->bitmap[i]; word != 0; word &= word - 1)
			n++;
	return n;
}
