/* Intel 82540EM, 8086:100e (PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual, 317453).
 *
 * There is no network stack above it: frames are taken from the ring by the interrupt and counted. Those of the machine's
 * traffic source (emu/traffic.py) are verified: number, sums. `e1000_test=RECEIVE[,SEND]` waits until so many of them have
 * come and sends some of its own, before the kernel goes on. The same on any machine that has the card.
 */
#define pr_fmt(fmt) "e1000: " fmt
#include "pci.h"
#include "arch.h"
#include "cpu.h"
#include "errno.h"
#include "init.h"
#include "page.h"
#include "printk.h"
#include "sched.h"
#include "string.h"

enum {	/* registers (13.4) */
	CTRL = 0x0000, ICR = 0x00c0, IMS = 0x00d0, IMC = 0x00d8, RCTL = 0x0100, TCTL = 0x0400, TIPG = 0x0410,
	RDBAL = 0x2800, RDBAH = 0x2804, RDLEN = 0x2808, RDH = 0x2810, RDT = 0x2818, RDTR = 0x2820,
	TDBAL = 0x3800, TDBAH = 0x3804, TDLEN = 0x3808, TDH = 0x3810, TDT = 0x3818,
	MPC = 0x4010, MTA = 0x5200, RAL0 = 0x5400, RAH0 = 0x5404,
};
#define CTRL_SLU	(1U << 6)
#define CTRL_RST	(1U << 26)
#define RCTL_EN		(1U << 1)
#define RCTL_UPE	(1U << 3)
#define RCTL_MPE	(1U << 4)
#define RCTL_BAM	(1U << 15)
#define RCTL_SECRC	(1U << 26)
#define TCTL_EN		(1U << 1)
#define TCTL_PSP	(1U << 3)
#define TCTL_DEFAULT	(0xfU << 4 | 0x40U << 12)	/* collisions: full duplex */
#define TIPG_DEFAULT	(10U | 10U << 10 | 10U << 20)
#define CAUSES		(1U << 4 | 1U << 6 | 1U << 7)	/* few descriptors, overrun, frame */
#define MTA_WORDS	128U

#define RX_COUNT	64U
#define TX_COUNT	8U
#define BUFFER		2048U
#define TX_RING		2048U			/* in the piece of memory: receive ring, transmit ring, buffers */
#define RX_BUFFERS	4096U
#define TX_BUFFERS	(RX_BUFFERS + RX_COUNT * BUFFER)
#define MEMORY		(TX_BUFFERS + TX_COUNT * BUFFER)

#define DONE		1U
#define RX_END		2U
#define TX_END		1U
#define TX_FCS		2U
#define TX_REPORT	8U

#define TEST_MS		60000U
#define SEND_SIZE	128U

struct rx_descriptor {
	u64 address;
	u16 length, checksum;
	u8 status, errors;
	u16 special;
};
struct tx_descriptor {
	u64 address;
	u16 length;
	u8 cso, command, status, css;
	u16 special;
};
static_assert(sizeof(struct rx_descriptor) == 16 && sizeof(struct tx_descriptor) == 16, "as the card reads them");

/* A frame of the traffic source. Sums: over the 32-bit words from `type` on, padded with zeros, sums as 0. */
struct frame {
	u8 to[6], from[6];
	u16 type, stream;
	u64 number, tick;
	u32 size, first, second;
	u8 filling[];
} __packed;
static_assert(sizeof(struct frame) == 44, "emu/traffic.py");
#define FRAME_TYPE	0xb588		/* 0x88b5, big-endian */
#define FRAME_SUMMED	offsetof(struct frame, type)

struct e1000 {
	volatile u8 *registers;
	u8 *memory, mac[6];
	u64 bus;
	u32 next, wanted;
	u64 received, lost, repeated, corrupted, others, expected;
	bool started;
};

static u32 test_receive, test_send;

static int e1000_test_param(const char *value)
{
	const char *end;

	test_receive = (u32)memparse(value, &end);
	if (*end == ',')
		test_send = (u32)memparse(end + 1, &end);
	return *end ? -EINVAL : 0;
}
kernel_param("e1000_test", e1000_test_param);

static u32 get(struct e1000 *e, u32 at) { return readl(e->registers + at); }
static void set(struct e1000 *e, u32 at, u32 value) { writel(value, e->registers + at); }

/* ---- frames ---- */

static void sum(const u8 *frame, u32 size, u32 *first, u32 *second)
{
	*first = *second = 0;
	for (u32 at = FRAME_SUMMED; at < size; at += 4) {
		u32 word = 0;

		memcpy(&word, frame + at, min(4U, size - at));
		if (at >= offsetof(struct frame, first) && at < sizeof(struct frame))
			word = 0;
		*first += word;
		*second += *first;
	}
}

static void take(struct e1000 *e, const u8 *data, u32 size)
{
	const struct frame *f = (const struct frame *)data;
	u32 first, second;

	if (size < sizeof(*f) || f->type != FRAME_TYPE) {
		e->others++;
		return;
	}
	sum(data, min(size, f->size), &first, &second);
	if (f->size > size || first != f->first || second != f->second) {
		e->corrupted++;
		return;
	}
	if (e->started && f->number < e->expected) {
		e->repeated++;
		return;
	}
	if (e->started)
		e->lost += f->number - e->expected;
	e->started = true;
	e->expected = f->number + 1;
	e->received++;
}

static void e1000_interrupt(struct pci_dev *dev, void *data)
{
	struct e1000 *e = data;
	volatile struct rx_descriptor *ring = (void *)e->memory;

	(void)dev;
	get(e, ICR);			/* acknowledges */
	while (ring[e->next].status & DONE) {
		volatile struct rx_descriptor *d = &ring[e->next];

		if (d->status & RX_END && !d->errors && d->length <= BUFFER && (!e->wanted || e->received < e->wanted))
			take(e, e->memory + RX_BUFFERS + e->next * BUFFER, d->length);
		d->status = 0;
		set(e, RDT, e->next);
		e->next = (e->next + 1) % RX_COUNT;
	}
	if (e->wanted && e->received >= e->wanted)
		set(e, RCTL, get(e, RCTL) & ~RCTL_EN);
}

static bool send(struct e1000 *e, u32 number)
{
	u32 slot = number % TX_COUNT;
	volatile struct tx_descriptor *d = (volatile struct tx_descriptor *)(e->memory + TX_RING) + slot;
	u8 *data = e->memory + TX_BUFFERS + slot * BUFFER;
	struct frame *f = (struct frame *)data;
	u32 first, second;

	*f = (struct frame){ .type = FRAME_TYPE, .number = number, .size = SEND_SIZE };
	memset(f->to, 0xff, sizeof(f->to));
	memcpy(f->from, e->mac, sizeof(f->from));
	for (u32 i = sizeof(*f); i < SEND_SIZE; i++)
		data[i] = (u8)(number + i);
	sum(data, SEND_SIZE, &first, &second);
	f->first = first;
	f->second = second;
	d->address = e->bus + TX_BUFFERS + slot * BUFFER;
	d->length = SEND_SIZE;
	d->status = 0;
	d->command = TX_END | TX_FCS | TX_REPORT;
	set(e, TDT, (slot + 1) % TX_COUNT);
	for (unsigned int i = 0; i < 10000; i++) {
		if (d->status & DONE)
			return true;
		udelay(100);
	}
	return false;
}

/* ---- start and end ---- */

static void quiet(struct e1000 *e)
{
	set(e, IMC, ~0U);
	set(e, RCTL, 0);
	set(e, TCTL, 0);
	get(e, ICR);
}

static void reset(struct e1000 *e)
{
	quiet(e);
	set(e, CTRL, get(e, CTRL) | CTRL_RST);
	udelay(5000);			/* registers come from the EEPROM again */
	set(e, IMC, ~0U);
	get(e, ICR);
}

static void start(struct e1000 *e)
{
	volatile struct rx_descriptor *ring = (void *)e->memory;

	for (u32 i = 0; i < RX_COUNT; i++)
		ring[i].address = e->bus + RX_BUFFERS + i * BUFFER;
	for (u32 i = 0; i < MTA_WORDS; i++)
		set(e, MTA + 4 * i, 0);
	set(e, CTRL, get(e, CTRL) | CTRL_SLU);
	set(e, RDBAL, (u32)e->bus);
	set(e, RDBAH, (u32)(e->bus >> 32));
	set(e, RDLEN, RX_COUNT * (u32)sizeof(struct rx_descriptor));
	set(e, RDTR, 0);
	set(e, RDH, 0);
	set(e, RDT, RX_COUNT - 1);
	set(e, TDBAL, (u32)(e->bus + TX_RING));
	set(e, TDBAH, (u32)((e->bus + TX_RING) >> 32));
	set(e, TDLEN, TX_COUNT * (u32)sizeof(struct tx_descriptor));
	set(e, TDH, 0);
	set(e, TDT, 0);
	set(e, TIPG, TIPG_DEFAULT);
	set(e, TCTL, TCTL_EN | TCTL_PSP | TCTL_DEFAULT);
	set(e, IMS, CAUSES);
	set(e, RCTL, RCTL_EN | RCTL_UPE | RCTL_MPE | RCTL_BAM | RCTL_SECRC);
}

static void self_test(struct e1000 *e, struct pci_dev *dev)
{
	u32 sent = 0;

	while (sent < test_send && send(e, sent))
		sent++;
	if (test_send)
		pr_info(PCI_NAME " %u of %u frames sent\n", PCI_NAME_ARGS(dev), sent, test_send);
	for (u32 ms = 0; ms < TEST_MS && READ_ONCE(e->received) < test_receive; ms += 10)
		msleep(10);
	if (test_receive)
		pr_info(PCI_NAME " %lu frames received: %lu lost, %lu duplicated, %lu corrupted, %lu others\n",
			PCI_NAME_ARGS(dev), e->received, e->lost, e->repeated, e->corrupted, e->others);
}

static void read_mac(struct e1000 *e)
{
	u32 low = get(e, RAL0), high = get(e, RAH0);

	memcpy(e->mac, &low, 4);
	memcpy(e->mac + 4, &high, 2);
}

static int e1000_probe(struct pci_dev *dev)
{
	struct e1000 *e = kzalloc(sizeof(*e), GFP_KERNEL);
	int err = -ENOMEM;

	if (!e)
		return -ENOMEM;
	pci_enable(dev);
	e->registers = pci_map_bar(dev, 0);
	if (!e->registers)
		goto out;
	reset(e);
	read_mac(e);
	e->wanted = test_receive;
	e->memory = dma_alloc(dev, MEMORY, &e->bus);
	if (!e->memory)
		goto out;
	pr_info(PCI_NAME " address %02x:%02x:%02x:%02x:%02x:%02x\n", PCI_NAME_ARGS(dev), e->mac[0], e->mac[1], e->mac[2],
		e->mac[3], e->mac[4], e->mac[5]);
	err = pci_request_intx(dev, e1000_interrupt, e);
	if (err)
		goto out_memory;
	dev->driver_data = e;
	pci_set_master(dev, true);
	start(e);
	self_test(e, dev);
	return 0;
out_memory:
	dma_free(dev, e->memory, MEMORY);
out:
	kfree(e);
	return err;
}

static void e1000_shutdown(struct pci_dev *dev)
{
	reset(dev->driver_data);
}

static void e1000_remove(struct pci_dev *dev)
{
	struct e1000 *e = dev->driver_data;

	reset(e);
	pci_free_irq(dev);
	pci_set_master(dev, false);
	dma_free(dev, e->memory, MEMORY);
	kfree(e);
}

static const struct pci_id ids[] = { { 0x8086, 0x100e }, { 0, 0 } };
static struct pci_driver e1000_driver = {
	.name = "e1000", .ids = ids, .probe = e1000_probe, .remove = e1000_remove, .shutdown = e1000_shutdown,
};

static int e1000_init(void)
{
	return pci_register_driver(&e1000_driver);
}
device_initcall(e1000_init);
