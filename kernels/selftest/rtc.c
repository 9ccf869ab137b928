/* The CMOS real-time clock (Motorola MC146818A), and the PM timer of ACPI against the PIT. */
#include "selftest.h"

static uint8_t get(uint8_t reg) {
  outb(0x70, reg | 0x80);
  return inb(0x71);
}

static void put(uint8_t reg, uint8_t v) {
  outb(0x70, reg | 0x80);
  outb(0x71, v);
}

static bool bcd(uint8_t v, uint8_t low, uint8_t high) {
  return (v & 15) <= 9 && v >> 4 <= 9 && v >= low && v <= high;
}

static uint8_t last_c;
static void handler(struct frame *f) {
  last_c = get(0xc);
  pic_eoi((unsigned)f->vector - PIC_BASE);
}

void test_rtc(void) {
  uint8_t a = get(0xa), b = get(0xb);
  begin("rtc/registers");
  expect("32 kHz divider", a & 0x70, 0x20);
  expect("battery", get(0xd), 0x80);
  put(0xb, 2);
  expect("BCD, 24 hours", get(0xb), 2);
  put(0x40, 0x5a);
  expect("RAM", get(0x40), 0x5a);
  put(0x40, 0xa5);
  expect("RAM", get(0x40), 0xa5);
  put(0xa, 0x2a);
  expect("rate", get(0xa) & 0x7f, 0x2a);
  put(0xa, a & 0x7f);
  end();

  begin("rtc/time and date");
  uint8_t now[10];
  for (int tries = 0; tries < 100; tries++) {
    for (uint8_t i = 0; i < 10; i++)
      now[i] = get(i);
    if (!(get(0xa) & 0x80) && get(0) == now[0])
      break;
  }
  expect_true("seconds", bcd(now[0], 0, 0x59));
  expect_true("minutes", bcd(now[2], 0, 0x59));
  expect_true("hours", bcd(now[4], 0, 0x23));
  expect_true("day", bcd(now[7], 1, 0x31));
  expect_true("month", bcd(now[8], 1, 0x12));
  expect_true("year", bcd(now[9], 0, 0x99));
  put(0xb, 2 | 0x80);   /* SET: no update while it is written */
  put(0, 0x42), put(2, 0x17), put(4, 0x09);
  expect("seconds", get(0), 0x42);
  put(0xb, 6 | 0x80);   /* binary */
  put(0, 42);
  expect("binary seconds", get(0), 42);
  put(0xb, 2 | 0x80);
  for (uint8_t i = 0; i < 10; i++)
    if (i != 1 && i != 3 && i != 5)
      put(i, now[i]);
  put(0xb, 2);
  end();

  begin("rtc/periodic interrupt");
  irq_handler[PIC_BASE + 8] = handler;
  irq_count[PIC_BASE + 8] = 0;
  pic_init();
  put(0xa, (a & 0x70) | 6);   /* 1024 Hz */
  (void)get(0xc);
  put(0xb, 2 | 0x40);
  pic_mask(8, false);
  sti();
  expect_true("came three times", wait_for(&irq_count[PIC_BASE + 8], 3));
  cli();
  expect("register C in the handler", last_c & 0xc0, 0xc0);
  put(0xb, 2);
  (void)get(0xc);
  expect("register C after", get(0xc) & 0xf0, 0);
  sti();
  spin(10000);
  uint64_t n = irq_count[PIC_BASE + 8];
  spin(5000000);
  cli();
  expect("off", irq_count[PIC_BASE + 8], n);
  pic_init();
  irq_handler[PIC_BASE + 8] = NULL;
  end();

  begin("rtc/update ends a second");
  (void)get(0xc);
  uint8_t c = 0;
  /* with interrupts off: register C shows the flag; hlt between, on the PIT, so that it costs no work */
  pic_mask(0, false);
  irq_handler[PIC_BASE] = irq_none;
  pit_start(0, 2, 60000);
  for (int i = 0; i < 60 && !(c & 0x10); i++) {
    sti_hlt_cli();
    pic_eoi(0);
    c = get(0xc);
  }
  expect("UF", c & 0x10, 0x10);
  bool progress = false;
  uint8_t second = get(0);
  for (int i = 0; i < 60 && !progress; i++) {
    sti_hlt_cli();
    pic_eoi(0);
    progress = get(0) != second && !(get(0xa) & 0x80);
  }
  expect_true("seconds advance", progress);
  pit_start(0, 0, 1);
  spin(10000);
  pic_init();   /* forgets what is pending */
  pit_stop();
  irq_handler[PIC_BASE] = NULL;
  put(0xa, a & 0x7f);
  put(0xb, b);
  (void)get(0xc);
  outb(0x70, 0);
  end();
}
