/* The 16550A (National PC16550D datasheet), on the first UART between two lines of output, and on the second.
 * Data goes round by the loopback mode. */
#include "selftest.h"

#define DATA 0
#define IER 1
#define IIR 2
#define LCR 3
#define MCR 4
#define LSR 5
#define MSR 6
#define SCR 7
#define LOOP 0x10

static uint16_t base;
static uint8_t get(unsigned reg) { return inb((uint16_t)(base + reg)); }
static void put(unsigned reg, uint8_t v) { outb((uint16_t)(base + reg), v); }

static void reset(void) {
  put(IER, 0);
  put(LCR, 3);
  put(IIR, 0);
  put(IIR, 7);
  put(MCR, 0x08 | 3);
  (void)get(LSR);
  (void)get(DATA);
  (void)get(MSR);
  (void)get(IIR);
}

static bool wait_lsr(uint8_t bits) {
  for (uint64_t i = 0; i < 2000000; i++)
    if ((get(LSR) & bits) == bits)
      return true;
  return false;
}

static volatile uint64_t *taken;
static uint8_t iir_in_handler;
static void handler(struct frame *f) {
  iir_in_handler = get(IIR);
  put(IER, 0);
  pic_eoi((unsigned)f->vector - PIC_BASE);
}

static void wait_sent(void) { (void)wait_lsr(0x60); }

static void test_one(uint16_t port, unsigned irq, bool single) {
  base = port;
  wait_sent();
  reset();
  /* nothing may be printed before the checks of a test are done: it would go through this UART */
  uint8_t scratch[2], ier, lcr, mcr, divisor[2], data_kept;
  put(SCR, 0x5a);
  scratch[0] = get(SCR);
  put(SCR, 0xa5);
  scratch[1] = get(SCR);
  put(IER, 0xf);
  ier = get(IER);
  put(IER, 0);
  put(LCR, 0x1b);
  lcr = get(LCR);
  put(MCR, 0x1f);
  mcr = get(MCR);
  put(MCR, 0x0b);
  put(LCR, 0x83);
  put(DATA, 0x34);
  put(IER, 0x12);
  divisor[0] = get(DATA), divisor[1] = get(IER);
  put(DATA, 1);
  put(IER, 0);
  put(LCR, 3);
  data_kept = get(IER);
  reset();
  if (!single)
    begin("uart/registers");
  expect("scratch", (uint64_t)scratch[0] << 8 | scratch[1], 0x5aa5);
  expect("interrupt enable", ier, 0xf);
  expect("line control", lcr, 0x1b);
  expect("modem control", mcr, 0x1f);
  expect("divisor", (uint64_t)divisor[1] << 8 | divisor[0], 0x1234);
  expect("interrupt enable behind the divisor", data_kept, 0);
  expect("line status", get(LSR) & 0x9f, 0);
  if (!single)
    end();

  wait_sent();
  reset();
  uint8_t fifo_on, fifo_off;
  put(IIR, 1);
  fifo_on = get(IIR);
  put(IIR, 0);
  fifo_off = get(IIR);
  put(IIR, 7);
  if (!single)
    begin("uart/FIFO enable");
  expect("on", fifo_on, 0xc1);
  expect("off", fifo_off, 0x01);
  if (!single)
    end();

  wait_sent();
  reset();
  put(MCR, LOOP | 0x08);
  uint8_t empty = get(LSR), echo[3], after;
  static const uint8_t sent[3] = {0x41, 0xff, 0x00};
  bool came = true;
  for (int i = 0; i < 3; i++) {
    put(DATA, sent[i]);
    came &= wait_lsr(0x61);
    echo[i] = get(DATA);
  }
  after = get(LSR);
  uint8_t in_order[8], n = 0;
  for (uint8_t i = 0; i < 8; i++) {
    put(DATA, (uint8_t)(0x30 + i));
    (void)wait_lsr(0x60);
  }
  (void)wait_lsr(0x01);
  while (n < 8 && get(LSR) & 1)
    in_order[n++] = get(DATA);
  static const uint8_t outs[4] = {0x01, 0x02, 0x04, 0x08};
  uint8_t ins[4];
  for (int i = 0; i < 4; i++) {
    put(MCR, LOOP | outs[i]);
    ins[i] = get(MSR) & 0xf0;
  }
  reset();
  if (!single)
    begin("uart/loopback");
  expect("empty", empty & 1, 0);
  expect_true("data comes", came);
  for (int i = 0; i < 3; i++)
    expect("data", echo[i], sent[i]);
  expect("empty again", after & 1, 0);
  expect("FIFO holds eight", n, 8);
  for (uint8_t i = 0; i < n; i++)
    expect("in order", in_order[i], 0x30u + i);
  expect("DTR is DSR", ins[0], 0x20);
  expect("RTS is CTS", ins[1], 0x10);
  expect("OUT1 is RI", ins[2], 0x40);
  expect("OUT2 is DCD", ins[3], 0x80);
  if (!single)
    end();

  wait_sent();
  reset();
  uint8_t idle, thre, thre_again, rx, rx_gone, none, overrun_lsr;
  idle = get(IIR) & 0xf;
  put(IER, 2);
  thre = get(IIR) & 0xf;         /* reading it takes it away */
  thre_again = get(IIR) & 0xf;
  put(IER, 0);
  put(MCR, LOOP | 0x08);
  (void)get(MSR);
  put(IIR, 0);                   /* no FIFO: every byte is due at once */
  put(IER, 1);
  none = get(IIR) & 0xf;
  put(DATA, 0x55);
  (void)wait_lsr(0x61);
  rx = get(IIR) & 0xf;
  (void)get(DATA);
  rx_gone = get(IIR) & 0xf;
  put(IER, 4);
  put(DATA, 1);
  (void)wait_lsr(0x61);
  put(DATA, 2);
  spin(2000000);                 /* not by the line status: reading it clears the overrun */
  for (int i = 0; i < 100000 && (get(IIR) & 0xf) != 6; i++)
    pause();
  uint8_t line = get(IIR) & 0xf;
  overrun_lsr = get(LSR);
  uint8_t line_gone = get(IIR) & 0xf;
  (void)get(DATA);
  reset();
  if (!single)
    begin("uart/interrupt identification");
  expect("none", idle, 1);
  expect("transmitter empty", thre, 2);
  expect("read once", thre_again, 1);
  expect("no data", none, 1);
  expect("data", rx, 4);
  expect("data taken", rx_gone, 1);
  expect("line status", line, 6);
  expect("overrun", overrun_lsr & 2, 2);
  expect("line status read", line_gone & 2, 0);
  if (!single)
    end();

  wait_sent();
  reset();
  irq_handler[PIC_BASE + irq] = handler;
  taken = &irq_count[PIC_BASE + irq];
  *taken = 0;
  pic_init();
  pic_mask(irq, false);
  sti();
  spin(3000);
  uint64_t early = *taken;
  put(IER, 2);
  bool arrived = wait_for(taken, 1);
  spin(3000);
  cli();
  pic_mask(irq, true);
  pic_init();
  irq_handler[PIC_BASE + irq] = NULL;
  reset();
  if (!single)
    begin("uart/interrupt");
  expect("before it is enabled", early, 0);
  expect_true("arrived", arrived);
  expect("number", *taken, 1);
  expect("identification in the handler", iir_in_handler & 0xf, 2);
  if (!single)
    end();
}

void test_uart(void) {
  test_one(0x3f8, 4, false);
  begin("uart/second one, if there is one");
  outb(0x2f8 + SCR, 0x5a);
  if (inb(0x2f8 + SCR) == 0x5a)
    test_one(0x2f8, 3, true);
  end();
}
