/* The educational device (QEMU docs/specs/edu): registers, DMA both ways, INTx through the I/O APIC, MSI. The
 * group prints nothing where there is no such device. */
#include "selftest.h"

#define ID 0x11e81234u
#define BAR 0xc0000000UL
#define PIN_VECTOR 0x66
#define MESSAGE_VECTOR 0x67
#define LEVEL (1UL << 15)
#define MASKED (1UL << 16)

static uint64_t config;   /* its configuration space in ECAM */
uint16_t edu_source;      /* its requester id */
static unsigned msi;      /* where its MSI capability is */

static volatile uint32_t *conf(unsigned reg) { return at32(config + reg); }
static volatile uint32_t *reg(unsigned at) { return at32(BAR + at); }

bool edu_init(void) {
  if (!ecam_base())
    return false;
  for (unsigned slot = 1; slot < 31; slot++) {
    config = ecam_base() + (slot << 15);
    if (*conf(0) != ID)
      continue;
    edu_source = (uint16_t)(slot << 3);
    *at16(config + 4) = 0;
    *conf(0x10) = (uint32_t)BAR;
    *at16(config + 4) = 6;   /* memory, bus master */
    for (msi = *at8(config + 0x34); msi && *at8(config + msi) != 5;)
      msi = *at8(config + msi + 1);
    *reg(0x64) = 0xffffffff;
    return true;
  }
  return false;
}

bool edu_transfer(uint64_t from, uint64_t to, uint32_t bytes, uint32_t command) {
  *at64(BAR + 0x80) = from;
  *at64(BAR + 0x88) = to;
  *at64(BAR + 0x90) = bytes;
  *reg(0x98) = command | 1;
  for (unsigned long i = 0; i < 1UL << 28; i++)
    if (!(*reg(0x98) & 1))
      return true;
  return false;
}

void edu_raise(uint32_t bits) { *reg(0x60) = bits; }
void edu_acknowledge(uint32_t bits) { *reg(0x64) = bits; }
unsigned edu_pin(void) { return 20 + ((unsigned)edu_source >> 3 & 3); }   /* INTA, as q35 routes it */

void edu_msi(uint32_t address, uint32_t data) {
  *conf(msi + 4) = address;
  *conf(msi + 8) = 0;
  *at16(config + msi + 12) = (uint16_t)data;
  *at16(config + msi + 2) = (uint16_t)((*at16(config + msi + 2) & ~1u) | (address != 0));
}

static uint32_t seen_bits;
static void acknowledge(struct frame *f) {
  (void)f;
  seen_bits |= *reg(0x24);
  *reg(0x64) = *reg(0x24);
  lapic_eoi();
}

static bool until_idle(void) {
  for (unsigned long i = 0; i < 1UL << 28; i++)
    if (!(*reg(0x20) & 1))
      return true;
  return false;
}

static void test_registers(void) {
  begin("edu/registers");
  expect("identity", *reg(0), 0x010000ed);
  *reg(4) = 0x12345678;
  expect("liveness", *reg(4), 0xedcba987);
  expect("class", *conf(8) >> 8, 0x00ff00);
  expect("pin", *at8(config + 0x3d), 1);
  *conf(0x10) = 0xffffffff;
  expect("BAR size", *conf(0x10), 0xfff00000);
  *conf(0x10) = (uint32_t)BAR;
  end();

  begin("edu/factorial");
  static const uint32_t cases[][2] = {{0, 1}, {1, 1}, {5, 120}, {12, 479001600}, {13, 1932053504}, {34, 0}};
  for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    *reg(8) = cases[i][0];
    expect_true("done", until_idle());
    expect("value", *reg(8), cases[i][1]);
  }
  expect("status", *reg(0x20), 0);
  end();
}

static void test_dma(void) {
  uint8_t *out = (uint8_t *)SCRATCH, *in = (uint8_t *)SCRATCH + 0x3000;
  for (unsigned i = 0; i < 0x2000; i++)
    out[i] = (uint8_t)(i * 7 + (i >> 8)), in[i] = 0;
  begin("edu/dma");
  expect_true("in", edu_transfer(SCRATCH + 0x123, 0x40000, 4095, 0));
  expect_true("out", edu_transfer(0x40010, SCRATCH + 0x3ff0, 1000, 2));
  expect("before", in[0xfef], 0);
  expect("bytes that differ", (uint64_t)memcmp(in + 0xff0, out + 0x133, 1000), 0);
  expect("after", in[0xff0 + 1000], 0);
  expect("interrupts", *reg(0x24), 0);
  end();

  begin("edu/no bus master");
  memset(in, 0, 0x2000);
  *at16(config + 4) = 2;
  expect_true("done", edu_transfer(0x40000, SCRATCH + 0x3000, 64, 2));
  *at16(config + 4) = 6;
  unsigned changed = 0;
  for (unsigned i = 0; i < 64; i++)
    changed += in[i] != 0;
  expect("bytes changed", changed, 0);
  end();
}

static void test_interrupts(void) {
  begin("edu/intx");
  volatile uint64_t *n = &irq_count[PIN_VECTOR];
  irq_handler[PIN_VECTOR] = irq_handler[MESSAGE_VECTOR] = acknowledge;
  *n = irq_count[MESSAGE_VECTOR] = 0;
  seen_bits = 0;
  io_apic_write_entry(edu_pin(), LEVEL | PIN_VECTOR);
  sti();
  edu_raise(0x30);
  expect_true("came", wait_for(n, 1));
  expect("bits", seen_bits, 0x30);
  expect("cleared", *reg(0x24), 0);
  *reg(0x20) = 0x80;
  *reg(8) = 3;
  expect_true("factorial", wait_for(n, 2));
  expect("its bit", seen_bits, 0x31);
  *reg(0x20) = 0;
  expect_true("transfer", edu_transfer(SCRATCH, 0x40000, 16, 4));
  expect_true("came", wait_for(n, 3));
  expect("its bit", seen_bits, 0x131);
  *at16(config + 4) = 0x406;   /* INTx disabled */
  edu_raise(1);
  drain();
  sti();
  expect("disabled", *n, 3);
  edu_acknowledge(1);
  *at16(config + 4) = 6;
  io_apic_write_entry(edu_pin(), MASKED);
  cli();
  end();

  begin("edu/msi");
  n = &irq_count[MESSAGE_VECTOR];
  expect_true("capability", msi != 0);
  edu_msi(0xfee00000, MESSAGE_VECTOR);
  seen_bits = 0;
  sti();
  edu_raise(0x4);
  expect_true("came", wait_for(n, 1));
  edu_raise(0x8);
  expect_true("came again", wait_for(n, 2));
  expect("bits", seen_bits, 0xc);
  *at16(config + 4) = 2;
  edu_raise(1);
  drain();
  sti();
  expect("no bus master", *n, 2);
  *at16(config + 4) = 6;
  edu_acknowledge(1);
  expect_true("transfer", edu_transfer(SCRATCH, 0x40000, 16, 4));
  expect_true("came", wait_for(n, 3));
  expect("its bit", seen_bits, 0x10c);
  cli();
  edu_msi(0, 0);
  expect("by pin", irq_count[PIN_VECTOR], 3);
  irq_handler[PIN_VECTOR] = irq_handler[MESSAGE_VECTOR] = NULL;
  end();
}

void test_edu(void) {
  if (!edu_init())
    return;
  pic_init();
  test_registers();
  test_dma();
  test_interrupts();
}
