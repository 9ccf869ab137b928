/* The local APIC (Intel SDM vol. 3 chapter 11; AMD APM vol. 2 chapter 16): registers, IPIs to itself,
 * priorities, the timer's three modes, x2APIC. */
#include "selftest.h"

#define BASE 0xfee00000UL
#define SELF 0x40000u
#define ASSERT_LEVEL 0x4000u
#define NMI_MODE 0x400u
#define PERIODIC (1u << 17)
#define TSC_DEADLINE (2u << 17)
#define LOW_VECTOR 0x52
#define HIGH_VECTOR 0x83
#define TIMER_VECTOR 0x71

uint32_t lapic_read(uint32_t reg) { return *at32(BASE + reg); }
void lapic_write(uint32_t reg, uint32_t value) { *at32(BASE + reg) = value; }
void lapic_eoi(void) { lapic_write(LAPIC_EOI, 0); }

void lapic_init(void) {
  wrmsr(MSR_APIC_BASE, BASE | 0x900);
  lapic_write(LAPIC_TIMER, LVT_MASKED);
  lapic_write(LAPIC_LINT0, 0x700);         /* ExtINT: the 8259 pair */
  lapic_write(LAPIC_LINT1, 0x400);         /* NMI */
  lapic_write(LAPIC_ERROR, LVT_MASKED);
  lapic_write(LAPIC_DFR, 0xffffffff);
  lapic_write(LAPIC_LDR, 1u << 24);
  lapic_write(LAPIC_TPR, 0);
  lapic_write(LAPIC_INITIAL, 0);
  lapic_write(LAPIC_SVR, 0x1ff);
}

static bool bit(uint32_t bank, unsigned vector) {
  return lapic_read(bank + 0x10 * (vector / 32)) >> (vector % 32) & 1;
}

static void self_ipi(unsigned vector) {
  lapic_write(LAPIC_ICR, SELF | ASSERT_LEVEL | vector);
  while (lapic_read(LAPIC_ICR) & 1 << 12) {
  }
}

static unsigned order[8], n_order;
static bool in_service[8];

static void handler(struct frame *f) {
  if (n_order < 8) {
    in_service[n_order] = bit(LAPIC_ISR, (unsigned)f->vector);
    order[n_order++] = (unsigned)f->vector;
  }
  lapic_eoi();
}

/* Leaves its EOI to the caller. */
static void no_eoi(struct frame *f) {
  if (n_order < 8)
    order[n_order++] = (unsigned)f->vector;
}

static void quiet(void) {
  n_order = 0;
  irq_handler[LOW_VECTOR] = irq_handler[HIGH_VECTOR] = irq_handler[TIMER_VECTOR] = handler;
  irq_count[LOW_VECTOR] = irq_count[HIGH_VECTOR] = irq_count[TIMER_VECTOR] = 0;
}

static void test_registers(void) {
  begin("lapic/registers");
  expect("id", lapic_read(LAPIC_ID) >> 24, 0);
  expect_range("version", lapic_read(LAPIC_VERSION) & 0xff, 0x10, 0x1f);
  expect_range("largest LVT entry", lapic_read(LAPIC_VERSION) >> 16 & 0xff, 3, 8);
  expect("spurious vector", lapic_read(LAPIC_SVR) & 0x1ff, 0x1ff);
  expect("LINT0", lapic_read(LAPIC_LINT0) & 0x1ffff & ~(1u << 14), 0x700);
  lapic_write(LAPIC_TIMER, LVT_MASKED | PERIODIC | 0xab);
  expect("timer LVT", lapic_read(LAPIC_TIMER) & ~(1u << 12), LVT_MASKED | PERIODIC | 0xab);
  lapic_write(LAPIC_TIMER, LVT_MASKED);
  lapic_write(LAPIC_LDR, 0x5a000000);
  expect("LDR", lapic_read(LAPIC_LDR), 0x5a000000);
  lapic_write(LAPIC_LDR, 1u << 24);
  lapic_write(LAPIC_DIVIDE, 0xb);
  expect("divide", lapic_read(LAPIC_DIVIDE), 0xb);
  lapic_write(LAPIC_TPR, 0x35);
  expect("TPR", lapic_read(LAPIC_TPR), 0x35);
  expect("PPR is at least TPR", lapic_read(LAPIC_PPR) & 0xf0, 0x30);
  expect("CR8 is the class", read_cr8(), 3);
  write_cr8(7);
  expect("TPR after CR8", lapic_read(LAPIC_TPR), 0x70);
  write_cr8(0);
  expect("TPR zero", lapic_read(LAPIC_TPR), 0);
  __asm__ volatile("orl $0x20, (%0); addl $0x10, (%0)" : : "r"(BASE + LAPIC_TPR) : "memory", "cc");
  expect("read-modify-write of a register", lapic_read(LAPIC_TPR), 0x30);
  lapic_write(LAPIC_TPR, 0);
  end();
}

static void test_ipi(void) {
  quiet();
  begin("lapic/self IPI");
  self_ipi(LOW_VECTOR);
  expect("IRR", bit(LAPIC_IRR, LOW_VECTOR), 1);
  expect("not taken with interrupts off", irq_count[LOW_VECTOR], 0);
  drain();
  expect("taken", irq_count[LOW_VECTOR], 1);
  expect("ISR in the handler", in_service[0], 1);
  expect("ISR after EOI", bit(LAPIC_ISR, LOW_VECTOR), 0);
  expect("IRR after", bit(LAPIC_IRR, LOW_VECTOR), 0);
  sti();
  self_ipi(LOW_VECTOR);
  spin(3000);
  cli();
  expect("taken with interrupts on", irq_count[LOW_VECTOR], 2);
  end();

  quiet();
  begin("lapic/IPI to the own id");
  lapic_write(LAPIC_ICR_HIGH, lapic_read(LAPIC_ID));
  lapic_write(LAPIC_ICR, ASSERT_LEVEL | HIGH_VECTOR);
  drain();
  expect("physical destination", irq_count[HIGH_VECTOR], 1);
  lapic_write(LAPIC_ICR_HIGH, 1u << 24);
  lapic_write(LAPIC_ICR, ASSERT_LEVEL | 0x800 | HIGH_VECTOR);
  drain();
  expect("logical destination", irq_count[HIGH_VECTOR], 2);
  lapic_write(LAPIC_ICR_HIGH, 2u << 24);
  lapic_write(LAPIC_ICR, ASSERT_LEVEL | 0x800 | HIGH_VECTOR);
  drain();
  expect("logical destination of nobody", irq_count[HIGH_VECTOR], 2);
  lapic_write(LAPIC_ICR, 0xc0000 | ASSERT_LEVEL | HIGH_VECTOR);
  drain();
  expect("all but itself", irq_count[HIGH_VECTOR], 2);
  lapic_write(LAPIC_ICR, 0x80000 | ASSERT_LEVEL | HIGH_VECTOR);
  drain();
  expect("all with itself", irq_count[HIGH_VECTOR], 3);
  lapic_write(LAPIC_ICR_HIGH, 0);
  end();

  quiet();
  begin("lapic/one pending bit for each vector");
  self_ipi(LOW_VECTOR);
  self_ipi(LOW_VECTOR);
  drain();
  expect("taken", irq_count[LOW_VECTOR], 1);
  end();

  quiet();
  begin("lapic/higher vector first");
  self_ipi(LOW_VECTOR);
  self_ipi(HIGH_VECTOR);
  drain();
  expect("number", n_order, 2);
  expect("first", order[0], HIGH_VECTOR);
  expect("second", order[1], LOW_VECTOR);
  end();

  quiet();
  begin("lapic/EOI with another pending");
  irq_handler[HIGH_VECTOR] = irq_handler[LOW_VECTOR] = no_eoi;
  self_ipi(HIGH_VECTOR);
  drain();
  self_ipi(LOW_VECTOR);
  drain();
  expect("lower waits", irq_count[LOW_VECTOR], 0);
  expect("PPR", lapic_read(LAPIC_PPR), HIGH_VECTOR & 0xf0);
  sti();
  lapic_eoi();
  spin(3000);
  cli();
  expect("lower taken after EOI", irq_count[LOW_VECTOR], 1);
  self_ipi(HIGH_VECTOR);
  drain();
  expect("higher interrupts lower", irq_count[HIGH_VECTOR], 2);
  expect("both in service", bit(LAPIC_ISR, LOW_VECTOR) + bit(LAPIC_ISR, HIGH_VECTOR), 2);
  lapic_eoi();
  expect("EOI ends the higher", bit(LAPIC_ISR, HIGH_VECTOR), 0);
  expect("and not the lower", bit(LAPIC_ISR, LOW_VECTOR), 1);
  lapic_eoi();
  expect("second EOI", bit(LAPIC_ISR, LOW_VECTOR), 0);
  end();

  quiet();
  begin("lapic/task priority");
  lapic_write(LAPIC_TPR, 0x50);
  self_ipi(LOW_VECTOR);
  drain();
  expect("same class waits", irq_count[LOW_VECTOR], 0);
  self_ipi(HIGH_VECTOR);
  drain();
  expect("higher class is taken", irq_count[HIGH_VECTOR], 1);
  lapic_write(LAPIC_TPR, 0x4f);
  drain();
  expect("taken when lowered", irq_count[LOW_VECTOR], 1);
  write_cr8(8);
  self_ipi(HIGH_VECTOR);
  drain();
  expect("CR8 holds it back", irq_count[HIGH_VECTOR], 1);
  sti();
  write_cr8(0);
  spin(3000);
  cli();
  expect("taken when CR8 is lowered", irq_count[HIGH_VECTOR], 2);
  end();
}

static void test_timer(void) {
  quiet();
  begin("lapic/one-shot timer");
  lapic_write(LAPIC_DIVIDE, 0xb);
  lapic_write(LAPIC_TIMER, TIMER_VECTOR);
  lapic_write(LAPIC_INITIAL, 100000);
  sti();
  expect_true("came", wait_for(&irq_count[TIMER_VECTOR], 1));
  spin(1000000);
  cli();
  expect("once", irq_count[TIMER_VECTOR], 1);
  expect("count stays at zero", lapic_read(LAPIC_CURRENT), 0);
  end();

  quiet();
  begin("lapic/count and divider");
  lapic_write(LAPIC_TIMER, LVT_MASKED | TIMER_VECTOR);
  lapic_write(LAPIC_DIVIDE, 0xb);
  lapic_write(LAPIC_INITIAL, 0xffffffff);
  expect("initial count", lapic_read(LAPIC_INITIAL), 0xffffffff);
  uint32_t a = lapic_read(LAPIC_CURRENT);
  spin(100000);
  uint32_t b = lapic_read(LAPIC_CURRENT);
  expect_true("goes down", b < a);
  lapic_write(LAPIC_DIVIDE, 0xa);   /* by 128 */
  lapic_write(LAPIC_INITIAL, 0xffffffff);
  uint32_t slow = ~lapic_read(LAPIC_CURRENT);
  lapic_write(LAPIC_INITIAL, 0);
  expect_true("slower by 128", slow < 0x1000000);
  drain();
  expect("masked", irq_count[TIMER_VECTOR], 0);
  end();

  quiet();
  begin("lapic/periodic timer");
  lapic_write(LAPIC_DIVIDE, 3);     /* by 16 */
  lapic_write(LAPIC_TIMER, PERIODIC | TIMER_VECTOR);
  lapic_write(LAPIC_INITIAL, 10000);
  sti();
  expect_true("came five times", wait_for(&irq_count[TIMER_VECTOR], 5));
  lapic_write(LAPIC_INITIAL, 0);
  spin(100000);
  uint64_t n = irq_count[TIMER_VECTOR];
  spin(1000000);
  cli();
  expect("zero stops it", irq_count[TIMER_VECTOR], n);
  end();

  quiet();
  begin("lapic/timer wakes hlt");
  lapic_write(LAPIC_DIVIDE, 0xb);
  lapic_write(LAPIC_TIMER, TIMER_VECTOR);
  lapic_write(LAPIC_INITIAL, 1000000);
  while (!irq_count[TIMER_VECTOR])
    sti_hlt_cli();
  expect("number", irq_count[TIMER_VECTOR], 1);
  end();

  begin("lapic/TSC deadline as CPUID says");
  if (cpuid(1, 0).ecx >> 24 & 1) {
    quiet();
    lapic_write(LAPIC_TIMER, TSC_DEADLINE | TIMER_VECTOR);
    __asm__ volatile("mfence" : : : "memory");
    uint64_t when = rdtsc() + (1UL << 40);
    wrmsr(MSR_TSC_DEADLINE, when);
    expect("armed", rdmsr(MSR_TSC_DEADLINE), when);
    when = rdtsc() + 100000;
    wrmsr(MSR_TSC_DEADLINE, when);
    sti();
    expect_true("came", wait_for(&irq_count[TIMER_VECTOR], 1));
    cli();
    expect_true("not before its time", rdtsc() >= when);
    expect("disarmed", rdmsr(MSR_TSC_DEADLINE), 0);
    wrmsr(MSR_TSC_DEADLINE, 1);
    drain();
    expect("a time in the past fires at once", irq_count[TIMER_VECTOR], 2);
    wrmsr(MSR_TSC_DEADLINE, rdtsc() + 20000000);
    wrmsr(MSR_TSC_DEADLINE, 0);
    expect("zero", rdmsr(MSR_TSC_DEADLINE), 0);
    sti();
    spin(30000000);
    cli();
    expect("disarms", irq_count[TIMER_VECTOR], 2);
  }
  lapic_write(LAPIC_TIMER, LVT_MASKED);
  end();
}

static void test_x2apic(void) {
  begin("lapic/x2APIC as CPUID says");
  if (cpuid(1, 0).ecx >> 21 & 1) {
    quiet();
    irq_handler[LOW_VECTOR] = no_eoi;   /* the others would write EOI by MMIO */
    uint32_t id = lapic_read(LAPIC_ID) >> 24;
    wrmsr(MSR_APIC_BASE, BASE | 0xd00);
    expect("mode", rdmsr(MSR_APIC_BASE) & 0xc00, 0xc00);
    expect("id", rdmsr(MSR_X2APIC + 2), id);
    expect("LDR", rdmsr(MSR_X2APIC + 0xd), (uint64_t)(id >> 4) << 16 | 1u << (id & 15));
    expect("spurious vector", rdmsr(MSR_X2APIC + 0xf) & 0x1ff, 0x1ff);
    wrmsr(MSR_X2APIC + 0x30, (uint64_t)id << 32 | ASSERT_LEVEL | LOW_VECTOR);
    drain();
    expect("IPI by ICR", irq_count[LOW_VECTOR], 1);
    wrmsr(MSR_X2APIC + 0xb, 0);
    wrmsr(MSR_X2APIC + 0x3f, LOW_VECTOR);
    drain();
    expect("IPI by SELF_IPI", irq_count[LOW_VECTOR], 2);
    wrmsr(MSR_X2APIC + 0xb, 0);
    wrmsr(MSR_APIC_BASE, BASE | 0x100);   /* x2APIC is left by way of disabled */
    wrmsr(MSR_APIC_BASE, BASE | 0x900);
    lapic_init();
    expect("xAPIC again", lapic_read(LAPIC_SVR) & 0x1ff, 0x1ff);
  }
  end();
}

static void test_disabled(void) {
  quiet();
  begin("lapic/software disable");
  lapic_write(LAPIC_SVR, 0xff);
  expect("bit", lapic_read(LAPIC_SVR) & 0x1ff, 0xff);
  lapic_init();
  self_ipi(LOW_VECTOR);
  drain();
  expect("works again", irq_count[LOW_VECTOR], 1);
  end();
}

static bool nmi_hook(struct frame *f, uint64_t cr2) {
  (void)cr2;
  if (f->vector != NMI)
    return false;
  irq_count[NMI]++;
  return true;
}

static void test_nmi(void) {
  begin("lapic/NMI to itself");
  irq_count[NMI] = 0;
  trap_hook = nmi_hook;
  lapic_write(LAPIC_ICR_HIGH, lapic_read(LAPIC_ID));
  lapic_write(LAPIC_ICR, NMI_MODE | ASSERT_LEVEL);
  spin(3000);
  expect("taken with interrupts off", irq_count[NMI], 1);
  lapic_write(LAPIC_ICR, NMI_MODE | ASSERT_LEVEL);
  spin(3000);
  expect("again after iret", irq_count[NMI], 2);
  trap_hook = NULL;
  end();
}

void test_lapic(void) {
  test_registers();
  test_ipi();
  test_timer();
  test_x2apic();
  test_disabled();
  test_nmi();
  drain();
  irq_handler[LOW_VECTOR] = irq_handler[HIGH_VECTOR] = irq_handler[TIMER_VECTOR] = NULL;
}
