/* The console: the first 16550A, polled. Works from the first moment; needs no memory and no interrupt. Later it shares
 * the chip with a terminal (serial.c), which lets it go first. */
#include "arch.h"
#include "console.h"
#include "cpu.h"

#define PORT		0x3f8
#define THR		(PORT + 0)	/* divisor low with DLAB */
#define IER		(PORT + 1)	/* divisor high with DLAB */
#define FCR		(PORT + 2)
#define LCR		(PORT + 3)
#define MCR		(PORT + 4)
#define LSR		(PORT + 5)
#define LSR_THRE	0x20
#define LSR_TEMT	0x40

void console_init(void)
{
	outb(IER, 0);
	outb(LCR, 0x80);
	outb(THR, 1);			/* 115200 baud */
	outb(IER, 0);
	outb(LCR, 0x03);		/* 8N1 */
	outb(FCR, 0x05);		/* FIFOs on, nothing to send; what was received stays */
	outb(MCR, 0x03);		/* DTR, RTS; no interrupt */
}

bool (*console_yield)(bool end);

static void put(u8 c)
{
	while (!(inb(LSR) & LSR_THRE))
		cpu_relax();
	outb(THR, c);
}

/* Ends the line that programs left unfinished. */
static void take_over(bool end)
{
	if (console_yield && console_yield(end)) {
		put('\r');
		put('\n');
	}
}

void console_write(const char *text, size_t size)
{
	take_over(false);
	for (size_t i = 0; i < size; i++) {
		if (text[i] == '\n')
			put('\r');
		put((u8)text[i]);
	}
}

void console_flush(void)
{
	take_over(true);
	while (!(inb(LSR) & LSR_TEMT))
		cpu_relax();
}
