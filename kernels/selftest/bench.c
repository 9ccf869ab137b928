/* Micro-benchmarks, each a fixed amount of work: do=bench=NAME, do=bench=all. The host takes the time between
 * the "start" and the "end" line, or counts instructions. */
#include "selftest.h"

#define POOL SCRATCH   /* 1:1, NX */
#define HALF (64UL << 20)

static void alu(void) {
  uint64_t n = 100000000, a = 1;
  __asm__ volatile(".align 16; 1: addq %0, %1; xorq $0x55, %1; imulq $31, %1, %1; rorq $7, %1; decq %0; jnz 1b"
                   : "+r"(n), "+r"(a) : : "cc");
}

static void callret(void) {
  uint64_t n = 20000000;
  __asm__ volatile("1: call 2f; decq %0; jnz 1b; jmp 3f; 2: ret; 3:" : "+r"(n) : : "cc", "memory");
}

static void crc(void) {
  uint32_t c = ~0u;
  for (uint64_t i = 0; i < 512 * 1024; i++) {
    c ^= *at8(0x200000 + (i & 0xffff));
    for (int k = 0; k < 8; k++)
      c = c >> 1 ^ (0xedb88320u & -(c & 1));
  }
  __asm__ volatile("" : : "r"(c));
}

static void memcpy8(void) {
  uint64_t d = POOL, s = POOL + HALF, n = HALF / 8, t;
  __asm__ volatile("1: movq (%1), %3; movq %3, (%0); addq $8, %1; addq $8, %0; decq %2; jnz 1b"
                   : "+r"(d), "+r"(s), "+r"(n), "=&r"(t) : : "cc", "memory");
}

static void rep_movsb(void) {
  uint64_t d = POOL, s = POOL + HALF, n = HALF;
  __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
}

static void rep_movsq(void) {
  uint64_t d = POOL, s = POOL + HALF, n = HALF / 8;
  __asm__ volatile("rep movsq" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
}

static void rep_stosb(void) {
  uint64_t d = POOL, n = HALF;
  __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(0) : "memory");
}

static void rep_stosq(void) {
  uint64_t d = POOL, n = HALF / 8;
  __asm__ volatile("rep stosq" : "+D"(d), "+c"(n) : "a"(0) : "memory");
}

static void map_pool(void) {
  for (uint64_t i = 0; i < TEST_PAGES; i++)
    *pte(TEST_VA + i * PAGE) = (POOL + i * PAGE) | P | W | A | D | NX;
}

static void ptwalk(void) {
  map_pool();
  for (int k = 0; k < 32; k++) {
    write_cr3(read_cr3());
    for (uint64_t i = 0; i < TEST_PAGES; i++)
      (void)*at8(TEST_VA + i * PAGE);
  }
  unmap_tests();
}

static void bench_invlpg(void) {
  map_pool();
  for (uint64_t i = 0; i < 200000; i++) {
    invlpg(TEST_VA + (i & 1023) * PAGE);
    (void)*at8(TEST_VA + (i & 1023) * PAGE);
  }
  unmap_tests();
}

static void cr3(void) {
  map_pool();
  for (uint64_t i = 0; i < 20000; i++) {
    write_cr3(read_cr3());
    (void)*at8(TEST_VA);
  }
  unmap_tests();
}

static bool resume(struct frame *f, uint64_t cr2) {
  if (f->vector == PF && cr2 >= TEST_VA) {
    *pte(cr2 & ~(PAGE - 1)) = (POOL + (cr2 - TEST_VA)) | P | W | NX;
    return true;
  }
  if (f->vector == UD)
    f->rip += 2;
  return f->vector == UD || f->vector == BP;
}

static void pf(void) {
  trap_hook = resume;
  for (uint64_t i = 0; i < 16384; i++)
    *at8(TEST_VA + i * PAGE) = 1;
  trap_hook = NULL;
  unmap_tests();
}

static void int3(void) {
  trap_hook = resume;
  for (int i = 0; i < 20000; i++)
    __asm__ volatile("int3");
  trap_hook = NULL;
}

static void ud2(void) {
  trap_hook = resume;
  for (int i = 0; i < 20000; i++)
    __asm__ volatile("ud2");
  trap_hook = NULL;
}

USER_CODE(user_syscalls, "movq %rdi, %rbx; 1: syscall; decq %rbx; jnz 1b");
CODE(return_at_once, "sysretq");

static void syscall_bench(void) {
  wrmsr(MSR_STAR, (uint64_t)KERNEL_CS << 32 | (uint64_t)USER_CS32 << 48);
  wrmsr(MSR_LSTAR, (uint64_t)return_at_once);
  wrmsr(MSR_FMASK, 0x700);
  user_call(user_syscalls, 20000);
}

static void bench_outb(void) {
  for (int i = 0; i < 20000; i++)
    outb(0x80, (uint8_t)i);
}

static void bench_inb(void) {
  for (int i = 0; i < 20000; i++)
    (void)inb(0x80);
}

static void mmio_read(void) {
  for (int i = 0; i < 20000; i++)
    (void)lapic_read(LAPIC_ID);
}

static void mmio_write(void) {
  for (int i = 0; i < 20000; i++)
    lapic_write(LAPIC_TPR, 0);
}

static void bench_cpuid(void) {
  for (int i = 0; i < 20000; i++)
    __asm__ volatile("cpuid" : : "a"(0), "c"(0) : "rbx", "rdx");
}

static void bench_rdtsc(void) {
  for (int i = 0; i < 20000; i++)
    (void)rdtsc();
}

static void ack(struct frame *f) {
  (void)f;
  lapic_eoi();
}

static void timer(void) {
  irq_handler[0x6a] = ack;
  lapic_write(LAPIC_DIVIDE, 0xb);
  lapic_write(LAPIC_TIMER, 1 << 17 | 0x6a);
  irq_count[0x6a] = 0;
  lapic_write(LAPIC_INITIAL, 100000);
  sti();
  while (irq_count[0x6a] < 1000)
    __asm__ volatile("hlt");
  cli();
  lapic_write(LAPIC_INITIAL, 0);
  irq_handler[0x6a] = irq_none;
}

static const struct { const char *name; void (*run)(void); const char *unit; uint64_t work; } benches[] = {
    {"alu", alu, "instructions", 600000000}, {"callret", callret, "instructions", 80000000},
    {"crc", crc, "bytes", 512 * 1024}, {"memcpy8", memcpy8, "bytes", HALF},
    {"rep_movsb", rep_movsb, "bytes", HALF}, {"rep_movsq", rep_movsq, "bytes", HALF},
    {"rep_stosb", rep_stosb, "bytes", HALF}, {"rep_stosq", rep_stosq, "bytes", HALF},
    {"ptwalk", ptwalk, "pages", 32 * TEST_PAGES}, {"invlpg", bench_invlpg, "times", 200000},
    {"cr3", cr3, "times", 20000}, {"pf", pf, "times", 16384}, {"int3", int3, "times", 20000},
    {"ud2", ud2, "times", 20000}, {"syscall", syscall_bench, "times", 20000}, {"outb", bench_outb, "times", 20000},
    {"inb", bench_inb, "times", 20000}, {"mmio_read", mmio_read, "times", 20000},
    {"mmio_write", mmio_write, "times", 20000}, {"cpuid", bench_cpuid, "times", 20000},
    {"rdtsc", bench_rdtsc, "times", 20000}, {"timer", timer, "interrupts", 1000},
};

bool run_bench(const char *name) {
  bool found = false;
  for (size_t i = 0; i < sizeof benches / sizeof benches[0]; i++) {
    if (!same(name, "all") && !same(name, benches[i].name))
      continue;
    found = true;
    print("bench ");
    print(benches[i].name);
    print(": start\n");
    benches[i].run();
    print("bench ");
    print(benches[i].name);
    print(": end ");
    print_dec(benches[i].work);
    print(" ");
    print(benches[i].unit);
    print("\n");
  }
  return found;
}
