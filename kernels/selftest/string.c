/* String instructions: both directions, overlapping, all sizes, and restarted after a page fault in the middle
 * with exact rcx, rsi and rdi. */
#include "selftest.h"

static uint8_t a[256], b[256];

static void fill(uint8_t *p, size_t n, uint8_t seed) {
  for (size_t i = 0; i < n; i++)
    p[i] = (uint8_t)(seed + i * 7);
}

static uint64_t sum(const volatile uint8_t *p, size_t n) {
  uint64_t s = 0;
  for (size_t i = 0; i < n; i++)
    s = s * 31 + p[i];
  return s;
}

struct regs { uint64_t rax, rcx, rsi, rdi, flags; };
#define STRING(r, text)                                                                                         \
  __asm__ volatile(text "; pushfq; popq %4"                                                                     \
                   : "+a"((r).rax), "+c"((r).rcx), "+S"((r).rsi), "+D"((r).rdi), "=r"((r).flags) : : "memory", "cc")

static void test_plain(void) {
  struct regs r;
  begin("string/movs");
  fill(a, 256, 1);
  memset(b, 0, 256);
  r = (struct regs){.rcx = 100, .rsi = (uint64_t)a, .rdi = (uint64_t)b + 3};
  STRING(r, "rep movsb");
  expect("bytes", sum(b + 3, 100), sum(a, 100));
  expect("rcx", r.rcx, 0);
  expect("rsi", r.rsi, (uint64_t)a + 100);
  expect("rdi", r.rdi, (uint64_t)b + 103);
  expect("nothing behind", b[103], 0);
  r = (struct regs){.rcx = 5, .rsi = (uint64_t)a, .rdi = (uint64_t)b};
  STRING(r, "rep movsq");
  expect("quads", sum(b, 40), sum(a, 40));
  r = (struct regs){.rcx = 0, .rsi = 1UL << 63, .rdi = 1UL << 63};
  STRING(r, "rep movsl");
  expect("none", r.rdi, 1UL << 63);
  r = (struct regs){.rcx = 7, .rsi = (uint64_t)a, .rdi = (uint64_t)b};
  STRING(r, "movsw");
  expect("one word: rsi", r.rsi, (uint64_t)a + 2);
  expect("one word: rcx", r.rcx, 7);
  r = (struct regs){.rcx = 0x500000003, .rsi = (uint64_t)a, .rdi = (uint64_t)b};
  STRING(r, "addr32 rep movsb");
  expect("32-bit count", r.rcx, 0);
  expect("32-bit rdi", r.rdi, (uint64_t)b + 3);
  end();

  begin("string/backwards and overlapping");
  fill(a, 64, 9);
  uint64_t want = sum(a, 60);
  r = (struct regs){.rcx = 60, .rsi = (uint64_t)a + 59, .rdi = (uint64_t)a + 63};
  STRING(r, "std; rep movsb; cld");
  expect("moved up by four", sum(a + 4, 60), want);
  expect("rsi", r.rsi, (uint64_t)a - 1);
  fill(a, 64, 9);
  for (int i = 0; i < 60; i++)
    b[i] = a[i & 3];
  r = (struct regs){.rcx = 60, .rsi = (uint64_t)a, .rdi = (uint64_t)a + 4};
  STRING(r, "rep movsb");
  expect("forwards repeats the pattern", sum(a + 4, 60), sum(b, 60));
  r = (struct regs){.rax = 0x1122334455667788, .rcx = 4, .rdi = (uint64_t)b + 24};
  STRING(r, "std; rep stosq; cld");
  expect("stosq", *at64((uint64_t)b), 0x1122334455667788);
  expect("rdi", r.rdi, (uint64_t)b - 8);
  end();

  begin("string/stos and lods");
  memset(b, 0, 256);
  r = (struct regs){.rax = 0xaabbccdd, .rcx = 3, .rdi = (uint64_t)b};
  STRING(r, "rep stosl");
  expect("stosl", *at64((uint64_t)b + 4), 0xaabbccddaabbccdd);
  expect("end", *at32((uint64_t)b + 12), 0);
  fill(a, 256, 3);
  r = (struct regs){.rax = ~0UL, .rcx = 10, .rsi = (uint64_t)a};
  STRING(r, "rep lodsb");
  expect("last byte in al", r.rax, 0xffffffffffffff00 | a[9]);
  expect("rsi", r.rsi, (uint64_t)a + 10);
  r = (struct regs){.rax = ~0UL, .rcx = 10, .rsi = (uint64_t)a};
  STRING(r, "lodsl");
  expect("lodsl clears the upper half", r.rax, *at32((uint64_t)a));
  end();

  begin("string/cmps and scas");
  fill(a, 256, 5);
  memcpy(b, a, 256);
  b[50]++;
  r = (struct regs){.rcx = 100, .rsi = (uint64_t)a, .rdi = (uint64_t)b};
  STRING(r, "repe cmpsb");
  expect("stops behind the difference", r.rcx, 49);
  expect("flags", r.flags & (ZF | CF), a[50] < b[50] ? CF : 0);
  r = (struct regs){.rcx = 40, .rsi = (uint64_t)a, .rdi = (uint64_t)b};
  STRING(r, "repe cmpsb");
  expect("equal", r.flags & ZF, ZF);
  expect("all compared", r.rcx, 0);
  r = (struct regs){.rax = a[33], .rcx = 100, .rdi = (uint64_t)a};
  STRING(r, "repne scasb");
  expect("found", r.rdi, (uint64_t)a + 34);
  r = (struct regs){.rcx = 0, .rsi = (uint64_t)a, .rdi = (uint64_t)b};
  STRING(r, "cmpl %%eax, %%eax; repne cmpsb");
  expect("no rounds keep flags", r.flags & ZF, ZF);
  r = (struct regs){.rax = 0, .rcx = 32, .rdi = (uint64_t)a + 248};
  STRING(r, "std; repne scasq; cld");
  expect("not found", r.rcx, 0);
  expect("backwards", r.rdi, (uint64_t)a - 8);
  end();
}

/* Maps the missing page and lets the instruction go on; notes where it was. */
static struct frame at_fault[4];
static unsigned faults;
static bool supply(struct frame *f, uint64_t cr2) {
  if (f->vector != PF || cr2 < TEST_VA || cr2 >= TEST_VA + 16 * PAGE)
    return false;
  if (faults < 4)
    at_fault[faults] = *f;
  faults++;
  map(cr2 & ~(PAGE - 1), SCRATCH + (cr2 - TEST_VA) / PAGE * PAGE, P | W);
  return true;
}

static void missing(unsigned first, unsigned n) {
  for (unsigned i = 0; i < 8; i++)
    map(TEST_VA + i * PAGE, SCRATCH + i * PAGE, i >= first && i < first + n ? 0 : P | W);
  faults = 0;
}

static void test_restart(void) {
  struct regs r;
  uint64_t va = TEST_VA, pa = SCRATCH;
  trap_hook = supply;
  fill((uint8_t *)pa, 2 * PAGE, 77);

  begin("string/movs restarted at the destination");
  missing(4, 2);
  memset((void *)(pa + 4 * PAGE), 0, 2 * PAGE);
  r = (struct regs){.rcx = 5000, .rsi = va, .rdi = va + 4 * PAGE - 10};
  STRING(r, "rep movsb");
  expect("faults", faults, 2);
  expect("rcx at the first", at_fault[0].rcx, 4990);
  expect("rsi at the first", at_fault[0].rsi, va + 10);
  expect("rdi at the first", at_fault[0].rdi, va + 4 * PAGE);
  expect("error", at_fault[0].error, 2);
  expect("rcx at the second", at_fault[1].rcx, 4990 - 4096);
  expect("same instruction", at_fault[0].rip, at_fault[1].rip);
  expect("rcx", r.rcx, 0);
  expect("data", sum((uint8_t *)pa + 4 * PAGE, 4990), sum((uint8_t *)pa + 10, 4990));
  end();

  begin("string/movs restarted at the source");
  missing(1, 1);
  r = (struct regs){.rcx = 600, .rsi = va + PAGE - 16, .rdi = va + 4 * PAGE};
  STRING(r, "rep movsq");
  expect("faults", faults, 1);
  expect("rcx", at_fault[0].rcx, 598);
  expect("rsi", at_fault[0].rsi, va + PAGE);
  expect("error", at_fault[0].error, 0);
  expect("data", sum((uint8_t *)pa + 4 * PAGE, 4800), sum((uint8_t *)pa + PAGE - 16, 4800));
  end();

  begin("string/element across the missing page");
  missing(1, 1);
  r = (struct regs){.rax = 0x0102030405060708, .rcx = 4, .rdi = va + PAGE - 12};
  STRING(r, "rep stosq");
  expect("faults", faults, 1);
  expect("rcx", at_fault[0].rcx, 3);
  expect("rdi", at_fault[0].rdi, va + PAGE - 4);
  expect("data", *at64(pa + PAGE - 4), 0x0102030405060708);
  expect("data", *at64(pa + PAGE + 12), 0x0102030405060708);
  end();

  begin("string/stos backwards restarted");
  missing(1, 1);
  r = (struct regs){.rax = 0x5a, .rcx = 100, .rdi = va + 2 * PAGE + 9};
  STRING(r, "std; rep stosb; cld");
  expect("faults", faults, 1);
  expect("rcx", at_fault[0].rcx, 90);
  expect("rdi", at_fault[0].rdi, va + 2 * PAGE - 1);
  expect("DF kept for the handler's return", at_fault[0].rflags & DF_FLAG, DF_FLAG);
  expect("end", r.rdi, va + 2 * PAGE - 91);
  end();

  begin("string/cmps restarted");
  fill((uint8_t *)pa, 2 * PAGE, 77);
  memcpy((void *)(pa + 4 * PAGE), (void *)pa, 2 * PAGE);
  *at8(pa + 5 * PAGE + 20) ^= 1;
  missing(5, 1);
  r = (struct regs){.rcx = 2 * PAGE, .rsi = va, .rdi = va + 4 * PAGE};
  STRING(r, "repe cmpsb");
  expect("faults", faults, 1);
  expect("rcx at the fault", at_fault[0].rcx, PAGE);
  expect("rcx", r.rcx, PAGE - 21);
  expect("ZF", r.flags & ZF, 0);
  end();

  begin("string/lods and scas restarted");
  missing(1, 1);
  r = (struct regs){.rcx = PAGE + 5, .rsi = va};
  STRING(r, "rep lodsb");
  expect("rcx at the fault", at_fault[0].rcx, 5);
  expect("al", r.rax, *at8(pa + PAGE + 4));
  missing(1, 1);
  memset((void *)pa, 0, 2 * PAGE);
  *at8(pa + PAGE + 99) = 1;
  r = (struct regs){.rcx = 2 * PAGE, .rdi = va};
  STRING(r, "repe scasb");
  expect("rcx at the fault", at_fault[0].rcx, PAGE);
  expect("rcx", r.rcx, PAGE - 100);
  end();

  begin("string/ins and outs");
  /* the scratch register of the UART gives back what was written */
  missing(1, 1);
  outb(0x3ff, 0xa5);
  uint64_t rdi = va + PAGE - 3, rcx = 6, rsi;
  __asm__ volatile("rep insb" : "+D"(rdi), "+c"(rcx) : "d"(0x3ff) : "memory");
  expect("ins: faults", faults, 1);
  expect("ins: rcx at the fault", at_fault[0].rcx, 3);
  expect("ins: rdi", rdi, va + PAGE + 3);
  expect("ins: data", *at32(pa + PAGE - 3), 0xa5a5a5a5);
  missing(1, 1);
  for (int i = 0; i < 6; i++)
    *at8(pa + PAGE - 3 + (uint64_t)i) = (uint8_t)(0x30 + i);
  rsi = va + PAGE - 3, rcx = 6;
  __asm__ volatile("rep outsb" : "+S"(rsi), "+c"(rcx) : "d"(0x3ff) : "memory");
  expect("outs: faults", faults, 1);
  expect("outs: rcx at the fault", at_fault[0].rcx, 3);
  expect("outs: last", inb(0x3ff), 0x35);
  end();
  trap_hook = NULL;
  unmap_tests();
}

/* An interrupt between two iterations leaves the registers of a prefix of the copy. */
static uint64_t total, moved_at, left_at;
static void look(struct frame *f) {
  if (f->rcx && f->rcx < total) {
    moved_at = f->rdi;
    left_at = f->rcx;
  }
  lapic_eoi();
}

static void test_interrupted(void) {
  begin("string/interrupted between iterations");
  irq_handler[0x62] = look;
  lapic_write(LAPIC_DIVIDE, 0xb);
  lapic_write(LAPIC_TIMER, 1u << 17 | 0x62);
  lapic_write(LAPIC_INITIAL, 50000);
  total = 4 << 20;
  uint64_t dst = SCRATCH + (16 << 20);
  moved_at = 0;
  for (int tries = 0; tries < 200 && !moved_at; tries++) {
    struct regs r = {.rcx = total, .rsi = SCRATCH, .rdi = dst};
    sti();
    STRING(r, "rep movsb");
    cli();
    expect("rcx", r.rcx, 0);
    expect("rdi", r.rdi, dst + total);
  }
  lapic_write(LAPIC_INITIAL, 0);
  lapic_write(LAPIC_TIMER, LVT_MASKED);
  sti();
  spin(3000);
  cli();
  expect_true("was interrupted", moved_at != 0);
  expect("rdi and rcx agree", moved_at + left_at, dst + total);
  irq_handler[0x62] = NULL;
  end();
}

void test_string(void) {
  test_plain();
  test_restart();
  test_interrupted();
}
