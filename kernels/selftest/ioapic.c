/* The I/O APIC (Intel 82093AA): redirection entries, edges from the PIT, levels held by the UART. */
#include "selftest.h"

#define IRQ4_VECTOR 0x64
#define TIMER_VECTOR 0x65
#define MASKED (1UL << 16)
#define LEVEL (1UL << 15)
#define REMOTE_IRR (1UL << 14)
#define UART_PIN 4

static uint32_t reg_read(unsigned reg) {
  *at32(io_apic_base()) = reg;
  return *at32(io_apic_base() + 0x10);
}

static void reg_write(unsigned reg, uint32_t v) {
  *at32(io_apic_base()) = reg;
  *at32(io_apic_base() + 0x10) = v;
}

uint64_t io_apic_read_entry(unsigned pin) {
  uint64_t low = reg_read(0x10 + 2 * pin);
  return low | (uint64_t)reg_read(0x11 + 2 * pin) << 32;
}

void io_apic_write_entry(unsigned pin, uint64_t entry) {
  reg_write(0x10 + 2 * pin, MASKED);
  reg_write(0x11 + 2 * pin, (uint32_t)(entry >> 32));
  reg_write(0x10 + 2 * pin, (uint32_t)entry);
}

static void mask_all(void) {
  for (unsigned pin = 0; pin < 24; pin++)
    io_apic_write_entry(pin, MASKED);
}

static void eoi(struct frame *f) {
  (void)f;
  lapic_eoi();
}

static void drop_and_eoi(struct frame *f) {
  (void)f;
  outb(0x3f9, 0);
  lapic_eoi();
}

static void twice(struct frame *f) {
  if (irq_count[f->vector] >= 3)
    outb(0x3f9, 0);
  lapic_eoi();
}

/* The transmitter is empty: enabling its interrupt raises the line, until IIR is read or the enable cleared. */
static void raise_line(void) { outb(0x3f9, 2); }
static void drop_line(void) { outb(0x3f9, 0), inb(0x3fa); }
static void sent(void) {
  while ((inb(0x3fd) & 0x60) != 0x60) {
  }
}

void test_ioapic(void) {
  volatile uint64_t *n = &irq_count[IRQ4_VECTOR];
  pic_init();
  begin("ioapic/registers");
  expect("entries", reg_read(1) >> 16 & 0xff, 23);
  expect_range("version", reg_read(1) & 0xff, 0x11, 0x20);
  reg_write(0, 0x0f000000);
  expect("id", reg_read(0) & 0x0f000000, 0x0f000000);
  reg_write(0, 0);
  for (unsigned pin = 0; pin < 24; pin++)
    io_apic_write_entry(pin, (uint64_t)pin << 56 | MASKED | LEVEL | 1 << 13 | 1 << 11 | (0x40 + pin));
  for (unsigned pin = 0; pin < 24; pin++)
    expect("entry", io_apic_read_entry(pin) & ~(REMOTE_IRR | 1 << 12),
           (uint64_t)pin << 56 | MASKED | LEVEL | 1 << 13 | 1 << 11 | (0x40 + pin));
  mask_all();
  for (unsigned pin = 0; pin < 24; pin++)
    expect("masked", io_apic_read_entry(pin) & ~(REMOTE_IRR | 1 << 12), MASKED);
  end();

  begin("ioapic/timer by its pin");
  irq_handler[TIMER_VECTOR] = eoi;
  irq_count[TIMER_VECTOR] = 0;
  io_apic_write_entry(gsi_of_irq0(), TIMER_VECTOR);
  pit_start(0, 2, 1193);
  sti();
  expect_true("came three times", wait_for(&irq_count[TIMER_VECTOR], 3));
  cli();
  io_apic_write_entry(gsi_of_irq0(), MASKED);
  drain();
  irq_count[TIMER_VECTOR] = 0;
  sti();
  spin(5000000);
  cli();
  expect("masked", irq_count[TIMER_VECTOR], 0);
  pit_start(0, 0, 1);
  spin(100000);
  pit_stop();
  end();

  sent();
  begin("ioapic/edge");
  irq_handler[IRQ4_VECTOR] = eoi;
  *n = 0;
  drop_line();
  io_apic_write_entry(UART_PIN, IRQ4_VECTOR);
  raise_line();
  drain();
  uint64_t first = *n;
  drain();
  uint64_t held = *n;
  drop_line();
  raise_line();
  drain();
  uint64_t again = *n;
  drop_line();
  io_apic_write_entry(UART_PIN, MASKED);
  expect("taken", first, 1);
  expect("a held line is one edge", held, 1);
  expect("another edge", again, 2);
  end();

  sent();
  begin("ioapic/level");
  irq_handler[IRQ4_VECTOR] = drop_and_eoi;
  *n = 0;
  drop_line();
  io_apic_write_entry(UART_PIN, LEVEL | IRQ4_VECTOR);
  raise_line();
  uint64_t pending = io_apic_read_entry(UART_PIN) & REMOTE_IRR;
  drain();
  first = *n;
  uint64_t cleared = io_apic_read_entry(UART_PIN) & REMOTE_IRR;
  irq_handler[IRQ4_VECTOR] = twice;   /* drops the line in the second call from here */
  *n = 1;
  raise_line();
  drain();
  again = *n;
  drop_line();
  expect("remote IRR while pending", pending, REMOTE_IRR);
  expect("taken", first, 1);
  expect("remote IRR after EOI", cleared, 0);
  expect("a held line comes again after EOI", again, 3);
  end();

  sent();
  begin("ioapic/mask of a level");
  irq_handler[IRQ4_VECTOR] = drop_and_eoi;
  *n = 0;
  io_apic_write_entry(UART_PIN, MASKED | LEVEL | IRQ4_VECTOR);
  raise_line();
  drain();
  uint64_t masked = *n;
  io_apic_write_entry(UART_PIN, LEVEL | IRQ4_VECTOR);
  drain();
  first = *n;
  drop_line();
  mask_all();
  expect("masked", masked, 0);
  expect("taken when unmasked", first, 1);
  end();

  sent();
  begin("ioapic/logical destination and priority");
  irq_handler[IRQ4_VECTOR] = drop_and_eoi;
  *n = 0;
  io_apic_write_entry(UART_PIN, 1UL << 56 | 1 << 11 | IRQ4_VECTOR);
  raise_line();
  drain();
  first = *n;
  drop_line();
  io_apic_write_entry(UART_PIN, 2UL << 56 | 1 << 11 | IRQ4_VECTOR);
  raise_line();
  drain();
  again = *n;
  drop_line();
  lapic_write(LAPIC_TPR, 0x70);
  io_apic_write_entry(UART_PIN, IRQ4_VECTOR);
  raise_line();
  drain();
  held = *n;
  lapic_write(LAPIC_TPR, 0);
  drain();
  uint64_t last = *n;
  drop_line();
  mask_all();
  expect("to this processor", first, 1);
  expect("to nobody", again, 1);
  expect("held back by TPR", held, 1);
  expect("taken when lowered", last, 2);
  end();
  drain();
  irq_handler[IRQ4_VECTOR] = irq_handler[TIMER_VECTOR] = NULL;
}
