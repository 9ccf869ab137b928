/* The line discipline: from typed bytes to lines, with echo (tty_echo.c) and signals.
 *
 * Everything here runs under the terminal's lock and never sleeps, since input arrives in interrupts. Echo goes out at
 * once and is dropped when the output is full.
 *
 * In canonical mode a line is editable until its end comes. When the ring is full without an end, each further byte
 * replaces the last one, so the end always finds a place.
 */
#include "bitops.h"
#include "signal.h"
#include "string.h"
#include "tty_line.h"

#define DISABLED	0	/* a control character with this value is none */

static u8 *at(struct line *l, u32 pos) { return &l->buf[pos % LINE_SIZE]; }
static bool is_word(u8 c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_' ||
	       (c >= 0xc0 && c != 0xd7 && c != 0xf7) || c == 0xaa || c == 0xb5 || c == 0xba;
}
static bool is_char(const struct tty *t, u8 c, unsigned int which)
{
	return c == t->termios.t.cc[which] && c != DISABLED;
}

/* ---- editing ---- */

static void put(struct line *l, u8 c, bool end)
{
	u32 pos = l->head % LINE_SIZE;

	l->buf[pos] = c;
	if (end)
		set_bit(pos, l->ends);
	else
		clear_bit(pos, l->ends);
	l->head++;
}

/* The cursor's column after what is typed up to pos, for a tab to be erased. */
static u32 column_at(const struct tty *t, u32 pos)
{
	const struct line *l = &t->line;
	u32 column = l->start_column;

	for (u32 i = l->canon; i != pos; i++) {
		u8 c = l->buf[i % LINE_SIZE];

		if (c == '\t')
			column += 8 - column % 8;
		else if (is_control(c))
			column += local_is(t, ECHOCTL) ? 2 : 0;
		else if (!continues(t, c))
			column++;
	}
	return column;
}

static void echo_erased(struct tty *t, u32 pos, u32 bytes, bool one)
{
	struct line *l = &t->line;
	u8 c = *at(l, pos);

	if (!local_is(t, ECHO))
		return;
	if (local_is(t, ECHOPRT)) {
		if (!l->erasing) {
			echo_raw(t, '\\');
			l->erasing = true;
		}
		echo(t, c);
		for (u32 i = 1; i < bytes; i++)
			put_out(t, at(l, pos + i), 1);
	} else if (one && !local_is(t, ECHOE)) {
		echo(t, t->termios.t.cc[VERASE]);
	} else if (c == '\t') {
		u32 to = column_at(t, pos);

		for (u32 width = 8 - to % 8; width && l->column; width--)
			if (put_out(t, "\b", 1))
				l->column--;
	} else {
		if (is_control(c) && local_is(t, ECHOCTL))
			erase_column(t);
		if (!is_control(c) || local_is(t, ECHOCTL))
			erase_column(t);
	}
}

/* Where the last character of the typed line begins. */
static bool last_character(struct tty *t, u32 *pos)
{
	struct line *l = &t->line;

	*pos = l->head;
	do
		--*pos;
	while (continues(t, *at(l, *pos)) && *pos != l->canon);
	return !continues(t, *at(l, *pos));
}

enum erase { ERASE_CHARACTER, ERASE_WORD, ERASE_LINE };

static void erase(struct tty *t, enum erase what)
{
	struct line *l = &t->line;
	bool in_word = false;
	u32 pos;

	while (l->head != l->canon && last_character(t, &pos)) {
		u32 bytes = l->head - pos;

		if (what == ERASE_WORD) {
			if (is_word(*at(l, pos)))
				in_word = true;
			else if (in_word)
				break;
		}
		l->head = pos;
		echo_erased(t, pos, bytes, what == ERASE_CHARACTER);
		if (what == ERASE_CHARACTER)
			break;
	}
	if (l->head == l->canon && local_is(t, ECHO))
		finish_erasing(t);
}

static void kill_line(struct tty *t)
{
	struct line *l = &t->line;

	if (l->head == l->canon)
		return;
	if (local_is(t, ECHO) && local_is(t, ECHOK) && local_is(t, ECHOKE) && local_is(t, ECHOE)) {
		erase(t, ERASE_LINE);
		return;
	}
	l->head = l->canon;
	if (!local_is(t, ECHO))
		return;
	finish_erasing(t);
	echo(t, t->termios.t.cc[VKILL]);
	if (local_is(t, ECHOK))
		echo_raw(t, '\n');
}

static void reprint(struct tty *t)
{
	struct line *l = &t->line;

	finish_erasing(t);
	echo(t, t->termios.t.cc[VREPRINT]);
	echo_raw(t, '\n');
	for (u32 i = l->canon; i != l->head; i++)
		echo(t, *at(l, i));
}

static void end_line(struct tty *t, u8 c)
{
	put(&t->line, c, true);
	t->line.canon = t->line.head;
	wake_up(&t->read_wait);
}

/* True if it was a character that edits. */
static bool edit(struct tty *t, u8 c)
{
	bool extended = local_is(t, IEXTEN);

	if (is_char(t, c, VERASE)) {
		erase(t, ERASE_CHARACTER);
	} else if (is_char(t, c, VKILL)) {
		kill_line(t);
	} else if (is_char(t, c, VWERASE) && extended) {
		erase(t, ERASE_WORD);
	} else if (is_char(t, c, VLNEXT) && extended) {
		t->line.literal = true;
		if (local_is(t, ECHO)) {
			finish_erasing(t);
			if (local_is(t, ECHOCTL))
				put_out(t, "^\b", 2);
		}
	} else if (is_char(t, c, VREPRINT) && local_is(t, ECHO) && extended) {
		reprint(t);
	} else if (c == '\n') {
		if (local_is(t, ECHO) || local_is(t, ECHONL))
			echo_raw(t, '\n');
		end_line(t, c);
	} else if (is_char(t, c, VEOF)) {
		end_line(t, DISABLED);
	} else if (is_char(t, c, VEOL) || (is_char(t, c, VEOL2) && extended)) {
		echo_typed(t, c, false);
		end_line(t, c);
	} else {
		return false;
	}
	return true;
}

/* ---- input ---- */

void tty_line_flush_input(struct tty *t)
{
	struct line *l = &t->line;

	l->head = l->canon = l->tail = 0;
	l->literal = l->erasing = false;
	memset(l->ends, 0, sizeof(l->ends));
	if (t->throttled) {
		t->throttled = false;
		t->ops->throttle(t, false);
	}
}

static void interrupt_with(struct tty *t, int sig)
{
	pid_t group = READ_ONCE(t->pgrp);

	if (group)
		send_signal_group(group, sig);
	if (!local_is(t, NOFLSH)) {
		t->ops->discard(t);
		tty_line_flush_input(t);
		wake_up(&t->write_wait);
	}
}

static int signal_of(const struct tty *t, u8 c)
{
	if (!local_is(t, ISIG))
		return 0;
	return is_char(t, c, VINTR) ? SIGINT : is_char(t, c, VQUIT) ? SIGQUIT : is_char(t, c, VSUSP) ? SIGTSTP : 0;
}

/* Flow control and signals: what is not input at all. */
static bool is_taken(struct tty *t, u8 c)
{
	int sig;

	if (input_is(t, IXON)) {
		if (is_char(t, c, VSTART) || is_char(t, c, VSTOP)) {
			tty_hold(t, !is_char(t, c, VSTART));
			return true;
		}
	}
	sig = signal_of(t, c);
	if (!sig)
		return false;
	interrupt_with(t, sig);
	if (input_is(t, IXON))
		tty_hold(t, false);
	if (local_is(t, ECHO))
		echo(t, c);
	return true;
}

static void store(struct tty *t, u8 c)
{
	put(&t->line, c, false);
	if (!local_is(t, ICANON))
		wake_up(&t->read_wait);
}

static u32 used(const struct line *l) { return l->head - l->tail; }

/* In canonical mode with nothing for a program to read, room is made at the end. */
bool tty_line_room(struct tty *t)
{
	const struct line *l = &t->line;

	return used(l) < LINE_SIZE - 1 || (local_is(t, ICANON) && l->canon == l->tail);
}

void tty_line_receive(struct tty *t, u8 c)
{
	struct line *l = &t->line;
	bool literal = l->literal;

	if (used(l) >= LINE_SIZE)
		l->head--;
	if (input_is(t, ISTRIP))
		c &= 0x7f;
	if (input_is(t, IUCLC) && local_is(t, IEXTEN) && c >= 'A' && c <= 'Z')
		c = (u8)(c - 'A' + 'a');
	if (t->stopped && input_is(t, IXON) && input_is(t, IXANY) && !is_char(t, c, VSTOP))
		tty_hold(t, false);
	if (literal) {
		l->literal = false;
	} else {
		if (is_taken(t, c))
			return;
		if (c == '\r' && input_is(t, IGNCR))
			return;
		if (c == '\r' && input_is(t, ICRNL))
			c = '\n';
		else if (c == '\n' && input_is(t, INLCR))
			c = '\r';
		if (local_is(t, ICANON) && edit(t, c))
			return;
	}
	echo_typed(t, c, literal);
	if (c == 0xff && input_is(t, PARMRK) && used(l) < LINE_SIZE - 1)
		put(l, c, false);
	store(t, c);
}

void tty_line_break(struct tty *t)
{
	if (input_is(t, IGNBRK))
		return;
	if (input_is(t, BRKINT)) {
		interrupt_with(t, SIGINT);
		return;
	}
	if (input_is(t, PARMRK) && used(&t->line) < LINE_SIZE - 3) {
		put(&t->line, 0xff, false);
		put(&t->line, 0, false);
	}
	if (used(&t->line) < LINE_SIZE)
		store(t, 0);
}

/* ---- reading ---- */

bool tty_line_readable(const struct tty *t, bool polled)
{
	const struct line *l = &t->line;
	const u8 *cc = t->termios.t.cc;

	if (local_is(t, ICANON))
		return l->canon != l->tail;
	return used(l) >= (polled && !cc[VTIME] && cc[VMIN] ? cc[VMIN] : 1U);
}

static void make_room(struct tty *t)
{
	if (t->throttled && tty_line_room(t)) {
		t->throttled = false;
		t->ops->throttle(t, false);
	}
}

u32 tty_line_read(struct tty *t, u8 *to, u32 size, bool *end)
{
	struct line *l = &t->line;
	bool canonical = local_is(t, ICANON);
	u32 stop = canonical ? l->canon : l->head, n = 0;

	*end = false;
	while (l->tail != stop && !*end) {
		u32 pos = l->tail % LINE_SIZE;
		bool is_end = canonical && test_bit(pos, l->ends), is_eof = is_end && l->buf[pos] == DISABLED;

		/* what follows a full buffer stays, but for an end of file: that belongs to this line */
		if (n == size && !is_eof)
			break;
		if (!is_eof)
			to[n++] = l->buf[pos];
		*end = is_end;
		clear_bit(pos, l->ends);
		l->tail++;
	}
	make_room(t);
	return n;
}

u32 tty_line_count(const struct tty *t)
{
	const struct line *l = &t->line;
	u32 n = 0;

	if (!local_is(t, ICANON))
		return used(l);
	for (u32 i = l->tail; i != l->canon; i++)
		n += !(test_bit(i % LINE_SIZE, l->ends) && l->buf[i % LINE_SIZE] == DISABLED);
	return n;
}

/* When lines begin to count or stop to, what was typed becomes one, or the ends are forgotten. */
void tty_line_set(struct tty *t, const struct termios2 *new)
{
	struct line *l = &t->line;
	bool toggled = (new->t.lflag ^ t->termios.t.lflag) & ICANON;

	t->termios = *new;
	if (toggled) {
		memset(l->ends, 0, sizeof(l->ends));
		l->canon = l->tail;
		if (local_is(t, ICANON) && used(l)) {
			set_bit((l->head - 1) % LINE_SIZE, l->ends);
			l->canon = l->head;
		}
		l->literal = l->erasing = false;
	}
	if (t->stopped && !input_is(t, IXON))
		tty_hold(t, false);
	make_room(t);
	wake_up(&t->read_wait);
}
