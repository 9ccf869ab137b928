/* Interrupts against the instruction stream: timers that are due a few ticks ahead, interrupts that an
 * instruction raises itself, ring 3 interrupted. Each must come, and once. */
#include "selftest.h"

#define VECTOR 0x67
#define OTHER 0x98

static volatile uint64_t *const taken = &irq_count[VECTOR];
static void handler(struct frame *f) {
  (void)f;
  lapic_eoi();
}

static uint64_t frame_cs[2], frame_stack, ring3_hits;
static void from_ring3(struct frame *f) {
  if (f->cs == USER_CS) {
    ring3_hits++;
    frame_stack = (uint64_t)f;
    frame_cs[0] = f->cs;
    frame_cs[1] = f->ss;
  }
  lapic_eoi();
}

#define NOPS8 "nop; nop; nop; nop; nop; nop; nop; nop;"
#define NOPS64 NOPS8 NOPS8 NOPS8 NOPS8 NOPS8 NOPS8 NOPS8 NOPS8

/* Arms the timer inside one straight run of instructions. */
static uint64_t arm(uint32_t ticks) {
  uint64_t sum = 0;
  __asm__ volatile("movl %1, (%2);" NOPS8 "incq %0; incq %0; incq %0;" NOPS64 "incq %0"
                   : "+r"(sum) : "r"(ticks), "r"(0xfee00000UL + LAPIC_INITIAL) : "memory", "cc");
  return sum;
}

static uint64_t arm_deadline(uint64_t ticks) {
  uint64_t sum = 0;
  __asm__ volatile("rdtsc; shlq $32, %%rdx; orq %%rdx, %%rax; addq %1, %%rax; movq %%rax, %%rdx; shrq $32, %%rdx;"
                   "movl $0x6e0, %%ecx; wrmsr;" NOPS8 "incq %0; incq %0; incq %0;" NOPS64 "incq %0"
                   : "+r"(sum) : "r"(ticks) : "rax", "rcx", "rdx", "memory", "cc");
  return sum;
}

USER_CODE(user_count, "xorl %eax, %eax; movl $3, %ecx; 1: addq %rdi, %rax; addq $7, %rcx; decq %rdi; jnz 1b");

void test_timing(void) {
  irq_handler[VECTOR] = irq_handler[OTHER] = handler;
  lapic_write(LAPIC_DIVIDE, 0xb);
  lapic_write(LAPIC_TIMER, VECTOR);

  begin("timing/timer a few ticks ahead");
  for (uint32_t ticks = 1; ticks <= 20; ticks++) {
    *taken = 0;
    sti();
    expect("the code around it", arm(ticks), 4);
    expect_true("came", wait_for(taken, 1));
    spin(5000);
    cli();
    expect("number", *taken, 1);
    expect("count", lapic_read(LAPIC_CURRENT), 0);
  }
  end();

  begin("timing/timer due while interrupts are off");
  for (uint32_t ticks = 1; ticks <= 20; ticks++) {
    *taken = 0;
    expect("the code around it", arm(ticks), 4);
    while (lapic_read(LAPIC_CURRENT)) {
    }
    spin(1000);
    expect("not yet", *taken, 0);
    sti();
    expect_true("came", wait_for(taken, 1));
    cli();
    expect("number", *taken, 1);
  }
  end();

  begin("timing/rearmed before it is due");
  *taken = 0;
  for (int i = 0; i < 20; i++)
    lapic_write(LAPIC_INITIAL, ~0u);
  lapic_write(LAPIC_INITIAL, 50);
  sti();
  expect_true("came", wait_for(taken, 1));
  spin(100000);
  cli();
  expect("number", *taken, 1);
  lapic_write(LAPIC_INITIAL, ~0u);
  lapic_write(LAPIC_INITIAL, 0);
  expect("disarmed", lapic_read(LAPIC_CURRENT), 0);
  end();

  begin("timing/deadline a few ticks ahead as CPUID says");
  if (cpuid(1, 0).ecx >> 24 & 1) {
    lapic_write(LAPIC_TIMER, 2 << 17 | VECTOR);
    __asm__ volatile("mfence" : : : "memory");
    for (uint64_t ticks = 0; ticks <= 20; ticks++) {
      *taken = 0;
      sti();
      expect("the code around it", arm_deadline(ticks), 4);
      expect_true("came", wait_for(taken, 1));
      spin(5000);
      cli();
      expect("number", *taken, 1);
    }
    lapic_write(LAPIC_TIMER, VECTOR);
  }
  end();

  begin("timing/interrupts raised by the running code");
  irq_count[OTHER] = 0;
  sti();
  for (uint64_t i = 1; i <= 200; i++) {
    lapic_write(LAPIC_ICR, 0x44000 | OTHER);
    for (uint64_t k = 0; k < 100000 && irq_count[OTHER] < i; k++)
      pause();
    expect("number", irq_count[OTHER], i);
  }
  cli();
  end();

  begin("timing/two due at once");
  for (int i = 0; i < 20; i++) {
    *taken = irq_count[OTHER] = 0;
    arm(5);
    lapic_write(LAPIC_ICR, 0x44000 | OTHER);
    while (lapic_read(LAPIC_CURRENT)) {
    }
    sti();
    expect_true("timer", wait_for(taken, 1));
    expect_true("IPI", wait_for(&irq_count[OTHER], 1));
    spin(1000);
    cli();
    expect("number", *taken + irq_count[OTHER], 2);
  }
  end();

  begin("timing/hlt until the timer");
  *taken = 0;
  for (uint64_t i = 1; i <= 50; i++) {
    lapic_write(LAPIC_INITIAL, (uint32_t)i * 1000);
    while (*taken < i)
      sti_hlt_cli();
    expect("number", *taken, i);
  }
  end();

  begin("timing/ring 3 interrupted");
  irq_handler[VECTOR] = from_ring3;
  lapic_write(LAPIC_TIMER, 1 << 17 | VECTOR);
  ring3_hits = 0;
  bool right = true;
  for (int tries = 0; tries < 300 && ring3_hits < 20; tries++) {
    lapic_write(LAPIC_INITIAL, 20000);
    right &= user_call_as(user_count, 300000, USER_CS, 2 | IF) == DONE;
    right &= seen.frame.rax == 300000UL * 300001 / 2 && seen.frame.rcx == 3 + 7 * 300000UL;
    lapic_write(LAPIC_INITIAL, 0);
  }
  drain();
  expect_true("results", right);
  expect_true("interrupted", ring3_hits >= 20);
  expect("cs", frame_cs[0], USER_CS);
  expect("ss", frame_cs[1], USER_SS);
  expect("stack", frame_stack, (uint64_t)trap_stack + sizeof trap_stack - sizeof(struct frame));
  end();

  lapic_write(LAPIC_TIMER, LVT_MASKED);
  drain();
  irq_handler[VECTOR] = irq_handler[OTHER] = NULL;
}
