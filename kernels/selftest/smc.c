/* Self-modifying and cross-modifying code. A store through the address that is executed shows at the next
 * instruction; through another mapping of the same page, after a serialising instruction. */
#include "selftest.h"

#define CODE_VA TEST_VA                     /* executable and writable */
#define ALIAS_VA (TEST_VA + 64 * PAGE)      /* the same pages, executable and writable */
#define DATA_VA (TEST_VA + 128 * PAGE)      /* the same pages, NX */
#define PA SCRATCH

static void serialize(void) { (void)cpuid(0, 0); }

static uint64_t call(uint64_t va) {
  uint64_t r;
  __asm__ volatile("call *%1" : "=a"(r) : "r"(va) : "rcx", "rdx", "memory", "cc");
  return r;
}

/* movl $value, %eax; ret */
static void write_function(uint64_t va, uint32_t value) {
  *at8(va) = 0xb8;
  *at8(va + 1) = (uint8_t)value;
  *at8(va + 2) = (uint8_t)(value >> 8);
  *at16(va + 3) = (uint16_t)(value >> 16);
  *at8(va + 5) = 0xc3;
}

static void map_all(void) {
  unmap_tests();
  for (uint64_t i = 0; i < 8; i++) {
    map(CODE_VA + i * PAGE, PA + i * PAGE, P | W);
    map(ALIAS_VA + i * PAGE, PA + i * PAGE, P | W);
    map(DATA_VA + i * PAGE, PA + i * PAGE, P | W | NX);
  }
  memset((void *)PA, 0xcc, 8 * PAGE);
}

/* Copied into the writable page: each writes over an instruction that is ahead of it in the same block. */
CODE(patch_ahead, "movl %edi, patch_ahead_target + 1(%rip); patch_ahead_target: movl $0x11111111, %eax");
CODE(patch_loop, "xorl %eax, %eax; movl $200, %ecx; 1: incb patch_loop_target + 1(%rip);"
                 "patch_loop_target: movb $0, %dl; movzbl %dl, %edx; addl %edx, %eax; decl %ecx; jnz 1b");
CODE(patch_behind, "xorl %eax, %eax; movl $100, %ecx; 1: patch_behind_target: .byte 0x05; .long 1;"
                   "movl %ecx, patch_behind_target + 1(%rip); decl %ecx; jnz 1b");
extern char patch_ahead_target[];

static uint64_t copy_code(void (*f)(void *), uint64_t where) {
  memcpy((void *)where, (void *)f, 64);
  return where;
}

static uint64_t call1(uint64_t va, uint64_t arg) {
  uint64_t r;
  __asm__ volatile("call *%2" : "=a"(r), "+D"(arg) : "r"(va) : "rcx", "rdx", "memory", "cc");
  return r;
}

void test_smc(void) {
  begin("smc/rewritten in place");
  map_all();
  for (uint32_t i = 0; i < 200; i++) {
    write_function(CODE_VA + 100, i * 0x01010101);
    expect("value", call(CODE_VA + 100), i * 0x01010101);
  }
  end();

  begin("smc/one byte of a function");
  write_function(CODE_VA + 100, 0);
  for (uint32_t i = 0; i < 256; i++) {
    *at8(CODE_VA + 103) = (uint8_t)i;
    expect("value", call(CODE_VA + 100), i << 16);
  }
  end();

  begin("smc/through an NX alias");
  map_all();
  for (uint32_t i = 0; i < 200; i++) {
    write_function(DATA_VA + 200, i * 7);
    serialize();
    expect("value", call(CODE_VA + 200), i * 7);
    write_function(PA + 200, i * 9);   /* and through the 1:1 mapping */
    serialize();
    expect("value", call(CODE_VA + 200), i * 9);
  }
  end();

  begin("smc/two executable mappings");
  map_all();
  for (uint32_t i = 0; i < 100; i++) {
    write_function(CODE_VA + 300, i);
    serialize();
    expect("executed through the other", call(ALIAS_VA + 300), i);
    write_function(ALIAS_VA + 300, i + 1000);
    serialize();
    expect("and the other way round", call(CODE_VA + 300), i + 1000);
    expect("both", call(ALIAS_VA + 300), i + 1000);
  }
  end();

  begin("smc/alias written before and after translation");
  map_all();
  for (uint32_t i = 0; i < 50; i++) {
    uint64_t page = (i % 8) * PAGE;
    *at8(DATA_VA + page + 3000) = 1;              /* the alias is known to be writable … */
    write_function(DATA_VA + page + 40, i);
    serialize();
    expect("first", call(CODE_VA + page + 40), i);  /* … before this page has code */
    *at8(DATA_VA + page + 3001) = 1;              /* a store elsewhere in the page */
    write_function(DATA_VA + page + 40, i + 500);
    serialize();
    expect("second", call(CODE_VA + page + 40), i + 500);
  }
  end();

  begin("smc/ahead in the same block");
  map_all();
  for (uint32_t i = 0; i < 100; i++) {
    uint64_t f = copy_code(patch_ahead, CODE_VA + 400);
    expect("value", call1(f, i * 3), i * 3);
    expect("again", call1(f, i * 5), i * 5);
  }
  end();

  begin("smc/loop that modifies itself");
  map_all();
  copy_code(patch_loop, CODE_VA + 500);
  expect("sum ahead", call(CODE_VA + 500), 200 * 201 / 2);
  copy_code(patch_behind, CODE_VA + 600);
  uint64_t sum = 0x1;   /* first round adds 1, each later one what the round before it wrote */
  for (uint64_t c = 100; c > 1; c--)
    sum += c;
  expect("sum behind", call(CODE_VA + 600), sum & 0xffffffff);
  end();

  begin("smc/instruction across two pages");
  map_all();
  for (unsigned cut = 1; cut < 6; cut++) {
    uint64_t f = CODE_VA + PAGE - cut;
    write_function(f, 0x01020304);
    expect("first", call(f), 0x01020304);
    for (uint32_t i = 0; i < 20; i++) {
      *at8(f + 4) = (uint8_t)i;       /* mostly in the second page */
      *at8(f + 1) = (uint8_t)(i + 1);
      expect("changed", call(f), i << 24 | 0x020300 | (i + 1));
      *at8(DATA_VA + PAGE - cut + 4) = (uint8_t)(i + 128);
      serialize();
      expect("changed through the alias", call(f), (i + 128) << 24 | 0x020300 | (i + 1));
    }
  }
  end();

  begin("smc/block across two pages");
  map_all();
  /* 40 times incl %eax over the page end, then ret */
  uint64_t f = CODE_VA + 2 * PAGE - 40;
  *at16(f) = 0xc031;
  for (uint64_t i = 0; i < 39; i++)
    *at16(f + 2 + 2 * i) = 0xc0ff;
  *at8(f + 80) = 0xc3;
  expect("before", call(f), 39);
  *at16(CODE_VA + 2 * PAGE + 2) = 0xc8ff;   /* decl */
  expect("second page changed", call(f), 37);
  *at16(f + 10) = 0xc8ff;
  expect("first page changed", call(f), 35);
  map(CODE_VA + 2 * PAGE, PA + 7 * PAGE, P | W);
  *at8(PA + 7 * PAGE) = 0xc3;
  serialize();
  expect("second page remapped", call(f), 17);
  end();

  begin("smc/string instructions over code");
  map_all();
  for (uint32_t i = 0; i < 50; i++) {
    write_function(DATA_VA + 5 * PAGE, i);
    memcpy((void *)(CODE_VA + 700), (void *)(DATA_VA + 5 * PAGE), 6);
    expect("movs", call(CODE_VA + 700), i);
    memset((void *)(DATA_VA + 701), (int)i, 4);
    serialize();
    expect("stos through the alias", call(CODE_VA + 700), i * 0x01010101);
  }
  end();

  begin("smc/other stores over code");
  map_all();
  uint64_t code = CODE_VA + 800;
  write_function(code, 1);
  expect("plain", call(code), 1);
  __asm__ volatile("lock addl $5, (%0)" : : "r"(code + 1) : "memory", "cc");
  expect("locked add", call(code), 6);
  uint32_t v = 77;
  __asm__ volatile("xchgl %0, (%1)" : "+r"(v) : "r"(code + 1) : "memory");
  expect("xchg", call(code), 77);
  expect("old", v, 6);
  /* a push over it: movl $0x99, %eax; ret; and two bytes more */
  __asm__ volatile("movq %%rsp, %%rcx; leaq 8(%0), %%rsp; pushq %1; movq %%rcx, %%rsp"
                   : : "r"(code), "r"(0xccccc300000099b8UL) : "rcx", "memory");
  expect("push", call(code), 0x99);
  __asm__ volatile("movd %0, %%xmm0; movd %%xmm0, (%1)" : : "r"(0x31337), "r"(code + 1) : "memory");
  expect("SSE store", call(code), 0x31337);
  __asm__ volatile("movnti %0, (%1); sfence" : : "r"(0x4242), "r"(code + 1) : "memory");
  expect("non-temporal store", call(code), 0x4242);
  *at32(code + 1 - 2) = 0x0033b890;   /* nop, movl $0x33: across the start */
  expect("unaligned store over the start", call(code) & 0xff, 0x33);
  end();

  begin("smc/code at a remapped address");
  map_all();
  for (uint64_t i = 0; i < 8; i++)
    write_function(DATA_VA + i * PAGE + 900, (uint32_t)i + 1);
  for (uint64_t i = 0; i < 64; i++) {
    map(CODE_VA, PA + (i * 5 % 8) * PAGE, P | W);
    expect("value", call(CODE_VA + 900), i * 5 % 8 + 1);
  }
  map(CODE_VA, PA, P | W | NX);
  extern void execute(void *);
  expect("NX", try_call(execute, (void *)(CODE_VA + 900)), PF);
  map(CODE_VA, 0, 0);
  expect("absent", try_call(execute, (void *)(CODE_VA + 900)), PF);
  map(CODE_VA, PA, P);
  expect("back", call(CODE_VA + 900), 1);
  end();

  begin("smc/generated code");
  map_all();
  uint64_t wrong = 0;
  uint32_t seed = 1;
  for (uint32_t round = 0; round < 3000; round++) {
    seed = seed * 1103515245 + 12345;
    uint64_t place = (seed >> 8) % (8 * PAGE - 16), through = seed >> 28 & 1 ? DATA_VA : CODE_VA;
    write_function(through + place, seed);
    serialize();
    wrong += call((seed >> 29 & 1 ? CODE_VA : ALIAS_VA) + place) != seed;
  }
  expect("wrong", wrong, 0);
  end();

  begin("smc/data beside code");
  map_all();
  write_function(CODE_VA + 64, 3);
  wrong = 0;
  for (uint32_t i = 0; i < 3000; i++) {
    *at32(CODE_VA + 2048 + 4 * (i % 256)) = i;
    wrong += call(CODE_VA + 64) != 3;
    wrong += *at32(DATA_VA + 2048 + 4 * (i % 256)) != i;
  }
  expect("wrong", wrong, 0);
  unmap_tests();
  end();
}
