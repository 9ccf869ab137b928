/*
 * e1000.c - the receiver of an Intel 82540EM (e1000.h)
 */
#include "e1000.h"

#include <string.h>

enum {	/* registers */
	CTRL = 0x0000, ICR = 0x00c0, IMS = 0x00d0, IMC = 0x00d8, RCTL = 0x0100, RDBAL = 0x2800, RDBAH = 0x2804,
	RDLEN = 0x2808, RDH = 0x2810, RDT = 0x2818, RDTR = 0x2820, MPC = 0x4010, MTA = 0x5200,
};
#define CTRL_SLU	(1U << 6)	/* set link up */
#define RCTL_EN		(1U << 1)
#define RCTL_UPE	(1U << 3)	/* all addresses, */
#define RCTL_MPE	(1U << 4)	/* of groups too */
#define RCTL_LPE	(1U << 5)	/* longer than 1522 bytes */
#define RCTL_BAM	(1U << 15)	/* broadcasts */
#define RCTL_BSIZE(n)	((uint32_t)(n) << 16)
#define RCTL_BSEX	(1U << 25)	/* sizes times 16 */
#define RCTL_SECRC	(1U << 26)	/* without the FCS */
#define CAUSES		((1U << 2) | (1U << 4) | (1U << 6) | (1U << 7))	/* link, few descriptors, overrun, frame */
#define DONE		0x01
#define END		0x02
#define MTA_WORDS	128

struct descriptor {
	uint64_t address;
	uint16_t length, checksum;
	uint8_t status, errors;
	uint16_t special;
};
_Static_assert(sizeof(struct descriptor) == 16, "as the device reads it");

static uint32_t get(struct e1000 *e, uint32_t at)
{
	return *(volatile uint32_t *)(e->vfio.bar + at);
}

static void set(struct e1000 *e, uint32_t at, uint32_t value)
{
	*(volatile uint32_t *)(e->vfio.bar + at) = value;
}

static volatile struct descriptor *at(struct e1000 *e, uint64_t taken)
{
	return (volatile struct descriptor *)e->memory + taken % e->count;
}

static uint32_t size_of_buffers(uint32_t bytes)
{
	switch (bytes) {
	case 4096:
		return RCTL_BSEX | RCTL_BSIZE(3);
	case 8192:
		return RCTL_BSEX | RCTL_BSIZE(2);
	case 16384:
		return RCTL_BSEX | RCTL_BSIZE(1);
	}
	return RCTL_BSIZE(0);	/* 2048 */
}

void e1000_start(struct e1000 *e, bool interrupts)
{
	e1000_interrupts(e, false);
	for (uint32_t i = 0; i < e->count; i++)
		*((volatile struct descriptor *)e->memory + i) = (struct descriptor){
			.address = e->iova + E1000_BUFFERS + (uint64_t)i * e->buffer,
		};
	set(e, CTRL, get(e, CTRL) | CTRL_SLU);
	for (uint32_t i = 0; i < MTA_WORDS; i++)
		set(e, MTA + 4 * i, 0);
	set(e, RDBAL, (uint32_t)e->iova);
	set(e, RDBAH, (uint32_t)(e->iova >> 32));
	set(e, RDLEN, e->count * (uint32_t)sizeof(struct descriptor));
	set(e, RDTR, 0);
	set(e, RDH, 0);
	e1000_give(e, 0);
	e1000_interrupts(e, interrupts);
	set(e, RCTL, RCTL_UPE | RCTL_MPE | RCTL_LPE | RCTL_BAM | RCTL_SECRC | size_of_buffers(e->buffer));
	e1000_receive(e, true);
}

void e1000_receive(struct e1000 *e, bool on)
{
	set(e, RCTL, on ? get(e, RCTL) | RCTL_EN : get(e, RCTL) & ~RCTL_EN);
	get(e, RCTL);
}

void e1000_interrupts(struct e1000 *e, bool on)
{
	set(e, on ? IMS : IMC, on ? CAUSES : ~0U);
	if (!on)
		get(e, ICR);
}

uint32_t e1000_cause(struct e1000 *e)
{
	return get(e, ICR);
}

const uint8_t *e1000_frame(struct e1000 *e, uint64_t taken, uint32_t *size)
{
	volatile struct descriptor *d = at(e, taken);
	uint8_t status = d->status;

	if (!(status & DONE))
		return NULL;
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	*size = (status & END) && !d->errors && d->length <= e->buffer ? d->length : 0;
	return e->memory + E1000_BUFFERS + taken % e->count * e->buffer;
}

void e1000_set_address(struct e1000 *e, uint64_t taken, uint64_t iova)
{
	at(e, taken)->address = iova;
}

void e1000_clear(struct e1000 *e, uint64_t taken)
{
	at(e, taken)->status = 0;
}

/* The device may use all but one: head and tail are equal in an empty ring. */
void e1000_give(struct e1000 *e, uint64_t taken)
{
	__atomic_thread_fence(__ATOMIC_RELEASE);
	set(e, RDT, (uint32_t)((taken + e->count - 1) % e->count));
}

uint32_t e1000_missed(struct e1000 *e)
{
	return get(e, MPC);
}
