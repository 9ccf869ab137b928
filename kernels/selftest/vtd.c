/* Intel VT-d in legacy mode, with the educational device as the one that is translated: page sizes, what caches
 * keep, faults, queued invalidation, interrupt remapping. The group prints nothing where either is missing, and
 * looks only at what all machines have alike. */
#include "selftest.h"

enum {
  CAP = 0x08, ECAP = 0x10, GCMD = 0x18, GSTS = 0x1c, RTADDR = 0x20, CCMD = 0x28, FSTS = 0x34, IQH = 0x80,
  IQT = 0x88, IQA = 0x90, IRTA = 0xb8,
};
#define TE (1u << 31)
#define SRTP (1u << 30)
#define QIE (1u << 26)
#define IRE (1u << 25)
#define SIRTP (1u << 24)

#define ROOT (SCRATCH + 0x10000)
#define CONTEXTS (SCRATCH + 0x11000)
#define QUEUE (SCRATCH + 0x12000)
#define INTERRUPTS (SCRATCH + 0x13000)
#define DONE_WORD (SCRATCH + 0x14000)
#define TOP (SCRATCH + 0x15000)       /* 39 bits: 1 GiB an entry */
#define MIDDLE (SCRATCH + 0x16000)    /* 2 MiB an entry */
#define BOTTOM (SCRATCH + 0x17000)
#define TARGET_A (SCRATCH + 0x20000)
#define TARGET_B (SCRATCH + 0x21000)
#define LARGE (SCRATCH + 0x200000)
#define IOVA 0x5000UL
#define DOMAIN 7UL
#define REMAPPED_VECTOR 0x68
#define PIN_VECTOR 0x69

static uint64_t base;
static unsigned tail;

static volatile uint32_t *r32(unsigned at) { return at32(base + at); }
static volatile uint64_t *r64(unsigned at) { return at64(base + at); }

static bool command(uint32_t bit, bool on) {
  uint32_t now = *r32(GSTS) & 0x96ffffff;
  *r32(GCMD) = on ? now | bit : now & ~bit;
  for (unsigned i = 0; i < 1000000; i++)
    if (!(*r32(GSTS) & bit) == !on)
      return true;
  return false;
}

static void flush_pages(void) {
  unsigned at = (unsigned)(*r64(ECAP) >> 8 & 0x3ff) * 16 + 8;
  *r64(at) = 1UL << 63 | 1UL << 60;
  while (*r64(at) >> 63) {
  }
}

/* Pages too: they were found by way of the contexts. */
static void flush_contexts(void) {
  *r64(CCMD) = 1UL << 63 | 1UL << 61;
  while (*r64(CCMD) >> 63) {
  }
  flush_pages();
}

/* One descriptor; waits for the head to pass it. */
static bool submit(uint64_t low, uint64_t high) {
  *at64(QUEUE + tail) = low;
  *at64(QUEUE + tail + 8) = high;
  tail = (tail + 16) % PAGE;
  *r64(IQT) = tail;
  for (unsigned i = 0; i < 1000000; i++)
    if (*r64(IQH) == tail)
      return true;
  return false;
}

static uint64_t record(void) { return base + (*r64(CAP) >> 24 & 0x3ff) * 16; }

static void clear_faults(void) {
  unsigned records = (unsigned)(*r64(CAP) >> 40 & 0xff) + 1;
  for (unsigned i = 0; i < records; i++)
    *at32(record() + 16 * i + 12) = 1u << 31;
  *r32(FSTS) = 0x71;
}

/* The one fault since clear_faults() was this; its record, wherever it is. */
static void expect_fault(uint64_t iova, unsigned reason, bool read) {
  expect("pending", *r32(FSTS) & 3, 2);
  uint64_t at = record() + 16 * (*r32(FSTS) >> 8 & 0xff);
  expect("address", *at64(at), iova);
  /* The request had no PASID; what stands in its place means nothing. */
  uint64_t what = 1UL << 63 | (uint64_t)read << 62 | (uint64_t)reason << 32 | edu_source;
  expect("what", *at64(at + 8) & 0xc00000ffffffffff, what);
  clear_faults();
  expect("cleared", *r32(FSTS) & 3, 0);
}

static uint8_t *fill(uint64_t at, uint8_t value) {
  memset((void *)at, value, 64);
  return (uint8_t *)at;
}

/* What the device reads at this address: the first byte. */
static unsigned device_reads(uint64_t iova) {
  static uint8_t *const out = (uint8_t *)(SCRATCH + 0x30000);
  edu_transfer(iova, 0x40000, 16, 0);
  *at64(MIDDLE + 8 * 7) = (SCRATCH & ~0x1fffffUL) | 0x83;   /* 14 MiB on: the window for what comes out */
  out[0] = 0;
  edu_transfer(0x40000, (7UL << 21) + 0x30000, 16, 2);
  return out[0];
}

static void tables(void) {
  memset((void *)ROOT, 0, BOTTOM + PAGE - ROOT);
  *at64(ROOT) = CONTEXTS | 1;
  *at64(CONTEXTS + 16 * edu_source) = TOP | 1;
  *at64(CONTEXTS + 16 * edu_source + 8) = DOMAIN << 8 | 1;
  *at64(TOP) = MIDDLE | 3;
  *at64(MIDDLE) = BOTTOM | 3;
  *at64(MIDDLE + 8) = LARGE | 0x83;
  *at64(BOTTOM + 8 * 5) = TARGET_A | 3;
  *at64(BOTTOM + 8 * 6) = TARGET_B | 1;
  *at64(BOTTOM + 8 * 7) = TARGET_B | 2;
  fill(TARGET_A, 0xaa);
  fill(TARGET_B, 0xbb);
  fill(LARGE + 0x1000, 0xcc);
}

static void test_translation(void) {
  begin("vtd/capabilities");
  expect("version", *r32(0), 0x10);
  expect("39 bits", *r64(CAP) >> 9 & 1, 1);
  expect("large pages", *r64(CAP) >> 34 & 3, 3);
  expect("caching mode", *r64(CAP) >> 7 & 1, 0);
  expect("queue and interrupts", *r64(ECAP) >> 1 & 5, 5);
  expect("off", *r32(GSTS) & (TE | QIE | IRE), 0);
  end();

  begin("vtd/pages");
  tables();
  *r64(RTADDR) = ROOT;
  expect_true("root pointer", command(SRTP, true));
  flush_contexts();
  expect_true("translation", command(TE, true));
  clear_faults();
  expect("4 KiB", device_reads(IOVA), 0xaa);
  expect("2 MiB", device_reads(0x201000), 0xcc);
  *at64(BOTTOM + 8 * 9) = (TARGET_A + 0x1000) | 3;   /* TARGET_B, next to TARGET_A */
  *at64(BOTTOM + 8 * 8) = (LARGE + 0x1000) | 3;
  fill(LARGE + 0x1ff0, 0xdd);
  edu_transfer(0x8ff0, 0x40000, 32, 0);
  edu_transfer(0x40000, (7UL << 21) + 0x30000, 32, 2);
  expect("before the boundary", *at8(SCRATCH + 0x3000f), 0xdd);
  expect("after it", *at8(SCRATCH + 0x30010), 0xbb);
  expect("faults", *r32(FSTS) & 3, 0);
  end();
}

static void test_faults(void) {
  begin("vtd/faults");
  edu_transfer(0x100000, 0x40000, 16, 0);
  expect_fault(0x100000, 6, true);
  edu_transfer(0x40000, 0x101234, 16, 2);
  expect_fault(0x101000, 5, false);
  edu_transfer(0x40000, 0x6000, 16, 2);
  expect_fault(0x6000, 5, false);
  expect("target", *at8(TARGET_B), 0xbb);
  edu_transfer(0x7000, 0x40000, 16, 0);
  expect_fault(0x7000, 6, true);
  *at64(BOTTOM + 8 * 10) = TARGET_A | 3 | 1UL << 51;
  edu_transfer(0xa000, 0x40000, 16, 0);
  expect_fault(0xa000, 12, true);
  *at64(BOTTOM + 8 * 10) = 0;
  end();

  begin("vtd/faults of contexts");
  uint64_t high = *at64(CONTEXTS + 16 * edu_source + 8);
  *at64(CONTEXTS + 16 * edu_source) = TOP;
  flush_contexts();
  edu_transfer(IOVA, 0x40000, 16, 0);
  expect_fault(IOVA, 2, true);
  *at64(CONTEXTS + 16 * edu_source) = TOP | 1;
  *at64(CONTEXTS + 16 * edu_source + 8) = high | 1UL << 40;
  edu_transfer(IOVA, 0x40000, 16, 0);
  expect_fault(IOVA, 11, true);
  *at64(CONTEXTS + 16 * edu_source + 8) = high;
  *at64(ROOT) = CONTEXTS;
  edu_transfer(0x40000, IOVA, 16, 2);
  expect_fault(IOVA, 1, false);
  *at64(ROOT) = CONTEXTS | 1;
  expect("mended", device_reads(IOVA), 0xaa);
  end();
}

static void test_caches(void) {
  begin("vtd/what was not invalidated");
  expect("at first", device_reads(IOVA), 0xaa);
  *at64(BOTTOM + 8 * 5) = TARGET_B | 3;
  expect("stale", device_reads(IOVA), 0xaa);
  flush_pages();
  expect("flushed", device_reads(IOVA), 0xbb);
  *at64(BOTTOM + 8 * 5) = TARGET_A | 3;
  *at64(CONTEXTS + 16 * edu_source) = TOP;
  expect("a stale context too", device_reads(IOVA), 0xbb);
  flush_contexts();
  edu_transfer(IOVA, 0x40000, 16, 0);
  expect_fault(IOVA, 2, true);
  *at64(CONTEXTS + 16 * edu_source) = TOP | 1;
  end();

  begin("vtd/pass-through");
  expect("offered", *r64(ECAP) >> 6 & 1, 1);
  *at64(CONTEXTS + 16 * edu_source) = 2 << 2 | 1;
  uint64_t high = *at64(CONTEXTS + 16 * edu_source + 8);
  *at64(CONTEXTS + 16 * edu_source + 8) = DOMAIN << 8 | 31 - __builtin_clz((uint32_t)*r64(CAP) >> 8 & 31);
  flush_contexts();
  edu_transfer(TARGET_A, 0x40000, 16, 0);
  fill(TARGET_B, 0);
  edu_transfer(0x40000, TARGET_B, 16, 2);
  expect("as it is", *at8(TARGET_B), 0xaa);
  fill(TARGET_B, 0xbb);
  *at64(CONTEXTS + 16 * edu_source) = TOP | 1;
  *at64(CONTEXTS + 16 * edu_source + 8) = high;
  flush_contexts();
  end();
}

static void test_queue(void) {
  begin("vtd/queue");
  tail = 0;
  *r64(IQT) = 0;
  *r64(IQA) = QUEUE;
  expect_true("on", command(QIE, true));
  *at32(DONE_WORD) = 0;
  expect_true("wait", submit(5 | 0x20 | 0x1234UL << 32, DONE_WORD));
  expect("status", *at32(DONE_WORD), 0x1234);
  expect("at first", device_reads(IOVA), 0xaa);
  *at64(BOTTOM + 8 * 5) = TARGET_B | 3;
  expect_true("another domain", submit(2 | 2 << 4 | (DOMAIN + 1) << 16, 0));
  expect_true("another page", submit(2 | 3 << 4 | DOMAIN << 16, 0x6000));
  expect("stale", device_reads(IOVA), 0xaa);
  expect_true("the page", submit(2 | 3 << 4 | DOMAIN << 16, IOVA));
  expect("flushed", device_reads(IOVA), 0xbb);
  *at64(BOTTOM + 8 * 5) = TARGET_A | 3;
  expect_true("four pages", submit(2 | 3 << 4 | DOMAIN << 16, 0x4000 | 2));
  expect("flushed", device_reads(IOVA), 0xaa);
  *at64(BOTTOM + 8 * 5) = TARGET_B | 3;
  expect_true("the domain", submit(2 | 2 << 4 | DOMAIN << 16, 0));
  expect("flushed", device_reads(IOVA), 0xbb);
  *at64(BOTTOM + 8 * 5) = TARGET_A | 3;
  expect_true("all", submit(2 | 1 << 4, 0));
  expect("flushed", device_reads(IOVA), 0xaa);
  *at64(CONTEXTS + 16 * edu_source) = TOP;
  expect_true("context", submit(1 | 3 << 4 | DOMAIN << 16 | (uint64_t)edu_source << 32, 0));
  expect_true("pages", submit(2 | 1 << 4, 0));
  edu_transfer(IOVA, 0x40000, 16, 0);
  expect_fault(IOVA, 2, true);
  *at64(CONTEXTS + 16 * edu_source) = TOP | 1;
  expect("mended", device_reads(IOVA), 0xaa);
  end();
}

static void handler(struct frame *f) {
  edu_acknowledge(0xffffffff);
  if (f->vector == PIN_VECTOR)   /* the vector in the I/O APIC's entry is not that of the processor */
    *at32(io_apic_base() + 0x40) = 0x3f;
  lapic_eoi();
}

static void entry(unsigned index, uint64_t low, uint64_t high) {
  *at64(INTERRUPTS + 16 * index) = low;
  *at64(INTERRUPTS + 16 * index + 8) = high;
}

static void test_interrupts(void) {
  begin("vtd/interrupts");
  volatile uint64_t *n = &irq_count[REMAPPED_VECTOR];
  irq_handler[REMAPPED_VECTOR] = irq_handler[PIN_VECTOR] = handler;
  *n = irq_count[PIN_VECTOR] = 0;
  entry(3, REMAPPED_VECTOR << 16 | 1, 1UL << 18 | edu_source);
  entry(4, PIN_VECTOR << 16 | 1 << 4 | 1, 0);
  *r64(IRTA) = INTERRUPTS | 7;
  expect_true("table", command(SIRTP, true));
  expect_true("entries", submit(4, 0));
  expect_true("on", command(IRE, true));
  edu_msi(0xfee00000 | 3 << 5 | 1 << 4, 0);
  sti();
  edu_raise(1);
  expect_true("message", wait_for(n, 1));
  edu_msi(0xfee00000 | 1 << 5 | 1 << 4 | 1 << 3, 2);
  edu_raise(1);
  expect_true("with a subhandle", wait_for(n, 2));
  entry(3, REMAPPED_VECTOR << 16 | 1, 1UL << 18 | (edu_source ^ 8));
  expect_true("entry", submit(4 | 1 << 4 | 3UL << 32, 0));
  edu_raise(1);
  drain();
  sti();
  expect("another device's", *n, 2);
  entry(3, REMAPPED_VECTOR << 16, 1UL << 18 | edu_source);
  expect_true("entry", submit(4 | 1 << 4 | 3UL << 32, 0));
  edu_raise(1);
  drain();
  sti();
  expect("not present", *n, 2);
  edu_acknowledge(0xffffffff);
  edu_msi(0, 0);
  clear_faults();

  io_apic_write_entry(edu_pin(), 4UL << 49 | 1UL << 48 | 1 << 15 | 0x3f);
  edu_raise(1);
  expect_true("pin", wait_for(&irq_count[PIN_VECTOR], 1));
  edu_raise(1);
  expect_true("pin again", wait_for(&irq_count[PIN_VECTOR], 2));
  drain();
  sti();
  expect("no more", irq_count[PIN_VECTOR], 2);
  cli();
  io_apic_write_entry(edu_pin(), 1 << 16);
  end();

  begin("vtd/off");
  expect_true("interrupts", command(IRE, false));
  expect_true("the last", submit(5 | 0x20, DONE_WORD));
  expect_true("queue", command(QIE, false));
  expect("head", *r64(IQH), 0);
  expect_true("translation", command(TE, false));
  edu_transfer(TARGET_B, 0x40000, 16, 0);
  edu_transfer(0x40000, TARGET_A, 16, 2);
  expect("as it is", *at8(TARGET_A), 0xbb);
  irq_handler[REMAPPED_VECTOR] = irq_handler[PIN_VECTOR] = NULL;
  end();
}

void test_vtd(void) {
  const uint8_t *t = acpi_table("DMAR");
  if (!t || !edu_init())
    return;
  memcpy(&base, t + 48 + 8, 8);   /* of the first remapping unit */
  pic_init();
  test_translation();
  test_faults();
  test_caches();
  test_queue();
  test_interrupts();
}
