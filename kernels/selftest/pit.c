/* The 8254 timer (Intel 8254 datasheet). Channel 0 is IRQ 0; channel 2 has its gate and output in port 61h. */
#include "selftest.h"

#define PORT(channel) (uint16_t)(0x40 + (channel))
#define CONTROL_PORT 0x43
#define PORT_B 0x61

void pit_start(unsigned channel, unsigned mode, unsigned count) {
  outb(CONTROL_PORT, (uint8_t)(channel << 6 | 3 << 4 | mode << 1));
  outb(PORT(channel), (uint8_t)count);
  outb(PORT(channel), (uint8_t)(count >> 8));
}

void pit_stop(void) { outb(CONTROL_PORT, 0x30); }

unsigned pit_read(unsigned channel) {
  outb(CONTROL_PORT, (uint8_t)(channel << 6));   /* latch */
  unsigned low = inb(PORT(channel));
  return low | (unsigned)inb(PORT(channel)) << 8;
}

static uint8_t pit_status(unsigned channel) {
  outb(CONTROL_PORT, (uint8_t)(0xe0 | 2 << channel));   /* read-back: status only */
  return inb(PORT(channel));
}

static volatile uint64_t *const irq0 = &irq_count[PIC_BASE];

static void eoi_irq0(struct frame *f) {
  (void)f;
  pic_eoi(0);
}

void test_pit(void) {
  /* The longest count lasts 55 milliseconds: where that decides, a host that was busy gets another try. */
  begin("pit/count goes down");
  bool right = false;
  for (int tries = 0; tries < 10 && !right; tries++) {
    pit_start(2, 0, 0xffff);
    outb(PORT_B, 1);   /* gate on, speaker off */
    unsigned a = pit_read(2);
    spin(200000);
    right = pit_read(2) < a;
  }
  expect_true("less later", right);
  end();

  begin("pit/gate of channel 2");
  outb(PORT_B, 0);
  pit_start(2, 2, 0x8000);
  expect("gate reads back", inb(PORT_B) & 3, 0);
  outb(PORT_B, 1);
  expect("gate reads back", inb(PORT_B) & 3, 1);
  end();

  begin("pit/mode 0 output");
  outb(PORT_B, 1);
  right = false;
  for (int tries = 0; tries < 10 && !right; tries++) {
    pit_start(2, 0, 0xfff0);
    right = !(inb(PORT_B) & 0x20);
  }
  expect_true("low while counting", right);
  pit_start(2, 0, 2);
  uint64_t n = 0;
  while (!(inb(PORT_B) & 0x20) && ++n < 10000000) {
  }
  expect("high at zero", inb(PORT_B) & 0x20, 0x20);
  expect("status shows it", pit_status(2) & 0x80, 0x80);
  end();

  begin("pit/status");
  pit_start(2, 3, 0x1234);
  expect("mode 3, low then high byte", pit_status(2) & 0x3f, 3 << 4 | 3 << 1);
  pit_start(2, 2, 0x1234);
  expect("mode 2", pit_status(2) & 0x3f, 3 << 4 | 2 << 1);
  end();

  begin("pit/latch");
  right = false;
  for (int tries = 0; tries < 10 && !right; tries++) {
    pit_start(2, 2, 0xffff);
    outb(CONTROL_PORT, 0x80);
    unsigned early = inb(PORT(2));
    spin(100000);
    early |= (unsigned)inb(PORT(2)) << 8;
    outb(CONTROL_PORT, 0x80);
    spin(100000);
    outb(CONTROL_PORT, 0x80);   /* a second latch is ignored while the first is unread */
    unsigned latched = inb(PORT(2));
    latched |= (unsigned)inb(PORT(2)) << 8;
    unsigned late = pit_read(2);
    right = early > latched && latched > late && latched - late > (early - latched) / 2;
  }
  expect_true("counts in their order", right);
  end();

  begin("pit/read-back of count and status");
  pit_start(2, 2, 0x4000);
  outb(CONTROL_PORT, 0xc8);   /* both, channel 2: status comes first */
  expect("status", inb(PORT(2)) & 0x3f, 3 << 4 | 2 << 1);
  unsigned count = inb(PORT(2));
  count |= (unsigned)inb(PORT(2)) << 8;
  expect_range("count", count, 1, 0x4000);
  end();

  begin("pit/low byte only");
  outb(CONTROL_PORT, 2 << 6 | 1 << 4 | 2 << 1);
  outb(PORT(2), 0x80);
  expect("status", pit_status(2) & 0x3f, 1 << 4 | 2 << 1);
  for (int i = 0; i < 20; i++)
    expect_range("count", inb(PORT(2)), 1, 0x80);
  end();
  outb(PORT_B, 0);

  irq_handler[PIC_BASE] = eoi_irq0;
  pic_init();
  pic_mask(0, false);

  begin("pit/mode 0 interrupts once");
  *irq0 = 0;
  pit_start(0, 0, 100);
  sti();
  expect_true("came", wait_for(irq0, 1));
  spin(1000000);
  cli();
  expect("number", *irq0, 1);
  end();

  begin("pit/mode 2 interrupts again");
  *irq0 = 0;
  pit_start(0, 2, 1193);
  sti();
  expect_true("came five times", wait_for(irq0, 5));
  cli();
  end();

  begin("pit/mode 3 interrupts again");
  *irq0 = 0;
  pit_start(0, 3, 1193);
  sti();
  expect_true("came five times", wait_for(irq0, 5));
  cli();
  end();

  begin("pit/hlt wakes up");
  *irq0 = 0;
  pit_start(0, 2, 2000);
  for (uint64_t i = 1; i <= 3; i++) {
    while (*irq0 < i)
      sti_hlt_cli();
  }
  expect_range("number", *irq0, 3, 4);
  end();

  pit_start(0, 0, 1);
  spin(100000);
  drain();
  pic_init();
  pit_stop();
  irq_handler[PIC_BASE] = NULL;
}
