/* The HPET (IA-PC HPET 1.0a): main counter, comparators one-shot and periodic, by the I/O APIC. */
#include "selftest.h"

#define VECTOR 0x66
#define CONFIG 0x10
#define STATUS_REG 0x20
#define COUNTER 0xf0
#define TIMER(n) (0x100 + 0x20 * (n))
#define COMPARATOR(n) (0x108 + 0x20 * (n))
#define LEVEL (1UL << 1)
#define ENABLE (1UL << 2)
#define PERIODIC (1UL << 3)
#define SET (1UL << 6)

static uint64_t get(uint64_t reg) { return *at64(hpet_base() + reg); }
static void put(uint64_t reg, uint64_t v) { *at64(hpet_base() + reg) = v; }

static void handler(struct frame *f) {
  (void)f;
  if (get(STATUS_REG))
    put(STATUS_REG, get(STATUS_REG));
  lapic_eoi();
}

static unsigned pin_of(unsigned timer) {
  uint32_t pins = (uint32_t)(get(TIMER(timer)) >> 32);
  unsigned pin = 23;
  while (pin && !(pins >> pin & 1))
    pin--;
  return pin;
}

void test_hpet(void) {
  volatile uint64_t *n = &irq_count[VECTOR];
  begin("hpet/capabilities");
  expect_true("table", hpet_base() != 0);
  if (!hpet_base()) {
    end();
    return;
  }
  uint64_t capabilities = get(0), period = capabilities >> 32;
  expect("vendor", capabilities >> 16 & 0xffff, 0x8086);
  expect_range("timers", (capabilities >> 8 & 31) + 1, 3, 32);
  expect("64 bits", capabilities >> 13 & 1, 1);
  expect_range("period in femtoseconds", period, 1, 100000000);
  expect("same as 32-bit reads", *at32(hpet_base()) | (uint64_t)*at32(hpet_base() + 4) << 32, capabilities);
  end();

  begin("hpet/main counter");
  put(CONFIG, 0);
  put(COUNTER, 0x123456789a);
  expect("stopped", get(COUNTER), 0x123456789a);
  spin(10000);
  expect("still stopped", get(COUNTER), 0x123456789a);
  put(COUNTER, 0);
  put(CONFIG, 1);
  uint64_t a = get(COUNTER);
  spin(1000000);
  uint64_t b = get(COUNTER);
  expect_true("runs", b > a);
  put(CONFIG, 0);
  a = get(COUNTER);
  spin(10000);
  expect("stopped again", get(COUNTER), a);
  end();

  begin("hpet/rate against the PM timer");
  uint64_t ratio = 0;
  for (int tries = 0; tries < 10 && (ratio < 95 || ratio > 105); tries++) {
    put(CONFIG, 1);
    a = get(COUNTER);
    uint32_t t = inl(pm_timer_port());
    spin(10000000);
    b = get(COUNTER);
    uint32_t u = inl(pm_timer_port());
    uint64_t ns = (b - a) * period / 1000000, ticks = u - t & 0xffffff;
    if (ns)
      ratio = ticks * 27936 / ns;   /* one tick is 279.36 ns */
    put(CONFIG, 0);
  }
  expect_range("hundredths", ratio, 95, 105);
  end();

  irq_handler[VECTOR] = handler;
  for (unsigned level = 0; level < 2; level++) {
    begin(level ? "hpet/one-shot, level" : "hpet/one-shot, edge");
    *n = 0;
    unsigned pin = pin_of(0);
    io_apic_write_entry(pin, level << 15 | VECTOR);
    put(COUNTER, 0);
    put(STATUS_REG, ~0UL);
    put(TIMER(0), (uint64_t)pin << 9 | (level ? LEVEL : 0) | ENABLE);
    put(COMPARATOR(0), 100000000000 / period + 100);   /* about 100 microseconds */
    put(CONFIG, 1);
    sti();
    expect_true("came", wait_for(n, 1));
    spin(1000000);
    cli();
    expect("number", *n, 1);
    expect_true("counter is past it", get(COUNTER) >= 100000000000 / period);
    put(CONFIG, 0);
    put(TIMER(0), 0);
    io_apic_write_entry(pin, 1 << 16);
    end();
  }

  begin("hpet/level status");
  unsigned pin = pin_of(1);
  put(TIMER(1), (uint64_t)pin << 9 | LEVEL | ENABLE);
  put(COUNTER, 0);
  put(COMPARATOR(1), 100);
  put(CONFIG, 1);
  bool set = false;
  for (int i = 0; i < 1000000 && !set; i++)
    set = get(STATUS_REG) >> 1 & 1;
  expect_true("set", set);
  expect("not the others", get(STATUS_REG) & ~2UL, 0);
  put(STATUS_REG, 2);
  expect("cleared by writing one", get(STATUS_REG) & 2, 0);
  put(CONFIG, 0);
  put(TIMER(1), 0);
  end();

  begin("hpet/periodic as it says");
  if (get(TIMER(0)) >> 4 & 1) {
    *n = 0;
    pin = pin_of(0);
    io_apic_write_entry(pin, VECTOR);
    put(COUNTER, 0);
    uint64_t ms = 1000000000000 / period;
    put(TIMER(0), (uint64_t)pin << 9 | ENABLE | PERIODIC | SET);
    put(COMPARATOR(0), ms);
    put(COMPARATOR(0), ms);
    put(CONFIG, 1);
    sti();
    expect_true("came four times", wait_for(n, 4));
    cli();
    expect_true("not too early", get(COUNTER) >= 4 * ms - 1);
    put(CONFIG, 0);
    put(TIMER(0), 0);
    io_apic_write_entry(pin, 1 << 16);
    drain();
  }
  end();

  begin("hpet/legacy replacement");
  if (get(0) >> 15 & 1) {
    /* timer 0 takes the place of the PIT, on the pin of IRQ 0 */
    *n = 0;
    io_apic_write_entry(gsi_of_irq0(), VECTOR);
    put(COUNTER, 0);
    put(TIMER(0), ENABLE);
    put(COMPARATOR(0), 50000000000 / period + 100);
    put(CONFIG, 3);
    sti();
    expect_true("came", wait_for(n, 1));
    cli();
    put(CONFIG, 0);
    put(TIMER(0), 0);
    io_apic_write_entry(gsi_of_irq0(), 1 << 16);
  }
  end();
  drain();
  irq_handler[VECTOR] = NULL;
}
