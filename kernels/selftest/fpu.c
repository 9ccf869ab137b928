/* x87 and SSE by their architectural state: arithmetic, control words, save areas, and the exceptions that
 * arrive as traps. The kernel itself is compiled without either. */
#include "selftest.h"

static uint8_t area[2048] __attribute__((aligned(64)));
static uint8_t image[2048] __attribute__((aligned(64)));

CODE(x87_trap, "fninit; pushq $0x033b; fldcw (%rsp); addq $8, %rsp; fld1; fldz; fdivrp; x87_trap_at: fwait");
CODE(x87_no_trap, "fninit; fld1; fldz; fdivrp; fwait");
extern char x87_trap_at[];

static uint16_t fsw(void) {
  uint16_t v;
  __asm__ volatile("fnstsw %0" : "=a"(v));
  return v;
}

static uint16_t fcw(void) {
  uint16_t v;
  __asm__ volatile("fnstcw %0" : "=m"(v));
  return v;
}

static void set_fcw(uint16_t v) { __asm__ volatile("fldcw %0" : : "m"(v)); }

static uint32_t mxcsr(void) {
  uint32_t v;
  __asm__ volatile("stmxcsr %0" : "=m"(v));
  return v;
}

static void set_mxcsr(uint32_t v) { __asm__ volatile("ldmxcsr %0" : : "m"(v)); }

static void test_x87(void) {
  uint64_t r;
  begin("fpu/x87 arithmetic");
  __asm__ volatile("fninit; fld1; fldpi; faddp; fstpl %0" : "=m"(r));
  expect("1 + pi", r, 0x401090fdaa22168c);
  __asm__ volatile("fldpi; fsqrt; fstpl %0" : "=m"(r));
  expect("sqrt pi", r, 0x3ffc5bf891b4ef6b);
  int64_t i = -12345, j;
  __asm__ volatile("fildq %1; fchs; fistpq %0" : "=m"(j) : "m"(i));
  expect("integers", (uint64_t)j, 12345);
  uint64_t third = 0x3fd5555555555555;   /* 1/3 */
  uint32_t half_even;
  static const uint16_t rounding[4] = {0x037f, 0x077f, 0x0b7f, 0x0f7f};   /* nearest, down, up, to zero */
  static const uint32_t want[4] = {0xfffffffe, 0xfffffffd, 0xfffffffe, 0xfffffffe};
  uint64_t minus = 0xc004000000000000;   /* -2.5 */
  for (int k = 0; k < 4; k++) {
    set_fcw(rounding[k]);
    __asm__ volatile("fldl %1; fistpl %0" : "=m"(half_even) : "m"(minus));
    expect("-2.5 rounded", half_even, want[k]);
  }
  set_fcw(0x037f);
  uint8_t ten[16] = {0};
  __asm__ volatile("fldl %1; fstpt %0" : "=m"(ten) : "m"(third));
  expect("extended mantissa", *at64((uint64_t)ten), 0xaaaaaaaaaaaaa800);
  expect("extended exponent", *at16((uint64_t)ten + 8), 0x3ffd);
  __asm__ volatile("fbld %1; fistpl %0" : "=m"(half_even) : "m"(*(uint8_t(*)[10]) "\x45\x23\x01\0\0\0\0\0\0\x80"));
  expect("packed decimal", half_even, (uint32_t)-12345);
  end();

  begin("fpu/x87 status");
  __asm__ volatile("fninit");
  expect("control word", fcw(), 0x37f);
  expect("status word", fsw(), 0);
  __asm__ volatile("fld1; fldz");
  expect("top of stack", fsw() >> 11 & 7, 6);
  __asm__ volatile("fcomi; fstp %st(0); fstp %st(0)");
  expect("stack empty", fsw() >> 11 & 7, 0);
  __asm__ volatile("fld1; fldpi; fcompp");
  expect("pi > 1", fsw() >> 8 & 0x47, 0);
  __asm__ volatile("fnclex; fld1; fldz; fdivrp; fstp %st(0)");
  expect("zero divide flag", fsw() & 4, 4);
  __asm__ volatile("fnclex; fldz; fldz; fdivrp; fstp %st(0)");
  expect("invalid flag", fsw() & 1, 1);
  __asm__ volatile("fnclex");
  expect("cleared", fsw() & 0x80ff, 0);
  uint64_t zf;
  __asm__ volatile("fldpi; fld1; fcomip %%st(1), %%st; pushfq; popq %0; fstp %%st(0)" : "=r"(zf) : : "cc");
  expect("fcomip", zf & (CF | ZF | PFLAG), CF);
  end();

  begin("fpu/#MF");
  expect("masked", try_call(x87_no_trap, NULL), NO_FAULT);
  memset(&seen, 0, sizeof seen);
  expect("unmasked zero divide", try_call(x87_trap, NULL), MF);
  expect("at the next waiting instruction", seen.frame.rip, (uint64_t)x87_trap_at);
  expect("error summary", fsw() & 0x8084, 0x8084);
  __asm__ volatile("fnclex; fninit");
  end();
}

static void test_sse(void) {
  begin("fpu/SSE integers");
  uint64_t a = 0x1122334455667788, b = 0x0102030405060708, r, s;
  __asm__ volatile("movq %2, %%xmm0; movq %3, %%xmm1; paddb %%xmm1, %%xmm0; movq %%xmm0, %0; pshufd $0x44, %%xmm0, "
                   "%%xmm2; psrldq $8, %%xmm2; movq %%xmm2, %1" : "=r"(r), "=r"(s) : "r"(a), "r"(b));
  expect("paddb", r, 0x12243648 * 0x100000000 + 0x5a6c7e90);
  expect("pshufd and psrldq", s, r);
  __asm__ volatile("movq %1, %%xmm0; movq %2, %%xmm1; pcmpeqb %%xmm0, %%xmm1; pmovmskb %%xmm1, %k0" : "=r"(r)
                   : "r"(a), "r"(a ^ 0xff00));
  expect("pcmpeqb and pmovmskb", r, 0xfffd);
  __asm__ volatile("movq %1, %%xmm0; movq %2, %%xmm1; pmuludq %%xmm0, %%xmm1; movq %%xmm1, %0" : "=r"(r)
                   : "r"(a), "r"(b));
  expect("pmuludq", r, 0x55667788UL * 0x05060708UL);
  if (cpuid(1, 0).ecx >> 9 & 1) {
    __asm__ volatile("movq %1, %%xmm0; movq %2, %%xmm1; pshufb %%xmm1, %%xmm0; movq %%xmm0, %0" : "=r"(r)
                     : "r"(a), "r"(0x8000010203040506UL));
    expect("pshufb", r, 0x0088776655443322);
  }
  end();

  begin("fpu/AES and carry-less multiply as CPUID says");
  if (cpuid(1, 0).ecx >> 25 & 1) {
    __asm__ volatile("movq %1, %%xmm0; movq %2, %%xmm1; aesenc %%xmm1, %%xmm0; movq %%xmm0, %0" : "=r"(r)
                     : "r"(a), "r"(b));
    expect("aesenc", r, 0xcfa38708346298c5);
  }
  if (cpuid(1, 0).ecx >> 1 & 1) {
    __asm__ volatile("movq %2, %%xmm0; movq %3, %%xmm1; pclmulqdq $0, %%xmm1, %%xmm0; movq %%xmm0, %0; psrldq $8, "
                     "%%xmm0; movq %%xmm0, %1" : "=r"(r), "=r"(s) : "r"(a), "r"(b));
    expect("pclmulqdq low", r, 0x0101015401450440);
    expect("pclmulqdq high", s, 0x0011004400550110);
  }
  end();

  begin("fpu/SSE floating point");
  uint64_t third = 0x3fd5555555555555, ten = 0x4024000000000000;
  __asm__ volatile("movq %1, %%xmm0; movq %2, %%xmm1; mulsd %%xmm1, %%xmm0; sqrtsd %%xmm0, %%xmm0; movq %%xmm0, %0"
                   : "=r"(r) : "r"(third), "r"(ten));
  expect("sqrt(10/3)", r, 0x3ffd363d1848dcbe);
  uint64_t minus = 0xc004000000000000;   /* -2.5 */
  static const uint64_t want[4] = {~1UL, ~2UL, ~1UL, ~1UL};
  for (uint32_t k = 0; k < 4; k++) {
    set_mxcsr(0x1f80 | k << 13);
    __asm__ volatile("movq %1, %%xmm0; cvtsd2si %%xmm0, %0" : "=r"(r) : "r"(minus));
    expect("-2.5 rounded", r, want[k]);
  }
  set_mxcsr(0x1f80);
  __asm__ volatile("movq %1, %%xmm0; cvttsd2si %%xmm0, %0" : "=r"(r) : "r"(0x43f0000000000000UL));
  expect("too large", r, 1UL << 63);
  uint64_t flags;
  __asm__ volatile("movq %1, %%xmm0; movq %2, %%xmm1; ucomisd %%xmm1, %%xmm0; pushfq; popq %0" : "=r"(flags)
                   : "r"(third), "r"(0x7ff8000000000000UL) : "cc");
  expect("unordered", flags & (CF | ZF | PFLAG), CF | ZF | PFLAG);
  __asm__ volatile("movq %1, %%xmm0; cvtsd2ss %%xmm0, %%xmm0; movd %%xmm0, %k0" : "=r"(r) : "r"(third));
  expect("to single", r, 0x3eaaaaab);
  end();

  begin("fpu/MXCSR");
  set_mxcsr(0x1fc0 | 0x3f);
  expect("reads back", mxcsr(), 0x1fff);
  set_mxcsr(0x1f80);
  expect("default", mxcsr(), 0x1f80);
  end();
}

static void load_pattern(void) {
  static const uint64_t v[2] = {0x0011223344556677, 0x8899aabbccddeeff};
  __asm__ volatile("fninit; fld1; fldpi; movdqu %0, %%xmm0; movdqa %%xmm0, %%xmm7; paddq %%xmm7, %%xmm7; movdqa "
                   "%%xmm7, %%xmm15; paddq %%xmm15, %%xmm15" : : "m"(v));
  set_mxcsr(0x3f80);
}

static void spoil(void) {
  __asm__ volatile("fninit; fldz; pxor %xmm0, %xmm0; pxor %xmm7, %xmm7; pxor %xmm15, %xmm15");
  set_mxcsr(0x1f80);
}

static void test_save(void) {
  begin("fpu/FXSAVE and FXRSTOR");
  load_pattern();
  __asm__ volatile("fxsave64 %0" : "=m"(area));
  expect("control word", *at16((uint64_t)area), 0x37f);
  expect("top of stack", *at16((uint64_t)area + 2) >> 11 & 7, 6);
  expect("abridged tags", area[4], 0xc0);
  expect("st0 is pi", *at64((uint64_t)area + 32), 0xc90fdaa22168c235);
  expect("MXCSR", *at32((uint64_t)area + 24), 0x3f80);
  expect("MXCSR mask", *at32((uint64_t)area + 28) & 0xffbf, 0xffbf);
  expect("xmm15", *at64((uint64_t)area + 160 + 15 * 16), 0x004488cd115599dc);
  spoil();
  __asm__ volatile("fxrstor64 %0" : : "m"(area));
  __asm__ volatile("fxsave64 %0" : "=m"(image));
  expect("round trip", (uint64_t)memcmp(area, image, 416), 0);
  spoil();
  end();

  begin("fpu/XSAVE as CPUID says");
  if (cpuid(1, 0).ecx >> 26 & 1) {
    write_cr4(read_cr4() | 1 << 18);
    expect("OSXSAVE", cpuid(1, 0).ecx >> 27 & 1, 1);
    uint32_t low, high;
    __asm__ volatile("xsetbv" : : "c"(0), "a"(3), "d"(0));
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    expect("XCR0", low, 3);
    expect("size", cpuid(13, 0).ebx, 576);
    memset(area, 0, sizeof area);
    load_pattern();
    __asm__ volatile("xsave64 %0" : "+m"(area) : "a"(3), "d"(0));
    expect("header", *at64((uint64_t)area + 512) & 3, 3);
    expect("xmm15", *at64((uint64_t)area + 160 + 15 * 16), 0x004488cd115599dc);
    spoil();
    __asm__ volatile("xrstor64 %0" : : "m"(area), "a"(3), "d"(0));
    uint64_t r;
    __asm__ volatile("movq %%xmm15, %0" : "=r"(r));
    expect("restored", r, 0x004488cd115599dc);
    *at64((uint64_t)area + 512) = 1;   /* SSE in its initial state */
    __asm__ volatile("xrstor64 %0" : : "m"(area), "a"(3), "d"(0));
    __asm__ volatile("movq %%xmm15, %0" : "=r"(r));
    expect("initialised", r, 0);
    spoil();
    write_cr4(read_cr4() & ~(1UL << 18));
  }
  end();
}

void test_fpu(void) {
  test_x87();
  test_sse();
  test_save();
  spoil();
  __asm__ volatile("fninit");
}
