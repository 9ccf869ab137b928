/* Terminals (drivers/tty*.c): what is between a line to somebody who types and the programs that read it.
 *
 *	tty.c		the files: open, read, write, poll
 *	tty_ioctl.c	their modes and questions
 *	tty_job.c	controlling terminals, foreground groups, hanging up
 *	tty_line.c	the line discipline: editing, signals
 *	tty_echo.c	its echo, and output processing
 *	serial.c, pty.c	what is behind it
 *
 * Numbers and structures are those of Linux on x86-64, behaviour that of termios(3) and of Linux's own line discipline.
 */
#pragma once
#include "types.h"
#include "list.h"
#include "sched.h"
#include "task.h"
#include "vfs.h"

#define NCCS		19
struct termios {				/* TCGETS */
	u32 iflag, oflag, cflag, lflag;
	u8 line, cc[NCCS];
};
struct termios2 {				/* TCGETS2 */
	struct termios t;
	u32 ispeed, ospeed;
};
static_assert(sizeof(struct termios) == 36 && sizeof(struct termios2) == 44, "user ABI");
struct winsize {
	u16 rows, columns, x_pixels, y_pixels;
};

enum { VINTR, VQUIT, VERASE, VKILL, VEOF, VTIME, VMIN, VSWTC, VSTART, VSTOP, VSUSP, VEOL, VREPRINT, VDISCARD, VWERASE,
       VLNEXT, VEOL2 };

#define IGNBRK	0000001
#define BRKINT	0000002
#define IGNPAR	0000004
#define PARMRK	0000010
#define ISTRIP	0000040
#define INLCR	0000100
#define IGNCR	0000200
#define ICRNL	0000400
#define IUCLC	0001000
#define IXON	0002000
#define IXANY	0004000
#define IMAXBEL	0020000
#define IUTF8	0040000

#define OPOST	0000001
#define OLCUC	0000002
#define ONLCR	0000004
#define OCRNL	0000010
#define ONOCR	0000020
#define ONLRET	0000040
#define TABDLY	0014000
#define XTABS	0014000

#define B38400	0000017
#define B115200	0010002
#define CS8	0000060
#define CREAD	0000200
#define HUPCL	0002000
#define CLOCAL	0004000

#define ISIG	0000001
#define ICANON	0000002
#define ECHO	0000010
#define ECHOE	0000020
#define ECHOK	0000040
#define ECHONL	0000100
#define NOFLSH	0000200
#define TOSTOP	0000400
#define ECHOCTL	0001000
#define ECHOPRT	0002000
#define ECHOKE	0004000
#define IEXTEN	0100000

#define TTY_MAJOR	4
#define TTYAUX_MAJOR	5
#define PTS_MAJOR	136

struct tty;
/* What is behind a terminal. All but `settle` are called with tty->lock held, so they do not sleep. */
struct tty_ops {
	u32 (*write)(struct tty *tty, const u8 *data, u32 size);	/* bytes taken */
	u32 (*room)(struct tty *tty);		/* bytes that write() would take now */
	u32 (*pending)(struct tty *tty);	/* taken and not yet sent */
	void (*discard)(struct tty *tty);	/* what is pending */
	void (*hold)(struct tty *tty, bool stop);	/* output is stopped (^S), or goes on */
	void (*throttle)(struct tty *tty, bool full);	/* NULL. No more input until there is room again */
	void (*settle)(struct tty *tty);	/* NULL. Waits for what is on the wire after nothing is pending */
	void (*send_break)(struct tty *tty, bool on);	/* NULL */
	void (*closed)(struct tty *tty);	/* NULL. The last file of it is closed */
	bool hangs_up;				/* when the leader of its session ends */
};

/* Input in a ring; head, canon and tail count bytes since the beginning. In canonical mode [tail, canon) are whole
 * lines and [canon, head) is the one being typed. */
#define LINE_SIZE	4096U
struct line {
	u8 buf[LINE_SIZE];
	u64 ends[LINE_SIZE / 64];		/* bit: a line ends with this byte; a NUL so marked is an end of file */
	u32 head, canon, tail;
	u32 column;				/* of the cursor */
	u32 start_column;			/* where the typed line began */
	bool literal;				/* the next character means itself */
	bool erasing;				/* between \ and / of ECHOPRT */
};

struct tty {
	const struct tty_ops *ops;
	void *driver;
	u64 rdev;
	spinlock_t lock;			/* with interrupts off: line, termios, flags */
	struct wait_queue read_wait, write_wait;
	struct mutex reader, writer;		/* one each at a time */
	struct termios2 termios, initial;
	struct winsize winsize;
	bool stopped, throttled, exclusive;
	u32 opens;
	u32 hangups;				/* files opened before the last one are dead */
	/* under task_lock */
	pid_t session, pgrp;			/* whose controlling terminal it is; its foreground group; 0 */
	struct line line;
};

/* Fields that a driver does not set. */
void tty_init(struct tty *tty, const struct tty_ops *ops, void *driver, u64 rdev);
/* Makes it known as /dev/NAME. */
int tty_register(struct tty *tty, struct chrdev *dev);
int tty_open_file(struct tty *tty, struct file *f, bool is_console);	/* for open(); 0 or -errno */
extern const struct file_ops tty_file_ops;

/* ---- tty_line.c, tty_echo.c; all with tty->lock held ---- */
bool tty_line_room(struct tty *tty);
void tty_line_receive(struct tty *tty, u8 c);
void tty_line_break(struct tty *tty);
bool tty_line_readable(const struct tty *tty, bool polled);
/* Bytes of one line, or of what there is in raw mode; *end: a line, or the file, ends here. */
u32 tty_line_read(struct tty *tty, u8 *to, u32 size, bool *end);
u32 tty_line_write(struct tty *tty, const u8 *from, u32 size);	/* with output processing; bytes taken */
u32 tty_line_count(const struct tty *tty);			/* FIONREAD */
void tty_line_flush_input(struct tty *tty);
void tty_line_set(struct tty *tty, const struct termios2 *new);
void tty_hold(struct tty *tty, bool stop);

/* From a driver, interrupts off or on. Without room the driver keeps its byte: throttle(tty, false) tells it to go on. */
bool tty_has_room(struct tty *tty);
void tty_receive(struct tty *tty, u8 c);
void tty_receive_break(struct tty *tty);
void tty_wake_writers(struct tty *tty);

/* ---- tty_job.c ---- */
int tty_check_job(struct tty *tty, int sig);	/* background: -ERESTARTSYS and the group gets sig, or -EIO */
void tty_opened_by_leader(struct tty *tty, bool readable);	/* may become the controlling terminal */
struct tty *current_tty(void);			/* NULL */
s64 tty_job_ioctl(struct tty *tty, struct file *f, u32 cmd, u64 arg);	/* -ENOTTY: not one of its */
void tty_hangup(struct tty *tty);
u32 tty_number(const struct process *p);	/* device number of its controlling terminal, 0; for /proc */
pid_t tty_foreground(const struct process *p);	/* that terminal's foreground group, -1 */

/* ---- tty_ioctl.c, tty.c ---- */
s64 tty_ioctl(struct file *f, u32 cmd, u64 arg);
s64 tty_ioctl_on(struct tty *tty, struct file *f, u32 cmd, u64 arg);	/* through whichever file */
struct tty *tty_of(struct file *f);		/* NULL: hung up */
struct tty *console_tty(void);			/* drivers/serial.c; NULL */
int tty_wait_sent(struct tty *tty);		/* until all output is on the wire; -ERESTARTSYS */
