/* Paging as seen from ring 0: sizes, accessed and dirty bits, write protection, SMEP and SMAP, and translations
 * that change. Only what the architecture guarantees: no test depends on an entry that is stale. */
#include "selftest.h"

#define CR0_WP (1UL << 16)
#define CR4_PGE (1UL << 7)
#define CR4_SMEP (1UL << 20)
#define CR4_SMAP (1UL << 21)

CODE(load, "movq (%rdi), %rax");
CODE(store, "movq $0x77, (%rdi)");
CODE(execute, "call *%rdi");
CODE(load_with_ac, "stac; movq (%rdi), %rax; clac");
CODE(do_stac, "stac; clac");
USER_CODE(user_store, "movq $0x77, (%rdi)");
USER_CODE(user_load, "movq (%rdi), %rax");

#define VA TEST_VA
#define PA SCRATCH

static void flush(void) { write_cr3(read_cr3()); }

static void test_accessed_dirty(void) {
  begin("mmu/accessed and dirty");
  volatile uint64_t *e = pte(VA);
  *at8(PA) = 0xc3;
  static const struct { const char *name; void (*f)(void *); uint64_t bits; } kinds[] = {
      {"read", load, A}, {"write", store, A | D}, {"execute", execute, A}};
  for (unsigned i = 0; i < 3; i++) {
    *at8(PA) = 0xc3;
    pml4[VA >> 39] &= ~(A | D);
    test_pdpt[0] &= ~(A | D);
    test_pd[0] &= ~(A | D);
    map(VA, PA, P | W);
    flush();
    expect("no fault", try_call(kinds[i].f, (void *)VA), NO_FAULT);
    expect(kinds[i].name, *e & (A | D), kinds[i].bits);
    expect("directory", test_pd[0] & A, A);
    expect("directory pointer", test_pdpt[0] & A, A);
    expect("top level", pml4[VA >> 39] & A, A);
    expect("upper levels have no dirty bit", (test_pd[0] | test_pdpt[0] | pml4[VA >> 39]) & D, 0);
  }
  map(VA, PA, P | W);
  (void)*at64(VA);
  expect("after a read", *e & (A | D), A);
  *at64(VA) = 1;
  expect("after a write through the same translation", *e & (A | D), A | D);
  map(VA, PA, P);
  try_call(store, (void *)VA);
  expect("a write that faults", *e & D, 0);
  map(VA, PA, P | W);
  map(VA + PAGE, PA + PAGE, P | W);
  map(VA + 2 * PAGE, PA + 2 * PAGE, P | W);
  *at64(VA + PAGE - 4) = 5;
  expect("across: first", *pte(VA) & (A | D), A | D);
  expect("across: second", *pte(VA + PAGE) & (A | D), A | D);
  expect("neighbour", *pte(VA + 2 * PAGE) & (A | D), 0);
  *at8(VA + 2 * PAGE);
  __asm__ volatile("lock addq $0, (%0)" : : "r"(VA + 2 * PAGE) : "memory", "cc");
  expect("read-modify-write", *pte(VA + 2 * PAGE) & (A | D), A | D);
  map(VA, PA, P | W);
  __asm__ volatile("prefetcht0 (%0); leaq (%0), %%rax; invlpg (%0)" : : "r"(VA) : "rax");
  expect("lea and invlpg are no access", *e & (A | D), 0);
  unmap_tests();
  end();

  begin("mmu/accessed and dirty again after clearing");
  map(VA, PA, P | W);
  for (int i = 0; i < 20; i++) {
    *at64(VA) = (uint64_t)i;
    expect("set", *pte(VA) & (A | D), A | D);
    *pte(VA) &= ~(A | D);
    invlpg(VA);
    (void)*at64(VA);
    expect("read after clearing", *pte(VA) & (A | D), A);
    *pte(VA) &= ~(A | D);
    flush();
    (void)*at64(VA);
    expect("read after reloading cr3", *pte(VA) & (A | D), A);
  }
  unmap_tests();
  end();
}

static void test_sizes(void) {
  begin("mmu/2 MiB page");
  uint64_t va = VA + 0x200000, pa = SCRATCH + 0x200000;
  uint64_t old = test_pd[1];
  *at64(pa + 0x12345 * 8) = 0xabc;
  test_pd[1] = pa | P | W | PS | NX;
  flush();
  expect("read", *at64(va + 0x12345 * 8), 0xabc);
  expect("accessed", test_pd[1] & (A | D), A);
  *at64(va + 0x1ffff8) = 0xdef;
  expect("written", *at64(pa + 0x1ffff8), 0xdef);
  expect("dirty", test_pd[1] & (A | D), A | D);
  expect("NX", try_call(execute, (void *)va), PF);
  expect("error", seen.frame.error, 0x11);
  test_pd[1] = pa | P | W | PS | 1 << 13;
  flush();
  expect("reserved bit", try_call(load, (void *)va), PF);
  expect("error", seen.frame.error & ~P, 8);
  test_pd[1] = old;
  flush();
  end();

  begin("mmu/1 GiB page as CPUID says");
  if (cpuid(0x80000001, 0).edx >> 26 & 1) {
    *at64(PA + 0x5008) = 0x1357;
    test_pdpt[1] = 0UL | P | W | PS | NX;
    flush();
    uint64_t giant = VA + (1UL << 30);
    expect("read", *at64(giant + PA + 0x5008), 0x1357);
    expect("accessed", test_pdpt[1] & (A | D), A);
    *at64(giant + PA + 0x5008) = 0x2468;
    expect("written", *at64(PA + 0x5008), 0x2468);
    expect("dirty", test_pdpt[1] & (A | D), A | D);
    test_pdpt[1] = 0;
    flush();
    expect("gone", try_call(load, (void *)giant), PF);
  }
  end();
}

static void test_changes(void) {
  begin("mmu/invlpg and reloading cr3");
  *at64(PA) = 1;
  *at64(PA + PAGE) = 2;
  map(VA, PA, P | W);
  expect("first", *at64(VA), 1);
  map(VA, PA + PAGE, P | W);
  expect("after invlpg", *at64(VA), 2);
  *pte(VA) = PA | P | W;
  flush();
  expect("after reloading cr3", *at64(VA), 1);
  map(VA, 0, 0);
  expect("taken away", try_call(load, (void *)VA), PF);
  *pte(VA) = (PA + PAGE) | P | W;
  expect("absent entries are not remembered", *at64(VA), 2);
  map(VA, PA + PAGE, P);
  expect("read-only", try_call(store, (void *)VA), PF);
  map(VA, PA + PAGE, P | W);
  expect("writable again", try_call(store, (void *)VA), NO_FAULT);
  test_pd[0] = 0;
  flush();
  expect("directory taken away", try_call(load, (void *)VA), PF);
  unmap_tests();
  end();

  begin("mmu/global pages");
  *at64(PA) = 1;
  *at64(PA + PAGE) = 2;
  map(VA, PA, P | W | G);
  expect("first", *at64(VA), 1);
  *pte(VA) = (PA + PAGE) | P | W | G;
  invlpg(VA);
  expect("invlpg", *at64(VA), 2);
  *pte(VA) = PA | P | W | G;
  write_cr4(read_cr4() & ~CR4_PGE);
  write_cr4(read_cr4() | CR4_PGE);
  expect("CR4.PGE", *at64(VA), 1);
  map(VA, 0, 0);
  end();

  begin("mmu/two address spaces");
  static uint64_t other[512] __attribute__((aligned(4096)));
  memcpy(other, pml4, sizeof other);
  other[VA >> 39] = (uint64_t)low_pdpt | P | W;   /* there, VA is physical 0 */
  map(VA, PA, P | W);
  *at64(PA) = 0x55;
  *at64(PA + PAGE) = 0x66;
  uint64_t here = read_cr3();
  for (int i = 0; i < 50; i++) {
    write_cr3((uint64_t)other);
    expect("there", *at64(VA + PA + PAGE), 0x66);
    write_cr3(here);
    expect("here", *at64(VA), 0x55);
  }
  unmap_tests();
  end();

  begin("mmu/upper half and recursive mapping");
  pml4[511] = pml4[VA >> 39];
  pml4[300] = (uint64_t)pml4 | P | W | NX;
  map(VA + 5 * PAGE, PA, P | W);
  flush();
  *at64(PA + 8) = 0x4242;
  expect("upper half", *at64(0xffffff8000000000 + 5 * PAGE + 8), 0x4242);
  uint64_t entries = 0xffff000000000000 | 300UL << 39 | (VA >> 9 & 0x7ffffff000);
  expect("entry read through itself", *at64(entries + 5 * 8) & ADDR, PA);
  *at64(entries + 6 * 8) = (PA + PAGE) | P | W;
  *at64(PA + PAGE) = 0x99;
  expect("entry written through itself", *at64(VA + 6 * PAGE), 0x99);
  pml4[511] = pml4[300] = 0;
  unmap_tests();
  end();

  begin("mmu/many pages");
  for (uint64_t i = 0; i < TEST_PAGES; i++)
    *pte(VA + i * PAGE) = (PA + (i * 7 % 1024) * PAGE) | P | W | NX;
  flush();
  for (uint64_t i = 0; i < 1024; i++)
    *at64(PA + i * PAGE + 16) = i * i;
  uint64_t wrong = 0;
  for (uint64_t i = 0; i < TEST_PAGES; i++)
    wrong += *at64(VA + i * PAGE + 16) != (i * 7 % 1024) * (i * 7 % 1024);
  expect("wrong", wrong, 0);
  uint64_t marked = 0;
  for (uint64_t i = 0; i < TEST_PAGES; i++)
    marked += (*pte(VA + i * PAGE) & (A | D)) == A;
  expect("accessed", marked, TEST_PAGES);
  unmap_tests();
  end();
}

static void test_protection(void) {
  begin("mmu/CR0.WP");
  map(VA, PA, P);
  write_cr0(read_cr0() & ~CR0_WP);
  expect("off", try_call(store, (void *)VA), NO_FAULT);
  expect("dirty", *pte(VA) & D, D);
  write_cr0(read_cr0() | CR0_WP);
  expect("on", try_call(store, (void *)VA), PF);
  expect("error", seen.frame.error, 3);
  map(VA, PA, P | U);
  write_cr0(read_cr0() & ~CR0_WP);
  expect("ring 3 is never let through", user_call(user_store, VA), PF);
  expect("error", seen.frame.error, 7);
  write_cr0(read_cr0() | CR0_WP);
  unmap_tests();
  end();

  begin("mmu/SMEP as CPUID says");
  *at8(PA) = 0xc3;
  if (cpuid(7, 0).ebx >> 7 & 1) {
    map(VA, PA, P | W | U);
    expect("off", try_call(execute, (void *)VA), NO_FAULT);
    write_cr4(read_cr4() | CR4_SMEP);
    expect("on", try_call(execute, (void *)VA), PF);
    expect("error", seen.frame.error, 0x11);
    expect("reads are allowed", try_call(load, (void *)VA), NO_FAULT);
    expect("ring 3 may execute", user_call(user_load, VA), DONE);
    map(VA, PA, P | W);
    expect("supervisor page", try_call(execute, (void *)VA), NO_FAULT);
    write_cr4(read_cr4() & ~CR4_SMEP);
  }
  end();

  begin("mmu/SMAP as CPUID says");
  if (cpuid(7, 0).ebx >> 20 & 1) {
    map(VA, PA, P | W | U);
    write_cr4(read_cr4() | CR4_SMAP);
    expect("read", try_call(load, (void *)VA), PF);
    expect("error", seen.frame.error, 1);
    expect("write", try_call(store, (void *)VA), PF);
    expect("error", seen.frame.error, 3);
    expect("stac", try_call(load_with_ac, (void *)VA), NO_FAULT);
    expect("clac", try_call(load, (void *)VA), PF);
    expect("ring 3 may read", user_call(user_load, VA), DONE);
    write_cr4(read_cr4() & ~CR4_SMAP);
    expect("off", try_call(load, (void *)VA), NO_FAULT);
  } else {
    expect("stac", try_call(do_stac, NULL), UD);
  }
  unmap_tests();
  end();
}

void test_mmu(void) {
  test_accessed_dirty();
  test_sizes();
  test_changes();
  test_protection();
}
