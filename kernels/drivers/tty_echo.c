/* The line discipline's output: what the modes make of a program's bytes, and of what was typed when it is echoed. */
#include "tty_line.h"
#include "signal.h"

bool put_out(struct tty *t, const void *data, u32 size)
{
	return t->ops->room(t) >= size && t->ops->write(t, data, size) == size;
}

/* One byte with output processing; false: no room. */
static bool output(struct tty *t, u8 c)
{
	struct line *l = &t->line;
	u32 tab;

	if (!output_is(t, OPOST))
		return put_out(t, &c, 1);
	switch (c) {
	case '\n':
		if (output_is(t, ONLCR)) {
			if (!put_out(t, "\r\n", 2))
				return false;
			l->column = l->start_column = 0;
			return true;
		}
		if (output_is(t, ONLRET))
			l->column = 0;
		l->start_column = l->column;
		break;
	case '\r':
		if (output_is(t, ONOCR) && !l->column)
			return true;
		if (output_is(t, OCRNL)) {
			c = '\n';
			if (!output_is(t, ONLRET))
				break;
		}
		l->column = l->start_column = 0;
		break;
	case '\t':
		tab = 8 - l->column % 8;
		if ((t->termios.t.oflag & TABDLY) == XTABS) {
			if (!put_out(t, "        ", tab))
				return false;
			l->column += tab;
			return true;
		}
		l->column += tab;
		break;
	case '\b':
		if (l->column)
			l->column--;
		break;
	default:
		if (is_control(c))
			break;
		if (output_is(t, OLCUC) && c >= 'a' && c <= 'z')
			c = (u8)(c - 'a' + 'A');
		if (!continues(t, c))
			l->column++;
	}
	return put_out(t, &c, 1);
}

/* Bytes from the beginning that output processing does not change, and that take one column each. */
static u32 plain_run(const struct tty *t, const u8 *from, u32 size)
{
	u32 n = 0;

	if (output_is(t, OLCUC))
		return 0;
	while (n < size && from[n] >= 0x20 && from[n] < 0x7f)
		n++;
	return n;
}

u32 tty_line_write(struct tty *t, const u8 *from, u32 size)
{
	u32 n = 0, before, run;

	if (t->stopped)
		return 0;
	if (!output_is(t, OPOST)) {
		n = min(size, t->ops->room(t));
		return n ? t->ops->write(t, from, n) : 0;
	}
	while (n < size) {
		run = min(plain_run(t, from + n, size - n), t->ops->room(t));
		if (run) {
			run = t->ops->write(t, from + n, run);
			t->line.column += run;
			n += run;
			continue;
		}
		before = t->line.column;
		if (!output(t, from[n])) {
			t->line.column = before;
			break;
		}
		n++;
	}
	return n;
}

void tty_hold(struct tty *t, bool stop)
{
	if (t->stopped == stop)
		return;
	t->stopped = stop;
	t->ops->hold(t, stop);
	if (!stop)
		wake_up(&t->write_wait);
}

void echo_raw(struct tty *t, u8 c)
{
	output(t, c);
}

void echo(struct tty *t, u8 c)
{
	if (local_is(t, ECHOCTL) && is_control(c) && c != '\t') {
		u8 shown[2] = { '^', c ^ 0x40 };

		if (put_out(t, shown, 2))
			t->line.column += 2;
	} else {
		output(t, c);
	}
}

void erase_column(struct tty *t)
{
	if (t->line.column)
		t->line.column--;
	put_out(t, "\b \b", 3);
}

void finish_erasing(struct tty *t)
{
	if (t->line.erasing) {
		echo_raw(t, '/');
		t->line.erasing = false;
	}
}

void echo_typed(struct tty *t, u8 c, bool literal)
{
	struct line *l = &t->line;

	if (!local_is(t, ECHO))
		return;
	finish_erasing(t);
	if (c == '\n' && !literal) {
		echo_raw(t, '\n');
		return;
	}
	if (l->canon == l->head)
		l->start_column = l->column;
	echo(t, c);
}
