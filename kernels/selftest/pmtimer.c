/* The ACPI PM timer, 3.579545 MHz, against the PIT (1.193182 MHz: a third of it) and against the TSC. */
#include "selftest.h"

static uint32_t mask;
static uint32_t now(void) { return inl(pm_timer_port()) & mask; }

void test_pmtimer(void) {
  mask = pm_timer_bits() == 32 ? 0xffffffff : 0xffffff;
  begin("pmtimer/counts up");
  expect_true("port", pm_timer_port() != 0);
  uint32_t a = now(), b = a;
  uint64_t back = 0, moved = 0;
  for (int i = 0; i < 2000; i++) {
    uint32_t c = now();
    back += (c - b & mask) > mask / 2;
    moved += c != b;
    b = c;
  }
  expect("went back", back, 0);
  expect_true("moved", moved > 0);
  end();

  begin("pmtimer/rate against the PIT");
  /* A host that is interrupted between two reads spoils a try, and so does one that lets the PIT wrap. */
  uint64_t ratio = 0;
  for (int tries = 0; tries < 200 && (ratio < 290 || ratio > 310); tries++) {
    outb(0x61, 1);
    pit_start(2, 0, 0xffff);
    unsigned p = pit_read(2);
    uint32_t t = now();
    spin(2000000);
    unsigned q = pit_read(2);
    uint32_t u = now();
    outb(0x61, 0);
    if (q < p && p - q > 100)
      ratio = (u - t & mask) * 100UL / (p - q);
  }
  expect_range("hundredths", ratio, 290, 310);
  end();

  begin("pmtimer/advances while the TSC does");
  uint64_t t = rdtsc();
  a = now();
  spin(10000000);
  expect_true("TSC", rdtsc() > t);
  expect_true("PM timer", (now() - a & mask) > 10);
  end();
}
