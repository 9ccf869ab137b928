/* Between the two halves of the line discipline (tty_line.c: input; tty_echo.c: output and echo). */
#pragma once
#include "tty.h"

static inline bool input_is(const struct tty *t, u32 flag) { return t->termios.t.iflag & flag; }
static inline bool output_is(const struct tty *t, u32 flag) { return t->termios.t.oflag & flag; }
static inline bool local_is(const struct tty *t, u32 flag) { return t->termios.t.lflag & flag; }
static inline bool is_control(u8 c) { return c < 0x20 || c == 0x7f; }
/* Not the first byte of a character of several. */
static inline bool continues(const struct tty *t, u8 c) { return input_is(t, IUTF8) && (c & 0xc0) == 0x80; }

/* All with tty->lock held; what finds no room is lost. */
bool put_out(struct tty *t, const void *data, u32 size);	/* as it is; false: no room */
void echo_raw(struct tty *t, u8 c);		/* with output processing */
void echo(struct tty *t, u8 c);			/* control characters as ^X if the modes say so */
void erase_column(struct tty *t);
void finish_erasing(struct tty *t);
void echo_typed(struct tty *t, u8 c, bool literal);	/* of what goes into the line */
