/* Instructions in ring 0: integer results and flags, atomic operations, MSRs, CPUID, and when interrupts are
 * taken. Results of large sweeps are folded into a CRC that was taken on a real processor; only flags that the
 * architecture defines go in. */
#include "selftest.h"

static uint32_t crc;

static void fold(uint64_t v) {
  for (int i = 0; i < 8; i++, v >>= 8) {
    crc ^= (uint8_t)v;
    for (int k = 0; k < 8; k++)
      crc = crc >> 1 ^ (0xedb88320u & -(crc & 1));
  }
}

static const uint64_t samples[] = {
    0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0x0123456789abcdef,
    0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff,
};
#define N_SAMPLES (sizeof samples / sizeof samples[0])

struct result { uint64_t a, flags; };
typedef struct result operation(uint64_t a, uint64_t b, uint64_t flags);

/* One instruction on %rax (and %rcx), with given status flags before it. */
#define OPERATION(name, text)                                                                                   \
  static struct result name(uint64_t a, uint64_t b, uint64_t flags) {                                           \
    __asm__ volatile("pushq %1; popfq; " text "; pushfq; popq %1" : "+a"(a), "+r"(flags), "+c"(b) : : "cc",      \
                     "memory");                                                                                 \
    return (struct result){a, flags & STATUS};                                                                  \
  }
#define SIZES2(name)                                                                                            \
  OPERATION(name##8, #name "b %%cl, %%al") OPERATION(name##16, #name "w %%cx, %%ax")                             \
  OPERATION(name##32, #name "l %%ecx, %%eax") OPERATION(name##64, #name "q %%rcx, %%rax")
#define SIZES1(name)                                                                                            \
  OPERATION(name##8, #name "b %%al") OPERATION(name##16, #name "w %%ax")                                        \
  OPERATION(name##32, #name "l %%eax") OPERATION(name##64, #name "q %%rax")
#define SHIFTS(name)                                                                                            \
  OPERATION(name##8, #name "b %%cl, %%al") OPERATION(name##16, #name "w %%cl, %%ax")                             \
  OPERATION(name##32, #name "l %%cl, %%eax") OPERATION(name##64, #name "q %%cl, %%rax")
SIZES2(add) SIZES2(adc) SIZES2(sub) SIZES2(sbb) SIZES2(and) SIZES2(or) SIZES2(xor) SIZES2(cmp) SIZES2(xadd)
SIZES1(inc) SIZES1(dec) SIZES1(neg) SIZES1(not)
SHIFTS(shl) SHIFTS(shr) SHIFTS(sar) SHIFTS(rol) SHIFTS(ror) SHIFTS(rcl) SHIFTS(rcr)
OPERATION(bt64, "btq %%rcx, %%rax") OPERATION(bts64, "btsq %%rcx, %%rax") OPERATION(btr32, "btrl %%ecx, %%eax")
OPERATION(btc16, "btcw %%cx, %%ax")
/* a source of zero leaves the destination undefined */
OPERATION(bsf64, "orq $16, %%rcx; bsfq %%rcx, %%rax") OPERATION(bsr64, "orq $16, %%rcx; bsrq %%rcx, %%rax")
OPERATION(bsf32, "orl $16, %%ecx; bsfl %%ecx, %%eax") OPERATION(bsr16, "orw $16, %%cx; bsrw %%cx, %%ax")
OPERATION(imul64, "imulq %%rcx, %%rax") OPERATION(imul32, "imull %%ecx, %%eax")
OPERATION(imul16, "imulw %%cx, %%ax")
OPERATION(popcnt64, "popcntq %%rcx, %%rax") OPERATION(popcnt16, "popcntw %%cx, %%ax")
OPERATION(lzcnt64, "lzcntq %%rcx, %%rax") OPERATION(lzcnt32, "lzcntl %%ecx, %%eax")
OPERATION(tzcnt64, "tzcntq %%rcx, %%rax") OPERATION(tzcnt16, "tzcntw %%cx, %%ax")
OPERATION(crc32_8, "crc32b %%cl, %%eax") OPERATION(crc32_64, "crc32q %%rcx, %%rax")
OPERATION(andn64, "andnq %%rcx, %%rax, %%rax") OPERATION(blsr64, "blsrq %%rcx, %%rax")
OPERATION(blsi32, "blsil %%ecx, %%eax") OPERATION(blsmsk64, "blsmskq %%rcx, %%rax")
OPERATION(bextr64, "bextrq %%rcx, %%rax, %%rax") OPERATION(bzhi64, "bzhiq %%rcx, %%rax, %%rax")
OPERATION(pdep64, "pdepq %%rcx, %%rax, %%rax") OPERATION(pext64, "pextq %%rcx, %%rax, %%rax")
OPERATION(rorx64, "rorxq $13, %%rcx, %%rax") OPERATION(shlx64, "shlxq %%rcx, %%rax, %%rax")
OPERATION(sarx32, "sarxl %%ecx, %%eax, %%eax")
OPERATION(adcx64, "adcxq %%rcx, %%rax") OPERATION(adox64, "adoxq %%rcx, %%rax")

static void sweep(operation *op, uint64_t defined) {
  for (size_t i = 0; i < N_SAMPLES; i++)
    for (size_t j = 0; j < N_SAMPLES; j++)
      for (uint64_t flags = 0; flags <= CF; flags++) {
        struct result r = op(samples[i], samples[j], flags | 2);
        fold(r.a);
        fold(r.flags & defined);
      }
}

static void sweep_all(const char *name, operation *const *ops, size_t n, uint64_t defined, uint32_t want) {
  begin(name);
  crc = ~0u;
  for (size_t i = 0; i < n; i++)
    sweep(ops[i], defined);
  expect("CRC of results and flags", crc, want);
  end();
}
#define SWEEP(name, defined, want, ...)                                                                         \
  do {                                                                                                          \
    static operation *const ops[] = {__VA_ARGS__};                                                              \
    sweep_all(name, ops, sizeof ops / sizeof ops[0], defined, want);                                            \
  } while (0)

/* Machines without the feature print the same line. */
#define SWEEP_IF(feature, name, ...)                                                                            \
  if (feature)                                                                                                  \
    SWEEP(name, __VA_ARGS__);                                                                                   \
  else                                                                                                          \
    begin(name), end()

/* Shifts by 0 change no flag, by 1 define OF, by more leave it undefined; rotates touch only CF and OF. */
static void sweep_shifts(const char *name, operation *const *ops, size_t n, bool rotate, uint32_t want) {
  begin(name);
  crc = ~0u;
  for (size_t k = 0; k < n; k++) {
    unsigned size = 8u << (k & 3);
    for (size_t i = 0; i < N_SAMPLES; i++)
      for (unsigned count = 0; count <= size && count < 64; count++)
        for (unsigned before = 0; before < 2; before++) {
          unsigned effective = count & (size == 64 ? 63 : 31);
          uint64_t in = before ? STATUS : 0, defined = STATUS;
          if (effective)
            defined = rotate ? STATUS : STATUS & ~(uint64_t)AF;
          if (effective > 1)
            defined &= ~(uint64_t)OF_FLAG;
          struct result r = ops[k](samples[i], count, in | 2);
          fold(r.a);
          fold(r.flags & defined);
        }
  }
  expect("CRC of results and flags", crc, want);
  end();
}
#define SWEEP_SHIFTS(name, rotate, want, ...)                                                                   \
  do {                                                                                                          \
    static operation *const ops[] = {__VA_ARGS__};                                                              \
    sweep_shifts(name, ops, sizeof ops / sizeof ops[0], rotate, want);                                          \
  } while (0)

static void test_divide(void) {
  begin("cpu/multiply and divide");
  crc = ~0u;
  for (size_t i = 0; i < N_SAMPLES; i++)
    for (size_t j = 0; j < N_SAMPLES; j++) {
      uint64_t a = samples[i], b = samples[j], low = a, high;
      __asm__("mulq %2" : "+a"(low), "=d"(high) : "r"(b) : "cc");
      fold(low);
      fold(high);
      low = a;
      __asm__("imulq %2" : "+a"(low), "=d"(high) : "r"(b) : "cc");
      fold(low);
      fold(high);
      if (b) {
        low = a;
        high = b - 1;   /* the largest dividend that does not overflow */
        __asm__("divq %2" : "+a"(low), "+d"(high) : "r"(b) : "cc");
        fold(low);
        fold(high);
      }
      if (b && !(a == 1UL << 63 && b == ~0UL)) {
        low = a;
        __asm__("cqto; idivq %2" : "+a"(low), "=&d"(high) : "r"(b) : "cc");
        fold(low);
        fold(high);
      }
      if ((uint8_t)b) {
        uint16_t ax = (uint16_t)(((uint8_t)b - 1) << 8 | (uint8_t)a);
        __asm__("divb %1" : "+a"(ax) : "q"((uint8_t)b) : "cc");
        fold(ax);
      }
    }
  expect("CRC of results", crc, 0x4bc723ab);
  end();
}

static void test_atomic(void) {
  begin("cpu/atomic operations");
  static uint64_t cell, pair[2] __attribute__((aligned(16)));
  uint64_t a = 5, zf;
  cell = 10;
  __asm__ volatile("lock xaddq %0, %1" : "+r"(a), "+m"(cell) : : "cc", "memory");
  expect("xadd old", a, 10);
  expect("xadd new", cell, 15);
  a = 15;
  __asm__ volatile("lock cmpxchgq %3, %1; setz %b2" : "+a"(a), "+m"(cell), "=q"(zf) : "r"(99UL) : "cc", "memory");
  expect("cmpxchg equal", cell, 99);
  expect("cmpxchg ZF", (uint8_t)zf, 1);
  a = 15;
  __asm__ volatile("lock cmpxchgq %3, %1; setz %b2" : "+a"(a), "+m"(cell), "=q"(zf) : "r"(7UL) : "cc", "memory");
  expect("cmpxchg different", cell, 99);
  expect("cmpxchg loads", a, 99);
  expect("cmpxchg ZF", (uint8_t)zf, 0);
  a = 1;
  __asm__ volatile("xchgq %0, %1" : "+r"(a), "+m"(cell) : : "memory");
  expect("xchg", a, 99);
  __asm__ volatile("lock btsq $63, %0; setc %b1" : "+m"(cell), "=q"(a) : : "cc", "memory");
  expect("bts old", (uint8_t)a, 0);
  expect("bts new", cell, 1UL << 63 | 1);
  __asm__ volatile("lock incq %0; lock negq %0; lock notq %0; lock orq $0xf0, %0" : "+m"(cell) : : "cc", "memory");
  expect("inc neg not or", cell, (~-(1UL + (1UL << 63 | 1))) | 0xf0);
  pair[0] = 1, pair[1] = 2;
  uint64_t low = 1, high = 2;
  __asm__ volatile("lock cmpxchg16b %2; setz %b3" : "+a"(low), "+d"(high), "+m"(pair), "=&q"(zf)
                   : "b"(0x1111UL), "c"(0x2222UL) : "cc", "memory");
  expect("cmpxchg16b equal", pair[0] << 16 | pair[1], 0x11112222);
  expect("cmpxchg16b ZF", (uint8_t)zf, 1);
  low = 1, high = 2;
  __asm__ volatile("lock cmpxchg16b %2; setz %b3" : "+a"(low), "+d"(high), "+m"(pair), "=&q"(zf)
                   : "b"(0UL), "c"(0UL) : "cc", "memory");
  expect("cmpxchg16b different", low << 16 | high, 0x11112222);
  expect("cmpxchg16b ZF", (uint8_t)zf, 0);
  uint32_t l32 = 0x1111, h32 = 0;
  __asm__ volatile("lock cmpxchg8b %2" : "+a"(l32), "+d"(h32), "+m"(pair[0]) : "b"(3), "c"(4) : "cc", "memory");
  expect("cmpxchg8b", pair[0], 4UL << 32 | 3);
  end();

  begin("cpu/bit string in memory");
  static uint64_t bits[4];
  memset(bits, 0, sizeof bits);
  uint8_t *middle = (uint8_t *)(bits + 2);
  __asm__ volatile("btsq %1, (%0); btsq %2, (%0)" : : "r"(middle), "r"(65L), "r"(-1L) : "cc", "memory");
  expect("above", bits[3], 2);
  expect("below", bits[1], 1UL << 63);
  end();
}

static void test_moves(void) {
  begin("cpu/extensions and byte registers");
  uint64_t a = 0x1122334455667788, b;
  __asm__("movl %k0, %k0" : "+r"(a));
  expect("32-bit writes clear the upper half", a, 0x55667788);
  a = 0x1122334455667788;
  __asm__("movw $0x9999, %w0; movb $0xaa, %h0" : "+a"(a));
  expect("16 and 8-bit writes keep it", a, 0x112233445566aa99);
  __asm__("movsbq %b1, %0" : "=r"(b) : "q"(a));
  expect("movsbq", b, 0xffffffffffffff99);
  __asm__("movzwl %w1, %k0" : "=r"(b) : "r"(a));
  expect("movzwl", b, 0xaa99);
  b = 0x80000000;
  __asm__("movslq %k0, %0" : "+r"(b));
  expect("movslq", b, 0xffffffff80000000);
  b = 0x0102030405060708;
  __asm__("bswapq %0" : "+r"(b));
  expect("bswap", b, 0x0807060504030201);
  b = 77;
  __asm__("xorl %%eax, %%eax; cmovnzl %%ecx, %k0" : "+r"(b) : "c"(1) : "rax", "cc");
  expect("cmov not taken", b, 77);
  b = 0xffffffff00000001;
  __asm__("xorl %%eax, %%eax; cmovnzl %%ecx, %k0" : "+r"(b) : "c"(1) : "rax", "cc");
  expect("cmov not taken clears the upper half", b, 1);
  __asm__("leaq 5(%1,%1,8), %0" : "=r"(b) : "r"(0x1000UL));
  expect("lea", b, 0x9005);
  __asm__("leal -1(%1), %k0" : "=r"(b) : "r"(0UL));
  expect("lea 32", b, 0xffffffff);
  uint64_t flags;
  __asm__("movb $0xd5, %%ah; sahf; movb $0, %%ah; lahf; movzbl %%ah, %k0" : "=r"(flags) : : "rax", "cc");
  expect("sahf lahf", flags, 0xd7);
  static uint64_t cell = 0x1122334455667788;
  __asm__("movbeq %1, %0" : "=r"(b) : "m"(cell));
  expect("movbe", b, 0x8877665544332211);
  uint64_t rsp, after;
  __asm__ volatile("movq %%rsp, %0; enter $32, $0; leave; movq %%rsp, %1" : "=&r"(rsp), "=&r"(after) : : "memory");
  expect("enter and leave balance", after, rsp);
  end();
}

static void test_msrs(void) {
  static const uint32_t plain[] = {MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_KERNEL_GS_BASE, MSR_SYSENTER_ESP,
                                   MSR_SYSENTER_EIP, MSR_FS_BASE, MSR_GS_BASE};
  begin("cpu/MSRs keep what is written");
  for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
    uint64_t old = rdmsr(plain[i]), v = 0x00007a5b4c3d2e10UL + i * 0x1000;
    wrmsr(plain[i], v);
    expect("MSR", rdmsr(plain[i]), v);
    wrmsr(plain[i], old);
  }
  uint64_t old = rdmsr(MSR_FMASK);
  wrmsr(MSR_FMASK, 0x47700);
  expect("FMASK", rdmsr(MSR_FMASK), 0x47700);
  wrmsr(MSR_FMASK, old);
  old = rdmsr(MSR_SYSENTER_CS);
  wrmsr(MSR_SYSENTER_CS, 0x48);
  expect("SYSENTER_CS", rdmsr(MSR_SYSENTER_CS), 0x48);
  wrmsr(MSR_SYSENTER_CS, old);
  old = rdmsr(MSR_PAT);
  wrmsr(MSR_PAT, 0x0407050600070106);
  expect("PAT", rdmsr(MSR_PAT), 0x0407050600070106);
  wrmsr(MSR_PAT, old);
  end();

  begin("cpu/EFER");
  expect("SCE LME LMA NXE", rdmsr(MSR_EFER) & 0xd01, 0xd01);
  wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~1UL);
  expect("SCE off", rdmsr(MSR_EFER) & 0xd01, 0xd00);
  wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
  expect("SCE on", rdmsr(MSR_EFER) & 0xd01, 0xd01);
  end();

  begin("cpu/MTRRs");
  if (cpuid(1, 0).edx >> 12 & 1) {
    expect_true("variable ranges", (rdmsr(MSR_MTRR_CAP) & 0xff) >= 1);
    uint64_t base = rdmsr(MSR_MTRR_BASE0), mask = rdmsr(MSR_MTRR_MASK0), type = rdmsr(MSR_MTRR_DEFAULT);
    wrmsr(MSR_MTRR_MASK0, 0xff80000000 | 0x800);
    wrmsr(MSR_MTRR_BASE0, 0x80000000);
    expect("base", rdmsr(MSR_MTRR_BASE0), 0x80000000);
    expect("mask", rdmsr(MSR_MTRR_MASK0), 0xff80000000 | 0x800);
    wrmsr(MSR_MTRR_DEFAULT, 0xc06);
    expect("default type", rdmsr(MSR_MTRR_DEFAULT), 0xc06);
    wrmsr(MSR_MTRR_DEFAULT, type);
    wrmsr(MSR_MTRR_MASK0, mask);
    wrmsr(MSR_MTRR_BASE0, base);
  }
  end();

  begin("cpu/APIC base");
  expect("enabled, bootstrap processor, default address", rdmsr(MSR_APIC_BASE) & 0xfffffffffffffbff, 0xfee00900);
  end();

  begin("cpu/FS and GS bases");
  static uint64_t cells[3] = {11, 22, 33};
  uint64_t v, w;
  wrmsr(MSR_FS_BASE, (uint64_t)cells);
  wrmsr(MSR_GS_BASE, (uint64_t)(cells + 1));
  wrmsr(MSR_KERNEL_GS_BASE, (uint64_t)(cells + 2));
  __asm__ volatile("movq %%fs:0, %0; movq %%gs:0, %1" : "=r"(v), "=r"(w));
  expect("fs", v, 11);
  expect("gs", w, 22);
  __asm__ volatile("swapgs; movq %%gs:0, %0" : "=r"(v));
  expect("gs after swapgs", v, 33);
  expect("GS base after swapgs", rdmsr(MSR_GS_BASE), (uint64_t)(cells + 2));
  expect("KERNEL_GS base after swapgs", rdmsr(MSR_KERNEL_GS_BASE), (uint64_t)(cells + 1));
  __asm__ volatile("swapgs");
  expect("GS base after two", rdmsr(MSR_GS_BASE), (uint64_t)(cells + 1));
  __asm__ volatile("lock addq $5, %%fs:8; movq %%gs:-8, %0" : "=r"(v) : : "memory", "cc");
  expect("segment base plus displacement", v, 11);
  expect("written through fs", cells[1], 27);
  wrmsr(MSR_FS_BASE, 0);
  wrmsr(MSR_GS_BASE, 0);
  end();
}

CODE(do_rdrand, "rdrand %rax");
CODE(do_rdseed, "rdseed %rax");

static void test_cpuid(void) {
  begin("cpu/CPUID");
  struct cpuid c = cpuid(0, 0), x = cpuid(0x80000000, 0);
  expect_range("largest basic leaf", c.eax, 7, 0x20);
  expect_range("largest extended leaf", x.eax, 0x80000008, 0x80000030);
  expect("same vendor in both", x.ebx == c.ebx && x.ecx == c.ecx && x.edx == c.edx, 1);
  c = cpuid(1, 0);
  /* FPU TSC MSR PAE CX8 APIC PGE CMOV PAT CLFSH FXSR SSE SSE2 */
  expect("features of every long-mode PC", c.edx & 0x0709a371, 0x0709a371 & 0x07ffffff);
  expect("CX16", c.ecx >> 13 & 1, 1);
  expect("OSXSAVE follows CR4", c.ecx >> 27 & 1, read_cr4() >> 18 & 1);
  expect("CLFLUSH line", c.ebx >> 8 & 0xff, 8);
  expect("APIC id", c.ebx >> 24, lapic_read(LAPIC_ID) >> 24);
  c = cpuid(0x80000001, 0);
  expect("SYSCALL NX LM", c.edx & (1u << 11 | 1 << 20 | 1 << 29), 1u << 11 | 1 << 20 | 1 << 29);
  c = cpuid(0x80000008, 0);
  expect_range("physical bits", c.eax & 0xff, 36, 52);
  expect("virtual bits", c.eax >> 8 & 0xff, 48);
  bool printable = true;
  for (uint32_t leaf = 0x80000002; leaf <= 0x80000004; leaf++) {
    c = cpuid(leaf, 0);
    const uint8_t *p = (const uint8_t *)&c;
    for (size_t i = 0; i < sizeof c; i++)
      printable &= !p[i] || (p[i] >= 0x20 && p[i] < 0x7f);
  }
  expect_true("name is printable", printable);
  end();

  begin("cpu/RDRAND as CPUID says");
  bool rdrand = cpuid(1, 0).ecx >> 30 & 1, rdseed = cpuid(7, 0).ebx >> 18 & 1;
  expect("RDRAND", try_call(do_rdrand, NULL), rdrand ? NO_FAULT : UD);
  if (rdrand == rdseed)
    expect("RDSEED", try_call(do_rdseed, NULL), rdseed ? NO_FAULT : UD);
  end();

  begin("cpu/optional instructions");
  uint64_t v, r;
  __asm__ volatile("clflush (%0)" : : "r"(&v) : "memory");
  if (cpuid(7, 0).ebx >> 23 & 1)
    __asm__ volatile("clflushopt (%0)" : : "r"(&v) : "memory");
  __asm__ volatile("lfence; mfence; sfence; pause; prefetcht0 (%0)" : : "r"(0xdead000000000000UL) : "memory");
  if (cpuid(0x80000001, 0).edx >> 27 & 1) {
    wrmsr(MSR_TSC_AUX, 0x12345678);
    __asm__ volatile("rdtscp" : "=c"(r) : : "rax", "rdx");
    expect("TSC_AUX", r, 0x12345678);
    wrmsr(MSR_TSC_AUX, 0);
  }
  end();
}

static void test_tsc(void) {
  begin("cpu/TSC");
  uint64_t last = rdtsc(), first = last;
  bool grows = true;
  for (int i = 0; i < 10000; i++) {
    uint64_t now = rdtsc();
    grows &= now >= last;
    last = now;
  }
  expect_true("never goes back", grows);
  expect_true("advances", last > first);
  uint64_t a = rdtsc();
  spin(1000000);
  expect_true("a million rounds take a while", rdtsc() - a >= 10000);
  end();
}

/* --- when interrupts are taken: a vector that is pending already, raised by a self IPI with interrupts off */

#define TEST_VECTOR 0x61
static uint64_t taken_at;
static void note(struct frame *f) {
  taken_at = f->rip;
  lapic_eoi();
}

static void pend(void) {
  lapic_write(LAPIC_ICR, 0x40000 | 0x4000 | TEST_VECTOR);
  for (int i = 0; i < 1000 && !(lapic_read(LAPIC_IRR + 0x10 * (TEST_VECTOR / 32)) >> (TEST_VECTOR % 32) & 1); i++)
    pause();
  spin(2000);
  taken_at = 0;
}

CODE(sti_cli, "sti; cli; nop; nop");
CODE(sti_nop_cli, "sti; nop; sti_nop_cli_at: cli; nop");
CODE(popf_cli, "pushfq; orq $0x200, (%rsp); popfq; popf_cli_at: nop; cli");
CODE(iret_cli, "movq %rsp, %rax; movl %ss, %ecx; pushq %rcx; pushq %rax; pushfq; orq $0x200, (%rsp);"
               "movl %cs, %ecx; pushq %rcx; leaq iret_cli_at(%rip), %rax; pushq %rax; iretq; iret_cli_at: nop; cli");
CODE(sti_hlt, "sti; hlt; sti_hlt_at: nop; cli");
CODE(sti_jmp, "sti; jmp sti_jmp_at; nop; sti_jmp_at: nop; cli");
extern char sti_nop_cli_at[], popf_cli_at[], iret_cli_at[], sti_hlt_at[], sti_jmp_at[];

static void test_shadow(void) {
  static const struct { const char *name; void (*f)(void *); char *at; } cases[] = {
      {"sti, cli", sti_cli, NULL},
      {"sti, nop: after the nop", sti_nop_cli, sti_nop_cli_at},
      {"popf: at once", popf_cli, popf_cli_at},
      {"iret: at once", iret_cli, iret_cli_at},
      {"sti, hlt: hlt ends", sti_hlt, sti_hlt_at},
      {"sti, jmp: at the target", sti_jmp, sti_jmp_at},
  };
  begin("cpu/interrupt windows");
  irq_handler[TEST_VECTOR] = note;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    irq_count[TEST_VECTOR] = 0;
    pend();
    expect("no fault", try_call(cases[i].f, NULL), NO_FAULT);
    expect(cases[i].name, taken_at, (uint64_t)cases[i].at);
    sti();
    spin(2000);
    cli();
    expect("taken in the end", irq_count[TEST_VECTOR], 1);
  }
  irq_handler[TEST_VECTOR] = NULL;
  end();
}

static void test_flags_register(void) {
  begin("cpu/popf");
  uint64_t v = read_flags(), w;
  expect("reserved bits", v & 0xffffffffffc0802a, 2);
  __asm__ volatile("pushfq; pushq %1; popfq; pushfq; popq %0; popfq" : "=&r"(w) : "r"(v | 0x200000 | STATUS) : "cc");
  expect("ID and status flags", w & (0x200000 | STATUS), 0x200000 | STATUS);
  __asm__ volatile("std; pushfq; popq %0; cld" : "=r"(w) : : "cc");
  expect("std", w & DF_FLAG, DF_FLAG);
  __asm__ volatile("stc; pushfq; popq %0; cmc; pushfq; popq %1" : "=&r"(v), "=&r"(w) : : "cc");
  expect("stc", v & CF, 1);
  expect("cmc", w & CF, 0);
  end();
}

void test_cpu(void) {
  const uint64_t all = STATUS, logic = STATUS & ~(uint64_t)AF;
  SWEEP("cpu/add and subtract", all, 0x8e1b1c3a, add8, add16, add32, add64, adc8, adc16, adc32, adc64, sub8, sub16,
        sub32, sub64, sbb8, sbb16, sbb32, sbb64, cmp8, cmp16, cmp32, cmp64, xadd8, xadd16, xadd32, xadd64, inc8, inc16,
        inc32, inc64, dec8, dec16, dec32, dec64, neg8, neg16, neg32, neg64);
  SWEEP("cpu/logic", logic, 0xc2c1e475, and8, and16, and32, and64, or8, or16, or32, or64, xor8, xor16, xor32, xor64);
  SWEEP("cpu/not keeps flags", all, 0xb13f614, not8, not16, not32, not64);
  SWEEP("cpu/bit test", CF, 0x692f0142, bt64, bts64, btr32, btc16);
  SWEEP("cpu/bit scan", ZF, 0x2de6be34, bsf64, bsr64, bsf32, bsr16);
  SWEEP("cpu/imul", CF | OF_FLAG, 0xe43ff291, imul64, imul32, imul16);
  SWEEP("cpu/popcnt", all, 0xe6b858af, popcnt64, popcnt16);
  SWEEP("cpu/crc32", all, 0x7f486907, crc32_8, crc32_64);
  bool abm = cpuid(0x80000001, 0).ecx >> 5 & 1, bmi1 = cpuid(7, 0).ebx >> 3 & 1, bmi2 = cpuid(7, 0).ebx >> 8 & 1,
       adx = cpuid(7, 0).ebx >> 19 & 1;
  SWEEP_IF(abm, "cpu/lzcnt", CF | ZF, 0x89207e0c, lzcnt64, lzcnt32);
  SWEEP_IF(bmi1, "cpu/tzcnt", CF | ZF, 0x5dcb2125, tzcnt64, tzcnt16);
  SWEEP_IF(bmi1, "cpu/BMI1", ZF, 0x61e4b48a, andn64, blsr64, blsi32, blsmsk64, bextr64);
  SWEEP_IF(bmi2, "cpu/BMI2", 0, 0xb13ecddb, bzhi64, pdep64, pext64, rorx64, shlx64, sarx32);
  SWEEP_IF(adx, "cpu/ADX", all, 0x23a56879, adcx64, adox64);
  SWEEP_SHIFTS("cpu/shifts", false, 0x3ff7e6fb, shl8, shl16, shl32, shl64, shr8, shr16, shr32, shr64, sar8, sar16,
               sar32, sar64);
  SWEEP_SHIFTS("cpu/rotates", true, 0x86bd6927, rol8, rol16, rol32, rol64, ror8, ror16, ror32, ror64, rcl8, rcl16,
               rcl32, rcl64, rcr8, rcr16, rcr32, rcr64);
  test_divide();
  test_atomic();
  test_moves();
  test_flags_register();
  test_msrs();
  test_cpuid();
  test_tsc();
  test_shadow();
}
