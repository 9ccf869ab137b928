/*
 * receiver.c - takes frames from the ring and keeps account of them (receiver.h)
 */
#include "receiver.h"

#include <string.h>

#include "frame.h"

#define barrier()	__asm__ volatile("" ::: "memory")

static bool good(const struct frame *f, uint32_t size)
{
	const uint8_t *p = (const uint8_t *)&f->type, *end = (const uint8_t *)f + size;
	uint32_t first = 0, second = 0;

	if (size < FRAME_SIZE_MIN || f->type != FRAME_TYPE || f->size != size)
		return false;
	for (; p < end; p += 4) {
		uint32_t word = 0;

		if (p == (const uint8_t *)&f->first || p == (const uint8_t *)&f->second)
			;
		else if (end - p >= 4)
			memcpy(&word, p, 4);
		else
			memcpy(&word, p, (size_t)(end - p));
		first += word;
		second += first;
	}
	return first == f->first && second == f->second;
}

void receiver_begin(struct account *a, uint32_t count, uint32_t buffer, bool interrupts)
{
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
	if (a->taken > 0)
		e1000_clear(e, a->taken - 1);	/* it may have been taken and not cleared; the device does not have it */
	a->updates++;
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
