/* Serial ports: 16550A (National Semiconductor PC16550D) with interrupts, as terminals ttyS0 and ttyS1.
 *
 * Output goes straight to the transmitter while that takes it; what it does not take waits in a ring for the transmit
 * interrupt. Input is taken by the interrupt handler for as long as the terminal has room; then it stays in the chip,
 * and behind that with a sender who respects flow control.
 *
 * The speed stays 115200 whatever the modes say: kernel messages use the same line.
 *
 * The first port is also the kernel's console (uart.c), which polls it with interrupts off. Before a message what
 * programs wrote goes out, and if they left a line unfinished it is ended; so the bytes on the wire are in
 * the order in which they were written, and each message has its lines to itself.
 */
#include "tty.h"
#include "arch.h"
#include "console.h"
#include "cpu.h"
#include "init.h"
#include "printk.h"
#include "string.h"

#define RBR		0		/* receiver, transmitter; divisor low with DLAB */
#define THR		0
#define IER		1
#define IIR		2
#define FCR		2
#define LCR		3
#define MCR		4
#define LSR		5
#define MSR		6
#define SCR		7

#define IER_RECEIVE	0x01
#define IER_TRANSMIT	0x02
#define IIR_NONE	0x01
#define FCR_ON		0x01
#define FCR_TRIGGER_8	0x80
#define LCR_8N1		0x03
#define LCR_BREAK	0x40
#define LCR_DLAB	0x80
#define MCR_DTR_RTS	0x03
#define MCR_OUT2	0x08		/* on a PC: lets the interrupt through */
#define LSR_READY	0x01
#define LSR_BREAK	0x10
#define LSR_EMPTY	0x20		/* the transmitter's FIFO */
#define LSR_IDLE	0x40		/* and its shift register */

#define FIFO_SIZE	16
#define RING_SIZE	4096U
#define ROUNDS_MAX	256U		/* of one interrupt */
#define SPINS_MAX	10000000U	/* for one FIFO to go out: a line that does not move loses what is on it */

struct serial {
	u16 port;
	u8 irq;
	u8 ier;
	spinlock_t lock;		/* with interrupts off: the ring, the transmitter, IER */
	bool held;			/* ^S */
	bool open_line;			/* the last byte was not the end of a line */
	u8 ring[RING_SIZE];
	u32 head, tail;			/* bytes put in and taken out since the beginning */
	struct tty tty;
	struct chrdev device;
};

static struct serial ports[] = {
	{ .port = 0x3f8, .irq = 4, .device = { .name = "ttyS0", .major = TTY_MAJOR, .minor = 64, .mode = 0600 } },
	{ .port = 0x2f8, .irq = 3, .device = { .name = "ttyS1", .major = TTY_MAJOR, .minor = 65, .mode = 0600 } },
};

static u8 get(const struct serial *s, u16 reg) { return inb((u16)(s->port + reg)); }
static void set(const struct serial *s, u16 reg, u8 value) { outb((u16)(s->port + reg), value); }
static u32 queued(const struct serial *s) { return s->head - s->tail; }

static void enable(struct serial *s, u8 what, bool on)
{
	s->ier = on ? s->ier | what : (u8)(s->ier & ~what);
	set(s, IER, s->ier);
}

/* Fills the transmitter as often as it is empty at once; the rest is for the interrupt. Lock held. */
static void transmit(struct serial *s)
{
	while (!s->held && queued(s) && get(s, LSR) & LSR_EMPTY)
		for (u32 i = 0; i < FIFO_SIZE && queued(s); i++)
			set(s, THR, s->ring[s->tail++ % RING_SIZE]);
	if (!(s->ier & IER_TRANSMIT) != !(queued(s) && !s->held))
		enable(s, IER_TRANSMIT, queued(s) && !s->held);
}

/* ---- for the terminal ---- */

static struct serial *port_of(struct tty *t) { return t->driver; }

static u32 serial_room(struct tty *t) { return RING_SIZE - queued(port_of(t)); }
static u32 serial_pending(struct tty *t) { return queued(port_of(t)); }

static u32 serial_write(struct tty *t, const u8 *data, u32 size)
{
	struct serial *s = port_of(t);
	u64 flags = spin_lock_irqsave(&s->lock);
	u32 n = min(size, RING_SIZE - queued(s));

	for (u32 i = 0; i < n; i++)
		s->ring[s->head++ % RING_SIZE] = data[i];
	if (n)
		s->open_line = data[n - 1] != '\n';
	transmit(s);
	spin_unlock_irqrestore(&s->lock, flags);
	return n;
}

static void serial_discard(struct tty *t)
{
	struct serial *s = port_of(t);
	u64 flags = spin_lock_irqsave(&s->lock);

	s->tail = s->head;
	transmit(s);
	spin_unlock_irqrestore(&s->lock, flags);
}

static void serial_hold(struct tty *t, bool stop)
{
	struct serial *s = port_of(t);
	u64 flags = spin_lock_irqsave(&s->lock);

	s->held = stop;
	transmit(s);
	spin_unlock_irqrestore(&s->lock, flags);
}

static void serial_throttle(struct tty *t, bool full)
{
	struct serial *s = port_of(t);
	u64 flags = spin_lock_irqsave(&s->lock);

	enable(s, IER_RECEIVE, !full);
	spin_unlock_irqrestore(&s->lock, flags);
}

static void wait_idle(const struct serial *s)
{
	for (u32 spins = 0; !(get(s, LSR) & LSR_IDLE) && spins < SPINS_MAX; spins++)
		cpu_relax();
}

static void serial_settle(struct tty *t)
{
	wait_idle(port_of(t));
}

static void serial_send_break(struct tty *t, bool on)
{
	set(port_of(t), LCR, on ? LCR_8N1 | LCR_BREAK : LCR_8N1);
}

static const struct tty_ops serial_ops = {
	.write = serial_write, .room = serial_room, .pending = serial_pending, .discard = serial_discard,
	.hold = serial_hold, .throttle = serial_throttle, .settle = serial_settle, .send_break = serial_send_break,
	.hangs_up = true,
};

/* ---- interrupts ---- */

static void receive(struct serial *s)
{
	while (1) {
		u8 status = get(s, LSR);

		if (!(status & LSR_READY))
			return;
		/* the terminal has switched this interrupt off when it says no; the byte stays where it is */
		if (s->tty.throttled || !(s->ier & IER_RECEIVE))
			return;
		if (status & LSR_BREAK) {
			get(s, RBR);
			tty_receive_break(&s->tty);
		} else if (tty_has_room(&s->tty)) {
			tty_receive(&s->tty, get(s, RBR));
		}
	}
}

static void serial_interrupt(unsigned int gsi __unused, void *data)
{
	struct serial *s = data;
	u32 rounds = 0;
	u64 flags;

	/* The line is edge-triggered: as long as the chip has one more reason, no new edge comes. */
	while (!(get(s, IIR) & IIR_NONE)) {
		if (++rounds > ROUNDS_MAX) {	/* others want to run: make an edge for the rest */
			flags = spin_lock_irqsave(&s->lock);
			set(s, IER, 0);
			set(s, IER, s->ier);
			spin_unlock_irqrestore(&s->lock, flags);
			return;
		}
		receive(s);
		get(s, MSR);
		flags = spin_lock_irqsave(&s->lock);
		transmit(s);
		spin_unlock_irqrestore(&s->lock, flags);
		tty_wake_writers(&s->tty);
	}
}

/* ---- shared with kernel messages ---- */

/* Writes out what waits, without interrupts, even if it is held; the line may be ended by the caller. */
static bool finish_output(struct serial *s)
{
	u64 flags = spin_lock_irqsave(&s->lock);
	bool open_line = s->open_line;

	for (u32 spins = 0; queued(s) && spins < SPINS_MAX; spins++) {
		if (!(get(s, LSR) & LSR_EMPTY)) {
			cpu_relax();
			continue;
		}
		for (u32 i = 0; i < FIFO_SIZE && queued(s); i++)
			set(s, THR, s->ring[s->tail++ % RING_SIZE]);
		spins = 0;
	}
	s->open_line = false;
	spin_unlock_irqrestore(&s->lock, flags);
	return open_line;
}

static bool yield_console(bool end)
{
	for (unsigned int i = 1; end && i < ARRAY_SIZE(ports); i++) {
		finish_output(&ports[i]);
		if (ports[i].tty.ops)
			wait_idle(&ports[i]);
	}
	return finish_output(&ports[0]);
}

/* ---- start ---- */

/* A register that nothing but programs uses tells whether a chip is there. */
static bool is_there(const struct serial *s)
{
	u8 before = get(s, SCR);
	bool found = true;

	for (u8 value = 0x55; value; value = value == 0x55 ? 0xaa : 0) {
		set(s, SCR, value);
		found &= get(s, SCR) == value;
	}
	set(s, SCR, before);
	return found;
}

/* Input that came before stays in the FIFO: somebody may have typed during an update. */
static void start_chip(struct serial *s)
{
	set(s, IER, 0);
	set(s, LCR, LCR_DLAB);
	set(s, THR, 1);			/* 115200 baud */
	set(s, IER, 0);
	set(s, LCR, LCR_8N1);
	set(s, FCR, FCR_ON | FCR_TRIGGER_8);
	set(s, MCR, MCR_DTR_RTS | MCR_OUT2);
	enable(s, IER_RECEIVE, true);
}

static int start_port(struct serial *s)
{
	int err;

	if (!is_there(s))
		return 0;
	tty_init(&s->tty, &serial_ops, s, MKDEV(s->device.major, s->device.minor));
	err = request_irq(isa_irq_to_gsi(s->irq), serial_interrupt, s);
	if (!err)
		err = tty_register(&s->tty, &s->device);
	if (err)
		return err;
	start_chip(s);
	pr_info("%s at I/O 0x%x (irq = %u, base_baud = 115200) is a 16550A\n", s->device.name, s->port, s->irq);
	return 0;
}

static int serial_init(void)
{
	int err = 0;

	for (unsigned int i = 0; i < ARRAY_SIZE(ports) && !err; i++)
		err = start_port(&ports[i]);
	if (!err)
		console_yield = yield_console;
	return err;
}
device_initcall(serial_init);

/* The terminal that kernel messages go to; NULL if it is not there. */
struct tty *console_tty(void)
{
	return ports[0].tty.ops ? &ports[0].tty : NULL;
}
