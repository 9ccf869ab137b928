/* The device that printk writes to (drivers/uart.c). */
#pragma once
#include "types.h"

void console_init(void);
void console_write(const char *text, size_t size);	/* returns when the device has taken all of it */
void console_flush(void);				/* returns when all of it is on the wire */
/* The driver of the terminal on the same line, once there is one: writes out what it has (of all its lines if this is the
 * end); true if the text line it was in is not finished. */
extern bool (*console_yield)(bool end);
