/* The 8259A pair (Intel 8259A datasheet), with IRQ 4 raised at will by the UART's "transmitter empty". */
#include "selftest.h"

#define MASTER 0x20
#define SLAVE 0xa0
#define ELCR 0x4d0
#define OCW3_IRR 0x0a
#define OCW3_ISR 0x0b
#define OCW3_POLL 0x0c

static void setup(uint8_t icw4) {
  outb(MASTER, 0x11);
  outb(MASTER + 1, PIC_BASE);
  outb(MASTER + 1, 1 << 2);
  outb(MASTER + 1, icw4);
  outb(MASTER + 1, 0xff);
  outb(SLAVE, 0x11);
  outb(SLAVE + 1, PIC_BASE + 8);
  outb(SLAVE + 1, 2);
  outb(SLAVE + 1, 1);
  outb(SLAVE + 1, 0xff);
}

void pic_init(void) { setup(1); }

void pic_mask(unsigned irq, bool masked) {
  uint16_t port = irq < 8 ? MASTER + 1 : SLAVE + 1;
  uint8_t bit = (uint8_t)(1 << (irq & 7)), old = inb(port);
  outb(port, masked ? old | bit : old & ~bit);
  if (irq >= 8)
    pic_mask(2, masked);
}

void pic_eoi(unsigned irq) {
  if (irq >= 8)
    outb(SLAVE, 0x20);
  outb(MASTER, 0x20);
}

static uint8_t pic_status(uint16_t port, uint8_t ocw3) {
  outb(port, ocw3);
  return inb(port);
}

static void raise_irq4(void) { outb(0x3f9, 2); }
static void drop_irq4(void) { outb(0x3f9, 0), inb(0x3fa); }

/* IRQ 0: channel 0 of the PIT in mode 0 raises it once, and holds it. */
static void raise_irq0(void) {
  pit_start(0, 0, 20);
  for (int i = 0; i < 10000000 && !(pic_status(MASTER, OCW3_IRR) & 1); i++)
    pause();
}

static uint8_t isr_in_handler[2];
static unsigned order[4], n_order;

static void handler(struct frame *f) {
  unsigned irq = (unsigned)f->vector - PIC_BASE;
  isr_in_handler[0] = pic_status(MASTER, OCW3_ISR);
  isr_in_handler[1] = pic_status(SLAVE, OCW3_ISR);
  if (n_order < 4)
    order[n_order++] = irq;
  if (irq == 4)
    drop_irq4();
  pic_eoi(irq);
}

static void without_eoi(struct frame *f) {
  isr_in_handler[0] = pic_status(MASTER, OCW3_ISR);
  if (f->vector == PIC_BASE + 4)
    drop_irq4();
}

static void window(void) {
  sti();
  for (int i = 0; i < 100; i++)
    __asm__ volatile("nop");
  cli();
}

static void quiet(void) {
  drop_irq4();
  pit_stop();
  pic_init();
  n_order = 0;
  for (unsigned i = 0; i < 16; i++) {
    irq_handler[PIC_BASE + i] = handler;
    irq_count[PIC_BASE + i] = 0;
  }
}

void test_pic(void) {
  quiet();
  begin("pic/mask register");
  for (unsigned v = 0; v < 256; v += 0x11) {
    outb(MASTER + 1, (uint8_t)v);
    outb(SLAVE + 1, (uint8_t)~v);
    expect("master", inb(MASTER + 1), v);
    expect("slave", inb(SLAVE + 1), v ^ 0xff);
  }
  outb(MASTER + 1, 0xff);
  outb(SLAVE + 1, 0xff);
  end();

  quiet();
  begin("pic/level control register");
  uint8_t elcr[2] = {inb(ELCR), inb(ELCR + 1)};
  outb(ELCR, 0xff);
  outb(ELCR + 1, 0xff);
  expect("master", inb(ELCR), 0xf8);       /* timer, keyboard and cascade are always edge */
  expect("slave", inb(ELCR + 1), 0xde);    /* RTC and coprocessor, too */
  outb(ELCR, elcr[0]);
  outb(ELCR + 1, elcr[1]);
  end();

  quiet();
  begin("pic/masked request waits");
  raise_irq4();
  window();
  expect("taken while masked", irq_count[PIC_BASE + 4], 0);
  expect("IRR", pic_status(MASTER, OCW3_IRR) & 0x10, 0x10);
  expect("ISR", pic_status(MASTER, OCW3_ISR), 0);
  pic_mask(4, false);
  expect("taken with interrupts off", irq_count[PIC_BASE + 4], 0);
  window();
  expect("taken", irq_count[PIC_BASE + 4], 1);
  expect("ISR in the handler", isr_in_handler[0], 0x10);
  expect("ISR after EOI", pic_status(MASTER, OCW3_ISR), 0);
  window();
  expect("taken once", irq_count[PIC_BASE + 4], 1);
  end();

  quiet();
  begin("pic/no second without EOI");
  irq_handler[PIC_BASE + 4] = without_eoi;
  pic_mask(4, false);
  raise_irq4();
  window();
  raise_irq4();
  window();
  expect("taken", irq_count[PIC_BASE + 4], 1);
  expect("IRR", pic_status(MASTER, OCW3_IRR) & 0x10, 0x10);
  expect("ISR", pic_status(MASTER, OCW3_ISR), 0x10);
  irq_handler[PIC_BASE + 4] = handler;
  outb(MASTER, 0x60 | 4);   /* specific EOI */
  window();
  expect("taken after EOI", irq_count[PIC_BASE + 4], 2);
  end();

  quiet();
  begin("pic/priority");
  raise_irq4();
  raise_irq0();
  pic_mask(4, false);
  pic_mask(0, false);
  window();
  expect("number", n_order, 2);
  expect("first", order[0], 0);
  expect("second", order[1], 4);
  end();

  quiet();
  begin("pic/rotated priority");
  outb(MASTER, 0xc0 | 3);   /* IRQ 3 lowest, so IRQ 4 highest */
  raise_irq0();
  raise_irq4();
  pic_mask(4, false);
  pic_mask(0, false);
  window();
  expect("number", n_order, 2);
  expect("first", order[0], 4);
  expect("second", order[1], 0);
  end();

  quiet();
  begin("pic/automatic EOI");
  setup(3);
  irq_handler[PIC_BASE + 4] = without_eoi;
  pic_mask(4, false);
  isr_in_handler[0] = 0xff;
  raise_irq4();
  window();
  expect("taken", irq_count[PIC_BASE + 4], 1);
  expect("ISR in the handler", isr_in_handler[0], 0);
  raise_irq4();
  window();
  expect("taken again", irq_count[PIC_BASE + 4], 2);
  end();

  quiet();
  begin("pic/poll");
  expect("nothing pending", pic_status(MASTER, OCW3_POLL) & 0x80, 0);
  raise_irq4();
  pic_mask(4, false);
  expect("IRQ 4", pic_status(MASTER, OCW3_POLL), 0x84);
  expect("poll acknowledges", pic_status(MASTER, OCW3_ISR), 0x10);
  drop_irq4();
  pic_eoi(4);
  window();
  expect("taken", irq_count[PIC_BASE + 4], 0);
  end();

  quiet();
  for (unsigned i = 0; i < 16; i++)
    irq_handler[PIC_BASE + i] = NULL;
}
